"""Find poses in images or a video, draw them and write JSON: python tools/demo.py --weights FILE
[--cfg FILE] --input IMAGE|FOLDER|PATTERN|VIDEO|CAMERA
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

from poise.errors import DEBUG_VARIABLE, INTERRUPTED, ConfigError


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights, images or video, and where the boxes come from."""
    parser.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help=(
            "weights of the pose network; those trained by Poise and .onnx files need no --cfg;"
            " default TEST.MODEL_FILE, or the best ones of the run folder"
        ),
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="WHAT",
        help="image, folder, quoted glob pattern, video or camera index",
    )
    persons = parser.add_mutually_exclusive_group()
    persons.add_argument(
        "--boxes",
        default="",
        metavar="FILE",
        help="boxes of the persons: COCO detections or annotations, or the JSON of this tool",
    )
    persons.add_argument(
        "--detector",
        default="",
        metavar="NAME",
        help=(
            "person detector: an .onnx file or one of torchvision's (downloaded at first use);"
            " without --boxes and --detector an image is one person"
        ),
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
        default=0.5,
        metavar="P",
        help="minimum score of a box; default 0.5",
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """What is drawn and written, and how it is computed."""
    parser.add_argument(
        "--joint-threshold",
        type=float,
        metavar="P",
        help="minimum score of a drawn keypoint; default that of the codec",
    )
    parser.add_argument(
        "--output",
        default="output/demo",
        metavar="DIR",
        help="folder for images or an mp4, and poses.json; default output/demo",
    )
    parser.add_argument("--no-drawing", action="store_true", help="write poses.json only")
    parser.add_argument(
        "--draw-boxes", action="store_true", help="also draw the boxes, with scores"
    )
    parser.add_argument(
        "--track",
        action="store_true",
        help="track the persons over the frames of a video by the IoU of their boxes",
    )
    parser.add_argument(
        "--smooth",
        action="store_true",
        help="track, and smooth the keypoints with the One-Euro filter",
    )
    parser.add_argument(
        "--max-frames", type=int, default=0, metavar="N", help="stop after N frames; default all"
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto (a GPU if available), cpu, cuda, cuda:1, mps",
    )
    parser.add_argument("--half", action="store_true", help="compute the pose network in 16 bits")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from poise.cli.arguments import ToolParser, add_experiment_arguments

    parser = ToolParser(
        description=__doc__,
        epilog=(
            "See docs/demo.md for examples and the JSON format. POISE_DEBUG=1 shows tracebacks."
        ),
    )
    add_input_arguments(parser)
    add_output_arguments(parser)
    add_experiment_arguments(parser, cfg_required=False)
    args = parser.parse_args(argv)
    if not args.cfg and not args.weights:
        raise ConfigError(
            "--cfg FILE is needed, or --weights FILE with its experiment in it (files of a training"
            " of Poise, .onnx files)"
        )
    if args.max_frames < 0:
        raise ConfigError(f"--max-frames {args.max_frames}: must be 0 or more")
    if args.detector_weights and not args.detector:
        raise ConfigError("--detector-weights: needs --detector, whose weights they are")
    if args.joint_threshold is not None and not math.isfinite(args.joint_threshold):
        raise ConfigError(f"--joint-threshold {args.joint_threshold:g}: must be a number")
    if not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold {args.score_threshold:g}: must be from 0 to 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.debug:
        os.environ[DEBUG_VARIABLE] = "1"
    from poise.cli.arguments import experiment

    cfg = experiment(args) if args.cfg else None
    from poise.inference import demo

    options = demo.DemoOptions(
        draw=not args.no_drawing,
        track=args.track,
        smooth=args.smooth,
        joint_score=args.joint_threshold,
        max_frames=args.max_frames,
        draw_boxes=args.draw_boxes,
    )
    request = demo.DemoRequest(
        input=args.input,
        weights=args.weights,
        boxes=args.boxes,
        detector=args.detector,
        detector_weights=args.detector_weights,
        score_threshold=args.score_threshold,
        output=args.output,
        device=args.device,
        half=args.half,
        overrides=() if args.cfg else args.overrides,
        options=options,
    )
    summary = demo.run(cfg, args.cfg, request)
    return INTERRUPTED if summary.interrupted else 0
