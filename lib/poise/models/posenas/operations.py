"""The operations of PoseNAS's cells and the table of their names.

Paper: Bao et al., ACM MM 2020, doi 10.1145/3394171.3413842. Repository: for-code0216/PoseNAS
models/ (743c062). Legend: B batch, C channels, h w cells of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch norm: (B, in, h, w) -> (B, out, h / stride, w / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1
    ):
        super().__init__()
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2 * dilation, dilation, bias=False
        )
        # the ReLU must not work in place: a state feeds several edges
        self.net = nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class FactorizedReduce(nn.Module):
    """Two 1x1 convolutions of stride 2, the second shifted by one pixel.

    (B, in, h, w) -> (B, out, h / 2, w / 2), h and w even.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return self.bn(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], dim=1))


class PoolBN(nn.Module):
    """3x3 pooling, batch norm: (B, C, h, w) -> (B, C, h / stride, w / stride)."""

    def __init__(self, pool: nn.Module, channels: int):
        super().__init__()
        self.pool = pool
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.pool(x))


class SqueezeExcite(nn.Module):
    """Channels weighted by a function of their means: (B, C, h, w) -> the same.

    Source: Hu et al., CVPR 2018, arXiv 1709.01507.

    Args:
        channels: C.
        reduction: the inner layer has C / reduction channels. The published PoseNAS has 1, its
            first version had 2.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(weight)


class SpatialGate(nn.Module):
    """Pixels weighted by a function of their channels: (B, C, h, w) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.conv(x))


class Zero(nn.Module):
    """No connection: (B, C, h, w) -> zeros (B, C, h / stride, w / stride)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


# name in a genotype -> (channels, stride, SE reduction) -> its module. All may be candidates of a
# search
OPERATIONS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "none": lambda c, stride, se: Zero(stride),
    "avg_pool_3x3": lambda c, stride, se: PoolBN(
        nn.AvgPool2d(3, stride, 1, count_include_pad=False), c
    ),
    "max_pool_3x3": lambda c, stride, se: PoolBN(nn.MaxPool2d(3, stride, 1), c),
    "skip_connect": lambda c, stride, se: nn.Identity() if stride == 1 else FactorizedReduce(c, c),
    "std_conv_3x3": lambda c, stride, se: ReLUConvBN(c, c, 3, stride),
    "std_conv_1x1": lambda c, stride, se: ReLUConvBN(c, c, 1, stride),
    # dense, not depthwise
    "dil_conv_3x3_2": lambda c, stride, se: ReLUConvBN(c, c, 3, stride, dilation=2),
    "dil_conv_3x3_4": lambda c, stride, se: ReLUConvBN(c, c, 3, stride, dilation=4),
    "se_connect": lambda c, stride, se: SqueezeExcite(c, se),
    "spatial_wise": lambda c, stride, se: SpatialGate(c),
}
# these keep the size of their input at any stride, so Genotype refuses them at the inputs of a
# reduction cell
SIZE_PRESERVING = ("se_connect", "spatial_wise")
