"""Why a figure of the PCKh is 0 or no number: each reason is tested for, and only those that apply
are told.

Letters: N persons, 16 joints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from poise.evaluation.diagnose import check_constant_predictions, is_zero
from poise.evaluation.mpii import (
    HeadGroundTruth,
    head_normalized_errors,
    mean_pckh,
    read_head_ground_truth,
)

_MUCH = 10.0  # points that an exchange of left and right must win to be the reason
_APART = 2.0  # pixels from which a label is another one; the two files round differently
_USUAL = (0.3, 6.0)  # the box's side over the person's extent; half persons have large boxes
_SMALL_HEAD = 0.01  # of the person's extent


def should_diagnose(figures: Mapping[str, float]) -> bool:
    """Whether a figure is 0 or no number."""
    return any(np.isnan(value) or is_zero(value) for value in figures.values())


def diagnose(
    gt_valid_mat: str | os.PathLike,
    keypoints: np.ndarray,
    boxes: np.ndarray,
    joints: np.ndarray | None,
    visible: np.ndarray | None,
    flip_order: np.ndarray,
    figures: Mapping[str, float],
    weights: str = "",
) -> list[str]:
    """Lines that say why figures are 0 or NaN, none where none is.

    keypoints (N, 16, 2): predictions. boxes (N, 4): x, y, width, height that they were cut out by.
    joints (N, 16, 2), visible (N, 16): the labels of the annotation file, None where it has none.
    All in pixels from 0 on. flip_order (16,): of the skeleton. figures: what pckh returned.
    weights: what is known of where the network's weights come from. Raises DataError as pckh.
    """
    truth = read_head_ground_truth(gt_valid_mat)
    lines = []
    nan, zero = (
        [name for name, value in figures.items() if test(value)] for test in (np.isnan, is_zero)
    )
    if nan:
        lines.append(
            f"{', '.join(nan)} {'is' if len(nan) == 1 else 'are'} no number: {gt_valid_mat} has"
            " such a joint labelled in nobody"
        )
    if zero and truth.labelled.any():
        file = str(gt_valid_mat)
        found = [weights] if weights else []
        found += (
            _heads(truth, file)
            or _other_persons(truth, file, joints, visible)
            or [*_boxes(truth, boxes), *_mirrored(file, keypoints, flip_order, figures)]
        )
        if is_zero(figures["Mean"]):
            found += check_constant_predictions(keypoints, boxes)
        found = found or [_distance(truth, keypoints)]
        lines += [
            f"{', '.join(zero)} {'is' if len(zero) == 1 else 'are'} 0: {line}" for line in found
        ]
    return lines


def _extents(truth: HeadGroundTruth) -> np.ndarray:
    """(N,) the longer side of the box around the labelled joints; -inf where there are none."""
    labelled = truth.labelled.T[:, :, None]
    points = truth.positions.transpose(2, 0, 1)
    return (
        np.where(labelled, points, -np.inf).max(axis=1)
        - np.where(labelled, points, np.inf).min(axis=1)
    ).max(axis=1)


def _heads(truth: HeadGroundTruth, file: str) -> list[str]:
    """Whether a head's length is what the joints are measured by."""
    share = truth.heads / np.maximum(_extents(truth), 1)
    if not np.median(share) < _SMALL_HEAD:
        return []
    return [
        f"head boxes in another unit: half of those in {file} (headboxes_src) have a length of"
        f" {np.median(truth.heads):.3g} pixels or less, under {100 * _SMALL_HEAD:g} % of the person"
    ]


def _other_persons(
    truth: HeadGroundTruth, file: str, joints: np.ndarray | None, visible: np.ndarray | None
) -> list[str]:
    """Whether person n of the annotations is person n of the ground truth."""
    if joints is None or visible is None:
        return []
    both = (visible > 0) & truth.labelled.T
    apart = np.linalg.norm(
        np.where(both[:, :, None], joints + 1 - truth.positions.transpose(2, 0, 1), 0), axis=2
    )
    other = (apart > _APART).sum(axis=1) > 0.5 * both.sum(axis=1)
    if other.mean() <= 0.1:
        return []
    return [
        f"ids do not match: {other.sum()} of {len(other)} persons have their joints elsewhere in"
        f" {file} than in the annotations (the first is person {int(np.argmax(other))}): the two"
        " are of different sets, or in another order"
    ]


def _boxes(truth: HeadGroundTruth, boxes: np.ndarray) -> list[str]:
    """Whether the boxes hold the labelled joints."""
    extent = _extents(truth)
    several = extent > 10  # one joint has no box
    if not several.any():
        return []
    ratio = float(np.median(boxes[several, 2:].max(axis=1) / extent[several]))
    if not _USUAL[0] <= ratio <= _USUAL[1]:
        return [
            f"boxes in another unit: those of the annotations are {ratio:.3g} times as large as the"
            " persons; `scale` counts 200 pixels"
        ]
    points = truth.positions.transpose(2, 0, 1) - 1
    inside = (
        ((points >= boxes[:, None, :2]) & (points <= boxes[:, None, :2] + boxes[:, None, 2:]))
        .all(axis=2)[truth.labelled.T]
        .mean()
    )
    if inside >= 0.4:
        return []
    return [
        f"boxes elsewhere: {100 * inside:.0f} % of the labelled joints lie in the boxes of the"
        " annotations; `center` is x, y in pixels"
    ]


def _mirrored(
    file: str, keypoints: np.ndarray, flip_order: np.ndarray, figures: Mapping[str, float]
) -> list[str]:
    """Whether left and right are exchanged."""
    after = mean_pckh(keypoints[:, flip_order] + 1, file)
    if not after > figures["Mean"] + _MUCH:
        return []
    return [
        f"joints mirrored: with left and right exchanged the PCKh is {after:.1f}, as it is"
        f" {figures['Mean']:.1f}; the annotations, `joints` or the weights have them the other way"
        " round"
    ]


def _distance(truth: HeadGroundTruth, keypoints: np.ndarray) -> str:
    """What is left to say: how far the predictions are from the labels."""
    apart = head_normalized_errors(keypoints + 1, truth)[truth.labelled]
    return (
        "none of the faults that are looked for (heads, persons, boxes, left and right, weights);"
        f" half of the joints are {np.median(apart):.2g} head lengths or more away from their"
        " labels, as of a network that is not trained far enough"
    )
