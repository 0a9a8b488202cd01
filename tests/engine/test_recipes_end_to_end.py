"""Test every family's recipe from training to evaluation, with few steps and images.

How far the small experiments come in a quarter of an hour is in docs/notes/small_recipes.md (make
families).
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from poise import config
from poise.engine import evaluate, logger, train
from support.paths import ROOT

SMALL = sorted((ROOT / "experiments/synthetic").glob("*_small.yaml"))


def overrides(tmp_path, root):
    return [
        "OUTPUT_DIR",
        str(tmp_path / "output"),
        "LOG_DIR",
        str(tmp_path / "log"),
        "DATASET.ROOT",
        str(root),
        "WORKERS",
        0,
        "AUTO_RESUME",
        False,
        "TEST.COCO_BBOX_FILE",
        str(Path(root) / "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"),
    ]


def test_small_experiments_cover_every_family():
    names = {config.load(path).MODEL.NAME for path in SMALL}
    assert names == {"pose_hrnet", "pose_res2net", "mspn", "posenas", "moganet"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if "dark" in path.stem else (), id=path.stem)
        for path in SMALL
    ],
)
def test_small_experiment_trains_and_evaluates(path, small_set, tmp_path):
    """Two epochs: every file of a run is there, the loss is a number, and the best weights give
    the same figures when they are tested.
    """
    short = [
        *overrides(tmp_path, small_set),
        "TRAIN.END_EPOCH",
        2,
        "TRAIN.EVAL_INTERVAL",
        2,
        "TRAIN.LR_STEP",
        [1],
        "TRAIN.WARMUP_ITERS",
        2,
    ]
    if config.load(path).TRAIN.ITERATIONS:
        short += ["TRAIN.ITERATIONS", 7]  # so that the second epoch is cut short
    cfg = config.load(path, short)
    train.run(cfg, str(path), ["test"])
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, str(path))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1] and all(
        0 < line["train_loss"] < math.inf for line in lines
    )
    assert ("valid_loss" in lines[1]) == cfg.TEST.USE_GT_BBOX  # detections have no labels
    metrics = evaluate.run(cfg, str(path), ["test"])
    assert {key: lines[1][key] for key in metrics} == pytest.approx(metrics, abs=1e-9) and len(
        metrics
    ) == 10
    assert (folder / "checkpoint.pth").is_file() and list((folder / "pictures").glob("*.jpg"))


@pytest.mark.parametrize(
    "family", ["mspn/mspn_2stg_256x256", "posenas/256x256_18l_48c", "hrnet/w32_256x256_adam_lr1e-3"]
)
def test_mpii_recipe_trains_and_evaluates(family, small_mpii_set, tmp_path):
    """MPII's recipes with small networks: one epoch and PCKh."""
    path = ROOT / f"experiments/mpii/{family}.yaml"
    small = {
        "mspn": [
            "MODEL.EXTRA.STEM_CHANNELS",
            8,
            "MODEL.EXTRA.CHANNELS",
            16,
            "MODEL.EXTRA.LAYERS",
            [1, 1, 1, 1],
            "TRAIN.ITERATIONS",
            2,
            "TRAIN.BASE_BATCH",
            8,
        ],
        "posenas": [
            "MODEL.EXTRA.INIT_CHANNELS",
            8,
            "MODEL.EXTRA.LAYERS",
            4,
            "MODEL.EXTRA.REFINE_CHANNELS",
            4,
            "MODEL.EXTRA.REFINE_LAYERS",
            4,
        ],
        "hrnet": [
            "MODEL.EXTRA.STAGE2.NUM_CHANNELS",
            [8, 16],
            "MODEL.EXTRA.STAGE3.NUM_CHANNELS",
            [8, 16, 32],
            "MODEL.EXTRA.STAGE4.NUM_CHANNELS",
            [8, 16, 32, 64],
            "MODEL.EXTRA.STAGE3.NUM_MODULES",
            1,
            "MODEL.EXTRA.STAGE4.NUM_MODULES",
            1,
            "MODEL.EXTRA.STEM_CHANNELS",
            16,
        ],
    }[family.split("/")[0]]
    cfg = config.load(
        path,
        [
            "OUTPUT_DIR",
            str(tmp_path / "output"),
            "LOG_DIR",
            str(tmp_path / "log"),
            "DATASET.ROOT",
            str(small_mpii_set),
            "WORKERS",
            0,
            "MODEL.PRETRAINED",
            "",
            "MODEL.IMAGE_SIZE",
            [64, 64],
            "MODEL.HEATMAP_SIZE",
            [16, 16],
            "TRAIN.END_EPOCH",
            1,
            "TRAIN.BATCH_SIZE_PER_GPU",
            8,
            *small,
        ],
    )
    train.run(cfg, str(path), ["test"])
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, str(path))
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= line["Mean"] <= 100 and (folder / "results/pred.mat").is_file()


def test_evaluate_dark_decoding_moves_keypoints_only(small_set, tmp_path):
    """TEST.DECODE dark moves joints and leaves the scores as they are."""
    path = ROOT / "experiments/synthetic/hrnet_small.yaml"
    short = [*overrides(tmp_path, small_set), "TRAIN.END_EPOCH", 1, "TEST.PICTURES", 0]
    train.run(config.load(path, short), str(path), ["test"])
    found = {}
    for decode in ("", "dark"):
        cfg = config.load(path, [*short, "TEST.DECODE", decode])
        evaluate.run(cfg, str(path), ["test"])
        (file,) = (Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, str(path)) / "results").glob(
            "*.json"
        )
        persons = json.loads(file.read_text())
        found[decode] = {
            (r["image_id"], tuple(r["center"])): np.array(r["keypoints"]).reshape(-1, 3)
            for r in persons
        }
    common = sorted(found[""].keys() & found["dark"].keys())
    assert len(common) > 5
    moved = np.concatenate([np.abs(found[""][key] - found["dark"][key]) for key in common])
    assert moved[:, :2].max() > 0 and moved[:, 2].max() == 0


def test_train_drop_path_depends_on_seed_and_step_only(small_set, tmp_path):
    """Two runs of MogaNet's recipe are equal bit for bit, whatever random numbers were drawn
    before.
    """
    path = ROOT / "experiments/synthetic/moganet_small.yaml"
    states = []
    for run in ("a", "b"):
        cfg = config.load(
            path,
            [
                *overrides(tmp_path / run, small_set),
                "TRAIN.END_EPOCH",
                1,
                "TRAIN.EVAL_INTERVAL",
                1,
                "MODEL.EXTRA.DROP_PATH",
                0.5,
            ],
        )
        torch.rand(17 if run == "b" else 1)
        train.run(cfg, str(path), ["test"])
        states.append(
            torch.load(
                Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, str(path)) / "final_state.pth",
                weights_only=True,
            )
        )
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
