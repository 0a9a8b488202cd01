"""The bytes of a file from outside: of a regular file, of no more than can be meant, each fault
told in one line.
"""

from __future__ import annotations

import errno
import gc
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poise.errors import DataError, PoiseError

_LITTLE = 1 << 27  # bytes that a process may be trusted to have


def read_bytes(
    path: str | os.PathLike,
    what: str,
    most: int,
    mend: str = "",
    error: type[PoiseError] = DataError,
) -> bytes:
    """The content of a file of at most `most` bytes. Links are followed; what they lead to must be
    a file, not a device, a pipe or a folder.

    `what` and `mend` go into the `error` that is raised where it cannot be read.
    """
    advice = f"; {mend}" if mend else ""
    try:
        found = os.stat(path)
        # reading one may wait, or go on, for ever
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise error(
                f"{path}: cannot read the {what} (it is a device or a pipe, not a file){advice}"
            )
        if found.st_size > most:
            raise error(
                f"{path}: the {what} has {format_bytes(found.st_size)}, more than the"
                f" {format_bytes(most)} that are read{advice}"
            )
        check_memory(path, what, found.st_size, error)
        # unbuffered, for one read gives all of it, but where a network disk has given less, which
        # is read again by a buffer's way
        with open(path, "rb", buffering=0) as file:
            data = file.read(min(found.st_size, most - 1) + 1)
        if len(data) == found.st_size:
            return data
        with open(path, "rb") as file:
            return file.read(most)
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
        raise error(
            f"{path}: cannot read the {what} ({getattr(fault, 'strerror', None) or fault}){advice}"
        ) from None
    except MemoryError:
        raise error(
            f"{path}: cannot read the {what}, there is no memory for its"
            f" {format_bytes(found.st_size)}"
        ) from None


def check_memory(
    path: str | os.PathLike, what: str, needed: int, error: type[PoiseError] = DataError
) -> None:
    """Raise `error` where a file needs more memory than there is: the system would end the
    process without a word, and perhaps others.
    """
    if needed < _LITTLE:
        return
    present = available_memory()
    if present is not None and needed > present:
        raise error(
            f"{path}: reading the {what} takes about {format_bytes(needed)} of memory, and"
            f" {format_bytes(present)} are free"
        )


def available_memory() -> int | None:
    """Free bytes for a process on the CPU; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(
                int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration, ValueError):
        return None


def format_bytes(size: float) -> str:
    """A number of bytes for people: '17.0 MB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"


def fsync_dir(folder: str | Path) -> None:
    """Bring the names in a folder to the disk, after renaming. Where the system or the disk does
    not know this nothing is done.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # some network disks
        pass
    finally:
        os.close(handle)


#: of the names that temporary_file gives, for whatever cleans up after a killed process
TEMPORARY_NAME = r"\..*\.[0-9a-f]{16}\.part"


def open_nofollow(path: str | os.PathLike, flags: int) -> int:
    """An `opener` that fails on a link, and does not wait for the other end of a named pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def create_temporary_file(path: str | os.PathLike, ending: str = "") -> Path:
    """Make an empty file in the folder of `path`, under a new name that nobody can know beforehand.

    In a folder that others may write to, a name that is known could already be a link to a file of
    the user's. The name is cut, so that it is not too long where that of `path` is not.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part{ending}")
    os.close(open_nofollow(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return part


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; what was written there is flushed to the disk and
    takes the place of `path` in one step.

    The folder is made. After an error the old file is as it was and the temporary one is gone; an
    OSError becomes a DataError that names the file.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = create_temporary_file(path)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({write_error_reason(error, path)}); the file before it,"
            " if any, is kept"
        ) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def write_error_reason(error: OSError, path: Path) -> str:
    """Return why `path` cannot be written, with the disk where that is full."""
    text = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    disk = path.parent.resolve()
    while not os.path.ismount(disk):
        disk = disk.parent
    return f"{text}: the disk at {disk}"


@contextmanager
def gc_disabled() -> Iterator[None]:
    """While many objects are made that stay: modules that are imported, lists and dictionaries of a
    file.

    They would be looked through again and again, for circles that they do not have: a quarter of
    the time that importing PyTorch takes, and up to ten times that of reading a large JSON file.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
