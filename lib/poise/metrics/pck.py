"""PCK during training: how often a joint's maximum lies near its target's. Quick, on the device, without labels' pixels.

Source: lib/core/evaluate.py of SimpleBaseline and HRNet. There the x distance was divided by the height and the y distance by
the width of the heatmap, which only misreports and only where it is not square; here each by its own.
"""
from __future__ import annotations

import torch


def heatmap_pck(output: torch.Tensor, target: torch.Tensor, threshold: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """(right, counted) joints of a batch as two scalars on the device of `output`.

    output, target: (B, J, h, w). A joint counts when its target's maximum lies beyond the first two rows and columns (an empty
    target has it in cell 0). It is right when the maxima are less than `threshold` tenths of the heatmap's size apart.
    """
    height, width = target.shape[2:]
    predicted, wanted = _maxima(output), _maxima(target)
    counted = (wanted > 1).all(dim=2)
    size = torch.tensor([width, height], device=output.device, dtype=torch.float32) / 10
    distance = torch.linalg.vector_norm((predicted - wanted) / size, dim=2)
    return ((distance < threshold) & counted).sum(), counted.sum()


def _maxima(heatmaps: torch.Tensor) -> torch.Tensor:
    """(B, J, 2) x, y in cells; 0, 0 where no value is above 0."""
    values, index = heatmaps.flatten(2).max(dim=2)
    width = heatmaps.shape[3]
    coords = torch.stack([index % width, index // width], dim=2).float()
    return coords * (values > 0)[:, :, None]
