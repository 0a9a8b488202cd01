"""The HRNet family's codec: one Gaussian per joint, the maximum moved a quarter cell.

Legend: B batch, J joints, h w heatmap cells; stride = input pixels per cell.
Source: Xiao et al., Simple Baselines, ECCV 2018, section 2; code lib/dataset/JointsDataset.py generate_target and
lib/core/inference.py of microsoft/human-pose-estimation.pytorch, unchanged in HRNet. Figures: tests/golden/pipeline.json.
"""
from __future__ import annotations

import numpy as np
import torch


def encode(joints: torch.Tensor, visible: torch.Tensor, image_size, heatmap_size, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw target heatmaps on the device of `joints`.

    joints: (B, J, 2) crop pixels. visible: (B, J), 0 where a joint has no label. Sizes are (width, height).
    Returns heatmaps (B, J, h, w) float32 with peak 1, cut off at 3 sigma, and weights (B, J, 1): `visible`, and 0 where the
    whole Gaussian falls outside.
    """
    width, height = heatmap_size
    stride = joints.new_tensor([image_size[0] / width, image_size[1] / height])
    # int(x + 0.5) of the original cuts towards zero, so that -0.7 is cell 0; trunc, not floor or round
    cell = torch.trunc(joints / stride + 0.5)
    reach = 3 * sigma
    low, high = torch.trunc(cell - reach), torch.trunc(cell + reach + 1)
    bounds = joints.new_tensor([width, height])
    inside = ((low < bounds) & (high >= 0)).all(dim=2)
    weight = visible * inside

    def axis_profile(count: int, axis: int) -> torch.Tensor:
        """(B, J, count): the Gaussian's values along one axis."""
        positions = torch.arange(count, device=joints.device, dtype=joints.dtype)
        offset = positions - cell[:, :, axis, None]
        values = torch.exp(-offset.square() / (2 * sigma**2))
        return values * ((positions >= low[:, :, axis, None]) & (positions < high[:, :, axis, None]))

    # a 2D Gaussian is the outer product of two 1D ones; without a label the map stays empty, as in the original
    columns = axis_profile(width, 0) * (weight > 0.5)[:, :, None]
    heatmaps = axis_profile(height, 1)[:, :, :, None] * columns[:, :, None, :]
    return heatmaps, weight[:, :, None]


def decode(heatmaps: np.ndarray, post_process: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Joints from heatmaps.

    heatmaps: (B, J, h, w) float32. Returns coordinates (B, J, 2) float32 in cells and scores (B, J), the maxima. A map whose
    maximum is not above 0 gives (0, 0). post_process: a quarter cell towards the higher neighbour on each axis, for maxima
    that are at least two cells from the border (the original's rule).
    """
    batch, joints, height, width = heatmaps.shape
    flat = np.ascontiguousarray(heatmaps).reshape(batch, joints, -1)
    index = flat.argmax(axis=2)
    scores = np.take_along_axis(flat, index[:, :, None], axis=2)[:, :, 0]
    row, column = np.divmod(index, width)
    positive = scores > 0
    row, column = row * positive, column * positive
    coords = np.stack([column, row], axis=2).astype(np.float32)
    if post_process:
        inner = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)
        at = np.where(inner, row * width + column, width + 1 if flat.shape[2] > 2 * width + 1 else 0)

        def neighbour(offset: int) -> np.ndarray:
            return np.take_along_axis(flat, np.clip(at + offset, 0, flat.shape[2] - 1)[:, :, None], axis=2)[:, :, 0]

        step = np.stack([np.sign(neighbour(1) - neighbour(-1)), np.sign(neighbour(width) - neighbour(-width))], axis=2)
        coords += 0.25 * step * inner[:, :, None]
    return coords, scores
