"""Write, rotate and load checkpoints: everything that a run needs to resume.

A checkpoint holds tensors and plain values only. It is written atomically, and the last few are
kept.
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
_PARTS = rf"{TEMPORARY_NAME}|\..+\.\d+\.part"  # the second is the pattern of Poise 0.1.0
_MIN_VALUES = {"epoch": 0, "step": 0, "seed": 0, "threads": 1}
_MAX_VALUE = 2**63  # of each of these
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
    """A checkpoint is truncated or has a wrong checksum."""


save = weights.save


def checkpoint_name(number: int) -> str:
    """Return the file name of a checkpoint; number 0 is the newest, 1 the one before it."""
    return f"checkpoint_{number}.pth" if number else NAME


def model_state_dict(cfg: CfgNode, network: nn.Module, experiment: str) -> dict[str, torch.Tensor]:
    """Return the state dict of an unwrapped network, with its keypoint names and experiment."""
    state = weights.add_keypoint_names(network.state_dict(), dataset_info(cfg).skeleton.names)
    return weights.add_experiment(state, describe_experiment(cfg, experiment, network))


def file_has_weights(file: Path, network: nn.Module) -> bool:
    """Return whether a weight file has exactly the weights of the network."""
    try:
        found = weights.read_state_dict(file)
    except DataError:
        return False
    state = network.state_dict()
    return found.keys() == state.keys() and all(
        torch.equal(found[name], tensor.cpu()) for name, tensor in state.items()
    )


def run_metadata(cfg: CfgNode, cfg_path: str, seed: int) -> dict[str, Any]:
    """Return what every checkpoint stores about its run."""
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
    """Return the id that the processes of a torchrun job share, also after a restart.

    It is '' without torchrun.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()}" if run == "none" else run


def is_restarted() -> bool:
    """Return whether torchrun restarted this process (--max-restarts).

    On several machines each torchrun counts the failures of its own processes only, so combine the
    answers of all processes.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def save_and_rotate(folder: Path, content: dict[str, Any], kept: int, first: bool) -> Path:
    """Write the newest checkpoint, rename the older ones and remove the oldest; return its path.

    A process that is killed at any moment leaves the newest checkpoint or the one before it.

    Args:
        folder: the run folder.
        content: what to store.
        kept: number of checkpoints to keep.
        first: whether this is the first checkpoint of a run. The checkpoints in the folder are then
            those of another run and are removed.

    Raises DataError, with all files unchanged, if the file cannot be written.
    """
    newest = folder / NAME
    save(folder / _NEXT, content)
    try:
        if first:
            _remove_from(folder, 1)
        else:
            # up to the first gap, which a process that was killed while renaming leaves
            numbers = checkpoint_numbers(folder)
            for number in reversed([n for index, n in enumerate(numbers) if index == n]):
                os.replace(folder / checkpoint_name(number), folder / checkpoint_name(number + 1))
        os.replace(folder / _NEXT, newest)
        fsync_dir(folder)  # the new name is on the disk before an old file is removed
        _remove_from(folder, kept)
    except OSError as error:
        raise DataError(
            f"{newest}: cannot be written ({error.strerror or error}); {folder / _NEXT} is complete"
            " and the older checkpoints are kept"
        ) from None
    return newest


def cleanup_stale(folder: Path, used: Path | None, damaged: Iterable[str] = ()) -> None:
    """Remove partial files; rename the checkpoints that are newer than `used`.

    They get the suffix .damaged if listed in `damaged`, which load_latest returns, and .unused
    otherwise: the user has chosen an older one with TRAIN.CHECKPOINT.

    Args:
        used: the checkpoint that the run is resumed from, if any.
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
        suffix = "damaged" if str(path) in damaged else "unused"
        renamed = path.with_name(f"{path.name}.{suffix}")
        os.replace(path, renamed)
        log.warning("%s is now %s", path, renamed.name)


def same_folder(one: Path, other: Path) -> bool:
    """Return whether two paths are the same folder, after resolving links."""
    return one.resolve() == other.resolve()


def load(path: str | Path, experiment: str) -> dict[str, Any]:
    """Load a checkpoint of an experiment; its path is added as "path".

    Raises CorruptCheckpointError, or DataError for another kind of file and for one that cannot be
    read at the moment.
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
    """Read a file and verify its checksums."""
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
        with zipfile.ZipFile(path) as archive:  # torch does not verify its checksums
            spoiled = archive.testzip()
    except (OSError, MemoryError) as error:
        raise weights.read_error(path, error) from None
    except DataError:
        raise
    except Exception as error:  # zipfile raises errors of many kinds for corrupt headers
        raise CorruptCheckpointError(
            f"{path}: corrupt ({single_line(error) or type(error).__name__}); remove it to"
            " start a new run"
        ) from None
    if spoiled:
        raise CorruptCheckpointError(
            f"{path}: corrupt, wrong checksum of {spoiled}; remove it to start a new run"
        )
    return content


def _check_content(path: Path, content: Any) -> None:
    """Raise DataError if the content is not a checkpoint of this version."""
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not all(
            key in content and isinstance(content[key], kind) for key, kind in _FIELDS.items()
        )
    ):
        raise DataError(
            f"{path}: not a checkpoint of this version of Poise; remove it to start a new run, or"
            " set MODEL.PRETRAINED to it"
        )
    for key, min_value in _MIN_VALUES.items():
        if not min_value <= content[key] < _MAX_VALUE:
            raise DataError(
                f"{path}: the checkpoint has {key} {short_repr(content[key], 40)}, which no run"
                " has; remove it to start a new run"
            )
    if any(not weights.is_plain(tensor) for tensor in _tensors_of(content)):
        raise DataError(
            f"{path}: the checkpoint has an unsupported tensor (sparse, quantized, without memory,"
            " or with more values than the file holds)"
        )


def _tensors_of(content: Any) -> Iterator[torch.Tensor]:
    """Iterate over all tensors; tolerates self-referencing containers."""
    stack = [content]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            stack += item.values() if isinstance(item, dict) else item


def checkpoint_numbers(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints in a folder, the newest (0) first.

    A process that was killed while it renamed them leaves a gap.
    """
    names = (
        re.fullmatch(r"checkpoint(?:_([1-9]\d*))?\.pth", path.name)
        for path in folder.glob("checkpoint*.pth")
    )
    return sorted(int(name[1] or 0) for name in names if name)


def _remove_from(folder: Path, first: int) -> None:
    for number in checkpoint_numbers(folder):
        if number >= first:
            (folder / checkpoint_name(number)).unlink()


def load_latest(folder: Path, experiment: str) -> dict[str, Any] | None:
    """Load the newest intact checkpoint of a run folder; None if there is no checkpoint.

    The key "damaged" lists the corrupt ones that are newer.

    Raises:
        CorruptCheckpointError: if all are corrupt.
        DataError: for a checkpoint of another experiment or program, or if the newest cannot be
            read at the moment. Resuming from an older one would lose what it stores.
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
            log.warning("%s: corrupt; trying the checkpoint before it", path)
    if first:
        raise first
    return None
