"""How every benchmark measures and says what it found.

Contenders run in one process and one thread, in turns (A B A B ...), after one round that is not
counted; each turn's processor time is taken. A ratio is the median over the turns of baseline /
product: neighbours in time meet the same machine. A row is reached or below by its bound alone, and
a product slower than its baseline is below any bound, for every bound is above 1.
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
    """One line of the table. bound: of `value`; kind: 'ratio' (the value must be at least the
    bound), 'most' (at most), 'shown' (no bound).
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
        if self.kind == "shown":
            return "slower" if self.unit == "x" and self.value < 1 else ""
        return (
            "reached"
            if (self.value >= self.bound if self.kind == "ratio" else self.value <= self.bound)
            else "below"
        )

    @property
    def figures(self) -> tuple[str, str]:
        """Value and bound as they are printed, the value towards the worse, so that no rounding
        turns it into a reached one.
        """
        rounding = {"ratio": math.floor, "most": math.ceil}.get(self.kind, round)

        def shown(value: float) -> str:
            if abs(value) < 0.01 and value:
                return f"{value:.2g}"
            return f"{rounding(value * 100) / 100:.2f}" if value < 100 else f"{rounding(value):.0f}"

        sign = {"ratio": ">= ", "most": "<= "}.get(self.kind, "")
        return f"{shown(self.value)} {self.unit}", (
            "" if self.bound is None else f"{sign}{self.bound:g} {self.unit}"
        )


def in_turns(
    contenders: dict[str, Callable[[], object]], turns: int, warm: int = 1, repeats: int = 1
) -> dict[str, list[float]]:
    """Processor seconds of each contender in each turn. repeats: of work that is so short that
    the others' leavings in the caches would count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm, turns):
        for name, work in contenders.items():
            begin = time.process_time()
            for _ in range(repeats):
                work()
            if turn >= 0:
                seconds[name].append((time.process_time() - begin) / repeats)
    return seconds


def ratio(seconds: dict[str, list[float]], baseline: str, product: str) -> float:
    return statistics.median(b / p for b, p in zip(seconds[baseline], seconds[product]))


def shown(seconds: list[float], count: int = 1) -> str:
    """The median, per item of `count`, in a fitting unit."""
    value = statistics.median(seconds) / count
    return (
        f"{value:.2f} s"
        if value >= 1
        else f"{value * 1e3:.2f} ms"
        if value >= 1e-3
        else f"{value * 1e6:.0f} us"
    )


def compared(
    work: str,
    seconds: dict[str, list[float]],
    bound: float | None,
    baseline: str = "reference",
    product: str = "poise",
    count: int = 1,
) -> Row:
    return Row(
        work,
        shown(seconds[product], count),
        f"{baseline} {shown(seconds[baseline], count)}",
        ratio(seconds, baseline, product),
        "shown" if bound is None else "ratio",
        bound,
    )


def main(measure: Callable[[], Iterable[Row]]) -> None:
    """The command line of a benchmark: prints each row when it is there; --json FILE keeps them
    for the whole table.
    """
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    one_thread()
    rows = []
    for row in measure():
        value, bound = row.figures
        print(
            f"{row.work}: {row.product} | {row.other} | {value} | {bound} | {row.verdict}",
            flush=True,
        )
        rows.append(row)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump([asdict(row) for row in rows], file)


def one_thread() -> None:
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def read_rows(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        for fields in json.load(file):
            yield Row(**fields)
