"""Genotypes: the searched wiring of a PoseNAS network, as data.

A cell has two inputs (states 0 and 1) and four nodes (states 2 to 5). Each node adds two
operations, each on an earlier state; the output is the four nodes' channels together. A genotype
names the five cells that a network is made of, one per kind: `normal` and `reduce` of the encoder,
`upsample1` to `upsample3` of the decoder, from stride 32 up to stride 4. The two edges of a node
stand in the order of their strength in the search; the order numbers the weights ('_ops.0',
'_ops.1', ...), so it matters for checkpoints.

Paper: Bao et al., Pose-native Network Architecture Search for Multi-person Human Pose Estimation,
ACM MM 2020, doi 10.1145/3394171.3413842. Data: GENOTYPES, from the repositories named there. Poise
keeps genotypes in JSON files, for what a search finds: {"version": 1, "encoder": {"normal":
[[operation, state], ...], "reduce": [...]}, "decoder": {"upsample1": [...], "upsample2": [...],
"upsample3": [...]}, "meta": {anything}} with eight edges a cell, two per node in the order of the
nodes; each of the two groups may have "concat": [2, 3, 4, 5].
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise.errors import ConfigError, DataError, escape_name
from poise.io.files import atomic_write
from poise.io.json_file import read_json, replace_non_finite
from poise.models.posenas.operations import OPERATIONS, SIZE_PRESERVING

VERSION = 1
INPUTS, NODES, EDGES_PER_NODE = 2, 4, 2
CONCAT = tuple(range(INPUTS, INPUTS + NODES))  # the states that make a cell's output
# group -> its kinds of cells
CELLS = {"encoder": ("normal", "reduce"), "decoder": ("upsample1", "upsample2", "upsample3")}

Edges = tuple[tuple[str, int], ...]  # (operation, source state), two per node


@dataclass(frozen=True)
class Genotype:
    """Five cells of eight edges. `meta`: where it comes from; it takes no part in comparisons.

    Raises ConfigError, naming cell and edge, for what no network can be built from.
    """

    normal: Edges
    reduce: Edges
    upsample1: Edges
    upsample2: Edges
    upsample3: Edges
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for group, cells in CELLS.items():
            for cell in cells:
                object.__setattr__(
                    self, cell, _checked_edges(getattr(self, cell), f"{group}.{cell}")
                )

    def cells(self) -> dict[str, Edges]:
        """kind of cell -> its edges, in the order of CELLS."""
        return {cell: getattr(self, cell) for cells in CELLS.values() for cell in cells}

    def plain_cells(self) -> dict[str, list]:
        """The same as lists, for files."""
        return {cell: [list(edge) for edge in edges] for cell, edges in self.cells().items()}

    def as_json(self) -> dict[str, Any]:
        """What a genotype file holds; read_genotype reads it back."""
        plain = self.plain_cells()
        groups = {
            group: {**{cell: plain[cell] for cell in cells}, "concat": list(CONCAT)}
            for group, cells in CELLS.items()
        }
        return {"version": VERSION, **groups, "meta": dict(self.meta)}


def reduction_stride(source: int) -> int:
    """Stride of an edge of a reduction cell: its inputs are halved, its own nodes have been."""
    return 2 if source < INPUTS else 1


def _checked_edges(edges: Any, cell: str) -> Edges:
    if not isinstance(edges, (list, tuple)) or len(edges) != NODES * EDGES_PER_NODE:
        got = f"{len(edges)}" if isinstance(edges, (list, tuple)) else type(edges).__name__
        raise ConfigError(
            f"{cell} must be a list of {NODES * EDGES_PER_NODE} edges, {EDGES_PER_NODE} for each of"
            f" {NODES} nodes; got {got}"
        )
    checked = []
    for number, edge in enumerate(edges):
        where, node = f"{cell}[{number}]", INPUTS + number // EDGES_PER_NODE
        if not isinstance(edge, (list, tuple)) or len(edge) != 2:
            raise ConfigError(f"{where} must be [operation, state], got {escape_name(repr(edge))}")
        operation, source = edge
        if not isinstance(operation, str) or operation not in OPERATIONS:
            close = difflib.get_close_matches(str(operation), OPERATIONS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"{where}: {escape_name(repr(operation))} is not an operation"
                f" ({', '.join(OPERATIONS)}){hint}"
            )
        if not isinstance(source, int) or isinstance(source, bool) or not 0 <= source < node:
            raise ConfigError(
                f"{where}: node {node} takes its input from states 0 to {node - 1}, got"
                f" {escape_name(repr(source))}"
            )
        if (
            cell.endswith(".reduce")
            and reduction_stride(source) != 1
            and operation in SIZE_PRESERVING
        ):
            raise ConfigError(
                f"{where}: {operation} does not stride, so a reduction cell cannot have it on its"
                " inputs (states 0 and 1)"
            )
        checked.append((operation, source))
    return tuple(checked)


def read_genotype(path: str | Path) -> Genotype:
    """The genotype in a JSON file of version 1. Raises DataError naming the file, and the edge,
    where it cannot be used.
    """
    content = read_json(path, "genotype")

    def group(of: Any, name: str, needed: tuple[str, ...], allowed: tuple[str, ...]) -> dict:
        if not isinstance(of, dict):
            raise DataError(
                f"{path}: {name} must be an object with {', '.join(needed)}, got"
                f" {type(of).__name__}"
            )
        for key in needed:
            if key not in of:
                raise DataError(f"{path}: {name} has no {key!r}")
        for key in of:
            if key not in needed + allowed:
                raise DataError(
                    f"{path}: {name} has an unknown key {escape_name(repr(key))}; it may have"
                    f" {', '.join(needed + allowed)}"
                )
        return of

    version = group(
        content, "the genotype", ("version",), tuple(content) if isinstance(content, dict) else ()
    )["version"]
    if version != VERSION or isinstance(version, bool):
        raise DataError(
            f"{path}: a genotype of version {escape_name(repr(version))}; this Poise reads version"
            f" {VERSION}"
        )
    group(content, "the genotype", ("version", *CELLS), ("meta",))
    cells: dict[str, Any] = {}
    for name, needed in CELLS.items():
        of = group(content[name], name, needed, ("concat",))
        if of.get("concat", list(CONCAT)) != list(CONCAT):
            raise DataError(
                f"{path}: {name}.concat must be {list(CONCAT)}: a cell gives all its nodes; got"
                f" {escape_name(repr(of['concat']))}"
            )
        cells |= {cell: of[cell] for cell in needed}
    meta = content.get("meta", {})
    if not isinstance(meta, dict):
        raise DataError(f"{path}: meta must be an object, got {type(meta).__name__}")
    try:
        return Genotype(**cells, meta=meta)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None


def write_genotype(path: str | Path, genotype: Genotype) -> None:
    """Write a genotype as a file that read_genotype reads, one line a cell; NaN in its meta
    becomes null. Raises DataError where it cannot be written.
    """
    content = genotype.as_json()
    lines = [f' "version": {content["version"]}']
    for group in CELLS:
        inner = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content[group].items()
        )
        lines.append(f' "{group}": {{\n{inner}\n }}')
    meta = json.dumps(replace_non_finite(content["meta"]), indent=1, allow_nan=False).replace(
        "\n", "\n "
    )
    with atomic_write(path) as part:
        part.write_text(
            "{\n" + ",\n".join([*lines, f' "meta": {meta}']) + "\n}\n", encoding="utf-8"
        )


def find_genotype(name: str, key: str = "MODEL.GENOTYPE") -> Genotype:
    """A name of GENOTYPES, or a path of a genotype file. Raises ConfigError naming the key for
    neither, DataError for a bad file.
    """
    if name in GENOTYPES:
        return GENOTYPES[name]
    if name.endswith(".json") or os.path.exists(name):
        return read_genotype(name)
    close = difflib.get_close_matches(name, GENOTYPES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"{key} {name!r} is neither a genotype of Poise ({', '.join(GENOTYPES)}) nor a .json"
        f" file{hint}"
    )


def _edges(text: str) -> Edges:
    """Edges written as 'operation:state operation:state ...', with the short names below."""
    short = {
        "std3": "std_conv_3x3",
        "dil2": "dil_conv_3x3_2",
        "dil4": "dil_conv_3x3_4",
        "se": "se_connect",
        "avg": "avg_pool_3x3",
        "max": "max_pool_3x3",
    }
    return tuple(
        (short[operation], int(state))
        for operation, state in (edge.split(":") for edge in text.split())
    )


# for-code0216/PoseNAS models/genotypes.py at 743c062: BACKBONE and DARTS, which the published
# networks are made of
_ENCODER = {
    "normal": _edges("std3:1 std3:0  std3:2 std3:1  std3:3 std3:2  std3:4 std3:3"),
    "reduce": _edges("std3:1 std3:0  dil2:2 std3:1  dil2:3 std3:0  dil2:4 std3:1"),
}
_DECODER = {
    "upsample1": _edges("std3:0 se:1  se:1 std3:0  std3:0 std3:2  std3:0 std3:2"),
    "upsample2": _edges("std3:0 se:1  se:1 std3:0  std3:2 se:1  se:1 std3:2"),
    "upsample3": _edges("se:0 se:1  avg:0 se:2  se:0 dil2:1  se:0 se:1"),
}
# GuHuangAI/NPP (NPPNet, ICCV 2021, in part by the authors of PoseNAS): genotypes left beside its
# search code, without published results
_NPP_ENCODER = {  # its note: searched on MPII
    "normal": _edges("std3:0 std3:1  std3:2 std3:0  std3:3 std3:0  std3:4 std3:3"),
    "reduce": _edges("max:1 std3:0  dil2:2 std3:0  dil2:3 dil2:2  dil2:4 dil2:3"),
}
_NPP_DECODER = {
    "upsample1": _edges("dil4:1 dil4:0  dil4:2 std3:0  dil4:3 std3:0  std3:0 std3:2"),
    "upsample2": _edges("se:1 std3:0  se:1 dil2:2  std3:2 dil4:3  dil4:4 std3:3"),
    "upsample3": _edges("se:1 se:0  se:0 se:2  se:1 se:0  se:0 se:1"),
}

# MODEL.GENOTYPE -> genotype. The two of NPP have one half of their own and the other from PoseNAS
GENOTYPES: dict[str, Genotype] = {
    "posenas": Genotype(
        **_ENCODER,
        **_DECODER,
        meta={"source": "for-code0216/PoseNAS@743c062 models/genotypes.py, BACKBONE and DARTS"},
    ),
    "npp_encoder": Genotype(
        **_NPP_ENCODER,
        **_DECODER,
        meta={"source": "GuHuangAI/NPP genotypes, an encoder searched on MPII; decoder of PoseNAS"},
    ),
    "npp_decoder": Genotype(
        **_ENCODER,
        **_NPP_DECODER,
        meta={"source": "GuHuangAI/NPP genotypes_BB-FPN, a decoder; encoder of PoseNAS"},
    ),
}
