"""A copy of a network for inference, in which batch norm is part of the convolution before it:
fewer passes over the maps.
"""

from __future__ import annotations

import copy
import logging
from functools import cache

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from poise.errors import single_line

log = logging.getLogger(__name__)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode whose batch norms are folded into their convolutions, plain
    and transposed; `model` stays as it is.

    Its outputs are those of the network in eval mode but for float rounding. A batch norm is folded
    where it follows a convolution whose output nothing else uses; others (before a convolution,
    after a pooling) stay. A network that torch.fx cannot follow, as one whose forward pass depends
    on values or sizes, is copied as it is, which is said once. The copy is not for training, and
    its state dict is its own.
    """
    # SyncBatchNorm's, which cannot be copied
    groups = [getattr(module, "process_group", None) for module in model.modules()]
    folded = copy.deepcopy(
        model, {id(group): group for group in groups if group is not None}
    ).eval()
    try:
        pairs = _pairs(folded)
    # a TraceError, or whatever a forward pass raises when it is called with a stand-in for its
    # images
    except Exception as error:
        _say_once(type(model).__name__, f"{type(error).__name__}: {single_line(error)}")
        return folded
    for conv, norm in pairs:
        modules = folded.get_submodule(conv), folded.get_submodule(norm)
        folded.set_submodule(
            conv, fuse_conv_bn_eval(*modules, transpose=isinstance(modules[0], nn.ConvTranspose2d))
        )
        folded.set_submodule(norm, nn.Identity().eval())
    return folded


@cache
def _say_once(name: str, reason: str) -> None:
    log.warning(
        "%s is tested with its batch norms as they are, torch.fx cannot follow its forward pass"
        " (%s); TEST.FOLD_BN False says nothing",
        name,
        reason,
    )


class _Tracer(fx.Tracer):
    """Does not look into batch norms, those that are not PyTorch's own either."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and the batch norms that alone use their outputs, wherever in the
    network they are called.
    """
    before: dict[str, set[str]] = {}  # batch norm -> what its inputs come from
    after: dict[str, set[str]] = {}  # convolution -> what uses its outputs
    for node in _Tracer().trace(model).nodes:
        if node.op != "call_module":
            continue
        module = model.get_submodule(node.target)
        if isinstance(module, _BatchNorm):
            source = node.args[0]
            before.setdefault(node.target, set()).add(
                source.target if source.op == "call_module" else ""
            )
        elif (
            isinstance(module, nn.Conv2d)
            or isinstance(module, nn.ConvTranspose2d)
            and module.groups == 1
        ):
            after.setdefault(node.target, set()).update(
                user.target if user.op == "call_module" else "" for user in node.users
            )
    return [
        (conv, norm)
        for norm, sources in before.items()
        for conv in sources
        if len(sources) == 1 and after.get(conv) == {norm}
    ]


class PackedConv2d(nn.Module):
    """A Conv2d in eval mode by oneDNN's own operation, in `dtype` (float32 or bfloat16), whatever
    the type of its input. Not for training.

    The best layout depends on the size of the input: the first one decides, others are right too,
    if perhaps slower.
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
            self._packed, self._plain = (
                torch.ops.mkldnn._reorder_convolution_weight(
                    self._plain, *self._settings, list(images.shape)
                ),
                None,
            )
        return torch.ops.mkldnn._convolution_pointwise(
            images.to(self._packed.dtype), self._packed, self._bias, *self._settings, "none", [], ""
        )


def can_pack() -> bool:
    """Whether this PyTorch has the operations, which are those of its own compiler and so not
    promised to stay.
    """
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name)
        for name in ("_reorder_convolution_weight", "_convolution_pointwise")
    )


def pack_convolutions(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """`model`, on the CPU and in eval mode, with each plain Conv2d packed in place. Returns
    `model`.
    """
    for name, module in list(model.named_modules()):
        if (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            model.set_submodule(name, PackedConv2d(module, dtype))
    return model
