"""A result file beside its ground truth: which prediction belongs to which labelled person.

Letters: G labelled persons, D predicted persons, J joints, P pairs of a prediction and a person of
the same image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from poise.config.datasets import load_dataset_info
from poise.errors import DataError, single_line
from poise.evaluation import keypoint_ap, read_ground_truth, read_results, result_arrays
from poise.evaluation.coco import CocoGroundTruth
from poise.evaluation.evaluators import EVALUATORS
from poise.evaluation.evaluators.coco import CocoEvaluator
from poise.evaluation.keypoint_ap import GroundTruthPersons
from poise.structures.skeleton import DatasetInfo, Skeleton

# Ronchi & Perona match from this OKS on: what is worse found nobody. coco-analyze:
# params.oksLocThrs
LEAST_OKS = 0.1

FOUND, OUTRANKED, DUPLICATE, BACKGROUND, NOT_COUNTED = range(5)
PREDICTIONS = ("found a person", "outranked", "duplicate", "background", "not counted")


@dataclass(frozen=True)
class GroundTruth:
    """persons: G labelled persons, of whom `persons.image` is the place in `images`, the entries of
    the annotation file sorted by id.

    evaluator: by whose areas and figures the persons are scored.
    """

    name: str
    persons: GroundTruthPersons
    images: list[dict]
    skeleton: Skeleton
    content: CocoGroundTruth
    evaluator: type[CocoEvaluator] = CocoEvaluator

    @property
    def category(self) -> int:
        """The one that its annotations are of."""
        return self.content["annotations"][0]["category_id"]

    @property
    def sigmas(self) -> np.ndarray:
        return np.array(self.skeleton.sigmas)

    @property
    def counted(self) -> np.ndarray:
        """(G,) bool: persons that count in the AP."""
        return ~self.persons.ignored


@dataclass(frozen=True)
class Results:
    """A result file. image (D,): place in truth.images. keypoints (D, J, 3): x, y, score. scores
    (D,). box_source: see box_source. name: see named.
    """

    file: str
    box_source: str
    truth: GroundTruth
    image: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray
    name: str = "results"

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, keep: np.ndarray) -> Results:
        """The predictions where `keep` (D,) bool is true."""
        return replace(
            self, image=self.image[keep], keypoints=self.keypoints[keep], scores=self.scores[keep]
        )

    @cached_property
    def pairs(self) -> Pairs:
        return Pairs.of(self)


@dataclass(frozen=True)
class Pairs:
    """Who was found by whom, from an OKS of LEAST_OKS on.

    person (D,): the labelled person that a prediction has found, or -1; prediction (G,): the other
    way round. oks (D,) and found_oks (G,): their OKS, 0 without one. like (D,): whom a prediction
    has found, else the person who counts and whom it is most like, from LEAST_OKS on, or -1. kind
    (D,): FOUND; DUPLICATE, where a better scored prediction has taken the person; OUTRANKED, where
    that one is so much worse that from some threshold of the AP on this one finds the person;
    BACKGROUND, where no labelled person of the image has an OKS of LEAST_OKS; NOT_COUNTED: found a
    person who does not count (a crowd, or one without a labelled joint), or one of more than 20 in
    an image.
    """

    person: np.ndarray
    prediction: np.ndarray
    oks: np.ndarray
    found_oks: np.ndarray
    like: np.ndarray
    kind: np.ndarray

    @classmethod
    def of(cls, found: Results) -> Pairs:
        truth, count = found.truth, len(found)
        matches = keypoint_ap.match(
            truth.persons,
            found.image,
            found.keypoints,
            found.scores,
            truth.sigmas,
            thresholds=np.array([LEAST_OKS, *keypoint_ap.THRESHOLDS]),
            sizes=[keypoint_ap.SIZES["all"]],
        )
        person = np.full(count, -1, np.int64)
        person[matches.order] = matches.person[0, 0]
        d, g = pairs_of_images(found.image, truth.persons.image)
        similarity = keypoint_ap.oks(truth.persons, g, found.keypoints[d, :, :2], truth.sigmas)
        near = np.flatnonzero((similarity >= LEAST_OKS) & truth.counted[g])
        near = near[np.argsort(similarity[near], kind="stable")]
        like = np.full(count, -1, np.int64)
        like[d[near]] = g[near]  # of several the last is kept, the most similar
        kind = np.where(like >= 0, DUPLICATE, BACKGROUND)
        kind[matches.order[(matches.person[0] >= 0).any(axis=0)]] = OUTRANKED
        kind[person >= 0] = FOUND
        uncounted = person >= 0
        uncounted[uncounted] = truth.persons.ignored[person[uncounted]]
        uncounted |= ~np.isin(np.arange(count), matches.order)
        kind[uncounted] = NOT_COUNTED
        person[uncounted] = -1
        own, who = np.flatnonzero(person >= 0), person[person >= 0]
        like[own] = who
        oks, found_oks, prediction = (
            np.zeros(count),
            np.zeros(len(truth.counted)),
            np.full(len(truth.counted), -1, np.int64),
        )
        oks[own] = keypoint_ap.oks(truth.persons, who, found.keypoints[own, :, :2], truth.sigmas)
        found_oks[who], prediction[who] = oks[own], own
        return cls(person, prediction, oks, found_oks, like, kind)


def pairs_of_images(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (P,) and (P,) of all pairs of an element of `first` and one of `second` that have
    the same value, sorted by the first.
    """
    order = np.argsort(second, kind="stable")
    begin, end = (np.searchsorted(second[order], first, side=side) for side in ("left", "right"))
    count = end - begin
    a = np.repeat(np.arange(len(first)), count)
    place = np.arange(len(a)) - np.repeat(np.cumsum(count) - count, count)
    return a, order[begin[a] + place]


def average_precision(
    found: Results,
    keypoints: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    persons: GroundTruthPersons | None = None,
) -> dict[str, float]:
    """AP, AP .5 and AP .75 over all sizes, of the predictions as they are or with others'
    keypoints, scores or labelled persons.
    """
    curve = keypoint_ap.evaluate(
        persons or found.truth.persons,
        found.image,
        found.keypoints if keypoints is None else keypoints,
        found.scores if scores is None else scores,
        found.truth.sigmas,
        sizes=[keypoint_ap.SIZES["all"]],
    )
    return headline(curve[0][:, :, 0])


def headline(precision: np.ndarray) -> dict[str, float]:
    """AP, AP .5 and AP .75 of precision (T, R); -1 where nobody is labelled."""
    return {
        "AP": float(precision.mean()),
        "AP .5": float(precision[0].mean()),
        "AP .75": float(precision[5].mean()),
    }


def load_ground_truth(path: str | Path, data: DatasetInfo | None = None) -> GroundTruth:
    """The annotations to analyse against, with the joints and category of a dataset file; None:
    COCO's. Raises DataError, naming the file, where it is not COCO's form or nobody is labelled.
    """
    if Path(path).suffix == ".mat":
        raise DataError(
            f"{path}: only COCO's form of annotations and results can be analysed, not MPII's"
        )
    data = data or load_dataset_info("coco")
    skeleton = data.skeleton
    chosen = EVALUATORS[data.metric]
    # files in COCO's form are analyzed by OKS, whatever the metric of the dataset file
    evaluator = chosen if issubclass(chosen, CocoEvaluator) else CocoEvaluator
    content = read_ground_truth(path, category=data.category, area_of_box=evaluator.area_of_box)
    if len({person["category_id"] for person in content["annotations"]}) > 1:
        raise DataError(
            f"{path}: has annotations of several categories and none that the dataset file names;"
            " one category can be analysed at a time"
        )
    images = list(
        {
            image["id"]: image for image in sorted(content["images"], key=lambda image: image["id"])
        }.values()
    )
    position = {image["id"]: place for place, image in enumerate(images)}
    joints = {len(person["keypoints"]) // 3 for person in content["annotations"]} - {
        skeleton.num_keypoints
    }
    if joints:
        raise DataError(
            f"{path}: has persons of {joints.pop()} joints; persons of the {skeleton.num_keypoints}"
            f" joints of {skeleton.name} were expected; --dataset takes another dataset file"
        )
    truth = GroundTruth(
        Path(path).name,
        GroundTruthPersons.from_annotations(
            content["annotations"], position, skeleton.num_keypoints
        ),
        images,
        skeleton,
        content,
        evaluator,
    )
    if not truth.counted.any():
        raise DataError(
            f"{path}: nobody has a labelled joint, so there is nothing to compare results with"
        )
    return truth


def load_results(path: str | Path, truth: GroundTruth) -> Results:
    """A result file. Raises DataError, naming the file, where it is missing, is no result file,
    is empty or is of other images.
    """
    if Path(path).suffix in (".mat", ".pkl", ".pickle"):
        raise DataError(
            f"{path}: only result files in COCO's form can be analysed, a JSON list such as"
            " results/keypoints_*.json of a run folder"
        )
    results = read_results(path)
    if not results:
        raise DataError(
            f"{path}: holds no predicted person, so there is nothing to analyse; its AP is 0"
        )
    try:
        image_ids, categories, keypoints, scores = result_arrays(
            truth.content, results, truth.sigmas
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    mine = categories == truth.category
    if not mine.any():
        raise DataError(
            f"{path}: none of its predictions has the category of {truth.name}'s persons"
        )
    known = np.array([image["id"] for image in truth.images])
    return Results(
        Path(path).name,
        box_source(path),
        truth,
        np.searchsorted(known, image_ids[mine]),
        keypoints[mine],
        scores[mine],
    )


def box_source(path: str | Path) -> str:
    """Where the boxes of a result file came from, as its name
    keypoints_<set>_results_<source>.json tells (poise.engine.evaluate); else 'not known'.
    """
    named = re.fullmatch(r"keypoints_.+?_results_(.+)", Path(path).stem)
    return "not known" if named is None else "ground truth" if named[1] == "gt_boxes" else named[1]


def named(founds: Sequence[Results], paths: Sequence[str | Path]) -> list[Results]:
    """The same with a `file` that tells them apart, with as many of its folders as that needs,
    and with a short `name` for tables and charts.
    """
    files = distinct(paths)
    return [
        replace(found, file=file, name=name)
        for found, file, name in zip(founds, files, short_names(files))
    ]


def distinct(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path, or as many of its last parts as tell all of them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [single_line(name) for name in names]


def short_names(names: Sequence[str]) -> list[str]:
    """What differs in two names, in whole words; 'first' and 'second' where that is nothing or
    long. A single name is 'results'.
    """
    if len(names) != 2:
        return ["results"] * len(names)
    words = [re.split(r"([_./\\ -]+)", name) for name in names]
    same = [a == b for a, b in zip(*words)]
    begin = same.index(False) if False in same else len(same)
    back = [a == b for a, b in zip(words[0][begin:][::-1], words[1][begin:][::-1])]
    end = back.index(False) if False in back else len(back)
    short = ["".join(word[begin : len(word) - end]).strip("_./\\ -") for word in words]
    return (
        short
        if all(0 < len(name) <= 24 for name in short) and short[0] != short[1]
        else ["first", "second"]
    )
