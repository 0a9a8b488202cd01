"""What a weight file was trained with, and whether it was trained at all, where that can be
known.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from poise.config.datasets import dataset_info
from poise.errors import DataError, escape_name
from poise.io.files import read_bytes
from poise.io.yaml_file import MAX_BYTES, parse_yaml
from poise.models.weights import zoo
from poise.models.weights.experiment import read_settings
from poise.models.weights.loading import LoadReport, load
from poise.models.weights.reading import read_tensors
from poise.structures.skeleton import first_joint_mismatch

log = logging.getLogger(__name__)

# what the joints found depend on besides the weights, and what a file of another value was trained
# with
_TRAINED_WITH = (
    "MODEL.TARGET_TYPE",
    "MODEL.SIGMA",
    "MODEL.KERNELS",
    "MODEL.IMAGE_SIZE",
    "MODEL.HEATMAP_SIZE",
    "MODEL.MEAN",
    "MODEL.STD",
    "DATASET.COLOR_RGB",
    "TEST.BOX_MARGIN",
)


def load_trained_weights(cfg: CfgNode, model: nn.Module, file: str | Path) -> LoadReport:
    """weights.load of a file to predict with: with a warning where it was trained otherwise than
    `cfg` says, or for other joints than its data set's.
    """
    report = load(model, file, rgb=cfg.DATASET.COLOR_RGB)
    warn_config_mismatch(cfg, Path(file), report.experiment)
    data = dataset_info(cfg)
    other = first_joint_mismatch(report.joints, data.skeleton.names) if report.joints else ""
    if other:
        log.warning(
            "%s was trained for other joints than those of %s (%s): joints may get wrong names",
            file,
            data.path,
            other,
        )
    return report


def warn_config_mismatch(cfg: CfgNode, file: Path, experiment: str = "") -> None:
    """Warn where weights are tested with another codec, size, color, normalization or box padding.

    experiment: the file's own text of weights.experiment. Where it has none, the zoo's entry of a
    released file, the config.yaml in its folder and a checkpoint's own content are read.
    """
    entry = zoo.find_release(file)
    try:
        beside = file.parent / "config.yaml"
        if entry is not None:
            trained = dict(zip(entry.overrides[::2], entry.overrides[1::2]))
        else:
            if experiment:
                groups = read_settings(experiment, file)
            else:
                text = (
                    read_bytes(beside, "configuration", MAX_BYTES)
                    if beside.is_file()
                    else read_tensors(file, "weight file")["config"]
                )
                groups = parse_yaml(text[:MAX_BYTES], file, DataError)
            trained = {
                key: groups.get(key.split(".")[0], {}).get(key.split(".")[1])
                for key in _TRAINED_WITH
            }
    # another program's
    except (OSError, ValueError, DataError, LookupError, TypeError, AttributeError):
        return
    now = {key: cfg[key.split(".")[0]][key.split(".")[1]] for key in _TRAINED_WITH}
    others = [
        f"{key} {escape_name(trained[key])} (tested with {now[key]})"
        for key in _TRAINED_WITH
        if trained.get(key) is not None and str(trained[key]) != str(now[key])
    ]
    if others:
        log.warning(
            "%s was trained with %s: joints may be found in the wrong places",
            file,
            ", ".join(others),
        )


def untrained_weights_warning(model: nn.Module, report: LoadReport | None) -> str:
    """Why a network may find nothing although a file was put into it; '' where nothing is known
    against it. report: of that load, if there was one.
    """
    if report is None:
        return ""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    filled, total = (
        sum(state[name].numel() for name in report.loaded if name in state),
        sum(tensor.numel() for tensor in state.values()),
    )
    if filled < total:
        return (
            f"weights not loaded: {100 * filled / total:.1f} % of the network's values are of"
            f" {report.path}, the others are those of a new network"
        )
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if norms and all(
        not module.running_mean.any()
        and torch.equal(module.running_var, torch.ones_like(module.running_var))
        for module in norms
    ):
        return (
            f"weights not trained: batch norm's running figures in {report.path} are those of a new"
            " network"
        )
    return ""
