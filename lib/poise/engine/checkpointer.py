"""Write the checkpoints of a run, and stop it with one after a signal or an error."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

from torch import nn
from yacs.config import CfgNode

from poise.config import experiment_name
from poise.engine import checkpoint, run_folder
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext
from poise.engine.run_logger import RunLogger
from poise.engine.signals import GracefulStop, RunStoppedError
from poise.engine.state import Progress
from poise.errors import DataError

log = logging.getLogger(__name__)


class RunState(Protocol):
    """State of a training or a search."""

    @property
    def progress(self) -> Progress: ...

    def write_checkpoint(self, folder: Path, cfg: CfgNode, cfg_path: str) -> Path: ...


class Checkpointer:
    """Save the state of a run on rank 0, and stop the run.

    Args:
        cfg: the experiment.
        cfg_path: its file.
        run_logger: has the run folder and the error of optional output, if any.
        stop: knows whether a signal came.
    """

    def __init__(
        self,
        cfg: CfgNode,
        cfg_path: str,
        run_logger: RunLogger,
        stop: GracefulStop,
        processes: DistributedContext = SINGLE_PROCESS,
    ):
        self._cfg = cfg
        self._cfg_path = cfg_path
        self._run_logger = run_logger
        self._stop = stop
        self._processes = processes
        self._saved_at = time.monotonic()

    def stop_requested(self) -> bool:
        """Return whether this process has to stop: after a signal, or if writing output failed."""
        return self._stop.stop_requested or self._run_logger.error is not None

    def is_due(self) -> bool:
        """Return, on rank 0, whether the last checkpoint is TRAIN.CHECKPOINT_MINUTES old."""
        age = time.monotonic() - self._saved_at
        return (
            self._processes.is_main_process and 0 < 60 * self._cfg.TRAIN.CHECKPOINT_MINUTES <= age
        )

    def save(self, state: RunState) -> None:
        """Write a checkpoint. All processes wait for it: if one exits, torchrun ends rank 0."""
        state.progress.last_checkpoint = self._processes.run_on_main(self._write, state)
        self._saved_at = time.monotonic()

    def _write(self, state: RunState) -> Path:
        self._run_logger.restore_folder()
        return state.write_checkpoint(self._run_logger.folder, self._cfg, self._cfg_path)

    def save_weights(self, file: str, network: nn.Module) -> None:
        """Write the weights of a network to the run folder, on rank 0."""
        if self._processes.is_main_process:
            weights = checkpoint.model_state_dict(
                self._cfg, network, experiment_name(self._cfg_path)
            )
            checkpoint.save(self._run_logger.folder / file, weights)

    def save_and_stop(self, state: RunState) -> NoReturn:
        """Write a checkpoint and raise RunStoppedError, or the error of writing output."""
        self.save(state)
        self.raise_output_error(state)
        progress = state.progress
        raise RunStoppedError(
            f"stopped at epoch {progress.epoch}, step {progress.step};"
            f" {progress.last_checkpoint} is written; {run_folder.resume_hint(self._cfg.RUN_NAME)}"
        )

    @contextmanager
    def stop_on_interrupt(self, state: RunState) -> Iterator[None]:
        """Save and stop if an evaluation within is interrupted, see `predict`."""
        try:
            yield
        except KeyboardInterrupt:
            self.save_and_stop(state)

    def raise_output_error(self, state: RunState) -> None:
        """Raise the error of optional output on rank 0, if any, in all processes.

        Call it after `save`.
        """
        error = self._processes.run_on_main(self._error_text)
        if error:
            raise DataError(
                f"{error}; {state.progress.last_checkpoint} is written;"
                f" {run_folder.resume_hint(self._cfg.RUN_NAME)}"
            )

    def _error_text(self) -> str:
        return str(self._run_logger.error) if self._run_logger.error else ""
