"""The deconvolution head of SimpleBaseline, shared by ResNet, Res2Net and MogaNet.

Source: Xiao, Wu, Wei: Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, arXiv
1804.06208, section 2; lib/models/pose_resnet.py of microsoft/human-pose-estimation.pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from poise.errors import ConfigError
from poise.models.options import is_channels

BN_MOMENTUM = 0.1
# kernel -> (padding, output padding) with which a stride-2 transposed convolution doubles its input
# exactly
_PADDING = {4: (1, 0), 3: (1, 1), 2: (0, 0)}


def deconv_layers(
    in_channels: int, filters: Sequence[int], kernels: Sequence[int], bias: bool
) -> nn.Sequential:
    """Transposed convolution, batch norm, ReLU per entry; each doubles height and width: (B, C,
    h, w) -> (B, filters[-1], 2^n h, 2^n w).
    """
    layers: list[nn.Module] = []
    for channels, kernel in zip(filters, kernels):
        padding, output_padding = _PADDING[kernel]
        layers += [
            nn.ConvTranspose2d(
                in_channels, channels, kernel, 2, padding, output_padding, bias=bias
            ),
            nn.BatchNorm2d(channels, momentum=BN_MOMENTUM),
            nn.ReLU(inplace=True),
        ]
        in_channels = channels
    return nn.Sequential(*layers)


def final_layer(in_channels: int, joints: int, kernel: int) -> nn.Conv2d:
    """Heatmaps from features: (B, C, h, w) -> (B, J, h, w)."""
    return nn.Conv2d(in_channels, joints, kernel, padding=1 if kernel == 3 else 0)


def init_head(layers: nn.Sequential, final: nn.Conv2d) -> None:
    """Normal(0, 0.001) weights and zero biases, as the original initialises its head."""
    for module in (*layers.modules(), final):
        if isinstance(module, (nn.ConvTranspose2d, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def head_settings(extra) -> tuple[list[int], list[int], bool, int]:
    """(filters, kernels, bias, final kernel) from MODEL.EXTRA, checked. Raises ConfigError."""
    filters, kernels = (
        extra.get(key, default)
        for key, default in (("NUM_DECONV_FILTERS", [256] * 3), ("NUM_DECONV_KERNELS", [4] * 3))
    )
    if not is_channels(filters) or not 1 <= len(filters) <= 5:
        raise ConfigError(
            "MODEL.EXTRA.NUM_DECONV_FILTERS must hold 1 to 5 channel counts above 0, got"
            f" {filters!r}"
        )
    if not is_channels(kernels) or not set(kernels) <= set(_PADDING):
        raise ConfigError(f"MODEL.EXTRA.NUM_DECONV_KERNELS must be of 2, 3 and 4, got {kernels!r}")
    count = extra.get("NUM_DECONV_LAYERS", len(filters))
    if not count == len(filters) == len(kernels):
        raise ConfigError(
            f"MODEL.EXTRA.NUM_DECONV_LAYERS is {count!r}, but NUM_DECONV_FILTERS has {len(filters)}"
            f" entries and NUM_DECONV_KERNELS {len(kernels)}"
        )
    final_kernel, bias = extra.get("FINAL_CONV_KERNEL", 1), extra.get("DECONV_WITH_BIAS", False)
    if final_kernel not in (1, 3):
        raise ConfigError(f"MODEL.EXTRA.FINAL_CONV_KERNEL must be 1 or 3, got {final_kernel!r}")
    if not isinstance(bias, bool):
        raise ConfigError(f"MODEL.EXTRA.DECONV_WITH_BIAS must be True or False, got {bias!r}")
    return list(filters), list(kernels), bias, final_kernel
