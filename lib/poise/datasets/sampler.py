"""Sample the batches of an epoch in an order that depends on the seed and the epoch only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

#: (epoch, sample)
SampleKey = tuple[int, int]


@dataclass(frozen=True)
class Shard:
    """The position of a process in distributed training.

    Attributes:
        rank: Number of the process.
        world_size: Number of processes.
        local_world_size: Number of processes on this machine, which divide WORKERS among them.
    """

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1


SINGLE_SHARD = Shard()


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Yield batches of (epoch, sample) keys; can resume in the middle of an epoch.

    By default each process gets consecutive rows of every batch. The first ranks get one row more
    where the batch does not divide evenly. A rank without a row gets the first row of the batch,
    which does not count as its own: see local_and_global_size.

    Args:
        num_persons: Number of persons N in the table.
        batch_size: Samples in a batch, summed over all processes.
        shuffle: Permute the samples in each epoch.
        seed: Seed of the permutation.
        shard: Position of this process.
        shard_by_batch: Give each process every world_size-th batch instead of its rows of every
            batch, so that a batch is the same for any number of processes.
        order: (N,) Order of the persons without `shuffle`; default 0, 1, 2, ...
        repeat: (N,) How often each person occurs in an epoch. Of the persons with a fractional
            part, that fraction occurs once more, drawn again in each epoch.
    """

    def __init__(
        self,
        num_persons: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        shard: Shard = SINGLE_SHARD,
        shard_by_batch: bool = False,
        order: np.ndarray | None = None,
        repeat: np.ndarray | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.shard = shard
        self.shard_by_batch = shard_by_batch
        self.order = np.arange(num_persons) if order is None else order
        self.repeat = repeat
        self.num_samples = num_persons
        if repeat is not None:
            self.num_samples = len(_repeated_indices(repeat, np.random.default_rng(0)))
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Start the next iteration at batch `first_batch` of `epoch`."""
        self.epoch = epoch
        self.first_batch = first_batch

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch, over all processes."""
        return -(-self.num_samples // self.batch_size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch that this process takes part in."""
        if self.shard_by_batch:
            return len(range(self.shard.rank, self.num_batches, self.shard.world_size))
        return self.num_batches

    def local_and_global_size(self, batch: int) -> tuple[int, int]:
        """Return how many samples of a batch belong to this process, and to all processes."""
        rank, world_size = self.shard.rank, self.shard.world_size
        global_size = min(self.batch_size, self.num_samples - batch * self.batch_size)
        if not self.shard_by_batch:
            return global_size // world_size + (rank < global_size % world_size), global_size
        is_own_batch = batch % world_size == rank
        return (global_size if is_own_batch else 0), global_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self._epoch_order()
        for batch in range(self.first_batch, self.num_batches):
            local_size, global_size = self.local_and_global_size(batch)
            start = batch * self.batch_size
            if self.shard_by_batch:
                if not local_size:
                    continue
            elif local_size:
                rank, world_size = self.shard.rank, self.shard.world_size
                start += rank * (global_size // world_size) + min(rank, global_size % world_size)
            yield [(self.epoch, int(i)) for i in order[start : start + max(local_size, 1)]]

    def _epoch_order(self) -> np.ndarray:
        """Return the samples of the current epoch in order."""
        order = self.order
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        if self.repeat is None:
            return order
        # a separate random stream: repeat = 1 does not change the order
        rng = np.random.default_rng((self.seed, self.epoch, 1))
        indices = _repeated_indices(self.repeat, rng)
        return indices[order] if self.shuffle else indices


def _repeated_indices(repeat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the samples of an epoch: copy c of person i is sample i + c * N."""
    num_persons = len(repeat)
    persons = np.arange(num_persons)
    copies = np.floor(repeat).astype(np.int64)
    parts = [persons[copies > copy] + copy * num_persons for copy in range(copies.max(initial=0))]
    for value in np.unique(repeat[repeat > copies]):
        candidates = persons[repeat == value]
        count = round((value % 1) * len(candidates))
        chosen = np.sort(rng.permutation(candidates)[:count])
        parts.append(chosen + copies[chosen] * num_persons)
    return np.concatenate(parts) if parts else persons[:0]
