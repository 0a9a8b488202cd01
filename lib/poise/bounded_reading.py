"""The bytes of a file from outside: of a regular file, of no more than can be meant, each fault told in one line."""
from __future__ import annotations

import os
import stat
from pathlib import Path

from poise.errors import DataError, PoiseError

_LITTLE = 1 << 27       # bytes that a process may be trusted to have


def read_bytes(path: str | Path, what: str, most: int, mend: str = "", error: type[PoiseError] = DataError) -> bytes:
    """The content of a file of at most `most` bytes. Links are followed; what they lead to must be a file, not a device, a pipe or a folder.

    `what` and `mend` go into the `error` that is raised where it cannot be read.
    """
    advice = f"; {mend}" if mend else ""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):      # reading one may wait, or go on, for ever
            raise error(f"{path}: cannot read the {what} (it is a device or a pipe, not a file){advice}")
        if found.st_size > most:
            raise error(f"{path}: the {what} has {in_words(found.st_size)}, more than the {in_words(most)} that are read{advice}")
        check_memory(path, what, found.st_size, error)
        # unbuffered, for one read gives all of it, but where a network disk has given less, which is read again by a buffer's way
        with open(path, "rb", buffering=0) as file:
            data = file.read(min(found.st_size, most - 1) + 1)
        if len(data) == found.st_size:
            return data
        with open(path, "rb") as file:
            return file.read(most)
    except (OSError, ValueError) as fault:      # ValueError: a NUL in the name
        raise error(f"{path}: cannot read the {what} ({getattr(fault, 'strerror', None) or fault}){advice}") from None
    except MemoryError:
        raise error(f"{path}: cannot read the {what}, there is no memory for its {in_words(found.st_size)}") from None


def check_memory(path: str | Path, what: str, needed: int, error: type[PoiseError] = DataError) -> None:
    """Raise `error` where a file needs more memory than there is: the system would end the process without a word, and perhaps others."""
    if needed < _LITTLE:
        return
    present = memory_present()
    if present is not None and needed > present:
        raise error(f"{path}: reading the {what} takes about {in_words(needed)} of memory, and {in_words(present)} are free")


def memory_present() -> int | None:
    """Free bytes for a process on the CPU; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def in_words(size: float) -> str:
    """A number of bytes for people: '17.0 MB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"
