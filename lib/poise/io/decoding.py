"""Decode encoded images, completely or only a region, with the fastest available decoder.

Usual JPEGs are decoded by libjpeg-turbo in the compiled _jpeg, else by simplejpeg if it is
installed. OpenCV decodes everything else, and whatever these two fail on. The pixels are always
those of OpenCV, bit for bit (tests/io/test_decoding.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import cv2
import numpy as np

try:
    from poise.io import _jpeg  # type: ignore[attr-defined]  # compiled, without types
except ImportError:
    _jpeg = None
try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# OpenCV 5 has here what OpenCV 4 has in cv2 itself
_opencv_log: Any = getattr(cv2.utils, "logging", cv2)
_SILENT = 0
_JPEG = b"\xff\xd8"
_SIMPLEJPEG_KINDS = {("YCbCr", "444"), ("YCbCr", "422"), ("YCbCr", "420"), ("Gray", "Gray")}


class EncodedImage:
    """An image that is decoded on first use.

    Args:
        data: the content of the image file.
        exif: turn the image as its EXIF entry says, which only OpenCV does.
    """

    def __init__(self, data: bytes, exif: bool = False):
        self._data = data
        self._exif = exif

    @cached_property
    def pixels(self) -> np.ndarray | None:
        """The image (H, W, 3) uint8 in BGR order; None if it cannot be decoded."""
        image = None
        if self._jpeg_size is not None:
            image = self._decode_region((0, 0, *self._jpeg_size), self._jpeg_size)
        elif simplejpeg is not None and not self._exif and self._data.startswith(_JPEG):
            image = _decode_with_simplejpeg(self._data)
        if image is not None:
            return image
        flags = cv2.IMREAD_COLOR
        if not self._exif:
            flags |= cv2.IMREAD_IGNORE_ORIENTATION
        try:
            with quiet_opencv():
                return cv2.imdecode(np.frombuffer(self._data, np.uint8), flags)
        except cv2.error:  # for example a header that claims more pixels than OpenCV allows
            return None

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(width, height); None if the image cannot be decoded."""
        if self._jpeg_size is not None:
            return self._jpeg_size
        if self.pixels is None:
            return None
        return self.pixels.shape[1], self.pixels.shape[0]

    def with_region(self, box: tuple[int, int, int, int]) -> np.ndarray | None:
        """Return an array like `pixels` that is decoded only within a box.

        The rest is undefined. None if the image cannot be decoded; damage below the box is not
        detected.

        Args:
            box: left, top, right and bottom, the last two exclusive.
        """
        if self._jpeg_size is None or "pixels" in self.__dict__:
            return self.pixels
        image = self._decode_region(box, self._jpeg_size)
        if image is None:
            return self.pixels
        return image

    @cached_property
    def _jpeg_size(self) -> tuple[int, int] | None:
        """(width, height) if _jpeg can decode the image; nothing is decoded yet."""
        if _jpeg is None or self._exif or not self._data.startswith(_JPEG):
            return None
        return _jpeg.size(self._data)

    def _decode_region(
        self, box: tuple[int, int, int, int], size: tuple[int, int]
    ) -> np.ndarray | None:
        width, height = size
        image = np.empty((height, width, 3), np.uint8)
        return image if _jpeg.decode_region(self._data, image, *box) else None


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Silence OpenCV on stderr; errors are reported as exceptions."""
    level = _opencv_log.getLogLevel()
    _opencv_log.setLogLevel(_SILENT)
    try:
        yield
    finally:
        _opencv_log.setLogLevel(level)


def _decode_with_simplejpeg(data: bytes) -> np.ndarray | None:
    try:
        _, _, kind, subsampling = simplejpeg.decode_jpeg_header(data)
        if (kind, subsampling) in _SIMPLEJPEG_KINDS:
            return simplejpeg.decode_jpeg(data, "BGR", fastdct=False, fastupsample=False)
    except ValueError:
        pass
    return None
