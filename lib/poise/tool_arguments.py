"""The command line that every tool working on an experiment has: --cfg FILE and KEY VALUE overrides."""
from __future__ import annotations

import argparse
import os

from yacs.config import CfgNode

from poise import config
from poise.config.default import default_config
from poise.errors import ConfigError


class ToolParser(argparse.ArgumentParser):
    """A parser that speaks in the first of torchrun's processes only."""

    _silent = os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"

    def print_usage(self, file=None) -> None:
        if not self._silent:
            super().print_usage(file)

    def print_help(self, file=None) -> None:
        if not self._silent:
            super().print_help(file)

    def exit(self, status: int = 0, message: str | None = None) -> None:
        super().exit(status, None if self._silent else message)


def add_experiment_arguments(parser: argparse.ArgumentParser, cfg_required: bool = True) -> None:
    """--cfg, HRNet's folder options, and the overrides."""
    parser.add_argument("--cfg", required=cfg_required, metavar="FILE", help="experiment file, a YAML of experiments/")
    parser.add_argument("--modelDir", default="", metavar="DIR", help="OUTPUT_DIR, as HRNet calls it")
    parser.add_argument("--logDir", default="", metavar="DIR", help="LOG_DIR, as HRNet calls it")
    parser.add_argument("--dataDir", default="", metavar="DIR", help="DATA_DIR, as HRNet calls it")
    parser.add_argument("--prevModelDir", default="", metavar="DIR", help="accepted for old command lines; without effect there and here")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="keys of the experiment, overridden")


def words_before_keys(words: list[str]) -> tuple[list[str], list[str]]:
    """Split what argparse gave to an option of several values: its own words, and KEY VALUE from the first key on."""
    names = default_config()
    first = next((place for place, word in enumerate(words) if "." in word or word in names), len(words))
    return words[:first], words[first:]


def experiment(args: argparse.Namespace) -> CfgNode:
    """The configuration that the arguments describe."""
    overrides = list(args.overrides)
    late = [word for word in map(str, overrides[::2]) if word.startswith("--")]
    if late:
        raise ConfigError(f"{late[0]}: options stand before the first KEY VALUE")
    for key, value in (("OUTPUT_DIR", args.modelDir), ("LOG_DIR", args.logDir), ("DATA_DIR", args.dataDir)):
        if value:
            overrides = [key, value, *overrides]
    return config.load(args.cfg, overrides)
