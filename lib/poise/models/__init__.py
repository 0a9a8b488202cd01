"""The pose networks, one file each; MODELS maps MODEL.NAME to a builder.

In eval mode a network maps images (B, 3, H, W) to heatmaps (B, J, h, w); in train mode to a tuple
of every supervised output, the prediction last. State-dict keys and shapes are those of the
family's released checkpoints.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models import moganet, mspn, pose_hrnet, pose_res2net, pose_resnet, simple_baseline
from poise.models.options import check_extra
from poise.models.posenas import network

# MODEL.NAME -> (builder, the keys of MODEL.EXTRA that it reads)
MODELS: dict[str, tuple[Callable[[CfgNode], nn.Module], tuple[str, ...]]] = {
    "pose_resnet": (pose_resnet.build, simple_baseline.EXTRA_KEYS),
    "pose_res2net": (pose_res2net.build_v1, simple_baseline.EXTRA_KEYS),
    "pose_res2net_v1b": (pose_res2net.build_v1b, simple_baseline.EXTRA_KEYS),
    "posenas": (network.build, network.EXTRA_KEYS),
    "moganet": (moganet.build, moganet.EXTRA_KEYS),
    "pose_hrnet": (pose_hrnet.build, pose_hrnet.EXTRA_KEYS),
    "mspn": (mspn.build, mspn.EXTRA_KEYS),
}


def build_model(cfg: CfgNode) -> nn.Module:
    """The network that MODEL.* describes, initialised as its family does when MODEL.INIT_WEIGHTS is
    true.

    Weights files are not read here: poise.models.weights does. Raises ConfigError for an unknown
    network or MODEL.EXTRA key.
    """
    name = cfg.MODEL.NAME
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"MODEL.NAME {name!r} is not a network of Poise ({', '.join(MODELS)}){hint}"
        )
    builder, known = MODELS[name]
    check_extra(cfg, known)
    return builder(cfg)
