"""Download released weights: python tools/download_weights.py NAME [NAME ...], or --list for the
names

Each file is verified and saved where the experiments expect it. Some cannot be downloaded by a
program: then the page, the file name and the folder are printed, and the exit status is 1 until the
file exists.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="entry of models/zoo.yaml")
    parser.add_argument(
        "--list", action="store_true", help="list the entries, or describe the named ones"
    )
    parser.add_argument("--force", action="store_true", help="download existing files again")
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="folder for the files, instead of where the experiments expect them",
    )
    parser.add_argument("--zoo", metavar="FILE", help="another list of released weights")
    args = parser.parse_intermixed_args(argv)
    if not args.names and not args.list:
        parser.error("give NAME or --list")
    from poise.models.weights import zoo

    source = args.zoo or zoo.ZOO
    entries = zoo.read_zoo(source)
    chosen = [zoo.find(entries, name, source) for name in args.names] or list(entries.values())
    if args.list:
        print(zoo.table(chosen) if not args.names else "\n\n".join(map(zoo.describe, chosen)))
        return 0
    missing = 0
    for entry in chosen:
        target = zoo.target_path(entry, args.to)
        if entry.by_hand and not target.is_file():
            print(zoo.manual_instructions(entry, target))
            missing += 1
            continue
        print(f"{entry.name}: {zoo.fetch(entry, args.to, args.force)}")
        print(f"licence: {entry.licence}")
    return 1 if missing else 0
