"""Dataset files (experiments/datasets/*.yaml): keypoints, flip pairs, limbs, sigmas and paths.

They are the only place for these facts; experiments/datasets/template.yaml explains the keys.
Ultralytics' data.yaml is accepted too. `COCO` and `MPII` of this module are the skeletons of the
files of these names, read on first use.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poise.errors import ConfigError, short_repr
from poise.io.yaml_file import read_yaml
from poise.structures.skeleton import DEFAULT_SIGMA, DatasetInfo, Skeleton, SplitInfo

DATASETS_DIR = Path(__file__).parents[3] / "experiments" / "datasets"
MAX_JOINTS = 1000  # COCO-WholeBody has 133
_TEMPLATE_HINT = "experiments/datasets/template.yaml shows what one holds"


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
_SPLIT_KEYS = {
    "annotations": str,
    "images": str,
    "labelled": bool,
    "head_boxes": str,
    "yolo_labels": str,
}
_last_read: dict[str, DatasetInfo] = {}
_registered: dict[str, DatasetInfo] = {}


def __getattr__(name: str) -> Skeleton:
    if name in ("COCO", "MPII"):
        return load_dataset_info(name.lower()).skeleton
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def builtin_datasets() -> list[str]:
    """Return the names of the files in experiments/datasets."""
    return sorted(path.stem for path in DATASETS_DIR.glob("*.yaml"))


def load_dataset_info(name: str, *, again: bool = False) -> DatasetInfo:
    """Return a dataset by the path of its file, or by a name in experiments/datasets.

    The file is read once per process, unless `again` is true. Raises ConfigError.
    """
    if name in _registered:
        return _registered[name]
    known = _last_read.get(name)
    if known is not None and not again:
        return known
    info = read_dataset(_dataset_path(name))
    # the same object while the file does not change
    if known is None or info != known:
        _last_read[name] = info
    return _last_read[name]


def register_dataset(name: str, info: DatasetInfo) -> None:
    """Make load_dataset_info(name) return `info`, such as that of an exported network."""
    _registered[name] = info


def register_joints(name: str, joints: dict, category: Any = "person") -> DatasetInfo:
    """Register a dataset with the keypoints that describe_joints has written, and return it.

    Raises ConfigError for invalid values, ValueError for other keys.
    """
    if set(joints) != {"name", "joints", "flip_pairs", "limbs"}:
        raise ValueError("other keys of its joints than Poise writes")
    values = {**joints, "category": category, "annotations": "none", "images": "none"}
    register_dataset(name, parse_dataset(values, Path(name)))
    return _registered[name]


def read_dataset(path: str | Path) -> DatasetInfo:
    """Read and validate a dataset file. Raises ConfigError naming the file and the key."""
    path = Path(path)
    return parse_dataset(read_yaml(path, "dataset file", _TEMPLATE_HINT), path)


def parse_dataset(values: dict, path: Path) -> DatasetInfo:
    """Return the dataset of the keys of a dataset file; path: for error messages."""
    from poise.config.ultralytics import is_ultralytics, translate_ultralytics

    if is_ultralytics(values):
        keys, assumptions = translate_ultralytics(values, path)
        info = parse_dataset(keys, path)
        can_flip = bool(values.get("flip_idx"))
        remarks = (*assumptions, *info.remarks) if can_flip else tuple(assumptions)
        return replace(info, can_flip=can_flip, remarks=remarks)
    _check_keys(values, path)
    file = _DatasetValues({key: value for key, value in values.items() if value is not None}, path)
    skeleton = file.skeleton()
    annotation_format = file.choice("format", FORMATS)
    metrics = tuple(name for name, metric in METRICS.items() if metric.format == annotation_format)
    # the metrics of the default format are the usual ones; else the format explains the choice
    reason = "" if annotation_format == FORMATS[0] else f" with format {annotation_format}"
    info = DatasetInfo(
        path=path,
        skeleton=skeleton,
        format=annotation_format,
        metric=file.choice("metric", metrics, reason),
        category=file.category(),
        root=file.text("root", ""),
        annotations=file.text("annotations"),
        images=file.text("images"),
        sets=file.sets(),
    )
    return replace(info, remarks=tuple(_remarks(info, "sigmas" in file.values)))


def _dataset_path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    if not DATASETS_DIR.is_dir():
        raise ConfigError(
            f"{DATASETS_DIR}: no such folder, and no dataset file {name!r} therefore; Poise runs"
            " from its checkout (pip install -e .), or DATASET.FILE takes the path of a dataset"
            " file"
        )
    if name not in builtin_datasets():
        raise ConfigError(
            f"no dataset file {name!r}: it must be one of {', '.join(builtin_datasets())}, or the"
            " path of a YAML file"
        )
    return DATASETS_DIR / f"{name}.yaml"


def _check_keys(values: dict, path: Path) -> None:
    for key in values:
        if key in _KEYS:
            continue
        close = difflib.get_close_matches(str(key), _KEYS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(_KEYS)}"
        raise ConfigError(f"{path}: unknown key {short_repr(key)}; {hint}")


def _remarks(info: DatasetInfo, has_sigmas: bool) -> Iterator[str]:
    if not has_sigmas and METRICS[info.metric].uses_sigmas:
        yield (
            f"{info.path}: has no sigmas, so the OKS takes {DEFAULT_SIGMA} for every joint, the"
            " mean of COCO's; such an AP compares runs on this data set only"
        )
    paired = {index for pair in info.skeleton.flip_pairs for index in pair}
    unpaired = [
        name
        for index, name in enumerate(info.skeleton.names)
        if name.startswith(("left", "right")) and index not in paired
    ]
    if unpaired:
        names = ", ".join(unpaired[:4])
        if len(unpaired) > 4:
            names += " and others"
        yield f"{info.path}: {names} are in no flip_pairs, so a mirrored person keeps left for left"


class _DatasetValues:
    """The values of a dataset file, validated one key at a time; path: for error messages."""

    def __init__(self, values: dict, path: Path) -> None:
        self.values = values
        self.path = path

    def skeleton(self) -> Skeleton:
        names = self.joint_names()
        return Skeleton(
            name=self.name(),
            names=names,
            flip_pairs=self.flip_pairs(names),
            limbs=self.pairs("limbs", names),
            upper_body=self.indices("upper_body", names),
            shared_body=self.indices("both_halves", names),
            sigmas=self.numbers("sigmas", len(names), DEFAULT_SIGMA, above_zero=True),
            weights=self.numbers("weights", len(names), 1.0),
        )

    def name(self) -> str:
        name = self.text("name", self.path.stem)
        if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
            raise self._invalid("name", "do as the name of a folder", name)
        return name

    def category(self) -> str | int:
        category = self.values.get("category", "person")
        if isinstance(category, bool) or not isinstance(category, (str, int)) or category == "":
            raise self._invalid("category", "be the name or the id of a category", category)
        return category

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(
                f"{self.path}: has no {key}, which a dataset file needs;"
                " experiments/datasets/template.yaml shows them"
            )
        if not isinstance(value, str) or (not value and default != ""):
            raise self._invalid(key, "be text", value)
        return value

    def choice(self, key: str, allowed: tuple[str, ...], reason: str = "") -> str:
        """Return one of `allowed`, by default the first; reason: what limits the choice."""
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise self._invalid(key, f"be {' or '.join(allowed)}{reason}", value)
        return value

    def joint_names(self) -> tuple[str, ...]:
        names = self.values.get("joints")
        if not isinstance(names, list) or not 1 <= len(names) <= MAX_JOINTS:
            raise self._invalid("joints", f"be a list of 1 to {MAX_JOINTS} names", names)
        for name in names:
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ConfigError(
                    f"{self.path}: joints must be a list of names, got {short_repr(name)} in it"
                )
            if names.count(name) > 1:
                raise ConfigError(f"{self.path}: joints has {name!r} twice; names must differ")
        return tuple(names)

    def indices(self, key: str, names: tuple[str, ...]) -> tuple[int, ...]:
        """Return the indices of the keypoints that `key` lists."""
        return tuple(self._index(key, name, names) for name in self._list(key))

    def pairs(self, key: str, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
        pairs = []
        for pair in self._list(key):
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
                raise self._invalid(key, "be pairs of two joints", pair)
            pairs.append((self._index(key, pair[0], names), self._index(key, pair[1], names)))
        return tuple(pairs)

    def flip_pairs(self, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
        pairs = self.pairs("flip_pairs", names)
        paired = set()
        for index in (index for pair in pairs for index in pair):
            if index in paired:
                raise ConfigError(
                    f"{self.path}: flip_pairs has {names[index]!r} twice; a joint has one mirror"
                    " image"
                )
            paired.add(index)
        return pairs

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
        minimum = "above 0" if above_zero else "of 0 or more"
        for value in values:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if (
                not is_number
                or not math.isfinite(value)
                or not 0 <= value <= 1000
                or (above_zero and value == 0)
            ):
                raise self._invalid(key, f"be numbers {minimum} and at most 1000", value)
        return tuple(values)

    def sets(self) -> tuple[tuple[str, SplitInfo], ...]:
        sets = self.values.get("sets", {})
        if not isinstance(sets, dict) or not all(
            isinstance(name, str) and isinstance(files, dict) for name, files in sets.items()
        ):
            raise self._invalid("sets", "be set names, each with its keys", sets)
        for name, files in sets.items():
            self._check_split(name, files)
        defaults = {key: self.text(key) for key in ("annotations", "images")}
        return tuple((name, SplitInfo(**(defaults | files))) for name, files in sets.items())

    def _check_split(self, name: str, files: dict) -> None:
        for key, value in files.items():
            if key not in _SPLIT_KEYS:
                raise ConfigError(
                    f"{self.path}: sets.{name}.{key} is none of {', '.join(_SPLIT_KEYS)}"
                )
            if type(value) is not _SPLIT_KEYS[key]:
                kind = "text" if _SPLIT_KEYS[key] is str else "true or false"
                raise self._invalid(f"sets.{name}.{key}", f"be {kind}", value)

    def _list(self, key: str) -> list:
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self._invalid(key, "be a list", value)
        return value

    def _index(self, key: str, name: Any, names: tuple[str, ...]) -> int:
        if name in names:
            return names.index(name)
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"{self.path}: {key} names {short_repr(name)}, which joints does not list{hint}"
        )

    def _invalid(self, key: str, rule: str, value: Any) -> ConfigError:
        return ConfigError(f"{self.path}: {key} must {rule}, got {short_repr(value)}")
