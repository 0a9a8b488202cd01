"""Train an experiment: python tools/train.py --cfg experiments/coco/res2net/....yaml [KEY VALUE ...]"""
import argparse
import sys

from poise.errors import run_tool


def main() -> int:
    from poise.tool_arguments import add_experiment_arguments, experiment

    parser = argparse.ArgumentParser(description=__doc__)
    add_experiment_arguments(parser)
    args = parser.parse_args()
    cfg = experiment(args)
    from poise.engine import interrupt

    try:
        from poise.engine import train

        train.run(cfg, args.cfg, sys.argv)
    except KeyboardInterrupt:       # before the first step: there is nothing to save
        return interrupt.STATUS
    except interrupt.Interrupted as stopped:
        print(stopped)
        return interrupt.STATUS
    return 0


if __name__ == "__main__":
    run_tool(main)
