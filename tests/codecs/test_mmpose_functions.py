"""Test crops, targets, augmentation, decoding, flip and OKS against mmpose 0.29 (MogaNet)."""

import json

import numpy as np
import pytest
import torch
from poise.codecs.flip import average_flipped
from poise.codecs.gaussian import Gaussian
from poise.config.dataset_yaml import COCO
from poise.datasets import augment
from poise.evaluation import nms
from poise.structures import crops
from support.paths import GOLDEN

FIGURES = json.loads((GOLDEN / "mmpose_functions.json").read_text())


@pytest.fixture(scope="module")
def heatmaps():
    return np.load(GOLDEN / "mmpose_decode_heatmaps.npy")


def test_box_to_center_scale_recorded_boxes_equals_mmpose():
    for record in FIGURES["bbox_xywh2cs"]:
        center, scale = crops.box_to_center_scale(
            [record["bbox"]], record["aspect"], [record["padding"]] * 2
        )
        assert center[0] == pytest.approx(record["center"]) and scale[0] == pytest.approx(
            record["scale"], rel=1e-6
        )


def test_crop_matrix_recorded_crops_equals_mmpose():
    for record in FIGURES["affine"]:
        matrix = crops.crop_matrix(
            np.array(record["center"]), np.array(record["scale"]), record["rot"], record["out"]
        )
        assert np.abs(matrix - record["fwd"]).max() < 1e-3
        inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
        assert np.abs(inverse - record["inv"]).max() < 2e-3


def test_crop_to_image_recorded_points_equals_mmpose():
    for record in FIGURES["transform_preds"]:
        image_size = np.array(record["size"]) * 4
        found = crops.crop_to_image(
            np.array([record["coords"]]) * 4,
            np.array([record["center"]]),
            np.array([record["scale"]]),
            image_size,
        )
        assert np.abs(found[0] - record["out"]).max() < 1e-3


def test_gaussian_encode_recorded_keypoints_equals_mmpose():
    for record in FIGURES["target"]:
        joints = torch.tensor(record["joints"], dtype=torch.float32)[None]
        targets = Gaussian(
            tuple(record["image"]), tuple(record["heatmap"]), record["sigma"]
        ).encode(joints, torch.full(joints.shape[:2], 2.0))
        maps = targets.heatmaps[0].numpy()
        assert targets.weight[0, :, 0].tolist() == record["weight"]
        assert maps.sum(axis=(1, 2)) == pytest.approx(record["sum"], rel=1e-5) and maps.max(
            axis=(1, 2)
        ) == pytest.approx(record["max"], rel=1e-5)
        assert (maps > 0).sum(axis=(1, 2)).tolist() == record["nonzero"]
        for place, argmax in zip(maps, record["argmax_xy"]):
            if argmax is not None:
                assert divmod(int(place.argmax()), place.shape[1])[::-1] == tuple(argmax)


def test_scale_and_rotation_recorded_seed_equals_mmpose():
    draws = np.random.RandomState(7)
    for scale, rotation in FIGURES["scale_rot_seed7"]:
        factor = augment.clipped_factor(draws.randn(), 0.5)
        turned = augment.clipped_rotation(draws.randn(), 40.0)
        assert factor * np.array([1.0, 4 / 3]) == pytest.approx(scale, rel=1e-6)
        assert (turned if draws.rand() <= 0.6 else 0.0) == pytest.approx(rotation, rel=1e-6)


def test_half_body_recorded_seed_equals_mmpose():
    figures, draws = FIGURES["half_body_seed11"], np.random.RandomState(11)
    visible = np.ones(17)
    visible[figures["invisible"]] = 0
    assert len(figures["results"]) == 4
    kinds = set()
    for center, scale in figures["results"]:
        upper = draws.randn() < 0.5
        found = augment.half_body(np.array(figures["joints"]), visible, COCO, 0.75, upper)
        assert found[0] == pytest.approx(center, rel=1e-5) and found[1] == pytest.approx(
            scale, rel=1e-5
        )
        kinds.add(upper)
    assert len(kinds) == 2


def test_shift_center_recorded_seed_equals_mmpose():
    draws, moved = np.random.RandomState(3), 0
    for center in FIGURES["shift_seed3"]:
        found = np.array([100.0, 100.0])
        if draws.rand() < 0.3:
            found = augment.shift_center(
                found, np.array([1.0, 4 / 3]), draws.uniform(-1, 1, 2) * 0.16
            )
            moved += 1
        assert found == pytest.approx(center, rel=1e-5)
    assert moved == 2


@pytest.mark.parametrize(
    "name, settings",
    [
        ("default", {"refine": "quarter"}),
        ("unbiased", {"refine": "dark", "blur_kernel": 11}),
        ("unbiased_k17", {"refine": "dark", "blur_kernel": 17}),
        ("None", {"refine": "none"}),
    ],
)
def test_gaussian_decode_recorded_heatmaps_equals_mmpose(heatmaps, name, settings):
    figures = FIGURES["decode"]
    coords, scores = Gaussian((192, 256), (48, 64), empty_cell=-1, **settings).decode(heatmaps)
    found = crops.crop_to_image(
        coords, np.array(figures["center"]), np.array(figures["scale"]), (192, 256)
    )
    wanted = np.array(figures[name]["preds"])
    assert wanted.shape == found.shape == (3, 17, 2) and np.abs(found - wanted).max() < 2e-3
    if "maxvals" in figures[name]:
        assert scores == pytest.approx(np.array(figures[name]["maxvals"])[..., 0], abs=1e-6)


def test_average_flipped_with_shift_equals_mmpose(heatmaps):
    """Only the flipped prediction was recorded, so it is recovered from the average."""
    figures = FIGURES["flip_back_shift"]
    maps = torch.from_numpy(heatmaps)
    back = (
        average_flipped(
            torch.zeros_like(maps), maps, torch.from_numpy(COCO.flip_indices), shift=True
        )
        * 2
    )
    assert float(back.abs().sum()) == pytest.approx(figures["abs_sum"], rel=1e-5)
    assert np.abs(back[0, :, 10, :3].numpy() - figures["samples[0,k,10,0:3]"]).max() < 1e-6


def test_oks_nms_recorded_poses_equals_mmpose():
    figures = FIGURES["oks"]
    poses = figures["poses"]
    keypoints = np.array([p["keypoints"] for p in poses], np.float64).reshape(len(poses), 17, 3)
    areas, scores = (np.array([p[key] for p in poses], np.float64) for key in ("area", "score"))
    sigmas = np.array(COCO.sigmas)
    found = nms.oks_iou(keypoints[0], keypoints, areas[0], areas, sigmas)
    assert found == pytest.approx(figures["iou_0_vs_all"], rel=1e-6)
    for threshold, keep in figures["nms_keep"].items():
        assert nms.oks_nms(keypoints, scores, areas, float(threshold), sigmas).tolist() == keep
    assert (
        nms.soft_oks_nms(keypoints, scores, areas, 0.9, sigmas).tolist()
        == figures["soft_nms_keep_thr0.9"]
    )


def test_augment_mmpose_order_gives_the_same_crop():
    """mmpose mirrors first, then shifts, crops and rotates; Poise mirrors in the crop matrix."""
    rng = np.random.default_rng(5)
    width, aspect = 640, 0.75
    joints = np.stack([rng.uniform(200, 400, 17), rng.uniform(50, 350, 17)], axis=1)
    visible, center, scale = np.full(17, 2.0), np.array([300.0, 200.0]), np.array([1.5, 2.0])
    for upper in (True, False, None):
        move, factor, rotation = rng.uniform(-1, 1, 2) * 0.16, 1.2, 25.0
        # mmpose: mirrored center and joints, with the pairs swapped, then the half body of those;
        # the mirrored center moves the other way
        their_center = augment.shift_center(center, scale, move)
        their_center[0] = width - 1 - their_center[0]
        mirrored = joints[COCO.flip_indices] * [-1, 1] + [width - 1, 0]
        their_scale = scale
        ours_center, our_scale = augment.shift_center(center, scale, move), scale
        if upper is not None:
            their_center, their_scale = augment.half_body(mirrored, visible, COCO, aspect, upper)
            ours_center, our_scale = augment.half_body(joints, visible, COCO, aspect, upper)
        theirs = crops.transform_points(
            mirrored, crops.crop_matrix(their_center, their_scale * factor, rotation, (192, 256))
        )
        our_center = np.array([width - 1 - ours_center[0], ours_center[1]])
        matrix = crops.crop_matrix(
            our_center, our_scale * factor, rotation, (192, 256), mirror_width=width
        )
        assert (
            np.abs(crops.transform_points(joints, matrix)[COCO.flip_indices] - theirs).max() < 1e-3
        )
