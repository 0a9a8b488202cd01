"""A backbone of four stages under the deconvolution head: what pose_resnet and the pose_res2net
networks have in common.

Source: Xiao, Wu, Wei: Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, arXiv
1804.06208; microsoft/human-pose-estimation.pytorch lib/models/pose_resnet.py. Differences: no
weight file is read here (poise.models.weights does), and a backbone without one is initialised by
He's rule instead of Normal(0, 0.001), from which deep networks hardly learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.deconv_head import deconv_layers, final_layer, head_settings, init_head
from poise.models.options import check_sizes, is_channels

STAGE_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGE_CHANNELS = (64, 128, 256, 512)
EXTRA_KEYS = (
    "NUM_LAYERS",
    "NUM_CHANNELS",
    "DECONV_WITH_BIAS",
    "NUM_DECONV_LAYERS",
    "NUM_DECONV_FILTERS",
    "NUM_DECONV_KERNELS",
    "FINAL_CONV_KERNEL",
)


class SimpleBaseline(nn.Module):
    """Stem, four stages, deconvolutions, 1x1 convolution.

    stem: the module that takes the place of conv1. make_stage(in_channels, planes, blocks, stride)
    -> (stage, out_channels). Input (B, 3, H, W); output (B, J, H * 2^n / 32, W * 2^n / 32) with n
    deconvolutions. Raises ConfigError where MODEL.IMAGE_SIZE is no multiple of 32 or
    MODEL.HEATMAP_SIZE another than this.
    """

    head_prefixes = ("deconv_layers.", "final_layer.")  # what an ImageNet file cannot hold

    def __init__(
        self, cfg: CfgNode, *, stem: nn.Module, make_stage: Callable[..., tuple[nn.Sequential, int]]
    ):
        super().__init__()
        blocks, planes = stage_settings(cfg.MODEL.EXTRA)
        filters, kernels, bias, final_kernel = head_settings(cfg.MODEL.EXTRA)
        check_sizes(cfg, stride=32 >> len(filters))
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        self.layer1, channels = make_stage(channels, planes[0], blocks[0], 1)
        self.layer2, channels = make_stage(channels, planes[1], blocks[1], 2)
        self.layer3, channels = make_stage(channels, planes[2], blocks[2], 2)
        self.layer4, channels = make_stage(channels, planes[3], blocks[3], 2)
        self.deconv_layers = deconv_layers(channels, filters, kernels, bias)
        self.final_layer = final_layer(filters[-1], cfg.MODEL.NUM_JOINTS, final_kernel)
        if cfg.MODEL.INIT_WEIGHTS:
            self.init_weights()

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        """(B, 3, H, W) -> heatmaps (B, J, h, w); in train mode a tuple of the one supervised
        output.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        heatmaps = self.final_layer(self.deconv_layers(x))
        return (heatmaps,) if self.training else heatmaps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        init_head(self.deconv_layers, self.final_layer)


def stage_settings(extra) -> tuple[Sequence[int], Sequence[int]]:
    """(blocks, planes) of the four stages. EXTRA.NUM_LAYERS names the depth; EXTRA.NUM_CHANNELS
    (Poise) narrows or widens it.
    """
    depth = extra.get("NUM_LAYERS", 50)
    if not isinstance(depth, int) or depth not in STAGE_BLOCKS:
        raise ConfigError(
            f"MODEL.EXTRA.NUM_LAYERS must be one of {', '.join(map(str, STAGE_BLOCKS))}, got"
            f" {depth!r}"
        )
    planes = extra.get("NUM_CHANNELS", STAGE_CHANNELS)
    if not is_channels(planes) or len(planes) != 4:
        raise ConfigError(
            f"MODEL.EXTRA.NUM_CHANNELS must hold four channel counts above 0, got {planes!r}"
        )
    return STAGE_BLOCKS[depth], planes
