"""Python's search for circles of objects that nobody holds, and when it is in the way."""
from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """While many objects are made that stay: modules that are imported, lists and dictionaries of a file.

    They would be looked through again and again, for circles that they do not have: a quarter of the time that importing PyTorch takes, and up
    to ten times that of reading a large JSON file.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
