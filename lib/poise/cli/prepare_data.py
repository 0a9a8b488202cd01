"""Download COCO, or check MPII: python tools/prepare_data.py coco|mpii [--root data/coco] [--only
annotations val2017 ...] [--yes]

Sizes are printed and confirmed before a download. A transfer resumes where it stopped, is checked
against its checksum, and is unpacked to the folders of docs/datasets.md. Existing files are kept.
Files that cannot be downloaded automatically are named, and checked once they exist. The exit
status is 1 if something is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=("coco", "mpii"), help="dataset")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder of the dataset, DATASET.ROOT; default data/coco or data/mpii",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help="annotations, val2017, train2017, image_info, test2017; default the first three",
    )
    parser.add_argument(
        "--zipped",
        action="store_true",
        help="keep images in their archives, for DATASET.DATA_FORMAT zip",
    )
    parser.add_argument("--keep", action="store_true", help="keep the archives after unpacking")
    parser.add_argument(
        "--base",
        default="",
        metavar="URL",
        help="mirror of the files; checksums are verified as well",
    )
    parser.add_argument("--yes", action="store_true", help="download without asking")
    args = parser.parse_args(argv)
    from poise.config.sources import SOURCES
    from poise.datasets import prepare

    source = SOURCES[args.set]
    by_hand = prepare.prepare(
        source,
        args.root or source.root,
        only=args.only,
        base=args.base,
        zipped=args.zipped,
        keep=args.keep,
        confirm=None if args.yes else prepare.confirm_on_terminal,
    )
    for line in by_hand:
        print(line)
    return 1 if by_hand else 0
