"""MogaNet-Pose: the MogaNet backbone under SimpleBaseline's deconvolution head.

Paper: Li et al., MogaNet: Multi-order Gated Aggregation Network, ICLR 2024, arXiv 2211.03295,
section 4. Repository: Westlake-AI/MogaNet models/moganet.py (386b548); head of open-mmlab/mmpose
v0.29.0, TopdownHeatmapSimpleHead. Keys and figures: tests/golden/models/moganet_*.json.

Differences from the repository: no options that none of its pose networks uses (norms other than
batch norm, frozen stages, attn_force_fp32, which gates twice). As there, the backbone of a pose
network starts from ImageNet weights or PyTorch's initialization; the original's own is for
classifiers only.

MODEL.EXTRA has the arguments of MogaNetPose in upper case and those of the head, see
poise.models.deconv_head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from poise.models.deconv_head import (
    DEFAULT_HEAD,
    HEAD_KEYS,
    HeadOptions,
    deconv_layers,
    final_layer,
    head_from_config,
    init_head,
)
from poise.models.drop_path import DropPath, linear_rates
from poise.models.options import (
    OptionError,
    check_extra,
    is_number,
    is_positive_ints,
    select_keywords,
    translate_option_errors,
)
from poise.models.pose_network import PoseNetwork

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
# key of MODEL.EXTRA -> keyword argument
EXTRA_KEYS = {
    "ARCH": "arch",
    "EMBED_DIMS": "embed_dims",
    "DEPTHS": "depths",
    "FFN_RATIOS": "ffn_ratios",
    "DROP_PATH": "drop_path",
    "INIT_VALUE": "init_value",
}
SCALE_INIT = 1e-5  # initial scale of the feature decompositions


class ElementScale(nn.Module):
    """A learned factor per channel: (B, C, h, w) -> the same."""

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), init_value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


class MultiOrderDWConv(nn.Module):
    """Depthwise convolutions of three receptive fields: (B, C, h, w) -> the same.

    After a 5x5 convolution of all channels, one eighth of them is kept (low order), three eighths
    have a 5x5 convolution of dilation 2 (middle), half have a 7x7 convolution of dilation 3 (high),
    and a 1x1 convolution mixes them.
    """

    def __init__(self, channels: int):
        super().__init__()
        middle = channels * 3 // 8
        high = channels // 2
        self.splits = (channels - middle - high, middle, high)
        self.DW_conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.DW_conv1 = nn.Conv2d(middle, middle, 5, padding=4, dilation=2, groups=middle)
        self.DW_conv2 = nn.Conv2d(high, high, 7, padding=9, dilation=3, groups=high)
        self.PW_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, middle, high = self.DW_conv0(x).split(self.splits, dim=1)
        return self.PW_conv(torch.cat([low, self.DW_conv1(middle), self.DW_conv2(high)], dim=1))


class MultiOrderGatedAggregation(nn.Module):
    """Spatial mixing: (B, C, h, w) -> the same.

    The difference of each channel to its mean is amplified, then a gate weights the orders.
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
        # the repository has this shortcut to the normalized input too, inside of layer scale and
        # drop path
        return self.proj_2(F.silu(self.gate(u)) * F.silu(self.value(u))) + x


class ChannelAggregationFFN(nn.Module):
    """Channel mixing: (B, C, h, w) -> the same.

    The difference of `hidden` channels to one channel computed from all of them is amplified.
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
    """Spatial, then channel mixing, each with norm, layer scale and shortcut.

    (B, C, h, w) -> the same.
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
    """The backbone: images (B, 3, H, W) -> features of the four stages k = 0 to 3.

    Features have the shape (B, embed_dims[k], H / 4 / 2^k, W / 4 / 2^k). The norm at the end of a
    stage is before its output and before the next stage.

    Args: see MogaNetPose.
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
            if number == 1:
                self.add_module("patch_embed1", Stem(channels))
            else:
                embed = PatchEmbed(embed_dims[number - 2], channels)
                self.add_module(f"patch_embed{number}", embed)
            chain = [MogaBlock(channels, ratio, next(rates), init_value) for _ in range(blocks)]
            self.add_module(f"blocks{number}", nn.ModuleList(chain))
            self.add_module(f"norm{number}", nn.BatchNorm2d(channels))
        self.stages = len(embed_dims)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"patch_embed{number}")(x)
            for block in self.get_submodule(f"blocks{number}").children():
                x = block(x)
            x = self.get_submodule(f"norm{number}")(x)
            features.append(x)
        return features


class HeatmapHead(nn.Module):
    """The deconvolution head with mmpose's keys: (B, C, h, w) -> (B, K, 2^n h, 2^n w).

    n is the number of deconvolutions.
    """

    def __init__(self, in_channels: int, num_keypoints: int, head: HeadOptions):
        super().__init__()
        self.deconv_layers = deconv_layers(in_channels, head)
        self.final_layer = final_layer(head.filters[-1], num_keypoints, head.final_kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_layer(self.deconv_layers(x))


class MogaNetPose(PoseNetwork):
    """MogaNet with the deconvolution head of SimpleBaseline.

    Paper: Li et al., arXiv 2211.03295. Repository: Westlake-AI/MogaNet. Input (B, 3, H, W) with H
    and W multiples of 32; heatmaps (B, K, H / 4, W / 4) with three deconvolutions. Raises
    OptionError for invalid values.

    Args:
        num_keypoints: K, one heatmap each.
        arch: xtiny (xt), tiny (t), small (s), base (b), large (l) or xlarge (xl).
        embed_dims: channels of the four stages instead of those of `arch`, multiples of 8.
        depths: blocks of the four stages instead of those of `arch`.
        ffn_ratios: FFN expansions of the four stages instead of those of `arch`.
        drop_path: stochastic depth of the last block; the rate rises to it from 0 in the first.
        init_value: initial layer scale; the default, with which a block has almost no effect at
            first, is for the 300 epochs of ImageNet.
        head: options of the deconvolutions and the last convolution.
    """

    head_prefixes = ("keypoint_head.",)
    extra_keys = (*EXTRA_KEYS, *HEAD_KEYS)

    def __init__(
        self,
        *,
        num_keypoints: int = 17,
        arch: str = "tiny",
        embed_dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        ffn_ratios: Sequence[int] | None = None,
        drop_path: float = 0.1,
        init_value: float = 1e-5,
        head: HeadOptions = DEFAULT_HEAD,
    ):
        super().__init__()
        name = str(arch).lower()
        name = ALIASES.get(name, name)
        if name not in ARCHS:
            raise OptionError(f"arch must be one of {', '.join(ARCHS)}, got {arch!r}")
        default_dims, default_depths, default_ratios = ARCHS[name]
        dims = default_dims if embed_dims is None else embed_dims
        blocks = default_depths if depths is None else depths
        ratios = default_ratios if ffn_ratios is None else ffn_ratios
        _check_stages(dims, blocks, ratios)
        if not is_number(drop_path) or not 0 <= drop_path < 1:
            raise OptionError(f"drop_path must be a number from 0 to below 1, got {drop_path!r}")
        if not is_number(init_value) or not 0 < init_value <= 1e3:
            raise OptionError(
                f"init_value must be a number above 0 and at most 1000, got {init_value!r}"
            )
        self.output_stride = head.output_stride
        self.backbone = MogaNet(
            embed_dims=dims,
            depths=blocks,
            ffn_ratios=ratios,
            drop_path=float(drop_path),
            init_value=float(init_value),
        )
        self.keypoint_head = HeatmapHead(dims[-1], num_keypoints, head)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        """(B, 3, H, W) -> heatmaps (B, K, h, w); in train mode a tuple of one."""
        heatmaps = self.keypoint_head(self.backbone(images)[-1])
        return (heatmaps,) if self.training else heatmaps

    def init_weights(self) -> None:
        """Initialize the head as SimpleBaseline does; the backbone keeps PyTorch's values."""
        init_head(self.keypoint_head.deconv_layers, self.keypoint_head.final_layer)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MogaNetPose:
        """Build the network of MODEL.EXTRA. Raises ConfigError naming the key."""
        check_extra(cfg, cls.extra_keys)
        with translate_option_errors(EXTRA_KEYS):
            return cls(
                num_keypoints=cfg.MODEL.NUM_JOINTS,
                head=head_from_config(cfg.MODEL.EXTRA),
                **select_keywords(cfg.MODEL.EXTRA, EXTRA_KEYS),
            )


def _check_stages(embed_dims: Sequence[int], depths: Sequence[int], ratios: Sequence[int]) -> None:
    """Raise OptionError for invalid options of the four stages."""
    given = {"embed_dims": embed_dims, "depths": depths, "ffn_ratios": ratios}
    for name, value in given.items():
        if not is_positive_ints(value) or len(value) != 4:
            raise OptionError(f"{name} must hold four whole numbers above 0, got {value!r}")
    if any(channels % 8 for channels in embed_dims):
        raise OptionError(f"embed_dims must hold multiples of 8, got {embed_dims!r}")
