"""The parts of PoseNAS: encoder cells and fusion cells, and the stages made of them.

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
    """A searched cell: two inputs, brought to one width and size, then four nodes: -> (B, 4 width,
    h, w).

    preprocess0, preprocess1: what brings the inputs there. reduction: the inputs are halved by
    their edges.
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
    """Numbers of the cells that halve the size. PoseNAS's 18 cells have theirs at 3, 8 and 15,
    its 12 at 3, 6 and 9: a quarter each.
    """
    return (3, 8, 15) if layers == 18 else (layers // 4, layers // 2, 3 * layers // 4)


class EncoderCells(nn.ModuleList):
    """A row of cells from stride 4 to 32: (B, in, h, w) twice -> the last features before each
    reduction and at the end, (B, 4 width, h, w), (B, 8 width, h / 2, w / 2), (B, 16 width, h / 4, w
    / 4), (B, 32 width, h / 8, w / 8).

    layers: 18 or a multiple of 4. width: channels of a node of the first cells; it doubles with
    each reduction. cell: the class of the cells; normal and reduce are what it makes a cell of, and
    decide nothing here.
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
        before, previous = in_channels, in_channels
        for number in range(layers):
            reduction = number in reductions
            width = 2 * width if reduction else width
            # after a reduction, the output of two cells ago is still twice as large
            preprocess0 = (
                FactorizedReduce(before, width)
                if number - 1 in reductions
                else ReLUConvBN(before, width, 1)
            )
            self.append(
                cell(
                    reduce if reduction else normal,
                    preprocess0,
                    ReLUConvBN(previous, width, 1),
                    width,
                    se_reduction,
                    reduction,
                )
            )
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

    A fusion cell takes deep features, enlarged twice, and lateral ones, and gives as many channels
    as the lateral have. channels: of the features at strides 4, 8, 16 and 32. cells: edges of
    upsample1 to upsample3, or what else `cell` makes a cell of.
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
            enlarge = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"), ReLUConvBN(deep, width, 1)
            )
            self.upsamples.append(
                cell(edges, enlarge, ReLUConvBN(lateral, width, 1), width, se_reduction)
            )
        self.final_layer = nn.Conv2d(channels[0], num_keypoints, 1)

    def forward(
        self, f4: torch.Tensor, f8: torch.Tensor, f16: torch.Tensor, f32: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features at strides 4, 8, 16, 32 -> fused features of the same shapes at strides 4, 8,
        16.
        """
        t16 = self.upsamples[0](f32, f16)
        t8 = self.upsamples[1](t16, f8)
        t4 = self.upsamples[2](t8, f4)
        return t4, t8, t16

    def head(self, t4: torch.Tensor) -> torch.Tensor:
        """Return the output for fused features: (B, C, h, w) -> (B, K, h, w)."""
        return self.final_layer(F.relu(t4))
