"""Losses of heatmaps, for all keypoints at once.

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
    """Mean squared error of heatmaps times `factor`: HRNet's JointsMSELoss has 1/2, mmpose's 1.

    Args:
        use_target_weight: ignore keypoints of weight 0.
        factor: factor of the error.
    """

    def __init__(self, use_target_weight: bool = True, factor: float = 0.5):
        super().__init__()
        self.use_target_weight = use_target_weight
        self.factor = factor

    def forward(
        self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss, a scalar.

        The mean over the keypoints of each keypoint's mean, as in the original, is the mean.

        Args:
            output: (B, K, h, w).
            target: (B, K, h, w).
            weight: (B, K, 1).
        """
        error = output - target
        if self.use_target_weight:
            error = error * weight[:, :, :, None]
        return self.factor * error.square().mean()


class JointsOHKMMSELoss(nn.Module):
    """JointsMSELoss of each person's `topk` keypoints with the largest error.

    This is online hard keypoint mining: Chen et al., CVPR 2018.

    Args:
        use_target_weight: see JointsMSELoss.
        topk: number of keypoints.
        factor: see JointsMSELoss.
    """

    def __init__(self, use_target_weight: bool = True, topk: int = 8, factor: float = 0.5):
        super().__init__()
        self.use_target_weight = use_target_weight
        self.topk = topk
        self.factor = factor

    def forward(
        self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss, a scalar. Arguments: see JointsMSELoss."""
        error = output - target
        if self.use_target_weight:
            error = error * weight[:, :, :, None]
        per_keypoint = self.factor * error.square().mean(dim=(2, 3))
        return per_keypoint.topk(self.topk, dim=1, sorted=False).values.mean()


class DeepSupervisionLoss(nn.Module):
    """Sum of the losses of all supervised outputs, each with the finest targets."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Sequence[torch.Tensor], targets: HeatmapTargets) -> torch.Tensor:
        """Return the loss of outputs (B, K, h, w), a scalar."""
        target = targets.finest_heatmaps
        return sum(self.loss(output, target, targets.weight) for output in outputs)


class MSPNLoss(nn.Module):
    """MSPN's coarse-to-fine supervision of four units per stage.

    The last unit of a stage has weight 1 and hard keypoint mining. The others have weight 1/4 and
    the visible keypoints' targets: the prediction is not masked there, so hidden and unlabeled
    keypoints are trained towards an empty map. The authors took this from CPN, and the published
    networks were trained with it. Source: Li et al., Rethinking on Multi-Stage Networks, 2019,
    arXiv 1901.00148, section 3.4; repository megvii-research/MSPN.

    Args:
        topk: number of hard keypoints; None: no mining.
        coarse_to_fine: the last stage has targets one level finer than the others.
    """

    units = 4

    def __init__(self, topk: int | None = 8, coarse_to_fine: bool = True):
        super().__init__()
        self.topk = topk
        self.coarse_to_fine = coarse_to_fine

    def forward(self, outputs: Sequence[torch.Tensor], targets: HeatmapTargets) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: those of each stage from coarse to fine, (B, K, h, w). Fewer than four are the
                last units of a single stage, so the prediction alone has a loss too.
            targets: with heatmaps (B, L, K, h, w).
        """
        num_missing = -len(outputs) % self.units
        last_stage = (len(outputs) + num_missing) // self.units - 1
        total = outputs[0].new_zeros(())
        for number, output in enumerate(outputs, start=num_missing):
            stage, unit = divmod(number, self.units)
            target = targets.heatmaps[:, unit + (stage == last_stage and self.coarse_to_fine)]
            if unit < self.units - 1:
                total = total + self._visible_mse(output, target, targets) / self.units
            elif self.topk is None:
                total = total + self._visible_mse(output, target, targets)
            else:
                error = (output - target).square().mean(dim=(2, 3))
                error = error * (targets.weight[:, :, 0] > 0)
                total = total + error.topk(self.topk, dim=1, sorted=False).values.mean()
        return total

    @staticmethod
    def _visible_mse(
        output: torch.Tensor, target: torch.Tensor, targets: HeatmapTargets
    ) -> torch.Tensor:
        error = output - target * (targets.visible_mask > 0)[:, :, :, None]
        # keypoints that a person's dataset does not have are not empty maps
        if targets.annotated_mask is not None:
            error = error * targets.annotated_mask[:, :, :, None]
        return error.square().mean()


def joints_mse_from_config(cfg: CfgNode) -> nn.Module:
    """Build the loss of HRNet; with LOSS.USE_OHKM that of the hardest keypoints."""
    if cfg.LOSS.USE_OHKM:
        return DeepSupervisionLoss(
            JointsOHKMMSELoss(cfg.LOSS.USE_TARGET_WEIGHT, cfg.LOSS.TOPK, cfg.LOSS.FACTOR)
        )
    return DeepSupervisionLoss(JointsMSELoss(cfg.LOSS.USE_TARGET_WEIGHT, cfg.LOSS.FACTOR))


def mspn_from_config(cfg: CfgNode) -> nn.Module:
    """Build the loss of MSPN."""
    return MSPNLoss(cfg.LOSS.TOPK if cfg.LOSS.USE_OHKM else None, cfg.LOSS.COARSE_TO_FINE)
