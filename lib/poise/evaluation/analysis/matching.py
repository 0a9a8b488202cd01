"""Match the predictions of a result file with the labeled persons.

Letters: G labeled persons, D predicted persons, K keypoints, P pairs of a prediction and a person
of the same image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from poise.config.dataset_yaml import load_dataset_info
from poise.errors import DataError, single_line
from poise.evaluation import keypoint_ap, read_ground_truth, read_results, result_arrays
from poise.evaluation.coco import CocoGroundTruth
from poise.evaluation.evaluators import EVALUATORS
from poise.evaluation.evaluators.coco import CocoEvaluator
from poise.evaluation.keypoint_ap import GroundTruthPersons
from poise.structures.skeleton import DatasetInfo, Skeleton

# minimum OKS of a match as in Ronchi & Perona; coco-analyze: params.oksLocThrs
MIN_OKS = 0.1

FOUND, OUTRANKED, DUPLICATE, BACKGROUND, NOT_COUNTED = range(5)
PREDICTIONS = ("found a person", "outranked", "duplicate", "background", "not counted")


@dataclass(frozen=True)
class GroundTruth:
    """The annotations that results are compared with.

    Attributes:
        name: of the file.
        persons: G labeled persons; `persons.image` is an index of `images`.
        images: entries of the annotation file, sorted by id.
        skeleton: names and flip pairs of the keypoints.
        content: the file.
        evaluator: computes areas and metrics.
    """

    name: str
    persons: GroundTruthPersons
    images: list[dict]
    skeleton: Skeleton
    content: CocoGroundTruth
    evaluator: type[CocoEvaluator] = CocoEvaluator

    @property
    def category(self) -> int:
        """The category id of the annotations."""
        return self.content["annotations"][0]["category_id"]

    @property
    def sigmas(self) -> np.ndarray:
        return np.array(self.skeleton.sigmas)

    @property
    def counted(self) -> np.ndarray:
        """Mask (G,) of persons that are scored."""
        return ~self.persons.ignored


@dataclass(frozen=True)
class Results:
    """Predictions of a result file.

    Attributes:
        file: its name.
        box_source: see box_source.
        truth: the ground truth.
        image: (D,) index of truth.images.
        keypoints: (D, K, 3) x, y, score.
        scores: (D,).
        name: short name, see named.
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
        """Return the predictions selected by the mask `keep` (D,)."""
        return replace(
            self, image=self.image[keep], keypoints=self.keypoints[keep], scores=self.scores[keep]
        )

    @cached_property
    def pairs(self) -> Pairs:
        return Pairs.of(self)


@dataclass(frozen=True)
class Pairs:
    """Matches of predictions and labeled persons with an OKS of MIN_OKS or more.

    Attributes:
        person: (D,) matched person of a prediction, or -1.
        prediction: (G,) matched prediction of a person, or -1.
        oks: (D,) OKS of the match, 0 without a match.
        found_oks: (G,) likewise of persons.
        like: (D,) the match, else the most similar scored person, or -1.
        kind: (D,) of the prediction:
            FOUND: matched;
            DUPLICATE: a prediction with a higher score has the person;
            OUTRANKED: likewise, but at a higher OKS threshold of the AP this one is matched;
            BACKGROUND: no labeled person of the image has an OKS of MIN_OKS;
            NOT_COUNTED: matched with a person that is not scored (a crowd or without labels), or
            not among the best 20 of the image.
    """

    person: np.ndarray
    prediction: np.ndarray
    oks: np.ndarray
    found_oks: np.ndarray
    like: np.ndarray
    kind: np.ndarray

    @classmethod
    def of(cls, results: Results) -> Pairs:
        truth, count = results.truth, len(results)
        matches = keypoint_ap.match(
            truth.persons,
            results.image,
            results.keypoints,
            results.scores,
            truth.sigmas,
            thresholds=np.array([MIN_OKS, *keypoint_ap.THRESHOLDS]),
            sizes=[keypoint_ap.SIZES["all"]],
        )
        person = np.full(count, -1, np.int64)
        person[matches.order] = matches.person[0, 0]
        d, g = pairs_of_images(results.image, truth.persons.image)
        similarity = keypoint_ap.oks(truth.persons, g, results.keypoints[d, :, :2], truth.sigmas)
        near = np.flatnonzero((similarity >= MIN_OKS) & truth.counted[g])
        near = near[np.argsort(similarity[near], kind="stable")]
        like = np.full(count, -1, np.int64)
        like[d[near]] = g[near]  # the last assignment wins: the most similar person
        kind = np.where(like >= 0, DUPLICATE, BACKGROUND)
        kind[matches.order[(matches.person[0] >= 0).any(axis=0)]] = OUTRANKED
        kind[person >= 0] = FOUND
        uncounted = person >= 0
        uncounted[uncounted] = truth.persons.ignored[person[uncounted]]
        uncounted |= ~np.isin(np.arange(count), matches.order)
        kind[uncounted] = NOT_COUNTED
        person[uncounted] = -1
        matched = np.flatnonzero(person >= 0)
        who = person[matched]
        like[matched] = who
        oks = np.zeros(count)
        oks[matched] = keypoint_ap.oks(
            truth.persons, who, results.keypoints[matched, :, :2], truth.sigmas
        )
        found_oks = np.zeros(len(truth.counted))
        found_oks[who] = oks[matched]
        prediction = np.full(len(truth.counted), -1, np.int64)
        prediction[who] = matched
        return cls(person, prediction, oks, found_oks, like, kind)


def pairs_of_images(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (P,) and (P,) of all pairs with equal values, sorted by the first index."""
    order = np.argsort(second, kind="stable")
    begin, end = (np.searchsorted(second[order], first, side=side) for side in ("left", "right"))
    count = end - begin
    a = np.repeat(np.arange(len(first)), count)
    place = np.arange(len(a)) - np.repeat(np.cumsum(count) - count, count)
    return a, order[begin[a] + place]


def average_precision(
    results: Results,
    keypoints: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    persons: GroundTruthPersons | None = None,
) -> dict[str, float]:
    """Return AP, AP .5 and AP .75 over all sizes.

    `keypoints`, `scores` and `persons` replace those of the results and of the ground truth.
    """
    curve = keypoint_ap.evaluate(
        persons or results.truth.persons,
        results.image,
        results.keypoints if keypoints is None else keypoints,
        results.scores if scores is None else scores,
        results.truth.sigmas,
        sizes=[keypoint_ap.SIZES["all"]],
    )
    return headline(curve[0][:, :, 0])


def headline(precision: np.ndarray) -> dict[str, float]:
    """Return AP, AP .5 and AP .75 of precision (T, R); -1 without labeled persons."""
    return {
        "AP": float(precision.mean()),
        "AP .5": float(precision[0].mean()),
        "AP .75": float(precision[5].mean()),
    }


def load_ground_truth(path: str | Path, data: DatasetInfo | None = None) -> GroundTruth:
    """Read annotations. Raises DataError if they are not in COCO format or have no labels.

    Args:
        path: annotation file.
        data: dataset file with keypoints and category; None: COCO's.
    """
    if Path(path).suffix == ".mat":
        raise DataError(
            f"{path}: unsupported format; only annotations and results in COCO format can be"
            " analyzed, not MPII's"
        )
    data = data or load_dataset_info("coco")
    skeleton = data.skeleton
    chosen = EVALUATORS[data.metric]
    # files in COCO format are analyzed by OKS for any metric of the dataset file
    evaluator = chosen if issubclass(chosen, CocoEvaluator) else CocoEvaluator
    content = read_ground_truth(path, category=data.category, area_of_box=evaluator.area_of_box)
    if len({person["category_id"] for person in content["annotations"]}) > 1:
        raise DataError(
            f"{path}: has several categories, but not that of the dataset file; set its category"
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
            f"{path}: has persons of {joints.pop()} keypoints, expected the"
            f" {skeleton.num_keypoints} of {skeleton.name}; pass another dataset file to --dataset"
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
        raise DataError(f"{path}: no person has a labeled keypoint")
    return truth


def load_results(path: str | Path, truth: GroundTruth) -> Results:
    """Read a result file. Raises DataError if it is invalid, empty or of other images."""
    if Path(path).suffix in (".mat", ".pkl", ".pickle"):
        raise DataError(
            f"{path}: unsupported format; only result files in COCO format can be analyzed, such"
            " as results/keypoints_*.json of a run folder"
        )
    entries = read_results(path)
    if not entries:
        raise DataError(f"{path}: has no predictions; its AP is 0")
    try:
        image_ids, categories, keypoints, scores = result_arrays(
            truth.content, entries, truth.sigmas
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    selected = categories == truth.category
    if not selected.any():
        raise DataError(f"{path}: no prediction has the category of the persons of {truth.name}")
    known = np.array([image["id"] for image in truth.images])
    return Results(
        Path(path).name,
        box_source(path),
        truth,
        np.searchsorted(known, image_ids[selected]),
        keypoints[selected],
        scores[selected],
    )


def box_source(path: str | Path) -> str:
    """Return the source of the boxes from the name keypoints_<set>_results_<source>.json.

    Returns: 'ground truth', the name of a detection file, or 'not known'.
    """
    match = re.fullmatch(r"keypoints_.+?_results_(.+)", Path(path).stem)
    if match is None:
        return "not known"
    return "ground truth" if match[1] == "gt_boxes" else match[1]


def named(result_files: Sequence[Results], paths: Sequence[str | Path]) -> list[Results]:
    """Return the results with a distinct `file` and a short `name` for tables and charts."""
    files = distinct(paths)
    return [
        replace(results, file=file, name=name)
        for results, file, name in zip(result_files, files, short_names(files))
    ]


def distinct(paths: Sequence[str | Path]) -> list[str]:
    """Return the last component of each path, or as many as make all of them distinct."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [single_line(name) for name in names]


def short_names(names: Sequence[str]) -> list[str]:
    """Return the words in which two names differ, or 'first' and 'second' if these are too long.

    A single name is 'results'.
    """
    if len(names) != 2:
        return ["results"] * len(names)
    words = [re.split(r"([_./\\ -]+)", name) for name in names]
    same = [a == b for a, b in zip(*words)]
    begin = same.index(False) if False in same else len(same)
    back = [a == b for a, b in zip(words[0][begin:][::-1], words[1][begin:][::-1])]
    end = back.index(False) if False in back else len(back)
    short = ["".join(word[begin : len(word) - end]).strip("_./\\ -") for word in words]
    if short[0] == short[1] or not all(0 < len(name) <= 24 for name in short):
        return ["first", "second"]
    return short
