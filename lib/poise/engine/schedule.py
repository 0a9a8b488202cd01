"""Optimisers, and the learning rate as a function of the epoch."""
from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """TRAIN.OPTIMIZER over all parameters. Adam ignores TRAIN.WD: HRNet and SimpleBaseline do, and published so.

    Fused: one pass over the weights instead of a dozen, equal but for rounding.
    """
    t = cfg.TRAIN
    if t.OPTIMIZER == "sgd":
        return torch.optim.SGD(model.parameters(), lr=t.LR, momentum=t.MOMENTUM, weight_decay=t.WD, nesterov=t.NESTEROV)
    return torch.optim.Adam(model.parameters(), lr=t.LR, fused=True)


def learning_rate(cfg: CfgNode, epoch: int) -> float:
    """The rate of an epoch: TRAIN.LR times TRAIN.LR_FACTOR for every step that has begun.

    A function of the epoch alone, so that a resumed run cannot be off by one, as the schedulers of the references are with
    today's PyTorch.
    """
    return cfg.TRAIN.LR * cfg.TRAIN.LR_FACTOR ** sum(epoch >= step for step in cfg.TRAIN.LR_STEP)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
