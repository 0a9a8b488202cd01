"""Errors of a result file by kind, and the AP that each kind costs.

Source: Ronchi & Perona, Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation, ICCV
2017, arXiv 1707.05388, with the thresholds of the authors' coco-analyze (params.oksLocThrs,
params.jitterKsThrs). The similarity of a keypoint to a label is its term of the
OKS. Letters: as poise.evaluation.analysis.matching; R predictions with a match.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.matching import (
    BACKGROUND,
    DUPLICATE,
    OUTRANKED,
    GroundTruth,
    Results,
    average_precision,
    pairs_of_images,
)

# similarities: below NEAR a keypoint is wrong; above EXACT annotators differ as much
NEAR, EXACT = 0.5, 0.85

NOT_LABELLED, GOOD, JITTER, INVERSION, SWAP, MISS = range(6)
JOINTS = ("not labelled", "good", "jitter", "inversion", "swap", "miss")
JOINT_ERRORS = {"jitter": JITTER, "inversion": INVERSION, "swap": SWAP, "miss": MISS}

#: meaning of each row of the table, in the order of the page
MEANINGS = {
    "jitter": f"near its position, similarity {NEAR} to {EXACT}",
    "inversion": "at the keypoint of the other side of the same person",
    "swap": "at the keypoint of another person, of either side",
    "miss": f"not near any of these, similarity below {NEAR}",
    "all joint errors": "the four kinds above",
    "duplicate": "person already matched by a prediction with a higher score",
    "background": "prediction with an OKS below 0.1 to every labeled person of the image",
    "missed person": "labeled person without a prediction of OKS 0.1 or more",
    "score": (
        "counted: predictions scored below a worse one of the same person; corrected: all"
        " predictions are ranked by OKS"
    ),
}


@dataclass(frozen=True)
class JointErrors:
    """Keypoints of R predictions that are matched with a person.

    Attributes:
        prediction, person: (R,) indices of the matches.
        kind: (R, K) NOT_LABELLED to MISS.
        similarity: (R, K) to the person's label, 0 without a label.
        corrected: (R, K, 2) position without the error; as predicted if there is none.
    """

    prediction: np.ndarray
    person: np.ndarray
    kind: np.ndarray
    similarity: np.ndarray
    corrected: np.ndarray

    def keypoints(self, results: Results, *kinds: int) -> np.ndarray:
        """Return the predictions (D, K, 3) with keypoint errors of these kinds corrected."""
        keypoints = results.keypoints.copy()
        rows, joints = np.nonzero(np.isin(self.kind, kinds))
        keypoints[self.prediction[rows], joints, :2] = self.corrected[rows, joints]
        return keypoints


def joint_errors(results: Results) -> JointErrors:
    """Classify the labeled keypoints of all matched persons as good or one of four errors.

    A keypoint with a similarity of EXACT or more is good. Otherwise the most similar label decides:
    its own (jitter), that of the person's other side (inversion), or that of another person, of
    either side (swap). If all similarities are below NEAR it is a miss.

    Corrected, jitter has the similarity EXACT and a miss NEAR, on the line from the label to the
    prediction. Inversions and swaps keep their offset and similarity, relative to the right label.
    (coco-analyze omits a factor 2 of the OKS here, so its corrected keypoints are closer.)
    """
    truth = results.truth
    prediction = np.flatnonzero(results.pairs.person >= 0)
    person = results.pairs.person[prediction]
    points = results.keypoints[prediction, :, :2]
    labels = truth.persons.keypoints[person]
    flip_indices = truth.skeleton.flip_indices
    # 0: no other side, such as a nose
    has_side = np.where(flip_indices != np.arange(len(flip_indices)), 1.0, 0.0)
    similarity = keypoint_ap.joint_similarity(truth.persons, person, points, truth.sigmas)
    inverted = keypoint_ap.joint_similarity(
        truth.persons, person, points, truth.sigmas, labels[:, flip_indices]
    )
    inverted = inverted * has_side
    other, other_labels = _most_similar_others(results, points, person)
    best = np.maximum(np.maximum(similarity, inverted), other)
    kind = np.select(
        [
            labels[:, :, 2] <= 0,
            similarity >= EXACT,
            best < NEAR,
            similarity >= best,
            inverted >= best,
        ],
        [NOT_LABELLED, GOOD, MISS, JITTER, INVERSION],
        SWAP,
    )
    corrected = _correct(truth, person, points, kind, other_labels)
    return JointErrors(prediction, person, kind, similarity, corrected)


def _correct(
    truth: GroundTruth,
    person: np.ndarray,
    points: np.ndarray,
    kind: np.ndarray,
    other_labels: np.ndarray,
) -> np.ndarray:
    """Return the corrected positions (R, K, 2), see joint_errors.

    Args:
        truth: the labels.
        person: (R,) matched persons.
        points: (R, K, 2) predictions.
        kind: (R, K).
        other_labels: (R, K, 3) of _most_similar_others.
    """
    labels = truth.persons.keypoints[person]
    targets = labels[:, :, :2]
    size = np.sqrt(truth.persons.area + np.spacing(1))[person][:, None]
    # jitter and misses: on the line to the label
    offset = points - targets
    distance = np.linalg.norm(offset, axis=2)
    deviations = np.select(
        [kind == JITTER, kind == MISS],
        [np.sqrt(-2 * np.log(EXACT)), np.sqrt(-2 * np.log(NEAR))],
        0.0,
    )
    remaining = deviations * 2 * truth.sigmas * size
    corrected = targets + offset * (remaining / np.where(distance > 0, distance, 1))[:, :, None]
    # inversions and swaps: with the offset to the wrong label, scaled to the person's size
    is_swap = kind == SWAP
    inverted_labels = labels[:, truth.skeleton.flip_indices, :2]
    wrong = np.where(is_swap[:, :, None], other_labels[:, :, :2], inverted_labels)
    other_size = np.where(other_labels[:, :, 2] > 0, other_labels[:, :, 2], 1)
    scale = np.where(is_swap, size / other_size, 1.0)
    is_moved = np.isin(kind, (INVERSION, SWAP))
    corrected[is_moved] = (targets + (points - wrong) * scale[:, :, None])[is_moved]
    is_unchanged = np.isin(kind, (GOOD, NOT_LABELLED))
    corrected[is_unchanged] = points[is_unchanged]
    return corrected


def _most_similar_others(
    results: Results, points: np.ndarray, person: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar keypoint, of either side, of other persons of the image.

    Returns: similarity (R, K), and (R, K, 3) the x and y of the label and the size of the person.
    """
    truth = results.truth
    labels = truth.persons.keypoints
    flip_indices = truth.skeleton.flip_indices
    best = np.zeros(points.shape[:2])
    best_labels = np.zeros((*points.shape[:2], 3))
    row, other = pairs_of_images(truth.persons.image[person], truth.persons.image)
    is_other = (other != person[row]) & truth.counted[other]
    row, other = row[is_other], other[is_other]
    # one other person of each row at a time; few rows have many
    turn = np.arange(len(row)) - np.searchsorted(row, row)
    for number in range(int(turn.max(initial=-1)) + 1):
        r = row[turn == number]
        g = other[turn == number]
        for order in (np.arange(len(flip_indices)), flip_indices):
            candidates = labels[g][:, order]
            similarity = keypoint_ap.joint_similarity(
                truth.persons, g, points[r], truth.sigmas, candidates
            )
            is_better = similarity > best[r]
            at, k = np.nonzero(is_better)
            best[r[at], k] = similarity[is_better]
            best_labels[r[at], k, :2] = candidates[at, k, :2]
            best_labels[r[at], k, 2] = np.sqrt(truth.persons.area[g[at]])
    return best, best_labels


def costs(
    results: Results, errors: JointErrors, base: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Return the count and the AP cost of each kind of MEANINGS.

    The cost is AP, AP .5 and AP .75 after correcting the errors of one kind, minus `base`.
    Duplicates, background predictions and missed persons are corrected by removing them.

    base: average_precision(results).
    """
    pairs, persons = results.pairs, results.truth.persons
    counts = {name: int((errors.kind == kind).sum()) for name, kind in JOINT_ERRORS.items()}
    corrected = {}
    for name, kind in JOINT_ERRORS.items():
        if counts[name]:
            corrected[name] = average_precision(results, errors.keypoints(results, kind))
    counts["all joint errors"] = sum(counts.values())
    if counts["all joint errors"]:
        keypoints = errors.keypoints(results, *JOINT_ERRORS.values())
        corrected["all joint errors"] = average_precision(results, keypoints)
    for name, kind in (("duplicate", DUPLICATE), ("background", BACKGROUND)):
        is_wrong = pairs.kind == kind
        counts[name] = int(is_wrong.sum())
        if counts[name]:
            corrected[name] = average_precision(results.only(~is_wrong))
    is_missed = results.truth.counted & (pairs.prediction < 0)
    counts["missed person"] = int(is_missed.sum())
    if counts["missed person"]:
        remaining = replace(persons, ignored=persons.ignored | is_missed)
        corrected["missed person"] = average_precision(results, persons=remaining)
    counts["score"] = int((pairs.kind == OUTRANKED).sum())
    corrected["score"] = average_precision(results, scores=ranked_by_oks(results))
    return {name: _cost(counts[name], corrected.get(name, base), base) for name in MEANINGS}


def _cost(count: int, corrected: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    """Return count and differences; 0 for a metric of -1."""
    cost: dict[str, float] = {"count": count}
    for key, value in corrected.items():
        cost[key] = value - base[key] if value >= 0 else 0.0
    return cost


def ranked_by_oks(results: Results) -> np.ndarray:
    """Return scores (D,) that give about the highest AP that these predictions allow.

    The score is the OKS with the most similar person. Each person is used once, by the most similar
    prediction; the other predictions are scored below.
    """
    truth = results.truth
    d, g = pairs_of_images(results.image, truth.persons.image)
    similarity = keypoint_ap.oks(truth.persons, g, results.keypoints[d, :, :2], truth.sigmas)
    scores = np.full(len(results), -1.0)
    taken = np.zeros(len(truth.counted), bool)
    # the rank of predictions matched with a person that is not scored does not matter
    for pair in np.argsort(-similarity, kind="stable").tolist():
        if similarity[pair] <= 0:
            break
        if truth.counted[g[pair]] and not taken[g[pair]] and scores[d[pair]] < 0:
            scores[d[pair]] = similarity[pair]
            taken[g[pair]] = True
    return scores


def table(errors: JointErrors) -> dict[str, np.ndarray]:
    """Return counts (K,) of each kind of JOINTS, except without labels, over matched persons."""
    return {JOINTS[which]: (errors.kind == which).sum(axis=0) for which in range(GOOD, MISS + 1)}
