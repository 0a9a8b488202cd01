"""Test reading MPII files in the JSON format of SimpleBaseline and HRNet (1-based)."""

import json

import numpy as np
import pytest
from poise import config
from poise.config import datasets
from poise.config.dataset_yaml import MPII
from poise.datasets import load_split, mpii
from poise.errors import DataError


def person(name="a.jpg", **fields):
    joints = [[100.0 + j, 200.0 + 2 * j] for j in range(16)]
    return {
        "image": name,
        "center": [300.0, 250.0],
        "scale": 2.0,
        "joints": joints,
        "joints_vis": [1] * 16,
        **fields,
    }


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(
        f"DATASET: {{DATASET: mpii, ROOT: {tmp_path}, TRAIN_SET: train, TEST_SET: valid}}\nMODEL:"
        " {NUM_JOINTS: 16}\n"
    )
    return lambda *overrides: config.load(path, overrides)


@pytest.fixture
def read(tmp_path, experiment):
    """A function that reads the table of a split with these persons."""

    def table(persons, split="valid"):
        (tmp_path / "annot").mkdir(exist_ok=True)
        (tmp_path / "annot" / f"{split}.json").write_text(
            persons if isinstance(persons, str) else json.dumps(persons)
        )
        return mpii.read_table(experiment(), split)

    return table


def refusal(call, *args):
    with pytest.raises(DataError) as error:
        call(*args)
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_read_table_columns_equal_annotations(read):
    missing = [1] * 16
    missing[3] = 0
    table = read([person("b.jpg"), person("a.jpg", joints_vis=missing), person("b.jpg")])
    assert table.skeleton is MPII and table.has_keypoints and table.box_source == "gt"
    assert [table.image_name(i) for i in range(3)] == ["b.jpg", "a.jpg", "b.jpg"] and len(
        table.image_names
    ) == 2
    assert (
        table.image_index.tolist() == [0, 1, 0]
        and table.ann_ids.tolist() == [0, 1, 2]
        and table.score.tolist() == [1, 1, 1]
    )
    # the files count pixels from 1
    assert table.keypoints[0, 5].tolist() == [104, 209] and table.keypoints.dtype == np.float32
    # MPII's labeled joints count as seen
    assert table.visibility[1].tolist() == [2 * v for v in missing]
    # HRNet: 15 units of scale down, then a quarter larger; SimpleBaseline and HRNet read so
    assert table.center[0].tolist() == [299, 250 + 15 * 2 - 1] and table.scale[0].tolist() == [
        2.5,
        2.5,
    ]
    assert table.summary() == "3 persons in 2 of 2 images, ground-truth boxes"


def test_read_table_missing_center_is_shifted_only(read):
    """-1 in the files; only the base is taken off, as the originals do."""
    table = read([person(center=[-1.0, -1.0], scale=1.0)])
    assert table.center[0].tolist() == [-2, -2] and table.scale[0].tolist() == [1, 1]


def test_read_table_test_split_has_no_keypoints(read):
    table = read(
        [
            {"image": "a.jpg", "center": [3, 4], "scale": 1.5},
            {"image": "b.jpg", "center": [5, 6], "scale": 1},
        ],
        "test",
    )
    assert len(table) == 2 and not table.has_keypoints and not table.visibility.any()


def test_read_table_other_split_without_keypoints_raises(read):
    entry = person()
    del entry["joints"]
    assert "annot/valid.json: person 0 (a.jpg) has no 'joints'; the json form" in refusal(
        read, [entry]
    )


@pytest.mark.parametrize(
    "fields, fault",
    [
        (
            dict(joints=[[1, 2]] * 15),
            "person 2 (bad.jpg) has 15 joints and 16 joints_vis, expected 16",
        ),
        (dict(joints=[[1, 2]] * 17), "person 2 (bad.jpg) has 17 joints and 16 joints_vis"),
        (dict(joints_vis=[1] * 15), "person 2 (bad.jpg) has 16 joints and 15 joints_vis"),
        (dict(joints=[]), "person 2 (bad.jpg) has 0 joints"),
        (dict(scale=0), "person 2 (bad.jpg) has scale 0.0, a box of no area; correct or remove it"),
        (dict(scale=-1.0), "person 2 (bad.jpg) has scale -1.0"),
        (dict(scale=None), "person 2 (bad.jpg) has a number that is not finite"),
        (dict(center=[None, 4]), "person 2 (bad.jpg) has a number that is not finite"),
        (
            dict(joints=[[1, 2]] * 15 + [[None, 2]]),
            "person 2 (bad.jpg) has a number that is not finite",
        ),
        (dict(joints_vis=[1] * 15 + [None]), "person 2 (bad.jpg) has a number that is not finite"),
        (dict(scale="large"), "person 2 (bad.jpg) has scale 'large', expected a number"),
        (dict(scale=[1, 1]), "person 2 (bad.jpg) has scale [1, 1], expected a number"),
        (dict(center=[1]), "person 2 (bad.jpg) has center [1], expected x and y"),
        (dict(center=[1, 2, 3]), "person 2 (bad.jpg) has center [1, 2, 3], expected x and y"),
        (dict(center=None), "person 2 (bad.jpg) has center null, expected x and y"),
        (dict(joints=None), "person 2 (bad.jpg) has joints null, expected 16 pairs of x and y"),
        (dict(joints=[1] * 16), "person 2 (bad.jpg) has joints [1, 1, "),
        (dict(joints=[[1, 2, 3]] * 16), "expected 16 pairs of x and y"),
        (dict(joints_vis=["yes"] * 16), "person 2 (bad.jpg) has joints_vis ['yes', "),
        (dict(image=3), "person 2 has image 3, expected the name of a file"),
        (dict(image=""), "person 2 has image '', expected the name of a file"),
    ],
)
def test_read_table_invalid_person_raises(read, fields, fault):
    text = refusal(read, [person(), person(), person("bad.jpg", **fields)])
    assert "annot/valid.json: " in text and fault in text


@pytest.mark.parametrize(
    "fields, fault",
    [
        (dict(joints=[[1, 2, 3]] * 16), "expected 16 pairs of x and y"),
        (dict(joints=[1] * 16), "expected 16 pairs of x and y"),
        (dict(joints_vis=[[1, 1]] * 16), "expected 16 numbers"),
        (dict(center=[1, 2, 3]), "expected x and y"),
        (dict(center=[1]), "expected x and y"),
        (dict(scale=[1, 1]), "expected a number"),
    ],
)
def test_read_table_consistent_wrong_shapes_raise(read, fields, fault):
    """NumPy makes arrays of them without complaint."""
    assert fault in refusal(read, [person(**fields)] * 2)


def test_read_table_nan_raises(read):
    assert "annot/valid.json: the annotation file holds NaN" in refusal(
        read, [person(), person(scale=float("nan"))]
    )
    assert "annot/valid.json: the annotation file holds NaN" in refusal(
        read, [person(joints=[[1, 2]] * 15 + [[float("nan"), 2]])]
    )


@pytest.mark.parametrize(
    "text, fault",
    [
        ("", "not valid JSON"),
        ("[", "not valid JSON"),
        ("[]", "not a list of persons"),
        ('{"images": []}', "not a list of persons"),
        ("[3]", "entry 0 (3) is not an object"),
        ("[null]", "entry 0 (null) is not an object"),
    ],
)
def test_read_table_invalid_file_raises(read, text, fault):
    text = refusal(read, text)
    assert "annot/valid.json: " in text and fault in text


def test_read_table_missing_file_raises(tmp_path, experiment):
    text = refusal(mpii.read_table, experiment(), "valid")
    assert text.startswith(
        f"{tmp_path}/annot/valid.json: cannot read the annotation file (No such file or directory);"
        " check DATASET.ROOT"
    )
    command = f"; how to get it: python tools/prepare_data.py mpii --root {tmp_path}"
    assert text.endswith(command)
    assert refusal(datasets.image_folder(experiment(), "valid").check).endswith(command)
    assert refusal(datasets.require_headbox_path, experiment()).endswith(command)


def test_image_folder_follows_format(tmp_path, experiment):
    assert datasets.image_folder(experiment(), "valid").location == tmp_path / "images"
    assert (
        datasets.image_folder(experiment("DATASET.DATA_FORMAT", "zip"), "valid").location
        == tmp_path / "images.zip"
    )
    assert datasets.headbox_path(experiment()) == tmp_path / "annot" / "gt_valid.mat"


def test_load_split_synthetic_mpii_is_read(small_mpii_set, experiment):
    cfg = experiment("DATASET.ROOT", str(small_mpii_set))
    train, images = load_split(cfg, train=True)
    assert len(train) > 10 and train.visibility.sum() > 16 * 5
    image = images.read(train.image_name(0))
    labelled = train.keypoints[0][train.visibility[0] > 0]
    assert (labelled > -40).all() and (labelled < np.array(image.shape[1::-1]) + 40).all()
    cfg.defrost()
    cfg.DATASET.TEST_SET = "test"
    assert not load_split(cfg, train=False)[0].has_keypoints


def test_load_split_real_validation_has_known_counts(shared, experiment):
    table, _ = load_split(
        experiment("DATASET.ROOT", str(shared / "data" / "mpii_subset")), train=False
    )
    assert len(table) == 2958 and table.has_keypoints
    five = mpii.read_table(
        experiment("DATASET.ROOT", str(shared / "data" / "mpii_subset")), "five_persons"
    )
    images = datasets.image_folder(
        experiment("DATASET.ROOT", str(shared / "data" / "mpii_subset")), "five_persons"
    )
    for person in range(len(five)):
        height, width = images.read(five.image_name(person)).shape[:2]
        inside = five.keypoints[person][five.visibility[person] > 0]
        assert ((inside >= -1) & (inside <= [width, height])).all()
