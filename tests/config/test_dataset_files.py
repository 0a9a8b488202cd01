"""Test dataset files: the built-in ones, their effect on experiments, invalid ones."""

import errno
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from poise import config
from poise.config import dataset_yaml, datasets
from poise.config.dataset_yaml import (
    COCO,
    MPII,
    load_dataset_info,
    read_dataset,
)
from poise.config.datasets import dataset_info
from poise.datasets import converters, load_split
from poise.datasets.validation import run
from poise.datasets.validation.sources import build_sources
from poise.errors import ConfigError, DataError, single_line
from poise.structures import skeleton
from pycocotools.cocoeval import Params
from support.custom_datasets import dataset_keys, experiment, make_set
from support.paths import ROOT
from support.runs import forget_log_handlers

MIRROR = {"left": "right", "right": "left"}


@pytest.fixture
def written(tmp_path):
    """A function that writes a dataset file, the keys of five joints with some changed, or text,
    and returns its path.
    """

    def write(text=None, **keys):
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(dataset_keys(5, **keys)) if text is None else text)
        return path

    return write


def refusal(call, *args):
    with pytest.raises(ConfigError) as error:
        call(*args)
    text = str(error.value)
    assert text == single_line(text) and len(text) < 500
    return text


# the files of the repository ----------------------------------------------------------------------


def test_shipped_datasets_are_listed():
    assert dataset_yaml.builtin_datasets() == ["coco", "crowdpose", "mpii", "template"]


@pytest.mark.parametrize("name", dataset_yaml.builtin_datasets())
def test_dataset_flip_pairs_match_left_and_right(name):
    """A mirror swaps every left joint with the right one of the same name and nothing else;
    limbs and halves stay what they are.
    """
    found = load_dataset_info(name).skeleton
    other = [
        f"{MIRROR[side]}_{rest}" if side in MIRROR else joint
        for joint in found.names
        for side, _, rest in [joint.partition("_")]
    ]
    assert [found.names[j] for j in found.flip_indices] == other
    assert [found.side(j) for j in range(found.num_keypoints)] == [
        -1 if n.startswith("left") else 1 if n.startswith("right") else 0 for n in found.names
    ]
    order = found.flip_indices
    for members in (found.upper_body, found.shared_body):
        assert {int(order[j]) for j in members} == set(members)
    assert {frozenset(order[list(limb)].tolist()) for limb in found.limbs} == {
        frozenset(limb) for limb in found.limbs
    }
    assert np.array_equal(np.array(found.sigmas)[order], found.sigmas) and np.array_equal(
        np.array(found.weights)[order], found.weights
    )
    assert {joint for limb in found.limbs for joint in limb} == set(range(found.num_keypoints))
    assert load_dataset_info(name).remarks == ()


def test_coco_and_mpii_facts_equal_published():
    assert (
        COCO.sigmas == pytest.approx(Params("keypoints").kpt_oks_sigmas)
        and COCO.num_keypoints == 17
        and MPII.num_keypoints == 16
    )
    assert (
        COCO.upper_body == tuple(range(11))
        and MPII.upper_body == tuple(range(7, 16))
        and COCO.shared_body == (11, 12)
    )
    assert (
        COCO.names[0] == "nose"
        and COCO.names[9] == "left_wrist"
        and MPII.names[0] == "right_ankle"
        and MPII.names[9] == "head_top"
    )
    # HRNet's joints_weight
    assert COCO.weights == (1, 1, 1, 1, 1, 1, 1, 1.2, 1.2, 1.5, 1.5, 1, 1, 1.2, 1.2, 1.5, 1.5)
    assert MPII.weights == (1.5, 1.2, 1, 1, 1.2, 1.5, 1, 1, 1, 1, 1.5, 1.2, 1, 1, 1.2, 1.5)
    assert pytest.approx(np.mean(COCO.sigmas), abs=5e-4) == skeleton.DEFAULT_SIGMA


def test_template_documents_every_key():
    """Every key that a file can have is there, with the words above it."""
    lines = (ROOT / "experiments/datasets/template.yaml").read_text().splitlines()
    assert set(yaml.safe_load("\n".join(lines))) == set(dataset_yaml._KEYS)
    previous = {
        line.split(":")[0]: lines[n - 1]
        for n, line in enumerate(lines)
        if line and line[0].isalpha()
    }
    assert all(
        previous[key].startswith("#") for key in previous if key not in ("images", "both_halves")
    )


@pytest.mark.parametrize(
    "name, set_name, annotations, images, labelled",
    [
        (
            "coco",
            "train2017",
            "annotations/person_keypoints_train2017.json",
            "images/train2017",
            True,
        ),
        (
            "coco",
            "test-dev2017",
            "annotations/image_info_test-dev2017.json",
            "images/test2017",
            False,
        ),
        ("mpii", "valid", "annot/valid.json", "images", True),
        ("mpii", "test", "annot/test.json", "images", False),
        ("crowdpose", "test", "json/crowdpose_test.json", "images", True),
    ],
)
def test_dataset_files_paths_equal_published_layout(name, set_name, annotations, images, labelled):
    files = load_dataset_info(name).files(set_name)
    assert (files.annotations, files.images, files.labelled) == (annotations, images, labelled)
    assert (files.head_boxes == "annot/gt_valid.mat") == (set_name == "valid")


def test_annotation_path_empty_root_uses_dataset_file(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("DATASET: {DATASET: crowdpose}\n")
    assert (
        datasets.annotation_path(config.load(path), "val").as_posix()
        == "data/crowdpose/json/crowdpose_val.json"
    )
    cfg = config.load(
        path, ["DATASET.ROOT", "crowds", "DATA_DIR", "/data", "DATASET.DATA_FORMAT", "zip"]
    )
    assert datasets.annotation_path(cfg, "val").as_posix() == "/data/crowds/json/crowdpose_val.json"
    assert datasets.image_folder(cfg, "val").location.as_posix() == "/data/crowds/images.zip"


def test_shipped_from_other_working_folder_is_equal(tmp_path):
    """Find them relative to lib/, not to the working folder."""
    code = (
        "from poise.config.dataset_yaml import MPII, builtin_datasets;"
        " print(MPII.names[6], *builtin_datasets())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "lib"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["pelvis", *dataset_yaml.builtin_datasets()]


def test_dataset_missing_folder_raises_and_custom_file_loads(monkeypatch, tmp_path, written):
    """A package that was copied out of the repository says so, and still takes a file of one's
    own.
    """
    monkeypatch.setattr(dataset_yaml, "DATASETS_DIR", tmp_path / "gone")
    monkeypatch.setattr(dataset_yaml, "_last_read", {})
    path = tmp_path / "e.yaml"
    path.write_text("DATASET: {DATASET: coco}\n")
    text = refusal(config.load, path)
    assert (
        f"{path}: DATASET.DATASET: {tmp_path}/gone: no such folder" in text
        and "pip install -e ." in text
        and "DATASET.FILE" in text
    )
    assert config.load(experiment(tmp_path, written())).MODEL.NUM_JOINTS == 5


# what follows from a file -------------------------------------------------------------------------


def test_load_experiment_takes_values_of_its_dataset_file(tmp_path, written):
    path = experiment(tmp_path, written())
    cfg = config.load(path)
    assert (cfg.MODEL.NUM_JOINTS, cfg.DATASET.DATASET) == (5, "dots5") and dataset_info(
        cfg
    ).skeleton.names[1] == "left_0"
    (tmp_path / "again.yaml").write_text(cfg.dump())  # the config.yaml of a run
    assert config.load(tmp_path / "again.yaml") == cfg
    assert config.load(path, ["MODEL.NUM_JOINTS", "5"]) == cfg
    text = refusal(config.load, path, ["MODEL.NUM_JOINTS", "17"])
    assert text == f"{path}: MODEL.NUM_JOINTS must be 5, as {tmp_path}/own.yaml has, got 17"


def test_load_changed_dataset_file_is_read_again(tmp_path, written):
    path = experiment(tmp_path, written())
    assert config.load(path).MODEL.NUM_JOINTS == 5
    written(**dataset_keys(7))
    assert config.load(path).MODEL.NUM_JOINTS == 7


def test_read_dataset_without_name_is_own(tmp_path, written):
    assert read_dataset(written(name=None)).name == "own"


def test_load_half_body_without_upper_body_is_disabled_and_logged(tmp_path, caplog):
    path = experiment(tmp_path, make_set(tmp_path / "set", 5, upper_body=None))
    cfg = config.load(path)
    assert (
        cfg.DATASET.PROB_HALF_BODY == 0
        and config.load(path, ["DATASET.PROB_HALF_BODY", "-1"]).DATASET.PROB_HALF_BODY == -1
    )
    assert (
        config.load(experiment(tmp_path, make_set(tmp_path / "other", 5))).DATASET.PROB_HALF_BODY
        == 0.3
    )
    forget_log_handlers()
    with caplog.at_level(logging.INFO):
        load_split(cfg, train=True)
        load_split(cfg, train=False)
    assert (
        caplog.messages.count(
            f"{tmp_path / 'set' / 'dots.yaml'}: has no upper_body; half-body augmentation is off"
        )
        == 1
    )


def test_read_dataset_missing_keys_take_defaults_with_remarks(written):
    found = read_dataset(written(sigmas=None, weights=None, flip_pairs=None, category=None))
    assert (
        found.skeleton.sigmas == (0.067,) * 5
        and found.skeleton.weights == (1.0,) * 5
        and (found.category, found.format, found.metric) == ("person", "coco", "oks")
    )
    assert len(found.remarks) == 2
    assert (
        "has no sigmas, so the OKS takes 0.067 for every joint" in found.remarks[0]
        and "left_0, right_0, left_1, right_1 are in no flip_pairs" in found.remarks[1]
    )
    assert found.skeleton.flip_indices.tolist() == list(range(5))


def test_read_set_dataset_remarks_are_logged_once(tmp_path, caplog):
    forget_log_handlers()
    cfg = config.load(experiment(tmp_path, make_set(tmp_path / "set", 2, sigmas=None)))
    with caplog.at_level(logging.WARNING):
        load_split(cfg, train=True)
        assert not caplog.records
        load_split(cfg, train=False)
    assert [record.levelname for record in caplog.records] == [
        "WARNING"
    ] and "has no sigmas" in caplog.text


def test_skeleton_side_without_left_right_names_uses_pairs(written):
    found = read_dataset(
        written(
            joints=["a", "b", "c", "d", "e"], flip_pairs=[["b", "a"]], limbs=[], upper_body=["a"]
        )
    ).skeleton
    assert [found.side(j) for j in range(5)] == [1, -1, 0, 0, 0]


# ultralytics' data.yaml ---------------------------------------------------------------------------

HAND = {
    "path": "hand",
    "train": "images/train",
    "val": "images/val",
    "test": None,
    "kpt_shape": [3, 3],
    "flip_idx": [0, 2, 1],
    "names": {0: "hand"},
    "kpt_names": {0: ["wrist", "tip_right", "tip_left"]},
    "download": "https://example.org/x.zip",
    "nc": 1,
}
COCO_FLIP = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


@pytest.fixture
def yolo_file(tmp_path):
    """A function that writes a data.yaml of HAND with some keys changed, or left out where None,
    and returns its path.
    """

    def write(**keys):
        path = tmp_path / "data.yaml"
        path.write_text(
            yaml.safe_dump(
                {key: value for key, value in (HAND | keys).items() if value is not None}
            )
        )
        return path

    return write


def test_read_dataset_ultralytics_file_gives_keypoints_and_paths(tmp_path, yolo_file):
    found = read_dataset(yolo_file())
    assert (
        found.skeleton.names == ("wrist", "tip_right", "tip_left")
        and found.skeleton.flip_pairs == ((2, 1),)
        and found.can_flip
    )
    assert (found.name, found.category, found.format, found.metric, found.root) == (
        "hand",
        "hand",
        "coco",
        "oks",
        str(tmp_path / "hand"),
    )
    assert found.skeleton.sigmas == (1 / 3,) * 3 and found.skeleton.upper_body == ()
    assert (
        found.files("val")
        == skeleton.SplitInfo("annotations/val.json", "images/val", yolo_labels="labels/val")
        and len(found.sets) == 2
    )
    assert found.remarks == (
        (
            f"{tmp_path}/data.yaml: the OKS takes 1/3 as the sigma of each keypoint, as ultralytics"
            " does; such an AP compares runs on this data set only"
        ),
    )
    assert read_dataset(yolo_file(kpt_oks_sigmas=[0.1, 0.2, 0.3])).skeleton.sigmas == (
        0.1,
        0.2,
        0.3,
    )
    assert read_dataset(yolo_file(kpt_names=None)).skeleton.names == ("kpt_0", "kpt_1", "kpt_2")
    assert (
        read_dataset(yolo_file(kpt_names=["a", "b", "c"], names=["x", "y"]))
        .remarks[-1]
        .endswith("has 2 classes; only class 0 is read, x")
    )


@pytest.mark.parametrize("names", [{0: list(load_dataset_info("coco").skeleton.names)}, None])
def test_read_dataset_ultralytics_coco_keypoints_take_coco_facts(yolo_file, names):
    found, coco = (
        read_dataset(
            yolo_file(kpt_shape=[17, 3], flip_idx=COCO_FLIP, kpt_names=names, names={0: "person"})
        ),
        load_dataset_info("coco").skeleton,
    )
    for key in ("names", "sigmas", "limbs", "upper_body", "shared_body", "weights"):
        assert getattr(found.skeleton, key) == getattr(coco, key)
    assert set(found.skeleton.flip_pairs) == set(coco.flip_pairs)
    assert [remark.split(": ")[1][:16] for remark in found.remarks] == (
        [] if names else ["has no kpt_names"]
    )
    other = read_dataset(
        yolo_file(kpt_shape=[17, 3], flip_idx=COCO_FLIP, kpt_names=list(coco.names[::-1]))
    )
    assert other.skeleton.sigmas == (1 / 17,) * 17 and other.skeleton.upper_body == ()


def test_load_ultralytics_without_flip_idx_disables_flips(tmp_path, yolo_file):
    path = experiment(tmp_path, yolo_file(flip_idx=None))
    cfg = config.load(path, ["DATASET.FLIP", True, "TEST.FLIP_TEST", True])
    assert (cfg.DATASET.FLIP, cfg.TEST.FLIP_TEST, cfg.DATASET.PROB_HALF_BODY) == (False, False, 0)
    assert (
        dataset_info(cfg).remarks[-1]
        == f"{tmp_path}/data.yaml: has no flip_idx; DATASET.FLIP and TEST.FLIP_TEST are off, as in"
        " ultralytics"
    )
    cfg = config.load(experiment(tmp_path, yolo_file()))
    assert cfg.DATASET.FLIP and cfg.TEST.FLIP_TEST


def test_read_dataset_ultralytics_paths_resolve_as_ultralytics(tmp_path, yolo_file, monkeypatch):
    """Search images in the working folder, then in the folder of the file.

    A leading ../ that Roboflow writes leads to no folder and is dropped.
    """
    (tmp_path / "train" / "images").mkdir(parents=True)
    found = read_dataset(yolo_file(path=None, train="../train/images", val="/elsewhere/val/images"))
    assert found.root == str(tmp_path) and found.name == tmp_path.name
    assert found.files("train") == skeleton.SplitInfo(
        "annotations/train.json", "train/images", yolo_labels="train/labels"
    )
    assert found.files("val") == skeleton.SplitInfo(
        "annotations/val.json", "/elsewhere/val/images", yolo_labels="/elsewhere/val/labels"
    )
    (tmp_path / "work" / "hand").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert read_dataset(yolo_file()).root == str(tmp_path / "work" / "hand")
    assert read_dataset(yolo_file(path=".", train="train/images", val="train/images")).root == str(
        tmp_path
    )


@pytest.mark.parametrize("root", ["locked/deeper", "/" + "x" * 5000, "loop"])
def test_read_dataset_ultralytics_unreadable_path_raises(tmp_path, yolo_file, monkeypatch, root):
    """The tests may run as root, who enters every folder: the system's answer is put in."""
    real = os.stat

    def stat(path, *args, **kwargs):
        if "locked/" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(os, "stat", stat)
    path = experiment(tmp_path, yolo_file(path=root, train="../images/train"))
    with pytest.raises(DataError, match="no such folder .*; set DATASET.ROOT to the data set's"):
        datasets.annotation_path(config.load(path), "train")


@pytest.mark.parametrize(
    "keys, fault",
    [
        (
            {"kpt_shape": [0, 3]},
            "kpt_shape must be a number of keypoints from 1 to 1000, and 2 or 3, got [0, 3]",
        ),
        ({"kpt_shape": [True, 3]}, "kpt_shape must be"),
        ({"kpt_shape": 17}, "kpt_shape must be"),
        ({"kpt_shape": [3, 4]}, "kpt_shape must be"),
        ({"flip_idx": [0, 1]}, "flip_idx must have each number from 0 to 2 once, got [0, 1]"),
        ({"flip_idx": [1, 2, 0]}, "flip_idx must exchange keypoints in pairs"),
        ({"flip_idx": 3}, "flip_idx must have each number"),
        (
            {"kpt_names": {0: ["a"]}},
            "kpt_names must be a list of 3 names, as kpt_shape says, got ['a']",
        ),
        ({"kpt_names": {0: ["a", "a", "b"]}}, "joints has 'a' twice"),
        ({"names": []}, "names must be the names of the classes"),
        ({"names": 3}, "names must be the names"),
        (
            {"train": ["a", "b"]},
            (
                "train must be a folder of images, got ['a', 'b']; lists of images and of folders"
                " are not read"
            ),
        ),
        ({"val": "val2017.txt"}, "val must be a folder of images, got 'val2017.txt'"),
        ({"path": 3}, "path must be the data set's folder, got 3"),
        ({"kpt_oks_sigmas": [0.1]}, "sigmas has 1 numbers, expected 3"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_read_dataset_ultralytics_invalid_key_raises(yolo_file, keys, fault):
    path = yolo_file(**keys)
    assert f"{path}: {fault}" in refusal(read_dataset, path)


def test_ultralytics_labels_convert_by_suggested_command(tmp_path, yolo_file, monkeypatch):
    """From data.yaml, images and YOLO labels to a table of persons, by what the messages say."""
    made = read_dataset(make_set(tmp_path / "made", 3, file="made.yaml"))
    for name in ("train", "val"):
        pictures = converters.read("coco", tmp_path / "made" / "labels" / f"{name}.json", made)
        converters.write("yolo", tmp_path / "hand set" / "labels" / name, made, pictures)
        for picture in pictures:
            target = tmp_path / "hand set" / "images" / name / picture.name
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / "frames" / picture.name).rename(target)
    path = experiment(tmp_path, yolo_file(path="hand set"))
    assert (
        sum(
            "annotations: " in finding.text and "convert the YOLO labels" in finding.text
            for finding in run.check(build_sources(config.load(path)))[0]
        )
        == 2
    )
    for name in ("train", "val"):
        with pytest.raises(DataError) as error:
            load_split(config.load(path), train=name == "train")
        assert "hand set/annotations" in str(
            error.value
        ) and "missing; convert the YOLO labels once: python tools/convert_data.py " in str(
            error.value
        )
        done = subprocess.run(
            str(error.value).split("once: ")[1].replace("python", sys.executable, 1),
            shell=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    table, images = load_split(config.load(path), train=True)
    assert len(table) == 24 and images.read(table.image_names[0]).shape == (64, 120, 3)
    assert not [
        finding
        for finding in run.check(build_sources(config.load(path)))[0]
        if finding.kind == "error"
    ]
    text = refusal(read_set_of, config.load(path, ["DATASET.TRAIN_SET", "train2017"]))
    assert (
        text
        == f"{tmp_path}/data.yaml: has no set 'train2017', it has train, val; set DATASET.TRAIN_SET"
        " and DATASET.TEST_SET to one of them"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match="no such folder .*/none; set DATASET.ROOT to the data set's"
    ):
        read_set_of(config.load(experiment(tmp_path, yolo_file(path="none"))))


def read_set_of(cfg):
    return load_split(cfg, train=True)


# what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, fault",
    [
        (dict(sigmas=[0.1] * 4), "sigmas has 4 numbers, expected 5, one for each of joints"),
        (dict(sigmas=[0.1] * 6), "sigmas has 6 numbers, expected 5"),
        (
            dict(sigmas=[0.1, 0.1, 0.1, 0.1, 0]),
            "sigmas must be numbers above 0 and at most 1000, got 0",
        ),
        (
            dict(sigmas=[0.1, 0.1, 0.1, 0.1, float("nan")]),
            "sigmas must be numbers above 0 and at most 1000, got nan",
        ),
        (
            dict(sigmas=[0.1, 0.1, 0.1, 0.1, "x"]),
            "sigmas must be numbers above 0 and at most 1000, got 'x'",
        ),
        (
            dict(sigmas=[0.1, 0.1, 0.1, 0.1, True]),
            "sigmas must be numbers above 0 and at most 1000, got True",
        ),
        (dict(sigmas=0.1), "sigmas must be a list, got 0.1"),
        (dict(weights=[1] * 4), "weights has 4 numbers, expected 5"),
        (dict(weights=[1, 1, 1, 1, -1]), "weights must be numbers of 0 or more"),
        (dict(joints=None), "joints must be a list of 1 to 1000 names, got null"),
        (dict(joints=[]), "joints must be a list of 1 to 1000 names"),
        (dict(joints=["a"] * 1001), "joints must be a list of 1 to 1000 names"),
        (dict(joints=["a", "b", "a"]), "joints has 'a' twice"),
        (dict(joints=["a", 3]), "joints must be a list of names, got 3 in it"),
        (dict(joints=["a", "b\nc"]), "joints must be a list of names, got 'b\\nc' in it"),
        (
            dict(flip_pairs=[["left_0", "rihgt_0"]]),
            "flip_pairs names 'rihgt_0', which joints does not list; did you mean right_0?",
        ),
        (
            dict(flip_pairs=[["left_0", "right_0"], ["right_0", "left_1"]]),
            "flip_pairs has 'right_0' twice",
        ),
        (dict(flip_pairs=[["left_0", "left_0"]]), "flip_pairs must be pairs of two joints"),
        (dict(flip_pairs=[["left_0"]]), "flip_pairs must be pairs of two joints"),
        (dict(flip_pairs=[[1, 2]]), "flip_pairs names 1, which joints does not list"),
        (dict(flip_pairs={"left_0": "right_0"}), "flip_pairs must be a list"),
        (dict(limbs=[["middle", "nose"]]), "limbs names 'nose', which joints does not list"),
        (dict(upper_body=["head"]), "upper_body names 'head'"),
        (dict(both_halves="hips"), "both_halves must be a list, got 'hips'"),
        (dict(annotations=None), "has no annotations, which a dataset file needs"),
        (dict(images=None), "has no images, which a dataset file needs"),
        (dict(images=["a"]), "images must be text, got ['a']"),
        (dict(root=3), "root must be text, got 3"),
        (dict(format="yolo"), "format must be coco or mpii, got 'yolo'"),
        (dict(metric="pck"), "metric must be oks or crowdpose, got 'pck'"),
        (dict(format="mpii", metric="oks"), "metric must be pckh with format mpii, got 'oks'"),
        (dict(metric=["oks"]), "metric must be oks or crowdpose"),
        (dict(category=1.5), "category must be the name or the id of a category, got 1.5"),
        (dict(category=""), "category must be the name"),
        (dict(name="../up"), "name must do as the name of a folder, got '../up'"),
        (dict(name=".."), "name must do as the name of a folder"),
        (dict(name="a\x1b[2Jb"), "name must do as the name of a folder"),
        (dict(name=5), "name must be text, got 5"),
        (dict(sets=["train"]), "sets must be set names, each with its keys"),
        (dict(sets={"test": "x"}), "sets must be set names, each with its keys"),
        (
            dict(sets={"test": {"label": False}}),
            "sets.test.label is none of annotations, images, labelled, head_boxes",
        ),
        (
            dict(sets={"test": {"labelled": "no"}}),
            "sets.test.labelled must be true or false, got 'no'",
        ),
        (dict(sets={"test": {"images": 3}}), "sets.test.images must be text, got 3"),
        (dict(sigma=[0.1] * 5), "unknown key 'sigma'; did you mean sigmas?"),
        (dict(color="red"), "unknown key 'color'; the keys are name, format, "),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_read_dataset_invalid_key_raises(tmp_path, written, keys, fault):
    path = written(**keys)
    assert f"{path}: {fault}" in refusal(read_dataset, path)
    # and so from an experiment, which names both
    assert f"{tmp_path}/dots.yaml: DATASET.FILE: {path}: {fault}"[:200] in refusal(
        config.load, experiment(tmp_path, path)
    )


@pytest.mark.parametrize(
    "text, fault",
    [
        ("joints: [", "not valid YAML"),
        ("- 1\n", "expected KEY: VALUE lines, got a list"),
        ("", "joints must be a list"),
        ("!!python/object/apply:os.system [x]", "not valid YAML"),
        (
            "a0: &a0 [0,0,0,0,0,0,0,0,0,0]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
            "stands for more than 100000 values",
        ),
        ("# " + "x" * (1 << 20), "the dataset file has 1.0 MB, more than the 1.0 MB that are read"),
        ("1: 2\njoints: [a]\n", "unknown key 1"),
    ],
    ids=range(7),
)
def test_read_dataset_invalid_file_raises(written, text, fault):
    assert f"own.yaml: {fault}" in refusal(read_dataset, written(text))


def test_load_missing_dataset_file_or_name_raises(tmp_path):
    path = experiment(tmp_path, tmp_path / "none.yaml")
    text = refusal(config.load, path)
    assert (
        f"DATASET.FILE: {tmp_path}/none.yaml: cannot read the dataset file (No such file or"
        " directory); experiments/datasets/template.yaml shows" in text
    )
    text = refusal(config.load, experiment(tmp_path, "cocoo"))
    assert (
        "DATASET.FILE: no dataset file 'cocoo': it must be one of coco, crowdpose, mpii, template,"
        " or the path of a YAML file" in text
    )
    path.write_text("DATASET: {DATASET: imagenet}\n")
    assert (
        refusal(config.load, path)
        == f"{path}: DATASET.DATASET must be one of coco, crowdpose, mpii, template, got"
        " 'imagenet'; "
        "DATASET.FILE takes a file of your own"
    )


# docs/datasets.md ------------------------------------------------------------------------------


def blocks():
    """The YAML blocks of the page, in their order."""
    page = (ROOT / "docs/datasets.md").read_text()
    return [part.split("```")[0] for part in page.split("```yaml\n")[1:]]


def test_docs_dataset_file_lists_every_key():
    page = (ROOT / "docs/datasets.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(any(f"`{key}`" in row.split("|")[1] for row in rows) for key in dataset_yaml._KEYS)


def test_docs_datasets_files_load(tmp_path, monkeypatch):
    """The dataset file, the experiment on a published recipe, and the mix, as they stand there."""
    hands, recipe, mix = blocks()[:3]
    (
        (tmp_path / "experiments" / "hands").mkdir(parents=True),
        (tmp_path / "data" / "hands").mkdir(parents=True),
    )
    (tmp_path / "data" / "hands" / "hands.yaml").write_text(hands)
    for name in ("coco", "_base_"):
        (tmp_path / "experiments" / name).symlink_to(ROOT / "experiments" / name)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "experiments" / "hands" / "w32.yaml"
    path.write_text(recipe)
    cfg = config.load(path)
    assert (cfg.MODEL.NUM_JOINTS, cfg.DATASET.DATASET, cfg.MODEL.NAME) == (
        5,
        "hands",
        "pose_hrnet",
    ) and dataset_info(cfg).category == "hand"
    assert datasets.annotation_path(cfg, "train").as_posix() == "data/hands/annotations/train.json"
    path.write_text("_BASE_: ../coco/hrnet/w32_256x192_adam_lr1e-3.yaml\n" + mix)
    cfg = config.load(path)
    assert set(cfg.DATASET.MIX) == {"mpii", "hands"} and (
        cfg.DATASET.MIX.mpii.REPEAT,
        cfg.DATASET.MIX.hands.REPEAT,
    ) == (0.5, 1.0)
    assert (
        datasets.annotation_path(cfg, "train2017").as_posix()
        == "data/coco/annotations/person_keypoints_train2017.json"
    )
