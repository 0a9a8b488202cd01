"""What MODEL.IMAGE_SIZE and MODEL.HEATMAP_SIZE a network can have."""
from __future__ import annotations

from yacs.config import CfgNode

from poise.errors import ConfigError


def check_sizes(cfg: CfgNode, stride: int, multiple: int = 32) -> None:
    """Raise ConfigError unless width and height of MODEL.IMAGE_SIZE are multiples of `multiple` and of MODEL.HEATMAP_SIZE 1/stride of them."""
    images, heatmaps = cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE
    if any(image % multiple or heatmap * stride != image for image, heatmap in zip(images, heatmaps)):
        raise ConfigError(f"MODEL.IMAGE_SIZE {list(images)} and MODEL.HEATMAP_SIZE {list(heatmaps)}: {cfg.MODEL.NAME} takes multiples of {multiple} "
                          f"and gives heatmaps of 1/{stride} of them")
