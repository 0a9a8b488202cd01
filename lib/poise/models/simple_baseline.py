"""A backbone of four stages with the deconvolution head, shared by ResNet and Res2Net.

Source: Xiao, Wu, Wei: Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, arXiv
1804.06208; microsoft/human-pose-estimation.pytorch lib/models/pose_resnet.py. Differences:
weight files are loaded by poise.models.weights, and `init_weights` initializes the backbone by He's
rule instead of Normal(0, 0.001), with which deep networks hardly train.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs.codec import Output
from poise.models.deconv_head import (
    HEAD_KEYS,
    HeadOptions,
    deconv_layers,
    final_layer,
    head_from_config,
    init_head,
)
from poise.models.options import OptionError, check_extra, is_positive_ints, select_keywords
from poise.models.pose_network import PoseNetwork
from poise.models.simcc_head import SimCCHead, axes_from_config

STAGE_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGE_CHANNELS = (64, 128, 256, 512)
# key of MODEL.EXTRA -> keyword argument
EXTRA_KEYS = {"NUM_LAYERS": "depth", "NUM_CHANNELS": "channels"}


class SimpleBaseline(PoseNetwork):
    """Stem, four stages, deconvolutions, a last convolution and, with SimCC, linear layers.

    Input (B, 3, H, W); last maps (B, K, 2^n H / 32, 2^n W / 32) with n deconvolutions. Raises
    OptionError for invalid values.

    Args:
        depth: 18, 34, 50, 101 or 152: number of layers, as in the names of ResNets.
        num_keypoints: K, one heatmap each.
        channels: planes of the blocks of the four stages.
        head: options of the deconvolutions and the last convolution.
        stem: the module that replaces conv1.
        make_stage: (in_channels, planes, blocks, stride) -> (stage, out_channels).
    """

    head_prefixes = ("deconv_layers.", "final_layer.", "axis_layers.")
    extra_keys = (*EXTRA_KEYS, *HEAD_KEYS, "HEAD")

    def __init__(
        self,
        *,
        depth: int,
        num_keypoints: int,
        channels: Sequence[int],
        head: HeadOptions,
        stem: nn.Module,
        make_stage: Callable[[int, int, int, int], tuple[nn.Sequential, int]],
    ):
        super().__init__()
        if not isinstance(depth, int) or depth not in STAGE_BLOCKS:
            raise OptionError(
                f"depth must be one of {', '.join(map(str, STAGE_BLOCKS))}, got {depth!r}"
            )
        if not is_positive_ints(channels) or len(channels) != 4:
            raise OptionError(f"channels must hold four channel counts above 0, got {channels!r}")
        blocks = STAGE_BLOCKS[depth]
        self.output_stride = head.output_stride
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width = 64
        self.layer1, width = make_stage(width, channels[0], blocks[0], 1)
        self.layer2, width = make_stage(width, channels[1], blocks[1], 2)
        self.layer3, width = make_stage(width, channels[2], blocks[2], 2)
        self.layer4, width = make_stage(width, channels[3], blocks[3], 2)
        self.deconv_layers = deconv_layers(width, head)
        self.final_layer = final_layer(head.filters[-1], num_keypoints, head.final_kernel)
        self.axis_layers = nn.Identity() if head.axes is None else SimCCHead(head.axes)

    def forward(self, images: torch.Tensor) -> Output | tuple[Output]:
        """(B, 3, H, W) -> output; in train mode a tuple of the one supervised output."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        output = self.axis_layers(self.final_layer(self.deconv_layers(x)))
        return (output,) if self.training else output

    def init_weights(self) -> None:
        """Initialize the backbone by He's rule and the head as the original does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        init_head(self.deconv_layers, self.final_layer)
        if isinstance(self.axis_layers, SimCCHead):
            self.axis_layers.init_weights()


def common_keywords(cfg: CfgNode) -> dict[str, Any]:
    """Return the keyword arguments that all networks of this kind have in common."""
    check_extra(cfg, SimpleBaseline.extra_keys)
    return {
        "num_keypoints": cfg.MODEL.NUM_JOINTS,
        "head": dataclasses.replace(head_from_config(cfg.MODEL.EXTRA), axes=axes_from_config(cfg)),
        **select_keywords(cfg.MODEL.EXTRA, EXTRA_KEYS),
    }
