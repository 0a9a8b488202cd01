"""Bounded reads and atomic writes of files."""

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

#: pattern of the names that create_temporary_file gives, for cleaning up after a killed process
TEMPORARY_NAME = r"\..*\.[0-9a-f]{16}\.part"
_MIN_CHECKED_BYTES = 1 << 27  # less memory than this is taken for granted


def read_bytes(
    path: str | os.PathLike,
    description: str,
    max_bytes: int,
    hint: str = "",
    error_cls: type[PoiseError] = DataError,
) -> bytes:
    """Return the content of a regular file of at most `max_bytes` bytes.

    Links are followed; a device, a pipe or a folder is an error.

    Args:
        path: the file.
        description: what the file is, for error messages: 'annotation file'.
        max_bytes: a larger file is an error.
        hint: how to fix it, at the end of error messages.
        error_cls: the class of errors.
    """
    ending = f"; {hint}" if hint else ""
    try:
        status = os.stat(path)
        # reading a device or a pipe may block or never end
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise error_cls(
                f"{path}: cannot read the {description} (it is a device or a pipe, not a"
                f" file){ending}"
            )
        if status.st_size > max_bytes:
            raise error_cls(
                f"{path}: the {description} has {format_bytes(status.st_size)}, more than the"
                f" {format_bytes(max_bytes)} that are read{ending}"
            )
        check_memory(path, description, status.st_size, error_cls)
        # one unbuffered read is fastest; a network disk may return less, then read in the usual way
        with open(path, "rb", buffering=0) as file:
            data = file.read(min(status.st_size, max_bytes - 1) + 1)
        if len(data) == status.st_size:
            return data
        with open(path, "rb") as file:
            return file.read(max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise error_cls(f"{path}: cannot read the {description} ({reason}){ending}") from None
    except MemoryError:
        raise error_cls(
            f"{path}: cannot read the {description}, there is no memory for its"
            f" {format_bytes(status.st_size)}"
        ) from None


def check_memory(
    path: str | os.PathLike,
    description: str,
    needed: int,
    error_cls: type[PoiseError] = DataError,
) -> None:
    """Raise `error_cls` if reading a file needs more memory than is available.

    The system would otherwise kill the process, and perhaps others, without a message.
    """
    if needed < _MIN_CHECKED_BYTES:
        return
    available = available_memory()
    if available is not None and needed > available:
        raise error_cls(
            f"{path}: reading the {description} takes about {format_bytes(needed)} of memory, and"
            f" {format_bytes(available)} are free"
        )


def available_memory() -> int | None:
    """Return the bytes of free CPU memory; None if the system does not report them."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    return None


def format_bytes(size: float) -> str:
    """Return a number of bytes as text: '17.0 MB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` in one step when the block ends.

    The folder is created, and the content is flushed to the disk. After an error the old file is
    unchanged and the temporary file is removed. An OSError becomes a DataError naming the file.
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
            f"{path}: cannot be written ({write_error_reason(error, path)}); the file before it, if"
            " any, is kept"
        ) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def create_temporary_file(path: str | os.PathLike, suffix: str = "") -> Path:
    """Create an empty file in the folder of `path`, with a name that cannot be predicted.

    A predictable name in a folder that others may write to could be a link to one of the user's
    files. The name of `path` is shortened in it, so that the result is not too long.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part{suffix}")
    os.close(open_nofollow(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return part


def open_nofollow(path: str | os.PathLike, flags: int) -> int:
    """Open a file, failing on a link and without waiting at a named pipe; an `opener` of open()."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def fsync_dir(folder: str | Path) -> None:
    """Flush the names in a folder to the disk, if the system and the disk support this."""
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


def write_error_reason(error: OSError, path: Path) -> str:
    """Return why `path` cannot be written, with the mount point if the disk is full."""
    text = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    disk = path.parent.resolve()
    while not os.path.ismount(disk):
        disk = disk.parent
    return f"{text}: the disk at {disk}"


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable the cyclic garbage collector while many long-lived objects are created.

    The collector takes a quarter of the time of importing PyTorch, and up to ten times the time of
    parsing a large JSON file.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
