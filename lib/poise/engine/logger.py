"""Where a run writes: its folder, its log, its metrics, its TensorBoard page."""

from __future__ import annotations

import json
import logging
import logging.handlers
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from yacs.config import CfgNode

from poise.config import experiment_name
from poise.engine.distributed import is_peer_failure
from poise.engine.signals import RunStoppedError
from poise.errors import DataError, PoiseError, escape_control, single_line
from poise.io.files import atomic_write, write_error_reason
from poise.io.json_file import replace_non_finite
from poise.structures.skeleton import Skeleton

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)


def run_names(cfg: CfgNode, cfg_path: str) -> Path:
    """<dataset>/<model>/<run>, the part that run folder and TensorBoard folder share; the run:
    RUN_NAME, else the experiment's name.
    """
    dataset = cfg.DATASET.DATASET + (
        f"_{cfg.DATASET.HYBRID_JOINTS_TYPE}" if cfg.DATASET.HYBRID_JOINTS_TYPE else ""
    )
    return (
        Path(dataset.replace(":", "_"))
        / cfg.MODEL.NAME
        / (cfg.RUN_NAME or experiment_name(cfg_path))
    )


def make_run_folder(cfg: CfgNode, cfg_path: str) -> Path:
    """OUTPUT_DIR/<dataset>/<model>/<run>, made. Raises DataError where it cannot be."""
    folder = Path(cfg.OUTPUT_DIR) / run_names(cfg, cfg_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot create the run folder ({error.strerror}); set OUTPUT_DIR to a place"
            " you may write to"
        ) from None
    return folder


_QUEUE_OF_THE_BOARD = 1000  # events that wait for its disk
FILE_ONLY = {"file_only": True}  # log.info(..., extra=FILE_ONLY): not for the console


class _Printable(logging.Formatter):
    """A log line may hold names and values of a stranger's file: on a terminal, or in a log that
    is shown there, they must not steer it.
    """

    def format(self, record: logging.LogRecord) -> str:
        return escape_control(super().format(record))


def start_console(rank: int = 0) -> None:
    """Messages of poise go to stdout, and are kept for the log file that `add_file` will name.

    The run folder is made only when everything that can be wrong with the input has been looked at,
    so that a wrong path leaves nothing behind. Of several processes all but rank 0 are silent;
    their errors will be in the log file.
    """
    root = logging.getLogger("poise")
    root.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    root.propagate = False
    # stdout's reader may go away (`| head`): the run goes on, and its log file is complete
    logging.raiseExceptions = False
    for handler in list(root.handlers):
        handler.close()
        root.removeHandler(handler)
    if rank > 0:
        root.addHandler(logging.NullHandler())  # without any, Python shows errors on stderr
        return
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(_Printable("%(message)s"))
    console.addFilter(lambda record: not getattr(record, "file_only", False))
    root.addHandler(console)
    # capacity and flush level out of reach: it only waits for its target
    root.addHandler(
        logging.handlers.MemoryHandler(capacity=1 << 30, flushLevel=1 << 30, flushOnClose=False)
    )


def add_file(path: Path, rank: int = 0) -> None:
    """Write what was said so far, and all that follows, to `path` too, with times; an old file is
    continued.

    Rank 0 has made the folder before others call this.
    """
    root = logging.getLogger("poise")
    if rank > 0 and not path.parent.is_dir():  # another machine, without a disk in common
        return
    try:
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    file.setFormatter(
        _Printable(f"%(asctime)s %(levelname)s {f'rank {rank}: ' if rank else ''}%(message)s")
    )
    for handler in list(root.handlers):
        # of a file that was removed
        if isinstance(handler, logging.FileHandler) and handler.baseFilename == file.baseFilename:
            handler.close()
            root.removeHandler(handler)
        if isinstance(handler, logging.handlers.MemoryHandler):
            handler.setTarget(file)
            handler.flush()
            handler.close()
            root.removeHandler(handler)
    root.addHandler(file)


@contextmanager
def errors_in_file() -> Iterator[None]:
    """An error that ends the run, or a signal, is in its log file too."""
    try:
        yield
    except RunStoppedError as stopped:
        log.info("%s", stopped, extra=FILE_ONLY)
        raise
    except Exception as error:
        if not is_peer_failure(error):  # the process that is gone has written why, if it could
            log.error(
                "%s",
                single_line(error),
                extra=FILE_ONLY,
                exc_info=not isinstance(error, PoiseError),
            )
        raise


def log_environment(cfg: CfgNode, command: list[str]) -> None:
    """Versions, git revision, command line, seed: what is needed to run it again."""
    import torch

    log.info(
        "poise %s (git %s), torch %s, numpy %s, python %s on %s",
        package_version(),
        git_revision(),
        torch.__version__,
        np.__version__,
        platform.python_version(),
        platform.platform(),
    )
    log.info("command: %s", " ".join(command))
    log.info("seed: %d", cfg.SEED)


def progress_bar(description: str, total: int, initial: int = 0, is_main: bool = True) -> tqdm:
    """Return a progress bar of steps, which is shown on a terminal and by rank 0 alone."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit="step",
        leave=False,
        disable=None if is_main else True,
    )


def log_step(message: str, *values: Any) -> None:
    """Log a line about a step; only to the file where a terminal shows the progress bar."""
    log.info(message, *values, extra=FILE_ONLY if sys.stderr.isatty() else None)


def format_duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return (
        f"{seconds / 60:.0f} minutes"
        if seconds < 6000
        else f"{seconds / 3600:.1f} hours"
        if seconds < 360_000
        else f"{seconds / 86400:.1f} days"
    )


class MetricsFile:
    """metrics.jsonl: one JSON line per epoch. Going on from epoch e drops the lines of e and
    later, which are made again.
    """

    def __init__(self, path: Path, begin_epoch: int):
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line).get("epoch", begin_epoch) < begin_epoch:
                        kept.append(line)
                # a line that was cut off when the run was killed
                except (ValueError, AttributeError, TypeError, RecursionError):
                    continue
        with atomic_write(path) as part:
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, **values: Any) -> None:
        """One line; a figure that there is none of (NaN: no joint of that kind is labelled) is
        null.
        """
        line = json.dumps(replace_non_finite(values), allow_nan=False)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({write_error_reason(error, self.path)}); the"
                " lines before it are kept"
            ) from None


class TensorBoard:
    """A tensorboardX page in LOG_DIR/<dataset>/<model>/<run>_<time>/.

    A thread of tensorboardX's writes it. Left alone it ends where the disk is full, and whoever
    adds to its queue then waits for ever; so its first fault is kept, what follows is dropped, and
    `scalars` and `picture` raise DataError.
    """

    def __init__(self, cfg: CfgNode, cfg_path: str):
        from tensorboardX import SummaryWriter

        names = run_names(cfg, cfg_path)
        self._folder = Path(cfg.LOG_DIR) / names.with_name(
            f"{names.name}_{time.strftime('%Y-%m-%d-%H-%M-%S')}"
        )
        self._fault: Exception | None = None
        self._told = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(self._folder), max_queue=_QUEUE_OF_THE_BOARD)
        except OSError as error:
            raise DataError(
                f"{self._folder}: cannot create the TensorBoard folder ({error.strerror}); set"
                " LOG_DIR to a place you may write to"
            ) from None
        self._events = self._writer.file_writer.event_writer
        for name in ("write_event", "flush", "close"):
            setattr(
                self._events._ev_writer,
                name,
                self._keeping_fault(getattr(self._events._ev_writer, name), always=name == "close"),
            )

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Raises DataError where the page can no longer be written."""
        self._look()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """image: (H, W, 3) uint8 BGR. Raises DataError where the page can no longer be written."""
        self._look()
        self._writer.add_image(name, image[:, :, ::-1], step, dataformats="HWC")

    def batch(self, first: dict[str, Any], skeleton: Skeleton, step: int) -> None:
        """Keypoints and maps of a test's first batch: see predict.Predictions. Raises DataError
        where the page can no longer be written.
        """
        from poise.visualization import draw

        self.picture(
            "predictions",
            draw.make_crop_grid(first["crops"], first["joints"], first["shown"], skeleton),
            step,
        )
        self.picture(
            first["representation"],
            draw.make_heatmap_grid(first["crops"][: len(first["maps"])], first["maps"]),
            step,
        )

    def close(self) -> None:
        """What is still to be written is. Where it cannot be that is only said: the run is over."""
        if self._events._worker.is_alive():
            self._writer.close()
        if self._fault and not self._told:
            log.warning("%s", self._said())

    def _keeping_fault(self, call: Callable[..., Any], always: bool) -> Callable[..., Any]:
        def kept(*arguments: Any) -> Any:
            if always or self._fault is None:
                try:
                    return call(*arguments)
                except Exception as error:
                    self._fault = self._fault or error

        return kept

    def _look(self) -> None:
        if self._fault is None and not self._events._worker.is_alive():
            self._fault = RuntimeError("its writer thread has ended")
        if self._fault:
            self._told = True
            raise DataError(self._said())

    def _said(self) -> str:
        return (
            f"{self._folder}: the TensorBoard page cannot be written"
            f" ({getattr(self._fault, 'strerror', None) or self._fault}); free disk space, or set"
            " LOG_DIR to another place"
        )


@cache
def git_revision() -> str:
    """What git describes the checkout as; 'unknown' outside of one."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def package_version() -> str:
    """Return the version of the installed package; 'unknown' in a checkout that is not
    installed.
    """
    try:
        return metadata.version("poise")
    except metadata.PackageNotFoundError:
        return "unknown"
