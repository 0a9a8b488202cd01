"""Where a result file errs: python tools/analyze.py --results results.json --annotations
person_keypoints_val2017.json [--images FOLDER] [--compare other.json]

Writes one HTML page that needs nothing else, and a JSON with all its figures. For COCO's form of
annotations and results.
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
        "--annotations", required=True, metavar="FILE", help="the annotations of the same pictures"
    )
    parser.add_argument(
        "--dataset",
        default="coco",
        metavar="FILE",
        help="dataset file of the joints, or the name of one of experiments/datasets; default coco",
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="another result file of the same pictures, shown beside the first",
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder or zip archive of the pictures, to draw the worst of them",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=12,
        metavar="N",
        help="how many of the worst pictures to show; default 12",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help=(
            "where analysis.html and analysis.json go; default: beside the result file, in a folder"
            " of its name"
        ),
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
