"""The pose networks, one file each. MODELS maps MODEL.NAME to a class.

In eval mode a network maps images (B, 3, H, W) to its prediction, the output that the codec
decodes: for heatmaps a tensor (B, K, h, w). In train mode it returns a tuple of every supervised
output, the prediction last. State-dict keys and shapes are those of the released checkpoints.
Networks are built from keyword arguments: `PoseHRNet(width=32, num_keypoints=17)`.
"""

from __future__ import annotations

import difflib

import torch
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.moganet import MogaNetPose
from poise.models.mspn import MSPN
from poise.models.options import check_head, check_sizes
from poise.models.pose_hrnet import PoseHRNet
from poise.models.pose_network import PoseNetwork
from poise.models.pose_res2net import PoseRes2Net, PoseRes2NetV1b
from poise.models.pose_resnet import PoseResNet
from poise.models.posenas.network import PoseNAS

MODELS: dict[str, type[PoseNetwork]] = {
    "pose_resnet": PoseResNet,
    "pose_res2net": PoseRes2Net,
    "pose_res2net_v1b": PoseRes2NetV1b,
    "posenas": PoseNAS,
    "moganet": MogaNetPose,
    "pose_hrnet": PoseHRNet,
    "mspn": MSPN,
}

__all__ = [
    "MODELS",
    "MSPN",
    "MogaNetPose",
    "PoseHRNet",
    "PoseNAS",
    "PoseNetwork",
    "PoseRes2Net",
    "PoseRes2NetV1b",
    "PoseResNet",
    "build_model",
    "build_on_meta",
]


def build_model(cfg: CfgNode) -> PoseNetwork:
    """Build the network of MODEL.*, and call its init_weights if MODEL.INIT_WEIGHTS is set.

    Weight files are loaded by poise.models.weights. Raises ConfigError for an unknown network, an
    unknown key or invalid value of MODEL.EXTRA, and sizes that do not fit.
    """
    name = cfg.MODEL.NAME
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"MODEL.NAME {name!r} is not a network of Poise ({', '.join(MODELS)}){hint}"
        )
    network = MODELS[name].from_config(cfg)
    check_head(cfg)
    check_sizes(cfg, network.output_stride, network.input_multiple)
    if cfg.MODEL.INIT_WEIGHTS:
        network.init_weights()
    return network


def build_on_meta(cfg: CfgNode) -> PoseNetwork:
    """Build the network of MODEL.* on torch's meta device: shapes without values or memory."""
    with torch.device("meta"):
        return build_model(cfg)
