"""Check left and right: compare mirror pairs with each other, and with faces.

The left keypoint of most pairs of a person is on the same side of the right one: both shoulders and
hips are crossed in a view from the front, none from the back. A pair that mostly contradicts the
others was exchanged. N persons, K keypoints, P mirror pairs.
"""

from __future__ import annotations

import numpy as np

from poise.datasets.validation.findings import Findings
from poise.structures.skeleton import Skeleton

MIN_PERSONS = 20  # with both pairs labelled, before they are compared
# below this agreement a pair contradicts the others; wrists and ankles, which cross most, agree
# with them in three quarters of COCO's persons
_MIN_AGREEMENT = 0.35
_MIN_FACING = 0.35  # fraction of persons that face the camera
_FACE = ("left_eye", "right_eye")


def check(
    findings: Findings, keypoints: np.ndarray, labelled: np.ndarray, skeleton: Skeleton
) -> np.ndarray:
    """Check one split and return its order (N, P): see order_pairs."""
    names, pairs = skeleton.names, left_first_pairs(skeleton)
    order = order_pairs(keypoints, labelled, skeleton)
    exchanged, agreement = find_exchanged(order)
    for pair in exchanged:
        left, right = (names[joint] for joint in pairs[pair])
        findings.error(
            f"left and right: {left} and {right} look exchanged: their sides agree with those of"
            f" other pairs in {100 * np.nanmean(agreement[pair]):.0f} % of the persons; exchange"
            " them in the annotations, or in `joints` of the dataset file"
        )
    if exchanged:
        return order
    facing, count = facing_fraction(order)
    is_face = [tuple(names[joint] for joint in pair) == _FACE for pair in pairs]
    faces_facing, num_faces = facing_fraction(order[:, np.flatnonzero(is_face)])
    if num_faces >= MIN_PERSONS and faces_facing < _MIN_FACING:
        findings.error(
            f"left and right: left_eye is left of right_eye in {100 * (1 - faces_facing):.0f} % of"
            f" {num_faces} faces, as in a mirror: left and right are exchanged throughout, or the"
            " images are mirrored"
        )
    elif count >= MIN_PERSONS and facing < _MIN_FACING:
        findings.warning(
            f"left and right: in {100 * (1 - facing):.0f} % of the pairs the left joint is left of"
            " the right one, as in people seen from behind; unless they are, left and right are"
            " exchanged (`joints` are the left and right of the person)"
        )
    return order


def compare(findings: Findings, train: np.ndarray, test: np.ndarray) -> None:
    """Compare the order (N, P) of two splits, one of which may be mirrored."""
    train_facing, train_count = facing_fraction(train)
    test_facing, test_count = facing_fraction(test)
    if min(train_count, test_count) < MIN_PERSONS:
        return
    low, high = sorted((train_facing, test_facing))
    if low < _MIN_FACING and high > 1 - _MIN_FACING:
        findings.error(
            f"left and right: left joints are on the right in {100 * train_facing:.0f} % of the"
            f" training set's pairs and {100 * test_facing:.0f} % of the test set's: one of them"
            " has left and right exchanged, or mirrored images"
        )


def left_first_pairs(skeleton: Skeleton) -> list[tuple[int, int]]:
    """Return the mirror pairs with the left keypoint first; a dataset file may have any order."""
    return [
        (b, a) if skeleton.side(a) > skeleton.side(b) else (a, b) for a, b in skeleton.flip_pairs
    ]


def order_pairs(keypoints: np.ndarray, labelled: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Return on which side of the right keypoint the left one is.

    Distances below a twentieth of the person's width do not count.

    Args:
        keypoints: (N, K, 2).
        labelled: (N, K) bool.

    Returns:
        (N, P) float32: 1 if it is further right in the image, -1 further left, 0 if unknown.
    """
    pairs = np.array(left_first_pairs(skeleton), np.int64).reshape(-1, 2)
    left, right = pairs[:, 0], pairs[:, 1]
    x = keypoints[:, :, 0]
    width = np.where(labelled, x, -np.inf).max(axis=1) - np.where(labelled, x, np.inf).min(axis=1)
    offset = x[:, left] - x[:, right]
    is_known = labelled[:, left] & labelled[:, right] & (np.abs(offset) > 0.05 * width[:, None])
    return np.where(is_known, np.sign(offset), 0).astype(np.float32)


def find_exchanged(order: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Find the pairs that contradict the others.

    If only two pairs contradict each other, both are returned.

    Returns:
        Their positions, and (P, P) the fraction of persons in which two pairs agree, NaN where too
        few persons have both.
    """
    count = np.abs(order).T @ np.abs(order)
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = np.where(count >= MIN_PERSONS, (1 + (order.T @ order) / count) / 2, np.nan)
    np.fill_diagonal(agreement, np.nan)
    corrected = agreement.copy()  # as if the pairs found so far were exchanged back
    exchanged: list[int] = []
    while len(agreement):
        is_known = ~np.isnan(corrected)
        sums = np.nansum(corrected, axis=1) / np.maximum(is_known.sum(axis=1), 1)
        mean = np.where(is_known.any(axis=1), sums, 1.0)
        worst = int(mean.argmin())
        if mean[worst] >= _MIN_AGREEMENT or worst in exchanged:
            break
        others = np.flatnonzero(is_known[worst])
        if len(others) == 1 and is_known[others[0]].sum() == 1:
            exchanged = list({*exchanged, worst, int(others[0])})
            break
        exchanged.append(worst)
        corrected[worst] = 1 - corrected[worst]
        corrected[:, worst] = 1 - corrected[:, worst]
    return sorted(exchanged), agreement


def facing_fraction(order: np.ndarray) -> tuple[float, int]:
    """Return the fraction of known pairs that face the camera, and the number of known pairs."""
    count = int(np.abs(order).sum())
    if not count:
        return float("nan"), 0
    return float((order > 0).sum() / count), count
