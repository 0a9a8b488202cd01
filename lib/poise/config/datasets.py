"""What an experiment takes from its dataset file: the number of joints, the dataset's name, and the further sets of DATASET.MIX."""
from __future__ import annotations

import math
import re
from yacs.config import CfgNode
from poise.errors import ConfigError, shown_value
from poise.structures.skeleton import DatasetFile, dataset, shipped
import os
import shlex
from pathlib import Path
from poise.config import data_path
from poise.datasets.sources import SOURCES
from poise.io.images import ImageFolder
from poise.errors import ConfigError, DataError
from poise.structures.skeleton import FOLDER, SetFiles, dataset_of

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


def set_files(cfg: CfgNode, split: str) -> SetFiles:
    """What the dataset file says of a set."""
    return dataset_of(cfg).files(split)


def root(cfg: CfgNode) -> Path:
    """The data set's folder."""
    return Path(data_path(cfg, cfg.DATASET.ROOT or dataset_of(cfg).root))


def annotation_path(cfg: CfgNode, split: str) -> Path:
    """The annotation file of a set.

    Raises ConfigError for a set that ultralytics' data.yaml does not have, and DataError, with the
    command, where YOLO labels were not converted yet.
    """
    data, files, folder = dataset_of(cfg), set_files(cfg, split), root(cfg)
    path = folder / files.annotations
    yolo_sets = [name for name, other in data.sets if other.yolo_labels]
    if yolo_sets and not files.yolo_labels:
        raise ConfigError(
            f"{data.path}: has no set {split!r}, it has {', '.join(yolo_sets)}; set "
            "DATASET.TRAIN_SET and DATASET.TEST_SET to one of them"
        )
    if files.yolo_labels and not os.path.exists(path):
        if not os.path.isdir(folder):
            raise DataError(
                f"{data.path}: no such folder {folder}; set DATASET.ROOT to the data set's"
            )
        places = (folder / files.yolo_labels, path, data.path, folder / files.images)
        labels, target, file, images = (shlex.quote(str(place)) for place in places)
        raise DataError(
            f"{path}: missing; convert the YOLO labels once: python tools/convert_data.py "
            f"yolo coco {labels} {target} --dataset {file} --images {images}"
        )
    return path


def present_annotation_path(cfg: CfgNode, split: str) -> Path:
    """The same; raises DataError too where the file of a known data set is missing, with the command."""
    place = set_files(cfg, split).annotations
    return _present(cfg, annotation_path(cfg, split), place, "annotation file")


def _present(cfg: CfgNode, path: Path, place: str, what: str) -> Path:
    command = fetching(cfg, place)
    if command and not os.path.exists(path):
        raise DataError(
            f"{path}: cannot read the {what} (No such file or directory); "
            f"check DATASET.ROOT and the set's name{command}"
        )
    return path


def fetching(cfg: CfgNode, place: str) -> str:
    """Return, for the end of a message, the command that makes or fetches a file of a data set.

    place: below DATASET.ROOT; folders end in /. '' where no tool has it, as for users' own data.
    """
    data, folder = dataset_of(cfg), root(cfg)
    source = SOURCES.get(data.name) if data.path.parent == FOLDER else None
    if source is None:
        return ""
    if "synthetic" in folder.name:
        options = f"--format {data.format} --out {shlex.quote(str(folder))}"
        return f"; draw it: python tools/make_synthetic.py {options}"
    command = f"python tools/prepare_data.py {source.name} --root {shlex.quote(str(folder))}"
    zipped = " --zipped" if place.endswith("/") and cfg.DATASET.DATA_FORMAT == "zip" else ""
    for archive in source.archives:
        if place in archive.wanted.values():
            return f"; fetch it: {command} --only {archive.name}{zipped}"
    by_hand = {entry.path for entry in source.by_hand}
    return f"; how to get it: {command}" if place.rstrip("/") in by_hand else ""


def image_folder(cfg: CfgNode, split: str) -> ImageFolder:
    """Where a set's images lie: a folder, or with DATASET.DATA_FORMAT zip the archive of its name."""
    place = set_files(cfg, split).images
    images = root(cfg) / place
    zipped = cfg.DATASET.DATA_FORMAT == "zip"
    return ImageFolder(
        images.with_name(f"{images.name}.zip") if zipped else images,
        exif=cfg.DATASET.EXIF,
        hint=fetching(cfg, f"{place}/"),
    )


def headbox_path(cfg: CfgNode) -> Path:
    """The MATLAB file with the joints and head boxes of DATASET.TEST_SET, for PCKh."""
    return root(cfg) / set_files(cfg, cfg.DATASET.TEST_SET).head_boxes


def present_headbox_path(cfg: CfgNode) -> Path:
    """The same; raises DataError where the file of a known data set is missing, with the command."""
    place = set_files(cfg, cfg.DATASET.TEST_SET).head_boxes
    return _present(cfg, headbox_path(cfg), place, "ground truth of MPII")
