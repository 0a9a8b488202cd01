"""The end of worker processes whose main process has ended in any way, as by SIGKILL."""

from __future__ import annotations

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
    """End this worker process when its parent has ended, even before this call.

    PyTorch's own workers look every 5 s between two batches, those of multiprocessing never.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent) -> None:
    # of forked workers each holds the pipes of those before it: the last one ends first
    parent.join()
    os._exit(1)
