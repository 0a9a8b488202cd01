"""What every person detector shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: RGB images (H, W, 3) uint8 of any sizes -> for each its persons: boxes (N, 4) float64, left, top,
#: right, bottom in pixels within the image, and scores (N,) float64, best first. Raises DataError
#: for images on which it fails
Detector = Callable[[Sequence[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]
PERSON = 1  # of torchvision's 91 classes, COCO's own numbers


def persons(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (N, 4) xyxy of `threshold` or more, cut to the picture of `shape`, best first;
    without those that are not finite or have no area.
    """
    boxes, scores = (
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(scores, np.float64).reshape(-1),
    )
    sound = np.isfinite(boxes).all(axis=1) & (scores >= threshold)  # a NaN score is not
    boxes, scores = (
        np.clip(boxes[sound], 0, [shape[1], shape[0], shape[1], shape[0]]),
        scores[sound],
    )
    left = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    order = left[np.argsort(-scores[left], kind="stable")]
    return boxes[order], scores[order]
