"""Why a figure of the AP is 0 or -1: each reason is tested for, and only those that apply are told.

Letters: N predicted persons, G labelled persons, J joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.coco import CocoGroundTruth, accumulate
from poise.structures import boxes

_MUCH = 0.1  # AP that an exchange of left and right must win to be the reason
_SAME = 0.02  # of the box's size: predictions that differ less are the same for everybody
_SIZES = {"(M)": "medium", "(L)": "large"}


@dataclass(frozen=True)
class EvalContext:
    """What was tested. image_ids (N,), keypoints (N, J, 3) and scores (N,): as they were evaluated.
    box (N, 4): x, y, width, height that each was cut out by.

    flip_order (J,): of the skeleton. category_id: of the predictions. box_source: 'gt' or a
    detection file's name. dropped: of the table. joint_threshold: TEST.IN_VIS_THRE. weights: what
    is known of where the network's weights come from; '' where nothing is wrong.
    """

    image_ids: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray
    box: np.ndarray
    sigmas: Sequence[float]
    flip_order: np.ndarray
    category_id: int = 1
    box_source: str = "gt"
    dropped: Mapping[str, int] | None = None
    joint_threshold: float = 0.0
    weights: str = ""


def should_diagnose(figures: Mapping[str, float]) -> bool:
    """Whether a figure is 0 or -1."""
    return any(value == -1 or is_zero(value) for value in figures.values())


def is_zero(value: float) -> bool:
    """Whether a figure is 0 in the table of the log, which has three decimals: one lucky match
    of a thousand is no success.
    """
    return round(value, 3) == 0


def diagnose(truth: CocoGroundTruth, test: EvalContext, figures: Mapping[str, float]) -> list[str]:
    """Lines that say why figures are 0 or -1, none where none is. truth: what read_ground_truth
    returned. figures: by their names.
    """
    empty = [name for name, value in figures.items() if value == -1]
    zero = [name for name, value in figures.items() if is_zero(value)]
    counted = [p for p in truth["annotations"] if not p["iscrowd"] and p["num_keypoints"] > 0]
    lines = _no_truth(truth, counted, empty) if empty else []
    if zero and counted:
        found = _zero(truth, _of_size(counted, zero), test, "AP" in zero)
        lines += [
            f"{', '.join(zero)} {'is' if len(zero) == 1 else 'are'} 0: {line}" for line in found
        ]
    return lines


def explain_unscorable(truth: CocoGroundTruth) -> str:
    """Return why no person of the ground truth counts in the AP, '' where one does.

    truth: what read_ground_truth returned.
    """
    persons = truth["annotations"]
    if not persons:
        return "the annotation file has no annotation of the category that is scored"
    single = [person for person in persons if not person["iscrowd"]]
    if any(person["num_keypoints"] > 0 for person in single):
        return ""
    text = (
        f"no person counts; of {len(persons)} annotations {len(persons) - len(single)} are "
        "crowds, the others have no labelled joint (num_keypoints 0)"
    )
    labelled = sum(any(flag > 0 for flag in person["keypoints"][2::3]) for person in single)
    if labelled:
        text += (
            f", though {labelled} have joints with a flag above 0; correct or remove num_keypoints"
        )
    return text


def _no_truth(truth: CocoGroundTruth, counted: list[dict], empty: Sequence[str]) -> list[str]:
    """Why there is nothing to count against."""
    names = f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} -1"
    nobody = explain_unscorable(truth)
    if nobody:
        return [f"{names}: {nobody}"]
    areas = np.array([p["area"] for p in counted])
    lines = []
    for mark, size in _SIZES.items():
        if any(mark in name for name in empty):
            low, high = keypoint_ap.SIZES[size]
            bound = f"from {low:g} to {high:g}" if high < 1e9 else f"of {low:g} or more"
            lines.append(
                f"{', '.join(name for name in empty if mark in name)} are -1: no labelled person"
                f" has an area {bound} square pixels ({size}); the {len(areas)} that count have"
                f" {areas.min():.4g} to {areas.max():.4g}"
            )
    if not lines:
        lines.append(f"{names}: no labelled person of such images counts")
    if np.median(areas) <= 1:
        lines.append(
            "the areas of the annotations are given as shares of the image; square pixels are"
            " needed"
        )
    return lines


def _of_size(counted: list[dict], zero: Sequence[str]) -> list[dict]:
    """The persons whom the figures are of: those of one size, where no other figure is 0."""
    sizes = {next((size for mark, size in _SIZES.items() if mark in name), "all") for name in zero}
    if len(sizes) > 1:
        return counted
    low, high = keypoint_ap.SIZES[sizes.pop()]
    return [person for person in counted if low <= person["area"] <= high]


def _zero(
    truth: CocoGroundTruth, counted: list[dict], test: EvalContext, wholly: bool
) -> list[str]:
    """Why nothing, or nothing of a kind, was found. wholly: the AP itself is 0."""
    if not len(test.image_ids):
        why = ", ".join(
            f"{count} {reason}" for reason, count in (test.dropped or {}).items() if count
        )
        return [f"there is no prediction{f'; dropped: {why}' if why else ''}"]
    lines = [test.weights] if test.weights else []
    lines += _ids(truth, counted, test) or [
        *_boxes(truth, counted, test),
        *_mirrored(truth, counted, test),
    ]
    lines += _scores(test)
    if wholly:
        lines += check_constant_predictions(test.keypoints[:, :, :2], test.box)
    return lines or [_distance(truth, counted, test)]


def _ids(truth: CocoGroundTruth, counted: list[dict], test: EvalContext) -> list[str]:
    lines = []
    scored = {c["id"] for c in truth["categories"]}
    if test.category_id not in scored:
        lines.append(
            f"ids do not match: the predictions have category_id {test.category_id}, the"
            f" annotations {', '.join(map(str, sorted(scored)))}"
        )
    wanted = {p["image_id"] for p in counted}
    common = wanted & set(test.image_ids.tolist())
    if len(common) < 0.5 * len(wanted):
        lines.append(
            f"ids do not match: {len(common)} of {len(wanted)} images with labelled persons have a"
            " prediction"
            + (
                f", though {len(set(test.image_ids.tolist()))} images have one"
                if len(set(test.image_ids.tolist())) > len(common)
                else ""
            )
        )
    lost = {
        reason: count for reason, count in (test.dropped or {}).items() if "does not list" in reason
    }
    for reason, count in lost.items():
        if count > len(test.image_ids):
            lines.append(f"ids do not match: {count} boxes were left out, {reason}")
    return lines


def _persons(
    truth: CocoGroundTruth, counted: list[dict]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ids (G,), keypoints (G, J, 3) and the boxes around the labelled joints (G, 4): those
    of the file may be wrong.
    """
    points = np.array([p["keypoints"] for p in counted], np.float64).reshape(len(counted), -1, 3)
    labelled = (points[:, :, 2] > 0)[:, :, None]
    low, high = (
        np.where(labelled, points[:, :, :2], np.inf).min(axis=1),
        np.where(labelled, points[:, :, :2], -np.inf).max(axis=1),
    )
    return (
        np.array([p["image_id"] for p in counted]),
        points,
        np.concatenate([low, high - low], axis=1),
    )


def _boxes(truth: CocoGroundTruth, counted: list[dict], test: EvalContext) -> list[str]:
    """Whether the boxes hold the labelled joints, and if not, whether they would in another
    form.
    """
    image, points, around = _persons(truth, counted)
    if np.nanmax(np.abs(np.where(points[:, :, 2:] > 0, points[:, :, :2], 0))) <= 1.5:
        return [
            "boxes and joints: the annotations' joints are given as shares of the image, pixels are"
            " needed"
        ]
    several = (around[:, 2:] > 1).all(axis=1)  # one joint has no box
    if not several.any():
        return []
    wanted, wanted_image = around[several], image[several]
    size = {
        entry["id"]: (entry["width"], entry["height"])
        for entry in truth["images"]
        if entry.get("width") and entry.get("height")
    }
    overlap = float(boxes.best_overlaps(wanted, wanted_image, test.box, test.image_ids).mean())
    sizes = np.array(
        [size.get(key, (np.nan, np.nan)) for key in test.image_ids.tolist()], np.float64
    )
    source = "the annotations" if test.box_source == "gt" else test.box_source
    if np.isfinite(sizes).all():
        forms = boxes.other_forms(test.box, sizes)
        better, form = max(
            (float(boxes.best_overlaps(wanted, wanted_image, others, test.image_ids).mean()), form)
            for form, others in forms.items()
        )
        if better > max(0.3, 1.5 * overlap):
            return [
                f"boxes in another unit: those of {source} overlap the labelled joints by"
                f" {overlap:.2f}, taken as {form} by {better:.2f}; x, y, width, height in pixels"
                " are needed"
            ]
    return (
        [f"boxes elsewhere: those of {source} overlap the labelled joints by {overlap:.2f} only"]
        if overlap < 0.1
        else []
    )


def _ap(truth: CocoGroundTruth, test: EvalContext, keypoints: np.ndarray) -> float:
    found = accumulate(
        truth,
        test.image_ids,
        np.full(len(test.image_ids), test.category_id),
        keypoints,
        test.scores,
        np.asarray(test.sigmas, np.float64),
    )
    return keypoint_ap.summarize(found)[0]


def _mirrored(truth: CocoGroundTruth, counted: list[dict], test: EvalContext) -> list[str]:
    """Whether left and right are exchanged, in the joints' order or in the pictures."""
    if (test.flip_order == np.arange(len(test.flip_order))).all():
        return []
    before = _ap(truth, test, test.keypoints)
    after = _ap(truth, test, test.keypoints[:, test.flip_order])
    if after > before + _MUCH:
        return [
            f"joints mirrored: with left and right exchanged the AP is {after:.3f}, as it is"
            f" {max(before, 0):.3f}; the annotations, `joints` or the weights have them the other"
            " way round"
        ]
    width = {entry["id"]: entry.get("width") for entry in truth["images"]}
    widths = [width.get(key) for key in test.image_ids.tolist()]
    if all(widths):
        turned = test.keypoints[:, test.flip_order].copy()
        turned[:, :, 0] = np.array(widths, np.float64)[:, None] - 1 - turned[:, :, 0]
        after = _ap(truth, test, turned)
        if after > before + _MUCH:
            return [
                f"images mirrored: with the predictions mirrored the AP is {after:.3f}, as it is"
                f" {max(before, 0):.3f}; the images are not those that were annotated"
            ]
    return []


def _scores(test: EvalContext) -> list[str]:
    lines = []
    if test.keypoints.shape[2] > 2 and (test.keypoints[:, :, 2] <= test.joint_threshold).all():
        lines.append(
            "nothing above the threshold: the highest score of a joint is"
            f" {test.keypoints[:, :, 2].max():.4g}, TEST.IN_VIS_THRE is {test.joint_threshold:g}"
        )
    elif len(test.scores) > 1 and np.ptp(test.scores) == 0:
        lines.append(
            f"the scores of all {len(test.scores)} predictions are {test.scores[0]:.4g}: their"
            " order, which the AP is made of, is that of the file"
        )
    below = sum(count for reason, count in (test.dropped or {}).items() if "IMAGE_THRE" in reason)
    if below > len(test.scores):
        lines.append(
            f"nothing above the threshold: {below} boxes have scores below TEST.IMAGE_THRE,"
            f" {len(test.scores)} are left"
        )
    return lines


def check_constant_predictions(keypoints: np.ndarray, box: np.ndarray) -> list[str]:
    """A line where predictions (N, J, 2) lie at nearly the same places of their boxes (N, 4),
    whoever is in them.
    """
    extent = box[:, 2:].max(axis=1)
    if len(box) < 5 or (extent <= 0).any():
        return []
    relative = (keypoints - (box[:, :2] + box[:, 2:] / 2)[:, None]) / extent[:, None, None]
    if relative.std(axis=0).mean() >= _SAME:
        return []
    return [
        "the network says nearly the same for every person (joints differ by less than"
        f" {100 * _SAME:g} % of the box from one to the other): it has learnt nothing, or its"
        " weights are not those of this experiment"
    ]


def _distance(truth: CocoGroundTruth, counted: list[dict], test: EvalContext) -> str:
    """What is left to say: how far the predictions are from the nearest labels."""
    image, points, _ = _persons(truth, counted)
    best = []
    for key, person, annotation in zip(image[:1000], points[:1000], counted):
        mine, labelled = test.keypoints[test.image_ids == key, :, :2], person[:, 2] > 0
        if len(mine):
            scale = max(np.sqrt(max(annotation["bbox"][2] * annotation["bbox"][3], 0)), 1.0)
            best.append(
                float(np.linalg.norm(mine - person[:, :2], axis=2)[:, labelled].mean(axis=1).min())
                / scale
            )
    if not best:
        return "no labelled person's image has a prediction"
    return (
        "none of the faults that are looked for (ids, boxes, left and right, weights, scores); the"
        f" nearest prediction is {100 * np.median(best):.0f} % of the box's size away from the"
        " label, as of a network that is not trained far enough or for these figures"
    )
