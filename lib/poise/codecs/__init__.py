"""Codecs convert keypoints to what networks learn, and outputs back. One file per convention.

The registries hold paths instead of classes: reading a configuration needs the names only, and
would take several times as long if it imported PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from yacs.config import CfgNode

if TYPE_CHECKING:
    from torch import nn

    from poise.codecs.codec import Codec


class CodecEntry(NamedTuple):
    """An entry of CODECS.

    Args:
        path: module and class of the codec.
        losses: values of LOSS.TYPE that can train it.
        head: value of MODEL.EXTRA.HEAD that gives its outputs.
    """

    path: str
    losses: tuple[str, ...] = ("joints_mse",)
    head: str = "heatmap"


# MODEL.TARGET_TYPE
CODECS = {
    "gaussian": CodecEntry("poise.codecs.gaussian.Gaussian"),
    "dark": CodecEntry("poise.codecs.dark.Dark"),
    "udp": CodecEntry("poise.codecs.udp.Udp"),
    "megvii": CodecEntry("poise.codecs.megvii.Megvii", ("joints_mse", "mspn")),
    "simcc": CodecEntry("poise.codecs.simcc.SimCC", ("kl_discret",), head="simcc"),
}

# LOSS.TYPE -> the function that builds the loss from a configuration
LOSSES = {
    "joints_mse": "poise.codecs.losses.joints_mse_from_config",
    "mspn": "poise.codecs.losses.mspn_from_config",
    "kl_discret": "poise.codecs.simcc.kl_discret_from_config",
}


def build_codec(cfg: CfgNode) -> Codec:
    """Build the codec of MODEL.TARGET_TYPE with the loss of LOSS.TYPE."""
    return codec_class(cfg.MODEL.TARGET_TYPE).from_config(cfg, build_loss(cfg))


def codec_class(name: str) -> type[Codec]:
    """Return the class of a key of CODECS."""
    return _import(CODECS[name].path)


def build_loss(cfg: CfgNode) -> nn.Module:
    """Build the loss of LOSS.TYPE, a function of the supervised outputs and the targets."""
    return _import(LOSSES[cfg.LOSS.TYPE])(cfg)


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
