"""Time the imports and --help: CPU time of processes, run alternately."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from timing import Row, main

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}


def cpu_seconds(command: list[str]) -> tuple[float, float]:
    """Return the (CPU, wall-clock) seconds of a process."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        time.perf_counter() - begin,
    )


def measure() -> Iterator[Row]:
    """Imports compared with importing torch only; --help."""
    commands = {
        "torch": ["-c", "import torch"],
        "poise": ["-c", "import torch, poise"],
        "training": ["-c", "import torch, poise.engine.train"],
        "help": ["tools/train.py", "--help"],
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for turn in range(-1, 7):
        for name, arguments in commands.items():
            found = cpu_seconds([sys.executable, *arguments])
            if turn >= 0:
                seconds[name].append(found)
    torch = statistics.median(cpu for cpu, _ in seconds["torch"])
    for name, work in (
        ("poise", "import poise, in addition to torch"),
        ("training", "imports of a training, in addition to torch"),
    ):
        above = statistics.median(
            cpu - base for (cpu, _), (base, _) in zip(seconds[name], seconds["torch"])
        )
        yield Row(
            work,
            f"{above + torch:.2f} s",
            f"torch {torch:.2f} s",
            max(above, 0.0),
            "max",
            0.2,
            "s",
        )
    yield Row(
        "tools/train.py --help, wall-clock time",
        "",
        "",
        statistics.median(clock for _, clock in seconds["help"]),
        "max",
        2,
        "s",
    )


if __name__ == "__main__":
    main(measure)
