"""What COCO's annotation and detection files hold, as arrays: whatever settings a run has, so
that it can be kept for the next run.
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

_LARGEST_BOX = 1e15  # it may reach beyond its image, which it is clipped to
OTHER_CATEGORY = "of another category"  # a reason for which an annotation is dropped
HINT = "check DATASET.ROOT and the set's name"
DETECTIONS_HINT = (
    "TEST.COCO_BBOX_FILE takes a JSON list of {image_id, category_id, bbox, score};"
    " tools/make_boxes.py writes one, docs/datasets.md links COCO's; TEST.USE_GT_BBOX True does"
    " without"
)
ID_FIELDS = ("id", "image_id", "category_id")


def category_id(file: Arrays, category: str | int) -> int:
    """The id of the persons' category. file: of read_images. Where it has no such category:
    `category` if that is an id, else COCO's 1.
    """
    return (
        int(file["person"][0])
        if len(file["person"])
        else category
        if isinstance(category, int)
        else 1
    )


def read_images(path: Path, category: str | int) -> Arrays:
    """The images of an annotation file. category: name or id of the persons' category. Raises
    DataError, naming the file.

    name_buffer, name_ends: see PackedStrings. image_ids (M,) int64. image_sizes (M, 2) float64,
    width and height in pixels. person: the id of the category; empty where the file has no such
    category.
    joint_names: of the category, as far as the file tells.
    """
    content = read_json(path, "annotation file", HINT)
    listed = content.get("annotations") if isinstance(content, dict) else None
    return _images(content, path, category, [listed] if isinstance(listed, list) else [])


def read_annotations(path: Path, split: str, joints: int, category: str | int) -> Arrays:
    """The same and the labelled persons of so many joints, without crowd regions and those that
    nothing can be learned from. Raises DataError or ConfigError.

    ids (N,) int64. image_index (N,) int32. boxes (N, 4) float64 as annotated. joints (N, J, 2) and
    visible (N, J) float32: see PersonTable. reasons, counts: what was dropped.
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
    person, position = (
        int(arrays["person"][0]),
        {image_id: index for index, image_id in enumerate(arrays["image_ids"].tolist())},
    )
    dropped: Counter[str] = Counter()
    found = [_no_persons(joints)]
    first = 0
    for entries in parts:
        regular = parse_regular_persons(entries, person, position, joints)
        columns, reasons = regular or parse_persons(entries, person, position, joints, path, first)
        first += len(entries)
        found.append(columns)
        dropped.update(reasons)
    ids, index, boxes, keypoints = (np.concatenate(column) for column in zip(*found))
    refuse(
        ~(np.abs(boxes) < _LARGEST_BOX).all(axis=1),
        ids,
        path,
        "a bbox that is not finite or beyond any image",
    )
    # 1e300 is finite, but not in the float32 that the table holds
    refuse(
        ~(np.abs(keypoints) < MAX_COORD).all(axis=(1, 2)),
        ids,
        path,
        "a keypoint that is not finite or beyond any image",
    )
    reasons = sorted(dropped)
    return arrays | {
        "ids": ids,
        "image_index": index,
        "boxes": boxes,
        "joints": keypoints[:, :, :2].astype(np.float32),
        "visible": np.clip(keypoints[:, :, 2], 0, 2).astype(np.float32),
        "reasons": np.array(reasons, dtype=str),
        "counts": np.array([dropped[reason] for reason in reasons], dtype=np.int64),
    }


def read_detections(path: Path, mend: str) -> Arrays | None:
    """category, image_id (D,) int64, score (D,) and box (D, 4) float64 of a detection file; None
    where an entry has something else.

    Raises DataError, naming the file, where it is no list in JSON.
    """
    with gc_disabled():
        entries = read_entries(path, mend)
        columns = detection_columns(entries)
        if columns is None:
            columns = detection_columns([parse_ids(entry, *ID_FIELDS) for entry in entries])
        return columns


def read_entries(path: Path, mend: str) -> list:
    """The entries of a detection file as they are. Raises DataError."""
    entries = read_json(path, "detection file", mend)
    if not isinstance(entries, list):
        raise DataError(f"{path}: the detection file is not a list; {mend}")
    return entries


def detection_columns(entries: list) -> Arrays | None:
    """What read_detections returns, of the entries."""
    if not entries:
        whole, numbers = np.zeros(0, np.int64), np.zeros(0)
        return {"category": whole, "image_id": whole, "score": numbers, "box": np.zeros((0, 4))}
    try:
        columns = {
            "category": np.array([entry["category_id"] for entry in entries]),
            "image_id": np.array([entry["image_id"] for entry in entries]),
            "score": np.array([entry["score"] for entry in entries]),
            "box": np.array([entry["bbox"] for entry in entries]),
        }
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    shapes = {
        "category": (len(entries),),
        "image_id": (len(entries),),
        "score": (len(entries),),
        "box": (len(entries), 4),
    }
    whole = {"category", "image_id"}
    if any(
        array.shape != shapes[name] or array.dtype.kind not in ("i" if name in whole else "if")
        for name, array in columns.items()
    ):
        return None
    return {
        name: array.astype(np.int64 if name in whole else np.float64)
        for name, array in columns.items()
    }


def detection_error(entry: Any) -> str:
    """Return what is wrong with an entry of a detection file, '' where nothing is."""
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


def _image_fault(entry: Any) -> str:
    """Return what is wrong with an entry of 'images', '' where nothing is."""
    if not isinstance(entry, dict):
        return "is not an object"
    if parse_id(entry.get("id")) is None:
        return describe_field_error(entry, "id", "a whole number")
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        found = "file_name" in entry
        return (
            "has a file_name that is not text"
            if found
            else describe_field_error(entry, "file_name", "")
        )
    wrong = [key for key in ("width", "height") if not is_number(entry.get(key))]
    return describe_field_error(entry, wrong[0], "a number of pixels") if wrong else ""


def _images(content: Any, path: Path, category: str | int, parts: Iterable[list]) -> Arrays:
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: has no list 'images'; this is not a COCO annotation file")
    for place, entry in enumerate(entries):
        fault = _image_fault(entry)
        if fault:
            name = entry.get("file_name", entry.get("id")) if isinstance(entry, dict) else entry
            raise DataError(
                f"{path}: entry {place} of 'images' ({escape_name(name, 80)}) {fault}; each needs"
                " id, "
                "file_name, width and height"
            )
    names = [entry["file_name"] for entry in entries]
    ids = np.array([parse_id(entry["id"]) for entry in entries], dtype=np.int64)
    sizes = np.array([(entry["width"], entry["height"]) for entry in entries], dtype=np.float64)
    if len(np.unique(ids)) < len(ids):
        raise DataError(f"{path}: two entries of 'images' have the same id; ids must differ")
    strange = next((name for name in names if find_name_error(name)), None)
    if strange is not None:
        raise DataError(
            f"{path}: the file_name {escape_name(strange)} of 'images' {find_name_error(strange)};"
            " names are relative to the image folder"
        )
    small = ~((sizes >= 1) & (sizes < MAX_COORD)).all(axis=1)
    if small.any():
        raise DataError(
            f"{path}: image {ids[small][0]} has width and height {sizes[small][0].tolist()};"
            " correct or remove it"
        )
    packed, found = PackedStrings.pack(names), find_category(content, category, path, parts) or {}
    person, names = parse_id(found.get("id")), found.get("keypoints")
    joint_names = (
        names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    )
    return {
        "name_buffer": packed.buffer,
        "name_ends": packed.ends,
        "image_ids": ids,
        "image_sizes": sizes,
        "person": np.array([] if person is None else [person], dtype=np.int64),
        "joint_names": np.array(joint_names, dtype=str),
    }


# ids (N,), image_index (N,), boxes (N, 4), keypoints (N, J, 3)
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _no_persons(joints: int) -> Columns:
    return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((0, 4)), np.zeros((0, joints, 3))


def parse_regular_persons(
    entries: list, person: int, position: dict[int, int], joints: int
) -> tuple[Columns, Counter[str]] | None:
    """The columns of a list of annotations and what was dropped, column by column, in a fifth of
    the time that one by one takes.

    None where an entry is not as it should be: parse_persons then finds out what is wrong with
    it, if anything.
    """
    numbers, unlabelled = 3 * joints, [0] * (3 * joints)
    try:
        categories = [entry["category_id"] for entry in entries]
        mine = [entry for entry, category in zip(entries, categories) if category == person]
        crowd = [entry.get("iscrowd", 0) for entry in mine]
        if not set(map(type, crowd)) <= {int, bool} or set(map(type, categories)) - {int}:
            return None
        single = [entry for entry, many in zip(mine, crowd) if not many]
        index = [position[entry["image_id"]] for entry in single]
        if any(len(entry["keypoints"]) != numbers for entry in single):
            return None
        labelled = [
            (entry, place)
            for entry, place in zip(single, index)
            if entry["keypoints"] != unlabelled
        ]
        kept = [(entry, place) for entry, place in labelled if entry.get("area", 1) > 0]
        columns = _columns(
            [entry for entry, _ in kept], [place for _, place in kept], joints, strict=True
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return None
    if (columns[3][:, :, 2].max(axis=1, initial=-1) <= 0).any():  # coordinates without a flag
        return None
    dropped = {
        OTHER_CATEGORY: len(entries) - len(mine),
        "crowd regions": len(mine) - len(single),
        "without labelled joints": len(single) - len(labelled),
        "of area 0": len(labelled) - len(kept),
    }
    return columns, Counter({reason: count for reason, count in dropped.items() if count})


def parse_persons(
    entries: list, person: int, position: dict[int, int], joints: int, path: Path, first: int = 0
) -> tuple[Columns, Counter[str]]:
    """The same, entry by entry; first: the place of the first entry in the file's list.

    Raises DataError, naming the annotation, for what cannot be used.
    """
    dropped: Counter[str] = Counter()
    rows: list[dict] = []
    for place, entry in enumerate(entries, first):
        unnamed = f"entry {place} of 'annotations'"
        if not isinstance(entry, dict):
            raise DataError(
                f"{path}: {unnamed} ({escape_name(entry, 60)}) is not an object; correct or remove"
                " it"
            )
        entry = parse_ids(entry, *ID_FIELDS)
        try:
            reason = _why_left_out(entry, person, position, joints)
        except _UnusableError as fault:
            has_id = entry.get("id") is not None
            name = f"annotation {escape_name(entry['id'], 60)}" if has_id else unnamed
            raise DataError(f"{path}: {name} {fault}") from None
        if reason:
            dropped[reason] += 1
        else:
            rows.append(entry)
    return _columns(rows, [position[row["image_id"]] for row in rows], joints), dropped


class _UnusableError(Exception):
    """What is wrong with an annotation."""


def _why_left_out(entry: dict, person: int, position: dict[int, int], joints: int) -> str:
    """Return why a person is left out, '' where it is used; of one left out the rest may be wrong.

    Raises:
        _UnusableError: if it can neither be used nor left out.
    """
    if parse_id(entry.get("category_id")) is None:
        raise _UnusableError(_field(entry, "category_id", "a whole number"))
    if entry["category_id"] != person:
        return OTHER_CATEGORY
    crowd = crowd_flag(entry)
    if crowd is None:
        raise _UnusableError(_field(entry, "iscrowd", "0 or 1"))
    if crowd:
        return "crowd regions"
    if "image_id" not in entry:
        raise _UnusableError(_field(entry, "image_id", "a whole number"))
    if parse_id(entry["image_id"]) not in position:
        image = escape_name(entry["image_id"], 60)
        raise _UnusableError(f"belongs to image {image}, which 'images' does not list")
    keypoints = _numbers(
        entry,
        "keypoints",
        3 * joints,
        f"keypoint numbers, expected {3 * joints} ({joints} joints x 3)",
    )
    if max(keypoints[2::3]) <= 0:  # a flag decides, whatever the coordinates are
        return "without labelled joints"
    if not is_number(entry.get("area", 1)):
        raise _UnusableError(_field(entry, "area", "a number"))
    if entry.get("area", 1) <= 0:
        return "of area 0"
    _numbers(entry, "bbox", 4, "numbers in its bbox, expected x, y, width and height")
    if parse_id(entry.get("id")) is None:
        raise _UnusableError(_field(entry, "id", "a whole number"))
    return ""


def _field(entry: dict, key: str, expected: str) -> str:
    if key in entry:
        return f"{describe_field_error(entry, key, expected)}; correct or remove it"
    return (
        f"{describe_field_error(entry, key, expected)}; a keypoint annotation needs id, image_id, "
        "category_id, bbox and keypoints"
    )


def _numbers(entry: dict, key: str, count: int, wrong_count: str) -> list:
    """Return a field that is a list of `count` numbers, or raise _UnusableError."""
    values = entry.get(key)
    if not isinstance(values, list):
        raise _UnusableError(_field(entry, key, f"a list of {count} numbers"))
    if len(values) != count:
        raise _UnusableError(f"has {len(values)} {wrong_count}")
    for place, value in enumerate(values):
        if not is_number(value):
            raise _UnusableError(
                f"has {short_repr(value, 60)} as number {place} of its {key}, expected a number; "
                "correct or remove it"
            )
    return values


def _columns(rows: list[dict], index: list[int], joints: int, strict: bool = False) -> Columns:
    """Raises ValueError and others for what is no number; `strict` refuses text that reads as
    one too.
    """
    if not rows:
        return _no_persons(joints)
    ids, boxes, keypoints = (
        np.array([row[key] for row in rows], dtype=None if strict else kind)
        for key, kind in (("id", np.int64), ("bbox", np.float64), ("keypoints", np.float64))
    )
    if (
        ids.ndim != 1
        or boxes.shape[1:] != (4,)
        or keypoints.ndim != 2
        or ids.dtype.kind != "i"
        or not {boxes.dtype.kind, keypoints.dtype.kind} <= {"i", "f"}
    ):
        raise ValueError("lists within lists")
    keypoints = keypoints.astype(np.float64, copy=False).reshape(-1, joints, 3)
    return (
        ids,
        np.array(index, dtype=np.int32),
        boxes.astype(np.float64, copy=False).reshape(-1, 4),
        keypoints,
    )


def refuse(bad: np.ndarray, ids: np.ndarray, path: Path, fault: str) -> None:
    """Raise DataError where `bad` (N,) is true of an annotation, naming the first of them."""
    if bad.any():
        more = f" and {bad.sum() - 1} more" if bad.sum() > 1 else ""
        raise DataError(f"{path}: annotation {ids[bad][0]}{more} has {fault}; correct or remove it")
