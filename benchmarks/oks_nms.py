"""Time OKS-NMS of a set: the Cython kernel against the reference code in NumPy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import synthetic_coco
from poise.evaluation import nms, oks_nms_per_image, rescore
from timing import Row, compare, main, time_alternately

THRESHOLD = 0.9


def reference_oks(
    one: np.ndarray, others: np.ndarray, area: float, areas: np.ndarray
) -> np.ndarray:
    variances = (synthetic_coco.SIGMAS * 2) ** 2
    found = np.zeros(others.shape[0])
    for n in range(others.shape[0]):
        dx, dy = others[n, 0::3] - one[0::3], others[n, 1::3] - one[1::3]
        e = (dx**2 + dy**2) / variances / ((area + areas[n]) / 2 + np.spacing(1)) / 2
        found[n] = np.sum(np.exp(-e)) / e.shape[0]
    return found


def reference_nms(persons: list[dict], threshold: float) -> list[int]:
    """Return the indices of the persons that are kept in one image.

    Each person is a dictionary with keypoints (17, 3), score and area.
    """
    if not persons:
        return []
    scores = np.array([p["score"] for p in persons])
    points = np.array([p["keypoints"].flatten() for p in persons])
    areas = np.array([p["area"] for p in persons])
    order = scores.argsort()[::-1]
    kept = []
    while order.size > 0:
        best = order[0]
        kept.append(best)
        overlap = reference_oks(points[best], points[order[1:]], areas[best], areas[order[1:]])
        order = order[np.where(overlap <= threshold)[0] + 1]
    return kept


def measure() -> Iterator[Row]:
    """OKS-NMS of 104,125 persons in 5,000 images."""
    with tempfile.TemporaryDirectory() as name:
        content = synthetic_coco.write_annotations(
            Path(name) / "a.json",
            ["a.jpg"],
            synthetic_coco.VAL_PERSONS,
            synthetic_coco.VAL_LABELED,
            images=synthetic_coco.VAL_IMAGES,
        )
    p = synthetic_coco.make_predictions(content, synthetic_coco.DETECTIONS)
    keypoints = np.concatenate([p["keypoints"], p["keypoint_scores"][:, :, None]], axis=2)
    scores = rescore(p["keypoint_scores"], p["box_scores"], 0.2)
    areas = p["scale"].prod(axis=1) * 200**2
    persons: dict[int, list[dict]] = {}
    for n, image_id in enumerate(p["image_ids"].tolist()):
        persons.setdefault(image_id, []).append(
            {"keypoints": keypoints[n], "score": scores[n], "area": areas[n], "place": n}
        )
    kept = {}

    def run_poise() -> None:
        kept["poise"] = oks_nms_per_image(keypoints, scores, areas, p["image_ids"], THRESHOLD)

    def run_reference() -> None:
        kept["reference"] = [
            image[n]["place"] for image in persons.values() for n in reference_nms(image, THRESHOLD)
        ]

    seconds = time_alternately({"poise": run_poise, "reference": run_reference}, 3, warmup=0)
    if not nms.compiled:
        raise SystemExit("poise.evaluation.nms is not compiled; run make")
    yield compare(f"OKS-NMS, {len(scores):,} persons in 5,000 images", seconds, 70)
    yield Row(
        "the same: persons kept by only one of the two",
        str(len(kept["poise"])),
        f"reference {len(kept['reference'])}",
        float(len(set(kept["poise"].tolist()) ^ set(kept["reference"]))),
        "max",
        0,
        "persons",
    )


if __name__ == "__main__":
    main(measure)
