"""Measure memory, and report a lack of memory, file descriptors or workers in one line."""

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

_MAX_REASON_LENGTH = 200  # characters
_DEAD_WORKER = re.compile(r"DataLoader worker .* (is killed by signal|exited unexpectedly)")
_CRASHED_WORKER = re.compile(r"is killed by signal: (?!Killed)|with exit code")
_FULL_SHARED_MEMORY = re.compile(
    r"is killed by signal: Bus error|</torch_\w+>.*No space left on device"
)


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes: of the GPU, or of this process on the CPU.

    Returns None if the system does not support it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def resource_errors(
    task: str, memory_hint: str, progress: Progress | None = None, resume_hint: str = ""
) -> Iterator[None]:
    """Turn errors of the machine into a PoiseError; stop the loaders' workers in any case.

    Args:
        task: such as 'training', for the message.
        memory_hint: how to use less memory.
        progress: names the last checkpoint.
        resume_hint: how to resume from it.
    """
    try:
        yield
    except PoiseError:
        raise
    except Exception as error:
        message = _resource_message(error, task, memory_hint)
        if not message:
            raise
        if progress is not None:
            message += _checkpoint_text(progress.last_checkpoint, resume_hint)
        raise PoiseError(message) from None
    finally:
        close_loaders()


def training_memory_hint(cfg: CfgNode) -> str:
    """Name the keys that the memory of a training depends on."""
    width, height = cfg.MODEL.IMAGE_SIZE
    amp = "" if cfg.AMP else ", or set AMP bf16"
    return (
        f"lower TRAIN.BATCH_SIZE_PER_GPU ({cfg.TRAIN.BATCH_SIZE_PER_GPU}) "
        f"and raise TRAIN.ACCUMULATE ({cfg.TRAIN.ACCUMULATE}) by the same factor, "
        f"lower TEST.BATCH_SIZE_PER_GPU ({cfg.TEST.BATCH_SIZE_PER_GPU}) "
        f"or MODEL.IMAGE_SIZE ({width} x {height}){amp}"
    )


def testing_memory_hint(cfg: CfgNode) -> str:
    """Name the keys that the memory of a test depends on."""
    width, height = cfg.MODEL.IMAGE_SIZE
    amp = "" if cfg.AMP else " or set AMP bf16"
    return (
        f"lower TEST.BATCH_SIZE_PER_GPU ({cfg.TEST.BATCH_SIZE_PER_GPU}){amp}; "
        f"a smaller MODEL.IMAGE_SIZE ({width} x {height}) needs weights of that size"
    )


def _resource_message(error: BaseException, task: str, memory_hint: str) -> str:
    """Return what the machine lacks and what to do, or '' for any other error.

    PyTorch reports a killed worker from a signal handler. In the loader the report is the cause of
    another error.
    """
    causes = [error, error.__cause__] if error.__cause__ else [error]
    text = " ".join(single_line(cause) for cause in causes)
    if _FULL_SHARED_MEMORY.search(text):
        return (
            "/dev/shm is full: start the container with --shm-size, "
            "or lower WORKERS or the batch size"
        )
    if _DEAD_WORKER.search(text) and not _CRASHED_WORKER.search(text):
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
    reason = single_line(str(error).partition("\n")[0].split(": ", 1)[-1])[:_MAX_REASON_LENGTH]
    reason = reason or type(error).__name__
    return f"the {task} does not fit into the memory ({reason}): {memory_hint}"


def _checkpoint_text(path: Path | None, resume_hint: str) -> str:
    if path is None:
        return "; no checkpoint was written yet"
    return f"; the last checkpoint is {path}; {resume_hint}"
