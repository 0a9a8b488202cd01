"""Architecture parameters (alphas), and the cells that are derived from them.

Legend: E edges of a cell (14), O candidate operations.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from poise.models.posenas.genotypes import EDGES_PER_NODE, INPUTS, NODES, Edges
from poise.search.space import EDGES, Space

START = 1e-3  # initial value of every alpha in PoseNAS: all candidates are equal
Probabilities = dict[str, np.ndarray]  # kind of cell -> (E, O) float64, each row sums to 1


def init_alphas(space: Space) -> nn.ParameterDict:
    """Create the alphas: kind of cell -> (E, O), edges of space.EDGES by candidates."""
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
    """Return the entropy of each edge relative to equal probabilities: (E, O) -> (E,), from 0 to 1.

    It is 0 for an edge with a single candidate.
    """
    surprise = np.where(table > 0, -np.log(np.where(table > 0, table, 1)), 0)
    return (table * surprise).sum(axis=1) / max(np.log(table.shape[1]), 1e-12)


def derive(candidates: tuple[str, ...], table: np.ndarray) -> Edges:
    """Derive a cell from (E, O) probabilities.

    Each node keeps the two edges whose best operation is most probable, the strongest first.

    'none' is never chosen, as in DARTS (section 2.4). Ties go to the edge from the earlier state
    and to the operation that is listed first.
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
    """Derive the cells: kind of cell -> its edges."""
    return {kind: derive(space.operations[kind], table) for kind, table in found.items()}
