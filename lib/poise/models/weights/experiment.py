"""The experiment that a weight file was trained with, as one JSON text in the file.

Every weight file of Poise carries the text. It may be a stranger's: only plain values are read, the
settings pass the checks of an experiment file, and no path in it is opened.
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
# paths of the machine that trained: they are not written, because weight files are passed on
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
# what predicting needs, and all that is taken from a file; of MODEL and TEST every key but paths
_GROUPS = ("MODEL", "TEST")
_KEYS = ("AMP", "CHANNELS_LAST", "DATASET.COLOR_RGB", "DATASET.EXIF")


def describe_experiment(cfg: CfgNode, name: str, network: nn.Module | None = None) -> str:
    """Return the text for a weight file of experiment `name`; network: whose cells are kept."""
    described = cfg.clone()
    described.defrost()
    for key in _PATHS:
        group, _, last = key.rpartition(".")
        (described[group] if group else described)[last] = ""
    described.DATASET.MIX = CfgNode()
    del described["SEARCH"]
    genotype = None
    if described.MODEL.GENOTYPE not in GENOTYPES:
        genotype, described.MODEL.GENOTYPE = getattr(network, "genotype", None), ""
    data = dataset_info(cfg)
    return json.dumps(
        {
            "version": VERSION,
            "experiment": name,
            "config": described.dump(),
            "dataset": {**describe_joints(data.skeleton), "category": data.category},
            "genotype": genotype.plain_cells() if genotype else None,
        }
    )


def read_settings(text: str, source: str | Path) -> dict[str, Any]:
    """Return the groups of settings in a text of `describe`. Raises DataError for other texts."""
    return _settings(_content(text, source), source)


def _content(text: str, source: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_ours(source, type(error).__name__) from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise _not_ours(source, f"another version than {VERSION}")
    return content


def _settings(content: dict[str, Any], source: str | Path) -> dict[str, Any]:
    text = content.get("config")
    groups = parse_yaml(text, source, DataError) if isinstance(text, str) else None
    if not isinstance(groups, dict):
        raise _not_ours(source, "no settings")
    return groups


def _not_ours(source: str | Path, reason: str) -> DataError:
    return DataError(
        f"{source}: its description of the experiment cannot be read ({reason}); "
        "give the experiment's YAML file"
    )


def config_from_weights(file: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Return the configuration for predicting with a weight file, from the file itself.

    overrides: KEY, VALUE, ... Raises ConfigError where the file carries none, and DataError for one
    that cannot be used.
    """
    weights = read_weight_file(file)
    if not weights.experiment:
        raise ConfigError(
            f"{file}: the experiment is not known; give its YAML file (tools: --cfg FILE is needed)"
        )
    try:
        content = _content(weights.experiment, file)
        values = _wanted(_settings(content, file))
        values.setdefault("DATASET", {})
        values["DATASET"] |= _dataset(content.get("dataset"), str(file))
        if values.get("MODEL", {}).get("GENOTYPE", "posenas") not in GENOTYPES:
            values["MODEL"]["GENOTYPE"] = _genotype(content.get("genotype"), str(file))
        cfg = from_values(values, f"{file}: its experiment")
        _check_extent(cfg, weights.state, file)
    except DataError:
        raise
    except PoiseError as error:  # of a network's options, which name no file
        said = str(error)
        raise DataError(said if said.startswith(str(file)) else f"{file}: {said}") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise _not_ours(file, type(error).__name__) from None
    return override(cfg, overrides)


def _wanted(groups: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that predicting needs, without paths."""
    values: dict[str, Any] = {group: dict(groups[group]) for group in _GROUPS if group in groups}
    for key in _KEYS:
        group, _, last = key.rpartition(".")
        of = groups.get(group, {}) if group else groups
        if last in of:
            (values.setdefault(group, {}) if group else values)[last] = of[last]
    for key in _PATHS:
        group, _, last = key.rpartition(".")
        values.get(group, {}).pop(last, None)
    # predicting needs no loss, but it has to fit the codec
    if (codec := CODECS.get(values.get("MODEL", {}).get("TARGET_TYPE"))) is not None:
        values["LOSS"] = {"TYPE": codec.losses[0]}
    return values


def _dataset(joints: Any, file: str) -> dict[str, str]:
    """Return the keys of DATASET for the joints in the file: a shipped dataset file, or
    `joints`.
    """
    if not isinstance(joints, dict):
        raise _not_ours(file, "no joints")
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


def _genotype(cells: Any, file: str) -> str:
    """Return a MODEL.GENOTYPE for the cells in the file, or '' where it has none."""
    if cells is None:
        return ""
    name = f"{file}: its cells"
    GENOTYPES[name] = Genotype(**cells)
    return name


def _check_extent(cfg: CfgNode, state: State, file: str | Path) -> None:
    """Raise DataError where the network would be larger than the file's tensors.

    A few numbers in a text can ask for any amount of memory. The network is built without memory
    here, and not further than the file goes.
    """
    most, numbers = len(state), sum(tensor.numel() for tensor in state.values())
    built = [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        built[0] += 1
        built[1] += parameter.numel() if parameter is not None else 0
        if built[0] > most or built[1] > numbers:
            raise DataError(
                f"{file}: its description asks for a larger network than its weights "
                "are of; do not trust it, or give the experiment's YAML file"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build_model(cfg)
    finally:
        hook.remove()
