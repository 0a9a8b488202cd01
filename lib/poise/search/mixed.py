"""Mixed cells: every edge sums all candidate operations, weighted by their probabilities.

Legend: B batch, C channels, h w cells of a feature map, E edges of a cell (14), O candidate
operations. Sources: Liu et al., DARTS, ICLR 2019, arXiv 1806.09055, equation 2; partial channels:
Xu et al., PC-DARTS, ICLR 2020, arXiv
1907.05737, section 3.1; recomputing in the backward pass: Chen et al., arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from poise.models.posenas.genotypes import CONCAT, reduction_stride
from poise.models.posenas.operations import OPERATIONS
from poise.search.space import EDGES


@dataclass(frozen=True)
class Candidates:
    """Configuration of a MixedCell.

    Attributes:
        kind: kind of cell, which selects the alphas.
        operations: names of the candidates.
        partial_channels: k; only 1 / k of the channels go through the candidates.
        recompute: recompute the activations of the candidates in the backward pass.
    """

    kind: str
    operations: tuple[str, ...]
    partial_channels: int = 1
    recompute: bool = False


class MixedOperation(nn.Module):
    """Weighted sum of all candidates: (B, C, h, w), (O,) -> (B, C, h / stride, w / stride).

    The batch norms of the candidates are not affine: a candidate could compensate for a small
    probability. With k partial channels the first C / k channels go through the candidates and the
    others bypass them, max-pooled with stride 2. Then the channels are shuffled, so that others are
    first on the next edge.
    """

    def __init__(
        self,
        operations: tuple[str, ...],
        channels: int,
        stride: int,
        se_reduction: int,
        partial_channels: int = 1,
    ):
        super().__init__()
        self.stride = stride
        self.groups = partial_channels
        self.active = channels // partial_channels
        self.candidates = nn.ModuleList(
            OPERATIONS[name](self.active, stride, se_reduction) for name in operations
        )
        without_affine(self.candidates)

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        chosen = x[:, : self.active]
        mixed = sum(
            weight * candidate(chosen) for weight, candidate in zip(weights, self.candidates)
        )
        if self.groups == 1:
            return mixed
        others = x[:, self.active :]
        if self.stride == 2:
            others = F.max_pool2d(others, 2)
        return F.channel_shuffle(torch.cat([mixed, others], dim=1), self.groups)


class MixedCell(nn.Module):
    """Cell whose nodes sum all earlier states, each through a MixedOperation.

    The output is (B, 4 width, h, w). Set `weights` (E, O) before each call: the probabilities of
    the cell's kind. The arguments are those of poise.models.posenas.cells.Cell, with the candidates
    instead of the edges.
    """

    def __init__(
        self,
        candidates: Candidates,
        preprocess0: nn.Module,
        preprocess1: nn.Module,
        width: int,
        se_reduction: int,
        reduction: bool = False,
    ):
        super().__init__()
        self.kind = candidates.kind
        self.recompute = candidates.recompute
        self.preprocess0 = preprocess0
        self.preprocess1 = preprocess1
        self.edges = nn.ModuleList(
            MixedOperation(
                candidates.operations,
                width,
                reduction_stride(source) if reduction else 1,
                se_reduction,
                candidates.partial_channels,
            )
            for _, source in EDGES
        )
        # (edges, operations), set by the search network before each forward pass
        self.weights: Any = None

    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in CONCAT:
            rows = [(row, source) for row, (to, source) in enumerate(EDGES) if to == node]
            states.append(sum(self._through(row, states[source]) for row, source in rows))
        return torch.cat([states[node] for node in CONCAT], dim=1)

    def _through(self, row: int, x: torch.Tensor) -> torch.Tensor:
        edge, weights = self.edges[row], self.weights[row]
        if not (self.recompute and torch.is_grad_enabled()):
            return edge(x, weights)
        return checkpoint(
            edge,
            x,
            weights,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), statistics_untouched(edge)),
        )


@contextmanager
def statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Keep batch norms in train mode from updating their running statistics a second time.

    They still compute them, because recomputation must save the same tensors as before.
    """
    norms = [
        (norm, norm.momentum, norm.num_batches_tracked)
        for norm in module.modules()
        if isinstance(norm, nn.BatchNorm2d)
    ]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counter in norms:
            norm.momentum, norm.num_batches_tracked = momentum, counter


def without_affine(module: nn.Module) -> None:
    """Remove weight and bias of every batch norm in the module."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.affine = False
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
