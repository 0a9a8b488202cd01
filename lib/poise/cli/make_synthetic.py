"""Draw a synthetic dataset of people in the layout of COCO or MPII: python tools/make_synthetic.py
--out data/synthetic
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw a synthetic dataset of people with keypoints, boxes and masks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/synthetic", help="folder of the dataset")
    parser.add_argument("--train", type=int, default=2000, help="number of training images")
    parser.add_argument("--val", type=int, default=300, help="number of test images")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--workers", type=int, default=None, help="processes (None: one per core)")
    parser.add_argument(
        "--format", choices=("coco", "mpii"), default="coco", help="layout of the annotations"
    )
    parser.add_argument(
        "--hardness", type=float, default=0.0, help="0: simple poses and scenes, 1: all variations"
    )
    parser.add_argument(
        "--force", action="store_true", help="draw again even if the dataset is complete"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # here, so that --help imports neither OpenCV nor NumPy
    from poise.datasets.synthetic.write import make_coco, make_mpii

    make, names = make_coco, ("train2017", "val2017")
    if args.format == "mpii":
        make, names = make_mpii, ("train", "valid")
    make(
        args.out,
        dict(zip(names, (args.train, args.val))),
        seed=args.seed,
        workers=args.workers,
        force=args.force,
        hardness=args.hardness,
    )
    return 0
