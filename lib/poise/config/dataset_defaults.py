"""What an experiment takes from its dataset files, and checks of the sets of DATASET.MIX."""

from __future__ import annotations

import math
import re

from yacs.config import CfgNode

from poise.config.dataset_yaml import builtin_datasets, load_dataset_info
from poise.errors import ConfigError, short_repr
from poise.structures.skeleton import DatasetInfo, joint_mapping

MIX_KEYS = {"FILE": "", "SET": "", "ROOT": "", "DATA_FORMAT": "", "REPEAT": 1.0, "JOINTS": {}}
MAX_REPEATS = 1000


def apply_dataset_defaults(cfg: CfgNode, source: str) -> None:
    """Read the dataset files of `cfg` and set the keys that depend on them.

    Raises ConfigError naming `source` and the key.
    """
    key = "DATASET.FILE" if cfg.DATASET.FILE else "DATASET.DATASET"
    builtin = builtin_datasets()
    if not cfg.DATASET.FILE and builtin and cfg.DATASET.DATASET not in builtin:
        raise ConfigError(
            f"{source}: DATASET.DATASET must be one of {', '.join(builtin)}, got"
            f" {cfg.DATASET.DATASET!r}; DATASET.FILE takes a file of your own"
        )
    info = _load(cfg.DATASET.FILE or cfg.DATASET.DATASET, key, source)
    if cfg.DATASET.FILE:
        cfg.DATASET.DATASET = info.name
    if cfg.MODEL.NUM_JOINTS == 0:
        cfg.MODEL.NUM_JOINTS = info.skeleton.num_keypoints
    if not info.skeleton.upper_body:  # load_split logs it
        cfg.DATASET.PROB_HALF_BODY = min(cfg.DATASET.PROB_HALF_BODY, 0.0)
    if not info.can_flip:
        cfg.DATASET.FLIP = cfg.TEST.FLIP_TEST = False
    for name in cfg.DATASET.MIX:
        _complete_mix_group(cfg, name, source)
        _check_mix_joints(cfg, name, info, source)


def _load(name: str, key: str, source: str) -> DatasetInfo:
    try:
        return load_dataset_info(name, again=True)
    except ConfigError as error:
        raise ConfigError(f"{source}: {key}: {error}") from None


def _complete_mix_group(cfg: CfgNode, name: str, source: str) -> None:
    """Set the defaults of a group of DATASET.MIX and validate its values."""
    key = f"DATASET.MIX.{name}"
    group = cfg.DATASET.MIX[name]
    # the names of its images begin with it, and config.yaml has it as a key
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"{source}: {key}: the name must have letters, digits, _ and - alone")
    if not isinstance(group, CfgNode):
        raise ConfigError(
            f"{source}: {key} must be a group of {', '.join(MIX_KEYS)}, got {short_repr(group)}"
        )
    for part in group:
        if part not in MIX_KEYS:
            raise ConfigError(
                f"{source}: unknown key {key}.{part}; the keys are {', '.join(MIX_KEYS)}"
            )
    defaults = {**MIX_KEYS, "FILE": name, "JOINTS": CfgNode(new_allowed=True)}
    for part, default in defaults.items():
        group.setdefault(part, default)
    for part in ("FILE", "SET", "ROOT", "DATA_FORMAT"):
        is_required = part in ("FILE", "SET")
        if not isinstance(group[part], str) or (is_required and not group[part]):
            raise ConfigError(f"{source}: {key}.{part} must be text, got {short_repr(group[part])}")
    repeat = group.REPEAT
    is_number = isinstance(repeat, (int, float)) and not isinstance(repeat, bool)
    if not is_number or not math.isfinite(repeat) or not 0 < repeat <= MAX_REPEATS:
        raise ConfigError(
            f"{source}: {key}.REPEAT must be a number above 0 and at most {MAX_REPEATS}, got"
            f" {short_repr(repeat)}"
        )
    group.REPEAT = float(repeat)


def _check_mix_joints(cfg: CfgNode, name: str, info: DatasetInfo, source: str) -> None:
    """Raise ConfigError if the keypoints of a group of DATASET.MIX do not fit those of `info`."""
    key = f"DATASET.MIX.{name}"
    group = cfg.DATASET.MIX[name]
    other = _load(group.FILE, f"{key}.FILE", source)
    if not isinstance(group.JOINTS, CfgNode):
        raise ConfigError(
            f"{source}: {key}.JOINTS must be a group of ITS_NAME: OUR_NAME, got"
            f" {short_repr(group.JOINTS)}"
        )
    for theirs, ours in group.JOINTS.items():
        if theirs not in other.skeleton.names:
            raise ConfigError(f"{source}: {key}.JOINTS: {theirs!r} is no joint of {other.path}")
        if ours not in info.skeleton.names:
            raise ConfigError(
                f"{source}: {key}.JOINTS: {short_repr(ours)} is no joint of {info.path}"
            )
    mapping = joint_mapping(other, info, group.JOINTS)
    if len(set(mapping.values())) < len(mapping):
        raise ConfigError(
            f"{source}: {key}.JOINTS gives two joints of {other.path} to one of {info.path}"
        )
    if not mapping:
        raise ConfigError(
            f"{source}: {key}: {other.path} and {info.path} have no joint of the same name;"
            f" {key}.JOINTS maps them"
        )
    num_missing = info.skeleton.num_keypoints - len(mapping)
    if num_missing and not cfg.LOSS.USE_TARGET_WEIGHT and cfg.LOSS.TYPE == "joints_mse":
        raise ConfigError(
            f"{source}: LOSS.USE_TARGET_WEIGHT must be True with DATASET.MIX.{name}, which lacks"
            f" {num_missing} joints"
        )
