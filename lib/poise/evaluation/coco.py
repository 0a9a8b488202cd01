"""COCO keypoint evaluation as the HRNet family does it: rescore, suppress, average precision,
figures per joint.

Letters: N predicted persons, G labelled persons, J joints, D predictions in an image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from poise.config.datasets import dataset
from poise.errors import DataError, escape_name, short_repr
from poise.evaluation import keypoint_ap, nms
from poise.evaluation.results import FIELDS, check_finite, read_results
from poise.io.files import gc_disabled
from poise.io.json_file import describe_field_error, is_finite, read_json
from poise.structures.ids import as_id, with_ids
from poise.structures.skeleton import crowd_flag, find_category

logger = logging.getLogger(__name__)
_NEEDED = "image_id", "category_id", "area", "bbox"
WHOLE = (int, np.integer)

#: HRNet's names of the ten COCO figures, in its order
STATS = ("AP", "Ap .5", "AP .75", "AP (M)", "AP (L)", "AR", "AR .5", "AR .75", "AR (M)", "AR (L)")


def rescore(keypoint_scores: np.ndarray, box_scores: np.ndarray, in_vis_thre: float) -> np.ndarray:
    """A person's score: that of its box times the mean of the joint scores above `in_vis_thre` (0
    where none is).

    keypoint_scores: (N, J). box_scores: (N,). Returns (N,) float64. Source: HRNet,
    lib/dataset/coco.py, evaluate.
    """
    keypoint_scores = np.asarray(keypoint_scores)
    box_scores = np.asarray(box_scores, np.float64)
    if keypoint_scores.ndim != 2 or box_scores.shape != keypoint_scores.shape[:1]:
        raise ValueError(
            f"rescore needs (N, J) and (N,) scores; got {keypoint_scores.shape} and"
            f" {box_scores.shape}"
        )
    total = np.zeros(len(box_scores), keypoint_scores.dtype)
    counted = keypoint_scores > in_vis_thre
    # joint after joint in the predictions' own precision, as the reference adds them: a pairwise or
    # a float64 sum gives other last bits, which decide between persons whose scores tie
    for j in range(keypoint_scores.shape[1]):
        total += np.where(counted[:, j], keypoint_scores[:, j], 0)
    return total / np.maximum(counted.sum(axis=1), 1).astype(total.dtype) * box_scores


def oks_nms_per_image(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    image_ids: np.ndarray,
    oks_thre: float,
    soft: bool = False,
    sigmas: Sequence[float] | None = None,
) -> np.ndarray:
    """Indices of the persons that OKS-NMS keeps, image by image (in order of first appearance),
    best first in each.

    keypoints: (N, J, 2 or 3), pixels. scores: (N,), already rescored. areas: (N,) square pixels, of
    the box that the crop was taken from. image_ids: (N,), in any order. soft: lower scores instead
    of deleting, at most 20 a picture. sigmas: (J,), None takes COCO's. Returns (K,) int64. Raises
    DataError where a prediction is NaN or infinite, and ValueError as poise.evaluation.nms.oks_nms.
    The best person of an image is always kept, so the reference's "if nothing was kept, keep all"
    has no counterpart.
    """
    image_ids = np.asarray(image_ids)
    if image_ids.ndim != 1 or not len(image_ids) == len(keypoints) == len(scores) == len(areas):
        raise ValueError(
            "oks_nms_per_image needs N keypoints, scores, areas and image ids; got "
            f"{np.shape(keypoints)}, {np.shape(scores)}, {np.shape(areas)}, {image_ids.shape}"
        )
    if len(image_ids) == 0:
        return np.zeros(0, np.int64)
    if np.ndim(keypoints) == 3:  # poise.evaluation.nms names other shapes
        check_finite(image_ids, np.asarray(keypoints), np.asarray(scores))
    _, first, image = np.unique(image_ids, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[image]
    # stable, because within an image the input order decides where NumPy's argsort puts ties
    rows = np.argsort(rank, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rank))])
    nms_by_image = nms.soft_oks_nms_by_image if soft else nms.oks_nms_by_image
    keypoints, scores, areas = (np.asarray(array)[rows] for array in (keypoints, scores, areas))
    return rows[nms_by_image(keypoints, scores, areas, offsets, oks_thre, _or_cocos(sigmas))]


def _or_cocos(sigmas: Sequence[float] | np.ndarray | None) -> np.ndarray:
    return np.asarray(dataset("coco").skeleton.sigmas if sigmas is None else sigmas, np.float64)


def average_precision(
    ground_truth: Any, results: Any, sigmas: Sequence[float] | None = None
) -> dict[str, float]:
    """The ten COCO keypoint figures, equal to pycocotools', under HRNet's names and in its order
    (STATS).

    ground_truth: path of a COCO keypoint annotation file, its content as a dict, or a pycocotools
    COCO object; it is not changed. results: path of a result file or its content, a list of dicts
    (metrics.coco_results makes one from arrays). sigmas: (J,) OKS constants; None takes those of
    COCO, for 17 joints only.

    A figure for which there is no labelled person is -1, as pycocotools has it. Without any result
    all figures are 0 and a warning is logged (pycocotools crashes). Raises DataError where the two
    do not fit together.
    """
    truth = read_ground_truth(ground_truth)
    results = _results(results)
    if not results:
        return empty_metrics()
    constants = _checked_sigmas(truth, results, sigmas)
    found = accumulate(truth, *_arrays(results, len(constants)), constants)
    return dict(zip(STATS, keypoint_ap.summarize(found)))


def result_arrays(
    truth: CocoGroundTruth, results: Any, sigmas: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """image_ids (N,), category_ids (N,), keypoints (N, J, 3) float64 and scores (N,) float64 of a
    result file, its path or its content.

    truth: what read_ground_truth returned. sigmas: (J,). Raises DataError where the two do not fit
    together, or a value is no finite number.
    """
    results = _results(results)
    try:
        _checked_sigmas(truth, results, sigmas)
        arrays = _arrays(results, len(sigmas))
        check_finite(arrays[0], arrays[2], arrays[3])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a result has keypoints or a score that are not numbers ({error}); this is not a COCO"
            " keypoint result file"
        ) from None
    return arrays


def _arrays(
    results: list[dict], joints: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    image_ids, categories = (
        np.array([r[key] for r in results]) for key in ("image_id", "category_id")
    )
    keypoints = np.array([r["keypoints"] for r in results], np.float64).reshape(
        len(results), joints, 3
    )
    return image_ids, categories, keypoints, np.array([r["score"] for r in results], np.float64)


def evaluate_arrays(
    truth: CocoGroundTruth,
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    category_id: int = 1,
) -> dict[str, float]:
    """The same of predictions that were not written to a file: image_ids (N,), keypoints (N, J, 2
    or 3), scores (N,).

    truth: what read_ground_truth returned. Raises DataError for images that it does not have.
    """
    if not len(image_ids):
        return empty_metrics()
    check_image_ids(np.asarray(image_ids).tolist(), truth)
    found = accumulate(
        truth,
        np.asarray(image_ids),
        np.full(len(image_ids), category_id),
        np.asarray(keypoints, np.float64),
        np.asarray(scores, np.float64),
        np.asarray(sigmas, np.float64),
    )
    return dict(zip(STATS, keypoint_ap.summarize(found)))


def empty_metrics(names: Sequence[str] = STATS) -> dict[str, float]:
    """The figures of no prediction at all, and a warning."""
    logger.warning(
        "there is no result to evaluate, hence AP 0: no person was detected or all were"
        " filtered out"
    )
    return dict.fromkeys(names, 0.0)


class CocoGroundTruth(dict):
    """COCO-format annotations of read_ground_truth with cached arrays of the persons. Read-only."""

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(M,) in rising order."""
        return np.unique([image["id"] for image in self["images"]])

    @cached_property
    def persons(self) -> dict[int, keypoint_ap.GroundTruthPersons]:
        """Those of each category, by its id."""
        position = {image_id: place for place, image_id in enumerate(self.image_ids.tolist())}
        of_each: dict[int, list[dict]] = {
            category: [] for category in sorted({c["id"] for c in self["categories"]})
        }
        for person in self["annotations"]:
            of_each.setdefault(person["category_id"], []).append(person)
        joints = len(self["annotations"][0]["keypoints"]) // 3 if self["annotations"] else 0
        return {
            category: keypoint_ap.GroundTruthPersons.from_annotations(persons, position, joints)
            for category, persons in of_each.items()
        }


def accumulate(
    truth: CocoGroundTruth,
    image_ids: np.ndarray,
    categories: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    sigmas: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What keypoint_ap.evaluate gives for each category. truth: of read_ground_truth. image_ids,
    categories, scores (N,), keypoints (N, J, 2 or 3).
    """
    found = []
    for category in sorted({c["id"] for c in truth["categories"]}):
        mine = categories == category
        found.append(
            keypoint_ap.evaluate(
                truth.persons[category],
                np.searchsorted(truth.image_ids, image_ids[mine]),
                keypoints[mine],
                scores[mine],
                sigmas,
            )
        )
    return found


def per_joint_pck(
    ground_truth: Any, results: Any, sigmas: Sequence[float] | None = None, threshold: float = 0.5
) -> dict[str, np.ndarray]:
    """How well each joint is found, which the AP does not tell.

    Each labelled person (no crowds) is matched with the prediction of its image whose OKS with it
    is highest, whatever that one's score. The similarity of a labelled joint is its term of the
    OKS, exp(-d^2 / (2 (2 sigma)^2 area)); it is 0 where the image has no prediction, for a person
    who was missed misses the joints too.

    ground_truth, results, sigmas, errors: as average_precision. threshold: the similarity that
    counts as found. Returns (J,) arrays: `labelled`, the number of labelled joints; `similarity`,
    their mean similarity in [0, 1]; `pck`, the share of them whose similarity is above the
    threshold. The last two are NaN where none is labelled.
    """
    truth = read_ground_truth(ground_truth)
    results = _results(results)
    constants = _checked_sigmas(truth, results, sigmas)
    image_ids, categories, keypoints, _ = _arrays(results, len(constants))
    return per_joint_pck_of_arrays(truth, image_ids, categories, keypoints, constants, threshold)


def per_joint_pck_of_arrays(
    truth: CocoGroundTruth,
    image_ids: np.ndarray,
    categories: np.ndarray | int,
    keypoints: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    threshold: float = 0.5,
) -> dict[str, np.ndarray]:
    """The same of predictions that were not written to a file: image_ids (N,), categories (N,) or
    one for all, keypoints (N, J, 2 or 3).

    truth: what read_ground_truth returned.
    """
    sigmas = np.asarray(sigmas, np.float64)
    categories = np.broadcast_to(categories, np.shape(image_ids))
    image_ids = np.asarray(image_ids, np.int64)
    listed = np.isin(image_ids, truth.image_ids)
    labelled, total, found = (
        np.zeros(len(sigmas), np.int64),
        np.zeros(len(sigmas)),
        np.zeros(len(sigmas)),
    )
    for category, persons in truth.persons.items():
        people = persons.select(~persons.crowd & (persons.keypoints[:, :, 2] != 0).any(axis=1))
        if not len(people.area):
            continue
        mine = np.flatnonzero(listed & (categories == category))
        similarity = keypoint_ap.best_similarity(
            people,
            np.searchsorted(truth.image_ids, image_ids[mine]),
            np.asarray(keypoints)[mine],
            sigmas,
        )
        labelled += (people.keypoints[:, :, 2] > 0).sum(axis=0)
        total += similarity.sum(axis=0)
        found += (similarity > threshold).sum(axis=0)
    count = np.where(labelled > 0, labelled, np.nan)
    return {"labelled": labelled, "similarity": total / count, "pck": found / count}


def format_joint_table(names: Sequence[str], figures: dict[str, np.ndarray]) -> str:
    """The figures of per_joint_pck as a Markdown table with a row for each of the J joint names."""
    if len(names) != len(figures["labelled"]):
        raise ValueError(
            f"got {len(names)} joint names for figures of {len(figures['labelled'])} joints"
        )
    rows = [
        f"| {name} | {labelled} | {similarity:.3f} | {pck:.3f} |"
        for name, labelled, similarity, pck in zip(
            names, figures["labelled"], figures["similarity"], figures["pck"]
        )
    ]
    return "\n".join(["| Joint | labelled | similarity | PCK |", "|---|---|---|---|", *rows])


def read_ground_truth(
    source: Any,
    joints: int | None = None,
    category: str | int = "person",
    area_of_box: float | None = None,
) -> CocoGroundTruth:
    """The annotations as a fresh COCO-format dict with every field that pycocotools reads.

    source: a path, a COCO-format dict or a pycocotools COCO object. joints: how many there must be;
    None takes what the file has. category: name or id of what is scored, where the file has it,
    else all. area_of_box: a person's area is this share of its box's; None: as annotated. Raises
    DataError, naming the annotation, for what could not be scored.
    """
    where = "the ground truth"
    if isinstance(source, (str, os.PathLike)):
        where = str(source)
        source = read_json(where, "annotation file")
    images, annotations, categories = _lists(getattr(source, "dataset", source), where)
    # other categories than persons may have other joints, or none, and are not scored
    named = find_category({"categories": categories}, category, where, [annotations])
    if named:
        annotations = [a for a in annotations if as_id(a.get("category_id")) == named["id"]]
        categories = [named]
    joints = joints or max(
        (len(a["keypoints"]) // 3 for a in annotations if isinstance(a.get("keypoints"), list)),
        default=0,
    )
    with gc_disabled():
        known = {image["id"] for image in images}
        persons = [
            _person(annotation, number, where, joints, area_of_box, known)
            for number, annotation in enumerate(annotations, start=1)
        ]
    _check_numbers(annotations, persons, where, joints, area_of_box)
    for annotation, person in zip(annotations, persons):
        labelled = annotation.get("num_keypoints")
        person["num_keypoints"] = (
            labelled
            if isinstance(labelled, WHOLE)
            else sum(v > 0 for v in person["keypoints"][2::3])
        )
        if area_of_box is not None:
            person["area"] = person["bbox"][3] * person["bbox"][2] * area_of_box
    categories = categories or [{"id": i} for i in {p["category_id"] for p in persons}]
    return CocoGroundTruth(info={}, images=images, categories=categories, annotations=persons)


def _lists(source: Any, where: str) -> tuple[list[dict], list[dict], list[dict]]:
    """Images, annotations and categories of a COCO-format dict, with ids as whole numbers."""
    if not isinstance(source, dict) or not {"images", "annotations"} <= source.keys():
        raise DataError(
            f"{where} is not a COCO annotation file: it has no images or no annotations"
        )
    annotations = source["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise DataError(f"{where}: 'annotations' is not a list of annotations")
    images = _with_whole_ids(source["images"], (list,), "images", where)
    categories = source.get("categories") or ()
    return (
        images,
        annotations,
        _with_whole_ids(categories, (list, tuple), "categories", where),
    )


def _with_whole_ids(
    entries: Any, kinds: tuple[type[list] | type[tuple], ...], name: str, where: str
) -> list[dict]:
    """Images or categories, with ids as whole numbers. Raises DataError."""
    if isinstance(entries, kinds):
        found = [with_ids(entry, "id") for entry in entries]
        if all(isinstance(entry, dict) and isinstance(entry.get("id"), WHOLE) for entry in found):
            return found
    raise DataError(f"{where}: {name!r} is not a list of {name} with whole numbers as ids")


def _person(
    annotation: dict,
    number: int,
    where: str,
    joints: int,
    area_of_box: float | None,
    known: set[int],
) -> dict:
    """A copy of an annotation, for pycocotools writes into its own, with `number` as its id.

    pycocotools takes a matched id of 0 for "unmatched" and keeps one of two equal ids; both occur
    in custom files. known: ids of the images.
    """
    person = {key: annotation[key] for key in _NEEDED if key in annotation}
    person = with_ids(person, "image_id", "category_id")
    if area_of_box is not None:
        person["area"] = 0.0
    person["id"] = number
    person["keypoints"] = annotation.get("keypoints") or [0] * 3 * joints
    crowd = crowd_flag(annotation)
    if (
        len(person) < len(_NEEDED) + 2
        or not isinstance(person["keypoints"], list)
        or len(person["keypoints"]) != 3 * joints
        or not isinstance(person["image_id"], WHOLE)
        or not isinstance(person["category_id"], WHOLE)
        or person["image_id"] not in known
        or crowd is None
    ):
        raise _fault(annotation, number, where, joints, area_of_box)
    person["iscrowd"] = int(crowd)
    return person


def _check_numbers(
    annotations: list[dict],
    persons: list[dict],
    where: str,
    joints: int,
    area_of_box: float | None,
) -> None:
    """Raise DataError for the first person whose area, box or keypoints are no finite numbers."""
    if _plain_numbers(persons, joints):
        return
    for annotation, person in zip(annotations, persons):
        if (
            not isinstance(person["bbox"], list)
            or len(person["bbox"]) != 4
            or not all(map(is_finite, (person["area"], *person["bbox"], *person["keypoints"])))
        ):
            raise _fault(annotation, person["id"], where, joints, area_of_box)


def _plain_numbers(persons: list[dict], joints: int) -> bool:
    """Whether the persons' areas, boxes and keypoints are finite numbers: all at once, for one
    by one takes longer than the matching.
    """
    try:
        columns = [
            np.array([person[key] for person in persons]) for key in ("area", "bbox", "keypoints")
        ]
    except ValueError:
        return False
    shapes = (len(persons),), (len(persons), 4), (len(persons), 3 * joints)
    return (
        all(
            column.shape == shape and column.dtype.kind in "if" and (np.abs(column) < 1e100).all()
            for column, shape in zip(columns, shapes)
        )
        or not persons
    )


def _fault(
    annotation: dict, number: int, where: str, joints: int, area_of_box: float | None
) -> DataError:
    """What is wrong with an annotation that cannot be used."""
    name = f"annotation {escape_name(annotation.get('id', number), 40)} of {where}"
    missing = {key for key in _NEEDED if key != "area" or area_of_box is None} - annotation.keys()
    keypoints, bbox = annotation.get("keypoints") or [], annotation.get("bbox")
    if missing:
        return DataError(f"{name} has no {', '.join(sorted(missing))}, which the evaluation needs")
    if not isinstance(keypoints, list) or not isinstance(bbox, list) or len(bbox) != 4:
        return DataError(
            f"{name} has keypoints or a bbox that are no list of numbers; correct or remove it"
        )
    if keypoints and len(keypoints) != 3 * joints:
        return DataError(f"{name} has {len(keypoints)} keypoint numbers, expected {3 * joints}")
    for key, values in (
        ("area", [annotation.get("area", 0)]),
        ("bbox", bbox),
        ("keypoint", keypoints),
    ):
        wrong = next((value for value in values if not is_finite(value)), 0)
        if wrong != 0:
            return DataError(
                f"{name} has {key} {short_repr(wrong, 60)}, expected a finite number; "
                "correct or remove it"
            )
    if crowd_flag(annotation) is None:
        return DataError(
            f"{name} {describe_field_error(annotation, 'iscrowd', '0 or 1')}; correct or remove it"
        )
    return DataError(
        f"{name} has image_id {escape_name(annotation['image_id'])}, which 'images' does not list,"
        " or a category_id that is no whole number"
    )


def _results(results: Any) -> list[dict]:
    """A list of fresh dicts with the fields that count; a `bbox` would change the areas that
    pycocotools takes.
    """
    if isinstance(results, (str, os.PathLike)):
        results = read_results(results)
    return [
        with_ids({key: result[key] for key in FIELDS}, "image_id", "category_id")
        for result in results
    ]


def _checked_sigmas(
    truth: dict, results: list[dict], sigmas: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """`sigmas` as an array; DataError unless ground truth, results and sigmas have the same
    joints and images.
    """
    joints = {
        len(item["keypoints"]) / 3 for part in (truth["annotations"], results) for item in part
    }
    given = _or_cocos(sigmas)
    if joints - {len(given)}:
        found = ", ".join(f"{j:g}" for j in sorted(joints))
        mend = "; give the OKS sigmas of this joint set" if sigmas is None else ""
        raise DataError(
            f"annotations and results have {found} joints, the OKS sigmas {len(given)}{mend}"
        )
    check_image_ids([result["image_id"] for result in results], truth)
    return given


def check_image_ids(image_ids: Sequence, truth: dict) -> None:
    """Raise DataError for predictions in images that the ground truth does not have."""
    strange = set(image_ids) - {image["id"] for image in truth["images"]}
    if strange:
        raise DataError(
            f"the results name {len(strange)} images that the ground truth does not have, such as"
            f" {min(strange)}: they belong to another set"
        )
