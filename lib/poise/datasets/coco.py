"""Keypoint annotations in COCO's form: persons from annotations, from a detection file, or the
images of a test set.

The dataset file says where they lie below DATASET.ROOT. Source of the selection rules: HRNet
lib/dataset/coco.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.config import data_path
from poise.config.datasets import dataset_info, require_annotation_path
from poise.datasets.coco_files import (
    DETECTIONS_HINT,
    ID_FIELDS,
    OTHER_CATEGORY,
    category_id,
    detection_error,
    read_annotations,
    read_detections,
    read_entries,
    read_images,
    refuse,
)
from poise.datasets.reader import Reader
from poise.errors import ConfigError, DataError
from poise.io.cache import Arrays, cached
from poise.io.json_file import is_number
from poise.structures.crops import BOX_MARGIN, MAX_COORD, box_to_center_scale
from poise.structures.ids import parse_id, parse_ids
from poise.structures.person_table import PackedStrings, PersonTable
from poise.structures.skeleton import DatasetInfo


def check_order(names: list[str], data: DatasetInfo, path: Path) -> None:
    """Raise DataError where the annotation file names its joints, the same ones as the dataset
    file, in another order.
    """
    ours = data.skeleton.names
    if names != list(ours) and sorted(names) == sorted(ours):
        place = next(i for i, pair in enumerate(zip(names, ours)) if pair[0] != pair[1])
        raise DataError(
            f"{path}: its joint {place} is {names[place]!r}, in {data.path} it is {ours[place]!r};"
            " `joints` there must have the annotation file's order"
        )


def read_annotated(
    path: Path,
    data: DatasetInfo,
    *,
    split: str = "",
    aspect: float = 0.75,
    margin: Sequence[float] = BOX_MARGIN,
    box_clip: str = "hrnet",
    cache: bool = False,
) -> PersonTable:
    """Read the annotated persons of a file.

    Args:
        path: the annotation file.
        data: the dataset that it belongs to.
        split: its name, for messages.
        aspect: width / height of the network's input.
        margin: factors in x and y by which the boxes grow, see box_to_center_scale.
        box_clip: how boxes are clipped to their images: 'hrnet', 'mmpose' or 'none', see _clip.
        cache: whether what was read is kept in the user's cache folder.

    Raises DataError naming the file.
    """
    joints = data.skeleton.num_keypoints
    # what the dataset file decides of the arrays is part of their kind, so that a changed one has
    # others read
    file = cached(
        path,
        f"persons of category {data.category!r} with {joints} joints",
        partial(read_annotations, path, split, joints, data.category),
        cache,
    )
    check_order(file["joint_names"].tolist(), data, path)
    ids, index = file["ids"], file["image_index"]
    boxes, usable = _clip(file["boxes"], file["image_sizes"][index], box_clip)
    refuse(~usable, ids, path, "a bbox without area inside its image")
    center, scale = box_to_center_scale(boxes, aspect, margin)
    dropped = dict(zip(file["reasons"].tolist(), file["counts"].tolist()))
    return PersonTable(
        data.skeleton,
        PackedStrings(file["name_buffer"], file["name_ends"]),
        file["image_ids"],
        index,
        center,
        boxes[:, 2:],
        scale,
        file["joints"],
        file["visible"],
        np.ones(len(ids)),
        ids,
        "gt",
        dropped,
        int(file["person"][0]),
    )


def _clip(boxes: np.ndarray, sizes: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) clipped to images of `sizes` (N, 2) by DATASET.BOX_CLIP, and which of them have
    an area left.

    'hrnet': the last pixel of a box is x + w - 1, so a clipped box is one pixel narrower than the
    given one; kept because it moves every crop a little. A box of one pixel is left with no area:
    no crop can be cut from it. 'mmpose': as wide as given. 'none': as given, as MSPN takes them; a
    box outside of its image is still refused.
    """
    if rule == "none":
        inside = (boxes[:, :2] < sizes).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] > 0).all(axis=1)
        return boxes, (boxes[:, 2:] > 0).all(axis=1) & inside
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(low + np.maximum(boxes[:, 2:] - (rule == "hrnet"), 0), sizes - 1)
    has_area = (high > low).any(axis=1) if rule == "hrnet" else (high > low).all(axis=1)
    usable = (boxes[:, 2:] > 0).all(axis=1) & (high >= low).all(axis=1) & has_area
    return np.concatenate([low, high - low], axis=1), usable


def read_detected(
    path: Path,
    data: DatasetInfo,
    file: Path,
    *,
    min_score: float = 0.0,
    aspect: float = 0.75,
    margin: Sequence[float] = BOX_MARGIN,
    cache: bool = False,
) -> PersonTable:
    """Read the persons of a detection file, without keypoints.

    Args:
        path: the annotation file, for the list of images.
        data: the dataset that it belongs to.
        file: the detection file.
        min_score: detections with a lower score are dropped.
        aspect, margin, cache: see read_annotated.

    Raises DataError naming the file.
    """
    kind = f"images of category {data.category!r}"
    images = cached(path, kind, partial(read_images, path, data.category), cache)
    person = category_id(images, data.category)
    columns = cached(file, "detections", partial(read_detections, file, DETECTIONS_HINT), cache)
    if columns is not None:
        values, dropped = filter_detections(columns, images["image_ids"], person, min_score)
    else:
        values, dropped = filter_detection_entries(
            read_entries(file, DETECTIONS_HINT),
            images["image_ids"],
            person,
            min_score,
            file,
            DETECTIONS_HINT,
        )
    named = {
        OTHER_CATEGORY: dropped["category"],
        f"scores below TEST.IMAGE_THRE {min_score}": dropped["score"],
        f"of images that {path.name} does not list": dropped["image"],
    }
    bad = ~(np.abs(values[:, 2:]) < MAX_COORD).all(axis=1)  # NaN is not below either
    if bad.any():
        raise DataError(
            f"{file}: entry {int(values[bad][0, 0])} has a bbox or score that is not finite or"
            " beyond any image; correct or remove it"
        )
    center, scale = box_to_center_scale(values[:, 3:], aspect, margin)
    table = PersonTable(
        data.skeleton,
        PackedStrings(images["name_buffer"], images["name_ends"]),
        images["image_ids"],
        values[:, 1].astype(np.int32),
        center,
        values[:, 5:],
        scale,
        np.zeros((len(values), data.skeleton.num_keypoints, 2), np.float32),
        np.zeros((len(values), data.skeleton.num_keypoints), np.float32),
        values[:, 2],
        values[:, 0].astype(np.int64),
        file.stem,
        {reason: count for reason, count in named.items() if count},
        person,
        has_keypoints=False,
    )
    # both conditions on all rows, so that a box that fails both is counted once
    has_area = (values[:, 5:] > 0).all(axis=1)
    inside = (
        (values[:, 3:5] < images["image_sizes"][table.image_index])
        & (values[:, 3:5] + values[:, 5:] > 0)
    ).all(axis=1)
    return table.select(has_area, "boxes without area").select(
        inside[has_area], "boxes outside their image"
    )


def filter_detections(
    columns: Arrays, image_ids: np.ndarray, person: int, threshold: float
) -> tuple[np.ndarray, dict[str, int]]:
    """Persons of listed images with a score of `threshold` or more, and how many are not; columns:
    see read_detections.

    Returns (N, 7) float64: position in the file, place of the image in image_ids (M,), score, x, y,
    width, height.
    """
    order = np.argsort(image_ids)
    place = order[
        np.minimum(np.searchsorted(image_ids, columns["image_id"], sorter=order), len(order) - 1)
    ]
    another = columns["category"] != person
    low = ~another & (columns["score"] < threshold)
    unlisted = ~another & ~low & (image_ids[place] != columns["image_id"])
    kept = np.flatnonzero(~(another | low | unlisted))
    values = np.column_stack([kept, place[kept], columns["score"][kept], columns["box"][kept]])
    return values.astype(np.float64).reshape(-1, 7), {
        "category": int(another.sum()),
        "score": int(low.sum()),
        "image": int(unlisted.sum()),
    }


def filter_detection_entries(
    entries: list, image_ids: np.ndarray, person: int, threshold: float, file: Path, mend: str
) -> tuple[np.ndarray, dict[str, int]]:
    """The same of entries that are not all alike. Raises DataError for one that is no detection,
    if it is not dropped anyway.
    """
    position = {image_id: index for index, image_id in enumerate(image_ids.tolist())}
    dropped = {"category": 0, "score": 0, "image": 0}
    rows = []
    for number, entry in enumerate(entries):
        entry = parse_ids(entry, *ID_FIELDS)
        fault = detection_error(entry)
        if fault and not _dropped_anyway(entry, person, threshold):
            raise DataError(f"{file}: entry {number} is not a detection (it {fault}); {mend}")
        if entry["category_id"] != person:
            dropped["category"] += 1
        elif entry["score"] < threshold:
            dropped["score"] += 1
        elif entry["image_id"] not in position:
            dropped["image"] += 1
        else:
            rows.append((number, position[entry["image_id"]], entry["score"], *entry["bbox"]))
    return np.array(rows, dtype=np.float64).reshape(-1, 7), dropped


def _dropped_anyway(entry: object, person: int, threshold: float) -> bool:
    """Return whether a faulty entry is of another category, or has too low a score."""
    if not isinstance(entry, dict) or parse_id(entry.get("category_id")) is None:
        return False
    if entry["category_id"] != person:
        return True
    return is_number(entry.get("score")) and entry["score"] < threshold


def read_table(
    cfg: CfgNode, split: str, *, detections: bool, margin: Sequence[float] = BOX_MARGIN
) -> PersonTable:
    """Read all persons of a split.

    They are the annotated ones, or those of TEST.COCO_BBOX_FILE when `detections`. margin: see
    read_annotated. Raises DataError or ConfigError naming the file or key.
    """
    path, data = require_annotation_path(cfg, split), dataset_info(cfg)
    aspect = cfg.MODEL.IMAGE_SIZE[0] / cfg.MODEL.IMAGE_SIZE[1]
    file = path
    if not detections:
        table = read_annotated(
            path,
            data,
            split=split,
            aspect=aspect,
            margin=margin,
            box_clip=cfg.DATASET.BOX_CLIP,
            cache=cfg.DATASET.CACHE,
        )
    elif not cfg.TEST.COCO_BBOX_FILE:
        raise ConfigError(
            "TEST.COCO_BBOX_FILE is empty; give a detection file, or TEST.USE_GT_BBOX True to test"
            " with ground-truth boxes; tools/make_boxes.py writes a detection file"
        )
    else:
        file = Path(data_path(cfg, cfg.TEST.COCO_BBOX_FILE))
        table = read_detected(
            path,
            data,
            file,
            min_score=cfg.TEST.IMAGE_THRE,
            aspect=aspect,
            margin=margin,
            cache=cfg.DATASET.CACHE,
        )
    if not len(table):
        raise DataError(f"{file}: no person is left to use; {table.summary()}")
    return table


READER = Reader(read_table, has_detections=True, box_ids_per_image=True)
