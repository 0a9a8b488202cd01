"""Test boxes and crops against HRNet's recorded figures."""

import cv2
import numpy as np
import pytest
from poise.config.dataset_yaml import COCO
from poise.io.image_folder import ImageFolder
from poise.structures import crops as geometry
from poise.structures.crops import crop_person


def recorded(crop):
    """Return (center and scale of the crop, recorded matrix); scale before the multiplier."""
    return (
        np.array(crop["box_center"]),
        np.array(crop["box_scale"], np.float32) * crop["scale_multiplier"],
        np.array(crop["matrix"]).reshape(2, 3),
    )


def test_crop_matrix_recorded_crops_equals_hrnet(pipeline, shared):
    folder = ImageFolder(shared / "data/coco_subset/images/train2017")
    for crop in pipeline["crops"]:
        center, scale, matrix = recorded(crop)
        if crop["flip"]:  # the figures are of the mirrored image
            center = np.array([folder.read(crop["image"]).shape[1] - 1 - center[0], center[1]])
        ours = geometry.crop_matrix(center, scale, crop["rotation"], crop["image_size"])
        assert np.abs(ours - matrix).max() < 1e-3


def test_crop_matrix_unmirrored_recorded_crops_equals_hrnet(pipeline):
    crops = [crop for crop in pipeline["crops"] if not crop["flip"]]
    assert len(crops) > 10
    for crop in crops:
        center, scale, matrix = recorded(crop)
        ours = geometry.crop_matrix(center, scale, crop["rotation"], crop["image_size"])
        assert np.abs(ours - matrix).max() < 1e-3


def test_cut_recorded_crops_equals_hrnet(pipeline, shared):
    """Pixels within one gray level, keypoints within 1e-3 px, with the mirror in the matrix."""
    import json

    annotations = json.loads(
        (shared / "data/coco_subset/annotations/person_keypoints_train2017.json").read_text()
    )
    file_of = {image["id"]: image["file_name"] for image in annotations["images"]}
    folder = ImageFolder(shared / "data/coco_subset/images/train2017")
    worst_pixel, off, total = 0, 0, 0
    for crop in pipeline["crops"]:
        center, scale, _ = recorded(crop)
        pixels, matrix = crop_person(
            folder.read(crop["image"]),
            center,
            scale,
            crop["rotation"],
            crop["flip"],
            crop["image_size"],
        )
        rgb = pixels[:, :, ::-1].reshape(-1)
        difference = np.abs(rgb[crop["crop_rgb"]["index"]].astype(int) - crop["crop_rgb"]["value"])
        worst_pixel, off, total = (
            max(worst_pixel, difference.max()),
            off + (difference > 0).sum(),
            total + len(difference),
        )
        assert abs(rgb.mean() - crop["crop_rgb"]["mean"]) < 0.01
        want, visible = np.array(crop["joints"]).reshape(-1, 2), np.array(crop["visible"]) > 0
        persons = [
            np.array(a["keypoints"], float).reshape(-1, 3)
            for a in annotations["annotations"]
            if file_of[a["image_id"]] == crop["image"] and max(a["keypoints"]) > 0
        ]
        ours = []
        for person in persons:
            joints, labelled = geometry.transform_points(person[:, :2], matrix), person[:, 2] > 0
            if crop["flip"]:
                joints, labelled = joints[COCO.flip_indices], labelled[COCO.flip_indices]
            if (labelled == visible).all():
                ours.append(np.abs(joints - want)[visible].max())
        assert ours and min(ours) < 1e-3
    assert worst_pixel <= 1
    assert off / total < 0.01  # one gray level, and on few pixels


def test_box_to_center_scale_fixes_aspect_and_pads():
    center, scale = geometry.box_to_center_scale([[10, 20, 30, 80], [0, 0, 100, 10]], aspect=0.75)
    assert center.tolist() == [[25, 60], [50, 5]]
    # 30 x 80 is lengthened to 60 x 80, 100 x 10 to 100 x 133.3; then both by 1.25, in units of 200
    assert scale == pytest.approx(np.array([[60, 80], [100, 400 / 3]]) * 1.25 / 200)


def test_mpii_center_extent_shifts_center_and_masks_missing():
    center, extent, given = geometry.mpii_center_box_wh([[966, 340], [-1, 7]], [4.0, 2.0])
    # 15 units of scale lower, then 0-based; -1 is 'not given'
    assert center.tolist() == [[965, 399], [-2, 6]]
    assert extent.tolist() == [[800, 800], [400, 400]] and given.tolist() == [True, False]


@pytest.mark.parametrize("rotation", [0, 37.5, -90])
def test_cut_mirrored_equals_cut_of_the_mirrored_image(rotation):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (90, 121, 3), np.uint8), (0, 0), 3)
    center, scale = np.array([40.0, 50.0]), np.array([0.3, 0.4])
    folded, matrix = crop_person(image, center, scale, rotation, True, (48, 64))
    plain, _ = crop_person(
        np.ascontiguousarray(image[:, ::-1]),
        np.array([120 - 40.0, 50.0]),
        scale,
        rotation,
        False,
        (48, 64),
    )
    assert np.abs(folded.astype(int) - plain).max() <= 1
    assert geometry.transform_points(np.array([40.0, 50.0]), matrix) == pytest.approx([24, 32])


@pytest.mark.parametrize("udp", [False, True])
def test_crop_to_image_inverts_crop_matrix(udp):
    center, scale = np.array([[100.0, 50.0]]), np.array([[0.9, 1.2]])
    matrix = geometry.crop_matrix(center[0], scale[0], 0, (48, 64), udp=udp)
    points = np.array([[[3.0, 4.0], [40.25, 60.5]]])
    image_points = geometry.crop_to_image(points, center, scale, (48, 64), udp)
    assert geometry.transform_points(image_points[0], matrix) == pytest.approx(points[0])
