"""COCO keypoint average precision on arrays, for all images at once; equal to pycocotools.

Letters: A size ranges (all, medium, large), T OKS thresholds, R recalls, G labeled persons, D
predicted persons, K keypoints, P pairs. Source: Lin et al., Microsoft COCO, arXiv 1405.0312, and
https://cocodataset.org/#keypoints-eval, as implemented in pycocotools' cocoeval.py, which the tests
compare with.
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
MAX_PER_IMAGE = 20  # predictions per image that are scored, the best ones
_PAIR_BATCH_SIZE = 4096  # arrays of this size stay in a core's cache
_MAX_CELLS = 2_000_000  # of the matching's arrays, bounds the memory


@dataclass(frozen=True)
class GroundTruthPersons:
    """G labeled persons.

    Attributes:
        image: (G,) index of the image among the sorted image ids.
        keypoints: (G, K, 3) x, y, flag.
        area: (G,) square pixels, as annotated.
        box: (G, 4) x, y, width, height, as annotated.
        crowd: (G,) bool, a region of several persons.
        ignored: (G,) bool, not scored: crowds and persons without a labeled keypoint.
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
        """Convert annotations of poise.evaluation.read_ground_truth.

        position: image id -> its index among the sorted ids.
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
        """Return the persons of a mask (G,) or of indices."""
        return GroundTruthPersons(*(getattr(self, part.name)[chosen] for part in fields(self)))


def oks(
    truth: GroundTruthPersons,
    g: np.ndarray,
    points: np.ndarray,
    sigmas: np.ndarray,
    d: np.ndarray | None = None,
) -> np.ndarray:
    """Return the object keypoint similarity (P,) of pairs.

    For a person without labels the distance is that to a box of three times the size, as in
    pycocotools.

    Args:
        truth: labeled persons.
        g: (P,) indices of labeled persons.
        points: (P, K, 2) predictions, or with `d` any number of them.
        sigmas: (K,) OKS constants.
        d: (P,) indices of predictions.
    """
    similarity = np.empty(len(g))
    for begin in range(0, len(g), _PAIR_BATCH_SIZE):
        part = slice(begin, begin + _PAIR_BATCH_SIZE)
        similarity[part] = _oks(truth, g[part], points[part if d is None else d[part]], sigmas)
    return similarity


def _oks(
    truth: GroundTruthPersons, g: np.ndarray, points: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    person = truth.keypoints[g]  # (P, J, 3)
    is_labeled = person[:, :, 2] > 0
    count = is_labeled.sum(axis=1)
    x = points[:, :, 0] - person[:, :, 0]
    y = points[:, :, 1] - person[:, :, 1]
    unlabeled = np.flatnonzero(count == 0)
    if len(unlabeled):
        box = truth.box[g[unlabeled]]
        predicted = points[unlabeled]
        for offset, axis in ((x, 0), (y, 1)):
            low = box[:, axis] - box[:, 2 + axis]
            high = box[:, axis] + box[:, 2 + axis] * 2
            offset[unlabeled] = np.maximum(0, low[:, None] - predicted[:, :, axis]) + np.maximum(
                0, predicted[:, :, axis] - high[:, None]
            )
        is_labeled[unlabeled] = True
        count[unlabeled] = len(sigmas)
    squared = np.square(x, out=x)
    squared += np.square(y, out=y)
    similarity = keypoint_similarities(squared, sigmas, truth.area[g])
    similarity *= is_labeled
    return similarity.sum(axis=1) / count


def joint_similarity(
    truth: GroundTruthPersons,
    g: np.ndarray,
    points: np.ndarray,
    sigmas: np.ndarray,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Return the term of the OKS (P, K) of each keypoint, 0 without a label.

    It is exp(-d^2 / (2 (2 sigma)^2 area)). Arguments as of oks.

    labels: (P, K, 3) labels to use instead of those of `g`, with the area of `g`.
    """
    if labels is None:
        labels = truth.keypoints[g]
    squared = ((points - labels[:, :, :2]) ** 2).sum(axis=2)
    return keypoint_similarities(squared, sigmas, truth.area[g]) * (labels[:, :, 2] > 0)


def best_similarity(
    truth: GroundTruthPersons, image: np.ndarray, keypoints: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """Return similarities (G, K) of labeled keypoints to the prediction with the highest OKS.

    0 for keypoints without a label and images without a prediction. Of equal predictions the
    first is used.

    Args:
        truth: G labeled persons.
        image: (D,) as GroundTruthPersons.image.
        keypoints: (D, K, 2 or 3) predictions.
        sigmas: (K,) OKS constants.
    """
    best = np.zeros(truth.keypoints.shape[:2])
    order = np.argsort(image, kind="stable")
    first = np.searchsorted(image[order], truth.image)
    count = np.searchsorted(image[order], truth.image, side="right") - first
    step = max(_PAIR_BATCH_SIZE // max(int(count.max(initial=1)), 1), 1)
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
    """COCO's matching of the best MAX_PER_IMAGE predictions of each image.

    Attributes:
        order: (D,) indices of the predictions, sorted by image and score.
        person: (A, T, D) matched labeled person, or -1.
        dismissed: (A, T, D) bool, predictions that are not scored: matched with a person that is
            not scored, or unmatched and of another size.
        wanted: (A,) numbers of labeled persons that are scored.
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
    """Match predictions, the best first, with the unmatched person of the highest OKS.

    Args:
        truth: labeled persons.
        image: (D,) as GroundTruthPersons.image.
        keypoints: (D, K, 2 or 3) predictions.
        scores: (D,).
        sigmas: (K,) OKS constants.
        thresholds: T minimum OKS.
        sizes: A ranges of area in square pixels.
    """
    # lexsort is stable: equal scores stay in their order
    order = np.lexsort((-scores, image))
    rank = _rank_in_group(image[order])
    order, rank = order[rank < MAX_PER_IMAGE], rank[rank < MAX_PER_IMAGE]
    points = keypoints[order, :, :2].astype(np.float64)
    # one keypoint after the other: ten times faster
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
    """Return precision (T, R, A) and recall (T, A); -1 for a size without labeled persons.

    Arguments as of match.
    """
    return precision_and_recall(match(truth, image, keypoints, scores, sigmas, sizes=sizes), scores)


def precision_and_recall(
    matches: Matches, scores: np.ndarray, false_weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision (T, R, A) and recall (T, A); -1 for a size without labeled persons.

    Args:
        matches: of match.
        scores: of all predictions, as passed to match.
        false_weights: weights of false positives; None: 1.
    """
    best_first = np.argsort(-scores[matches.order], kind="mergesort")
    sizes, thresholds, _ = matches.person.shape
    precision = -np.ones((thresholds, len(RECALLS), sizes))
    recall = -np.ones((thresholds, sizes))
    weights = None if false_weights is None else false_weights[matches.order][best_first]
    for a, wanted in enumerate(matches.wanted.tolist()):
        if not wanted:
            continue
        is_matched = np.take(matches.person[a] >= 0, best_first, axis=1)
        is_scored = ~np.take(matches.dismissed[a], best_first, axis=1)
        for t in range(thresholds):
            # only true positives raise recall and precision, so other points are not needed
            hits = np.flatnonzero(is_matched[t] & is_scored[t])
            false = ~is_matched[t] & is_scored[t]
            if weights is not None:
                false = false * weights
            misses = np.cumsum(false)[hits]
            count = np.arange(1.0, len(hits) + 1)
            recall[t, a] = len(hits) / wanted
            raw = count / (misses + count + np.spacing(1))
            envelope = np.maximum.accumulate(raw[::-1])[::-1]
            index = np.searchsorted(count / wanted, RECALLS, side="left")
            precision[t, :, a] = np.append(envelope, 0)[np.minimum(index, len(hits))]
    return precision, recall


def summarize(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Return ten metrics: AP, AP .5, AP .75, AP medium, AP large, and the same of recall.

    curves: of evaluate, for each category.
    """

    def mean(values: np.ndarray) -> float:
        valid = values[values > -1]
        return float(np.mean(valid)) if len(valid) else -1.0

    if not curves:  # no categories
        return [-1.0] * 10
    precision = np.concatenate([p for p, _ in curves], axis=1)
    recall = np.stack([r for _, r in curves], axis=1)
    metrics = []
    for curve in (precision, recall):
        metrics += [
            mean(curve[:, :, 0]),
            mean(curve[:1, :, 0]),
            mean(curve[5:6, :, 0]),
            mean(curve[:, :, 1]),
            mean(curve[:, :, 2]),
        ]
    return metrics


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
    """Return the matched person (A, T, D) int32, or -1, and whether a prediction is not scored.

    Args:
        image, rank: (D,) of predictions sorted by image, rank within the image.
        area: (D,) square pixels.
        bounds: (A, 2) size ranges.
    """
    shape = (len(bounds), len(thresholds), len(image))
    person = np.full(shape, -1, np.int32)
    dismissed = np.zeros(shape, bool)
    # (A, G)
    ignored = truth.ignored | (truth.area < bounds[:, :1]) | (truth.area > bounds[:, 1:])
    by_image = np.argsort(truth.image, kind="stable")
    # index of the first person and number of persons of each image
    num_images = int(max(truth.image.max(initial=-1), image.max(initial=-1))) + 1
    number = np.bincount(truth.image, minlength=num_images)
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
    """Matching rules.

    Attributes:
        ignored: (A, G) labeled persons that are not scored.
        crowd: (G,) bool.
        limits: (T,) minimum OKS.
    """

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
    """Match in NumPy like the compiled match_persons.

    Images with the same number of labeled persons are matched together, rank by rank, because a
    person that is matched with a better prediction is not available to the next.
    """
    first = np.flatnonzero(rank == 0)
    count = np.diff(np.append(first, len(rank)))
    persons = np.diff(first_pair)[first]
    for number in np.unique(persons[persons > 0]):
        group = np.flatnonzero(persons == number)
        step = max(_MAX_CELLS // (len(rules.ignored) * len(rules.limits) * int(number)), 1)
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
    """Fill `person` and `dismissed` for I images with n labeled persons g (I, n) each.

    The predictions of an image are first, first + 1, ...; count (I,) is their number.
    """
    number = g.shape[1]
    free = np.ones((len(rules.ignored), len(rules.limits), *g.shape), bool)
    crowd = rules.crowd[g]  # (I, n)
    is_ignored = rules.ignored[:, None, g]  # (A, 1, I, n)
    limits = rules.limits
    for rank in range(int(count.max())):
        rows = np.flatnonzero(count > rank)
        d = first[rows] + rank
        values = similarity[first_pair[d][:, None] + np.arange(number)]
        available = free[:, :, rows] | crowd[rows]
        # ignored persons are matched only if no scored one can be
        for which in (False, True):
            value = np.where(available & (is_ignored[:, :, rows] == which), values, -1.0)
            # pycocotools uses the last of equal similarities
            best = number - 1 - value[..., ::-1].argmax(axis=3)
            fits = np.take_along_axis(value, best[..., None], axis=3)[..., 0] >= limits[:, None]
            if which:
                fits &= person[:, :, d] < 0
            a, t, i = np.nonzero(fits)
            free[a, t, rows[i], best[a, t, i]] = False
            person[a, t, d[i]] = g[rows[i], best[a, t, i]]
            dismissed[a, t, d[i]] = which


def _rank_in_group(sorted_values: np.ndarray) -> np.ndarray:
    """Return 0, 1, 2, ... (D,) within each run of equal values."""
    if not len(sorted_values):
        return np.zeros(0, np.int64)
    begins = np.flatnonzero(np.r_[True, sorted_values[1:] != sorted_values[:-1]])
    return np.arange(len(sorted_values)) - np.repeat(
        begins, np.diff(np.r_[begins, len(sorted_values)])
    )
