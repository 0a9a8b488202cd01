"""PoseNAS: an encoder and two decoders of searched cells, and Fusion-and-Enhancement between them.

Paper: Bao et al., Pose-native Network Architecture Search for Multi-person Human Pose Estimation,
ACM MM 2020, doi 10.1145/3394171.3413842. Repository: for-code0216/PoseNAS models/model_augment.py
(743c062). Keys and figures: tests/golden/models/posenas_*.json.

Two heatmaps are supervised; the second is the prediction. MODEL.EXTRA has the arguments of PoseNAS
in upper case, except for the genotype: MODEL.GENOTYPE.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from poise.models.options import (
    OptionError,
    check_extra,
    is_int,
    select_keywords,
    translate_option_errors,
)
from poise.models.pose_network import PoseNetwork
from poise.models.posenas.cells import DecoderStage, EncoderCells
from poise.models.posenas.genotypes import CONCAT, GENOTYPES, Genotype, find_genotype

# key of MODEL.EXTRA -> keyword argument
EXTRA_KEYS = {
    "INIT_CHANNELS": "init_channels",
    "LAYERS": "layers",
    "REFINE_CHANNELS": "refine_channels",
    "REFINE_LAYERS": "refine_layers",
    "SE_REDUCTION": "se_reduction",
    "ALIASED_FEATURES": "aliased_features",
}


class PoseNAS(PoseNetwork):
    """Stem, encoder, decoder, refining encoder and decoder of searched cells.

    Paper: Bao et al., doi 10.1145/3394171.3413842. Repository: for-code0216/PoseNAS. Input
    (B, 3, H, W) with H and W multiples of 32; heatmaps (B, K, H / 4, W / 4). Raises OptionError for
    invalid values.

    Args:
        genotype: edges of the cells, by default those of the published networks.
        num_keypoints: K, one heatmap each.
        init_channels: C, even; the encoder gives 2C, 4C, 8C and 16C channels at strides 4, 8, 16
            and 32. The published networks have 48 or 64.
        layers: number of cells of the encoder, 18 or a multiple of 4.
        refine_channels: width of a node of the refining encoder's first cells, even.
        refine_layers: number of cells of the refining encoder, 18 or a multiple of 4.
        se_reduction: 1, or 2 as in the first version of PoseNAS, see SqueezeExcite.
        aliased_features: see `forward`.
    """

    head_prefixes = ("stage1.final_layer.", "stage2.final_layer.")
    extra_keys = tuple(EXTRA_KEYS)

    def __init__(
        self,
        *,
        genotype: Genotype = GENOTYPES["posenas"],
        num_keypoints: int = 17,
        init_channels: int = 48,
        layers: int = 18,
        refine_channels: int = 16,
        refine_layers: int = 12,
        se_reduction: int = 1,
        aliased_features: bool = True,
    ):
        super().__init__()
        for name, value in (
            ("init_channels", init_channels),
            ("refine_channels", refine_channels),
        ):
            if not is_int(value) or not 4 <= value <= 4096 or value % 2:
                raise OptionError(f"{name} must be an even number from 4 to 4096, got {value!r}")
        for name, value in (("layers", layers), ("refine_layers", refine_layers)):
            if not is_int(value) or not 4 <= value <= 400 or (value % 4 and value != 18):
                raise OptionError(
                    f"{name} must be 18 or a multiple of 4 from 4 to 400, got {value!r}"
                )
        if not isinstance(aliased_features, bool):
            raise OptionError(f"aliased_features must be True or False, got {aliased_features!r}")
        check_se_reduction(se_reduction)
        self.aliased_features = aliased_features
        self.genotype = genotype
        c = 2 * init_channels  # channels at stride 4
        refined = len(CONCAT) * refine_channels
        encoder = (genotype.normal, genotype.reduce)
        decoder = (genotype.upsample1, genotype.upsample2, genotype.upsample3)
        scales = (c, 2 * c, 4 * c, 8 * c)
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, init_channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(init_channels),
            nn.ReLU(inplace=True),
        )
        self.stem1 = nn.Sequential(
            nn.Conv2d(init_channels, c, 3, 2, 1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(inplace=True),
        )
        self.stem2 = nn.Sequential(nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c))
        self.cells = EncoderCells(*encoder, c, c // len(CONCAT), layers, se_reduction)
        self.stage1 = DecoderStage(decoder, scales, num_keypoints, se_reduction)
        self.reduce_channel_prev = _match_channels(c, refined)
        self.refine_cells = EncoderCells(
            *encoder, refined, refine_channels, refine_layers, se_reduction
        )
        self.reduce_channel0 = _match_channels(refined, c)
        self.reduce_channel1 = _match_channels(2 * refined, 2 * c)
        self.reduce_channel2 = _match_channels(4 * refined, 4 * c)
        self.reduce_channel3 = _match_channels(8 * refined, 8 * c)
        self.stage2 = DecoderStage(decoder, scales, num_keypoints, se_reduction)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> heatmaps (B, K, H / 4, W / 4); in train mode those of both decoders.

        Fusion-and-Enhancement adds, at strides 4, 8 and 16, the features of the encoder (f), of the
        first decoder (t) and of the refining encoder (g). In PoseNAS's code the decoder writes its
        outputs into the list of its inputs, and the ReLU on the stride-4 features is in place:
        after it f and t are the same tensors. The published weights were trained with this, so it
        is the default. With aliased_features False, f and t are different tensors.
        """
        s0 = self.stem1(self.stem0(images))
        f4, f8, f16, f32 = self.cells(s0, self.stem2(s0))
        t4, t8, t16 = self.stage1(f4, f8, f16, f32)
        # supervised, but not used for the prediction
        first = self.stage1.head(t4) if self.training else None
        if self.aliased_features:
            t4 = F.relu(t4)
            f4, f8, f16 = t4, t8, t16
            s0 = self.reduce_channel_prev(t4)
            # the original calls it twice on the same tensor. In training this updates the running
            # statistics of its batch norm twice per batch, and the order of the gradient's sums
            # matters too
            s1 = s0 + (self.reduce_channel_prev(t4) if self.training else s0)
        else:
            s0 = self.reduce_channel_prev(f4)
            s1 = s0 + self.reduce_channel_prev(t4)
        g4, g8, g16, g32 = self.refine_cells(s0, s1)
        e4 = f4 + t4 + self.reduce_channel0(g4)
        e8 = f8 + t8 + self.reduce_channel1(g8)
        e16 = f16 + t16 + self.reduce_channel2(g16)
        e32 = f32 + self.reduce_channel3(g32)
        second = self.stage2.head(self.stage2(e4, e8, e16, e32)[0])
        return second if first is None else (first, second)

    def init_weights(self) -> None:
        """Initialize as PoseNAS's authors do, see init_convolutions."""
        init_convolutions(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PoseNAS:
        """Build the network of MODEL.GENOTYPE and MODEL.EXTRA.

        Raises ConfigError naming the key, DataError for an invalid genotype file.
        """
        check_extra(cfg, cls.extra_keys)
        with translate_option_errors(EXTRA_KEYS):
            return cls(
                genotype=find_genotype(cfg.MODEL.GENOTYPE),
                num_keypoints=cfg.MODEL.NUM_JOINTS,
                **select_keywords(cfg.MODEL.EXTRA, EXTRA_KEYS),
            )


def init_convolutions(network: nn.Module) -> None:
    """Set every convolution to Normal(0, 0.001) weights and zero biases.

    Nearly all of them are followed by batch norm.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_se_reduction(value: int) -> None:
    """Raise OptionError unless the reduction of squeeze-and-excitation is 1 or 2."""
    if not is_int(value) or value not in (1, 2):
        raise OptionError(f"se_reduction must be 1 or 2, got {value!r}")


def _match_channels(in_channels: int, out_channels: int) -> nn.Sequential:
    # the ReLU must not be in place: its input is used again
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
    )
