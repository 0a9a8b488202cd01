"""Results with errors that were planted into them, for the tests of poise.evaluation.analysis."""

import numpy as np
from poise.config.dataset_yaml import COCO
from poise.evaluation import read_ground_truth
from poise.evaluation.analysis.matching import GroundTruth, Results
from poise.evaluation.keypoint_ap import GroundTruthPersons

SIGMAS = np.array(COCO.sigmas)
# a standing person of about 0.7 x 1.9 units, seen from the front, whose joints lie far apart in
# units of their sigmas
FRONT = np.array(
    [
        (0, -0.8),
        (0.1, -0.9),
        (-0.1, -0.9),
        (0.2, -0.85),
        (-0.2, -0.85),
        (0.3, -0.5),
        (-0.3, -0.5),
        (0.35, -0.15),
        (-0.35, -0.15),
        (0.35, 0.2),
        (-0.35, 0.2),
        (0.22, 0.15),
        (-0.22, 0.15),
        (0.25, 0.6),
        (-0.25, 0.6),
        (0.25, 1.0),
        (-0.25, 1.0),
    ]
)
UNIT = 100.0
AREA = 120.0**2  # so that each eye is more than two similarities of 0.5 away from the other


def similarity_distance(similarity, area=AREA):
    """Return (J,) offsets in pixels at which the OKS term of each keypoint is `similarity`."""
    return 2 * SIGMAS * np.sqrt(-2 * np.log(similarity) * area)


def people(images=20, persons=2, unit=UNIT, area=AREA):
    """Return annotations with `persons` distant persons per image, all keypoints visible."""
    annotations = []
    for image in range(images):
        for person in range(persons):
            points = FRONT * unit + [150 + 300 * person, 150]
            low, high = points.min(axis=0), points.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "num_keypoints": 17,
                    "area": area,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "keypoints": np.column_stack([points, np.full(17, 2)]).ravel().tolist(),
                }
            )
    return {
        "images": [
            {"id": image + 1, "file_name": f"{image}.jpg", "width": 700, "height": 300}
            for image in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }


def truth_of(content):
    content = read_ground_truth(content)
    images = sorted(content["images"], key=lambda image: image["id"])
    position = {image["id"]: place for place, image in enumerate(images)}
    return GroundTruth(
        "truth.json",
        GroundTruthPersons.from_annotations(content["annotations"], position, 17),
        images,
        COCO,
        content,
    )


def perfect(truth):
    """Return exact predictions of every labeled person, with scores from 0.9 to 0.5."""
    labels = truth.persons.keypoints
    keypoints = np.concatenate([labels[:, :, :2], np.full((*labels.shape[:2], 1), 0.9)], axis=2)
    return Results(
        "made.json",
        "not known",
        truth,
        truth.persons.image.copy(),
        keypoints,
        np.linspace(0.9, 0.5, len(labels)),
    )


def with_keypoints(found, keypoints):
    return Results(found.file, found.box_source, found.truth, found.image, keypoints, found.scores)


def with_more(found, image, points, scores):
    """Append predictions: image (N,), points (N, 17, 2), scores (N,)."""
    keypoints = np.concatenate([points, np.full((*points.shape[:2], 1), 0.9)], axis=2)
    return Results(
        found.file,
        found.box_source,
        found.truth,
        np.concatenate([found.image, image]),
        np.concatenate([found.keypoints, keypoints]),
        np.concatenate([found.scores, scores]),
    )


def result_list(found):
    """Return the entries of the result file."""
    ids = [image["id"] for image in found.truth.images]
    return [
        {
            "image_id": ids[place],
            "category_id": 1,
            "keypoints": keypoints.ravel().tolist(),
            "score": float(score),
        }
        for place, keypoints, score in zip(found.image, found.keypoints, found.scores)
    ]
