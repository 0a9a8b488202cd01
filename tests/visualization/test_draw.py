"""Test drawing persons and saving `Poses`."""

import json

import cv2
import numpy as np
import pytest
from poise.config.dataset_yaml import COCO
from poise.errors import ConfigError, DataError
from poise.inference.poses import Poses
from poise.io.images import read_image
from poise.visualization import draw

LEFT, RIGHT = (255, 165, 0), (30, 120, 255)  # RGB
GRAY = np.full((400, 600, 3), 128, np.uint8)
# a standing person in a box of 0..1; COCO's order
FIGURE = np.array(
    [
        [0.50, 0.06],
        [0.55, 0.04],
        [0.45, 0.04],
        [0.60, 0.06],
        [0.40, 0.06],
        [0.70, 0.20],
        [0.30, 0.20],
        [0.80, 0.37],
        [0.20, 0.37],
        [0.90, 0.50],
        [0.10, 0.50],
        [0.62, 0.52],
        [0.38, 0.52],
        [0.64, 0.75],
        [0.36, 0.75],
        [0.65, 0.97],
        [0.35, 0.97],
    ]
)


def people(*boxes):
    """Return poses of standing persons in boxes of left, top, right, bottom."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    keypoints = boxes[:, None, :2] + FIGURE * (boxes[:, 2:] - boxes[:, :2])[:, None]
    scores = np.full(keypoints.shape[:2], 0.9, np.float32)
    return Poses(
        keypoints.astype(np.float32),
        scores,
        boxes,
        np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        COCO,
    )


def changed(drawn, image=GRAY):
    return (drawn != image).any(axis=2)


@pytest.mark.parametrize("height, most", [(30, 0.65), (60, 0.35), (200, 0.25)])
def test_draw_small_person_stays_visible(height, most):
    """The fraction of the box covered by lines and dots is limited."""
    image = np.full((1000, 2000, 3), 128, np.uint8)
    poses = people([500, 400, 500 + height / 2, 400 + height])
    covered = changed(poses.draw(image), image)
    inside = covered[400 : 400 + height, 500 : 500 + height // 2]
    assert 0.05 < inside.mean() < most
    assert covered.sum() < 1.5 * inside.sum()
    by_image = image.copy()
    draw.draw_person(by_image, poses.keypoints[0], COCO)
    assert changed(by_image, image).sum() > 1.5 * covered.sum()


def test_draw_full_size_person_equals_default_size():
    with_size, without = GRAY.copy(), GRAY.copy()
    points = people([150, 20, 450, 380]).keypoints[0]
    draw.draw_person(with_size, points, COCO, person_side=360)
    draw.draw_person(without, points, COCO)
    assert np.array_equal(with_size, without)


def test_draw_one_labeled_keypoint_is_visible():
    shown = np.arange(17) == 0
    for side in (5, 50, 500):
        image = GRAY.copy()
        draw.draw_person(
            image, people([100, 100, 200, 300]).keypoints[0], COCO, shown=shown, person_side=side
        )
        assert changed(image).sum() >= 5


def test_person_color_consecutive_ids_have_distant_hues():
    colors = np.uint8([[draw.person_color(number) for number in range(200)]])
    hsv = cv2.cvtColor(colors, cv2.COLOR_BGR2HSV)[0].astype(int)
    assert hsv[:, 1].min() > 150 and hsv[:, 2].min() > 240
    apart = np.abs(hsv[:12, None, 0] - hsv[None, :12, 0])
    apart = np.minimum(apart, 180 - apart)[~np.eye(12, dtype=bool)]
    assert apart.min() >= 9  # of OpenCV's 180
    step = np.abs(np.diff(hsv[:, 0]))
    assert np.minimum(step, 180 - step).min() > 60


def pixel(image, point):
    x, y = np.rint(point).astype(int)
    return tuple(image[y, x].tolist())


def test_draw_several_persons_use_one_hue_each():
    poses = people([30, 50, 180, 350], [230, 50, 380, 350], [430, 50, 580, 350])
    drawn = poses.draw(GRAY)
    limbs = []
    for person in poses.keypoints:
        limbs.append(pixel(drawn, (person[11] + person[13]) / 2))  # left thigh
        assert pixel(drawn, (person[12] + person[14]) / 2) == limbs[-1]
        assert pixel(drawn, person[9]) == LEFT and pixel(drawn, person[10]) == RIGHT
    assert (
        limbs == [draw.person_color(number)[::-1] for number in range(3)] and len(set(limbs)) == 3
    )
    by_side = poses.draw(GRAY, color="side")
    for person in poses.keypoints:
        assert pixel(by_side, (person[11] + person[13]) / 2) == LEFT
        assert pixel(by_side, (person[12] + person[14]) / 2) == RIGHT
    with pytest.raises(ConfigError, match="color 'hue': must be 'auto', 'person' or 'side'"):
        poses.draw(GRAY, color="hue")


def test_draw_one_person_uses_side_colors():
    poses = people([30, 50, 180, 350])
    assert np.array_equal(poses.draw(GRAY), poses.draw(GRAY, color="side"))
    assert (
        pixel(poses.draw(GRAY, color="person"), poses.keypoints[0, 11:14:2].mean(axis=0))
        == draw.person_color(0)[::-1]
    )


def test_draw_ids_keep_their_hue_when_reordered():
    poses = people([30, 50, 180, 350], [430, 50, 580, 350])
    drawn = poses.draw(GRAY, ids=np.array([7, 3]))
    assert np.array_equal(drawn, poses[::-1].draw(GRAY, ids=[3, 7]))
    assert pixel(drawn, (180, 200)) == draw.person_color(7)[::-1]  # the box
    assert np.array_equal(people().draw(GRAY, ids=[]), GRAY)


@pytest.mark.parametrize("ids", [[7], [7, 3, 1], np.array([], int)])
def test_draw_ids_of_other_length_raise(ids):
    poses = people([30, 50, 180, 350], [430, 50, 580, 350])
    with pytest.raises(ConfigError, match=f"ids: has {len(ids)} numbers for 2 persons"):
        poses.draw(GRAY, ids=ids)


def test_draw_boxes_shows_boxes_and_scores():
    poses = people([30, 50, 180, 350], [430, 2, 580, 350])
    drawn, plain = poses.draw(GRAY, boxes=True), poses.draw(GRAY)
    for box in poses.boxes.astype(int):
        assert changed(drawn, plain)[box[1] : box[3], box[2]].all()
    label = changed(drawn, plain)[36:48, 31:55]  # above the first box
    assert label.all(axis=1).sum() > 8 and (drawn[36:48, 31:55] < 60).all(axis=2).sum() > 20
    assert changed(drawn, plain)[4:16, 433:450].mean() > 0.9  # no room above the second
    assert not changed(drawn, plain)[360:].any()
    assert (changed(poses.draw(GRAY, boxes=True, ids=[1, 2]), drawn)[30:50, 30:180]).any()


def test_poses_iterate_index_and_mask():
    poses = people([30, 50, 180, 350], [230, 50, 380, 350], [430, 50, 580, 350])
    each = list(poses)
    assert len(each) == 3 and all(isinstance(person, Poses) and len(person) == 1 for person in each)
    for number, person in enumerate(each):
        assert np.array_equal(person.keypoints[0], poses.keypoints[number])
        assert np.array_equal(
            person.boxes, poses.boxes[[number]]
        ) and person.person_scores.shape == (1,)
        assert person.to_coco() == [poses.to_coco()[number]]
    assert np.array_equal(poses[-1].boxes, poses.boxes[2:])
    assert len(poses[1:]) == 2 and len(poses[poses.person_scores > 0.8]) == 1
    assert len(list(people())) == 0
    with pytest.raises(IndexError):
        poses[3]


def test_poses_repr_is_one_short_line():
    assert (
        repr(people([30, 50, 180, 350]))
        == "Poses(1 person, 17 keypoints of coco, person_scores=[0.90])"
    )
    many = repr(people(*[[0, 0, 10, 20]] * 500))
    assert many.startswith("Poses(500 persons, ") and many.endswith(", ...])") and len(many) < 160
    assert repr(people()) == "Poses(0 persons, 17 keypoints of coco, person_scores=[])"


def test_poses_save_by_ending(tmp_path):
    poses = people([30, 50, 180, 350], [230, 50, 380, 350])
    cv2.imwrite(str(tmp_path / "picture.png"), GRAY)
    poses.save(tmp_path / "made" / "drawn.png", tmp_path / "picture.png", boxes=True)
    assert np.array_equal(read_image(tmp_path / "made" / "drawn.png"), poses.draw(GRAY, boxes=True))
    poses.save(str(tmp_path / "drawn.JPG"), GRAY)
    assert read_image(tmp_path / "drawn.JPG").shape == GRAY.shape
    poses.save(tmp_path / "poses.json", image_id=42)
    assert json.loads((tmp_path / "poses.json").read_text()) == poses.to_coco(image_id=42)
    people().save(tmp_path / "no_persons.json")
    assert json.loads((tmp_path / "no_persons.json").read_text()) == []
    for name, message in (
        ("drawn.png", "missing image to draw on; pass it as the second argument"),
        ("poses.txt", "unsupported file type; use .json, .jpg or .png"),
        ("poses", "unsupported file type"),
    ):
        with pytest.raises(DataError, match=message):
            poses.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "drawn.JPG",
        "made",
        "no_persons.json",
        "picture.png",
        "poses.json",
    ]
