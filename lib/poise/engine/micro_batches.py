"""Divide a step's batch into the parts whose gradients are accumulated (TRAIN.ACCUMULATE)."""

from __future__ import annotations

import torch

from poise.datasets.sampler import EpochBatchSampler


def split_batch(
    batch: dict[str, torch.Tensor], batches: EpochBatchSampler, step: int, parts: int
) -> list[tuple[dict[str, torch.Tensor], int]]:
    """Divide this process's share of a batch: the same number of parts in every process.

    A process without rows of its own for a part has its first row there, as the whole share has in
    EpochBatchSampler. Parts that no process has anything to do in are left out.

    Args:
        batch: the process's rows of the batch.
        batches: the batches of the epoch.
        step: number of the batch in the epoch.
        parts: TRAIN.ACCUMULATE.

    Returns:
        (rows, how many of them are the process's own) of each part.
    """
    local_size, global_size = batches.local_and_global_size(step)
    if parts == 1:
        return [(batch, local_size)]
    largest = -(-global_size // batches.shard.world_size)
    part_size = -(-batches.batch_size // (batches.shard.world_size * parts))
    count = -(-largest // part_size)
    edges = [local_size * number // count for number in range(count + 1)]
    return [
        ({key: rows[a:b] if b > a else rows[:1] for key, rows in batch.items()}, b - a)
        for a, b in zip(edges, edges[1:])
    ]


def smallest_micro_batch(
    batches: EpochBatchSampler, steps: int, parts: int = 1, devices: int = 1
) -> int:
    """Return the fewest samples that a device has in one of the first `steps` batches.

    It is in the first or the last of them.
    """
    sizes = []
    for step in (0, min(steps, batches.num_batches) - 1):
        local_size, _ = batches.local_and_global_size(step)
        # a process without own rows has the batch's first
        rows = {"rows": torch.empty(max(local_size, 1))}
        for part, _ in split_batch(rows, batches, step, parts):
            sizes.append(len(part["rows"].chunk(devices)[-1]))  # as DataParallel divides it
    return min(sizes)
