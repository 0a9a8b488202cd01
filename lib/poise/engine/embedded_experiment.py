"""The experiment that a weight file was trained with, as a JSON text in the file.

Every weight file of Poise has this text. The file may come from anywhere: only plain values are
read, the settings pass the checks of an experiment file, and paths in the text are not opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from yacs.config import CfgNode

from poise.codecs import CODECS
from poise.config.dataset_yaml import builtin_datasets, load_dataset_info, register_joints
from poise.config.datasets import dataset_info
from poise.config.loading import from_values, override
from poise.errors import ConfigError, DataError, PoiseError
from poise.io.yaml_file import parse_yaml
from poise.models import build_model
from poise.models.posenas.genotypes import GENOTYPES, Genotype
from poise.models.weights.reading import State, read_weight_file
from poise.structures.skeleton import describe_joints

VERSION = 1
# paths of the training machine: not written, because weight files are published
_PATHS = (
    "OUTPUT_DIR",
    "LOG_DIR",
    "DATA_DIR",
    "DATASET.ROOT",
    "DATASET.FILE",
    "MODEL.PRETRAINED",
    "TRAIN.CHECKPOINT",
    "TEST.MODEL_FILE",
    "TEST.COCO_BBOX_FILE",
)
# what is read from a file: these groups except for their paths, and these keys
_GROUPS = ("MODEL", "TEST", "LOSS")
_KEYS = ("AMP", "CHANNELS_LAST", "DATASET.COLOR_RGB", "DATASET.EXIF")


def describe_experiment(cfg: CfgNode, name: str, network: nn.Module | None = None) -> str:
    """Return the JSON text for a weight file.

    Args:
        cfg: configuration of the training.
        name: name of the experiment.
        network: PoseNAS network whose genotype is saved if it is not a built-in one.
    """
    described = cfg.clone()
    described.defrost()
    for path in _PATHS:
        group, _, key = path.rpartition(".")
        node = described[group] if group else described
        node[key] = ""
    described.DATASET.MIX = CfgNode()
    del described["SEARCH"]
    cells = None
    if described.MODEL.GENOTYPE not in GENOTYPES:
        described.MODEL.GENOTYPE = ""
        genotype = getattr(network, "genotype", None)
        if genotype is not None:
            cells = genotype.plain_cells()
    data = dataset_info(cfg)
    return json.dumps(
        {
            "version": VERSION,
            "experiment": name,
            "config": described.dump(),
            "dataset": {**describe_joints(data.skeleton), "category": data.category},
            "genotype": cells,
        }
    )


def config_from_weights(file: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Return the configuration for inference with a weight file, read from the file.

    Args:
        file: weight file of Poise.
        overrides: KEY, VALUE, ...

    Raises ConfigError if the file has no experiment, DataError if it is invalid.
    """
    weights = read_weight_file(file)
    if not weights.experiment:
        raise ConfigError(f"{file}: experiment missing; give its YAML file (--cfg FILE)")
    try:
        content = _parse_content(weights.experiment, file)
        values = _select_settings(_parse_settings(content, file))
        values.setdefault("DATASET", {}).update(_select_dataset(content.get("dataset"), str(file)))
        model = values.get("MODEL", {})
        if model.get("GENOTYPE", "posenas") not in GENOTYPES:
            model["GENOTYPE"] = _register_genotype(content.get("genotype"), str(file))
        cfg = from_values(values, f"{file}: its experiment")
        _check_network_size(cfg, weights.state, file)
    except DataError:
        raise
    except PoiseError as error:
        message = str(error)
        if not message.startswith(str(file)):  # an option of a network
            message = f"{file}: {message}"
        raise DataError(message) from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise _invalid(file, type(error).__name__) from None
    return override(cfg, overrides)


def read_settings(text: str, source: str | Path) -> dict[str, Any]:
    """Return the groups of settings in a text of describe_experiment, else raise DataError."""
    return _parse_settings(_parse_content(text, source), source)


def _parse_content(text: str, source: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(source, type(error).__name__) from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise _invalid(source, f"version is not {VERSION}")
    return content


def _parse_settings(content: dict[str, Any], source: str | Path) -> dict[str, Any]:
    text = content.get("config")
    groups = parse_yaml(text, source, DataError) if isinstance(text, str) else None
    if not isinstance(groups, dict):
        raise _invalid(source, "settings missing")
    return groups


def _invalid(source: str | Path, reason: str) -> DataError:
    return DataError(
        f"{source}: invalid experiment in the file ({reason}); give its YAML file (--cfg FILE)"
    )


def _select_settings(groups: dict[str, Any]) -> dict[str, Any]:
    """Return the settings for inference, without paths."""
    values: dict[str, Any] = {group: dict(groups[group]) for group in _GROUPS if group in groups}
    for path in _KEYS:
        group, _, key = path.rpartition(".")
        source = groups.get(group, {}) if group else groups
        if key in source:
            target = values.setdefault(group, {}) if group else values
            target[key] = source[key]
    for path in _PATHS:
        group, _, key = path.rpartition(".")
        values.get(group, {}).pop(key, None)
    codec = CODECS.get(values.get("MODEL", {}).get("TARGET_TYPE"))
    if codec is not None:
        values.setdefault("LOSS", {}).setdefault("TYPE", codec.losses[0])
    return values


def _select_dataset(joints: Any, file: str) -> dict[str, str]:
    """Return keys of DATASET: those of a built-in dataset, or of one made of `joints`."""
    if not isinstance(joints, dict):
        raise _invalid(file, "keypoint names missing")
    joints = dict(joints)
    category = joints.pop("category", "person")
    name = f"{file}: its joints"
    data = register_joints(name, joints, category)
    if (
        data.name in builtin_datasets()
        and describe_joints(load_dataset_info(data.name).skeleton) == joints
    ):
        return {"DATASET": data.name}
    return {"FILE": name}


def _register_genotype(cells: Any, file: str) -> str:
    """Add the cells of a file to GENOTYPES and return their name; '' if it has none."""
    if cells is None:
        return ""
    name = f"{file}: its cells"
    GENOTYPES[name] = Genotype(**cells)
    return name


def _check_network_size(cfg: CfgNode, state: State, file: str | Path) -> None:
    """Raise DataError if the network of `cfg` is larger than the tensors of the file.

    A few numbers in a text can ask for any amount of memory. The network is built on the meta
    device, and only as far as the file's tensors go.
    """
    remaining = {
        "tensors": len(state),
        "values": sum(tensor.numel() for tensor in state.values()),
    }

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        remaining["tensors"] -= 1
        if parameter is not None:
            remaining["values"] -= parameter.numel()
        if min(remaining.values()) < 0:
            raise DataError(
                f"{file}: corrupt, its experiment describes a larger network than its weights;"
                " do not trust it, or give the YAML file (--cfg FILE)"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build_model(cfg)
    finally:
        hook.remove()
