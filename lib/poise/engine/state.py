"""Where a training is, and its way to the disk and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from poise.config import data_path, experiment_name
from poise.engine import checkpoint, device
from poise.engine.evaluate import deciding_text
from poise.engine.resuming import IN_TRAINING, check_settings
from poise.errors import DataError, PoiseError, is_out_of_memory, shown
from poise.models.weights import Unreadable

log = logging.getLogger(__name__)


@contextmanager
def fitting(saved: dict) -> Iterator[None]:
    """What does not fit the run while it takes over what was `saved` becomes a PoiseError,
    naming the file.
    """
    try:
        yield
    except (
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        if is_out_of_memory(error):  # removing the checkpoint would not help
            raise
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise PoiseError(
            f"{saved['path']}: the checkpoint does not fit the network or optimiser of this"
            f" configuration ({reason}); remove it to begin anew"
        ) from None


class Progress:
    """The epoch, the steps of it that are done, their sums over all processes, and the best scores
    so far, of the weights and of their average.

    stale: tests since one of the two rose. kept: the newest checkpoint that this run wrote or went
    on from; None before there is one. damaged: newer ones that could not be gone on from. changed:
    settings that differ from its own, see check_settings.
    """

    def __init__(self, epoch: int):
        self.epoch, self.step = epoch, 0
        self.sums = dict.fromkeys(
            ("loss", "right", "counted", "samples", "seconds", "data_seconds", "overflows"), 0.0
        )
        self.best_score, self.best_epoch = -math.inf, -1
        self.ema_score, self.ema_epoch, self.stale = -math.inf, -1, 0
        self.kept: Path | None = None
        self.damaged: tuple[str, ...] = ()
        self.changed: dict[str, str] = {}

    def restore(
        self, saved: dict, model: nn.Module, optimizer: torch.optim.Optimizer, kind: str = ""
    ) -> None:
        """Go on from where `saved` was written, with the settings that the optimiser has. kind:
        TRAIN.OPTIMIZER, where it must be the run's.

        Raises PoiseError where it does not fit.
        """
        with fitting(saved):
            other_cells = bool(saved.get("genotype")) and saved["genotype"] != cells_of(model)
        if other_cells:
            raise PoiseError(
                f"{saved['path']}: the checkpoint of a network with other cells (MODEL.GENOTYPE is"
                " another, or its file has changed); remove it to begin anew, or give the training"
                " a folder of its own with OUTPUT_DIR"
            )
        with fitting(saved):
            sums = {**self.sums, **{str(key): float(value) for key, value in saved["sums"].items()}}
            best_score, best_epoch = float(saved["best"]["score"]), int(saved["best"]["epoch"])
            average_best = tuple(
                saved.get("average_best", (self.ema_score, self.ema_epoch, self.stale))
            )
            ema_score, ema_epoch, stale = (
                float(average_best[0]),
                int(average_best[1]),
                int(average_best[2]),
            )
            device.bare(model).load_state_dict(saved["state_dict"])
            # PyTorch takes another optimiser's state without a word and fails at the first step
            theirs, own = (
                set(state["param_groups"][0]) & {"betas", "momentum"}
                for state in (saved["optimizer"], optimizer.state_dict())
            )
            before = saved.get("optimizer_kind", kind)
            if theirs != own or kind and before != kind:
                raise ValueError(
                    "TRAIN.OPTIMIZER is"
                    f" another{f': {kind}, and was {before}' if before != kind else ''}"
                )
            settings = [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(saved["optimizer"])
            # of this machine and PyTorch
            for group, own in zip(optimizer.param_groups, settings):
                group.update(own)
            # the saved averages may lie in memory in another order (CHANNELS_LAST), and fused Adam
            # walks raw memory
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    if not torch.is_tensor(value) or not value.dim():
                        continue
                    if value.shape != parameter.shape:
                        raise ValueError(
                            f"the optimiser's {shown(key)} is of another shape than its weight"
                        )
                    state[key] = torch.empty_like(parameter).copy_(value)
        self.epoch, self.step, self.sums = saved["epoch"], saved["step"], sums
        self.best_score, self.best_epoch = best_score, best_epoch
        self.ema_score, self.ema_epoch, self.stale = ema_score, ema_epoch, stale
        self.kept, self.damaged = Path(saved["path"]), tuple(saved.get("damaged", ()))
        self.changed = saved.get("changed", {})
        best = (
            ""
            if self.best_epoch < 0
            else f"; best score so far {deciding_text(self.best_score)} of epoch {self.best_epoch}"
        )
        log.info("going on at epoch %d, step %d%s", self.epoch, self.step, best)

    def begin(self, epoch: int) -> None:
        self.epoch, self.step = epoch, 0
        self.sums = dict.fromkeys(self.sums, 0.0)

    def position(self) -> dict:
        """What `restore` needs of this, as plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "best": {"score": self.best_score, "epoch": self.best_epoch},
            "average_best": (self.ema_score, self.ema_epoch, self.stale),
        }

    def averages(self) -> dict[str, float]:
        """The figures of the epoch so far; those of the clock are rank 0's."""
        sums, seconds = self.sums, max(self.sums["seconds"], 1e-9)
        return {
            "train_loss": sums["loss"] / max(sums["samples"], 1),
            "train_acc": sums["right"] / max(sums["counted"], 1),
            "images_per_second": sums["samples"] / seconds,
            "data_time_share": sums["data_seconds"] / seconds,
        }


def find_checkpoint(cfg: CfgNode, cfg_path: str, folder: Path, restarted: bool) -> dict | None:
    """The checkpoint to go on from: TRAIN.CHECKPOINT, else the run folder's newest when AUTO_RESUME
    or TRAIN.RESUME; or None.

    restarted: torchrun has started any of the processes again; then it is what they had written
    before, whatever the keys say.
    """
    name, saved = experiment_name(cfg_path), None
    if restarted:
        saved = _of_this_job(folder, name)
    if saved is None and cfg.TRAIN.CHECKPOINT:
        saved = checkpoint.load(Path(data_path(cfg, cfg.TRAIN.CHECKPOINT)), name)
    elif saved is None and (cfg.AUTO_RESUME or cfg.TRAIN.RESUME):
        saved = checkpoint.load_newest(folder, name)
    if saved is None:
        return None
    saved["changed"] = check_settings(saved, cfg, IN_TRAINING)
    log.info("going on from %s", saved["path"])
    return saved


def _of_this_job(folder: Path, name: str) -> dict | None:
    """Return the newest checkpoint that this torchrun job wrote there; None where it wrote none.

    A folder with damaged checkpoints, or those of another experiment, is another run's. Raises
    Unreadable where one cannot be read now: this job's own would be lost.
    """
    try:
        saved = checkpoint.load_newest(folder, name)
    except Unreadable:
        raise
    except DataError as error:
        log.warning("%s; not taken for a checkpoint of this job", error)
        return None
    return saved if saved and saved.get("job") == checkpoint.job() else None


def resumes_in(cfg: CfgNode, cfg_path: str, folder: Path, restarted: bool) -> bool:
    """Return whether find_checkpoint takes a checkpoint of this run folder."""
    if restarted and _of_this_job(folder, experiment_name(cfg_path)):
        return True
    if cfg.TRAIN.CHECKPOINT:
        return checkpoint.same_folder(Path(data_path(cfg, cfg.TRAIN.CHECKPOINT)).parent, folder)
    return bool((cfg.AUTO_RESUME or cfg.TRAIN.RESUME) and checkpoint.numbers(folder))


def cells_of(model: nn.Module) -> dict[str, list] | None:
    """How a searched network is wired, as plain values: two wirings of the same operations have
    the same weights by name and shape. None for others.
    """
    genotype = getattr(device.bare(model), "genotype", None)
    return genotype and genotype.plain_cells()
