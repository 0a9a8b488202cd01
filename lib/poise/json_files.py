"""JSON files: read with each fault told in one line, and what may be written into them."""
from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from poise.errors import DataError, one_line

_NO_NUMBER = re.compile(r"-?(?:NaN|Infinity)", re.IGNORECASE)


def read_json(path: str | Path, what: str, mend: str = "") -> Any:
    """The content of a JSON file. `what` and `mend` go into the DataError when it is missing or not JSON."""
    import orjson

    suffix = f"; {mend}" if mend else ""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot read the {what} ({error.strerror}){suffix}") from None
    try:
        return orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError) as error:
        text, at = getattr(error, "doc", ""), getattr(error, "pos", 0)
        word = _NO_NUMBER.match(text, at)      # Python's own json module writes these words, which are not JSON
        if word:
            raise DataError(f"{path}: the {what} holds {word.group()} in line {error.lineno}, column {error.colno}, "
                            f"where JSON has only finite numbers: ...{one_line(text[max(0, at - 60):at + 20])}...; mend or remove this entry") from None
        raise DataError(f"{path}: the {what} is not valid JSON ({error}){suffix}") from None


def finite(value: Any) -> Any:
    """The same dictionaries and lists with None where a figure is NaN or infinite (one that there is nothing to count for), for JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
