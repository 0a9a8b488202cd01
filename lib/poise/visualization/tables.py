"""Text for a terminal: aligned columns, numbers with nouns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def align_columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows of equally many cells as lines, each column as wide as its widest cell; `right`:
    columns that are aligned at their right end.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)
