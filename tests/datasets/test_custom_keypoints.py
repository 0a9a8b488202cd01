"""Test datasets with any keypoints, category and file names, from dataset file to AP."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
import yaml
from poise import config
from poise.codecs import CODECS, build_codec
from poise.config.datasets import dataset_info
from poise.datasets import build_loader, load_split, select_data
from poise.engine import evaluate, train
from poise.engine.run_logger import TrainLogger
from poise.errors import ConfigError, DataError
from poise.models import MODELS, build_model
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.custom_datasets import dataset_keys, experiment, joint_names, make_set
from support.paths import ROOT
from support.runs import forget_log_handlers
from support.small_networks import EXPERIMENT, SIZE


@pytest.fixture(autouse=True)
def quiet():
    yield
    forget_log_handlers()


def run(path, *overrides):
    """Train and test; returns (run folder, figures)."""
    cfg = config.load(path, [str(value) for value in overrides])
    train.run(cfg, str(path), ["tools/train.py"])
    return path.parent / "output" / cfg.DATASET.DATASET / cfg.MODEL.NAME / path.stem, evaluate.run(
        cfg, str(path), ["tools/test.py"]
    )


def judged(truth_file, result_file, sigmas, category=7):
    """pycocotools' ten figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluation = COCOeval(truth, truth.loadRes(str(result_file)), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.params.catIds = [category]
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("count", [1, 2, 5, 133])
def test_train_and_evaluate_any_number_of_keypoints(tmp_path, count):
    file = make_set(tmp_path / "set", count)
    path = experiment(tmp_path, file)
    cfg = config.load(path)
    assert count == cfg.MODEL.NUM_JOINTS and f"dots{count}" == cfg.DATASET.DATASET
    folder, figures = run(path, "DEBUG.DEBUG", True, "DEBUG.SAVE_BATCH_IMAGES_PRED", True)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 1
    results = folder / "results" / "keypoints_val_results_gt_boxes.json"
    entries = json.loads(results.read_text())
    assert {entry["category_id"] for entry in entries} == {7} and {
        len(entry["keypoints"]) for entry in entries
    } == {3 * count}
    sigmas = yaml.safe_load(file.read_text())["sigmas"]
    assert list(figures.values()) == pytest.approx(
        judged(tmp_path / "set" / "labels" / "val.json", results, sigmas), abs=1e-12
    )
    assert 0 < figures["AP"] < 1
    assert (
        torch.load(folder / "final_state.pth", weights_only=True)["final_layer.weight"].shape[0]
        == count
    )
    log = (folder / "test.log").read_text()
    assert all(f"| {name} |" in log for name in joint_names(count))
    assert {file.name for file in (folder / "pictures").iterdir()} == {
        f"cam 1_val-shot {n}.jpg" for n in range(8)
    }
    assert list(folder.rglob("*_pred.jpg"))


@pytest.mark.slow
def test_train_five_keypoints_are_learned(tmp_path, monkeypatch):
    """Thirty short epochs on dots: mirror, crop, codec, flip test and metric belong together, or
    the joints would be found elsewhere.
    """
    file = make_set(tmp_path / "set", 5, (("train", 48), ("val", 8)), sigmas=[0.1] * 5)
    wider = [
        "TRAIN.BATCH_SIZE_PER_GPU",
        4,
        "MODEL.EXTRA.NUM_DECONV_FILTERS",
        [24, 24, 24],
        "MODEL.EXTRA.NUM_CHANNELS",
        [16, 16, 16, 32],
        "DATASET.PROB_ROTATION",
        0,
        "DATASET.PROB_HALF_BODY",
        0,
        "DATASET.SCALE_FACTOR",
        0.1,
        "TRAIN.LR",
        0.004,
    ]
    monkeypatch.setattr(TrainLogger, "_show_test", lambda *_: None)  # images for TensorBoard
    _, before = run(experiment(tmp_path, file, "before.yaml"), *wider)
    _, after = run(
        experiment(tmp_path, file), *wider, "TRAIN.END_EPOCH", 30, "TRAIN.EVAL_INTERVAL", 30
    )
    assert before["AP"] < 0.1 and after["AP"] > 0.4 and after["Ap .5"] > 0.9


@pytest.mark.parametrize("count", [2, 133])
@pytest.mark.parametrize(
    "codec", [name for name, entry in CODECS.items() if entry.head == "heatmap"]
)
def test_codecs_any_number_of_keypoints_round_trip(tmp_path, count, codec):
    """Each codec's targets, read again, are the joints; each loss has a figure and a gradient
    for each joint.
    """
    mspn = codec == "megvii"
    cfg = config.load(
        experiment(tmp_path, make_set(tmp_path / "set", count, (("train", 2), ("val", 1)))),
        [
            "MODEL.TARGET_TYPE",
            codec,
            "MODEL.SIGMA",
            2,
            "LOSS.TYPE",
            "mspn" if mspn else "joints_mse",
            "LOSS.USE_OHKM",
            True,
            "LOSS.TOPK",
            2,
        ],
    )
    made = build_codec(cfg)
    rng = np.random.default_rng(0)
    joints = torch.from_numpy(rng.uniform(12, 50, (3, count, 2)).astype(np.float32))
    targets = made.encode(joints, torch.full((3, count), 2.0))
    found, scores = made.decode(targets.finest_heatmaps.numpy().astype(np.float32))
    assert (
        found.shape == (3, count, 2)
        and scores.shape == (3, count)
        and np.abs(found - joints.numpy()).max() <= 4
    )
    output = torch.zeros(3, count, 16, 16, requires_grad=True)
    loss = made.loss((output,) * (4 if mspn else 1), targets)
    loss.backward()
    assert loss > 0 and (output.grad.abs().sum(dim=(0, 2, 3)) > 0).sum() >= 2


@pytest.mark.parametrize("name", ["hrnet", "mspn", "posenas", "moganet", "resnet"])
def test_build_model_outputs_as_many_keypoints_as_dataset(tmp_path, name):
    """Of a published recipe nothing but the dataset file is changed."""
    recipe, narrow = EXPERIMENT[name]
    (tmp_path / "dots.yaml").write_text(yaml.safe_dump(dataset_keys(5)))
    cfg = config.load(
        ROOT / recipe,
        [
            *SIZE,
            *narrow,
            "DATASET.FILE",
            str(tmp_path / "dots.yaml"),
            "MODEL.INIT_WEIGHTS",
            False,
            *(["LOSS.TOPK", 5] if name == "mspn" else []),
        ],
    )
    model = build_model(cfg)
    assert (
        model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 16, 16) and cfg.MODEL.NAME in MODELS
    )


# files and categories -----------------------------------------------------------------------------


def test_load_split_keeps_image_names_and_category_id(tmp_path):
    cfg = config.load(experiment(tmp_path, make_set(tmp_path / "set", 5)))
    table, images = load_split(cfg, train=False)
    assert (
        table.category_id == 7
        and table.image_name(0) == "cam 1/val-shot 0.png"
        and table.image_ids[:3].tolist() == [1001, 1004, 1007]
    )
    assert table.dropped == {"of another category": 8} and images.read(
        table.image_name(3)
    ).shape == (64, 120, 3)
    assert (
        load_split(
            config.load(experiment(tmp_path, make_set(tmp_path / "set", 5, category=0))),
            train=False,
        )[0].category_id
        == 0
    )


def test_load_split_category_by_id_equals_by_name(tmp_path):
    path = experiment(tmp_path, make_set(tmp_path / "set", 5))
    names = load_split(config.load(path), train=False)[0]
    by_id = load_split(
        config.load(
            experiment(
                tmp_path,
                make_set(tmp_path / "set", 5, **{"category": 7}, file="id.yaml"),
                "id.yaml",
            )
        ),
        train=False,
    )[0]
    assert by_id.ann_ids.tolist() == names.ann_ids.tolist()


def test_load_split_missing_category_raises(tmp_path):
    file = make_set(tmp_path / "set", 5)
    keys = yaml.safe_load(file.read_text())
    for category in ("hand", 3):
        file.write_text(yaml.safe_dump(keys | {"category": category}))
        with pytest.raises(
            DataError,
            match=(
                f"has no category {category!r} with an id; .* `category` of the dataset file names"
            ),
        ):
            load_split(config.load(experiment(tmp_path, file)), train=True)


def test_load_split_detections_of_category_0_are_read(tmp_path):
    """Category 0 is an id like others, for detections too."""
    file = make_set(tmp_path / "set", 2, category=0)
    boxes = [
        {"image_id": 1001, "category_id": n % 2, "bbox": [1, 1, 30, 30], "score": 0.5}
        for n in range(5)
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    cfg = config.load(
        experiment(tmp_path, file),
        ["TEST.USE_GT_BBOX", False, "TEST.COCO_BBOX_FILE", str(tmp_path / "boxes.json")],
    )
    table, _ = load_split(cfg, train=False)
    assert (
        len(table) == 3 and table.category_id == 0 and table.dropped == {"of another category": 2}
    )


def test_load_split_other_keypoint_order_raises(tmp_path):
    file = make_set(tmp_path / "set", 5)
    keys = yaml.safe_load(file.read_text())
    keys["joints"][1:3] = keys["joints"][2:0:-1]
    file.write_text(yaml.safe_dump(keys))
    with pytest.raises(
        DataError,
        match=(
            "labels/train.json: its joint 1 is 'left_0', in .*dots.yaml it is 'right_0'; `joints`"
            " there must have"
        ),
    ):
        load_split(config.load(experiment(tmp_path, file)), train=True)


def test_load_split_wrong_number_of_keypoints_raises(tmp_path):
    file = make_set(tmp_path / "set", 5)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | dataset_keys(6)))
    with pytest.raises(
        DataError, match=r"annotation 5 has 15 keypoint numbers, expected 18 \(6 joints x 3\)"
    ):
        load_split(config.load(experiment(tmp_path, file)), train=True)


def test_load_split_changed_dataset_file_invalidates_cache(tmp_path, monkeypatch):
    """What a changed dataset file makes of the same annotations is not taken from the cache of
    the unchanged one.
    """
    monkeypatch.setattr("poise.io.cache.MIN_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = make_set(tmp_path / "set", 5)
    path = experiment(tmp_path, file)
    first = load_split(config.load(path), train=False)[0]
    keys = yaml.safe_load(file.read_text())
    kept = len(list((tmp_path / "cache" / "poise").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr("poise.datasets.coco_files.read_in_parts", None)  # from the cache alone
        assert (
            load_split(config.load(path), train=False)[0].keypoints.tolist()
            == first.keypoints.tolist()
        )
        # sigmas and limbs are not in the arrays: no need to read the file again
        file.write_text(yaml.safe_dump(keys | {"sigmas": [0.5] * 5}))
        assert load_split(config.load(path), train=False)[0].skeleton.sigmas == (0.5,) * 5
    file.write_text(yaml.safe_dump(keys | {"category": 1}))
    with pytest.raises(DataError, match="annotation 90000 has no 'keypoints'"):
        load_split(config.load(path), train=False)
    file.write_text(
        yaml.safe_dump(
            keys
            | dataset_keys(6)
            | {
                "annotations": keys["annotations"],
                "images": keys["images"],
                "root": keys["root"],
            }
        )
    )
    with pytest.raises(DataError, match="expected 18"):
        load_split(config.load(path), train=False)
    assert len(list((tmp_path / "cache" / "poise").iterdir())) == kept


def test_select_data_many_keypoints_keeps_persons(tmp_path):
    """HRNet's rule would ask more than 1 of a person with 133 joints, and drop everybody."""
    cfg = config.load(
        experiment(tmp_path, make_set(tmp_path / "set", 133)), ["DATASET.SELECT_DATA", True]
    )
    table, _ = load_split(cfg, train=True)
    assert len(table) > 10 and select_data(table).all()


def test_build_loader_mirrored_person_swaps_sides(tmp_path):
    """After a mirror the left joint still lies where an image has the person's left: in the
    right half, as custom_datasets draws them.
    """
    cfg = config.load(
        experiment(tmp_path, make_set(tmp_path / "set", 5)),
        ["DATASET.PROB_ROTATION", 0, "DATASET.PROB_HALF_BODY", 0],
    )
    loader = build_loader(cfg, *load_split(cfg, train=True), train=True)
    seen = 0
    for batch in loader:
        joints, visible = batch["joints"].numpy(), batch["visible"].numpy() > 0
        for left, right in dataset_info(cfg).skeleton.flip_pairs:
            both = visible[:, left] & visible[:, right]
            assert (joints[both, left, 0] > joints[both, right, 0]).all()
            seen += both.sum()
    assert seen > 20


def test_load_ohkm_topk_above_keypoints_raises(tmp_path):
    path = experiment(tmp_path, make_set(tmp_path / "set", 5, (("train", 1), ("val", 1))))
    with pytest.raises(ConfigError, match="LOSS.TOPK must be from 1 to 5 joints, got 8"):
        config.load(path, ["LOSS.USE_OHKM", True])
