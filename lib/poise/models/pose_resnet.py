"""SimpleBaseline: ResNet with a deconvolution head.

Papers: He et al., Deep Residual Learning, CVPR 2016, arXiv 1512.03385; Xiao et al., ECCV 2018,
arXiv 1804.06208. Repository: microsoft/human-pose-estimation.pytorch (MIT)
lib/models/pose_resnet.py; the same network serves as the baseline of
Res2Net/Res2Net-Pose-Estimation. Keys and figures: tests/golden/models/pose_resnet*.json.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from poise.models.deconv_head import DEFAULT_HEAD, HeadOptions
from poise.models.options import OptionError, translate_option_errors
from poise.models.simple_baseline import (
    EXTRA_KEYS,
    STAGE_CHANNELS,
    SimpleBaseline,
    common_keywords,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in, h, w) -> (B, planes, h / stride, w / stride)."""

    expansion = 1

    def __init__(
        self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None, style: str
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut.

    (B, in, h, w) -> (B, 4 planes, h / stride, w / stride). Style 'caffe' has the stride in the
    first 1x1 convolution, as the original ImageNet models; 'pytorch' in the 3x3 one.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None, style: str
    ):
        super().__init__()
        first, second = (stride, 1) if style == "caffe" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, planes, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)


class PoseResNet(SimpleBaseline):
    """ResNet with the deconvolution head of SimpleBaseline.

    Papers: He et al., arXiv 1512.03385; Xiao et al., arXiv 1804.06208. Repository:
    microsoft/human-pose-estimation.pytorch. Input (B, 3, H, W) with H and W multiples of 32;
    heatmaps (B, K, H / 4, W / 4) with three deconvolutions. Raises OptionError for invalid values.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_keypoints: K, one heatmap each.
        style: 'pytorch' or 'caffe', see Bottleneck.
        channels: planes of the blocks of the four stages.
        head: options of the deconvolutions and the last convolution.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        num_keypoints: int = 17,
        style: str = "pytorch",
        channels: Sequence[int] = STAGE_CHANNELS,
        head: HeadOptions = DEFAULT_HEAD,
    ):
        if style not in ("pytorch", "caffe"):
            raise OptionError(f"style must be 'pytorch' or 'caffe', got {style!r}")
        block = BasicBlock if depth in (18, 34) else Bottleneck

        def make_stage(
            in_channels: int, planes: int, blocks: int, stride: int
        ) -> tuple[nn.Sequential, int]:
            out_channels = planes * block.expansion
            downsample = None
            if stride != 1 or in_channels != out_channels:
                downsample = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
            first = block(in_channels, planes, stride, downsample, style)
            rest = [block(out_channels, planes, 1, None, style) for _ in range(blocks - 1)]
            return nn.Sequential(first, *rest), out_channels

        super().__init__(
            depth=depth,
            num_keypoints=num_keypoints,
            channels=channels,
            head=head,
            stem=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            make_stage=make_stage,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PoseResNet:
        """Build the network of MODEL.STYLE and MODEL.EXTRA. Raises ConfigError naming the key."""
        with translate_option_errors(EXTRA_KEYS):
            return cls(style=cfg.MODEL.STYLE, **common_keywords(cfg))
