"""Diagnose a PCKh of 0 or NaN: test for known causes and report those that apply.

Letters: N persons; 16 keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from poise.evaluation.diagnose import check_constant_predictions, is_zero, name_metrics
from poise.evaluation.mpii import (
    HeadGroundTruth,
    head_normalized_errors,
    mean_pckh,
    read_head_ground_truth,
)

_MIN_GAIN = 10.0  # points by which swapping left and right must raise the PCKh to be reported
_MAX_OFFSET = 2.0  # pixels between a label in the two files, which round differently
_BOX_RATIO = (0.3, 6.0)  # normal box size over person size; truncated persons have large boxes
_MIN_HEAD = 0.01  # head length over person size


def should_diagnose(figures: Mapping[str, float]) -> bool:
    """Return whether a metric is 0 or NaN."""
    return any(np.isnan(value) or is_zero(value) for value in figures.values())


def diagnose(
    gt_valid_mat: str | os.PathLike,
    keypoints: np.ndarray,
    boxes: np.ndarray,
    joints: np.ndarray | None,
    visible: np.ndarray | None,
    flip_indices: np.ndarray,
    figures: Mapping[str, float],
    weights: str = "",
) -> list[str]:
    """Return one line per cause of metrics of 0 or NaN.

    Args:
        gt_valid_mat: path of gt_valid.mat.
        keypoints: (N, 16, 2) predictions, pixels counted from 0.
        boxes: (N, 4) x, y, width, height of the boxes that were cropped.
        joints: (N, 16, 2) labels of the annotation file, pixels counted from 0; None: not known.
        visible: (N, 16) their visibility; None: not known.
        flip_indices: (16,) of the skeleton.
        figures: from pckh.
        weights: warning about the origin of the network's weights, or ''.

    Raises DataError as pckh.
    """
    truth = read_head_ground_truth(gt_valid_mat)
    lines = []
    empty = [name for name, value in figures.items() if np.isnan(value)]
    zero = [name for name, value in figures.items() if is_zero(value)]
    if empty:
        lines.append(
            f"{name_metrics(empty)} NaN: {gt_valid_mat} has no labels of the keypoints averaged"
        )
    if zero and truth.labelled.any():
        file = str(gt_valid_mat)
        causes = [weights] if weights else []
        mismatch = _check_heads(truth, file) or _check_order(truth, file, joints, visible)
        if not mismatch:
            mismatch = _check_boxes(truth, boxes)
            mismatch += _check_left_right(file, keypoints, flip_indices, figures)
        causes += mismatch
        if is_zero(figures["Mean"]):
            causes += check_constant_predictions(keypoints, boxes)
        causes = causes or [_describe_distance(truth, keypoints)]
        lines += [f"{name_metrics(zero)} 0: {cause}" for cause in causes]
    return lines


def _extents(truth: HeadGroundTruth) -> np.ndarray:
    """Return the longer side (N,) of the box around labeled keypoints, -inf without labels."""
    labelled = truth.labelled.T[:, :, None]
    points = truth.positions.transpose(2, 0, 1)
    high = np.where(labelled, points, -np.inf).max(axis=1)
    low = np.where(labelled, points, np.inf).min(axis=1)
    return (high - low).max(axis=1)


def _check_heads(truth: HeadGroundTruth, file: str) -> list[str]:
    """Check that the head boxes are in pixels."""
    ratio = np.median(truth.heads / np.maximum(_extents(truth), 1))
    if not ratio < _MIN_HEAD:
        return []
    return [
        f"wrong unit of head boxes: half of those in {file} (headboxes_src) are at most"
        f" {np.median(truth.heads):.3g} pixels long, less than {100 * _MIN_HEAD:g} % of the person"
    ]


def _check_order(
    truth: HeadGroundTruth, file: str, joints: np.ndarray | None, visible: np.ndarray | None
) -> list[str]:
    """Check that person n of the annotations is person n of the ground truth."""
    if joints is None or visible is None:
        return []
    in_both = (visible > 0) & truth.labelled.T
    offset = np.where(in_both[:, :, None], joints + 1 - truth.positions.transpose(2, 0, 1), 0)
    is_moved = np.linalg.norm(offset, axis=2) > _MAX_OFFSET
    differs = is_moved.sum(axis=1) > 0.5 * in_both.sum(axis=1)
    if differs.mean() <= 0.1:
        return []
    return [
        f"persons do not match: {differs.sum()} of {len(differs)} persons have other keypoints in"
        f" {file} than in the annotations (the first is person {int(np.argmax(differs))}); use"
        " files of the same split in the same order"
    ]


def _check_boxes(truth: HeadGroundTruth, boxes: np.ndarray) -> list[str]:
    """Check that the boxes contain the labeled keypoints."""
    extent = _extents(truth)
    has_extent = extent > 10  # a single keypoint has no box
    if not has_extent.any():
        return []
    ratio = float(np.median(boxes[has_extent, 2:].max(axis=1) / extent[has_extent]))
    if not _BOX_RATIO[0] <= ratio <= _BOX_RATIO[1]:
        return [
            f"wrong box size: boxes of the annotations are {ratio:.3g} times as large as the"
            " persons; `scale` is in units of 200 pixels"
        ]
    points = truth.positions.transpose(2, 0, 1) - 1
    low = boxes[:, None, :2]
    is_inside = ((points >= low) & (points <= low + boxes[:, None, 2:])).all(axis=2)
    inside = is_inside[truth.labelled.T].mean()
    if inside >= 0.4:
        return []
    return [
        f"misplaced boxes: {100 * inside:.0f} % of the labeled keypoints are inside the boxes of"
        " the annotations; `center` is x, y in pixels"
    ]


def _check_left_right(
    file: str, keypoints: np.ndarray, flip_indices: np.ndarray, figures: Mapping[str, float]
) -> list[str]:
    """Check whether left and right are swapped."""
    after = mean_pckh(keypoints[:, flip_indices] + 1, file)
    if not after > figures["Mean"] + _MIN_GAIN:
        return []
    return [
        f"left and right swapped: swapping the keypoints raises the PCKh from"
        f" {figures['Mean']:.1f} to {after:.1f}; check their order in the annotations, in `joints`"
        " and in the training of the weights"
    ]


def _describe_distance(truth: HeadGroundTruth, keypoints: np.ndarray) -> str:
    """Return how far predictions are from the labels, if no known cause applies."""
    errors = head_normalized_errors(keypoints + 1, truth)[truth.labelled]
    return (
        "no known cause applies (heads, persons, boxes, left and right, weights); the median"
        f" distance to the labels is {np.median(errors):.2g} head lengths: the network may need"
        " more training"
    )
