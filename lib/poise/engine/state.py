"""Training state, and how it is saved and restored."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from poise.config import experiment_name
from poise.datasets.sampler import EpochBatchSampler
from poise.engine import checkpoint, device
from poise.engine.amp import LossScaler
from poise.engine.ema import ModelEma
from poise.engine.evaluate import format_score
from poise.engine.optim import Schedule
from poise.errors import PoiseError, escape_name, is_out_of_memory

log = logging.getLogger(__name__)


@contextmanager
def checkpoint_errors(saved: dict) -> Iterator[None]:
    """Turn errors of loading a checkpoint that does not fit the run into a PoiseError."""
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
            f"{saved['path']}: the checkpoint does not fit the network or optimizer of this"
            f" configuration ({reason}); remove it to start a new run"
        ) from None


class Progress:
    """Epochs and steps that are done, the sums of the epoch, and the best scores.

    Attributes:
        epoch, step: the next step is step `step` of epoch `epoch`.
        sums: metrics of the epoch so far, summed over all processes.
        best_score, best_epoch: of the weights.
        ema_score, ema_epoch: of their moving average.
        evals_without_improvement: evaluations since one of the two scores rose.
        last_checkpoint: the newest one that this run wrote or was resumed from, or None.
        damaged: newer checkpoints that could not be read.
        changed: settings that differ from those of the checkpoint, see check_settings.
    """

    def __init__(self, epoch: int = 0):
        self.epoch = epoch
        self.step = 0
        self.sums = dict.fromkeys(
            ("loss", "right", "counted", "samples", "seconds", "data_seconds", "overflows"), 0.0
        )
        self.best_score, self.best_epoch = -math.inf, -1
        self.ema_score, self.ema_epoch = -math.inf, -1
        self.evals_without_improvement = 0
        self.last_checkpoint: Path | None = None
        self.damaged: tuple[str, ...] = ()
        self.changed: dict[str, str] = {}

    def start_epoch(self, epoch: int) -> None:
        """Set the first step of an epoch as the next step."""
        self.epoch = epoch
        self.step = 0
        self.sums = dict.fromkeys(self.sums, 0.0)

    def add_time(self, seconds: float, data_seconds: float) -> None:
        """Add the time of a step, of which `data_seconds` were spent waiting for data."""
        self.sums["seconds"] += seconds
        self.sums["data_seconds"] += data_seconds

    def epoch_metrics(self) -> dict[str, float]:
        """Return the means of the epoch so far; times are those of rank 0."""
        sums = self.sums
        seconds = max(sums["seconds"], 1e-9)
        return {
            "train_loss": sums["loss"] / max(sums["samples"], 1),
            "train_acc": sums["right"] / max(sums["counted"], 1),
            "images_per_second": sums["samples"] / seconds,
            "data_time_share": sums["data_seconds"] / seconds,
        }

    def update_scores(self, scores: dict[str, float]) -> list[str]:
        """Update the best scores after an evaluation; return the names with a new best score.

        Of equal scores the later one counts, as in HRNet: the last weights are saved if a test set
        has no labels and every score is 0.

        Args:
            scores: of the weights ("") and of their moving average ("ema").
        """
        best = {"": self.best_score, "ema": self.ema_score}
        improved = any(score > best[name] for name, score in scores.items())
        self.evals_without_improvement = 0 if improved else self.evals_without_improvement + 1
        names = [name for name, score in scores.items() if score >= best[name]]
        if "" in names:
            self.best_score, self.best_epoch = scores[""], self.epoch
        if "ema" in names:
            self.ema_score, self.ema_epoch = scores["ema"], self.epoch
        return names

    def state_dict(self) -> dict:
        """Return what `load_state_dict` needs, as plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "best": {"score": self.best_score, "epoch": self.best_epoch},
            "average_best": (self.ema_score, self.ema_epoch, self.evals_without_improvement),
        }

    def load_state_dict(self, saved: dict) -> None:
        """Restore the progress; older checkpoints have no "average_best"."""
        sums = {**self.sums, **{str(key): float(value) for key, value in saved["sums"].items()}}
        best_score, best_epoch = float(saved["best"]["score"]), int(saved["best"]["epoch"])
        ema_best = saved.get("average_best", (self.ema_score, self.ema_epoch, 0))
        ema_score, ema_epoch, evals = float(ema_best[0]), int(ema_best[1]), int(ema_best[2])
        self.epoch, self.step, self.sums = saved["epoch"], saved["step"], sums
        self.best_score, self.best_epoch = best_score, best_epoch
        self.ema_score, self.ema_epoch = ema_score, ema_epoch
        self.evals_without_improvement = evals
        self.last_checkpoint = Path(saved["path"])
        self.damaged = tuple(saved.get("damaged", ()))
        self.changed = saved.get("changed", {})

    def log_resumed(self) -> None:
        """Log where the run resumes."""
        best = ""
        if self.best_epoch >= 0:
            score = format_score(self.best_score)
            best = f"; best score so far {score} of epoch {self.best_epoch}"
        log.info("resuming at epoch %d, step %d%s", self.epoch, self.step, best)

    @property
    def samples(self) -> float:
        """Samples of the epoch so far, over all processes."""
        return self.sums["samples"]

    def restart_epoch_of_other_batches(self, batches: EpochBatchSampler, what: str) -> None:
        """Start the epoch again if its steps were made of other batches.

        Args:
            batches: batches of the epoch now.
            what: what may have changed, for the log.
        """
        if not self.step or self.samples == min(
            self.step * batches.batch_size, batches.num_samples
        ):
            return
        log.warning("epoch %d was started with another %s; starting it again", self.epoch, what)
        self.start_epoch(self.epoch)

    def last_checkpoint_text(self) -> str:
        """Name the last checkpoint, for an error message."""
        if self.last_checkpoint:
            return f"the last good checkpoint is {self.last_checkpoint}"
        return "no checkpoint was written yet"


def load_network(
    saved: dict, model: nn.Module, optimizer: torch.optim.Optimizer, kind: str = ""
) -> None:
    """Load the weights and the optimizer's state, but not the optimizer's hyperparameters.

    Call it within `checkpoint_errors`, which handles what a mismatch raises.

    Args:
        kind: TRAIN.OPTIMIZER, if the checkpoint must have the same.
    """
    device.unwrap_model(model).load_state_dict(saved["state_dict"])
    # PyTorch silently loads a different optimizer's state and only fails at the first step
    has_other_fields = _momentum_fields(saved["optimizer"]) != _momentum_fields(
        optimizer.state_dict()
    )
    before = saved.get("optimizer_kind", kind)
    if has_other_fields or kind and before != kind:
        names = f": {kind}, and was {before}" if before != kind else ""
        raise ValueError(f"TRAIN.OPTIMIZER is another{names}")
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(saved["optimizer"])
    # the hyperparameters of the configuration, and the switches of this machine
    for group, group_settings in zip(optimizer.param_groups, settings):
        group.update(group_settings)
    # the saved state may have another memory layout (CHANNELS_LAST), which fused Adam ignores
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not torch.is_tensor(value) or not value.dim():
                continue
            if value.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer's {escape_name(key)} has another shape than its parameter"
                )
            state[key] = torch.empty_like(parameter).copy_(value)


def _momentum_fields(state: dict) -> set[str]:
    """Return the fields that tell SGD from Adam in the state dict of an optimizer."""
    return set(state["param_groups"][0]) & {"betas", "momentum"}


@dataclass
class TrainState:
    """What a checkpoint of a training stores.

    Attributes:
        model: the network, possibly wrapped in DataParallel or DistributedDataParallel.
        ema: the moving average of the weights, with TRAIN.EMA_DECAY.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: LossScaler
    ema: ModelEma | None
    progress: Progress

    @property
    def network(self) -> nn.Module:
        """The unwrapped network."""
        return device.unwrap_model(self.model)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks to evaluate: "" with the weights, "ema" with their moving average."""
        networks = {"": self.network}
        if self.ema:
            networks["ema"] = self.ema.network
        return networks

    @property
    def device(self) -> torch.device:
        """The device of the batches and the loss."""
        return next(self.network.parameters()).device

    @property
    def global_step(self) -> int:
        """The next step, counted over the whole training."""
        return self.progress.epoch * self.schedule.steps_per_epoch + self.progress.step

    def should_stop_early(self, patience: int) -> bool:
        """Return whether `patience` (TRAIN.PATIENCE, 0 for never) evaluations did not improve."""
        return 0 < patience <= self.progress.evals_without_improvement

    def has_epochs_left(self, patience: int) -> bool:
        """Return whether the training is not complete and does not stop early."""
        is_complete = self.progress.epoch >= self.schedule.epochs
        return not is_complete and not self.should_stop_early(patience)

    def check_finite(self) -> None:
        """Raise PoiseError if a weight or statistic is not finite, so that it is not saved.

        This happens even though the last loss was finite.
        """
        progress = self.progress
        checked: dict[str, Iterable[torch.Tensor]] = {
            "a weight": self.network.parameters(),
            "a running statistic of batch norm": self.network.buffers(),
        }
        if self.ema:
            checked["a moving average of the weights"] = self.ema.network.state_dict().values()
        for name, tensors in checked.items():
            finite = [torch.isfinite(tensor).all() for tensor in tensors]
            if finite and not torch.stack(finite).all():  # one transfer from a GPU, not hundreds
                raise PoiseError(
                    f"epoch {progress.epoch}: {name} is not finite after the last step; lower"
                    f" TRAIN.LR; {progress.last_checkpoint_text()}"
                )

    def load_state_dict(self, saved: dict, cfg: CfgNode, batches: EpochBatchSampler) -> None:
        """Restore the state from a checkpoint. Raises PoiseError if it does not fit."""
        with checkpoint_errors(saved):
            genotype = saved.get("genotype")
            has_other_cells = bool(genotype) and genotype != genotype_of(self.model)
        if has_other_cells:
            raise PoiseError(
                f"{saved['path']}: checkpoint of a network with other cells (MODEL.GENOTYPE or its"
                " file has changed); remove it to start a new run, or set another OUTPUT_DIR"
            )
        with checkpoint_errors(saved):
            load_network(saved, self.model, self.optimizer, cfg.TRAIN.OPTIMIZER)
            self.progress.load_state_dict(saved)
        self.progress.log_resumed()
        with checkpoint_errors(saved):
            self.scaler.load_state_dict(saved.get("scaler", {}))
            if self.ema and "ema" in saved:
                self.ema.load_state_dict(saved["ema"])
        if self.ema and "ema" not in saved:
            log.warning(
                "%s has no moving average of the weights; TRAIN.EMA_DECAY starts from the current"
                " weights",
                saved["path"],
            )
            self.ema.update(self.network)
        self.progress.restart_epoch_of_other_batches(
            batches, "batch size, number of devices or training set"
        )

    def write_checkpoint(self, folder: Path, cfg: CfgNode, cfg_path: str) -> Path:
        """Write the newest checkpoint of the run folder; return its path."""
        content = {
            **checkpoint.run_metadata(cfg, cfg_path, cfg.SEED),
            **self.progress.state_dict(),
            "state_dict": checkpoint.model_state_dict(cfg, self.network, experiment_name(cfg_path)),
            "genotype": genotype_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_kind": cfg.TRAIN.OPTIMIZER,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            **({"ema": self.ema.state_dict()} if self.ema else {}),
        }
        last = self.progress.last_checkpoint
        first = last is None or not checkpoint.same_folder(last.parent, folder)
        return checkpoint.save_and_rotate(folder, content, cfg.TRAIN.CHECKPOINTS_KEPT, first=first)


def genotype_of(model: nn.Module) -> dict[str, list] | None:
    """Return the genotype of a searched network as plain values; None for other networks.

    Networks of different genotypes may have the same names and shapes of weights.
    """
    genotype = getattr(device.unwrap_model(model), "genotype", None)
    return genotype and genotype.plain_cells()
