"""Stochastic depth: in training the branch of a residual block is left out for some of the samples.

Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, arXiv 1603.09382; per sample,
and scaled in training instead of testing, as timm and the networks built on it have it.
"""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """In train mode each sample becomes 0 with probability `rate`, else it is divided by 1 - rate;
    in eval mode nothing happens.

    Shapes: (B, ...) -> the same. The draws come from torch's global generator of the input's
    device, which the trainer seeds per step.
    """

    def __init__(self, rate: float):
        super().__init__()
        assert 0 <= rate < 1, f"rate must be from 0 to below 1, got {rate}"
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def linear_rates(last: float, blocks: int) -> list[float]:
    """Rates that rise evenly from 0 in the first of `blocks` to `last` in the last one."""
    return [last * k / max(blocks - 1, 1) for k in range(blocks)]
