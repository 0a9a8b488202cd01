"""UDP: sizes are measured between the centers of the outer pixels, in encoding and decoding.

A crop of W pixels and a heatmap of w cells are W - 1 and w - 1 long, so that cell 0 is pixel 0 and
cell w - 1 is pixel W - 1. The heatmap of a flipped crop is then the flipped heatmap, and the flip
test needs no shift. Source: Huang, Zhu, Guo, Huang: The Devil is in the Details, CVPR 2020, arXiv
1911.07524, sections 3.1 (unbiased data processing) and 3.2; mmpose 0.29 with use_udp and
target_type GaussianHeatmap. The offset maps of its second target type are not implemented.
"""

from __future__ import annotations

import torch

from poise.codecs.gaussian import draw, nearest_cell
from poise.codecs.heatmap import HeatmapCodec, HeatmapTargets


class Udp(HeatmapCodec):
    """Gaussians around the exact position, cut off at 3 sigma from its cell."""

    udp = True
    flip_aligned = True
    default_refinement = "udp"

    @property
    def stride(self) -> tuple[float, float]:
        width, height = (
            (image - 1) / max(heatmap - 1, 1)
            for image, heatmap in zip(self.image_size, self.heatmap_size)
        )
        return width, height

    def encode(self, keypoints: torch.Tensor, visible: torch.Tensor) -> HeatmapTargets:
        """See Codec. The weight is also 0 if the Gaussian is outside of the map."""
        center = keypoints / keypoints.new_tensor(self.stride)
        cell, inside = nearest_cell(center, self.heatmap_size, self.sigma)
        return draw(center, cell, visible, inside, self.heatmap_size, self.sigma)
