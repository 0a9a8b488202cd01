"""Search the cells of a PoseNAS network: python tools/search.py --cfg
experiments/mpii/posenas/search_256x256.yaml [KEY VALUE ...]
"""

from __future__ import annotations

from collections.abc import Sequence

from poise.errors import INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    from poise.cli.arguments import ToolParser, add_experiment_arguments, command_line, experiment

    parser = ToolParser(description=__doc__)
    parser.add_argument(
        "--random",
        nargs="+",
        default=None,
        metavar="SEED",
        help=(
            "do not search: write a random genotype of the same space for each seed to the run"
            " folder"
        ),
    )
    add_experiment_arguments(parser)
    args = parser.parse_args(argv)
    cfg = experiment(args)
    from poise.engine import signals
    from poise.engine.distributed import init_distributed
    from poise.errors import ConfigError
    from poise.search import run

    if args.random is not None:
        wrong = [word for word in args.random if not word.isascii() or not word.isdecimal()]
        if wrong:
            raise ConfigError(
                f"--random {' '.join(args.random)}: takes one or more seeds, whole numbers from"
                " 0 on"
            )
        run.write_random(cfg, args.cfg, [int(word) for word in args.random])
        return 0
    with init_distributed() as processes:
        try:
            run.run(cfg, args.cfg, command_line(argv), processes)
        except signals.RunStoppedError as stopped:
            print(stopped)
            return INTERRUPTED
    return 0
