"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 end a run after the current step, not in the middle of
one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

# what terminals (SIGHUP: one that was closed), schedulers, and SLURM on request (--signal=USR1@120)
# send before they end a job
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]
# a signal to the whole process group reaches torchrun too, which passes it on: that is not a second
# one
_SECONDS_OF_ECHO = 5.0


_installed: list[GracefulStop] = []


class RunStoppedError(Exception):
    """A signal asked the run to end; its state is on the disk."""


def request_stop() -> bool:
    """Ask the run to end as a first signal does, from any thread; whether there is one that
    listens.
    """
    for interrupt in _installed:
        interrupt._ask()
    return bool(_installed)


class GracefulStop:
    """`asked` becomes true at the first SIGINT, SIGTERM, SIGHUP or SIGUSR1; a second one ends
    the program at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._echo = _SECONDS_OF_ECHO if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        # Python delivers signals nowhere else
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if (
                    number == getattr(signal, "SIGHUP", None)
                    and signal.getsignal(number) is signal.SIG_IGN
                ):
                    continue  # nohup: the run outlives its terminal
                self._old[number] = signal.signal(number, self._handle)
        _installed.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _installed.remove(self)
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since >= self._echo:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._ask()

    def _ask(self) -> None:
        if not self.asked:
            self._since = time.monotonic()
        self.asked = True
