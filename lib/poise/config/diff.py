"""Print configurations: all keys as YAML, differences, and the file that sets each key."""

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

# in place of the value of a key of MODEL.EXTRA that one of two configurations lacks
ABSENT = "-"
COMMAND_LINE = "command line"
NOTE_COLUMN = 60  # the notes are in one column, at most this one


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of every key that is not a group, in order: ('TRAIN.LR', 0.001)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def differences(cfg: CfgNode, other: CfgNode | None = None) -> dict[str, tuple[str, str]]:
    """Return {key: (value in `cfg`, value in `other`)} of the keys that differ, as YAML.

    other: None is the defaults.
    """
    if other is None:
        other = default_config()
    ours = {key: _yaml(value) for key, value in flatten(cfg)}
    theirs = {key: _yaml(value) for key, value in flatten(other)}
    pairs = {key: (ours.get(key, ABSENT), theirs.get(key, ABSENT)) for key in {**ours, **theirs}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def find_origins(cfg: CfgNode, path: str | Path) -> dict[str, str]:
    """Return {key: the file that sets it}, of the experiment file `path` and its bases.

    COMMAND_LINE if `cfg` has another value. A file may also set the default.
    """
    found = _file_origins(Path(path))
    found.update(dict.fromkeys(differences(cfg, load(path)), COMMAND_LINE))
    return found


def _file_origins(path: Path) -> dict[str, str]:
    values = read_yaml(path, "experiment file")
    bases = values.pop(BASE_KEY, [])
    found: dict[str, str] = {}
    if isinstance(bases, str):
        bases = [bases]
    for base in bases:
        found.update(_file_origins(path.parent / base))
    found.update(
        (key, os.path.normpath(path)) for key, _ in flatten(translate_simple_baseline(values))
    )
    return found


def as_yaml(cfg: CfgNode, notes: Mapping[str, str] | None = None) -> str:
    """Return all keys of `cfg`, in the order of the defaults, as YAML that `load` reads.

    notes: {key: a comment at the end of its line}.
    """
    lines = list(_lines(cfg, notes or {}, "", ""))
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
            text = "{}" if isinstance(value, CfgNode) else _yaml(value)
            yield f"{indent}{key}: {text}", notes.get(f"{prefix}{key}", "")


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    style = None
    if isinstance(value, str) and not value.isprintable():
        style = '"'
    text = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("...\n").strip()
