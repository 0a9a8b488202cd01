"""Analyze the errors of a result file: python tools/analyze.py --results results.json --annotations
person_keypoints_val2017.json [--images FOLDER] [--compare other.json]

Writes a self-contained HTML page and a JSON file with its numbers. For annotations and results in
COCO format.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from poise.errors import ConfigError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results",
        required=True,
        metavar="FILE",
        help="result file, such as results/keypoints_*.json of a run folder",
    )
    parser.add_argument(
        "--annotations", required=True, metavar="FILE", help="annotations of the same images"
    )
    parser.add_argument(
        "--dataset",
        default="coco",
        metavar="FILE",
        help="dataset file, or the name of one in experiments/datasets; default coco",
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="another result file of the same images, to compare with",
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder or zip archive of the images, to draw the worst ones",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=12,
        metavar="N",
        help="number of worst images to show; default 12",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help=("folder for analysis.html and analysis.json; default <result file>_analysis"),
    )
    args = parser.parse_args(argv)
    if args.pictures < 0:
        raise ConfigError(f"--pictures {args.pictures}: must be 0 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poise.evaluation.analysis import report
    from poise.visualization import charts

    charts.require_matplotlib()  # before the figures are computed, not when they are drawn
    made = report.build_report(
        [args.results, *([args.compare] if args.compare else [])],
        args.annotations,
        args.images,
        args.pictures,
        args.dataset,
    )
    output = args.output or Path(args.results).with_suffix("").with_name(
        f"{Path(args.results).stem}_analysis"
    )
    page, figures = report.write(made, output)
    print(report.format_summary(made), end="")
    print(f"{page}\n{figures}")
    return 0
