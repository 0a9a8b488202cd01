"""Check keypoints, visibility, boxes and areas of annotated persons.

N persons, K keypoints, M images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise.datasets.coco_files import OTHER_CATEGORY
from poise.datasets.validation.findings import Findings, format_percent, list_first
from poise.structures import boxes as box_ops
from poise.structures.person_table import PersonTable
from poise.structures.skeleton import Skeleton

_MAX_OUTLIERS = 0.01  # fraction of persons or keypoints; more of them are an error of the file
_MIN_TURNED_PERSONS = 5  # in images with EXIF orientation 3 or 4, before their pose is judged
_TURNED_FRACTION = 0.7
_MARGIN = 2.0  # pixels that annotators draw beyond the border of an image


@dataclass(frozen=True)
class AnnotatedPersons:
    """N persons.

    Attributes:
        skeleton: Their K keypoints.
        ids: (N,) Annotation ids.
        image: (N,) Position of their image among M images.
        keypoints: (N, K, 2) Pixels.
        visibility: (N, K) COCO's flags.
        boxes: (N, 4) x, y, width, height in pixels.
        sizes: (M, 2) Annotated width and height of the images, if known.
        area: (N,) Areas in square pixels, if known; NaN where an annotation has none.
    """

    skeleton: Skeleton
    ids: np.ndarray
    image: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray | None = None
    area: np.ndarray | None = None

    @property
    def labelled(self) -> np.ndarray:
        """(N, K) bool."""
        return self.visibility > 0

    @classmethod
    def from_table(cls, table: PersonTable) -> AnnotatedPersons:
        """Return the persons of a table that a run has read.

        Their boxes are clipped to the images. Keypoints that only other datasets of DATASET.MIX
        have count as not labeled.
        """
        return cls(
            table.skeleton,
            table.ann_ids,
            table.image_index,
            table.keypoints,
            np.maximum(table.visibility, 0),
            table.boxes,
        )


def check_joints(findings: Findings, persons: AnnotatedPersons) -> np.ndarray:
    """Check that keypoints are inside their images and boxes.

    Returns:
        (N,) bool, suspicious persons.
    """
    labelled = persons.labelled
    count = int(labelled.sum())
    suspicious = np.zeros(len(persons.ids), bool)
    if not count:
        findings.error(
            f"joints: none of {len(persons.ids)} persons has a labeled joint (every visibility"
            " flag is 0)"
        )
        return suspicious
    if (np.abs(persons.keypoints[labelled]) <= 1.5).all():
        findings.error(
            f"joints: all {count} are between 0 and 1.5: they are given as fractions of the image,"
            " pixels are needed"
        )
        return suspicious
    if persons.sizes is not None:
        suspicious |= _check_inside_images(findings, persons, persons.sizes)
    extent = _keypoint_boxes(persons.keypoints, labelled)
    suspicious |= _check_inside_boxes(findings, persons, extent)
    zero = labelled & (persons.keypoints == 0).all(axis=2)
    if zero.any():
        suspicious |= zero.any(axis=1)
        findings.error_or_warning(
            f"joints: {zero.sum()} of {count} are flagged as labeled and are at 0, 0, such as"
            f" {_describe_first(persons, zero)}; joints that are not labeled have flag 0",
            is_error=zero.sum() > _MAX_OUTLIERS * count,
        )
    collapsed = (labelled.sum(axis=1) > 1) & (extent[:, 2:] < 1e-6).all(axis=1)
    if collapsed.any():
        suspicious |= collapsed
        findings.warning(
            f"joints: all joints of {collapsed.sum()} persons are in one point (annotation"
            f" {list_first(persons.ids[collapsed])})"
        )
    return suspicious


def _check_inside_images(
    findings: Findings, persons: AnnotatedPersons, sizes: np.ndarray
) -> np.ndarray:
    """Return the persons (N,) with keypoints outside their image."""
    last_pixel = sizes[persons.image][:, None] - 1
    is_outside = (persons.keypoints < -_MARGIN) | (persons.keypoints > last_pixel + _MARGIN)
    outside = persons.labelled & is_outside.any(axis=2)
    count = persons.labelled.sum()
    if outside.any():
        findings.error_or_warning(
            f"joints: {outside.sum()} of {count} are outside their image, such as"
            f" {_describe_first(persons, outside)}",
            is_error=outside.sum() > _MAX_OUTLIERS * count,
        )
    return outside.any(axis=1)


def _keypoint_boxes(keypoints: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Return (N, 4) x, y, width, height around the labeled keypoints of each person.

    Persons without one get a negative size.
    """
    # keypoints first: ten times as fast
    points = np.ascontiguousarray(keypoints.transpose(1, 2, 0))
    mask = labelled.T[:, None]
    low = np.where(mask, points, 1e9).min(axis=0)
    high = np.where(mask, points, -1e9).max(axis=0)
    return np.concatenate([low, high - low]).T


def _describe_first(persons: AnnotatedPersons, mask: np.ndarray) -> str:
    person, joint = np.argwhere(mask)[0]
    x, y = persons.keypoints[person, joint]
    return f"{persons.skeleton.names[joint]} of annotation {persons.ids[person]} at {x:g}, {y:g}"


def _check_inside_boxes(
    findings: Findings, persons: AnnotatedPersons, extent: np.ndarray
) -> np.ndarray:
    """Return the persons (N,) whose keypoints are all far outside their box.

    Args:
        extent: (N, 4) Boxes around the keypoints.
    """
    labelled = persons.labelled
    if persons.sizes is not None and _has_other_format(findings, persons, persons.sizes, extent):
        return np.zeros(len(labelled), bool)
    is_far = ~labelled
    for axis in (0, 1):
        low = persons.boxes[:, None, axis]
        size = persons.boxes[:, None, axis + 2]
        value = persons.keypoints[:, :, axis]
        is_far |= (value < low - 0.5 * size) | (value > low + 1.5 * size)
    has_area = np.all(persons.boxes[:, 2:] > 0, axis=1)
    lost = np.any(labelled, axis=1) & np.all(is_far, axis=1) & has_area
    if lost.any():
        findings.error_or_warning(
            f"boxes: all joints of {lost.sum()} persons are far outside of their box (annotation"
            f" {list_first(persons.ids[lost])})",
            is_error=lost.sum() > _MAX_OUTLIERS * len(lost),
        )
    return lost


def _has_other_format(
    findings: Findings, persons: AnnotatedPersons, sizes: np.ndarray, extent: np.ndarray
) -> bool:
    """Find boxes that fit the keypoints better when read in another format."""
    # one keypoint has no box
    several = (persons.labelled.sum(axis=1) > 1) & (extent[:, 2:] > 1).all(axis=1)
    if not several.any():
        return False
    extent = extent[several]
    boxes = persons.boxes[several]
    overlap = float(box_ops.elementwise_iou(extent, boxes).mean())
    formats = box_ops.convert_from_other_formats(boxes, sizes[persons.image[several]])
    other_overlap, name = max(
        (float(box_ops.elementwise_iou(extent, other).mean()), name)
        for name, other in formats.items()
    )
    if other_overlap <= 1.2 * overlap + 0.03:
        return False
    findings.error(
        f"boxes: overlap the extent of the joints by {overlap:.2f} as x, y, width, height in"
        f" pixels, by {other_overlap:.2f} taken as {name}: the file has them in that format"
    )
    return True


def check_flags(
    findings: Findings, persons: AnnotatedPersons, num_keypoints: np.ndarray | None = None
) -> None:
    """Check visibility flags.

    Args:
        num_keypoints: (N,) as annotated, -1 where an annotation has none.
    """
    visibility, names = persons.visibility, persons.skeleton.names
    invalid = ~np.isin(visibility, (0, 1, 2))
    if invalid.any():
        findings.error(
            f"visibility: {invalid.sum()} flags are none of 0, 1 and 2 (annotation"
            f" {list_first(persons.ids[invalid.any(axis=1)])}); COCO's are 0 not labeled,"
            " 1 hidden, 2 visible"
        )
    counts = persons.labelled.sum(axis=0)
    never = [name for name, count in zip(names, counts) if not count]
    if never and len(never) < len(names):
        findings.warning(
            f"visibility: never labeled: {list_first(never, 6)}; they cannot be learned"
        )
    num_visible = int((visibility == 2).sum())
    num_hidden = int((visibility == 1).sum())
    total = num_visible + num_hidden
    findings.note(
        f"visibility: {num_visible} joints visible, {num_hidden} hidden,"
        f" {visibility.size - total} not labeled;"
        f" {total / max(len(visibility), 1):.1f} of {len(names)} per person"
    )
    if num_keypoints is None:
        return
    wrong = (num_keypoints >= 0) & (num_keypoints != persons.labelled.sum(axis=1))
    if wrong.any():
        findings.error_or_warning(
            f"visibility: num_keypoints of {wrong.sum()} annotations is not the number of their"
            f" labeled joints (annotation {list_first(persons.ids[wrong])})",
            is_error=wrong.sum() > _MAX_OUTLIERS * len(wrong),
        )


def check_turned(findings: Findings, persons: AnnotatedPersons, orientation: np.ndarray) -> None:
    """Find annotations of stored pixels in images that are read upright, by heads that are below.

    EXIF orientations 3 and 4 turn by 180 degrees: the image size does not show what was annotated.

    Args:
        orientation: (M,) EXIF orientations of the images.
    """
    is_turned = np.isin(orientation[persons.image], (3, 4))
    is_upper = np.isin(np.arange(persons.skeleton.num_keypoints), persons.skeleton.upper_body)
    labelled = persons.labelled[is_turned]
    y = persons.keypoints[is_turned][:, :, 1]
    upper, lower = labelled & is_upper, labelled & ~is_upper
    has_both = upper.any(axis=1) & lower.any(axis=1)
    if has_both.sum() < _MIN_TURNED_PERSONS:
        return
    y, upper, lower = y[has_both], upper[has_both], lower[has_both]
    mean_upper = (y * upper).sum(axis=1) / upper.sum(axis=1)
    mean_lower = (y * lower).sum(axis=1) / lower.sum(axis=1)
    is_down = mean_upper > mean_lower
    if is_down.mean() > _TURNED_FRACTION:
        findings.error(
            f"joints: {is_down.sum()} of {len(is_down)} persons in images with EXIF orientation 3"
            " or 4 have the upper body below (annotation"
            f" {list_first(persons.ids[is_turned][has_both][is_down])}): annotated as the pixels"
            " are stored; set DATASET.EXIF False"
        )


def check_boxes(findings: Findings, persons: AnnotatedPersons) -> np.ndarray:
    """Check boxes as annotated.

    Returns:
        (N,) bool, suspicious persons.
    """
    low, high = persons.boxes[:, :2], persons.boxes[:, :2] + persons.boxes[:, 2:]
    flat = ~np.all(persons.boxes[:, 2:] > 0, axis=1)
    if flat.any():
        findings.error(
            f"boxes: {flat.sum()} have no width or height (annotation"
            f" {list_first(persons.ids[flat])})"
        )
    if persons.sizes is None:
        return flat
    size = persons.sizes[persons.image]
    outside = ~flat & ((low >= size) | (high <= 0)).any(axis=1)
    crossing = ~flat & ~outside & ((low < -_MARGIN) | (high > size + _MARGIN)).any(axis=1)
    if outside.any():
        findings.error(
            f"boxes: {outside.sum()} are outside their image (annotation"
            f" {list_first(persons.ids[outside])})"
        )
    if crossing.any():
        findings.error_or_warning(
            f"boxes: {crossing.sum()} of {len(crossing)} reach beyond their image (annotation"
            f" {list_first(persons.ids[crossing])})",
            is_error=crossing.mean() > 0.5,
        )
    return flat | outside


def check_areas(
    findings: Findings, persons: AnnotatedPersons, area: np.ndarray, *, needed: bool
) -> None:
    """Check annotated areas.

    Args:
        area: (N,) Areas; NaN where an annotation has none.
        needed: Whether the split is scored by OKS, which is relative to the area.
    """
    box_area = persons.boxes[:, 2:].prod(axis=1)
    missing = np.isnan(area)
    if missing.any() and needed:
        findings.error(
            f"areas: {missing.sum()} of {len(area)} annotations have no area, which the OKS needs"
            f" (annotation {list_first(persons.ids[missing])}); without masks, half of the box's"
            " area is a usual choice"
        )
    elif missing.any():
        findings.note(
            f"areas: {missing.sum()} of {len(area)} annotations have none; only a test set needs"
            " them"
        )
    is_zero = ~missing & (area <= 0)
    is_positive = ~missing & ~is_zero
    if is_zero.any():
        findings.warning(
            f"areas: {is_zero.sum()} are 0 or less (annotation"
            f" {list_first(persons.ids[is_zero])}); such persons are skipped"
        )
    if is_positive.any() and np.median(area[is_positive]) <= 1 and np.median(box_area) > 4:
        findings.error(
            "areas: most are below 1: they are given as fractions of the image, square pixels are"
            " needed"
        )
        return
    too_large = ~missing & (area > 1.1 * np.maximum(box_area, 1))
    if too_large.any():
        findings.error_or_warning(
            f"areas: {too_large.sum()} of {(~missing).sum()} are larger than their box (annotation"
            f" {list_first(persons.ids[too_large])})",
            is_error=too_large.mean() > 0.1,
        )


def check_duplicates(findings: Findings, persons: AnnotatedPersons) -> None:
    """Find persons that are annotated twice."""
    is_labelled = persons.labelled.any(axis=1)
    flat = persons.keypoints.reshape(len(persons.keypoints), -1)
    rows = np.column_stack([persons.image, flat])[is_labelled].astype(np.float32)
    rows = np.ascontiguousarray(rows + 0)  # -0.0 becomes 0
    # compare each row as one value of bytes
    row_type = np.dtype((np.void, rows.itemsize * rows.shape[1]))
    first = np.unique(rows.view(row_type)[:, 0], return_index=True)[1]
    repeated = np.setdiff1d(np.arange(len(rows)), first)
    if len(repeated):
        findings.warning(
            f"persons: {len(repeated)} have the same joints as another of the same image"
            f" (annotation {list_first(persons.ids[is_labelled][repeated])})"
        )


def report_dropped(findings: Findings, table: PersonTable) -> None:
    """Note how many persons a run skips, and why.

    Of a detection file they are boxes, most of which may well have low scores.
    """
    is_annotated = table.box_source == "gt"
    name = "persons" if is_annotated else "detections"
    reasons = sorted(table.dropped.items(), key=lambda item: -item[1])
    total = len(table) + sum(
        count for reason, count in reasons if not reason.startswith(OTHER_CATEGORY)
    )
    text = (
        f"{name}: {len(table)} of {total} are used,"
        f" {format_percent(total - len(table), total)} dropped"
    )
    if reasons:
        text += ": " + ", ".join(f"{count} {reason}" for reason, count in reasons)
    if table.has_keypoints:
        # MPII's format and DATASET.MIX keep them
        num_unlabelled = int((table.visibility <= 0).all(axis=1).sum())
        if num_unlabelled:
            text += f"; {num_unlabelled} of those used have no labeled joint"
    findings.warning_or_note(text, is_warning=is_annotated and len(table) < 0.3 * total)
