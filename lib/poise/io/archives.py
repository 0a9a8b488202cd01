"""ZIP and tar archives: read single members, and unpack safely.

Nothing is written outside of the target folder or beyond a bounded size. tarfile's data filter does
not replace this: it checks each member when it is extracted, while here all names, types and sizes
are checked before the first file is written, and neither it nor zipfile bounds the expanded size.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from poise.errors import DataError, escape_name
from poise.io.files import create_temporary_file, format_bytes

MAX_MEMBERS = 2_000_000  # train2017.zip has 118,288
MAX_DIRECTORY_BYTES = 1 << 27  # of a ZIP file's central directory
MAX_EXPANSION = 100  # ratio of unpacked to packed bytes: JSON has 10, images have 1
_MIN_EXPANDED_BYTES = 1 << 24  # so much may come of the smallest archive
_MAX_HEADER_BYTES = 1 << 16  # of a tar extended header, which holds a long name and a few fields
_MAX_GLOBAL_HEADERS = 64  # fields of the tar extended headers that hold for all members
_CHUNK = 1 << 20
_UNIX_DIR = 0o04
_UNIX_FILE = 0o10
_UNIX_LINK = 0o12
_USUAL_NAME = re.compile(r"(?=.{1,255}$)(?:[\w-]+/)*[\w-]+(?:\.\w+)?", re.ASCII)
_OPEN_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    OverflowError,
    IndexError,
    KeyError,
    MemoryError,
)


@dataclass(frozen=True)
class Member:
    """A file of an archive.

    Attributes:
        name: in the archive; in the result of _check_members the path below the target folder.
        size: in bytes.
        open: opens it for reading.
        is_dir: whether it is a folder.
        error: why it must not be unpacked, or ''.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    is_dir: bool = False
    error: str = ""


def unpack(
    path: str | Path,
    folder: str | Path,
    rename: Callable[[str], str | None] = lambda name: name,
    progress: Callable[[int], Any] = lambda size: None,
) -> int:
    """Unpack a ZIP or tar file; files that exist with the right size are skipped.

    All names, types and sizes are checked before the first file is written. Raises DataError for
    members that would be outside of the folder, links and devices, more bytes than fit on the disk
    or can honestly be in the archive, and damage.

    Args:
        path: the archive.
        folder: the target.
        rename: returns the path of a member below `folder`; None to skip it.
        progress: called with the number of bytes since the last call.

    Returns:
        The number of files.
    """
    folder = Path(folder)
    with _open_archive(path) as archive:
        members = _check_members(path, archive, rename)
        missing = [member for member in members if not _exists(folder / member.name, member.size)]
        num_missing = sum(member.size for member in missing)
        _check_disk(path, folder, num_missing)
        progress(sum(member.size for member in members) - num_missing)
        for member in missing:
            _extract(path, member, folder, progress)
    return len(members)


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Open a ZIP file with a bounded list of members. Raises DataError."""
    try:
        return open_bounded_zip(path)
    except _OPEN_ERRORS as error:
        raise DataError(f"{path}: cannot open the archive ({_reason(error)})") from None


def open_bounded_zip(path: str | Path, plain: bool = False) -> zipfile.ZipFile:
    """Open a ZIP file with a bounded list of members, with the errors of zipfile and the system.

    Args:
        path: the file.
        plain: reject a file whose list is not where the file says. zipfile searches for it and
            other readers do not, so that they could read another list.
    """
    listed, begin = _read_directory_position(path)
    if listed > MAX_DIRECTORY_BYTES:
        raise DataError(
            f"{path}: its list of members has {format_bytes(listed)}, and at most"
            f" {format_bytes(MAX_DIRECTORY_BYTES)} are read"
        )
    archive = zipfile.ZipFile(path)
    if plain and archive.start_dir != begin:
        archive.close()
        raise zipfile.BadZipFile("its list of members is not where it says")
    return archive


def read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes | None:
    """Return the content of a member; None if there is none of that name.

    Raises DataError if it is damaged or has more than `max_bytes` bytes.
    """
    path = archive.filename
    try:
        info = archive.getinfo(name)
    except KeyError:
        return None
    if info.file_size > max_bytes:
        raise DataError(
            f"{path}: {escape_name(name)} has {format_bytes(info.file_size)}, and at most"
            f" {format_bytes(max_bytes)} are read"
        )
    try:
        with archive.open(info) as file:
            return file.read(max_bytes)  # zipfile returns no more than the size in the header
    except Exception as error:  # each compression has its own classes: zlib.error, LZMAError
        raise DataError(f"{path}: cannot read {escape_name(name)} ({_reason(error)})") from None


def find_name_error(name: str) -> str:
    """Return why a path of a file must not be used below a folder; '' if it may."""
    if _USUAL_NAME.fullmatch(name):  # fast: called for every sample
        return ""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or "\0" in name:
        return "is no name"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts:
        return "leads out of the folder"
    if len(name) > 4000 or any(len(os.fsencode(part)) > 255 for part in parts):
        return "is longer than a name can be"
    return ""


class _BoundedTarInfo(tarfile.TarInfo):
    """TarInfo that rejects large extended headers and sparse files.

    tarfile reads an extended header completely before it returns the member: a packed megabyte can
    be a gigabyte of them.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        is_extended = self.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        is_large = is_extended and self.size > _MAX_HEADER_BYTES
        if is_large or len(archive.pax_headers) > _MAX_GLOBAL_HEADERS:
            raise _untrusted(archive.name, "a header in it is larger than a name can be")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _untrusted(archive.name, f"{escape_name(self.name)} is a file with holes")
        return super()._proc_member(archive)  # type: ignore[misc]  # private to tarfile

    # it would read the map of a sparse file, of any length
    def _proc_gnusparse_10(self, member: tarfile.TarInfo, _: Any, archive: tarfile.TarFile) -> None:
        raise _untrusted(archive.name, f"{escape_name(member.name)} is a file with holes")


def _untrusted(path: Any, problem: str) -> DataError:
    return DataError(f"{path}: {problem}; nothing was unpacked, do not trust this archive")


def _open_archive(path: str | Path) -> zipfile.ZipFile | tarfile.TarFile:
    try:
        if zipfile.is_zipfile(path):
            return open_zip(path)
        return tarfile.open(path, tarinfo=_BoundedTarInfo)
    except _OPEN_ERRORS as error:
        raise DataError(f"{path}: cannot open the archive ({_reason(error)})") from None


def _read_directory_position(path: str | Path) -> tuple[int, int]:
    """Return bytes and begin of the central directory by the end of a ZIP file; (0, -1) without."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - (1 << 16) - 100, 0))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 20:
        return 0, -1
    fields = struct.unpack_from("<II", tail, at + 12)
    at = tail.rfind(b"PK\x06\x06", 0, at)
    if 0xFFFFFFFF in fields and at >= 0 and len(tail) >= at + 56:
        zip64 = struct.unpack_from("<QQ", tail, at + 40)
        fields = tuple(long if short == 0xFFFFFFFF else short for short, long in zip(fields, zip64))
    return min(fields[0], size), fields[1]


def _check_members(
    path: str | Path,
    archive: zipfile.ZipFile | tarfile.TarFile,
    rename: Callable[[str], str | None],
) -> list[Member]:
    """Return the files to unpack, by their new names. Raises DataError for an invalid archive."""
    found: dict[str, Member] = {}
    try:
        for member in _bounded_members(path, archive):
            error = member.error or find_name_error(member.name)
            if error:
                raise _untrusted(path, f"{escape_name(member.name)} {error}")
            target = None if member.is_dir else rename(member.name)
            if target is None:
                continue
            if target in found:
                raise DataError(
                    f"{path}: holds {escape_name(member.name)} twice; nothing was unpacked"
                )
            found[target] = Member(target, member.size, member.open)
    except DataError:
        raise
    except Exception as error:  # each compression has its own classes: zlib.error, LZMAError
        raise DataError(
            f"{path}: the archive is damaged ({_reason(error)}); download it again"
        ) from None
    return list(found.values())


def _bounded_members(
    path: str | Path, archive: zipfile.ZipFile | tarfile.TarFile
) -> Iterator[Member]:
    """Yield the members; raise DataError once they are too many or expand to too many bytes."""
    packed = os.path.getsize(path)
    max_bytes = max(MAX_EXPANSION * packed, _MIN_EXPANDED_BYTES)
    total = 0
    if isinstance(archive, zipfile.ZipFile):
        members = _zip_members(archive)
    else:
        members = _tar_members(archive)
    for count, member in enumerate(members, start=1):
        total += member.size
        if count > MAX_MEMBERS:
            raise DataError(f"{path}: has more than {MAX_MEMBERS} members; nothing was unpacked")
        if total > max_bytes:
            raise _untrusted(
                path, f"its {format_bytes(packed)} would become more than {format_bytes(total)}"
            )
        yield member


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = info.external_attr >> 28  # of the Unix mode; 0 if another system made the archive
        error = ""
        if kind == _UNIX_LINK:
            error = "is a link"
        elif kind not in (0, _UNIX_DIR, _UNIX_FILE):
            error = "is no file"
        # the name as it is in the file: zipfile has cut it at a NUL
        name = info.orig_filename
        yield Member(name, info.file_size, partial(archive.open, info), info.is_dir(), error)


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        error = ""
        if info.issparse():
            error = "is a file with holes"
        elif info.issym() or info.islnk():
            error = "is a link"
        elif not (info.isreg() or info.isdir()):
            error = "is no file"
        info.pax_headers = {}  # else each is kept until the last one is unpacked
        size = info.size if info.isreg() else 0
        yield Member(info.name, size, partial(_open_tar, archive, info), info.isdir(), error)


def _open_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None, "only folders and links have no content"
    return file


def _exists(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size and path.is_file()
    except OSError:
        return False


def _check_disk(path: str | Path, folder: Path, needed: int) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"{path}: {format_bytes(needed)} are to be unpacked, and {format_bytes(free)} are free"
            f" on the disk of {folder}"
        )


def _extract(
    path: str | Path, member: Member, folder: Path, progress: Callable[[int], Any]
) -> None:
    target = folder / member.name
    part = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = create_temporary_file(target)
        left = _copy(member, part, progress)
        if left:
            raise DataError(
                f"{path}: {escape_name(member.name)} has not the size that the archive says;"
                " download it again"
            )
        os.replace(part, target)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot unpack {escape_name(member.name)} to {target.parent}"
            f" ({_reason(error)})"
        ) from None
    except Exception as error:
        raise DataError(
            f"{path}: the archive is damaged at {escape_name(member.name)} ({_reason(error)});"
            " download it again"
        ) from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _copy(member: Member, part: Path, progress: Callable[[int], Any]) -> int:
    """Write a member to a file; return how many bytes are missing, negative for too many."""
    left = member.size
    with member.open() as source, open(part, "wb") as file:
        while chunk := source.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
            progress(len(chunk))
    return left


def _reason(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    if strerror:
        return strerror
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
