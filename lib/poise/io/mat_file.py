"""Arrays of MATLAB files of version 5 to 7.

scipy.io.loadmat is not used because it crashes the process on some damaged files.

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
MatValue = np.ndarray | list[str]
_HEADER = 128
_BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
_VERSIONS = {"<": b"\0\1", ">": b"\1\0"}
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
_ENCODINGS = {1: "latin-1", 2: "latin-1", 16: "utf-8"}
_WIDE_ENCODINGS = {4: "utf-16", 17: "utf-16", 18: "utf-32"}
_UINT32 = 6
_MATRIX = 14
_COMPRESSED = 15
_CELL_CLASS = 1
_CHAR_CLASS = 4
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x0800


class _CorruptError(Exception):
    pass


def read_matlab(path: str | os.PathLike, description: str) -> dict[str, MatValue]:
    """Return {name: array} of numeric arrays and {name: list of strings} of cells of strings.

    The strings are in MATLAB's order. Variables of other types are skipped.

    Raises DataError, with `description`, if the file is missing, of another version (7.3 is HDF5)
    or corrupt.
    """
    data = read_bytes(path, description, MAX_BYTES)
    order = _BYTE_ORDERS.get(data[126:128])
    if order is None or data[124:126] != _VERSIONS[order]:
        raise DataError(
            f"{path} is not a readable MATLAB file: it is not of version 5 to 7; save it in MATLAB"
            " with -v7"
        )
    try:
        return _read_variables(data, order)
    except (_CorruptError, struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{path} is not a readable MATLAB file: {error}") from None
    except MemoryError:
        raise DataError(
            f"{path} is not a readable MATLAB file: there is no memory for it"
        ) from None


def _read_variables(data: bytes, order: str) -> dict[str, MatValue]:
    variables: dict[str, MatValue] = {}
    left = MAX_BYTES  # of all decompressed parts together
    at = _HEADER
    while at + 8 <= len(data):
        kind, content, at = _read_element(data, at, order)
        if kind == _COMPRESSED:
            decompressor = zlib.decompressobj()
            decompressed = decompressor.decompress(content, max(left, 1))  # 0 is no bound
            left -= len(decompressed)
            if not decompressor.eof or left < 0:
                raise _CorruptError("a compressed part is cut off or too large")
            kind, content, _ = _read_element(decompressed, 0, order)
        if kind == _MATRIX:
            name, value = _read_matrix(content, order)
            if value is not None:
                variables[name] = value
    return variables


def _read_element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Return type, content and the end of the element at `at`."""
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # a small one, with its content in its tag
        size = kind >> 16
        if size > 4:
            raise _CorruptError("a small element of more than 4 bytes")
        kind &= 0xFFFF
        begin = at + 4
        end = at + 8
        checked = end
    else:
        begin = at + 8
        checked = begin + size
        end = checked if kind == _COMPRESSED else checked + -size % 8
    if checked > len(data):
        raise _CorruptError("it is cut off")
    return kind, data[begin : begin + size], end


def _read_matrix(data: bytes, order: str, nested: bool = False) -> tuple[str, MatValue | None]:
    """Return name and value of an array: numbers, a cell of strings, or a string as a list of one.

    The value is None for any other type.
    """
    kind, flags, at = _read_element(data, 0, order)
    if kind != _UINT32 or len(flags) != 8:
        raise _CorruptError("an array without flags")
    flag = struct.unpack_from(f"{order}I", flags)[0]
    _, sizes, at = _read_element(data, at, order)
    num_sizes = len(sizes) // 4
    shape = struct.unpack(f"{order}{num_sizes}i", sizes[: num_sizes * 4])
    if not 2 <= len(shape) <= 32 or min(shape) < 0:
        raise _CorruptError("an array without a shape")
    _, name_bytes, at = _read_element(data, at, order)
    name = name_bytes.decode("latin-1")
    matlab_class = flag & 0xFF
    if matlab_class in _NUMERIC_CLASSES and not flag & _COMPLEX:
        kind, content, _ = _read_element(data, at, order)
        if kind not in _NUMBERS:
            raise _CorruptError(f"{name!r} has an unknown type of numbers")
        values = np.frombuffer(content, np.dtype(f"{order}{_NUMBERS[kind]}"))
        # ValueError for another number of values
        return name, values.reshape(shape, order="F")
    if matlab_class == _CHAR_CLASS and shape[0] <= 1:
        kind, content, _ = _read_element(data, at, order)
        encoding = _ENCODINGS.get(kind)
        if kind in _WIDE_ENCODINGS:
            encoding = _WIDE_ENCODINGS[kind] + {"<": "-le", ">": "-be"}[order]
        return name, None if encoding is None else [content.decode(encoding)]
    if matlab_class == _CELL_CLASS and not nested:
        return name, _read_cell(data, at, order)
    return name, None


def _read_cell(data: bytes, at: int, order: str) -> list[str] | None:
    """Return the strings of a cell array; None if it holds anything else."""
    texts: list[str] = []
    while at + 8 <= len(data):
        kind, content, at = _read_element(data, at, order)
        value = _read_matrix(content, order, nested=True)[1] if kind == _MATRIX else None
        if not isinstance(value, list):
            return None
        texts += value
    return texts
