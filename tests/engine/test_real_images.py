"""Test all steps from JPEG files to AP on real COCO images next to the project."""

import json
from pathlib import Path

import pytest
from poise import config
from poise.engine import evaluate, train
from support.paths import ROOT

# Small batches: it is the number of steps that lets a network memorize. Hard keypoint mining: with
# the plain mean squared error one keypoint's heatmap may stay empty for most of so short a training
# (AP 0.86 to 0.91 on different machines and seeds).
OVERFIT = """
_BASE_: {root}/experiments/synthetic/_base_/res2net18.yaml
OUTPUT_DIR: {out}/output
LOG_DIR: {out}/log
AUTO_RESUME: false
WORKERS: 0
CPU_THREADS: 1
DATASET: {{DATASET: coco, ROOT: {data}, TRAIN_SET: train2017, TEST_SET: train2017, FLIP: false,
  SCALE_FACTOR: 0, ROT_FACTOR: 0}}
MODEL: {{NAME: pose_resnet, IMAGE_SIZE: [96, 128], HEATMAP_SIZE: [48, 64],
  EXTRA: {{NUM_CHANNELS: [32, 64, 128, 256]}}}}
LOSS: {{USE_OHKM: true, TOPK: 8}}
TRAIN: {{BATCH_SIZE_PER_GPU: 8, LR: 0.002, LR_FACTOR: 0.3, LR_STEP: [100, 115, 125],
  END_EPOCH: 135, EVAL_INTERVAL: 45}}
TEST: {{FLIP_TEST: false, OKS_THRE: 0.9, IN_VIS_THRE: 0.2, PICTURES: 8}}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, shared):
    folder = tmp_path_factory.mktemp("real")
    path = folder / "overfit.yaml"
    path.write_text(OVERFIT.format(root=ROOT, out=folder, data=shared / "data/coco_subset"))
    return path


@pytest.mark.slow
def test_train_real_images_overfits(experiment):
    """A small network learns 225 persons by heart: annotation, crop, target, loss, decoding,
    back-projection and AP agree.
    """
    cfg = config.load(experiment)
    train.run(cfg, str(experiment), ["train"])
    figures = evaluate.run(cfg, str(experiment), ["test"])
    assert figures["AP"] >= 0.90


@pytest.mark.slow
def test_evaluate_real_images_with_detections_gives_ap(experiment, shared):
    """tools/test.py ... TEST.USE_GT_BBOX False on val2017; the network has not learned these
    persons, so its AP is small but not nothing.
    """
    detections = (
        shared / "data/coco_subset/person_detection_results/made_val2017_detections_person.json"
    )
    cfg = config.load(
        experiment,
        [
            "DATASET.TEST_SET",
            "val2017",
            "TEST.USE_GT_BBOX",
            False,
            "TEST.COCO_BBOX_FILE",
            str(detections),
            "TEST.PICTURES",
            0,
        ],
    )
    figures = evaluate.run(cfg, str(experiment), ["test"])
    results = (
        Path(cfg.OUTPUT_DIR)
        / "coco/pose_resnet/overfit/results"
        / "keypoints_val2017_results_made_val2017_detections_person.json"
    )
    entries = json.loads(results.read_text())
    assert 0 < len(entries) <= 742 and len(entries[0]["keypoints"]) == 51
    assert 0 <= figures["AP"] < 0.9
