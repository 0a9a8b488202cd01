"""The processes of a run, as torchrun starts them: what they are to each other, and how they join.

A program asks its Processes and need not know how many there are: here is the answer for one, which needs no torch; the answers
for several are in process_group.py. Every method is called by all processes, in the same order.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from poise.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """One process, alone. rank: its number of `world`; local_rank: its number on this machine, None where no launcher gave one."""

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int | None = None):
        self.rank, self.world, self.local_rank = rank, world, local_rank

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return flag

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over the processes, in float64; equal to the last bit in all of them."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes by rank, on rank 0; None on the others."""
        return [value]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, the only one that calls it, on every rank. The others wait for it."""
        return make()

    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give the tensors the values that they have on rank 0, in place."""

    def wrap(self, model: nn.Module, image_size: tuple[int, int], sync_batch_norm: bool = False) -> nn.Module:
        """The network, which lies on its device, such that its gradients become the mean over the processes."""
        return model


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun's environment tells of, joined within; this one alone without such an environment.

    An error that ends one of several processes ends all of them, within seconds, and one of them tells it: see process_group.py.
    Raises ConfigError for half an environment.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":    # torchrun's only process has one device, as each of several has; a plain one has all of GPUS
        yield Processes(local_rank=0) if "TORCHELASTIC_RUN_ID" in os.environ else ALONE
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing or not all(os.environ[name].isdigit() for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")):
        raise ConfigError(f"the environment has WORLD_SIZE={world} but {f'no {missing[0]}' if missing else 'no numbers as ranks'}: "
                          "start several processes with torchrun, or unset WORLD_SIZE")
    from poise.engine.process_group import group

    with group(int(os.environ["RANK"]), int(world), int(os.environ["LOCAL_RANK"])) as processes:
        yield processes


def local_processes() -> int:
    """How many processes torchrun started on this machine; 1 without it. They share its cores and its loader's workers."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(count), 1) if count.isdigit() else 1


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process is gone: gloo's carry the name of its source files, NCCL's have a class."""
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or isinstance(error, RuntimeError) and "/gloo/" in str(error)
