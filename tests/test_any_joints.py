"""Data sets of any number of joints, any category and any file names: from the dataset file to the AP."""
import contextlib
import io
import json

import numpy as np
import pytest
import torch
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from conftest import forget_log_handlers
from made_joints import dataset_keys, experiment, joint_names, make_set
from poise import config
from poise.codecs import CODECS, build_codec
from poise.datasets import build_loader, joints_agree_with_box, read_set
from poise.engine import test, train
from poise.errors import ConfigError, DataError
from poise.losses import build_loss
from poise.models import MODELS, build_model
from poise.skeleton import dataset_of


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    monkeypatch.setattr(train, "_show", lambda *_: None)
    yield
    forget_log_handlers()


def run(path, *overrides):
    """Train and test; returns (run folder, figures)."""
    cfg = config.load(path, [str(value) for value in overrides])
    train.run(cfg, str(path), ["tools/train.py"])
    return path.parent / "output" / cfg.DATASET.DATASET / cfg.MODEL.NAME / path.stem, test.run(cfg, str(path), ["tools/test.py"])


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
def test_train_and_test(tmp_path, count):
    file = make_set(tmp_path / "set", count)
    path = experiment(tmp_path, file)
    cfg = config.load(path)
    assert cfg.MODEL.NUM_JOINTS == count and cfg.DATASET.DATASET == f"dots{count}"
    folder, figures = run(path, "DEBUG.DEBUG", True, "DEBUG.SAVE_BATCH_IMAGES_PRED", True)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 1
    results = folder / "results" / "keypoints_val_results_gt_boxes.json"
    entries = json.loads(results.read_text())
    assert {entry["category_id"] for entry in entries} == {7} and {len(entry["keypoints"]) for entry in entries} == {3 * count}
    sigmas = yaml.safe_load(file.read_text())["sigmas"]
    assert list(figures.values()) == pytest.approx(judged(tmp_path / "set" / "labels" / "val.json", results, sigmas), abs=1e-12)
    assert 0 < figures["AP"] < 1
    assert torch.load(folder / "final_state.pth", weights_only=True)["final_layer.weight"].shape[0] == count
    log = (folder / "test.log").read_text()
    assert all(f"| {name} |" in log for name in joint_names(count))
    assert len(list((folder / "pictures").iterdir())) == 8


def test_five_joints_are_learnt(tmp_path):
    """Forty short epochs on dots: flips, crops, codec and metric belong together, or the joints would be found elsewhere."""
    file = make_set(tmp_path / "set", 5, (("train", 32), ("val", 8)), sigmas=[0.1] * 5)
    _, before = run(experiment(tmp_path, file, "before.yaml"))
    _, after = run(experiment(tmp_path, file), "TRAIN.END_EPOCH", 40, "TRAIN.LR", 0.01, "TRAIN.EVAL_INTERVAL", 40, "DATASET.ROT_FACTOR", 10)
    print(before, after)
    assert before["AP"] < 0.1 and after["AP"] > 0.5
