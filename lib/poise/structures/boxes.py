"""Intersection over union of boxes, and the forms in which a file may give them."""

from __future__ import annotations

import numpy as np

NORMALIZED = "shares of the image from 0 to 1"


def convert_from_other_formats(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """{form: boxes as they would be if the file meant that}, each (N, 4) x, y, width, height in
    pixels.

    boxes: (N, 4) as given. sizes: (N, 2) width and height of their images.
    """
    size = np.concatenate([sizes, sizes], axis=1)
    corner, extent = boxes[:, :2], boxes[:, 2:]
    return {
        "left, top, right, bottom": np.concatenate([corner, extent - corner], axis=1),
        "the centre, width and height": np.concatenate([corner - extent / 2, extent], axis=1),
        "y, x, height, width": boxes[:, [1, 0, 3, 2]],
        NORMALIZED: boxes * size,
        f"the centre and size in {NORMALIZED}": (
            np.concatenate([corner - extent / 2, extent], axis=1) * size
        ),
    }


def intersection_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the common area (...) of boxes a and b (..., 4), left, top, right, bottom.

    The shapes are broadcast.
    """
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
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
    wanted: np.ndarray, wanted_image: np.ndarray, boxes: np.ndarray, image: np.ndarray
) -> np.ndarray:
    """(G,) the highest intersection over union of each wanted box (G, 4) with the boxes (N, 4) of
    the same image; 0 where there is none.

    wanted_image (G,), image (N,): any numbers that are equal where the image is.
    """
    best = np.zeros(len(wanted))
    if not len(boxes):
        return best
    order = np.argsort(image, kind="stable")
    begin, end = (
        np.searchsorted(image[order], wanted_image, side=side) for side in ("left", "right")
    )
    count = end - begin
    pairs = np.repeat(np.arange(len(wanted)), count)
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(count) - count, count)
    np.maximum.at(best, pairs, elementwise_iou(wanted[pairs], boxes[order[begin[pairs] + place]]))
    return best


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU (N, T) of boxes a (N, 4) and b (T, 4): left, top, right, bottom, where
    right - left is the width.
    """
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (a, b))
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return iou_from_areas(intersection_area(a[:, None], b[None]), areas[0][:, None], areas[1])
