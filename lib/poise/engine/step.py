"""One step of a training, on a process's share of its batch, in parts where they are asked for."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.parallel import DistributedDataParallel

from poise.codecs import Codec
from poise.datasets.persons import EpochBatches
from poise.engine.batch import encode_targets
from poise.engine.device import bare
from poise.engine.schedule import set_learning_rate
from poise.forward import autocast, normalize
from poise.metrics.pck import heatmap_pck

if TYPE_CHECKING:
    from poise.engine.train import Training

_STEPS_OF_A_SEED = 1_000_000_007     # the random numbers of one seed's steps do not meet those of the next one's


@dataclass
class StepFigures:
    """What is looked at of a part of a step when it is done. right, counted: joints, for the accuracy; own: the process's own samples."""

    loss: torch.Tensor
    right: torch.Tensor
    counted: torch.Tensor
    own: int
    persons: torch.Tensor


def train_step(training: Training, codec: Codec, batch: dict[str, torch.Tensor], before_backward: Callable[[], None]) -> tuple[list[StepFigures], tuple]:
    """The step progress.step of the epoch, on this process's share of its batch, in parts (TRAIN.ACCUMULATE); progress stays as it is.

    before_backward is called when the first part's loss has been launched. Returns the figures of each part, and what can be shown of
    the last: (batch, normalised images, its last outputs, targets).
    """
    cfg, model, optimizer, progress, processes = training.cfg, training.model, training.optimizer, training.progress, training.processes
    step = progress.epoch * training.schedule.steps_per_epoch + progress.step
    own, whole = training.loader.batches.share(progress.step)
    set_learning_rate(optimizer, training.schedule.rate(step))
    # stochastic depth draws from it; so a resumed run draws the same, and each process something else
    torch.manual_seed((cfg.SEED * _STEPS_OF_A_SEED + step * processes.world + processes.rank) % 2**63)
    figures: list[StepFigures] = []
    parts = _parts(batch, own, cfg.TRAIN.ACCUMULATE, training.loader.batches.batch_size, whole, processes.world)
    for number, (part, count) in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            images = normalize(cfg, part["images"], training.device)
            targets = encode_targets(cfg, codec, part, training.device)
            with autocast(cfg, training.device):
                outputs = model(images)
            outputs = tuple(output.float() for output in outputs)
            loss = training.criterion(outputs, targets)
            if not number:
                before_backward()
                optimizer.zero_grad()
            # gradients become the mean over processes: by this weight they are those of the mean over the whole batch
            training.scale.backward(loss * (count * processes.world / whole))
        with torch.no_grad():
            figures.append(StepFigures(loss.detach(), *heatmap_pck(outputs[-1].detach(), targets.finest, cells=targets.cells), count, part["person"]))
    training.scale.step(optimizer)
    if training.average and not training.scale.left_out():
        training.average.update(bare(model))
    return figures, (part, images, outputs[-1].detach(), targets)


def smallest_part(batches: EpochBatches, steps: int, parts: int = 1, devices: int = 1) -> int:
    """Return the fewest samples that a device has in one of the first `steps` batches of an epoch: in the first or the last."""
    found = []
    for number in (0, min(steps, batches.count) - 1):
        own, whole = batches.share(number)
        rows = {"rows": torch.empty(max(own, 1))}     # a process without own rows has the batch's first
        for part, _ in _parts(rows, own, parts, batches.batch_size, whole, batches.world):
            found.append(len(part["rows"].chunk(devices)[-1]))      # as DataParallel divides it
    return min(found)


def _parts(batch: dict[str, torch.Tensor], own: int, parts: int, batch_size: int, whole: int, world: int) -> list[tuple[dict[str, torch.Tensor], int]]:
    """[(rows of a batch, how many of them are the process's own)]: as many parts in every process, and no more than have something to do.

    A process without rows of its own for a part has its first row there, as the whole share has in EpochBatches. whole: samples of the
    step; batch_size: of a full one.
    """
    if parts == 1:
        return [(batch, own)]
    largest, size = -(-whole // world), -(-batch_size // (world * parts))
    count = -(-largest // size)
    edges = [own * number // count for number in range(count + 1)]
    return [({key: rows[a:b] if b > a else rows[:1] for key, rows in batch.items()}, b - a) for a, b in zip(edges, edges[1:])]
