"""A batch on its way through the network: to the device, normalised, with its targets."""
from __future__ import annotations

import numpy as np
import torch
from yacs.config import CfgNode

from poise.codecs import CODECS
from poise.errors import ConfigError
from poise.skeleton import SKELETONS

# ImageNet's, for RGB. The HRNet family applies them in this order to BGR input too (COLOR_RGB False); its weights expect that
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(images: torch.Tensor, device: torch.device, channels_last: bool = False) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 on the device, zero mean and unit variance per channel.

    channels_last keeps the layout in memory that the crops come in; otherwise it becomes NCHW.
    """
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    images = images if channels_last else images.contiguous()
    mean = images.new_tensor(MEAN).mul_(255)[:, None, None]
    std = images.new_tensor(STD).mul_(255)[:, None, None]
    return images.sub_(mean).div_(std)


def denormalize(images: torch.Tensor, rgb: bool) -> np.ndarray:
    """What normalize did, undone, for pictures: (B, 3, H, W) -> (B, H, W, 3) uint8 BGR."""
    mean, std = images.new_tensor(MEAN)[:, None, None], images.new_tensor(STD)[:, None, None]
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels[:, :, :, ::-1] if rgb else pixels


def check_codec(cfg: CfgNode) -> None:
    """Raise ConfigError for a MODEL.TARGET_TYPE that is none of poise.codecs."""
    if cfg.MODEL.TARGET_TYPE not in CODECS:
        raise ConfigError(f"MODEL.TARGET_TYPE {cfg.MODEL.TARGET_TYPE!r} is not a codec of Poise ({', '.join(CODECS)})")


def encode_targets(cfg: CfgNode, batch: dict[str, torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Target heatmaps (B, J, h, w) and weights (B, J, 1) of a batch's joints, drawn on the device."""
    joints, visible = (batch[key].to(device, non_blocking=True) for key in ("joints", "visible"))
    target, weight = CODECS[cfg.MODEL.TARGET_TYPE].encode(joints, visible, cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE, cfg.MODEL.SIGMA)
    if cfg.LOSS.USE_DIFFERENT_JOINTS_WEIGHT:
        weight = weight * weight.new_tensor(SKELETONS[cfg.DATASET.DATASET].weights)[:, None]
    return target, weight
