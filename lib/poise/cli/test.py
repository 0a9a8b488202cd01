"""Test an experiment: python tools/test.py --cfg experiments/coco/res2net/....yaml
TEST.MODEL_FILE x.pth TEST.USE_GT_BBOX False
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from poise.cli.arguments import ToolParser, add_experiment_arguments, command_line, experiment
    from poise.io.files import gc_disabled

    parser = ToolParser(description=f"{__doc__}, also under torchrun")
    parser.add_argument(
        "--out",
        metavar="FILE.pkl",
        help="also write the predictions to this file, like mmpose's tools/test.py",
    )
    parser.add_argument(
        "--eval",
        nargs="+",
        default=[],
        metavar="NAME",
        help="mAP for COCO, PCKh for MPII; accepted for mmpose's command lines, always evaluated",
    )
    add_experiment_arguments(parser)
    args = parser.parse_args(argv)
    from poise.engine.distributed import init_distributed

    with init_distributed() as processes:
        cfg = experiment(args)
        with gc_disabled():
            from poise.engine import evaluate

        evaluate.run(cfg, args.cfg, command_line(argv), processes, metrics=args.eval, out=args.out)
    return 0
