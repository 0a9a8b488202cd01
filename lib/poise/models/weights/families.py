"""Which network a set of names and shapes belongs to, under Poise's names: what reports say, and
what depends on the joints.

A family is recognised by the names that only it has, so that a file can be told from the file of
another network and the message can say whose weights it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from poise.models.moganet import ARCHS
from poise.models.simple_baseline import STAGE_BLOCKS

Shapes = Mapping[str, tuple[int, ...]]
_FINAL_LAYER = r"(.*\.)?final_layer\.(weight|bias)"
_MOST_LAYERS = 1000
# what an ImageNet file has behind the backbone: torchvision's classifier; mmpretrain's
_CLASSIFIER = (r"fc\.", r"head\.fc\.")


@dataclass(frozen=True)
class Family:
    """A kind of network.

    marks: patterns; each begins a name of every such network. describe: its size in words.
    keypoint_tensors: a pattern of the names of the layers that end in one channel per joint.
    classifier: patterns that begin names of an ImageNet file which no pose network has. first_conv:
    the convolution that sees the image, for families whose normalisation follows the order of its
    colours.
    """

    name: str
    marks: tuple[str, ...]
    describe: Callable[[Shapes], str]
    keypoint_tensors: str = _FINAL_LAYER
    classifier: tuple[str, ...] = _CLASSIFIER
    first_conv: str = ""


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that `pattern` finds in a name, _MOST_LAYERS at the most:
    a stranger's names may hold any, and are counted up to.
    """
    return min(
        1
        + max(
            (int(match[1]) for match in (re.match(pattern, name) for name in shapes) if match),
            default=-1,
        ),
        _MOST_LAYERS,
    )


def _blocks(shapes: Shapes) -> tuple[int, ...]:
    return tuple(_count(shapes, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))


def _resnet(shapes: Shapes) -> str:
    blocks, bottleneck = _blocks(shapes), "layer1.0.conv3.weight" in shapes
    depths = [
        depth
        for depth, counts in STAGE_BLOCKS.items()
        if counts == blocks and (depth >= 50) == bottleneck
    ]
    return f"ResNet-{depths[0]}" if depths else f"ResNet of {'-'.join(map(str, blocks))} blocks"


def _res2net(shapes: Shapes) -> str:
    blocks = _blocks(shapes)
    depths = [depth for depth, counts in STAGE_BLOCKS.items() if counts == blocks and depth != 34]
    scales = 1 + _count(shapes, r"layer1\.0\.convs\.(\d+)\.")
    width = shapes["layer1.0.convs.0.weight"][0]
    return f"Res2Net-{depths[0] if depths else '-'.join(map(str, blocks))} {width}w {scales}s"


def _hrnet(shapes: Shapes) -> str:
    return f"HRNet-W{shapes['stage2.0.branches.0.0.conv1.weight'][0]}"


def _mspn(shapes: Shapes) -> str:
    stages = _count(shapes, r"stage(\d+)\.")
    return f"MSPN of {stages} stage{'s' if stages > 1 else ''}"


def se_reduction(shapes: Shapes) -> int | None:
    """PoseNAS: channels of a squeeze-and-excitation per channel of its first convolution; None
    without one.
    """
    for name, shape in shapes.items():
        if (
            re.fullmatch(r"stage1\.upsamples\.\d+\._ops\.\d+\.fc1\.weight", name)
            and len(shape) == 4
            and shape[0]
        ):
            return shape[1] // shape[0]
    return None


def _posenas(shapes: Shapes) -> str:
    reduction, cells = se_reduction(shapes), _count(shapes, r"cells\.(\d+)\.")
    size = f"PoseNAS-L{cells}-C{shapes['stem0.0.weight'][0]}"
    return f"{size} with SE reduction {reduction}" if reduction not in (None, 1) else size


def _moganet(shapes: Shapes) -> str:
    stages = range(1, _count(shapes, r"backbone\.blocks(\d+)\.0\."))
    widths = tuple(shapes.get(f"backbone.norm{stage}.weight", (0,))[0] for stage in stages)
    depths = tuple(_count(shapes, rf"backbone\.blocks{stage}\.(\d+)\.") for stage in stages)
    names = [name for name, settings in ARCHS.items() if settings[:2] == (widths, depths)]
    return (
        f"MogaNet-{names[0]}"
        if names
        else (
            f"MogaNet of widths {'-'.join(map(str, widths))} and depths"
            f" {'-'.join(map(str, depths))}"
        )
    )


# the first that fits; what has the marks of a later one too stands before it
FAMILIES = (
    Family(
        "mspn",
        (r"top\.conv\.conv\.weight", r"stage0\.downsample\.layer1\.0\.conv_bn_relu1\."),
        _mspn,
        keypoint_tensors=r"stage\d+\.upsample\.up\d+\.res_conv2\..*",
        first_conv="top.conv.conv.weight",
    ),
    Family(
        "posenas",
        (r"stem0\.0\.weight", r"cells\.0\.preprocess0\.", r"stage1\.upsamples\."),
        _posenas,
    ),
    Family(
        "moganet",
        (r"backbone\.patch_embed1\.projection\.0\.", r"backbone\.blocks1\.0\.attn\."),
        _moganet,
        classifier=(r"head\.(weight|bias)$", *_CLASSIFIER),
    ),
    Family(
        "hrnet",
        (r"conv2\.weight", r"transition1\.", r"stage2\.0\.branches\.0\.0\.conv1\.weight"),
        _hrnet,
        # the ImageNet network keeps all four scales to the end and classifies from them; its
        # final_layer is another one
        classifier=(
            r"incre_modules\.",
            r"downsamp_modules\.",
            r"final_layer\.\d+\.",
            r"classifier\.",
            r"stage4\.\d+\.fuse_layers\.[1-9]",
            *_CLASSIFIER,
        ),
    ),
    Family(
        "res2net_v1b",
        (r"conv1\.0\.weight", r"layer1\.0\.convs\.0\.weight", r"layer4\."),
        lambda shapes: f"{_res2net(shapes)} v1b",
    ),
    Family("res2net", (r"conv1\.weight", r"layer1\.0\.convs\.0\.weight", r"layer4\."), _res2net),
    Family("resnet", (r"conv1\.weight", r"layer1\.0\.conv1\.weight", r"layer4\."), _resnet),
)
# networks that are none of these, such as a user's own
UNKNOWN = Family("unknown", (), lambda shapes: "another network")


def tensor_shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def identify_family(shapes: Shapes) -> Family:
    """The family of Poise's names; UNKNOWN where no marks fit."""
    for family in FAMILIES:
        if all(any(re.match(mark, name) for name in shapes) for mark in family.marks):
            return family
    return UNKNOWN


def keypoint_tensors(family: Family, shapes: Shapes) -> list[str]:
    """The names of the layers that end in one channel per joint: weights, biases, and MSPN's
    batch norms behind them.
    """
    return [name for name in shapes if re.fullmatch(family.keypoint_tensors, name)]


def count_keypoints(family: Family, shapes: Shapes) -> int | None:
    """How many joints those layers are made for; None where there is no such layer, or where
    they disagree.
    """
    # a counter of batch norm has no dimension
    found = {shapes[name][0] for name in keypoint_tensors(family, shapes) if shapes[name]}
    return found.pop() if len(found) == 1 else None


def describe_network(shapes: Shapes) -> str:
    """The network in words: 'MSPN of 2 stages, 17 joints'; '' where it is not known. Never
    raises: the file may be anything.
    """
    family = identify_family(shapes)
    if family is UNKNOWN:
        return ""
    try:
        size = family.describe(shapes)
    except (IndexError, KeyError, ZeroDivisionError):  # the marks are there, the rest is not
        return family.name
    joints = count_keypoints(family, shapes)
    return f"{size}, {joints} joints" if joints else f"{size} without a pose head"
