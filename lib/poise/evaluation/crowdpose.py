"""CrowdPose's average precision: COCO's with areas taken from boxes, and that of easy, medium and
hard images alone.

Source: Li et al., CrowdPose, CVPR 2019, arXiv 1812.00324, and the repository's own evaluation,
crowdpose-api/PythonAPI/crowdposetools/cocoeval.py: a person's area is 0.53 of its box's, whatever
the file says, and an image is easy where its crowdIndex is below 0.2, hard from 0.8 on. That code
rounds the last three figures to four digits, which is left out here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from poise.errors import DataError, short_repr
from poise.evaluation import keypoint_ap
from poise.evaluation.coco import CocoGroundTruth, accumulate, check_image_ids, empty_metrics

AREA_OF_BOX = 0.53
EASY_BELOW, HARD_FROM = 0.2, 0.8
#: HigherHRNet's names of the nine figures, in its order
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
    keypoints, scores = np.asarray(keypoints, np.float64), np.asarray(scores, np.float64)
    sigmas = np.asarray(sigmas, np.float64)
    found = keypoint_ap.summarize(
        accumulate(truth, image_ids, categories, keypoints, scores, sigmas)
    )
    figures = found[:3] + found[5:8]
    for least, most in ((-np.inf, EASY_BELOW), (EASY_BELOW, HARD_FROM), (HARD_FROM, np.inf)):
        chosen = {image_id for image_id, index in crowding.items() if least <= index < most}
        part = CocoGroundTruth(
            {
                **truth,
                **{
                    key: [item for item in truth[key] if item[name] in chosen]
                    for key, name in (("images", "id"), ("annotations", "image_id"))
                },
            }
        )
        mine = np.isin(image_ids, list(chosen))
        if not chosen:
            figures.append(-1.0)
            continue
        own = (image_ids[mine], categories[mine], keypoints[mine], scores[mine])
        figures.append(keypoint_ap.summarize(accumulate(part, *own, sigmas))[0])
    return dict(zip(CROWD_STATS, figures))


def crowd_indices(truth: dict) -> dict[int, float]:
    """{image id: crowdIndex}. Raises DataError for an image without one."""
    for image in truth["images"]:
        index = image.get("crowdIndex")
        if isinstance(index, bool) or not isinstance(index, (int, float)) or not np.isfinite(index):
            fault = (
                f"crowdIndex {short_repr(index, 60)}" if "crowdIndex" in image else "no crowdIndex"
            )
            raise DataError(
                f"image {image.get('id')} of the ground truth has {fault}, by which CrowdPose tells"
                " easy from hard images; metric: oks in the dataset file does without"
            )
    return {image["id"]: float(image["crowdIndex"]) for image in truth["images"]}
