"""The targets of a batch, drawn on the device."""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from poise.codecs import Codec, Targets
from poise.config.datasets import dataset_of
from poise.structures.person_table import UNKNOWN


def encode_targets(
    cfg: CfgNode, codec: Codec, batch: dict[str, torch.Tensor], device: torch.device
) -> Targets:
    """The targets of a batch's joints, drawn on the device."""
    joints, visible = (batch[key].to(device, non_blocking=True) for key in ("joints", "visible"))
    targets = codec.encode(joints, visible)
    if cfg.DATASET.MIX:
        targets = targets._replace(known=(visible > UNKNOWN).float()[:, :, None])
    if cfg.LOSS.USE_DIFFERENT_JOINTS_WEIGHT:
        targets = targets._replace(
            weight=targets.weight
            * targets.weight.new_tensor(dataset_of(cfg).skeleton.weights)[:, None]
        )
    return targets
