"""Run all benchmarks, each in its own process, and write their table to docs/performance.md.

Usage: make bench, or python benchmarks/run.py [NAME ...] without the table.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import Row, read_rows

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks: begin, written by make bench -->", "<!-- benchmarks: end -->"
PARTS = (
    "data",
    "evaluation",
    "startup",
    "postprocess",
    "optimizer",
    "train_step",
    "inference",
    "estimator",
    "export",
    "oks_nms",
    "loader_memory",
    "imports",
)


def describe_machine() -> str:
    """Return the CPU, its cores and package versions; no name of the machine."""
    model = platform.processor() or "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = named[0] if named else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = [
        f"{label} {importlib.metadata.version(name)}"
        for name, label in (
            ("torch", "torch"),
            ("numpy", "NumPy"),
            ("opencv-python-headless", "OpenCV"),
            ("pycocotools", "pycocotools"),
        )
    ]
    for name in ("faster-coco-eval", "simplejpeg"):
        if importlib.util.find_spec(name.replace("-", "_")):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    regions = "with" if importlib.util.find_spec("poise.io._jpeg") else "without"
    return (
        f"{model}, {cores} cores, no GPU used; Python {platform.python_version()},"
        f" {', '.join(versions)}; {regions} libjpeg-turbo's header"
    )


def format_table(rows: list[Row], minutes: float) -> str:
    lines = [
        f"Measured on: {describe_machine()}.",
        f"One thread; other programs may have run. {minutes:.0f} minutes.",
        "",
        "| work | Poise | compared with | measured | bound | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        value, bound = row.formatted
        lines.append(
            f"| {row.work} | {row.product} | {row.other} | {value.strip()} | {bound.strip()} |"
            f" {row.verdict} |"
        )
    return "\n".join(lines)


def write_table(text: str, page: Path = PAGE) -> None:
    """Replace the text between the two marks of the page; append the marks if missing."""
    content = page.read_text(encoding="utf-8") if page.is_file() else "# Measured with this code\n"
    if BEGIN not in content:
        content = f"{content.rstrip()}\n\n## Benchmarks\n\n{BEGIN}\n{END}\n"
    before, rest = content.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main() -> int:
    parts = sys.argv[1:] or PARTS
    rows, failed, begin = [], [], time.perf_counter()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent / "lib"), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            print(f"-- {part}", flush=True)
            file = Path(folder) / f"{part}.json"
            done = subprocess.run(
                [sys.executable, str(HERE / f"{part}.py"), "--json", str(file)],
                env=environment,
                check=False,
            )
            if done.returncode:
                failed.append(part)
            if file.is_file():
                rows += read_rows(str(file))
    minutes = (time.perf_counter() - begin) / 60
    below = [row.work for row in rows if row.verdict == "below"]
    print(f"{len(rows)} rows in {minutes:.1f} minutes; below: {', '.join(below) or 'none'}")
    if failed:
        print(
            f"error: {', '.join(failed)} failed; the table is not written",
            file=sys.stderr,
        )
        return 1
    if not sys.argv[1:]:
        write_table(format_table(rows, minutes))
        print(f"written to {PAGE.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
