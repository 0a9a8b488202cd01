"""Fuzz the readers: python fuzz/run.py [--minutes M] [--inputs N] [--restart] [HARNESS ...]

Each harness runs in its own processes, one after the other, until the time is over or the number of
inputs is reached. Inputs are drawn by number; if atheris is installed (pip install poise[fuzz]),
every other run is guided by coverage. A later call continues: the corpus is in output/fuzz, the
number of inputs in fuzz/counts.json, from which fuzz/page.py makes the table of
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
COUNTS = HERE / "counts.json"
FOLDER = HERE.parent / "output" / "fuzz"
TURN = 30.0  # seconds of one run of a harness


def child(name: str, folder: Path, seconds: float, inputs: int, first: int, engine: str) -> None:
    """Run one harness until the time or the number of inputs is reached.

    Each input is counted in the file `count`, so that the count survives any crash.
    """
    import engines
    import harnesses

    file = folder / "count"
    with open(file, "r+b") as stream, mmap.mmap(stream.fileno(), 24) as counter:

        def count(done: int) -> None:
            struct.pack_into("<QQd", counter, 0, done, harnesses.read, engines.peak_memory_mb())

        try:
            engines.ENGINES[engine](name, folder, seconds, inputs, first, count)
        finally:
            harnesses.close()


def turn(name: str, seconds: float, inputs: int, counts: dict) -> None:
    """Run a harness in one process and add the results to `counts`."""
    import harnesses

    guided = importlib.util.find_spec("atheris") and not harnesses.HARNESSES[name].compiled
    folder = FOLDER / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "count").write_bytes(bytes(24))
    before = set(folder.glob("*-*"))
    row = counts.setdefault(
        name,
        {
            "inputs": 0,
            "read": 0,
            "seconds": 0.0,
            "megabytes": 0.0,
            "faults": 0,
            "turns": 0,
            "engine": "atheris and numbers" if guided else "numbers",
        },
    )
    row["turns"] = row.get("turns", 0) + 1
    # alternately: coverage finds rare branches but leaves the valid files; numbers stay near them
    engine = "atheris" if guided and row["turns"] % 2 else "numbers"
    begin = time.monotonic()
    command = [
        sys.executable,
        __file__,
        "--child",
        name,
        "--seconds",
        str(seconds),
        "--inputs",
        str(inputs),
        "--first",
        str(row["inputs"]),
        "--engine",
        engine,
    ]
    with open(folder / "log", "ab") as log:
        try:
            status = subprocess.run(
                command, stdout=log, stderr=log, check=False, timeout=seconds + 120
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    done, read, megabytes = struct.unpack("<QQd", (folder / "count").read_bytes())
    found = sorted(path.name for path in set(folder.glob("*-*")) - before)
    row["inputs"] += done
    row["read"] += read
    row["seconds"] = round(row["seconds"] + time.monotonic() - begin, 1)
    row["megabytes"] = round(max(row["megabytes"], megabytes))
    if status or found:
        row["faults"] += 1
        print(
            f"{name}: FAULT, status {status}, {', '.join(found) or 'no input saved'}; see"
            f" {folder / 'log'}",
            flush=True,
        )
    harnesses.remove_stale_files()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="HARNESS", help="harnesses to run (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="duration (default: 60)")
    parser.add_argument(
        "--inputs",
        type=int,
        default=1 << 60,
        help="stop after this total number of inputs, earlier calls included",
    )
    parser.add_argument(
        "--restart", action="store_true", help="remove the counts and the corpus first"
    )
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(
            args.child,
            FOLDER / args.child.replace(" ", "_"),
            args.seconds,
            args.inputs,
            args.first,
            args.engine,
        )
        return 0
    from harnesses import HARNESSES

    wrong = [name for name in args.names if name not in HARNESSES]
    if wrong:
        parser.error(f"unknown harness {wrong[0]!r}; choose from {', '.join(map(repr, HARNESSES))}")
    if args.restart:
        shutil.rmtree(FOLDER, ignore_errors=True)
        COUNTS.unlink(missing_ok=True)
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    names = args.names or list(HARNESSES)
    end = time.monotonic() + 60 * args.minutes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def total() -> int:
        return sum(row["inputs"] for row in counts.values())

    while time.monotonic() < end and total() < args.inputs:
        # the harness with the least time relative to its weight
        name = min(
            names, key=lambda name: counts.get(name, {}).get("seconds", 0) / HARNESSES[name].weight
        )
        turn(name, min(TURN, max(end - time.monotonic(), 1)), args.inputs - total(), counts)
        COUNTS.write_text(
            json.dumps({name: counts[name] for name in HARNESSES if name in counts}, indent=1)
            + "\n"
        )
    faults = sum(row["faults"] for row in counts.values())
    print(f"{total()} inputs in total, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
