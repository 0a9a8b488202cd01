"""Print the configuration of an experiment: python tools/print_config.py --cfg FILE [--diff |
--against OTHER_FILE] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from poise.cli.arguments import ToolParser, add_experiment_arguments

    parser = ToolParser(
        description=(
            "Print every key of an experiment as YAML for --cfg, with the default as a comment"
            " where it differs."
        )
    )
    shorter = parser.add_mutually_exclusive_group()
    shorter.add_argument(
        "--diff",
        action="store_true",
        help="only the keys that differ from the defaults, and the file that sets each",
    )
    shorter.add_argument(
        "--against",
        metavar="OTHER_FILE",
        help=(
            "only the keys that differ from another experiment, to which KEY VALUE does not apply"
        ),
    )
    add_experiment_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    from poise import config
    from poise.cli.arguments import experiment
    from poise.config import diff
    from poise.visualization.tables import align_columns

    cfg = experiment(args)
    if args.against:
        changed = diff.differences(cfg, config.load(args.against))
        print("1 key differs" if len(changed) == 1 else f"{len(changed)} keys differ")
        if changed:
            print(
                align_columns(
                    [
                        ("key", args.cfg, args.against),
                        *((key, mine, theirs) for key, (mine, theirs) in changed.items()),
                    ]
                ),
                end="",
            )
        return 0
    changed, origins = diff.differences(cfg), diff.find_origins(cfg, args.cfg)
    count = len(dict(diff.flatten(cfg)))
    title = f"{args.cfg}: {len(changed)} of {count} keys differ from the defaults"
    if args.diff:
        rows = [
            (key, mine, theirs, origins.get(key, args.cfg))
            for key, (mine, theirs) in changed.items()
        ]
        print(title)
        print(align_columns([("key", "value", "default", "set by"), *rows]), end="")
        return 0
    notes = {
        key: f"default: {default}" if default != diff.ABSENT else "no default"
        for key, (_, default) in changed.items()
    }
    print(f"# {title}")
    print(diff.as_yaml(cfg, notes), end="")
    return 0
