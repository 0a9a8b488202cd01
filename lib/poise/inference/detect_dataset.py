"""A detection file of a set, written with a person detector: nobody depends on one that was
lost.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import cv2
from yacs.config import CfgNode

from poise.config import data_path
from poise.config.datasets import dataset_info, image_folder, require_annotation_path
from poise.datasets import READERS
from poise.datasets.coco_files import category_id, read_images
from poise.errors import ConfigError, DataError, short_repr, single_line
from poise.inference.detectors import Detector
from poise.io.files import atomic_write
from poise.structures.person_table import PackedStrings

log = logging.getLogger(__name__)

_AT_ONCE = 4


def output_path(cfg: CfgNode, out: str) -> Path:
    """Where the file goes: `out`, else TEST.COCO_BBOX_FILE. Raises ConfigError where both are
    empty.
    """
    if not out and not cfg.TEST.COCO_BBOX_FILE:
        raise ConfigError("--out: give the file to write, or name it in TEST.COCO_BBOX_FILE")
    return Path(out or data_path(cfg, cfg.TEST.COCO_BBOX_FILE))


def write_detections(
    cfg: CfgNode, split: str, detect: Detector, path: Path, *, finds_persons: bool = False
) -> tuple[int, int, int]:
    """Write what `detect` finds in the images of a set as COCO's detections; (boxes, images, images
    that could not be read).

    An entry has the image's file_name too, by which tools/demo.py finds it.

    finds_persons: that is known of the detector, so that another category is warned of.

    Each image is turned as DATASET.EXIF says, as in training and tests. Raises DataError where no
    image can be read, and what reading the set raises.
    """
    import orjson
    from tqdm import tqdm

    data = dataset_info(cfg)
    if not READERS[data.format].has_detections:
        raise ConfigError(
            f"{data.path}: detection files are for annotations in COCO's form; the boxes of"
            f" {data.format} are in its annotations"
        )
    file = require_annotation_path(cfg, split)
    images, folder = read_images(file, data.category), image_folder(cfg, split)
    folder.check()
    names, ids = (
        PackedStrings(images["name_buffer"], images["name_ends"]),
        images["image_ids"].tolist(),
    )
    category = category_id(images, data.category)
    if finds_persons and data.category != "person":
        log.warning(
            "%s",
            "the detector finds persons; its boxes are written as those of"
            f" {short_repr(data.category)}, the category of {data.path}",
        )
    boxes = unread = 0
    with atomic_write(path) as part, open(part, "wb") as stream:
        stream.write(b"[")
        for begin in tqdm(
            range(0, len(ids), _AT_ONCE),
            desc="detection",
            unit="batch",
            disable=None,
            file=sys.stderr,
        ):
            pictures, of = [], []
            for place in range(begin, min(begin + _AT_ONCE, len(ids))):
                try:
                    pictures.append(cv2.cvtColor(folder.read(names[place]), cv2.COLOR_BGR2RGB))
                    of.append({"image_id": ids[place], "file_name": names[place]})
                except DataError as error:
                    unread += 1
                    if unread <= 3:
                        log.warning("%s", f"left out: {single_line(error)}")
            for image, (found, scores) in zip(of, detect(pictures) if pictures else ()):
                for (left, top, right, bottom), score in zip(found.tolist(), scores.tolist()):
                    box = [round(value, 3) for value in (left, top, right - left, bottom - top)]
                    entry = {
                        **image,
                        "category_id": category,
                        "bbox": box,
                        "score": round(score, 6),
                    }
                    stream.write((b",\n" if boxes else b"\n") + orjson.dumps(entry))
                    boxes += 1
        stream.write(b"\n]\n")
        if unread == len(ids):
            raise DataError(
                f"{folder.location}: none of the {len(ids)} images of {file} can be read"
            )
    return boxes, len(ids) - unread, unread
