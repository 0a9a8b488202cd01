"""Test the synthetic dataset: deterministic bytes, annotations that match the pixels."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from poise.config.dataset_yaml import COCO, MPII
from poise.datasets.synthetic.annotations import mask_polygons, mask_rle
from poise.datasets.synthetic.body import (
    ARM_LIMITS,
    LEG_LIMITS,
    Pose,
    View,
    pose_body,
    sample_build,
    sample_pose,
)
from poise.datasets.synthetic.look import sample_look
from poise.datasets.synthetic.paint import Canvas, Light
from poise.datasets.synthetic.person import Person, draw_person, visible_joints
from poise.datasets.synthetic.write import make_coco, make_mpii
from poise.errors import ConfigError, DataError
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as CocoFile
from pycocotools.cocoeval import COCOeval
from scipy.io import loadmat
from support.paths import ROOT

PICTURES = 130


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A made COCO set: one image to train on, PICTURES to test on."""
    return make_coco(
        tmp_path_factory.mktemp("made"),
        {"train2017": 1, "val2017": PICTURES},
        seed=5,
        progress=False,
    )


@pytest.fixture(scope="module")
def truth(made):
    with contextlib.redirect_stdout(io.StringIO()):
        return CocoFile(str(made / "annotations/person_keypoints_val2017.json"))


def _persons(truth):
    return [person for person in truth.anns.values() if not person["iscrowd"]]


def _joints(person):
    return np.array(person["keypoints"], float).reshape(17, 3)


def _files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_make_coco_same_seed_gives_equal_bytes(tmp_path):
    sets = [
        _files(
            make_coco(
                tmp_path / name, {"val2017": count}, seed=seed, workers=workers, progress=False
            )
        )
        for name, count, seed, workers in (
            ("one", 16, 3, 1),
            ("two", 16, 3, 2),
            ("seed", 2, 4, 1),
            ("few", 2, 3, 1),
        )
    ]
    assert sets[0] == sets[1]
    picture = "images/val2017/000000000002.jpg"
    assert sets[3][picture] == sets[0][picture]  # whatever the number of images
    assert sets[2][picture] != sets[0][picture]


def test_make_coco_splits_differ(made):
    train, val = (
        (made / f"images/{split}/000000000001.jpg").read_bytes()
        for split in ("train2017", "val2017")
    )
    assert train != val


def test_make_coco_layout_equals_coco(made, truth):
    assert len(truth.imgs) == PICTURES
    assert truth.cats[1]["keypoints"] == list(COCO.names) and len(truth.cats[1]["skeleton"]) == len(
        COCO.limbs
    )
    for entry in list(truth.imgs.values())[:20]:
        image = cv2.imread(str(made / "images/val2017" / entry["file_name"]))
        assert image.shape == (entry["height"], entry["width"], 3)
        assert 320 <= entry["width"] <= 480 and 240 <= entry["height"] <= 360


def test_make_coco_annotations_match_the_image(truth):
    for person in _persons(truth):
        size = np.array(
            (truth.imgs[person["image_id"]]["width"], truth.imgs[person["image_id"]]["height"])
        )
        joints, box = _joints(person), np.array(person["bbox"])
        labelled = joints[:, 2] > 0
        assert person["num_keypoints"] == labelled.sum()
        assert (joints[~labelled] == 0).all() and set(np.unique(joints[:, 2])) <= {0, 1, 2}
        assert (joints[:, :2] >= 0).all() and (joints[:, :2] <= size - 1).all()
        assert (box[:2] >= 0).all() and (box[2:] > 0).all() and (box[:2] + box[2:] <= size).all()
        assert 0 < person["area"] <= box[2] * box[3]
        mask = truth.annToMask(person)
        assert abs(int(mask.sum()) - person["area"]) <= 0.06 * person["area"] + 4
        # a joint that is seen lies on the person
        seen = np.rint(joints[joints[:, 2] == 2, :2]).astype(int)
        around = cv2.dilate(mask, np.ones((3, 3), np.uint8))
        assert around[seen[:, 1], seen[:, 0]].all()


def test_make_coco_contains_the_expected_variety(truth):
    persons = _persons(truth)
    labelled = [person for person in persons if person["num_keypoints"]]
    flags = np.array([_joints(person)[:, 2] for person in labelled])
    areas = np.array([person["area"] for person in labelled])
    assert 1.8 < len(persons) / PICTURES < 3.2
    assert 0.01 < 1 - len(labelled) / len(persons) < 0.15
    assert any(person["iscrowd"] for person in truth.anns.values())
    assert (
        0.60 < (flags == 2).mean() < 0.93 and 0.015 < (flags == 1).sum() / (flags > 0).sum() < 0.20
    )
    assert ((areas > 32**2) & (areas < 96**2)).mean() > 0.4 and (areas > 96**2).mean() > 0.15


def test_make_coco_crowds_have_readable_masks(truth):
    for person in truth.anns.values():
        if person["iscrowd"]:
            assert person["num_keypoints"] == 0 and truth.annToMask(person).sum() == person["area"]


def test_make_coco_detections_are_near_ground_truth(made, truth):
    found = json.loads(
        (made / "person_detection_results/COCO_val2017_detections_AP_H_56_person.json").read_text()
    )
    assert {frozenset(item) for item in found} == {
        frozenset(("bbox", "category_id", "image_id", "score"))
    }
    boxes = [person["bbox"] for person in _persons(truth)]
    best = np.zeros(len(boxes))
    for k, person in enumerate(_persons(truth)):
        near = [item["bbox"] for item in found if item["image_id"] == person["image_id"]]
        if near:
            best[k] = coco_mask.iou(
                np.array(near, float), np.array([person["bbox"]], float), [0]
            ).max()
    assert 0.85 < (best > 0.7).mean() < 1.0  # most are found, some are not
    assert len(found) > 1.2 * len(boxes)  # some twice, some false
    scores = np.array([item["score"] for item in found])
    assert scores.min() >= 0 and scores.max() <= 1 and (scores < 0.3).any() and (scores > 0.9).any()


def _score(truth, change):
    """OKS AP of the ground truth after change(joints (17, 3), person) -> (17, 2)."""
    results = [
        {
            "image_id": person["image_id"],
            "category_id": 1,
            "score": 1.0,
            "keypoints": (
                np.concatenate((change(_joints(person), person), np.ones((17, 1))), 1)
                .ravel()
                .tolist()
            ),
        }
        for person in _persons(truth)
        if person["num_keypoints"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return evaluation.stats


def test_make_coco_only_correct_keypoints_score(truth):
    stats = _score(truth, lambda joints, _: joints[:, :2])
    assert stats[0] == stats[3] == stats[4] == 1.0
    assert _score(truth, lambda joints, _: joints[COCO.flip_indices, :2])[0] < 0.15
    assert _score(truth, lambda joints, _: joints[:, :2] + 8)[0] < 0.35
    assert (
        _score(
            truth,
            lambda joints, person: (
                np.array(person["bbox"][:2]) + np.array(person["bbox"][2:]) / 2 + 0 * joints[:, :2]
            ),
        )[0]
        < 0.05
    )


def _posed(yaw, rng):
    pose = Pose("stand", [(0, 25, 0, 5)] * 2, [(0, 6, 5, 4)] * 2)
    body = pose_body(sample_build(rng), pose, View(yaw, 5, 0))
    return Person(body, sample_look(rng), 200.0, np.array((120.0, 125.0)))


def test_draw_person_left_and_right_follow_the_body():
    left, right = COCO.names.index("left_wrist"), COCO.names.index("right_wrist")
    for seed in range(6):
        for yaw, sign in ((0, 1), (180, -1)):
            rng = np.random.default_rng(seed)
            person = _posed(yaw, rng)
            canvas = Canvas(np.zeros((250, 240, 3), np.float32), Light((0, 0, 1), 0.5))
            draw_person(canvas, person, 0)
            joints = visible_joints(person, 0, canvas.owner, rng)
            # who faces us has the left on our right
            assert np.sign(joints[left, 0] - joints[right, 0]) == sign
            assert (joints[:3, 2] == 2).all() if yaw == 0 else (joints[:3, 2] < 2).all()  # the face
            assert (joints[[5, 6, 9, 10, 13, 14, 15, 16], 2] == 2).all()


def test_sample_pose_stays_within_joint_limits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        pose = sample_pose(rng)
        for angles, limits in ((pose.arms, ARM_LIMITS), (pose.legs, LEG_LIMITS)):
            assert (np.array(angles) >= limits[0]).all() and (np.array(angles) <= limits[1]).all()
    body = pose_body(sample_build(rng), pose, View(40, 5, 3))
    thigh = np.linalg.norm(body.points["left_knee"] - body.points["left_hip"])
    assert thigh == pytest.approx(body.build.thigh)


def test_mask_polygons_and_rle_equal_the_mask():
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:70] = True
    mask[20:30, 30:50] = False  # a hole stays empty
    mask[50:56, 3:9] = True
    polygons = mask_polygons(mask)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 60, 80))).astype(bool)
    assert len(polygons) == 2 and (drawn != mask).mean() < 0.01
    for case in (mask, ~mask, np.ones((3, 4), bool)):
        runs = mask_rle(case)
        assert (
            coco_mask.decode(coco_mask.frPyObjects(runs, *runs["size"])).astype(bool) == case
        ).all()


def test_make_mpii_layout_equals_mpii(tmp_path):
    root = make_mpii(tmp_path, {"train": 3, "valid": 12}, seed=2, workers=1, progress=False)
    persons = json.loads((root / "annot/valid.json").read_text())
    arrays = loadmat(root / "annot/gt_valid.mat")
    number = len(persons)
    assert arrays["pos_gt_src"].shape == (16, 2, number) and arrays["headboxes_src"].shape == (
        2,
        2,
        number,
    )
    assert arrays["jnt_missing"].shape == (16, number) and arrays["jnt_missing"].dtype == np.uint8
    names = [str(name[0]) for name in arrays["dataset_joints"][0]]
    assert names == [
        "rank",
        "rkne",
        "rhip",
        "lhip",
        "lkne",
        "lank",
        "pelv",
        "thor",
        "neck",
        "head",
        "rwri",
        "relb",
        "rsho",
        "lsho",
        "lelb",
        "lwri",
    ]
    for k, person in enumerate(persons):
        joints, shown = np.array(person["joints"]), np.array(person["joints_vis"], bool)
        image = cv2.imread(str(root / "images" / person["image"]))
        assert joints.shape == (16, 2) and (joints[~shown] == -1).all()
        assert (arrays["jnt_missing"][:, k] == ~shown).all()
        assert np.allclose(arrays["pos_gt_src"][shown, :, k], joints[shown])
        assert (joints[shown] > 0.4).all() and (
            joints[shown] <= np.array(image.shape[1::-1]) + 0.5
        ).all()
        # the box that readers make of center and scale, from which they cut the crop, holds the
        # joints
        box_center = np.array(person["center"]) + (0, 15 * person["scale"])
        assert (np.abs(joints[shown] - box_center) < 125 * person["scale"]).all()
        low, high = arrays["headboxes_src"][:, :, k]
        assert (high > low).all()
        top = MPII.names.index("head_top")
        if shown[top]:
            assert (joints[top] > low - 2).all() and (joints[top] < high + 2).all()
    assert set(json.loads((root / "annot/test.json").read_text())[0]) == {
        "image",
        "center",
        "scale",
    }


def test_make_coco_complete_set_is_reused(tmp_path, capsys):
    settings = {"splits": {"val2017": 2}, "workers": 1, "progress": False}
    make_coco(tmp_path, **settings)
    picture = tmp_path / "images/val2017/000000000002.jpg"
    made = picture.stat().st_mtime_ns
    capsys.readouterr()
    make_coco(tmp_path, **settings)
    assert "reused" in capsys.readouterr().out and picture.stat().st_mtime_ns == made
    make_coco(tmp_path, force=True, **settings)
    assert picture.stat().st_mtime_ns != made
    picture.unlink()  # something is lacking
    make_coco(tmp_path, **settings)
    assert picture.exists()
    stamp = tmp_path / "synthetic.json"
    stamp.write_text(stamp.read_text().replace("true", "false"))  # killed before the end
    make_coco(tmp_path, **settings)
    assert json.loads(stamp.read_text())["complete"] and "reused" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.tmp"))


def test_make_coco_invalid_arguments_raise(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make_coco(tmp_path / "file" / "set", {"val2017": 1}, progress=False)
    with pytest.raises(ConfigError, match="-3"):
        make_coco(tmp_path, {"val2017": -3}, progress=False)
    for bad in ({"seed": -1}, {"workers": 0}, {"hardness": 1.5}, {"splits": {"../up": 1}}):
        with pytest.raises(ConfigError):
            make_mpii(tmp_path, **{"splits": {"valid": 1}, "progress": False, **bad})
    real = tmp_path / "coco/annotations/person_keypoints_val2017.json"
    real.parent.mkdir(parents=True)
    real.write_text("{}")
    # somebody's real COCO is never written over
    with pytest.raises(DataError, match="not made by this tool"):
        make_coco(tmp_path / "coco", {"val2017": 1}, progress=False)
    assert real.read_text() == "{}"


def _tool(*arguments):
    return subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "tools/make_synthetic.py", *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "lib")},
    )


def test_make_synthetic_command_writes_the_set(tmp_path):
    shown = _tool("--help")
    assert shown.returncode == 0 and "--workers" in shown.stdout
    assert "numpy" not in shown.stderr and "cv2" not in shown.stderr  # help needs nothing heavy
    failed = _tool("--out", tmp_path, "--val", "-1")
    assert failed.returncode == 2 and failed.stderr.splitlines()[-1].startswith("error: val2017")
