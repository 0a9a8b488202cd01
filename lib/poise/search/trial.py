"""Measure time and memory of a search on its first batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from yacs.config import CfgNode

from poise.engine import device as devices
from poise.engine.memory import peak_memory, resource_errors
from poise.io.files import available_memory
from poise.search.bilevel import BilevelOptimizer
from poise.search.space import Space
from poise.search.supernet import build

_GB = 1e9
_MAX_SECONDS = 10.0  # for timing each kind of step


@dataclass(frozen=True)
class Cost:
    """Time and memory of a search.

    Attributes:
        weights_seconds, architecture_seconds: time of a step.
        peak: peak memory in bytes, of the GPU or of this process; None if unknown.
        present: available memory in bytes; None if unknown.
    """

    weights_seconds: float
    architecture_seconds: float
    peak: int | None
    present: int | None

    def __str__(self) -> str:
        peak = (
            "peak not known here" if self.peak is None else f"{self.peak / _GB:.2f} GB at the peak"
        )
        present = "" if self.present is None else f" of {self.present / _GB:.1f} GB"
        return (
            f"{self.weights_seconds:.3f} s a weights step, {self.architecture_seconds:.3f} s an"
            f" architecture step; memory: {peak}{present}"
        )


def measure(
    cfg: CfgNode, space: Space, batch: dict[str, torch.Tensor], device: torch.device
) -> Cost:
    """Both steps on a batch, by a network made for this and thrown away. Raises PoiseError where
    they do not fit into the memory.

    Linux grants a process more memory than there is and ends it without a word when it comes to
    that. So on the CPU two samples go first, and where a whole batch is bound to fail it is not
    tried.
    """
    with resource_errors("search", search_memory_hint(cfg)):
        network = build(cfg, space)
        devices.to_device(network, [device], cfg.CHANNELS_LAST)
        trial = BilevelOptimizer(cfg, network, device)
        samples = len(batch["images"])
        few = {key: value[:2] for key, value in batch.items()}
        present = available_memory() if device.type == "cpu" else None
        if device.type == "cpu":
            steps = (partial(trial.weights_step, few, 0), partial(trial.architecture_step, few))
            needed = (
                max(kept_bytes(step, trial.weights) for step in steps)
                * samples
                // len(few["images"])
            )
            if present is not None and needed > present:
                raise MemoryError(
                    f"a batch of {samples} needs more than {needed / _GB:.1f} GB,"
                    f" {present / _GB:.1f} GB are free"
                )
        else:
            torch.cuda.reset_peak_memory_stats(device)
        weights_seconds = _timed(partial(trial.weights_step, batch, 0), device)
        architecture_seconds = _timed(partial(trial.architecture_step, batch), device)
        peak = peak_memory(device)
    del trial, network
    if device.type == "cuda":
        torch.cuda.empty_cache()
        present = torch.cuda.get_device_properties(device).total_memory
    return Cost(weights_seconds, architecture_seconds, peak, present)


def search_memory_hint(cfg: CfgNode) -> str:
    """Name the keys that the memory of a search depends on."""
    s = cfg.SEARCH
    more = "" if s.CHECKPOINTING else "; SEARCH.CHECKPOINTING True takes less memory and more time"
    return (
        f"lower SEARCH.BATCH_SIZE ({s.BATCH_SIZE}), SEARCH.INIT_CHANNELS ({s.INIT_CHANNELS}),"
        f" SEARCH.LAYERS ({s.LAYERS}) or MODEL.IMAGE_SIZE, or raise SEARCH.PARTIAL_CHANNELS"
        f" ({s.PARTIAL_CHANNELS}){more}"
    )


def kept_bytes(step: Callable[[], object], parameters: list[torch.nn.Parameter]) -> int:
    """Bytes of the tensors that are kept for the backward pass while `step` runs, `parameters`
    apart.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def _timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step. A first one asks the system for its memory, so it is done again unless
    that takes too long.
    """
    seconds: list[float] = []
    while not seconds or len(seconds) < 3 and sum(seconds) < _MAX_SECONDS:
        begin = time.perf_counter()
        # its loss has been checked when it returns; its optimizer step may still be running
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
