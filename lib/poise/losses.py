"""Heatmap losses of the HRNet family, over all joints at once.

Legend: B batch, J joints, h w heatmap cells. Source: lib/core/loss.py of HRNet. Figures: tests/golden/pipeline.json.
"""
from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode


class JointsMSELoss(nn.Module):
    """Half the mean squared error of joint heatmaps (HRNet JointsMSELoss)."""

    def __init__(self, use_target_weight: bool):
        super().__init__()
        self.use_target_weight = use_target_weight

    def forward(self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """output, target: (B, J, h, w); weight: (B, J, 1). Scalar. The original's mean over joints of each joint's mean is the mean over all."""
        return 0.5 * _squared_error(output, target, weight if self.use_target_weight else None).mean()


class JointsOHKMMSELoss(nn.Module):
    """The same over the `topk` joints of each person with the largest loss (online hard keypoint mining, Chen et al. CVPR 2018)."""

    def __init__(self, use_target_weight: bool, topk: int = 8):
        super().__init__()
        self.use_target_weight = use_target_weight
        self.topk = topk

    def forward(self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """output, target: (B, J, h, w); weight: (B, J, 1). Scalar."""
        per_joint = 0.5 * _squared_error(output, target, weight if self.use_target_weight else None).mean(dim=(2, 3))
        return per_joint.topk(self.topk, dim=1, sorted=False).values.mean()


def _squared_error(output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    error = output - target
    if weight is not None:
        error = error * weight[:, :, :, None]
    return error.square()


def build_loss(cfg: CfgNode) -> nn.Module:
    """The loss that LOSS.* describes; called as loss(output, target, weight)."""
    if cfg.LOSS.USE_OHKM:
        return JointsOHKMMSELoss(cfg.LOSS.USE_TARGET_WEIGHT, cfg.LOSS.TOPK)
    return JointsMSELoss(cfg.LOSS.USE_TARGET_WEIGHT)
