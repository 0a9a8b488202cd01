"""Joints, visibility, boxes and areas of the annotated persons. Letters: N persons, J joints, M
images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise.datasets.coco_files import OF_ANOTHER
from poise.datasets.validation.findings import Findings, percent, some
from poise.structures import boxes as box_forms
from poise.structures.person_table import PersonTable
from poise.structures.skeleton import Skeleton

_FEW = 0.01  # share of persons or joints from which a spot becomes a fault of the file
# persons of turned images before their posture is judged, and the share
_LEAST_TURNED, _MOSTLY = 5, 0.7
_EDGE = 2.0  # pixels that annotators go beyond a border


@dataclass(frozen=True)
class AnnotatedPersons:
    """N persons. ids (N,). image (N,): the place of their image among M. joints (N, J, 2) and
    visible (N, J): as of PersonTable. boxes (N, 4): x, y, width, height.

    sizes: (M, 2) width and height of the images as the file says; None where it is not known. area
    (N,): NaN where the file has none; or None.
    """

    skeleton: Skeleton
    ids: np.ndarray
    image: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray | None = None
    area: np.ndarray | None = None

    @property
    def labelled(self) -> np.ndarray:
        return self.visible > 0

    @classmethod
    def of_table(cls, table: PersonTable) -> AnnotatedPersons:
        """Of a set that a training has read; its boxes are cut to their images, and what other
        sets of a mix have (NOT_ANNOTATED) is not labelled.
        """
        return cls(
            table.skeleton,
            table.ann_ids,
            table.image_index,
            table.keypoints,
            np.maximum(table.visibility, 0),
            table.boxes,
        )


def check_joints(found: Findings, people: AnnotatedPersons) -> np.ndarray:
    """Joints in their images and boxes, and their flags; returns (N,) bool, the persons to look
    at.
    """
    labelled, count = people.labelled, int(people.labelled.sum())
    odd = np.zeros(len(people.ids), bool)
    if not count:
        found.fault(
            f"joints: none of {len(people.ids)} persons has a labelled joint (every visibility flag"
            " is 0)"
        )
        return odd
    points = people.joints[labelled]
    if (np.abs(points) <= 1.5).all():
        found.fault(
            f"joints: all {count} lie between 0 and 1.5: they are given as shares of the image,"
            " pixels are needed"
        )
        return odd
    if people.sizes is not None:
        size = people.sizes[people.image][:, None]
        outside = labelled & ((people.joints < -_EDGE) | (people.joints > size - 1 + _EDGE)).any(
            axis=2
        )
        if outside.any():
            odd |= outside.any(axis=1)
            say = found.fault if outside.sum() > _FEW * count else found.warning
            say(
                f"joints: {outside.sum()} of {count} lie outside their image, such as"
                f" {_first(people, outside)}"
            )
    around = _around(people.joints, labelled)
    _check_boxes_hold_joints(found, people, around, odd)
    zero = labelled & (people.joints[:, :, 0] == 0) & (people.joints[:, :, 1] == 0)
    if zero.any():
        odd |= zero.any(axis=1)
        say = found.fault if zero.sum() > _FEW * count else found.warning
        say(
            f"joints: {zero.sum()} of {count} are flagged as labelled and lie at 0, 0, such as"
            f" {_first(people, zero)}; joints that are not labelled have flag 0"
        )
    collapsed = (labelled.sum(axis=1) > 1) & (around[:, 2:] < 1e-6).all(axis=1)
    if collapsed.any():
        odd |= collapsed
        found.warning(
            f"joints: all joints of {collapsed.sum()} persons lie in one point (annotation"
            f" {some(people.ids[collapsed])})"
        )
    return odd


def _around(joints: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(N, 4) x, y, width, height around the labelled joints of persons that have any; a negative
    size for the others.
    """
    # joint after joint: a tenth of the time
    points, mask = np.ascontiguousarray(joints.transpose(1, 2, 0)), labelled.T[:, None]
    low, high = np.where(mask, points, 1e9).min(axis=0), np.where(mask, points, -1e9).max(axis=0)
    return np.concatenate([low, high - low]).T


def _first(people: AnnotatedPersons, joints: np.ndarray) -> str:
    person, joint = np.argwhere(joints)[0]
    x, y = people.joints[person, joint]
    return f"{people.skeleton.names[joint]} of annotation {people.ids[person]} at {x:g}, {y:g}"


def _check_boxes_hold_joints(
    found: Findings, people: AnnotatedPersons, around: np.ndarray, odd: np.ndarray
) -> None:
    labelled = people.labelled
    # one joint has no box
    several = (labelled.sum(axis=1) > 1) & (around[:, 2:] > 1).all(axis=1)
    if people.sizes is not None and several.any():
        fits = float(box_forms.elementwise_iou(around[several], people.boxes[several]).mean())
        forms = box_forms.convert_from_other_formats(
            people.boxes[several], people.sizes[people.image[several]]
        )
        other, form = max(
            (float(box_forms.elementwise_iou(around[several], boxes).mean()), form)
            for form, boxes in forms.items()
        )
        if other > 1.2 * fits + 0.03:
            found.fault(
                f"boxes: overlap the extent of the joints by {fits:.2f} as x, y, width, height in"
                f" pixels, by {other:.2f} taken as {form}: the file has them in that form"
            )
            return
    away = ~labelled
    for axis in (0, 1):
        low, size = people.boxes[:, None, axis], people.boxes[:, None, axis + 2]
        away |= (people.joints[:, :, axis] < low - 0.5 * size) | (
            people.joints[:, :, axis] > low + 1.5 * size
        )
    lost = labelled.any(axis=1) & away.all(axis=1) & (people.boxes[:, 2:] > 0).all(axis=1)
    if lost.any():
        odd |= lost
        say = found.fault if lost.sum() > _FEW * len(lost) else found.warning
        say(
            f"boxes: all joints of {lost.sum()} persons lie far outside of their box (annotation"
            f" {some(people.ids[lost])})"
        )


def check_flags(
    found: Findings, people: AnnotatedPersons, counted: np.ndarray | None = None
) -> None:
    """Visibility flags. counted: (N,) num_keypoints as the file says, -1 where it does not."""
    visible, names = people.visible, people.skeleton.names
    strange = ~np.isin(visible, (0, 1, 2))
    if strange.any():
        found.fault(
            f"visibility: {strange.sum()} flags are none of 0, 1 and 2 (annotation"
            f" {some(people.ids[strange.any(axis=1)])}); COCO's are 0 not labelled, 1 hidden, 2"
            " seen"
        )
    labelled = people.labelled.sum(axis=0)
    never = [name for name, count in zip(names, labelled) if not count]
    if never and len(never) < len(names):
        found.warning(f"visibility: never labelled: {some(never, 6)}; nothing is learnt of them")
    seen, hidden = int((visible == 2).sum()), int((visible == 1).sum())
    total = seen + hidden
    found.note(
        f"visibility: {seen} joints seen, {hidden} hidden, {visible.size - total} not labelled;"
        f" {total / max(len(visible), 1):.1f} of {len(names)} a person"
    )
    if counted is not None:
        wrong = (counted >= 0) & (counted != people.labelled.sum(axis=1))
        if wrong.any():
            say = found.fault if wrong.sum() > _FEW * len(wrong) else found.warning
            say(
                f"visibility: num_keypoints of {wrong.sum()} annotations is not the number of their"
                f" labelled joints (annotation {some(people.ids[wrong])})"
            )


def check_turned(found: Findings, people: AnnotatedPersons, orientation: np.ndarray) -> None:
    """Find upside-down annotations of images that are read upright, by heads that lie below.

    orientation (M,): the EXIF entries of the images; 3 and 4 turn by 180 degrees, so that sizes do
    not show which pixels were annotated.
    """
    those = np.isin(orientation[people.image], (3, 4))
    upper = np.isin(np.arange(people.skeleton.num_keypoints), people.skeleton.upper_body)
    labelled, height = people.labelled[those], people.joints[those][:, :, 1]
    above, below = labelled & upper, labelled & ~upper
    both = above.any(axis=1) & below.any(axis=1)
    if both.sum() < _LEAST_TURNED:
        return
    above, below, height = above[both], below[both], height[both]
    mean_above = (height * above).sum(axis=1) / above.sum(axis=1)
    down = mean_above > (height * below).sum(axis=1) / below.sum(axis=1)
    if down.mean() > _MOSTLY:
        found.fault(
            f"joints: {down.sum()} of {len(down)} persons in images with EXIF orientation 3 or 4"
            f" have the upper body below (annotation {some(people.ids[those][both][down])}):"
            " annotated as the pixels are stored; DATASET.EXIF False reads them so"
        )


def check_boxes(found: Findings, people: AnnotatedPersons) -> np.ndarray:
    """Boxes and areas as the file has them; returns (N,) bool, the persons to look at."""
    boxes, odd = people.boxes, np.zeros(len(people.ids), bool)
    flat = ~(boxes[:, 2:] > 0).all(axis=1)
    if flat.any():
        odd |= flat
        found.fault(
            f"boxes: {flat.sum()} have no width or height (annotation {some(people.ids[flat])})"
        )
    if people.sizes is not None:
        size = people.sizes[people.image]
        gone = ~flat & (
            (boxes[:, :2] >= size).any(axis=1) | (boxes[:, :2] + boxes[:, 2:] <= 0).any(axis=1)
        )
        over = (
            ~flat
            & ~gone
            & ((boxes[:, :2] < -_EDGE) | (boxes[:, :2] + boxes[:, 2:] > size + _EDGE)).any(axis=1)
        )
        if gone.any():
            odd |= gone
            found.fault(
                f"boxes: {gone.sum()} lie outside of their image (annotation"
                f" {some(people.ids[gone])})"
            )
        if over.any():
            say = found.fault if over.mean() > 0.5 else found.warning
            say(
                f"boxes: {over.sum()} of {len(over)} reach beyond their image (annotation"
                f" {some(people.ids[over])})"
            )
    return odd


def check_areas(found: Findings, people: AnnotatedPersons, *, needed: bool) -> None:
    """needed: the set is scored by OKS, whose scale the area is."""
    area, box = people.area, people.boxes[:, 2:].prod(axis=1)
    absent = np.isnan(area)
    if absent.any() and needed:
        found.fault(
            f"areas: {absent.sum()} of {len(area)} annotations have no area, which the OKS needs"
            f" (annotation {some(people.ids[absent])}); where no mask is drawn, half of the box's"
            " area is a usual choice"
        )
    elif absent.any():
        found.note(
            f"areas: {absent.sum()} of {len(area)} annotations have none; only a set that is tested"
            " needs them"
        )
    there = ~absent
    zero = there & (area <= 0)
    if zero.any():
        found.warning(
            f"areas: {zero.sum()} are 0 or less (annotation {some(people.ids[zero])}); such persons"
            " are left out"
        )
    if (there & ~zero).any() and np.median(area[there & ~zero]) <= 1 and np.median(box) > 4:
        found.fault(
            "areas: most are below 1: they are given as shares of the image, square pixels are"
            " needed"
        )
        return
    large = there & (area > 1.1 * np.maximum(box, 1))
    if large.any():
        say = found.fault if large.mean() > 0.1 else found.warning
        say(
            f"areas: {large.sum()} of {there.sum()} are larger than their box (annotation"
            f" {some(people.ids[large])})"
        )


def check_repeats(found: Findings, people: AnnotatedPersons) -> None:
    """Persons who are annotated twice."""
    those = people.labelled.any(axis=1)
    # -0.0 is 0 too
    rows = (
        np.column_stack([people.image, people.joints.reshape(len(people.joints), -1)])[
            those
        ].astype(np.float32)
        + 0
    )
    # a row as one value, to sort by
    as_bytes = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[
        :, 0
    ]
    first = np.unique(as_bytes, return_index=True)[1]
    again = np.setdiff1d(np.arange(len(rows)), first)
    if len(again):
        found.warning(
            f"persons: {len(again)} have the same joints as another of the same image (annotation"
            f" {some(people.ids[those][again])})"
        )


def dropped(found: Findings, table: PersonTable) -> None:
    """Persons that a training or a test leaves out, and why; of a detection file boxes, of which
    most may well have low scores.
    """
    kept, what = len(table), "persons" if table.box_source == "gt" else "detections"
    total = kept + sum(
        count for reason, count in table.dropped.items() if not reason.startswith(OF_ANOTHER)
    )
    why = ", ".join(
        f"{count} {reason}"
        for reason, count in sorted(table.dropped.items(), key=lambda item: -item[1])
    )
    text = (
        f"{what}: {kept} of {total} are used, {percent(total - kept, total)}"
        f" dropped{f': {why}' if why else ''}"
    )
    bare = int((table.visibility <= 0).all(axis=1).sum()) if table.has_keypoints else 0
    if bare:  # MPII's form, and sets of a mix, keep them
        text += f"; {bare} of those used have no labelled joint"
    (found.warning if kept < 0.3 * total and table.box_source == "gt" else found.note)(text)
