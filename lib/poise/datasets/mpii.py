"""MPII single persons in the json form of SimpleBaseline and HRNet.

Coordinates in the files are 1-based. Source: HRNet lib/dataset/mpii.py.
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
        path: the annotation file.
        skeleton: that of the dataset.
        labelled: whether the persons have joints.
        margin: factors in x and y by which the square boxes grow. There is no aspect fit: HRNet's
            boxes stay square whatever the network's input, and only their width counts.
        cache: whether what was read is kept in the user's cache folder.

    Raises DataError naming the file.
    """
    joints = skeleton.num_keypoints
    kind = f"persons with {joints} joints" if labelled else "unlabelled persons"
    file = cached(path, kind, partial(_read, path, labelled, joints), cache)
    center, extent, given = mpii_center_box_wh(file["center"], file["scale"])
    scale = extent * np.where(given[:, None], margin, 1.0) / PIXEL_STD
    count = len(center)
    return PersonTable(
        skeleton,
        PackedStrings(file["name_buffer"], file["name_ends"]),
        np.arange(len(file["name_ends"]), dtype=np.int64),
        file["image_index"],
        center,
        extent,
        scale,
        file.get("joints", np.zeros((count, joints, 2), np.float32)),
        file.get("visible", np.zeros((count, joints), np.float32)),
        np.ones(count),
        np.arange(count, dtype=np.int64),
        "gt",
        has_keypoints=labelled,
    )


def _fault(numbered: tuple[int, Any], labelled: bool, count: int) -> str:
    """Return what is wrong with a person of the file, '' where nothing is. numbered: its place,
    and what is there.
    """
    number, entry = numbered
    if not isinstance(entry, dict):
        return f"entry {number} ({escape_name(entry, 60)}) is not an object"
    if not isinstance(entry.get("image"), str) or not entry["image"]:
        return f"person {number} {describe_field_error(entry, 'image', 'the name of a file')}"
    fields = [("center", "x and y", (2,)), ("scale", "a number", ())]
    if labelled:
        fields.append(("joints", f"{count} pairs of x and y", (count, 2)))
        fields.append(("joints_vis", f"{count} numbers", (count,)))
    for key, expected, shape in fields:
        try:
            fits = np.array(entry[key], dtype=np.float64).shape == shape
        except (KeyError, TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            return (
                f"person {number} ({escape_name(entry['image'], 80)})"
                f" {describe_field_error(entry, key, expected)}"
            )
    return ""


def _read(path: Path, labelled: bool, count: int) -> Arrays:
    """name_buffer, name_ends: see PackedStrings. image_index, center, scale as in the file,
    `count` joints and visible as in PersonTable, if labelled.
    """
    entries = read_json(path, "annotation file", "check DATASET.ROOT and the set's name")
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{path}: not a list of persons; the json form of SimpleBaseline and HRNet is needed"
        )
    joints = visible = None
    try:
        names = [entry["image"] for entry in entries]
        center = np.array([entry["center"] for entry in entries], dtype=np.float64).reshape(-1, 2)
        scale = np.array([entry["scale"] for entry in entries], dtype=np.float64)
        if labelled:
            for person, entry in enumerate(entries):
                if len(entry["joints"]) != count or len(entry["joints_vis"]) != count:
                    raise DataError(
                        f"{path}: person {person} ({escape_name(entry['image'])}) has"
                        f" {len(entry['joints'])} joints and {len(entry['joints_vis'])} joints_vis,"
                        f" expected {count}"
                    )
            joints = np.array([entry["joints"] for entry in entries], dtype=np.float64)
            visible = np.array([entry["joints_vis"] for entry in entries], dtype=np.float64)
            if joints.shape[1:] != (count, 2) or visible.ndim != 2:
                raise ValueError("a joint is x and y, a joints_vis one number")
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError("an image is no text")
        if center.shape != (len(names), 2) or scale.shape != (len(names),):
            raise ValueError("a center is x and y, a scale one number")
    except (KeyError, TypeError, ValueError, OverflowError):
        fault = next(
            filter(None, (_fault(entry, labelled, count) for entry in enumerate(entries))), ""
        )
        raise DataError(
            f"{path}: {fault or 'a person has numbers that cannot be read'}; "
            "the json form of SimpleBaseline and HRNet is needed"
        ) from None
    # 1e300 is finite, but not in float32
    finite = (np.abs(center) < MAX_COORD).all(axis=1) & (np.abs(scale) < MAX_COORD)
    if labelled:
        finite &= (np.abs(joints) < MAX_COORD).all(axis=(1, 2)) & np.isfinite(visible).all(axis=1)
        with np.errstate(over="ignore"):  # what does not fit is refused below
            # MPII does not tell hidden joints from seen ones
            joints, visible = (
                joints.astype(np.float32) - 1,
                (2 * np.clip(visible, 0, 1)).astype(np.float32),
            )
    if not finite.all():
        raise DataError(
            f"{path}: person {int(np.argmin(finite))}"
            f" ({escape_name(names[int(np.argmin(finite))])}) has"
            " a number that is not finite; correct or remove it"
        )
    if (scale <= 0).any():
        person = int(np.argmax(scale <= 0))
        raise DataError(
            f"{path}: person {person} ({escape_name(names[person])}) has scale {scale[person]}, a"
            " box of no area; correct or remove it"
        )
    unique = {name: position for position, name in enumerate(dict.fromkeys(names))}
    packed = PackedStrings.pack(list(unique))
    arrays = {
        "name_buffer": packed.buffer,
        "name_ends": packed.ends,
        "image_index": np.array([unique[name] for name in names], dtype=np.int32),
        "center": center,
        "scale": scale,
    }
    return arrays | {"joints": joints, "visible": visible} if labelled else arrays


def read_table(
    cfg: CfgNode, split: str, *, detections: bool = False, margin: Sequence[float] = BOX_MARGIN
) -> PersonTable:
    """Read all persons of a split. Raises DataError naming the file.

    detections: ignored, there are no detection files.
    """
    return read_persons(
        require_annotation_path(cfg, split),
        dataset_info(cfg).skeleton,
        labelled=split_info(cfg, split).labelled,
        margin=margin,
        cache=cfg.DATASET.CACHE,
    )


READER = Reader(read_table)
