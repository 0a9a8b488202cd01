"""Findings of a dataset check, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from poise.errors import escape_name, pluralize, single_line

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: ERROR, WARNING or NOTE.
        where: Title of the split.
        text: One line.
    """

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


@dataclass
class Findings:
    """Collect the findings of one split, or of two that are compared.

    An error stops or spoils a training, a warning may be intended, a note is a figure to know.
    """

    where: str
    items: list[Finding] = field(default_factory=list)

    def error(self, text: str) -> None:
        self._add(ERROR, text)

    def warning(self, text: str) -> None:
        self._add(WARNING, text)

    def note(self, text: str) -> None:
        self._add(NOTE, text)

    def error_or_warning(self, text: str, *, is_error: bool) -> None:
        self._add(ERROR if is_error else WARNING, text)

    def warning_or_note(self, text: str, *, is_warning: bool) -> None:
        self._add(WARNING if is_warning else NOTE, text)

    def _add(self, kind: str, text: str) -> None:
        self.items.append(Finding(kind, self.where, single_line(text)))


def format_verdict(findings: Sequence[Finding]) -> str:
    """Return one line with the numbers of errors and warnings."""
    kinds = [finding.kind for finding in findings]
    num_errors = kinds.count(ERROR)
    num_warnings = kinds.count(WARNING)
    warnings = f", {pluralize(num_warnings, 'warning')}" if num_warnings else ""
    if not num_errors:
        return f"verdict: fine{warnings}"
    return f"verdict: {pluralize(num_errors, 'error')} found{warnings}; fix before training"


def format_report(findings: Sequence[Finding]) -> str:
    """Return the findings as lines, errors first, and the verdict."""
    lines = [str(finding) for finding in sort_by_kind(findings)]
    return "\n".join([*lines, format_verdict(findings)])


def sort_by_kind(findings: Iterable[Finding]) -> list[Finding]:
    """Return errors first, then warnings, then notes."""
    return sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.kind))


def list_first(names: Iterable[object], count: int = 3) -> str:
    """Return the first few names, separated by commas."""
    names = list(names)
    text = ", ".join(escape_name(name, 80) for name in names[:count])
    return f"{text}, ..." if len(names) > count else text


def format_percent(part: float, total: float) -> str:
    return f"{100 * part / total:.1f} %" if total else "0 %"
