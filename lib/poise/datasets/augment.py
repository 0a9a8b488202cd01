"""Sample the crop parameters of a training sample: center, scale, rotation and flip.

The recipes of HRNet, mmpose 0.29 (MogaNet) and MSPN are settings of one procedure: margin, center
shift, half body, scale, rotation, flip. Their own orders differ only in the flip, which mmpose does
before the half body and the others last. All of them flip the image before they rotate it, and
neither half body nor scale depends on left and right, so equal random numbers give equal crops.

Sources: HRNet lib/dataset/JointsDataset.py; mmpose 0.29
mmpose/datasets/pipelines/top_down_transform.py; MSPN dataset/JointsDataset.py. Recorded outputs:
tests/golden/mmpose_functions.json. All random numbers come from the sample's own generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from yacs.config import CfgNode

from poise.structures.crops import PIXEL_STD, box_wh_to_scale, fix_aspect_ratio
from poise.structures.skeleton import Skeleton

HALF_BODY_MARGIN = 1.5


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings of DATASET.*, described in poise.config.defaults.

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
        keypoints: np.ndarray,
        visibility: np.ndarray,
        skeleton: Skeleton,
        aspect: float,
        box_wh: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float, bool]:
        """Sample the crop of a person.

        Args:
            rng: The generator of the sample.
            center: (2,) Pixels.
            scale: (2,) In units of 200 pixels.
            keypoints: (K, 2) Pixels.
            visibility: (K,).
            skeleton: The keypoint set.
            aspect: Width / height of the crop.
            box_wh: (2,) Width and height of the box without margin, needed with `margin_random`.

        Returns:
            Center (2,), scale (2,), rotation in degrees, and whether the crop is flipped.
        """
        if any(self.margin_random):
            assert box_wh is not None
            margin = np.array(self.margin) * (1 + rng.random(2) * self.margin_random)
            scale = box_wh_to_scale(box_wh, aspect, margin)
        if self.shift_prob and rng.random() < self.shift_prob:
            center = shift_center(center, scale, rng.uniform(-1, 1, 2) * self.shift)
        has_enough = np.count_nonzero(visibility > 0) > self.half_body_joints
        if has_enough and rng.random() < self.half_body_prob:
            crop = self._half_body(rng, keypoints, visibility, skeleton, aspect)
            center, scale = crop or (center, scale)
        factor, rotation = self._sample_scale_and_rotation(rng)
        is_flipped = self.flip and rng.random() <= 0.5
        return center, scale * factor, rotation, bool(is_flipped)

    def _sample_scale_and_rotation(self, rng: np.random.Generator) -> tuple[float, float]:
        rotation = 0.0
        if self.distribution == "uniform":
            factor = rng.uniform(1 - self.scale_factor, 1 + self.scale_factor)
            if rng.random() < self.rotation_prob:
                rotation = float(rng.uniform(-self.rotation_factor, self.rotation_factor))
        else:
            factor = clipped_factor(rng.standard_normal(), self.scale_factor)
            if rng.random() <= self.rotation_prob:
                rotation = clipped_rotation(rng.standard_normal(), self.rotation_factor)
        return self.scale_multiplier * factor, rotation

    def _half_body(
        self,
        rng: np.random.Generator,
        keypoints: np.ndarray,
        visibility: np.ndarray,
        skeleton: Skeleton,
        aspect: float,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        # HRNet, mmpose and MSPN all test randn() < 0.5, so 69 of 100 prefer the upper half; their
        # published numbers come from that
        prefer_upper = rng.standard_normal() < 0.5
        if self.half_body_rule == "mspn":
            margin = 1 + rng.random(2) * self.half_body_margin_random
            return half_body_extent(keypoints, visibility, skeleton, aspect, prefer_upper, margin)
        return half_body(keypoints, visibility, skeleton, aspect, prefer_upper)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Augmentation:
        """Return the settings of DATASET.*."""
        dataset = cfg.DATASET
        return cls(
            flip=dataset.FLIP,
            scale_factor=dataset.SCALE_FACTOR,
            rotation_factor=dataset.ROT_FACTOR,
            half_body_prob=dataset.PROB_HALF_BODY,
            half_body_joints=dataset.NUM_JOINTS_HALF_BODY,
            half_body_rule=dataset.HALF_BODY,
            half_body_margin_random=tuple(dataset.HALF_BODY_MARGIN_RANDOM),
            distribution=dataset.AUGMENT_DRAW,
            scale_multiplier=dataset.SCALE_SHRINK,
            rotation_prob=dataset.PROB_ROTATION,
            margin=tuple(dataset.BOX_MARGIN),
            margin_random=tuple(dataset.BOX_MARGIN_RANDOM),
            shift_prob=dataset.PROB_CENTER_SHIFT,
            shift=dataset.CENTER_SHIFT,
        )


def shift_center(center: np.ndarray, scale: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Return the center (2,) moved by a fraction (2,) of the box's size.

    Source: mmpose 0.29 TopDownRandomShiftBboxCenter.
    """
    shift = fraction * np.asarray(scale, dtype=np.float64) * PIXEL_STD
    return np.asarray(center, dtype=np.float64) + shift


def clipped_factor(normal: float, limit: float) -> float:
    """Return the scale factor 1 + limit * normal, clipped to 1 - limit and 1 + limit."""
    return float(min(max(1 + limit * normal, 1 - limit), 1 + limit))


def clipped_rotation(normal: float, factor: float) -> float:
    """Return the rotation factor * normal in degrees, clipped to twice the factor."""
    return float(min(max(factor * normal, -2 * factor), 2 * factor))


def half_body(
    keypoints: np.ndarray,
    visibility: np.ndarray,
    skeleton: Skeleton,
    aspect: float,
    prefer_upper: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return center (2,) and scale (2,) around the labeled keypoints of one half of the body.

    The center is the mean of the keypoints. A half needs three keypoints to be chosen first, and
    two at all. Returns None if too few are labeled. Source: HRNet and mmpose 0.29,
    half_body_transform.
    """
    lower = _others(skeleton.upper_body, len(keypoints))
    chosen = _choose_half(keypoints, visibility, skeleton.upper_body, lower, prefer_upper, 3)
    if len(chosen) < 2:
        return None
    extent = np.ptp(chosen, axis=0).astype(np.float64)
    width, height = fix_aspect_ratio(extent[0], extent[1], aspect)
    if width <= 0:  # all keypoints in one point; HRNet would divide by 0
        return None
    scale = np.array([width, height]) * (HALF_BODY_MARGIN / PIXEL_STD)
    return chosen.mean(axis=0).astype(np.float64), scale


def half_body_extent(
    keypoints: np.ndarray,
    visibility: np.ndarray,
    skeleton: Skeleton,
    aspect: float,
    prefer_upper: bool,
    margin: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the same by MSPN's rule.

    A half needs four keypoints to be chosen first, and three at all. The center is the middle of
    their extent, which grows by `margin` (2,). In MSPN the hips of COCO belong to both halves.
    Source: MSPN dataset/JointsDataset.py.
    """
    upper = (*skeleton.upper_body, *skeleton.shared_body)
    lower = _others(skeleton.upper_body, len(keypoints))
    chosen = _choose_half(keypoints, visibility, upper, lower, prefer_upper, 4)
    if len(chosen) < 3:
        return None
    low = chosen.min(axis=0).astype(np.float64)
    high = chosen.max(axis=0).astype(np.float64)
    if (high <= low).all():
        return None
    return (low + high) / 2, box_wh_to_scale(high - low, aspect, margin)


def _others(indices: Sequence[int], count: int) -> list[int]:
    return [index for index in range(count) if index not in indices]


def _choose_half(
    keypoints: np.ndarray,
    visibility: np.ndarray,
    upper: Sequence[int],
    lower: Sequence[int],
    prefer_upper: bool,
    min_count: int,
) -> np.ndarray:
    """Return the labeled keypoints of the preferred half, or of the other if it has too few."""
    upper_keypoints = _labeled(keypoints, visibility, upper)
    if prefer_upper and len(upper_keypoints) >= min_count:
        return upper_keypoints
    lower_keypoints = _labeled(keypoints, visibility, lower)
    return lower_keypoints if len(lower_keypoints) >= min_count else upper_keypoints


def _labeled(keypoints: np.ndarray, visibility: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    is_member = np.zeros(len(visibility), dtype=bool)
    is_member[list(indices)] = True
    return keypoints[is_member & (visibility > 0)]
