"""Scale the loss for mixed-precision training in fp16; see poise.models.forward for autocast."""

from __future__ import annotations

from collections import deque

import torch

from poise.errors import PoiseError

_MIN_SCALE = 2.0**-10  # gradients that overflow below it are not finite at any scale


class LossScaler:
    """Wrap PyTorch's GradScaler; without effect unless enabled.

    A step with infinite gradients is skipped and halves the scale. On a GPU, the scale of a step is
    read together with its loss, possibly after the next step was launched, so that the CPU does not
    wait.
    """

    def __init__(self, device: torch.device, *, enabled: bool):
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self._one = torch.ones((), device=device)
        self._last = self.value
        self._unread: deque[torch.Tensor] = deque()  # scales after the steps since _last

    @property
    def is_enabled(self) -> bool:
        return self._scaler.is_enabled()

    @property
    def value(self) -> float:
        """The current scale. Waits for a GPU."""
        return self._scaler.get_scale()

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer unless a gradient is not finite; update the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()
        if self.is_enabled:
            self._unread.append(self._scaler.scale(self._one))  # a copy that does not wait

    def step_skipped(self) -> bool:
        """Return whether the last step was skipped. Waits for a GPU."""
        if not self.is_enabled:
            return False
        before = self._unread[-2] if len(self._unread) > 1 else self._last
        return float(self._unread[-1]) < float(before)

    def found_inf(self) -> bool:
        """Return whether the oldest unread step was skipped, and mark it as read.

        Raises PoiseError if the gradients are not finite at any scale.
        """
        if not self.is_enabled:
            return False
        before, self._last = self._last, float(self._unread.popleft())
        if self._last < _MIN_SCALE:
            raise PoiseError(
                f"AMP fp16: gradients are not finite even with a loss scale of {self._last:g}; set"
                " AMP bf16 or lower TRAIN.LR"
            )
        return self._last < before

    def state_dict(self) -> dict:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore the scale; start with the default one if the run did not use fp16."""
        if self.is_enabled and state:
            self._scaler.load_state_dict(state)
        self._last = self.value
