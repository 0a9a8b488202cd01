"""HRNet: Deep High-Resolution Representation Learning for Human Pose Estimation.

Paper: Sun et al., CVPR 2019, arXiv 1902.09212, section 3. Repository:
leoxiaobin/deep-high-resolution-net.pytorch (MIT) lib/models/pose_hrnet.py. Keys and figures:
tests/golden/models/pose_hrnet_*.json.

Parallel branches of strides 4, 8, 16 and 32 are repeatedly added to each other; the heatmaps are
computed from the first. Differences from the repository: weight files are loaded by
poise.models.weights, and a backbone without one is initialized by He's rule instead of
Normal(0, 0.001), with which small networks trained more slowly here. With MODEL.PRETRAINED both are
the same.

MODEL.EXTRA has the layout of the repository's files: STAGE2, STAGE3 and STAGE4 (required) are
groups of the arguments of StageOptions and FUSE_METHOD, which is SUM; FINAL_CONV_KERNEL,
PRETRAINED_LAYERS and STEM_CHANNELS (Poise) are arguments of PoseHRNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.deconv_head import final_layer
from poise.models.options import (
    OptionError,
    check_extra,
    is_positive_ints,
    select_keywords,
    translate_option_errors,
)
from poise.models.pose_network import PoseNetwork
from poise.models.pose_resnet import BasicBlock, Bottleneck

# key of MODEL.EXTRA -> keyword argument
EXTRA_KEYS = {
    "FINAL_CONV_KERNEL": "final_kernel",
    "PRETRAINED_LAYERS": "pretrained_layers",
    "STEM_CHANNELS": "stem_channels",
}
STAGES = ("STAGE2", "STAGE3", "STAGE4")
# key of a stage's group -> field of StageOptions
STAGE_KEYS = {
    "NUM_MODULES": "num_modules",
    "NUM_BRANCHES": "num_branches",
    "BLOCK": "block",
    "NUM_BLOCKS": "num_blocks",
    "NUM_CHANNELS": "num_channels",
}
BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {
    "BASIC": BasicBlock,
    "BOTTLENECK": Bottleneck,
}
STEM_BLOCKS = 4


@dataclass(frozen=True)
class StageOptions:
    """Options of a stage of HRNet. Raises OptionError for an invalid value.

    Args:
        num_modules: 1 to 64 modules; each ends with an addition of the branches.
        num_branches: 2 to 6.
        num_blocks: blocks of a module, for each branch.
        num_channels: planes of these blocks, for each branch.
        block: BASIC or BOTTLENECK.
    """

    num_modules: int
    num_branches: int
    num_blocks: Sequence[int]
    num_channels: Sequence[int]
    block: str = "BASIC"

    def __post_init__(self) -> None:
        if not isinstance(self.block, str) or self.block not in BLOCKS:
            raise OptionError(f"block must be {' or '.join(BLOCKS)}, got {self.block!r}")
        modules = self.num_modules
        branches = self.num_branches
        if not is_positive_ints([modules]) or modules > 64:
            raise OptionError(f"num_modules must be a whole number from 1 to 64, got {modules!r}")
        if not is_positive_ints([branches]) or not 2 <= branches <= 6:
            raise OptionError(f"num_branches must be a whole number from 2 to 6, got {branches!r}")
        for name in ("num_blocks", "num_channels"):
            value = getattr(self, name)
            if not is_positive_ints(value) or len(value) != branches:
                raise OptionError(
                    f"{name} must hold {branches} numbers above 0, one a branch, got {value!r}"
                )
        if max(self.num_blocks) > 64:
            raise OptionError(f"num_blocks must be at most 64, got {self.num_blocks!r}")

    @property
    def channels(self) -> list[int]:
        """Output channels of each branch."""
        return [planes * BLOCKS[self.block].expansion for planes in self.num_channels]


def published_stages(width: int) -> tuple[StageOptions, ...]:
    """Return the stages of HRNet-W<width>: 1, 4 and 3 modules of four basic blocks a branch."""
    if not is_positive_ints([width]):
        raise OptionError(f"width must be a channel count above 0, got {width!r}")
    return tuple(
        StageOptions(modules, branches, (4,) * branches, [width << i for i in range(branches)])
        for modules, branches in ((1, 2), (4, 3), (3, 4))
    )


class HighResolutionModule(nn.Module):
    """Blocks on every branch, then sums of all resized branches.

    Takes and returns a list of maps (B, C_i, h / 2^i, w / 2^i).

    Args:
        stage: options of the stage that the module is a part of.
        num_outputs: number of branches that are returned.
    """

    def __init__(self, stage: StageOptions, num_outputs: int):
        super().__init__()
        channels = stage.channels
        block = BLOCKS[stage.block]
        self.branches = nn.ModuleList(
            block_chain(block, channel, planes, count)
            for channel, planes, count in zip(channels, stage.num_channels, stage.num_blocks)
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_resizing(channels, source, target) for source in range(len(channels)))
            for target in range(num_outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        return [
            self.relu(reduce(torch.add, (layer(x) for layer, x in zip(layers.children(), maps))))
            for layers in self.fuse_layers
        ]


class PoseHRNet(PoseNetwork):
    """HRNet: stem, bottlenecks, three stages of parallel branches and a last convolution.

    Paper: Sun et al., arXiv 1902.09212. Repository: leoxiaobin/deep-high-resolution-net.pytorch.
    Input (B, 3, H, W) with H and W multiples of 32 (of `input_multiple` with other stages);
    heatmaps (B, K, H / 4, W / 4). Raises OptionError for invalid values.

    Args:
        width: channels of the first branch of the published networks, 32 or 48.
        num_keypoints: K, one heatmap each.
        stem_channels: channels of the two convolutions before the branches; the first stage has 4
            times as many.
        stages: options of stages 2 to 4 instead of those of the published networks.
        final_kernel: kernel size of the last convolution: 1 or 3.
        pretrained_layers: names of the parts that poise.models.weights loads from an ImageNet
            file; '*' is all of them.
    """

    head_prefixes = ("final_layer.",)
    extra_keys = (*STAGES, *EXTRA_KEYS)

    def __init__(
        self,
        *,
        width: int = 32,
        num_keypoints: int = 17,
        stem_channels: int = 64,
        stages: Sequence[StageOptions] | None = None,
        final_kernel: int = 1,
        pretrained_layers: Sequence[str] = ("*",),
    ):
        super().__init__()
        stages = published_stages(width) if stages is None else stages
        _check_options(stem_channels, stages, final_kernel, pretrained_layers)
        self.input_multiple = 4 << (stages[-1].num_branches - 1)
        self.pretrained_layers = tuple(pretrained_layers)
        self.conv1 = nn.Conv2d(3, stem_channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.conv2 = nn.Conv2d(stem_channels, stem_channels, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = block_chain(Bottleneck, stem_channels, stem_channels, STEM_BLOCKS)
        channels = [stem_channels * Bottleneck.expansion]
        self.transition1, self.stage2 = _stage(channels, stages[0])
        self.transition2, self.stage3 = _stage(stages[0].channels, stages[1])
        self.transition3, self.stage4 = _stage(stages[1].channels, stages[2], num_outputs=1)
        self.final_layer = final_layer(stages[2].channels[0], num_keypoints, final_kernel)
        parts = [name for name, _ in self.named_children()]
        unknown = [name for name in self.pretrained_layers if name not in (*parts, "*")]
        if unknown:
            raise OptionError(
                f"pretrained_layers: {unknown[0]!r} is not a part of the network; "
                "parts are conv1, stage2 and the like, '*' is all of them"
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        """(B, 3, H, W) -> heatmaps (B, K, H/4, W/4); in train mode a tuple of one."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        maps = self.stage2(_branched(self.transition1, [x]))
        maps = self.stage3(_branched(self.transition2, maps))
        maps = self.stage4(_branched(self.transition3, maps))
        heatmaps = self.final_layer(maps[0])
        return (heatmaps,) if self.training else heatmaps

    def init_weights(self) -> None:
        """Initialize by He's rule, and the head as the repository: Normal(0, 0.001), bias 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.final_layer.weight, std=0.001)
        assert self.final_layer.bias is not None
        nn.init.zeros_(self.final_layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PoseHRNet:
        """Build the network of MODEL.EXTRA. Raises ConfigError naming the key."""
        extra = cfg.MODEL.EXTRA
        check_extra(cfg, cls.extra_keys)
        with translate_option_errors({**EXTRA_KEYS, "STAGE2 to STAGE4": "stages"}):
            return cls(
                num_keypoints=cfg.MODEL.NUM_JOINTS,
                stages=[stage_from_config(extra.get(key), f"MODEL.EXTRA.{key}") for key in STAGES],
                **select_keywords(extra, EXTRA_KEYS),
            )


def stage_from_config(stage: Any, name: str) -> StageOptions:
    """Return the options in the group `name`. Raises ConfigError naming the key."""
    keys = (*STAGE_KEYS, "FUSE_METHOD")
    if not isinstance(stage, dict) or set(stage) != set(keys):
        got = f"got {stage!r}"
        if stage is None:
            got = "it is missing"
        elif isinstance(stage, dict):
            got = f"got {', '.join(stage)}"
        raise ConfigError(f"{name} must be a group of {', '.join(keys)}; {got}")
    if stage["FUSE_METHOD"] != "SUM":
        raise ConfigError(f"{name}.FUSE_METHOD must be SUM, got {stage['FUSE_METHOD']!r}")
    with translate_option_errors(STAGE_KEYS, f"{name}."):
        return StageOptions(**{STAGE_KEYS[key]: stage[key] for key in STAGE_KEYS})


def _check_options(
    stem_channels: int,
    stages: Sequence[StageOptions],
    final_kernel: int,
    pretrained_layers: Sequence[str],
) -> None:
    """Raise OptionError for an invalid argument of PoseHRNet."""
    counts = [stage.num_branches for stage in stages]
    if len(counts) != len(STAGES):
        raise OptionError(f"stages must hold the options of {len(STAGES)} stages, got {stages!r}")
    if counts != sorted(counts):
        raise OptionError(f"stages: num_branches must not fall, got {counts}")
    if not is_positive_ints([stem_channels]):
        raise OptionError(f"stem_channels must be a channel count above 0, got {stem_channels!r}")
    if final_kernel not in (1, 3):
        raise OptionError(f"final_kernel must be 1 or 3, got {final_kernel!r}")
    if (
        not isinstance(pretrained_layers, (list, tuple))
        or not pretrained_layers
        or not all(isinstance(name, str) for name in pretrained_layers)
    ):
        raise OptionError(
            "pretrained_layers must be a list of names such as conv1 and stage2, or ['*'], got"
            f" {pretrained_layers!r}"
        )


def block_chain(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, planes: int, count: int
) -> nn.Sequential:
    """Return `count` blocks of stride 1: (B, in, h, w) -> (B, planes * expansion, h, w)."""
    out_channels = planes * block.expansion
    shortcut = None
    if in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, 1, shortcut, "pytorch")
    rest = [block(out_channels, planes, 1, None, "pytorch") for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


def _stage(
    before: list[int], stage: StageOptions, num_outputs: int | None = None
) -> tuple[nn.ModuleList, nn.Sequential]:
    """Return (transition, stage) after branches of `before` channels.

    num_outputs: number of branches that the last module returns, by default all.
    """
    outputs = [stage.num_branches] * stage.num_modules
    outputs[-1] = num_outputs or stage.num_branches
    transition = _transition(before, stage.channels)
    return transition, nn.Sequential(*(HighResolutionModule(stage, count) for count in outputs))


def _transition(before: list[int], channels: list[int]) -> nn.ModuleList:
    """Return the layers that make the branches of the next stage.

    A branch is made of the branch of the same stride, a new one of the coarsest by striding.
    """
    layers: list[nn.Module] = []
    for number, channel in enumerate(channels):
        if number >= len(before):
            widths = [before[-1]] * (number + 1 - len(before)) + [channel]
            strided = [_conv_norm_relu(a, b, 2) for a, b in zip(widths, widths[1:])]
            layers.append(nn.Sequential(*strided))
        elif before[number] == channel:
            layers.append(nn.Identity())
        else:
            layers.append(_conv_norm_relu(before[number], channel, 1))
    return nn.ModuleList(layers)


def _branched(transition: nn.ModuleList, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    return [layer(maps[min(number, len(maps) - 1)]) for number, layer in enumerate(transition)]


def _resizing(channels: list[int], source: int, target: int) -> nn.Module:
    """Return the layers from a branch's size and width to another's.

    They are a 1x1 convolution and nearest upsampling, or strided 3x3 convolutions.
    """
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            *_conv_norm(channels[source], channels[target], 1, 1),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    steps = [
        _conv_norm_relu(channels[source], channels[source], 2) for _ in range(target - source - 1)
    ]
    return nn.Sequential(
        *steps, nn.Sequential(*_conv_norm(channels[source], channels[target], 3, 2))
    )


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_conv_norm(in_channels, out_channels, 3, stride), nn.ReLU(inplace=True))


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)
