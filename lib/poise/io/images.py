"""Image files of many formats as RGB arrays.

The header is checked first, so that a small file that decodes to gigabytes is rejected before it is
decoded. The pixels are those that training and evaluation use (io/decoding.py), turned as the EXIF
entry says.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from poise.errors import DataError, single_line
from poise.io import image_header
from poise.io.decoding import EncodedImage

log = logging.getLogger(__name__)

#: of an image file
MAX_BYTES = 1 << 30
#: files with these extensions, in lower case, are the images of a folder
EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".pjpeg",
    ".pjp",
    ".heic",
    ".heif",
    ".hif",
    ".avif",
    ".pnm",
    ".pbm",
    ".png",
    ".gif",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jp2",
)
_PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
_SUPPORTED = "JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000, HEIC and AVIF are read"
# brands of ISO media files that are images
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 in RGB order, upright as its EXIF entry says.

    Gray, CMYK and palette images become RGB, 16 bits become 8, transparency is dropped. The first
    frame of an animation and the first page of a TIFF are used, with a warning in the log.

    Raises DataError if the file is missing, empty, not an image, truncated or damaged, has more
    than MAX_BYTES bytes or image_header.MAX_PIXELS pixels (half of them for a JPEG with several
    scans), or takes unreasonable time to decode.
    """
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            _check_status(path, os.fstat(file.fileno()))
            data = file.read(MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot read the image ({reason})") from None
    if image_header.is_truncated(data):
        raise DataError(f"{path}: the image is cut off; download it again")
    problem = image_header.find_error(data)
    if problem:
        raise DataError(f"{path}: the image {problem}")
    kind, has_more = _read_header(path, data)
    image = _decode(data, kind)
    if image is None:
        raise DataError(
            f"{path}: the image ({kind}) is damaged, or an unsupported kind of {kind}; download it"
            " again or save it as PNG"
        )
    if has_more:
        parts = "pages" if kind == "TIFF" else "frames"
        log.warning("%s", f"{single_line(path)}: has several {parts}, the first one is used")
    return image


def as_rgb_array(image: Any, name: str) -> np.ndarray:
    """Return an RGB image (H, W, 3) uint8 that is given as such an array or as a path.

    Raises DataError, with `name`, for anything else.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{name}: an RGB array (H, W, 3) of uint8 or a path is needed, it is a"
            f" {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            f"{name}: an RGB array (H, W, 3) of uint8 is needed, got {image.shape} of {image.dtype}"
        )
    return image


def is_image_name(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() in EXTENSIONS


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file without waiting for a writer if it is a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_status(path: str | os.PathLike, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is not a regular file, and not an image")
    if not status.st_size:
        raise DataError(f"{path}: the image file is empty")
    if status.st_size > MAX_BYTES:
        raise DataError(
            f"{path}: has {status.st_size} bytes, and images of up to {MAX_BYTES} are read"
        )


def _read_header(path: str | os.PathLike, data: bytes) -> tuple[str, bool]:
    """Return the format, and whether the file has several frames or pages; nothing is decoded."""
    from PIL import Image, UnidentifiedImageError

    extra = _extra_format(path, data)
    formats = (extra,) if extra else _PILLOW_FORMATS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about large images and unusual headers
            with Image.open(io.BytesIO(data), formats=formats) as header:
                width, height = header.size
                kind = header.format or ""
                # the others of an MPO are views and thumbnails
                has_more = kind != "MPO" and getattr(header, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large ({error}); make the image smaller") from None
    except UnidentifiedImageError:
        if extra:
            raise DataError(f"{path}: the image ({extra}) is damaged; download it again") from None
        video = " (a video with the extension of an image?)" if data[4:8] == b"ftyp" else ""
        raise DataError(
            f"{path}: not an image, or its beginning is damaged{video}; {_SUPPORTED}"
        ) from None
    # damaged headers raise many classes of errors: struct.error, OverflowError, zlib.error
    except Exception as error:
        raise DataError(f"{path}: the image header is damaged ({error}); {_SUPPORTED}") from None
    if width * height > image_header.MAX_PIXELS:  # of a format that image_header does not know
        raise DataError(f"{path}: the image {image_header.format_size_error(width, height)}")
    return kind, bool(has_more)


def _extra_format(path: str | os.PathLike, data: bytes) -> str:
    """Return AVIF or HEIF, Pillow's names, for such a file, else ''.

    Raises DataError if the package that decodes it is not installed.
    """
    if data[4:8] != b"ftyp":
        return ""
    # the main brand and the compatible ones, up to the end of the first box
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[at : at + 4] for at in (8, *range(16, end, 4))}
    if brands.intersection(_AVIF_BRANDS):
        from PIL import features

        if "avif" not in features.get_supported_modules():
            raise DataError(
                f"{path}: AVIF needs Pillow 11.3 or newer; update it or save the image as JPEG"
            )
        return "AVIF"
    if brands.intersection(_HEIF_BRANDS):
        try:
            import pillow_heif
        except ImportError:
            raise DataError(
                f"{path}: HEIC needs pillow-heif; pip install pillow-heif, or save the image as"
                " JPEG"
            ) from None
        pillow_heif.register_heif_opener()
        return "HEIF"
    return ""


def _decode(data: bytes, kind: str) -> np.ndarray | None:
    """Return (H, W, 3) uint8 in RGB order, or None."""
    if kind in ("GIF", "AVIF", "HEIF"):  # not every build of OpenCV reads them
        return _decode_with_pillow(data, kind)
    image = EncodedImage(data, exif=True).pixels
    if image is None:
        return None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _decode_with_pillow(data: bytes, kind: str) -> np.ndarray | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # many classes, as for headers
        return None
