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
    truth, pairs = results.truth, results.pairs
    prediction = np.flatnonzero(pairs.person >= 0)
    person = pairs.person[prediction]
    points, labels = results.keypoints[prediction, :, :2], truth.persons.keypoints
    mirror = truth.skeleton.flip_indices
    side = np.where(mirror != np.arange(len(mirror)), 1.0, 0.0)  # 0: no other side, such as a nose
    labelled = labels[person, :, 2] > 0
    own = keypoint_ap.joint_similarity(truth.persons, person, points, truth.sigmas)
    inverted = (
        keypoint_ap.joint_similarity(
            truth.persons, person, points, truth.sigmas, labels[person][:, mirror]
        )
        * side
    )
    other, other_place = _of_others(results, points, person)

    best = np.maximum(np.maximum(own, inverted), other)
    kind = np.where(
        own >= EXACT,
        GOOD,
        np.where(
            best < NEAR,
            MISS,
            np.where(own >= best, JITTER, np.where(inverted >= best, INVERSION, SWAP)),
        ),
    )
    kind[~labelled] = NOT_LABELLED

    places = labels[person, :, :2]
    offset = points - places
    sizes = np.sqrt(truth.persons.area + np.spacing(1))
    distance = np.linalg.norm(offset, axis=2)
    left = (
        np.select(
            [kind == JITTER, kind == MISS],
            [np.sqrt(-2 * np.log(EXACT)), np.sqrt(-2 * np.log(NEAR))],
            0.0,
        )
        * 2
        * truth.sigmas
        * sizes[person][:, None]
    )
    corrected = places + offset * (left / np.where(distance > 0, distance, 1))[:, :, None]
    # beside the wrong place, in units of the wrong person's size
    wrong = np.where(
        (kind == SWAP)[:, :, None], other_place[:, :, :2], labels[person][:, mirror, :2]
    )
    scale = np.where(
        kind == SWAP,
        sizes[person][:, None] / np.where(other_place[:, :, 2] > 0, other_place[:, :, 2], 1),
        1.0,
    )
    moved = np.isin(kind, (INVERSION, SWAP))
    corrected[moved] = (places + (points - wrong) * scale[:, :, None])[moved]
    kept = np.isin(kind, (GOOD, NOT_LABELLED))
    corrected[kept] = points[kept]
    return JointErrors(prediction, person, kind, own, corrected)


def _of_others(
    results: Results, points: np.ndarray, person: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity (R, J) to the most similar joint, of either side, of other persons in the
    image, and (R, J, 3) its x, y and that person's size.
    """
    truth = results.truth
    labels, mirror = truth.persons.keypoints, truth.skeleton.flip_indices
    best, place = np.zeros(points.shape[:2]), np.zeros((*points.shape[:2], 3))
    row, other = pairs_of_images(truth.persons.image[person], truth.persons.image)
    apart = (other != person[row]) & truth.counted[other]
    row, other = row[apart], other[apart]
    # one other person of each row at a time: rows with many are few
    turn = np.arange(len(row)) - np.searchsorted(row, row)
    for number in range(int(turn.max(initial=-1)) + 1):
        r, g = row[turn == number], other[turn == number]
        for order in (np.arange(len(mirror)), mirror):
            theirs = labels[g][:, order]
            similarity = keypoint_ap.joint_similarity(
                truth.persons, g, points[r], truth.sigmas, theirs
            )
            nearer = similarity > best[r]
            at, joint = np.nonzero(nearer)
            best[r[at], joint] = similarity[nearer]
            place[r[at], joint, :2] = theirs[at, joint, :2]
            place[r[at], joint, 2] = np.sqrt(truth.persons.area[g[at]])
    return best, place


def costs(
    results: Results, errors: JointErrors, base: dict[str, float]
) -> dict[str, dict[str, float]]:
    """For each kind of MEANINGS: count, and the AP, AP .5 and AP .75 that it costs: those with
    these errors put right, less those as they are.

    base: average_precision(found). Kinds are put right one at a time; together they cost another
    sum than the single ones. Of a duplicate, a background or a missed person the AP is that without
    it.
    """
    truth, pairs = results.truth, results.pairs
    missed = truth.counted & (pairs.prediction < 0)
    persons = truth.persons
    corrected = {}
    for name, which in JOINT_ERRORS.items():
        count = int((errors.kind == which).sum())
        corrected[name] = (
            count,
            (average_precision(results, errors.keypoints(results, which)) if count else base),
        )
    together = sum(count for count, _ in corrected.values())
    corrected["all joint errors"] = (
        together,
        (
            average_precision(results, errors.keypoints(results, *JOINT_ERRORS.values()))
            if together
            else base
        ),
    )
    for name, which in (("duplicate", DUPLICATE), ("background", BACKGROUND)):
        wrong = pairs.kind == which
        corrected[name] = (
            int(wrong.sum()),
            (average_precision(results.only(~wrong)) if wrong.any() else base),
        )
    corrected["missed person"] = (
        int(missed.sum()),
        (
            average_precision(results, persons=replace(persons, ignored=persons.ignored | missed))
            if missed.any()
            else base
        ),
    )
    corrected["score"] = (
        int((pairs.kind == OUTRANKED).sum()),
        average_precision(results, scores=ranked_by_oks(results)),
    )
    return {
        name: {
            "count": corrected[name][0],
            **{
                key: value - base[key] if value >= 0 else 0.0
                for key, value in corrected[name][1].items()
            },
        }
        for name in MEANINGS
    }


def ranked_by_oks(results: Results) -> np.ndarray:
    """(D,) scores with which the AP is about as high as these predictions allow: the OKS with
    the most similar person, who is each given away once, to the prediction most like him or her;
    what remains is scored below all of those.
    """
    truth = results.truth
    d, g = pairs_of_images(results.image, truth.persons.image)
    similarity = keypoint_ap.oks(truth.persons, g, results.keypoints[d, :, :2], truth.sigmas)
    scores = np.full(len(results), -1.0)
    taken = np.zeros(len(truth.counted), bool)
    # predictions that found a person who does not count are neither right nor wrong, wherever they
    # are ranked
    for pair in np.argsort(-similarity, kind="stable").tolist():
        if similarity[pair] <= 0:
            break
        if truth.counted[g[pair]] and not taken[g[pair]] and scores[d[pair]] < 0:
            scores[d[pair]], taken[g[pair]] = similarity[pair], True
    return scores


def table(errors: JointErrors) -> dict[str, np.ndarray]:
    """Counts (J,) of each kind of JOINTS but the unlabelled, over the found persons."""
    return {JOINTS[which]: (errors.kind == which).sum(axis=0) for which in range(GOOD, MISS + 1)}
