"""The optimizers of TRAIN.OPTIMIZER and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from yacs.config import CfgNode

from poise.errors import ConfigError

#: or parameter groups
Parameters = Iterable[nn.Parameter] | Iterable[dict]


def _without_compiler(kind: type[torch.optim.Optimizer]) -> Any:
    """Return a subclass whose methods do not import PyTorch's compiler, about 1 s at each start.

    PyTorch wraps the methods to exclude them from compilation, and `step` also to disable
    gradients. COMPILE compiles the network only.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods = {name: unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


SGD, Adam, AdamW = (
    _without_compiler(kind) for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
)


def _adam(parameters: Parameters, train: CfgNode) -> torch.optim.Optimizer:
    """Adam without TRAIN.WD, as HRNet and SimpleBaseline published it."""
    return Adam(parameters, lr=train.LR, weight_decay=0.0, fused=True)


def _adam_l2(parameters: Parameters, train: CfgNode) -> torch.optim.Optimizer:
    return Adam(parameters, lr=train.LR, weight_decay=train.WD, fused=True)


def _adamw(parameters: Parameters, train: CfgNode) -> torch.optim.Optimizer:
    return AdamW(parameters, lr=train.LR, weight_decay=train.WD, fused=True)


def _sgd(parameters: Parameters, train: CfgNode) -> torch.optim.Optimizer:
    return SGD(
        parameters,
        lr=train.LR,
        momentum=train.MOMENTUM,
        weight_decay=train.WD,
        nesterov=train.NESTEROV,
        fused=True,
    )


#: by TRAIN.OPTIMIZER; the names are those of poise.config.validate.OPTIMIZERS. Fused: one pass over
#: the weights instead of a dozen, equal but for rounding
OPTIMIZERS: dict[str, Callable[[Parameters, CfgNode], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adam_l2": _adam_l2,
    "adamw": _adamw,
    "sgd": _sgd,
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return TRAIN.OPTIMIZER over all parameters.

    With TRAIN.WD_NORM_AND_BIAS False norms and biases are a group without weight decay.
    """
    train = cfg.TRAIN
    parameters = model.parameters() if train.WD_NORM_AND_BIAS else _decayed_and_not(model)
    return OPTIMIZERS[train.OPTIMIZER](parameters, train)


def _decayed_and_not(model: nn.Module) -> list[dict]:
    """Return two parameter groups: weights, and norms and biases, which do not decay."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm))
        for parameter in module.parameters()
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[id(parameter) not in norms and name.split(".")[-1] != "bias"].append(parameter)
    return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]


# fields that checkpoints store under their first names
_STATE_KEYS = {"total_steps": "end", "policy": "kind", "gamma": "factor"}


@dataclass(frozen=True)
class Schedule:
    """Number of steps and learning rate of each step of a training.

    The learning rate is a function of the step only, so that a resumed run cannot be off by one, as
    the schedulers of the reference implementations are with current PyTorch.

    Attributes:
        steps_per_epoch: number of batches of the loader.
        total_steps: of the whole training, from epoch 0.
        base_rate: the learning rate before warm-up and decay.
    """

    steps_per_epoch: int
    total_steps: int
    base_rate: float
    policy: str
    milestones: tuple[int, ...]
    gamma: float
    warmup: int
    warmup_factor: float
    note: str

    @classmethod
    def from_config(cls, cfg: CfgNode, steps_per_epoch: int, batch: int) -> Schedule:
        """Build the schedule of TRAIN.*.

        Args:
            cfg: the experiment.
            steps_per_epoch: number of batches of the loader.
            batch: samples of a step, over all devices and processes. With TRAIN.BASE_BATCH the
                learning rate and the length are scaled to it, but not the warm-up (as in MSPN).

        Raises ConfigError if TRAIN.BEGIN_EPOCH leaves nothing to train.
        """
        t = cfg.TRAIN
        share = batch / t.BASE_BATCH if t.BASE_BATCH else 1.0
        end = max(round(t.ITERATIONS / share), 1) if t.ITERATIONS else t.END_EPOCH * steps_per_epoch
        if t.BEGIN_EPOCH * steps_per_epoch >= end:
            raise ConfigError(
                f"TRAIN.BEGIN_EPOCH {t.BEGIN_EPOCH}: nothing is left to train of {end} steps with"
                f" {steps_per_epoch} an epoch; lower it"
            )
        note = ""
        if t.BASE_BATCH and (share != 1 or t.ITERATIONS):
            note = (
                f"; for {t.BASE_BATCH} samples a step it would be"
                f" {t.ITERATIONS or round(end * share)} steps at {t.LR:g}"
            )
        return cls(
            steps_per_epoch,
            end,
            t.LR * share,
            t.LR_SCHEDULE,
            tuple(t.LR_STEP),
            t.LR_FACTOR,
            t.WARMUP_ITERS,
            t.WARMUP_FACTOR,
            note,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores, for its readers: no run is resumed from it."""
        return {_STATE_KEYS.get(key, key): value for key, value in asdict(self).items()}

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole training; the last one may be shorter."""
        return -(-self.total_steps // self.steps_per_epoch)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return max(min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch), 0)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole training.

        linear: MSPN's LambdaLR, which is advanced before the step, so the first step has factor(1)
        and the last factor(end) = 0. cosine: half a cosine from the end of the warm-up on
        (Loshchilov and Hutter, SGDR, ICLR 2017, arXiv 1608.03983, without restarts). step:
        TRAIN.LR_FACTOR for every milestone whose epoch has begun; with the warm-up of mmpose 0.29,
        whose first step has TRAIN.WARMUP_FACTOR.
        """
        if self.policy == "linear":
            step += 1
        rate = self.base_rate
        if self.policy == "step":
            epoch = step // self.steps_per_epoch
            rate *= self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if step < self.warmup:
            return rate * (self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup)
        if self.policy == "linear":
            return rate * max(self.total_steps - step, 0) / max(self.total_steps - self.warmup, 1)
        if self.policy == "cosine":
            progress = (step - self.warmup) / max(self.total_steps - self.warmup, 1)
            return rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
        return rate

    def __str__(self) -> str:
        if self.policy == "step":
            milestones = ", ".join(map(str, self.milestones)) or "none"
            decay = f"x{self.gamma:g} at epochs {milestones}"
            unused = [str(epoch) for epoch in self.milestones if epoch >= self.epochs]
            if unused:
                decay += f" ({', '.join(unused)}: after the end, without effect)"
        else:
            decay = f"{self.policy} to 0"
        warmup = f", warm-up over {self.warmup} steps" if self.warmup else ""
        epochs = self.total_steps / max(self.steps_per_epoch, 1)
        return (
            f"{self.total_steps} steps ({epochs:.1f} epochs of {self.steps_per_epoch}),"
            f" learning rate {self.base_rate:g}, {decay}{warmup}{self.note}"
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
