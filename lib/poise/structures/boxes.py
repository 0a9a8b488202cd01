"""Boxes in other forms than x, y, width, height in pixels: what a file could mean by four
numbers, to tell which of them fits.
"""

from __future__ import annotations

import numpy as np

NORMALISED = "shares of the image from 0 to 1"


def other_forms(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
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
        NORMALISED: boxes * size,
        f"the centre and size in {NORMALISED}": (
            np.concatenate([corner - extent / 2, extent], axis=1) * size
        ),
    }


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (N,) of boxes a and b (N, 4) x, y, width, height; 0 where one has
    no area.
    """
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=1)
    total = np.maximum(a[:, 2:], 0).prod(axis=1) + np.maximum(b[:, 2:], 0).prod(axis=1) - common
    return np.where(total > 0, common / np.where(total > 0, total, 1), 0.0)


def best_overlaps(
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
    np.maximum.at(best, pairs, overlaps(wanted[pairs], boxes[order[begin[pairs] + place]]))
    return best


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, T) overlaps, intersection over union, of boxes a (N, 4) and b (T, 4): left, top,
    right, bottom, right - left being the width.
    """
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = np.prod(np.clip(sides, 0, None), axis=2)
    union = (
        np.prod(a[:, 2:] - a[:, :2], axis=1)[:, None]
        + np.prod(b[:, 2:] - b[:, :2], axis=1)
        - common
    )
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
