"""Copy a network for inference with batch norms fused into convolutions, and pack convolutions."""

from __future__ import annotations

import copy
import logging
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from poise.errors import single_line

log = logging.getLogger(__name__)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in eval mode with batch norms folded into their convolutions.

    Outputs are equal except for float rounding. A batch norm is folded if it follows a plain or
    transposed convolution whose output has no other use. A network that torch.fx cannot trace, such
    as one whose forward pass depends on values or sizes, is copied unchanged, with one warning. The
    copy is not for training and has other state-dict keys.
    """
    # SyncBatchNorm's, which cannot be copied
    groups = [getattr(module, "process_group", None) for module in model.modules()]
    memo = {id(group): group for group in groups if group is not None}
    folded = copy.deepcopy(model, memo).eval()
    try:
        pairs = _find_pairs(folded)
    # a TraceError, or any error of a forward pass that is called with a proxy for its images
    except Exception as error:
        _warn_once(type(model).__name__, f"{type(error).__name__}: {single_line(error)}")
        return folded
    for conv_name, norm_name in pairs:
        conv: Any = folded.get_submodule(conv_name)
        norm: Any = folded.get_submodule(norm_name)
        is_transposed = isinstance(conv, nn.ConvTranspose2d)
        folded.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm, transpose=is_transposed))
        folded.set_submodule(norm_name, nn.Identity().eval())
    return folded


@cache
def _warn_once(name: str, reason: str) -> None:
    log.warning(
        "%s: batch norms are not folded, torch.fx cannot trace its forward pass (%s); set"
        " TEST.FOLD_BN False to hide this warning",
        name,
        reason,
    )


class _Tracer(fx.Tracer):
    """Treats all batch norms as one operation, also those outside of PyTorch."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def _find_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return names of convolutions and of the batch norms that alone use their outputs."""
    inputs: dict[str, set[str]] = {}  # batch norm -> modules whose outputs it is called with
    users: dict[str, set[str]] = {}  # convolution -> modules that are called with its outputs
    for node in _Tracer().trace(model).nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        module = model.get_submodule(name)
        if isinstance(module, _BatchNorm):
            inputs.setdefault(name, set()).add(_module_name(node.args[0]))
        elif isinstance(module, nn.Conv2d) or (
            isinstance(module, nn.ConvTranspose2d) and module.groups == 1
        ):
            users.setdefault(name, set()).update(map(_module_name, node.users))
    return [
        (conv, norm)
        for norm, convs in inputs.items()
        for conv in convs
        if len(convs) == 1 and users.get(conv) == {norm}
    ]


def _module_name(node: Any) -> str:
    """Return the name of the module that a node calls, '' for other nodes."""
    return str(node.target) if node.op == "call_module" else ""


class PackedConv2d(nn.Module):
    """A Conv2d for inference with weights in oneDNN's own layout.

    The layout is chosen for the size of the first input; other sizes may be slower.

    Args:
        conv: the convolution.
        dtype: type to compute in, float32 or bfloat16, for inputs of any type.
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
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self._plain, *self._settings, list(images.shape)
            )
            self._plain = None
        assert self._packed is not None
        return torch.ops.mkldnn._convolution_pointwise(
            images.to(self._packed.dtype), self._packed, self._bias, *self._settings, "none", [], ""
        )


def can_pack() -> bool:
    """Return whether this PyTorch has oneDNN's operations, which are not a public interface."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name)
        for name in ("_reorder_convolution_weight", "_convolution_pointwise")
    )


def pack_convolutions(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Pack each plain Conv2d of `model` in place and return it; it is on the CPU in eval mode."""
    for name, module in list(model.named_modules()):
        if (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            model.set_submodule(name, PackedConv2d(module, dtype))
    return model
