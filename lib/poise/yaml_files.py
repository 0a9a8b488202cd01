"""YAML files of a few kilobytes that people write: read safely, within bounds, each fault told in one line."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from poise.errors import ConfigError, one_line

MAX_BYTES = 1 << 20     # the longest published file has 3 KB; more is none that a person wrote
MAX_VALUES = 100_000    # YAML aliases let a small file stand for a huge one, or for one without end


def read_yaml(path: Path, what: str, mend: str = "") -> dict:
    """The keys of a YAML file; an empty file has none. `what` and `mend` go into the ConfigError where it cannot be used."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:    # a NUL in the name; a circle of symbolic links
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot read the {what} ({reason}){f'; {mend}' if mend else ''}") from None
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; this is not {_article(what)} {what}")
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:    # PyYAML lets other errors through
        raise ConfigError(f"{path}: not valid YAML ({one_line(error)})") from None
    values = {} if values is None else values
    _check_extent(values, path, what)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected KEY: VALUE lines, got a {type(values).__name__}")
    return values


def _check_extent(value: Any, path: Path, what: str) -> None:
    """Raise ConfigError for more values than a file of MAX_BYTES holds honestly; each alias counts as what it stands for."""
    found, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        waiting.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        found += 1
        if found > MAX_VALUES:
            raise ConfigError(f"{path}: stands for more than {MAX_VALUES} values; this is not {_article(what)} {what}")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
