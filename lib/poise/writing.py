"""Files that appear whole or not at all."""
from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poise.errors import DataError


def flush_folder(folder: str | Path) -> None:
    """Bring the names in a folder to the disk, after renaming. Where the system or the disk does not know this nothing is done."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:     # Windows
        return
    try:
        os.fsync(handle)
    except OSError:     # some network disks
        pass
    finally:
        os.close(handle)


#: of the names that temporary_file gives, for whatever cleans up after a killed process
TEMPORARY_NAME = r"\..*\.[0-9a-f]{16}\.part"


def open_unfollowed(path: str | Path, flags: int) -> int:
    """An `opener` that fails on a link, and does not wait for the other end of a named pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def temporary_file(path: str | Path, ending: str = "") -> Path:
    """Make an empty file in the folder of `path`, under a new name that nobody can know beforehand.

    In a folder that others may write to, a name that is known could already be a link to a file of
    the user's. The name is cut, so that it is not too long where that of `path` is not.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part{ending}")
    os.close(open_unfollowed(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return part


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; what was written there is flushed to the disk and takes the place of `path` in one step.

    The folder is made. After an error the old file is as it was and the temporary one is gone; an OSError becomes a DataError that
    names the file.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_file(path)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error, path)}); the file before it, if any, is kept") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def reason(error: OSError, path: Path) -> str:
    """Return why `path` cannot be written, with the disk where that is full."""
    text = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    disk = path.parent.resolve()
    while not os.path.ismount(disk):
        disk = disk.parent
    return f"{text}: the disk at {disk}"
