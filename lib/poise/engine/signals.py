"""Stop a run after the current step on Ctrl-C, SIGTERM, SIGHUP and SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

# sent by terminals (SIGHUP: closed), by schedulers, and by SLURM on request (--signal=USR1@120)
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]
# torchrun forwards a signal that the whole process group has received: that is not a second one
_FORWARD_SECONDS = 5.0

_installed: list[GracefulStop] = []


class RunStoppedError(Exception):
    """The run was stopped by a signal, after it had written a checkpoint."""


def request_stop() -> bool:
    """Request a stop like a first signal, from any thread; return whether a run listens."""
    for stop in _installed:
        stop._request()
    return bool(_installed)


class GracefulStop:
    """Set `stop_requested` at the first SIGINT, SIGTERM, SIGHUP or SIGUSR1.

    A second signal ends the program at once.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self._requested_at = 0.0
        self._forward_seconds = _FORWARD_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        # Python delivers signals to the main thread only
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if (
                    number == getattr(signal, "SIGHUP", None)
                    and signal.getsignal(number) is signal.SIG_IGN
                ):
                    continue  # nohup: the run outlives its terminal
                self._handlers[number] = signal.signal(number, self._handle)
        _installed.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _installed.remove(self)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        seconds = time.monotonic() - self._requested_at
        if self.stop_requested and seconds >= self._forward_seconds:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._request()

    def _request(self) -> None:
        if not self.stop_requested:
            self._requested_at = time.monotonic()
        self.stop_requested = True
