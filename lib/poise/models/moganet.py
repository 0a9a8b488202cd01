"""MogaNet-Pose: the MogaNet backbone under SimpleBaseline's deconvolution head.

Paper: Li et al., MogaNet: Multi-order Gated Aggregation Network, ICLR 2024, arXiv 2211.03295,
section 4. Repository: Westlake-AI/MogaNet models/moganet.py (386b548); head of open-mmlab/mmpose
v0.29.0, TopdownHeatmapSimpleHead. Keys and figures: tests/golden/models/moganet_*.json. Not taken
over: options that none of its pose networks used (norms other than batch norm, frozen stages,
attn_force_fp32, which gates twice), and the initialisation, which the original applies to
classifiers only: the backbone of a pose network begins with ImageNet weights or else with PyTorch's
own rule, and so it does here.

MODEL.EXTRA: ARCH ('tiny'): xtiny (xt), tiny (t), small (s), base (b), large (l) or xlarge (xl).
    EMBED_DIMS, DEPTHS, FFN_RATIOS: four numbers each, instead of those of ARCH. DROP_PATH (0.1):
    stochastic depth of the last block; the rate rises to it from 0 in the first. INIT_VALUE (1e-5):
    what the layer scales begin with, so that a block begins as almost nothing; for ImageNet's 300
    epochs. and those of the head, see poise.models.deconv_head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.deconv_head import deconv_layers, final_layer, head_settings, init_head
from poise.models.drop_path import DropPath, linear_rates
from poise.models.options import check_sizes, is_channels, is_number

# name -> (channels, blocks, FFN expansion) of the four stages
ARCHS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "xtiny": ((32, 64, 96, 192), (3, 3, 10, 2), (8, 8, 4, 4)),
    "tiny": ((32, 64, 128, 256), (3, 3, 12, 2), (8, 8, 4, 4)),
    "small": ((64, 128, 320, 512), (2, 3, 12, 2), (8, 8, 4, 4)),
    "base": ((64, 160, 320, 512), (4, 6, 22, 3), (8, 8, 4, 4)),
    "large": ((64, 160, 320, 640), (4, 6, 44, 4), (8, 8, 4, 4)),
    "xlarge": ((96, 192, 480, 960), (6, 6, 44, 4), (8, 8, 4, 4)),
}
ALIASES = {
    "xt": "xtiny",
    "x-tiny": "xtiny",
    "t": "tiny",
    "s": "small",
    "b": "base",
    "l": "large",
    "xl": "xlarge",
    "x-large": "xlarge",
}
EXTRA_KEYS = (
    "ARCH",
    "EMBED_DIMS",
    "DEPTHS",
    "FFN_RATIOS",
    "DROP_PATH",
    "INIT_VALUE",
    "DECONV_WITH_BIAS",
    "NUM_DECONV_LAYERS",
    "NUM_DECONV_FILTERS",
    "NUM_DECONV_KERNELS",
    "FINAL_CONV_KERNEL",
)
SCALE_INIT = 1e-5  # what the scales of the feature decompositions begin with


class ElementScale(nn.Module):
    """A learned factor per channel: (B, C, h, w) -> the same."""

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), init_value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


class MultiOrderDWConv(nn.Module):
    """Depthwise convolutions of three reaches: (B, C, h, w) -> the same.

    After a 5x5 one over all channels, an eighth of them stays, three eighths go through 5x5 with
    dilation 2, half through 7x7 with dilation 3 (the paper's low, middle and high order), and a 1x1
    convolution mixes them.
    """

    def __init__(self, channels: int):
        super().__init__()
        middle, high = channels * 3 // 8, channels // 2
        self.splits = (channels - middle - high, middle, high)
        self.DW_conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.DW_conv1 = nn.Conv2d(middle, middle, 5, padding=4, dilation=2, groups=middle)
        self.DW_conv2 = nn.Conv2d(high, high, 7, padding=9, dilation=3, groups=high)
        self.PW_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, middle, high = self.DW_conv0(x).split(self.splits, dim=1)
        return self.PW_conv(torch.cat([low, self.DW_conv1(middle), self.DW_conv2(high)], dim=1))


class MultiOrderGatedAggregation(nn.Module):
    """Spatial mixing: each channel's difference to its mean is amplified, then a gate chooses
    among the orders. (B, C, h, w) -> the same.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.value = MultiOrderDWConv(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)
        self.sigma = ElementScale(channels, SCALE_INIT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.proj_1(x)
        u = F.silu(u + self.sigma(u - u.mean(dim=(2, 3), keepdim=True)))
        # besides the block's shortcut the code has this one, inside layer scale and drop path, to
        # the normed input
        return self.proj_2(F.silu(self.gate(u)) * F.silu(self.value(u))) + x


class ChannelAggregationFFN(nn.Module):
    """Channel mixing: the difference of `hidden` channels to one channel made of all of them is
    amplified. (B, C, h, w) -> the same.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.decompose = nn.Conv2d(hidden, 1, 1)
        self.sigma = ElementScale(hidden, SCALE_INIT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.dwconv(self.fc1(x)))
        return self.fc2(h + self.sigma(h - F.gelu(self.decompose(h))))


class MogaBlock(nn.Module):
    """Spatial then channel mixing, each normed before and scaled after, on a residual path: (B,
    C, h, w) -> the same.
    """

    def __init__(self, channels: int, ffn_ratio: int, drop_path: float, init_value: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.attn = MultiOrderGatedAggregation(channels)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = ChannelAggregationFFN(channels, channels * ffn_ratio)
        self.layer_scale_1 = nn.Parameter(torch.full((1, channels, 1, 1), init_value))
        self.layer_scale_2 = nn.Parameter(torch.full((1, channels, 1, 1), init_value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.layer_scale_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(x)))


class Stem(nn.Module):
    """Two convolutions of stride 2: images (B, 3, H, W) -> (B, C, H / 4, W / 4); C even."""

    def __init__(self, channels: int):
        super().__init__()
        self.projection = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, 2, 1),
            nn.BatchNorm2d(channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, 2, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(x)


class PatchEmbed(nn.Module):
    """A convolution of stride 2 between stages: (B, in, h, w) -> (B, out, h / 2, w / 2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.projection(x))


class MogaNet(nn.Module):
    """The backbone: images (B, 3, H, W) -> four features (B, embed_dims[k], H / 4 / 2^k, W / 4 /
    2^k), k = 0 to 3.

    The norm at the end of a stage stands before its output and before the next stage alike.
    embed_dims: multiples of 8.
    """

    def __init__(
        self,
        *,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        ffn_ratios: Sequence[int],
        drop_path: float,
        init_value: float,
    ):
        super().__init__()
        rates = iter(linear_rates(drop_path, sum(depths)))
        for number, (channels, blocks, ratio) in enumerate(
            zip(embed_dims, depths, ffn_ratios), start=1
        ):
            embed = Stem(channels) if number == 1 else PatchEmbed(embed_dims[number - 2], channels)
            self.add_module(f"patch_embed{number}", embed)
            self.add_module(
                f"blocks{number}",
                nn.ModuleList(
                    MogaBlock(channels, ratio, next(rates), init_value) for _ in range(blocks)
                ),
            )
            self.add_module(f"norm{number}", nn.BatchNorm2d(channels))
        self.stages = len(embed_dims)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"patch_embed{number}")(x)
            for block in self.get_submodule(f"blocks{number}"):
                x = block(x)
            x = self.get_submodule(f"norm{number}")(x)
            features.append(x)
        return features


class HeatmapHead(nn.Module):
    """The deconvolution head under the names of mmpose: (B, C, h, w) -> (B, J, 2^n h, 2^n w)
    with n deconvolutions.
    """

    def __init__(
        self,
        in_channels: int,
        joints: int,
        *,
        filters: Sequence[int],
        kernels: Sequence[int],
        bias: bool,
        final_kernel: int,
    ):
        super().__init__()
        self.deconv_layers = deconv_layers(in_channels, filters, kernels, bias)
        self.final_layer = final_layer(filters[-1], joints, final_kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_layer(self.deconv_layers(x))


class MogaNetPose(nn.Module):
    """(B, 3, H, W) -> heatmaps (B, J, H / 4, W / 4) with three deconvolutions; in train mode a
    tuple of the one supervised output.
    """

    head_prefixes = ("keypoint_head.",)  # what an ImageNet file cannot hold

    def __init__(self, backbone: MogaNet, head: HeatmapHead):
        super().__init__()
        self.backbone = backbone
        self.keypoint_head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        heatmaps = self.keypoint_head(self.backbone(images)[-1])
        return (heatmaps,) if self.training else heatmaps


def build(cfg: CfgNode) -> MogaNetPose:
    """The network of MODEL.EXTRA. Raises ConfigError for settings that cannot be."""
    extra = cfg.MODEL.EXTRA
    dims, depths, ratios = arch_settings(extra)
    rate, init_value = extra.get("DROP_PATH", 0.1), extra.get("INIT_VALUE", 1e-5)
    if not is_number(rate) or not 0 <= rate < 1:
        raise ConfigError(f"MODEL.EXTRA.DROP_PATH must be a number from 0 to below 1, got {rate!r}")
    if not is_number(init_value) or not 0 < init_value <= 1e3:
        raise ConfigError(
            f"MODEL.EXTRA.INIT_VALUE must be a number above 0 and at most 1000, got {init_value!r}"
        )
    filters, kernels, bias, final_kernel = head_settings(extra)
    check_sizes(cfg, stride=32 >> len(filters))
    backbone = MogaNet(
        embed_dims=dims,
        depths=depths,
        ffn_ratios=ratios,
        drop_path=float(rate),
        init_value=float(init_value),
    )
    head = HeatmapHead(
        dims[-1],
        cfg.MODEL.NUM_JOINTS,
        filters=filters,
        kernels=kernels,
        bias=bias,
        final_kernel=final_kernel,
    )
    if cfg.MODEL.INIT_WEIGHTS:
        init_head(head.deconv_layers, head.final_layer)
    return MogaNetPose(backbone, head)


def arch_settings(extra) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """(channels, blocks, FFN expansion) of the four stages from MODEL.EXTRA, checked. Raises
    ConfigError.
    """
    arch = extra.get("ARCH", "tiny")
    name = ALIASES.get(arch.lower(), arch.lower()) if isinstance(arch, str) else arch
    if not isinstance(name, str) or name not in ARCHS:
        raise ConfigError(f"MODEL.EXTRA.ARCH must be one of {', '.join(ARCHS)}, got {arch!r}")
    settings = [
        extra.get(key, default)
        for key, default in zip(("EMBED_DIMS", "DEPTHS", "FFN_RATIOS"), ARCHS[name])
    ]
    for key, value in zip(("EMBED_DIMS", "DEPTHS", "FFN_RATIOS"), settings):
        if not is_channels(value) or len(value) != 4:
            raise ConfigError(
                f"MODEL.EXTRA.{key} must hold four whole numbers above 0, got {value!r}"
            )
    if any(channels % 8 for channels in settings[0]):
        raise ConfigError(f"MODEL.EXTRA.EMBED_DIMS must hold multiples of 8, got {settings[0]!r}")
    return settings[0], settings[1], settings[2]
