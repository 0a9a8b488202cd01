"""Ctrl-C and SIGTERM end a run after the current step, not in the middle of one."""
from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """A signal asked the run to end; its state is on the disk."""


class Interrupt:
    """`asked` becomes true at the first SIGINT or SIGTERM; a second one ends the program at once."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():      # Python delivers signals nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True
