"""YAML files of plain values, with bounds on their size, and errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from poise.errors import ConfigError, PoiseError
from poise.io.files import read_bytes

MAX_BYTES = 1 << 20  # the longest published file has 3 KB
MAX_NODES = 100_000  # with aliases a small file can expand to a huge one, or to one without end
_MAX_DEPTH = 64
_MAX_BITS = 1000  # of an int: larger ones do not fit a float, and Python may refuse to print them
_MAX_DIGITS = 400  # of an int in any base; parsing base 60 takes time quadratic in the digits


def read_yaml(path: Path, description: str, hint: str = "") -> dict:
    """Return the keys of a YAML file that holds a mapping; an empty file has none.

    Raises ConfigError, with `description` and `hint`, if the file is missing or invalid.
    """
    data = read_bytes(path, description, MAX_BYTES, hint, ConfigError)
    values = parse_yaml(data, path, ConfigError)
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected KEY: VALUE lines, got a {type(values).__name__}")
    return values or {}


def parse_yaml(text: bytes | str, path: str | Path, error_cls: type[PoiseError]) -> Any:
    """Return the value of YAML text: None, numbers, strings, dates, lists and dictionaries.

    Raises `error_cls`, naming the path, for text that is not YAML, contains Python objects or
    expands to too many values.
    """
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # before objects are constructed: merge keys copy what their aliases stand for
        _check_expanded_size(node)
        return loader.construct_document(node)
    except _LimitError as error:
        raise error_cls(f"{path}: {error}; correct or remove this entry") from None
    # PyYAML does not catch all errors of the values
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise error_cls(f"{path}: not valid YAML ({_shorten(error)})") from None


class _LimitError(Exception):
    pass


class _BoundedLoader(yaml.SafeLoader):
    """SafeLoader that stops before a file takes minutes, gigabytes or the whole stack."""

    def __init__(self, stream: bytes | str):
        super().__init__(stream)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
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
        if len(node.value) <= _MAX_DIGITS:
            value = super().construct_yaml_int(node)
            if value.bit_length() <= _MAX_BITS:
                return value
        raise _LimitError(f"has a whole number of {len(node.value)} digits, {node.value[:20]}...")

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = super().construct_yaml_str(node)
        # not valid in the name of a file, where the system takes it for the end
        if "\0" in text:
            raise _LimitError("has a text with a zero byte")
        return text


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)
_BoundedLoader.add_constructor("tag:yaml.org,2002:str", _BoundedLoader.construct_yaml_str)


def _check_expanded_size(root: yaml.Node) -> None:
    """Raise _LimitError if the tree has more than MAX_NODES nodes with all aliases expanded.

    An alias that contains itself is an error too.
    """
    sizes: dict[int, int] = {}
    begun: set[int] = set()
    stack = [root]
    while stack:
        node = stack[-1]
        if id(node) in sizes:
            stack.pop()
            continue
        children = _children(node)
        if id(node) not in begun:
            begun.add(id(node))
            for child in children:
                if id(child) in sizes:
                    continue
                if id(child) in begun:
                    raise _LimitError("has an alias that stands for itself")
                stack.append(child)
            continue
        sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
        if sizes[id(node)] > MAX_NODES:
            raise _LimitError(f"stands for more than {MAX_NODES} values")
        stack.pop()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    if isinstance(node, yaml.SequenceNode):
        return node.value
    return []


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) <= 300:
        return text
    return f"{text[:300]}..."
