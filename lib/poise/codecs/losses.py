"""Heatmap losses, over all joints at once.

Legend: see poise.codecs.codec. Sources: lib/core/loss.py of HRNet; MSPN exps/*/network.py
(_calculate_loss). Figures: tests/golden/pipeline.json and mspn_functions.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from yacs.config import CfgNode

if TYPE_CHECKING:
    from poise.codecs.heatmap import HeatmapTargets


class JointsMSELoss(nn.Module):
    """`factor` times the mean squared error of joint heatmaps (HRNet JointsMSELoss, with one
    half; mmpose takes 1).
    """

    def __init__(self, use_target_weight: bool = True, factor: float = 0.5):
        super().__init__()
        self.use_target_weight = use_target_weight
        self.factor = factor

    def forward(
        self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """output, target: (B, K, h, w); weight: (B, K, 1). Scalar. The original's mean over
        joints of each joint's mean is the mean over all.
        """
        return (
            self.factor
            * _squared_error(output, target, weight if self.use_target_weight else None).mean()
        )


class JointsOHKMMSELoss(nn.Module):
    """The same over the `topk` joints of each person with the largest loss (online hard keypoint
    mining, Chen et al. CVPR 2018).
    """

    def __init__(self, use_target_weight: bool = True, topk: int = 8, factor: float = 0.5):
        super().__init__()
        self.use_target_weight = use_target_weight
        self.topk = topk
        self.factor = factor

    def forward(
        self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """output, target: (B, K, h, w); weight: (B, K, 1). Scalar."""
        per_joint = self.factor * _squared_error(
            output, target, weight if self.use_target_weight else None
        ).mean(dim=(2, 3))
        return per_joint.topk(self.topk, dim=1, sorted=False).values.mean()


class DeepSupervisionLoss(nn.Module):
    """The sum of the losses of all supervised outputs, each against the sharpest targets."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Sequence[torch.Tensor], targets: HeatmapTargets) -> torch.Tensor:
        """outputs: each (B, K, h, w). Scalar."""
        return sum(self.loss(output, targets.finest_heatmaps, targets.weight) for output in outputs)


class MSPNLoss(nn.Module):
    """MSPN's coarse-to-fine supervision of four units in each stage (Li et al., Rethinking on
    Multi-Stage Networks, 2019, arXiv 1901.00148, section 3.4; repository megvii-research/MSPN).

    The last unit of a stage counts fully and mines hard joints (`topk`; None: it does not); the
    others count a quarter each and learn the seen joints only. That loss does not mask the
    prediction: hidden and unlabelled joints are trained towards an empty map there. Its authors
    have it from CPN, and the published networks learnt so. coarse_to_fine: the last stage takes
    targets one step sharper than the others.
    """

    units = 4

    def __init__(self, topk: int | None = 8, coarse_to_fine: bool = True):
        super().__init__()
        self.topk = topk
        self.coarse_to_fine = coarse_to_fine

    def forward(self, outputs: Sequence[torch.Tensor], targets: HeatmapTargets) -> torch.Tensor:
        """outputs: stage after stage, each from its coarsest unit to its finest, (B, K, h, w).
        targets: heatmaps (B, L, K, h, w).

        Fewer than four outputs are taken for the last units of a single stage, so the prediction
        alone has a loss too. Scalar.
        """
        missing = -len(outputs) % self.units
        last_stage = (len(outputs) + missing) // self.units - 1
        total = outputs[0].new_zeros(())
        for place, output in enumerate(outputs, start=missing):
            stage, unit = divmod(place, self.units)
            target = targets.heatmaps[:, unit + (stage == last_stage and self.coarse_to_fine)]
            if unit < self.units - 1:
                total = total + self._visible_mse(output, target, targets) / self.units
            elif self.topk is None:
                total = total + self._visible_mse(output, target, targets)
            else:
                per_joint = (output - target).square().mean(dim=(2, 3)) * (
                    targets.weight[:, :, 0] > 0
                )
                total = total + per_joint.topk(self.topk, dim=1, sorted=False).values.mean()
        return total

    @staticmethod
    def _visible_mse(
        output: torch.Tensor, target: torch.Tensor, targets: HeatmapTargets
    ) -> torch.Tensor:
        error = output - target * (targets.visible_mask > 0)[:, :, :, None]
        if targets.annotated_mask is not None:  # what a person's set does not have is no empty map
            error = error * targets.annotated_mask[:, :, :, None]
        return error.square().mean()


def _squared_error(
    output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    error = output - target
    if weight is not None:
        error = error * weight[:, :, :, None]
    return error.square()


def joints_mse_from_config(cfg: CfgNode) -> nn.Module:
    """Build the loss of HRNet, with LOSS.USE_OHKM of the hardest keypoints only."""
    if cfg.LOSS.USE_OHKM:
        return DeepSupervisionLoss(
            JointsOHKMMSELoss(cfg.LOSS.USE_TARGET_WEIGHT, cfg.LOSS.TOPK, cfg.LOSS.FACTOR)
        )
    return DeepSupervisionLoss(JointsMSELoss(cfg.LOSS.USE_TARGET_WEIGHT, cfg.LOSS.FACTOR))


def mspn_from_config(cfg: CfgNode) -> nn.Module:
    """Build the loss of MSPN."""
    return MSPNLoss(cfg.LOSS.TOPK if cfg.LOSS.USE_OHKM else None, cfg.LOSS.COARSE_TO_FINE)
