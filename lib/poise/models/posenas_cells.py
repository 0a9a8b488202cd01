"""The parts of PoseNAS: operations, encoder cells and fusion cells, and the stages made of them.

Paper: Bao et al., ACM MM 2020, doi 10.1145/3394171.3413842; cells after Liu et al., DARTS, ICLR 2019, arXiv 1806.09055.
Repository: for-code0216/PoseNAS models/ (743c062). Legend: B batch, C channels, J joints, h w cells of a feature map.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from poise.models.genotypes import CONCAT, EDGES_PER_NODE, Edges, reduction_stride


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch norm: (B, in, h, w) -> (B, out, h / stride, w / stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2 * dilation, dilation, bias=False)
        # the ReLU must not work in place: a state feeds several edges
        self.net = nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class FactorizedReduce(nn.Module):
    """Half the size by two strided 1x1 convolutions, the second one pixel further: (B, in, h, w) -> (B, out, h / 2, w / 2), h and w even."""

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
    """Channels weighted by what is in the whole map (Hu et al., CVPR 2018, arXiv 1709.01507): (B, C, h, w) -> the same.

    reduction: the inner layer has C / reduction channels. The published PoseNAS has 1, its first version had 2.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(weight)


class SpatialGate(nn.Module):
    """Pixels weighted by what is in them: (B, C, h, w) -> the same."""

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
        return torch.zeros_like(x[:, :, ::self.stride, ::self.stride])


# operation -> its module from (channels, stride, SE reduction); the names are poise.models.genotypes.OPERATION_NAMES
OPERATIONS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "none": lambda c, stride, se: Zero(stride),
    "avg_pool_3x3": lambda c, stride, se: PoolBN(nn.AvgPool2d(3, stride, 1, count_include_pad=False), c),
    "max_pool_3x3": lambda c, stride, se: PoolBN(nn.MaxPool2d(3, stride, 1), c),
    "skip_connect": lambda c, stride, se: nn.Identity() if stride == 1 else FactorizedReduce(c, c),
    "std_conv_3x3": lambda c, stride, se: ReLUConvBN(c, c, 3, stride),
    "std_conv_1x1": lambda c, stride, se: ReLUConvBN(c, c, 1, stride),
    "dil_conv_3x3_2": lambda c, stride, se: ReLUConvBN(c, c, 3, stride, dilation=2),    # dense, not depthwise
    "dil_conv_3x3_4": lambda c, stride, se: ReLUConvBN(c, c, 3, stride, dilation=4),
    "se_connect": lambda c, stride, se: SqueezeExcite(c, se),       # these two cannot stride; Genotype refuses them where they would have to
    "spatial_wise": lambda c, stride, se: SpatialGate(c),
}


class Cell(nn.Module):
    """A searched cell: two inputs, brought to one width and size, then four nodes: -> (B, 4 width, h, w).

    preprocess0, preprocess1: what brings the inputs there. reduction: the inputs are halved by their edges.
    """

    def __init__(self, edges: Edges, preprocess0: nn.Module, preprocess1: nn.Module, width: int, se_reduction: int, reduction: bool = False):
        super().__init__()
        self.preprocess0 = preprocess0
        self.preprocess1 = preprocess1
        strides = [reduction_stride(source) if reduction else 1 for _, source in edges]
        self._ops = nn.ModuleList(OPERATIONS[operation](width, stride, se_reduction) for (operation, _), stride in zip(edges, strides))
        self.sources = [source for _, source in edges]

    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for first in range(0, len(self.sources), EDGES_PER_NODE):
            node = range(first, first + EDGES_PER_NODE)
            states.append(sum(self._ops[k](states[self.sources[k]]) for k in node))
        return torch.cat([states[k] for k in CONCAT], dim=1)


def reduction_cells(layers: int) -> tuple[int, int, int]:
    """Numbers of the cells that halve the size. PoseNAS's 18 cells have theirs at 3, 8 and 15, its 12 at 3, 6 and 9: a quarter each."""
    return (3, 8, 15) if layers == 18 else (layers // 4, layers // 2, 3 * layers // 4)


class EncoderCells(nn.ModuleList):
    """A row of cells from stride 4 to 32: (B, in, h, w) twice -> the last features before each reduction and at the end,
    (B, 4 width, h, w), (B, 8 width, h / 2, w / 2), (B, 16 width, h / 4, w / 4), (B, 32 width, h / 8, w / 8).

    layers: 18 or a multiple of 4. width: channels of a node of the first cells; it doubles with each reduction.
    """

    def __init__(self, normal: Edges, reduce: Edges, in_channels: int, width: int, layers: int, se_reduction: int):
        super().__init__()
        reductions = reduction_cells(layers)
        self.taps = tuple(k - 1 for k in (*reductions, layers))
        before, previous = in_channels, in_channels
        for number in range(layers):
            reduction = number in reductions
            width = 2 * width if reduction else width
            # after a reduction, the output of two cells ago is still twice as large
            preprocess0 = FactorizedReduce(before, width) if number - 1 in reductions else ReLUConvBN(before, width, 1)
            self.append(Cell(reduce if reduction else normal, preprocess0, ReLUConvBN(previous, width, 1), width, se_reduction, reduction))
            before, previous = previous, width * len(CONCAT)

    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for number, cell in enumerate(self):
            s0, s1 = s1, cell(s0, s1)
            if number in self.taps:
                outputs.append(s1)
        return outputs


class DecoderStage(nn.Module):
    """Three fusion cells from stride 32 up to stride 4, and the heatmaps of what they give.

    A fusion cell takes deep features, enlarged twice, and lateral ones, and gives as many channels as the lateral have.
    channels: of the features at strides 4, 8, 16 and 32. cells: edges of upsample1 to upsample3.
    """

    def __init__(self, cells: tuple[Edges, Edges, Edges], channels: tuple[int, int, int, int], joints: int, se_reduction: int):
        super().__init__()
        self.upsamples = nn.ModuleList()
        for edges, lateral, deep in zip(cells, reversed(channels[:3]), reversed(channels[1:])):
            width = lateral // len(CONCAT)
            enlarge = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), ReLUConvBN(deep, width, 1))
            self.upsamples.append(Cell(edges, enlarge, ReLUConvBN(lateral, width, 1), width, se_reduction))
        self.final_layer = nn.Conv2d(channels[0], joints, 1)

    def forward(self, f4: torch.Tensor, f8: torch.Tensor, f16: torch.Tensor, f32: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features at strides 4, 8, 16, 32 -> fused features of the same shapes at strides 4, 8, 16."""
        t16 = self.upsamples[0](f32, f16)
        t8 = self.upsamples[1](t16, f8)
        t4 = self.upsamples[2](t8, f4)
        return t4, t8, t16

    def heatmaps(self, t4: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, J, h, w)."""
        return self.final_layer(F.relu(t4))
