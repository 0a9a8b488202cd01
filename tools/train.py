"""Train an experiment: python tools/train.py --cfg experiments/coco/res2net/....yaml [KEY VALUE ...]"""
import argparse
import sys

from poise.errors import INTERRUPTED, run_tool


def main() -> int:
    from poise.tool_arguments import add_experiment_arguments, experiment

    parser = argparse.ArgumentParser(description=__doc__)
    add_experiment_arguments(parser)
    args = parser.parse_args()
    cfg = experiment(args)
    from poise.engine import interrupt, train

    try:
        train.run(cfg, args.cfg, sys.argv)
    except interrupt.Interrupted as stopped:
        print(stopped)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    run_tool(main)
