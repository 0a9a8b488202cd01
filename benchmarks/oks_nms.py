"""OKS-NMS of all images of a set: the Cython kernel against the references' NumPy, image by
image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import made_data
import numpy as np
from comparing import Row, compared, in_turns, main
from poise.evaluation import nms, oks_nms_per_image, rescore

THRESHOLD = 0.9


def reference_oks(
    one: np.ndarray, others: np.ndarray, area: float, areas: np.ndarray
) -> np.ndarray:
    variances = (made_data.SIGMAS * 2) ** 2
    found = np.zeros(others.shape[0])
    for n in range(others.shape[0]):
        dx, dy = others[n, 0::3] - one[0::3], others[n, 1::3] - one[1::3]
        e = (dx**2 + dy**2) / variances / ((area + areas[n]) / 2 + np.spacing(1)) / 2
        found[n] = np.sum(np.exp(-e)) / e.shape[0]
    return found


def reference_nms(persons: list[dict], threshold: float) -> list[int]:
    """Persons of one image, each a dictionary with keypoints (17, 3), score and area; the
    indices of those kept.
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
        content = made_data.annotation_file(
            Path(name) / "a.json",
            ["a.jpg"],
            made_data.VAL_PERSONS,
            made_data.VAL_LABELLED,
            images=made_data.VAL_IMAGES,
        )
    p = made_data.predictions(content, made_data.DETECTIONS)
    keypoints = np.concatenate([p["keypoints"], p["keypoint_scores"][:, :, None]], axis=2)
    scores = rescore(p["keypoint_scores"], p["box_scores"], 0.2)
    areas = p["scale"].prod(axis=1) * 200**2
    persons: dict[int, list[dict]] = {}
    for n, image_id in enumerate(p["image_ids"].tolist()):
        persons.setdefault(image_id, []).append(
            {"keypoints": keypoints[n], "score": scores[n], "area": areas[n], "place": n}
        )
    kept = {}

    def poise() -> None:
        kept["poise"] = oks_nms_per_image(keypoints, scores, areas, p["image_ids"], THRESHOLD)

    def by_reference() -> None:
        kept["reference"] = [
            image[n]["place"] for image in persons.values() for n in reference_nms(image, THRESHOLD)
        ]

    seconds = in_turns({"poise": poise, "reference": by_reference}, 3, warm=0)
    if not nms.compiled:
        raise SystemExit("poise.evaluation.nms is not compiled; make builds it")
    yield compared(f"OKS-NMS, {len(scores):,} persons in 5,000 images", seconds, 70)
    yield Row(
        "the same: persons that one keeps and the other does not",
        str(len(kept["poise"])),
        f"reference {len(kept['reference'])}",
        float(len(set(kept["poise"].tolist()) ^ set(kept["reference"]))),
        "most",
        0,
        "persons",
    )


if __name__ == "__main__":
    main(measure)
