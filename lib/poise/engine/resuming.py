"""Find the checkpoint that a run is resumed from, and check which settings have changed.

The checkpoint's own configuration is compared with the given one. Settings that shape the result
are refused, because the run's score would be reported for settings that it was not trained with.
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

# how a run is resumed, and keys without effect
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
# where and how fast it runs, what it logs, when it saves and ends; cells (MODEL.GENOTYPE) are
# compared themselves: see state.genotype_of and search.state
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
# may change while the run trains; a finished run has no result with the new value
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
_LENGTHS = ("TRAIN.END_EPOCH", "TRAIN.ITERATIONS", "SEARCH.EPOCHS")
# the same file may lie elsewhere
_FILES = ("DATASET.FILE", "DATASET.MIX.*.FILE", "MODEL.PRETRAINED", "TEST.COCO_BBOX_FILE")
_MOST_SHOWN = 12


def find_checkpoint(cfg: CfgNode, cfg_path: str, folder: Path, restarted: bool) -> dict | None:
    """Return the checkpoint to resume from, or None.

    It is TRAIN.CHECKPOINT, else the run folder's newest with AUTO_RESUME or TRAIN.RESUME.

    restarted: whether torchrun has started any of the processes again. Then it is what they had
    written before, whatever the keys say.
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
    """Return a checkpoint whose settings were compared with `cfg`, see `check_settings`."""
    saved["changed"] = check_settings(saved, cfg, ignored)
    log.info("resuming from %s", saved["path"])
    return saved


def _of_this_job(folder: Path, name: str) -> dict | None:
    """Return the newest checkpoint that this torchrun job wrote there; None where it wrote none.

    A folder with damaged checkpoints, or those of another experiment, is another run's. Raises
    WeightReadError where one cannot be read now: this job's own would be lost.
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
    """Compare the configuration in a checkpoint with `cfg`.

    saved: the checkpoint, with its path. ignored: IN_TRAINING or IN_SEARCH. Settings that may
    change are logged. Raises ConfigError, listing the others with both values. Returns {key: both
    values} of those that may change only while the run trains, for `check_finished`.
    """
    if not isinstance(saved.get("config"), str):
        log.warning("%s: has no configuration to compare with", saved["path"])
        return {}
    groups = parse_yaml(saved["config"], saved["path"], DataError)
    if not isinstance(groups, dict):
        raise DataError(
            f"{saved['path']}: its configuration is invalid; remove it to start a new run"
        )
    before, now, defaults = (
        dict(flatten(groups)),
        dict(flatten(cfg)),
        dict(flatten(default_config())),
    )
    may: dict[str, str] = {}
    must_not: dict[str, str] = {}
    for key in sorted(before.keys() | now.keys()):
        free = key.startswith(("MODEL.EXTRA.", "DATASET.MIX."))
        if key not in now and not free or _is_one_of(key, ignored):  # a key of another version
            continue
        was, is_ = before.get(key, defaults.get(key, ABSENT)), now.get(key, ABSENT)
        if was == is_:
            continue
        allowed = _may_change(key, was, is_, saved, now)
        why = ""
        if not allowed and key in _LENGTHS:
            why = f"; TRAIN.LR_SCHEDULE {cfg.TRAIN.LR_SCHEDULE} depends on the length"
        said = f"{key} {short_repr(is_, 60)} (was {short_repr(was, 60)}{why})"
        (may if allowed else must_not)[key] = said
    _refuse(saved["path"], list(must_not.values()))
    if may:
        log.info(
            "settings that differ from the checkpoint's and may change: %s", ", ".join(may.values())
        )
    return {key: said for key, said in may.items() if not _is_one_of(key, _FREE)}


def check_finished(path: Path | None, changed: dict[str, str], beyond: bool) -> None:
    """Raise ConfigError where a run with nothing left to train was trained with other settings.

    path: its checkpoint. changed: what check_settings returned. beyond: whether the run is longer
    than it is to be now; otherwise its length is the one that is asked for.
    """
    _refuse(path, [said for key, said in changed.items() if beyond or key not in _LENGTHS])


def _refuse(path: object, settings: list[str]) -> None:
    """Raise ConfigError where there are such settings."""
    if not settings:
        return
    more = f" and {len(settings) - _MOST_SHOWN} more" if len(settings) > _MOST_SHOWN else ""
    listed = ", ".join(settings[:_MOST_SHOWN])
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
    """Return the milestones of the epochs that have begun."""
    return sorted(
        value for value in milestones if isinstance(value, (int, float)) and value <= epoch
    )
