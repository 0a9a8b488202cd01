"""Write the tables of docs/faults.md (planted faults) and docs/reliability.md (fuzzing counts).

Usage: python fuzz/page.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ROOT / "fuzz" / "counts.json"


def faults() -> str:
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from support import planted_faults
    finally:
        sys.path.pop(0)
    return planted_faults.table()


def counts() -> str:
    rows = json.loads(COUNTS.read_text(encoding="utf-8"))
    total = {
        key: sum(row[key] for row in rows.values())
        for key in ("inputs", "read", "seconds", "faults")
    }
    lines = [
        "| harness | drawn by | inputs | read, not refused | faults | most memory, MB | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['engine']} | {row['inputs']:,} | {row['read']:,} | {row['faults']} |"
        f" {row['megabytes']:.0f} | {row['seconds'] / 60:.1f} |"
        for name, row in rows.items()
    ]
    most = max(row["megabytes"] for row in rows.values())
    return "\n".join(
        [
            *lines,
            (
                f"| all | | {total['inputs']:,} | {total['read']:,} | {total['faults']} |"
                f" {most:.0f} | {total['seconds'] / 60:.1f} |"
            ),
        ]
    )


TABLES = {
    ROOT / "docs" / "faults.md": ("faults", faults),
    ROOT / "docs" / "reliability.md": ("counts", counts),
}


def filled(page: Path) -> str:
    """Return the text of the page with the table between its marks replaced."""
    name, make = TABLES[page]
    begin, end = f"<!-- {name}: begin, written by fuzz/page.py -->", f"<!-- {name}: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin, 1)
    return f"{before}{begin}\n{make()}\n{end}{rest.split(end, 1)[1]}"


if __name__ == "__main__":
    for page in TABLES:
        page.write_text(filled(page), encoding="utf-8")
