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
        need(len(size) == 2 and all(isinstance(v, int) and 1 <= v <= 8192 for v in size), f"MODEL.{key}",
             "a width and a height between 1 and 8192")
    need(all(h <= i for h, i in zip(cfg.MODEL.HEATMAP_SIZE, cfg.MODEL.IMAGE_SIZE)), "MODEL.HEATMAP_SIZE", "no larger than MODEL.IMAGE_SIZE")
    need(0.01 <= cfg.MODEL.SIGMA <= 8192, "MODEL.SIGMA", "from 0.01 to 8192 cells")     # its square must not vanish in float32
    need(cfg.MODEL.NUM_JOINTS >= 1, "MODEL.NUM_JOINTS", "at least 1")
    need(cfg.MODEL.STYLE in ("pytorch", "caffe"), "MODEL.STYLE", "'pytorch' or 'caffe'")
    need(cfg.MODEL.SCALE >= 1 and cfg.MODEL.BASEWIDTH >= 1, "MODEL.SCALE", "at least 1, and MODEL.BASEWIDTH too")
    need(cfg.DATASET.DATASET in SKELETONS, "DATASET.DATASET", f"one of {', '.join(SKELETONS)}")
    joints = SKELETONS[cfg.DATASET.DATASET].num_joints
    need(cfg.MODEL.NUM_JOINTS == joints, "MODEL.NUM_JOINTS", f"{joints}, as {cfg.DATASET.DATASET} has")
    need(all(isinstance(g, int) and 0 <= g < 1024 for g in cfg.GPUS) and len(set(cfg.GPUS)) == len(cfg.GPUS), "GPUS",
         "device numbers from 0 on, each once")
    for key, least, most in (("WORKERS", 0, 1024), ("CPU_THREADS", -1, 1024), ("SEED", 0, 2**63 - 1)):
        need(least <= cfg[key] <= most, key, f"from {least} to {most}")
    need(cfg.PRINT_FREQ >= 1, "PRINT_FREQ", "at least 1")
    for group in ("TRAIN", "TEST"):
        need(cfg[group].BATCH_SIZE_PER_GPU >= 1, f"{group}.BATCH_SIZE_PER_GPU", "at least 1")
    need(0 < cfg.TRAIN.LR < 1e30, "TRAIN.LR", "above 0 and below 1e30")     # optimisers end with a RuntimeError beyond float32
    need(0 < cfg.TRAIN.LR_FACTOR <= 1000, "TRAIN.LR_FACTOR", "above 0 and at most 1000")
    need(cfg.TRAIN.OPTIMIZER in ("adam", "sgd"), "TRAIN.OPTIMIZER", "'adam' or 'sgd'")
    need(0 <= cfg.TRAIN.MOMENTUM < 1, "TRAIN.MOMENTUM", "from 0 to below 1")
    need(finite(cfg.TRAIN.WD) and cfg.TRAIN.WD >= 0, "TRAIN.WD", "0 or more")
    need(cfg.TRAIN.MOMENTUM > 0 or not cfg.TRAIN.NESTEROV, "TRAIN.MOMENTUM", "above 0 with TRAIN.NESTEROV")
    need(0 <= cfg.TRAIN.BEGIN_EPOCH, "TRAIN.BEGIN_EPOCH", "0 or more")
    need(cfg.TRAIN.BEGIN_EPOCH <= cfg.TRAIN.END_EPOCH, "TRAIN.END_EPOCH", f"TRAIN.BEGIN_EPOCH ({cfg.TRAIN.BEGIN_EPOCH}) or more")
    need(cfg.TRAIN.EVAL_INTERVAL >= 1, "TRAIN.EVAL_INTERVAL", "at least 1")
    need(1 <= cfg.LOSS.TOPK <= cfg.MODEL.NUM_JOINTS or not cfg.LOSS.USE_OHKM, "LOSS.TOPK", f"from 1 to {cfg.MODEL.NUM_JOINTS} joints")
    need(finite(cfg.DATASET.SCALE_FACTOR) and 0 <= cfg.DATASET.SCALE_FACTOR < 1, "DATASET.SCALE_FACTOR", "from 0 to below 1")
    need(finite(cfg.DATASET.ROT_FACTOR) and cfg.DATASET.ROT_FACTOR >= 0, "DATASET.ROT_FACTOR", "0 or more degrees")
    need(cfg.DATASET.PROB_HALF_BODY <= 1, "DATASET.PROB_HALF_BODY", "at most 1")     # HRNet's MPII files have -1 for never
    need(finite(cfg.TEST.OKS_THRE) and 0 < cfg.TEST.OKS_THRE, "TEST.OKS_THRE", "above 0")
    for key in ("IMAGE_THRE", "IN_VIS_THRE"):
        need(finite(cfg.TEST[key]), f"TEST.{key}", "a finite number")
    need(cfg.TEST.PICTURES >= 0, "TEST.PICTURES", "0 or more")
