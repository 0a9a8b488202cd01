"""Encode the targets of a batch on the device."""

from __future__ import annotations

import dataclasses

import torch
from yacs.config import CfgNode

from poise.codecs.codec import Codec, Targets
from poise.config.datasets import dataset_info
from poise.structures.person_table import NOT_ANNOTATED


def encode_targets(
    cfg: CfgNode, codec: Codec, batch: dict[str, torch.Tensor], device: torch.device
) -> Targets:
    """Encode the keypoints of a batch; apply the keypoint weights and the masks of mixed sets."""
    joints, visible = (batch[key].to(device, non_blocking=True) for key in ("joints", "visible"))
    targets = codec.encode(joints, visible)
    if cfg.DATASET.MIX:
        targets = dataclasses.replace(
            targets, annotated_mask=(visible > NOT_ANNOTATED).float()[:, :, None]
        )
    if cfg.LOSS.USE_DIFFERENT_JOINTS_WEIGHT:
        weights = targets.weight.new_tensor(dataset_info(cfg).skeleton.weights)[:, None]
        targets = dataclasses.replace(targets, weight=targets.weight * weights)
    return targets
