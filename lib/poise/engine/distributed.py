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

log = logging.getLogger(__name__)

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FAILURE_KEY = "poise/failures"
_POLL_SECONDS = 1.0
_SHUTDOWN_SECONDS = 8.0  # for a process that fails or notices a failure, before it is killed
# torchrun ends the other processes within a second of the first failure
_SILENT_SECONDS = 3.0
_RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
# how long the others wait while rank 0 downloads weights or evaluates a large set
_COLLECTIVE_TIMEOUT = timedelta(hours=3)


class DistributedContext:
    """Rank, world size and collectives; this base class is for a single process.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        local_rank: number of this process on its machine; None without torchrun.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int | None = None):
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank

    @property
    def is_main_process(self) -> bool:
        """True on rank 0, which writes files and logs."""
        return self.rank == 0

    def all_reduce_any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Sum each value over the processes in float64; the same bits in every process."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all processes, by rank, on rank 0; None on the others."""
        return [value]

    def run_on_main(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on rank 0 only; return its result on every rank."""
        return function(*arguments)

    def broadcast_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the values of rank 0 into the tensors, in place."""

    def wrap_ddp(
        self, model: nn.Module, image_size: tuple[int, int], sync_batch_norm: bool = False
    ) -> nn.Module:
        """Wrap a model, on its device, so that the processes average its gradients."""
        return model


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Join the processes of torchrun's environment; a single process without one.

    An error in one of several processes ends all of them within seconds, and one of them reports
    it. Raises ConfigError for an incomplete environment.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        yield DistributedContext(local_rank=0)  # one device, as in each of several processes
        return
    if world == "1":
        yield SINGLE_PROCESS
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing or not all(
        os.environ[name].isdigit() for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    ):
        problem = f"no {missing[0]}" if missing else "no numbers as ranks"
        raise ConfigError(
            f"the environment has WORLD_SIZE={world} but {problem}: start several processes"
            " with torchrun, or unset WORLD_SIZE"
        )
    with _join_group(
        int(os.environ["RANK"]), int(world), int(os.environ["LOCAL_RANK"])
    ) as processes:
        yield processes


def local_world_size() -> int:
    """Return the number of processes of torchrun on this machine; 1 without it.

    They share the cores and WORKERS.
    """
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(count), 1) if count.isdigit() else 1


def is_peer_failure(error: BaseException) -> bool:
    """Return whether an error of gloo or NCCL means that another process is gone."""
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):  # NCCL
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)  # a source file of gloo


@contextmanager
def _join_group(rank: int, world_size: int, local_rank: int) -> Iterator[ProcessGroupContext]:
    """Create the process group of torchrun's environment, and destroy it at the end."""
    processes = ProcessGroupContext(rank, world_size, local_rank)
    try:
        yield processes
        processes.all_reduce_any(False)  # a barrier
    except KeyboardInterrupt:  # all ranks receive it and exit silently
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
        processes.shutdown()


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

    # collectives -------------------------------------------------------------------------------

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

    def run_on_main(self, function: Callable[..., T], *arguments: Any) -> T:
        box: list[Any] = [function(*arguments) if self.is_main_process else None]
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

    # model -------------------------------------------------------------------------------------

    def wrap_ddp(
        self, model: nn.Module, image_size: tuple[int, int], sync_batch_norm: bool = False
    ) -> nn.Module:
        """Wrap a model in DistributedDataParallel, over NCCL on GPUs and gloo on CPUs.

        All processes start with the weights and buffers of rank 0. Each process then has its own
        batch norm statistics, as in mmpose 0.29: broadcast those of rank 0 before an evaluation.
        With sync_batch_norm the statistics are those of all processes together.
        """
        device = next(model.parameters()).device
        self._nccl = device.type == "cuda"
        unused = unused_parameters(model, image_size)
        if unused:
            log.info(
                "%d parameters do not contribute to the outputs: %s%s",
                len(unused),
                ", ".join(unused[:3]),
                ", ..." if len(unused) > 3 else "",
            )
        gradients = dist.new_group(backend="nccl" if self._nccl else "gloo")
        model = convert_sync_batchnorm(model, gradients) if sync_batch_norm else model
        backend = "NCCL" if self._nccl else "gloo on the CPU"
        synced = ", synchronized batch norm" if sync_batch_norm else ""
        log.info(
            "%d processes, DistributedDataParallel over %s%s", self.world_size, backend, synced
        )
        # about 1x1 kernels with CHANNELS_LAST; costs a copy of them
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # PyTorch has renamed the option that keeps the buffers of the processes apart
        option = "forward_sync_buffers"
        if option not in signature(DistributedDataParallel).parameters:
            option = "broadcast_buffers"
        self.broadcast_(model.buffers())
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if self._nccl else None,
            process_group=gradients,
            find_unused_parameters=bool(unused),
            **{option: False},  # type: ignore[arg-type]
        )

    # shutdown ----------------------------------------------------------------------------------

    def report_failure(self) -> bool:
        """Report that this process fails; return whether it is the first one.

        Without the store, its host has failed before.
        """
        self._leaving.set()
        try:
            return self._store.add(_FAILURE_KEY, 1) == 1
        except RuntimeError:
            return False

    def shutdown(self) -> None:
        self._leaving.set()
        self._watcher.join()
        dist.destroy_process_group()

    def shutdown_after_error(self) -> None:
        """Shut down without waiting for the other processes, as NCCL would, and exit in time."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(_SHUTDOWN_SECONDS))
        if not self._nccl:
            dist.destroy_process_group()

    def _watch(self) -> None:
        """Watch for failures of the other processes and of torchrun, in a thread."""
        has_store = True
        while not self._leaving.wait(_POLL_SECONDS):
            try:
                failed = has_store and self._store.check([_FAILURE_KEY])
                # the connections of the main thread break, so that it exits by itself unless it
                # hangs
                if failed and not self._leaving.wait(_SHUTDOWN_SECONDS):
                    os._exit(1)
            # without the store no failure is reported: torchrun is gone, or rank 0 has finished
            except RuntimeError:
                has_store = False
                if not self._leaving.is_set():
                    request_stop()
            # torchrun has ended without its processes, after a signal that it does not handle
            if os.getppid() != self._parent:
                if not self._leaving.is_set() and not request_stop():
                    os.kill(os.getpid(), signal.SIGTERM)
                return


def _rendezvous(rank: int, world_size: int) -> dist.Store:
    """Create the default process group; return its store.

    Raises PoiseError if the processes do not meet in time.
    """
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
        # The store of torchrun survives a restart of the processes, so its keys need the number of
        # restarts. Otherwise rank 0 creates a new store each time, and the numbers of restarts may
        # differ between the machines: each counts the failures of its own processes.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = dist.PrefixStore(
                f"poise/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
            )
        store.set(f"here/{rank}", "")
        store.wait([f"here/{number}" for number in range(world_size)], _RENDEZVOUS_TIMEOUT)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=_COLLECTIVE_TIMEOUT
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
    """Exit without a message, after torchrun has noticed the process that failed first."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout.flush()
    time.sleep(_SILENT_SECONDS)
    os._exit(1)


def unused_parameters(model: nn.Module, image_size: tuple[int, int]) -> list[str]:
    """Return the names of parameters that do not contribute to the outputs in train mode.

    Leaves the model and the random state unchanged. DistributedDataParallel waits for the gradient
    of every parameter unless it is asked to find the unused ones in each step, which takes time.
    """
    named = [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    width, height = image_size
    with forward_trial(model) as device:
        # two samples: batch norm over a 1x1 map needs them
        outputs = model(torch.zeros(2, 3, height, width, device=device))
        gradients = torch.autograd.grad(
            sum(output.sum() for output in outputs),
            [parameter for _, parameter in named],
            allow_unused=True,
        )
    return [name for (name, _), gradient in zip(named, gradients) if gradient is None]
