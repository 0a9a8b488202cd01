"""MSPN: Multi-Stage Pose Network.

Paper: Li et al., Rethinking on Multi-Stage Networks for Human Pose Estimation, 2019, arXiv
1901.00148, figures 2 and 3. Repository: megvii-research/MSPN exps/mspn.2xstg.coco/network.py. Keys
and figures: tests/golden/models/mspn_*.json.

Each stage is a ResNet-50 body (downsampling) and four units (upsampling), both with maps of strides
4 to 32. The next stage gets the finest map of the upsampling as its input, and two maps per stride
that are added to its downsampling. Every unit has a head. All are supervised, and the last head of
the last stage is the prediction.

Differences from the repository: the loss is in poise.codecs.losses; in eval mode only the
prediction's head runs; with EFFICIENT the running statistics of batch norm are updated once per
step instead of twice.

MODEL.EXTRA has the arguments of MSPN in upper case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.checkpoint import checkpoint
from yacs.config import CfgNode

from poise.models.options import (
    OptionError,
    check_extra,
    is_positive_ints,
    select_keywords,
    translate_option_errors,
)
from poise.models.pose_network import PoseNetwork

# key of MODEL.EXTRA -> keyword argument
EXTRA_KEYS = {
    "STAGES": "stages",
    "LAYERS": "layers",
    "STEM_CHANNELS": "stem_channels",
    "CHANNELS": "channels",
    "EFFICIENT": "efficient",
    "PRETRAINED_STAGES": "pretrained_stages",
}
PRETRAINED_STAGES = ("first", "all")
# (downsampling, upsampling) maps for the next stage, finest first
Skips = list[tuple[torch.Tensor, torch.Tensor]]


class ConvNormRelu(nn.Module):
    """Convolution, batch norm and ReLU: (B, in, h, w) -> (B, out, h / stride, w / stride).

    The bias has no effect before batch norm, but the released checkpoints have it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel size.
        stride: stride of the convolution.
        relu: whether there is a ReLU.
        efficient: recompute the activations in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        relu: bool = True,
        efficient: bool = False,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.efficient = efficient

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.efficient and self.training and torch.is_grad_enabled():
            return checkpoint(
                self.run,
                x,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=self._recompute_contexts,
            )
        return self.run(x)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))

    def _recompute_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Return the contexts of the forward pass and of its recomputation."""
        return nullcontext(), frozen_running_stats(self.bn)


@contextmanager
def frozen_running_stats(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Keep the running statistics unchanged during a pass in train mode.

    Momentum is 0 because with track_running_stats False batch norm would save fewer tensors than
    checkpointing expects.
    """
    momentum = norm.momentum
    assert norm.num_batches_tracked is not None
    batches = norm.num_batches_tracked.clone()
    norm.momentum = 0.0
    try:
        yield
    finally:
        norm.momentum = momentum
        norm.num_batches_tracked.copy_(batches)


class Top(nn.Module):
    """7x7 convolution and max pooling for all stages: (B, 3, H, W) -> (B, channels, H/4, W/4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = ConvNormRelu(3, channels, 7, 2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maxpool(self.conv(images))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut.

    (B, in, h, w) -> (B, 4 planes, h / stride, w / stride).
    """

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, efficient: bool):
        super().__init__()
        out_channels = planes * self.expansion
        self.conv_bn_relu1 = ConvNormRelu(in_channels, planes, 1, efficient=efficient)
        self.conv_bn_relu2 = ConvNormRelu(planes, planes, 3, stride, efficient=efficient)
        self.conv_bn_relu3 = ConvNormRelu(planes, out_channels, 1, relu=False, efficient=efficient)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = ConvNormRelu(
                in_channels, out_channels, 1, stride, relu=False, efficient=efficient
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv_bn_relu3(self.conv_bn_relu2(self.conv_bn_relu1(x)))
        return self.relu(x + shortcut)


class DownPath(nn.Module):
    """Downsampling, the four layers of a ResNet body.

    (B, stem, h, w) -> maps with 4, 8, 16 and 32 times `stem` channels at h, h/2, h/4 and h/8.
    """

    def __init__(self, stem: int, layers: Sequence[int], efficient: bool):
        super().__init__()
        self.layer1 = _layer(stem, stem, layers[0], 1, efficient)
        self.layer2 = _layer(4 * stem, 2 * stem, layers[1], 2, efficient)
        self.layer3 = _layer(8 * stem, 4 * stem, layers[2], 2, efficient)
        self.layer4 = _layer(16 * stem, 8 * stem, layers[3], 2, efficient)

    def forward(self, x: torch.Tensor, skips: Skips | None) -> list[torch.Tensor]:
        """Return the four maps.

        Args:
            x: input.
            skips: from the previous stage, added to each map before its next use; None in the first
                stage.
        """
        maps = []
        for number, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            x = layer(x)
            if skips is not None:
                x = x + skips[number][0] + skips[number][1]
            maps.append(x)
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class UpUnit(nn.Module):
    """The upsampling unit of one stride, with its head.

    Args:
        in_channels: channels of the downsampling's map.
        channels: channels of the upsampling.
        num_keypoints: K, one heatmap each.
        coarsest: whether there is no coarser unit.
        skips: whether the unit has maps for the next stage's downsampling.
        cross: channels of the next stage's input, for the finest unit; 0: none.
        efficient: see ConvNormRelu.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_keypoints: int,
        *,
        coarsest: bool,
        skips: bool,
        cross: int,
        efficient: bool,
    ):
        super().__init__()
        self.u_skip = ConvNormRelu(in_channels, channels, 1, relu=False, efficient=efficient)
        self.relu = nn.ReLU(inplace=True)
        self.up_conv: nn.Module | None = None
        self.skip1: nn.Module | None = None
        self.skip2: nn.Module | None = None
        self.cross_conv: nn.Module | None = None
        if not coarsest:
            self.up_conv = ConvNormRelu(channels, channels, 1, relu=False, efficient=efficient)
        if skips:
            self.skip1 = ConvNormRelu(in_channels, in_channels, 1, efficient=efficient)
            self.skip2 = ConvNormRelu(channels, in_channels, 1, efficient=efficient)
        if cross:
            self.cross_conv = ConvNormRelu(channels, cross, 1, efficient=efficient)
        self.res_conv1 = ConvNormRelu(channels, channels, 1, efficient=efficient)
        self.res_conv2 = ConvNormRelu(channels, num_keypoints, 3, relu=False, efficient=efficient)

    def forward(self, lateral: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """Return (B, C, h, w).

        Args:
            lateral: map of the downsampling, (B, in, h, w).
            coarser: output of the unit of twice the stride, (B, C, h/2, w/2); None for the
                coarsest.
        """
        x = self.u_skip(lateral)
        if self.up_conv is not None:
            assert coarser is not None
            x = x + self.up_conv(resize(coarser, lateral.shape[-2:]))
        return self.relu(x)

    def skip(self, lateral: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the next stage adds to its map of this stride, each (B, in, h, w)."""
        assert self.skip1 is not None and self.skip2 is not None
        return self.skip1(lateral), self.skip2(x)

    def heatmaps(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Return heatmaps (B, K, *size). They end in batch norm, without an activation."""
        return resize(self.res_conv2(self.res_conv1(x)), size)


class UpPath(nn.Module):
    """Upsampling, four units from stride 32 (up1) to stride 4 (up4)."""

    up1: UpUnit
    up2: UpUnit
    up3: UpUnit
    up4: UpUnit

    def __init__(self, stem: int, channels: int, num_keypoints: int, last: bool, efficient: bool):
        super().__init__()
        for number, multiple in enumerate((32, 16, 8, 4), 1):
            cross = stem if number == 4 and not last else 0
            unit = UpUnit(
                multiple * stem,
                channels,
                num_keypoints,
                coarsest=number == 1,
                skips=not last,
                cross=cross,
                efficient=efficient,
            )
            self.add_module(f"up{number}", unit)
        self.last = last

    def forward(
        self, maps: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], Skips, torch.Tensor | None]:
        """Return (heatmaps, skips, cross).

        Heatmaps are from coarse to fine, all of the finest map's size; in eval mode there is only
        the prediction, in the last stage. skips (finest first) and cross (B, stem, h, w) are for
        the next stage; empty and None in the last.

        Args:
            maps: from the downsampling, finest first.
        """
        size = maps[0].shape[-2:]
        x = None
        heatmaps: list[torch.Tensor] = []
        skips: Skips = []
        for unit, lateral in zip((self.up1, self.up2, self.up3, self.up4), reversed(maps)):
            x = unit(lateral, x)
            if self.training or self.last and unit is self.up4:
                heatmaps.append(unit.heatmaps(x, size))
            if not self.last:
                skips.insert(0, unit.skip(lateral, x))
        cross = None if self.up4.cross_conv is None else self.up4.cross_conv(x)
        return heatmaps, skips, cross


class Stage(nn.Module):
    """Downsampling and upsampling: the inputs of DownPath -> the outputs of UpPath."""

    def __init__(
        self,
        stem: int,
        layers: Sequence[int],
        channels: int,
        num_keypoints: int,
        last: bool,
        efficient: bool,
    ):
        super().__init__()
        self.downsample = DownPath(stem, layers, efficient)
        self.upsample = UpPath(stem, channels, num_keypoints, last, efficient)

    def forward(
        self, x: torch.Tensor, skips: Skips | None
    ) -> tuple[list[torch.Tensor], Skips, torch.Tensor | None]:
        return self.upsample(self.downsample(x, skips))


class MSPN(PoseNetwork):
    """Multi-Stage Pose Network: 7x7 convolution and stages of downsampling and upsampling.

    Paper: Li et al., arXiv 1901.00148. Repository: megvii-research/MSPN. Input (B, 3, H, W) with H
    and W multiples of 32; heatmaps (B, K, H / 4, W / 4). Raises OptionError for invalid values.

    Args:
        num_keypoints: K, one heatmap each.
        stages: number of stages; the published networks have 1 to 4.
        layers: bottlenecks of the downsampling at strides 4, 8, 16 and 32.
        stem_channels: channels before the first bottleneck; after the bottlenecks there are 4, 8,
            16 and 32 times as many.
        channels: channels of the upsampling.
        efficient: recompute activations in the backward pass (the repository's RUN_EFFICIENT):
            less memory, the time of a second forward pass, the same result.
        pretrained_stages: stages that poise.models.weights loads an ImageNet ResNet-50 into: the
            'first' as the authors, or 'all' as mmpose.
    """

    extra_keys = tuple(EXTRA_KEYS)

    def __init__(
        self,
        *,
        num_keypoints: int = 17,
        stages: int = 2,
        layers: Sequence[int] = (3, 4, 6, 3),
        stem_channels: int = 64,
        channels: int = 256,
        efficient: bool = False,
        pretrained_stages: str = "first",
    ):
        super().__init__()
        if not is_positive_ints([stages]) or stages > 64:
            raise OptionError(f"stages must be a whole number from 1 to 64, got {stages!r}")
        if not is_positive_ints(layers) or len(layers) != 4 or max(layers) > 64:
            raise OptionError(
                f"layers must hold four numbers of bottlenecks from 1 to 64, got {layers!r}"
            )
        for name, value in (("stem_channels", stem_channels), ("channels", channels)):
            if not is_positive_ints([value]):
                raise OptionError(f"{name} must be a channel count above 0, got {value!r}")
        if not isinstance(efficient, bool):
            raise OptionError(f"efficient must be True or False, got {efficient!r}")
        if pretrained_stages not in PRETRAINED_STAGES:
            raise OptionError(
                f"pretrained_stages must be 'first' or 'all', got {pretrained_stages!r}"
            )
        self.num_stages = stages
        self.pretrained_stages = pretrained_stages
        self.top = Top(stem_channels)
        for number in range(stages):
            last = number == stages - 1
            self.add_module(
                f"stage{number}",
                Stage(stem_channels, layers, channels, num_keypoints, last, efficient),
            )
        self.head_prefixes = self._find_head_prefixes()

    def _find_head_prefixes(self) -> tuple[str, ...]:
        """Return prefixes of the tensors that an ImageNet ResNet does not have.

        They are the upsampling, the biases of all convolutions, and the later stages if only the
        first gets its weights.
        """
        stages = range(self.num_stages)
        prefixes = [f"stage{number}.upsample." for number in stages]
        if self.pretrained_stages == "first":
            prefixes += [f"stage{number}." for number in stages[1:]]
        biases = [name for name, _ in self.named_parameters() if name.endswith(".conv.bias")]
        return (*prefixes, *biases)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """(B, 3, H, W) -> heatmaps (B, K, H/4, W/4).

        In train mode a tuple of 4 per stage: stage by stage, from coarse to fine.
        """
        x = self.top(images)
        skips = None
        heatmaps: list[torch.Tensor] = []
        for number in range(self.num_stages):
            outputs, skips, x = getattr(self, f"stage{number}")(x, skips)
            heatmaps += outputs
        return tuple(heatmaps) if self.training else heatmaps[-1]

    def init_weights(self) -> None:
        """Initialize the downsampling by He's rule, as the repository, and nothing else."""
        for number in range(self.num_stages):
            getattr(self, f"stage{number}").downsample.init_weights()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MSPN:
        """Build the network of MODEL.EXTRA. Raises ConfigError naming the key."""
        check_extra(cfg, cls.extra_keys)
        with translate_option_errors(EXTRA_KEYS):
            return cls(
                num_keypoints=cfg.MODEL.NUM_JOINTS, **select_keywords(cfg.MODEL.EXTRA, EXTRA_KEYS)
            )


@fx.wrap  # sizes are unknown while the network is traced (poise.models.fuse)
def resize(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Resize maps (B, C, h, w) to (B, C, *size), bilinear with aligned corners."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def _layer(
    in_channels: int, planes: int, blocks: int, stride: int, efficient: bool
) -> nn.Sequential:
    first = Bottleneck(in_channels, planes, stride, efficient)
    out_channels = planes * Bottleneck.expansion
    rest = [Bottleneck(out_channels, planes, 1, efficient) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
