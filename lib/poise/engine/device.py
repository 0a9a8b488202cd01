"""Device selection, model placement and CPU threads."""

from __future__ import annotations

import logging
import os
import time

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from poise.engine.distributed import SINGLE_PROCESS, DistributedContext, local_world_size
from poise.errors import ConfigError
from poise.models.forward import check_precision
from poise.models.fuse import can_pack, fold_batch_norms, pack_convolutions

log = logging.getLogger(__name__)


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device of a name; 'auto' is the first CUDA device, Apple's GPU or the CPU.

    Raises ConfigError for a device that does not exist.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); give auto, cpu,"
            " cuda, cuda:1 or mps"
        ) from None
    return chosen


def choose_devices(
    cfg: CfgNode, processes: DistributedContext = SINGLE_PROCESS
) -> list[torch.device]:
    """Return the CUDA devices of GPUS that exist, with a warning where some do not, or the CPU.

    A process of torchrun has one device: the GPU of its number on this machine, whatever GPUS
    lists, if every process has one; else, or where GPUS is empty, the CPU.
    """
    wanted, present = (
        [int(gpu) for gpu in cfg.GPUS],
        (torch.cuda.device_count() if torch.cuda.is_available() else 0),
    )
    if processes.local_rank is not None:
        return [_device_of_process(wanted, present, processes, processes.local_rank)]
    usable = [gpu for gpu in wanted if gpu < present]
    if usable:
        if len(usable) < len(wanted):
            log.warning(
                "GPUS lists %d devices, %d of them exist: using %s; a step has %d x"
                " BATCH_SIZE_PER_GPU samples instead of %d x",
                len(wanted),
                len(usable),
                usable,
                len(usable),
                len(wanted),
            )
        return [torch.device("cuda", gpu) for gpu in usable]
    if wanted:
        log.warning(
            "%s: running on the CPU; a step has 1 x BATCH_SIZE_PER_GPU samples%s",
            "no CUDA device" if not present else f"GPUS {wanted} do not exist, {present} do",
            f" instead of {len(wanted)} x" if len(wanted) > 1 else "",
        )
    return [torch.device("cpu")]


def _device_of_process(
    wanted: list[int], present: int, processes: DistributedContext, local_rank: int
) -> torch.device:
    if processes.all_reduce_any(not wanted or local_rank >= present):
        if wanted:
            reason = "no CUDA device"
            if present:
                reason = (
                    f"a process has no CUDA device of its own, there are {present} on this"
                    " machine; start so many processes"
                )
            log.warning("%s: running on the CPU", reason)
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def configure_cudnn(cfg: CfgNode, devices: list[torch.device]) -> None:
    """cuDNN's switches. Raises ConfigError where the devices cannot compute what AMP asks for."""
    check_precision(devices, cfg.AMP)
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED


def to_device(
    model: nn.Module, devices: list[torch.device], channels_last: bool = False
) -> nn.Module:
    """The network on its device; under DataParallel where there are several."""
    model = model.to(
        devices[0], memory_format=torch.channels_last if channels_last else torch.preserve_format
    )
    return (
        nn.DataParallel(model, device_ids=[device.index for device in devices])
        if len(devices) > 1
        else model
    )


def compile_network(cfg: CfgNode, model: nn.Module, devices: list[torch.device]) -> None:
    """With COMPILE: the network, as it is laid on its devices, is compiled when it is first
    called. Raises ConfigError where that cannot be.
    """
    if not cfg.COMPILE:
        return
    if len(devices) > 1:
        raise ConfigError(
            f"COMPILE True: one process cannot compile for {len(devices)} GPUS; start a process for"
            " each with torchrun"
        )
    try:
        torch.compile(_probe)(torch.ones(8, device=devices[0]))
    # of many classes: no C++ compiler, no Triton, a Python that is not supported
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"COMPILE True: torch.compile does not work here ({reason[0]}); it needs a C++ compiler"
            " on the CPU and Triton on a GPU; install them or leave COMPILE False"
        ) from None
    model.compile()


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + 1


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network without the wrapper of several devices or processes."""
    return model.module if isinstance(model, (nn.DataParallel, DistributedDataParallel)) else model


def prepare_for_inference(cfg: CfgNode, model: nn.Module, devices: list[torch.device]) -> nn.Module:
    """What predicts in `model`'s place, on the devices: a folded copy with TEST.FOLD_BN, on the CPU
    with packed convolutions, else the network itself.

    Never under DistributedDataParallel: the processes' shares may differ, and it would wait for
    each step of all.
    """
    if not cfg.TEST.FOLD_BN:
        return to_device(unwrap_model(model), devices, cfg.CHANNELS_LAST)
    tested = to_device(fold_batch_norms(unwrap_model(model)), devices, cfg.CHANNELS_LAST)
    if devices[0].type == "cpu" and cfg.AMP in ("", "bf16") and not cfg.COMPILE and can_pack():
        pack_convolutions(tested, torch.bfloat16 if cfg.AMP else torch.float32)
    return tested


_SECONDS_BETWEEN = 15.0


class CpuThreads:
    """Sets the count that CPU_THREADS asks for, and looks again while the run goes on where that is
    wished.

    saved: the count of the run that is gone on with. It is taken over, as far as there are cores,
    because another count adds up sums in another order and the run would not end as it would have.
    For the same reason 0 does not measure: two runs of one command would differ.
    """

    def __init__(self, cfg: CfgNode, device: torch.device, saved: int | None = None):
        self._adaptive = device.type == "cpu" and cfg.CPU_THREADS == -1
        if device.type != "cpu":
            return
        if self._adaptive:
            count = fastest_threads()
        else:
            count = cfg.CPU_THREADS or min(saved or available_cpus(), available_cpus())
        torch.set_num_threads(count)
        self._looked = time.perf_counter()
        log.info("CPU threads: %d of %d cores", count, available_cpus())

    def look(self) -> None:
        """Between two steps: measure again when the last look is some seconds old and
        CPU_THREADS is -1.
        """
        if not self._adaptive or time.perf_counter() - self._looked < _SECONDS_BETWEEN:
            return
        before = torch.get_num_threads()
        count = fastest_threads(before)
        torch.set_num_threads(count)
        self._looked = time.perf_counter()
        if count != before:
            log.info(
                "CPU threads: now %d, as other programs %s the cores",
                count,
                "need" if count < before else "left",
            )


def available_cpus() -> int:
    """Cores that this process may run on, divided among torchrun's processes on this machine, and
    no more than OMP_NUM_THREADS.

    torchrun itself sets OMP_NUM_THREADS to 1 where the user did not.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cores = max(cores // local_world_size(), 1)
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wish)) if wish.isdigit() and int(wish) > 0 else cores


def fastest_threads(current: int | None = None) -> int:
    """The count that is fastest right now, by a small training step; `current` stays unless
    another is clearly faster.
    """
    cores = available_cpus()
    candidates = sorted({1, *(2**i for i in range(1, 8) if 2**i < cores), cores})
    with torch.random.fork_rng(devices=[]):  # the run's own random numbers stay as they are
        net = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 16, 1),
        )
        images = torch.randn(8, 16, 32, 24)
    times: dict[int, list[float]] = {count: [] for count in candidates}
    for count in candidates:  # the first steps of a process start threads and choose kernels
        torch.set_num_threads(count)
        for _ in range(4):
            net(images).square().mean().backward()
    for _ in range(3):  # in turns, so that a passing disturbance meets every count
        for count in candidates:
            torch.set_num_threads(count)
            for _ in range(6):
                begin = time.perf_counter()
                net(images).square().mean().backward()
                times[count].append(time.perf_counter() - begin)
    # the median: a core that another program holds slows every step down, a passing disturbance
    # only a few
    medians = {count: sorted(found)[len(found) // 2] for count, found in times.items()}
    best = min(candidates, key=medians.__getitem__)
    kept = current if current in medians else 1
    return best if medians[best] < 0.85 * medians[kept] else kept
