"""HRNet: Deep High-Resolution Representation Learning for Human Pose Estimation.

Paper: Sun et al., CVPR 2019, arXiv 1902.09212, section 3. Repository:
leoxiaobin/deep-high-resolution-net.pytorch (MIT) lib/models/pose_hrnet.py. Keys and figures:
tests/golden/models/pose_hrnet_*.json.

Branches of strides 4, 8, 16 and 32 run side by side and are added to each other again and again;
heatmaps come from the first. Differences from the repository: no weight file is read here
(poise.models.weights does), and a backbone without one is initialised by He's rule instead of
Normal(0, 0.001), from which small networks learnt more slowly here. With MODEL.PRETRAINED the two
are the same.

Options of MODEL.EXTRA, in the layout of the repository's files:
- STAGE2, STAGE3, STAGE4: NUM_MODULES (each ends with an addition of the branches), NUM_BRANCHES (2,
  3 and 4), BLOCK (BASIC or BOTTLENECK), and for each branch NUM_BLOCKS and NUM_CHANNELS;
  FUSE_METHOD is SUM.
- FINAL_CONV_KERNEL (1): 1 or 3.
- PRETRAINED_LAYERS (['*']): names of the parts that poise.models.weights takes from
MODEL.PRETRAINED; '*' is all.
- STEM_CHANNELS (Poise, 64): channels of the two convolutions before the branches; the first stage
has 4 times as many.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import nn
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.deconv_head import final_layer
from poise.models.options import check_sizes, is_channels
from poise.models.pose_resnet import BasicBlock, Bottleneck

EXTRA_KEYS = (
    "STAGE2",
    "STAGE3",
    "STAGE4",
    "FINAL_CONV_KERNEL",
    "PRETRAINED_LAYERS",
    "STEM_CHANNELS",
)
STAGE_KEYS = ("NUM_MODULES", "NUM_BRANCHES", "BLOCK", "NUM_BLOCKS", "NUM_CHANNELS", "FUSE_METHOD")
BLOCKS = {"BASIC": BasicBlock, "BOTTLENECK": Bottleneck}
STEM_BLOCKS = 4


class HighResolutionModule(nn.Module):
    """Blocks on every branch, then each of the first `outputs` branches becomes the sum of all,
    resized to it.

    block: BasicBlock or Bottleneck; blocks and planes: their number and width on each branch. Takes
    and returns a list of maps (B, C_i, h / 2^i, w / 2^i).
    """

    def __init__(self, block: type[nn.Module], blocks: list[int], planes: list[int], outputs: int):
        super().__init__()
        channels = [width * block.expansion for width in planes]
        self.branches = nn.ModuleList(
            block_chain(block, channel, width, count)
            for channel, width, count in zip(channels, planes, blocks)
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_resizing(channels, source, target) for source in range(len(channels)))
            for target in range(outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        return [
            self.relu(reduce(torch.add, (layer(x) for layer, x in zip(layers, maps))))
            for layers in self.fuse_layers
        ]


class HRNet(nn.Module):
    """Stem, bottlenecks, three stages of branches, 1x1 convolution.

    Input (B, 3, H, W) with H and W multiples of 32; heatmaps (B, J, H/4, W/4). Raises ConfigError
    for options out of their range and for MODEL.IMAGE_SIZE and HEATMAP_SIZE that are others.
    """

    head_prefixes = ("final_layer.",)  # what an ImageNet file cannot hold

    def __init__(self, cfg: CfgNode):
        super().__init__()
        extra = cfg.MODEL.EXTRA
        stem, final_kernel, self.pretrained_layers = settings(extra)
        stages = [stage_settings(extra, key) for key in ("STAGE2", "STAGE3", "STAGE4")]
        counts = [len(planes) for _, _, _, planes in stages]
        if counts != sorted(counts):
            raise ConfigError(
                "MODEL.EXTRA: NUM_BRANCHES of STAGE2, STAGE3 and STAGE4 must not fall, got"
                f" {counts}"
            )
        check_sizes(cfg, stride=4, multiple=4 << (counts[-1] - 1))
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = block_chain(Bottleneck, stem, stem, STEM_BLOCKS)
        channels = [stem * Bottleneck.expansion]
        self.transition1, self.stage2, channels = _stage(channels, *stages[0])
        self.transition2, self.stage3, channels = _stage(channels, *stages[1])
        self.transition3, self.stage4, channels = _stage(channels, *stages[2], outputs=1)
        self.final_layer = final_layer(channels[0], cfg.MODEL.NUM_JOINTS, final_kernel)
        parts = [name for name, _ in self.named_children()]
        unknown = [name for name in self.pretrained_layers if name not in (*parts, "*")]
        if unknown:
            raise ConfigError(
                f"MODEL.EXTRA.PRETRAINED_LAYERS: {unknown[0]!r} is no part of the network; "
                "parts are conv1, stage2 and the like, '*' is all of them"
            )
        if cfg.MODEL.INIT_WEIGHTS:
            self.init_weights()

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        """(B, 3, H, W) -> heatmaps (B, J, H/4, W/4); in train mode a tuple of the one supervised
        output.
        """
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        maps = self.stage2(_branched(self.transition1, [x]))
        maps = self.stage3(_branched(self.transition2, maps))
        maps = self.stage4(_branched(self.transition3, maps))
        heatmaps = self.final_layer(maps[0])
        return (heatmaps,) if self.training else heatmaps

    def init_weights(self) -> None:
        """He's rule, and for the head the repository's Normal(0, 0.001) without bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)


def build(cfg: CfgNode) -> HRNet:
    """The network that MODEL.EXTRA describes; see the head of this file."""
    return HRNet(cfg)


def block_chain(block: type[nn.Module], in_channels: int, planes: int, count: int) -> nn.Sequential:
    """`count` blocks of stride 1: (B, in, h, w) -> (B, planes * expansion, h, w)."""
    out_channels, shortcut = planes * block.expansion, None
    if in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, 1, shortcut, "pytorch")
    return nn.Sequential(
        first, *(block(out_channels, planes, 1, None, "pytorch") for _ in range(count - 1))
    )


def settings(extra) -> tuple[int, int, tuple[str, ...]]:
    """(stem channels, final kernel, pretrained layers) from MODEL.EXTRA, checked. Raises
    ConfigError.
    """
    stem, kernel, layers = (
        extra.get("STEM_CHANNELS", 64),
        extra.get("FINAL_CONV_KERNEL", 1),
        extra.get("PRETRAINED_LAYERS", ["*"]),
    )
    if not is_channels([stem]):
        raise ConfigError(
            f"MODEL.EXTRA.STEM_CHANNELS must be a channel count above 0, got {stem!r}"
        )
    if kernel not in (1, 3):
        raise ConfigError(f"MODEL.EXTRA.FINAL_CONV_KERNEL must be 1 or 3, got {kernel!r}")
    named = isinstance(layers, (list, tuple)) and all(isinstance(name, str) for name in layers)
    if not named or not layers:
        raise ConfigError(
            "MODEL.EXTRA.PRETRAINED_LAYERS must be a list of names such as conv1 and stage2, or"
            f" ['*'], got {layers!r}"
        )
    return stem, kernel, tuple(layers)


def stage_settings(extra, key: str) -> tuple[type[nn.Module], int, list[int], list[int]]:
    """(block, modules, blocks of each branch, planes of each branch) of MODEL.EXTRA.STAGE2 to
    STAGE4, checked. Raises ConfigError.
    """
    stage, name = extra.get(key), f"MODEL.EXTRA.{key}"
    if not isinstance(stage, dict) or set(stage) != set(STAGE_KEYS):
        got = (
            f"got {', '.join(stage)}"
            if isinstance(stage, dict)
            else "it is missing"
            if stage is None
            else f"got {stage!r}"
        )
        raise ConfigError(f"{name} must be a group of {', '.join(STAGE_KEYS)}; {got}")
    if not isinstance(stage["BLOCK"], str) or stage["BLOCK"] not in BLOCKS:
        raise ConfigError(f"{name}.BLOCK must be {' or '.join(BLOCKS)}, got {stage['BLOCK']!r}")
    if stage["FUSE_METHOD"] != "SUM":
        raise ConfigError(f"{name}.FUSE_METHOD must be SUM, got {stage['FUSE_METHOD']!r}")
    modules, branches = stage["NUM_MODULES"], stage["NUM_BRANCHES"]
    if not is_channels([modules]) or modules > 64:
        raise ConfigError(
            f"{name}.NUM_MODULES must be a whole number from 1 to 64, got {modules!r}"
        )
    if not is_channels([branches]) or not 2 <= branches <= 6:
        raise ConfigError(
            f"{name}.NUM_BRANCHES must be a whole number from 2 to 6, got {branches!r}"
        )
    for part in ("NUM_BLOCKS", "NUM_CHANNELS"):
        if not is_channels(stage[part]) or len(stage[part]) != branches:
            raise ConfigError(
                f"{name}.{part} must hold {branches} numbers above 0, one a branch, got"
                f" {stage[part]!r}"
            )
    if max(stage["NUM_BLOCKS"]) > 64:
        raise ConfigError(f"{name}.NUM_BLOCKS must be at most 64, got {stage['NUM_BLOCKS']!r}")
    return BLOCKS[stage["BLOCK"]], modules, list(stage["NUM_BLOCKS"]), list(stage["NUM_CHANNELS"])


def _stage(
    before: list[int],
    block: type[nn.Module],
    modules: int,
    blocks: list[int],
    planes: list[int],
    outputs: int = 0,
) -> tuple[nn.ModuleList, nn.Sequential, list[int]]:
    """(transition, stage, channels) after branches of `before` channels. outputs: branches that
    the last module makes; 0 is all.
    """
    channels, last = [width * block.expansion for width in planes], modules - 1
    made = [outputs if outputs and number == last else len(planes) for number in range(modules)]
    return (
        _transition(before, channels),
        nn.Sequential(*(HighResolutionModule(block, blocks, planes, count) for count in made)),
        channels,
    )


def _transition(before: list[int], channels: list[int]) -> nn.ModuleList:
    """What makes the branches of the next stage: of the branch of the same stride, or for a new
    one from the coarsest by striding.
    """
    layers: list[nn.Module] = []
    for number, channel in enumerate(channels):
        if number < len(before):
            same = before[number] == channel
            layers.append(
                nn.Identity()
                if same
                else nn.Sequential(
                    *_conv_norm(before[number], channel, 3, 1), nn.ReLU(inplace=True)
                )
            )
            continue
        steps = number + 1 - len(before)
        widths = [before[-1]] * steps + [channel]
        layers.append(
            nn.Sequential(
                *(
                    nn.Sequential(*_conv_norm(a, b, 3, 2), nn.ReLU(inplace=True))
                    for a, b in zip(widths, widths[1:])
                )
            )
        )
    return nn.ModuleList(layers)


def _branched(transition: nn.ModuleList, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    return [layer(maps[min(number, len(maps) - 1)]) for number, layer in enumerate(transition)]


def _resizing(channels: list[int], source: int, target: int) -> nn.Module:
    """From a branch's size and width to another's: 1x1 convolution and nearest upsampling, or
    strided 3x3 convolutions.
    """
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            *_conv_norm(channels[source], channels[target], 1, 1),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    steps = [
        nn.Sequential(*_conv_norm(channels[source], channels[source], 3, 2), nn.ReLU(inplace=True))
        for _ in range(target - source - 1)
    ]
    return nn.Sequential(
        *steps, nn.Sequential(*_conv_norm(channels[source], channels[target], 3, 2))
    )


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, bias=False
    ), nn.BatchNorm2d(out_channels)
