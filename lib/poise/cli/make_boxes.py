"""Run a person detector for TEST.USE_GT_BBOX False: python tools/make_boxes.py --cfg FILE
--detector NAME|FILE.onnx [--out FILE] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from poise.errors import ConfigError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from poise.cli.arguments import ToolParser, add_experiment_arguments

    parser = ToolParser(description=__doc__)
    parser.add_argument(
        "--detector",
        required=True,
        metavar="NAME",
        help="an .onnx file or one of torchvision's (downloaded at first use); see docs/demo.md",
    )
    parser.add_argument(
        "--detector-weights",
        default="",
        metavar="FILE",
        help="weight file for torchvision's detector, instead of downloading its weights",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.05,
        metavar="P",
        help=("minimum score of a box; default 0.05, as the AP also needs uncertain boxes"),
    )
    parser.add_argument(
        "--set",
        default="",
        metavar="NAME",
        help="split to detect persons in; default DATASET.TEST_SET",
    )
    parser.add_argument(
        "--out", default="", metavar="FILE", help="file to write; default TEST.COCO_BBOX_FILE"
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto (a GPU if available), cpu, cuda, cuda:1, mps",
    )
    add_experiment_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold {args.score_threshold:g}: must be from 0 to 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poise.cli.arguments import experiment

    cfg = experiment(args)
    from poise.engine.logger import start_console
    from poise.errors import pluralize
    from poise.inference import detect_dataset
    from poise.inference.detectors import build_detector
    from poise.inference.detectors.torchvision import TORCHVISION

    start_console()
    path = detect_dataset.output_path(cfg, args.out)
    detect = build_detector(
        args.detector, args.device, args.score_threshold, weights=args.detector_weights or None
    )
    boxes, images, unread = detect_dataset.write_detections(
        cfg,
        args.set or cfg.DATASET.TEST_SET,
        detect,
        path,
        finds_persons=args.detector in TORCHVISION,
    )
    failed = f"; {pluralize(unread, 'image')} could not be read" if unread else ""
    print(
        f"{pluralize(boxes, 'box', 'boxes')} in {pluralize(images, 'image')} written to"
        f" {path}{failed}"
    )
    return 1 if unread else 0
