"""How long a training is, and the learning rate as a function of the step."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from yacs.config import CfgNode

from poise.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """The length of a training and its learning rates, for the batch that is really used.

    steps_per_epoch: of the loader. end: steps of the whole training, from epoch 0. base_rate: the rate before warm-up and decay.
    The rate is a function of the step alone, so that a resumed run cannot be off by one, as the schedulers of the references are
    with today's PyTorch.
    """

    steps_per_epoch: int
    end: int
    base_rate: float
    kind: str
    milestones: tuple[int, ...]
    factor: float
    warmup: int
    warmup_factor: float
    note: str

    @classmethod
    def from_config(cls, cfg: CfgNode, steps_per_epoch: int, batch: int) -> "Schedule":
        """batch: samples of a step, over all devices and processes. TRAIN.BASE_BATCH scales rate and length to it; not the warm-up (as in MSPN).

        Raises ConfigError where TRAIN.BEGIN_EPOCH leaves nothing to train.
        """
        t = cfg.TRAIN
        share = batch / t.BASE_BATCH if t.BASE_BATCH else 1.0
        end = max(round(t.ITERATIONS / share), 1) if t.ITERATIONS else t.END_EPOCH * steps_per_epoch
        if t.BEGIN_EPOCH * steps_per_epoch >= end:
            raise ConfigError(f"TRAIN.BEGIN_EPOCH {t.BEGIN_EPOCH}: nothing is left to train of {end} steps with {steps_per_epoch} an epoch; lower it")
        note = ""
        if t.BASE_BATCH and (share != 1 or t.ITERATIONS):
            note = f"; for {t.BASE_BATCH} samples a step it would be {t.ITERATIONS or round(end * share)} steps at {t.LR:g}"
        return cls(steps_per_epoch, end, t.LR * share, t.LR_SCHEDULE, tuple(t.LR_STEP), t.LR_FACTOR, t.WARMUP_ITERS, t.WARMUP_FACTOR, note)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training; the last may be cut short."""
        return -(-self.end // self.steps_per_epoch)

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch."""
        return max(min(self.steps_per_epoch, self.end - epoch * self.steps_per_epoch), 0)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over the whole training.

        linear: MSPN's LambdaLR, which is advanced before the step, so the first step has factor(1) and the last factor(end) = 0.
        cosine: half a cosine from the end of the warm-up on (Loshchilov and Hutter, SGDR, ICLR 2017, arXiv 1608.03983, without restarts).
        step: TRAIN.LR_FACTOR for every milestone whose epoch has begun; with the warm-up of mmpose 0.29, whose first step has
        TRAIN.WARMUP_FACTOR.
        """
        if self.kind == "linear":
            step += 1
        rate = self.base_rate
        if self.kind == "step":
            epoch = step // self.steps_per_epoch
            rate *= self.factor ** sum(epoch >= milestone for milestone in self.milestones)
        if step < self.warmup:
            return rate * (self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup)
        if self.kind == "linear":
            return rate * max(self.end - step, 0) / max(self.end - self.warmup, 1)
        if self.kind == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * min((step - self.warmup) / max(self.end - self.warmup, 1), 1)))
        return rate

    def __str__(self) -> str:
        way = f"{self.kind} to 0" if self.kind != "step" else f"x{self.factor:g} at epochs {', '.join(map(str, self.milestones)) or 'none'}"
        late = [str(m) for m in self.milestones if m >= self.epochs] if self.kind == "step" else []
        if late:
            way += f" ({', '.join(late)}: after the end, without effect)"
        warmup = f", warm-up over {self.warmup} steps" if self.warmup else ""
        return (f"{self.end} steps ({self.end / max(self.steps_per_epoch, 1):.1f} epochs of {self.steps_per_epoch}), "
                f"learning rate {self.base_rate:g}, {way}{warmup}{self.note}")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
