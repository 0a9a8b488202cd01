"""Which settings a resumed run may change.

The checkpoint's own configuration is compared with the given one. Settings that shape the result
are refused, because the run's score would be reported for settings that it was not trained with.
"""
from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from poise.config import default_config
from poise.config.difference import ABSENT, flat
from poise.errors import ConfigError, DataError, shown_value
from poise.yaml_files import parse_yaml

log = logging.getLogger(__name__)

# how a run is resumed, and keys without effect
_IGNORED = ("AUTO_RESUME", "RUN_NAME", "RANK", "TRAIN.RESUME", "TRAIN.CHECKPOINT", "TRAIN.GAMMA?",
            "MODEL.TAG_PER_JOINT", "TEST.NMS_THRE", "TEST.BBOX_THRE")
IN_TRAINING = (*_IGNORED, "SEARCH.*")
# a search has a seed, a schedule and an optimizer of its own; of TRAIN it uses SHUFFLE
IN_SEARCH = (*_IGNORED, "TRAIN.[!S]*", "SEED", "MODEL.GENOTYPE", "MODEL.PRETRAINED",
             "MODEL.INIT_WEIGHTS", "MODEL.REPLACE_HEAD")
# where and how fast it runs, what it logs, how its batch is divided, when it tests and saves;
# cells (MODEL.GENOTYPE) are compared themselves: see progress.cells_of and search.progress
_FREE = ("OUTPUT_DIR", "LOG_DIR", "DATA_DIR", "GPUS", "WORKERS", "PRINT_FREQ", "PIN_MEMORY",
         "CPU_THREADS", "CHANNELS_LAST", "AMP", "COMPILE", "CUDNN.*", "DEBUG.*",
         "DATASET.ROOT", "DATASET.DATA_FORMAT", "DATASET.MIX.*.ROOT", "DATASET.MIX.*.DATA_FORMAT",
         "DATASET.CACHE", "DATASET.HYBRID_JOINTS_TYPE", "MODEL.GENOTYPE", "SEARCH.GENOTYPE",
         "TRAIN.BATCH_SIZE_PER_GPU", "TRAIN.ACCUMULATE", "TRAIN.BEGIN_EPOCH", "TRAIN.PATIENCE",
         "TRAIN.EVAL_INTERVAL", "TRAIN.CHECKPOINT_STEPS", "TRAIN.CHECKPOINT_MINUTES",
         "TRAIN.CHECKPOINTS_KEPT", "TEST.BATCH_SIZE_PER_GPU", "TEST.MODEL_FILE", "TEST.PICTURES",
         "TEST.FOLD_BN", "SEARCH.BATCH_SIZE", "SEARCH.EPOCHS", "SEARCH.EVAL_INTERVAL",
         "SEARCH.CHECKPOINTING")
# the same file may lie elsewhere
_FILES = ("DATASET.FILE", "DATASET.MIX.*.FILE", "MODEL.PRETRAINED", "TEST.COCO_BBOX_FILE")
_MOST_SHOWN = 12


def check_settings(saved: dict[str, Any], cfg: CfgNode, ignored: tuple[str, ...]) -> None:
    """Compare the configuration in a checkpoint with `cfg`.

    saved: the checkpoint, with its path. ignored: IN_TRAINING or IN_SEARCH. Settings that may
    change are logged. Raises ConfigError, listing the others with both values.
    """
    if not isinstance(saved.get("config"), str):
        log.warning("%s: holds no configuration to compare with", saved["path"])
        return
    groups = parse_yaml(saved["config"], saved["path"], DataError)
    if not isinstance(groups, dict):
        raise DataError(f"{saved['path']}: its configuration cannot be read; "
                        "remove it to begin anew")
    before, now, defaults = dict(flat(groups)), dict(flat(cfg)), dict(flat(default_config()))
    may, must_not = [], []
    for key in sorted(before.keys() | now.keys()):
        free = key.startswith(("MODEL.EXTRA.", "DATASET.MIX."))
        if key not in now and not free or _is_one_of(key, ignored):       # a key of another version
            continue
        was, is_ = before.get(key, defaults.get(key, ABSENT)), now.get(key, ABSENT)
        if was != is_:
            said = f"{key} {shown_value(is_, 60)} (was {shown_value(was, 60)})"
            (may if _may_change(key, was, is_, saved, now) else must_not).append(said)
    if must_not:
        more = f" and {len(must_not) - _MOST_SHOWN} more" if len(must_not) > _MOST_SHOWN else ""
        listed = ", ".join(must_not[:_MOST_SHOWN])
        raise ConfigError(f"{saved['path']}: this run was trained with other settings: {listed}"
                          f"{more}; restore them, or start a new run: with another RUN_NAME, or "
                          "without AUTO_RESUME and TRAIN.CHECKPOINT")
    if may:
        log.info("settings that the checkpoint does not have: %s", ", ".join(may))


def _is_one_of(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _may_change(key: str, was: Any, now: Any, saved: dict[str, Any], cfg: dict[str, Any]) -> bool:
    if _is_one_of(key, _FREE):
        return True
    if _is_one_of(key, _FILES):
        return Path(str(was)).name == Path(str(now)).name
    if key in ("TRAIN.END_EPOCH", "TRAIN.ITERATIONS"):      # the rates so far depend on the length
        unused = key == "TRAIN.END_EPOCH" and cfg["TRAIN.ITERATIONS"] > 0
        return unused or cfg["TRAIN.LR_SCHEDULE"] == "step"
    if key in ("TRAIN.LR_STEP", "SEARCH.LR_STEP"):
        begun = saved["epoch"] if saved["step"] else saved["epoch"] - 1
        return isinstance(was, list) and _passed(was, begun) == _passed(now, begun)
    return key == "TRAIN.EMA_DECAY" and 0 in (was, now)      # the weights do not depend on it


def _passed(milestones: list, epoch: int) -> list:
    """Return the milestones of the epochs that have begun."""
    return sorted(
        value for value in milestones if isinstance(value, (int, float)) and value <= epoch)
