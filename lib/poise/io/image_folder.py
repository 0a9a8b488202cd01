"""Images of a dataset split, in a folder or a zip archive."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from poise.errors import DataError, escape_name
from poise.io import archives, image_header
from poise.io.decoding import EncodedImage
from poise.io.files import read_bytes

MAX_ENCODED_BYTES = 1 << 29  # of an image file


class ImageFolder:
    """The images of one split: files below a folder, or members of a zip archive.

    A member of an archive is looked up by its own name and below a folder of the archive's name, as
    in the official COCO archives. The archive is opened once per process: processes that share an
    open file move each other's reading position.

    Args:
        location: images/val2017 (a folder) or images/val2017.zip.
        exif: turn images as their EXIF entry says. COCO's annotations are of the stored pixels, and
            the HRNet family ignores the entry.
        hint: how to get the folder, for the end of error messages.
    """

    def __init__(self, location: str | Path, exif: bool = False, hint: str = ""):
        self.location = Path(location)
        self.exif = exif
        self.hint = hint
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "exif": self.exif, "hint": self.hint, "_archive": None}

    @property
    def zipped(self) -> bool:
        return self.location.suffix == ".zip"

    def check(self) -> None:
        """Raise DataError if the folder or archive is missing."""
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

    def read(self, name: str) -> np.ndarray:
        """Return the image (H, W, 3) uint8 in BGR order. Raises DataError."""
        image = self.open(name).pixels
        if image is None:
            raise self.decode_error(name)
        return image

    def open(self, name: str) -> EncodedImage:
        """Return the image before decoding, after checks of its header. Raises DataError."""
        data = self.data(name)
        if not data:
            problem: str | None = "file is empty; download it again"
        elif image_header.is_truncated(data):
            problem = "file is cut off; download it again"
        else:
            problem = image_header.find_error(data)
        if problem is None:
            raise self.decode_error(name)
        if problem:
            raise DataError(f"{self.location}/{escape_name(name)}: the image {problem}")
        return EncodedImage(data, self.exif)

    def data(self, name: str) -> bytes:
        """Return the content of the image file. Raises DataError."""
        problem = archives.find_name_error(name)
        if problem:
            raise DataError(
                f"{self.location}: the image name {escape_name(name)} {problem}; names are relative"
                " to the image folder, correct the annotations"
            )
        if not self.zipped:
            return self._read_file(name)
        archive = self._open_archive()
        for member in (name, f"{self.location.stem}/{name}"):
            data = archives.read_member(archive, member, MAX_ENCODED_BYTES)
            if data is not None:
                return data
        raise DataError(
            f"{self.location}: the archive holds no {escape_name(name)}{self.spelling_hint(name)}"
        )

    def decode_error(self, name: str) -> DataError:
        """Return the error for an image that cannot be decoded."""
        return DataError(
            f"{self.location}/{escape_name(name)}: not an image that OpenCV can read"
            f" ({image_header.FORMATS} are); download it again or remove it from the annotations"
        )

    def spelling_hint(self, name: str) -> str:
        """Return a hint for the error of a missing image: the file with the most similar name.

        Such as "; there is a.JPG". Names may differ in case, extension, Unicode normalization
        (macOS has written NFD) or by the backslashes of Windows. '' if there is no such file.
        """
        if archives.find_name_error(name):
            return ""
        path = PurePosixPath(name.replace("\\", "/"))
        similar = self._find_in_archive(path) if self.zipped else self._find_in_folder(path)
        if not similar or similar == name:
            return ""
        given = path.as_posix()
        reasons = []
        if "\\" in name:
            reasons.append("its path has /, where file_name has backslashes")
        if given != similar and _nfc(given) == _nfc(similar):
            reasons.append(
                "its letters are written in another Unicode normalization, "
                f"{_normalization(similar)} and not {_normalization(given)}; rename the files or"
                " change file_name"
            )
        hint = f"; there is {escape_name(similar)}"
        if given.rpartition("/")[0] == similar.rpartition("/")[0] and "\\" not in name:
            hint = f"; there is {escape_name(similar.rpartition('/')[2])}"
        if reasons:
            hint += f" ({', and '.join(reasons)})"
        return hint

    def _read_file(self, name: str) -> bytes:
        path = os.path.join(self.location, name)
        try:
            return read_bytes(
                path, "image", MAX_ENCODED_BYTES, "check DATASET.ROOT and the annotation file"
            )
        except DataError as error:
            if os.path.lexists(path):
                raise
            raise DataError(f"{error}{self.spelling_hint(name)}") from None

    def _open_archive(self) -> zipfile.ZipFile:
        process = os.getpid()
        if self._archive is None or self._archive[0] != process:
            self._archive = (process, archives.open_zip(self.location))
        return self._archive[1]

    def _find_in_folder(self, path: PurePosixPath) -> str:
        """Return the path of the file with the most similar name; '' without one."""
        found: list[str] = []
        for part in path.parts:
            folder = os.path.join(self.location, *found)
            names = _list_folder(folder, _mtime(folder))
            similar = names.get(_spelling(part))
            if similar is None and len(found) == len(path.parts) - 1:
                similar = names.get(_stem_spelling(part))
            if similar is None:
                return ""
            found.append(similar)
        return "/".join(found)

    def _find_in_archive(self, path: PurePosixPath) -> str:
        names = _list_archive(self.location, _mtime(self.location))
        name = path.as_posix()
        return names.get(_spelling(name)) or names.get(_stem_spelling(name), "")


@lru_cache(maxsize=16)
def _list_folder(folder: str, mtime: int) -> dict[str, str]:
    """Return the files of a folder by spelling; cached, as many images may be missing."""
    try:
        return _by_spelling(sorted(os.listdir(folder)))
    except OSError:
        return {}


@lru_cache(maxsize=2)
def _list_archive(location: Path, mtime: int) -> dict[str, str]:
    """Return the files of an archive by spelling. Raises DataError."""
    with archives.open_zip(location) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    return _by_spelling(name.removeprefix(f"{location.stem}/") for name in names)


def _mtime(path: str | Path) -> int:
    """Return when a folder or file was last changed, so that it is listed again."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _by_spelling(names: Iterable[str]) -> dict[str, str]:
    """Return {spelling, with and without the extension: name}; the first of several names wins."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(_spelling(name), name)
        found.setdefault(_stem_spelling(name), name)
    return found


def _spelling(name: str) -> str:
    """Return what is equal for names that differ in case or Unicode normalization."""
    return _nfc(name).casefold()


def _stem_spelling(name: str) -> str:
    """Return the same without the extension; the trailing slash keeps it apart from file names."""
    return f"{_spelling(os.path.splitext(name)[0])}/"


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _normalization(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "mixed")
