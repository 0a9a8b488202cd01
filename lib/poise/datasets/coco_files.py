"""What COCO's annotation and detection files hold, as arrays: whatever settings a run has, so that it can be kept for the next run."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from poise.archives import name_fault
from poise.datasets.array_cache import Arrays
from poise.datasets.table import PackedNames
from poise.errors import ConfigError, DataError, shown
from poise.garbage import no_garbage_collection
from poise.geometry import FARTHEST
from poise.json_files import read_in_parts, read_json
from poise.skeleton import find_category

_LARGEST_BOX = 1e15       # it may reach beyond its image, which it is clipped to
OF_ANOTHER = "of another category"     # a reason for which an annotation is dropped
MEND = "check DATASET.ROOT and the set's name"


def is_id(value: Any) -> bool:
    """Whether a value of a JSON file can be an id: a whole number that 64 bits hold."""
    return type(value) is int and -2**63 <= value < 2**63


def category_id(file: Arrays, category: str | int) -> int:
    """The id of the persons' category. file: of read_images. Where it has no such category: `category` if that is an id, else COCO's 1."""
    return int(file["person"][0]) if len(file["person"]) else category if isinstance(category, int) else 1


def read_images(path: Path, category: str | int) -> Arrays:
    """The images of an annotation file. category: name or id of the persons' category. Raises DataError, naming the file.

    name_buffer, name_ends: see PackedNames. image_ids (M,) int64. image_sizes (M, 2) float64, width and height in pixels.
    person: the id of the category; empty where the file has no such category. joint_names: of the category, as far as the file tells.
    """
    return _images(read_json(path, "annotation file", MEND), path, category)


def read_annotations(path: Path, split: str, joints: int, category: str | int) -> Arrays:
    """The same and the labelled persons of so many joints, without crowd regions and those that nothing can be learned from. Raises DataError or ConfigError.

    ids (N,) int64. image_index (N,) int32. boxes (N, 4) float64 as annotated. joints (N, J, 2) and visible (N, J) float32: see PersonTable.
    reasons, counts: what was dropped.
    """
    with no_garbage_collection():
        return read_in_parts(path, "annotations", lambda content, parts: _annotations(content, parts, path, split, joints, category), "annotation file", MEND)


def _annotations(content: Any, parts: Iterator[list], path: Path, split: str, joints: int, category: str | int) -> Arrays:
    arrays = _images(content, path, category)
    if "annotations" not in content:
        raise ConfigError(f"{path}: set {split} has no annotations, so no ground-truth boxes; set TEST.USE_GT_BBOX False and "
                          "TEST.COCO_BBOX_FILE to a detection file")
    if not len(arrays["person"]):
        raise DataError(f"{path}: has no category {category!r} with an id; Poise trains on one category, which `category` of the dataset file names")
    if not isinstance(content["annotations"], list):
        raise DataError(f"{path}: 'annotations' is not a list; this is not a COCO annotation file")
    person, position = int(arrays["person"][0]), {image_id: index for index, image_id in enumerate(arrays["image_ids"].tolist())}
    dropped: Counter[str] = Counter()
    found = [_no_persons(joints)]
    for entries in parts:
        columns, reasons = regular_persons(entries, person, position, joints) or persons_one_by_one(entries, person, position, joints, path)
        found.append(columns)
        dropped.update(reasons)
    ids, index, boxes, keypoints = (np.concatenate(column) for column in zip(*found))
    refuse(~(np.abs(boxes) < _LARGEST_BOX).all(axis=1), ids, path, "a bbox that is not finite or beyond any image")
    # 1e300 is finite, but not in the float32 that the table holds
    refuse(~(np.abs(keypoints) < FARTHEST).all(axis=(1, 2)), ids, path, "a keypoint that is not finite or beyond any image")
    reasons = sorted(dropped)
    return arrays | {
        "ids": ids, "image_index": index, "boxes": boxes, "joints": keypoints[:, :, :2].astype(np.float32),
        "visible": np.clip(keypoints[:, :, 2], 0, 2).astype(np.float32), "reasons": np.array(reasons, dtype=str),
        "counts": np.array([dropped[reason] for reason in reasons], dtype=np.int64)}


def read_detections(path: Path, mend: str) -> Arrays | None:
    """category, image_id (D,) int64, score (D,) and box (D, 4) float64 of a detection file; None where an entry has something else.

    Raises DataError, naming the file, where it is no list in JSON.
    """
    with no_garbage_collection():
        return detection_columns(read_entries(path, mend))


def read_entries(path: Path, mend: str) -> list:
    """The entries of a detection file as they are. Raises DataError."""
    entries = read_json(path, "detection file", mend)
    if not isinstance(entries, list):
        raise DataError(f"{path}: the detection file is not a list; {mend}")
    return entries


def detection_columns(entries: list) -> Arrays | None:
    """What read_detections returns, of the entries."""
    try:
        columns = {
            "category": np.array([entry["category_id"] for entry in entries]), "image_id": np.array([entry["image_id"] for entry in entries]),
            "score": np.array([entry["score"] for entry in entries]), "box": np.array([entry["bbox"] for entry in entries])}
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    shapes = {"category": (len(entries),), "image_id": (len(entries),), "score": (len(entries),), "box": (len(entries), 4)}
    whole = {"category", "image_id"}
    if any(array.shape != shapes[name] or array.dtype.kind not in ("i" if name in whole else "if") for name, array in columns.items()):
        return None
    return {name: array.astype(np.int64 if name in whole else np.float64) for name, array in columns.items()}


def _images(content: Any, path: Path, category: str | int) -> Arrays:
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: has no list 'images'; this is not a COCO annotation file")
    try:
        names = [entry["file_name"] for entry in entries]
        ids = np.array([entry["id"] for entry in entries], dtype=np.int64)
        sizes = np.array([(entry["width"], entry["height"]) for entry in entries], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: an entry of 'images' lacks or spoils id, file_name, width or height ({shown(error)})") from None
    if len(np.unique(ids)) < len(ids):
        raise DataError(f"{path}: two entries of 'images' have the same id; ids must differ")
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: an entry of 'images' has a file_name that is not text")
    strange = next((name for name in names if name_fault(name)), None)
    if strange is not None:
        raise DataError(f"{path}: the file_name {shown(strange)} of 'images' {name_fault(strange)}; names are relative to the image folder")
    small = ~((sizes >= 1) & (sizes < FARTHEST)).all(axis=1)
    if small.any():
        raise DataError(f"{path}: image {ids[small][0]} has width and height {sizes[small][0].tolist()}; mend or remove it")
    packed, found = PackedNames.of(names), find_category(content, category)
    person, names = (found or {}).get("id"), (found or {}).get("keypoints")
    joint_names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    return {"name_buffer": packed.buffer, "name_ends": packed.ends, "image_ids": ids, "image_sizes": sizes,
            "person": np.array([person] if is_id(person) else [], dtype=np.int64), "joint_names": np.array(joint_names, dtype=str)}


Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]     # ids (N,), image_index (N,), boxes (N, 4), keypoints (N, J, 3)


def _no_persons(joints: int) -> Columns:
    return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((0, 4)), np.zeros((0, joints, 3))


def regular_persons(entries: list, person: int, position: dict[int, int], joints: int) -> tuple[Columns, Counter[str]] | None:
    """The columns of a list of annotations and what was dropped, column by column, in a fifth of the time that one by one takes.

    None where an entry is not as it should be: persons_one_by_one then finds out what is wrong with it, if anything.
    """
    numbers, unlabelled = 3 * joints, [0] * (3 * joints)
    try:
        mine = [entry for entry in entries if entry["category_id"] == person]
        single = [entry for entry in mine if not entry.get("iscrowd", 0)]
        index = [position[entry["image_id"]] for entry in single]
        if any(len(entry["keypoints"]) != numbers for entry in single):
            return None
        labelled = [(entry, place) for entry, place in zip(single, index) if entry["keypoints"] != unlabelled]
        kept = [(entry, place) for entry, place in labelled if entry.get("area", 1) > 0]
        columns = _columns([entry for entry, _ in kept], [place for _, place in kept], joints, strict=True)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return None
    if (columns[3].max(axis=(1, 2), initial=-1) == 0).any():      # zeros and negative numbers
        return None
    dropped = {OF_ANOTHER: len(entries) - len(mine), "crowd regions": len(mine) - len(single),
               "without labelled joints": len(single) - len(labelled), "of area 0": len(labelled) - len(kept)}
    return columns, Counter({reason: count for reason, count in dropped.items() if count})


def persons_one_by_one(entries: list, person: int, position: dict[int, int], joints: int, path: Path) -> tuple[Columns, Counter[str]]:
    """The same, entry by entry. Raises DataError, naming the annotation, for what cannot be used."""
    dropped: Counter[str] = Counter()
    rows: list[dict] = []
    for entry in entries:
        reason = None
        try:
            if entry["category_id"] != person:
                reason = OF_ANOTHER
            elif entry.get("iscrowd", 0):
                reason = "crowd regions"
            elif entry["image_id"] not in position:
                raise DataError(f"{path}: annotation {shown(entry.get('id'))} belongs to image {shown(entry['image_id'])}, which 'images' does not list")
            elif len(entry["keypoints"]) != 3 * joints:
                raise DataError(f"{path}: annotation {shown(entry.get('id'))} has {len(entry['keypoints'])} keypoint numbers, "
                                f"expected {3 * joints} ({joints} joints x 3)")
            elif max(entry["keypoints"]) == 0:
                reason = "without labelled joints"
            elif entry.get("area", 1) <= 0:
                reason = "of area 0"
            elif len(entry["bbox"]) != 4:
                raise DataError(f"{path}: annotation {shown(entry.get('id'))} has {len(entry['bbox'])} numbers in its bbox, "
                                "expected x, y, width and height")
        except (KeyError, TypeError, AttributeError) as error:
            number = entry.get("id") if isinstance(entry, dict) else entry
            raise DataError(f"{path}: annotation {shown(number)} lacks or spoils {shown(error)}; a keypoint annotation needs id, image_id, category_id, "
                            "bbox and keypoints") from None
        if reason:
            dropped[reason] += 1
        else:
            rows.append(entry)
    try:
        return _columns(rows, [position[row["image_id"]] for row in rows], joints), dropped
    except (KeyError, TypeError, ValueError, OverflowError):
        for row in rows:    # one by one, to name the annotation
            try:
                np.array(int(row["id"]), dtype=np.int64)
                _ = [float(value) for value in (*row["bbox"], *row["keypoints"])]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise DataError(f"{path}: annotation {shown(row.get('id'))} (image {shown(row['image_id'])}): id, bbox and keypoints must be plain numbers "
                                f"({shown(error)})") from None
        raise


def _columns(rows: list[dict], index: list[int], joints: int, strict: bool = False) -> Columns:
    """Raises ValueError and others for what is no number; `strict` refuses text that reads as one too."""
    if not rows:
        return _no_persons(joints)
    ids, boxes, keypoints = (np.array([row[key] for row in rows], dtype=None if strict else kind)
                             for key, kind in (("id", np.int64), ("bbox", np.float64), ("keypoints", np.float64)))
    if ids.ndim != 1 or boxes.shape[1:] != (4,) or keypoints.ndim != 2 or ids.dtype.kind != "i" or not {boxes.dtype.kind, keypoints.dtype.kind} <= {"i", "f"}:
        raise ValueError("lists within lists")
    keypoints = keypoints.astype(np.float64, copy=False).reshape(-1, joints, 3)
    return ids, np.array(index, dtype=np.int32), boxes.astype(np.float64, copy=False).reshape(-1, 4), keypoints


def refuse(bad: np.ndarray, ids: np.ndarray, path: Path, fault: str) -> None:
    """Raise DataError where `bad` (N,) is true of an annotation, naming the first of them."""
    if bad.any():
        more = f" and {bad.sum() - 1} more" if bad.sum() > 1 else ""
        raise DataError(f"{path}: annotation {ids[bad][0]}{more} has {fault}; mend or remove it")
