"""Check a detection file against the images and persons of its split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from poise.datasets.coco_files import (
    DETECTIONS_HINT,
    detection_error,
    read_detections,
    read_entries,
)
from poise.datasets.validation.findings import Findings, format_percent, list_first
from poise.datasets.validation.persons import AnnotatedPersons
from poise.io.cache import Arrays
from poise.structures import boxes as box_ops

_MIN_RECALL = 0.3
_IOU_THRESHOLDS = (0.5, 0.75)


def read(file: Path, findings: Findings) -> Arrays | None:
    """Return the columns of a detection file; None, with an error, if an entry is invalid.

    Raises DataError if the file cannot be read.
    """
    columns = read_detections(file, DETECTIONS_HINT)
    if columns is None:
        entries = read_entries(file, "")
        errors = [
            (number, error)
            for number, entry in enumerate(entries)
            if (error := detection_error(entry))
        ]
        number, error = errors[0] if errors else (0, "has numbers out of range")
        findings.error(
            f"detections: {file}: {len(errors)} of {len(entries)} entries are no detections:"
            f" entry {number} {error}"
        )
    return columns


def check(
    findings: Findings,
    columns: Arrays,
    persons: AnnotatedPersons,
    image_ids: np.ndarray,
    category: int,
    min_score: float,
) -> None:
    """Check detections.

    Args:
        columns: See read_detections.
        persons: The annotated persons; persons.image are positions in `image_ids`.
        image_ids: (M,) Ids of the images of the split.
        category: Category id of the persons.
        min_score: TEST.IMAGE_THRE.
    """
    is_person = columns["category"] == category
    if not _are_usable(findings, columns, is_person, category):
        return
    is_listed = np.isin(columns["image_id"], image_ids)
    unlisted = is_person & ~is_listed
    if unlisted.any():
        unlisted_ids = np.unique(columns["image_id"][unlisted]).tolist()
        findings.error_or_warning(
            f"detections: {unlisted.sum()} of {is_person.sum()} are of images that the split does"
            f" not list (image {list_first(unlisted_ids)}): of another split?",
            is_error=unlisted.sum() > 0.5 * is_person.sum(),
        )
    _check_images_without(findings, columns["image_id"][is_person], persons, image_ids)
    scores = columns["score"][is_person]
    if scores.min() < 0 or scores.max() > 1.0001:
        findings.warning(
            f"detections: scores range from {scores.min():g} to {scores.max():g}, expected 0 to 1"
        )
    if len(scores) > 20 and np.ptp(scores) == 0:
        findings.warning(f"detections: all scores are {scores[0]:g}; they do not rank the boxes")
    is_used = is_person & is_listed & (columns["score"] >= min_score)
    if not is_used.any():
        findings.error(
            f"detections: none has a score of TEST.IMAGE_THRE {min_score:g} or more; the highest"
            f" is {scores.max():g}"
        )
    elif len(persons.ids) and persons.sizes is not None:
        used = {key: column[is_used] for key, column in columns.items()}
        _check_recall(findings, used, persons, image_ids, min_score)


def _are_usable(findings: Findings, columns: Arrays, is_person: np.ndarray, category: int) -> bool:
    """Check that there are detections of the category, with finite numbers."""
    if not len(is_person):
        findings.error("detections: the file is an empty list")
    elif not is_person.any():
        findings.error(
            f"detections: none of {len(is_person)} has the category {category} of the split; they"
            f" have {list_first(np.unique(columns['category']).tolist(), 5)}"
        )
    elif not all(np.isfinite(columns[key][is_person]).all() for key in ("score", "box")):
        findings.error("detections: a score or bbox is not finite")
    else:
        return True
    return False


def _check_images_without(
    findings: Findings, detected_ids: np.ndarray, persons: AnnotatedPersons, image_ids: np.ndarray
) -> None:
    """Count images with persons for which the file has no detections."""
    with_persons = image_ids[np.unique(persons.image)] if len(persons.ids) else image_ids
    without = np.setdiff1d(with_persons, detected_ids)
    total = len(with_persons)
    if not len(without):
        return
    text = (
        f"detections: {len(without)} of {total} images with persons have none (image"
        f" {list_first(without.tolist())}); their persons are missed"
    )
    if len(without) > 0.5 * total:
        findings.error(text)
    else:
        findings.warning_or_note(text, is_warning=len(without) > 0.1 * total)


def _check_recall(
    findings: Findings,
    used: Arrays,
    persons: AnnotatedPersons,
    image_ids: np.ndarray,
    min_score: float,
) -> None:
    """Check how many annotated persons the used detections overlap."""
    assert persons.sizes is not None
    image, boxes = used["image_id"], used["box"]
    person_image = image_ids[persons.image]
    best = box_ops.best_iou(persons.boxes, person_image, boxes, image)
    recall = [float((best >= threshold).mean()) for threshold in _IOU_THRESHOLDS]
    recalls = ", ".join(
        f"{100 * value:.1f} % at IoU {threshold:g}"
        for value, threshold in zip(recall, _IOU_THRESHOLDS)
    )
    text = (
        f"detections: {len(boxes)} with scores of {min_score:g} or more,"
        f" {len(boxes) / max(len(np.unique(image)), 1):.1f} per image; recall {recalls} of"
        f" {len(best)} labeled persons"
    )
    if recall[0] < 0.9:
        order = np.argsort(image_ids)
        sizes = persons.sizes[order[np.searchsorted(image_ids, image, sorter=order)]]
        other_recall, name = max(
            (_recall_at_half(persons.boxes, person_image, other, image), name)
            for name, other in box_ops.convert_from_other_formats(boxes, sizes).items()
        )
        if other_recall > recall[0] + 0.2:
            findings.error(
                f"{text}; {format_percent(other_recall, 1)} taken as {name}: the file has its boxes"
                " in that format, x, y, width, height in pixels are needed"
            )
            return
    if recall[0] < _MIN_RECALL:
        findings.error(f"{text}; few persons could be found with these boxes")
        return
    findings.warning_or_note(text, is_warning=recall[0] < 0.6)


def _recall_at_half(
    boxes: np.ndarray, image: np.ndarray, detected: np.ndarray, detected_image: np.ndarray
) -> float:
    best = box_ops.best_iou(boxes, image, detected, detected_image)
    return float((best >= 0.5).mean())
