"""COCO's keypoint average precision on arrays, for all images at once; equal to pycocotools' to the
last bits of the sums.

Letters: A size ranges (all, medium, large), T OKS thresholds, R recall levels, G labelled persons,
D predicted persons, J joints. Source of the rules: Lin et al., Microsoft COCO, arXiv 1405.0312, and
https://cocodataset.org/#keypoints-eval, as pycocotools' cocoeval.py carries them out. The judge in
the tests is pycocotools itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from poise.evaluation.oks import keypoint_similarities

try:
    from poise.evaluation import _matching as _compiled  # type: ignore[attr-defined]
except ImportError:
    _compiled = None

# square pixels
SIZES = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_PER_IMAGE = 20  # predictions that count, the best of each image
_PAIRS_AT_ONCE = 4096  # arrays of so many stay in a core's cache
_CELLS_AT_ONCE = 2_000_000  # of the matching's arrays: bounds the memory


@dataclass(frozen=True)
class GroundTruthPersons:
    """G labelled persons. image (G,): position of their image among the sorted image ids. keypoints
    (G, J, 3): x, y, flag.

    area (G,) and box (G, 4) x, y, width, height: as annotated. crowd (G,) bool: a region of many.
    ignored (G,) bool: neither found nor missed counts (crowds, persons without a labelled joint).
    """

    image: np.ndarray
    keypoints: np.ndarray
    area: np.ndarray
    box: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray

    @classmethod
    def from_annotations(
        cls, persons: Sequence[dict], position: dict[int, int], joints: int
    ) -> GroundTruthPersons:
        """Of annotations as poise.evaluation.read_ground_truth gives them. position: image id ->
        its place among the sorted ids.
        """
        count = len(persons)
        crowd = np.fromiter((bool(p["iscrowd"]) for p in persons), bool, count)
        return cls(
            np.fromiter((position[p["image_id"]] for p in persons), np.int64, count),
            np.array([p["keypoints"] for p in persons], np.float64).reshape(count, joints, 3),
            np.fromiter((p["area"] for p in persons), np.float64, count),
            np.array([p["bbox"] for p in persons], np.float64).reshape(count, 4),
            crowd,
            crowd | np.fromiter((p["num_keypoints"] == 0 for p in persons), bool, count),
        )

    def select(self, chosen: np.ndarray) -> GroundTruthPersons:
        """Those of a mask (G,) or of places."""
        return GroundTruthPersons(*(getattr(self, part.name)[chosen] for part in fields(self)))


def oks(
    truth: GroundTruthPersons,
    g: np.ndarray,
    points: np.ndarray,
    sigmas: np.ndarray,
    d: np.ndarray | None = None,
) -> np.ndarray:
    """Object keypoint similarity (P,) of P pairs: labelled persons g (P,) and predictions points
    (P, J, 2), or rows d (P,) of them.

    For a person without labelled joints the distance is that to a box of three times its size, as
    in pycocotools.
    """
    similarity = np.empty(len(g))
    for begin in range(0, len(g), _PAIRS_AT_ONCE):
        part = slice(begin, begin + _PAIRS_AT_ONCE)
        similarity[part] = _oks(truth, g[part], points[part if d is None else d[part]], sigmas)
    return similarity


def _oks(
    truth: GroundTruthPersons, g: np.ndarray, points: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    person = truth.keypoints[g]  # (P, J, 3)
    counted = person[:, :, 2] > 0
    count = counted.sum(axis=1)
    x, y = points[:, :, 0] - person[:, :, 0], points[:, :, 1] - person[:, :, 1]
    bare = np.flatnonzero(count == 0)
    if len(bare):
        box, inside = truth.box[g[bare]], points[bare]
        for offset, axis in ((x, 0), (y, 1)):
            low, high = box[:, axis] - box[:, 2 + axis], box[:, axis] + box[:, 2 + axis] * 2
            offset[bare] = np.maximum(0, low[:, None] - inside[:, :, axis]) + np.maximum(
                0, inside[:, :, axis] - high[:, None]
            )
        counted[bare], count[bare] = True, len(sigmas)
    squared = np.square(x, out=x)
    squared += np.square(y, out=y)
    similarity = keypoint_similarities(squared, sigmas, truth.area[g])
    similarity *= counted
    return similarity.sum(axis=1) / count


def joint_similarity(
    truth: GroundTruthPersons,
    g: np.ndarray,
    points: np.ndarray,
    sigmas: np.ndarray,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """(P, J): each joint's term of the OKS, exp(-d^2 / (2 (2 sigma)^2 area)), of P pairs as in
    `oks`; 0 where nothing is labelled.

    labels: (P, J, 3) other labelled places than those of g, at the size of g.
    """
    labels = truth.keypoints[g] if labels is None else labels
    squared = ((points - labels[:, :, :2]) ** 2).sum(axis=2)
    return keypoint_similarities(squared, sigmas, truth.area[g]) * (labels[:, :, 2] > 0)


def best_similarity(
    truth: GroundTruthPersons, image: np.ndarray, keypoints: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """(G, J) similarity of each labelled joint with that of the prediction whose OKS with the
    person is highest; 0 for other joints and without a prediction.

    image (D,), keypoints (D, J, 2 or 3): the predictions. Of equal ones the first counts.
    """
    best = np.zeros(truth.keypoints.shape[:2])
    order = np.argsort(image, kind="stable")
    first = np.searchsorted(image[order], truth.image)
    count = np.searchsorted(image[order], truth.image, side="right") - first
    step = max(_PAIRS_AT_ONCE // max(int(count.max(initial=1)), 1), 1)
    for begin in range(0, len(best), step):
        persons = np.flatnonzero(count[begin : begin + step]) + begin
        if not len(persons):
            continue
        starts = np.cumsum(count[persons]) - count[persons]
        pairs = int(count[persons].sum())
        d = order[np.repeat(first[persons] - starts, count[persons]) + np.arange(pairs)]
        g = np.repeat(persons, count[persons])
        similarity = joint_similarity(truth, g, keypoints[d, :, :2], sigmas)
        total = similarity.sum(axis=1)
        highest = np.flatnonzero(
            total == np.repeat(np.maximum.reduceat(total, starts), count[persons])
        )
        _, chosen = np.unique(g[highest], return_index=True)
        best[persons] = similarity[highest[chosen]]
    return best


@dataclass(frozen=True)
class Matches:
    """What COCO's matching gives for the D predictions that count, the best MAX_PER_IMAGE of each
    image.

    order (D,): their places among all predictions; sorted by image, the best first in each. person
    (A, T, D): the labelled person that each has found, -1 where it has none. dismissed (A, T, D)
    bool: those that do not count as right or wrong, for they found a person who does not count, or
    nobody and have another size. wanted (A,): labelled persons that count.
    """

    order: np.ndarray
    person: np.ndarray
    dismissed: np.ndarray
    wanted: np.ndarray


def match(
    truth: GroundTruthPersons,
    image: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    sigmas: np.ndarray,
    *,
    thresholds: np.ndarray = THRESHOLDS,
    sizes: Sequence[tuple[float, float]] = tuple(SIZES.values()),
) -> Matches:
    """Give the predictions of each image, the best first, the labelled person whose OKS is highest
    of those left, at each of T thresholds.

    image (D,): as GroundTruthPersons.image. keypoints: (D, J, 2 or 3). scores: (D,). sizes: A
    ranges of area in square pixels.
    """
    # lexsort is stable: equal scores stay in their order
    order = np.lexsort((-scores, image))
    rank = _place_in_group(image[order])
    order, rank = order[rank < MAX_PER_IMAGE], rank[rank < MAX_PER_IMAGE]
    points = keypoints[order, :, :2].astype(np.float64)
    # joint after joint: a tenth of the time
    width, height = np.ptp(np.ascontiguousarray(points.transpose(2, 1, 0)), axis=1)
    bounds = np.asarray(sizes, np.float64)
    person, dismissed = _match(
        truth, image[order], points, rank, width * height, sigmas, np.asarray(thresholds), bounds
    )
    counted = ~(truth.ignored | (truth.area < bounds[:, :1]) | (truth.area > bounds[:, 1:]))
    return Matches(order, person, dismissed, counted.sum(axis=1))


def evaluate(
    truth: GroundTruthPersons,
    image: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    sigmas: np.ndarray,
    *,
    sizes: Sequence[tuple[float, float]] = tuple(SIZES.values()),
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, A) and recall (T, A) of D predictions; -1 where a size range has no
    labelled person. Arguments as of `match`.
    """
    return precision_and_recall(match(truth, image, keypoints, scores, sigmas, sizes=sizes), scores)


def precision_and_recall(
    matches: Matches, scores: np.ndarray, false_weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, A) and recall (T, A) of matches; -1 where a size range has no labelled
    person.

    scores: of all predictions, as `match` got them. false_weights: what each of them counts in the
    precision where it is wrong; None: 1.
    """
    best_first = np.argsort(-scores[matches.order], kind="mergesort")
    sizes, thresholds, _ = matches.person.shape
    precision = -np.ones((thresholds, len(RECALLS), sizes))
    recall = -np.ones((thresholds, sizes))
    weights = None if false_weights is None else false_weights[matches.order][best_first]
    for a, wanted in enumerate(matches.wanted.tolist()):
        if not wanted:
            continue
        right, counted = (
            np.take(matches.person[a] >= 0, best_first, axis=1),
            ~np.take(matches.dismissed[a], best_first, axis=1),
        )
        for t in range(thresholds):
            # a right prediction alone raises recall or precision: what lies between two of them is
            # nowhere the best
            hits, wrong = np.flatnonzero(right[t] & counted[t]), ~right[t] & counted[t]
            misses = np.cumsum(wrong if weights is None else wrong * weights)[hits]
            count = np.arange(1.0, len(hits) + 1)
            recall[t, a] = len(hits) / wanted
            share = count / (misses + count + np.spacing(1))
            envelope = np.maximum.accumulate(share[::-1])[::-1]
            at = np.searchsorted(count / wanted, RECALLS, side="left")
            precision[t, :, a] = np.append(envelope, 0)[np.minimum(at, len(hits))]
    return precision, recall


def summarize(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """The ten figures, AP, AP .5, AP .75, AP medium, AP large, and the same of the average
    recall; of what `evaluate` gave for each category.
    """

    def mean(values: np.ndarray) -> float:
        there = values[values > -1]
        return float(np.mean(there)) if len(there) else -1.0

    if not curves:  # no category, hence nobody
        return [-1.0] * 10
    figures = []
    for curve in (
        np.concatenate([p for p, _ in curves], axis=1),
        np.stack([r for _, r in curves], axis=1),
    ):
        figures += [
            mean(curve[:, :, 0]),
            mean(curve[:1, :, 0]),
            mean(curve[5:6, :, 0]),
            mean(curve[:, :, 1]),
            mean(curve[:, :, 2]),
        ]
    return figures


def _match(
    truth: GroundTruthPersons,
    image: np.ndarray,
    points: np.ndarray,
    rank: np.ndarray,
    area: np.ndarray,
    sigmas: np.ndarray,
    thresholds: np.ndarray,
    bounds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(A, T, D) int32 and bool: the person that a prediction has found, or -1, and whether it does
    not count.

    image, rank (D,): predictions sorted by image, their place within it.
    """
    person, dismissed = (
        np.full((len(bounds), len(thresholds), len(image)), -1, np.int32),
        np.zeros((len(bounds), len(thresholds), len(image)), bool),
    )
    # (A, G)
    ignored = truth.ignored | (truth.area < bounds[:, :1]) | (truth.area > bounds[:, 1:])
    by_image = np.argsort(truth.image, kind="stable")
    # by image: (M,) the first of its persons and how many there are
    most = int(max(truth.image.max(initial=-1), image.max(initial=-1))) + 1
    number = np.bincount(truth.image, minlength=most)
    first_person = np.cumsum(number) - number
    first_pair = np.concatenate([[0], np.cumsum(number[image])])
    d = np.repeat(np.arange(len(image)), number[image])
    g = by_image[first_person[image][d] + np.arange(len(d)) - first_pair[d]]
    similarity = oks(truth, g, points, sigmas, d)
    limits = np.minimum(thresholds, 1 - 1e-10)
    if _compiled is not None:
        _compiled.match_persons(
            similarity,
            first_pair,
            image,
            by_image,
            first_person,
            ignored.view(np.uint8),
            truth.crowd.view(np.uint8),
            limits,
            person,
            dismissed.view(np.uint8),
            np.zeros(len(by_image), np.uint8),
        )
    else:
        rules = _Rules(ignored, truth.crowd, limits)
        _match_by_number(similarity, first_pair, rank, g, rules, person, dismissed)
    outside = (area < bounds[:, :1]) | (area > bounds[:, 1:])  # (A, D)
    dismissed |= (person < 0) & outside[:, None, :]
    return person, dismissed


class _Rules(NamedTuple):
    """ignored (A, G), crowd (G,): labeled persons that do not count. limits (T,): least OKS."""

    ignored: np.ndarray
    crowd: np.ndarray
    limits: np.ndarray


def _match_by_number(
    similarity: np.ndarray,
    first_pair: np.ndarray,
    rank: np.ndarray,
    g: np.ndarray,
    rules: _Rules,
    person: np.ndarray,
    dismissed: np.ndarray,
) -> None:
    """The compiled match_persons in NumPy: images with equally many labelled persons are matched
    together, rank by rank, because a person that was found by a better prediction cannot be
    found again.
    """
    first = np.flatnonzero(rank == 0)
    count, persons = np.diff(np.append(first, len(rank))), np.diff(first_pair)[first]
    for number in np.unique(persons[persons > 0]):
        group = np.flatnonzero(persons == number)
        step = max(_CELLS_AT_ONCE // (len(rules.ignored) * len(rules.limits) * int(number)), 1)
        for begin in range(0, len(group), step):
            part = group[begin : begin + step]
            pairs = first_pair[first[part]][:, None] + np.arange(number)
            _match_images(
                similarity, first_pair, first[part], count[part], g[pairs], rules, person, dismissed
            )


def _match_images(
    similarity: np.ndarray,
    first_pair: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    g: np.ndarray,
    rules: _Rules,
    person: np.ndarray,
    dismissed: np.ndarray,
) -> None:
    """Fill `person` and `dismissed` for I images with n labelled persons g (I, n) each and
    predictions first, first + 1, ... (count (I,)).
    """
    number = g.shape[1]
    free = np.ones((len(rules.ignored), len(rules.limits), *g.shape), bool)
    crowd, unwanted = rules.crowd[g], rules.ignored[:, None, g]  # (I, n), (A, 1, I, n)
    limits = rules.limits
    for rank in range(int(count.max())):
        rows = np.flatnonzero(count > rank)
        d = first[rows] + rank
        values = similarity[first_pair[d][:, None] + np.arange(number)]
        open_to = free[:, :, rows] | crowd[rows]
        # persons that count come first; those that do not are taken only where none of them fits
        for which in (False, True):
            value = np.where(open_to & (unwanted[:, :, rows] == which), values, -1.0)
            # of equal similarities pycocotools takes the last
            best = number - 1 - value[..., ::-1].argmax(axis=3)
            fits = np.take_along_axis(value, best[..., None], axis=3)[..., 0] >= limits[:, None]
            if which:
                fits &= person[:, :, d] < 0
            a, t, i = np.nonzero(fits)
            free[a, t, rows[i], best[a, t, i]] = False
            person[a, t, d[i]] = g[rows[i], best[a, t, i]]
            dismissed[a, t, d[i]] = which


def _place_in_group(sorted_values: np.ndarray) -> np.ndarray:
    """(D,) int: 0, 1, 2, ... within each run of equal values."""
    if not len(sorted_values):
        return np.zeros(0, np.int64)
    begins = np.flatnonzero(np.r_[True, sorted_values[1:] != sorted_values[:-1]])
    return np.arange(len(sorted_values)) - np.repeat(
        begins, np.diff(np.r_[begins, len(sorted_values)])
    )
