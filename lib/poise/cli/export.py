"""Export a network: python tools/export.py --weights W.pth [--cfg FILE] [--format
onnx|torchscript|torch_export] [--out FILE] [KEY VALUE ...]

The batch norms are folded, the number of crops is free, and the file is kept only where it finds
what the network finds. docs/export.md says how such a file is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from poise.errors import ConfigError, DataError

FORMATS = ("onnx", "torchscript", "torch_export")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from poise.cli.arguments import ToolParser, add_experiment_arguments

    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="weight file of any family's format, or a checkpoint of a training",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="default onnx, which needs the extra: pip install 'poise[onnx]'",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write; default the weight file with the suffix of the format",
    )
    parser.add_argument(
        "--with-normalize",
        action="store_true",
        help="input RGB crops (B, H, W, 3) uint8 instead of normalized images (B, 3, H, W)",
    )
    parser.add_argument(
        "--with-flip", action="store_true", help="include the flip test in the graph"
    )
    parser.add_argument(
        "--with-decode",
        action="store_true",
        help="output keypoints in crop pixels and scores, then the heatmaps",
    )
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="PATH",
        help=(
            "image, folder or glob pattern to check the file on; may be repeated; default"
            " synthetic images of persons"
        ),
    )
    add_experiment_arguments(parser, cfg_required=False)
    return parser.parse_args(argv)


def pictures(words: list[str]) -> list[str]:
    """The picture files that the words of --images name."""
    from poise.io.video import ImageFiles, open_input

    found: list[str] = []
    for word in words:
        source = open_input(word)
        if not isinstance(source, ImageFiles):
            raise DataError(f"--images {word}: pictures are needed, not a video or a camera")
        found += source.paths
    return found


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poise.cli.arguments import experiment
    from poise.engine.embedded_experiment import config_from_weights
    from poise.inference.export import export
    from poise.inference.export.formats import FORMATS as WRITERS
    from poise.inference.export.graph import ExportOptions

    cfg = experiment(args) if args.cfg else config_from_weights(args.weights, args.overrides)
    out = (
        Path(args.out) if args.out else Path(args.weights).with_suffix(WRITERS[args.format].ending)
    )
    if out.is_dir() or out.resolve() == Path(args.weights).resolve():
        raise ConfigError(f"--out {out}: give a file of its own")
    options = ExportOptions(
        normalize=args.with_normalize, flip=args.with_flip, decode=args.with_decode
    )
    for line in export(cfg, args.weights, out, args.format, options, images=pictures(args.images)):
        print(line)
    print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0
