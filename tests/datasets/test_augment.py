"""Test augmentation: half-body crops, and probabilities and ranges of each transform."""

from dataclasses import replace

import numpy as np
import pytest
from poise import config
from poise.config.dataset_yaml import COCO, MPII
from poise.datasets.augment import Augmentation, half_body, half_body_extent
from support.paths import ROOT

CENTER, SCALE, ASPECT = np.array([300.0, 200.0]), np.array([1.5, 2.0]), 0.75
HRNET = Augmentation(
    flip=True, scale_factor=0.35, rotation_factor=45.0, half_body_prob=0.0, half_body_joints=8
)


def body(upper=11, lower=6):
    """COCO joints (17, 2) and which are labeled: the first `upper` of the upper half, the first
    `lower` of the lower half.

    The upper half lies in x 100..200, y 50..150, the lower in x 120..160, y 200..400.
    """
    joints = np.zeros((17, 2), np.float32)
    joints[:11] = np.stack([np.linspace(100, 200, 11), np.linspace(50, 150, 11)], axis=1)
    joints[11:] = np.stack([np.linspace(120, 160, 6), np.linspace(200, 400, 6)], axis=1)
    visible = np.zeros(17, np.float32)
    visible[:upper] = visible[11 : 11 + lower] = 1
    return joints, visible


def half(seed, joints, visible):
    return half_body(joints, visible, COCO, ASPECT, prefers_upper(seed))


def prefers_upper(seed):
    return np.random.default_rng(seed).standard_normal() < 0.5


UPPER = next(seed for seed in range(100) if prefers_upper(seed))
LOWER = next(seed for seed in range(100) if not prefers_upper(seed))


def draws(count=4000, *, augmentation, joints=None, visible=None, skeleton=COCO):
    """(centers, scales, rotations, mirrored) of `count` samples, each with a generator of its
    own as in a run.
    """
    joints, visible = (np.zeros((17, 2)), np.zeros(17)) if joints is None else (joints, visible)
    found = [
        augmentation.sample(
            np.random.default_rng((0, 0, i)), CENTER, SCALE, joints, visible, skeleton, ASPECT
        )
        for i in range(count)
    ]
    return [np.array(column) for column in zip(*found)]


# half bodies --------------------------------------------------------------------------------------


def test_half_body_upper_keypoints_give_the_crop():
    joints, visible = body()
    center, scale = half(UPPER, joints, visible)
    assert np.allclose(center, [150, 100])
    # 100 x 100, lengthened to 3:4, half as much again
    assert np.allclose(scale, np.array([100, 100 / 0.75]) * 1.5 / 200)
    center, scale = half(LOWER, joints, visible)
    assert np.allclose(center, [140, 300])
    assert np.allclose(scale, np.array([150, 200]) * 1.5 / 200)  # 40 x 200


def test_half_body_ignores_unlabeled_keypoints():
    joints, visible = body()
    joints[4], visible[4] = [5000, 5000], 0
    labelled = [j for j in range(11) if j != 4]
    assert np.allclose(half(UPPER, joints, visible)[0], joints[labelled].mean(axis=0))


@pytest.mark.parametrize(
    "upper, lower, of_upper_draw, of_lower_draw",
    [
        (11, 6, "upper", "lower"),
        (3, 3, "upper", "lower"),
        (2, 6, "lower", "lower"),  # two joints are too few for the half that was drawn
        (6, 2, "upper", "upper"),
        # the upper half is the last resort, and two are enough for it then
        (2, 2, "upper", "upper"),
        (0, 6, "lower", "lower"),
        (6, 0, "upper", "upper"),
        (1, 2, None, None),
        (0, 0, None, None),
        (1, 0, None, None),
        (0, 2, None, None),
    ],
)
def test_half_body_too_few_keypoints_takes_the_other_half(
    upper, lower, of_upper_draw, of_lower_draw
):
    joints, visible = body(upper, lower)
    for seed, wanted in ((UPPER, of_upper_draw), (LOWER, of_lower_draw)):
        found = half(seed, joints, visible)
        if wanted is None:
            assert found is None
        else:
            assert (found[0][1] < 175) == (wanted == "upper")


def test_half_body_keypoints_in_one_point_returns_none():
    joints, visible = body()
    joints[:] = 7
    assert half(UPPER, joints, visible) is None and half(LOWER, joints, visible) is None
    # and the sample falls back to the person's own box
    everything = Augmentation(
        flip=False, scale_factor=0.0, rotation_factor=0.0, half_body_prob=1.0, half_body_joints=8
    )
    centers, scales, _, _ = draws(20, augmentation=everything, joints=joints, visible=visible)
    assert (centers == CENTER).all() and (scales == SCALE).all()


def test_half_body_keypoints_on_a_line_gives_a_crop():
    joints, visible = body()
    joints[:, 0] = 100
    center, scale = half(LOWER, joints, visible)
    assert np.allclose(scale, np.array([150, 200]) * 1.5 / 200) and (scale > 0).all()


def test_half_body_upper_probability_equals_hrnet():
    """HRNet draws with randn() < 0.5, so 69 of 100 and not half; its published numbers come from
    that.
    """
    joints, visible = body()
    everything = Augmentation(
        flip=False, scale_factor=0.0, rotation_factor=0.0, half_body_prob=1.0, half_body_joints=8
    )
    centers, _, _, _ = draws(augmentation=everything, joints=joints, visible=visible)
    share = (centers[:, 1] < 175).mean()
    assert abs(share - 0.6915) < 0.025


def test_half_body_mpii_uses_its_upper_body():
    joints = np.arange(32, dtype=np.float32).reshape(16, 2) * 10
    center, _ = half_body(joints, np.ones(16, np.float32), MPII, 1.0, True)
    assert np.allclose(center, joints[7:].mean(axis=0))  # from the thorax on
    center, _ = half_body(joints, np.ones(16, np.float32), MPII, 1.0, False)
    assert np.allclose(center, joints[:7].mean(axis=0))


@pytest.mark.parametrize(
    "labelled, share, wanted",
    [
        (17, 0.3, 0.3),
        (9, 0.3, 0.3),
        (8, 0.3, 0.0),
        (17, 0.0, 0.0),
        (17, -1.0, 0.0),
        (17, 1.0, 1.0),
    ],
)
def test_half_body_probability_depends_on_labeled_keypoints(labelled, share, wanted):
    """Only persons with more than NUM_JOINTS_HALF_BODY labeled joints; HRNet's MPII files say
    -1 for never.
    """
    joints, visible = body(min(labelled, 11), labelled - min(labelled, 11))
    augmentation = Augmentation(
        flip=False, scale_factor=0.0, rotation_factor=0.0, half_body_prob=share, half_body_joints=8
    )
    centers, _, _, _ = draws(3000, augmentation=augmentation, joints=joints, visible=visible)
    assert abs((centers != CENTER).any(axis=1).mean() - wanted) < (0.03 if 0 < wanted < 1 else 1e-9)


# scale, rotation, mirror --------------------------------------------------------------------------


def test_sample_scale_stays_in_range():
    _, scales, _, _ = draws(augmentation=HRNET)
    factor = scales / SCALE
    assert np.allclose(factor[:, 0], factor[:, 1])
    factor = factor[:, 0]
    assert factor.min() == pytest.approx(0.65) and factor.max() == pytest.approx(1.35)
    # standard deviation 0.35, cut at one standard deviation: 68 of 100 lie between the limits
    inside = (factor > 0.65 + 1e-9) & (factor < 1.35 - 1e-9)
    assert abs(inside.mean() - 0.6827) < 0.025 and abs(factor.mean() - 1) < 0.02
    assert abs(np.std(factor[inside]) / 0.35 - 0.5396) < 0.03


def test_sample_rotation_stays_in_range():
    _, _, rotations, _ = draws(augmentation=HRNET)
    rotated = rotations[rotations != 0]
    assert abs(len(rotated) / len(rotations) - 0.6) < 0.025
    assert rotated.min() == -90 and rotated.max() == 90
    assert abs((np.abs(rotated) == 90).mean() - 0.0455) < 0.015  # beyond two standard deviations
    assert (
        abs((np.abs(rotated) < 45).mean() - 0.6827) < 0.03
        and abs((rotated > 0).mean() - 0.5) < 0.03
    )


def test_sample_mirror_is_independent_and_half():
    _, scales, rotations, mirrored = draws(augmentation=HRNET)
    assert mirrored.dtype == bool and abs(mirrored.mean() - 0.5) < 0.025
    # one draw for each: the mirror has nothing to do with the others
    assert (
        abs(mirrored[rotations != 0].mean() - 0.5) < 0.035
        and abs(mirrored[scales[:, 0] > SCALE[0]].mean() - 0.5) < 0.035
    )
    never = Augmentation(
        flip=False, scale_factor=0.35, rotation_factor=45.0, half_body_prob=0.0, half_body_joints=8
    )
    assert not draws(200, augmentation=never)[3].any()


def test_sample_without_augmentation_changes_nothing():
    nothing = Augmentation(
        flip=False, scale_factor=0.0, rotation_factor=0.0, half_body_prob=0.0, half_body_joints=8
    )
    centers, scales, rotations, mirrored = draws(50, augmentation=nothing)
    assert (
        (centers == CENTER).all()
        and (scales == SCALE).all()
        and not rotations.any()
        and not mirrored.any()
    )


def test_sample_leaves_its_arguments():
    joints, visible = body()
    before = [array.copy() for array in (CENTER, SCALE, joints, visible)]
    draws(50, augmentation=Augmentation(half_body_prob=1.0), joints=joints, visible=visible)
    assert all(np.array_equal(a, b) for a, b in zip(before, (CENTER, SCALE, joints, visible)))


# the recipes of MSPN and mmpose -------------------------------------------------------------------

MSPN = Augmentation(
    flip=True,
    scale_factor=0.25,
    rotation_factor=45.0,
    half_body_prob=0.3,
    half_body_joints=3,
    half_body_rule="mspn",
    half_body_margin_random=(0.6, 0.8),
    distribution="uniform",
    scale_multiplier=0.8,
    rotation_prob=0.5,
    margin=(1.05, 1.05),
    margin_random=(0.6, 0.8),
)
EXTENT = np.array([100.0, 160.0])


def mspn_draws(augmentation, count=4000, joints=None, visible=None):
    joints, visible = (np.zeros((17, 2)), np.zeros(17)) if joints is None else (joints, visible)
    found = [
        augmentation.sample(
            np.random.default_rng((0, 0, i)), CENTER, SCALE, joints, visible, COCO, ASPECT, EXTENT
        )
        for i in range(count)
    ]
    return [np.array(column) for column in zip(*found)]


def test_sample_mspn_margins_are_drawn_per_axis():
    """Each axis by its own draw, before the fit to the input's aspect ratio: 100 x 160 becomes
    up to 168 x 302.4.
    """
    still = replace(
        MSPN,
        scale_factor=0.0,
        rotation_factor=0.0,
        scale_multiplier=1.0,
        half_body_prob=0.0,
        flip=False,
    )
    centers, scales, rotations, _ = mspn_draws(still)
    assert (
        (centers == CENTER).all()
        and not rotations.any()
        and np.allclose(scales[:, 0] / scales[:, 1], ASPECT)
    )
    heights = scales[:, 1] * 200  # 1.05 * 1.6 * 100 / 0.75 = 224 at most from the width
    assert 168 <= heights.min() < 172 and 300 < heights.max() <= 302.4
    rng = np.random.default_rng((0, 0, 7))
    grown = EXTENT * 1.05 * (1 + rng.random(2) * [0.6, 0.8])
    assert scales[7] == pytest.approx(
        np.array([max(grown[0], grown[1] * 0.75), max(grown[1], grown[0] / 0.75)]) / 200
    )


def test_sample_mspn_scale_and_rotation_are_uniform():
    """Both are uniform: 0.8 x (0.75 .. 1.25), and -45 .. 45 degrees for half of the samples."""
    plain = replace(MSPN, margin_random=(0.0, 0.0), half_body_prob=0.0)
    _, scales, rotations, mirrored = mspn_draws(plain)
    factor = scales[:, 0] / SCALE[0]
    assert 0.6 <= factor.min() < 0.605 and 0.995 < factor.max() <= 1.0
    assert abs(factor.mean() - 0.8) < 0.01 and abs(factor.std() - 0.4 / np.sqrt(12)) < 0.005
    turned = rotations[rotations != 0]
    assert (
        abs(len(turned) / len(rotations) - 0.5) < 0.025
        and abs(turned.std() - 90 / np.sqrt(12)) < 1
        and np.abs(turned).max() <= 45
    )
    assert abs(mirrored.mean() - 0.5) < 0.025


def test_half_body_extent_mspn_uses_keypoint_extent():
    """Around the middle of the joints' extent, by MSPN's margins; the hips belong to both
    halves, and four joints make one.
    """
    joints, visible = body()
    center, scale = half_body_extent(joints, visible, COCO, ASPECT, True, np.array([1.5, 1.2]))
    # the upper half with the hips: x 100..200, y 50..240
    assert np.allclose(center, [150, 145]) and np.allclose(
        scale * 200, [190 * 1.2 * 0.75, 190 * 1.2]
    )
    center, scale = half_body_extent(joints, visible, COCO, ASPECT, False, np.array([1.0, 1.0]))
    assert np.allclose(center, [140, 300]) and np.allclose(scale * 200, [150, 200])
    # upper with hips: four joints; lower: three, too few
    joints, visible = body(upper=2, lower=3)
    for upper in (True, False):
        assert half_body_extent(joints, visible, COCO, ASPECT, upper, np.ones(2))[0][1] < 200
    joints, visible = body(upper=2, lower=0)
    assert half_body_extent(joints, visible, COCO, ASPECT, True, np.ones(2)) is None
    joints[:] = 7
    assert half_body_extent(joints, np.ones(17), COCO, ASPECT, True, np.ones(2)) is None
    everything = replace(MSPN, half_body_prob=1.0, margin_random=(0.0, 0.0))
    joints, visible = body()
    centers, _, _, _ = mspn_draws(everything, 2000, joints, visible)
    assert (
        abs((centers[:, 1] == 145).mean() - 0.6915) < 0.03
        and ((centers[:, 1] == 145) | (centers[:, 1] == 300)).all()
    )


def test_sample_mmpose_shift_moves_some_centers():
    shifting = Augmentation(
        flip=False,
        scale_factor=0.0,
        rotation_factor=0.0,
        half_body_prob=0.0,
        half_body_joints=8,
        shift_prob=0.3,
        shift=0.16,
    )
    centers, scales, _, _ = draws(augmentation=shifting)
    moved = (centers != CENTER).any(axis=1)
    assert abs(moved.mean() - 0.3) < 0.025 and (scales == SCALE).all()
    limit = 0.16 * SCALE * 200
    distance = np.abs(centers[moved] - CENTER)
    assert (distance <= limit).all() and (distance.max(axis=0) > 0.98 * limit).all()
    # a half body takes the place of the shift
    joints, visible = body()
    both = replace(shifting, half_body_prob=1.0, shift_prob=1.0)
    centers, _, _, _ = draws(200, augmentation=both, joints=joints, visible=visible)
    assert (
        np.isclose(centers, [150, 100]).all(axis=1) | np.isclose(centers, [140, 300]).all(axis=1)
    ).all()


@pytest.mark.parametrize(
    "family, wanted",
    [
        ("mspn/mspn_2stg_256x192", MSPN),
        (
            "hrnet/w32_256x192_adam_lr1e-3",
            Augmentation(
                flip=True,
                scale_factor=0.35,
                rotation_factor=45.0,
                half_body_prob=0.3,
                half_body_joints=8,
                half_body_margin_random=(0.6, 0.8),
                shift=0.16,
            ),
        ),
        (
            "posenas/256x192_18l_48c",
            Augmentation(
                flip=True,
                scale_factor=0.3,
                rotation_factor=40.0,
                half_body_prob=0.3,
                half_body_joints=8,
                half_body_margin_random=(0.6, 0.8),
                shift=0.16,
            ),
        ),
        (
            "moganet/moganet_s_256x192",
            Augmentation(
                flip=True,
                scale_factor=0.5,
                rotation_factor=40.0,
                half_body_prob=0.3,
                half_body_joints=8,
                half_body_margin_random=(0.6, 0.8),
                shift_prob=0.3,
                shift=0.16,
            ),
        ),
        (
            "resnet/res50_256x192_d256x3_adam_lr1e-3",
            Augmentation(
                flip=True,
                scale_factor=0.3,
                rotation_factor=40.0,
                half_body_prob=0.0,
                half_body_joints=8,
                half_body_margin_random=(0.6, 0.8),
                shift=0.16,
            ),
        ),
    ],
)
def test_augmentation_from_config_equals_published(family, wanted):
    found = Augmentation.from_config(config.load(ROOT / f"experiments/coco/{family}.yaml"))
    assert found == replace(wanted, shift=0.16)
