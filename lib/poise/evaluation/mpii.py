"""PCKh of the MPII validation set (Andriluka et al., 2014): joints found within half a head's
length.

As HRNet's and SimpleBaseline's lib/dataset/mpii.py compute it from gt_valid.mat. Letters: N
persons, 16 joints.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from poise.errors import DataError
from poise.io.mat_file import read_matlab

T = TypeVar("T")
JOINTS = 16  # of gt_valid.mat, which this evaluation knows by name and place
# a head's length is 0.6 of the diagonal of its box (the constant of MPII's own evaluation)
SC_BIAS = 0.6
# joints that are not scored: pelvis and thorax, which the MPII evaluation leaves out
EXCLUDED = slice(6, 8)
# the rows of HRNet's table, and gt_valid.mat's names of the joints that each one averages
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
    """PCKh in percent under HRNet's names and in its order: Head ... Ankle, Mean, Mean@0.1.

    predictions: (N, 16, 2) pixels that start at 1, in the order of the annotation file; predictions
    of our networks start at 0 and need + 1. A prediction that is NaN is counted as wrong.
    gt_valid_mat: path of gt_valid.mat.

    Shoulder to Ankle average the left and the right figure; Mean weighs every joint but pelvis and
    thorax by how often it is labelled. Raises DataError where the file cannot be read or holds
    another number of persons.
    """
    errors, labelled, names = _head_relative_errors(predictions, gt_valid_mat)
    share, count = _share_within(errors, labelled, 0.5)
    figures = {
        group: float(np.mean([share[names.index(joint)] for joint in joints]))
        for group, joints in GROUPS.items()
    }
    figures["Mean"] = _weighted_mean(share, count)
    # HRNet's and SimpleBaseline's "0.1" is entry 11 of 0, 0.01, 0.02, ...: a threshold of 0.11.
    # Their published figures have it so, and it gives about four points more than 0.1 (for which
    # call mean_pckh)
    figures["Mean@0.1"] = _weighted_mean(
        *_share_within(errors, labelled, np.arange(0, 0.51, 0.01)[11])
    )
    return figures


def mean_pckh(
    predictions: np.ndarray, gt_valid_mat: str | os.PathLike, threshold: float = 0.5
) -> float:
    """The Mean of pckh at any threshold, in head lengths; arguments and errors as pckh.

    At 0.1 it is what mmpose calls PCKh@0.1, and less than the Mean@0.1 of HRNet's tables, which is
    taken at 0.11.
    """
    errors, labelled, _ = _head_relative_errors(predictions, gt_valid_mat)
    return _weighted_mean(*_share_within(errors, labelled, threshold))


def per_joint_pckh(
    predictions: np.ndarray, gt_valid_mat: str | os.PathLike, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """PCKh of each of the 16 joints (in the order of MPII's annotation file, pelvis and thorax too)
    and its number of labels.

    Arguments and errors as pckh; threshold: in head lengths. Returns (16,) percent, NaN where a
    joint is never labelled, and (16,) int64 counts.
    """
    errors, labelled, _ = _head_relative_errors(predictions, gt_valid_mat)
    return _share_within(errors, labelled, threshold)


@dataclass(frozen=True)
class HeadGroundTruth:
    """What gt_valid.mat holds of N persons. positions (16, 2, N) pixels from 1 on, labelled (16,
    N) bool. heads (N,): lengths in pixels. names: its joints'.
    """

    positions: np.ndarray
    labelled: np.ndarray
    heads: np.ndarray
    names: list[str]


def read_head_ground_truth(gt_valid_mat: str | os.PathLike) -> HeadGroundTruth:
    """The ground truth of a MATLAB file. Raises DataError, naming it."""
    truth = read_matlab(gt_valid_mat, "ground truth of MPII")

    def field(name: str, kind: type[T]) -> T:
        value = truth.get(name)
        if not isinstance(value, kind):
            raise DataError(f"{gt_valid_mat} is no ground truth of MPII: it has no {name}")
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
            f"{gt_valid_mat} is no ground truth of MPII: its arrays have other shapes,"
            f" {positions.shape}, {heads.shape} and {labelled.shape}"
        )
    if unnamed:
        raise DataError(
            f"{gt_valid_mat} is no ground truth of MPII: its dataset_joints do not name"
            f" {', '.join(unnamed)}"
        )
    return HeadGroundTruth(
        positions, labelled, np.linalg.norm(heads[1] - heads[0], axis=0) * SC_BIAS, names
    )


def _head_relative_errors(
    predictions: np.ndarray, gt_valid_mat: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(16, N) distances in head lengths, (16, N) whether the joint is labelled, and the file's
    16 joint names.
    """
    predictions = np.asarray(predictions, np.float64)
    if predictions.ndim != 3 or predictions.shape[1:] != (JOINTS, 2):
        raise ValueError(f"PCKh needs predictions (N, 16, 2); got {predictions.shape}")
    truth = read_head_ground_truth(gt_valid_mat)
    if len(predictions) != len(truth.heads):
        raise DataError(
            f"{len(predictions)} persons were predicted, {gt_valid_mat} holds {len(truth.heads)}:"
            " test on the set that it belongs to (for valid.json of HRNet that is 2958)"
        )
    return head_normalized_errors(predictions, truth), truth.labelled, truth.names


def head_normalized_errors(predictions: np.ndarray, truth: HeadGroundTruth) -> np.ndarray:
    """(16, N) distances of predictions (N, 16, 2), pixels from 1 on, to the labels, in head
    lengths; NaN or infinite where they have none.
    """
    # a head of no size: nothing is near enough
    with np.errstate(divide="ignore", invalid="ignore"):
        return (
            np.linalg.norm(predictions.transpose(1, 2, 0) - truth.positions, axis=1) / truth.heads
        )


def _share_within(
    errors: np.ndarray, labelled: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """(16,) percent of the labelled joints with an error of at most `threshold`, and (16,) how
    many are labelled.
    """
    count = labelled.sum(axis=1)
    found = ((errors <= threshold) & labelled).sum(axis=1)  # NaN is never within
    return 100.0 * found / np.where(count > 0, count, np.nan), count


def _weighted_mean(share: np.ndarray, count: np.ndarray) -> float:
    scored = count > 0
    scored[EXCLUDED] = False
    return float(np.average(share[scored], weights=count[scored])) if scored.any() else float("nan")
