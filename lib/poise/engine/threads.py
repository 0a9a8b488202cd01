"""How many torch threads a run on the CPU takes.

More threads than free cores can be ten times slower than one: the threads of a parallel region wait, spinning, for the last
of them, which shares its core with another process. CPU_THREADS -1 therefore measures the count, now and again, for runs on a
machine that is not theirs alone. (Sleeping instead of spinning, OMP_WAIT_POLICY=PASSIVE, was measured too: two threads are then
hardly faster than one, for small networks have many short regions.)
"""
from __future__ import annotations

import logging
import os
import time

import torch
from torch import nn
from yacs.config import CfgNode

from poise.engine.distributed import local_processes

log = logging.getLogger(__name__)

_SECONDS_BETWEEN = 15.0


class CpuThreads:
    """Sets the count that CPU_THREADS asks for, and looks again while the run goes on where that is wished.

    saved: the count of the run that is gone on with. It is taken over, as far as there are cores, because another count adds up
    sums in another order and the run would not end as it would have. For the same reason 0 does not measure: two runs of one
    command would differ.
    """

    def __init__(self, cfg: CfgNode, device: torch.device, saved: int | None = None):
        self._adaptive = device.type == "cpu" and cfg.CPU_THREADS == -1
        if device.type != "cpu":
            return
        if self._adaptive:
            count = fastest_threads()
        else:
            count = cfg.CPU_THREADS or min(saved or usable_cores(), usable_cores())
        torch.set_num_threads(count)
        self._looked = time.perf_counter()
        log.info("CPU threads: %d of %d cores", count, usable_cores())

    def look(self) -> None:
        """Between two steps: measure again when the last look is some seconds old and CPU_THREADS is -1."""
        if not self._adaptive or time.perf_counter() - self._looked < _SECONDS_BETWEEN:
            return
        before = torch.get_num_threads()
        count = fastest_threads(before)
        torch.set_num_threads(count)
        self._looked = time.perf_counter()
        if count != before:
            log.info("CPU threads: now %d, as other programs %s the cores", count, "need" if count < before else "left")


def usable_cores() -> int:
    """Cores that this process may run on, divided among torchrun's processes on this machine, and no more than OMP_NUM_THREADS.

    torchrun itself sets OMP_NUM_THREADS to 1 where the user did not.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(cores // local_processes(), 1)
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wish)) if wish.isdigit() and int(wish) > 0 else cores


def fastest_threads(current: int | None = None) -> int:
    """The count that is fastest right now, by a small training step; `current` stays unless another is clearly faster."""
    cores = usable_cores()
    candidates = sorted({1, *(2**i for i in range(1, 8) if 2**i < cores), cores})
    with torch.random.fork_rng(devices=[]):     # the run's own random numbers stay as they are
        net = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1))
        images = torch.randn(8, 16, 32, 24)
    times: dict[int, list[float]] = {count: [] for count in candidates}
    for count in candidates:    # the first steps of a process start threads and choose kernels
        torch.set_num_threads(count)
        for _ in range(4):
            net(images).square().mean().backward()
    for _ in range(3):      # in turns, so that a passing disturbance meets every count
        for count in candidates:
            torch.set_num_threads(count)
            for _ in range(6):
                begin = time.perf_counter()
                net(images).square().mean().backward()
                times[count].append(time.perf_counter() - begin)
    # the median: a core that another program holds slows every step down, a passing disturbance only a few
    medians = {count: sorted(found)[len(found) // 2] for count, found in times.items()}
    best = min(candidates, key=medians.__getitem__)
    kept = current if current in medians else 1
    return best if medians[best] < 0.85 * medians[kept] else kept
