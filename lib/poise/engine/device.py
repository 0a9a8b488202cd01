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
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); set auto, cpu,"
            " cuda, cuda:1 or mps"
        ) from None
    return chosen


def choose_devices(
    cfg: CfgNode, processes: DistributedContext = SINGLE_PROCESS
) -> list[torch.device]:
    """Return the CUDA devices of GPUS that exist, or the CPU; warn if some are missing.

    A process of torchrun has one device: the GPU with its local rank, whatever GPUS lists, if there
    is one for every process; the CPU otherwise and if GPUS is empty.
    """
    wanted = [int(gpu) for gpu in cfg.GPUS]
    num_present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes.local_rank is not None:
        return [_device_of_process(wanted, num_present, processes, processes.local_rank)]
    usable = [gpu for gpu in wanted if gpu < num_present]
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
        reason = "no CUDA device"
        if num_present:
            reason = f"GPUS {wanted} do not exist, {num_present} do"
        expected = f" instead of {len(wanted)} x" if len(wanted) > 1 else ""
        log.warning(
            "%s: running on the CPU; a step has 1 x BATCH_SIZE_PER_GPU samples%s", reason, expected
        )
    return [torch.device("cpu")]


def _device_of_process(
    wanted: list[int], num_present: int, processes: DistributedContext, local_rank: int
) -> torch.device:
    """Return the GPU with the local rank; the CPU if one of the processes has no GPU."""
    if processes.all_reduce_any(not wanted or local_rank >= num_present):
        if wanted:
            reason = "no CUDA device"
            if local_rank < num_present:
                reason = "another process has no CUDA device"
            elif num_present:
                reason = (
                    f"more processes than CUDA devices ({num_present}) on this machine; start"
                    f" {num_present} processes"
                )
            log.warning("%s: running on the CPU", reason)
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def configure_cudnn(cfg: CfgNode, devices: list[torch.device]) -> None:
    """Set CUDNN.*; raise ConfigError if the devices do not support AMP."""
    check_precision(devices, cfg.AMP)
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED


def to_device(
    model: nn.Module, devices: list[torch.device], channels_last: bool = False
) -> nn.Module:
    """Move a model to the first device; wrap it in DataParallel if there are several."""
    model.to(devices[0])
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if len(devices) == 1:
        return model
    return nn.DataParallel(model, device_ids=[device.index for device in devices])


def compile_network(cfg: CfgNode, model: nn.Module, devices: list[torch.device]) -> None:
    """Compile the model at its first call, if COMPILE.

    Raises ConfigError if torch.compile does not work here.
    """
    if not cfg.COMPILE:
        return
    if len(devices) > 1:
        raise ConfigError(
            f"COMPILE True: unsupported for {len(devices)} GPUS in one process; start one process"
            " per GPU with torchrun"
        )
    try:
        torch.compile(_probe)(torch.ones(8, device=devices[0]))
    # of many classes: no C++ compiler, no Triton, an unsupported version of Python
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
    """Return the model without DataParallel or DistributedDataParallel."""
    if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
        return model.module
    return model


def prepare_for_inference(cfg: CfgNode, model: nn.Module, devices: list[torch.device]) -> nn.Module:
    """Return a model that predicts like `model`, faster.

    With TEST.FOLD_BN it is a copy with folded batch norms and, on the CPU, packed convolutions.
    Never DistributedDataParallel: the processes may have different numbers of batches, and it would
    wait for the others in each step.
    """
    network = unwrap_model(model)
    if not cfg.TEST.FOLD_BN:
        return to_device(network, devices, cfg.CHANNELS_LAST)
    network = to_device(fold_batch_norms(network), devices, cfg.CHANNELS_LAST)
    if devices[0].type == "cpu" and cfg.AMP in ("", "bf16") and not cfg.COMPILE and can_pack():
        pack_convolutions(network, torch.bfloat16 if cfg.AMP else torch.float32)
    return network


_SECONDS_BETWEEN_MEASUREMENTS = 15.0


class CpuThreads:
    """Set the number of CPU threads; measure it again during the run if CPU_THREADS is -1.

    A resumed run keeps the number of threads of its checkpoint, if there are enough cores: another
    number adds in another order, and the run would end with other weights. For the same reason 0
    does not measure: two runs of one command would differ.

    Args:
        num_threads: CPU_THREADS; 0 for all available cores, -1 to measure.
        device: first device of the run; nothing is set for a GPU.
        saved: number of threads of the checkpoint, if any.
    """

    def __init__(self, num_threads: int, device: torch.device, saved: int | None = None):
        self._is_adaptive = device.type == "cpu" and num_threads == -1
        if device.type != "cpu":
            return
        available = available_cpus()
        if self._is_adaptive:
            count = fastest_threads()
        else:
            count = num_threads or min(saved or available, available)
        torch.set_num_threads(count)
        self._measured_at = time.perf_counter()
        log.info("CPU threads: %d of %d cores", count, available)

    def retune(self) -> None:
        """Measure again if CPU_THREADS is -1 and the last measurement is some seconds old."""
        if not self._is_adaptive:
            return
        if time.perf_counter() - self._measured_at < _SECONDS_BETWEEN_MEASUREMENTS:
            return
        before = torch.get_num_threads()
        count = fastest_threads(before)
        torch.set_num_threads(count)
        self._measured_at = time.perf_counter()
        if count != before:
            reason = "need" if count < before else "left"
            log.info("CPU threads: now %d, as other programs %s the cores", count, reason)


def available_cpus() -> int:
    """Return the number of cores for this process, at most OMP_NUM_THREADS.

    The processes of torchrun share the cores of a machine. torchrun itself sets OMP_NUM_THREADS to
    1 if the user did not set it.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    cores = max(cores // local_world_size(), 1)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and int(limit) > 0:
        return min(cores, int(limit))
    return cores


def fastest_threads(current: int | None = None) -> int:
    """Return the number of threads that is fastest now, measured on a small training step.

    Returns `current` unless another number is clearly faster.
    """
    cores = available_cpus()
    candidates = sorted({1, *(2**i for i in range(1, 8) if 2**i < cores), cores})
    with torch.random.fork_rng(devices=[]):  # leave the random state of the run unchanged
        net = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 16, 1),
        )
        images = torch.randn(8, 16, 32, 24)
    times: dict[int, list[float]] = {count: [] for count in candidates}
    for count in candidates:  # warm-up: start the threads and choose kernels
        torch.set_num_threads(count)
        for _ in range(4):
            net(images).square().mean().backward()
    for _ in range(3):  # in turns, so that a short disturbance affects every candidate
        for count in candidates:
            torch.set_num_threads(count)
            for _ in range(6):
                start = time.perf_counter()
                net(images).square().mean().backward()
                times[count].append(time.perf_counter() - start)
    # the median: another program on a core slows every step, a short disturbance only a few
    medians = {count: sorted(seconds)[len(seconds) // 2] for count, seconds in times.items()}
    best = min(candidates, key=medians.__getitem__)
    default = current if current in medians else 1
    return best if medians[best] < 0.85 * medians[default] else default
