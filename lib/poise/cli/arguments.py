"""Command-line arguments of an experiment: --cfg FILE and KEY VALUE overrides."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from yacs.config import CfgNode

from poise import config
from poise.config.defaults import default_config

OVERRIDES = "overrides"


class ToolParser(argparse.ArgumentParser):
    """Parser of options and KEY VALUE overrides in any order; only rank 0 prints.

    The word after a KEY is its value, whatever it begins with. An option of several values ends
    where a KEY begins.
    """

    _silent = os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"

    def print_usage(self, file=None) -> None:
        if not self._silent:
            super().print_usage(file)

    def print_help(self, file=None) -> None:
        if not self._silent:
            super().print_help(file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(status, None if self._silent else message)

    def parse_known_args(self, args=None, namespace=None):
        words, overrides = self._split(list(sys.argv[1:] if args is None else args))
        namespace, unknown = super().parse_known_args(words, namespace)
        namespace.overrides = overrides
        return namespace, unknown

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Return (what argparse gets, KEY, VALUE, ...)."""
        before = sum(
            not action.option_strings and action.dest != OVERRIDES for action in self._actions
        )
        left, overrides, alone, words = [], [], [], words[::-1]
        while words:
            word = words.pop()
            if word == "--":
                continue
            if word.startswith("-") and len(word) > 1:
                option = self._option(word)
                if option is None:
                    self.error(f"unrecognized arguments: {word}")
                left += [word, *self._values(option, word, words)]
            elif before:
                left.append(word)
                before -= 1
            elif not words or self._option(words[-1]):
                alone.append(word)
            else:
                overrides += [word, words.pop()]
        return left, overrides + alone[:1]  # config.load refuses a KEY without VALUE

    def _option(self, word: str) -> argparse.Action | None:
        """Return the option that a word names in full or by a unique prefix."""
        name = word.split("=", 1)[0]
        known = self._option_string_actions
        if name in known:
            return known[name]
        near = {
            id(known[full]): known[full]
            for full in known
            if name.startswith("--") and full.startswith(name)
        }
        return near.popitem()[1] if len(near) == 1 else None

    def _values(self, option: argparse.Action, word: str, words: list[str]) -> list[str]:
        """Take the values of an option from the end of `words`."""
        if option.nargs == 0 or "=" in word:
            return []
        names, values = default_config(), []
        while words and not self._option(words[-1]):
            if option.nargs is None:
                return [words.pop()]
            if "." in words[-1] or words[-1] in names:
                break
            values.append(words.pop())
        return values


def add_experiment_arguments(parser: ToolParser, cfg_required: bool = True) -> None:
    """Add --cfg, the folder options of HRNet, and the overrides."""
    parser.add_argument(
        "--cfg",
        required=cfg_required,
        metavar="FILE",
        help="experiment file, a YAML file in experiments/",
    )
    parser.add_argument("--modelDir", default="", metavar="DIR", help="HRNet's name of OUTPUT_DIR")
    parser.add_argument("--logDir", default="", metavar="DIR", help="HRNet's name of LOG_DIR")
    parser.add_argument("--dataDir", default="", metavar="DIR", help="HRNet's name of DATA_DIR")
    parser.add_argument(
        "--prevModelDir",
        default="",
        metavar="DIR",
        help="no effect; accepted for HRNet's command lines",
    )
    add_overrides(parser)


def add_overrides(parser: ToolParser) -> None:
    """Add KEY VALUE pairs, the last positional arguments."""
    parser.add_argument(
        OVERRIDES, nargs="*", metavar="KEY VALUE", help="overrides of the experiment's keys"
    )


def experiment(args: argparse.Namespace) -> CfgNode:
    """Load the configuration that the arguments describe."""
    overrides = list(args.overrides)
    for key, value in (
        ("OUTPUT_DIR", args.modelDir),
        ("LOG_DIR", args.logDir),
        ("DATA_DIR", args.dataDir),
    ):
        if value:
            overrides = [key, value, *overrides]
    return config.load(args.cfg, overrides)


def command_line(argv: Sequence[str] | None) -> list[str]:
    """Return the program and its arguments, as a run logs them; argv None: those of the process."""
    return sys.argv if argv is None else [sys.argv[0], *argv]
