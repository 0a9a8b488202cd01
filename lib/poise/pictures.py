"""One picture file from anywhere, as RGB: every usual kind is read, and what cannot be used is refused in one line.

The header is read first, so that a small file that unpacks to gigabytes is refused before it is unpacked. The pixels are those that
training and tests see of the same file (datasets/decoding.py), turned as its EXIF entry says.
"""
from __future__ import annotations

import io
import logging
import os
import stat
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from poise.datasets import image_header
from poise.datasets.decoding import Picture
from poise.datasets.reading import is_cut_off
from poise.errors import DataError, one_line

log = logging.getLogger(__name__)

#: of a picture file
MOST_BYTES = 1 << 30
#: endings of the files that a folder is searched for, in lower case
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".heic", ".heif", ".hif", ".avif", ".pnm", ".pbm", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
_KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
_READ = "JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000, HEIC and AVIF are read"
# the brands of ISO media files that are pictures
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 in RGB order, upright as its EXIF entry says.

    Grey, CMYK and palette pictures become RGB, 16 bits become 8, transparency is dropped. Of an animation the first frame is taken,
    of a TIFF of several pages the first one, and the log says so. Raises DataError, in one line that names the file, for one that
    is missing, empty, no picture, cut off or damaged, larger than image_header.MOST_PIXELS pixels (half of them where
    a JPEG comes in several scans) or MOST_BYTES bytes, or made to keep programs busy.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            _check_file(path, os.fstat(file.fileno()))
            data = file.read(MOST_BYTES)
    except (OSError, ValueError) as error:      # ValueError: a name with a zero byte
        raise DataError(f"{path}: cannot read the picture ({getattr(error, 'strerror', None) or error})") from None
    fault = "is cut off; fetch it again" if is_cut_off(data) else image_header.fault(data)
    if fault:
        raise DataError(f"{path}: the picture {fault}")
    kind, first_of_several = _look_at_header(path, data)
    image = _decode(data, kind)
    if image is None:
        raise DataError(f"{path}: the picture ({kind}) is damaged, or of a kind of {kind} that is not read; fetch it again or save it as PNG")
    if first_of_several:
        log.warning("%s", f"{one_line(path)}: has several {'pages' if kind == 'TIFF' else 'frames'}, the first one is used")
    return image


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe would otherwise wait for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_file(path: str | os.PathLike, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is no ordinary file, and no picture")
    if not status.st_size:
        raise DataError(f"{path}: the picture file is empty")
    if status.st_size > MOST_BYTES:
        raise DataError(f"{path}: has {status.st_size} bytes, and pictures of up to {MOST_BYTES} are read")


def _look_at_header(path: str | os.PathLike, data: bytes) -> tuple[str, bool]:
    """The kind of picture, and whether there are several in it, of which only the first counts. Nothing is unpacked."""
    import warnings

    from PIL import Image, UnidentifiedImageError

    extra = _extra_kind(path, data)
    kinds = (extra,) if extra else _KINDS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # Pillow's own word on large pictures and odd headers
            with Image.open(io.BytesIO(data), formats=kinds) as header:
                (width, height), kind = header.size, header.format
                several = kind != "MPO" and getattr(header, "is_animated", False)     # an MPO's others are views and thumbnails
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large ({error}); make the picture smaller") from None
    except UnidentifiedImageError:
        if extra:
            raise DataError(f"{path}: the picture ({extra}) is damaged; fetch it again") from None
        other = " (a video with the ending of a picture?)" if data[4:8] == b"ftyp" else ""
        raise DataError(f"{path}: not a picture, or its beginning is damaged{other}; {_READ}") from None
    except Exception as error:      # damaged headers have errors of many classes: struct.error, OverflowError, zlib.error
        raise DataError(f"{path}: the picture's header is damaged ({error}); {_READ}") from None
    if width * height > image_header.MOST_PIXELS:       # of a kind that image_header does not know
        raise DataError(f"{path}: the picture {image_header.too_large(width, height)}")
    return kind, bool(several)


def _extra_kind(path: str | os.PathLike, data: bytes) -> str:
    """Return the kind of a HEIC or AVIF picture, '' of others.

    Raises DataError where what reads it is not installed.
    """
    if data[4:8] != b"ftyp":
        return ""
    # the main brand and the compatible ones, up to the end of the first box
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[at:at + 4] for at in (8, *range(16, end, 4))}
    if brands.intersection(_AVIF_BRANDS):
        from PIL import features

        if "avif" not in features.get_supported_modules():
            raise DataError(
                f"{path}: AVIF needs Pillow 11.3 or newer; update it or save the picture as JPEG"
            )
        return "AVIF"
    if brands.intersection(_HEIF_BRANDS):
        try:
            import pillow_heif
        except ImportError:
            raise DataError(
                f"{path}: HEIC needs pillow-heif; pip install pillow-heif, or save the picture as JPEG"
            ) from None
        pillow_heif.register_heif_opener()
        return "HEIF"
    return ""


def _decode(data: bytes, kind: str) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB, or None."""
    if kind in ("GIF", "AVIF", "HEIF"):     # of which not every OpenCV reads each
        return _decode_by_pillow(data, kind)
    image = Picture(data, exif=True).pixels
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _decode_by_pillow(data: bytes, kind: str) -> np.ndarray | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:       # as for the header
        return None


def as_pixels(image: Any, name: str) -> np.ndarray:
    """The RGB picture (H, W, 3) uint8 that `image` is: such an array, or the path of a file. Raises DataError, naming `name` where it is neither."""
    if isinstance(image, (str, os.PathLike)):
        return read_picture(image)
    if not isinstance(image, np.ndarray):
        raise DataError(f"{name}: an RGB array (H, W, 3) of uint8 or a path is needed, it is a {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"{name}: an RGB array (H, W, 3) of uint8 is needed, got {image.shape} of {image.dtype}")
    return image


def is_picture_name(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() in ENDINGS
