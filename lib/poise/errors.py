"""Errors that a user can fix, and how a command prints them."""

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
# problems of the disk or of a path, not of the program
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
    """An error that the user can fix; its text names the file or key, the cause and the fix.

    Attributes:
        status: exit status of a command that ends with it: 1 for data and files, 2 for usage.
    """

    status = 1


class ConfigError(PoiseError):
    """A key or value of an experiment file or of the command line is invalid."""

    status = 2


class DataError(PoiseError):
    """An annotation, detection, weight or image file is missing or invalid."""


def run_tool(main: Callable[[], int | None]) -> None:
    """Run the `main` of a command and exit with its status.

    A PoiseError or a disk error is printed as one line on stderr. Any other error keeps its
    traceback, because it is a bug. POISE_DEBUG=1 shows every traceback.
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
        # the reader of the output has closed it (`| head`); silence Python's flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if os.environ.get(DEBUG_VARIABLE) or error.errno not in _DISK_ERRORS:
            raise
        name = single_line(error.filename or "the output")
        print(
            f"error: {name}: {error.strerror}; cannot be read or written; what was written before"
            " is kept",
            file=sys.stderr,
        )
        status = 1
    sys.exit(status)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out in Python, in OpenCV, or in PyTorch on any device.

    PyTorch raises a plain RuntimeError on the CPU, and one with the text of the original error for
    an error in a worker process.
    """
    if isinstance(error, MemoryError):
        return True
    return _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}") is not None


def format_error(error: BaseException) -> str:
    """Return an error as one line, shortened in the middle if it is too long."""
    line = single_line(error)
    if len(line) <= MAX_CHARACTERS:
        return line
    return f"{line[: MAX_CHARACTERS - 300]} ... {line[-290:]}"


def single_line(text: object) -> str:
    """Return text on one line, with control characters escaped.

    A file name printed this way cannot send commands to a terminal.
    """
    return _escape(" ".join(str(text).split()))


def escape_name(name: object, max_length: int = 200) -> str:
    """Return a name from a file as it may be printed: on one line, escaped and shortened.

    Unlike single_line it keeps blanks as they are and shows a newline as \\n.
    """
    if name is None:
        return "null"
    text = str(name)
    if len(text) > max_length:
        text = f"{text[:max_length]}..."
    return _escape(text)


def short_repr(value: object, max_length: int = 200) -> str:
    """Return a shortened repr() of a value for an error message; None is null, as in JSON."""
    if value is None:
        return "null"
    try:
        return escape_name(repr(value), max_length)
    except (ValueError, RecursionError):  # an int of more digits than Python converts
        return f"a {type(value).__name__} that is too long to show"


def escape_control(text: str) -> str:
    """Return text with control characters escaped, apart from newlines and tabs."""
    if text.isprintable():
        return text
    return _escape(text, keep="\n\t")


def escape_html(text: object) -> str:
    """Return text for use in an HTML or SVG file, also within an attribute.

    Control characters and marks that change the direction of writing are shown as their codes, so
    that a name cannot change the text around it.
    """
    return html.escape(escape_control(str(text)))


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """Return '1 person' or '2 persons'; plural: if it is not the noun with an s."""
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {plural or noun + 's'}"


def _escape(text: str, keep: str = "") -> str:
    return "".join(
        c
        if c.isprintable() or c in keep
        else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
