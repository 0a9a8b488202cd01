"""Encoded images, decoded whole or only where a crop needs them: by the fastest decoder that is
there, the pixels always OpenCV's.

JPEGs of the usual kind go to libjpeg-turbo by the compiled _jpeg, else to simplejpeg where that is
installed; everything else, and whatever these two find fault with, goes to OpenCV. Which one it was
does not show: each gives the same bits (tests/io/test_decoding.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import cv2
import numpy as np

try:
    from poise.io import _jpeg
except ImportError:
    _jpeg = None
try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# where OpenCV 5 has what OpenCV 4 has in cv2 itself
_opencv_log = getattr(cv2.utils, "logging", cv2)
_SILENT = 0
_JPEG = b"\xff\xd8"
_SIMPLE_KINDS = {("YCbCr", "444"), ("YCbCr", "422"), ("YCbCr", "420"), ("Gray", "Gray")}


class EncodedImage:
    """An encoded image. exif: turn it as its EXIF entry says, which only OpenCV does."""

    def __init__(self, data: bytes, exif: bool = False):
        self._data, self._exif = data, exif

    @cached_property
    def _jpeg_size(self) -> tuple[int, int] | None:
        """(width, height) where _jpeg can decode the image, which is then so far not decoded."""
        return (
            _jpeg.size(self._data)
            if _jpeg is not None and not self._exif and self._data.startswith(_JPEG)
            else None
        )

    @cached_property
    def pixels(self) -> np.ndarray | None:
        """The whole image (H, W, 3) uint8, BGR; None where it cannot be decoded."""
        if self._jpeg_size is not None:
            image = self._region((0, 0, *self._jpeg_size))
            if image is not None:
                return image
        elif simplejpeg is not None and not self._exif and self._data.startswith(_JPEG):
            image = _simple_pixels(self._data)
            if image is not None:
                return image
        try:
            with quiet_opencv():
                return cv2.imdecode(
                    np.frombuffer(self._data, np.uint8),
                    cv2.IMREAD_COLOR | (0 if self._exif else cv2.IMREAD_IGNORE_ORIENTATION),
                )
        except cv2.error:  # for example a header that claims more pixels than OpenCV allows
            return None

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(width, height); None where the image cannot be decoded."""
        if self._jpeg_size is not None:
            return self._jpeg_size
        return None if self.pixels is None else (self.pixels.shape[1], self.pixels.shape[0])

    def with_region(self, box: tuple[int, int, int, int]) -> np.ndarray | None:
        """An array as `pixels`, of which columns box[0] to box[2] and rows box[1] to box[3], the
        ends not included, hold the image.

        The rest may hold anything. None where the image cannot be decoded; faults in what lies
        below the box are not found.
        """
        if self._jpeg_size is None or "pixels" in self.__dict__:
            return self.pixels
        image = self._region(box)
        return self.pixels if image is None else image

    def _region(self, box: tuple[int, int, int, int]) -> np.ndarray | None:
        width, height = self._jpeg_size
        image = np.empty((height, width, 3), np.uint8)
        return image if _jpeg.decode_region(self._data, image, *box) else None


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """OpenCV says nothing on stderr; what is wrong with a file is told by an error, in one line."""
    level = _opencv_log.getLogLevel()
    _opencv_log.setLogLevel(_SILENT)
    try:
        yield
    finally:
        _opencv_log.setLogLevel(level)


def _simple_pixels(data: bytes) -> np.ndarray | None:
    try:
        _, _, kind, subsampling = simplejpeg.decode_jpeg_header(data)
        if (kind, subsampling) in _SIMPLE_KINDS:
            return simplejpeg.decode_jpeg(data, "BGR", fastdct=False, fastupsample=False)
    except ValueError:
        pass
    return None
