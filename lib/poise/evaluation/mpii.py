"""PCKh of the MPII validation set: fraction of keypoints within half a head length.

Andriluka et al., 2D Human Pose Estimation, CVPR 2014, computed from gt_valid.mat as in HRNet's and
SimpleBaseline's lib/dataset/mpii.py. Letters: N persons; 16 keypoints.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from poise.errors import DataError
from poise.io.mat_file import read_matlab

T = TypeVar("T")
JOINTS = 16  # keypoints of gt_valid.mat
# head length over the diagonal of the head box (constant of MPII's evaluation)
SC_BIAS = 0.6
# pelvis and thorax, which the MPII evaluation does not score
EXCLUDED = slice(6, 8)
# rows of HRNet's table, and gt_valid.mat's names of the keypoints that each row averages
GROUPS = {
    "Head": ("head",),
    "Shoulder": ("lsho", "rsho"),
    "Elbow": ("lelb", "relb"),
    "Wrist": ("lwri", "rwri"),
    "Hip": ("lhip", "rhip"),
    "Knee": ("lkne", "rkne"),
    "Ankle": ("lank", "rank"),
}


def pckh(predictions: np.ndarray, gt_valid_mat: str | os.PathLike) -> dict[str, float]:
    """Return PCKh in percent under HRNet's names, in its order: Head ... Ankle, Mean, Mean@0.1.

    Shoulder to Ankle average left and right; Mean weights every keypoint except pelvis and thorax
    by its number of labels.

    Args:
        predictions: (N, 16, 2) pixels counted from 1, in the order of the annotation file. Network
            predictions count from 0 and need + 1. NaN counts as wrong.
        gt_valid_mat: path of gt_valid.mat.

    Raises DataError if the file cannot be read or has another number of persons.
    """
    errors, labelled, names = _head_relative_errors(predictions, gt_valid_mat)
    percent, count = _percent_within(errors, labelled, 0.5)
    figures = {
        group: float(np.mean([percent[names.index(joint)] for joint in joints]))
        for group, joints in GROUPS.items()
    }
    figures["Mean"] = _weighted_mean(percent, count)
    # HRNet's and SimpleBaseline's "0.1" is entry 11 of 0, 0.01, 0.02, ...: a threshold of 0.11.
    # Kept: their published figures use it. It gives about four points more than 0.1, which
    # mean_pckh computes.
    figures["Mean@0.1"] = _weighted_mean(
        *_percent_within(errors, labelled, np.arange(0, 0.51, 0.01)[11])
    )
    return figures


def mean_pckh(
    predictions: np.ndarray, gt_valid_mat: str | os.PathLike, threshold: float = 0.5
) -> float:
    """Return the Mean of pckh at a threshold in head lengths. Arguments and errors as pckh.

    At 0.1 it equals mmpose's PCKh@0.1. HRNet's Mean@0.1 uses 0.11 and is higher.
    """
    errors, labelled, _ = _head_relative_errors(predictions, gt_valid_mat)
    return _weighted_mean(*_percent_within(errors, labelled, threshold))


def per_joint_pckh(
    predictions: np.ndarray, gt_valid_mat: str | os.PathLike, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return PCKh and number of labels of each keypoint, pelvis and thorax included.

    Arguments and errors as pckh; `threshold` in head lengths.

    Returns: (16,) percent, NaN for a keypoint that is never labeled; (16,) int64 counts. In the
    order of MPII's annotation file.
    """
    errors, labelled, _ = _head_relative_errors(predictions, gt_valid_mat)
    return _percent_within(errors, labelled, threshold)


@dataclass(frozen=True)
class HeadGroundTruth:
    """Ground truth of gt_valid.mat.

    Attributes:
        positions: (16, 2, N) pixels counted from 1.
        labelled: (16, N) bool.
        heads: (N,) head lengths in pixels.
        names: names of the keypoints.
    """

    positions: np.ndarray
    labelled: np.ndarray
    heads: np.ndarray
    names: list[str]


def read_head_ground_truth(gt_valid_mat: str | os.PathLike) -> HeadGroundTruth:
    """Read gt_valid.mat. Raises DataError."""
    truth = read_matlab(gt_valid_mat, "ground truth of MPII")

    def field(name: str, kind: type[T]) -> T:
        value = truth.get(name)
        if not isinstance(value, kind):
            raise DataError(f"{gt_valid_mat}: not MPII ground truth: missing {name}")
        return value

    positions = field("pos_gt_src", np.ndarray).astype(np.float64)
    heads = field("headboxes_src", np.ndarray).astype(np.float64)
    labelled = np.asarray(field("jnt_missing", np.ndarray) == 0)
    names = field("dataset_joints", list)
    unnamed = [
        joint for joints in GROUPS.values() for joint in joints if joint not in names[:JOINTS]
    ]
    persons = positions.shape[-1]
    if (
        positions.shape != (JOINTS, 2, persons)
        or heads.shape != (2, 2, persons)
        or labelled.shape != (JOINTS, persons)
    ):
        raise DataError(
            f"{gt_valid_mat}: not MPII ground truth: unexpected shapes {positions.shape},"
            f" {heads.shape} and {labelled.shape}"
        )
    if unnamed:
        raise DataError(
            f"{gt_valid_mat}: not MPII ground truth: dataset_joints has no {', '.join(unnamed)}"
        )
    return HeadGroundTruth(
        positions, labelled, np.linalg.norm(heads[1] - heads[0], axis=0) * SC_BIAS, names
    )


def _head_relative_errors(
    predictions: np.ndarray, gt_valid_mat: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return distances (16, N) in head lengths, label mask (16, N) and 16 keypoint names."""
    predictions = np.asarray(predictions, np.float64)
    if predictions.ndim != 3 or predictions.shape[1:] != (JOINTS, 2):
        raise ValueError(f"pckh: expected predictions (N, 16, 2); got {predictions.shape}")
    truth = read_head_ground_truth(gt_valid_mat)
    if len(predictions) != len(truth.heads):
        raise DataError(
            f"{gt_valid_mat}: has {len(truth.heads)} persons, predictions have"
            f" {len(predictions)}; test on the split that it belongs to (2958 for HRNet's"
            " valid.json)"
        )
    return head_normalized_errors(predictions, truth), truth.labelled, truth.names


def head_normalized_errors(predictions: np.ndarray, truth: HeadGroundTruth) -> np.ndarray:
    """Return distances (16, N) of predictions to labels in head lengths.

    Args:
        predictions: (N, 16, 2) pixels counted from 1.
        truth: from read_head_ground_truth. A head of length 0 gives NaN or infinity.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return (
            np.linalg.norm(predictions.transpose(1, 2, 0) - truth.positions, axis=1) / truth.heads
        )


def _percent_within(
    errors: np.ndarray, labelled: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return percent (16,) of labels with an error up to `threshold`, and counts (16,)."""
    count = labelled.sum(axis=1)
    num_correct = ((errors <= threshold) & labelled).sum(axis=1)  # NaN is never correct
    return 100.0 * num_correct / np.where(count > 0, count, np.nan), count


def _weighted_mean(percent: np.ndarray, count: np.ndarray) -> float:
    scored = count > 0
    scored[EXCLUDED] = False
    if not scored.any():
        return float("nan")
    return float(np.average(percent[scored], weights=count[scored]))
