"""One picture file from anywhere, as RGB: every usual kind is read, and what cannot be used is
refused in one line.

The header is read first, so that a small file that unpacks to gigabytes is refused before it is
unpacked. The pixels are those that training and tests see of the same file (io/decoding.py),
turned as its EXIF entry says.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from poise.errors import DataError, escape_name, single_line
from poise.io import archives, image_header
from poise.io.decoding import EncodedImage
from poise.io.files import read_bytes

log = logging.getLogger(__name__)

#: of a picture file
MAX_BYTES = 1 << 30
#: endings of the files that a folder is searched for, in lower case
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
_KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
_READ = "JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000, HEIC and AVIF are read"
# the brands of ISO media files that are pictures
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 in RGB order, upright as its EXIF entry says.

    Grey, CMYK and palette pictures become RGB, 16 bits become 8, transparency is dropped. Of an
    animation the first frame is taken, of a TIFF of several pages the first one, and the log says
    so. Raises DataError, in one line that names the file, for one that is missing, empty, no
    picture, cut off or damaged, larger than image_header.MAX_PIXELS pixels (half of them where a
    JPEG comes in several scans) or MAX_BYTES bytes, or made to keep programs busy.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            _check_file(path, os.fstat(file.fileno()))
            data = file.read(MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise DataError(
            f"{path}: cannot read the picture ({getattr(error, 'strerror', None) or error})"
        ) from None
    fault = "is cut off; fetch it again" if is_cut_off(data) else image_header.find_error(data)
    if fault:
        raise DataError(f"{path}: the picture {fault}")
    kind, first_of_several = _look_at_header(path, data)
    image = _decode(data, kind)
    if image is None:
        raise DataError(
            f"{path}: the picture ({kind}) is damaged, or of a kind of {kind} that is not read;"
            " fetch it again or save it as PNG"
        )
    if first_of_several:
        log.warning(
            "%s",
            f"{single_line(path)}: has several {'pages' if kind == 'TIFF' else 'frames'}, the first"
            " one is used",
        )
    return image


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe would otherwise wait for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_file(path: str | os.PathLike, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is no ordinary file, and no picture")
    if not status.st_size:
        raise DataError(f"{path}: the picture file is empty")
    if status.st_size > MAX_BYTES:
        raise DataError(
            f"{path}: has {status.st_size} bytes, and pictures of up to {MAX_BYTES} are read"
        )


def _look_at_header(path: str | os.PathLike, data: bytes) -> tuple[str, bool]:
    """The kind of picture, and whether there are several in it, of which only the first counts.
    Nothing is unpacked.
    """
    import warnings

    from PIL import Image, UnidentifiedImageError

    extra = _extra_kind(path, data)
    kinds = (extra,) if extra else _KINDS
    try:
        with warnings.catch_warnings():
            # Pillow's own word on large pictures and odd headers
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=kinds) as header:
                (width, height), kind = header.size, header.format
                # an MPO's others are views and thumbnails
                several = kind != "MPO" and getattr(header, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large ({error}); make the picture smaller") from None
    except UnidentifiedImageError:
        if extra:
            raise DataError(f"{path}: the picture ({extra}) is damaged; fetch it again") from None
        other = " (a video with the ending of a picture?)" if data[4:8] == b"ftyp" else ""
        raise DataError(
            f"{path}: not a picture, or its beginning is damaged{other}; {_READ}"
        ) from None
    # damaged headers have errors of many classes: struct.error, OverflowError, zlib.error
    except Exception as error:
        raise DataError(f"{path}: the picture's header is damaged ({error}); {_READ}") from None
    if width * height > image_header.MAX_PIXELS:  # of a kind that image_header does not know
        raise DataError(f"{path}: the picture {image_header.format_size_error(width, height)}")
    return kind, bool(several)


def _extra_kind(path: str | os.PathLike, data: bytes) -> str:
    """Return the kind of a HEIC or AVIF picture, '' of others.

    Raises DataError where what reads it is not installed.
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
                f"{path}: AVIF needs Pillow 11.3 or newer; update it or save the picture as JPEG"
            )
        return "AVIF"
    if brands.intersection(_HEIF_BRANDS):
        try:
            import pillow_heif
        except ImportError:
            raise DataError(
                f"{path}: HEIC needs pillow-heif; pip install pillow-heif, or save the picture as"
                " JPEG"
            ) from None
        pillow_heif.register_heif_opener()
        return "HEIF"
    return ""


def _decode(data: bytes, kind: str) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB, or None."""
    if kind in ("GIF", "AVIF", "HEIF"):  # of which not every OpenCV reads each
        return _decode_by_pillow(data, kind)
    image = EncodedImage(data, exif=True).pixels
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _decode_by_pillow(data: bytes, kind: str) -> np.ndarray | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # as for the header
        return None


def as_rgb_array(image: Any, name: str) -> np.ndarray:
    """The RGB picture (H, W, 3) uint8 that `image` is: such an array, or the path of a file.
    Raises DataError, naming `name` where it is neither.
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


MAX_ENCODED_BYTES = 1 << 29  # of an encoded image
_JPEG, _JPEG_END, _PNG, _PNG_END = b"\xff\xd8", b"\xff\xd9", b"\x89PNG", b"IEND\xaeB`\x82"
# by the first two bytes: what a whole file usually ends with
END_MARKS = {_JPEG: _JPEG_END, _PNG[:2]: _PNG_END}
# start of scan: marker, length 6 + 2n, n = 1 to 4 components; without the length, bytes that a
# camera appended could pass for one
_JPEG_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")


class ImageFolder:
    """Images of one split: plain files below a folder, or members of a zip archive.

    location: images/val2017 (a folder) or images/val2017.zip. In an archive a file is looked for by
    its own name and below a folder of the archive's name, as the official COCO archives have it.
    The archive is opened once in each process: worker processes that shared one open file would
    move each other's reading position. exif: turn images as their EXIF entry says; COCO's
    annotations are of the pixels as they are stored, and the HRNet family ignores the entry. hint:
    how to get the folder, for the end of a message.
    """

    def __init__(self, location: str | Path, exif: bool = False, hint: str = ""):
        self.location = Path(location)
        self.exif, self.hint = exif, hint
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict:
        return {"location": self.location, "exif": self.exif, "hint": self.hint, "_archive": None}

    @property
    def zipped(self) -> bool:
        return self.location.suffix == ".zip"

    def check(self) -> None:
        """Raise DataError when the folder or archive is not there."""
        if self.zipped and not self.location.is_file():
            raise DataError(
                f"{self.location}: no such archive; DATASET.DATA_FORMAT zip reads"
                f" images/<split>.zip, jpg reads images/<split>/{self.hint}"
            )
        if not self.zipped and not self.location.is_dir():
            raise DataError(
                f"{self.location}: no such image folder; check DATASET.ROOT and the set's"
                f" name{self.hint}"
            )

    def open(self, name: str) -> EncodedImage:
        """The image, not yet decoded. Raises DataError."""
        data = self.data(name)
        fault = (
            "file is empty; fetch it again"
            if not data
            else "file is cut off; fetch it again"
            if is_cut_off(data)
            else image_header.find_error(data)
        )
        if fault is None:
            raise self.decode_error(name)
        if fault:
            raise DataError(f"{self.location}/{escape_name(name)}: the image {fault}")
        return EncodedImage(data, self.exif)

    def read(self, name: str) -> np.ndarray:
        """The image (H, W, 3) uint8 in BGR order. Raises DataError."""
        image = self.open(name).pixels
        if image is None:
            raise self.decode_error(name)
        return image

    def decode_error(self, name: str) -> DataError:
        """The error of an image that was opened and turned out to be none."""
        return DataError(
            f"{self.location}/{escape_name(name)}: not an image that OpenCV can read"
            f" ({image_header.FORMATS} are); fetch it again or remove it from the annotations"
        )

    def data(self, name: str) -> bytes:
        """The image file as it is. Raises DataError."""
        fault = archives.find_name_error(name)
        if fault:
            raise DataError(
                f"{self.location}: the image name {escape_name(name)} {fault}; names are relative"
                " to the image folder, mend the annotations"
            )
        if not self.zipped:
            path = os.path.join(self.location, name)
            try:
                return read_bytes(
                    path, "image", MAX_ENCODED_BYTES, "check DATASET.ROOT and the annotation file"
                )
            except DataError as error:
                if os.path.lexists(path):
                    raise
                raise DataError(f"{error}{self.spelling_hint(name)}") from None
        archive = self._open()
        for member in (name, f"{self.location.stem}/{name}"):
            data = archives.read_member(archive, member, MAX_ENCODED_BYTES)
            if data is not None:
                return data
        raise DataError(
            f"{self.location}: the archive holds no {escape_name(name)}{self.spelling_hint(name)}"
        )

    def spelling_hint(self, name: str) -> str:
        """Return a hint for the error of an absent image, '' where no other file can be meant.

        Such as "; there is a.JPG": names that differ in case, ending, Unicode normalization (macOS
        has written NFD) or by the backslashes of Windows.
        """
        if archives.find_name_error(name):
            return ""
        wanted = PurePosixPath(name.replace("\\", "/"))
        found = self._in_archive(wanted) if self.zipped else self._in_folder(wanted)
        if not found or found == name:
            return ""
        given, reasons = wanted.as_posix(), []
        if "\\" in name:
            reasons.append("its path has /, where file_name has backslashes")
        if given != found and _nfc(given) == _nfc(found):
            forms = [_normalization(text) for text in (given, found)]
            reasons.append(
                "its letters are written in another Unicode normalization, "
                f"{forms[1]} and not {forms[0]}; rename the files or change file_name"
            )
        same_folder = given.rpartition("/")[0] == found.rpartition("/")[0] and "\\" not in name
        near = found.rpartition("/")[2] if same_folder else found
        return f"; there is {escape_name(near)}" + (
            f" ({', and '.join(reasons)})" if reasons else ""
        )

    def _in_folder(self, wanted: PurePosixPath) -> str:
        """Return the path of the file that is spelled most alike, '' without one."""
        found: list[str] = []
        for part in wanted.parts:
            folder = os.path.join(self.location, *found)
            listed = _listed(folder, _changed(folder))
            near = listed.get(_spelling(part))
            if near is None and len(found) == len(wanted.parts) - 1:
                near = listed.get(_stem(part))
            if near is None:
                return ""
            found.append(near)
        return "/".join(found)

    def _in_archive(self, wanted: PurePosixPath) -> str:
        listed = _members(self.location, _changed(self.location))
        return listed.get(_spelling(wanted.as_posix())) or listed.get(_stem(wanted.as_posix()), "")

    def _open(self) -> zipfile.ZipFile:
        process = os.getpid()
        if self._archive is None or self._archive[0] != process:
            self._archive = (process, archives.open_zip(self.location))
        return self._archive[1]


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _normalization(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "mixed")


def _spelling(name: str) -> str:
    """Return what names have in common that differ in case or Unicode normalization."""
    return _nfc(name).casefold()


def _stem(name: str) -> str:
    """Return the same of a name without its ending; no name of a file is like it."""
    return f"{_spelling(os.path.splitext(name)[0])}/"


def _by_spelling(names: Iterable[str]) -> dict[str, str]:
    """Return {spelling, with and without the ending: name}; the first of several names counts."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(_spelling(name), name)
        found.setdefault(_stem(name), name)
    return found


def _changed(path: str | Path) -> int:
    """Return when a folder or file was last changed, so that it is listed again."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _listed(folder: str, changed: int) -> dict[str, str]:
    """Return the files of a folder by spelling, read once: many images may be absent."""
    try:
        return _by_spelling(sorted(os.listdir(folder)))
    except OSError:
        return {}


@lru_cache(maxsize=2)
def _members(location: Path, changed: int) -> dict[str, str]:
    """Return the files of an archive in the same way. Raises DataError."""
    with archives.open_zip(location) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    return _by_spelling(name.removeprefix(f"{location.stem}/") for name in names)


def is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG ends before its end mark. OpenCV 4 decodes such JPEGs without an error,
    the rest grey.

    In a JPEG the mark is looked for after the last start of scan, because an embedded thumbnail has
    a mark of its own and some cameras append data.
    """
    if data.startswith(_JPEG):
        # the usual file, without a look at all of it
        if data.endswith(_JPEG_END) and _JPEG_SCAN.search(data):
            return False
        scan = max((found.start() for found in _JPEG_SCAN.finditer(data)), default=-1)
        return scan < 0 or data.find(_JPEG_END, scan) < 0
    if data.startswith(_PNG):
        return _PNG_END not in data
    return False
