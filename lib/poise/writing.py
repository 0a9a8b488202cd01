"""Files that appear whole or not at all."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; what was written there is flushed to the disk and takes the place of `path` in one step.

    The folder is made. After an error the old file is as it was and the temporary one is gone; an OSError becomes a DataError that
    names the file. (torch reports a full disk as a RuntimeError: see engine/checkpoint.py.)
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); the file before it, if any, is kept") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:     # the folder could not be made, so there is nothing in it
            pass
