"""What an experiment takes from its dataset file: the number of joints, the dataset's name, and the further sets of DATASET.MIX."""
from __future__ import annotations

import math
import re
from yacs.config import CfgNode

from poise.errors import ConfigError, shown_value
from poise.skeleton import DatasetFile, dataset, shipped

MIX_KEYS = {"FILE": "", "SET": "", "ROOT": "", "DATA_FORMAT": "", "REPEAT": 1.0, "JOINTS": {}}
MOST_REPEATS = 1000


def follow_dataset(cfg: CfgNode, source: str) -> None:
    """Read the dataset files of `cfg` and put what follows from them into it. Raises ConfigError, naming `source` and the key."""
    key = "DATASET.FILE" if cfg.DATASET.FILE else "DATASET.DATASET"
    if key == "DATASET.DATASET" and shipped() and cfg.DATASET.DATASET not in shipped():
        raise ConfigError(f"{source}: DATASET.DATASET must be one of {', '.join(shipped())}, got {cfg.DATASET.DATASET!r}; "
                          "DATASET.FILE takes a file of your own")
    data = _read(cfg.DATASET.FILE or cfg.DATASET.DATASET, key, source)
    cfg.DATASET.DATASET = data.name if cfg.DATASET.FILE else cfg.DATASET.DATASET
    if cfg.MODEL.NUM_JOINTS == 0:
        cfg.MODEL.NUM_JOINTS = data.skeleton.num_joints
    if not data.skeleton.upper_body:        # read_set says so
        cfg.DATASET.PROB_HALF_BODY = min(cfg.DATASET.PROB_HALF_BODY, 0.0)
    if not data.can_flip:
        cfg.DATASET.FLIP = cfg.TEST.FLIP_TEST = False
    for name in cfg.DATASET.MIX:
        _complete(cfg, name, data, source)


def _read(name: str, key: str, source: str) -> DatasetFile:
    try:
        return dataset(name, again=True)
    except ConfigError as error:
        raise ConfigError(f"{source}: {key}: {error}") from None


def _complete(cfg: CfgNode, name: str, data: DatasetFile, source: str) -> None:
    """Give a group of DATASET.MIX its defaults, and refuse what it cannot mean."""
    key, group = f"DATASET.MIX.{name}", cfg.DATASET.MIX[name]
    if not re.fullmatch(r"[\w-]+", name):      # image names of the set begin with it, and config.yaml has it as a key
        raise ConfigError(f"{source}: {key}: the name must have letters, digits, _ and - alone")
    if not isinstance(group, CfgNode):
        raise ConfigError(f"{source}: {key} must be a group of {', '.join(MIX_KEYS)}, got {shown_value(group)}")
    for part in group:
        if part not in MIX_KEYS:
            raise ConfigError(f"{source}: unknown key {key}.{part}; the keys are {', '.join(MIX_KEYS)}")
    for part, default in MIX_KEYS.items():
        if part not in group:
            group[part] = CfgNode(default, new_allowed=True) if isinstance(default, dict) else name if part == "FILE" else default
    for part in ("FILE", "SET", "ROOT", "DATA_FORMAT"):
        if not isinstance(group[part], str) or (not group[part] and part in ("FILE", "SET")):
            raise ConfigError(f"{source}: {key}.{part} must be text, got {shown_value(group[part])}")
    repeat = group.REPEAT
    if isinstance(repeat, bool) or not isinstance(repeat, (int, float)) or not math.isfinite(repeat) or not 0 < repeat <= MOST_REPEATS:
        raise ConfigError(f"{source}: {key}.REPEAT must be a number above 0 and at most {MOST_REPEATS}, got {shown_value(repeat)}")
    group.REPEAT = float(repeat)
    other = _read(group.FILE, f"{key}.FILE", source)
    if not isinstance(group.JOINTS, CfgNode):
        raise ConfigError(f"{source}: {key}.JOINTS must be a group of ITS_NAME: OUR_NAME, got {shown_value(group.JOINTS)}")
    for theirs, ours in group.JOINTS.items():
        if theirs not in other.skeleton.names or ours not in data.skeleton.names:
            fault = f"{theirs!r} is no joint of {other.path}" if theirs not in other.skeleton.names else f"{shown_value(ours)} is no joint of {data.path}"
            raise ConfigError(f"{source}: {key}.JOINTS: {fault}")
    places = joint_places(other, data, group.JOINTS)
    if len(set(places.values())) < len(places):
        raise ConfigError(f"{source}: {key}.JOINTS gives two joints of {other.path} to one of {data.path}")
    if not places:
        raise ConfigError(f"{source}: {key}: {other.path} and {data.path} have no joint of the same name; {key}.JOINTS tells which are the same")
    if len(places) < data.skeleton.num_joints and not cfg.LOSS.USE_TARGET_WEIGHT and cfg.LOSS.TYPE == "joints_mse":
        raise ConfigError(f"{source}: LOSS.USE_TARGET_WEIGHT must be True with DATASET.MIX.{name}, which lacks {data.skeleton.num_joints - len(places)} joints")


def joint_places(theirs: DatasetFile, ours: DatasetFile, named: dict[str, str]) -> dict[int, int]:
    """{place of a joint in theirs: its place in ours}, by name, or as `named` (theirs: ours) says."""
    names = ours.skeleton.names
    called = [named.get(name, name) for name in theirs.skeleton.names]
    # a joint that was given another name's place leaves it: named {head: nose} does not put `nose` there too
    taken = set(named.values())
    return {place: names.index(name) for place, name in enumerate(called)
            if name in names and (name not in taken or theirs.skeleton.names[place] in named)}
