"""Read a file in COCO's format as arrays and count its errors.

Unlike poise.datasets.coco_files, which refuses a file with an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise.datasets.coco_files import HINT, ID_FIELDS
from poise.errors import DataError, escape_name
from poise.io.archives import find_name_error
from poise.io.cache import Arrays
from poise.io.json_file import is_finite, read_in_parts
from poise.structures.crops import MAX_COORD
from poise.structures.ids import parse_id, parse_ids
from poise.structures.person_table import PackedStrings
from poise.structures.skeleton import crowd_flag, find_category

_MAX_AREA = 1e14
_INT_COLUMNS = ("all_ids", "ids", "image_id", "counted")


def read_columns(path: Path, joints: int, category: str | int) -> Arrays:
    """Read the images of a file and its objects of a category.

    Args:
        path: The annotation file.
        joints: Number of keypoints K.
        category: Name or id of the category.

    Returns:
        Of the M valid images: image_ids (M,), image_sizes (M, 2), name_buffer and name_ends (see
        PackedStrings). Of the N valid objects of the category: ids, image_id, counted (N,) int64,
        crowd (N,) bool, area (N,), boxes (N, 4), keypoints (N, K, 3) float32; area is NaN and
        counted (num_keypoints) -1 where an object has none. all_ids: of every valid object.
        category_ids, category_names, objects: of each category, with its number of objects.
        person: id of the category, empty if there is none. joint_names: its keypoints. text_ids:
        number of entries with an id as text. fault_texts, fault_counts, fault_examples: what makes
        other entries invalid.

    Raises:
        DataError: if the file is no JSON object with a list `images`.
    """
    return read_in_parts(
        path,
        "annotations",
        lambda content, parts: _columns(content, parts, path, joints, category),
        "annotation file",
        HINT,
    )


class _ErrorCounter:
    """Count entries with the same error."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, error: str, entry: Any) -> None:
        name = entry
        if isinstance(entry, dict):
            name = entry.get("file_name", entry.get("id"))
        self.counts[error] += 1
        self.examples.setdefault(error, escape_name(name, 80))

    def columns(self) -> Arrays:
        return {
            "fault_texts": np.array(list(self.counts), str),
            "fault_counts": np.array(list(self.counts.values()), np.int64),
            "fault_examples": np.array(list(self.examples.values()), str),
        }


def _columns(
    content: Any, parts: Iterable[list], path: Path, joints: int, category: str | int
) -> Arrays:
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: has no list 'images'; this is not a COCO annotation file")
    errors = _ErrorCounter()
    chosen = find_category(content, category, path, parts) or {}
    person = parse_id(chosen.get("id"))
    columns, num_objects, num_text_ids = _annotations(parts, person, joints, errors)
    image_entries = [parse_ids(entry, "id") for entry in content["images"]]
    num_text_ids += _count_changed(image_entries, content["images"])
    columns |= _images(image_entries, errors)
    columns |= _categories(content.get("categories"), num_objects)
    names = chosen.get("keypoints")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = []
    return columns | {
        "text_ids": np.array(num_text_ids),
        "person": np.array([] if person is None else [person], np.int64),
        "joint_names": np.array(names, str),
        **errors.columns(),
    }


def _annotations(
    parts: Iterable[list], person: int | None, joints: int, errors: _ErrorCounter
) -> tuple[Arrays, Counter[int], int]:
    """Return the columns of the objects, their number by category, and the number of text ids."""
    num_objects: Counter[int] = Counter()
    num_text_ids = 0
    empty, _ = _regular_columns([], person, joints)
    columns_of_parts = [empty]
    for entries in parts:
        try:
            columns, counts = _regular_columns(entries, person, joints)
        except _INVALID:
            plain = [parse_ids(entry, *ID_FIELDS) for entry in entries]
            num_text_ids += _count_changed(plain, entries)
            valid = []
            for entry in plain:
                error = _annotation_error(entry, person, joints)
                if error:
                    errors.add(error, entry)
                else:
                    valid.append(entry)
            columns, counts = _regular_columns(valid, person, joints)
        columns_of_parts.append(columns)
        num_objects.update(counts)
    joined = {key: np.concatenate([each[key] for each in columns_of_parts]) for key in empty}
    return joined, num_objects, num_text_ids


def _count_changed(entries: Sequence[Any], originals: Sequence[Any]) -> int:
    return sum(one is not other for one, other in zip(entries, originals))


def _categories(entries: Any, num_objects: Counter[int]) -> Arrays:
    """Return the listed categories, and those that only objects name."""
    if not isinstance(entries, list):
        entries = []
    listed: list[tuple[int, str]] = []
    for entry in entries:
        category = parse_ids(entry, "id")
        if isinstance(category, dict) and parse_id(category.get("id")) is not None:
            listed.append((category["id"], escape_name(category.get("name", ""), 40)))
    listed_ids = {number for number, _ in listed}
    listed += [(number, "") for number in num_objects if number not in listed_ids]
    return {
        "category_ids": np.array([number for number, _ in listed], np.int64),
        "category_names": np.array([name for _, name in listed], str),
        "objects": np.array([num_objects[number] for number, _ in listed], np.int64),
    }


def _images(entries: list, errors: _ErrorCounter) -> Arrays:
    valid = []
    for entry in entries:
        error = _image_error(entry)
        if error:
            errors.add(error, entry)
        else:
            valid.append(entry)
    packed = PackedStrings.pack([entry["file_name"] for entry in valid])
    sizes = [(entry["width"], entry["height"]) for entry in valid]
    return {
        "image_ids": np.array([entry["id"] for entry in valid], np.int64),
        "name_buffer": packed.buffer,
        "name_ends": packed.ends,
        "image_sizes": np.array(sizes, np.float64).reshape(-1, 2),
    }


def _image_error(entry: Any) -> str:
    """Return why an entry of 'images' is invalid, '' if it is valid."""
    if not isinstance(entry, dict) or parse_id(entry.get("id")) is None:
        return "images are no objects with a whole number as id"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        return "images have no file_name"
    if name_error := find_name_error(name):
        return f"images have a file_name that {name_error}"
    for key in ("width", "height"):
        if type(entry.get(key)) not in (int, float) or not 1 <= entry[key] < MAX_COORD:
            return "images have no width and height that can be"
    return ""


_INVALID = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


def _regular_columns(entries: list, person: int | None, joints: int) -> tuple[Arrays, Counter[int]]:
    """Return the columns of valid entries, and the number of entries of each category.

    Raises one of _INVALID if any entry is invalid.
    """
    categories = [entry["category_id"] for entry in entries]
    counts = Counter(categories)
    if any(type(category) is not int or parse_id(category) is None for category in counts):
        raise ValueError("a category_id is no id")
    of_person = [entry for entry, category in zip(entries, categories) if category == person]
    count = len(of_person)
    columns = {
        "all_ids": np.array([entry["id"] for entry in entries]),
        "ids": np.array([entry["id"] for entry in of_person]),
        "image_id": np.array([entry["image_id"] for entry in of_person]),
        "counted": np.array([entry.get("num_keypoints", -1) for entry in of_person]),
        "crowd": np.array([crowd_flag(entry) for entry in of_person]),
        "area": np.array([entry.get("area", np.nan) for entry in of_person]),
        "boxes": np.array([entry["bbox"] for entry in of_person]),
        "keypoints": np.array([entry["keypoints"] for entry in of_person]),
    }
    shapes = {
        "all_ids": (len(entries),),
        "boxes": (count, 4),
        "keypoints": (count, 3 * joints),
    }
    for name, column in columns.items():
        columns[name] = _typed(name, column, shapes.get(name, (count,)))
    if not (np.abs(columns["area"][~np.isnan(columns["area"])]) < _MAX_AREA).all():
        raise ValueError("an area is out of range")
    for name in ("boxes", "keypoints"):
        if not (np.abs(columns[name]) < MAX_COORD).all():  # NaN is not below either
            raise ValueError(f"{name} are out of range")
    columns["keypoints"] = columns["keypoints"].astype(np.float32).reshape(-1, joints, 3)
    return columns, counts


def _typed(name: str, column: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a column of numbers as int64, bool or float64; raise ValueError for others."""
    dtype: type = np.int64 if name in _INT_COLUMNS else np.float64
    kinds = "i" if name in _INT_COLUMNS else "if"
    if name == "crowd":
        dtype, kinds = bool, "b"
    if not shape[0]:
        return np.zeros(shape, dtype)
    if column.shape != shape or column.dtype.kind not in kinds:
        raise ValueError(f"{name} has another type")
    return column.astype(dtype)


def _annotation_error(entry: Any, person: int | None, joints: int) -> str:
    """Return why an annotation is invalid, '' if it is valid."""
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
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not _are_in_range(box):
        return "annotations have a bbox that is not four numbers"
    return (
        _keypoints_error(entry.get("keypoints"), joints)
        or _area_error(entry)
        or _count_error(entry)
    )


def _keypoints_error(keypoints: Any, joints: int) -> str:
    if not isinstance(keypoints, list):
        return "annotations of the category have no keypoints"
    if len(keypoints) != 3 * joints:
        return (
            f"annotations have {len(keypoints)} keypoint numbers, expected {3 * joints} ({joints}"
            " joints x 3)"
        )
    if not _are_in_range(keypoints):
        return "annotations have a keypoint that is no number or beyond any image"
    return ""


def _area_error(entry: dict) -> str:
    if "area" in entry and not (is_finite(entry["area"]) and abs(entry["area"]) < _MAX_AREA):
        return "annotations have an area that is no number"
    return ""


def _count_error(entry: dict) -> str:
    if "num_keypoints" in entry and type(entry["num_keypoints"]) is not int:
        return "annotations have a num_keypoints that is no whole number"
    return ""


def _are_in_range(values: list) -> bool:
    return all(is_finite(value) and abs(value) < MAX_COORD for value in values)
