"""Exponential moving average of the weights, which often predicts better than the last weights.

Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the
exponential form and its warm-up are those of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ModelEma:
    """Moving average of the weights and batch norm statistics.

    Update n (0, 1, ...) computes d * average + (1 - d) * value with
    d = min(decay, (1 + n) / (10 + n)), so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of `model`, which is unwrapped, after a step."""
        self._averaged.update_parameters(model)

    def _mix(self, averages: Any, values: Any, _: torch.Tensor | int) -> None:
        # not the argument, which is on the GPU: reading it would wait
        count = int(self._averaged.n_averaged)
        update = get_ema_multi_avg_fn(min(self._decay, (1 + count) / (10 + count)))
        update(averages, values, count)

    def state_dict(self) -> dict:
        """Return the averages and the number of updates."""
        return {"state_dict": self.network.state_dict(), "updates": int(self._averaged.n_averaged)}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["state_dict"])
        self._averaged.n_averaged.fill_(state["updates"])
