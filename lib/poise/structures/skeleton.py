"""Dataset files (experiments/datasets/*.yaml): a data set's joints, mirror pairs, limbs, upper body and OKS sigmas, and where its files lie.

They are the only home of these facts; experiments/datasets/template.yaml tells what each key means. Ultralytics' data.yaml
is read as one. `COCO` and `MPII` of this module are the joints of the files of these names, read when they are first asked for.
"""
from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from poise.errors import ConfigError, DataError, shown, shown_value
from poise.io.json_file import as_id, with_ids
from poise.io.yaml_file import read_yaml

FOLDER = Path(__file__).parents[2] / "experiments" / "datasets"
DEFAULT_SIGMA = 0.067       # the mean of COCO's 17
MOST_JOINTS = 1000          # of a dataset file: COCO-WholeBody has 133
METRICS = {"coco": ("oks", "crowdpose"), "mpii": ("pckh",)}     # of each format, the first where the file names none
_KEYS = ("name", "format", "metric", "category", "root", "annotations", "images", "sets", "joints", "flip_pairs", "limbs", "upper_body", "both_halves",
         "sigmas", "weights")


@dataclass(frozen=True)
class Skeleton:
    """A joint set of J joints.

    names: J joint names. flip_pairs: index pairs that a mirror swaps. limbs: index pairs to draw as bones.
    upper_body: joints that half-body augmentation treats as the upper half. both_halves: joints that MSPN counts in both. sigmas: J OKS constants, relative to
    the square root of the object's area (half of the k of the COCO server). weights: J loss weights of
    LOSS.USE_DIFFERENT_JOINTS_WEIGHT.
    """

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]
    upper_body: tuple[int, ...]
    both_halves: tuple[int, ...]
    sigmas: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def num_joints(self) -> int:
        return len(self.names)

    @property
    def flip_order(self) -> np.ndarray:
        """(J,) int64: joint j of a mirrored person is joint flip_order[j] of the original one."""
        order = np.arange(self.num_joints)
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return order

    def side(self, joint: int) -> int:
        """-1 for a joint on the person's left, 1 on the right, 0 on the axis: by its name, or else its place in a mirror pair."""
        name = self.names[joint]
        if name.startswith(("left", "right")):
            return -1 if name.startswith("left") else 1
        return next((2 * pair.index(joint) - 1 for pair in self.flip_pairs if joint in pair), 0)


@dataclass(frozen=True)
class SetFiles:
    """Where a set's files are below the data set's root. labelled: whether it has joints to score. head_boxes: MPII's gt_valid.mat, or ''.

    yolo_labels: the folder of YOLO labels from which the annotations are converted, or ''.
    """

    annotations: str
    images: str
    labelled: bool = True
    head_boxes: str = ""
    yolo_labels: str = ""


@dataclass(frozen=True)
class DatasetFile:
    """What a dataset file says. format, metric: see METRICS. category: name or id of the annotations' category. sets: (pattern, SetFiles), with
    {set} for the set's name. can_flip: whether flip_pairs are known.

    remarks: what a user should know before trusting figures.
    """

    path: Path
    skeleton: Skeleton
    format: str
    metric: str
    category: str | int
    root: str
    annotations: str
    images: str
    sets: tuple[tuple[str, SetFiles], ...] = ()
    can_flip: bool = True
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        return self.skeleton.name

    def files(self, set_name: str) -> SetFiles:
        """The files of a set: those of the first pattern that fits it, else those of every other set."""
        found = next((files for pattern, files in self.sets if fnmatchcase(set_name, pattern)), SetFiles(self.annotations, self.images))
        return replace(
            found,
            **{
                key: getattr(found, key).replace("{set}", set_name)
                for key in ("annotations", "images", "head_boxes", "yolo_labels")
            },
        )


_last_read: dict[str, DatasetFile] = {}
_given: dict[str, DatasetFile] = {}


def __getattr__(name: str) -> Skeleton:
    if name in ("COCO", "MPII"):
        return dataset(name.lower()).skeleton
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def shipped() -> list[str]:
    """Names of the files in experiments/datasets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def dataset_of(cfg: CfgNode) -> DatasetFile:
    """The dataset file of DATASET.FILE, else of DATASET.DATASET, as it was when config.load read it. Raises ConfigError."""
    return dataset(cfg.DATASET.FILE or cfg.DATASET.DATASET)


def dataset(name: str, *, again: bool = False) -> DatasetFile:
    """A dataset file by its path, or by the name of one of experiments/datasets; read once in a process, or `again`. Raises ConfigError."""
    if name in _given:
        return _given[name]
    known = _last_read.get(name)
    if known is None or again:
        found = read_dataset(_path(name))
        _last_read[name] = known if found == known else found
    return _last_read[name]


def give_dataset(name: str, data: DatasetFile) -> None:
    """From now on dataset(name) is this one: that of an exported network, which brings its joints with it."""
    _given[name] = data


def describe_joints(skeleton: Skeleton) -> dict[str, Any]:
    """Return what predicting needs of a joint set, as plain values for a file's metadata."""
    names = skeleton.names
    return {"name": skeleton.name, "joints": list(names), **{
        key: [[names[joint] for joint in pair] for pair in getattr(skeleton, key)]
        for key in ("flip_pairs", "limbs")}}


def give_joints(name: str, joints: dict, category: Any = "person") -> DatasetFile:
    """Make dataset(name) the joints of a text by describe_joints, after checks; return it.

    Raises ConfigError for other values, ValueError for other keys.
    """
    if set(joints) != {"name", "joints", "flip_pairs", "limbs"}:
        raise ValueError("other keys of its joints than Poise writes")
    values = {**joints, "category": category, "annotations": "none", "images": "none"}
    give_dataset(name, checked_dataset(values, Path(name)))
    return _given[name]


def _path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    if not FOLDER.is_dir():
        raise ConfigError(f"{FOLDER}: no such folder, and no dataset file {name!r} therefore; Poise runs from its checkout (pip install -e .), "
                          "or DATASET.FILE takes the path of a dataset file")
    if name not in shipped():
        raise ConfigError(f"no dataset file {name!r}: it must be one of {', '.join(shipped())}, or the path of a YAML file")
    return FOLDER / f"{name}.yaml"


def read_dataset(path: str | Path) -> DatasetFile:
    """Read and check a dataset file. Raises ConfigError, naming the file and the key."""
    return checked_dataset(read_yaml(Path(path), "dataset file", "experiments/datasets/template.yaml shows what one holds"), Path(path))


def checked_dataset(values: dict, path: Path) -> DatasetFile:
    """The same of keys that were read elsewhere; path: what errors name."""
    from poise.config.ultralytics import is_ultralytics, translate_ultralytics

    if is_ultralytics(values):
        keys, assumed = translate_ultralytics(values, path)
        result = checked_dataset(keys, path)
        can_flip = bool(values.get("flip_idx"))
        remarks = (*assumed, *result.remarks) if can_flip else tuple(assumed)
        return replace(result, can_flip=can_flip, remarks=remarks)
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise ConfigError(f"{path}: unknown key {shown_value(key)}{f'; did you mean {close[0]}?' if close else f'; the keys are ' + ', '.join(_KEYS)}")
    values = {key: value for key, value in values.items() if value is not None}
    file = _Values(values, path)
    names = file.joints()
    count = len(names)
    name = file.text("name", path.stem)
    if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"{path}: name must do as the name of a folder, got {shown_value(name)}")
    form = file.choice("format", tuple(METRICS))
    category = values.get("category", "person")
    if isinstance(category, bool) or not isinstance(category, (str, int)) or category == "":
        raise ConfigError(f"{path}: category must be the name or the id of a category, got {shown_value(category)}")
    pairs = file.pairs("flip_pairs", names)
    paired = [joint for pair in pairs for joint in pair]
    if len(set(paired)) < len(paired):
        twice = next(names[joint] for joint in paired if paired.count(joint) > 1)
        raise ConfigError(f"{path}: flip_pairs has {twice!r} twice; a joint has one mirror image")
    skeleton = Skeleton(
        name, names, pairs, file.pairs("limbs", names), file.members("upper_body", names), file.members("both_halves", names),
        file.numbers("sigmas", count, DEFAULT_SIGMA, above_zero=True), file.numbers("weights", count, 1.0))
    result = DatasetFile(path, skeleton, form, file.choice("metric", METRICS[form]), category, file.text("root", ""), file.text("annotations"),
                         file.text("images"), file.sets())
    return replace(result, remarks=tuple(_remarks(result, "sigmas" in values)))


def _remarks(file: DatasetFile, has_sigmas: bool):
    if not has_sigmas and file.metric != "pckh":
        yield (f"{file.path}: has no sigmas, so the OKS takes {DEFAULT_SIGMA} for every joint, the mean of COCO's; such an AP compares runs on this "
               "data set only")
    paired = {joint for pair in file.skeleton.flip_pairs for joint in pair}
    lost = [name for joint, name in enumerate(file.skeleton.names) if name.startswith(("left", "right")) and joint not in paired]
    if lost:
        yield f"{file.path}: {', '.join(lost[:4])}{' and others' if len(lost) > 4 else ''} are in no flip_pairs, so a mirrored person keeps left for left"


def other_joint(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Where two lists of joints' names differ first, in words for an error line; '' where they are equal."""
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} joints and not {len(ours)}"
    place = next((place for place, (one, other) in enumerate(zip(theirs, ours)) if one != other), None)
    return "" if place is None else f"its joint {place} is {shown(theirs[place])} and not {shown(ours[place])}"


def find_category(
    content: Any, category: str | int, where: str | Path, parts: Iterable[list] = ()
) -> dict | None:
    """Return the category of this name or id in a COCO-format dict; None where it has none.

    Of several with one name (Roboflow adds an empty one) it is the one that has annotations.

    Args:
        where: the file, for the error.
        parts: the annotations in lists, which are read only where names are not unique.

    Raises:
        DataError: if several have the name, and not exactly one of them has annotations.
    """
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, (list, tuple)):
        return None
    key = "id" if isinstance(category, int) else "name"
    found = [with_ids(each, "id") for each in categories if isinstance(each, dict)]
    found = [each for each in found if each.get(key) == category]
    ids = sorted({each["id"] for each in found if as_id(each.get("id")) is not None})
    found = [each for each in found if as_id(each.get("id")) is not None] or found
    if len(ids) > 1:
        entries = (entry for part in parts for entry in part if isinstance(entry, dict))
        used = {as_id(entry.get("category_id")) for entry in entries} & set(ids)
        if len(used) != 1:
            raise DataError(
                f"{where}: {len(ids)} categories are named {shown_value(category)} (ids "
                f"{', '.join(map(str, ids[:8]))}), and {len(used)} of them have annotations; name "
                f"one by its id in the dataset file, such as category: {max(used or ids)}"
            )
        found = [each for each in found if each["id"] in used]
    return found[0] if found else None


def crowd_flag(annotation: dict) -> bool | None:
    """Return whether an annotation is a crowd region; None where iscrowd is no whole number."""
    value = annotation.get("iscrowd")
    if value is None or isinstance(value, bool):
        return bool(value)
    number = as_id(value)
    return None if number is None else number != 0


class _Values:
    """The values of a dataset file, checked one key at a time; `path` is for the errors."""

    def __init__(self, values: dict, path: Path):
        self.values, self.path = values, path

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.path}: has no {key}, which a dataset file needs; experiments/datasets/template.yaml shows them")
        if not isinstance(value, str) or (not value and default != ""):
            raise ConfigError(f"{self.path}: {key} must be text, got {shown_value(value)}")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            where = " with format mpii" if allowed == METRICS["mpii"] else ""
            raise ConfigError(f"{self.path}: {key} must be {' or '.join(allowed)}{where}, got {shown_value(value)}")
        return value

    def joints(self) -> tuple[str, ...]:
        names = self.values.get("joints")
        if not isinstance(names, list) or not 1 <= len(names) <= MOST_JOINTS:
            raise ConfigError(f"{self.path}: joints must be a list of 1 to {MOST_JOINTS} names, got {shown_value(names)}")
        for name in names:
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ConfigError(f"{self.path}: joints must be a list of names, got {shown_value(name)} in it")
            if names.count(name) > 1:
                raise ConfigError(f"{self.path}: joints has {name!r} twice; names must differ")
        return tuple(names)

    def members(self, key: str, names: tuple[str, ...]) -> tuple[int, ...]:
        """The places of joints listed under `key`."""
        return tuple(self._place(key, name, names) for name in self._list(key))

    def pairs(self, key: str, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
        found = []
        for pair in self._list(key):
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
                raise ConfigError(f"{self.path}: {key} must be pairs of two joints, got {shown_value(pair)}")
            found.append((self._place(key, pair[0], names), self._place(key, pair[1], names)))
        return tuple(found)

    def numbers(self, key: str, count: int, default: float, *, above_zero: bool = False) -> tuple[float, ...]:
        if key not in self.values:
            return (default,) * count
        values = self._list(key)
        if len(values) != count:
            raise ConfigError(f"{self.path}: {key} has {len(values)} numbers, expected {count}, one for each of joints")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 if above_zero else value >= 0) or not math.isfinite(value) \
                    or value > 1000:
                raise ConfigError(f"{self.path}: {key} must be numbers {'above 0' if above_zero else 'of 0 or more'} and at most 1000, got {shown_value(value)}")
        return tuple(values)

    def sets(self) -> tuple[tuple[str, SetFiles], ...]:
        sets = self.values.get("sets", {})
        if not isinstance(sets, dict) or not all(isinstance(name, str) and isinstance(files, dict) for name, files in sets.items()):
            raise ConfigError(f"{self.path}: sets must be set names, each with its keys, got {shown_value(sets)}")
        types = {
            "annotations": str,
            "images": str,
            "labelled": bool,
            "head_boxes": str,
            "yolo_labels": str,
        }
        for name, files in sets.items():
            for key, value in files.items():
                if key not in types or type(value) is not types[key]:
                    kind = "text" if types.get(key) is str else "true or false"
                    fault = f"must be {kind}, got {shown_value(value)}" if key in types else f"is none of {', '.join(types)}"
                    raise ConfigError(f"{self.path}: sets.{name}.{key} {fault}")
        other = {key: self.text(key) for key in ("annotations", "images")}
        return tuple((name, SetFiles(**(other | files))) for name, files in sets.items())

    def _list(self, key: str) -> list:
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"{self.path}: {key} must be a list, got {shown_value(value)}")
        return value

    def _place(self, key: str, name: Any, names: tuple[str, ...]) -> int:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            raise ConfigError(f"{self.path}: {key} names {shown_value(name)}, which joints does not list{f'; did you mean {close[0]}?' if close else ''}")
        return names.index(name)
