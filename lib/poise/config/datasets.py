"""What an experiment takes from its dataset file: the number of joints, the dataset's name, and
the further sets of DATASET.MIX.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from poise.config.sources import SOURCES
from poise.errors import ConfigError, DataError, short_repr
from poise.io.images import ImageFolder
from poise.io.yaml_file import read_yaml
from poise.structures.skeleton import DEFAULT_SIGMA, DatasetInfo, Skeleton, SplitInfo

MIX_KEYS = {"FILE": "", "SET": "", "ROOT": "", "DATA_FORMAT": "", "REPEAT": 1.0, "JOINTS": {}}
MAX_REPEATS = 1000


def apply_dataset_defaults(cfg: CfgNode, source: str) -> None:
    """Read the dataset files of `cfg` and put what follows from them into it. Raises
    ConfigError, naming `source` and the key.
    """
    key = "DATASET.FILE" if cfg.DATASET.FILE else "DATASET.DATASET"
    if (
        key == "DATASET.DATASET"
        and builtin_datasets()
        and cfg.DATASET.DATASET not in builtin_datasets()
    ):
        raise ConfigError(
            f"{source}: DATASET.DATASET must be one of {', '.join(builtin_datasets())}, got"
            f" {cfg.DATASET.DATASET!r}; DATASET.FILE takes a file of your own"
        )
    data = _read(cfg.DATASET.FILE or cfg.DATASET.DATASET, key, source)
    cfg.DATASET.DATASET = data.name if cfg.DATASET.FILE else cfg.DATASET.DATASET
    if cfg.MODEL.NUM_JOINTS == 0:
        cfg.MODEL.NUM_JOINTS = data.skeleton.num_keypoints
    if not data.skeleton.upper_body:  # load_split says so
        cfg.DATASET.PROB_HALF_BODY = min(cfg.DATASET.PROB_HALF_BODY, 0.0)
    if not data.can_flip:
        cfg.DATASET.FLIP = cfg.TEST.FLIP_TEST = False
    for name in cfg.DATASET.MIX:
        _complete(cfg, name, data, source)


def _read(name: str, key: str, source: str) -> DatasetInfo:
    try:
        return load_dataset_info(name, again=True)
    except ConfigError as error:
        raise ConfigError(f"{source}: {key}: {error}") from None


def _complete(cfg: CfgNode, name: str, data: DatasetInfo, source: str) -> None:
    """Give a group of DATASET.MIX its defaults, and refuse what it cannot mean."""
    key, group = f"DATASET.MIX.{name}", cfg.DATASET.MIX[name]
    # image names of the set begin with it, and config.yaml has it as a key
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
        if not isinstance(group[part], str) or (not group[part] and part in ("FILE", "SET")):
            raise ConfigError(f"{source}: {key}.{part} must be text, got {short_repr(group[part])}")
    repeat = group.REPEAT
    if (
        isinstance(repeat, bool)
        or not isinstance(repeat, (int, float))
        or not math.isfinite(repeat)
        or not 0 < repeat <= MAX_REPEATS
    ):
        raise ConfigError(
            f"{source}: {key}.REPEAT must be a number above 0 and at most {MAX_REPEATS}, got"
            f" {short_repr(repeat)}"
        )
    group.REPEAT = float(repeat)
    _check_mixed_joints(cfg, name, data, source)


def _check_mixed_joints(cfg: CfgNode, name: str, data: DatasetInfo, source: str) -> None:
    """Raise ConfigError where the joints of a group of DATASET.MIX do not fit those of `data`."""
    key, group = f"DATASET.MIX.{name}", cfg.DATASET.MIX[name]
    other = _read(group.FILE, f"{key}.FILE", source)
    if not isinstance(group.JOINTS, CfgNode):
        raise ConfigError(
            f"{source}: {key}.JOINTS must be a group of ITS_NAME: OUR_NAME, got"
            f" {short_repr(group.JOINTS)}"
        )
    for theirs, ours in group.JOINTS.items():
        if theirs not in other.skeleton.names or ours not in data.skeleton.names:
            fault = (
                f"{theirs!r} is no joint of {other.path}"
                if theirs not in other.skeleton.names
                else f"{short_repr(ours)} is no joint of {data.path}"
            )
            raise ConfigError(f"{source}: {key}.JOINTS: {fault}")
    places = joint_mapping(other, data, group.JOINTS)
    if len(set(places.values())) < len(places):
        raise ConfigError(
            f"{source}: {key}.JOINTS gives two joints of {other.path} to one of {data.path}"
        )
    if not places:
        raise ConfigError(
            f"{source}: {key}: {other.path} and {data.path} have no joint of the same name;"
            f" {key}.JOINTS tells which are the same"
        )
    if (
        len(places) < data.skeleton.num_keypoints
        and not cfg.LOSS.USE_TARGET_WEIGHT
        and cfg.LOSS.TYPE == "joints_mse"
    ):
        raise ConfigError(
            f"{source}: LOSS.USE_TARGET_WEIGHT must be True with DATASET.MIX.{name}, which lacks"
            f" {data.skeleton.num_keypoints - len(places)} joints"
        )


def joint_mapping(theirs: DatasetInfo, ours: DatasetInfo, named: dict[str, str]) -> dict[int, int]:
    """{place of a joint in theirs: its place in ours}, by name, or as `named` (theirs: ours)
    says.
    """
    names = ours.skeleton.names
    called = [named.get(name, name) for name in theirs.skeleton.names]
    # a joint that was given another name's place leaves it: named {head: nose} does not put `nose`
    # there too
    taken = set(named.values())
    return {
        place: names.index(name)
        for place, name in enumerate(called)
        if name in names and (name not in taken or theirs.skeleton.names[place] in named)
    }


def split_info(cfg: CfgNode, split: str) -> SplitInfo:
    """What the dataset file says of a set."""
    return dataset_info(cfg).files(split)


def dataset_root(cfg: CfgNode) -> Path:
    """The data set's folder."""
    return Path(data_path(cfg, cfg.DATASET.ROOT or dataset_info(cfg).root))


def annotation_path(cfg: CfgNode, split: str) -> Path:
    """The annotation file of a set.

    Raises ConfigError for a set that ultralytics' data.yaml does not have, and DataError, with the
    command, where YOLO labels were not converted yet.
    """
    data, files, folder = dataset_info(cfg), split_info(cfg, split), dataset_root(cfg)
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


def require_annotation_path(cfg: CfgNode, split: str) -> Path:
    """The same; raises DataError too where the file of a known data set is missing, with the
    command.
    """
    place = split_info(cfg, split).annotations
    return _present(cfg, annotation_path(cfg, split), place, "annotation file")


def _present(cfg: CfgNode, path: Path, place: str, what: str) -> Path:
    command = download_hint(cfg, place)
    if command and not os.path.exists(path):
        raise DataError(
            f"{path}: cannot read the {what} (No such file or directory); "
            f"check DATASET.ROOT and the set's name{command}"
        )
    return path


def download_hint(cfg: CfgNode, place: str) -> str:
    """Return, for the end of a message, the command that makes or fetches a file of a data set.

    place: below DATASET.ROOT; folders end in /. '' where no tool has it, as for users' own data.
    """
    data, folder = dataset_info(cfg), dataset_root(cfg)
    source = SOURCES.get(data.name) if data.path.parent == DATASETS_DIR else None
    if source is None:
        return ""
    if "synthetic" in folder.name:
        options = f"--format {data.format} --out {shlex.quote(str(folder))}"
        return f"; draw it: python tools/make_synthetic.py {options}"
    command = f"python tools/prepare_data.py {source.name} --root {shlex.quote(str(folder))}"
    zipped = " --zipped" if place.endswith("/") and cfg.DATASET.DATA_FORMAT == "zip" else ""
    for archive in source.archives:
        if place in archive.members.values():
            return f"; fetch it: {command} --only {archive.name}{zipped}"
    by_hand = {entry.path for entry in source.manual_downloads}
    return f"; how to get it: {command}" if place.rstrip("/") in by_hand else ""


def image_folder(cfg: CfgNode, split: str) -> ImageFolder:
    """Where a set's images lie: a folder, or with DATASET.DATA_FORMAT zip the archive of its
    name.
    """
    place = split_info(cfg, split).images
    images = dataset_root(cfg) / place
    zipped = cfg.DATASET.DATA_FORMAT == "zip"
    return ImageFolder(
        images.with_name(f"{images.name}.zip") if zipped else images,
        exif=cfg.DATASET.EXIF,
        hint=download_hint(cfg, f"{place}/"),
    )


def headbox_path(cfg: CfgNode) -> Path:
    """The MATLAB file with the joints and head boxes of DATASET.TEST_SET, for PCKh."""
    return dataset_root(cfg) / split_info(cfg, cfg.DATASET.TEST_SET).head_boxes


def require_headbox_path(cfg: CfgNode) -> Path:
    """The same; raises DataError where the file of a known data set is missing, with the
    command.
    """
    place = split_info(cfg, cfg.DATASET.TEST_SET).head_boxes
    return _present(cfg, headbox_path(cfg), place, "ground truth of MPII")


def data_path(cfg: CfgNode, path: str) -> str:
    """A path of the configuration with DATA_DIR before it, as HRNet resolves them; '' and URLs
    stay as they are.
    """
    if not path or "://" in path or not cfg.DATA_DIR:
        return path
    return str(Path(cfg.DATA_DIR) / path)


DATASETS_DIR = Path(__file__).parents[3] / "experiments" / "datasets"


MAX_JOINTS = 1000  # of a dataset file: COCO-WholeBody has 133


@dataclass(frozen=True)
class Metric:
    """A metric that a dataset file may name.

    Attributes:
        format: of the annotations that it is computed from.
        uses_sigmas: whether it needs the OKS constants of the keypoints.
    """

    format: str
    uses_sigmas: bool = True


#: computed by poise.evaluation.evaluators; the first of a format is its default
METRICS = {
    "oks": Metric("coco"),
    "crowdpose": Metric("coco"),
    "pckh": Metric("mpii", uses_sigmas=False),
}
#: read by poise.datasets; the first is the default
FORMATS = tuple(dict.fromkeys(metric.format for metric in METRICS.values()))


_KEYS = (
    "name",
    "format",
    "metric",
    "category",
    "root",
    "annotations",
    "images",
    "sets",
    "joints",
    "flip_pairs",
    "limbs",
    "upper_body",
    "both_halves",
    "sigmas",
    "weights",
)


_last_read: dict[str, DatasetInfo] = {}


_given: dict[str, DatasetInfo] = {}


def __getattr__(name: str) -> Skeleton:
    if name in ("COCO", "MPII"):
        return load_dataset_info(name.lower()).skeleton
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def builtin_datasets() -> list[str]:
    """Names of the files in experiments/datasets."""
    return sorted(path.stem for path in DATASETS_DIR.glob("*.yaml"))


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """The dataset file of DATASET.FILE, else of DATASET.DATASET, as it was when config.load read
    it. Raises ConfigError.
    """
    return load_dataset_info(cfg.DATASET.FILE or cfg.DATASET.DATASET)


def load_dataset_info(name: str, *, again: bool = False) -> DatasetInfo:
    """A dataset file by its path, or by the name of one of experiments/datasets; read once in a
    process, or `again`. Raises ConfigError.
    """
    if name in _given:
        return _given[name]
    known = _last_read.get(name)
    if known is None or again:
        found = read_dataset(_path(name))
        _last_read[name] = known if found == known else found
    return _last_read[name]


def register_dataset(name: str, data: DatasetInfo) -> None:
    """From now on dataset(name) is this one: that of an exported network, which brings its
    joints with it.
    """
    _given[name] = data


def register_joints(name: str, joints: dict, category: Any = "person") -> DatasetInfo:
    """Make dataset(name) the joints of a text by describe_joints, after checks; return it.

    Raises ConfigError for other values, ValueError for other keys.
    """
    if set(joints) != {"name", "joints", "flip_pairs", "limbs"}:
        raise ValueError("other keys of its joints than Poise writes")
    values = {**joints, "category": category, "annotations": "none", "images": "none"}
    register_dataset(name, parse_dataset(values, Path(name)))
    return _given[name]


def _path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    if not DATASETS_DIR.is_dir():
        raise ConfigError(
            f"{DATASETS_DIR}: no such folder, and no dataset file {name!r} therefore; Poise runs"
            " from its"
            " checkout (pip install -e .), or DATASET.FILE takes the path of a dataset file"
        )
    if name not in builtin_datasets():
        raise ConfigError(
            f"no dataset file {name!r}: it must be one of {', '.join(builtin_datasets())}, or the"
            " path of a YAML file"
        )
    return DATASETS_DIR / f"{name}.yaml"


def read_dataset(path: str | Path) -> DatasetInfo:
    """Read and check a dataset file. Raises ConfigError, naming the file and the key."""
    return parse_dataset(
        read_yaml(
            Path(path), "dataset file", "experiments/datasets/template.yaml shows what one holds"
        ),
        Path(path),
    )


def parse_dataset(values: dict, path: Path) -> DatasetInfo:
    """The same of keys that were read elsewhere; path: what errors name."""
    from poise.config.ultralytics import is_ultralytics, translate_ultralytics

    if is_ultralytics(values):
        keys, assumed = translate_ultralytics(values, path)
        result = parse_dataset(keys, path)
        can_flip = bool(values.get("flip_idx"))
        remarks = (*assumed, *result.remarks) if can_flip else tuple(assumed)
        return replace(result, can_flip=can_flip, remarks=remarks)
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise ConfigError(
                f"{path}: unknown key"
                f" {short_repr(key)}; "
                + (f"did you mean {close[0]}?" if close else f"the keys are {', '.join(_KEYS)}")
            )
    values = {key: value for key, value in values.items() if value is not None}
    file = _Values(values, path)
    names = file.joints()
    count = len(names)
    name = file.text("name", path.stem)
    if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"{path}: name must do as the name of a folder, got {short_repr(name)}")
    form = file.choice("format", FORMATS)
    category = values.get("category", "person")
    if isinstance(category, bool) or not isinstance(category, (str, int)) or category == "":
        raise ConfigError(
            f"{path}: category must be the name or the id of a category, got {short_repr(category)}"
        )
    pairs = file.pairs("flip_pairs", names)
    paired = [joint for pair in pairs for joint in pair]
    if len(set(paired)) < len(paired):
        twice = next(names[joint] for joint in paired if paired.count(joint) > 1)
        raise ConfigError(f"{path}: flip_pairs has {twice!r} twice; a joint has one mirror image")
    skeleton = Skeleton(
        name,
        names,
        pairs,
        file.pairs("limbs", names),
        file.members("upper_body", names),
        file.members("both_halves", names),
        file.numbers("sigmas", count, DEFAULT_SIGMA, above_zero=True),
        file.numbers("weights", count, 1.0),
    )
    result = DatasetInfo(
        path,
        skeleton,
        form,
        file.choice(
            "metric",
            tuple(name for name, metric in METRICS.items() if metric.format == form),
            "" if form == FORMATS[0] else f" with format {form}",
        ),
        category,
        file.text("root", ""),
        file.text("annotations"),
        file.text("images"),
        file.sets(),
    )
    return replace(result, remarks=tuple(_remarks(result, "sigmas" in values)))


def _remarks(file: DatasetInfo, has_sigmas: bool) -> Iterator[str]:
    if not has_sigmas and METRICS[file.metric].uses_sigmas:
        yield (
            f"{file.path}: has no sigmas, so the OKS takes {DEFAULT_SIGMA} for every joint, the"
            " mean of COCO's; such an AP compares runs on this data set only"
        )
    paired = {joint for pair in file.skeleton.flip_pairs for joint in pair}
    lost = [
        name
        for joint, name in enumerate(file.skeleton.names)
        if name.startswith(("left", "right")) and joint not in paired
    ]
    if lost:
        yield (
            f"{file.path}: {', '.join(lost[:4])}{' and others' if len(lost) > 4 else ''} are in no"
            " flip_pairs, so a mirrored person keeps left for left"
        )


class _Values:
    """The values of a dataset file, checked one key at a time; `path` is for the errors."""

    def __init__(self, values: dict, path: Path) -> None:
        self.values, self.path = values, path

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(
                f"{self.path}: has no {key}, which a dataset file needs;"
                " experiments/datasets/template.yaml shows them"
            )
        if not isinstance(value, str) or (not value and default != ""):
            raise ConfigError(f"{self.path}: {key} must be text, got {short_repr(value)}")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], where: str = "") -> str:
        """Return one of `allowed`, by default the first; where: what an error adds to the names."""
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"{self.path}: {key} must be {' or '.join(allowed)}{where}, got {short_repr(value)}"
            )
        return value

    def joints(self) -> tuple[str, ...]:
        names = self.values.get("joints")
        if not isinstance(names, list) or not 1 <= len(names) <= MAX_JOINTS:
            raise ConfigError(
                f"{self.path}: joints must be a list of 1 to {MAX_JOINTS} names, got"
                f" {short_repr(names)}"
            )
        for name in names:
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ConfigError(
                    f"{self.path}: joints must be a list of names, got {short_repr(name)} in it"
                )
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
                raise ConfigError(
                    f"{self.path}: {key} must be pairs of two joints, got {short_repr(pair)}"
                )
            found.append((self._place(key, pair[0], names), self._place(key, pair[1], names)))
        return tuple(found)

    def numbers(
        self, key: str, count: int, default: float, *, above_zero: bool = False
    ) -> tuple[float, ...]:
        if key not in self.values:
            return (default,) * count
        values = self._list(key)
        if len(values) != count:
            raise ConfigError(
                f"{self.path}: {key} has {len(values)} numbers, expected {count}, one for each of"
                " joints"
            )
        for value in values:
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not (value > 0 if above_zero else value >= 0)
                or not math.isfinite(value)
                or value > 1000
            ):
                raise ConfigError(
                    f"{self.path}: {key} must be numbers"
                    f" {'above 0' if above_zero else 'of 0 or more'} and at most 1000, got"
                    f" {short_repr(value)}"
                )
        return tuple(values)

    def sets(self) -> tuple[tuple[str, SplitInfo], ...]:
        sets = self.values.get("sets", {})
        if not isinstance(sets, dict) or not all(
            isinstance(name, str) and isinstance(files, dict) for name, files in sets.items()
        ):
            raise ConfigError(
                f"{self.path}: sets must be set names, each with its keys, got {short_repr(sets)}"
            )
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
                    fault = (
                        f"must be {kind}, got {short_repr(value)}"
                        if key in types
                        else f"is none of {', '.join(types)}"
                    )
                    raise ConfigError(f"{self.path}: sets.{name}.{key} {fault}")
        other = {key: self.text(key) for key in ("annotations", "images")}
        return tuple((name, SplitInfo(**(other | files))) for name, files in sets.items())

    def _list(self, key: str) -> list:
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"{self.path}: {key} must be a list, got {short_repr(value)}")
        return value

    def _place(self, key: str, name: Any, names: tuple[str, ...]) -> int:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            raise ConfigError(
                f"{self.path}: {key} names {short_repr(name)}, which joints does not"
                f" list{f'; did you mean {close[0]}?' if close else ''}"
            )
        return names.index(name)
