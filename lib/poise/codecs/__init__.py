"""Keypoints to heatmaps and back: one file per convention, encode and decode side by side.

CODECS maps MODEL.TARGET_TYPE to its class; build_codec makes the one that a configuration
describes.
"""

from __future__ import annotations

from yacs.config import CfgNode

from poise.codecs.codec import Codec, Targets
from poise.codecs.dark import Dark
from poise.codecs.flip import merge_flipped
from poise.codecs.gaussian import Gaussian
from poise.codecs.megvii import Megvii
from poise.codecs.peaks import dark_kernel
from poise.codecs.udp import Udp

_MEGVII_BLUR = 5

CODECS: dict[str, type[Codec]] = {"gaussian": Gaussian, "dark": Dark, "udp": Udp, "megvii": Megvii}

__all__ = ["CODECS", "Codec", "Targets", "build_codec", "merge_flipped"]


def build_codec(cfg: CfgNode) -> Codec:
    """The codec of MODEL.TARGET_TYPE, decoding as TEST.POST_PROCESS, TEST.DECODE and
    TEST.BLUR_KERNEL say.
    """
    kind, m, t = CODECS[cfg.MODEL.TARGET_TYPE], cfg.MODEL, cfg.TEST
    own = {"kernels": tuple(m.KERNELS)} if kind is Megvii else {}
    refine = (t.DECODE or kind.own_refine) if t.POST_PROCESS else "none"
    # the blur that MSPN's experiments give for MSPN's way of decoding says nothing about another
    # way
    given = t.BLUR_KERNEL if kind is not Megvii or refine == "megvii" else 0
    blur = given or (_MEGVII_BLUR if refine == "megvii" else dark_kernel(m.SIGMA))
    return kind(
        image_size=tuple(m.IMAGE_SIZE),
        heatmap_size=tuple(m.HEATMAP_SIZE),
        sigma=m.SIGMA,
        refine=refine,
        blur_kernel=blur,
        empty_cell=t.EMPTY_CELL,
        **own,
    )
