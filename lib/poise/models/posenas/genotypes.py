"""Genotypes: the searched wiring of a PoseNAS network.

A cell has two inputs (states 0 and 1) and four nodes (states 2 to 5). Each node is the sum of two
operations, each on an earlier state. The output is the concatenation of the four nodes. A genotype
has the five cells of a network: `normal` and `reduce` of the encoder, `upsample1` to `upsample3` of
the decoder, from stride 32 to stride 4. The two edges of a node are in the order of their strength
in the search. The order numbers the weights ('_ops.0', '_ops.1', ...), so checkpoints depend on it.

Paper: Bao et al., Pose-native Network Architecture Search for Multi-person Human Pose Estimation,
ACM MM 2020, doi 10.1145/3394171.3413842. Data: GENOTYPES, from the repositories named there.

Searches write genotypes as JSON files: {"version": 1, "encoder": {"normal": [[operation, state],
...], "reduce": [...]}, "decoder": {"upsample1": [...], "upsample2": [...], "upsample3": [...]},
"meta": {anything}} with eight edges per cell, two per node in the order of the nodes. Both groups
may have "concat": [2, 3, 4, 5].
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
CONCAT = tuple(range(INPUTS, INPUTS + NODES))  # states that are a cell's output
# group -> its kinds of cells
CELLS = {"encoder": ("normal", "reduce"), "decoder": ("upsample1", "upsample2", "upsample3")}

Edges = tuple[tuple[str, int], ...]  # (operation, source state), two per node


@dataclass(frozen=True)
class Genotype:
    """Five cells of eight edges. Raises ConfigError naming cell and edge for invalid ones.

    Args:
        normal: edges of the encoder's cells with stride 1.
        reduce: edges of the encoder's cells with stride 2.
        upsample1: edges of the decoder's cell at stride 16.
        upsample2: edges of the decoder's cell at stride 8.
        upsample3: edges of the decoder's cell at stride 4.
        meta: origin of the genotype; not compared.
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
                object.__setattr__(self, cell, _check_edges(getattr(self, cell), f"{group}.{cell}"))

    def cells(self) -> dict[str, Edges]:
        """Return the edges of each kind of cell, in the order of CELLS."""
        return {cell: getattr(self, cell) for cells in CELLS.values() for cell in cells}

    def plain_cells(self) -> dict[str, list]:
        """Return the same as lists, for files."""
        return {cell: [list(edge) for edge in edges] for cell, edges in self.cells().items()}

    def as_json(self) -> dict[str, Any]:
        """Return the content of a genotype file, see read_genotype."""
        plain = self.plain_cells()
        groups = {
            group: {**{cell: plain[cell] for cell in cells}, "concat": list(CONCAT)}
            for group, cells in CELLS.items()
        }
        return {"version": VERSION, **groups, "meta": dict(self.meta)}


def reduction_stride(source: int) -> int:
    """Return the stride of an edge of a reduction cell: 2 from its inputs, 1 from its nodes."""
    return 2 if source < INPUTS else 1


def read_genotype(path: str | Path) -> Genotype:
    """Read a genotype file. Raises DataError naming the file and the edge if it is invalid."""
    content = read_json(path, "genotype")
    _check_keys(path, content, "the genotype", ("version",), allowed=None)
    version = content["version"]
    if version != VERSION or isinstance(version, bool):
        raise DataError(
            f"{path}: a genotype of version {escape_name(repr(version))}; this Poise reads version"
            f" {VERSION}"
        )
    _check_keys(path, content, "the genotype", ("version", *CELLS), ("meta",))
    cells: dict[str, Any] = {}
    for group, names in CELLS.items():
        values = content[group]
        _check_keys(path, values, group, names, ("concat",))
        if values.get("concat", list(CONCAT)) != list(CONCAT):
            raise DataError(
                f"{path}: {group}.concat must be {list(CONCAT)}: the output has all nodes; got"
                f" {escape_name(repr(values['concat']))}"
            )
        cells |= {name: values[name] for name in names}
    meta = content.get("meta", {})
    if not isinstance(meta, dict):
        raise DataError(f"{path}: meta must be an object, got {type(meta).__name__}")
    try:
        return Genotype(**cells, meta=meta)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None


def write_genotype(path: str | Path, genotype: Genotype) -> None:
    """Write a genotype file with one line per cell; NaN in its meta becomes null.

    Raises DataError if it cannot be written.
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
    """Return the genotype of a name of GENOTYPES or of a file.

    Raises ConfigError naming the key if it is neither, DataError for an invalid file.
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


def _check_keys(
    path: str | Path,
    values: Any,
    name: str,
    required: tuple[str, ...],
    allowed: tuple[str, ...] | None,
) -> None:
    """Raise DataError for a group with missing or unknown keys; allowed None: any other keys."""
    if not isinstance(values, dict):
        raise DataError(
            f"{path}: {name} must be an object with {', '.join(required)}, got"
            f" {type(values).__name__}"
        )
    for key in required:
        if key not in values:
            raise DataError(f"{path}: {name} has no {key!r}")
    if allowed is None:
        return
    for key in values:
        if key not in required + allowed:
            raise DataError(
                f"{path}: {name} has an unknown key {escape_name(repr(key))}; it may have"
                f" {', '.join(required + allowed)}"
            )


def _check_edges(edges: Any, cell: str) -> Edges:
    """Return the edges of a cell. Raises ConfigError naming the edge for invalid ones."""
    is_list = isinstance(edges, (list, tuple))
    if not is_list or len(edges) != NODES * EDGES_PER_NODE:
        got = len(edges) if is_list else type(edges).__name__
        raise ConfigError(
            f"{cell} must be a list of {NODES * EDGES_PER_NODE} edges, {EDGES_PER_NODE} for each of"
            f" {NODES} nodes; got {got}"
        )
    checked = []
    for number, edge in enumerate(edges):
        where = f"{cell}[{number}]"
        node = INPUTS + number // EDGES_PER_NODE
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


def _edges(text: str) -> Edges:
    """Parse edges written as 'operation:state operation:state ...' with these short names."""
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
# GuHuangAI/NPP (NPPNet, ICCV 2021, in part by the authors of PoseNAS): genotypes next to its search
# code, without published results
_NPP_ENCODER = {  # its note: searched on MPII
    "normal": _edges("std3:0 std3:1  std3:2 std3:0  std3:3 std3:0  std3:4 std3:3"),
    "reduce": _edges("max:1 std3:0  dil2:2 std3:0  dil2:3 dil2:2  dil2:4 dil2:3"),
}
_NPP_DECODER = {
    "upsample1": _edges("dil4:1 dil4:0  dil4:2 std3:0  dil4:3 std3:0  std3:0 std3:2"),
    "upsample2": _edges("se:1 std3:0  se:1 dil2:2  std3:2 dil4:3  dil4:4 std3:3"),
    "upsample3": _edges("se:1 se:0  se:0 se:2  se:1 se:0  se:0 se:1"),
}

# MODEL.GENOTYPE -> genotype. Those of NPP have one half from PoseNAS
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
