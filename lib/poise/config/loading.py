"""Read an experiment file (`_BASE_` included) and KEY VALUE overrides into one checked, frozen
CfgNode.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from poise.config.datasets import apply_dataset_defaults
from poise.config.defaults import default_config
from poise.config.legacy import translate_simple_baseline
from poise.config.validate import check_values
from poise.errors import ConfigError, short_repr
from poise.io.yaml_file import read_yaml

BASE_KEY = "_BASE_"
MAX_BASES = 16  # deep
# for one experiment: a file that names ten bases which name ten others is soon one that is never
# read to its end
MAX_FILES = 100
_MOST_BITS = 4096  # of a whole number: Python writes no more than 4300 digits


def load(path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Return the frozen configuration of an experiment file.

    path: a YAML file of Poise, HRNet, SimpleBaseline or Res2Net-Pose. Its `_BASE_` (a path or a
        list of paths, relative to the file) is read first and overridden by it.
    overrides: KEY, VALUE, KEY, VALUE, ...; a string value is read as a Python literal where the key
    is not itself a string.

    Raises ConfigError, naming file and key: unreadable file, unknown key (with the nearest known
    ones), wrong type or value.
    """
    cfg = default_config()
    _merge(cfg, translate_simple_baseline(_read(Path(path), (), [])), str(path))
    return _overridden(cfg, overrides, "command line", str(path))


def from_values(values: dict, source: str) -> CfgNode:
    """Return the frozen configuration of nested `values`; source: what errors name."""
    cfg = default_config()
    _merge(cfg, values, source)
    return _overridden(cfg, (), source, source)


def override(cfg: CfgNode, overrides: Sequence[Any], source: str = "overrides") -> CfgNode:
    """A frozen copy of `cfg` with KEY, VALUE, KEY, VALUE, ... as `load` takes them; source:
    where they come from, for the ConfigError.
    """
    return _overridden(cfg.clone(), overrides, source, source)


def _overridden(cfg: CfgNode, overrides: Sequence[Any], source: str, checked_as: str) -> CfgNode:
    cfg.defrost()
    if len(overrides) % 2:
        raise ConfigError(
            f"{source}: {short_repr(overrides[-1])} has no value; overrides are KEY VALUE pairs"
        )
    for key, value in zip(overrides[::2], overrides[1::2]):
        nested: Any = value
        for part in reversed(str(key).split(".")):
            nested = {part: nested}
        _merge(cfg, nested, source)
    apply_dataset_defaults(cfg, checked_as)
    check_values(cfg, checked_as)
    cfg.freeze()
    return cfg


def experiment_name(path: str | Path) -> str:
    """Name of an experiment: its file's name without the ending."""
    return Path(path).stem


def _read(path: Path, seen: tuple[Path, ...], read: list[Path]) -> dict:
    """One file with its bases merged under it, as nested dictionaries. seen: the files that lead
    to it. read: all so far, to which it is added.
    """
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError):  # reading it tells
        resolved = path
    if resolved in seen:
        raise ConfigError(
            f"{path}: {BASE_KEY} leads back to itself"
            f" ({' -> '.join(p.name for p in (*seen, resolved))})"
        )
    if len(seen) >= MAX_BASES:
        raise ConfigError(f"{path}: more than {MAX_BASES} files deep in {BASE_KEY}")
    read.append(path)
    if len(read) > MAX_FILES:
        raise ConfigError(f"{path}: more than {MAX_FILES} files to read by {BASE_KEY}")
    own = read_yaml(path, "experiment file", "--cfg takes a file of experiments/")
    bases = own.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{path}: {BASE_KEY} must be a path or a list of paths, got {short_repr(bases)}"
        )
    merged: dict = {}
    for base in bases:
        _update(merged, _read(path.parent / base, (*seen, resolved), read))
    _update(merged, own)
    return merged


def _update(into: dict, values: dict) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _update(into[key], value)
        else:
            into[key] = value


def _merge(node: CfgNode, values: dict, source: str, prefix: str = "") -> None:
    """Put nested `values` into `node`, refusing unknown keys and wrong types."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{source}: key {short_repr(prefix + short_repr(key))} is not a name")
        name = f"{prefix}{key}"
        if key not in node:
            if not node.is_new_allowed():
                # Test.MODEL_FILE is what was written, not Test
                while isinstance(value, dict) and len(value) == 1:
                    ((part, value),) = value.items()
                    name = f"{name}.{part}"
                raise ConfigError(f"{source}: unknown key {name}{_nearest(name)}")
            node[key] = _free_value(value, name, source)
        elif isinstance(node[key], CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {name} is a group of keys, got {short_repr(value)}")
            _merge(node[key], value, source, f"{name}.")
        else:
            node[key] = (
                _free_value(value, name, source)
                if node.is_new_allowed()
                else _typed(node[key], value, name, source)
            )


def _nearest(name: str) -> str:
    known = list(_key_names(default_config()))
    close = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.6)
    # a key in the wrong group (LR instead of TRAIN.LR) is nearer than any misspelling
    close = [
        k for k in known if k.split(".")[-1] == name.split(".")[-1].upper() and k not in close
    ][:3] + close
    return f"; the nearest known keys are {', '.join(close[:3])}" if close else ""


def _key_names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _key_names(value, f"{prefix}{key}.")


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return value


def _free_value(value: Any, name: str, source: str) -> Any:
    """A value of MODEL.EXTRA, whose keys belong to the network: literals are read, groups become
    nodes.
    """
    if isinstance(value, dict):
        node = CfgNode(new_allowed=True)
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{source}: key {short_repr(key)} of {name} is not a name")
            node[key] = _free_value(item, f"{name}.{key}", source)
        return node
    value = _literal(value)
    if not _is_plain(value):
        raise ConfigError(
            f"{source}: {name} must be a number, a text, a group or a list of these, got"
            f" {short_repr(value)} ({type(value).__name__})"
        )
    return value


def _is_plain(value: Any) -> bool:
    """Whether a value is of the kinds that a configuration holds; YAML has dates, sets and bytes
    too, and whole numbers without end.
    """
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return (
        value is None
        or type(value) in (bool, float, str)
        or (type(value) is int and value.bit_length() <= _MOST_BITS)
    )


def _typed(default: Any, value: Any, name: str, source: str) -> Any:
    """`value` in the type of `default`, or ConfigError."""
    wanted = type(default)
    if wanted is str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value
    else:
        value = _literal(value)
        if not _is_plain(value):
            raise _wrong_type(wanted, value, name, source)
        if wanted is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"  # TEST.USE_GT_BBOX false, as a shell user writes it
        if (
            wanted is float
            and isinstance(value, int)
            and not isinstance(value, bool)
            and abs(value) < 2**1023
        ):
            return float(value)
        if wanted is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if wanted in (list, tuple):
            return _typed_numbers(wanted, value, name, source)
        if type(value) is wanted:
            return value
    raise _wrong_type(wanted, value, name, source)


def _typed_numbers(wanted: type, value: Any, name: str, source: str) -> Any:
    """Return numbers as a list or tuple, as `wanted` says. Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool):
        # GPUS '0' and IMAGE_SIZE 256 of SimpleBaseline
        value = [value] * (2 if name.endswith("_SIZE") else 1)
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(wanted, value, name, source)
    if any(not isinstance(item, (int, float)) or isinstance(item, bool) for item in value):
        raise ConfigError(f"{source}: {name} must hold numbers, got {short_repr(value)}")
    return wanted(
        int(item) if isinstance(item, float) and item.is_integer() else item for item in value
    )


def _wrong_type(wanted: type, value: Any, name: str, source: str) -> ConfigError:
    kind = {
        "str": "text",
        "bool": "True or False",
        "int": "a whole number",
        "float": "a number",
    }.get(wanted.__name__, "a list of numbers")
    return ConfigError(
        f"{source}: {name} must be {kind}, got {short_repr(value)} ({type(value).__name__})"
    )
