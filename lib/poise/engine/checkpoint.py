"""Checkpoints: everything a run needs to go on, as tensors and plain values, written whole or
not at all, the last few of them kept.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import socket
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from poise.config import experiment_name
from poise.config.datasets import dataset_info
from poise.engine.embedded_experiment import describe_experiment
from poise.engine.logger import git_revision, package_version
from poise.errors import DataError, escape_name, short_repr, single_line
from poise.io.files import TEMPORARY_NAME, fsync_dir
from poise.models import weights

log = logging.getLogger(__name__)

FORMAT = 1
NAME = "checkpoint.pth"
_NEXT = "checkpoint_next.pth"
_PARTS = rf"{TEMPORARY_NAME}|\..+\.\d+\.part"  # the second as Poise 0.1.0 named them
# no number of a run is larger; the least of each
_NUMBERS_FROM = {"epoch": 0, "step": 0, "seed": 0, "threads": 1}
_LARGEST = 2**63
_FIELDS = {
    "epoch": int,
    "step": int,
    "sums": dict,
    "state_dict": object,
    "optimizer": dict,
    "best": object,
    "experiment": str,
    "seed": int,
    "threads": int,
}


class CorruptCheckpointError(DataError):
    """A checkpoint that cannot be read to its end."""


save = weights.save


def checkpoint_name(number: int) -> str:
    """The name of the checkpoint that was written `number` checkpoints before the newest."""
    return f"checkpoint_{number}.pth" if number else NAME


def model_state_dict(cfg: CfgNode, network: nn.Module, experiment: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a network without wrappers, with its joints and experiment."""
    state = weights.add_keypoint_names(network.state_dict(), dataset_info(cfg).skeleton.names)
    return weights.add_experiment(state, describe_experiment(cfg, experiment, network))


def file_has_weights(file: Path, network: nn.Module) -> bool:
    """Return whether a weight file holds these weights, to the last bit."""
    try:
        found = weights.read_state_dict(file)
    except DataError:
        return False
    state = network.state_dict()
    return found.keys() == state.keys() and all(
        torch.equal(found[name], tensor.cpu()) for name, tensor in state.items()
    )


def run_metadata(cfg: CfgNode, cfg_path: str, seed: int) -> dict[str, Any]:
    """What every checkpoint says of the run that wrote it."""
    return {
        "format": FORMAT,
        "experiment": experiment_name(cfg_path),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "config": cfg.dump(),
        "torch": str(torch.__version__),
        "git": git_revision(),
        "job": job_id(),
        "versions": {
            "poise": package_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def job_id() -> str:
    """What the processes that torchrun starts have in common with those that it starts in their
    place; '' without torchrun.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()}" if run == "none" else run


def is_restarted() -> bool:
    """Whether torchrun started this process in place of one that ended (--max-restarts).

    On several machines each torchrun counts the failures of its own processes, so ask it of all.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def save_and_rotate(folder: Path, content: dict[str, Any], kept: int, first: bool) -> Path:
    """The folder's newest checkpoint; returns its path. Those before it take the next numbers, and
    `kept` are left in all.

    first: of a run that began anew; the checkpoints there are another run's, and are removed.
    Raises DataError where the disk is full or cannot be written; all files are then as they were. A
    process that is killed at any moment leaves the newest or the one before it.
    """
    newest = folder / NAME
    save(folder / _NEXT, content)
    try:
        if first:
            _remove_from(folder, 1)
        else:
            together = [
                number for place, number in enumerate(checkpoint_numbers(folder)) if place == number
            ]
            for number in reversed(together):
                os.replace(folder / checkpoint_name(number), folder / checkpoint_name(number + 1))
        os.replace(folder / _NEXT, newest)
        fsync_dir(folder)  # the new name is on the disk before an old file goes
        _remove_from(folder, kept)
    except OSError as error:
        raise DataError(
            f"{newest}: cannot be written ({error.strerror or error}); {folder / _NEXT} is whole,"
            " and those before it are kept"
        ) from None
    return newest


def cleanup_stale(folder: Path, used: Path | None, damaged: Iterable[str] = ()) -> None:
    """Remove what a killed process had begun to write. Checkpoints newer than `used`, the one that
    is gone on with, get another name:
    *.damaged those that load_latest found so, *.unused those that the user passed over with
    TRAIN.CHECKPOINT.
    """
    for path in (
        *(path for path in folder.rglob(".*.part") if re.fullmatch(_PARTS, path.name)),
        folder / _NEXT,
    ):
        path.unlink(missing_ok=True)
    if used is None or not same_folder(used.parent, folder):
        return
    for number in checkpoint_numbers(folder):
        path = folder / checkpoint_name(number)
        if path.name == used.name:
            break
        aside = path.with_name(f"{path.name}.{'damaged' if str(path) in damaged else 'unused'}")
        os.replace(path, aside)
        log.warning("%s is now %s", path, aside.name)


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths are of one folder, through links and whatever the current folder."""
    return one.resolve() == other.resolve()


def load(path: str | Path, experiment: str) -> dict[str, Any]:
    """Return a checkpoint of this experiment.

    Raises CorruptCheckpointError, or DataError for any other file and for one that cannot be read
    now.
    """
    path = Path(path)
    content = _read(path)
    _check_content(path, content)
    if content["experiment"] != experiment:
        raise DataError(
            f"{path}: a checkpoint of experiment {escape_name(content['experiment'])}, not of"
            f" {experiment}; give it as MODEL.PRETRAINED to start from its weights"
        )
    return {**content, "path": str(path)}


def _read(path: Path) -> Any:
    """Return what a file holds, whose checksums are verified."""
    try:
        if not path.is_file():
            raise DataError(
                f"{path}: no such checkpoint; TRAIN.CHECKPOINT takes a checkpoint.pth of a run"
                " folder"
            )
        try:
            content = weights.read_tensors(path, "checkpoint")
        except weights.WeightReadError:
            raise
        except DataError as error:
            raise CorruptCheckpointError(f"{error}; remove it to start a new run") from None
        with zipfile.ZipFile(path) as archive:  # torch does not verify the sums that it wrote
            spoiled = archive.testzip()
    except (OSError, MemoryError) as error:
        raise weights.read_error(path, error) from None
    except DataError:
        raise
    except Exception as error:  # zipfile raises many kinds where its headers are spoiled
        raise CorruptCheckpointError(
            f"{path}: damaged ({single_line(error) or type(error).__name__}); remove it to begin"
            " anew"
        ) from None
    if spoiled:
        raise CorruptCheckpointError(
            f"{path}: corrupt, wrong checksum of {spoiled}; remove it to start a new run"
        )
    return content


def _check_content(path: Path, content: Any) -> None:
    """Raise DataError for what is not a checkpoint of this version."""
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not all(
            key in content and isinstance(content[key], kind) for key, kind in _FIELDS.items()
        )
    ):
        raise DataError(
            f"{path}: not a checkpoint of this version of Poise; remove it to start a new run, or give"
            " it as MODEL.PRETRAINED"
        )
    for key, least in _NUMBERS_FROM.items():
        if not least <= content[key] < _LARGEST:
            raise DataError(
                f"{path}: the checkpoint has {key} {short_repr(content[key], 40)}, which no run"
                " has; remove it to start a new run"
            )
    if any(not weights.is_plain(tensor) for tensor in _tensors_of(content)):
        raise DataError(
            f"{path}: the checkpoint has a tensor that is no plain one (sparse, quantised, without"
            " memory, or of more values than the file holds)"
        )


def _tensors_of(content: Any) -> Iterator[torch.Tensor]:
    """All tensors in dictionaries and lists, however deep; a stranger's may hold themselves."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item


def checkpoint_numbers(folder: Path) -> list[int]:
    """Numbers of the checkpoints that are there, the newest first; a process that was killed
    while it renamed them leaves a gap.
    """
    names = (
        re.fullmatch(r"checkpoint(?:_([1-9]\d*))?\.pth", path.name)
        for path in folder.glob("checkpoint*.pth")
    )
    return sorted(int(name[1] or 0) for name in names if name)


def _remove_from(folder: Path, least: int) -> None:
    for number in checkpoint_numbers(folder):
        if number >= least:
            (folder / checkpoint_name(number)).unlink()


def load_latest(folder: Path, experiment: str) -> dict[str, Any] | None:
    """The newest checkpoint of a run folder that is whole, with a warning where it is not the
    newest; None where there is none at all.

    "damaged" lists those that are newer and damaged. Raises CorruptCheckpointError where none is
    whole, and DataError for the file of another experiment or program, and where the newest cannot
    be read now: resuming from the one before it would lose what it holds.
    """
    first: CorruptCheckpointError | None = None
    damaged: list[str] = []
    for number in checkpoint_numbers(folder):
        path = folder / checkpoint_name(number)
        try:
            return {**load(path, experiment), "damaged": damaged}
        except CorruptCheckpointError as error:
            first = first or error
            damaged.append(str(path))
            log.warning("%s: damaged; trying the checkpoint before it", path)
    if first:
        raise first
    return None
