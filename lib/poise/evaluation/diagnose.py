"""Diagnose an AP of 0 or -1: test for known causes and report those that apply.

Letters: N predicted persons, G labeled persons, K keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.coco import CocoGroundTruth, accumulate
from poise.structures import boxes

_MIN_AP_GAIN = 0.1  # by which swapping left and right must raise the AP to be reported
_MAX_STD = 0.02  # of the box size: predictions with less variation are called constant
_MIN_BOXES = 5  # fewer persons may be alike by chance
_SIZES = {"(M)": "medium", "(L)": "large"}


@dataclass(frozen=True)
class EvalContext:
    """Predictions as they were evaluated, and how they were obtained.

    Attributes:
        image_ids: (N,).
        keypoints: (N, K, 3) x, y, score.
        scores: (N,).
        box: (N, 4) x, y, width, height of the boxes that were cropped.
        sigmas: (K,) OKS constants.
        flip_indices: (K,) of the skeleton.
        category_id: of the predictions.
        box_source: 'gt' or the name of a detection file.
        dropped: number of dropped boxes by reason.
        joint_threshold: TEST.IN_VIS_THRE.
        weights: warning about the origin of the network's weights, or ''.
    """

    image_ids: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray
    box: np.ndarray
    sigmas: Sequence[float]
    flip_indices: np.ndarray
    category_id: int = 1
    box_source: str = "gt"
    dropped: Mapping[str, int] | None = None
    joint_threshold: float = 0.0
    weights: str = ""

    @property
    def box_name(self) -> str:
        return "the annotations" if self.box_source == "gt" else self.box_source

    @property
    def num_dropped(self) -> dict[str, int]:
        """Reasons for which boxes were dropped, with their numbers."""
        return {reason: count for reason, count in (self.dropped or {}).items() if count}


def should_diagnose(figures: Mapping[str, float]) -> bool:
    """Return whether a metric is 0 or -1."""
    return any(value == -1 or is_zero(value) for value in figures.values())


def is_zero(value: float) -> bool:
    """Return whether a metric is 0 with the three decimals of the log."""
    return round(value, 3) == 0


def diagnose(
    truth: CocoGroundTruth, context: EvalContext, figures: Mapping[str, float]
) -> list[str]:
    """Return one line per cause of metrics of 0 or -1.

    Args:
        truth: from read_ground_truth.
        context: what was evaluated.
        figures: metrics by name.
    """
    empty = [name for name, value in figures.items() if value == -1]
    zero = [name for name, value in figures.items() if is_zero(value)]
    scored = [p for p in truth["annotations"] if not p["iscrowd"] and p["num_keypoints"] > 0]
    lines = []
    if empty:
        lines += _explain_empty(truth, scored, empty)
    if zero and scored:
        causes = _explain_zero(truth, _select_size(scored, zero), context, "AP" in zero)
        lines += [f"{name_metrics(zero)} 0: {cause}" for cause in causes]
    return lines


def name_metrics(names: Sequence[str]) -> str:
    """Return 'AP is' or 'AP, AR are'."""
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names)} {verb}"


def explain_unscorable(truth: CocoGroundTruth) -> str:
    """Return why no person of the ground truth is scored, '' if one is.

    truth: from read_ground_truth.
    """
    persons = truth["annotations"]
    if not persons:
        return "the annotation file has no annotations of the scored category"
    single = [person for person in persons if not person["iscrowd"]]
    if any(person["num_keypoints"] > 0 for person in single):
        return ""
    text = (
        f"no person is scored: of {len(persons)} annotations {len(persons) - len(single)} are"
        " crowds, the others have no labeled keypoint (num_keypoints 0)"
    )
    num_labeled = sum(any(flag > 0 for flag in person["keypoints"][2::3]) for person in single)
    if num_labeled:
        text += (
            f", although {num_labeled} have keypoints with a visibility above 0; correct or remove"
            " num_keypoints"
        )
    return text


def check_constant_predictions(keypoints: np.ndarray, box: np.ndarray) -> list[str]:
    """Return a line if the predictions have nearly the same positions in all boxes.

    Args:
        keypoints: (N, K, 2) pixels.
        box: (N, 4) x, y, width, height.
    """
    extent = box[:, 2:].max(axis=1)
    if len(box) < _MIN_BOXES or (extent <= 0).any():
        return []
    relative = (keypoints - (box[:, :2] + box[:, 2:] / 2)[:, None]) / extent[:, None, None]
    if relative.std(axis=0).mean() >= _MAX_STD:
        return []
    return [
        "constant predictions: keypoints differ between persons by less than"
        f" {100 * _MAX_STD:g} % of the box; the network has not learned anything, or its weights"
        " do not belong to this experiment"
    ]


def _explain_empty(truth: CocoGroundTruth, scored: list[dict], empty: Sequence[str]) -> list[str]:
    """Return why there are no labeled persons."""
    reason = explain_unscorable(truth)
    if reason:
        return [f"{name_metrics(empty)} -1: {reason}"]
    areas = np.array([p["area"] for p in scored])
    lines = []
    for mark, size in _SIZES.items():
        names = [name for name in empty if mark in name]
        if not names:
            continue
        low, high = keypoint_ap.SIZES[size]
        bounds = f"of {low:g} or more"
        if high < 1e9:
            bounds = f"from {low:g} to {high:g}"
        lines.append(
            f"{name_metrics(names)} -1: no labeled person has an area {bounds} square pixels"
            f" ({size}); the {len(areas)} scored persons have {areas.min():.4g} to"
            f" {areas.max():.4g}"
        )
    if not lines:
        lines.append(f"{name_metrics(empty)} -1: no labeled person of such images is scored")
    if np.median(areas) <= 1:
        lines.append("annotation areas are fractions of the image; square pixels are expected")
    return lines


def _select_size(scored: list[dict], zero: Sequence[str]) -> list[dict]:
    """Return the persons of the metrics in `zero`: those of one size if it concerns only one."""
    sizes = set()
    for name in zero:
        sizes.add(next((size for mark, size in _SIZES.items() if mark in name), "all"))
    if len(sizes) > 1:
        return scored
    low, high = keypoint_ap.SIZES[sizes.pop()]
    return [person for person in scored if low <= person["area"] <= high]


def _explain_zero(
    truth: CocoGroundTruth, scored: list[dict], context: EvalContext, is_ap_zero: bool
) -> list[str]:
    """Return why no person was detected."""
    if not len(context.image_ids):
        line = "no predictions"
        if context.num_dropped:
            counts = [f"{count} {reason}" for reason, count in context.num_dropped.items()]
            line += f"; dropped: {', '.join(counts)}"
        return [line]
    lines = []
    if context.weights:
        lines.append(context.weights)
    lines += _check_ids(truth, scored, context) or [
        *_check_boxes(truth, scored, context),
        *_check_left_right(truth, context),
    ]
    lines += _check_scores(context)
    if is_ap_zero:
        lines += check_constant_predictions(context.keypoints[:, :, :2], context.box)
    return lines or [_describe_distance(scored, context)]


def _check_ids(truth: CocoGroundTruth, scored: list[dict], context: EvalContext) -> list[str]:
    lines = []
    categories = {c["id"] for c in truth["categories"]}
    if context.category_id not in categories:
        lines.append(
            f"ids do not match: predictions have category_id {context.category_id}, annotations"
            f" {', '.join(map(str, sorted(categories)))}"
        )
    labeled_images = {p["image_id"] for p in scored}
    predicted_images = set(context.image_ids.tolist())
    common = labeled_images & predicted_images
    if len(common) < 0.5 * len(labeled_images):
        line = (
            f"ids do not match: {len(common)} of {len(labeled_images)} images with labeled persons"
            " have a prediction"
        )
        if len(predicted_images) > len(common):
            line += f", although {len(predicted_images)} images have one"
        lines.append(line)
    for reason, count in context.num_dropped.items():
        if "does not list" in reason and count > len(context.image_ids):
            lines.append(f"ids do not match: {count} boxes were dropped, {reason}")
    return lines


def _persons(scored: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image ids (G,), keypoints (G, K, 3) and boxes around labeled keypoints (G, 4).

    The boxes of the annotation file may be wrong.
    """
    keypoints = np.array([p["keypoints"] for p in scored], np.float64).reshape(len(scored), -1, 3)
    is_labeled = (keypoints[:, :, 2] > 0)[:, :, None]
    low = np.where(is_labeled, keypoints[:, :, :2], np.inf).min(axis=1)
    high = np.where(is_labeled, keypoints[:, :, :2], -np.inf).max(axis=1)
    image_ids = np.array([p["image_id"] for p in scored])
    return image_ids, keypoints, np.concatenate([low, high - low], axis=1)


def _check_boxes(truth: CocoGroundTruth, scored: list[dict], context: EvalContext) -> list[str]:
    """Check that the boxes contain the labeled keypoints, or would do so in another format."""
    image_ids, keypoints, around = _persons(scored)
    labeled = np.where(keypoints[:, :, 2:] > 0, keypoints[:, :, :2], 0)
    if np.nanmax(np.abs(labeled)) <= 1.5:
        return ["annotated keypoints are fractions of the image; pixels are expected"]
    has_extent = (around[:, 2:] > 1).all(axis=1)  # a single keypoint has no box
    if not has_extent.any():
        return []
    target, target_ids = around[has_extent], image_ids[has_extent]

    def overlap_of(candidates: np.ndarray) -> float:
        return float(boxes.best_iou(target, target_ids, candidates, context.image_ids).mean())

    overlap = overlap_of(context.box)
    sizes = _image_sizes(truth, context.image_ids)
    if np.isfinite(sizes).all():
        forms = boxes.convert_from_other_formats(context.box, sizes)
        better, form = max((overlap_of(others), form) for form, others in forms.items())
        if better > max(0.3, 1.5 * overlap):
            return [
                f"wrong box format: those of {context.box_name} overlap the labeled keypoints by"
                f" {overlap:.2f}, read as {form} by {better:.2f}; x, y, width, height in pixels are"
                " expected"
            ]
    if overlap >= 0.1:
        return []
    return [
        f"misplaced boxes: those of {context.box_name} overlap the labeled keypoints by only"
        f" {overlap:.2f}"
    ]


def _image_sizes(truth: CocoGroundTruth, image_ids: np.ndarray) -> np.ndarray:
    """Return width and height (N, 2) of images, NaN if the annotation file does not have them."""
    sizes = {
        entry["id"]: (entry["width"], entry["height"])
        for entry in truth["images"]
        if entry.get("width") and entry.get("height")
    }
    return np.array([sizes.get(key, (np.nan, np.nan)) for key in image_ids.tolist()], np.float64)


def _ap(truth: CocoGroundTruth, context: EvalContext, keypoints: np.ndarray) -> float:
    curves = accumulate(
        truth,
        context.image_ids,
        np.full(len(context.image_ids), context.category_id),
        keypoints,
        context.scores,
        np.asarray(context.sigmas, np.float64),
    )
    return keypoint_ap.summarize(curves)[0]


def _check_left_right(truth: CocoGroundTruth, context: EvalContext) -> list[str]:
    """Check whether left and right are swapped, in the keypoint order or in the images."""
    order = context.flip_indices
    if (order == np.arange(len(order))).all():
        return []
    before = _ap(truth, context, context.keypoints)
    after = _ap(truth, context, context.keypoints[:, order])
    if after > before + _MIN_AP_GAIN:
        return [
            f"left and right swapped: swapping the keypoints raises the AP from"
            f" {max(before, 0):.3f} to {after:.3f}; check their order in the annotations, in"
            " `joints` and in the training of the weights"
        ]
    width = {entry["id"]: entry.get("width") for entry in truth["images"]}
    widths = [width.get(key) for key in context.image_ids.tolist()]
    if not all(widths):
        return []
    mirrored = context.keypoints[:, order].copy()
    mirrored[:, :, 0] = np.array(widths, np.float64)[:, None] - 1 - mirrored[:, :, 0]
    after = _ap(truth, context, mirrored)
    if after > before + _MIN_AP_GAIN:
        return [
            f"mirrored images: mirroring the predictions raises the AP from {max(before, 0):.3f}"
            f" to {after:.3f}; the images are not the annotated ones"
        ]
    return []


def _check_scores(context: EvalContext) -> list[str]:
    lines = []
    keypoints, scores = context.keypoints, context.scores
    if keypoints.shape[2] > 2 and (keypoints[:, :, 2] <= context.joint_threshold).all():
        lines.append(
            f"low keypoint scores: the highest is {keypoints[:, :, 2].max():.4g}, TEST.IN_VIS_THRE"
            f" is {context.joint_threshold:g}"
        )
    elif len(scores) > 1 and np.ptp(scores) == 0:
        lines.append(
            f"equal scores: all {len(scores)} predictions have {scores[0]:.4g}, so the AP depends"
            " on their order in the file"
        )
    below = sum(count for reason, count in context.num_dropped.items() if "IMAGE_THRE" in reason)
    if below > len(scores):
        lines.append(
            f"low box scores: {below} boxes are below TEST.IMAGE_THRE, {len(scores)} remain"
        )
    return lines


def _describe_distance(scored: list[dict], context: EvalContext) -> str:
    """Return how far predictions are from the labels, if no known cause applies."""
    image_ids, keypoints, _ = _persons(scored)
    nearest = []
    for image_id, person, annotation in zip(image_ids[:1000], keypoints[:1000], scored):
        predicted = context.keypoints[context.image_ids == image_id, :, :2]
        if not len(predicted):
            continue
        is_labeled = person[:, 2] > 0
        box_size = np.sqrt(max(annotation["bbox"][2] * annotation["bbox"][3], 0))
        distances = np.linalg.norm(predicted - person[:, :2], axis=2)[:, is_labeled]
        nearest.append(float(distances.mean(axis=1).min()) / max(box_size, 1.0))
    if not nearest:
        return "no image with labeled persons has a prediction"
    return (
        "no known cause applies (ids, boxes, left and right, weights, scores); the nearest"
        f" prediction is {100 * np.median(nearest):.0f} % of the box size away from the label: the"
        " network may need more training, or its accuracy is too low for this metric"
    )
