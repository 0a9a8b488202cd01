"""How well each joint is found: AP, PCK and mean similarity. Letters: as
poise.evaluation.analysis.matching.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.matching import Results, headline, pairs_of_images

PCK_SHARES = (0.05, 0.1, 0.2)  # of the longer side of the person's box


def per_joint(found: Results) -> dict[str, np.ndarray]:
    """(J,) arrays, NaN where a joint is never labelled.

    labelled: how often it is. AP, AP .5, AP .75: as if it were the only joint, with the person's
    score; persons without it are neither found nor missed. similarity: mean term of the OKS, and
    pck: the share above 0.5, of each labelled person beside the prediction most like him or her, 0
    without one; both as in the table of tools/test.py. pck@s: the share within s of the longer side
    of the person's box, of the same pairs.
    """
    truth = found.truth
    labelled = (truth.persons.keypoints[:, :, 2] > 0) & truth.counted[:, None]
    count = labelled.sum(axis=0)
    similarity, distance = nearest(found)
    side = truth.persons.box[:, 2:].max(axis=1)[:, None]
    figures = {"labelled": count, **average_precisions(found, labelled)}
    share = np.where(count > 0, count, np.nan)
    figures["similarity"], figures["pck"] = (
        (similarity * labelled).sum(axis=0) / share,
        ((similarity > 0.5) & labelled).sum(axis=0) / share,
    )
    for limit in PCK_SHARES:
        figures[f"pck@{limit:g}"] = ((distance <= limit * side) & labelled).sum(axis=0) / share
    return figures


def nearest(found: Results) -> tuple[np.ndarray, np.ndarray]:
    """Similarity (G, J) and distance in pixels (G, J) of each labelled person's joints to the
    prediction of the image with the highest OKS; 0 and infinite without any.
    """
    truth, persons = found.truth, found.truth.persons
    similarity, distance = (
        np.zeros(persons.keypoints.shape[:2]),
        np.full(persons.keypoints.shape[:2], np.inf),
    )
    g, d = pairs_of_images(persons.image, found.image)
    if not len(g):
        return similarity, distance
    oks = keypoint_ap.oks(persons, g, found.keypoints[d, :, :2], truth.sigmas)
    order = np.lexsort((-oks, g))  # stable, so of equal ones the first of the file
    first = order[np.r_[True, g[order][1:] != g[order][:-1]]]
    g, d = g[first], d[first]
    similarity[g] = keypoint_ap.joint_similarity(
        persons, g, found.keypoints[d, :, :2], truth.sigmas
    )
    distance[g] = np.linalg.norm(found.keypoints[d, :, :2] - persons.keypoints[g, :, :2], axis=2)
    return similarity, distance


def average_precisions(found: Results, labelled: np.ndarray) -> dict[str, np.ndarray]:
    """AP, AP .5 and AP .75 (J,) of each joint alone. labelled: (G, J) bool."""
    truth, persons = found.truth, found.truth.persons
    rows = []
    for joint in range(labelled.shape[1]):
        if not labelled[:, joint].any():
            rows.append(dict.fromkeys(("AP", "AP .5", "AP .75"), np.nan))
            continue
        alone = persons.keypoints.copy()
        alone[:, np.arange(labelled.shape[1]) != joint, 2] = 0
        precision, _ = keypoint_ap.evaluate(
            replace(persons, keypoints=alone, ignored=~labelled[:, joint]),
            found.image,
            found.keypoints,
            found.scores,
            truth.sigmas,
            sizes=[keypoint_ap.SIZES["all"]],
        )
        rows.append(headline(precision[:, :, 0]))
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}
