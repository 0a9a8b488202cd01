"""Draw a made set of people in COCO's or MPII's layout: python tools/make_synthetic.py --out
data/synthetic
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw a made set of people with joints, boxes and masks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/synthetic", help="folder to write the set to")
    parser.add_argument("--train", type=int, default=2000, help="pictures to train on")
    parser.add_argument("--val", type=int, default=300, help="pictures to test on")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another set")
    parser.add_argument("--workers", type=int, default=None, help="processes (None: one per core)")
    parser.add_argument(
        "--format", choices=("coco", "mpii"), default="coco", help="layout of the annotations"
    )
    parser.add_argument(
        "--hardness", type=float, default=0.0, help="0: plain poses and places, 1: everything"
    )
    parser.add_argument(
        "--force", action="store_true", help="draw anew even if the set is complete"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # late: --help needs neither OpenCV nor NumPy
    from poise.datasets.synthetic.write import make_coco, make_mpii

    make, names = (
        (make_coco, ("train2017", "val2017"))
        if args.format == "coco"
        else (make_mpii, ("train", "valid"))
    )
    make(
        args.out,
        dict(zip(names, (args.train, args.val))),
        seed=args.seed,
        workers=args.workers,
        force=args.force,
        hardness=args.hardness,
    )
    return 0
