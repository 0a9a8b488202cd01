"""Train in the process of the test and read what a run has written."""

import json
import logging
from pathlib import Path

import torch
from poise import config
from poise.engine import logger, train

# metrics that depend on the clock
TIMES = ("images_per_second", "data_time_share")


TINY = """
GPUS: (0,)
WORKERS: 0
PRINT_FREQ: 2
CPU_THREADS: 1
DATASET: {{DATASET: {dataset}, ROOT: {root}, TRAIN_SET: {train}, TEST_SET: {test}}}
MODEL:
  NAME: pose_res2net
  NUM_JOINTS: {joints}
  IMAGE_SIZE: [64, 64]
  HEATMAP_SIZE: [16, 16]
  SIGMA: 1
  EXTRA: {{NUM_LAYERS: 18, NUM_CHANNELS: [8, 8, 8, 16], NUM_DECONV_FILTERS: [8, 8, 8]}}
TRAIN: {{BATCH_SIZE_PER_GPU: 8, END_EPOCH: 2, LR_STEP: [1]}}
TEST: {{BATCH_SIZE_PER_GPU: 8, FLIP_TEST: true, POST_PROCESS: true, SHIFT_HEATMAP: true,
  USE_GT_BBOX: true, OKS_THRE: 0.9, IN_VIS_THRE: 0.2}}
"""


def in_larger_steps(text):
    """Return the experiment with batches of 16 (faster) and on the CPU (deterministic)."""
    assert "GPUS: (0,)" in text and "BATCH_SIZE_PER_GPU: 8" in text
    return text.replace("GPUS: (0,)", "GPUS: ()").replace(
        "BATCH_SIZE_PER_GPU: 8", "BATCH_SIZE_PER_GPU: 16"
    )


def run_train(path, *overrides):
    """Train in this process, on the CPU unless GPUS is given; return the run folder."""
    cfg = config.load(path, ["GPUS", "()", *(str(value) for value in overrides)])
    return train.run(cfg, str(path), ["tools/train.py", "--cfg", str(path)])


def folder_of(path, *overrides):
    """Return the run folder of an experiment file."""
    cfg = config.load(path, [str(value) for value in overrides])
    return Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, str(path))


def copied(path, name):
    """Copy an experiment file, with other output folders."""
    other = path.parent / name / path.name
    other.parent.mkdir()
    other.write_text(path.read_text().replace(f"{path.parent}/", f"{other.parent}/"))
    return other


def metrics_of(folder):
    """Return the lines of metrics.jsonl without the metrics of TIMES."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def positions(folder):
    """Return (epoch, step) of the checkpoints of a folder, newest first."""
    files = sorted(folder.glob("checkpoint*.pth"), key=lambda path: (len(path.name), path.name))
    return [(saved["epoch"], saved["step"]) for saved in map(state_of, files)]


def state_of(file):
    return torch.load(file, weights_only=True)


def same(one, two):
    """Return True if two state dicts are equal bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def same_weights(file, other):
    return same(state_of(file), state_of(other))


def unfinished(folder):
    """Return the partial files of a folder."""
    return [path for path in folder.rglob("*") if path.suffix in (".part", ".tmp")]


def without_settings(checkpoint, copy):
    """Copy a checkpoint without the config of its run."""
    content = state_of(checkpoint)
    del content["config"]
    torch.save(content, copy)
    return copy


def forget_log_handlers():
    """Remove the log handlers of a run in this process."""
    root = logging.getLogger("poise")
    root.setLevel(logging.NOTSET)
    for handler in list(root.handlers):
        handler.close()
        root.removeHandler(handler)
    root.propagate = True
