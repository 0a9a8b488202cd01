"""Checkpoints: everything a run needs to go on, as tensors and plain values, written whole or not at all."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from poise import weights
from poise.errors import DataError

FORMAT = 1
NAME = "checkpoint.pth"
_FIELDS = ("epoch", "step", "sums", "state_dict", "optimizer", "best", "experiment", "seed", "threads")


save = weights.save


def load(path: str | Path, experiment: str) -> dict[str, Any]:
    """A checkpoint that `save` wrote for this experiment. Raises DataError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint; TRAIN.CHECKPOINT takes a checkpoint.pth of a run folder")
    try:
        content = weights.read_tensors(path, "checkpoint")
    except DataError as error:
        raise DataError(f"{error}; remove it to begin anew") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or any(key not in content for key in _FIELDS):
        raise DataError(f"{path}: not a checkpoint of this version of Poise; remove it to begin anew, or give it as MODEL.PRETRAINED")
    if content["experiment"] != experiment:
        raise DataError(f"{path}: a checkpoint of experiment {content['experiment']}, not of {experiment}; give it as MODEL.PRETRAINED to start from its weights")
    return {**content, "path": str(path)}
