"""Distributed context: rank, world size and collectives of the processes that torchrun starts.

Code calls the methods of its DistributedContext, however many processes there are. Every method is
called by all processes, in the same order.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from poise.engine.signals import request_stop
from poise.engine.sync_bn import convert_sync_batchnorm, forward_trial
from poise.errors import ConfigError, PoiseError

T = TypeVar("T")
_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class DistributedContext:
    """One process, alone. rank: its number of `world_size`; local_rank: its number on this machine,
    None where no launcher gave one.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int | None = None):
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def all_reduce_any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return flag

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Each value summed over the processes, in float64; equal to the last bit in all of
        them.
        """
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes by rank, on rank 0; None on the others."""
        return [value]

    def run_on_main(self, make: Callable[..., T], *arguments: Any) -> T:
        """Call `make` on rank 0 alone; return its result on every rank. The others wait for it."""
        return make(*arguments)

    def broadcast_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give the tensors the values that they have on rank 0, in place."""

    def wrap_ddp(
        self, model: nn.Module, image_size: tuple[int, int], sync_batch_norm: bool = False
    ) -> nn.Module:
        """The network, which lies on its device, such that its gradients become the mean over
        the processes.
        """
        return model


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """The processes that torchrun's environment tells of, joined within; this one alone without
    such an environment.

    An error that ends one of several processes ends all of them, within seconds, and one of them
    tells it: see process_group.py. Raises ConfigError for half an environment.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    # torchrun's only process has one device, as each of several has; a plain one has all of GPUS
    if world == "1":
        yield (
            DistributedContext(local_rank=0)
            if "TORCHELASTIC_RUN_ID" in os.environ
            else SINGLE_PROCESS
        )
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing or not all(
        os.environ[name].isdigit() for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    ):
        raise ConfigError(
            f"the environment has WORLD_SIZE={world} but"
            f" {f'no {missing[0]}' if missing else 'no numbers as ranks'}: start several processes"
            " with torchrun, or unset WORLD_SIZE"
        )

    with _join_group(
        int(os.environ["RANK"]), int(world), int(os.environ["LOCAL_RANK"])
    ) as processes:
        yield processes


def local_world_size() -> int:
    """How many processes torchrun started on this machine; 1 without it. They share its cores
    and its loader's workers.
    """
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(count), 1) if count.isdigit() else 1


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error says that another process is gone: gloo's carry the name of its source
    files, NCCL's have a class.
    """
    return (
        any(kind.__name__ == "DistError" for kind in type(error).__mro__)
        or isinstance(error, RuntimeError)
        and "/gloo/" in str(error)
    )


log = logging.getLogger(__name__)

_FAILURES = "poise/failures"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_LEAVE = 8.0  # for a process that fails or sees a failure, before it is cut off
# torchrun ends the others within a second of the first that fails; more only where it is not there
_SECONDS_OF_SILENCE = 3.0
_TIME_TO_MEET = timedelta(minutes=10)
# how long others wait in the default group while rank 0 downloads weights or scores a large set
_TIMEOUT = timedelta(hours=3)


@contextmanager
def _join_group(rank: int, world_size: int, local_rank: int) -> Iterator[ProcessGroupContext]:
    """The processes of torchrun's environment, joined; left at the end, whatever ended it."""
    processes = ProcessGroupContext(rank, world_size, local_rank)
    try:
        yield processes
        processes.all_reduce_any(False)  # nobody leaves before all have finished
    except KeyboardInterrupt:  # everyone gets it, and ends without a word
        processes.report_failure()
        processes.shutdown_after_error()
        raise
    except Exception as error:
        if not processes.report_failure():
            _exit_silently()
        processes.shutdown_after_error()
        if is_peer_failure(error):
            raise PoiseError(
                "another process of this run was terminated, perhaps out of memory; "
                "torchrun's report names it"
            ) from error
        raise
    else:
        processes.leave()


class ProcessGroupContext(DistributedContext):
    """Collectives of several processes, over gloo; see the base class."""

    def __init__(self, rank: int, world_size: int, local_rank: int):
        super().__init__(rank, world_size, local_rank)
        if rank > 0:
            warnings.simplefilter("ignore")  # rank 0 shows the same
        self._store = _rendezvous(rank, world_size)
        self._nccl = False
        self._parent = os.getppid()
        self._leaving = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    # telling each other ---------------------------------------------------------------------------

    def all_reduce_any(self, flag: bool) -> bool:
        return self.all_reduce_sum([float(flag)])[0] > 0

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any] | None:
        values = [None] * self.world_size if self.is_main_process else None
        dist.gather_object(value, values)
        return values

    def run_on_main(self, make: Callable[..., T], *arguments: Any) -> T:
        box: list[Any] = [make(*arguments) if self.is_main_process else None]
        dist.broadcast_object_list(box)
        return box[0]

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[torch.Tensor]) -> None:
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for same in by_type.values():  # one message instead of hundreds
            flat = torch.cat([tensor.reshape(-1) for tensor in same]).cpu()
            dist.broadcast(flat, 0)
            for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same])):
                tensor.copy_(part.view(tensor.shape))

    # gradients ------------------------------------------------------------------------------------

    def wrap_ddp(
        self, model: nn.Module, image_size: tuple[int, int], sync_batch_norm: bool = False
    ) -> nn.Module:
        """The network under DistributedDataParallel; all begin with rank 0's weights and buffers.
        NCCL between GPUs, else gloo.

        Batch norm's buffers are each process's own while it trains, as in mmpose 0.29: whoever
        needs one network for all, for a test or a checkpoint, spreads rank 0's. With
        sync_batch_norm they are those of all batches together.
        """
        device = next(model.parameters()).device
        self._nccl = device.type == "cuda"
        unused = unused_parameters(model, image_size)
        if unused:
            log.info(
                "%d parameters have no part in the network's outputs, %s%s",
                len(unused),
                ", ".join(unused[:3]),
                ", ..." if len(unused) > 3 else "",
            )
        gradients = dist.new_group(backend="nccl" if self._nccl else "gloo")
        model = convert_sync_batchnorm(model, gradients) if sync_batch_norm else model
        log.info(
            "%d processes, DistributedDataParallel over %s",
            self.world_size,
            ("NCCL" if self._nccl else "gloo on the CPU")
            + (", batch norm over all" if sync_batch_norm else ""),
        )
        # of the layout that 1x1 kernels have under CHANNELS_LAST; costs a copy of them
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # PyTorch renamed it, and under the old name left buffers apart from the beginning
        each_its_own = (
            "forward_sync_buffers"
            if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
            else "broadcast_buffers"
        )
        self.broadcast_(model.buffers())
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if self._nccl else None,
            process_group=gradients,
            find_unused_parameters=bool(unused),
            **{each_its_own: False},
        )

    # leaving --------------------------------------------------------------------------------------

    def report_failure(self) -> bool:
        """Say that this process fails; whether none has said so before. Without a store to ask,
        its host has failed before.
        """
        self._leaving.set()
        try:
            return self._store.add(_FAILURES, 1) == 1
        except RuntimeError:
            return False

    def leave(self) -> None:
        self._leaving.set()
        self._watcher.join()
        dist.destroy_process_group()

    def shutdown_after_error(self) -> None:
        """The same while others may wait for this process: it must not wait for them, as NCCL
        would, and must end.
        """
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(_SECONDS_TO_LEAVE))
        if not self._nccl:
            dist.destroy_process_group()

    def _watch(self) -> None:
        store = True
        while not self._leaving.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                failed = store and self._store.check([_FAILURES])
                # the main thread's connections break, so it can leave by itself, tidily, unless
                # it hangs
                if failed and not self._leaving.wait(_SECONDS_TO_LEAVE):
                    os._exit(1)
            # the store is gone, and so is who would tell of failures in it: perhaps the launcher,
            # perhaps only rank 0 that has done
            except RuntimeError:
                store = False
                if not self._leaving.is_set():
                    request_stop()
            # the launcher has ended without its processes, as of a signal that it does not know
            if os.getppid() != self._parent:
                if not self._leaving.is_set() and not request_stop():
                    os.kill(os.getpid(), signal.SIGTERM)
                return


def _rendezvous(rank: int, world_size: int) -> dist.Store:
    """The processes' store, when all have come to it and the default group is made. Raises
    PoiseError where they do not come.
    """
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_TIME_TO_MEET))
        # torchrun's own store outlives a restart of the processes. Where it has none rank 0 makes a
        # new one each time, and the machines' counts of restarts may differ: each counts the
        # failures of its own processes
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = dist.PrefixStore(
                f"poise/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
            )
        store.set(f"here/{rank}", "")
        store.wait([f"here/{number}" for number in range(world_size)], _TIME_TO_MEET)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "EADDRINUSE" in reason:
            raise PoiseError(
                f"MASTER_PORT {os.environ['MASTER_PORT']}: another program uses this port; "
                "give a free one, the same to all processes"
            ) from None
        raise PoiseError(
            f"process {rank} did not meet the {world_size - 1} others at {where} ({reason}); is the"
            " address reached from every machine, and is TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 set"
            " on all of several machines (docs/distributed.md)?"
        ) from None
    return store


def _exit_silently() -> None:
    """End without a word, and not before torchrun has seen who failed first, for it blames the
    first that it sees.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout.flush()
    time.sleep(_SECONDS_OF_SILENCE)
    os._exit(1)


def unused_parameters(model: nn.Module, image_size: tuple[int, int]) -> list[str]:
    """Names of parameters that have no part in the outputs of train mode. The model stays as it is,
    and so do random numbers.

    DistributedDataParallel waits for every gradient, and looks for those that never come only when
    told to, for it takes time.
    """
    named = [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    width, height = image_size
    with forward_trial(model) as device:
        # two: batch norm over a 1x1 map needs them
        outputs = model(torch.zeros(2, 3, height, width, device=device))
        gradients = torch.autograd.grad(
            sum(output.sum() for output in outputs),
            [parameter for _, parameter in named],
            allow_unused=True,
        )
    return [name for (name, _), gradient in zip(named, gradients) if gradient is None]
