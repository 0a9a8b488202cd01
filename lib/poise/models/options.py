"""Check options of networks and convert MODEL.EXTRA to keyword arguments."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from yacs.config import CfgNode

from poise.codecs import CODECS
from poise.errors import ConfigError


class OptionError(ValueError):
    """A keyword argument of a network is invalid; the message begins with its name."""


@contextmanager
def translate_option_errors(
    keys: Mapping[str, str], prefix: str = "MODEL.EXTRA."
) -> Iterator[None]:
    """Raise an OptionError of the block as a ConfigError that names the configuration key.

    Args:
        keys: configuration key -> keyword argument.
        prefix: group of the keys.
    """
    try:
        yield
    except OptionError as error:
        keyword = re.split(r"\W", str(error), maxsplit=1)[0]
        key = next((key for key, name in keys.items() if name == keyword), keyword)
        raise ConfigError(f"{prefix}{key}{str(error)[len(keyword) :]}") from error


def select_keywords(group: CfgNode, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the keyword arguments that a group sets; `keys` maps its keys to them."""
    return {keyword: group[key] for key, keyword in keys.items() if key in group}


def check_extra(cfg: CfgNode, known: Iterable[str]) -> None:
    """Raise ConfigError for a key of MODEL.EXTRA that the network does not have."""
    known = tuple(known)
    for key in cfg.MODEL.EXTRA:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=2) or known
            raise ConfigError(
                f"MODEL.EXTRA.{key} is not a key of {cfg.MODEL.NAME}; the nearest known keys are"
                f" {', '.join(close)}"
            )


def check_sizes(cfg: CfgNode, stride: int, multiple: int = 32) -> None:
    """Raise ConfigError if MODEL.IMAGE_SIZE or MODEL.HEATMAP_SIZE do not fit the network.

    Args:
        cfg: the configuration.
        stride: input pixels per heatmap cell.
        multiple: width and height of the image must be multiples of this.
    """
    image_size = cfg.MODEL.IMAGE_SIZE
    heatmap_size = cfg.MODEL.HEATMAP_SIZE
    for image, heatmap in zip(image_size, heatmap_size):
        if image % multiple or heatmap * stride != image:
            raise ConfigError(
                f"MODEL.IMAGE_SIZE {list(image_size)} and MODEL.HEATMAP_SIZE {list(heatmap_size)}:"
                f" {cfg.MODEL.NAME} takes multiples of {multiple} and gives heatmaps of 1/{stride}"
                " of them"
            )


def check_head(cfg: CfgNode) -> None:
    """Raise ConfigError unless the network's head gives what MODEL.TARGET_TYPE decodes."""
    head = cfg.MODEL.EXTRA.get("HEAD", "heatmap")
    required = CODECS[cfg.MODEL.TARGET_TYPE].head
    if head != required:
        raise ConfigError(
            f"MODEL.EXTRA.HEAD: MODEL.TARGET_TYPE {cfg.MODEL.TARGET_TYPE} needs {required!r}, got"
            f" {head!r}; set it, or another MODEL.TARGET_TYPE"
        )


def is_int(value: Any) -> bool:
    """Return whether `value` is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether `value` is an int or float and not a bool."""
    return is_int(value) or isinstance(value, float)


def is_positive_ints(value: Any) -> bool:
    """Return whether `value` is a list of ints above 0."""
    return isinstance(value, (list, tuple)) and all(is_int(v) and v > 0 for v in value)
