"""A batch of crops through a network: normalised, in the precision that AMP asks for, with the flip
test. For training, tests, the predictor and exports.

Legend: B batch, H W input pixels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs.codec import Codec, Output, map_output
from poise.errors import ConfigError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def normalize(cfg: CfgNode, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 on the device, less MODEL.MEAN and over MODEL.STD
    per channel.

    CHANNELS_LAST keeps the layout in memory that the crops come in; otherwise it becomes NCHW.
    """
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    images = images if cfg.CHANNELS_LAST else images.contiguous()
    mean, std = (
        images.new_tensor(values).mul_(255)[:, None, None]
        for values in (cfg.MODEL.MEAN, cfg.MODEL.STD)
    )
    return images.sub_(mean).div_(std)


def denormalize(cfg: CfgNode, images: torch.Tensor) -> np.ndarray:
    """What normalize did, undone, for pictures: (B, 3, H, W) -> (B, H, W, 3) uint8 BGR."""
    mean, std = (
        images.new_tensor(values)[:, None, None] for values in (cfg.MODEL.MEAN, cfg.MODEL.STD)
    )
    pixels = (
        ((images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    )
    return pixels[:, :, :, ::-1] if cfg.DATASET.COLOR_RGB else pixels


def check_precision(cfg: CfgNode, devices: list[torch.device]) -> None:
    """Raise ConfigError where the devices cannot compute as AMP says."""
    if cfg.AMP != "bf16":
        return
    if len(devices) > 1:  # DataParallel's threads would compute in fp16, autocast's default
        raise ConfigError(
            f"AMP bf16: one process cannot compute it on {len(devices)} GPUS; start a process for"
            " each with torchrun"
        )
    if devices[0].type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"AMP bf16: {torch.cuda.get_device_name(devices[0])} cannot compute it; use AMP fp16"
        )


def autocast(cfg: CfgNode, device: torch.device) -> AbstractContextManager:
    """Within, the network computes as AMP says. Its outputs are of that type."""
    return torch.autocast(device.type, _TYPES[cfg.AMP]) if cfg.AMP else nullcontext()


def forward_with_flip_test(
    cfg: CfgNode, codec: Codec, model: nn.Module, images: torch.Tensor, flip_indices: torch.Tensor
) -> Output:
    """The prediction, in float32, for normalised images (B, 3, H, W), with the flip test where
    TEST.FLIP_TEST asks for it.
    """
    with autocast(cfg, images.device):
        output = map_output(torch.Tensor.float, model(images))
        if not cfg.TEST.FLIP_TEST:
            return output
        flipped = map_output(torch.Tensor.float, model(images.flip(3)))
    return codec.flip_average(output, flipped, flip_indices)
