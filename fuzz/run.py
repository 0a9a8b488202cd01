"""The long fuzzing: python fuzz/run.py [--minutes M] [--inputs N] [--anew] [HARNESS ...]

Each harness runs in processes of its own, in turns, until the time is over or the number of inputs
is reached. Inputs are drawn by number, and where atheris is installed (pip install poise[fuzz]) in
every other turn guided by its coverage. A later call goes on: what was worth keeping is in
output/fuzz, how many inputs there were in fuzz/counts.json, and the table in docs/reliability.md is
made from that.
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
TURN = 30.0  # seconds for one part of a harness's share


def child(name: str, folder: Path, seconds: float, inputs: int, first: int, engine: str) -> None:
    """Inputs for one harness until time or number is reached, each counted in the file `count`,
    so that an end of any kind loses none.
    """
    import engines
    import harnesses

    file = folder / "count"
    with open(file, "r+b") as stream, mmap.mmap(stream.fileno(), 24) as counter:

        def count(done: int) -> None:
            struct.pack_into("<QQd", counter, 0, done, harnesses.read, engines.megabytes())

        try:
            engines.ENGINES[engine](name, folder, seconds, inputs, first, count)
        finally:
            harnesses.close()


def turn(name: str, seconds: float, inputs: int, counts: dict) -> None:
    """One process for a harness; what came of it is added to `counts`."""
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
    # in turns: coverage leads to the rare branches, and is soon far from any file that can be read;
    # numbers stay near the good ones
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
            f"{name}: FAULT, status {status}, {', '.join(found) or 'no input kept'}; see"
            f" {folder / 'log'}",
            flush=True,
        )
    harnesses.remove_left_over()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="HARNESS", help="which ones; all without")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    parser.add_argument(
        "--inputs",
        type=int,
        default=1 << 60,
        help="end when so many inputs were tried in all, earlier calls included",
    )
    parser.add_argument(
        "--anew", action="store_true", help="count from 0, and forget what was worth keeping"
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
        parser.error(f"no harness {wrong[0]!r}; they are {', '.join(map(repr, HARNESSES))}")
    if args.anew:
        shutil.rmtree(FOLDER, ignore_errors=True)
        COUNTS.unlink(missing_ok=True)
    counts = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    names = args.names or list(HARNESSES)
    end = time.monotonic() + 60 * args.minutes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def total() -> int:
        return sum(row["inputs"] for row in counts.values())

    while time.monotonic() < end and total() < args.inputs:
        # the harness that is furthest behind its share of the time
        name = min(
            names, key=lambda name: counts.get(name, {}).get("seconds", 0) / HARNESSES[name].share
        )
        turn(name, min(TURN, max(end - time.monotonic(), 1)), args.inputs - total(), counts)
        COUNTS.write_text(
            json.dumps({name: counts[name] for name in HARNESSES if name in counts}, indent=1)
            + "\n"
        )
    faults = sum(row["faults"] for row in counts.values())
    print(f"{total()} inputs in all, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
