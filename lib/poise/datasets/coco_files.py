"""Read annotation and detection files in COCO's format as arrays.

The arrays do not depend on the settings of a run, so that they can be cached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from poise.errors import ConfigError, DataError, escape_name, short_repr
from poise.io.archives import find_name_error
from poise.io.cache import Arrays
from poise.io.files import gc_disabled
from poise.io.json_file import describe_field_error, is_number, read_in_parts, read_json
from poise.structures.crops import MAX_COORD
from poise.structures.ids import parse_id, parse_ids
from poise.structures.person_table import PackedStrings
from poise.structures.skeleton import crowd_flag, find_category

_MAX_BOX_COORD = 1e15  # a box may reach beyond its image, to which it is clipped
OTHER_CATEGORY = "of another category"  # a reason for which an annotation is dropped
HINT = "check DATASET.ROOT and the set's name"
DETECTIONS_HINT = (
    "TEST.COCO_BBOX_FILE takes a JSON list of {image_id, category_id, bbox, score};"
    " tools/make_boxes.py writes one, docs/datasets.md links COCO's; TEST.USE_GT_BBOX True does"
    " without"
)
ID_FIELDS = ("id", "image_id", "category_id")
# raised by NumPy and by indexing for values of other types
_INVALID = (KeyError, TypeError, AttributeError, ValueError, OverflowError)

# ids (N,), image_index (N,), boxes (N, 4), keypoints (N, K, 3)
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def category_id(file: Arrays, category: str | int) -> int:
    """Return the id of the persons' category.

    Args:
        file: See read_images.
        category: Its name or id. If the file lacks it, the id is `category`, or COCO's 1.
    """
    if len(file["person"]):
        return int(file["person"][0])
    return category if isinstance(category, int) else 1


def read_images(path: Path, category: str | int) -> Arrays:
    """Read the images of an annotation file.

    Args:
        path: The file.
        category: Name or id of the persons' category.

    Returns:
        name_buffer, name_ends: see PackedStrings. image_ids (M,) int64. image_sizes (M, 2) float64,
        width and height in pixels. person: the id of the category, empty if the file lacks it.
        joint_names: its keypoints, empty if the file does not name them.

    Raises:
        DataError: naming the file.
    """
    content = read_json(path, "annotation file", HINT)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    return _images(content, path, category, [annotations] if isinstance(annotations, list) else [])


def read_annotations(path: Path, split: str, joints: int, category: str | int) -> Arrays:
    """Read the images and the labeled persons of an annotation file.

    Crowd regions and persons without labels are dropped.

    Args:
        path: The file.
        split: Its split, for messages.
        joints: Number of keypoints K.
        category: Name or id of the persons' category.

    Returns:
        The arrays of read_images, and ids (N,) int64, image_index (N,) int32, boxes (N, 4) float64
        as annotated, joints (N, K, 2) and visible (N, K) float32, reasons and counts of what was
        dropped.

    Raises:
        DataError, ConfigError: naming the file.
    """
    with gc_disabled():
        return read_in_parts(
            path,
            "annotations",
            lambda content, parts: _annotations(content, parts, path, split, joints, category),
            "annotation file",
            HINT,
        )


def _annotations(
    content: Any, parts: Iterable[list], path: Path, split: str, joints: int, category: str | int
) -> Arrays:
    arrays = _images(content, path, category, parts)
    if "annotations" not in content:
        raise ConfigError(
            f"{path}: set {split} has no annotations, so no ground-truth boxes; set"
            " TEST.USE_GT_BBOX False and TEST.COCO_BBOX_FILE to a detection file, which"
            " tools/make_boxes.py writes"
        )
    if not len(arrays["person"]):
        raise DataError(
            f"{path}: has no category {category!r} with an id; Poise trains on one category, which"
            " `category` of the dataset file names"
        )
    if not isinstance(content["annotations"], list):
        raise DataError(f"{path}: 'annotations' is not a list; this is not a COCO annotation file")
    person = int(arrays["person"][0])
    position = {image_id: index for index, image_id in enumerate(arrays["image_ids"].tolist())}
    dropped: Counter[str] = Counter()
    columns_of_parts = [_no_persons(joints)]
    first = 0
    for entries in parts:
        regular = parse_regular_persons(entries, person, position, joints)
        columns, reasons = regular or parse_persons(entries, person, position, joints, path, first)
        first += len(entries)
        columns_of_parts.append(columns)
        dropped.update(reasons)
    ids, index, boxes, keypoints = (np.concatenate(column) for column in zip(*columns_of_parts))
    raise_if_any(
        ~(np.abs(boxes) < _MAX_BOX_COORD).all(axis=1),
        ids,
        path,
        "a bbox that is not finite or beyond any image",
    )
    # 1e300 is finite, but not in the float32 of the table
    raise_if_any(
        ~(np.abs(keypoints) < MAX_COORD).all(axis=(1, 2)),
        ids,
        path,
        "a keypoint that is not finite or beyond any image",
    )
    drop_reasons = sorted(dropped)
    return arrays | {
        "ids": ids,
        "image_index": index,
        "boxes": boxes,
        "joints": keypoints[:, :, :2].astype(np.float32),
        "visible": np.clip(keypoints[:, :, 2], 0, 2).astype(np.float32),
        "reasons": np.array(drop_reasons, dtype=str),
        "counts": np.array([dropped[reason] for reason in drop_reasons], dtype=np.int64),
    }


def read_detections(path: Path, hint: str) -> Arrays | None:
    """Read a detection file.

    Returns:
        category, image_id (D,) int64, score (D,) and box (D, 4) float64; None if an entry has
        another form.

    Raises:
        DataError: naming the file, if it is no list in JSON.
    """
    with gc_disabled():
        entries = read_entries(path, hint)
        columns = detection_columns(entries)
        if columns is None:
            columns = detection_columns([parse_ids(entry, *ID_FIELDS) for entry in entries])
        return columns


def read_entries(path: Path, hint: str) -> list:
    """Return the entries of a detection file as they are. Raises DataError."""
    entries = read_json(path, "detection file", hint)
    if not isinstance(entries, list):
        raise DataError(f"{path}: the detection file is not a list; {hint}")
    return entries


def detection_columns(entries: list) -> Arrays | None:
    """Return the columns of read_detections for a list of entries."""
    count = len(entries)
    try:
        return {
            "category": _column(entries, "category_id", (count,), "i"),
            "image_id": _column(entries, "image_id", (count,), "i"),
            "score": _column(entries, "score", (count,), "if"),
            "box": _column(entries, "bbox", (count, 4), "if"),
        }
    except _INVALID:
        return None


def _column(entries: list, key: str, shape: tuple[int, ...], kinds: str) -> np.ndarray:
    """Return a field as int64 (kinds "i") or float64; raise ValueError for other values."""
    dtype = np.int64 if kinds == "i" else np.float64
    if not entries:
        return np.zeros(shape, dtype)
    column = np.array([entry[key] for entry in entries])
    if column.shape != shape or column.dtype.kind not in kinds:
        raise ValueError(f"{key} has another type")
    return column.astype(dtype)


def detection_error(entry: Any) -> str:
    """Return what is wrong with an entry of a detection file, '' if nothing is."""
    if not isinstance(entry, dict):
        return "is not an object"
    for key in ("image_id", "category_id"):
        if parse_id(entry.get(key)) is None:
            return describe_field_error(entry, key, "a whole number")
    if not is_number(entry.get("score")):
        return describe_field_error(entry, "score", "a number")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return describe_field_error(entry, "bbox", "x, y, width and height")
    return ""


def _image_error(entry: Any) -> str:
    """Return what is wrong with an entry of 'images', '' if nothing is."""
    if not isinstance(entry, dict):
        return "is not an object"
    if parse_id(entry.get("id")) is None:
        return describe_field_error(entry, "id", "a whole number")
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        if "file_name" in entry:
            return "has a file_name that is not text"
        return describe_field_error(entry, "file_name", "")
    for key in ("width", "height"):
        if not is_number(entry.get(key)):
            return describe_field_error(entry, key, "a number of pixels")
    return ""


def _images(content: Any, path: Path, category: str | int, parts: Iterable[list]) -> Arrays:
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: has no list 'images'; this is not a COCO annotation file")
    for number, entry in enumerate(entries):
        error = _image_error(entry)
        if error:
            name = entry.get("file_name", entry.get("id")) if isinstance(entry, dict) else entry
            raise DataError(
                f"{path}: entry {number} of 'images' ({escape_name(name, 80)}) {error}; each needs"
                " id, file_name, width and height"
            )
    names = [entry["file_name"] for entry in entries]
    ids = np.array([parse_id(entry["id"]) for entry in entries], dtype=np.int64)
    sizes = np.array([(entry["width"], entry["height"]) for entry in entries], dtype=np.float64)
    if len(np.unique(ids)) < len(ids):
        raise DataError(f"{path}: two entries of 'images' have the same id; ids must differ")
    for name in names:
        name_error = find_name_error(name)
        if name_error:
            raise DataError(
                f"{path}: the file_name {escape_name(name)} of 'images' {name_error}; names are"
                " relative to the image folder"
            )
    invalid = ~((sizes >= 1) & (sizes < MAX_COORD)).all(axis=1)
    if invalid.any():
        raise DataError(
            f"{path}: image {ids[invalid][0]} has width and height {sizes[invalid][0].tolist()};"
            " correct or remove it"
        )
    chosen = find_category(content, category, path, parts) or {}
    person = parse_id(chosen.get("id"))
    joint_names = chosen.get("keypoints")
    if not isinstance(joint_names, list) or not all(isinstance(each, str) for each in joint_names):
        joint_names = []
    packed = PackedStrings.pack(names)
    return {
        "name_buffer": packed.buffer,
        "name_ends": packed.ends,
        "image_ids": ids,
        "image_sizes": sizes,
        "person": np.array([] if person is None else [person], dtype=np.int64),
        "joint_names": np.array(joint_names, dtype=str),
    }


def parse_regular_persons(
    entries: list, person: int, position: dict[int, int], joints: int
) -> tuple[Columns, Counter[str]] | None:
    """Parse annotations column by column, in a fifth of the time of parse_persons.

    Args:
        entries: Annotations.
        person: Category id of the persons.
        position: {image id: position of the image}.
        joints: Number of keypoints K.

    Returns:
        The columns, and how many entries were dropped for each reason; None if an entry is not
        regular: parse_persons then finds out what is wrong, if anything.
    """
    unlabeled = [0] * (3 * joints)
    try:
        categories = [entry["category_id"] for entry in entries]
        of_person = [entry for entry, category in zip(entries, categories) if category == person]
        crowd = [entry.get("iscrowd", 0) for entry in of_person]
        if not set(map(type, crowd)) <= {int, bool} or set(map(type, categories)) - {int}:
            return None
        single = [entry for entry, is_crowd in zip(of_person, crowd) if not is_crowd]
        index = [position[entry["image_id"]] for entry in single]
        if any(len(entry["keypoints"]) != 3 * joints for entry in single):
            return None
        labeled = [pair for pair in zip(single, index) if pair[0]["keypoints"] != unlabeled]
        used = [pair for pair in labeled if pair[0].get("area", 1) > 0]
        rows = [entry for entry, _ in used]
        columns = _columns(rows, [place for _, place in used], joints, strict=True)
    except _INVALID:
        return None
    if (columns[3][:, :, 2].max(axis=1, initial=-1) <= 0).any():  # coordinates without a flag
        return None
    dropped = {
        OTHER_CATEGORY: len(entries) - len(of_person),
        "crowd regions": len(of_person) - len(single),
        "without labeled joints": len(single) - len(labeled),
        "of area 0": len(labeled) - len(used),
    }
    return columns, Counter({reason: count for reason, count in dropped.items() if count})


def parse_persons(
    entries: list, person: int, position: dict[int, int], joints: int, path: Path, first: int = 0
) -> tuple[Columns, Counter[str]]:
    """Parse annotations one by one: see parse_regular_persons.

    Args:
        path: The file, for errors.
        first: Position of the first entry in the file's list.

    Raises:
        DataError: naming an annotation that is invalid.
    """
    dropped: Counter[str] = Counter()
    rows: list[dict] = []
    for number, entry in enumerate(entries, first):
        name = f"entry {number} of 'annotations'"
        if not isinstance(entry, dict):
            raise DataError(
                f"{path}: {name} ({escape_name(entry, 60)}) is not an object; correct or remove it"
            )
        entry = parse_ids(entry, *ID_FIELDS)
        try:
            reason = _drop_reason(entry, person, position, joints)
        except _InvalidAnnotationError as error:
            if entry.get("id") is not None:
                name = f"annotation {escape_name(entry['id'], 60)}"
            raise DataError(f"{path}: {name} {error}") from None
        if reason:
            dropped[reason] += 1
        else:
            rows.append(entry)
    return _columns(rows, [position[row["image_id"]] for row in rows], joints), dropped


class _InvalidAnnotationError(Exception):
    """What is wrong with an annotation."""


def _drop_reason(entry: dict, person: int, position: dict[int, int], joints: int) -> str:
    """Return why a person is dropped, '' if it is used.

    The remaining fields of a dropped person may be invalid.

    Raises:
        _InvalidAnnotationError: if it can neither be used nor dropped.
    """
    if parse_id(entry.get("category_id")) is None:
        raise _InvalidAnnotationError(_field_error(entry, "category_id", "a whole number"))
    if entry["category_id"] != person:
        return OTHER_CATEGORY
    is_crowd = crowd_flag(entry)
    if is_crowd is None:
        raise _InvalidAnnotationError(_field_error(entry, "iscrowd", "0 or 1"))
    if is_crowd:
        return "crowd regions"
    if "image_id" not in entry:
        raise _InvalidAnnotationError(_field_error(entry, "image_id", "a whole number"))
    if parse_id(entry["image_id"]) not in position:
        image = escape_name(entry["image_id"], 60)
        raise _InvalidAnnotationError(f"belongs to image {image}, which 'images' does not list")
    count = 3 * joints
    expected = f"keypoint numbers, expected {count} ({joints} joints x 3)"
    keypoints = _numbers(entry, "keypoints", count, expected)
    if max(keypoints[2::3]) <= 0:  # the flags decide, whatever the coordinates are
        return "without labeled joints"
    if not is_number(entry.get("area", 1)):
        raise _InvalidAnnotationError(_field_error(entry, "area", "a number"))
    if entry.get("area", 1) <= 0:
        return "of area 0"
    _numbers(entry, "bbox", 4, "numbers in its bbox, expected x, y, width and height")
    if parse_id(entry.get("id")) is None:
        raise _InvalidAnnotationError(_field_error(entry, "id", "a whole number"))
    return ""


def _field_error(entry: dict, key: str, expected: str) -> str:
    error = describe_field_error(entry, key, expected)
    if key in entry:
        return f"{error}; correct or remove it"
    return f"{error}; a keypoint annotation needs id, image_id, category_id, bbox and keypoints"


def _numbers(entry: dict, key: str, count: int, expected: str) -> list:
    """Return a field that is a list of `count` numbers, or raise _InvalidAnnotationError."""
    values = entry.get(key)
    if not isinstance(values, list):
        raise _InvalidAnnotationError(_field_error(entry, key, f"a list of {count} numbers"))
    if len(values) != count:
        raise _InvalidAnnotationError(f"has {len(values)} {expected}")
    for place, value in enumerate(values):
        if not is_number(value):
            raise _InvalidAnnotationError(
                f"has {short_repr(value, 60)} as number {place} of its {key}, expected a number; "
                "correct or remove it"
            )
    return values


def _no_persons(joints: int) -> Columns:
    return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((0, 4)), np.zeros((0, joints, 3))


def _columns(rows: list[dict], index: list[int], joints: int, strict: bool = False) -> Columns:
    """Return the columns of annotations.

    Args:
        strict: Refuse text that reads as a number too.

    Raises:
        One of _INVALID for values that are no numbers.
    """
    if not rows:
        return _no_persons(joints)
    float_type = None if strict else np.float64
    ids = np.array([row["id"] for row in rows], dtype=None if strict else np.int64)
    boxes = np.array([row["bbox"] for row in rows], dtype=float_type)
    keypoints = np.array([row["keypoints"] for row in rows], dtype=float_type)
    if ids.ndim != 1 or boxes.shape[1:] != (4,) or keypoints.ndim != 2:
        raise ValueError("lists within lists")
    if ids.dtype.kind != "i" or not {boxes.dtype.kind, keypoints.dtype.kind} <= {"i", "f"}:
        raise ValueError("values that are no numbers")
    return (
        ids,
        np.array(index, dtype=np.int32),
        boxes.astype(np.float64, copy=False),
        keypoints.astype(np.float64, copy=False).reshape(-1, joints, 3),
    )


def raise_if_any(invalid: np.ndarray, ids: np.ndarray, path: Path, error: str) -> None:
    """Raise DataError if `invalid` (N,) is true of an annotation, naming the first one."""
    if invalid.any():
        more = f" and {invalid.sum() - 1} more" if invalid.sum() > 1 else ""
        raise DataError(
            f"{path}: annotation {ids[invalid][0]}{more} has {error}; correct or remove it"
        )
