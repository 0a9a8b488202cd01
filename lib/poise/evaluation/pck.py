"""PCK during training: how often a joint's maximum lies near its target's. Quick, on the device,
without labels' pixels.

Source: lib/core/evaluate.py of SimpleBaseline and HRNet. There the x distance was divided by the
height and the y distance by the width of the heatmap, which only misreports and only where it is
not square; here each by its own.
"""

from __future__ import annotations

import numpy as np
import torch

from poise.codecs.peaks import find_maxima


def heatmap_pck(
    output: torch.Tensor,
    target: torch.Tensor,
    threshold: float = 0.5,
    maxima: tuple[np.ndarray, np.ndarray] | None = None,
    cells: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(right, counted) joints of a batch as two scalars on the device of `output`.

    output, target: (B, J, h, w). A joint counts when its target's maximum lies beyond the first two
    rows and columns (an empty target has it in cell 0). It is right when the maxima are less than
    `threshold` tenths of the heatmap's size apart. maxima: those of `output`, if find_maxima has
    found them already. cells: those of `target`, if the codec tells them (Targets.cells).
    """
    height, width = target.shape[2:]
    predicted = (
        _maxima(output)
        if maxima is None
        else _where_any(*map(torch.from_numpy, maxima)).to(output.device)
    )
    wanted = _maxima(target) if cells is None else cells
    counted = (wanted > 1).all(dim=2)
    size = torch.tensor([width, height], device=output.device, dtype=torch.float32) / 10
    distance = torch.linalg.vector_norm((predicted - wanted) / size, dim=2)
    return ((distance < threshold) & counted).sum(), counted.sum()


def _maxima(heatmaps: torch.Tensor) -> torch.Tensor:
    """(B, J, 2) x, y in cells; 0, 0 where no value is above 0."""
    # NumPy's search is many times as fast as PyTorch's there
    if heatmaps.device.type == "cpu" and heatmaps.dtype == torch.float32:
        return _where_any(*map(torch.from_numpy, find_maxima(heatmaps.detach().numpy())))
    values, index = heatmaps.flatten(2).max(dim=2)
    width = heatmaps.shape[3]
    return _where_any(torch.stack([index % width, index // width], dim=2), values)


def _where_any(cells: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return cells.float() * (values > 0)[:, :, None]
