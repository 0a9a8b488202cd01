"""Arrays from MATLAB files of version 5 to 7, by a reader that stays within the file: scipy's ends
the process on some damaged ones.

Source of the layout: MathWorks, MAT-File Format, chapter 1 (Level 5 MAT-Files).
"""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np

from poise.errors import DataError
from poise.io.files import read_bytes

MAX_BYTES = 1 << 28
_HEADER = 128
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_TEXTS = {1: "latin-1", 2: "latin-1", 16: "utf-8", 4: "utf-16", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x0800


class _DamagedError(Exception):
    pass


def read_matlab(path: str | os.PathLike, what: str) -> dict[str, np.ndarray | list[str]]:
    """{name: array} of a file's numeric arrays, and {name: texts} of its cells of text, in MATLAB's
    order; what else it has is left out.

    what: the file, for the DataError where it is missing, of another version (7.3 is HDF5), or
    damaged.
    """
    data = read_bytes(path, what, MAX_BYTES)
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or data[124:126] != (b"\0\1" if order == "<" else b"\1\0"):
        raise DataError(
            f"{path} is not a readable MATLAB file: it is not of version 5 to 7; save it in MATLAB"
            " with -v7"
        )
    found: dict[str, np.ndarray | list[str]] = {}
    left = MAX_BYTES  # of all compressed parts together
    try:
        at = _HEADER
        while at + 8 <= len(data):
            kind, content, at = _element(data, at, order)
            if kind == _COMPRESSED:
                unpacking = zlib.decompressobj()
                unpacked = unpacking.decompress(content, max(left, 1))  # 0 would be no bound
                left -= len(unpacked)
                if not unpacking.eof or left < 0:
                    raise _DamagedError("a compressed part is cut off or too large")
                kind, content, _ = _element(unpacked, 0, order)
            if kind == _MATRIX:
                name, value = _matrix(content, order)
                if value is not None:
                    found[name] = value
    except (_DamagedError, struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{path} is not a readable MATLAB file: {error}") from None
    except MemoryError:
        raise DataError(
            f"{path} is not a readable MATLAB file: there is no memory for it"
        ) from None
    return found


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """(type, content, where the next one begins) of the element at `at`."""
    kind, size = struct.unpack_from(f"{order}II", data, at)
    begin = at + 8
    if kind >> 16:  # a small one, with its content in its tag
        kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
        if size > 4:
            raise _DamagedError("a small element of more than 4 bytes")
        end = after = at + 8
    else:
        end = begin + size
        after = end if kind == _COMPRESSED else end + -size % 8
    if end > len(data):
        raise _DamagedError("it is cut off")
    return kind, data[begin : begin + size], after


def _matrix(
    data: bytes, order: str, nested: bool = False
) -> tuple[str, np.ndarray | list[str] | None]:
    """(name, value) of an array: numbers, a cell of texts, a text as a list of one; None for any
    other.
    """
    kind, flags, at = _element(data, 0, order)
    if kind != 6 or len(flags) != 8:
        raise _DamagedError("an array without flags")
    flag = struct.unpack_from(f"{order}I", flags)[0]
    _, sizes, at = _element(data, at, order)
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4])
    if not 2 <= len(shape) <= 32 or min(shape) < 0:
        raise _DamagedError("an array without a shape")
    _, name, at = _element(data, at, order)
    text = name.decode("latin-1")
    class_ = flag & 0xFF
    if class_ in _NUMERIC_CLASSES and not flag & _COMPLEX:
        kind, content, _ = _element(data, at, order)
        if kind not in _NUMBERS:
            raise _DamagedError(f"{text!r} is of no kind of number")
        values = np.frombuffer(content, np.dtype(f"{order}{_NUMBERS[kind]}"))
        # ValueError where there are more or fewer
        return text, values.reshape(shape, order="F")
    if class_ == _CHAR:
        kind, content, _ = _element(data, at, order)
        if kind not in _TEXTS or shape[0] > 1:
            return text, None
        encoding = _TEXTS[kind] + ("" if kind in (1, 2, 16) else "-le" if order == "<" else "-be")
        return text, [content.decode(encoding)]
    if class_ == _CELL and not nested:
        texts = []
        while at + 8 <= len(data):
            kind, content, at = _element(data, at, order)
            value = _matrix(content, order, nested=True)[1] if kind == _MATRIX else None
            if not isinstance(value, list):
                return text, None
            texts += value
        return text, texts
    return text, None
