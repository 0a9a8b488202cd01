"""Poise: top-down 2D human pose estimation in PyTorch.

Importing the package imports neither torch nor anything compiled; see docs/design.md for the floors.
"""

__version__ = "0.1.0"
