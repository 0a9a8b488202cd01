"""Skeletons and dataset descriptions, as poise.config.dataset_yaml reads them from YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from poise.errors import DataError, escape_name, short_repr
from poise.structures.ids import parse_id, parse_ids

DEFAULT_SIGMA = 0.067  # the mean of COCO's 17


@dataclass(frozen=True)
class Skeleton:
    """K keypoints and how they belong together.

    Attributes:
        name: of the dataset.
        names: K keypoint names.
        flip_pairs: pairs of indices that a horizontal flip swaps.
        limbs: pairs of indices to draw as bones.
        upper_body: indices that half-body augmentation counts as the upper half.
        shared_body: indices that MSPN counts in both halves.
        sigmas: K OKS constants, relative to the square root of the object's area (half of the k of
            the COCO server).
        weights: K loss weights of LOSS.USE_DIFFERENT_JOINTS_WEIGHT.
    """

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]
    upper_body: tuple[int, ...]
    shared_body: tuple[int, ...]
    sigmas: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def num_keypoints(self) -> int:
        return len(self.names)

    @property
    def flip_indices(self) -> np.ndarray:
        """(K,) int64: keypoint k of a flipped person is flip_indices[k] of the original."""
        indices = np.arange(self.num_keypoints)
        for left, right in self.flip_pairs:
            indices[left] = right
            indices[right] = left
        return indices

    def side(self, keypoint: int) -> int:
        """Return -1 for a keypoint on the person's left, 1 on the right, 0 on the axis.

        By its name, else by its position in a flip pair.
        """
        name = self.names[keypoint]
        if name.startswith("left"):
            return -1
        if name.startswith("right"):
            return 1
        for left, right in self.flip_pairs:
            if keypoint == left:
                return -1
            if keypoint == right:
                return 1
        return 0


@dataclass(frozen=True)
class SplitInfo:
    """Paths of a split below the root of the dataset.

    Attributes:
        annotations: the annotation file.
        images: the image folder.
        labelled: whether the split has keypoints to evaluate against.
        head_boxes: MPII's gt_valid.mat, or ''.
        yolo_labels: the folder of YOLO labels from which the annotations are converted, or ''.
    """

    annotations: str
    images: str
    labelled: bool = True
    head_boxes: str = ""
    yolo_labels: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """The content of a dataset file (experiments/datasets/*.yaml).

    Attributes:
        path: the file.
        skeleton: its keypoints.
        format: of the annotations, see poise.config.dataset_yaml.FORMATS.
        metric: see poise.config.dataset_yaml.METRICS.
        category: name or id of the category of the annotations.
        root: the folder of the dataset.
        annotations: the annotation file of a split below the root; {set} is the name of the split.
        images: the image folder of a split, in the same way.
        sets: (pattern, SplitInfo) of splits with other paths.
        can_flip: whether flip_pairs are known.
        remarks: what a user should know about the results.
    """

    path: Path
    skeleton: Skeleton
    format: str
    metric: str
    category: str | int
    root: str
    annotations: str
    images: str
    sets: tuple[tuple[str, SplitInfo], ...] = ()
    can_flip: bool = True
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        return self.skeleton.name

    def files(self, set_name: str) -> SplitInfo:
        """Return the paths of a split: of the first pattern that matches, else the default ones."""
        split = SplitInfo(self.annotations, self.images)
        for pattern, info in self.sets:
            if fnmatchcase(set_name, pattern):
                split = info
                break
        return replace(
            split,
            annotations=split.annotations.replace("{set}", set_name),
            images=split.images.replace("{set}", set_name),
            head_boxes=split.head_boxes.replace("{set}", set_name),
            yolo_labels=split.yolo_labels.replace("{set}", set_name),
        )


def describe_joints(skeleton: Skeleton) -> dict[str, Any]:
    """Return what inference needs of a skeleton, as plain values for the metadata of a file."""

    def to_names(pairs: Iterable[tuple[int, int]]) -> list[list[str]]:
        return [[skeleton.names[index] for index in pair] for pair in pairs]

    return {
        "name": skeleton.name,
        "joints": list(skeleton.names),
        "flip_pairs": to_names(skeleton.flip_pairs),
        "limbs": to_names(skeleton.limbs),
    }


def first_joint_mismatch(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Return the first difference of two lists of keypoint names as text; '' if they are equal."""
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} joints and not {len(ours)}"
    for index, (their_name, our_name) in enumerate(zip(theirs, ours)):
        if their_name != our_name:
            return f"its joint {index} is {escape_name(their_name)} and not {escape_name(our_name)}"
    return ""


def joint_mapping(
    theirs: DatasetInfo, ours: DatasetInfo, renamed: Mapping[str, str]
) -> dict[int, int]:
    """Return {index of a keypoint in theirs: its index in ours}, by name.

    renamed: {name in theirs: name in ours} of keypoints with different names.
    """
    names = ours.skeleton.names
    # {head: nose} takes nose: a keypoint `nose` in theirs is not mapped too
    taken = set(renamed.values())
    mapping = {}
    for index, name in enumerate(theirs.skeleton.names):
        target = renamed.get(name, name)
        if target in names and (target not in taken or name in renamed):
            mapping[index] = names.index(target)
    return mapping


def find_category(
    content: Any, category: str | int, where: str | Path, parts: Iterable[list] = ()
) -> dict | None:
    """Return the category of this name or id in a COCO-format dict; None if it has none.

    Of several with one name (Roboflow adds an empty one) it is the one that has annotations.

    Args:
        content: the annotation file.
        category: name or id.
        where: the file, for the error.
        parts: the annotations in lists, which are read only if names are not unique.

    Raises DataError if several have the name, and not exactly one of them has annotations.
    """
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, (list, tuple)):
        return None
    key = "id" if isinstance(category, int) else "name"
    found = [parse_ids(each, "id") for each in categories if isinstance(each, dict)]
    found = [each for each in found if each.get(key) == category]
    ids = sorted({each["id"] for each in found if parse_id(each.get("id")) is not None})
    found = [each for each in found if parse_id(each.get("id")) is not None] or found
    if len(ids) > 1:
        entries = (entry for part in parts for entry in part if isinstance(entry, dict))
        used = {parse_id(entry.get("category_id")) for entry in entries} & set(ids)
        if len(used) != 1:
            raise DataError(
                f"{where}: {len(ids)} categories are named {short_repr(category)} (ids "
                f"{', '.join(map(str, ids[:8]))}), and {len(used)} of them have annotations; name "
                f"one by its id in the dataset file, such as category: {max(used or ids)}"
            )
        found = [each for each in found if each["id"] in used]
    return found[0] if found else None


def crowd_flag(annotation: dict) -> bool | None:
    """Return whether an annotation is a crowd region; None if iscrowd is not an integer."""
    value = annotation.get("iscrowd")
    if value is None or isinstance(value, bool):
        return bool(value)
    number = parse_id(value)
    if number is None:
        return None
    return number != 0
