"""Affine crops of images by cv2.warpAffine, or by the compiled _warp if its pixels are equal.

That is tested once per process.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

try:
    from poise.structures import _warp  # type: ignore[attr-defined]  # compiled, without types
except ImportError:
    _warp = None

_MAX_SIDE = 32766  # of _warp
_MAX_BYTES = 2**31 - 2


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    out: np.ndarray | None = None,
    rgb: bool = False,
) -> np.ndarray:
    """Return a crop (h, w, 3) uint8 by bilinear interpolation, black outside of the image.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3) from image pixels to crop pixels.
        size: (width, height) of the crop.
        out: a contiguous array for the crop.
        rgb: reverse the order of the channels.
    """
    if compiled_is_equal() and _fits(image):
        if out is None:
            out = np.empty((size[1], size[0], 3), np.uint8)
        _warp.warp(image, np.ascontiguousarray(matrix, np.float64), out, rgb)
        return out
    out = cv2.warpAffine(image, matrix, size, dst=out, flags=cv2.INTER_LINEAR)
    if rgb:
        out = cv2.cvtColor(out, cv2.COLOR_BGR2RGB, dst=out)
    return out


def _fits(image: np.ndarray) -> bool:
    return (
        image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.flags.c_contiguous
        and 0 < image.size <= _MAX_BYTES
        and max(image.shape) <= _MAX_SIDE
    )


@lru_cache(maxsize=1)
def compiled_is_equal() -> bool:
    """Return whether _warp can run here and gives the pixels of this OpenCV on this processor.

    Other versions of OpenCV round positions to 1/32 pixel, and without fused multiply-adds a
    position differs in the last bit. Both show in every crop of noise far to the right in an image,
    where positions have few fractional bits.
    """
    if _warp is None or not _warp.usable():
        return False
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 4000, 3), np.uint8)
    for angle, zoom, mirror in ((0.0, 1.7, 1), (0.3, 2.3, -1), (-2.0, 0.9, 1)):
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        linear = zoom * rotation * (mirror, 1)
        matrix = np.column_stack([linear, (20.5, 16.5) - linear @ (3984.3, 12.1)])
        # width 43: separate code computes the last columns
        crop = np.empty((33, 43, 3), np.uint8)
        _warp.warp(image, matrix, crop, False)
        expected = cv2.warpAffine(image, matrix, (43, 33), flags=cv2.INTER_LINEAR)
        if not np.array_equal(crop, expected):
            return False
    return True
