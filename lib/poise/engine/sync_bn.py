"""Batch norm whose mean and variance are those of the batches of all processes: SYNC_BN; and
batches too small for any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from poise.errors import ConfigError


class AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over the processes of a group, in all of them; so is its gradient the
    sum of theirs.
    """

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
    """What nn.SyncBatchNorm, which is for GPUs only, computes; on the CPU over gloo. (B, C, h, w)
    -> the same; B may differ between processes.

    In eval mode it is plain batch norm.
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
        # the squares of the differences, not the difference of the squares, which would lose digits
        centred = values - mean[:, None, None]
        variance = (
            AllReduceSum.apply(centred.square().sum(dim=(0, 2, 3)), self.process_group) / count
        )
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                # None: the mean over all batches
                share = (
                    1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                )
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)
        scale = torch.rsqrt(variance + self.eps) * (self.weight if self.affine else 1)
        normed = centred * scale[:, None, None]
        return (normed + self.bias[:, None, None] if self.affine else normed).to(x.dtype)


def convert_sync_batchnorm(model: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """The network with every batch norm replaced by one over the processes of the group; its
    parameters and buffers are the same tensors.
    """
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
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var, new.num_batches_tracked = (
            norm.running_mean,
            norm.running_var,
            norm.num_batches_tracked,
        )
        model.set_submodule(name, new.train(norm.training))
    return model


@contextmanager
def forward_trial(model: nn.Module) -> Iterator[torch.device]:
    """Hand out the network's device, the network in train mode within. Its mode, its buffers and
    random numbers are then as before.
    """
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
    """Raise ConfigError, naming the key of the batch size, where the network cannot be trained on
    one sample.

    Batch norm has no variance there where a feature map is of 1 x 1.
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
            " of 1 x 1 needs two; choose another batch size, or a MODEL.IMAGE_SIZE larger than"
            f" {width} x {height}"
        ) from None
