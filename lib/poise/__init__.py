"""Poise: top-down 2D human pose estimation in PyTorch.

Importing the package imports neither torch nor anything compiled; see docs/design.md for the floors.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poise.inference.poses import Poses
    from poise.inference.estimator import PoseEstimator

__all__ = ["PoseEstimator", "Poses"]
__version__ = "0.1.0"


def __getattr__(name: str) -> type:
    """PoseEstimator and Poses, imported when they are first asked for: they need torch."""
    if name == "PoseEstimator":
        from poise.inference.estimator import PoseEstimator as found
    elif name == "Poses":
        from poise.inference.poses import Poses as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
