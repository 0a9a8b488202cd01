"""Choose and lock the folder of a run.

A run never replaces the results of another one: if its folder has results that it does not resume,
it uses the first free folder of NAME-2, NAME-3, ...
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from yacs.config import CfgNode

from poise.engine import logger
from poise.errors import ConfigError, DataError, escape_name

log = logging.getLogger(__name__)

NAME = "run.lock"
# result files; empty ones do not count
TRAINING = ("checkpoint*.pth*", "model_best*.pth", "final_state*.pth", "metrics.jsonl")
SEARCH = ("search.pth", "search.jsonl", "genotype_best.json")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of some network file systems


class Lock:
    """A lock on one folder, until `release` or the end of the process.

    It is a lock of the operating system (flock, also over NFS), so a killed run leaves none behind.
    The lock file names the process. Forked processes do not inherit the lock.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._lock: FileLock | None = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, folder: Path) -> None:
        """Lock an existing folder. Raises ConfigError if another process has locked it."""
        file = folder / NAME
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
            file.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        except Timeout:
            raise ConfigError(
                f"{folder}: in use by {_holder(file)}; wait until it ends, or set another RUN_NAME"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                lock.release(force=True)
                raise DataError(
                    f"{file}: cannot be written ({error.strerror or error}); set "
                    "OUTPUT_DIR to a place you may write to"
                ) from None
            log.warning(
                "%s: the file system has no locks; make sure that no other run uses this folder",
                folder,
            )
        self.folder, self._lock = folder, lock

    def release(self) -> None:
        """Unlock the folder, if one is locked."""
        if self._lock is not None and self.folder is not None:
            if self._lock.is_locked:
                # before the unlocking: a process that waited for this file sees that it is gone
                with suppress(OSError):  # Windows cannot remove a file that is open
                    (self.folder / NAME).unlink()
            self._lock.release(force=True)
        self.folder = self._lock = None


def _holder(file: Path) -> str:
    """Describe the process that wrote a lock file."""
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            pid, host = stream.read(300).split()
    except (OSError, ValueError):  # about to be written, or removed
        return "another process"
    return f"process {escape_name(pid, 20)} on {escape_name(host, 100)}"


def has_results(folder: Path, results: Sequence[str]) -> bool:
    """Return whether a folder has files of these patterns that are not empty."""
    return any(
        path.exists() and path.stat().st_size
        for pattern in results
        for path in folder.glob(pattern)
    )


def choose_run_name(
    cfg: CfgNode, cfg_path: str, results: Sequence[str], resumes: Callable[[Path], bool], lock: Lock
) -> str:
    """Choose the RUN_NAME of a run; lock its folder if it exists.

    Args:
        cfg: the experiment.
        cfg_path: its file.
        results: patterns of result files.
        resumes: returns whether the run resumes the results in a folder.
        lock: for the folder.

    Raises ConfigError for a folder in use.
    """
    first = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not os.path.isdir(folder):  # not Path.is_dir, which raises for a name that is too long
            break
        lock.take(folder)
        if not has_results(folder, results) or resumes(folder):
            break
        lock.release()
    if folder == first:
        return cfg.RUN_NAME
    log.info(
        "%s has the results of another run, which are kept: this run has RUN_NAME %s",
        first,
        folder.name,
    )
    return folder.name


def with_run_name(cfg: CfgNode, name: str) -> CfgNode:
    """Return a copy of `cfg` with a RUN_NAME."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.RUN_NAME = name
    cfg.freeze()
    return cfg


def create(cfg: CfgNode, cfg_path: str, results: Sequence[str], lock: Lock) -> Path:
    """Create and lock the chosen folder. Raises ConfigError if another run was faster."""
    folder = logger.make_run_folder(cfg, cfg_path)
    if lock.folder != folder:
        lock.take(folder)
        if has_results(folder, results):
            raise ConfigError(
                f"{folder}: another run has used it in the meantime; start this run again"
            )
    return folder


def resume_hint(run_name: str) -> str:
    """Return how to resume a run, for the message that ends it."""
    name = f" RUN_NAME {run_name}" if run_name else ""
    return f"resume with the same command and AUTO_RESUME True{name}"
