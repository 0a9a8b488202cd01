"""Write a run's checkpoints, and end the run with one when a signal or an error asks for that."""

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
    """State of a training or a search that can be saved."""

    @property
    def progress(self) -> Progress: ...

    def write_checkpoint(self, folder: Path, cfg: CfgNode, cfg_path: str) -> Path: ...


class Checkpointer:
    """Saves a run's state to its folder, by rank 0, and stops the run."""

    def __init__(
        self,
        cfg: CfgNode,
        cfg_path: str,
        records: RunLogger,
        interrupt: GracefulStop,
        processes: DistributedContext = SINGLE_PROCESS,
    ):
        self._cfg, self._cfg_path = cfg, cfg_path
        self._records, self._interrupt, self._processes = records, interrupt, processes
        self._saved_at = time.monotonic()

    def stop_requested(self) -> bool:
        """Whether this process was asked to stop: by a signal, or by output that failed."""
        return self._interrupt.asked or self._records.error is not None

    def is_due(self) -> bool:
        """Whether the last checkpoint is TRAIN.CHECKPOINT_MINUTES old, on rank 0."""
        age = time.monotonic() - self._saved_at
        return (
            self._processes.is_main_process and 0 < 60 * self._cfg.TRAIN.CHECKPOINT_MINUTES <= age
        )

    def save(self, state: RunState) -> None:
        """Write a checkpoint. All processes wait for it.

        torchrun ends rank 0 when another process ends meanwhile.
        """
        state.progress.last_checkpoint = self._processes.run_on_main(self._write, state)
        self._saved_at = time.monotonic()

    def _write(self, state: RunState) -> Path:
        self._records.restore_folder()
        return state.write_checkpoint(self._records.folder, self._cfg, self._cfg_path)

    def save_weights(self, file: str, network: nn.Module) -> None:
        """Write the weights of a network to a file of the run folder, by rank 0."""
        if self._processes.is_main_process:
            weights = checkpoint.model_state_dict(
                self._cfg, network, experiment_name(self._cfg_path)
            )
            checkpoint.save(self._records.folder / file, weights)

    def save_and_stop(self, state: RunState) -> NoReturn:
        """Write a checkpoint and raise RunStoppedError, or the error of output that failed."""
        self.save(state)
        self.raise_output_error(state)
        progress = state.progress
        raise RunStoppedError(
            f"stopped at epoch {progress.epoch}, step {progress.step};"
            f" {progress.last_checkpoint} is written, {run_folder.resume_hint(self._cfg.RUN_NAME)}"
        )

    @contextmanager
    def stop_on_interrupt(self, state: RunState) -> Iterator[None]:
        """Save and stop where a test ends early because `stop_requested`."""
        try:
            yield
        except KeyboardInterrupt:
            self.save_and_stop(state)

    def raise_output_error(self, state: RunState) -> None:
        """Raise rank 0's error of optional output, if any, in all processes, after a checkpoint."""
        error = self._processes.run_on_main(self._error_text)
        if error:
            raise DataError(
                f"{error}; {state.progress.last_checkpoint} is written,"
                f" {run_folder.resume_hint(self._cfg.RUN_NAME)}"
            )

    def _error_text(self) -> str:
        return str(self._records.error) if self._records.error else ""
