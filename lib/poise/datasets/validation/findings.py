"""What a check has found, in lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from poise.errors import escape_name, single_line

FAULT, WARNING, NOTE = "fault", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """kind: FAULT, WARNING or NOTE. where: the set. text: one line."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


@dataclass
class Findings:
    """Of one set, or of several. A fault stops or spoils a training; a warning may be meant; a
    note is a figure to know.
    """

    where: str
    found: list[Finding] = field(default_factory=list)

    def fault(self, text: str) -> None:
        self.found.append(Finding(FAULT, self.where, single_line(text)))

    def warning(self, text: str) -> None:
        self.found.append(Finding(WARNING, self.where, single_line(text)))

    def note(self, text: str) -> None:
        self.found.append(Finding(NOTE, self.where, single_line(text)))


def some(names: Iterable[object], most: int = 3) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(escape_name(name, 80) for name in names[:most]) + (
        ", ..." if len(names) > most else ""
    )


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
