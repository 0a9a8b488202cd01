"""Ids in COCO files: integers, also if a tool writes them as text."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any

_DIGITS = re.compile(r"-?[0-9]{1,19}")


def parse_id(value: Any) -> int | None:
    """Return a value as an integer of 64 bits, or None.

    Text of digits and 7.0 are accepted, as some labeling tools write ids so.
    """
    number = None
    if isinstance(value, str):
        if _DIGITS.fullmatch(value):
            number = int(value)
    elif isinstance(value, float):
        if value.is_integer():
            number = int(value)
    elif isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
    if number is None or not -(2**63) <= number < 2**63:
        return None
    return number


def parse_ids(entry: Any, *keys: str) -> Any:
    """Return an object with its ids as integers; the same object if nothing changes."""
    if not isinstance(entry, dict):
        return entry
    parsed = {key: parse_id(entry[key]) for key in keys if type(entry.get(key)) in (str, float)}
    parsed = {key: value for key, value in parsed.items() if value is not None}
    return {**entry, **parsed} if parsed else entry
