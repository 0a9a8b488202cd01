"""Ids of COCO files: whole numbers, also where a tool writes them as text."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any

_DIGITS = re.compile(r"-?[0-9]{1,19}")


def parse_id(value: Any) -> int | None:
    """Return the whole number of 64 bits that a value is, or None.

    Text of digits and 7.0 count as numbers, as some labeling tools write ids so.
    """
    if isinstance(value, str):
        number = int(value) if _DIGITS.fullmatch(value) else None
    elif isinstance(value, float):
        number = int(value) if value.is_integer() else None
    else:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        number = int(value) if whole else None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def parse_ids(entry: Any, *keys: str) -> Any:
    """Return an object with its ids as numbers where parse_id reads them; the same object where
    they are.
    """
    if not isinstance(entry, dict):
        return entry
    found = {key: parse_id(entry[key]) for key in keys if type(entry.get(key)) in (str, float)}
    found = {key: value for key, value in found.items() if value is not None}
    return {**entry, **found} if found else entry
