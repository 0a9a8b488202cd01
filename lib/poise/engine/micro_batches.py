"""Split a batch into micro-batches for gradient accumulation (TRAIN.ACCUMULATE)."""

from __future__ import annotations

import math

import torch

from poise.datasets.sampler import EpochBatchSampler


def split_batch(
    batch: dict[str, torch.Tensor], sampler: EpochBatchSampler, step: int, accumulate: int
) -> list[tuple[dict[str, torch.Tensor], int]]:
    """Split the local samples of a batch into the same number of micro-batches in every process.

    A process without samples for a micro-batch gets its first sample, with size 0, as in
    EpochBatchSampler. Micro-batches that are empty in every process are omitted.

    Args:
        batch: local samples of the batch.
        sampler: of the loader.
        step: number of the batch in the epoch.
        accumulate: TRAIN.ACCUMULATE.

    Returns:
        (samples, number of samples) of each micro-batch.
    """
    local_size, global_size = sampler.local_and_global_size(step)
    if accumulate == 1:
        return [(batch, local_size)]
    world_size = sampler.shard.world_size
    max_local_size = math.ceil(global_size / world_size)
    max_size = math.ceil(sampler.batch_size / (world_size * accumulate))
    count = math.ceil(max_local_size / max_size)
    micro_batches = []
    for number in range(count):
        start = local_size * number // count
        end = local_size * (number + 1) // count
        rows = slice(start, end) if end > start else slice(0, 1)
        micro_batches.append(({key: values[rows] for key, values in batch.items()}, end - start))
    return micro_batches


def smallest_micro_batch(
    sampler: EpochBatchSampler, num_steps: int, accumulate: int = 1, num_devices: int = 1
) -> int:
    """Return the smallest number of samples of a device in one of the first `num_steps` batches."""
    sizes = []
    for step in (0, min(num_steps, sampler.num_batches) - 1):  # it is in the first or the last
        local_size, _ = sampler.local_and_global_size(step)
        batch = {"rows": torch.empty(max(local_size, 1))}
        for micro_batch, _ in split_batch(batch, sampler, step, accumulate):
            # as DataParallel splits it
            sizes.append(len(micro_batch["rows"].chunk(num_devices)[-1]))
    return min(sizes)
