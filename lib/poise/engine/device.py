"""Which devices a process uses, and how a network is laid on them."""
from __future__ import annotations

import logging

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from poise.engine.distributed import ALONE, Processes
from poise.errors import ConfigError
from poise.forward import check_precision
from poise.models.folding import fold_batch_norms
from poise.models.packing import can_pack, pack_convolutions

log = logging.getLogger(__name__)


def choose_devices(cfg: CfgNode, processes: Processes = ALONE) -> list[torch.device]:
    """The CUDA devices of GPUS that exist, said where some do not; the CPU where none does.

    A process of torchrun has one device: the GPU of its number on this machine, whatever GPUS lists, if every process has one;
    else, or where GPUS is empty, the CPU.
    """
    wanted, present = [int(gpu) for gpu in cfg.GPUS], torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes.local_rank is not None:
        return [_device_of_process(wanted, present, processes)]
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


def _device_of_process(wanted: list[int], present: int, processes: Processes) -> torch.device:
    if processes.any(not wanted or processes.local_rank >= present):
        if wanted:
            log.warning("%s: running on the CPU", "no CUDA device" if not present else
                        f"a process has no CUDA device of its own, there are {present} on this machine; start so many processes")
        return torch.device("cpu")
    device = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(device)
    return device


def set_up(cfg: CfgNode, devices: list[torch.device]) -> None:
    """cuDNN's switches. Raises ConfigError where the devices cannot compute what AMP asks for."""
    check_precision(cfg, devices)
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED


def lay_on(model: nn.Module, devices: list[torch.device], channels_last: bool = False) -> nn.Module:
    """The network on its device; under DataParallel where there are several."""
    model = model.to(devices[0], memory_format=torch.channels_last if channels_last else torch.preserve_format)
    return nn.DataParallel(model, device_ids=[device.index for device in devices]) if len(devices) > 1 else model


def compile_network(cfg: CfgNode, model: nn.Module, devices: list[torch.device]) -> None:
    """With COMPILE: the network, as it is laid on its devices, is compiled when it is first called. Raises ConfigError where that cannot be."""
    if not cfg.COMPILE:
        return
    if len(devices) > 1:
        raise ConfigError(f"COMPILE True: one process cannot compile for {len(devices)} GPUS; start a process for each with torchrun")
    try:
        torch.compile(_probe)(torch.ones(8, device=devices[0]))
    except Exception as error:      # of many classes: no C++ compiler, no Triton, a Python that is not supported
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"COMPILE True: torch.compile does not work here ({reason[0]}); it needs a C++ compiler on the CPU and Triton on a GPU; "
                          "install them or leave COMPILE False") from None
    model.compile()


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) + 1


def bare(model: nn.Module) -> nn.Module:
    """The network without the wrapper of several devices or processes."""
    return model.module if isinstance(model, (nn.DataParallel, DistributedDataParallel)) else model


def for_testing(cfg: CfgNode, model: nn.Module, devices: list[torch.device]) -> nn.Module:
    """What predicts in `model`'s place, on the devices: a folded copy with TEST.FOLD_BN, on the CPU with packed convolutions, else the network itself.

    Never under DistributedDataParallel: the processes' shares may differ, and it would wait for each step of all.
    """
    if not cfg.TEST.FOLD_BN:
        return lay_on(bare(model), devices, cfg.CHANNELS_LAST)
    tested = lay_on(fold_batch_norms(bare(model)), devices, cfg.CHANNELS_LAST)
    if devices[0].type == "cpu" and cfg.AMP in ("", "bf16") and not cfg.COMPILE and can_pack():
        pack_convolutions(tested, torch.bfloat16 if cfg.AMP else torch.float32)
    return tested
