"""Flip test: the mirrored image's heatmaps laid back over the image's own."""
from __future__ import annotations

import torch


def merge_flipped(heatmaps: torch.Tensor, mirrored: torch.Tensor, flip_order: torch.Tensor, shift: bool) -> torch.Tensor:
    """Mean of two predictions (B, J, h, w), the second made from the mirrored images.

    flip_order: (J,) indices of poise.skeleton. shift: move the mirrored map one cell to the right, because the crops of this
    codec are aligned at cell 0 and not at the middle (TEST.SHIFT_HEATMAP; HRNet lib/core/function.py). The first column then
    keeps its unshifted values, as in the original.
    """
    mirrored = mirrored.flip(3)[:, flip_order]
    if shift:
        mirrored[:, :, :, 1:] = mirrored[:, :, :, :-1].clone()
    return (heatmaps + mirrored) * 0.5
