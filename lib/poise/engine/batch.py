"""A batch on its way through the network: to the device, normalised, with its targets."""
from __future__ import annotations

import numpy as np
import torch
from yacs.config import CfgNode

from poise.codecs import Codec, Targets
from poise.datasets.table import UNKNOWN
from poise.skeleton import dataset_of


def normalize(cfg: CfgNode, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 on the device, less MODEL.MEAN and over MODEL.STD per channel.

    CHANNELS_LAST keeps the layout in memory that the crops come in; otherwise it becomes NCHW.
    """
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    images = images if cfg.CHANNELS_LAST else images.contiguous()
    mean, std = (images.new_tensor(values).mul_(255)[:, None, None] for values in (cfg.MODEL.MEAN, cfg.MODEL.STD))
    return images.sub_(mean).div_(std)


def denormalize(cfg: CfgNode, images: torch.Tensor) -> np.ndarray:
    """What normalize did, undone, for pictures: (B, 3, H, W) -> (B, H, W, 3) uint8 BGR."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (cfg.MODEL.MEAN, cfg.MODEL.STD))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels[:, :, :, ::-1] if cfg.DATASET.COLOR_RGB else pixels


def encode_targets(cfg: CfgNode, codec: Codec, batch: dict[str, torch.Tensor], device: torch.device) -> Targets:
    """The targets of a batch's joints, drawn on the device."""
    joints, visible = (batch[key].to(device, non_blocking=True) for key in ("joints", "visible"))
    targets = codec.encode(joints, visible)
    if cfg.DATASET.MIX:
        targets = targets._replace(known=(visible > UNKNOWN).float()[:, :, None])
    if cfg.LOSS.USE_DIFFERENT_JOINTS_WEIGHT:
        targets = targets._replace(weight=targets.weight * targets.weight.new_tensor(dataset_of(cfg).skeleton.weights)[:, None])
    return targets
