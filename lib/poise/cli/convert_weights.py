"""Convert a weight file: python tools/convert_weights.py IN OUT --to
{poise,simplebaseline,hrnet,mspn,posenas,moganet,mmpose}

IN has any format that Poise loads: SimpleBaseline, HRNet, Res2Net-Pose, MSPN, PoseNAS,
MogaNet's pose networks, or mmpose's ResNet, HRNet and MSPN. With --cfg the weights must fit the
network of that experiment exactly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

FORMATS = ("poise", "simplebaseline", "hrnet", "mspn", "posenas", "moganet", "mmpose")


def main(argv: Sequence[str] | None = None) -> int:
    from poise.cli.arguments import ToolParser, add_overrides

    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="weight file to read")
    parser.add_argument("target", metavar="OUT", help="weight file to write")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of the written file")
    parser.add_argument(
        "--cfg", metavar="FILE", help="experiment whose network the weights must fit"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    add_overrides(parser)
    args = parser.parse_args(argv)
    from poise import config, models
    from poise.engine.embedded_experiment import describe_experiment
    from poise.errors import ConfigError
    from poise.models.weights import converting

    if args.overrides and not args.cfg:
        raise ConfigError(f"{args.overrides[0]}: keys belong to an experiment; give --cfg FILE")
    cfg = config.load(args.cfg, args.overrides) if args.cfg else None
    model, values = None, ""
    if cfg is not None:
        model = models.build_model(cfg)
        # weights of MSPN are written for BGR images, whatever the experiment says
        if cfg.MODEL.NAME != "mspn" or not cfg.DATASET.COLOR_RGB:
            values = describe_experiment(cfg, config.experiment_name(args.cfg), model)
    print(
        converting.convert(
            args.source, args.target, args.to, model=model, force=args.force, experiment=values
        )
    )
    return 0
