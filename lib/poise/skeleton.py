"""Joint names, mirror pairs, limbs and OKS sigmas of the joint sets.

The orders are those of the annotation files: COCO (Lin et al., 2014; person_keypoints_*.json) and MPII
(Andriluka et al., 2014; the json files of SimpleBaseline and HRNet).
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Skeleton:
    """A joint set of J joints.

    names: J joint names. flip_pairs: index pairs that a mirror swaps. limbs: index pairs to draw as bones.
    upper_body: joints that half-body augmentation treats as the upper half. both_halves: joints that MSPN counts in both. sigmas: J OKS constants, relative to
    the square root of the object's area (half of the k of the COCO server). weights: J loss weights of
    LOSS.USE_DIFFERENT_JOINTS_WEIGHT.
    """

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]
    upper_body: tuple[int, ...]
    both_halves: tuple[int, ...]
    sigmas: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def num_joints(self) -> int:
        return len(self.names)

    @property
    def flip_order(self) -> np.ndarray:
        """(J,) int64: joint j of a mirrored person is joint flip_order[j] of the original one."""
        order = np.arange(self.num_joints)
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return order

    def side(self, joint: int) -> int:
        """-1 for a joint on the person's left, 1 on the right, 0 on the axis."""
        name = self.names[joint]
        return -1 if name.startswith("left") else 1 if name.startswith("right") else 0


COCO = Skeleton(
    name="coco",
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    limbs=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    upper_body=tuple(range(11)),
    both_halves=(11, 12),
    sigmas=(.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089),
    weights=(1, 1, 1, 1, 1, 1, 1, 1.2, 1.2, 1.5, 1.5, 1, 1, 1.2, 1.2, 1.5, 1.5),
)

MPII = Skeleton(
    name="mpii",
    names=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
        "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
        "left_wrist",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    limbs=(
        (0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (7, 12), (12, 11), (11, 10), (7, 13),
        (13, 14), (14, 15),
    ),
    upper_body=(7, 8, 9, 10, 11, 12, 13, 14, 15),
    both_halves=(),
    # MPII is scored by PCKh and publishes no OKS constants. Ours, for where an OKS is asked for: COCO's figure of the
    # same joint, hip's for the pelvis, shoulder's for thorax and neck, ear's for the head top
    sigmas=(.089, .087, .107, .107, .087, .089, .107, .079, .079, .035, .062, .072, .079, .079, .072, .062),
    weights=(1.5, 1.2, 1, 1, 1.2, 1.5, 1, 1, 1, 1, 1.5, 1.2, 1, 1, 1.2, 1.5),
)

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO, MPII)}
