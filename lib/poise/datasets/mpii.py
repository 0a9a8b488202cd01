"""Read MPII persons from the JSON files of SimpleBaseline and HRNet.

Their coordinates start at 1. Source: HRNet lib/dataset/mpii.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from poise.config.datasets import dataset_info, require_annotation_path, split_info
from poise.datasets.reader import Reader
from poise.errors import DataError, escape_name
from poise.io.cache import Arrays, cached
from poise.io.json_file import describe_field_error, read_json
from poise.structures.crops import BOX_MARGIN, MAX_COORD, PIXEL_STD, mpii_center_box_wh
from poise.structures.person_table import PackedStrings, PersonTable
from poise.structures.skeleton import Skeleton

_FORM = "the json form of SimpleBaseline and HRNet is needed"


def read_table(
    cfg: CfgNode, split: str, *, detections: bool = False, margin: Sequence[float] = BOX_MARGIN
) -> PersonTable:
    """Read all persons of a split. Raises DataError naming the file.

    Args:
        cfg: The experiment.
        split: Name of the split.
        detections: Ignored, there are no detection files.
        margin: See read_persons.
    """
    return read_persons(
        require_annotation_path(cfg, split),
        dataset_info(cfg).skeleton,
        labelled=split_info(cfg, split).labelled,
        margin=margin,
        cache=cfg.DATASET.CACHE,
    )


READER = Reader(read_table)


def read_persons(
    path: Path,
    skeleton: Skeleton,
    *,
    labelled: bool = True,
    margin: Sequence[float] = BOX_MARGIN,
    cache: bool = False,
) -> PersonTable:
    """Read all persons of a file in its order; a test split has no joints.

    Args:
        path: The annotation file.
        skeleton: Its keypoint set.
        labelled: Whether the persons have keypoints.
        margin: Factors in x and y by which the square boxes grow. There is no aspect fit: HRNet's
            boxes stay square for any input of the network, and only their width counts.
        cache: Whether the arrays are kept in the user's cache folder.

    Raises:
        DataError: naming the file.
    """
    joints = skeleton.num_keypoints
    kind = f"persons with {joints} joints" if labelled else "unlabeled persons"
    file = cached(path, kind, partial(_read, path, labelled, joints), cache)
    assert file is not None
    center, box_wh, is_given = mpii_center_box_wh(file["center"], file["scale"])
    count = len(center)
    keypoints = np.zeros((count, joints, 2), np.float32)
    visibility = np.zeros((count, joints), np.float32)
    if labelled:
        keypoints, visibility = file["joints"], file["visible"]
    return PersonTable(
        skeleton=skeleton,
        image_names=PackedStrings(file["name_buffer"], file["name_ends"]),
        image_ids=np.arange(len(file["name_ends"]), dtype=np.int64),
        image_index=file["image_index"],
        center=center,
        box_wh=box_wh,
        scale=box_wh * np.where(is_given[:, None], margin, 1.0) / PIXEL_STD,
        keypoints=keypoints,
        visibility=visibility,
        score=np.ones(count),
        ann_ids=np.arange(count, dtype=np.int64),
        box_source="gt",
        has_keypoints=labelled,
    )


def _read(path: Path, labelled: bool, joints: int) -> Arrays:
    """Read the arrays of a file.

    Returns:
        name_buffer, name_ends: see PackedStrings. image_index, center and scale as in the file;
        if labelled, joints and visible as in PersonTable.
    """
    entries = read_json(path, "annotation file", "check DATASET.ROOT and the set's name")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: not a list of persons; {_FORM}")
    try:
        columns = _columns(entries, labelled, joints)
    except (KeyError, TypeError, ValueError, OverflowError):
        errors = (
            _find_error(number, each, labelled, joints) for number, each in enumerate(entries)
        )
        error = next(filter(None, errors), "a person has numbers that cannot be read")
        raise DataError(f"{path}: {error}; {_FORM}") from None
    names = [entry["image"] for entry in entries]
    center, scale = columns["center"], columns["scale"]
    # 1e300 is finite, but not in float32
    is_valid = (np.abs(center) < MAX_COORD).all(axis=1) & (np.abs(scale) < MAX_COORD)
    if labelled:
        is_valid &= (np.abs(columns["joints"]) < MAX_COORD).all(axis=(1, 2))
        is_valid &= np.isfinite(columns["visible"]).all(axis=1)
    if not is_valid.all():
        person = int(np.argmin(is_valid))
        raise DataError(
            f"{path}: person {person} ({escape_name(names[person])}) has a number that is not"
            " finite; correct or remove it"
        )
    if (scale <= 0).any():
        person = int(np.argmax(scale <= 0))
        raise DataError(
            f"{path}: person {person} ({escape_name(names[person])}) has scale {scale[person]}, a"
            " box of no area; correct or remove it"
        )
    if labelled:
        columns["joints"] = columns["joints"].astype(np.float32) - 1
        # MPII does not distinguish hidden joints from visible ones
        columns["visible"] = (2 * np.clip(columns["visible"], 0, 1)).astype(np.float32)
    position = {name: index for index, name in enumerate(dict.fromkeys(names))}
    packed = PackedStrings.pack(list(position))
    return {
        "name_buffer": packed.buffer,
        "name_ends": packed.ends,
        "image_index": np.array([position[name] for name in names], dtype=np.int32),
        **columns,
    }


def _columns(entries: list, labelled: bool, joints: int) -> Arrays:
    """Return the fields as arrays of float64.

    Raises KeyError, TypeError, ValueError or OverflowError for invalid entries.
    """
    if not all(isinstance(entry["image"], str) and entry["image"] for entry in entries):
        raise ValueError("an image is no text")
    shapes: dict[str, tuple[int, ...]] = {"center": (2,), "scale": ()}
    keys = {"center": "center", "scale": "scale"}
    if labelled:
        shapes |= {"joints": (joints, 2), "visible": (joints,)}
        keys |= {"joints": "joints", "visible": "joints_vis"}
    columns = {}
    for name, key in keys.items():
        column = np.array([entry[key] for entry in entries], dtype=np.float64)
        if column.shape != (len(entries), *shapes[name]):
            raise ValueError(f"{key} has another shape")
        columns[name] = column
    return columns


def _find_error(number: int, entry: Any, labelled: bool, joints: int) -> str:
    """Return what is wrong with a person of the file, '' if nothing is."""
    if not isinstance(entry, dict):
        return f"entry {number} ({escape_name(entry, 60)}) is not an object"
    if not isinstance(entry.get("image"), str) or not entry["image"]:
        return f"person {number} {describe_field_error(entry, 'image', 'the name of a file')}"
    name = f"person {number} ({escape_name(entry['image'], 80)})"
    fields: list[tuple[str, str, tuple[int, ...]]] = [
        ("center", "x and y", (2,)),
        ("scale", "a number", ()),
    ]
    if labelled:
        counts = [len(entry[key]) for key in ("joints", "joints_vis") if _is_list(entry, key)]
        if len(counts) == 2 and counts != [joints, joints]:
            return f"{name} has {counts[0]} joints and {counts[1]} joints_vis, expected {joints}"
        fields.append(("joints", f"{joints} pairs of x and y", (joints, 2)))
        fields.append(("joints_vis", f"{joints} numbers", (joints,)))
    for key, expected, shape in fields:
        try:
            is_valid = np.array(entry[key], dtype=np.float64).shape == shape
        except (KeyError, TypeError, ValueError, OverflowError):
            is_valid = False
        if not is_valid:
            return f"{name} {describe_field_error(entry, key, expected)}"
    return ""


def _is_list(entry: dict, key: str) -> bool:
    return isinstance(entry.get(key), list)
