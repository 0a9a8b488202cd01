"""Load weights for inference and warn if they were trained otherwise, or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs import codec_class
from poise.config.datasets import dataset_info
from poise.engine.embedded_experiment import read_settings
from poise.errors import DataError, escape_name
from poise.io.files import read_bytes
from poise.io.yaml_file import MAX_BYTES, parse_yaml
from poise.models.weights import zoo
from poise.models.weights.loading import LoadReport, load
from poise.models.weights.reading import read_tensors
from poise.structures.skeleton import first_joint_mismatch

log = logging.getLogger(__name__)

# settings that keypoints depend on besides the weights and the codec's own
_COMPARED_KEYS = (
    "MODEL.TARGET_TYPE",
    "MODEL.IMAGE_SIZE",
    "MODEL.MEAN",
    "MODEL.STD",
    "DATASET.COLOR_RGB",
    "TEST.BOX_MARGIN",
)


def load_trained_weights(cfg: CfgNode, model: nn.Module, file: str | Path) -> LoadReport:
    """Load a weight file for inference, see poise.models.weights.load.

    Logs a warning if it was trained with other settings than `cfg` or with other keypoints than
    those of the dataset.
    """
    report = load(model, file, rgb=cfg.DATASET.COLOR_RGB)
    warn_config_mismatch(cfg, Path(file), report.experiment)
    data = dataset_info(cfg)
    mismatch = first_joint_mismatch(report.joints, data.skeleton.names) if report.joints else ""
    if mismatch:
        log.warning(
            "%s: trained with other keypoints than those of %s (%s); keypoints may get wrong names",
            file,
            data.path,
            mismatch,
        )
    return report


def warn_config_mismatch(cfg: CfgNode, file: Path, experiment: str = "") -> None:
    """Warn if weights were trained with another codec, size, color order, mean or box padding.

    Args:
        cfg: configuration to predict with.
        file: the weight file.
        experiment: the file's own text of describe_experiment. If it has none, the entry of a
            released file, the config.yaml next to it and the configuration in a checkpoint are
            read.
    """
    codec = codec_class(cfg.MODEL.TARGET_TYPE)
    keys = (*_COMPARED_KEYS, *codec.config_keys)
    try:
        trained = _training_settings(file, experiment, keys)
    # of another program
    except (OSError, ValueError, DataError, LookupError, TypeError, AttributeError):
        return
    mismatches = []
    for key in keys:
        group, _, name = key.partition(".")
        used, value = cfg[group][name], trained.get(key)
        if value is not None and str(value) != str(used):
            mismatches.append(f"{key} {escape_name(value)} (tested with {used})")
    if mismatches:
        log.warning("%s: trained with %s; keypoints may be misplaced", file, ", ".join(mismatches))


def _training_settings(file: Path, experiment: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of `keys` that a file was trained with, as far as they are known."""
    entry = zoo.find_release(file)
    if entry is not None:
        return dict(zip(entry.overrides[::2], entry.overrides[1::2]))
    config_file = file.parent / "config.yaml"
    if experiment:
        groups = read_settings(experiment, file)
    elif config_file.is_file():
        text = read_bytes(config_file, "configuration", MAX_BYTES)
        groups = parse_yaml(text, file, DataError)
    else:
        text = read_tensors(file, "weight file")["config"][:MAX_BYTES]
        groups = parse_yaml(text, file, DataError)
    settings = {}
    for key in keys:
        group, _, name = key.partition(".")
        settings[key] = groups.get(group, {}).get(name)
    return settings


def untrained_weights_warning(model: nn.Module, report: LoadReport | None) -> str:
    """Return why a network may predict nothing although weights were loaded, or ''.

    Args:
        model: the network.
        report: report of loading its weights; None if none were loaded.
    """
    if report is None:
        return ""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    num_loaded = sum(state[name].numel() for name in report.loaded if name in state)
    num_values = sum(tensor.numel() for tensor in state.values())
    if num_loaded < num_values:
        return (
            f"weights not loaded: {100 * num_loaded / num_values:.1f} % of the network's values are"
            f" from {report.path}, the others have initial values"
        )
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if norms and all(map(_has_initial_statistics, norms)):
        return (
            "weights not trained: the batch norms' running statistics in"
            f" {report.path} have initial values"
        )
    return ""


def _has_initial_statistics(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    return not mean.any() and torch.equal(variance, torch.ones_like(variance))
