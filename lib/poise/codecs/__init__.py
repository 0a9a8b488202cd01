"""Keypoints to heatmaps and back: one file per convention, encode and decode side by side.

CODECS maps MODEL.TARGET_TYPE to a module with `encode` and `decode`.
"""
from poise.codecs import gaussian
from poise.codecs.flip import merge_flipped

CODECS = {"gaussian": gaussian}

__all__ = ["CODECS", "gaussian", "merge_flipped"]
