"""Dataset files (experiments/datasets/*.yaml): a data set's joints, mirror pairs, limbs, upper body
and OKS sigmas, and where its files lie.

They are the only home of these facts; experiments/datasets/template.yaml tells what each key means.
Ultralytics' data.yaml is read as one. `COCO` and `MPII` of this module are the joints of the files
of these names, read when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """A joint set of J joints.

    names: J joint names. flip_pairs: index pairs that a mirror swaps. limbs: index pairs to draw as
    bones. upper_body: joints that half-body augmentation treats as the upper half. shared_body:
    joints that MSPN counts in both. sigmas: J OKS constants, relative to the square root of the
    object's area (half of the k of the COCO server). weights: J loss weights of
    LOSS.USE_DIFFERENT_JOINTS_WEIGHT.
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
        """(J,) int64: joint j of a mirrored person is joint flip_indices[j] of the original one."""
        order = np.arange(self.num_keypoints)
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return order

    def side(self, joint: int) -> int:
        """-1 for a joint on the person's left, 1 on the right, 0 on the axis: by its name, or
        else its place in a mirror pair.
        """
        name = self.names[joint]
        if name.startswith(("left", "right")):
            return -1 if name.startswith("left") else 1
        return next((2 * pair.index(joint) - 1 for pair in self.flip_pairs if joint in pair), 0)


@dataclass(frozen=True)
class SplitInfo:
    """Where a set's files are below the data set's root. labelled: whether it has joints to score.
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
    """What a dataset file says. format, metric: see METRICS. category: name or id of the
    annotations' category. sets: (pattern, SplitInfo), with {set} for the set's name. can_flip:
    whether flip_pairs are known.

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
    sets: tuple[tuple[str, SplitInfo], ...] = ()
    can_flip: bool = True
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        return self.skeleton.name

    def files(self, set_name: str) -> SplitInfo:
        """The files of a set: those of the first pattern that fits it, else those of every other
        set.
        """
        found = next(
            (files for pattern, files in self.sets if fnmatchcase(set_name, pattern)),
            SplitInfo(self.annotations, self.images),
        )
        return replace(
            found,
            **{
                key: getattr(found, key).replace("{set}", set_name)
                for key in ("annotations", "images", "head_boxes", "yolo_labels")
            },
        )


def describe_joints(skeleton: Skeleton) -> dict[str, Any]:
    """Return what predicting needs of a joint set, as plain values for a file's metadata."""
    names = skeleton.names
    return {
        "name": skeleton.name,
        "joints": list(names),
        **{
            key: [[names[joint] for joint in pair] for pair in getattr(skeleton, key)]
            for key in ("flip_pairs", "limbs")
        },
    }


def first_joint_mismatch(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Where two lists of joints' names differ first, in words for an error line; '' where they
    are equal.
    """
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} joints and not {len(ours)}"
    place = next(
        (place for place, (one, other) in enumerate(zip(theirs, ours)) if one != other), None
    )
    return (
        ""
        if place is None
        else f"its joint {place} is {escape_name(theirs[place])} and not {escape_name(ours[place])}"
    )


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
    """Return whether an annotation is a crowd region; None where iscrowd is no whole number."""
    value = annotation.get("iscrowd")
    if value is None or isinstance(value, bool):
        return bool(value)
    number = parse_id(value)
    return None if number is None else number != 0
