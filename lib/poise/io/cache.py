"""Arrays that were read from a large annotation or detection file, kept on the disk, so that the
next run need not read the file again.

They lie in $XDG_CACHE_HOME/poise, or ~/.cache/poise, one file for each source. A file is used only
where its source still has the path, size and times that it had, and where the code that reads such
files is the same; damage shows in the sums of the ZIP format that .npz files have. Whatever is
wrong with a file, the source is read. Everything there may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from poise.errors import DataError
from poise.io.files import atomic_write

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
MIN_BYTES = 1 << 22  # smaller sources are read in a tenth of a second
MAX_FILES = 16  # the least recently used ones go; train2017's takes 40 MB
_HEADER = "header"


def cache_folder() -> Path:
    """Where the files lie. Raises RuntimeError where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "poise"


def cached(
    path: Path, kind: str, read: Callable[[], Arrays | None], wanted: bool = True
) -> Arrays | None:
    """What `read` gives for the file `path`: from the cache if its source is unchanged, else read,
    and kept unless it is None.

    kind: which of a source's contents it is, and what besides the source decides them. read: a
    function, or a partial of one. wanted: DATASET.CACHE; False neither reads nor writes the cache.
    Errors of `read` pass.
    """
    source = _state(path, kind) if wanted else None
    if source is None or source["size"] < MIN_BYTES:
        return read()
    try:
        mark = hashlib.sha256(
            f"{source['path']} {kind}".encode("utf-8", "surrogateescape")
        ).hexdigest()
        file = cache_folder() / f"{path.stem}-{mark[:16]}.npz"
    except RuntimeError:
        return read()
    arrays = _load(file, source)
    if arrays is not None:
        log.info("%s", f"{path}: unchanged since it was last read, taken from {file}")
        return arrays
    arrays = read()
    # a file that was being written is not remembered
    if arrays is not None and _state(path, kind) == source:
        _save(file, source, arrays)
    return arrays


def _state(path: Path, kind: str) -> dict | None:
    """What must be equal for the cache to hold; None where the source cannot be looked at, which
    its reader will tell.
    """
    try:
        size, time, changed = stat_key(path)
        where = str(Path(path).resolve())
    except (OSError, ValueError, RuntimeError):
        return None
    return {
        "path": where,
        "kind": kind,
        "size": size,
        "time": time,
        "changed": changed,
        "code": _code_sum(),
    }


def stat_key(path: str | Path) -> tuple[int, int, int]:
    """Bytes, and when the content and the file were last changed, in nanoseconds: equal as long
    as a file has not been touched. Raises OSError.
    """
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@cache
def _code_sum() -> int:
    """Of all that has a part in reading annotations: code that was changed may give other
    arrays.
    """
    package = Path(__file__).parents[1]
    files = [
        *sorted((package / "datasets").glob("*.py")),
        *sorted((package / "structures").glob("*.py")),
        package / "io" / "json_file.py",
        package / "config" / "datasets.py",
        package / "datasets" / "validation" / "columns.py",
    ]
    try:
        return zlib.crc32(b"".join(file.read_bytes() for file in files))
    except OSError:  # a package in an archive
        return 0


def _load(file: Path, source: dict) -> Arrays | None:
    try:
        with warnings.catch_warnings(), np.load(file, allow_pickle=False) as content:
            # NumPy's, of headers that it takes for those of Python 2
            warnings.simplefilter("ignore")
            if json.loads(content[_HEADER].tobytes()) != source:
                return None
            arrays = {name: content[name] for name in content.files if name != _HEADER}
        # a member that is no array comes back as its bytes
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            return None
        with contextlib.suppress(OSError):  # of a cache that another user filled
            os.utime(file)
        return arrays
    # NumPy, zlib and Python's own parser, which NumPy reads an array's header with, have a dozen
    # kinds between them
    except Exception:
        return None


def _save(file: Path, source: dict, arrays: Arrays) -> None:
    try:
        with atomic_write(file) as part, open(part, "wb") as stream:
            np.savez(
                stream, **{_HEADER: np.frombuffer(json.dumps(source).encode(), np.uint8)}, **arrays
            )
        kept = sorted(file.parent.glob("*.npz"), key=lambda other: other.stat().st_mtime_ns)
        for old in kept[:-MAX_FILES]:
            old.unlink()
    # a home that cannot be written; another run that cleans up too
    except (DataError, OSError) as error:
        log.debug("%s", f"nothing is kept for the next start ({error})")
