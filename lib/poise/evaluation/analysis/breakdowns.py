"""AP of groups of persons: by size, crowding, labeled and visible keypoints.

Letters: as poise.evaluation.analysis.matching.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.matching import GroundTruth, Results, headline, pairs_of_images
from poise.structures.boxes import elementwise_iou

# IoU above which boxes of two persons count as overlapping; coco-analyze: IOU_FOR_OVERLAP
OVERLAP = 0.1
#: name -> [low, high)
Groups = dict[str, tuple[float, float]]

SIZES: Groups = {
    "below 32²": (0, 32**2),
    "32² to 64²": (32**2, 64**2),
    "64² to 96²": (64**2, 96**2),
    "96² to 128²": (96**2, 128**2),
    "128² to 256²": (128**2, 256**2),
    "above 256²": (256**2, np.inf),
}  # square pixels
CROWDING: Groups = {"alone": (0, 1), "1 or 2 others": (1, 3), "3 or more": (3, np.inf)}
JOINT_NUMBERS: Groups = {
    "1 to 5": (1, 6),
    "6 to 10": (6, 11),
    "11 to 15": (11, 16),
    "16 or more": (16, np.inf),
}
SEEN_NUMBERS: Groups = {"none": (0, 1), **JOINT_NUMBERS}

#: title and explanation of each breakdown, in the order of the page
TITLES = {
    "size": ("Size", "area of the annotation in square pixels"),
    "crowding": (
        "Crowding",
        f"other persons of the image whose box has an IoU above {OVERLAP} with the person's box",
    ),
    "labelled joints": ("Labeled keypoints", "annotated keypoints, including occluded ones"),
    "visible joints": (
        "Visible keypoints",
        "keypoints annotated as visible (flag 2)",
    ),
}


def group_values(truth: GroundTruth) -> dict[str, tuple[np.ndarray, Groups]]:
    """Return a value (G,) per labeled person and the groups for each breakdown of TITLES."""
    persons = truth.persons
    return {
        "size": (persons.area, SIZES),
        "crowding": (overlapping(truth), CROWDING),
        "labelled joints": ((persons.keypoints[:, :, 2] > 0).sum(axis=1), JOINT_NUMBERS),
        "visible joints": ((persons.keypoints[:, :, 2] > 1).sum(axis=1), SEEN_NUMBERS),
    }


def overlapping(truth: GroundTruth) -> np.ndarray:
    """Return the number (G,) of other persons, without crowds, with a box IoU above OVERLAP."""
    persons = truth.persons
    a, b = pairs_of_images(persons.image, persons.image)
    apart = (a != b) & ~persons.crowd[b]
    a, b = a[apart], b[apart]
    near = elementwise_iou(persons.box[a], persons.box[b]) > OVERLAP
    return np.bincount(a[near], minlength=len(persons.area))


def breakdown(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Return breakdown -> group -> metrics, see figures_of."""
    return {
        name: {
            group: figures_of(results, (values >= least) & (values < beyond))
            for group, (least, beyond) in groups.items()
        }
        for name, (values, groups) in group_values(results.truth).items()
    }


def figures_of(results: Results, group: np.ndarray) -> dict[str, float]:
    """Return the metrics of a group of persons (mask (G,)); all -1 for an empty group.

    AP, AP .5 and AP .75 ignore the persons of other groups and predictions similar to them.
    Background predictions belong to no group. They count in each group with the weight of its
    fraction of all persons, so that they do not dominate small groups (normalized precision, Hoiem
    et al., Diagnosing Error in Object Detectors, ECCV 2012) and count once over all groups.

    Returns: `persons`, the number that is scored; AP, AP .5, AP .75; `found`, the recall at OKS .5;
    `oks`, the mean OKS, 0 for persons without a match.
    """
    truth, pairs = results.truth, results.pairs
    wanted = group & truth.counted
    count = int(wanted.sum())
    if not count:
        return {"persons": 0, "AP": -1.0, "AP .5": -1.0, "AP .75": -1.0, "found": -1.0, "oks": -1.0}
    persons = replace(truth.persons, ignored=~wanted)
    matches = keypoint_ap.match(
        persons,
        results.image,
        results.keypoints,
        results.scores,
        truth.sigmas,
        sizes=[keypoint_ap.SIZES["all"]],
    )
    weights = np.where(pairs.like < 0, count / int(truth.counted.sum()), wanted[pairs.like])
    precision, recall = keypoint_ap.precision_and_recall(matches, results.scores, weights)
    return {
        "persons": count,
        **headline(precision[:, :, 0]),
        "found": float(recall[0, 0]),
        "oks": float(pairs.found_oks[wanted].mean()),
    }
