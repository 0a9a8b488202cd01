"""The linear head of SimCC after a network's map of each keypoint.

Source: Li et al., SimCC, ECCV 2022, arXiv 2107.03332, section 3.1; mmpose 1.x
models/heads/coord_cls_heads/simcc_head.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode


@dataclass(frozen=True)
class AxisOptions:
    """Options of SimCCHead.

    Args:
        map_size: (w, h) of the maps before the layers.
        bins: number of outputs in x and y.
    """

    map_size: tuple[int, int]
    bins: tuple[int, int]


class SimCCHead(nn.Module):
    """Linear layers on each keypoint's map.

    Maps (B, K, h, w) -> (B, K, bins of x) and (B, K, bins of y).
    """

    def __init__(self, options: AxisOptions):
        super().__init__()
        cells = options.map_size[0] * options.map_size[1]
        self.mlp_head_x = nn.Linear(cells, options.bins[0])
        self.mlp_head_y = nn.Linear(cells, options.bins[1])

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = maps.flatten(2)
        return self.mlp_head_x(cells), self.mlp_head_y(cells)

    def init_weights(self) -> None:
        """Draw weights from Normal(0, 0.01) and set biases to 0, as mmpose does."""
        for layer in (self.mlp_head_x, self.mlp_head_y):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


def axes_from_config(cfg: CfgNode) -> AxisOptions | None:
    """Return the options of MODEL.EXTRA.HEAD simcc; None for other heads."""
    if cfg.MODEL.EXTRA.get("HEAD") != "simcc":
        return None
    width, height = (round(side * cfg.MODEL.SIMCC_SPLIT_RATIO) for side in cfg.MODEL.IMAGE_SIZE)
    return AxisOptions(tuple(cfg.MODEL.HEATMAP_SIZE), (width, height))
