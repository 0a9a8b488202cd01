"""Cache of the arrays that are read from large annotation and detection files.

The cache is $XDG_CACHE_HOME/poise or ~/.cache/poise, with one .npz file per source. A file is used
if its source has the same path, size and times and the reading code is the same; damage shows in
the checksums of .npz files. If anything is wrong with a cache file, the source is read. Everything
in the folder may be deleted at any time.
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
from typing import Any, TypeVar, cast

import numpy as np

from poise.errors import DataError
from poise.io.files import atomic_write

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
OptionalArrays = TypeVar("OptionalArrays", bound="Arrays | None")
MIN_BYTES = 1 << 22  # smaller sources are read in a tenth of a second
MAX_FILES = 16  # the least recently used ones are removed; train2017's takes 40 MB
_HEADER = "header"


def cached(
    path: Path, kind: str, read: Callable[[], OptionalArrays], enabled: bool = True
) -> OptionalArrays:
    """Return what `read` returns for the file `path`, from the cache if the file is unchanged.

    Args:
        path: the source that `read` reads.
        kind: which content of the source it is, with everything else that it depends on.
        read: reads the source; its errors are raised, and None is not cached.
        enabled: DATASET.CACHE; False neither reads nor writes the cache.
    """
    source = _source_state(path, kind) if enabled else None
    if source is None or source["size"] < MIN_BYTES:
        return read()
    try:
        key = hashlib.sha256(f"{source['path']} {kind}".encode("utf-8", "surrogateescape"))
        file = cache_folder() / f"{path.stem}-{key.hexdigest()[:16]}.npz"
    except RuntimeError:
        return read()
    stored = _load(file, source)
    if stored is not None:
        log.info("%s", f"{path}: unchanged since it was last read, taken from {file}")
        return cast(OptionalArrays, stored)
    arrays = read()
    # a file that changed while it was read is not cached
    if arrays is not None and _source_state(path, kind) == source:
        _save(file, source, arrays)
    return arrays


def cache_folder() -> Path:
    """Return the folder of the cache. Raises RuntimeError if the user has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "poise"


def stat_key(path: str | Path) -> tuple[int, int, int]:
    """Return size, and times of the last change of content and file in ns. Raises OSError.

    They are equal as long as a file has not been touched.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _source_state(path: Path, kind: str) -> dict[str, Any] | None:
    """Return what must be equal for the cache to be valid; None if `path` cannot be examined.

    In that case `read` raises the error.
    """
    try:
        size, time, changed = stat_key(path)
        resolved = str(Path(path).resolve())
    except (OSError, ValueError, RuntimeError):
        return None
    return {
        "path": resolved,
        "kind": kind,
        "size": size,
        "time": time,
        "changed": changed,
        "code": _code_hash(),
    }


@cache
def _code_hash() -> int:
    """Return a checksum of the code that reads annotations: changed code may give other arrays."""
    package = Path(__file__).parents[1]
    files = [
        *sorted((package / "datasets").glob("*.py")),
        *sorted((package / "structures").glob("*.py")),
        package / "io" / "json_file.py",
        package / "config" / "datasets.py",
        package / "config" / "dataset_yaml.py",
        package / "datasets" / "validation" / "columns.py",
    ]
    try:
        return zlib.crc32(b"".join(file.read_bytes() for file in files))
    except OSError:  # a package in an archive
        return 0


def _load(file: Path, source: dict[str, Any]) -> Arrays | None:
    try:
        with warnings.catch_warnings(), np.load(file, allow_pickle=False) as content:
            # NumPy warns of headers that look like those of Python 2
            warnings.simplefilter("ignore")
            if json.loads(content[_HEADER].tobytes()) != source:
                return None
            arrays = {name: content[name] for name in content.files if name != _HEADER}
        # a member that is not an array is returned as bytes
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            return None
        with contextlib.suppress(OSError):  # of a cache that another user filled
            os.utime(file)
        return arrays
    # NumPy, zlib and Python's parser of array headers raise a dozen classes of errors
    except Exception:
        return None


def _save(file: Path, source: dict[str, Any], arrays: Arrays) -> None:
    header = np.frombuffer(json.dumps(source).encode(), np.uint8)
    try:
        with atomic_write(file) as part, open(part, "wb") as stream:
            np.savez(stream, **{_HEADER: header, **arrays})  # type: ignore[arg-type]
        files = sorted(file.parent.glob("*.npz"), key=lambda other: other.stat().st_mtime_ns)
        for old in files[:-MAX_FILES]:
            old.unlink()
    # a home folder that is not writable, or another run that cleans up too
    except (DataError, OSError) as error:
        log.debug("%s", f"the cache is not written ({error})")
