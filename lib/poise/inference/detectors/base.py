"""The interface of a person detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: RGB images (H, W, 3) uint8 of any size -> boxes (N, 4) float64, left, top, right, bottom in
#: pixels within the image, and scores (N,) float64 of each image, best first. Raises DataError
Detector = Callable[[Sequence[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]
PERSON = 1  # of torchvision's 91 classes, which are COCO's category ids


def select_persons(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return valid boxes, clipped to the image, and their scores, best first.

    Args:
        boxes: (N, 4) xyxy. Boxes that are not finite or have no area are removed.
        scores: (N,).
        threshold: minimum score.
        shape: of the image, (H, W, ...).
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scores = np.asarray(scores, np.float64).reshape(-1)
    is_valid = np.isfinite(boxes).all(axis=1) & (scores >= threshold)  # false for a NaN score
    height, width = shape[:2]
    boxes = np.clip(boxes[is_valid], 0, [width, height, width, height])
    scores = scores[is_valid]
    remaining = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    order = remaining[np.argsort(-scores[remaining], kind="stable")]
    return boxes[order], scores[order]
