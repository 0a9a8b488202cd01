"""Print the size of a network: python tools/get_flops.py --cfg FILE [--shape H W] [--rule
macs|mmcv] [--depth N] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from poise.errors import ConfigError

if TYPE_CHECKING:
    from yacs.config import CfgNode


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from poise.cli.arguments import ToolParser, add_experiment_arguments

    parser = ToolParser(
        description="Print parameters and operations of a network, per layer and in total."
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        metavar=("H", "W"),
        help="input height and width in pixels; one number is a square; default MODEL.IMAGE_SIZE",
    )
    parser.add_argument(
        "--rule",
        choices=("macs", "mmcv"),
        default="macs",
        help=(
            "macs: multiply-adds of convolutions and linear layers; mmcv: as mmcv 1.x and MogaNet's"
            " tables count; default macs"
        ),
    )
    parser.add_argument(
        "--all-outputs",
        action="store_true",
        help=("show what training computes: every supervised output, not the prediction only"),
    )
    shortened = parser.add_mutually_exclusive_group()
    shortened.add_argument(
        "--depth", type=int, metavar="N", help="show N levels of modules; default all"
    )
    shortened.add_argument("--total-only", action="store_true", help="show the totals only")
    add_experiment_arguments(parser)
    args = parser.parse_args(argv)
    if args.depth is not None and args.depth < 0:
        raise ConfigError(f"--depth {args.depth}: must be 0 or more")
    words = args.shape or []
    if len(words) > 2 or not all(word.isascii() and word.isdecimal() for word in words):
        raise ConfigError(
            f"--shape {' '.join(words)}: takes a height and a width in pixels, or one number for"
            " both"
        )
    args.shape = [int(word) for word in words]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poise.cli.arguments import experiment
    from poise.models import build_on_meta, flops

    cfg = experiment(args)
    if args.shape:
        args.overrides += size_overrides(cfg, args.shape[0], args.shape[-1])
    args.overrides += ["MODEL.INIT_WEIGHTS", False]  # there are no values to set
    cfg = experiment(args)
    model = build_on_meta(cfg)
    tested, trained = (
        flops.measure(model, cfg.MODEL.IMAGE_SIZE, rule=args.rule, all_outputs=outputs)
        for outputs in (False, True)
    )
    print(f"{cfg.MODEL.NAME} of {args.cfg}")
    print(
        flops.report(
            tested,
            trained,
            depth=0 if args.total_only else args.depth,
            all_outputs=args.all_outputs,
        )
    )
    return 0


def size_overrides(cfg: CfgNode, height: int, width: int) -> list[Any]:
    """Return KEY, VALUE, ... that set the input size of an experiment and scale its heatmap size.

    Raises ConfigError if the heatmap size is not a whole number.
    """
    heatmap = []
    for new, image, cells in zip((width, height), cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE):
        if new < 1 or new * cells % image:
            step = image // math.gcd(image, cells)
            raise ConfigError(
                f"--shape {height} {width}: invalid size, heatmaps are {cells}/{image} of the"
                f" input; the sizes must be multiples of {step} above 0"
            )
        heatmap.append(new * cells // image)
    return ["MODEL.IMAGE_SIZE", [width, height], "MODEL.HEATMAP_SIZE", heatmap]
