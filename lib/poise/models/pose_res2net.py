"""Res2Net-Pose: Res2Net v1 and v1b backbones under SimpleBaseline's deconvolution head.

Paper: Gao et al., Res2Net: A New Multi-scale Backbone Architecture, TPAMI 2021, arXiv 1904.01169,
figure 2 and equation 1. Repository: Res2Net/Res2Net-Pose-Estimation lib/models/pose_res2net.py and
pose_res2net_v1b.py. v1b takes a stem of three 3x3 convolutions and average pooling in its shortcuts
(He et al., Bag of Tricks, CVPR 2019, arXiv 1812.01187, ResNet-C and -D). Keys and figures:
tests/golden/models/pose_res2net*.json.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from poise.models.deconv_head import BN_MOMENTUM, DEFAULT_HEAD, HeadOptions
from poise.models.options import OptionError, is_positive_ints, translate_option_errors
from poise.models.simple_baseline import (
    EXTRA_KEYS,
    STAGE_CHANNELS,
    SimpleBaseline,
    common_keywords,
)


class Bottle2neck(nn.Module):
    """Bottleneck with a chain of 3x3 convolutions over channel groups.

    (B, in, h, w) -> (B, 4 planes, h / stride, w / stride). All groups but the last have a
    convolution, each after adding the output of the previous one. In the first block of a stage
    nothing is added, because the size changes there, and the last group is pooled.

    Args:
        in_channels: channels of the input.
        planes: a quarter of the output channels.
        stride: stride of the 3x3 convolutions.
        downsample: the shortcut; None: identity.
        base_width: channels of a group at 64 planes.
        scales: number of groups.
        opens_stage: whether it is the first block of a stage.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        base_width: int,
        scales: int,
        opens_stage: bool,
    ):
        super().__init__()
        width = planes * base_width // 64
        convolved = max(scales - 1, 1)
        self.conv1 = nn.Conv2d(in_channels, width * scales, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * scales)
        self.pool = nn.AvgPool2d(3, stride, 1) if opens_stage else None
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, 1, bias=False) for _ in range(convolved)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(convolved))
        self.conv3 = nn.Conv2d(width * scales, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.width = width
        self.scales = scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        groups = self.relu(self.bn1(self.conv1(x))).split(self.width, dim=1)
        outputs: list[torch.Tensor] = []
        # not over the groups: a tensor that is traced (poise.models.fuse) has no length
        for number, (conv, norm) in enumerate(zip(self.convs, self.bns)):
            group = groups[number]
            if outputs and self.pool is None:
                group = outputs[-1] + group
            outputs.append(self.relu(norm(conv(group))))
        if self.scales > 1:
            last = groups[-1]
            outputs.append(last if self.pool is None else self.pool(last))
        x = self.bn3(self.conv3(torch.cat(outputs, dim=1)))
        return self.relu(x + shortcut)


class PoseRes2Net(SimpleBaseline):
    """Res2Net v1 with the deconvolution head of SimpleBaseline.

    Paper: Gao et al., arXiv 1904.01169. Repository: Res2Net/Res2Net-Pose-Estimation. Input
    (B, 3, H, W) with H and W multiples of 32; heatmaps (B, K, H / 4, W / 4) with three
    deconvolutions. Raises OptionError for invalid values.

    Args:
        depth: 18, 34, 50, 101 or 152; all depths have bottlenecks.
        num_keypoints: K, one heatmap each.
        base_width: channels of a group where a block has 64 planes.
        scales: groups of a block.
        channels: planes of the blocks of the four stages.
        head: options of the deconvolutions and the last convolution.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        num_keypoints: int = 17,
        base_width: int = 26,
        scales: int = 4,
        channels: Sequence[int] = STAGE_CHANNELS,
        head: HeadOptions = DEFAULT_HEAD,
    ):
        for name, value in (("base_width", base_width), ("scales", scales)):
            if not is_positive_ints([value]):
                raise OptionError(f"{name} must be a whole number above 0, got {value!r}")

        def make_stage(
            in_channels: int, planes: int, blocks: int, stride: int
        ) -> tuple[nn.Sequential, int]:
            sizes = {"base_width": base_width, "scales": scales}
            out_channels = planes * Bottle2neck.expansion
            downsample = None
            if stride != 1 or in_channels != out_channels:
                downsample = self.make_shortcut(in_channels, out_channels, stride)
            first = Bottle2neck(in_channels, planes, stride, downsample, opens_stage=True, **sizes)
            rest = [
                Bottle2neck(out_channels, planes, 1, None, opens_stage=False, **sizes)
                for _ in range(blocks - 1)
            ]
            return nn.Sequential(first, *rest), out_channels

        super().__init__(
            depth=depth,
            num_keypoints=num_keypoints,
            channels=channels,
            head=head,
            stem=self.make_stem(),
            make_stage=make_stage,
        )

    @staticmethod
    def make_stem() -> nn.Module:
        """Return the convolution (B, 3, H, W) -> (B, 64, H / 2, W / 2)."""
        return nn.Conv2d(3, 64, 7, 2, 3, bias=False)

    @staticmethod
    def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        """Return the shortcut (B, in, h, w) -> (B, out, h / stride, w / stride)."""
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PoseRes2Net:
        """Build the network of MODEL.BASEWIDTH, MODEL.SCALE and MODEL.EXTRA.

        Raises ConfigError naming the key.
        """
        with translate_option_errors(EXTRA_KEYS):
            return cls(
                base_width=cfg.MODEL.BASEWIDTH, scales=cfg.MODEL.SCALE, **common_keywords(cfg)
            )


class PoseRes2NetV1b(PoseRes2Net):
    """Res2Net v1b: the blocks of v1 after a stem of three convolutions, with pooled shortcuts.

    Paper, repository and arguments: see PoseRes2Net.
    """

    @staticmethod
    def make_stem() -> nn.Module:
        """Return the three convolutions (B, 3, H, W) -> (B, 64, H / 2, W / 2)."""
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32, momentum=BN_MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, 1, 1, bias=False),
            nn.BatchNorm2d(32, momentum=BN_MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, 1, 1, bias=False),
        )

    @staticmethod
    def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        """Return the pooled shortcut (B, in, h, w) -> (B, out, h / stride, w / stride)."""
        return nn.Sequential(
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
