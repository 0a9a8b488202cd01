"""Check the data of an experiment: python tools/check_data.py --cfg FILE [KEY VALUE
...]

Checks annotations, images, boxes, left and right of the training and test set, and the detection
file with TEST.USE_GT_BBOX False. Prints errors, warnings, notes and a verdict, and writes a page
with images. The exit status is 0 if the data are valid, 1 if there is an error, 2 for an invalid
command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    from poise.cli.arguments import ToolParser, add_experiment_arguments, experiment

    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="page to write; default OUTPUT_DIR/<dataset>/check_data/<experiment>.html",
    )
    parser.add_argument("--no-page", action="store_true", help="write no page")
    parser.add_argument(
        "--pictures",
        type=int,
        default=12,
        metavar="N",
        help="number of images of each kind and split on the page; default 12",
    )
    add_experiment_arguments(parser)
    args = parser.parse_args(argv)
    cfg = experiment(args)
    from poise.datasets.validation import page, run
    from poise.datasets.validation.findings import ERROR, format_report
    from poise.datasets.validation.sources import build_sources

    findings, splits = run.check(build_sources(cfg))
    print(format_report(findings))
    if not args.no_page:
        path = (
            args.page
            or Path(cfg.OUTPUT_DIR)
            / cfg.DATASET.DATASET
            / "check_data"
            / f"{Path(args.cfg).stem}.html"
        )
        page.write_page(
            path,
            f"Data of {args.cfg}",
            findings,
            splits,
            num_images=max(args.pictures, 0),
            seed=cfg.SEED,
        )
        print(f"page: {path}")
    return int(any(finding.kind == ERROR for finding in findings))
