"""A moving average of a network's weights beside them: less noisy than the last ones, often better
to predict with.

Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; with the
exponential form and its beginning as in TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ModelEma:
    """After update n (0, 1, ...) every weight and every figure of batch norm is d times the
    average so far and 1 - d times what it is now, d = min(decay, (1 + n) / (10 + n)): so the
    random weights of the beginning are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model`, the bare network, after a step."""
        self._averaged.update_parameters(model)

    def _mix(
        self, averages: list[torch.Tensor], values: list[torch.Tensor], _: torch.Tensor
    ) -> None:
        count = int(self._averaged.n_averaged)  # lies on the CPU
        get_ema_multi_avg_fn(min(self._decay, (1 + count) / (10 + count)))(averages, values, count)

    def state_dict(self) -> dict:
        """Tensors and a number."""
        return {"state_dict": self.network.state_dict(), "updates": int(self._averaged.n_averaged)}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["state_dict"])
        self._averaged.n_averaged.fill_(state["updates"])
