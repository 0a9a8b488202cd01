"""The codec of HRNet: a Gaussian around the keypoint's cell, decoded with a quarter-cell offset.

Source: Xiao et al., Simple Baselines, ECCV 2018, section 2; code lib/dataset/JointsDataset.py
generate_target and lib/core/inference.py of microsoft/human-pose-estimation.pytorch, unchanged in
HRNet. Figures: tests/golden/pipeline.json.
"""

from __future__ import annotations

import dataclasses

import torch

from poise.codecs.heatmap import HeatmapCodec, HeatmapTargets


class Gaussian(HeatmapCodec):
    """Gaussians with peak 1 in the keypoint's cell, cut off at 3 sigma."""

    def encode(self, keypoints: torch.Tensor, visible: torch.Tensor) -> HeatmapTargets:
        """See Codec. The weight is also 0 if the Gaussian is outside of the map."""
        cell, inside = nearest_cell(
            keypoints / keypoints.new_tensor(self.stride), self.heatmap_size, self.sigma
        )
        targets = draw(cell, cell, visible, inside, self.heatmap_size, self.sigma)
        # a square that ends right before the first cell is inside, as in the original, but its map
        # is empty
        low, high = _reach(cell, self.sigma)
        size = cell.new_tensor(self.heatmap_size)
        drawn = ((low < size) & (high > 0)).all(dim=2, keepdim=True) * targets.weight
        return dataclasses.replace(
            targets, peaks=torch.minimum(cell.clamp(min=0), size - 1) * drawn
        )


def nearest_cell(
    position: torch.Tensor, size: tuple[int, int], sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cells of positions and whether the Gaussian's square of 3 sigma touches the map.

    int(x + 0.5) of the original rounds towards zero, so that -0.7 is cell 0: trunc, not floor or
    round.

    Args:
        position: (B, K, 2) in cells.
        size: (w, h) of the map.
        sigma: in cells.

    Returns:
        Cells (B, K, 2), and (B, K) bool.
    """
    cell = torch.trunc(position + 0.5)
    low, high = _reach(cell, sigma)
    return cell, ((low < cell.new_tensor(size)) & (high >= 0)).all(dim=2)


def draw(
    center: torch.Tensor,
    cell: torch.Tensor | None,
    visible: torch.Tensor,
    inside: torch.Tensor,
    size: tuple[int, int],
    sigma: float,
) -> HeatmapTargets:
    """Return the targets of Gaussians.

    Args:
        center: (B, K, 2) in cells.
        cell: (B, K, 2), from which the Gaussians are cut off at 3 sigma; None: no cutoff.
        visible: (B, K) of COCO's visibility flag.
        inside: (B, K) bool; the weight of others is 0.
        size: (w, h) of the map.
        sigma: in cells.
    """
    weight = ((visible > 0) & inside).float()

    def axis_profile(count: int, axis: int) -> torch.Tensor:
        """Return the Gaussian's values along one axis, (B, K, count)."""
        positions = torch.arange(count, device=center.device, dtype=center.dtype)
        values = torch.exp(-(positions - center[:, :, axis, None]).square() / (2 * sigma**2))
        if cell is None:
            return values
        low, high = _reach(cell[:, :, axis, None], sigma)
        return values * ((positions >= low) & (positions < high))

    # a 2D Gaussian is the outer product of two 1D ones; unlabeled keypoints have empty maps, as in
    # the original
    columns = axis_profile(size[0], 0) * weight[:, :, None]
    heatmaps = axis_profile(size[1], 1)[:, :, :, None] * columns[:, :, None, :]
    return HeatmapTargets(
        heatmaps=heatmaps,
        weight=weight[:, :, None],
        visible_mask=weight[:, :, None] * (visible > 1)[:, :, None],
    )


def _reach(cell: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.trunc(cell - 3 * sigma), torch.trunc(cell + 3 * sigma + 1)
