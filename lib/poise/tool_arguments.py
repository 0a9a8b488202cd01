"""The command line that every tool working on an experiment has: --cfg FILE and KEY VALUE overrides."""
from __future__ import annotations

import argparse

from yacs.config import CfgNode

from poise import config


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """--cfg, HRNet's folder options, and the overrides."""
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment file, a YAML of experiments/")
    parser.add_argument("--modelDir", default="", metavar="DIR", help="OUTPUT_DIR, as HRNet calls it")
    parser.add_argument("--logDir", default="", metavar="DIR", help="LOG_DIR, as HRNet calls it")
    parser.add_argument("--dataDir", default="", metavar="DIR", help="DATA_DIR, as HRNet calls it")
    parser.add_argument("--prevModelDir", default="", metavar="DIR", help="accepted for old command lines; without effect there and here")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="keys of the experiment, overridden")


def experiment(args: argparse.Namespace) -> CfgNode:
    """The configuration that the arguments describe."""
    overrides = list(args.overrides)
    for key, value in (("OUTPUT_DIR", args.modelDir), ("LOG_DIR", args.logDir), ("DATA_DIR", args.dataDir)):
        if value:
            overrides = [key, value, *overrides]
    return config.load(args.cfg, overrides)
