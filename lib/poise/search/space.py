"""What a search chooses from: the candidate operations of each kind of cell, and the edges that
they compete on.

A cell has two inputs and four nodes, and in the search every node is joined to every earlier state:
2 + 3 + 4 + 5 = 14 edges. On each of them all candidate operations of the cell's kind compete. With
six candidates and five kinds of cells that makes 5 * 14 * 6 = 420 architecture values. Sources: Liu
et al., DARTS, ICLR 2019, arXiv 1806.09055, section 2.1; Bao et al., ACM MM 2020, doi
10.1145/3394171.3413842. Which candidates the authors of PoseNAS had: docs/search.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.posenas.genotypes import (
    CELLS,
    EDGES_PER_NODE,
    INPUTS,
    NODES,
    Edges,
    Genotype,
    find_genotype,
)
from poise.models.posenas.operations import OPERATIONS, SIZE_PRESERVING

# (node, source state) of every edge, in the order of the rows of the architecture values
EDGES = tuple((node, source) for node in range(INPUTS, INPUTS + NODES) for source in range(node))
# SEARCH.MODE -> groups
SEARCHED = {"joint": ("encoder", "decoder"), "encoder": ("encoder",), "decoder": ("decoder",)}


@dataclass(frozen=True)
class Space:
    """operations: kind of cell -> its candidates, for the kinds that are searched. given: where
    the other kinds come from.
    """

    operations: Mapping[str, tuple[str, ...]]
    given: Genotype

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Space:
        """The space of SEARCH.*. Raises ConfigError, naming the key, for candidates that cannot
        be, DataError for a bad genotype file.
        """
        keys = {"encoder": "ENCODER_OPERATIONS", "decoder": "DECODER_OPERATIONS"}
        operations: dict[str, tuple[str, ...]] = {}
        for group in SEARCHED[cfg.SEARCH.MODE]:
            candidates = _checked_candidates(
                cfg.SEARCH[keys[group]], f"SEARCH.{keys[group]}", may_stride=group == "encoder"
            )
            operations |= dict.fromkeys(CELLS[group], candidates)
        return cls(operations, find_genotype(cfg.SEARCH.GENOTYPE, "SEARCH.GENOTYPE"))

    @property
    def num_alphas(self) -> int:
        """How many architecture values there are."""
        return sum(len(EDGES) * len(candidates) for candidates in self.operations.values())

    def genotype(self, cells: Mapping[str, Edges], meta: Mapping) -> Genotype:
        """A genotype of the searched `cells` and the given others."""
        return Genotype(**{**self.given.cells(), **cells}, meta=meta)

    def random(self, seed: int) -> Genotype:
        """A genotype drawn from the space: each node has two different sources and two
        operations, all equally likely. The yardstick of a search.
        """
        rng = np.random.default_rng(seed)
        cells = {}
        for kind, candidates in self.operations.items():
            possible = [name for name in candidates if name != "none"]
            cells[kind] = tuple(
                (possible[rng.integers(len(possible))], int(source))
                for node in range(INPUTS, INPUTS + NODES)
                for source in rng.permutation(node)[:EDGES_PER_NODE]
            )
        return self.genotype(cells, {"source": f"drawn at random, seed {seed}"})


def _checked_candidates(text: str, key: str, *, may_stride: bool) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").split())
    for name in names:
        if name not in OPERATIONS:
            close = difflib.get_close_matches(name, OPERATIONS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"{key}: {name!r} is not an operation ({', '.join(OPERATIONS)}){hint}"
            )
        if may_stride and name in SIZE_PRESERVING:
            raise ConfigError(
                f"{key}: {name} does not stride, so it cannot compete on the inputs of a reduction"
                " cell; leave it to SEARCH.DECODER_OPERATIONS"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"{key}: an operation is there twice ({', '.join(names)})")
    if not set(names) - {"none"}:
        raise ConfigError(f"{key}: must name at least one operation other than none, got {text!r}")
    return names
