"""Whether left and right are what the dataset file says: by how mirror pairs agree with each other,
and with faces.

In one person the left joint of most pairs lies on the same side of the right one: both shoulders
and hips are crossed in a picture from the front, none from the back. A pair that mostly contradicts
the others was exchanged. Letters: N persons, J joints, P mirror pairs.
"""

from __future__ import annotations

import numpy as np

from poise.datasets.validation.findings import Findings
from poise.structures.skeleton import Skeleton

LEAST_PERSONS = 20  # with both pairs labelled, before anything is said of them
# agreement below; wrists and ankles, which cross most, agree with the others in three quarters of
# COCO's persons
_CONTRADICTS = 0.35
_LEANS = 0.35
_FACE = ("left_eye", "right_eye")


def sided_pairs(skeleton: Skeleton) -> list[tuple[int, int]]:
    """The mirror pairs with the left joint first, as their names say: a mirror needs no order,
    so a dataset file may have any.
    """
    return [
        (b, a) if skeleton.side(a) > skeleton.side(b) else (a, b) for a, b in skeleton.flip_pairs
    ]


def sides(joints: np.ndarray, labelled: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """(N, P) float32: 1 where the left joint of a pair lies further right in the picture, -1
    further left, 0 where that is not known.

    joints (N, J, 2), labelled (N, J) bool. Distances below a twentieth of the person's extent tell
    nothing.
    """
    pairs = np.array(sided_pairs(skeleton), np.int64).reshape(-1, 2)
    x = joints[:, :, 0]
    widest = np.where(labelled, x, -np.inf).max(axis=1) - np.where(labelled, x, np.inf).min(axis=1)
    offset = x[:, pairs[:, 0]] - x[:, pairs[:, 1]]
    known = (
        labelled[:, pairs[:, 0]]
        & labelled[:, pairs[:, 1]]
        & (np.abs(offset) > 0.05 * widest[:, None])
    )
    return np.where(known, np.sign(offset), 0).astype(np.float32)


def exchanged(signs: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Places of the pairs that contradict the others, and (P, P) the share of persons in whom two
    pairs agree (NaN where too few have both).

    Where two pairs alone contradict each other both are named: which of them it is cannot be told.
    """
    count = np.abs(signs).T @ np.abs(signs)
    with np.errstate(invalid="ignore", divide="ignore"):
        agree = np.where(count >= LEAST_PERSONS, (1 + (signs.T @ signs) / count) / 2, np.nan)
    np.fill_diagonal(agree, np.nan)
    turned, found = agree.copy(), []
    while True:
        known = ~np.isnan(turned)
        mean = np.where(
            known.any(axis=1), np.nansum(turned, axis=1) / np.maximum(known.sum(axis=1), 1), 1.0
        )
        worst = int(mean.argmin()) if len(mean) else 0
        if not len(mean) or mean[worst] >= _CONTRADICTS or worst in found:
            return sorted(found), agree
        others = np.flatnonzero(known[worst])
        if len(others) == 1 and known[others[0]].sum() == 1:
            return sorted({*found, worst, int(others[0])}), agree
        found.append(worst)
        turned[worst], turned[:, worst] = 1 - turned[worst], 1 - turned[:, worst]


def lean(signs: np.ndarray) -> tuple[float, int]:
    """Share of the known signs that are 1, as of persons who face the camera, and how many are
    known.
    """
    known = int(np.abs(signs).sum())
    return (float((signs > 0).sum() / known) if known else float("nan")), known


def check(
    found: Findings, joints: np.ndarray, labelled: np.ndarray, skeleton: Skeleton
) -> np.ndarray:
    """Look at one set; returns its signs (N, P)."""
    signs, names, pairs = sides(joints, labelled, skeleton), skeleton.names, sided_pairs(skeleton)
    bad, agree = exchanged(signs)
    for pair in bad:
        left, right = (names[joint] for joint in pairs[pair])
        found.fault(
            f"left and right: {left} and {right} look exchanged: their sides agree with those of"
            f" other pairs in {100 * np.nanmean(agree[pair]):.0f} % of the persons; exchange them"
            " in the annotations, or in `joints` of the dataset file"
        )
    share, count = lean(signs)
    faces = [
        place for place, pair in enumerate(pairs) if tuple(names[joint] for joint in pair) == _FACE
    ]
    facing, seen = lean(signs[:, faces])
    if faces and seen >= LEAST_PERSONS and facing < _LEANS and not bad:
        found.fault(
            f"left and right: left_eye lies left of right_eye in {100 * (1 - facing):.0f} % of"
            f" {seen} faces, as in a mirror: left and right are exchanged throughout, or the images"
            " are mirrored"
        )
    elif not bad and count >= LEAST_PERSONS and share < _LEANS:
        found.warning(
            f"left and right: in {100 * (1 - share):.0f} % of the pairs the left joint lies left of"
            " the right one, as in people seen from behind; unless they are, left and right are"
            " exchanged (`joints` wants the person's own left)"
        )
    return signs


def compare(found: Findings, train: np.ndarray, test: np.ndarray) -> None:
    """Look at the signs (N, P) of the training and the test set together: one of them may be
    mirrored.
    """
    (a, count_a), (b, count_b) = lean(train), lean(test)
    if min(count_a, count_b) >= LEAST_PERSONS and min(a, b) < _LEANS and max(a, b) > 1 - _LEANS:
        found.fault(
            f"left and right: left joints lie on the right in {100 * a:.0f} % of the training set's"
            f" pairs and {100 * b:.0f} % of the test set's: one of them has left and right"
            " exchanged, or mirrored images"
        )
