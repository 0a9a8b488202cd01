"""How deep the tuples of a pickle lie within each other, found without making any of them.

Python hashes a tuple by a call for each one within it, so a file of a megabyte that has a tuple of
a million levels as a key ends the process by a segmentation fault, before any check of what was
read. torch's reader of plain values keeps to its opcodes, which are those below.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import BinaryIO

from poise.errors import DataError

MAX_DEPTH = 1000  # an optimiser's state has five
_HARMLESS = 1 << 16  # levels that every stack has room for
_OBJECTS = 5  # pickles at the beginning of a file from before PyTorch 1.6
_MARK = -1
_POPPED = {
    "APPEND": 1,
    "SETITEM": 2,
    "BUILD": 1,
    "BINPERSID": 1,
    "REDUCE": 2,
    "NEWOBJ": 2,
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
}
_PUSHES = {
    "GLOBAL",
    "NONE",
    "NEWFALSE",
    "NEWTRUE",
    "EMPTY_TUPLE",
    "EMPTY_LIST",
    "EMPTY_DICT",
    "EMPTY_SET",
    "BININT",
    "BININT1",
    "BININT2",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINSTRING",
    "LONG1",
}


def check_nesting(data: bytes | BinaryIO, error: Callable[[], DataError]) -> None:
    """Raise `error()` where a pickle, or one of several in an old file, nests tuples deeper than
    MAX_DEPTH; what else is wrong torch will find.
    """
    # each level takes one of these bytes
    if (
        isinstance(data, bytes)
        and sum(data.count(code) for code in (b"t", b"\x85", b"\x86", b"\x87")) < _HARMLESS
    ):
        return
    try:
        deep = any(_is_deep(data) for _ in range(1 if isinstance(data, bytes) else _OBJECTS))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
        return
    if deep:
        raise error()


def _is_deep(data: bytes | BinaryIO) -> bool:
    """Whether there are such tuples, up to the first STOP or an opcode that torch's reader
    refuses.
    """
    stack: list[int] = []
    kept: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if name in _PUSHES:
            stack.append(0)
        elif name in ("BINPUT", "LONG_BINPUT"):
            kept[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(kept[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _POPPED:
            level = max(stack[-_POPPED[name] :])
            del stack[-_POPPED[name] :]
            if name.startswith("TUPLE"):
                stack.append(level + 1)
            elif name in ("REDUCE", "NEWOBJ", "BINPERSID"):  # torch.Size is a tuple too
                stack.append(level)
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            levels = []
            while (level := stack.pop()) != _MARK:
                levels.append(level)
            if name == "TUPLE":
                stack.append(max(levels, default=0) + 1)
        elif name != "PROTO":
            return False  # STOP, or one that is refused
        if stack and stack[-1] > MAX_DEPTH:
            return True
    return False
