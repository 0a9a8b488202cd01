"""Mixed precision in training: the scale of the loss that keeps fp16's gradients within its
range. What is computed in 16 bits: poise.models.forward.
"""

from __future__ import annotations

from collections import deque

import torch
from yacs.config import CfgNode

from poise.errors import PoiseError

_LEAST_SCALE = 2.0**-10  # gradients that overflow below it are not finite at any scale


class LossScaler:
    """The scale of AMP fp16, PyTorch's GradScaler: a step whose gradients overflow is left out and
    halves it. Otherwise without effect.

    A step's scale is read when its loss is, which may be after the next step was launched, so that
    a GPU need not be waited for.
    """

    def __init__(self, cfg: CfgNode, device: torch.device):
        self._scaler = torch.amp.GradScaler(device.type, enabled=cfg.AMP == "fp16")
        self._one = torch.ones((), device=device)
        self._last = self.value
        self._unread: deque[torch.Tensor] = deque()  # the scales after the steps since then

    @property
    def active(self) -> bool:
        return self._scaler.is_enabled()

    @property
    def value(self) -> float:
        return self._scaler.get_scale()

    def backward(self, loss: torch.Tensor) -> None:
        self._scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step, or none where a gradient is not finite."""
        self._scaler.step(optimizer)
        self._scaler.update()
        if self.active:
            self._unread.append(self._scaler.scale(self._one))  # a copy, without waiting for a GPU

    def step_skipped(self) -> bool:
        """Whether the step that was just done was left out. Waits for a GPU."""
        if not self.active:
            return False
        before = self._unread[-2] if len(self._unread) > 1 else self._last
        return float(self._unread[-1]) < float(before)

    def found_inf(self) -> bool:
        """Whether the first step that was not yet asked for was left out.

        Raises PoiseError where no scale helps any more.
        """
        if not self.active:
            return False
        before, self._last = self._last, float(self._unread.popleft())
        if self._last < _LEAST_SCALE:
            raise PoiseError(
                f"AMP fp16: gradients are not finite even with a loss scale of {self._last:g}; use"
                " AMP bf16 or lower TRAIN.LR"
            )
        return self._last < before

    def state_dict(self) -> dict:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Of a run without fp16 there is none, and the scale begins anew."""
        if self.active and state:
            self._scaler.load_state_dict(state)
        self._last = self.value
