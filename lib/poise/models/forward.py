"""Run a batch of crops through a network: normalization, mixed precision and the flip test.

Training, evaluation, PoseEstimator and exports use these functions.

Legend: B batch, K keypoints, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from poise.codecs.codec import Codec, Output, map_output
from poise.errors import ConfigError

# value of AMP -> the type that is computed in
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def normalize(
    images: torch.Tensor,
    device: torch.device,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool = False,
) -> torch.Tensor:
    """Normalize crops and move them to a device.

    Args:
        images: (B, H, W, 3) uint8.
        mean: of each channel, where 1 is the highest pixel value.
        std: standard deviation of each channel, in the same unit.
        channels_last: keep the memory layout of the crops instead of NCHW.

    Returns:
        (B, 3, H, W) float32.
    """
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    if not channels_last:
        images = images.contiguous()
    scaled_mean = images.new_tensor(mean).mul_(255)[:, None, None]
    scaled_std = images.new_tensor(std).mul_(255)[:, None, None]
    return images.sub_(scaled_mean).div_(scaled_std)


def denormalize(
    images: torch.Tensor, *, mean: Sequence[float], std: Sequence[float], rgb: bool
) -> np.ndarray:
    """Revert `normalize` to draw images.

    Args:
        images: (B, 3, H, W) normalized.
        mean: as for normalize.
        std: as for normalize.
        rgb: whether the channels of `images` are in RGB order, else BGR.

    Returns:
        (B, H, W, 3) uint8 BGR.
    """
    mean_pixel = images.new_tensor(mean)[:, None, None]
    std_pixel = images.new_tensor(std)[:, None, None]
    pixels = ((images * std_pixel + mean_pixel) * 255).round().clamp(0, 255).byte()
    array = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return array[:, :, :, ::-1] if rgb else array


def check_precision(devices: Sequence[torch.device], amp: str) -> None:
    """Raise ConfigError if the devices do not support AMP `amp`: '', 'bf16' or 'fp16'."""
    if amp != "bf16":
        return
    if len(devices) > 1:  # DataParallel's threads would compute in fp16, autocast's default
        raise ConfigError(
            f"AMP bf16: not supported on {len(devices)} GPUS in one process; start one process"
            " per GPU with torchrun"
        )
    if devices[0].type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"AMP bf16: not supported by {torch.cuda.get_device_name(devices[0])}; use AMP fp16"
        )


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """Return the context in which a network computes with AMP `amp`: '', 'bf16' or 'fp16'."""
    return torch.autocast(device.type, _DTYPES[amp]) if amp else nullcontext()


def forward_with_flip_test(
    model: Callable[[torch.Tensor], Output],
    images: torch.Tensor,
    codec: Codec,
    flip_indices: torch.Tensor,
    *,
    flip_test: bool,
    amp: str = "",
) -> Output:
    """Return the prediction of a network in float32, with the flip test if asked for.

    Args:
        model: a network in eval mode.
        images: (B, 3, H, W) normalized.
        flip_indices: (K,) indices of poise.structures.skeleton.
        flip_test: average the prediction with that of the flipped images.
        amp: see autocast.
    """
    with autocast(images.device, amp):
        output = map_output(torch.Tensor.float, model(images))
        if not flip_test:
            return output
        flipped = map_output(torch.Tensor.float, model(images.flip(3)))
    return codec.flip_average(output, flipped, flip_indices)
