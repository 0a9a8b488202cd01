"""How much memory a run takes."""
from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak so far: reserved on the GPU, or of this process on the CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource     # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
