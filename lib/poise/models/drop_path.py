"""Stochastic depth: in training, skip the branch of a residual block for some of the samples.

Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, arXiv 1603.09382; per sample
and scaled in training instead of testing, as in timm.
"""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Set samples to 0 with probability `rate` in train mode, and divide the others by 1 - rate.

    Shapes: (B, ...) -> the same. Random numbers come from torch's global generator of the input's
    device, which training seeds for each step.
    """

    def __init__(self, rate: float):
        super().__init__()
        assert 0 <= rate < 1, f"rate must be from 0 to below 1, got {rate}"
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep_prob = 1 - self.rate
        mask = x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(keep_prob)
        return x * mask.div_(keep_prob)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def linear_rates(last: float, blocks: int) -> list[float]:
    """Return rates that rise linearly from 0 in the first of `blocks` to `last` in the last."""
    return [last * k / max(blocks - 1, 1) for k in range(blocks)]
