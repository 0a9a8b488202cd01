"""Batches of (epoch, sample) keys in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys in an order that depends on (seed, epoch) alone; can begin in the middle of
    an epoch.

    Of several processes (`rank` of `world`) each has its share of every batch, so that `batch_size`
    counts the samples of all of them: rows that follow each other, as many for all, or one more for
    the first ranks. Of a batch of fewer persons than processes the last ranks get its first person,
    which is not theirs: see `share`. With `whole_batches` a process has every world-th batch
    instead, of `batch_size` alone; so a batch holds the same persons whatever the number of
    processes. order: the (N,) persons as they come without `shuffle`, if not 0, 1, 2, ... repeat:
    (N,) how often each person comes in an epoch; of those with a fraction, such a share comes once
    more, others in each epoch.
    """

    def __init__(
        self,
        persons: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
        whole_batches: bool = False,
        order: np.ndarray | None = None,
        repeat: np.ndarray | None = None,
    ):
        self.order = np.arange(persons) if order is None else order
        self.repeat = repeat
        self.samples = persons if repeat is None else len(self._drawn(np.random.default_rng(0)))
        self.persons, self.batch_size, self.shuffle, self.seed = persons, batch_size, shuffle, seed
        self.rank, self.world, self.whole_batches = rank, world, whole_batches
        self.epoch, self.first_batch = 0, 0

    def begin(self, epoch: int, first_batch: int = 0) -> None:
        """What the next iteration yields: batches first_batch, first_batch + 1, ... of this
        epoch.
        """
        self.epoch, self.first_batch = epoch, first_batch

    @property
    def count(self) -> int:
        """Batches of an epoch, over all processes."""
        return -(-self.samples // self.batch_size)

    def __len__(self) -> int:
        """Batches of an epoch that this process has a part in."""
        return len(range(self.rank, self.count, self.world)) if self.whole_batches else self.count

    def share(self, batch: int) -> tuple[int, int]:
        """(samples of a batch that are this process's own, samples of the batch)."""
        size = min(self.batch_size, self.samples - batch * self.batch_size)
        if self.whole_batches:
            return size if batch % self.world == self.rank else 0, size
        return size // self.world + (self.rank < size % self.world), size

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The samples of an epoch: all whole repetitions, and of each fraction its share of the
        persons that have it.
        """
        persons = np.arange(len(self.repeat))
        whole = np.floor(self.repeat).astype(np.int64)
        found = [
            persons[whole > copy] + copy * len(persons) for copy in range(whole.max(initial=0))
        ]
        for fraction in np.unique(self.repeat[self.repeat > whole]):
            having = persons[self.repeat == fraction]
            chosen = np.sort(rng.permutation(having)[: round((fraction % 1) * len(having))])
            found.append(chosen + whole[chosen] * len(persons))
        return np.concatenate(found) if found else persons[:0]

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.samples)
        if self.repeat is not None:
            # a stream of its own, so that REPEAT 1 leaves the order that it would be without
            order = self._drawn(np.random.default_rng((self.seed, self.epoch, 1)))[
                order if self.shuffle else slice(None)
            ]
        for number in range(self.first_batch, self.count):
            own, size = self.share(number)
            if not own and self.whole_batches:
                continue
            begin = number * self.batch_size
            if not self.whole_batches and own:
                begin += self.rank * (size // self.world) + min(self.rank, size % self.world)
            yield [(self.epoch, int(person)) for person in order[begin : begin + max(own, 1)]]
