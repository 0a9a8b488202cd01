"""Find the checkpoint to resume from, and compare its configuration with the current one.

A change of settings that affect the result is an error: the score of the run would be reported for
settings that it was not trained with.
"""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from poise.config import data_path, default_config, experiment_name
from poise.config.diff import ABSENT, flatten
from poise.engine import checkpoint
from poise.errors import ConfigError, DataError, short_repr
from poise.io.yaml_file import parse_yaml
from poise.models.weights import WeightReadError

log = logging.getLogger(__name__)

# keys that say how to resume, and keys without effect
_IGNORED = (
    "AUTO_RESUME",
    "RUN_NAME",
    "RANK",
    "TRAIN.RESUME",
    "TRAIN.CHECKPOINT",
    "TRAIN.GAMMA?",
    "MODEL.TAG_PER_JOINT",
    "TEST.NMS_THRE",
    "TEST.BBOX_THRE",
)
IN_TRAINING = (*_IGNORED, "SEARCH.*")
# a search has a seed, a schedule and an optimizer of its own; of TRAIN it uses SHUFFLE
IN_SEARCH = (
    *_IGNORED,
    "TRAIN.[!S]*",
    "SEED",
    "MODEL.GENOTYPE",
    "MODEL.PRETRAINED",
    "MODEL.INIT_WEIGHTS",
    "MODEL.REPLACE_HEAD",
)
# where and how fast a run is, what it logs, when it saves and stops; the genotypes themselves are
# compared in state.py and search/state.py
_FREE = (
    "OUTPUT_DIR",
    "LOG_DIR",
    "GPUS",
    "WORKERS",
    "PRINT_FREQ",
    "PIN_MEMORY",
    "CPU_THREADS",
    "CHANNELS_LAST",
    "COMPILE",
    "CUDNN.*",
    "DEBUG.*",
    "DATASET.CACHE",
    "MODEL.GENOTYPE",
    "TRAIN.PATIENCE",
    "TRAIN.CHECKPOINT_STEPS",
    "TRAIN.CHECKPOINT_MINUTES",
    "TRAIN.CHECKPOINTS_KEPT",
    "TEST.BATCH_SIZE_PER_GPU",
    "TEST.MODEL_FILE",
    "TEST.PICTURES",
    "TEST.FOLD_BN",
    "SEARCH.GENOTYPE",
    "SEARCH.CHECKPOINTING",
)
# may change during the run, but a finished run has no result with the new value
_FREE_IN_TRAINING = (
    "DATA_DIR",
    "AMP",
    "DATASET.ROOT",
    "DATASET.DATA_FORMAT",
    "DATASET.MIX.*.ROOT",
    "DATASET.MIX.*.DATA_FORMAT",
    "DATASET.HYBRID_JOINTS_TYPE",
    "TRAIN.BATCH_SIZE_PER_GPU",
    "TRAIN.ACCUMULATE",
    "TRAIN.BEGIN_EPOCH",
    "TRAIN.EVAL_INTERVAL",
    "SEARCH.BATCH_SIZE",
    "SEARCH.EPOCHS",
    "SEARCH.EVAL_INTERVAL",
)
_LENGTH_KEYS = ("TRAIN.END_EPOCH", "TRAIN.ITERATIONS", "SEARCH.EPOCHS")
# the file may be moved
_FILES = ("DATASET.FILE", "DATASET.MIX.*.FILE", "MODEL.PRETRAINED", "TEST.COCO_BBOX_FILE")
_MAX_LISTED = 12


def find_checkpoint(cfg: CfgNode, cfg_path: str, folder: Path, restarted: bool) -> dict | None:
    """Return the checkpoint to resume from, or None.

    It is TRAIN.CHECKPOINT or, with AUTO_RESUME or TRAIN.RESUME, the newest of the run folder.

    Args:
        restarted: whether torchrun has restarted any of the processes. They then resume from the
            checkpoint of this torchrun job, regardless of the keys.
    """
    name, saved = experiment_name(cfg_path), None
    if restarted:
        saved = _of_this_job(folder, name)
    if saved is None and cfg.TRAIN.CHECKPOINT:
        saved = checkpoint.load(Path(data_path(cfg, cfg.TRAIN.CHECKPOINT)), name)
    elif saved is None and (cfg.AUTO_RESUME or cfg.TRAIN.RESUME):
        saved = checkpoint.load_latest(folder, name)
    if saved is None:
        return None
    return accept_checkpoint(saved, cfg, IN_TRAINING)


def accept_checkpoint(saved: dict, cfg: CfgNode, ignored: tuple[str, ...]) -> dict:
    """Compare the settings of a checkpoint with `cfg`, see `check_settings`; return it."""
    saved["changed"] = check_settings(saved, cfg, ignored)
    log.info("resuming from %s", saved["path"])
    return saved


def _of_this_job(folder: Path, name: str) -> dict | None:
    """Return the newest checkpoint in a folder that this torchrun job wrote, or None.

    Corrupt checkpoints and those of another experiment belong to another run. Raises
    WeightReadError if one cannot be read at the moment: that of this job would be lost.
    """
    try:
        saved = checkpoint.load_latest(folder, name)
    except WeightReadError:
        raise
    except DataError as error:
        log.warning("%s; not used as a checkpoint of this job", error)
        return None
    return saved if saved and saved.get("job") == checkpoint.job_id() else None


def resumes_in(cfg: CfgNode, cfg_path: str, folder: Path, restarted: bool) -> bool:
    """Return whether find_checkpoint takes a checkpoint of this run folder."""
    if restarted and _of_this_job(folder, experiment_name(cfg_path)):
        return True
    if cfg.TRAIN.CHECKPOINT:
        return checkpoint.same_folder(Path(data_path(cfg, cfg.TRAIN.CHECKPOINT)).parent, folder)
    return bool((cfg.AUTO_RESUME or cfg.TRAIN.RESUME) and checkpoint.checkpoint_numbers(folder))


def check_settings(saved: dict[str, Any], cfg: CfgNode, ignored: tuple[str, ...]) -> dict[str, str]:
    """Compare the configuration in a checkpoint with `cfg`; log the changes that are allowed.

    Args:
        saved: the checkpoint, with its path.
        cfg: the current configuration.
        ignored: IN_TRAINING or IN_SEARCH.

    Returns:
        {key: both values} of the changes that are allowed during the run only, for
        `check_finished`.

    Raises ConfigError, with both values, if other keys have changed.
    """
    if not isinstance(saved.get("config"), str):
        log.warning("%s: has no configuration to compare with", saved["path"])
        return {}
    groups = parse_yaml(saved["config"], saved["path"], DataError)
    if not isinstance(groups, dict):
        raise DataError(
            f"{saved['path']}: its configuration is invalid; remove it to start a new run"
        )
    before = dict(flatten(groups))
    now = dict(flatten(cfg))
    defaults = dict(flatten(default_config()))
    allowed: dict[str, str] = {}
    refused: dict[str, str] = {}
    for key in sorted(before.keys() | now.keys()):
        is_open_group = key.startswith(("MODEL.EXTRA.", "DATASET.MIX."))
        is_of_other_version = key not in now and not is_open_group
        if is_of_other_version or _is_one_of(key, ignored):
            continue
        old = before.get(key, defaults.get(key, ABSENT))
        new = now.get(key, ABSENT)
        if old == new:
            continue
        may_change = _may_change(key, old, new, saved, now)
        reason = ""
        if not may_change and key in _LENGTH_KEYS:
            reason = f"; TRAIN.LR_SCHEDULE {cfg.TRAIN.LR_SCHEDULE} depends on the length"
        change = f"{key} {short_repr(new, 60)} (was {short_repr(old, 60)}{reason})"
        (allowed if may_change else refused)[key] = change
    _raise_changed(saved["path"], list(refused.values()))
    if allowed:
        log.info(
            "settings that differ from the checkpoint's and may change: %s",
            ", ".join(allowed.values()),
        )
    return {key: change for key, change in allowed.items() if not _is_one_of(key, _FREE)}


def check_finished(path: Path | None, changed: dict[str, str], is_longer: bool) -> None:
    """Raise ConfigError if a run with nothing left to train was trained with other settings.

    Args:
        path: its checkpoint.
        changed: what check_settings returned.
        is_longer: whether the run is longer than the configuration says.
    """
    changes = [text for key, text in changed.items() if is_longer or key not in _LENGTH_KEYS]
    _raise_changed(path, changes)


def _raise_changed(path: object, settings: list[str]) -> None:
    """Raise ConfigError if there are such settings."""
    if not settings:
        return
    more = f" and {len(settings) - _MAX_LISTED} more" if len(settings) > _MAX_LISTED else ""
    listed = ", ".join(settings[:_MAX_LISTED])
    raise ConfigError(
        f"{path}: this run was trained with other settings: {listed}{more}; restore "
        "them, or start a new run: with another RUN_NAME, or without AUTO_RESUME and "
        "TRAIN.CHECKPOINT"
    )


def _is_one_of(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _may_change(key: str, was: Any, now: Any, saved: dict[str, Any], cfg: dict[str, Any]) -> bool:
    if _is_one_of(key, (*_FREE, *_FREE_IN_TRAINING)):
        return True
    if _is_one_of(key, _FILES):
        return Path(str(was)).name == Path(str(now)).name
    if key in ("TRAIN.END_EPOCH", "TRAIN.ITERATIONS"):  # the rates so far depend on the length
        unused = key == "TRAIN.END_EPOCH" and cfg["TRAIN.ITERATIONS"] > 0
        return unused or cfg["TRAIN.LR_SCHEDULE"] == "step"
    if key in ("TRAIN.LR_STEP", "SEARCH.LR_STEP"):
        begun = saved["epoch"] if saved["step"] else saved["epoch"] - 1
        return isinstance(was, list) and _passed(was, begun) == _passed(now, begun)
    return key == "TRAIN.EMA_DECAY" and 0 in (was, now)  # the weights do not depend on it


def _passed(milestones: list, epoch: int) -> list:
    """Return the milestones of epochs that have started."""
    return sorted(
        value for value in milestones if isinstance(value, (int, float)) and value <= epoch
    )
