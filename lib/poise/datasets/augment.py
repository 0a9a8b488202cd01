"""Augmentation: where a training sample is cut out. The pixels are moved elsewhere, once.

The recipes of HRNet, mmpose 0.29 (MogaNet) and MSPN are settings of one way: margin, centre shift,
half body, size, rotation, mirror. Their own orders differ only in the mirror, which mmpose does
before the half body and the others last; both mirror the picture before it is turned, and neither
the half body nor the size knows left from right, so equal draws give equal crops.

Sources: HRNet lib/dataset/JointsDataset.py; mmpose 0.29
mmpose/datasets/pipelines/top_down_transform.py; MSPN dataset/JointsDataset.py. Figures:
tests/golden/mmpose_functions.json. Every draw comes from the sample's own generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from yacs.config import CfgNode

from poise.structures.crops import PIXEL_STD, box_wh_to_scale, fix_aspect_ratio
from poise.structures.skeleton import Skeleton

HALF_BODY_MARGIN = 1.5


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings of DATASET.*: see poise.config.defaults for their meaning.

    The defaults are those of HRNet on COCO.
    """

    flip: bool = True
    scale_factor: float = 0.35
    rotation_factor: float = 45.0
    half_body_prob: float = 0.3
    half_body_joints: int = 8
    half_body_rule: str = "hrnet"
    half_body_margin_random: tuple[float, float] = (0.0, 0.0)
    distribution: str = "normal"
    scale_multiplier: float = 1.0
    rotation_prob: float = 0.6
    margin: tuple[float, float] = (1.25, 1.25)
    margin_random: tuple[float, float] = (0.0, 0.0)
    shift_prob: float = 0.0
    shift: float = 0.0

    def sample(
        self,
        rng: np.random.Generator,
        center: np.ndarray,
        scale: np.ndarray,
        joints: np.ndarray,
        visible: np.ndarray,
        skeleton: Skeleton,
        aspect: float,
        extent: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float, bool]:
        """New (center (2,), scale (2,), rotation in degrees, mirrored) of a person with joints (J,
        2) and visible (J,).

        extent: box width and height in pixels, which `scale` was made from; needed only where the
        margin is drawn.
        """
        if any(self.margin_random):
            scale = box_wh_to_scale(
                extent, aspect, np.array(self.margin) * (1 + rng.random(2) * self.margin_random)
            )
        if rng.random() < self.shift_prob if self.shift_prob else False:
            center = shift_center(center, scale, rng.uniform(-1, 1, 2) * self.shift)
        if (
            np.count_nonzero(visible > 0) > self.half_body_joints
            and rng.random() < self.half_body_prob
        ):
            center, scale = self._half_body(rng, joints, visible, skeleton, aspect) or (
                center,
                scale,
            )
        if self.distribution == "uniform":
            scale = scale * (
                self.scale_multiplier * rng.uniform(1 - self.scale_factor, 1 + self.scale_factor)
            )
            rotation = (
                rng.uniform(-self.rotation_factor, self.rotation_factor)
                if rng.random() < self.rotation_prob
                else 0.0
            )
        else:
            scale = scale * (
                self.scale_multiplier * clipped_factor(rng.standard_normal(), self.scale_factor)
            )
            rotation = (
                clipped_rotation(rng.standard_normal(), self.rotation_factor)
                if rng.random() <= self.rotation_prob
                else 0.0
            )
        return center, scale, float(rotation), bool(self.flip and rng.random() <= 0.5)

    def _half_body(self, rng, joints, visible, skeleton, aspect):
        # HRNet, mmpose and MSPN all draw with randn() < 0.5, so 69 of 100 prefer the upper half;
        # their published numbers come from that
        prefer_upper = rng.standard_normal() < 0.5
        if self.half_body_rule == "mspn":
            return half_body_extent(
                joints,
                visible,
                skeleton,
                aspect,
                prefer_upper,
                1 + rng.random(2) * self.half_body_margin_random,
            )
        return half_body(joints, visible, skeleton, aspect, prefer_upper)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Augmentation:
        """Return the settings of DATASET.*."""
        d = cfg.DATASET
        return cls(
            flip=d.FLIP,
            scale_factor=d.SCALE_FACTOR,
            rotation_factor=d.ROT_FACTOR,
            half_body_prob=d.PROB_HALF_BODY,
            half_body_joints=d.NUM_JOINTS_HALF_BODY,
            half_body_rule=d.HALF_BODY,
            half_body_margin_random=tuple(d.HALF_BODY_MARGIN_RANDOM),
            distribution=d.AUGMENT_DRAW,
            scale_multiplier=d.SCALE_SHRINK,
            rotation_prob=d.PROB_ROTATION,
            margin=tuple(d.BOX_MARGIN),
            margin_random=tuple(d.BOX_MARGIN_RANDOM),
            shift_prob=d.PROB_CENTER_SHIFT,
            shift=d.CENTER_SHIFT,
        )


def shift_center(center: np.ndarray, scale: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The centre (2,) moved by a share (2,) of the box's size. Source: mmpose 0.29
    TopDownRandomShiftBboxCenter.
    """
    return (
        np.asarray(center, dtype=np.float64)
        + share * np.asarray(scale, dtype=np.float64) * PIXEL_STD
    )


def clipped_factor(normal: float, limit: float) -> float:
    """The size factor of a draw from the standard normal distribution: 1 + limit * draw, within
    1 - limit and 1 + limit.
    """
    return float(min(max(1 + limit * normal, 1 - limit), 1 + limit))


def clipped_rotation(normal: float, factor: float) -> float:
    """Degrees of a draw from the standard normal distribution: factor * draw, within twice the
    factor.
    """
    return float(min(max(factor * normal, -2 * factor), 2 * factor))


def half_body(
    joints: np.ndarray, visible: np.ndarray, skeleton: Skeleton, aspect: float, prefer_upper: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and scale around the labelled joints of one half of the body, or None where too few
    are labelled.

    The centre is the joints' mean; the half that is not preferred is taken where the other has less
    than three joints. Source: HRNet and mmpose 0.29, half_body_transform.
    """
    halves = [
        joints[half]
        for half in _halves(visible, skeleton.upper_body, _others(skeleton.upper_body, len(joints)))
    ]
    if prefer_upper and len(halves[0]) > 2:
        chosen = halves[0]
    else:
        chosen = halves[1] if len(halves[1]) > 2 else halves[0]
    if len(chosen) < 2:
        return None
    width, height = fix_aspect_ratio(*np.ptp(chosen, axis=0).astype(np.float64), aspect)
    if width <= 0:  # all joints in one point; HRNet would divide by 0
        return None
    return chosen.mean(axis=0).astype(np.float64), np.array([width, height]) * (
        HALF_BODY_MARGIN / PIXEL_STD
    )


def half_body_extent(
    joints: np.ndarray,
    visible: np.ndarray,
    skeleton: Skeleton,
    aspect: float,
    prefer_upper: bool,
    margin: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The same by MSPN's rule: four joints make a half, the centre is the middle of their extent,
    which grows by `margin` (2,).

    In MSPN the hips of COCO belong to both halves. Source: MSPN dataset/JointsDataset.py.
    """
    upper = (*skeleton.upper_body, *skeleton.shared_body)
    halves = [
        joints[half] for half in _halves(visible, upper, _others(skeleton.upper_body, len(joints)))
    ]
    if prefer_upper and len(halves[0]) > 3:
        chosen = halves[0]
    else:
        chosen = halves[1] if len(halves[1]) > 3 else halves[0]
    if len(chosen) < 3:
        return None
    low, high = chosen.min(axis=0).astype(np.float64), chosen.max(axis=0).astype(np.float64)
    if (high <= low).all():
        return None
    return (low + high) / 2, box_wh_to_scale(high - low, aspect, margin)


def _others(indices, count: int) -> list[int]:
    return [j for j in range(count) if j not in indices]


def _halves(visible: np.ndarray, upper, lower) -> tuple[np.ndarray, np.ndarray]:
    """The labelled joints of the upper and of the lower half, each as a mask (J,)."""
    masks = []
    for members in (upper, lower):
        mask = np.zeros(len(visible), dtype=bool)
        mask[list(members)] = True
        masks.append(mask & (visible > 0))
    return masks[0], masks[1]
