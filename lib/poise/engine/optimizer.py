"""The optimisers of TRAIN.OPTIMIZER."""
from __future__ import annotations

from inspect import unwrap

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from yacs.config import CfgNode


def _without_compiler(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The same optimiser, whose methods do not import PyTorch's compiler, which takes a second of every start.

    PyTorch wraps them to keep them out of what is compiled, and `step` also to switch gradients off; COMPILE compiles the network alone.
    """
    bare = {name: unwrap(getattr(kind, name)) for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad")}
    return type(kind.__name__, (kind,), {**bare, "step": torch.no_grad()(unwrap(kind.step))})


SGD, Adam, AdamW = (_without_compiler(kind) for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """TRAIN.OPTIMIZER over all parameters, in two groups with TRAIN.WD_NORM_AND_BIAS False. 'adam' ignores TRAIN.WD: HRNet and
    SimpleBaseline do, and published so.

    Fused: one pass over the weights instead of a dozen, equal but for rounding.
    """
    t = cfg.TRAIN
    parameters = model.parameters() if t.WD_NORM_AND_BIAS else _decayed_and_not(model)
    if t.OPTIMIZER == "sgd":
        return SGD(parameters, lr=t.LR, momentum=t.MOMENTUM, weight_decay=t.WD, nesterov=t.NESTEROV, fused=True)
    if t.OPTIMIZER == "adamw":
        return AdamW(parameters, lr=t.LR, weight_decay=t.WD, fused=True)
    return Adam(parameters, lr=t.LR, weight_decay=t.WD if t.OPTIMIZER == "adam_l2" else 0.0, fused=True)


def _decayed_and_not(model: nn.Module) -> list[dict]:
    """Parameter groups: the weights, and the parameters of norms and the biases, which do not decay."""
    norms = {id(parameter) for module in model.modules() if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) for parameter in module.parameters()}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[id(parameter) not in norms and name.split(".")[-1] != "bias"].append(parameter)
    return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]
