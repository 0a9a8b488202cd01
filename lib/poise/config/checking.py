"""Values that no run could use are refused when the file is read, not an epoch later."""
from __future__ import annotations

import math

from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.skeleton import SKELETONS


def check_values(cfg: CfgNode, source: str) -> None:
    """Raise ConfigError, naming `source` and the key, for a value out of its range."""

    def need(condition: bool, key: str, rule: str) -> None:
        if not condition:
            value = cfg
            for part in key.split("."):
                value = value[part]
            raise ConfigError(f"{source}: {key} must be {rule}, got {value!r}")

    def finite(value: float) -> bool:
        return math.isfinite(value)

    for key in ("IMAGE_SIZE", "HEATMAP_SIZE"):
        size = cfg.MODEL[key]
        need(len(size) == 2 and all(float(v).is_integer() and 1 <= v <= 8192 for v in size), f"MODEL.{key}",
             "a width and a height between 1 and 8192")
    need(all(h <= i for h, i in zip(cfg.MODEL.HEATMAP_SIZE, cfg.MODEL.IMAGE_SIZE)), "MODEL.HEATMAP_SIZE", "no larger than MODEL.IMAGE_SIZE")
    need(finite(cfg.MODEL.SIGMA) and cfg.MODEL.SIGMA > 0, "MODEL.SIGMA", "above 0")
    need(cfg.MODEL.NUM_JOINTS >= 1, "MODEL.NUM_JOINTS", "at least 1")
    need(cfg.MODEL.STYLE in ("pytorch", "caffe"), "MODEL.STYLE", "'pytorch' or 'caffe'")
    need(cfg.MODEL.SCALE >= 1 and cfg.MODEL.BASEWIDTH >= 1, "MODEL.SCALE", "at least 1, and MODEL.BASEWIDTH too")
    need(cfg.DATASET.DATASET in SKELETONS, "DATASET.DATASET", f"one of {', '.join(SKELETONS)}")
    joints = SKELETONS[cfg.DATASET.DATASET].num_joints
    need(cfg.MODEL.NUM_JOINTS == joints, "MODEL.NUM_JOINTS", f"{joints}, as {cfg.DATASET.DATASET} has")
    need(all(float(g).is_integer() and g >= 0 for g in cfg.GPUS), "GPUS", "device numbers from 0 on")
    for key in ("WORKERS", "CPU_THREADS", "SEED"):
        need(cfg[key] >= 0, key, "0 or more")
    need(cfg.PRINT_FREQ >= 1, "PRINT_FREQ", "at least 1")
    for group in ("TRAIN", "TEST"):
        need(cfg[group].BATCH_SIZE_PER_GPU >= 1, f"{group}.BATCH_SIZE_PER_GPU", "at least 1")
    need(finite(cfg.TRAIN.LR) and cfg.TRAIN.LR > 0, "TRAIN.LR", "above 0")
    need(finite(cfg.TRAIN.LR_FACTOR) and cfg.TRAIN.LR_FACTOR > 0, "TRAIN.LR_FACTOR", "above 0")
    need(cfg.TRAIN.OPTIMIZER in ("adam", "sgd"), "TRAIN.OPTIMIZER", "'adam' or 'sgd'")
    need(0 <= cfg.TRAIN.BEGIN_EPOCH, "TRAIN.BEGIN_EPOCH", "0 or more")
    need(cfg.TRAIN.EVAL_INTERVAL >= 1, "TRAIN.EVAL_INTERVAL", "at least 1")
    need(1 <= cfg.LOSS.TOPK <= cfg.MODEL.NUM_JOINTS or not cfg.LOSS.USE_OHKM, "LOSS.TOPK", f"from 1 to {cfg.MODEL.NUM_JOINTS} joints")
    need(finite(cfg.DATASET.SCALE_FACTOR) and 0 <= cfg.DATASET.SCALE_FACTOR < 1, "DATASET.SCALE_FACTOR", "from 0 to below 1")
    need(finite(cfg.DATASET.ROT_FACTOR) and cfg.DATASET.ROT_FACTOR >= 0, "DATASET.ROT_FACTOR", "0 or more degrees")
    need(0 < cfg.TEST.OKS_THRE, "TEST.OKS_THRE", "above 0")
    need(cfg.TEST.PICTURES >= 0, "TEST.PICTURES", "0 or more")
