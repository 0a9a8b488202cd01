"""Object keypoint similarity (OKS), as COCO defines it."""

from __future__ import annotations

import numpy as np


def keypoint_similarities(squared: np.ndarray, sigmas: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return each keypoint's term of the OKS, exp(-d^2 / (2 (2 sigma)^2 area)).

    Computed in place and in pycocotools' order, for the last bits. An area of 0 is allowed.

    Args:
        squared: (P, K) float64 squared distances in pixels; overwritten.
        sigmas: (K,) OKS constants.
        areas: (P,) of the persons, square pixels.

    Source: https://cocodataset.org/#keypoints-eval
    """
    squared /= (2 * sigmas) ** 2
    squared /= (areas + np.spacing(1))[:, None]
    squared /= 2
    return np.exp(np.negative(squared, out=squared), out=squared)
