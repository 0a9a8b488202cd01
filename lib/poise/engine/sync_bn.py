"""Synchronized batch norm (SYNC_BN), and a check for batches that are too small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from poise.errors import ConfigError


class AllReduceSum(torch.autograd.Function):
    """Sum a tensor over the processes of a group; the gradient is summed too."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        values = values.clone()
        dist.all_reduce(values, group=group)
        return values

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return AllReduceSum.apply(gradient.contiguous(), ctx.group), None


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Compute nn.SyncBatchNorm, which supports GPUs only, on the CPU over gloo.

    (B, C, h, w) -> the same shape; B may differ between processes. Plain batch norm in eval mode.
    """

    def __init__(self, *arguments, group: dist.ProcessGroup, **settings):
        super().__init__(*arguments, **settings)
        self.process_group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        count = AllReduceSum.apply(values.new_tensor([x.numel() // x.shape[1]]), self.process_group)
        mean = AllReduceSum.apply(values.sum(dim=(0, 2, 3)), self.process_group) / count
        # sum of squared differences: the difference of the sums of squares would lose digits
        centered = values - mean[:, None, None]
        variance = (
            AllReduceSum.apply(centered.square().sum(dim=(0, 2, 3)), self.process_group) / count
        )
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None and self.running_var is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = self.momentum
                if momentum is None:  # the mean over all batches
                    momentum = 1 / int(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centered * scale[:, None, None]).to(x.dtype)
        scale = scale * self.weight
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def convert_sync_batchnorm(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """Replace every batch norm by a synchronized one with the same parameters and buffers."""
    if next(model.parameters()).device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    for name, norm in [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]:
        new = CpuSyncBatchNorm(
            norm.num_features,
            norm.eps,
            norm.momentum,
            norm.affine,
            norm.track_running_stats,
            group=group,
        )
        new.weight = norm.weight
        new.bias = norm.bias
        new.running_mean = norm.running_mean
        new.running_var = norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        model.set_submodule(name, new.train(norm.training))
    return model


@contextmanager
def forward_trial(model: nn.Module) -> Iterator[torch.device]:
    """Set train mode within, and yield the device; restore the mode, buffers and random state."""
    device = next(model.parameters()).device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
            yield device
    finally:
        model.train(was_training)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def check_single_sample(model: nn.Module, image_size: Sequence[int], key: str) -> None:
    """Raise ConfigError if the network cannot be trained on a single sample.

    Batch norm over a feature map of 1 x 1 has no variance then.

    Args:
        model: the network.
        image_size: (width, height).
        key: key of the batch size and its value, for the message.
    """
    width, height = image_size
    try:
        with torch.no_grad(), forward_trial(model) as device:
            model(torch.zeros(1, 3, height, width, device=device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"{key}: a step of each epoch has a single sample on a device, and batch norm over maps"
            " of 1 x 1 needs two; set another batch size, or a MODEL.IMAGE_SIZE larger than"
            f" {width} x {height}"
        ) from None
