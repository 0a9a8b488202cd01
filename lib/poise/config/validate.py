"""Reject values that no run can use when the configuration is loaded, not an epoch later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from yacs.config import CfgNode

from poise.codecs import CODECS, LOSSES
from poise.config.datasets import dataset_info
from poise.errors import ConfigError

#: implemented by poise.engine.optim.OPTIMIZERS
OPTIMIZERS = ("adam", "adam_l2", "adamw", "sgd")


def check_values(cfg: CfgNode, source: str) -> None:
    """Raise ConfigError, naming `source` and the key, for a value out of its range."""
    check = _Check(cfg, source)
    _check_run(check)
    _check_model(check)
    _check_simcc(check)
    _check_dataset(check)
    _check_loss(check)
    _check_train(check)
    _check_schedule(check)
    _check_test(check)
    _check_search(check)


class _Check:
    """Raises ConfigError for a key whose value does not fulfill a rule."""

    def __init__(self, cfg: CfgNode, source: str):
        self.cfg = cfg
        self.source = source

    def value(self, key: str) -> Any:
        value = self.cfg
        for part in key.split("."):
            value = value[part]
        return value

    def require(self, condition: bool, key: str, rule: str) -> None:
        if not condition:
            raise ConfigError(f"{self.source}: {key} must be {rule}, got {self.value(key)!r}")

    def choice(self, key: str, allowed: Sequence[str]) -> None:
        names = ", ".join(map(repr, allowed))
        self.require(self.value(key) in allowed, key, f"one of {names}")

    def at_least(self, key: str, minimum: int) -> None:
        value = self.value(key)
        rule = "0 or more" if minimum == 0 else f"at least {minimum}"
        self.require(minimum <= value < math.inf, key, rule)

    def between(self, key: str, minimum: int, maximum: int, rule: str = "") -> None:
        is_inside = minimum <= self.value(key) <= maximum
        self.require(is_inside, key, rule or f"from {minimum} to {maximum}")

    def above_zero(self, key: str, maximum: float | None = None) -> None:
        value = self.value(key)
        if maximum is None:
            self.require(0 < value < math.inf, key, "above 0")
        else:
            self.require(0 < value <= maximum, key, f"above 0 and at most {maximum:g}")

    def learning_rate(self, key: str) -> None:
        # optimizers end with a RuntimeError beyond float32
        self.require(0 < self.value(key) < 1e30, key, "above 0 and below 1e30")

    def lr_steps(self, key: str) -> None:
        epochs = self.value(key)
        is_valid = all(isinstance(epoch, int) and epoch >= 0 for epoch in epochs)
        is_valid = is_valid and list(epochs) == sorted(epochs)
        self.require(is_valid, key, "epochs from 0 on in ascending order")

    def two_numbers(self, key: str, minimum: float, maximum: float, rule: str) -> None:
        values = self.value(key)
        self.require(
            len(values) == 2 and all(_is_number(v) and minimum <= v <= maximum for v in values),
            key,
            rule,
        )


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that is finite in float32."""
    return isinstance(value, (int, float)) and abs(value) < 1e30


def _check_run(check: _Check) -> None:
    cfg = check.cfg
    check.require(
        all(isinstance(g, int) and 0 <= g < 1024 for g in cfg.GPUS)
        and len(set(cfg.GPUS)) == len(cfg.GPUS),
        "GPUS",
        "device numbers from 0 on, each once",
    )
    check.between("WORKERS", 0, 1024)
    check.between("CPU_THREADS", -1, 1024)
    check.between("SEED", 0, 2**63 - 1)
    check.require(
        not set(cfg.RUN_NAME) & set("/\\")
        and not cfg.RUN_NAME.startswith(".")
        and cfg.RUN_NAME.isprintable(),
        "RUN_NAME",
        "a name for a folder, not a path",
    )
    check.at_least("PRINT_FREQ", 1)
    check.require(cfg.AMP in ("", "bf16", "fp16"), "AMP", "'', 'bf16' or 'fp16'")


def _check_model(check: _Check) -> None:
    model = check.cfg.MODEL
    for key in ("IMAGE_SIZE", "HEATMAP_SIZE"):
        size = model[key]
        check.require(
            len(size) == 2 and all(isinstance(v, int) and 1 <= v <= 8192 for v in size),
            f"MODEL.{key}",
            "a width and a height between 1 and 8192",
        )
    check.require(
        all(h <= i for h, i in zip(model.HEATMAP_SIZE, model.IMAGE_SIZE)),
        "MODEL.HEATMAP_SIZE",
        "no larger than MODEL.IMAGE_SIZE",
    )
    check.choice("MODEL.TARGET_TYPE", tuple(CODECS))
    # its square must not vanish in float32
    check.require(0.01 <= model.SIGMA <= 8192, "MODEL.SIGMA", "from 0.01 to 8192 cells")
    check.at_least("MODEL.NUM_JOINTS", 1)
    data = check.cfg.DATASET
    num_keypoints = dataset_info(check.cfg).skeleton.num_keypoints
    check.require(
        num_keypoints == model.NUM_JOINTS,
        "MODEL.NUM_JOINTS",
        f"{num_keypoints}, as {data.FILE or data.DATASET} has",
    )
    check.require(model.STYLE in ("pytorch", "caffe"), "MODEL.STYLE", "'pytorch' or 'caffe'")
    check.require(
        model.SCALE >= 1 and model.BASEWIDTH >= 1,
        "MODEL.SCALE",
        "at least 1, and MODEL.BASEWIDTH too",
    )
    check.require(
        len(model.MEAN) == 3 and all(map(_is_number, model.MEAN)),
        "MODEL.MEAN",
        "three finite numbers, one a channel",
    )
    check.require(
        len(model.STD) == 3 and all(_is_number(v) and v > 0 for v in model.STD),
        "MODEL.STD",
        "three numbers above 0, one a channel",
    )
    check.require(
        len(model.KERNELS) >= 1
        and all(isinstance(k, int) and k % 2 == 1 and 3 <= k <= 255 for k in model.KERNELS),
        "MODEL.KERNELS",
        "odd sizes from 3 to 255 cells",
    )
    check.require(
        list(model.KERNELS) == sorted(set(model.KERNELS), reverse=True),
        "MODEL.KERNELS",
        "falling, from coarse to fine",
    )


def _check_simcc(check: _Check) -> None:
    check.above_zero("MODEL.SIMCC_SPLIT_RATIO", 16)
    check.two_numbers(
        "MODEL.SIMCC_SIGMA", 0.01, 8192, "two numbers from 0.01 to 8192 bins, for x and y"
    )


def _check_dataset(check: _Check) -> None:
    data = check.cfg.DATASET
    check.choice("DATASET.BOX_CLIP", ("hrnet", "mmpose", "none"))
    check.choice("DATASET.AUGMENT_DRAW", ("normal", "uniform"))
    check.choice("DATASET.HALF_BODY", ("hrnet", "mspn"))
    check.require(0 <= data.SCALE_FACTOR < 1, "DATASET.SCALE_FACTOR", "from 0 to below 1")
    check.require(
        0 <= data.ROT_FACTOR < math.inf,
        "DATASET.ROT_FACTOR",
        "0 or more degrees",
    )
    # the MPII files of HRNet have -1 for never
    check.require(data.PROB_HALF_BODY <= 1, "DATASET.PROB_HALF_BODY", "at most 1")
    for key in ("PROB_CENTER_SHIFT", "PROB_ROTATION", "CENTER_SHIFT"):
        check.between(f"DATASET.{key}", 0, 1)
    check.above_zero("DATASET.SCALE_SHRINK", 100)
    for key in ("DATASET.BOX_MARGIN", "TEST.BOX_MARGIN"):
        check.two_numbers(key, 0.01, 100, "two factors from 0.01 to 100, for x and y")
    for key in ("DATASET.BOX_MARGIN_RANDOM", "DATASET.HALF_BODY_MARGIN_RANDOM"):
        check.two_numbers(key, 0, 100, "two factors from 0 to 100, for x and y")


def _check_loss(check: _Check) -> None:
    loss = check.cfg.LOSS
    model = check.cfg.MODEL
    check.choice("LOSS.TYPE", tuple(LOSSES))
    codec_losses = CODECS[model.TARGET_TYPE].losses
    check.require(
        loss.TYPE in codec_losses,
        "LOSS.TYPE",
        f"{' or '.join(map(repr, codec_losses))} with MODEL.TARGET_TYPE {model.TARGET_TYPE}",
    )
    check.require(
        1 <= loss.TOPK <= model.NUM_JOINTS or not loss.USE_OHKM,
        "LOSS.TOPK",
        f"from 1 to {model.NUM_JOINTS} joints",
    )
    if loss.TYPE == "mspn":
        allowed = "5" if loss.COARSE_TO_FINE else "4 or 5"
        check.require(
            4 + loss.COARSE_TO_FINE <= len(model.KERNELS) <= 5,
            "MODEL.KERNELS",
            f"{allowed} sizes with LOSS.TYPE mspn and LOSS.COARSE_TO_FINE {loss.COARSE_TO_FINE}",
        )
        check.require(
            not loss.USE_DIFFERENT_JOINTS_WEIGHT,
            "LOSS.USE_DIFFERENT_JOINTS_WEIGHT",
            "False with LOSS.TYPE mspn, which has no such weights",
        )
    check.above_zero("LOSS.BETA", 1000)
    check.above_zero("LOSS.FACTOR")


def _check_train(check: _Check) -> None:
    train = check.cfg.TRAIN
    check.at_least("TRAIN.BATCH_SIZE_PER_GPU", 1)
    optimizers = f"{', '.join(map(repr, OPTIMIZERS[:-1]))} or {OPTIMIZERS[-1]!r}"
    check.require(train.OPTIMIZER in OPTIMIZERS, "TRAIN.OPTIMIZER", optimizers)
    check.require(0 <= train.MOMENTUM < 1, "TRAIN.MOMENTUM", "from 0 to below 1")
    check.require(
        train.MOMENTUM > 0 or not train.NESTEROV, "TRAIN.MOMENTUM", "above 0 with TRAIN.NESTEROV"
    )
    check.at_least("TRAIN.WD", 0)
    check.at_least("TRAIN.EVAL_INTERVAL", 1)
    check.require(0 <= train.EMA_DECAY < 1, "TRAIN.EMA_DECAY", "from 0 to below 1")
    for key, minimum in (
        ("ACCUMULATE", 1),
        ("CHECKPOINTS_KEPT", 1),
        ("CHECKPOINT_STEPS", 0),
        ("PATIENCE", 0),
    ):
        check.between(f"TRAIN.{key}", minimum, 1_000_000, f"from {minimum} to a million")
    check.at_least("TRAIN.CHECKPOINT_MINUTES", 0)


def _check_schedule(check: _Check) -> None:
    train = check.cfg.TRAIN
    check.choice("TRAIN.LR_SCHEDULE", ("step", "linear", "cosine"))
    check.learning_rate("TRAIN.LR")
    check.above_zero("TRAIN.LR_FACTOR", 1000)
    check.lr_steps("TRAIN.LR_STEP")
    check.at_least("TRAIN.BEGIN_EPOCH", 0)
    check.require(
        train.BEGIN_EPOCH < train.END_EPOCH,
        "TRAIN.END_EPOCH",
        f"more than TRAIN.BEGIN_EPOCH ({train.BEGIN_EPOCH})",
    )
    for key in ("WARMUP_ITERS", "ITERATIONS", "BASE_BATCH"):
        check.at_least(f"TRAIN.{key}", 0)
    check.above_zero("TRAIN.WARMUP_FACTOR", 1)


def _check_test(check: _Check) -> None:
    test = check.cfg.TEST
    check.at_least("TEST.BATCH_SIZE_PER_GPU", 1)
    check.choice("TEST.DECODE", ("", "quarter", "dark"))
    check.above_zero("TEST.OKS_THRE")
    for key in ("IMAGE_THRE", "IN_VIS_THRE"):
        check.require(math.isfinite(test[key]), f"TEST.{key}", "a finite number")
    check.at_least("TEST.PICTURES", 0)
    kernel = test.BLUR_KERNEL
    check.require(
        kernel == 0 or (kernel % 2 == 1 and 3 <= kernel <= 255),
        "TEST.BLUR_KERNEL",
        "0, or odd and from 3 to 255",
    )
    check.require(test.EMPTY_CELL in (0, -1), "TEST.EMPTY_CELL", "0 or -1")


def _check_search(check: _Check) -> None:
    search = check.cfg.SEARCH
    check.choice("SEARCH.MODE", ("joint", "encoder", "decoder"))
    check.choice("SEARCH.ORDER", ("weights", "architecture"))
    check.require(
        4 <= search.LAYERS <= 400 and search.LAYERS % 4 == 0,
        "SEARCH.LAYERS",
        "a multiple of 4 from 4 to 400",
    )
    check.require(
        4 <= search.INIT_CHANNELS <= 4096 and search.INIT_CHANNELS % 2 == 0,
        "SEARCH.INIT_CHANNELS",
        "an even number from 4 to 4096",
    )
    check.require(0 <= search.SEED < 2**63, "SEARCH.SEED", "from 0 to below 2**63")
    check.above_zero("SEARCH.SUBSET", 1)
    check.require(0 < search.W_FRACTION < 1, "SEARCH.W_FRACTION", "between 0 and 1")
    check.at_least("SEARCH.BATCH_SIZE", 1)
    check.require(
        0 <= search.INIT_EPOCHS < search.EPOCHS,
        "SEARCH.INIT_EPOCHS",
        f"0 or more and below SEARCH.EPOCHS ({search.EPOCHS}), or no architecture is searched",
    )
    check.learning_rate("SEARCH.W_LR")
    check.learning_rate("SEARCH.ALPHA_LR")
    check.above_zero("SEARCH.LR_FACTOR", 1000)
    check.lr_steps("SEARCH.LR_STEP")
    check.require(
        len(search.ALPHA_BETAS) == 2 and all(0 <= v < 1 for v in search.ALPHA_BETAS),
        "SEARCH.ALPHA_BETAS",
        "two numbers from 0 to below 1",
    )
    for key in ("ALPHA_WD", "GRAD_CLIP", "EVAL_INTERVAL"):
        check.at_least(f"SEARCH.{key}", 0)
    check.between("SEARCH.PARTIAL_CHANNELS", 1, 64)
