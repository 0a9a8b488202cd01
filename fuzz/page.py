"""The tables of docs/reliability.md, made of the planted faults and of what the fuzzing counted:
python fuzz/page.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
COUNTS = ROOT / "fuzz" / "counts.json"


def faults() -> str:
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import planted_faults
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


def filled(text: str) -> str:
    """The page's text with each table between its marks made anew."""
    for name, make in (("faults", faults), ("counts", counts)):
        begin, end = f"<!-- {name}: begin, written by fuzz/page.py -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
