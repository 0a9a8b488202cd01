"""JSON files: read with each fault told in one line, long lists of large files in parts, their
ids and numbers, and what may be written into them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from poise.errors import DataError, short_repr, single_line
from poise.io.files import check_memory, gc_disabled, read_bytes

T = TypeVar("T")
_NO_NUMBER = re.compile(r"-?(?:NaN|Infinity)", re.IGNORECASE)

MAX_BYTES = 1 << 32  # the largest published annotation file has 1 GB
_OTHER_ENCODINGS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\x00", "UTF-16 or UTF-32"))
_PACKED = ((b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"))
# what a file is read in: much larger parts take memory that is slow to get, much smaller ones more
# calls
PART_BYTES = 1 << 18
_LARGE_BYTES = 1 << 22
# that Python takes, about: 32 for a number with a point, 64 for an empty list
_BYTES_OF_VALUE, _BYTES_OF_OBJECT = 48, 200
_BETWEEN = re.compile(rb"\}\s*,\s*\{")


def read_json(path: str | os.PathLike, what: str, mend: str = "") -> Any:
    """The content of a JSON file. `what` and `mend` go into the DataError when it is missing or
    not JSON.
    """
    return _parsed(_bytes(path, what, mend), path, what, mend)


def read_in_parts(
    path: str | os.PathLike,
    key: str,
    use: Callable[[Any, Iterable[list]], T],
    what: str,
    mend: str = "",
) -> T:
    """use(content, parts) for a JSON file whose list `key` is so long that its objects would take
    gigabytes at once.

    content: as of read_json, but content[key], if it is a list, is empty. parts: lists of its
    elements, in their order; each pass over them reads the text again. `use` is called again, with
    the list as one part, where the file was not laid out as it seemed, and where `use` raised
    DataError. Raises DataError as read_json.
    """
    import orjson

    data = _bytes(path, what, mend)
    begin = (
        re.search(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*\[', data)
        if len(data) >= _LARGE_BYTES
        else None
    )
    if begin:  # COCO's files end with the categories; elsewhere the list may be the last thing
        after, mark = data.rfind(b'"categories"'), ["\0 the list"]
        end = data.rfind(b"]", begin.end(), after if after > begin.end() else len(data))
        parts = _Parts(data, begin.end(), end)
        try:
            rest = data[: begin.end() - 1] + orjson.dumps(mark) + data[end + 1 :]
            _check_values(rest, path, what)
            content = orjson.loads(rest)
            # so it is the list's own bracket, not one in a text
            if isinstance(content, dict) and content.get(key) == mark:
                content[key] = []
                result = use(content, parts)
                if parts.complete:  # all of it was JSON, so it was the list and nothing else
                    return result
        except (orjson.JSONDecodeError, DataError):
            pass
    content = _parsed(data, path, what, mend)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return use(content, ())
    content[key] = []
    return use(content, [entries])


class _Parts:
    """The list between begin and end of data. A cut in a wrong place, within a text or a list,
    leaves no JSON on either side of it.
    """

    def __init__(self, data: bytes, begin: int, end: int):
        self._data, self._begin, self._end = data, begin, end
        self.complete = begin >= end

    def __iter__(self) -> Iterator[list]:
        import orjson

        data, begin = self._data, self._begin
        while begin < self._end:
            cut = _BETWEEN.search(data, min(begin + PART_BYTES, self._end), self._end)
            part = orjson.loads(b"[" + data[begin : cut.start() + 1 if cut else self._end] + b"]")
            begin = cut.end() - 1 if cut else self._end
            yield part
        self.complete = True


def _bytes(path: str | os.PathLike, what: str, mend: str) -> bytes:
    """The file, in UTF-8 as it should be: the mark that Windows' editors set before it is left
    out.
    """
    return read_bytes(path, what, MAX_BYTES, mend).removeprefix(b"\xef\xbb\xbf")


def _parsed(data: bytes, path: str | os.PathLike, what: str, mend: str) -> Any:
    import orjson

    _check_values(data, path, what)
    try:
        with gc_disabled():
            return orjson.loads(data)
    except MemoryError:
        raise DataError(
            f"{path}: there is no memory for the content of the {what}, {len(data)} bytes"
        ) from None
    except (orjson.JSONDecodeError, RecursionError) as error:
        text, at = getattr(error, "doc", ""), getattr(error, "pos", 0)
        # Python's own json module writes these words, which are not JSON
        word = _NO_NUMBER.match(text, at)
        if word:
            raise DataError(
                f"{path}: the {what} holds {word.group()} in line {error.lineno}, column"
                f" {error.colno}, where JSON has only finite numbers:"
                f" ...{single_line(text[max(0, at - 60) : at + 20])}...; correct or remove this"
                " entry"
            ) from None
        encoding = next((name for mark, name in _OTHER_ENCODINGS if mark in data[:2]), "")
        try:
            data[: 1 << 24].decode()
        # unless a letter was cut in two at the end of what was looked at
        except UnicodeDecodeError as fault:
            encoding = encoding or ("another encoding than UTF-8" if fault.end < 1 << 24 else "")
        packed = next((name for mark, name in _PACKED if data.startswith(mark)), "")
        if packed:
            raise DataError(f"{path}: the {what} is packed by {packed}; unpack it first") from None
        if encoding:
            raise DataError(
                f"{path}: the {what} is not valid JSON, for it is in {encoding}; save it as UTF-8"
            ) from None
        raise DataError(
            f"{path}: the {what} is not valid JSON"
            f" ({single_line(error)[:200]}){f'; {mend}' if mend else ''}"
        ) from None


def _check_values(data: bytes, path: str | os.PathLike, what: str) -> None:
    """Raise DataError where what the text stands for takes more memory than there is: a list of
    empty lists, twenty times the file.
    """
    if len(data) > _LARGE_BYTES:
        check_memory(
            path,
            f"content of the {what}",
            data.count(b",") * _BYTES_OF_VALUE + data.count(b"{") * _BYTES_OF_OBJECT,
        )


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not text, a truth value or nothing."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def describe_field_error(entry: dict, key: str, expected: str) -> str:
    """Return what is wrong with a field: "has no 'area'" or "has area null, expected a number"."""
    if key not in entry:
        return f"has no {key!r}"
    return f"has {key} {short_repr(entry[key], 60)}, expected {expected}"


def replace_non_finite(value: Any) -> Any:
    """The same dictionaries and lists with None where a figure is NaN or infinite (one that
    there is nothing to count for), for JSON has no such numbers.
    """
    if isinstance(value, dict):
        return {key: replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_finite(value: object) -> bool:
    """Whether a value of a JSON file is a number that can be reckoned with: 1e300 squared is
    not.
    """
    return isinstance(value, (int, float)) and -1e100 < value < 1e100
