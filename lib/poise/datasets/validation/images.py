"""Check the image files of a split: they exist, have the annotated size and are in one split only.

Only headers and last bytes are read.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from poise.datasets.validation.findings import Findings, list_first
from poise.errors import DataError
from poise.io import archives, image_header
from poise.io.decoding import EncodedImage
from poise.io.image_folder import MAX_ENCODED_BYTES, ImageFolder
from poise.io.image_header import END_MARKS, is_truncated

_HEAD = 1 << 16  # holds most headers; thumbnails and profiles before them may be longer
_NUM_THREADS = 8


class Header(NamedTuple):
    """The header of an image.

    Attributes:
        size: Width and height as the image is read, turned or not as DATASET.EXIF says.
        mark: File size and checksum of the first bytes.
        error: What is wrong.
        orientation: EXIF orientation, 1 to 8.
    """

    size: tuple[int, int]
    mark: tuple[int, int]
    error: str
    orientation: int = 1


@dataclass
class ImageFiles:
    """What is known of M image files.

    Attributes:
        there: (M,) bool, the file exists.
        claimed: (M, 2) Width and height as read, -1 if the header was not read.
        orientation: (M,) EXIF orientation, 1 if there is none.
        sums: {mark of the header: positions}.
    """

    there: np.ndarray
    claimed: np.ndarray
    orientation: np.ndarray
    sums: dict[tuple[int, int], list[int]] = field(default_factory=dict)


def present(folder: ImageFolder, names: Sequence[str]) -> np.ndarray:
    """Return which names (M,) are files of the folder or archive.

    Raises DataError if it is missing.
    """
    folder.check()
    if folder.zipped:
        listed = set(archives.open_zip(folder.location).namelist())
        return np.fromiter(
            (name in listed or f"{folder.location.stem}/{name}" in listed for name in names),
            bool,
            len(names),
        )
    folders: dict[str, set[str]] = {}
    exists = np.zeros(len(names), bool)
    for place, name in enumerate(names):
        parent, _, file = name.rpartition("/")
        # listing a folder of 118,287 files is a hundred times faster than a stat of each
        if parent not in folders:
            try:
                folders[parent] = set(os.listdir(folder.location / parent))
            except OSError:
                folders[parent] = set()
        exists[place] = file in folders[parent]
    return exists


def check(
    findings: Findings,
    folder: ImageFolder,
    names: Sequence[str],
    sizes: np.ndarray | None,
    *,
    opened: np.ndarray | None = None,
) -> ImageFiles:
    """Check the images of a split.

    Args:
        folder: Their folder.
        names: M names.
        sizes: (M, 2) Annotated width and height, if any.
        opened: Positions of the images whose headers are read, default all. Of the others only the
            existence is checked.
    """
    count = len(names)
    files = ImageFiles(np.zeros(count, bool), np.full((count, 2), -1), np.ones(count, int))
    try:
        files.there = present(folder, names)
    except DataError as error:
        findings.error(f"images: all {count} are absent ({error})")
        return files
    absent = np.flatnonzero(~files.there)
    if len(absent):
        findings.error(
            f"images: {len(absent)} of {count} are absent, such as"
            f" {list_first(names[place] for place in absent[:3])}, in"
            f" {folder.location}{folder.spelling_hint(names[absent[0]])}"
        )
    places = np.flatnonzero(files.there) if opened is None else opened[files.there[opened]]
    _read_headers(findings, folder, names, files, places.tolist())
    duplicates = [
        f"{names[place]} and {names[group[0]]}"
        for mark, alike in files.sums.items()
        if len(alike) > 1
        for group in _by_content(folder, names, files, mark).values()
        for place in group[1:]
    ]
    if duplicates:
        findings.warning(
            f"images: {len(duplicates)} look the same as another of the set:"
            f" {list_first(duplicates)}"
        )
    if sizes is not None:
        _check_sizes(findings, files, names, sizes, folder.exif)
    same_size = np.flatnonzero((files.orientation > 1) & (files.orientation < 5))
    if len(same_size):
        read = "upright" if folder.exif else "stored"
        findings.note(
            f"images: {len(same_size)} have EXIF orientation 2, 3 or 4, such as"
            f" {list_first(names[place] for place in same_size[:3])}; their size is the same either"
            f" way, so it does not show whether they were annotated {read}, as DATASET.EXIF"
            f" {folder.exif} reads them; see the images of the page"
        )
    return files


def _read_headers(
    findings: Findings,
    folder: ImageFolder,
    names: Sequence[str],
    files: ImageFiles,
    places: list[int],
) -> None:
    """Fill `files` from the headers of the images at `places`."""
    invalid: dict[str, list[str]] = {}
    for place, header in zip(places, _headers(folder, [names[place] for place in places])):
        if header.error:
            invalid.setdefault(header.error, []).append(names[place])
            continue
        files.claimed[place] = header.size
        files.orientation[place] = header.orientation
        files.sums.setdefault(header.mark, []).append(place)
    for error, names_with_error in invalid.items():
        findings.error(f"images: {len(names_with_error)} {error}: {list_first(names_with_error)}")


def _check_sizes(
    findings: Findings, files: ImageFiles, names: Sequence[str], sizes: np.ndarray, exif: bool
) -> None:
    read = files.claimed[:, 0] > 0
    wrong = read & (files.claimed != sizes).any(axis=1)
    exchanged = wrong & (files.claimed[:, ::-1] == sizes).all(axis=1)
    for turned in (True, False):
        places = np.flatnonzero(exchanged & ((files.orientation > 4) == turned))
        if not len(places):
            continue
        why = "their EXIF entry does not turn them, so correct width and height, or the annotations"
        if turned:
            annotated = "as they are stored" if exif else "as their EXIF entry turns them"
            why = f"annotated {annotated}; DATASET.EXIF {not exif} reads them so"
        findings.error(
            f"images: {len(places)} have width and height exchanged, such as "
            f"{list_first(names[place] for place in places[:3])}: {why}"
        )
    wrong &= ~exchanged
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        width, height = files.claimed[first]
        findings.error(
            f"images: {wrong.sum()} of {read.sum()} have another size than their annotations say:"
            f" {list_first([names[first]])} has {width} x {height},"
            f" annotated {sizes[first, 0]:g} x {sizes[first, 1]:g}"
        )


def _headers(folder: ImageFolder, names: list[str]) -> Iterable[Header]:
    if not folder.zipped:
        # a disk that is far away answers several at once
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            yield from pool.map(
                lambda name: _header_of_file(folder.location / name, folder.exif),
                names,
                chunksize=64,
            )
        return
    archive = archives.open_zip(folder.location)
    for name in names:
        member = name if name in archive.NameToInfo else f"{folder.location.stem}/{name}"
        info = archive.NameToInfo[member]
        try:
            with archive.open(info) as file:
                yield _judged(file.read(_HEAD), info.file_size, file.read, folder.exif)
        except Exception:  # each compression has errors of its own
            yield Header((0, 0), (0, 0), "cannot be read")


def _header_of_file(path: Path, exif: bool) -> Header:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would keep us waiting
            return Header((0, 0), (0, 0), "are no ordinary files")
        with open(path, "rb") as file:
            head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
            header = _judged(head, size, file.read, exif)
            if not header.error and _ends_early(head, size, file):
                return Header((0, 0), header.mark, "are cut off at their end")
            return header
    except (OSError, ValueError):
        return Header((0, 0), (0, 0), "cannot be read")


def _ends_early(head: bytes, size: int, file: BinaryIO) -> bool:
    """Return whether a JPEG or PNG has no end mark.

    Reads all of it only if the last bytes are no end mark.
    """
    mark = END_MARKS.get(head[:2])
    if mark is None:
        return False
    file.seek(max(size - len(mark), 0))
    if file.read(len(mark)) == mark:
        return False
    file.seek(0)
    return is_truncated(file.read(MAX_ENCODED_BYTES))


def _judged(head: bytes, size: int, rest: Callable[[int], bytes], exif: bool = False) -> Header:
    """Return the header.

    Args:
        head: First bytes of the file.
        size: Size of the file.
        rest: Read the other bytes.
        exif: See ImageFolder.
    """
    mark = size, zlib.crc32(head)
    if not head:
        return Header((0, 0), mark, "are empty")
    data, claimed = head, image_header.read_size(head)
    if claimed is not None and 0 in claimed and size > _HEAD:
        data = head + rest(MAX_ENCODED_BYTES)
        claimed = image_header.read_size(data)
    if claimed is None:
        return Header((0, 0), mark, f"are no image that is read ({image_header.FORMATS} are)")
    if image_header.is_too_large(head):
        return Header(claimed, mark, "claim more pixels than are read")
    if 0 in claimed:
        return Header((0, 0), mark, "are cut off or damaged at their beginning")
    orientation = image_header.exif_orientation(data)
    if orientation < 5:
        return Header(claimed, mark, "", orientation)
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        return Header(claimed[::-1] if exif else claimed, mark, "", orientation)
    # OpenCV's versions differ in when they turn the other formats
    data += rest(MAX_ENCODED_BYTES)
    read = None if image_header.find_error(data) else EncodedImage(data, exif).size
    return Header(read or claimed, mark, "", orientation)


def check_apart(
    findings: Findings,
    train: tuple[ImageFolder, Sequence[str], ImageFiles],
    test: tuple[ImageFolder, Sequence[str], ImageFiles],
) -> None:
    """Check that no image is in two splits, by name in one folder, otherwise by content.

    Args:
        train: Folder, names and files of a split.
        test: The same of the other split.
    """
    (folder, names, files), (other_folder, other_names, other_files) = train, test
    common = (
        sorted(set(names) & set(other_names))
        if _same(folder.location, other_folder.location)
        else []
    )
    if common:
        findings.error(
            f"images: {len(common)} of {len(other_names)} test images are training images too:"
            f" {list_first(common)}; scores of such a test are meaningless"
        )
        return
    twins = []
    for mark in files.sums.keys() & other_files.sums.keys():
        mine = _by_content(folder, names, files, mark)
        twins += [
            f"{other_names[place]} and {names[mine[content][0]]}"
            for content, places in _by_content(other_folder, other_names, other_files, mark).items()
            if content in mine
            for place in places
        ]
    twins.sort()
    if twins:
        findings.error(
            f"images: {len(twins)} of {len(other_names)} test images have the same content as a"
            f" training image: {list_first(twins)}; scores of such a test are meaningless"
        )


def _by_content(
    folder: ImageFolder, names: Sequence[str], files: ImageFiles, mark: tuple[int, int]
) -> dict[bytes, list[int]]:
    """Group the images of one mark by content: uncompressed images may start with equal bytes."""
    groups: dict[bytes, list[int]] = {}
    for place in files.sums[mark]:
        try:
            content = hashlib.sha256(folder.data(names[place])).digest() if mark[0] > _HEAD else b""
        except DataError:
            continue
        groups.setdefault(content, []).append(place)
    return groups


def _same(a: Path, b: Path) -> bool:
    try:
        return a.resolve() == b.resolve()
    except (OSError, RuntimeError):
        return a == b
