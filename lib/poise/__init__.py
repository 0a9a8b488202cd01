"""Poise: top-down 2D human pose estimation in PyTorch.

Importing the package imports neither torch nor anything compiled; see docs/design.md for the
layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poise.inference.estimator import PoseEstimator
    from poise.inference.poses import Poses

__all__ = ["PoseEstimator", "Poses"]


def __getattr__(name: str) -> type | str:
    """Return PoseEstimator, Poses (imported on first use, since they need torch) or __version__."""
    if name == "__version__":
        from importlib.metadata import version

        return version("poise")
    if name == "PoseEstimator":
        from poise.inference.estimator import PoseEstimator

        return PoseEstimator
    if name == "Poses":
        from poise.inference.poses import Poses

        return Poses
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
