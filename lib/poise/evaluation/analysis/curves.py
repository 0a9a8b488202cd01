"""Precision-recall curves and score calibration.

Letters: as poise.evaluation.analysis.matching.
"""

from __future__ import annotations

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.matching import NOT_COUNTED, Results

CURVE_THRESHOLDS = (0.5, 0.75, 0.9)  # OKS
BINS = 10


def precision_recall(results: Results) -> dict[str, list[float]]:
    """Return COCO's interpolated precision at 101 recalls, over all sizes.

    Returns: `recall`, the mean over the ten thresholds, and a list per threshold of
    CURVE_THRESHOLDS.
    """
    precision, _ = keypoint_ap.evaluate(
        results.truth.persons,
        results.image,
        results.keypoints,
        results.scores,
        results.truth.sigmas,
        sizes=[keypoint_ap.SIZES["all"]],
    )
    places = {
        f"OKS {threshold:g}": int(np.argmin(np.abs(keypoint_ap.THRESHOLDS - threshold)))
        for threshold in CURVE_THRESHOLDS
    }
    return {
        "recall": keypoint_ap.RECALLS.tolist(),
        "mean of .5 to .95": precision[:, :, 0].mean(axis=0).tolist(),
        **{name: precision[place, :, 0].tolist() for name, place in places.items()},
    }


def calibration(results: Results) -> dict[str, dict[str, object]]:
    """Return the calibration of person and keypoint scores.

    `persons` compares scores with the OKS of the match, 0 without a match. `joints` compares scores
    of labeled keypoints of matched predictions with the fraction of similarities above 0.5.
    Predictions that are not scored are excluded.

    Returns: for both, `score`, `value` (means) and `count` of BINS bins of equal size; `error`,
    the expected calibration error (Guo et al., ICML 2017), None for scores outside of [0, 1];
    `correlation`, Spearman's rank correlation, as the AP needs only a ranking.
    """
    pairs, persons = results.pairs, results.truth.persons
    counted = pairs.kind != NOT_COUNTED
    matched = np.flatnonzero(pairs.person >= 0)
    similarity = keypoint_ap.joint_similarity(
        persons, pairs.person[matched], results.keypoints[matched, :, :2], results.truth.sigmas
    )
    labelled = persons.keypoints[pairs.person[matched], :, 2] > 0
    return {
        "persons": _reliability(results.scores[counted], pairs.oks[counted]),
        "joints": _reliability(
            results.keypoints[matched][:, :, 2][labelled],
            (similarity > 0.5)[labelled].astype(float),
        ),
    }


def _reliability(score: np.ndarray, value: np.ndarray) -> dict[str, object]:
    if not len(score):
        return {"score": [], "value": [], "count": [], "error": None, "correlation": None}
    parts = [part for part in np.array_split(np.argsort(score, kind="stable"), BINS) if len(part)]
    mean_score = [float(score[part].mean()) for part in parts]
    mean_value = [float(value[part].mean()) for part in parts]
    count = [len(part) for part in parts]
    error = None
    if score.min() >= 0 and score.max() <= 1:
        error = float(np.average(np.abs(np.subtract(mean_score, mean_value)), weights=count))
    return {
        "score": mean_score,
        "value": mean_value,
        "count": count,
        "error": error,
        "correlation": _rank_correlation(score, value),
    }


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's correlation, None if one of the two is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
