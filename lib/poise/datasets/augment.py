"""Augmentation of the HRNet family: where a training sample is cut out. The pixels are moved elsewhere, once.

Source: lib/dataset/JointsDataset.py of HRNet. Every draw comes from the sample's own generator.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from yacs.config import CfgNode

from poise.geometry import PIXEL_STD, fit_aspect
from poise.skeleton import Skeleton

HALF_BODY_MARGIN = 1.5
ROTATED_SHARE = 0.6


@dataclass(frozen=True)
class Augmentation:
    """Settings of DATASET.*: see poise.config.default for their meaning."""

    flip: bool
    scale_factor: float
    rotation_factor: float
    half_body_share: float
    half_body_joints: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Augmentation":
        d = cfg.DATASET
        return cls(d.FLIP, d.SCALE_FACTOR, d.ROT_FACTOR, d.PROB_HALF_BODY, d.NUM_JOINTS_HALF_BODY)

    def draw(self, rng: np.random.Generator, center: np.ndarray, scale: np.ndarray, joints: np.ndarray, visible: np.ndarray,
             skeleton: Skeleton, aspect: float) -> tuple[np.ndarray, np.ndarray, float, bool]:
        """New (center (2,), scale (2,), rotation in degrees, mirrored) of a person with joints (J, 2) and visible (J,)."""
        if visible.sum() > self.half_body_joints and rng.random() < self.half_body_share:
            center, scale = half_body(rng, joints, visible, skeleton, aspect) or (center, scale)
        limit, turn = self.scale_factor, self.rotation_factor
        scale = scale * np.clip(1 + limit * rng.standard_normal(), 1 - limit, 1 + limit)
        rotation = float(np.clip(turn * rng.standard_normal(), -2 * turn, 2 * turn)) if rng.random() <= ROTATED_SHARE else 0.0
        return center, scale, rotation, bool(self.flip and rng.random() <= 0.5)


def half_body(rng: np.random.Generator, joints: np.ndarray, visible: np.ndarray, skeleton: Skeleton,
              aspect: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and scale around the labelled joints of one half of the body, or None where too few are labelled.

    The upper half is taken when a draw from a normal distribution is below 0.5, so in 69 of 100 cases: HRNet draws with
    randn, and its published numbers come from that.
    """
    labelled = visible > 0
    upper = np.zeros(len(joints), dtype=bool)
    upper[list(skeleton.upper_body)] = True
    halves = [joints[labelled & upper], joints[labelled & ~upper]]
    prefer_upper = rng.standard_normal() < 0.5
    if prefer_upper and len(halves[0]) > 2:
        chosen = halves[0]
    else:
        chosen = halves[1] if len(halves[1]) > 2 else halves[0]
    if len(chosen) < 2:
        return None
    width, height = fit_aspect(*np.ptp(chosen, axis=0).astype(np.float64), aspect)
    if width <= 0:      # all joints in one point; HRNet would divide by 0
        return None
    return chosen.mean(axis=0).astype(np.float64), np.array([width, height]) * (HALF_BODY_MARGIN / PIXEL_STD)
