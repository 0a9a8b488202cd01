"""The AP of groups of persons: by size, crowding, labelled and visible joints.

Letters: as poise.evaluation.analysis.matching.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.matching import GroundTruth, Results, headline, pairs_of_images
from poise.structures.boxes import elementwise_iou

# IoU of boxes from which on two persons crowd each other; coco-analyze: IOU_FOR_OVERLAP
OVERLAP = 0.1
#: name -> (least, first beyond)
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
    "size": ("Size", "of the person's outline, the annotation's area, in square pixels"),
    "crowding": (
        "Crowding",
        f"other persons of the picture whose box overlaps the person's with an IoU above {OVERLAP}",
    ),
    "labelled joints": ("Labelled joints", "joints that the annotation has, hidden ones too"),
    "visible joints": (
        "Visible joints",
        "joints whose annotation says that they are seen (flag 2)",
    ),
}


def group_values(truth: GroundTruth) -> dict[str, tuple[np.ndarray, Groups]]:
    """For each breakdown of TITLES a value (G,) of each labelled person, and its groups: name ->
    (least, first beyond).
    """
    persons = truth.persons
    return {
        "size": (persons.area, SIZES),
        "crowding": (overlapping(truth), CROWDING),
        "labelled joints": ((persons.keypoints[:, :, 2] > 0).sum(axis=1), JOINT_NUMBERS),
        "visible joints": ((persons.keypoints[:, :, 2] > 1).sum(axis=1), SEEN_NUMBERS),
    }


def overlapping(truth: GroundTruth) -> np.ndarray:
    """(G,) int: how many other persons, crowds not among them, have a box whose IoU with the
    person's is above OVERLAP.
    """
    persons = truth.persons
    a, b = pairs_of_images(persons.image, persons.image)
    apart = (a != b) & ~persons.crowd[b]
    a, b = a[apart], b[apart]
    near = elementwise_iou(persons.box[a], persons.box[b]) > OVERLAP
    return np.bincount(a[near], minlength=len(persons.area))


def breakdown(found: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Breakdown -> group -> figures; see `figures_of`."""
    return {
        name: {
            group: figures_of(found, (values >= least) & (values < beyond))
            for group, (least, beyond) in groups.items()
        }
        for name, (values, groups) in group_values(found.truth).items()
    }


def figures_of(found: Results, group: np.ndarray) -> dict[str, float]:
    """persons: how many of the group (G,) bool count. found: the share of them found with OKS .5 or
    more. oks: their mean OKS, 0 for those not found.

    AP, AP .5, AP .75: the persons of all other groups are neither found nor missed, and predictions
    that are like one of them are neither right nor wrong. A prediction that is like nobody belongs
    to no group; where it is wrong it counts in each with the group's share of all persons, so that
    small groups are not drowned in them (the normalised precision of Hoiem et al., Diagnosing Error
    in Object Detectors, ECCV 2012). So each wrong prediction counts once over all groups. All -1
    where the group has nobody.
    """
    truth, pairs = found.truth, found.pairs
    wanted = group & truth.counted
    count = int(wanted.sum())
    if not count:
        return {"persons": 0, "AP": -1.0, "AP .5": -1.0, "AP .75": -1.0, "found": -1.0, "oks": -1.0}
    persons = replace(truth.persons, ignored=~wanted)
    matches = keypoint_ap.match(
        persons,
        found.image,
        found.keypoints,
        found.scores,
        truth.sigmas,
        sizes=[keypoint_ap.SIZES["all"]],
    )
    weights = np.where(pairs.like < 0, count / int(truth.counted.sum()), wanted[pairs.like])
    precision, recall = keypoint_ap.precision_and_recall(matches, found.scores, weights)
    return {
        "persons": count,
        **headline(precision[:, :, 0]),
        "found": float(recall[0, 0]),
        "oks": float(pairs.found_oks[wanted].mean()),
    }
