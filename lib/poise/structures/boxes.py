"""Intersection over union of boxes, and conversion from other box formats."""

from __future__ import annotations

import numpy as np

NORMALIZED = "fractions of the image from 0 to 1"


def convert_from_other_formats(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the boxes as x, y, width, height in pixels if they were in each other format.

    Args:
        boxes: (N, 4) as given.
        sizes: (N, 2) width and height of their images.

    Returns:
        {format: boxes (N, 4)}.
    """
    image_size = np.concatenate([sizes, sizes], axis=1)
    first = boxes[:, :2]
    second = boxes[:, 2:]
    centered = np.concatenate([first - second / 2, second], axis=1)
    return {
        "left, top, right, bottom": np.concatenate([first, second - first], axis=1),
        "the center, width and height": centered,
        "y, x, height, width": boxes[:, [1, 0, 3, 2]],
        NORMALIZED: boxes * image_size,
        f"the center and size in {NORMALIZED}": centered * image_size,
    }


def intersection_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection (...) of boxes a and b (..., 4) left, top, right, bottom."""
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def iou_from_areas(common: np.ndarray, area_a: np.ndarray, area_b: np.ndarray) -> np.ndarray:
    """Return intersection over union from the common area and the areas; 0 where both are 0."""
    union = area_a + area_b - common
    return np.divide(common, union, out=np.zeros(common.shape), where=union > 0)


def elementwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU (N,) of boxes a and b (N, 4) x, y, width, height; 0 where one has no area."""
    corners = [np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1) for box in (a, b)]
    areas = [np.maximum(box[:, 2:], 0).prod(axis=1) for box in (a, b)]
    return iou_from_areas(intersection_area(*corners), *areas)


def best_iou(
    targets: np.ndarray, target_image: np.ndarray, boxes: np.ndarray, image: np.ndarray
) -> np.ndarray:
    """Return the highest IoU (G,) of each target box with the boxes of its image; 0 without any.

    Args:
        targets: (G, 4) x, y, width, height.
        target_image: (G,) a number for the image of each target.
        boxes: (N, 4).
        image: (N,) the same for the boxes.
    """
    best = np.zeros(len(targets))
    if not len(boxes):
        return best
    order = np.argsort(image, kind="stable")
    begin = np.searchsorted(image[order], target_image, side="left")
    end = np.searchsorted(image[order], target_image, side="right")
    count = end - begin
    pairs = np.repeat(np.arange(len(targets)), count)
    position = np.arange(len(pairs)) - np.repeat(np.cumsum(count) - count, count)
    pair_iou = elementwise_iou(targets[pairs], boxes[order[begin[pairs] + position]])
    np.maximum.at(best, pairs, pair_iou)
    return best


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU (N, T) of boxes a (N, 4) and b (T, 4) left, top, right, bottom.

    The width is right - left.
    """
    a = np.asarray(a, np.float64).reshape(-1, 4)
    b = np.asarray(b, np.float64).reshape(-1, 4)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    return iou_from_areas(intersection_area(a[:, None], b[None]), area_a[:, None], area_b)
