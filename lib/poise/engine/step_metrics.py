"""Sum the metrics of training steps over all processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from poise.datasets import PersonTable
from poise.engine.checkpointer import Checkpointer
from poise.engine.distributed import DistributedContext
from poise.engine.state import TrainState
from poise.errors import PoiseError


@dataclass
class StepMetrics:
    """Metrics of a micro-batch, on the device.

    Attributes:
        loss: mean loss, a scalar.
        num_correct, num_valid: numbers of keypoints for the accuracy, scalars.
        samples: number of samples; 0 if the process has none in this step.
        persons: (B,) rows of the person table.
    """

    loss: torch.Tensor
    num_correct: torch.Tensor
    num_valid: torch.Tensor
    samples: int
    persons: torch.Tensor


class StepCollector:
    """Add the metrics of launched steps to the sums of the epoch.

    On a GPU the loss of a step is read after the next step was launched, so that the GPU does not
    wait for the CPU. The same all-reduce carries the requests to stop and to save.

    Attributes:
        checkpoint_due: whether a checkpoint is due; the same in all processes.
    """

    def __init__(
        self,
        state: TrainState,
        table: PersonTable,
        checkpointer: Checkpointer,
        processes: DistributedContext,
    ):
        self._state, self._table = state, table
        self._checkpointer, self._processes = checkpointer, processes
        self._is_deferred = state.device.type != "cpu"
        self._unread: list[StepMetrics] = []
        self._unread_step = 0
        self._stop = False
        self.checkpoint_due = False

    def stop_requested(self) -> bool:
        """Return whether any process has to stop; the same in all processes."""
        if self._processes.world_size == 1:
            return self._stop or self._checkpointer.stop_requested()
        return self._stop

    def add(self, parts: list[StepMetrics]) -> None:
        """Add a launched step; reads the step before it, and on the CPU this one too."""
        self.sync()
        self._unread, self._unread_step = parts, self._state.progress.step - 1
        if not self._is_deferred:
            self.sync()

    def sync(self) -> None:
        """Read the unread metrics. Raises PoiseError for a loss that is not finite."""
        if not self._unread:
            return
        parts, self._unread = self._unread, []
        sums = [0.0] * 4
        for part in parts:
            loss = float(part.loss)
            if not math.isfinite(loss):
                raise self._loss_error(loss, part)
            if part.samples:
                values = (loss * part.samples, float(part.num_correct), float(part.num_valid))
                sums = [a + b for a, b in zip(sums, (*values, part.samples))]
        progress = self._state.progress
        progress.sums["overflows"] += self._state.scaler.found_inf()
        requests = [self._checkpointer.stop_requested(), self._checkpointer.is_due()]
        *sums, stop, due = self._processes.all_reduce_sum([*sums, *map(float, requests)])
        for name, value in zip(("loss", "right", "counted", "samples"), sums):
            progress.sums[name] += value
        self._stop, self.checkpoint_due = self._stop or stop > 0, due > 0

    def _loss_error(self, loss: float, part: StepMetrics) -> PoiseError:
        names = dict.fromkeys(self._table.image_name(int(person)) for person in part.persons)
        return PoiseError(
            f"epoch {self._state.progress.epoch}, step {self._unread_step}: the loss is {loss};"
            f" {self._state.progress.last_checkpoint_text()};"
            f" lower TRAIN.LR, or check the images of this batch: {', '.join(names)}"
        )
