"""The ways in which published weights are named, and how each becomes Poise's names: one table, for
loading and for converting.

Poise's names are those of the original repositories, so their files need no renaming at all:
SimpleBaseline, HRNet, Res2Net-Pose, MSPN, PoseNAS and MogaNet's pose networks. What remains are
ImageNet files of other names and the weights of mmpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from poise.models.weights.families import UNKNOWN, Family, Shapes, identify_family, tensor_shapes
from poise.models.weights.reading import AVERAGED, State, is_averaging_counter


@dataclass(frozen=True)
class Format:
    """A naming. marks: patterns; each begins a name of every such file.

    to_poise: the state dict under Poise's names; names that it does not know stay as they are.
    order: the order of the image's channels that the weights were trained on, where it is known
    ('rgb'). source: who names so, and where that can be read.
    """

    name: str
    marks: tuple[str, ...]
    to_poise: Callable[[State], State]
    order: str
    source: str


def rename(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    """Each name with the first rule applied whose pattern begins it."""

    def renamed(name: str) -> str:
        for pattern, replacement in rules:
            changed, count = re.subn(rf"\A{pattern}", replacement, name, count=1)
            if count:
                return changed
        return name

    return {renamed(name): tensor for name, tensor in state.items()}


# mmpose -------------------------------------------------------------------------------------------

# 0.x says keypoint_head, 1.x head and reads both
_MMPOSE = ((r"backbone\.", ""), (r"(?:keypoint_head|head)\.(?=deconv_layers\.|final_layer\.)", ""))
_MMPOSE_BLOCK = r"backbone\.multi_stage_mspn\.(\d+)\."
_MMPOSE_MSPN = (
    (r"backbone\.top\.top\.0\.", "top.conv."),
    (
        rf"{_MMPOSE_BLOCK}downsample\.layer(\d)\.(\d+)\.conv(\d)\.",
        r"stage\1.downsample.layer\2.\3.conv_bn_relu\4.conv.",
    ),
    (
        rf"{_MMPOSE_BLOCK}downsample\.layer(\d)\.(\d+)\.bn(\d)\.",
        r"stage\1.downsample.layer\2.\3.conv_bn_relu\4.bn.",
    ),
    (rf"{_MMPOSE_BLOCK}downsample\.", r"stage\1.downsample."),
    (rf"{_MMPOSE_BLOCK}upsample\.(up\d)\.in_skip\.", r"stage\1.upsample.\2.u_skip."),
    (rf"{_MMPOSE_BLOCK}upsample\.(up\d)\.out_skip(\d)\.", r"stage\1.upsample.\2.skip\3."),
    (rf"{_MMPOSE_BLOCK}upsample\.", r"stage\1.upsample."),
)
_MSPN_MMPOSE = (
    (r"top\.conv\.", "backbone.top.top.0."),
    (
        r"stage(\d+)\.downsample\.layer(\d)\.(\d+)\.conv_bn_relu(\d)\.conv\.",
        r"backbone.multi_stage_mspn.\1.downsample.layer\2.\3.conv\4.",
    ),
    (
        r"stage(\d+)\.downsample\.layer(\d)\.(\d+)\.conv_bn_relu(\d)\.bn\.",
        r"backbone.multi_stage_mspn.\1.downsample.layer\2.\3.bn\4.",
    ),
    (r"stage(\d+)\.downsample\.", r"backbone.multi_stage_mspn.\1.downsample."),
    (
        r"stage(\d+)\.upsample\.(up\d)\.u_skip\.",
        r"backbone.multi_stage_mspn.\1.upsample.\2.in_skip.",
    ),
    (
        r"stage(\d+)\.upsample\.(up\d)\.skip(\d)\.",
        r"backbone.multi_stage_mspn.\1.upsample.\2.out_skip\3.",
    ),
    (
        r"stage(\d+)\.upsample\.(up\d\.(?:up_conv|cross_conv))\.",
        r"backbone.multi_stage_mspn.\1.upsample.\2.",
    ),
)
_UNITS = 4  # MSPN's units of a stage, each with a head


def _mmpose_mspn_to_poise(state: State) -> State:
    """Heads into their units, and a bias of 0 for every convolution: mmpose's have none, since
    batch norm follows.
    """

    def head(match: re.Match) -> str:
        number, layer = int(match[1]), int(match[2])
        return f"stage{number // _UNITS}.upsample.up{number % _UNITS + 1}.res_conv{layer + 1}."

    pattern = r"\A(?:keypoint_head|head)\.predict_layers\.(\d+)\.conv_layers\.([01])\."
    found = rename(
        {re.sub(pattern, head, name): tensor for name, tensor in state.items()}, _MMPOSE_MSPN
    )
    biases = {
        name.removesuffix("weight") + "bias": torch.zeros(len(tensor), dtype=tensor.dtype)
        for name, tensor in found.items()
        if re.match(r"(top|stage\d+)\.", name) and name.endswith(".conv.weight") and tensor.dim()
    }
    return {**biases, **found}


def _mspn_to_mmpose(state: State) -> State:
    """Back. The biases go into the running means behind them, where they have the same effect:
    (x + b) - m = x - (m - b).
    """
    found = dict(state)
    for name in [name for name in state if name.endswith(".conv.bias")]:
        mean = name.removesuffix("conv.bias") + "bn.running_mean"
        bias = found.pop(name)
        found[mean] = found[mean] - bias

    def head(match: re.Match) -> str:
        stage, unit, layer = (int(number) for number in match.groups())
        return f"keypoint_head.predict_layers.{stage * _UNITS + unit - 1}.conv_layers.{layer - 1}."

    pattern = r"\Astage(\d+)\.upsample\.up(\d)\.res_conv([12])\."
    return rename(
        {re.sub(pattern, head, name): tensor for name, tensor in found.items()}, _MSPN_MMPOSE
    )


def swap_channel_order(state: State, first_conv: str) -> State:
    """The same network for images of the opposite channel order (RGB and BGR), with mean and
    standard deviation turned likewise.
    """
    return (
        {**state, first_conv: state[first_conv].flip(1)}
        if first_conv in state and state[first_conv].dim() > 1
        else state
    )


# ImageNet -----------------------------------------------------------------------------------------

_RESNET_MSPN = (
    (r"conv1\.", "top.conv.conv."),
    (r"bn1\.", "top.conv.bn."),
    (r"(layer\d\.\d+)\.conv(\d)\.", r"stage0.downsample.\1.conv_bn_relu\2.conv."),
    (r"(layer\d\.\d+)\.bn(\d)\.", r"stage0.downsample.\1.conv_bn_relu\2.bn."),
    (r"(layer\d\.\d+)\.downsample\.0\.", r"stage0.downsample.\1.downsample.conv."),
    (r"(layer\d\.\d+)\.downsample\.1\.", r"stage0.downsample.\1.downsample.bn."),
)


def resnet_to_mspn(state: State, stages: int) -> State:
    """An ImageNet ResNet in MSPN's top and in the ways down of its first `stages` stages.

    The authors load the first stage alone (megvii-research/MSPN issue 20), mmpose all
    (mmpose/models/backbones/mspn.py).
    """
    return copy_to_stages(rename(state, _RESNET_MSPN), stages)


def copy_to_stages(state: State, stages: int) -> State:
    """What stands in stage 0 of an MSPN's way down, in the first `stages` ones."""
    down = {name: tensor for name, tensor in state.items() if name.startswith("stage0.downsample.")}
    copies = {
        name.replace("stage0.", f"stage{stage}.", 1): tensor
        for stage in range(1, stages)
        for name, tensor in down.items()
    }
    return {**state, **copies}


# the first that fits
FORMATS = (
    Format(
        "mmpose's MSPN",
        (r"backbone\.top\.top\.0\.conv\.weight", _MMPOSE_BLOCK),
        _mmpose_mspn_to_poise,
        "rgb",
        "open-mmlab/mmpose mmpose/models/backbones/mspn.py,"
        " heads/topdown_heatmap_multi_stage_head.py (0.x), heads/heatmap_heads/mspn_head.py (1.x)",
    ),
    Format(
        "mmpose",
        (r"backbone\.conv1\.", r"backbone\.layer1\.0\."),
        lambda state: rename(state, _MMPOSE),
        "rgb",
        "open-mmlab/mmpose mmpose/models/backbones/{resnet,hrnet}.py,"
        " heads/topdown_heatmap_simple_head.py (0.x), heads/heatmap_heads/heatmap_head.py (1.x)",
    ),
    Format(
        "MogaNet on ImageNet",
        (r"patch_embed1\.projection\.0\.", r"blocks1\.0\.attn\."),
        lambda state: rename(state, ((r"(?=patch_embed\d|blocks\d|norm\d)", "backbone."),)),
        "rgb",
        "Westlake-AI/MogaNet models/moganet.py",
    ),
)
RELEASED = Format("", (), lambda state: state, "", "the repository of each family")


def identify_format(state: State) -> Format:
    """How the names of a file are made; RELEASED where they need no renaming, and for a network
    that is not known.
    """
    return next(
        (
            known
            for known in FORMATS
            if all(any(re.match(mark, name) for name in state) for mark in known.marks)
        ),
        RELEASED,
    )


def strip_wrappers(state: State, own: Shapes | None = None) -> tuple[State, list[str]]:
    """Return the weights without the name that a training loop's module gave the network.

    PyTorch Lightning's checkpoints have the network as `model.` or `net.`, next to what else the
    module holds, such as a loss or an average; the names of these tensors are returned too.
    Such names may be nested (`model.net.`). The counter of an AveragedModel inside is dropped.
    own: the names and shapes of the network that is to take the weights. Where it uses such a name
    itself, the weights are returned as they are.
    """
    for attribute in ("model", "net"):
        pattern = rf"\A{attribute}\.(?:module\.)*"
        if own and any(re.match(pattern, name) for name in own):
            continue
        inside = [name for name in state if re.match(pattern, name)]
        others = [name for name in state if not re.match(pattern, name)]
        inner = {re.sub(pattern, "", name): state[name] for name in inside}
        if not inner or len(inner) < len(inside):
            continue
        if AVERAGED in inner and is_averaging_counter(n.split(".", 1)[1] for n in inside):
            del inner[AVERAGED]
        inner, more = strip_wrappers(inner, own)
        others += more
        known = (
            identify_format(inner) is not RELEASED
            or identify_family(tensor_shapes(inner)) is not UNKNOWN
        )
        if known or not others or (own and own.keys() <= inner.keys()):
            return inner, others
    return state, []


# Poise's names to the released ones ---------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What tools/convert_weights.py writes. families: whose weights it can be. rename, wrap: the
    state dict and the file around it.
    """

    families: tuple[str, ...]
    rename: Callable[[State, Family], State] = lambda state, family: state
    wrap: Callable[[State], dict] = lambda state: state


def _to_mmpose(state: State, family: Family) -> State:
    if family.name == "mspn":
        return _mspn_to_mmpose(swap_channel_order(state, family.first_conv))
    if family.name == "moganet":
        return state
    return rename(
        state, ((r"(?=deconv_layers\.|final_layer\.)", "keypoint_head."), (r"", "backbone."))
    )


_RESNETS = ("resnet", "res2net", "res2net_v1b")
TARGETS = {
    "poise": Target((*_RESNETS, "hrnet", "mspn", "posenas", "moganet", UNKNOWN.name)),
    "simplebaseline": Target(_RESNETS),
    "hrnet": Target(("hrnet", *_RESNETS)),
    "mspn": Target(("mspn",), wrap=lambda state: {"model": state}),
    "posenas": Target(("posenas",)),
    "moganet": Target(("moganet",), wrap=lambda state: {"meta": {}, "state_dict": state}),
    "mmpose": Target(
        ("resnet", "hrnet", "mspn", "moganet"),
        _to_mmpose,
        lambda state: {"meta": {}, "state_dict": state},
    ),
}
