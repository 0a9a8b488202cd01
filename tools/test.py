"""Test an experiment: python tools/test.py --cfg experiments/coco/res2net/....yaml TEST.MODEL_FILE x.pth TEST.USE_GT_BBOX False"""
import argparse
import sys

from poise.errors import run_tool


def main() -> int:
    from poise.tool_arguments import add_experiment_arguments, experiment

    parser = argparse.ArgumentParser(description=__doc__)
    add_experiment_arguments(parser)
    args = parser.parse_args()
    cfg = experiment(args)
    from poise.engine import test

    test.run(cfg, args.cfg, sys.argv)
    return 0


if __name__ == "__main__":
    run_tool(main)
