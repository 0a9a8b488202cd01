"""Run folder, log, metrics.jsonl and TensorBoard of a run."""

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
    """Return <dataset>/<model>/<run>, which the run folder and the TensorBoard folder share.

    The run is RUN_NAME or the name of the experiment.
    """
    dataset = cfg.DATASET.DATASET
    if cfg.DATASET.HYBRID_JOINTS_TYPE:
        dataset += f"_{cfg.DATASET.HYBRID_JOINTS_TYPE}"
    run = cfg.RUN_NAME or experiment_name(cfg_path)
    return Path(dataset.replace(":", "_")) / cfg.MODEL.NAME / run


def make_run_folder(cfg: CfgNode, cfg_path: str) -> Path:
    """Create and return the run folder, OUTPUT_DIR/<dataset>/<model>/<run>."""
    folder = Path(cfg.OUTPUT_DIR) / run_names(cfg, cfg_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot create the run folder ({error.strerror}); set OUTPUT_DIR to a place"
            " you may write to"
        ) from None
    return folder


_TENSORBOARD_QUEUE = 1000  # events that wait to be written
FILE_ONLY = {"file_only": True}  # log.info(..., extra=FILE_ONLY): not on the console


class _SafeFormatter(logging.Formatter):
    """Escape control characters, which names in untrusted files may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control(super().format(record))


def start_console(rank: int = 0) -> None:
    """Log to stdout, and buffer the messages for the log file that `add_file` opens later.

    The run folder is created after the input was checked, so that invalid input leaves no files
    behind. Ranks above 0 are silent; their errors will be in the log file.
    """
    root = logging.getLogger("poise")
    root.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    root.propagate = False
    # the reader of stdout may exit (`| head`): the run continues, with a complete log file
    logging.raiseExceptions = False
    for handler in list(root.handlers):
        handler.close()
        root.removeHandler(handler)
    if rank > 0:
        root.addHandler(logging.NullHandler())  # without a handler, Python prints errors to stderr
        return
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(_SafeFormatter("%(message)s"))
    console.addFilter(lambda record: not getattr(record, "file_only", False))
    root.addHandler(console)
    # capacity and flush level are never reached: it only waits for its target
    root.addHandler(
        logging.handlers.MemoryHandler(capacity=1 << 30, flushLevel=1 << 30, flushOnClose=False)
    )


def add_file(path: Path, rank: int = 0) -> None:
    """Also write all messages, the buffered ones first, to a file; append to an old file.

    Rank 0 has created the folder before the others call this.
    """
    root = logging.getLogger("poise")
    if rank > 0 and not path.parent.is_dir():  # another machine without a shared disk
        return
    try:
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    prefix = f"rank {rank}: " if rank else ""
    file.setFormatter(_SafeFormatter(f"%(asctime)s %(levelname)s {prefix}%(message)s"))
    for handler in list(root.handlers):
        # the file was removed during the run
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
    """Log an error or a signal that ends the run to the log file too."""
    try:
        yield
    except RunStoppedError as stopped:
        log.info("%s", stopped, extra=FILE_ONLY)
        raise
    except Exception as error:
        if not is_peer_failure(error):  # the failed process logs the reason itself
            log.error(
                "%s",
                single_line(error),
                extra=FILE_ONLY,
                exc_info=not isinstance(error, PoiseError),
            )
        raise


def log_environment(cfg: CfgNode, command: list[str]) -> None:
    """Log versions, git revision, command line and seed."""
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
    """Format a duration, such as '5 minutes'."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    if seconds < 6000:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 360_000:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:.1f} days"


class MetricsFile:
    """metrics.jsonl: one JSON line per epoch.

    A run that resumes at `begin_epoch` drops the lines of this epoch and later ones.
    """

    def __init__(self, path: Path, begin_epoch: int):
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line).get("epoch", begin_epoch) < begin_epoch:
                        kept.append(line)
                # a line that is truncated because the run was killed
                except (ValueError, AttributeError, TypeError, RecursionError):
                    continue
        with atomic_write(path) as part:
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Write a line; NaN (no labeled keypoint of that kind) becomes null."""
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
    """TensorBoard events in LOG_DIR/<dataset>/<model>/<run>_<time>/, written by tensorboardX.

    The writer thread of tensorboardX dies when the disk is full, and the producer then blocks. So
    the thread's calls are wrapped: the first error is stored, later events are dropped, and the
    methods raise DataError.
    """

    def __init__(self, cfg: CfgNode, cfg_path: str):
        from tensorboardX import SummaryWriter

        names = run_names(cfg, cfg_path)
        self._folder = Path(cfg.LOG_DIR) / names.with_name(
            f"{names.name}_{time.strftime('%Y-%m-%d-%H-%M-%S')}"
        )
        self._error: Exception | None = None
        self._is_reported = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(self._folder), max_queue=_TENSORBOARD_QUEUE)
        except OSError as error:
            raise DataError(
                f"{self._folder}: cannot create the TensorBoard folder ({error.strerror}); set"
                " LOG_DIR to a place you may write to"
            ) from None
        self._events = self._writer.file_writer.event_writer
        # private attributes: tensorboardX has no other access to its thread
        writer = self._events._ev_writer
        for name in ("write_event", "flush", "close"):
            call = self._capture_error(getattr(writer, name), always=name == "close")
            setattr(writer, name, call)

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Add scalars. Raises DataError if the events cannot be written."""
        self._raise_error()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a BGR image (H, W, 3) uint8. Raises DataError if the events cannot be written."""
        self._raise_error()
        self._writer.add_image(name, image[:, :, ::-1], step, dataformats="HWC")

    def add_batch(self, first: dict[str, Any], skeleton: Skeleton, step: int) -> None:
        """Add keypoints and heatmaps of the first test batch, see Predictions.first_batch."""
        from poise.visualization import draw

        self.add_image(
            "predictions",
            draw.make_crop_grid(first["crops"], first["joints"], first["shown"], skeleton),
            step,
        )
        self.add_image(
            first["representation"],
            draw.make_heatmap_grid(first["crops"][: len(first["maps"])], first["maps"]),
            step,
        )

    def close(self) -> None:
        """Write the remaining events; only log an error, as the run is over."""
        if self._events._worker.is_alive():
            self._writer.close()
        if self._error and not self._is_reported:
            log.warning("%s", self._message())

    def _capture_error(self, call: Callable[..., Any], always: bool) -> Callable[..., Any]:
        """Wrap a call of the writer thread: store its first error and then skip it."""

        def wrapped(*arguments: Any) -> Any:
            if self._error is not None and not always:
                return None
            try:
                return call(*arguments)
            except Exception as error:
                self._error = self._error or error
                return None

        return wrapped

    def _raise_error(self) -> None:
        if self._error is None and not self._events._worker.is_alive():
            self._error = RuntimeError("its writer thread has ended")
        if self._error:
            self._is_reported = True
            raise DataError(self._message())

    def _message(self) -> str:
        return (
            f"{self._folder}: the TensorBoard page cannot be written"
            f" ({getattr(self._error, 'strerror', None) or self._error}); free disk space, or set"
            " LOG_DIR to another place"
        )


@cache
def git_revision() -> str:
    """Return the git revision of the checkout; 'unknown' without one."""
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
    """Return the version of the installed package; 'unknown' if it is not installed."""
    try:
        return metadata.version("poise")
    except metadata.PackageNotFoundError:
        return "unknown"
