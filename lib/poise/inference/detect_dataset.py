"""Run a person detector over a dataset and write COCO detections."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from yacs.config import CfgNode

from poise.config import data_path
from poise.config.datasets import dataset_info, image_folder, require_annotation_path
from poise.datasets import READERS
from poise.datasets.coco_files import category_id, read_images
from poise.errors import ConfigError, DataError, short_repr, single_line
from poise.inference.detectors import Detector
from poise.io.files import atomic_write
from poise.io.image_folder import ImageFolder
from poise.structures.person_table import PackedStrings

log = logging.getLogger(__name__)

_BATCH_SIZE = 4
_MAX_WARNINGS = 3  # of images that cannot be read


def output_path(cfg: CfgNode, out: str) -> Path:
    """Return the file to write: `out`, else TEST.COCO_BBOX_FILE. Raises ConfigError."""
    if not out and not cfg.TEST.COCO_BBOX_FILE:
        raise ConfigError("--out: missing; give the file to write, or set TEST.COCO_BBOX_FILE")
    return Path(out or data_path(cfg, cfg.TEST.COCO_BBOX_FILE))


def write_detections(
    cfg: CfgNode, split: str, detect: Detector, path: Path, *, finds_persons: bool = False
) -> tuple[int, int, int]:
    """Write the detections in the images of a split as COCO detections.

    Entries have file_name too, which tools/demo.py uses. Images are rotated as DATASET.EXIF says,
    as in training and tests.

    Args:
        cfg: the experiment.
        split: name of the split.
        detect: the detector.
        path: file to write.
        finds_persons: whether the detector detects persons; warns if the dataset has another
            category.

    Returns: numbers of boxes, of images, and of images that could not be read.

    Raises DataError if no image can be read.
    """
    import orjson
    from tqdm import tqdm

    data = dataset_info(cfg)
    if not READERS[data.format].has_detections:
        raise ConfigError(
            f"{data.path}: format {data.format} does not support detection files; its boxes are in"
            " the annotations"
        )
    file = require_annotation_path(cfg, split)
    listed = read_images(file, data.category)
    folder = image_folder(cfg, split)
    folder.check()
    names = PackedStrings(listed["name_buffer"], listed["name_ends"])
    ids = listed["image_ids"].tolist()
    category = category_id(listed, data.category)
    if finds_persons and data.category != "person":
        log.warning(
            "%s",
            f"the detector detects persons; its boxes are written as category"
            f" {short_repr(data.category)} of {data.path}",
        )
    num_boxes = num_unread = 0
    with atomic_write(path) as part, open(part, "wb") as stream:
        stream.write(b"[")
        batches = range(0, len(ids), _BATCH_SIZE)
        for begin in tqdm(batches, desc="detection", unit="batch", disable=None, file=sys.stderr):
            rows = range(begin, min(begin + _BATCH_SIZE, len(ids)))
            heads = [
                {"image_id": ids[row], "file_name": names[row], "category_id": category}
                for row in rows
            ]
            images, heads, errors = _read_images(folder, heads)
            for error in errors[: max(_MAX_WARNINGS - num_unread, 0)]:
                log.warning("%s", f"skipped: {single_line(error)}")
            num_unread += len(errors)
            detections = detect(images) if images else []
            for head, (boxes, scores) in zip(heads, detections):
                for entry in _entries(head, boxes, scores):
                    stream.write((b",\n" if num_boxes else b"\n") + orjson.dumps(entry))
                    num_boxes += 1
        stream.write(b"\n]\n")
        if num_unread == len(ids):
            raise DataError(
                f"{folder.location}: none of the {len(ids)} images of {file} can be read"
            )
    return num_boxes, len(ids) - num_unread, num_unread


def _read_images(
    folder: ImageFolder, heads: Sequence[dict[str, Any]]
) -> tuple[list[np.ndarray], list[dict[str, Any]], list[DataError]]:
    """Return RGB images and heads of the images that can be read, and the errors of others."""
    images = []
    read = []
    errors = []
    for head in heads:
        try:
            images.append(cv2.cvtColor(folder.read(head["file_name"]), cv2.COLOR_BGR2RGB))
            read.append(head)
        except DataError as error:
            errors.append(error)
    return images, read, errors


def _entries(head: dict[str, Any], boxes: np.ndarray, scores: np.ndarray) -> Iterator[dict]:
    """Yield COCO detections of boxes (N, 4) left, top, right, bottom and scores (N,)."""
    for (left, top, right, bottom), score in zip(boxes.tolist(), scores.tolist()):
        bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        yield {**head, "bbox": bbox, "score": round(score, 6)}
