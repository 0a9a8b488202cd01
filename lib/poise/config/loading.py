"""Load experiment files, with `_BASE_` and KEY VALUE overrides, as a validated frozen CfgNode."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from poise.config.dataset_defaults import apply_dataset_defaults
from poise.config.defaults import default_config
from poise.config.legacy import translate_simple_baseline
from poise.config.validate import check_values
from poise.errors import ConfigError, short_repr
from poise.io.yaml_file import read_yaml

BASE_KEY = "_BASE_"
MAX_BASES = 16  # levels
MAX_FILES = 100  # of one experiment: ten bases that name ten others each grow exponentially
_MAX_BITS = 4096  # of an int: Python prints no more than 4300 digits


def load(path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Return the frozen configuration of an experiment file.

    Raises ConfigError, naming file and key, for an unreadable file, an unknown key (with the
    nearest known ones), and a wrong type or value.

    Args:
        path: a YAML file of Poise, HRNet, SimpleBaseline or Res2Net-Pose. Its `_BASE_` (a path or
            a list of paths, relative to the file) is read first and overridden by it.
        overrides: KEY, VALUE, KEY, VALUE, ...; a string is parsed as a Python literal unless the
            key holds a string.
    """
    cfg = default_config()
    _merge(cfg, translate_simple_baseline(_read(Path(path), (), [])), str(path))
    return _overridden(cfg, overrides, "command line", str(path))


def from_values(values: dict, source: str) -> CfgNode:
    """Return the frozen configuration of nested `values`; source: named in errors."""
    cfg = default_config()
    _merge(cfg, values, source)
    return _overridden(cfg, (), source, source)


def override(cfg: CfgNode, overrides: Sequence[Any], source: str = "overrides") -> CfgNode:
    """Return a frozen copy of `cfg` with overrides as in `load`; source: named in errors."""
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
    """Return the name of an experiment: that of its file without the extension."""
    return Path(path).stem


def _read(path: Path, parents: tuple[Path, ...], files: list[Path]) -> dict:
    """Return a file merged into its bases, as nested dictionaries.

    Args:
        path: the file.
        parents: the files that lead to it.
        files: all files so far, to which it is added.
    """
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError):  # reading it raises the error
        resolved = path
    if resolved in parents:
        cycle = " -> ".join(parent.name for parent in (*parents, resolved))
        raise ConfigError(f"{path}: {BASE_KEY} leads back to itself ({cycle})")
    if len(parents) >= MAX_BASES:
        raise ConfigError(f"{path}: more than {MAX_BASES} files deep in {BASE_KEY}")
    files.append(path)
    if len(files) > MAX_FILES:
        raise ConfigError(f"{path}: more than {MAX_FILES} files to read by {BASE_KEY}")
    values = read_yaml(path, "experiment file", "--cfg takes a file of experiments/")
    bases = values.pop(BASE_KEY, [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{path}: {BASE_KEY} must be a path or a list of paths, got {short_repr(bases)}"
        )
    merged: dict = {}
    for base in bases:
        _update(merged, _read(path.parent / base, (*parents, resolved), files))
    _update(merged, values)
    return merged


def _update(target: dict, values: dict) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _update(target[key], value)
        else:
            target[key] = value


def _merge(node: CfgNode, values: dict, source: str, prefix: str = "") -> None:
    """Merge nested `values` into `node`. Raises ConfigError for unknown keys and wrong types."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{source}: key {short_repr(prefix + short_repr(key))} is not a name")
        name = f"{prefix}{key}"
        if key not in node:
            if not node.is_new_allowed():
                # name the key as written: Test.MODEL_FILE, not Test
                while isinstance(value, dict) and len(value) == 1:
                    ((part, value),) = value.items()
                    name = f"{name}.{part}"
                raise ConfigError(f"{source}: unknown key {name}{_nearest(name)}")
            node[key] = _free_value(value, name, source)
        elif isinstance(node[key], CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {name} is a group of keys, got {short_repr(value)}")
            _merge(node[key], value, source, f"{name}.")
        elif node.is_new_allowed():
            node[key] = _free_value(value, name, source)
        else:
            node[key] = _typed(node[key], value, name, source)


def _nearest(name: str) -> str:
    known = list(_key_names(default_config()))
    similar = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.6)
    # a key in the wrong group (LR instead of TRAIN.LR) is nearer than any misspelling
    last = name.split(".")[-1].upper()
    moved = [key for key in known if key.split(".")[-1] == last and key not in similar]
    nearest = [*moved[:3], *similar][:3]
    if not nearest:
        return ""
    return f"; the nearest known keys are {', '.join(nearest)}"


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
    """Return a value of MODEL.EXTRA, whose keys belong to the network.

    Literals are parsed, groups become nodes.
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
    """Return whether a configuration may hold a value.

    YAML also has dates, sets, bytes and unlimited integers.
    """
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return (
        value is None
        or type(value) in (bool, float, str)
        or (type(value) is int and value.bit_length() <= _MAX_BITS)
    )


def _typed(default: Any, value: Any, name: str, source: str) -> Any:
    """Return `value` in the type of `default`. Raises ConfigError."""
    cls = type(default)
    if cls is str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        raise _wrong_type(cls, value, name, source)
    value = _literal(value)
    if not _is_plain(value):
        raise _wrong_type(cls, value, name, source)
    if cls in (list, tuple):
        return _typed_numbers(cls, value, name, source)
    if cls is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"  # TEST.USE_GT_BBOX false, as in a shell
    if cls is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if cls is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is cls:
        return value
    raise _wrong_type(cls, value, name, source)


def _typed_numbers(cls: type, value: Any, name: str, source: str) -> Any:
    """Return numbers as a list or tuple, as `cls` says. Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool):
        # GPUS '0' and IMAGE_SIZE 256 of SimpleBaseline
        value = [value] * (2 if name.endswith("_SIZE") else 1)
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(cls, value, name, source)
    if any(not isinstance(item, (int, float)) or isinstance(item, bool) for item in value):
        raise ConfigError(f"{source}: {name} must hold numbers, got {short_repr(value)}")
    return cls(
        int(item) if isinstance(item, float) and item.is_integer() else item for item in value
    )


def _wrong_type(cls: type, value: Any, name: str, source: str) -> ConfigError:
    kind = {
        "str": "text",
        "bool": "True or False",
        "int": "a whole number",
        "float": "a number",
    }.get(cls.__name__, "a list of numbers")
    return ConfigError(
        f"{source}: {name} must be {kind}, got {short_repr(value)} ({type(value).__name__})"
    )
