"""The deconvolution head of SimpleBaseline, shared by ResNet, Res2Net and MogaNet.

Source: Xiao, Wu, Wei: Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, arXiv
1804.06208, section 2; lib/models/pose_resnet.py of microsoft/human-pose-estimation.pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.options import (
    OptionError,
    is_positive_ints,
    select_keywords,
    translate_option_errors,
)
from poise.models.simcc_head import AxisOptions

BN_MOMENTUM = 0.1
# kernel -> (padding, output padding) for which a transposed convolution of stride 2 doubles its
# input exactly
_PADDING = {4: (1, 0), 3: (1, 1), 2: (0, 0)}
_KEYS = {
    "NUM_DECONV_FILTERS": "filters",
    "NUM_DECONV_KERNELS": "kernels",
    "DECONV_WITH_BIAS": "bias",
    "FINAL_CONV_KERNEL": "final_kernel",
}
# of MODEL.EXTRA
HEAD_KEYS = (*_KEYS, "NUM_DECONV_LAYERS")


@dataclass(frozen=True)
class HeadOptions:
    """Options of the deconvolution head. Raises OptionError for an invalid value.

    Args:
        filters: output channels of each deconvolution, 1 to 5 of them.
        kernels: kernel size of each deconvolution: 2, 3 or 4.
        bias: whether the deconvolutions have a bias.
        final_kernel: kernel size of the last convolution: 1 or 3.
        axes: linear layers after the last convolution (SimCC); None: no such layers.
    """

    filters: Sequence[int] = (256, 256, 256)
    kernels: Sequence[int] = (4, 4, 4)
    bias: bool = False
    final_kernel: int = 1
    axes: AxisOptions | None = None

    def __post_init__(self) -> None:
        if not is_positive_ints(self.filters) or not 1 <= len(self.filters) <= 5:
            raise OptionError(
                f"filters must hold 1 to 5 channel counts above 0, got {self.filters!r}"
            )
        if not is_positive_ints(self.kernels) or not set(self.kernels) <= set(_PADDING):
            raise OptionError(f"kernels must be of 2, 3 and 4, got {self.kernels!r}")
        if len(self.kernels) != len(self.filters):
            raise OptionError(
                f"kernels must hold one kernel for each of {len(self.filters)} filters, got"
                f" {self.kernels!r}"
            )
        if self.final_kernel not in (1, 3):
            raise OptionError(f"final_kernel must be 1 or 3, got {self.final_kernel!r}")
        if not isinstance(self.bias, bool):
            raise OptionError(f"bias must be True or False, got {self.bias!r}")

    @property
    def output_stride(self) -> int:
        """Input pixels per heatmap cell; the features before the head have a stride of 32."""
        return 32 >> len(self.filters)


DEFAULT_HEAD = HeadOptions()


def deconv_layers(in_channels: int, head: HeadOptions) -> nn.Sequential:
    """Return the n deconvolutions: (B, C, h, w) -> (B, filters[-1], 2^n h, 2^n w).

    Each is a transposed convolution of stride 2, batch norm and ReLU.
    """
    layers: list[nn.Module] = []
    for channels, kernel in zip(head.filters, head.kernels):
        padding, output_padding = _PADDING[kernel]
        layers += [
            nn.ConvTranspose2d(
                in_channels, channels, kernel, 2, padding, output_padding, bias=head.bias
            ),
            nn.BatchNorm2d(channels, momentum=BN_MOMENTUM),
            nn.ReLU(inplace=True),
        ]
        in_channels = channels
    return nn.Sequential(*layers)


def final_layer(in_channels: int, num_keypoints: int, kernel: int) -> nn.Conv2d:
    """Return the last convolution, of kernel 1 or 3: (B, C, h, w) -> (B, K, h, w)."""
    return nn.Conv2d(in_channels, num_keypoints, kernel, padding=kernel // 2)


def init_head(layers: nn.Sequential, final: nn.Conv2d) -> None:
    """Draw weights from Normal(0, 0.001) and set biases to 0, as the original does."""
    for module in (*layers.modules(), final):
        if isinstance(module, (nn.ConvTranspose2d, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def head_from_config(extra: CfgNode) -> HeadOptions:
    """Return the head that MODEL.EXTRA describes. Raises ConfigError naming the key."""
    with translate_option_errors(_KEYS):
        head = HeadOptions(**select_keywords(extra, _KEYS))
    count = len(head.filters)
    if extra.get("NUM_DECONV_LAYERS", count) != count:
        raise ConfigError(
            f"MODEL.EXTRA.NUM_DECONV_LAYERS is {extra.NUM_DECONV_LAYERS!r}, but NUM_DECONV_FILTERS"
            f" has {count} entries and NUM_DECONV_KERNELS {count}"
        )
    return head
