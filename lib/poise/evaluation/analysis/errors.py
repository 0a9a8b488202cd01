"""Which errors a result file makes, and the AP that each kind costs.

Source: Ronchi & Perona, Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation, ICCV
2017, arXiv 1707.05388, with the thresholds of the authors' coco-analyze (params.oksLocThrs,
params.jitterKsThrs). The similarity of a joint to a labelled one is its term of the OKS. Letters:
as poise.evaluation.analysis.matching; R found persons.
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

# below the first a joint is elsewhere; from the second on people who label differ as much
NEAR, EXACT = 0.5, 0.85

NOT_LABELLED, GOOD, JITTER, INVERSION, SWAP, MISS = range(6)
JOINTS = ("not labelled", "good", "jitter", "inversion", "swap", "miss")
JOINT_ERRORS = {"jitter": JITTER, "inversion": INVERSION, "swap": SWAP, "miss": MISS}

#: what each row of the table is, in the order of the page
MEANINGS = {
    "jitter": f"near its place, similarity {NEAR} to {EXACT}",
    "inversion": "at the same person's joint of the other side",
    "swap": "at the joint, or that of the other side, of another person",
    "miss": f"near none of these, similarity below {NEAR}",
    "all joint errors": "the four above together",
    "duplicate": "a person whom a better scored prediction had found already",
    "background": (
        "a prediction that is like nobody, OKS below 0.1 with every labelled person of the picture"
    ),
    "missed person": "a labelled person whom no prediction found, not even with OKS 0.1",
    "score": (
        "counted: predictions scored below a worse one of the same person; put right: all are"
        " ranked by their OKS, those of different persons too"
    ),
}


@dataclass(frozen=True)
class JointErrors:
    """Joints of R predictions that found a person.

    prediction, person (R,): who found whom. kind (R, J): NOT_LABELLED to MISS. similarity (R, J):
    to the person's own joint, 0 where it is not labelled. corrected (R, J, 2): where a joint would
    lie without its error; the place as predicted where there is none.
    """

    prediction: np.ndarray
    person: np.ndarray
    kind: np.ndarray
    similarity: np.ndarray
    corrected: np.ndarray

    def keypoints(self, found: Results, *kinds: int) -> np.ndarray:
        """(D, J, 3): the predictions with the joints of these kinds put right."""
        keypoints = found.keypoints.copy()
        rows, joints = np.nonzero(np.isin(self.kind, kinds))
        keypoints[self.prediction[rows], joints, :2] = self.corrected[rows, joints]
        return keypoints


def joint_errors(found: Results) -> JointErrors:
    """Sort the labelled joints of all found persons into good ones and four kinds of errors.

    A joint from EXACT on is good, whatever else is near. Of the others that labelled joint decides
    to which it is most similar: its own (jitter), the person's other side (inversion), the same
    joint of another person, or that one's other side (swap); a joint less similar than NEAR to all
    of them is a miss.

    Put right, a joint with jitter has the similarity EXACT and a missed one NEAR, on the line from
    its labelled place to where it was predicted; an inverted or swapped one lies beside its own
    place as it lay beside the wrong one, with the same similarity. (In coco-analyze a factor 2 of
    the OKS is left out here, so that its corrected joints lie nearer than these similarities.)
    """
    truth, pairs = found.truth, found.pairs
    prediction = np.flatnonzero(pairs.person >= 0)
    person = pairs.person[prediction]
    points, labels = found.keypoints[prediction, :, :2], truth.persons.keypoints
    mirror = truth.skeleton.flip_indices
    side = np.where(mirror != np.arange(len(mirror)), 1.0, 0.0)  # a nose has no other side
    labelled = labels[person, :, 2] > 0
    own = keypoint_ap.joint_similarity(truth.persons, person, points, truth.sigmas)
    inverted = (
        keypoint_ap.joint_similarity(
            truth.persons, person, points, truth.sigmas, labels[person][:, mirror]
        )
        * side
    )
    other, other_place = _of_others(found, points, person)

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
    found: Results, points: np.ndarray, person: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity (R, J) to the most similar joint, of either side, of other persons in the
    image, and (R, J, 3) its x, y and that person's size.
    """
    truth = found.truth
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
    found: Results, errors: JointErrors, base: dict[str, float]
) -> dict[str, dict[str, float]]:
    """For each kind of MEANINGS: count, and the AP, AP .5 and AP .75 that it costs: those with
    these errors put right, less those as they are.

    base: average_precision(found). Kinds are put right one at a time; together they cost another
    sum than the single ones. Of a duplicate, a background or a missed person the AP is that without
    it.
    """
    truth, pairs = found.truth, found.pairs
    missed = truth.counted & (pairs.prediction < 0)
    persons = truth.persons
    corrected = {}
    for name, which in JOINT_ERRORS.items():
        count = int((errors.kind == which).sum())
        corrected[name] = (
            count,
            (average_precision(found, errors.keypoints(found, which)) if count else base),
        )
    together = sum(count for count, _ in corrected.values())
    corrected["all joint errors"] = (
        together,
        (
            average_precision(found, errors.keypoints(found, *JOINT_ERRORS.values()))
            if together
            else base
        ),
    )
    for name, which in (("duplicate", DUPLICATE), ("background", BACKGROUND)):
        wrong = pairs.kind == which
        corrected[name] = (
            int(wrong.sum()),
            (average_precision(found.only(~wrong)) if wrong.any() else base),
        )
    corrected["missed person"] = (
        int(missed.sum()),
        (
            average_precision(found, persons=replace(persons, ignored=persons.ignored | missed))
            if missed.any()
            else base
        ),
    )
    corrected["score"] = (
        int((pairs.kind == OUTRANKED).sum()),
        average_precision(found, scores=ranked_by_oks(found)),
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


def ranked_by_oks(found: Results) -> np.ndarray:
    """(D,) scores with which the AP is about as high as these predictions allow: the OKS with
    the most similar person, who is each given away once, to the prediction most like him or her;
    what remains is scored below all of those.
    """
    truth = found.truth
    d, g = pairs_of_images(found.image, truth.persons.image)
    similarity = keypoint_ap.oks(truth.persons, g, found.keypoints[d, :, :2], truth.sigmas)
    scores = np.full(len(found), -1.0)
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
