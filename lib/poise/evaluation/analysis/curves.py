"""Precision over recall, and how good scores are. Letters: as
poise.evaluation.analysis.matching.
"""

from __future__ import annotations

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.matching import NOT_COUNTED, Results

SHOWN = (0.5, 0.75, 0.9)  # OKS thresholds with a curve of their own
BINS = 10


def precision_recall(found: Results) -> dict[str, list[float]]:
    """recall: 101 levels; 'mean' over the ten thresholds and one list for each of SHOWN: COCO's
    interpolated precision over all sizes.
    """
    precision, _ = keypoint_ap.evaluate(
        found.truth.persons,
        found.image,
        found.keypoints,
        found.scores,
        found.truth.sigmas,
        sizes=[keypoint_ap.SIZES["all"]],
    )
    places = {
        f"OKS {threshold:g}": int(np.argmin(np.abs(keypoint_ap.THRESHOLDS - threshold)))
        for threshold in SHOWN
    }
    return {
        "recall": keypoint_ap.RECALLS.tolist(),
        "mean of .5 to .95": precision[:, :, 0].mean(axis=0).tolist(),
        **{name: precision[place, :, 0].tolist() for name, place in places.items()},
    }


def calibration(found: Results) -> dict[str, dict[str, object]]:
    """persons: a person's score beside the OKS with who was found, 0 for nobody; joints: a joint's
    score beside how often its similarity is above 0.5.

    Predictions that do not count are left out. Joints: labelled ones of predictions that found
    somebody. Each has BINS bins with equally many members: score, value (means of a bin), count;
    error, the mean distance of score and value, weighted by count (expected calibration error, Guo
    et al., ICML 2017); correlation, Spearman's rank correlation of score and value: scores that
    only rank need not be calibrated. Error is None where scores leave [0, 1].
    """
    pairs, persons = found.pairs, found.truth.persons
    counted = pairs.kind != NOT_COUNTED
    own = np.flatnonzero(pairs.person >= 0)
    similarity = keypoint_ap.joint_similarity(
        persons, pairs.person[own], found.keypoints[own, :, :2], found.truth.sigmas
    )
    labelled = persons.keypoints[pairs.person[own], :, 2] > 0
    return {
        "persons": _reliability(found.scores[counted], pairs.oks[counted]),
        "joints": _reliability(
            found.keypoints[own][:, :, 2][labelled], (similarity > 0.5)[labelled].astype(float)
        ),
    }


def _reliability(score: np.ndarray, value: np.ndarray) -> dict[str, object]:
    if not len(score):
        return {"score": [], "value": [], "count": [], "error": None, "correlation": None}
    parts = [part for part in np.array_split(np.argsort(score, kind="stable"), BINS) if len(part)]
    mean_score, mean_value = (
        [float(array[part].mean()) for part in parts] for array in (score, value)
    )
    count = [len(part) for part in parts]
    within = score.min() >= 0 and score.max() <= 1
    error = (
        float(np.average(np.abs(np.subtract(mean_score, mean_value)), weights=count))
        if within
        else None
    )
    return {
        "score": mean_score,
        "value": mean_value,
        "count": count,
        "error": error,
        "correlation": _rank_correlation(score, value),
    }


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, None where one of the two is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
