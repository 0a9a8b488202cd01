"""The end of worker processes whose main process has ended in any way, as by SIGKILL."""

from __future__ import annotations

import os
import threading
import time

_SECONDS_BETWEEN_LOOKS = 1.0


def end_with_parent() -> None:
    """End this worker process when its parent has ended; a thread looks for that every second.

    PyTorch's own workers look every 5 s between two batches, those of multiprocessing never.
    """
    threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
