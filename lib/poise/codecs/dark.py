"""DARK: Gaussians around the keypoint instead of its cell, and a decoder that finds their maximum.

Source: Zhang et al., Distribution-Aware Coordinate Representation for Human Pose Estimation, CVPR
2020, arXiv 1910.06278: encoding in section 3.2, decoding in section 3.1; mmpose 0.29 with
unbiased_encoding and post_process 'unbiased'. Its decoder also works for networks trained with
other Gaussians: TEST.DECODE dark.
"""

from __future__ import annotations

import torch

from poise.codecs.gaussian import draw
from poise.codecs.heatmap import HeatmapCodec, HeatmapTargets


class Dark(HeatmapCodec):
    """Gaussians around the exact position, without a cutoff."""

    default_refinement = "dark"

    def encode(self, keypoints: torch.Tensor, visible: torch.Tensor) -> HeatmapTargets:
        """See Codec. The weight is also 0 if no cell is within 3 sigma of the keypoint."""
        center = keypoints / keypoints.new_tensor(self.stride)
        reach = 3 * self.sigma
        inside = (
            (center - reach < center.new_tensor(self.heatmap_size)) & (center + reach + 1 >= 0)
        ).all(dim=2)
        return draw(center, None, visible, inside, self.heatmap_size, self.sigma)
