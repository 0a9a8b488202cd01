"""Average the heatmaps of an image and of its horizontal flip."""

from __future__ import annotations

import torch

try:
    from poise.codecs import _flip as _compiled  # type: ignore[attr-defined]
except ImportError:
    _compiled = None


def average_flipped(
    heatmaps: torch.Tensor, mirrored: torch.Tensor, flip_indices: torch.Tensor, shift: bool
) -> torch.Tensor:
    """Average the heatmaps of images and of the flipped images.

    Args:
        heatmaps: (B, K, h, w) of the images.
        mirrored: (B, K, h, w) of the flipped images.
        flip_indices: (K,) indices of poise.structures.skeleton.
        shift: move the flipped maps one cell to the right, because the codec's crops are aligned at
            cell 0 and not at the middle (TEST.SHIFT_HEATMAP; HRNet lib/core/function.py). The first
            column keeps its unshifted values, as in the original.

    Returns:
        (B, K, h, w).
    """
    if all(
        maps.device.type == "cpu" and maps.dtype == torch.float32 and not maps.requires_grad
        for maps in (heatmaps, mirrored)
    ):
        if heatmaps.shape != mirrored.shape or flip_indices.shape != heatmaps.shape[1:2]:
            raise ValueError(
                "heatmaps must be two of (B, K, h, w) and flip_indices of (K,), got"
                f" {tuple(heatmaps.shape)}, {tuple(mirrored.shape)}, {tuple(flip_indices.shape)}"
            )
        if _compiled is None:
            return average_flipped_in_graph(heatmaps, mirrored, flip_indices, shift)
        merged = torch.empty(heatmaps.shape)
        _compiled.merge(
            heatmaps.contiguous().numpy(),
            mirrored.contiguous().numpy(),
            flip_indices.to(torch.int64).contiguous().numpy(),
            shift,
            merged.numpy(),
        )
        return merged
    return average_flipped_in_graph(heatmaps, mirrored, flip_indices, shift)


def average_flipped_in_graph(
    heatmaps: torch.Tensor, mirrored: torch.Tensor, flip_indices: torch.Tensor, shift: bool
) -> torch.Tensor:
    """Return the same as average_flipped with PyTorch only, for any device and for export."""
    mirrored = mirrored.flip(3)[:, flip_indices]
    if shift:
        mirrored = torch.cat([mirrored[:, :, :, :1], mirrored[:, :, :, :-1]], dim=3)
    return (heatmaps + mirrored) * 0.5
