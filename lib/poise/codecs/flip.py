"""Average the heatmaps of an image and of its horizontal flip."""

from __future__ import annotations

import numpy as np
import torch

try:
    from poise.codecs import _flip as _compiled  # type: ignore[attr-defined]
except ImportError:
    _compiled = None


def average_flipped(
    heatmaps: torch.Tensor, mirrored: torch.Tensor, flip_indices: torch.Tensor, shift: bool
) -> torch.Tensor:
    """Average two predictions (B, K, h, w), the second made from the flipped images.

    flip_indices: (K,) indices of poise.structures.skeleton. shift: move the mirrored map a cell to
    the right, because the crops of this codec are aligned at cell 0 and not at the middle
    (TEST.SHIFT_HEATMAP; HRNet lib/core/function.py). The first column then keeps its unshifted
    values, as in the original.
    """
    if all(
        maps.device.type == "cpu" and maps.dtype == torch.float32 and not maps.requires_grad
        for maps in (heatmaps, mirrored)
    ):
        if heatmaps.shape != mirrored.shape or flip_indices.shape != heatmaps.shape[1:2]:
            raise ValueError(
                "two predictions (B, K, h, w) and K indices are merged; got"
                f" {tuple(heatmaps.shape)}, {tuple(mirrored.shape)}, {tuple(flip_indices.shape)}"
            )
        if _compiled is None:
            return torch.from_numpy(
                _merge_arrays(heatmaps.numpy(), mirrored.numpy(), flip_indices.tolist(), shift)
            )
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
    """average_flipped by operations of PyTorch alone, on any device and in graphs that are
    exported.
    """
    mirrored = mirrored.flip(3)[:, flip_indices]
    if shift:
        mirrored = torch.cat([mirrored[:, :, :, :1], mirrored[:, :, :, :-1]], dim=3)
    return (heatmaps + mirrored) * 0.5


def _merge_arrays(
    heatmaps: np.ndarray, mirrored: np.ndarray, flip_indices: list[int], shift: bool
) -> np.ndarray:
    """The same in one pass over the memory: NumPy can read backwards, PyTorch makes a mirrored
    copy first.
    """
    merged = np.empty_like(heatmaps, order="C")
    backwards = mirrored[:, :, :, ::-1]
    for joint, other in enumerate(flip_indices):
        one, two, out = heatmaps[:, joint], backwards[:, other], merged[:, joint]
        if shift:
            np.add(one[:, :, 1:], two[:, :, :-1], out=out[:, :, 1:])
            np.add(one[:, :, :1], two[:, :, :1], out=out[:, :, :1])
        else:
            np.add(one, two, out=out)
        out *= np.float32(0.5)
    return merged
