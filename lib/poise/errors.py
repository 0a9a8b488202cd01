"""Errors that a user can mend, and the one way in which the tools show them."""

from __future__ import annotations

import errno
import html
import os
import re
import sys
from collections.abc import Callable

DEBUG_VARIABLE = "POISE_DEBUG"
MAX_CHARACTERS = 1000
INTERRUPTED = 130  # exit status after Ctrl-C, as shells give it
# the disk, and names that lead nowhere: too long, of a file where a folder must be, or the other
# way round
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
)
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|MemoryError|out of memory|[Cc]an(?:no|')t allocate memory|Insufficient"
    r" memory"
)


class PoiseError(Exception):
    """Something from outside (a file, a key, a value) cannot be used; the text names it and the
    mend.

    `status` is the exit status of a tool that ends with it: 1 for data and files, 2 for usage.
    """

    status = 1


class ConfigError(PoiseError):
    """A key or value of an experiment file or of the command line cannot be used."""

    status = 2


class DataError(PoiseError):
    """An annotation, detection, weight or image file is missing or cannot be used."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: Python's, PyTorch's on any device, or
    OpenCV's.

    PyTorch raises a plain RuntimeError on the CPU, and for an error in a worker process one with
    its text.
    """
    return (
        isinstance(error, MemoryError)
        or _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}") is not None
    )


def single_line(text: object) -> str:
    """Return `text` on one line, with control characters escaped so that a file name cannot
    steer a terminal.
    """
    flat = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in flat)


def short_repr(value: object, most: int = 200) -> str:
    """A value for an error line as Python writes it, None as JSON and YAML do; not longer."""
    if value is None:
        return "null"
    try:
        return escape_name(repr(value), most)
    except (ValueError, RecursionError):  # a whole number of more digits than Python writes
        return f"a {type(value).__name__} that is too long to show"


def escape_name(name: object, most: int = 200) -> str:
    """A name from a file (of an image, a member, a category, a key) as it may be printed: on one
    line, nothing that steers a terminal, not without end.

    Unlike single_line it keeps what the name is: a newline is shown as \\n, and blanks are left as
    they are.
    """
    text = "null" if name is None else str(name)
    cut = text if len(text) <= most else f"{text[:most]}..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in cut
    )


def escape_control(text: str) -> str:
    """Several lines as they are, but for what steers a terminal, which is escaped."""
    return (
        text
        if text.isprintable()
        else "".join(
            c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
            for c in text
        )
    )


def escape_html(text: object) -> str:
    """Return text as it may stand in an HTML or SVG file, in an attribute too.

    Markup is escaped. Control characters and marks that turn the direction of writing are shown as
    their codes, as in the log, so that a name cannot change the text around it.
    """
    return html.escape(escape_control(str(text)))


def format_error(error: BaseException) -> str:
    """What is shown of an error: one line, its middle left out where a file has put too much
    into it.
    """
    line = single_line(error)
    return (
        line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 300]} ... {line[-290:]}"
    )


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a tool's `main` and exit with its status.

    A PoiseError, and a disk that cannot be written, become one line on stderr and a status; any
    other error keeps its traceback, because it is a fault of the program. With POISE_DEBUG=1 every
    traceback is shown.
    """
    try:
        status = main()
    except PoiseError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"error: {format_error(error)}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away (`| head`); silence the flush that Python does at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if os.environ.get(DEBUG_VARIABLE) or error.errno not in _DISK_ERRORS:
            raise
        print(
            f"error: {single_line(error.filename or 'the output')}: {error.strerror}; cannot be"
            " read or written; what was written before is kept",
            file=sys.stderr,
        )
        status = 1
    sys.exit(status)


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """Return '1 person' or '2 persons'; plural: where it is not the noun with an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"
