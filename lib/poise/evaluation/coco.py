"""COCO keypoint evaluation as in HRNet: rescoring, OKS-NMS, average precision, PCK per keypoint.

Letters: N predicted persons, G labeled persons, K keypoints, D predictions of an image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from poise.config.dataset_yaml import load_dataset_info
from poise.errors import DataError, escape_name, short_repr
from poise.evaluation import keypoint_ap, nms
from poise.evaluation.results import FIELDS, check_finite, read_results
from poise.io.files import gc_disabled
from poise.io.json_file import describe_field_error, is_finite, read_json
from poise.structures.ids import parse_id, parse_ids
from poise.structures.skeleton import crowd_flag, find_category

logger = logging.getLogger(__name__)
_REQUIRED = "image_id", "category_id", "area", "bbox"
_INTEGERS = (int, np.integer)

#: HRNet's names of the ten COCO metrics, in its order
STATS = ("AP", "Ap .5", "AP .75", "AP (M)", "AP (L)", "AR", "AR .5", "AR .75", "AR (M)", "AR (L)")


def rescore(keypoint_scores: np.ndarray, box_scores: np.ndarray, in_vis_thre: float) -> np.ndarray:
    """Return box score times mean keypoint score, over keypoints scored above `in_vis_thre`.

    Args:
        keypoint_scores: (N, K).
        box_scores: (N,).
        in_vis_thre: keypoints of a higher score count; without any the person scores 0.

    Returns: (N,) float64.

    Source: HRNet, lib/dataset/coco.py, evaluate.
    """
    keypoint_scores = np.asarray(keypoint_scores)
    box_scores = np.asarray(box_scores, np.float64)
    if keypoint_scores.ndim != 2 or box_scores.shape != keypoint_scores.shape[:1]:
        raise ValueError(
            f"rescore: expected (N, K) and (N,) scores; got {keypoint_scores.shape} and"
            f" {box_scores.shape}"
        )
    total = np.zeros(len(box_scores), keypoint_scores.dtype)
    visible = keypoint_scores > in_vis_thre
    # Add one keypoint after the other in the predictions' precision, as the reference does: a
    # pairwise or float64 sum has other last bits, which decide between persons of equal score.
    for k in range(keypoint_scores.shape[1]):
        total += np.where(visible[:, k], keypoint_scores[:, k], 0)
    return total / np.maximum(visible.sum(axis=1), 1).astype(total.dtype) * box_scores


def oks_nms_per_image(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    image_ids: np.ndarray,
    oks_thre: float,
    soft: bool = False,
    sigmas: Sequence[float] | None = None,
) -> np.ndarray:
    """Apply OKS-NMS within each image and return the indices of the remaining persons.

    The best person of an image always remains, so HRNet's "if nothing is left, keep all" is not
    needed.

    Args:
        keypoints: (N, K, 2 or 3) pixels.
        scores: (N,), already rescored.
        areas: (N,) square pixels, of the box that the crop was taken from.
        image_ids: (N,), in any order.
        oks_thre: OKS above which a person is a duplicate.
        soft: lower scores instead of removing persons, at most 20 per image remain.
        sigmas: (K,) OKS constants; None: COCO's.

    Returns: int64 indices, images in order of first appearance, best person first.

    Raises DataError if a prediction is NaN or infinite, ValueError as poise.evaluation.nms.oks_nms.
    """
    image_ids = np.asarray(image_ids)
    if image_ids.ndim != 1 or not len(image_ids) == len(keypoints) == len(scores) == len(areas):
        raise ValueError(
            "oks_nms_per_image: expected N keypoints, scores, areas and image ids; got "
            f"{np.shape(keypoints)}, {np.shape(scores)}, {np.shape(areas)}, {image_ids.shape}"
        )
    if len(image_ids) == 0:
        return np.zeros(0, np.int64)
    if np.ndim(keypoints) == 3:  # poise.evaluation.nms reports other shapes
        check_finite(image_ids, np.asarray(keypoints), np.asarray(scores))
    _, first, image = np.unique(image_ids, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[image]
    # stable: within an image the input order decides how NumPy's argsort orders equal scores
    rows = np.argsort(rank, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rank))])
    nms_by_image = nms.soft_oks_nms_by_image if soft else nms.oks_nms_by_image
    keypoints, scores, areas = (np.asarray(array)[rows] for array in (keypoints, scores, areas))
    remaining = nms_by_image(keypoints, scores, areas, offsets, oks_thre, _coco_if_none(sigmas))
    return rows[remaining]


def average_precision(
    ground_truth: Any, results: Any, sigmas: Sequence[float] | None = None
) -> dict[str, float]:
    """Return the ten COCO keypoint metrics of STATS, equal to pycocotools'.

    A metric without labeled persons is -1, as in pycocotools. Without results all metrics are 0
    and a warning is logged (pycocotools crashes).

    Args:
        ground_truth: path of a COCO keypoint annotation file, its content, or a pycocotools COCO
            object; it is not changed.
        results: path of a result file or its content, a list of dicts, see coco_results.
        sigmas: (K,) OKS constants; None: COCO's, for its 17 keypoints.

    Raises DataError if ground truth and results do not belong together.
    """
    truth = read_ground_truth(ground_truth)
    results = _load_entries(results)
    if not results:
        return empty_metrics()
    checked = _checked_sigmas(truth, results, sigmas)
    curves = accumulate(truth, *_to_arrays(results, len(checked)), checked)
    return dict(zip(STATS, keypoint_ap.summarize(curves)))


def evaluate_arrays(
    truth: CocoGroundTruth,
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    category_id: int = 1,
) -> dict[str, float]:
    """Return the metrics of average_precision for arrays instead of a result file.

    Args:
        truth: from read_ground_truth.
        image_ids: (N,).
        keypoints: (N, K, 2 or 3) pixels.
        scores: (N,).
        sigmas: (K,) OKS constants.
        category_id: category of the predictions.

    Raises DataError for images that the ground truth does not have.
    """
    if not len(image_ids):
        return empty_metrics()
    check_image_ids(np.asarray(image_ids).tolist(), truth)
    curves = accumulate(
        truth,
        np.asarray(image_ids),
        np.full(len(image_ids), category_id),
        np.asarray(keypoints, np.float64),
        np.asarray(scores, np.float64),
        np.asarray(sigmas, np.float64),
    )
    return dict(zip(STATS, keypoint_ap.summarize(curves)))


def accumulate(
    truth: CocoGroundTruth,
    image_ids: np.ndarray,
    categories: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    sigmas: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return precision and recall of keypoint_ap.evaluate for each category.

    Args:
        truth: from read_ground_truth.
        image_ids, categories, scores: (N,).
        keypoints: (N, K, 2 or 3) pixels.
        sigmas: (K,) OKS constants.
    """
    curves = []
    for category in sorted({c["id"] for c in truth["categories"]}):
        selected = categories == category
        curves.append(
            keypoint_ap.evaluate(
                truth.persons[category],
                np.searchsorted(truth.image_ids, image_ids[selected]),
                keypoints[selected],
                scores[selected],
                sigmas,
            )
        )
    return curves


def empty_metrics(names: Sequence[str] = STATS) -> dict[str, float]:
    """Return metrics of 0 for no predictions, and log a warning."""
    logger.warning("no predictions to evaluate: no person was detected or all were filtered out")
    return dict.fromkeys(names, 0.0)


def check_image_ids(image_ids: Sequence, truth: dict) -> None:
    """Raise DataError for predictions in images that the ground truth does not have."""
    unknown = set(image_ids) - {image["id"] for image in truth["images"]}
    if unknown:
        raise DataError(
            f"results have {len(unknown)} image ids that the ground truth does not have, such as"
            f" {min(unknown)}; use the annotation file of the same split"
        )


def result_arrays(
    truth: CocoGroundTruth, results: Any, sigmas: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Convert a result file to arrays.

    Args:
        truth: from read_ground_truth.
        results: path of a result file or its content.
        sigmas: (K,) OKS constants.

    Returns: image_ids (N,), category_ids (N,), keypoints (N, K, 3) float64, scores (N,) float64.

    Raises DataError if the two do not belong together or a value is not a finite number.
    """
    results = _load_entries(results)
    try:
        _checked_sigmas(truth, results, sigmas)
        arrays = _to_arrays(results, len(sigmas))
        check_finite(arrays[0], arrays[2], arrays[3])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"not a COCO keypoint result file: keypoints or a score are not numbers ({error})"
        ) from None
    return arrays


def per_joint_pck(
    ground_truth: Any, results: Any, sigmas: Sequence[float] | None = None, threshold: float = 0.5
) -> dict[str, np.ndarray]:
    """Return how accurately each keypoint is localized.

    Each labeled person (crowds excluded) is matched with the prediction of the image that has the
    highest OKS, regardless of its score. The similarity of a labeled keypoint is its term of the
    OKS, exp(-d^2 / (2 (2 sigma)^2 area)), or 0 if the image has no prediction.

    Args:
        ground_truth, results, sigmas: as for average_precision.
        threshold: similarity above which a keypoint is correct.

    Returns: (K,) arrays: `labelled`, the number of labeled keypoints; `similarity`, their mean
    similarity in [0, 1]; `pck`, the fraction above the threshold. The last two are NaN for a
    keypoint that is never labeled.
    """
    truth = read_ground_truth(ground_truth)
    results = _load_entries(results)
    checked = _checked_sigmas(truth, results, sigmas)
    image_ids, categories, keypoints, _ = _to_arrays(results, len(checked))
    return per_joint_pck_of_arrays(truth, image_ids, categories, keypoints, checked, threshold)


def per_joint_pck_of_arrays(
    truth: CocoGroundTruth,
    image_ids: np.ndarray,
    categories: np.ndarray | int,
    keypoints: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    threshold: float = 0.5,
) -> dict[str, np.ndarray]:
    """Return the figures of per_joint_pck for arrays instead of a result file.

    Args:
        truth: from read_ground_truth.
        image_ids: (N,).
        categories: (N,), or one for all.
        keypoints: (N, K, 2 or 3) pixels.
        sigmas: (K,) OKS constants.
        threshold: similarity above which a keypoint is correct.
    """
    sigmas = np.asarray(sigmas, np.float64)
    categories = np.broadcast_to(categories, np.shape(image_ids))
    image_ids = np.asarray(image_ids, np.int64)
    is_known = np.isin(image_ids, truth.image_ids)
    num_labeled = np.zeros(len(sigmas), np.int64)
    total = np.zeros(len(sigmas))
    num_correct = np.zeros(len(sigmas))
    for category, persons in truth.persons.items():
        labeled = persons.select(~persons.crowd & (persons.keypoints[:, :, 2] != 0).any(axis=1))
        if not len(labeled.area):
            continue
        selected = np.flatnonzero(is_known & (categories == category))
        similarity = keypoint_ap.best_similarity(
            labeled,
            np.searchsorted(truth.image_ids, image_ids[selected]),
            np.asarray(keypoints)[selected],
            sigmas,
        )
        num_labeled += (labeled.keypoints[:, :, 2] > 0).sum(axis=0)
        total += similarity.sum(axis=0)
        num_correct += (similarity > threshold).sum(axis=0)
    count = np.where(num_labeled > 0, num_labeled, np.nan)
    return {"labelled": num_labeled, "similarity": total / count, "pck": num_correct / count}


def format_joint_table(names: Sequence[str], figures: dict[str, np.ndarray]) -> str:
    """Format the figures of per_joint_pck as a Markdown table with a row per keypoint name."""
    if len(names) != len(figures["labelled"]):
        raise ValueError(
            f"got {len(names)} keypoint names for figures of {len(figures['labelled'])} keypoints"
        )
    rows = [
        f"| {name} | {labelled} | {similarity:.3f} | {pck:.3f} |"
        for name, labelled, similarity, pck in zip(
            names, figures["labelled"], figures["similarity"], figures["pck"]
        )
    ]
    return "\n".join(["| Joint | labelled | similarity | PCK |", "|---|---|---|---|", *rows])


class CocoGroundTruth(dict):
    """COCO-format annotations of read_ground_truth with cached arrays of the persons. Read-only."""

    @cached_property
    def image_ids(self) -> np.ndarray:
        """Sorted ids of the images."""
        return np.unique([image["id"] for image in self["images"]])

    @cached_property
    def persons(self) -> dict[int, keypoint_ap.GroundTruthPersons]:
        """Persons by category id."""
        position = {image_id: index for index, image_id in enumerate(self.image_ids.tolist())}
        by_category: dict[int, list[dict]] = {
            category: [] for category in sorted({c["id"] for c in self["categories"]})
        }
        for person in self["annotations"]:
            by_category.setdefault(person["category_id"], []).append(person)
        num_keypoints = 0
        if self["annotations"]:
            num_keypoints = len(self["annotations"][0]["keypoints"]) // 3
        return {
            category: keypoint_ap.GroundTruthPersons.from_annotations(
                persons, position, num_keypoints
            )
            for category, persons in by_category.items()
        }


def read_ground_truth(
    source: Any,
    joints: int | None = None,
    category: str | int = "person",
    area_of_box: float | None = None,
) -> CocoGroundTruth:
    """Read and check annotations; every field that pycocotools reads is set in the result.

    Args:
        source: a path, a COCO-format dict or a pycocotools COCO object.
        joints: required number of keypoints; None: that of the file.
        category: name or id of the category to score; if the file does not have it, all are scored.
        area_of_box: area of a person as a fraction of its box; None: as annotated.

    Raises DataError that names the annotation if it cannot be scored.
    """
    where = "the ground truth"
    if isinstance(source, (str, os.PathLike)):
        where = str(source)
        source = read_json(where, "annotation file")
    images, annotations, categories = _split_content(getattr(source, "dataset", source), where)
    # other categories may have other keypoints or none, and are not scored
    named = find_category({"categories": categories}, category, where, [annotations])
    if named:
        annotations = [a for a in annotations if parse_id(a.get("category_id")) == named["id"]]
        categories = [named]
    joints = joints or max(
        (len(a["keypoints"]) // 3 for a in annotations if isinstance(a.get("keypoints"), list)),
        default=0,
    )
    with gc_disabled():
        image_ids = {image["id"] for image in images}
        persons = [
            _to_person(annotation, number, where, joints, area_of_box, image_ids)
            for number, annotation in enumerate(annotations, start=1)
        ]
    _check_numbers(annotations, persons, where, joints, area_of_box)
    for annotation, person in zip(annotations, persons):
        person["num_keypoints"] = annotation.get("num_keypoints")
        if not isinstance(person["num_keypoints"], _INTEGERS):
            person["num_keypoints"] = sum(v > 0 for v in person["keypoints"][2::3])
        if area_of_box is not None:
            person["area"] = person["bbox"][3] * person["bbox"][2] * area_of_box
    categories = categories or [{"id": i} for i in {p["category_id"] for p in persons}]
    return CocoGroundTruth(info={}, images=images, categories=categories, annotations=persons)


def _split_content(source: Any, where: str) -> tuple[list[dict], list[dict], list[dict]]:
    """Return images, annotations and categories of a COCO-format dict, with integer ids."""
    if not isinstance(source, dict) or not {"images", "annotations"} <= source.keys():
        raise DataError(f"{where}: not a COCO annotation file: missing images or annotations")
    annotations = source["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise DataError(f"{where}: invalid 'annotations'; expected a list of annotations")
    images = _with_integer_ids(source["images"], (list,), "images", where)
    categories = _with_integer_ids(
        source.get("categories") or (), (list, tuple), "categories", where
    )
    return images, annotations, categories


def _with_integer_ids(
    entries: Any, kinds: tuple[type[list] | type[tuple], ...], name: str, where: str
) -> list[dict]:
    """Return images or categories with integer ids. Raises DataError."""
    if isinstance(entries, kinds):
        converted = [parse_ids(entry, "id") for entry in entries]
        if all(isinstance(e, dict) and isinstance(e.get("id"), _INTEGERS) for e in converted):
            return converted
    raise DataError(f"{where}: invalid {name!r}; expected a list of {name} with integer ids")


def _to_person(
    annotation: dict,
    number: int,
    where: str,
    joints: int,
    area_of_box: float | None,
    image_ids: set[int],
) -> dict:
    """Copy an annotation, because pycocotools modifies its input, with `number` as the id.

    pycocotools treats a matched id of 0 as unmatched and merges equal ids; custom files have both.
    """
    person = {key: annotation[key] for key in _REQUIRED if key in annotation}
    person = parse_ids(person, "image_id", "category_id")
    if area_of_box is not None:
        person["area"] = 0.0
    person["id"] = number
    person["keypoints"] = annotation.get("keypoints") or [0] * 3 * joints
    crowd = crowd_flag(annotation)
    if (
        len(person) < len(_REQUIRED) + 2
        or not isinstance(person["keypoints"], list)
        or len(person["keypoints"]) != 3 * joints
        or not isinstance(person["image_id"], _INTEGERS)
        or not isinstance(person["category_id"], _INTEGERS)
        or person["image_id"] not in image_ids
        or crowd is None
    ):
        raise _annotation_error(annotation, number, where, joints, area_of_box)
    person["iscrowd"] = int(crowd)
    return person


def _check_numbers(
    annotations: list[dict],
    persons: list[dict],
    where: str,
    joints: int,
    area_of_box: float | None,
) -> None:
    """Raise DataError for the first person with an area, box or keypoint that is not finite."""
    if _all_finite(persons, joints):
        return
    for annotation, person in zip(annotations, persons):
        if (
            not isinstance(person["bbox"], list)
            or len(person["bbox"]) != 4
            or not all(map(is_finite, (person["area"], *person["bbox"], *person["keypoints"])))
        ):
            raise _annotation_error(annotation, person["id"], where, joints, area_of_box)


def _all_finite(persons: list[dict], joints: int) -> bool:
    """Check areas, boxes and keypoints as arrays; one value at a time is slower than matching."""
    if not persons:
        return True
    try:
        columns = [
            np.array([person[key] for person in persons]) for key in ("area", "bbox", "keypoints")
        ]
    except ValueError:
        return False
    shapes = (len(persons),), (len(persons), 4), (len(persons), 3 * joints)
    return all(
        column.shape == shape and column.dtype.kind in "if" and (np.abs(column) < 1e100).all()
        for column, shape in zip(columns, shapes)
    )


def _annotation_error(
    annotation: dict, number: int, where: str, joints: int, area_of_box: float | None
) -> DataError:
    """Return the error of an annotation that cannot be used."""
    name = f"{where}: annotation {escape_name(annotation.get('id', number), 40)}"
    required = {key for key in _REQUIRED if key != "area" or area_of_box is None}
    missing = sorted(required - annotation.keys())
    if missing:
        return DataError(f"{name}: missing {', '.join(missing)}; needed for the evaluation")
    keypoints = annotation.get("keypoints") or []
    bbox = annotation.get("bbox")
    if not isinstance(keypoints, list) or not isinstance(bbox, list) or len(bbox) != 4:
        return DataError(
            f"{name}: keypoints or bbox are not a list of numbers; correct or remove it"
        )
    if keypoints and len(keypoints) != 3 * joints:
        return DataError(f"{name}: has {len(keypoints)} keypoint numbers; expected {3 * joints}")
    for key, values in (
        ("area", [annotation.get("area", 0)]),
        ("bbox", bbox),
        ("keypoint", keypoints),
    ):
        for value in values:
            if not is_finite(value):
                return DataError(
                    f"{name} has {key} {short_repr(value, 60)}, expected a finite number; correct"
                    " or remove it"
                )
    if crowd_flag(annotation) is None:
        return DataError(
            f"{name} {describe_field_error(annotation, 'iscrowd', '0 or 1')}; correct or remove it"
        )
    return DataError(
        f"{name}: image_id {escape_name(annotation['image_id'])} is not in 'images', or category_id"
        " is not an integer"
    )


def _load_entries(results: Any) -> list[dict]:
    """Return copies of the results with the scored fields only.

    A `bbox` would change the areas that pycocotools uses.
    """
    if isinstance(results, (str, os.PathLike)):
        results = read_results(results)
    return [
        parse_ids({key: result[key] for key in FIELDS}, "image_id", "category_id")
        for result in results
    ]


def _to_arrays(
    results: list[dict], num_keypoints: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    image_ids = np.array([r["image_id"] for r in results])
    categories = np.array([r["category_id"] for r in results])
    keypoints = np.array([r["keypoints"] for r in results], np.float64)
    scores = np.array([r["score"] for r in results], np.float64)
    return image_ids, categories, keypoints.reshape(len(results), num_keypoints, 3), scores


def _coco_if_none(sigmas: Sequence[float] | np.ndarray | None) -> np.ndarray:
    if sigmas is None:
        sigmas = load_dataset_info("coco").skeleton.sigmas
    return np.asarray(sigmas, np.float64)


def _checked_sigmas(
    truth: dict, results: list[dict], sigmas: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """Return `sigmas` as an array; DataError if keypoint numbers or images do not agree."""
    counts = {
        len(item["keypoints"]) / 3 for part in (truth["annotations"], results) for item in part
    }
    checked = _coco_if_none(sigmas)
    if counts - {len(checked)}:
        given = ", ".join(f"{count:g}" for count in sorted(counts))
        hint = ""
        if sigmas is None:
            hint = "; pass the OKS sigmas of this keypoint set"
        raise DataError(
            f"annotations and results have {given} keypoints, the OKS sigmas {len(checked)}{hint}"
        )
    check_image_ids([result["image_id"] for result in results], truth)
    return checked
