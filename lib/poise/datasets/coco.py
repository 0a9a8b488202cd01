"""Read persons in COCO's format: annotated, detected, or the images of a test set.

Source of the selection rules: HRNet lib/dataset/coco.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
    raise_if_any,
    read_annotations,
    read_detections,
    read_entries,
    read_images,
)
from poise.datasets.reader import Reader
from poise.errors import ConfigError, DataError
from poise.io.cache import Arrays, cached
from poise.io.json_file import is_number
from poise.structures.crops import BOX_MARGIN, MAX_COORD, box_to_center_scale
from poise.structures.ids import parse_id, parse_ids
from poise.structures.person_table import PackedStrings, PersonTable
from poise.structures.skeleton import DatasetInfo


def read_table(
    cfg: CfgNode, split: str, *, detections: bool, margin: Sequence[float] = BOX_MARGIN
) -> PersonTable:
    """Read all persons of a split.

    Args:
        cfg: The experiment.
        split: Name of the split.
        detections: Read TEST.COCO_BBOX_FILE instead of the annotated persons.
        margin: See read_annotated.

    Raises:
        DataError, ConfigError: naming the file or key.
    """
    path, data = require_annotation_path(cfg, split), dataset_info(cfg)
    aspect = cfg.MODEL.IMAGE_SIZE[0] / cfg.MODEL.IMAGE_SIZE[1]
    cache = cfg.DATASET.CACHE
    file = path
    if not detections:
        table = read_annotated(
            path,
            data,
            split=split,
            aspect=aspect,
            margin=margin,
            box_clip=cfg.DATASET.BOX_CLIP,
            cache=cache,
        )
    elif not cfg.TEST.COCO_BBOX_FILE:
        raise ConfigError(
            "TEST.COCO_BBOX_FILE is empty; give a detection file, or TEST.USE_GT_BBOX True to test"
            " with ground-truth boxes; tools/make_boxes.py writes a detection file"
        )
    else:
        file = Path(data_path(cfg, cfg.TEST.COCO_BBOX_FILE))
        min_score = cfg.TEST.IMAGE_THRE
        table = read_detected(
            path, data, file, min_score=min_score, aspect=aspect, margin=margin, cache=cache
        )
    if not len(table):
        raise DataError(f"{file}: no person is left to use; {table.summary()}")
    return table


READER = Reader(read_table, has_detections=True, box_ids_per_image=True)


def check_order(names: list[str], data: DatasetInfo, path: Path) -> None:
    """Check the order of the keypoint names.

    Raises:
        DataError: if the annotation file has the names of the dataset file in another order.
    """
    expected = data.skeleton.names
    if names == list(expected) or sorted(names) != sorted(expected):
        return
    for place, (name, expected_name) in enumerate(zip(names, expected)):
        if name != expected_name:
            raise DataError(
                f"{path}: its joint {place} is {name!r}, in {data.path} it is {expected_name!r};"
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
    # all that the arrays depend on besides the file
    kind = f"persons of category {data.category!r} with {joints} joints"
    read = partial(read_annotations, path, split, joints, data.category)
    file = cached(path, kind, read, cache)
    assert file is not None
    check_order(file["joint_names"].tolist(), data, path)
    ids = file["ids"]
    index = file["image_index"]
    boxes, is_usable = _clip(file["boxes"], file["image_sizes"][index], box_clip)
    raise_if_any(~is_usable, ids, path, "a bbox without area inside its image")
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
    """Clip boxes to their images.

    Args:
        boxes: (N, 4) x, y, width, height.
        sizes: (N, 2) Width and height of the images.
        rule: DATASET.BOX_CLIP. 'hrnet': the last pixel of a box is x + w - 1, so a clipped box is
            one pixel narrower than annotated; kept because it moves every crop a little. A box of
            one pixel has no area left. 'mmpose': as wide as annotated. 'none': not clipped, as in
            MSPN; a box outside its image is still invalid.

    Returns:
        The boxes (N, 4), and which of them have an area left (N,).
    """
    low, size = boxes[:, :2], boxes[:, 2:]
    has_size = (size > 0).all(axis=1)
    if rule == "none":
        is_inside = (low < sizes).all(axis=1) & (low + size > 0).all(axis=1)
        return boxes, has_size & is_inside
    low = np.maximum(low, 0)
    if rule == "hrnet":
        size = size - 1
    high = np.minimum(low + np.maximum(size, 0), sizes - 1)
    has_area = (high > low).any(axis=1) if rule == "hrnet" else (high > low).all(axis=1)
    is_usable = has_size & (high >= low).all(axis=1) & has_area
    return np.concatenate([low, high - low], axis=1), is_usable


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
    assert images is not None
    person = category_id(images, data.category)
    columns = cached(file, "detections", partial(read_detections, file, DETECTIONS_HINT), cache)
    if columns is not None:
        values, dropped = filter_detections(columns, images["image_ids"], person, min_score)
    else:
        entries = read_entries(file, DETECTIONS_HINT)
        values, dropped = filter_detection_entries(
            entries, images["image_ids"], person, min_score, file, DETECTIONS_HINT
        )
    invalid = ~(np.abs(values[:, 2:]) < MAX_COORD).all(axis=1)  # also NaN
    if invalid.any():
        raise DataError(
            f"{file}: entry {int(values[invalid][0, 0])} has a bbox or score that is not finite or"
            " beyond any image; correct or remove it"
        )
    reasons = {
        OTHER_CATEGORY: dropped["category"],
        f"scores below TEST.IMAGE_THRE {min_score}": dropped["score"],
        f"of images that {path.name} does not list": dropped["image"],
    }
    image_index = values[:, 1].astype(np.int32)
    low, size = values[:, 3:5], values[:, 5:]
    center, scale = box_to_center_scale(values[:, 3:], aspect, margin)
    joints = data.skeleton.num_keypoints
    table = PersonTable(
        skeleton=data.skeleton,
        image_names=PackedStrings(images["name_buffer"], images["name_ends"]),
        image_ids=images["image_ids"],
        image_index=image_index,
        center=center,
        box_wh=size,
        scale=scale,
        keypoints=np.zeros((len(values), joints, 2), np.float32),
        visibility=np.zeros((len(values), joints), np.float32),
        score=values[:, 2],
        ann_ids=values[:, 0].astype(np.int64),
        box_source=file.stem,
        dropped={reason: count for reason, count in reasons.items() if count},
        category_id=person,
        has_keypoints=False,
    )
    # a box that fails both conditions is counted once
    has_area = np.all(size > 0, axis=1)
    is_inside = np.all((low < images["image_sizes"][image_index]) & (low + size > 0), axis=1)
    table = table.select(has_area, "boxes without area")
    return table.select(is_inside[has_area], "boxes outside their image")


def filter_detections(
    columns: Arrays, image_ids: np.ndarray, person: int, min_score: float
) -> tuple[np.ndarray, dict[str, int]]:
    """Keep persons in listed images with a score of `min_score` or more.

    Args:
        columns: See read_detections.
        image_ids: (M,) Ids of the listed images.
        person: Category id of the persons.
        min_score: The lowest score.

    Returns:
        (N, 7) float64: position in the file, position of the image, score, x, y, width, height;
        and how many were dropped by category, score and image.
    """
    order = np.argsort(image_ids)
    place = np.searchsorted(image_ids, columns["image_id"], sorter=order)
    position = order[np.minimum(place, len(order) - 1)]
    is_other = columns["category"] != person
    is_low = ~is_other & (columns["score"] < min_score)
    is_unlisted = ~is_other & ~is_low & (image_ids[position] != columns["image_id"])
    rows = np.flatnonzero(~(is_other | is_low | is_unlisted))
    values = np.column_stack([rows, position[rows], columns["score"][rows], columns["box"][rows]])
    return values.astype(np.float64).reshape(-1, 7), {
        "category": int(is_other.sum()),
        "score": int(is_low.sum()),
        "image": int(is_unlisted.sum()),
    }


def filter_detection_entries(
    entries: list, image_ids: np.ndarray, person: int, min_score: float, file: Path, hint: str
) -> tuple[np.ndarray, dict[str, int]]:
    """Do the same for entries that are not all regular.

    Raises:
        DataError: for an entry that is no detection, unless it is dropped anyway.
    """
    position = {image_id: index for index, image_id in enumerate(image_ids.tolist())}
    dropped = {"category": 0, "score": 0, "image": 0}
    rows = []
    for number, entry in enumerate(entries):
        entry = parse_ids(entry, *ID_FIELDS)
        error = detection_error(entry)
        if error and not _is_dropped(entry, person, min_score):
            raise DataError(f"{file}: entry {number} is not a detection (it {error}); {hint}")
        if entry["category_id"] != person:
            dropped["category"] += 1
        elif entry["score"] < min_score:
            dropped["score"] += 1
        elif entry["image_id"] not in position:
            dropped["image"] += 1
        else:
            rows.append((number, position[entry["image_id"]], entry["score"], *entry["bbox"]))
    return np.array(rows, dtype=np.float64).reshape(-1, 7), dropped


def _is_dropped(entry: Any, person: int, min_score: float) -> bool:
    """Return whether an invalid entry is of another category, or has too low a score."""
    if not isinstance(entry, dict) or parse_id(entry.get("category_id")) is None:
        return False
    if entry["category_id"] != person:
        return True
    return is_number(entry.get("score")) and entry["score"] < min_score
