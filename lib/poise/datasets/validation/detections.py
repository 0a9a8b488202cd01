"""A detection file against the images and persons of the set that it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.config import data_path
from poise.datasets.coco_files import (
    DETECTIONS_HINT,
    detection_error,
    read_detections,
    read_entries,
)
from poise.datasets.validation.findings import Findings, percent, some
from poise.datasets.validation.persons import AnnotatedPersons
from poise.io.cache import Arrays
from poise.structures import boxes as box_forms

_LEAST_RECALL = 0.3
_THRESHOLDS = (0.5, 0.75)


def read(cfg: CfgNode, found: Findings) -> Arrays | None:
    """The columns of TEST.COCO_BBOX_FILE; None, with a fault, where an entry is no detection.
    Raises DataError where the file cannot be read.
    """
    file = Path(data_path(cfg, cfg.TEST.COCO_BBOX_FILE))
    columns = read_detections(file, DETECTIONS_HINT)
    if columns is None:
        entries = read_entries(file, "")
        bad = [
            (place, fault)
            for place, entry in enumerate(entries)
            if (fault := detection_error(entry))
        ]
        place, fault = bad[0] if bad else (0, "has numbers that cannot be")
        found.fault(
            f"detections: {file}: {len(bad)} of {len(entries)} entries are no detections: entry"
            f" {place} {fault}"
        )
    return columns


def check(
    found: Findings,
    columns: Arrays,
    people: AnnotatedPersons,
    image_ids: np.ndarray,
    person: int,
    threshold: float,
) -> None:
    """columns: as of read_detections. image_ids (M,): of the set's images; people.image are
    places in it. threshold: TEST.IMAGE_THRE.
    """
    count = len(columns["score"])
    if not count:
        found.fault("detections: the file is an empty list")
        return
    mine = columns["category"] == person
    if not mine.any():
        found.fault(
            f"detections: none of {count} has the category {person} of the set; they have"
            f" {some(np.unique(columns['category']).tolist(), 5)}"
        )
        return
    if not np.isfinite(columns["score"][mine]).all() or not np.isfinite(columns["box"][mine]).all():
        found.fault("detections: a score or bbox is not finite")
        return
    listed = np.isin(columns["image_id"], image_ids)
    strange = mine & ~listed
    if strange.any():
        say = found.fault if strange.sum() > 0.5 * mine.sum() else found.warning
        say(
            f"detections: {strange.sum()} of {mine.sum()} are of images that the set does not list"
            f" (image {some(np.unique(columns['image_id'][strange]).tolist())}): of another set?"
        )
    without = np.setdiff1d(
        image_ids[np.unique(people.image)] if len(people.ids) else image_ids,
        columns["image_id"][mine],
    )
    if len(without):
        total = len(np.unique(people.image)) if len(people.ids) else len(image_ids)
        say = (
            found.fault
            if len(without) > 0.5 * total
            else found.warning
            if len(without) > 0.1 * total
            else found.note
        )
        say(
            f"detections: {len(without)} of {total} images with persons have none (image"
            f" {some(without.tolist())}); nobody is found there"
        )
    scores = columns["score"][mine]
    if scores.min() < 0 or scores.max() > 1.0001:
        found.warning(
            f"detections: scores go from {scores.min():g} to {scores.max():g}, expected 0 to 1"
        )
    if len(scores) > 20 and np.ptp(scores) == 0:
        found.warning(
            f"detections: all scores are {scores[0]:g}, so nothing tells good boxes from bad ones"
        )
    used = mine & listed & (columns["score"] >= threshold)
    if not used.any():
        found.fault(
            f"detections: none has a score of TEST.IMAGE_THRE {threshold:g} or more; the highest is"
            f" {scores.max():g}"
        )
    elif len(people.ids) and people.sizes is not None:
        _check_recall(found, columns, people, image_ids, used, threshold)


def _check_recall(
    found: Findings,
    columns: Arrays,
    people: AnnotatedPersons,
    image_ids: np.ndarray,
    used: np.ndarray,
    threshold: float,
) -> None:
    image, boxes, wanted_image = (
        columns["image_id"][used],
        columns["box"][used],
        image_ids[people.image],
    )
    best = box_forms.best_iou(people.boxes, wanted_image, boxes, image)
    recall = [float((best >= level).mean()) for level in _THRESHOLDS]
    figures = ", ".join(
        f"{100 * value:.1f} % at an overlap of {level:g}"
        for value, level in zip(recall, _THRESHOLDS)
    )
    text = (
        f"detections: {used.sum()} with scores of {threshold:g} or more,"
        f" {used.sum() / max(len(np.unique(image)), 1):.1f} an image; they find {figures} of"
        f" {len(best)} labelled persons"
    )
    order = np.argsort(image_ids)
    sizes = people.sizes[order[np.searchsorted(image_ids, image, sorter=order)]]
    if recall[0] < 0.9:
        forms = box_forms.convert_from_other_formats(boxes, sizes)
        other, form = max(
            (
                float(
                    (box_forms.best_iou(people.boxes, wanted_image, others, image) >= 0.5).mean()
                ),
                form,
            )
            for form, others in forms.items()
        )
        if other > recall[0] + 0.2:
            found.fault(
                f"{text}; {percent(other, 1)} taken as {form}: the file has its boxes in that form,"
                " x, y, width, height in pixels are needed"
            )
            return
    if recall[0] < _LEAST_RECALL:
        found.fault(f"{text}; few persons could be found with these boxes")
        return
    (found.warning if recall[0] < 0.6 else found.note)(text)
