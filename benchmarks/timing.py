"""Time functions against each other and report the results as rows of a table.

The functions run in one process and one thread, alternately (A B A B ...), after one warm-up
round. CPU time is measured. A ratio is the median over the rounds of baseline / product, so both
ran on the machine in the same state. A row is "reached" or "below" by its bound only. Every bound
on a ratio is above 1, so a product slower than its baseline is always "below".
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass


@dataclass
class Row:
    """One row of the table.

    kind: 'min' if `value` must be at least `bound`, 'max' if at most, 'none' without a bound.
    """

    work: str
    product: str
    other: str
    value: float
    kind: str
    bound: float | None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        if self.kind == "none":
            return "slower" if self.unit == "x" and self.value < 1 else ""
        reached = self.value >= self.bound if self.kind == "min" else self.value <= self.bound
        return "reached" if reached else "below"

    @property
    def formatted(self) -> tuple[str, str]:
        """The value and the bound as text. The value is rounded towards the worse."""
        rounding = {"min": math.floor, "max": math.ceil}.get(self.kind, round)

        def format_value(value: float) -> str:
            if abs(value) < 0.01 and value:
                return f"{value:.2g}"
            return f"{rounding(value * 100) / 100:.2f}" if value < 100 else f"{rounding(value):.0f}"

        sign = {"min": ">= ", "max": "<= "}.get(self.kind, "")
        return f"{format_value(self.value)} {self.unit}", (
            "" if self.bound is None else f"{sign}{self.bound:g} {self.unit}"
        )


def time_alternately(
    functions: dict[str, Callable[[], object]], rounds: int, warmup: int = 1, repeats: int = 1
) -> dict[str, list[float]]:
    """Return the CPU seconds of each function in each round.

    repeats: calls per round, for work so short that cold CPU caches would matter.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-warmup, rounds):
        for name, work in functions.items():
            begin = time.process_time()
            for _ in range(repeats):
                work()
            if number >= 0:
                seconds[name].append((time.process_time() - begin) / repeats)
    return seconds


def ratio(seconds: dict[str, list[float]], baseline: str, product: str) -> float:
    """Return the median over the rounds of baseline / product."""
    return statistics.median(b / p for b, p in zip(seconds[baseline], seconds[product]))


def format_seconds(seconds: list[float], count: int = 1) -> str:
    """Format the median, divided by `count`, in s, ms or us."""
    value = statistics.median(seconds) / count
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:
        return f"{value * 1e3:.2f} ms"
    return f"{value * 1e6:.0f} us"


def compare(
    work: str,
    seconds: dict[str, list[float]],
    bound: float | None,
    baseline: str = "reference",
    product: str = "poise",
    count: int = 1,
) -> Row:
    """Return the row that compares `product` with `baseline`; `count` items per call."""
    return Row(
        work,
        format_seconds(seconds[product], count),
        f"{baseline} {format_seconds(seconds[baseline], count)}",
        ratio(seconds, baseline, product),
        "none" if bound is None else "min",
        bound,
    )


def main(measure: Callable[[], Iterable[Row]]) -> None:
    """Run a benchmark from the command line: print each row, write all to --json FILE."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    args = parser.parse_args()
    use_one_thread()
    rows = []
    for row in measure():
        value, bound = row.formatted
        print(
            f"{row.work}: {row.product} | {row.other} | {value} | {bound} | {row.verdict}",
            flush=True,
        )
        rows.append(row)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump([asdict(row) for row in rows], file)


def use_one_thread() -> None:
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def read_rows(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        for fields in json.load(file):
            yield Row(**fields)
