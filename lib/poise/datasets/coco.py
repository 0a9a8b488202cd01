"""COCO keypoints: persons from annotations, from a detection file, or the images of a test set.

Layout below DATASET.ROOT: annotations/person_keypoints_<split>.json (image_info_<split>.json for test sets), images/<split>/
or images/<split>.zip (images/test2017 for every test split). Source of the selection rules: HRNet lib/dataset/coco.py.
"""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from poise.config import data_path
from poise.datasets.reading import ImageFolder
from poise.datasets.table import PackedNames, PersonTable
from poise.errors import ConfigError, DataError
from poise.geometry import BOX_MARGIN, box_to_center_scale
from poise.json_files import read_json
from poise.skeleton import COCO

log = logging.getLogger(__name__)

MOST_PIXELS = 1e7


def annotation_path(cfg: CfgNode, split: str) -> Path:
    """The annotation file of a split; test sets have only image_info files."""
    prefix = "image_info" if "test" in split else "person_keypoints"
    return Path(data_path(cfg, cfg.DATASET.ROOT)) / "annotations" / f"{prefix}_{split}.json"


def image_folder(cfg: CfgNode, split: str) -> ImageFolder:
    """Where the images of a split lie; test-dev2017 is part of test2017."""
    name = "test2017" if "test" in split else split
    ending = ".zip" if cfg.DATASET.DATA_FORMAT == "zip" else ""
    return ImageFolder(Path(data_path(cfg, cfg.DATASET.ROOT)) / "images" / f"{name}{ending}", exif=cfg.DATASET.EXIF)


def read_table(cfg: CfgNode, split: str, *, detections: bool, margin=BOX_MARGIN) -> PersonTable:
    """All persons of a split: the annotated ones, or those of TEST.COCO_BBOX_FILE when `detections`. margin: see box_to_center_scale.

    Raises DataError or ConfigError, naming the file, for what is missing or cannot be right.
    """
    path = annotation_path(cfg, split)
    content = read_json(path, "annotation file", "check DATASET.ROOT and the set's name")
    images = _images(content, path)
    aspect = cfg.MODEL.IMAGE_SIZE[0] / cfg.MODEL.IMAGE_SIZE[1]
    if detections:
        table = _detections(cfg, images, path, aspect, margin, _person_category(content) or 1)
    elif "annotations" not in content:
        raise ConfigError(f"{path}: set {split} has no annotations, so no ground-truth boxes; set TEST.USE_GT_BBOX False and "
                          "TEST.COCO_BBOX_FILE to a detection file")
    else:
        table = _annotated(content, images, path, aspect, margin, cfg.DATASET.BOX_CLIP)
    if not len(table):
        raise DataError(f"{data_path(cfg, cfg.TEST.COCO_BBOX_FILE) if detections else path}: no person is left to use; {table.summary()}")
    return table


class _Images:
    """Names, ids and sizes of the images of an annotation file."""

    def __init__(self, names: list[str], ids: np.ndarray, sizes: np.ndarray):
        self.names, self.ids, self.sizes = PackedNames(names), ids, sizes
        self.position = {int(image_id): index for index, image_id in enumerate(ids)}


def _images(content: Any, path: Path) -> _Images:
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: has no list 'images'; this is not a COCO annotation file")
    try:
        names = [entry["file_name"] for entry in entries]
        ids = np.array([entry["id"] for entry in entries], dtype=np.int64)
        sizes = np.array([(entry["width"], entry["height"]) for entry in entries], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: an entry of 'images' lacks or spoils id, file_name, width or height ({error})") from None
    if len(np.unique(ids)) < len(ids):
        raise DataError(f"{path}: two entries of 'images' have the same id; ids must differ")
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: an entry of 'images' has a file_name that is not text")
    return _Images(names, ids, sizes)


def _person_category(content: dict) -> int | None:
    """The id of the category 'person'; None where the file names no such category."""
    categories = content.get("categories")
    named = [c for c in categories if isinstance(c, dict) and c.get("name") == "person"] if isinstance(categories, list) else []
    found = named[0].get("id") if named else None
    return found if isinstance(found, int) else None


def _annotated(content: dict, images: _Images, path: Path, aspect: float, margin, clip: str) -> PersonTable:
    person, entries = _person_category(content), content["annotations"]
    if person is None:
        raise DataError(f"{path}: has no category 'person' with an id; Poise trains on the persons of a COCO keypoint file")
    if not isinstance(entries, list):
        raise DataError(f"{path}: 'annotations' is not a list; this is not a COCO annotation file")
    dropped: dict[str, int] = {}
    rows: list[dict] = []
    for entry in entries:
        reason = None
        try:
            if entry["category_id"] != person:
                reason = "of another category"
            elif entry.get("iscrowd", 0):
                reason = "crowd regions"
            elif entry["image_id"] not in images.position:
                raise DataError(f"{path}: annotation {entry.get('id')} belongs to image {entry['image_id']}, which 'images' does not list")
            elif len(entry["keypoints"]) != 3 * COCO.num_joints:
                raise DataError(f"{path}: annotation {entry.get('id')} has {len(entry['keypoints'])} keypoint numbers, "
                                f"expected {3 * COCO.num_joints} ({COCO.num_joints} joints x 3)")
            elif max(entry["keypoints"]) == 0:
                reason = "without labelled joints"
            elif entry.get("area", 1) <= 0:
                reason = "of area 0"
            elif len(entry["bbox"]) != 4:
                raise DataError(f"{path}: annotation {entry.get('id')} has {len(entry['bbox'])} numbers in its bbox, "
                                "expected x, y, width and height")
        except (KeyError, TypeError, AttributeError) as error:
            number = entry.get("id") if isinstance(entry, dict) else entry
            raise DataError(f"{path}: annotation {number} lacks or spoils {error}; a keypoint annotation needs id, image_id, category_id, "
                            "bbox and keypoints") from None
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            rows.append(entry)
    try:
        ids, boxes, keypoints = _numbers(rows)
    except (KeyError, TypeError, ValueError, OverflowError):
        for row in rows:    # one by one, to name the annotation
            try:
                np.array(int(row["id"]), dtype=np.int64)
                _ = [float(value) for value in (*row["bbox"], *row["keypoints"])]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise DataError(f"{path}: annotation {row.get('id')} (image {row['image_id']}): id, bbox and keypoints must be plain numbers "
                                f"({error})") from None
        raise
    index = np.array([images.position[row["image_id"]] for row in rows], dtype=np.int32)
    _refuse(~np.isfinite(boxes).all(axis=1), ids, path, "a bbox that is not finite")
    # 1e300 is finite, but not in the float32 that the table holds
    _refuse(~(np.abs(keypoints) < MOST_PIXELS).all(axis=(1, 2)), ids, path, "a keypoint that is not finite")
    boxes, usable = _clip(boxes, images.sizes[index], clip)
    _refuse(~usable, ids, path, "a bbox without area inside its image")
    center, scale = box_to_center_scale(boxes, aspect, margin)
    return PersonTable(
        COCO, images.names, images.ids, index, center, boxes[:, 2:], scale, keypoints[:, :, :2].astype(np.float32),
        np.clip(keypoints[:, :, 2], 0, 2).astype(np.float32), np.ones(len(ids)), ids, "gt", dropped, person)


def _numbers(rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids (N,) int64, boxes (N, 4) and keypoints (N, J, 3) float64 of N annotations. Raises ValueError and others for what is no number."""
    ids = np.array([row["id"] for row in rows], dtype=np.int64)
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
    keypoints = np.array([row["keypoints"] for row in rows], dtype=np.float64)
    if rows and (ids.ndim, boxes.ndim, keypoints.ndim) != (1, 2, 2):
        raise ValueError("lists within lists")
    return ids, boxes.reshape(-1, 4), keypoints.reshape(-1, COCO.num_joints, 3)


def _refuse(bad: np.ndarray, ids: np.ndarray, path: Path, fault: str) -> None:
    if bad.any():
        more = f" and {bad.sum() - 1} more" if bad.sum() > 1 else ""
        raise DataError(f"{path}: annotation {ids[bad][0]}{more} has {fault}; mend or remove it")


def _clip(boxes: np.ndarray, sizes: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) clipped to images of `sizes` (N, 2) by DATASET.BOX_CLIP, and which of them have an area left.

    'hrnet': the last pixel of a box is x + w - 1, so a clipped box is one pixel narrower than the given one; kept because it
    moves every crop a little. A box of one pixel is left with no area: no crop can be cut from it. 'mmpose': as wide as given.
    'none': as given, as MSPN takes them; a box outside of its image is still refused.
    """
    if rule == "none":
        inside = (boxes[:, :2] < sizes).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] > 0).all(axis=1)
        return boxes, (boxes[:, 2:] > 0).all(axis=1) & inside
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(low + np.maximum(boxes[:, 2:] - (rule == "hrnet"), 0), sizes - 1)
    has_area = (high > low).any(axis=1) if rule == "hrnet" else (high > low).all(axis=1)
    usable = (boxes[:, 2:] > 0).all(axis=1) & (high >= low).all(axis=1) & has_area
    return np.concatenate([low, high - low], axis=1), usable


def _detections(cfg: CfgNode, images: _Images, path: Path, aspect: float, margin, person: int) -> PersonTable:
    if not cfg.TEST.COCO_BBOX_FILE:
        raise ConfigError("TEST.COCO_BBOX_FILE is empty; give a detection file, or TEST.USE_GT_BBOX True to test with ground-truth boxes")
    file = Path(data_path(cfg, cfg.TEST.COCO_BBOX_FILE))
    mend = "TEST.COCO_BBOX_FILE takes a JSON list of {image_id, category_id, bbox, score}; README.md says where to get it; TEST.USE_GT_BBOX True does without"
    entries = read_json(file, "detection file", mend)
    if not isinstance(entries, list):
        raise DataError(f"{file}: the detection file is not a list; {mend}")
    entries_by_reason: dict[str, int] = {}
    rows = []
    try:
        for position, entry in enumerate(entries):
            if entry["category_id"] != person:
                reason = "of another category"
            elif entry["score"] < cfg.TEST.IMAGE_THRE:
                reason = f"scores below TEST.IMAGE_THRE {cfg.TEST.IMAGE_THRE}"
            elif entry["image_id"] not in images.position:
                reason = f"of images that {path.name} does not list"
            else:
                x, y, width, height = map(float, entry["bbox"])
                rows.append((position, images.position[entry["image_id"]], float(entry["score"]), x, y, width, height))
                continue
            entries_by_reason[reason] = entries_by_reason.get(reason, 0) + 1
        values = np.array(rows, dtype=np.float64).reshape(-1, 7)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{file}: entry {position} is not a detection ({error}); {mend}") from None
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataError(f"{file}: entry {int(values[bad][0, 0])} has a bbox or score that is not finite; mend or remove it")
    center, scale = box_to_center_scale(values[:, 3:], aspect, margin)
    table = PersonTable(COCO, images.names, images.ids, values[:, 1].astype(np.int32), center, values[:, 5:], scale, None, None, values[:, 2],
                        values[:, 0].astype(np.int64), file.stem, entries_by_reason, person)
    # both conditions on all rows, so that a box that fails both is counted once
    has_area = (values[:, 5:] > 0).all(axis=1)
    inside = ((values[:, 3:5] < images.sizes[table.image_index]) & (values[:, 3:5] + values[:, 5:] > 0)).all(axis=1)
    return table.select(has_area, "boxes without area").select(inside[has_area], "boxes outside their image")
