"""Train an experiment: python tools/train.py --cfg experiments/coco/res2net/....yaml [KEY VALUE
...], also under torchrun
"""

from __future__ import annotations

from collections.abc import Sequence

from poise.errors import INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    from poise.cli.arguments import ToolParser, add_experiment_arguments, command_line, experiment
    from poise.io.files import gc_disabled

    parser = ToolParser(description=__doc__)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=(
            "build everything, train two steps and test a few batches; print memory, speed and the"
            " time of the whole run; write nothing"
        ),
    )
    add_experiment_arguments(parser)
    args = parser.parse_args(argv)
    from poise.engine.distributed import init_distributed

    with init_distributed() as processes:
        cfg = experiment(args)
        with gc_disabled():
            from poise.engine import dry_run, signals, train

        if args.dry_run:
            dry_run.run(cfg, args.cfg, processes)
            return 0
        try:
            train.run(cfg, args.cfg, command_line(argv), processes)
        except signals.RunStoppedError as stopped:
            if processes.is_main_process:
                print(stopped)
            return INTERRUPTED
    return 0
