"""How much memory a run takes, and what is said when the machine runs out of it."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from yacs.config import CfgNode

from poise.datasets.loader import close_loaders
from poise.errors import PoiseError, is_out_of_memory, single_line

if TYPE_CHECKING:
    from poise.engine.state import Progress

_MOST_OF_A_REASON = 200  # characters
_DEAD_WORKER = re.compile(r"DataLoader worker .* (is killed by signal|exited unexpectedly)")
_FAULT_OF_A_WORKER = re.compile(r"is killed by signal: (?!Killed)|with exit code")
_FULL_SHARED_MEMORY = re.compile(
    r"is killed by signal: Bus error|</torch_\w+>.*No space left on device"
)


def peak_memory(device: torch.device) -> int | None:
    """Return the bytes at the peak so far, None where the system does not tell.

    They are those reserved on the GPU, or those of this process on the CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@contextmanager
def resource_errors(
    what: str, advice: str, progress: Progress | None = None, resume: str = ""
) -> Iterator[None]:
    """End the loaders' workers on every way out; raise a PoiseError for what the machine lacks.

    what: 'training', in the message. advice: what to do where memory does not suffice. progress:
    its last checkpoint is named, and `resume` says how to resume from it.
    """
    try:
        yield
    except PoiseError:
        raise
    except Exception as error:
        lack = _lack(error, what, advice)
        if not lack:
            raise
        if progress is not None:
            lack += _last_checkpoint(progress.last_checkpoint, resume)
        raise PoiseError(lack) from None
    finally:
        close_loaders()


def training_memory_hint(cfg: CfgNode) -> str:
    """Name the keys that a training's memory depends on."""
    width, height = cfg.MODEL.IMAGE_SIZE
    amp = "" if cfg.AMP else ", or set AMP bf16"
    return (
        f"lower TRAIN.BATCH_SIZE_PER_GPU ({cfg.TRAIN.BATCH_SIZE_PER_GPU}) "
        f"and raise TRAIN.ACCUMULATE ({cfg.TRAIN.ACCUMULATE}) by the same factor, "
        f"lower TEST.BATCH_SIZE_PER_GPU ({cfg.TEST.BATCH_SIZE_PER_GPU}) "
        f"or MODEL.IMAGE_SIZE ({width} x {height}){amp}"
    )


def testing_memory_hint(cfg: CfgNode) -> str:
    """Name the keys that a test's memory depends on; nothing is accumulated in it."""
    width, height = cfg.MODEL.IMAGE_SIZE
    amp = "" if cfg.AMP else " or set AMP bf16"
    return (
        f"lower TEST.BATCH_SIZE_PER_GPU ({cfg.TEST.BATCH_SIZE_PER_GPU}){amp}; "
        f"a smaller MODEL.IMAGE_SIZE ({width} x {height}) needs weights of that size"
    )


def _lack(error: BaseException, what: str, advice: str) -> str:
    """Return what the machine lacks and what to do, or '' for any other error.

    PyTorch reports a killed worker wherever the main process is. In its loader the report becomes
    the cause of another one.
    """
    causes = [error] + [error.__cause__] * (error.__cause__ is not None)
    text = " ".join(single_line(cause) for cause in causes)
    if _FULL_SHARED_MEMORY.search(text):
        return (
            "/dev/shm is full: start the container with --shm-size, "
            "or lower WORKERS or the batch size"
        )
    if _DEAD_WORKER.search(text) and not _FAULT_OF_A_WORKER.search(text):
        return "a data loader worker was killed, probably out of memory: lower WORKERS"
    if (
        getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)
        or "Too many open files" in text
    ):
        return "too many open files: raise the limit (ulimit -n), or lower WORKERS"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "there is no memory for another process: lower WORKERS"
    if not is_out_of_memory(error):
        return ""
    if "DataLoader worker" in text:
        return "a data loader worker ran out of memory: lower WORKERS"
    reason = single_line(str(error).partition("\n")[0].split(": ", 1)[-1])[:_MOST_OF_A_REASON]
    return f"the {what} does not fit into the memory ({reason or type(error).__name__}): {advice}"


def _last_checkpoint(path: Path | None, resume: str) -> str:
    if path is None:
        return "; no checkpoint was written yet"
    return f"; the last checkpoint is {path}; {resume}"
