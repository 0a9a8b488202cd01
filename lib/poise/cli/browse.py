"""Draw training samples: python tools/browse.py --cfg
experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml [--output FOLDER] [KEY VALUE ...]

Writes grids of the first augmented samples of an epoch, as in training: joints.jpg, and
heatmaps.jpg with the target and weight of each keypoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from poise.errors import ConfigError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from poise.cli.arguments import ToolParser, add_experiment_arguments

    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="output folder; default OUTPUT_DIR/browse/<dataset>/<model>/<experiment>",
    )
    parser.add_argument(
        "--count", type=int, default=32, metavar="N", help="number of samples; default 32"
    )
    parser.add_argument(
        "--epoch",
        type=int,
        default=0,
        metavar="N",
        help="epoch, for the order and the augmentation; default 0",
    )
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        metavar="N",
        help="first sample of the epoch; default 0",
    )
    add_experiment_arguments(parser)
    args = parser.parse_args(argv)
    for name, least in (("count", 1), ("epoch", 0), ("first", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} {getattr(args, name)}: must be {least} or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poise.cli.arguments import experiment
    from poise.engine import browse, logger

    cfg = experiment(args)
    logger.start_console()
    folder = args.output or Path(cfg.OUTPUT_DIR) / "browse" / logger.run_names(cfg, args.cfg)
    for path in browse.run(cfg, folder, count=args.count, epoch=args.epoch, first=args.first):
        print(path)
    return 0
