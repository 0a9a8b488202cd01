"""An annotation file in COCO's form as arrays, whatever is wrong with it: unlike
datasets/coco_files.py nothing is refused, faults are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from poise.datasets.coco_files import ID_FIELDS, MEND
from poise.errors import DataError, escape_name
from poise.io.archives import find_name_error
from poise.io.cache import Arrays
from poise.io.json_file import is_finite, read_in_parts
from poise.structures.crops import MAX_COORD
from poise.structures.ids import parse_id, parse_ids
from poise.structures.person_table import PackedStrings
from poise.structures.skeleton import crowd_flag, find_category

_NUMBERS = (int, float)


def read_columns(path: Path, joints: int, category: str | int) -> Arrays:
    """What the file says of its images and of the objects of `category`. Raises DataError where it
    is no JSON object with a list `images`.

    image_ids (M,) int64, image_sizes (M, 2), name_buffer and name_ends (see PackedStrings): of the
    images that are sound. ids, image_id, counted (N,) int64, crowd (N,) bool, area (N,), boxes (N,
    4), keypoints (N, J, 3) float32: of the sound objects of the category; area is NaN and counted
    (num_keypoints) -1 where the file has none. all_ids: of every sound object. category_ids,
    category_names, objects: of each category, and how many objects there are of it. person: the
    category's id, empty where there is none. joint_names: its. text_ids: entries with an id that is
    text. fault_texts, fault_counts, fault_examples: what makes other entries unusable.
    """
    return read_in_parts(
        path,
        "annotations",
        lambda content, parts: _columns(content, parts, path, joints, category),
        "annotation file",
        MEND,
    )


def _columns(
    content: Any, parts: Iterable[list], path: Path, joints: int, category: str | int
) -> Arrays:
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: has no list 'images'; this is not a COCO annotation file")
    faults: dict[str, tuple[int, str]] = {}
    found = find_category(content, category, path, parts) or {}
    person = parse_id(found.get("id"))
    objects: Counter[int] = Counter()
    text_ids = 0
    parts_read = [_regular([], person, joints)[0]]
    for entries in parts:
        read = _regular(entries, person, joints)
        if read is None:
            plain = [parse_ids(entry, *ID_FIELDS) for entry in entries]
            text_ids += sum(one is not other for one, other in zip(plain, entries))
            sound = [
                entry for entry in plain if not _note(faults, _fault(entry, person, joints), entry)
            ]
            read = _regular(sound, person, joints)
        parts_read.append(read[0])
        objects.update(read[1])
    joined = {key: np.concatenate([part[key] for part in parts_read]) for key in parts_read[0]}
    listed = content.get("categories")
    listed = [parse_ids(each, "id") for each in listed] if isinstance(listed, list) else []
    categories = [c for c in listed if isinstance(c, dict) and parse_id(c.get("id")) is not None]
    names = found.get("keypoints")
    names = (
        names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    )
    ids = [c["id"] for c in categories] + [
        i for i in objects if i not in {c["id"] for c in categories}
    ]
    plain = [parse_ids(entry, "id") for entry in content["images"]]
    text_ids += sum(one is not other for one, other in zip(plain, content["images"]))
    images = _images(plain, faults)
    return (
        images
        | joined
        | {
            "text_ids": np.array(text_ids),
            "category_ids": np.array(ids, np.int64),
            "objects": np.array([objects[i] for i in ids], np.int64),
            "category_names": np.array(
                [escape_name(c.get("name", ""), 40) for c in categories]
                + [""] * (len(ids) - len(categories)),
                str,
            ),
            "person": np.array([] if person is None else [person], np.int64),
            "joint_names": np.array(names, str),
            "fault_texts": np.array(list(faults), str),
            "fault_counts": np.array([count for count, _ in faults.values()], np.int64),
            "fault_examples": np.array([example for _, example in faults.values()], str),
        }
    )


def _images(entries: list, faults: dict) -> Arrays:
    rows = []
    for entry in entries:
        fault = ""
        if not isinstance(entry, dict) or parse_id(entry.get("id")) is None:
            fault = "images are no objects with a whole number as id"
        elif not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            fault = "images have no file_name"
        elif find_name_error(entry["file_name"]):
            fault = f"images have a file_name that {find_name_error(entry['file_name'])}"
        elif not all(
            type(entry.get(key)) in _NUMBERS and 1 <= entry[key] < MAX_COORD
            for key in ("width", "height")
        ):
            fault = "images have no width and height that can be"
        if not _note(faults, fault, entry):
            rows.append(entry)
    packed = PackedStrings.pack([row["file_name"] for row in rows])
    return {
        "image_ids": np.array([row["id"] for row in rows], np.int64),
        "name_buffer": packed.buffer,
        "name_ends": packed.ends,
        "image_sizes": (
            np.array([(row["width"], row["height"]) for row in rows], np.float64).reshape(-1, 2)
        ),
    }


def _note(faults: dict[str, tuple[int, str]], fault: str, entry: Any) -> bool:
    """Count a fault, if it is one."""
    if fault:
        name = entry.get("file_name", entry.get("id")) if isinstance(entry, dict) else entry
        count, example = faults.get(fault, (0, escape_name(name, 80)))
        faults[fault] = (count + 1, example)
    return bool(fault)


def _regular(entries: list, person: int | None, joints: int) -> tuple[Arrays, Counter[int]] | None:
    """The columns of entries that are all sound, and how many there are of each category; None
    where one is not.
    """
    try:
        categories = [entry["category_id"] for entry in entries]
        mine = [entry for entry, category in zip(entries, categories) if category == person]
        columns = {
            "all_ids": np.array([entry["id"] for entry in entries]),
            "ids": np.array([entry["id"] for entry in mine]),
            "image_id": np.array([entry["image_id"] for entry in mine]),
            "counted": np.array([entry.get("num_keypoints", -1) for entry in mine]),
            "crowd": np.array([crowd_flag(entry) for entry in mine]),
            "area": np.array([entry.get("area", np.nan) for entry in mine]),
            "boxes": np.array([entry["bbox"] for entry in mine]),
            "keypoints": np.array([entry["keypoints"] for entry in mine]),
        }
        counts = Counter(categories)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return None
    shapes = {
        "boxes": (len(mine), 4),
        "keypoints": (len(mine), 3 * joints),
        "all_ids": (len(entries),),
    }
    whole = {"all_ids", "ids", "image_id", "counted"}
    for name, column in columns.items():
        if not column.size:
            columns[name] = column = np.zeros(
                shapes.get(name, (0,)), np.int64 if name in whole else float
            )
        if column.shape != shapes.get(name, (len(mine),)) or column.dtype.kind not in (
            "i" if name in whole else "b" if name == "crowd" and len(mine) else "if"
        ):
            return None
    if any(type(category) is not int or parse_id(category) is None for category in counts):
        return None
    for name in ("area", "boxes", "keypoints"):
        if not (
            np.abs(np.nan_to_num(columns[name], nan=0.0 if name == "area" else np.inf))
            < (1e14 if name == "area" else MAX_COORD)
        ).all():
            return None
    kinds = {"boxes": np.float64, "keypoints": np.float32, "area": np.float64, "crowd": bool}
    columns = {name: column.astype(kinds.get(name, np.int64)) for name, column in columns.items()}
    columns["keypoints"] = columns["keypoints"].reshape(-1, joints, 3)
    return columns, counts


def _fault(entry: Any, person: int | None, joints: int) -> str:
    """What makes an annotation unusable; '' where nothing does."""
    if not isinstance(entry, dict):
        return "annotations are no objects"
    if parse_id(entry.get("id")) is None or parse_id(entry.get("category_id")) is None:
        return "annotations have an id or category_id that is missing or no whole number"
    if entry["category_id"] != person:
        return ""
    if parse_id(entry.get("image_id")) is None:
        return "annotations have an image_id that is missing or no whole number"
    if crowd_flag(entry) is None:
        return "annotations have an iscrowd that is neither 0 nor 1"
    box, points = entry.get("bbox"), entry.get("keypoints")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(is_finite(value) and abs(value) < MAX_COORD for value in box)
    ):
        return "annotations have a bbox that is not four numbers"
    if not isinstance(points, list):
        return "annotations of the category have no keypoints"
    if len(points) != 3 * joints:
        return (
            f"annotations have {len(points)} keypoint numbers, expected {3 * joints} ({joints}"
            " joints x 3)"
        )
    if not all(is_finite(value) and abs(value) < MAX_COORD for value in points):
        return "annotations have a keypoint that is no number or beyond any image"
    if "area" in entry and not (is_finite(entry["area"]) and abs(entry["area"]) < 1e14):
        return "annotations have an area that is no number"
    if "num_keypoints" in entry and type(entry["num_keypoints"]) is not int:
        return "annotations have a num_keypoints that is no whole number"
    return ""
