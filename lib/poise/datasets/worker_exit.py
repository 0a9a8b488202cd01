"""End worker processes when their main process has ended in any way, as by SIGKILL."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess


def exit_with_parent() -> None:
    """End this worker process when its parent ends, even if it has ended before this call.

    PyTorch's own workers check every 5 s between two batches, those of multiprocessing never.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    # each forked worker holds the pipes of those before it: the last one ends first
    parent.join()
    os._exit(1)
