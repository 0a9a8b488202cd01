"""What an experiment file comes to: every key as YAML, the keys that differ from the defaults or
from another experiment, and where they were set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from poise.config.defaults import default_config
from poise.config.legacy import translate_simple_baseline
from poise.config.loading import BASE_KEY, load
from poise.io.yaml_file import read_yaml

# stands for the value of a key of MODEL.EXTRA that one of two configurations does not have
ABSENT = "-"
COMMAND_LINE = "command line"
NOTE_COLUMN = 60  # notes stand in one column, no further to the right than this


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every key that is no group, in order, keys written as on the command line:
    ('TRAIN.LR', 0.001).
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def differences(cfg: CfgNode, other: CfgNode | None = None) -> dict[str, tuple[str, str]]:
    """key -> (value in `cfg`, value in `other`), both as YAML, of the keys in which they differ.
    other: None is the defaults.
    """
    mine, theirs = dict(flatten(cfg)), dict(flatten(default_config() if other is None else other))
    shown = {
        key: (
            _yaml(mine[key]) if key in mine else ABSENT,
            _yaml(theirs[key]) if key in theirs else ABSENT,
        )
        for key in {**mine, **theirs}
    }
    return {key: pair for key, pair in shown.items() if pair[0] != pair[1]}


def find_origins(cfg: CfgNode, path: str | Path) -> dict[str, str]:
    """key -> the file that sets it last, of the experiment file `path` and its bases, or
    COMMAND_LINE where `cfg` has another value.

    path: a file that `load` accepts. A file may also say what the default is.
    """
    found = _file_origins(Path(path))
    found.update(dict.fromkeys(differences(cfg, load(path)), COMMAND_LINE))
    return found


def _file_origins(path: Path) -> dict[str, str]:
    values = read_yaml(path, "experiment file")
    bases = values.pop(BASE_KEY, [])
    found: dict[str, str] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        found.update(_file_origins(path.parent / base))
    found.update(
        (key, os.path.normpath(path)) for key, _ in flatten(translate_simple_baseline(values))
    )
    return found


def as_yaml(cfg: CfgNode, notes: Mapping[str, str] | None = None) -> str:
    """Every key of `cfg`, in the order of the defaults, as YAML that `load` reads; notes: key ->
    a comment at the end of its line.
    """
    notes = notes or {}
    lines = list(_lines(cfg, notes, "", ""))
    width = min(NOTE_COLUMN, max((len(text) for text, note in lines if note), default=0))
    return "".join(f"{text:<{width}}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def _lines(
    node: CfgNode, notes: Mapping[str, str], prefix: str, indent: str
) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, CfgNode) and value:
            yield f"{indent}{key}:", ""
            yield from _lines(value, notes, f"{prefix}{key}.", f"{indent}  ")
        else:
            yield (
                f"{indent}{key}: {_yaml({} if isinstance(value, CfgNode) else value)}",
                notes.get(f"{prefix}{key}", ""),
            )


def _yaml(value: Any) -> str:
    """A value as YAML on one line."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("...\n").strip()
