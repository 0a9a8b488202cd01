"""Plot the curves of training runs: python tools/plot_log.py output/coco/pose_res2net/a
output/coco/pose_res2net/b [--output curves.html]

Takes run folders or their metrics.jsonl; prints the best epoch of each and draws losses, accuracy,
AP or PCKh, learning rate and speed over the epochs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder or metrics.jsonl")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=(
            "a .png or a self-contained .html page; default curves.png in the folder of the first"
            " run"
        ),
    )
    parser.add_argument(
        "--figures",
        nargs="+",
        default=[],
        metavar="NAME",
        help="metrics to plot, one chart each, instead of the default ones",
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poise.evaluation.analysis import training_curves

    runs = training_curves.read_logs(args.runs)
    print(training_curves.format_summary(runs), end="")
    output = args.output or training_curves.log_file(args.runs[0]).with_name("curves.png")
    training_curves.write(runs, output, args.figures)
    print(output)
    return 0
