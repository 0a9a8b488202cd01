"""CrowdPose average precision: COCO AP with areas from boxes, and AP of easy, medium, hard images.

Source: Li et al., CrowdPose, CVPR 2019, arXiv 1812.00324, and the evaluation of its repository,
crowdpose-api/PythonAPI/crowdposetools/cocoeval.py: a person's area is always 0.53 times that of the
box; an image is easy below a crowdIndex of 0.2 and hard from 0.8. That code rounds the last three
metrics to four digits; they are not rounded here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from poise.errors import DataError, short_repr
from poise.evaluation import keypoint_ap
from poise.evaluation.coco import CocoGroundTruth, accumulate, check_image_ids, empty_metrics

AREA_OF_BOX = 0.53
#: ranges of crowdIndex of easy, medium and hard images: [low, high)
CROWD_RANGES = ((-np.inf, 0.2), (0.2, 0.8), (0.8, np.inf))
#: HigherHRNet's names of the nine metrics, in its order
CROWD_STATS = (
    "AP",
    "Ap .5",
    "AP .75",
    "AR",
    "AR .5",
    "AR .75",
    "AP (easy)",
    "AP (medium)",
    "AP (hard)",
)


def crowd_average_precision(
    truth: CocoGroundTruth,
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    category_id: int = 1,
) -> dict[str, float]:
    """Return the metrics of CROWD_STATS; -1 for a metric without labeled persons.

    Args:
        truth: from read_ground_truth with area_of_box=AREA_OF_BOX.
        image_ids: (N,).
        keypoints: (N, K, 2 or 3) pixels.
        scores: (N,).
        sigmas: (K,) OKS constants.
        category_id: category of the predictions.

    Raises DataError for images without a crowdIndex and for predictions in unknown images.
    """
    crowding = crowd_indices(truth)
    if not len(image_ids):
        return empty_metrics(CROWD_STATS)
    image_ids = np.asarray(image_ids)
    check_image_ids(image_ids.tolist(), truth)
    categories = np.full(len(image_ids), category_id)
    keypoints = np.asarray(keypoints, np.float64)
    scores = np.asarray(scores, np.float64)
    sigmas = np.asarray(sigmas, np.float64)
    coco = keypoint_ap.summarize(
        accumulate(truth, image_ids, categories, keypoints, scores, sigmas)
    )
    metrics = coco[:3] + coco[5:8]
    for low, high in CROWD_RANGES:
        chosen = {image_id for image_id, index in crowding.items() if low <= index < high}
        if not chosen:
            metrics.append(-1.0)
            continue
        rows = np.isin(image_ids, list(chosen))
        curves = accumulate(
            _select_images(truth, chosen),
            image_ids[rows],
            categories[rows],
            keypoints[rows],
            scores[rows],
            sigmas,
        )
        metrics.append(keypoint_ap.summarize(curves)[0])
    return dict(zip(CROWD_STATS, metrics))


def crowd_indices(truth: dict) -> dict[int, float]:
    """Return {image id: crowdIndex}. Raises DataError for an image without one."""
    for image in truth["images"]:
        index = image.get("crowdIndex")
        if isinstance(index, bool) or not isinstance(index, (int, float)) or not np.isfinite(index):
            problem = "missing crowdIndex"
            if "crowdIndex" in image:
                problem = f"invalid crowdIndex {short_repr(index, 60)}"
            raise DataError(
                f"ground truth: image {image.get('id')}: {problem}; CrowdPose evaluation needs it,"
                " or set metric: oks in the dataset file"
            )
    return {image["id"]: float(image["crowdIndex"]) for image in truth["images"]}


def _select_images(truth: CocoGroundTruth, image_ids: set[int]) -> CocoGroundTruth:
    images = [image for image in truth["images"] if image["id"] in image_ids]
    persons = [person for person in truth["annotations"] if person["image_id"] in image_ids]
    return CocoGroundTruth({**truth, "images": images, "annotations": persons})
