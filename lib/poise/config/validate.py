"""Values that no run could use are refused when the file is read, not an epoch later."""

from __future__ import annotations

import math

from yacs.config import CfgNode

from poise.codecs import CODECS, LOSSES
from poise.config.datasets import dataset_info
from poise.errors import ConfigError

#: implemented by poise.engine.optim.OPTIMIZERS
OPTIMIZERS = ("adam", "adam_l2", "adamw", "sgd")


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
        need(
            len(size) == 2 and all(isinstance(v, int) and 1 <= v <= 8192 for v in size),
            f"MODEL.{key}",
            "a width and a height between 1 and 8192",
        )
    need(
        all(h <= i for h, i in zip(cfg.MODEL.HEATMAP_SIZE, cfg.MODEL.IMAGE_SIZE)),
        "MODEL.HEATMAP_SIZE",
        "no larger than MODEL.IMAGE_SIZE",
    )
    # its square must not vanish in float32
    need(0.01 <= cfg.MODEL.SIGMA <= 8192, "MODEL.SIGMA", "from 0.01 to 8192 cells")
    need(cfg.MODEL.NUM_JOINTS >= 1, "MODEL.NUM_JOINTS", "at least 1")
    need(cfg.MODEL.STYLE in ("pytorch", "caffe"), "MODEL.STYLE", "'pytorch' or 'caffe'")
    need(
        cfg.MODEL.SCALE >= 1 and cfg.MODEL.BASEWIDTH >= 1,
        "MODEL.SCALE",
        "at least 1, and MODEL.BASEWIDTH too",
    )
    data = dataset_info(cfg)
    joints = data.skeleton.num_keypoints
    need(
        joints == cfg.MODEL.NUM_JOINTS,
        "MODEL.NUM_JOINTS",
        f"{joints}, as {cfg.DATASET.FILE or cfg.DATASET.DATASET} has",
    )
    need(
        all(isinstance(g, int) and 0 <= g < 1024 for g in cfg.GPUS)
        and len(set(cfg.GPUS)) == len(cfg.GPUS),
        "GPUS",
        "device numbers from 0 on, each once",
    )
    for key, least, most in (
        ("WORKERS", 0, 1024),
        ("CPU_THREADS", -1, 1024),
        ("SEED", 0, 2**63 - 1),
    ):
        need(least <= cfg[key] <= most, key, f"from {least} to {most}")
    need(
        not set(cfg.RUN_NAME) & set("/\\")
        and not cfg.RUN_NAME.startswith(".")
        and cfg.RUN_NAME.isprintable(),
        "RUN_NAME",
        "a name for a folder, not a path",
    )
    need(cfg.PRINT_FREQ >= 1, "PRINT_FREQ", "at least 1")
    for group in ("TRAIN", "TEST"):
        need(cfg[group].BATCH_SIZE_PER_GPU >= 1, f"{group}.BATCH_SIZE_PER_GPU", "at least 1")
    # optimisers end with a RuntimeError beyond float32
    need(0 < cfg.TRAIN.LR < 1e30, "TRAIN.LR", "above 0 and below 1e30")
    need(0 < cfg.TRAIN.LR_FACTOR <= 1000, "TRAIN.LR_FACTOR", "above 0 and at most 1000")
    for group in ("TRAIN", "SEARCH"):
        epochs = cfg[group].LR_STEP
        whole = all(isinstance(epoch, int) and epoch >= 0 for epoch in epochs)
        need(
            whole and list(epochs) == sorted(epochs),
            f"{group}.LR_STEP",
            "epochs from 0 on in ascending order",
        )
    need(
        cfg.TRAIN.OPTIMIZER in OPTIMIZERS,
        "TRAIN.OPTIMIZER",
        f"{', '.join(map(repr, OPTIMIZERS[:-1]))} or {OPTIMIZERS[-1]!r}",
    )
    need(0 <= cfg.TRAIN.MOMENTUM < 1, "TRAIN.MOMENTUM", "from 0 to below 1")
    need(finite(cfg.TRAIN.WD) and cfg.TRAIN.WD >= 0, "TRAIN.WD", "0 or more")
    need(
        cfg.TRAIN.MOMENTUM > 0 or not cfg.TRAIN.NESTEROV,
        "TRAIN.MOMENTUM",
        "above 0 with TRAIN.NESTEROV",
    )
    need(cfg.TRAIN.BEGIN_EPOCH >= 0, "TRAIN.BEGIN_EPOCH", "0 or more")
    need(
        cfg.TRAIN.BEGIN_EPOCH < cfg.TRAIN.END_EPOCH,
        "TRAIN.END_EPOCH",
        f"more than TRAIN.BEGIN_EPOCH ({cfg.TRAIN.BEGIN_EPOCH})",
    )
    need(cfg.TRAIN.EVAL_INTERVAL >= 1, "TRAIN.EVAL_INTERVAL", "at least 1")
    need(0 <= cfg.TRAIN.EMA_DECAY < 1, "TRAIN.EMA_DECAY", "from 0 to below 1")
    for key, least in (
        ("ACCUMULATE", 1),
        ("CHECKPOINTS_KEPT", 1),
        ("CHECKPOINT_STEPS", 0),
        ("PATIENCE", 0),
    ):
        need(least <= cfg.TRAIN[key] <= 1_000_000, f"TRAIN.{key}", f"from {least} to a million")
    need(
        finite(cfg.TRAIN.CHECKPOINT_MINUTES) and cfg.TRAIN.CHECKPOINT_MINUTES >= 0,
        "TRAIN.CHECKPOINT_MINUTES",
        "0 or more",
    )
    need(cfg.AMP in ("", "bf16", "fp16"), "AMP", "'', 'bf16' or 'fp16'")
    need(
        1 <= cfg.LOSS.TOPK <= cfg.MODEL.NUM_JOINTS or not cfg.LOSS.USE_OHKM,
        "LOSS.TOPK",
        f"from 1 to {cfg.MODEL.NUM_JOINTS} joints",
    )
    need(
        finite(cfg.DATASET.SCALE_FACTOR) and 0 <= cfg.DATASET.SCALE_FACTOR < 1,
        "DATASET.SCALE_FACTOR",
        "from 0 to below 1",
    )
    need(
        finite(cfg.DATASET.ROT_FACTOR) and cfg.DATASET.ROT_FACTOR >= 0,
        "DATASET.ROT_FACTOR",
        "0 or more degrees",
    )
    # HRNet's MPII files have -1 for never
    need(cfg.DATASET.PROB_HALF_BODY <= 1, "DATASET.PROB_HALF_BODY", "at most 1")
    need(finite(cfg.TEST.OKS_THRE) and cfg.TEST.OKS_THRE > 0, "TEST.OKS_THRE", "above 0")
    for key in ("IMAGE_THRE", "IN_VIS_THRE"):
        need(finite(cfg.TEST[key]), f"TEST.{key}", "a finite number")
    need(cfg.TEST.PICTURES >= 0, "TEST.PICTURES", "0 or more")

    def choice(key: str, *allowed: str) -> None:
        group, name = key.split(".")
        need(cfg[group][name] in allowed, key, f"one of {', '.join(map(repr, allowed))}")

    choice("MODEL.TARGET_TYPE", *CODECS)
    choice("LOSS.TYPE", *LOSSES)
    choice("DATASET.BOX_CLIP", "hrnet", "mmpose", "none")
    choice("DATASET.AUGMENT_DRAW", "normal", "uniform")
    choice("DATASET.HALF_BODY", "hrnet", "mspn")
    choice("TRAIN.LR_SCHEDULE", "step", "linear", "cosine")
    choice("TEST.DECODE", "", "quarter", "dark")
    for key in (
        "DATASET.BOX_MARGIN",
        "TEST.BOX_MARGIN",
        "DATASET.BOX_MARGIN_RANDOM",
        "DATASET.HALF_BODY_MARGIN_RANDOM",
    ):
        group, name = key.split(".")
        lowest = "0" if name.endswith("RANDOM") else "0.01"
        value = cfg[group][name]
        need(
            len(value) == 2
            and all(isinstance(v, (int, float)) and float(lowest) <= v <= 100 for v in value),
            key,
            f"two factors from {lowest} to 100, for x and y",
        )
    for key in ("MEAN", "STD"):
        value = cfg.MODEL[key]
        need(
            len(value) == 3
            and all(isinstance(v, (int, float)) and finite(v) for v in value)
            and (key == "MEAN" or min(value) > 0),
            f"MODEL.{key}",
            f"three {'finite numbers' if key == 'MEAN' else 'numbers above 0'}, one a channel",
        )
    need(
        len(cfg.MODEL.KERNELS) >= 1
        and all(isinstance(k, int) and k % 2 == 1 and 3 <= k <= 255 for k in cfg.MODEL.KERNELS),
        "MODEL.KERNELS",
        "odd sizes from 3 to 255 cells",
    )
    need(
        list(cfg.MODEL.KERNELS) == sorted(set(cfg.MODEL.KERNELS), reverse=True),
        "MODEL.KERNELS",
        "falling, from coarse to fine",
    )
    losses = CODECS[cfg.MODEL.TARGET_TYPE].losses
    need(
        cfg.LOSS.TYPE in losses,
        "LOSS.TYPE",
        f"{' or '.join(map(repr, losses))} with MODEL.TARGET_TYPE {cfg.MODEL.TARGET_TYPE}",
    )
    kernels = 4 + cfg.LOSS.COARSE_TO_FINE
    need(
        cfg.LOSS.TYPE != "mspn" or kernels <= len(cfg.MODEL.KERNELS) <= 5,
        "MODEL.KERNELS",
        f"{'5' if kernels == 5 else '4 or 5'} sizes with LOSS.TYPE mspn and LOSS.COARSE_TO_FINE"
        f" {cfg.LOSS.COARSE_TO_FINE}",
    )
    need(
        cfg.LOSS.TYPE != "mspn" or not cfg.LOSS.USE_DIFFERENT_JOINTS_WEIGHT,
        "LOSS.USE_DIFFERENT_JOINTS_WEIGHT",
        "False with LOSS.TYPE mspn, which has no such weights",
    )
    need(0 < cfg.MODEL.SIMCC_SPLIT_RATIO <= 16, "MODEL.SIMCC_SPLIT_RATIO", "above 0 and at most 16")
    need(
        len(cfg.MODEL.SIMCC_SIGMA) == 2
        and all(isinstance(v, (int, float)) and 0.01 <= v <= 8192 for v in cfg.MODEL.SIMCC_SIGMA),
        "MODEL.SIMCC_SIGMA",
        "two numbers from 0.01 to 8192 bins, for x and y",
    )
    need(0 < cfg.LOSS.BETA <= 1000, "LOSS.BETA", "above 0 and at most 1000")
    need(finite(cfg.LOSS.FACTOR) and cfg.LOSS.FACTOR > 0, "LOSS.FACTOR", "above 0")
    for key in ("PROB_CENTER_SHIFT", "PROB_ROTATION"):
        need(0 <= cfg.DATASET[key] <= 1, f"DATASET.{key}", "from 0 to 1")
    need(0 <= cfg.DATASET.CENTER_SHIFT <= 1, "DATASET.CENTER_SHIFT", "from 0 to 1")
    need(0 < cfg.DATASET.SCALE_SHRINK <= 100, "DATASET.SCALE_SHRINK", "above 0 and at most 100")
    for key in ("WARMUP_ITERS", "ITERATIONS", "BASE_BATCH"):
        need(cfg.TRAIN[key] >= 0, f"TRAIN.{key}", "0 or more")
    need(0 < cfg.TRAIN.WARMUP_FACTOR <= 1, "TRAIN.WARMUP_FACTOR", "above 0 and at most 1")
    need(
        cfg.TEST.BLUR_KERNEL == 0
        or (cfg.TEST.BLUR_KERNEL % 2 == 1 and 3 <= cfg.TEST.BLUR_KERNEL <= 255),
        "TEST.BLUR_KERNEL",
        "0, or odd and from 3 to 255",
    )
    need(cfg.TEST.EMPTY_CELL in (0, -1), "TEST.EMPTY_CELL", "0 or -1")

    s = cfg.SEARCH
    choice("SEARCH.MODE", "joint", "encoder", "decoder")
    choice("SEARCH.ORDER", "weights", "architecture")
    need(
        4 <= s.LAYERS <= 400 and s.LAYERS % 4 == 0, "SEARCH.LAYERS", "a multiple of 4 from 4 to 400"
    )
    need(
        4 <= s.INIT_CHANNELS <= 4096 and s.INIT_CHANNELS % 2 == 0,
        "SEARCH.INIT_CHANNELS",
        "an even number from 4 to 4096",
    )
    need(0 <= s.SEED < 2**63, "SEARCH.SEED", "from 0 to below 2**63")
    need(0 < s.SUBSET <= 1, "SEARCH.SUBSET", "above 0 and at most 1")
    need(0 < s.W_FRACTION < 1, "SEARCH.W_FRACTION", "between 0 and 1")
    need(s.BATCH_SIZE >= 1, "SEARCH.BATCH_SIZE", "at least 1")
    need(
        0 <= s.INIT_EPOCHS < s.EPOCHS,
        "SEARCH.INIT_EPOCHS",
        f"0 or more and below SEARCH.EPOCHS ({s.EPOCHS}), or no architecture is searched",
    )
    for key in ("W_LR", "ALPHA_LR"):
        need(0 < s[key] < 1e30, f"SEARCH.{key}", "above 0 and below 1e30")
    need(0 < s.LR_FACTOR <= 1000, "SEARCH.LR_FACTOR", "above 0 and at most 1000")
    need(
        len(s.ALPHA_BETAS) == 2 and all(0 <= v < 1 for v in s.ALPHA_BETAS),
        "SEARCH.ALPHA_BETAS",
        "two numbers from 0 to below 1",
    )
    for key in ("ALPHA_WD", "GRAD_CLIP"):
        need(finite(s[key]) and s[key] >= 0, f"SEARCH.{key}", "0 or more")
    need(1 <= s.PARTIAL_CHANNELS <= 64, "SEARCH.PARTIAL_CHANNELS", "from 1 to 64")
    need(s.EVAL_INTERVAL >= 0, "SEARCH.EVAL_INTERVAL", "0 or more")
