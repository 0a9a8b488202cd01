"""Encoder and fusion cells of PoseNAS, and the stages of them.

Paper: Bao et al., ACM MM 2020, doi 10.1145/3394171.3413842; cells after Liu et al., DARTS, ICLR
2019, arXiv 1806.09055. Repository: for-code0216/PoseNAS models/ (743c062). Legend: B batch, C
channels, K keypoints, h w cells of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from poise.models.posenas.genotypes import CONCAT, EDGES_PER_NODE, Edges, reduction_stride
from poise.models.posenas.operations import OPERATIONS, FactorizedReduce, ReLUConvBN


class Cell(nn.Module):
    """A searched cell of four nodes: two inputs -> (B, 4 width, h, w).

    Args:
        edges: two edges per node.
        preprocess0: converts the first input to `width` channels and the size of the second.
        preprocess1: converts the second input to `width` channels.
        width: channels of a node.
        se_reduction: see SqueezeExcite.
        reduction: whether the edges from the inputs have stride 2.
    """

    def __init__(
        self,
        edges: Edges,
        preprocess0: nn.Module,
        preprocess1: nn.Module,
        width: int,
        se_reduction: int,
        reduction: bool = False,
    ):
        super().__init__()
        self.preprocess0 = preprocess0
        self.preprocess1 = preprocess1
        strides = [reduction_stride(source) if reduction else 1 for _, source in edges]
        self._ops = nn.ModuleList(
            OPERATIONS[operation](width, stride, se_reduction)
            for (operation, _), stride in zip(edges, strides)
        )
        self.sources = [source for _, source in edges]

    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for first in range(0, len(self.sources), EDGES_PER_NODE):
            node = range(first, first + EDGES_PER_NODE)
            states.append(sum(self._ops[k](states[self.sources[k]]) for k in node))
        return torch.cat([states[k] for k in CONCAT], dim=1)


def reduction_cells(layers: int) -> tuple[int, int, int]:
    """Return the numbers of the cells with stride 2.

    PoseNAS's 18 cells have them at 3, 8 and 15, its 12 at 3, 6 and 9: a quarter each.
    """
    if layers == 18:
        return 3, 8, 15
    return layers // 4, layers // 2, 3 * layers // 4


class EncoderCells(nn.ModuleList):
    """A chain of cells from stride 4 to 32.

    (B, in, h, w) twice -> the last features before each reduction and at the end: (B, 4 width, h,
    w), (B, 8 width, h / 2, w / 2), (B, 16 width, h / 4, w / 4) and (B, 32 width, h / 8, w / 8).

    Args:
        normal: edges of the cells with stride 1, or other first arguments of `cell`.
        reduce: edges of the cells with stride 2, or other first arguments of `cell`.
        in_channels: channels of the two inputs.
        width: channels of a node of the first cells; doubled by each reduction.
        layers: number of cells, 18 or a multiple of 4.
        se_reduction: see SqueezeExcite.
        cell: class of the cells.
    """

    def __init__(
        self,
        normal: Edges,
        reduce: Edges,
        in_channels: int,
        width: int,
        layers: int,
        se_reduction: int,
        cell: Callable[..., nn.Module] = Cell,
    ):
        super().__init__()
        reductions = reduction_cells(layers)
        self.taps = tuple(k - 1 for k in (*reductions, layers))
        before = previous = in_channels
        for number in range(layers):
            reduction = number in reductions
            edges = normal
            if reduction:
                width *= 2
                edges = reduce
            preprocess0: nn.Module
            if number - 1 in reductions:
                # the output of two cells ago is still twice as large
                preprocess0 = FactorizedReduce(before, width)
            else:
                preprocess0 = ReLUConvBN(before, width, 1)
            self.append(
                cell(
                    edges,
                    preprocess0,
                    ReLUConvBN(previous, width, 1),
                    width,
                    se_reduction,
                    reduction,
                )
            )
            before = previous
            previous = width * len(CONCAT)

    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for number, cell in enumerate(self):
            s0, s1 = s1, cell(s0, s1)
            if number in self.taps:
                outputs.append(s1)
        return outputs


class DecoderStage(nn.Module):
    """Three fusion cells from stride 32 to stride 4, and the convolution to heatmaps.

    The inputs of a fusion cell are deep features, upsampled twice, and lateral features. It has as
    many output channels as the lateral features.

    Args:
        cells: edges of upsample1 to upsample3, or other first arguments of `cell`.
        channels: of the features at strides 4, 8, 16 and 32.
        num_keypoints: K, one heatmap each.
        se_reduction: see SqueezeExcite.
        cell: class of the cells.
    """

    def __init__(
        self,
        cells: tuple[Edges, Edges, Edges],
        channels: tuple[int, int, int, int],
        num_keypoints: int,
        se_reduction: int,
        cell: Callable[..., nn.Module] = Cell,
    ):
        super().__init__()
        self.upsamples = nn.ModuleList()
        for edges, lateral, deep in zip(cells, reversed(channels[:3]), reversed(channels[1:])):
            width = lateral // len(CONCAT)
            upsample = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"), ReLUConvBN(deep, width, 1)
            )
            self.upsamples.append(
                cell(edges, upsample, ReLUConvBN(lateral, width, 1), width, se_reduction)
            )
        self.final_layer = nn.Conv2d(channels[0], num_keypoints, 1)

    def forward(
        self, f4: torch.Tensor, f8: torch.Tensor, f16: torch.Tensor, f32: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features at strides 4, 8, 16 and 32 -> fused features at strides 4, 8 and 16."""
        t16 = self.upsamples[0](f32, f16)
        t8 = self.upsamples[1](t16, f8)
        t4 = self.upsamples[2](t8, f4)
        return t4, t8, t16

    def head(self, t4: torch.Tensor) -> torch.Tensor:
        """Return the output for fused features: (B, C, h, w) -> (B, K, h, w)."""
        return self.final_layer(F.relu(t4))
