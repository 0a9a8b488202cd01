"""JSON files: bounded reads with errors in one line, long lists in parts, and number checks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from poise.errors import DataError, short_repr, single_line
from poise.io.files import check_memory, gc_disabled, read_bytes

if TYPE_CHECKING:
    import orjson

T = TypeVar("T")

MAX_BYTES = 1 << 32  # the largest published annotation file has 1 GB
PART_BYTES = 1 << 18  # of read_in_parts: larger parts are slow to allocate, smaller ones to loop
_LARGE_BYTES = 1 << 22
_BYTES_PER_VALUE = 48  # in Python, about: 32 for a float, 64 for an empty list
_BYTES_PER_OBJECT = 200
_UTF8_BOM = b"\xef\xbb\xbf"  # editors on Windows write it
_ENCODINGS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\x00", "UTF-16 or UTF-32"))
_ENCODING_BYTES = 1 << 24  # so many are decoded to see whether a file is UTF-8
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)
_NON_FINITE = re.compile(r"-?(?:NaN|Infinity)", re.IGNORECASE)
_BETWEEN_OBJECTS = re.compile(rb"\}\s*,\s*\{")


def read_json(path: str | os.PathLike, description: str, hint: str = "") -> Any:
    """Return the content of a JSON file.

    Raises DataError, with `description` and `hint`, if the file is missing or not JSON.
    """
    return _parse(_read_bytes(path, description, hint), path, description, hint)


def read_in_parts(
    path: str | os.PathLike,
    key: str,
    use: Callable[[Any, Iterable[list]], T],
    description: str,
    hint: str = "",
) -> T:
    """Return use(content, parts) for a JSON file whose list `key` is too long for the memory.

    `use` is called again, with the list as one part, if the layout of the file was not as expected
    or if `use` raised DataError.

    Args:
        path: the file.
        key: of a list of objects on the first level of the file.
        use: gets the content as read_json returns it, with content[key] empty if it is a list, and
            lists of its elements in order. Each pass over them parses the text again.
        description, hint: see read_json; so are the errors.
    """
    import orjson

    data = _read_bytes(path, description, hint)
    span = _find_list(data, key) if len(data) >= _LARGE_BYTES else None
    if span is not None:
        begin, end = span
        parts = _Parts(data, begin, end)
        marker = ["\0 the list"]
        try:
            rest = data[: begin - 1] + orjson.dumps(marker) + data[end + 1 :]
            _check_memory_of_values(rest, path, description)
            content = orjson.loads(rest)
            # the bracket was that of the list, and not one within a string
            if isinstance(content, dict) and content.get(key) == marker:
                content[key] = []
                result = use(content, parts)
                if parts.complete:  # all of it was JSON, so it was the list and nothing else
                    return result
        except (orjson.JSONDecodeError, DataError):
            pass
    content = _parse(data, path, description, hint)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return use(content, ())
    content[key] = []
    return use(content, [entries])


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not a string, a bool or None."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Return whether a value is a number whose square is finite."""
    return isinstance(value, (int, float)) and -1e100 < value < 1e100


def replace_non_finite(value: Any) -> Any:
    """Return nested dictionaries and lists with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def describe_field_error(entry: dict, key: str, expected: str) -> str:
    """Return what is wrong with a field: "has no 'area'" or "has area null, expected a number"."""
    if key not in entry:
        return f"has no {key!r}"
    return f"has {key} {short_repr(entry[key], 60)}, expected {expected}"


def _read_bytes(path: str | os.PathLike, description: str, hint: str) -> bytes:
    return read_bytes(path, description, MAX_BYTES, hint).removeprefix(_UTF8_BOM)


def _find_list(data: bytes, key: str) -> tuple[int, int] | None:
    """Return where the content of the list `key` begins and ends; None without such a list."""
    match = re.search(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*\[', data)
    if match is None:
        return None
    # COCO files end with the categories; in other files the list may be the last value
    begin = match.end()
    categories = data.rfind(b'"categories"')
    limit = categories if categories > begin else len(data)
    return begin, data.rfind(b"]", begin, limit)


class _Parts:
    """The list between begin and end of data, in lists of about PART_BYTES.

    A cut at a wrong place, within a string or a nested list, leaves invalid JSON on both sides.
    """

    def __init__(self, data: bytes, begin: int, end: int):
        self._data = data
        self._begin = begin
        self._end = end
        self.complete = begin >= end

    def __iter__(self) -> Iterator[list]:
        import orjson

        begin = self._begin
        while begin < self._end:
            cut = _BETWEEN_OBJECTS.search(self._data, min(begin + PART_BYTES, self._end), self._end)
            end = cut.start() + 1 if cut else self._end
            yield orjson.loads(b"[" + self._data[begin:end] + b"]")
            begin = cut.end() - 1 if cut else self._end
        self.complete = True


def _parse(data: bytes, path: str | os.PathLike, description: str, hint: str) -> Any:
    import orjson

    _check_memory_of_values(data, path, description)
    try:
        with gc_disabled():
            return orjson.loads(data)
    except MemoryError:
        raise DataError(
            f"{path}: there is no memory for the content of the {description}, {len(data)} bytes"
        ) from None
    except orjson.JSONDecodeError as error:
        raise _invalid_json(error, data, path, description, hint) from None
    except RecursionError as error:
        ending = f"; {hint}" if hint else ""
        raise DataError(
            f"{path}: the {description} is not valid JSON ({single_line(error)[:200]}){ending}"
        ) from None


def _invalid_json(
    error: orjson.JSONDecodeError,
    data: bytes,
    path: str | os.PathLike,
    description: str,
    hint: str,
) -> DataError:
    # Python's json module writes NaN and Infinity, which JSON does not have
    word = _NON_FINITE.match(error.doc, error.pos)
    if word:
        context = single_line(error.doc[max(0, error.pos - 60) : error.pos + 20])
        return DataError(
            f"{path}: the {description} holds {word.group()} in line {error.lineno}, column"
            f" {error.colno}, where JSON has only finite numbers: ...{context}...; correct or"
            " remove this entry"
        )
    for prefix, compression in _COMPRESSIONS:
        if data.startswith(prefix):
            return DataError(
                f"{path}: the {description} is packed by {compression}; unpack it first"
            )
    encoding = _other_encoding(data)
    if encoding:
        return DataError(
            f"{path}: the {description} is not valid JSON, for it is in {encoding}; save it as"
            " UTF-8"
        )
    ending = f"; {hint}" if hint else ""
    return DataError(
        f"{path}: the {description} is not valid JSON ({single_line(error)[:200]}){ending}"
    )


def _other_encoding(data: bytes) -> str:
    """Return the encoding of data if it is not UTF-8, else ''."""
    for mark, name in _ENCODINGS:
        if mark in data[:2]:
            return name
    try:
        data[:_ENCODING_BYTES].decode()
    except UnicodeDecodeError as error:
        if error.end < _ENCODING_BYTES:  # else a character was cut in two
            return "another encoding than UTF-8"
    return ""


def _check_memory_of_values(data: bytes, path: str | os.PathLike, description: str) -> None:
    """Raise DataError if the parsed values need more memory than is available.

    A list of empty lists takes twenty times the size of the file.
    """
    if len(data) > _LARGE_BYTES:
        needed = data.count(b",") * _BYTES_PER_VALUE + data.count(b"{") * _BYTES_PER_OBJECT
        check_memory(path, f"content of the {description}", needed)
