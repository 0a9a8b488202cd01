"""Accuracy per keypoint: AP, PCK and mean similarity.

Letters: as poise.evaluation.analysis.matching.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.matching import Results, headline, pairs_of_images

PCK_THRESHOLDS = (0.05, 0.1, 0.2)  # of the longer side of the person's box


def per_joint(results: Results) -> dict[str, np.ndarray]:
    """Return metrics (K,) of each keypoint, NaN if it is never labeled.

    Returns: `labelled`, the number of labels; AP, AP .5, AP .75 with this keypoint only and the
    person's score, ignoring persons without it; `similarity`, the mean term of the OKS to the most
    similar prediction of each person, and `pck`, the fraction above 0.5, 0 without a prediction,
    both as in the table of tools/test.py; `pck@s`, the fraction within s times the longer side of
    the person's box.
    """
    truth = results.truth
    labelled = (truth.persons.keypoints[:, :, 2] > 0) & truth.counted[:, None]
    count = labelled.sum(axis=0)
    similarity, distance = nearest(results)
    side = truth.persons.box[:, 2:].max(axis=1)[:, None]
    figures = {"labelled": count, **average_precisions(results, labelled)}
    num_labels = np.where(count > 0, count, np.nan)
    figures["similarity"] = (similarity * labelled).sum(axis=0) / num_labels
    figures["pck"] = ((similarity > 0.5) & labelled).sum(axis=0) / num_labels
    for limit in PCK_THRESHOLDS:
        figures[f"pck@{limit:g}"] = ((distance <= limit * side) & labelled).sum(axis=0) / num_labels
    return figures


def nearest(results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and distances to the prediction with the highest OKS.

    Returns: similarity (G, K), 0 without a prediction; distance (G, K) in pixels, then infinite.
    """
    truth, persons = results.truth, results.truth.persons
    similarity = np.zeros(persons.keypoints.shape[:2])
    distance = np.full(persons.keypoints.shape[:2], np.inf)
    g, d = pairs_of_images(persons.image, results.image)
    if not len(g):
        return similarity, distance
    oks = keypoint_ap.oks(persons, g, results.keypoints[d, :, :2], truth.sigmas)
    order = np.lexsort((-oks, g))  # stable: the first in the file of equal ones
    first = order[np.r_[True, g[order][1:] != g[order][:-1]]]
    g, d = g[first], d[first]
    similarity[g] = keypoint_ap.joint_similarity(
        persons, g, results.keypoints[d, :, :2], truth.sigmas
    )
    distance[g] = np.linalg.norm(results.keypoints[d, :, :2] - persons.keypoints[g, :, :2], axis=2)
    return similarity, distance


def average_precisions(results: Results, labelled: np.ndarray) -> dict[str, np.ndarray]:
    """Return AP, AP .5 and AP .75 (K,) of each keypoint alone. labelled: mask (G, K)."""
    truth, persons = results.truth, results.truth.persons
    rows = []
    for k in range(labelled.shape[1]):
        if not labelled[:, k].any():
            rows.append(dict.fromkeys(("AP", "AP .5", "AP .75"), np.nan))
            continue
        alone = persons.keypoints.copy()
        alone[:, np.arange(labelled.shape[1]) != k, 2] = 0
        precision, _ = keypoint_ap.evaluate(
            replace(persons, keypoints=alone, ignored=~labelled[:, k]),
            results.image,
            results.keypoints,
            results.scores,
            truth.sigmas,
            sizes=[keypoint_ap.SIZES["all"]],
        )
        rows.append(headline(precision[:, :, 0]))
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}
