"""Crops out of images: cv2.warpAffine, or the compiled _warp where that gives the same bits,
which is looked at once in a process.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

try:
    from poise.structures import _warp  # type: ignore[attr-defined]  # compiled, without types
except ImportError:
    _warp = None

_MOST_SIDE, _MOST_BYTES = 32766, 2**31 - 2  # what _warp takes


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    out: np.ndarray | None = None,
    rgb: bool = False,
) -> np.ndarray:
    """The crop (h, w, 3) uint8 of `size` (width, height) out of an image (H, W, 3) uint8, by
    bilinear interpolation; black beside the image.

    matrix: (2, 3) from image pixels to crop pixels. out: an array without gaps to fill. rgb: the
    channels in reverse.
    """
    if compiled_is_equal() and _fits(image):
        out = np.empty((size[1], size[0], 3), np.uint8) if out is None else out
        _warp.warp(image, np.ascontiguousarray(matrix, np.float64), out, rgb)
        return out
    out = cv2.warpAffine(image, matrix, size, dst=out, flags=cv2.INTER_LINEAR)
    return cv2.cvtColor(out, cv2.COLOR_BGR2RGB, dst=out) if rgb else out


def _fits(image: np.ndarray) -> bool:
    return (
        image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.flags.c_contiguous
        and 0 < image.size <= _MOST_BYTES
        and max(image.shape) <= _MOST_SIDE
    )


@lru_cache(maxsize=1)
def compiled_is_equal() -> bool:
    """Whether _warp is here, the processor can run it, and its pixels are those of this OpenCV on
    this processor.

    Other versions round places to 1/32 pixel, and without fused multiply-adds a place is another by
    a unit in the last place. So far to the right in an image, where places have few digits behind
    the point, and between pixels as different as noise, that shows in every crop.
    """
    if _warp is None or not _warp.usable():
        return False
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 4000, 3), np.uint8)
    for angle, zoom, mirror in ((0.0, 1.7, 1), (0.3, 2.3, -1), (-2.0, 0.9, 1)):
        linear = (
            zoom
            * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            * (mirror, 1)
        )
        matrix = np.column_stack([linear, (20.5, 16.5) - linear @ (3984.3, 12.1)])
        # 43: the last columns are computed in their own way
        crop = np.empty((33, 43, 3), np.uint8)
        _warp.warp(image, matrix, crop, False)
        if not np.array_equal(
            crop, cv2.warpAffine(image, matrix, (43, 33), flags=cv2.INTER_LINEAR)
        ):
            return False
    return True
