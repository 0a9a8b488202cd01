"""Archives from outside: single members of a ZIP file, and ZIP and tar files unpacked, nothing
of them beside the folder or beyond the measure.
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
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from poise.errors import DataError, escape_name
from poise.io.files import create_temporary_file, format_bytes

MAX_MEMBERS = 2_000_000  # train2017.zip has 118,288
MAX_DIRECTORY_BYTES = 1 << 27  # bytes of a ZIP file's list of members
MAX_EXPANSION = 100  # times: JSON packs 10 times, images not at all
_CHUNK = 1 << 20
_USUAL_NAME = re.compile(r"(?=.{1,255}$)(?:[\w-]+/)*[\w-]+(?:\.\w+)?", re.ASCII)
_LEAST_BOUND = 1 << 24  # so much may come of the smallest archive
# bytes of a tar file's extended header, which has a long name and a few words more
_MOST_HEADER = 1 << 16
_MOST_FOR_ALL = 64  # words in the extended headers that hold for all members
_FAULTS = (
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
)


@dataclass(frozen=True)
class Member:
    """A file of an archive: its path in the folder, its size in bytes, and how it is opened."""

    path: str
    size: int
    open: Callable[[], BinaryIO]


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """A ZIP file whose list of members is no larger than can be meant. Raises DataError."""
    try:
        return open_bounded_zip(path)
    except (*_FAULTS, MemoryError) as error:
        raise DataError(f"{path}: cannot open the archive ({_reason(error)})") from None


def open_bounded_zip(path: str | Path, plain: bool = False) -> zipfile.ZipFile:
    """The same with the errors of zipfile and of the system where there is no such list.

    plain: refuse one whose list is not where the file says, which zipfile looks for and other
    readers do not: they could read another list.
    """
    listed, begin = _list_of(path)
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


def _list_of(path: str | Path) -> tuple[int, int]:
    """What the end of a ZIP file says of its central directory, bytes and where it begins; (0,
    -1) where it says nothing.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - (1 << 16) - 100, 0))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 20:
        return 0, -1
    found = struct.unpack_from("<II", tail, at + 12)
    at = tail.rfind(b"PK\x06\x06", 0, at)
    if 0xFFFFFFFF in found and at >= 0 and len(tail) >= at + 56:
        wide = struct.unpack_from("<QQ", tail, at + 40)
        found = tuple(long if short == 0xFFFFFFFF else short for short, long in zip(found, wide))
    return min(found[0], size), found[1]


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes | None:
    """A member's bytes, None where there is none of that name. Raises DataError where it cannot
    be read or has more than `most` bytes.
    """
    where = archive.filename
    try:
        info = archive.getinfo(name)
        if info.file_size > most:
            raise DataError(
                f"{where}: {escape_name(name)} has {format_bytes(info.file_size)}, and at most"
                f" {format_bytes(most)} are read"
            )
        with archive.open(info) as file:
            # zipfile gives no more than the size that it checked
            return file.read(most + 1)[: most + 1]
    except KeyError:
        return None
    except DataError:
        raise
    except Exception as error:  # each compression has errors of its own: zlib.error, LZMAError
        raise DataError(f"{where}: cannot read {escape_name(name)} ({_reason(error)})") from None


def unpack(
    path: str | Path,
    folder: str | Path,
    rename: Callable[[str], str | None] = lambda name: name,
    progress: Callable[[int], Any] = lambda size: None,
) -> int:
    """Put the files of a ZIP or tar file below `folder`; those that are there in their size are
    left. Returns how many there are.

    rename: the path below `folder` of a member, None for one that is not wanted. progress: called
    with the bytes done since the last call. All names, kinds and sizes are looked at before the
    first file is written. Raises DataError, naming the archive, for members that would lie outside
    of the folder, links and devices, more than the disk holds or the archive can honestly hold, and
    for damage.
    """
    folder = Path(folder)
    with _opened(path) as archive:
        members = _checked(path, archive, rename)
        missing = [member for member in members if not _is_there(folder / member.path, member.size)]
        _check_disk(path, folder, sum(member.size for member in missing))
        progress(sum(member.size for member in members) - sum(member.size for member in missing))
        for member in missing:
            _write(path, member, folder, progress)
    return len(members)


class _Header(tarfile.TarInfo):
    """tarfile reads extended headers to their end, however long, before it tells of the member:
    a megabyte of a packed archive can be a gigabyte of them.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = self.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if extended and self.size > _MOST_HEADER or len(archive.pax_headers) > _MOST_FOR_ALL:
            raise DataError(
                f"{archive.name}: a header in it is larger than a name can be; nothing was"
                " unpacked, do not trust this archive"
            )
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise DataError(
                f"{archive.name}: {escape_name(self.name)} is a file with holes; nothing was"
                " unpacked, do not trust this archive"
            )
        return super()._proc_member(archive)

    # whose map of holes is read too
    def _proc_gnusparse_10(self, member: tarfile.TarInfo, _, archive: tarfile.TarFile) -> None:
        raise DataError(
            f"{archive.name}: {escape_name(member.name)} is a file with holes; nothing was"
            " unpacked, do not trust this archive"
        )


def _opened(path: str | Path) -> zipfile.ZipFile | tarfile.TarFile:
    try:
        if zipfile.is_zipfile(path):
            return open_zip(path)
        return tarfile.open(path, tarinfo=_Header)
    except (*_FAULTS, MemoryError) as error:
        raise DataError(f"{path}: cannot open the archive ({_reason(error)})") from None


def _checked(
    path: str | Path,
    archive: zipfile.ZipFile | tarfile.TarFile,
    rename: Callable[[str], str | None],
) -> list[Member]:
    """The wanted members of an archive of which all can be taken. Raises DataError for the first
    that cannot.
    """
    found: dict[str, Member] = {}
    packed = os.path.getsize(path)
    count = total = 0
    try:
        for name, size, fault, opening in _listed(archive):
            count, total = count + 1, total + size
            fault = fault or find_name_error(name)
            if fault:
                raise DataError(
                    f"{path}: {escape_name(name)} {fault}; nothing was unpacked, do not trust this"
                    " archive"
                )
            if count > MAX_MEMBERS:
                raise DataError(
                    f"{path}: has more than {MAX_MEMBERS} members; nothing was unpacked"
                )
            if total > max(MAX_EXPANSION * packed, _LEAST_BOUND):
                raise DataError(
                    f"{path}: its {format_bytes(packed)} would become more than"
                    f" {format_bytes(total)}; nothing was unpacked, do not trust this archive"
                )
            wanted = rename(name) if opening else None
            if wanted is not None:
                if wanted in found:
                    raise DataError(
                        f"{path}: holds {escape_name(name)} twice; nothing was unpacked"
                    )
                found[wanted] = Member(wanted, size, opening)
    except (*_FAULTS, MemoryError) as error:
        raise DataError(
            f"{path}: the archive is damaged ({_reason(error)}); fetch it again"
        ) from None
    except Exception as error:  # each compression has errors of its own: zlib.error, LZMAError
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: the archive is damaged ({_reason(error)}); fetch it again"
        ) from None
    return list(found.values())


def _listed(
    archive: zipfile.ZipFile | tarfile.TarFile,
) -> Iterator[tuple[str, int, str, Callable[[], BinaryIO] | None]]:
    """(name, size, what is wrong with its kind, how to open it or None for a folder) of each
    member.
    """
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            # of a Unix mode; 0 where another system made the archive
            kind = info.external_attr >> 28
            fault = "" if kind in (0, 0o04, 0o10) else "is a link" if kind == 0o12 else "is no file"
            # the name as it stands in the file: zipfile has cut it at a NUL
            yield (
                info.orig_filename,
                info.file_size,
                fault,
                None if info.is_dir() else lambda info=info: archive.open(info),
            )
        return
    for info in archive:
        archive.members = []  # tarfile would keep them all
        fault = (
            ""
            if info.isreg() or info.isdir()
            else "is a link"
            if info.issym() or info.islnk()
            else "is no file"
        )
        if info.issparse():
            fault = "is a file with holes"
        info.pax_headers = {}  # each is kept until the last one is unpacked
        yield (
            info.name,
            info.size if info.isreg() else 0,
            fault,
            None if info.isdir() else lambda info=info: archive.extractfile(info),
        )


def find_name_error(name: str) -> str:
    """Why a path from outside (of an archive, of an annotation) must not be used below a folder;
    '' where it may.
    """
    if _USUAL_NAME.fullmatch(name):  # asked for every sample
        return ""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or "\0" in name:
        return "is no name"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts:
        return "leads out of the folder"
    if len(name) > 4000 or any(len(os.fsencode(part)) > 255 for part in parts):
        return "is longer than a name can be"
    return ""


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size and path.is_file()
    except OSError:
        return False


def _check_disk(path: str | Path, folder: Path, needed: int) -> None:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"{path}: {format_bytes(needed)} are to be unpacked, and {format_bytes(free)} are free"
            f" on the disk of {folder}"
        )


def _write(path: str | Path, member: Member, folder: Path, progress: Callable[[int], Any]) -> None:
    target = folder / member.path
    part = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = create_temporary_file(target)
        with member.open() as source, open(part, "wb") as file:
            left = member.size
            while chunk := source.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                file.write(chunk)
                progress(len(chunk))
        if left:
            raise DataError(
                f"{path}: {escape_name(member.path)} has not the size that the archive says; fetch"
                " it again"
            )
        os.replace(part, target)
    except OSError as error:
        raise DataError(
            f"{path}: cannot unpack {escape_name(member.path)} to {target.parent}"
            f" ({_reason(error)})"
        ) from None
    except Exception as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: the archive is damaged at {escape_name(member.path)} ({_reason(error)});"
            " fetch it again"
        ) from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    return (
        getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        if str(error)
        else type(error).__name__
    )
