"""Which devices a run uses, how a network is laid on them, and how many threads the CPU gives."""
from __future__ import annotations

import logging
import os
import time

import torch
from torch import nn
from yacs.config import CfgNode

log = logging.getLogger(__name__)


def choose_devices(cfg: CfgNode) -> list[torch.device]:
    """The CUDA devices of GPUS that exist, said where some do not; the CPU where none does."""
    wanted, present = [int(gpu) for gpu in cfg.GPUS], torch.cuda.device_count() if torch.cuda.is_available() else 0
    usable = [gpu for gpu in wanted if gpu < present]
    if usable:
        if len(usable) < len(wanted):
            log.warning("GPUS lists %d devices, %d of them exist: using %s; a step has %d x BATCH_SIZE_PER_GPU samples instead of %d x",
                        len(wanted), len(usable), usable, len(usable), len(wanted))
        return [torch.device("cuda", gpu) for gpu in usable]
    if wanted:
        log.warning("%s: running on the CPU; a step has 1 x BATCH_SIZE_PER_GPU samples%s",
                    "no CUDA device" if not present else f"GPUS {wanted} do not exist, {present} do",
                    f" instead of {len(wanted)} x" if len(wanted) > 1 else "")
    return [torch.device("cpu")]


def set_up(cfg: CfgNode, devices: list[torch.device], threads: int | None = None) -> None:
    """cuDNN switches and CPU threads. threads: the count of the run that is gone on with; it keeps sums in the same order."""
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED
    if devices[0].type == "cpu":
        count = cfg.CPU_THREADS or threads or fastest_threads(cfg.WORKERS)
        torch.set_num_threads(count)
        log.info("CPU threads: %d of %d cores", count, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def fastest_threads(workers: int) -> int:
    """How many torch threads are fastest right now, measured with a small training step.

    More threads than free cores can be ten times slower than one: the threads of a parallel region wait for the last, which
    shares its core with another process. So the count is measured, smallest first, and a larger one must win clearly.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    candidates = sorted({1, *(2**i for i in range(1, 8) if 2**i < cores), cores})
    net = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 16, 1))
    images = torch.randn(8, 16, 32, 24, generator=torch.Generator().manual_seed(0))
    best, best_time = 1, float("inf")
    for count in candidates:
        torch.set_num_threads(count)
        times = []
        for step in range(9):
            begin = time.perf_counter()
            net(images).square().mean().backward()
            times.append(time.perf_counter() - begin)
        # the upper quartile, not the best: a count that is fast only while nobody disturbs it is the trap
        measured = sorted(times[1:])[5]
        if measured < 0.9 * best_time:
            best, best_time = count, measured
    return best


def lay_on(model: nn.Module, devices: list[torch.device]) -> nn.Module:
    """The network on its device; under DataParallel where there are several."""
    model = model.to(devices[0])
    return nn.DataParallel(model, device_ids=[device.index for device in devices]) if len(devices) > 1 else model


def bare(model: nn.Module) -> nn.Module:
    """The network without its DataParallel wrapper."""
    return model.module if isinstance(model, nn.DataParallel) else model
