"""Measure how deep tuples are nested in a pickle, without creating any of them.

Python hashes a tuple with one recursive call per level. A file of a megabyte with a tuple of a
million levels as a key therefore ends the process with a segmentation fault, before anything that
was read can be checked. torch's reader of plain values supports the opcodes below only.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from poise.errors import DataError

MAX_DEPTH = 1000  # an optimizer's state has five levels
_SAFE_DEPTH = 1 << 16  # levels for which every stack has room
_NUM_PICKLES = 5  # at the beginning of a file from before PyTorch 1.6
_TUPLE_OPCODES = (b"t", b"\x85", b"\x86", b"\x87")
_MARK = -1
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
# opcode -> number of objects that it pops
_POPS = {
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
# opcode -> levels that its result has more than the deepest popped object; others push nothing.
# REDUCE: torch.Size is a tuple too
_ADDED_DEPTH = {"TUPLE1": 1, "TUPLE2": 1, "TUPLE3": 1, "REDUCE": 0, "NEWOBJ": 0, "BINPERSID": 0}


def check_nesting(data: bytes | BinaryIO, error: Callable[[], DataError]) -> None:
    """Raise `error()` if a pickle nests tuples deeper than MAX_DEPTH.

    Args:
        data: a pickle, or a file from before PyTorch 1.6 that begins with several.
        error: returns the exception. Other faults are left to torch.
    """
    num_pickles = _NUM_PICKLES
    if isinstance(data, bytes):
        if sum(map(data.count, _TUPLE_OPCODES)) < _SAFE_DEPTH:
            return
        num_pickles = 1
    try:
        is_deep = any(_is_deep(data) for _ in range(num_pickles))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
        return
    if is_deep:
        raise error()


def _is_deep(data: bytes | BinaryIO) -> bool:
    """Return whether tuples are too deep up to STOP or an opcode that torch's reader refuses."""
    stack: list[int] = []  # depths of the objects on the pickle machine's stack
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if not _apply(opcode.name, argument, stack, memo):
            return False
        if stack and stack[-1] > MAX_DEPTH:
            return True
    return False


def _apply(name: str, argument: Any, stack: list[int], memo: dict[int, int]) -> bool:
    """Apply an opcode to the depths; return False for STOP and unsupported opcodes."""
    if name in _PUSHES:
        stack.append(0)
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "MARK":
        stack.append(_MARK)
    elif name in _POPS:
        depth = max(stack[-_POPS[name] :])
        del stack[-_POPS[name] :]
        if name in _ADDED_DEPTH:
            stack.append(depth + _ADDED_DEPTH[name])
    elif name in ("TUPLE", "APPENDS", "SETITEMS"):
        depth = 0
        while (top := stack.pop()) != _MARK:
            depth = max(depth, top)
        if name == "TUPLE":
            stack.append(depth + 1)
    else:
        return name == "PROTO"
    return True
