"""Convolutions for inference on the CPU whose weights lie as oneDNN wants them, once and for all: in each call it would lay them out anew."""
from __future__ import annotations

import torch
from torch import nn


class PackedConv2d(nn.Module):
    """A Conv2d in eval mode by oneDNN's own operation, in `dtype` (float32 or bfloat16), whatever the type of its input. Not for training.

    The best layout depends on the size of the input: the first one decides, others are right too, if perhaps slower.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        self._settings = conv.padding, conv.stride, conv.dilation, conv.groups
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._plain: torch.Tensor | None = conv.weight.detach().to(dtype)
        self._packed: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self._plain is not None:
            images = images.to(self._plain.dtype)
            self._packed, self._plain = torch.ops.mkldnn._reorder_convolution_weight(self._plain, *self._settings, list(images.shape)), None
        return torch.ops.mkldnn._convolution_pointwise(images.to(self._packed.dtype), self._packed, self._bias, *self._settings, "none", [], "")


def can_pack() -> bool:
    """Whether this PyTorch has the operations, which are those of its own compiler and so not promised to stay."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise"))


def pack_convolutions(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """`model`, on the CPU and in eval mode, with each plain Conv2d packed in place. Returns `model`."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            model.set_submodule(name, PackedConv2d(module, dtype))
    return model
