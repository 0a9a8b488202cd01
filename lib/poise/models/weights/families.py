"""Identify the network of a weight file by the names and shapes of its tensors.

Each family has names that no other has, so messages can name the network of a file that does not
fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from poise.errors import pluralize
from poise.models.moganet import ARCHS
from poise.models.simple_baseline import STAGE_BLOCKS

Shapes = Mapping[str, tuple[int, ...]]
_FINAL_LAYER = r"(.*\.)?final_layer\.(weight|bias)"
_MAX_LAYERS = 1000
# what an ImageNet file has after the backbone: torchvision's classifier; mmpretrain's
_CLASSIFIER = (r"fc\.", r"head\.fc\.")


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Args:
        name: name of the family.
        marks: patterns; every such network has names that begin with each of them.
        describe: returns the network's type and size as text.
        keypoint_tensors: pattern of the names of layers with one output channel per keypoint.
        classifier: patterns of names that an ImageNet file has and a pose network has not.
        first_conv: the convolution on the image, for families whose normalization follows the
            channel order of their images.
    """

    name: str
    marks: tuple[str, ...]
    describe: Callable[[Shapes], str]
    keypoint_tensors: str = _FINAL_LAYER
    classifier: tuple[str, ...] = _CLASSIFIER
    first_conv: str = ""


def tensor_shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def identify_family(shapes: Shapes) -> Family:
    """Return the family that has these names, or UNKNOWN."""
    for family in FAMILIES:
        if all(any(re.match(mark, name) for name in shapes) for mark in family.marks):
            return family
    return UNKNOWN


def keypoint_tensors(family: Family, shapes: Shapes) -> list[str]:
    """Return the names of layers with one output channel per keypoint.

    These are weights, biases and the batch norms after them in MSPN.
    """
    return [name for name in shapes if re.fullmatch(family.keypoint_tensors, name)]


def count_keypoints(family: Family, shapes: Shapes) -> int | None:
    """Return the number of keypoints K of these layers.

    None if there are no such layers or their numbers differ.
    """
    # a counter of batch norm has no dimension
    counts = {shapes[name][0] for name in keypoint_tensors(family, shapes) if shapes[name]}
    return counts.pop() if len(counts) == 1 else None


def describe_network(shapes: Shapes) -> str:
    """Return the network as text, such as 'MSPN of 2 stages, 17 joints'; '' if unknown.

    Never raises, whatever the file contains.
    """
    family = identify_family(shapes)
    if family is UNKNOWN:
        return ""
    try:
        size = family.describe(shapes)
    except (IndexError, KeyError, ZeroDivisionError):  # the marks are there, the rest is not
        return family.name
    count = count_keypoints(family, shapes)
    return f"{size}, {count} joints" if count else f"{size} without a pose head"


def se_reduction(shapes: Shapes) -> int | None:
    """Return the ratio of channels in PoseNAS' squeeze-and-excitation (fc1), or None."""
    for name, shape in shapes.items():
        is_first = re.fullmatch(r"stage1\.upsamples\.\d+\._ops\.\d+\.fc1\.weight", name)
        if is_first and len(shape) == 4 and shape[0]:
            return shape[1] // shape[0]
    return None


def _count(shapes: Shapes, pattern: str) -> int:
    """Return one more than the highest number that `pattern` matches, at most _MAX_LAYERS."""
    matches = (re.match(pattern, name) for name in shapes)
    highest = max((int(match[1]) for match in matches if match), default=-1)
    return min(highest + 1, _MAX_LAYERS)


def _count_blocks(shapes: Shapes) -> tuple[int, ...]:
    return tuple(_count(shapes, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))


def _join(numbers: Iterable[int]) -> str:
    return "-".join(map(str, numbers))


def _resnet(shapes: Shapes) -> str:
    blocks = _count_blocks(shapes)
    has_bottlenecks = "layer1.0.conv3.weight" in shapes
    for depth, counts in STAGE_BLOCKS.items():
        if counts == blocks and (depth >= 50) == has_bottlenecks:
            return f"ResNet-{depth}"
    return f"ResNet of {_join(blocks)} blocks"


def _res2net(shapes: Shapes) -> str:
    blocks = _count_blocks(shapes)
    depths = [depth for depth, counts in STAGE_BLOCKS.items() if counts == blocks and depth != 34]
    scales = 1 + _count(shapes, r"layer1\.0\.convs\.(\d+)\.")
    width = shapes["layer1.0.convs.0.weight"][0]
    size = str(depths[0]) if depths else _join(blocks)
    return f"Res2Net-{size} {width}w {scales}s"


def _hrnet(shapes: Shapes) -> str:
    return f"HRNet-W{shapes['stage2.0.branches.0.0.conv1.weight'][0]}"


def _mspn(shapes: Shapes) -> str:
    stages = _count(shapes, r"stage(\d+)\.")
    return f"MSPN of {pluralize(stages, 'stage')}"


def _posenas(shapes: Shapes) -> str:
    cells = _count(shapes, r"cells\.(\d+)\.")
    size = f"PoseNAS-L{cells}-C{shapes['stem0.0.weight'][0]}"
    reduction = se_reduction(shapes)
    return size if reduction in (None, 1) else f"{size} with SE reduction {reduction}"


def _moganet(shapes: Shapes) -> str:
    stages = range(1, _count(shapes, r"backbone\.blocks(\d+)\.0\."))
    widths = tuple(shapes.get(f"backbone.norm{stage}.weight", (0,))[0] for stage in stages)
    depths = tuple(_count(shapes, rf"backbone\.blocks{stage}\.(\d+)\.") for stage in stages)
    for name, settings in ARCHS.items():
        if settings[:2] == (widths, depths):
            return f"MogaNet-{name}"
    return f"MogaNet of widths {_join(widths)} and depths {_join(depths)}"


# the first match counts; a family that also has the marks of another comes before it
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
        # the ImageNet network classifies from all four scales; its final_layer is another one
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
# other networks, such as a user's own
UNKNOWN = Family("unknown", (), lambda shapes: "another network")
