"""The names of tensors in published weight files, and how they are converted to Poise's.

Poise's names are those of the original repositories, so the files of SimpleBaseline, HRNet,
Res2Net-Pose, MSPN, PoseNAS and MogaNet's pose networks are loaded as they are. Others are ImageNet
files and the weights of mmpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from poise.models.weights.families import UNKNOWN, Family, Shapes, identify_family, tensor_shapes
from poise.models.weights.reading import AVERAGED, State, is_averaging_counter


@dataclass(frozen=True)
class Format:
    """A naming of tensors.

    Args:
        name: name of the naming, for messages.
        marks: patterns; every such file has names that begin with each of them.
        to_poise: converts the names of a state dict. Unknown names stay unchanged.
        order: channel order of the training images, 'rgb', or '' if unknown.
        source: repository and file that define the names.
    """

    name: str
    marks: tuple[str, ...]
    to_poise: Callable[[State], State]
    order: str
    source: str


def rename(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    """Apply to each name the first rule whose pattern it begins with."""

    def renamed(name: str) -> str:
        for pattern, replacement in rules:
            changed, count = re.subn(rf"\A{pattern}", replacement, name, count=1)
            if count:
                return changed
        return name

    return {renamed(name): tensor for name, tensor in state.items()}


# mmpose -------------------------------------------------------------------------------------------

# the head is keypoint_head in 0.x and head in 1.x, which reads both
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
_UNITS = 4  # units of an MSPN stage, each with a head


def _mmpose_mspn_to_poise(state: State) -> State:
    """Convert mmpose's MSPN. Convolutions get a bias of 0, which mmpose's do not have."""

    def head(match: re.Match) -> str:
        number, layer = int(match[1]), int(match[2])
        return f"stage{number // _UNITS}.upsample.up{number % _UNITS + 1}.res_conv{layer + 1}."

    pattern = r"\A(?:keypoint_head|head)\.predict_layers\.(\d+)\.conv_layers\.([01])\."
    heads = {re.sub(pattern, head, name): tensor for name, tensor in state.items()}
    renamed = rename(heads, _MMPOSE_MSPN)
    biases = {
        name.removesuffix("weight") + "bias": torch.zeros(len(tensor), dtype=tensor.dtype)
        for name, tensor in renamed.items()
        if re.match(r"(top|stage\d+)\.", name) and name.endswith(".conv.weight") and tensor.dim()
    }
    return {**biases, **renamed}


def _mspn_to_mmpose(state: State) -> State:
    """Convert to mmpose's MSPN.

    Biases are subtracted from the running means after them: (x + b) - m = x - (m - b).
    """
    merged = dict(state)
    for name in [name for name in state if name.endswith(".conv.bias")]:
        mean = name.removesuffix("conv.bias") + "bn.running_mean"
        merged[mean] = merged[mean] - merged.pop(name)

    def head(match: re.Match) -> str:
        stage, unit, layer = map(int, match.groups())
        return f"keypoint_head.predict_layers.{stage * _UNITS + unit - 1}.conv_layers.{layer - 1}."

    pattern = r"\Astage(\d+)\.upsample\.up(\d)\.res_conv([12])\."
    heads = {re.sub(pattern, head, name): tensor for name, tensor in merged.items()}
    return rename(heads, _MSPN_MMPOSE)


def swap_channel_order(state: State, first_conv: str) -> State:
    """Return the same network for images of the opposite channel order (RGB and BGR).

    Mean and standard deviation of the images must be in the new order too.
    """
    weight = state.get(first_conv)
    if weight is None or weight.dim() < 2:
        return state
    return {**state, first_conv: weight.flip(1)}


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
    """Rename an ImageNet ResNet to MSPN's top and the downsampling of its first `stages` stages.

    The authors load the first stage alone (megvii-research/MSPN issue 20), mmpose all
    (mmpose/models/backbones/mspn.py).
    """
    return copy_to_stages(rename(state, _RESNET_MSPN), stages)


def copy_to_stages(state: State, stages: int) -> State:
    """Copy the downsampling of an MSPN's stage 0 to its first `stages` stages."""
    down = {name: tensor for name, tensor in state.items() if name.startswith("stage0.downsample.")}
    copies = {
        name.replace("stage0.", f"stage{stage}.", 1): tensor
        for stage in range(1, stages)
        for name, tensor in down.items()
    }
    return {**state, **copies}


# the first match counts
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
    """Return the naming of a file; RELEASED for Poise's names and unknown networks."""
    for known in FORMATS:
        if all(any(re.match(mark, name) for name in state) for mark in known.marks):
            return known
    return RELEASED


def strip_wrappers(state: State, network: Shapes | None = None) -> tuple[State, list[str]]:
    """Remove the attribute name that a training loop's module gave the network.

    Checkpoints of PyTorch Lightning have the network as `model.` or `net.`, next to other tensors
    of the module such as a loss or an average. Such names may be nested (`model.net.`). The counter
    of an AveragedModel inside is removed.

    Args:
        state: tensors of a file.
        network: names and shapes of the network to load. If it uses such a name itself, the state
            is returned unchanged.

    Returns:
        The network's tensors and the names of the others.
    """
    for attribute in ("model", "net"):
        pattern = rf"\A{attribute}\.(?:module\.)*"
        if network and any(re.match(pattern, name) for name in network):
            continue
        inside = [name for name in state if re.match(pattern, name)]
        others = [name for name in state if not re.match(pattern, name)]
        inner = {re.sub(pattern, "", name): state[name] for name in inside}
        if not inner or len(inner) < len(inside):
            continue
        if AVERAGED in inner and is_averaging_counter(n.split(".", 1)[1] for n in inside):
            del inner[AVERAGED]
        inner, more = strip_wrappers(inner, network)
        others += more
        if not others or _is_network(inner, network):
            return inner, others
    return state, []


def _is_network(state: State, network: Shapes | None) -> bool:
    """Return whether tensors are of a known network, or contain those of `network`."""
    if (
        identify_format(state) is not RELEASED
        or identify_family(tensor_shapes(state)) is not UNKNOWN
    ):
        return True
    return network is not None and len(network) > 0 and network.keys() <= state.keys()


# output formats ---------------------------------------------------------------


@dataclass(frozen=True)
class OutputFormat:
    """A format that tools/convert_weights.py writes.

    Args:
        families: names of families that have it.
        rename: converts the names of a state dict.
        wrap: returns the content of the file with this state dict.
    """

    families: tuple[str, ...]
    rename: Callable[[State, Family], State] = lambda state, family: state
    wrap: Callable[[State], dict[str, Any]] = lambda state: state


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
    "poise": OutputFormat((*_RESNETS, "hrnet", "mspn", "posenas", "moganet", UNKNOWN.name)),
    "simplebaseline": OutputFormat(_RESNETS),
    "hrnet": OutputFormat(("hrnet", *_RESNETS)),
    "mspn": OutputFormat(("mspn",), wrap=lambda state: {"model": state}),
    "posenas": OutputFormat(("posenas",)),
    "moganet": OutputFormat(("moganet",), wrap=lambda state: {"meta": {}, "state_dict": state}),
    "mmpose": OutputFormat(
        ("resnet", "hrnet", "mspn", "moganet"),
        _to_mmpose,
        lambda state: {"meta": {}, "state_dict": state},
    ),
}
