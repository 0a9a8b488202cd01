"""The architecture values: what the search optimises instead of a wiring, and the wiring that is
read from them.

Legend: E edges of a cell (14), O candidate operations.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from poise.models.posenas.genotypes import EDGES_PER_NODE, INPUTS, NODES, Edges
from poise.search.space import EDGES, Space

START = 1e-3  # PoseNAS's search begins with all values at this, so all candidates are alike
Probabilities = dict[str, np.ndarray]  # kind of cell -> (E, O) float64, each row sums to 1


def init_alphas(space: Space) -> nn.ParameterDict:
    """kind of cell -> (E, O); the rows are the edges of space.EDGES, the columns the kind's
    candidates.
    """
    return nn.ParameterDict(
        {
            kind: nn.Parameter(torch.full((len(EDGES), len(candidates)), START))
            for kind, candidates in space.operations.items()
        }
    )


def probabilities(alphas: Mapping[str, torch.Tensor] | nn.ParameterDict) -> Probabilities:
    """Return the softmax over the candidates of each edge."""
    return {
        kind: table.detach().double().softmax(dim=1).cpu().numpy() for kind, table in alphas.items()
    }


def entropy(table: np.ndarray) -> np.ndarray:
    """How undecided each edge is, as a share of what it was in the beginning: (E, O) probabilities
    -> (E,), from 1 down to 0.

    An edge with a single candidate is decided.
    """
    surprise = np.where(table > 0, -np.log(np.where(table > 0, table, 1)), 0)
    return (table * surprise).sum(axis=1) / max(np.log(table.shape[1]), 1e-12)


def derive(candidates: tuple[str, ...], table: np.ndarray) -> Edges:
    """The cell that (E, O) probabilities stand for: for each node the two edges whose best
    operation is most probable, strongest first.

    'none' is never chosen, as in DARTS (section 2.4). Of equally strong edges the one from the
    earlier state is stronger, of equally probable operations the one that is named earlier.
    """
    columns = [column for column, name in enumerate(candidates) if name != "none"]
    table = table[:, columns]
    edges: list[tuple[str, int]] = []
    for node in range(INPUTS, INPUTS + NODES):
        rows = [row for row, (to, _) in enumerate(EDGES) if to == node]
        # sorted keeps the order of equals
        strongest = sorted(rows, key=lambda row: -table[row].max())[:EDGES_PER_NODE]
        edges += [
            (candidates[columns[int(table[row].argmax())]], EDGES[row][1]) for row in strongest
        ]
    return tuple(edges)


def derive_cells(space: Space, found: Probabilities) -> dict[str, Edges]:
    """kind of cell -> its derived edges."""
    return {kind: derive(space.operations[kind], table) for kind, table in found.items()}
