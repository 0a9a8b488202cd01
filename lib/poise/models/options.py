"""What the options of a network may be: sizes of its input and output, and kinds of the values
of MODEL.EXTRA.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from yacs.config import CfgNode

from poise.errors import ConfigError


def check_sizes(cfg: CfgNode, stride: int, multiple: int = 32) -> None:
    """Raise ConfigError unless width and height of MODEL.IMAGE_SIZE are multiples of `multiple`
    and of MODEL.HEATMAP_SIZE 1/stride of them.
    """
    images, heatmaps = cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE
    if any(
        image % multiple or heatmap * stride != image for image, heatmap in zip(images, heatmaps)
    ):
        raise ConfigError(
            f"MODEL.IMAGE_SIZE {list(images)} and MODEL.HEATMAP_SIZE {list(heatmaps)}:"
            f" {cfg.MODEL.NAME} takes multiples of {multiple} and gives heatmaps of 1/{stride} of"
            " them"
        )


def check_extra(cfg: CfgNode, known: Sequence[str]) -> None:
    """Raise ConfigError for a key of MODEL.EXTRA that the network does not read."""
    for key in cfg.MODEL.EXTRA:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=2) or known
            raise ConfigError(
                f"MODEL.EXTRA.{key} is not a key of {cfg.MODEL.NAME}; the nearest known keys are"
                f" {', '.join(close)}"
            )


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number; True and False, which are ints in Python, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a number."""
    return is_whole(value) or isinstance(value, float)


def is_channels(value: Any) -> bool:
    """Whether `value` is a list of whole numbers above 0."""
    return isinstance(value, (list, tuple)) and all(is_whole(v) and v > 0 for v in value)
