"""Image files of a set: there, of the size that the annotations say, and not in another set too.
Headers and last bytes alone are read.
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

_HEAD = 1 << 16  # most headers lie in it; thumbnails and profiles before them may be longer
_AT_ONCE = 8


class Header(NamedTuple):
    """What the header of an image says.

    size: width and height as the image is read, turned or not as DATASET.EXIF says. mark: number of
    bytes and sum of the beginning. fault: what is wrong. orientation: the EXIF entry, 1 to 8.
    """

    size: tuple[int, int]
    mark: tuple[int, int]
    fault: str
    orientation: int = 1


@dataclass
class ImageFiles:
    """What was seen of M images. there (M,) bool. claimed (M, 2): width and height as read, -1
    where the header was not.

    orientation (M,): of the EXIF entry, 1 where there is none. sums: {(bytes, sum of the head):
    places}.
    """

    there: np.ndarray
    claimed: np.ndarray
    orientation: np.ndarray
    sums: dict[tuple[int, int], list[int]] = field(default_factory=dict)


def present(folder: ImageFolder, names: Sequence[str]) -> np.ndarray:
    """(M,) bool: which of the names are files of the folder or archive. Raises DataError where
    that is not there.
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
        # one look at a folder of 118,287 files is a hundred times faster than one at each of them
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
    """Look at a set's images. sizes: (M, 2) as the annotations say, None where they do not.
    opened: places of those that are opened; all where it is None. The others need only be there.
    """
    count = len(names)
    files = ImageFiles(np.zeros(count, bool), np.full((count, 2), -1), np.ones(count, int))
    try:
        files.there = present(folder, names)
    except DataError as error:
        findings.error(f"images: all {len(names)} are absent ({error})")
        return files
    absent = np.flatnonzero(~files.there)
    if len(absent):
        findings.error(
            f"images: {len(absent)} of {len(names)} are absent, such as"
            f" {list_first(names[place] for place in absent[:3])}, in"
            f" {folder.location}{folder.other_spelling(names[absent[0]])}"
        )
    places = np.flatnonzero(files.there) if opened is None else opened[files.there[opened]]
    bad: dict[str, list[str]] = {}
    for place, header in zip(places.tolist(), _headers(folder, [names[place] for place in places])):
        if header.fault:
            bad.setdefault(header.fault, []).append(names[place])
            continue
        files.claimed[place], files.orientation[place] = header.size, header.orientation
        files.sums.setdefault(header.mark, []).append(place)
    for fault, spoilt in bad.items():
        findings.error(f"images: {len(spoilt)} {fault}: {list_first(spoilt)}")
    twins = [
        f"{names[place]} and {names[group[0]]}"
        for mark, alike in files.sums.items()
        if len(alike) > 1
        for group in _by_content(folder, names, files, mark).values()
        for place in group[1:]
    ]
    if twins:
        findings.warning(
            f"images: {len(twins)} look the same as another of the set: {list_first(twins)}"
        )
    if sizes is not None:
        _check_sizes(findings, files, names, sizes, folder.exif)
    same_size = np.flatnonzero((files.orientation > 1) & (files.orientation < 5))
    if len(same_size):
        read = "upright" if folder.exif else "stored"
        findings.note(
            f"images: {len(same_size)} have EXIF orientation 2, 3 or 4, such as"
            f" {list_first(names[place] for place in same_size[:3])}; their size is the same"
            f" either way, so it does not show whether they were annotated {read}, as DATASET.EXIF"
            f" {folder.exif} reads them; see the pictures of the page"
        )
    return files


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
        with ThreadPoolExecutor(_AT_ONCE) as pool:
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
            if not header.fault and _ends_early(head, size, file):
                return Header((0, 0), header.mark, "are cut off at their end")
            return header
    except (OSError, ValueError):
        return Header((0, 0), (0, 0), "cannot be read")


def _ends_early(head: bytes, size: int, file: BinaryIO) -> bool:
    """Whether a JPEG or PNG has no end mark. All of it is read only where the mark is not at the
    very end.
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
    """head: the image's first bytes. size: of all. rest: gives the others. exif: see
    ImageFolder.
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
    """That no image is in both sets: (folder, names, files) of each; by name in one folder, else
    by the files' bytes.
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
            f" {list_first(common)}; figures of such a test say nothing"
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
            f" training image: {list_first(twins)}; figures of such a test say nothing"
        )


def _by_content(
    folder: ImageFolder, names: Sequence[str], files: ImageFiles, mark: tuple[int, int]
) -> dict[bytes, list[int]]:
    """The images of one mark, in groups of the same content: uncompressed pictures of one size
    may well begin alike.
    """
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
