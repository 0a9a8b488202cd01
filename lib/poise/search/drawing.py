"""Draw the cells of a genotype as SVG.

A cell is drawn like a circuit. Each state is a horizontal line. An edge starts at a dot on it and
goes down through its operation to the node that sums it up. Lines that cross without a dot are not
connected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from poise.errors import escape_html
from poise.io.files import atomic_write
from poise.models.posenas.genotypes import EDGES_PER_NODE, INPUTS, NODES, Edges, Genotype

# operation -> (short name, color); others are white with the start of their name
_LOOKS = {
    "std_conv_3x3": ("3x3", "#9ecae9"),
    "std_conv_1x1": ("1x1", "#d6e6f4"),
    "dil_conv_3x3_2": ("3x3 d2", "#b9a5d6"),
    "dil_conv_3x3_4": ("3x3 d4", "#d9c9ec"),
    "se_connect": ("SE", "#f6b26b"),
    "spatial_wise": ("spatial", "#fbd8ae"),
    "avg_pool_3x3": ("avg", "#b5dcae"),
    "max_pool_3x3": ("max", "#8cc084"),
    "skip_connect": ("skip", "#e4e4e4"),
    "none": ("none", "#ffffff"),
}
_TITLES = {
    "normal": "normal cell of the encoder",
    "reduce": "reduction cell of the encoder",
    "upsample1": "fusion cell, stride 32 to 16",
    "upsample2": "fusion cell, stride 16 to 8",
    "upsample3": "fusion cell, stride 8 to 4",
}
_INPUTS = {"encoder": ("cell before last", "last cell"), "decoder": ("deeper, x2", "lateral")}
_INK, _PALE = "#37474f", "#90a4ae"
_BOX_WIDTH, _BOX_HEIGHT = 60, 22
_LEFT, _TOP, _NODE_WIDTH, _NODE_HEIGHT, _LANE = 118, 66, 138, 74, 26
# width and height of a cell's picture
PANEL = (_LEFT + NODES * _NODE_WIDTH + 84, _TOP + INPUTS * _LANE + NODES * _NODE_HEIGHT + 18)
_COLUMNS = 2


def write_drawing(
    path: str | Path,
    genotype: Genotype,
    title: str = "",
    strengths: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write the drawing of a genotype; see cells_svg."""
    with atomic_write(path) as part:
        part.write_text(cells_svg(genotype, title, strengths), encoding="utf-8")


def cells_svg(
    genotype: Genotype, title: str = "", strengths: Mapping[str, Sequence[float]] | None = None
) -> str:
    """Draw the five cells, two in a row, with a legend of the operations.

    strengths: kind of cell -> the probability of each of its edges' operations, written next to
    them.
    """
    cells, (width, height), strengths = genotype.cells(), PANEL, strengths or {}
    used = list(dict.fromkeys(operation for edges in cells.values() for operation, _ in edges))
    head, total = 40, (_COLUMNS * width, -(-len(cells) // _COLUMNS) * height)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1] + head}"'
            f' width="{total[0]}" height="{total[1] + head}" font-family="Helvetica, Arial,'
            ' sans-serif" font-size="12">'
        ),
        f"<title>{escape_html(title or 'Genotype')}</title>",
        f'<rect width="{total[0]}" height="{total[1] + head}" fill="#ffffff"/>',
        _text(20, 26, title, size=15, anchor="start", weight="bold"),
    ]
    for number, (kind, edges) in enumerate(cells.items()):
        row, column = divmod(number, _COLUMNS)
        parts.append(f'<g transform="translate({column * width} {head + row * height})">')
        parts += _cell(kind, edges, strengths.get(kind))
        parts.append("</g>")
    row, column = divmod(len(cells), _COLUMNS)
    parts.append(f'<g transform="translate({column * width} {head + row * height})">')
    parts += _legend(used)
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _cell(kind: str, edges: Edges, strengths: Sequence[float] | None) -> list[str]:
    group = "encoder" if kind in ("normal", "reduce") else "decoder"
    lanes = [_TOP + number * _LANE for number in range(INPUTS)]
    lanes += [
        _TOP + INPUTS * _LANE + number * _NODE_HEIGHT + _BOX_HEIGHT + 28 for number in range(NODES)
    ]
    centers = [_LEFT + node * _NODE_WIDTH + _NODE_WIDTH / 2 for node in range(NODES)]
    columns = [
        centers[number // EDGES_PER_NODE] + (34 if number % EDGES_PER_NODE else -34)
        for number in range(len(edges))
    ]
    output = _LEFT + NODES * _NODE_WIDTH + 16
    parts = [_text(20, 26, f"{kind}: {_TITLES[kind]}", anchor="start", weight="bold", size=13)]
    for state, y in enumerate(lanes):
        taps = [columns[number] for number, (_, source) in enumerate(edges) if source == state]
        if state < INPUTS:
            begin, end = 108.0, max(taps, default=108.0)
            parts.append(_box(8, y - 11, 100, 22, "#eceff1", _INPUTS[group][state]))
        else:
            begin, end = centers[state - INPUTS] + 9, output
        parts.append(
            f'<path d="M{begin:g} {y:g} H{end:g}" stroke="{_INK}" stroke-width="1.5" fill="none"/>'
        )
    for number, (operation, source) in enumerate(edges):
        x, node = columns[number], number // EDGES_PER_NODE
        side = 1 if number % EDGES_PER_NODE else -1
        halved = " /2" if kind == "reduce" and source < INPUTS else ""
        share = None if strengths is None else strengths[number]
        at = (x, lanes[source], centers[node] + side * 14, lanes[INPUTS + node])
        parts += _edge(at, side, operation, halved, share)
    for node, center in enumerate(centers):
        parts += _node(center, lanes[INPUTS + node], f"node {node + INPUTS}")
    top, bottom = lanes[INPUTS] - 14, lanes[-1] + 14
    parts.append(
        f'<rect x="{output:g}" y="{top:g}" width="14" height="{bottom - top:g}" rx="3"'
        f' fill="#eceff1" stroke="{_INK}"/>'
    )
    parts.append(_text(output + 7, top - 8, "channels together", size=10, color="#78909c"))
    return parts


def _edge(
    at: tuple[float, float, float, float],
    side: int,
    operation: str,
    suffix: str,
    strength: float | None,
) -> list[str]:
    """Draw an edge from its state down through its operation to the node.

    Args:
        at: x of the edge, y of its state, x where the curve bends, y of the node.
        side: 1 on the right of the node, -1 on its left.
        suffix: follows the operation's name.
        strength: probability of the operation, if known.
    """
    x, source_y, bend_x, sum_y = at
    box = sum_y - 28 - _BOX_HEIGHT
    name, color = _look(operation)
    parts = [
        f'<path d="M{x:g} {source_y:g} V{box:g}" stroke="{_PALE}" stroke-width="1.5" fill="none"/>',
        f'<circle cx="{x:g}" cy="{source_y:g}" r="3.2" fill="{_INK}"/>',
        f'<path d="M{x:g} {box + _BOX_HEIGHT:g} C{x:g} {sum_y - 12:g}'
        f" {bend_x:g} {sum_y - 16:g} {bend_x - side * 8:g}"
        f' {sum_y - 7:g}" stroke="{_PALE}" stroke-width="1.5" fill="none"/>',
        _box(x - _BOX_WIDTH / 2, box, _BOX_WIDTH, _BOX_HEIGHT, color, name + suffix),
    ]
    if strength is not None:
        text, anchor = f"{100 * strength:.1f} %", "start" if side > 0 else "end"
        y = box + _BOX_HEIGHT + 12
        parts.append(_text(x + side * 5, y, text, size=9, anchor=anchor, color="#78909c"))
    return parts


def _node(x: float, y: float, name: str) -> list[str]:
    """Draw a node, which adds up its two operations."""
    return [
        f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="#ffffff" stroke="{_INK}" stroke-width="1.5"/>',
        f'<path d="M{x - 5:g} {y:g} h10 M{x:g} {y - 5:g} v10" stroke="{_INK}" stroke-width="1.5"/>',
        _text(x, y + 21, name, size=10, color="#78909c"),
    ]


def _legend(used: Sequence[str]) -> list[str]:
    parts = [_text(20, 26, "operations", anchor="start", weight="bold", size=13)]
    for number, name in enumerate(used):
        short, color = _look(name)
        parts.append(_box(20, 44 + number * 30, _BOX_WIDTH, _BOX_HEIGHT, color, short))
        parts.append(_text(92, 59 + number * 30, name, anchor="start"))
    notes = (
        "Each node adds up two operations on earlier states;",
        "the stronger one in the search stands on its left.",
        "/2: halves height and width.",
    )
    return parts + [
        _text(20, 76 + len(used) * 30 + number * 18, note, anchor="start", color="#546e7a")
        for number, note in enumerate(notes)
    ]


def _look(operation: str) -> tuple[str, str]:
    return _LOOKS.get(operation, (operation[:9], "#ffffff"))


def _box(x: float, y: float, width: float, height: float, color: str, text: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{color}"'
        f' stroke="{_INK}"/>'
        + _text(x + width / 2, y + height / 2 + 4, text, size=11 if len(text) * 6.2 < width else 10)
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: float = 12,
    anchor: str = "middle",
    weight: str = "normal",
    color: str = "#1b262c",
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
        f' font-weight="{weight}" fill="{color}">{escape_html(text)}</text>'
    )
