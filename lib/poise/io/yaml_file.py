"""YAML files: nothing but plain values, in no more nodes than people write, each fault told in
one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from poise.errors import ConfigError, PoiseError
from poise.io.files import read_bytes

MAX_BYTES = 1 << 20  # the longest published file has 3 KB; more is none that a person wrote
MAX_NODES = 100_000  # aliases let a small file stand for a huge one, or for one without end
_MAX_DEPTH = 64
# of a whole number: more are none that a float can be made of, and of the most Python makes no text
_MAX_BITS = 1000
# in whatever base it is written; base 60 takes time that grows with their square
_MAX_DIGITS = 400


class _CountingLoader(yaml.SafeLoader):
    """yaml's loader of plain values, stopped before it has taken minutes, gigabytes or the whole
    stack.
    """

    def __init__(self, stream: bytes | str):
        super().__init__(stream)
        self._nodes = self._depth = 0

    def compose_node(self, parent, index):
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_NODES:
            raise _LimitError(f"stands for more than {MAX_NODES} values")
        if self._depth > _MAX_DEPTH:
            raise _LimitError(f"is nested more than {_MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node) if len(node.value) <= _MAX_DIGITS else None
        if value is None or value.bit_length() > _MAX_BITS:
            raise _LimitError(
                f"has a whole number of {len(node.value)} digits, {node.value[:20]}..."
            )
        return value

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = super().construct_yaml_str(node)
        # no name of a file or a joint, and the system takes it for the end of one
        if "\0" in text:
            raise _LimitError("has a text with a zero byte")
        return text


_CountingLoader.add_constructor("tag:yaml.org,2002:int", _CountingLoader.construct_yaml_int)
_CountingLoader.add_constructor("tag:yaml.org,2002:str", _CountingLoader.construct_yaml_str)


class _LimitError(Exception):
    pass


def parse_yaml(text: bytes | str, path: str | Path, error: type[PoiseError]) -> Any:
    """The content of a YAML file: None, numbers, texts, dates, lists and dictionaries; None of an
    empty one.

    Raises `error`, naming the path, for what is no YAML, asks for an object of Python's, or stands
    for too much.
    """
    try:
        loader = _CountingLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # before anything is made of it: merge keys copy what their aliases stand for
        _check_extent(node)
        return loader.construct_document(node)
    except _LimitError as fault:
        raise error(f"{path}: {fault}; nobody wrote this by hand") from None
    # PyYAML lets other errors through
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as fault:
        raise error(f"{path}: not valid YAML ({_short(fault)})") from None


def read_yaml(path: Path, what: str, mend: str = "") -> dict:
    """The keys of a YAML file that people write; an empty file has none. `what` and `mend` go
    into the ConfigError where it cannot be used.
    """
    values = parse_yaml(read_bytes(path, what, MAX_BYTES, mend, ConfigError), path, ConfigError)
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected KEY: VALUE lines, got a {type(values).__name__}")
    return values or {}


def _check_extent(root: yaml.Node) -> None:
    """Raise _LimitError where the tree below `root`, each alias counted as what it stands for, has
    more than MAX_NODES nodes or no end.
    """
    extents: dict[int, int] = {}
    begun: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting[-1]
        if id(node) in extents:
            waiting.pop()
            continue
        inner = (
            [part for pair in node.value for part in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
            if isinstance(node, yaml.SequenceNode)
            else []
        )
        if id(node) not in begun:
            begun.add(id(node))
            for part in inner:
                if id(part) not in extents:
                    if id(part) in begun:
                        raise _LimitError("has an alias that stands for itself")
                    waiting.append(part)
            continue
        extents[id(node)] = 1 + sum(extents[id(part)] for part in inner)
        if extents[id(node)] > MAX_NODES:
            raise _LimitError(f"stands for more than {MAX_NODES} values")
        waiting.pop()


def _short(fault: Exception) -> str:
    text = " ".join(str(fault).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
