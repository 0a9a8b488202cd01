"""The network of the search: PoseNAS's stem, encoder and one decoder, with all candidate operations
in the cells that are searched.

The search looks at a single stage. The refining encoder of the found network takes the encoder's
cells over and its second decoder the first one's, as in everything that the authors of PoseNAS
released: see docs/search.md.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from poise.errors import ConfigError
from poise.models.options import check_extra, check_head, check_sizes, translate_option_errors
from poise.models.posenas.cells import Cell, DecoderStage, EncoderCells
from poise.models.posenas.genotypes import CELLS, CONCAT
from poise.models.posenas.network import EXTRA_KEYS, check_se_reduction, init_convolutions
from poise.search.architecture import init_alphas
from poise.search.mixed import Candidates, MixedCell, without_affine
from poise.search.space import Space


class SearchNetwork(nn.Module):
    """(B, 3, H, W) -> outputs (B, K, H / 4, W / 4), in train mode as a tuple of one; H and W
    multiples of 32.

    architecture: the values, see poise.search.architecture; they are no weights. init_channels,
    layers: as of PoseNAS. Groups of cells that the space does not search are those of its given
    genotype, with ordinary batch norms.
    """

    def __init__(
        self,
        space: Space,
        *,
        num_keypoints: int = 17,
        init_channels: int = 32,
        layers: int = 12,
        se_reduction: int = 1,
        partial_channels: int = 1,
        recompute: bool = False,
    ):
        super().__init__()
        check_se_reduction(se_reduction)
        c = 2 * init_channels  # channels at stride 4

        def group(name: str) -> tuple[list, type[nn.Module]]:
            kinds = CELLS[name]
            if kinds[0] not in space.operations:
                return [getattr(space.given, kind) for kind in kinds], Cell
            return [
                Candidates(kind, space.operations[kind], partial_channels, recompute)
                for kind in kinds
            ], MixedCell

        (normal, reduce), encoder_cell = group("encoder")
        upsamples, decoder_cell = group("decoder")
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
        self.cells = EncoderCells(
            normal, reduce, c, c // len(CONCAT), layers, se_reduction, cell=encoder_cell
        )
        self.decoder = DecoderStage(
            tuple(upsamples),
            (c, 2 * c, 4 * c, 8 * c),
            num_keypoints,
            se_reduction,
            cell=decoder_cell,
        )
        if encoder_cell is MixedCell:
            # the authors' encoder search has none at the cells' inputs either, their decoder search
            # has
            without_affine(self.cells)
        self.architecture = init_alphas(space)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        for cell in (*self.cells, *self.decoder.upsamples):
            if isinstance(cell, MixedCell):
                cell.weights = self.architecture[cell.kind].softmax(dim=1)
        s0 = self.stem1(self.stem0(images))
        features = self.cells(s0, self.stem2(s0))
        output = self.decoder.head(self.decoder(*features)[0])
        return (output,) if self.training else output

    def init_weights(self) -> None:
        """Initialize the convolutions; the architecture values keep theirs."""
        init_convolutions(self)


def network_parameters(network: SearchNetwork) -> dict[str, nn.Parameter]:
    """Return the parameters that are not alphas, by name."""
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if not name.startswith("architecture.")
    }


def build(cfg: CfgNode, space: Space) -> SearchNetwork:
    """Build the supernet of SEARCH.*. Raises ConfigError for invalid settings."""
    if cfg.MODEL.NAME != "posenas":
        raise ConfigError(
            f"MODEL.NAME {cfg.MODEL.NAME!r}: what is searched are the cells of posenas"
        )
    check_extra(cfg, EXTRA_KEYS)
    check_head(cfg)
    check_sizes(cfg, stride=4)
    s = cfg.SEARCH
    width = 2 * s.INIT_CHANNELS // len(CONCAT)
    if width % s.PARTIAL_CHANNELS or s.PARTIAL_CHANNELS > 1 and width // s.PARTIAL_CHANNELS % 2:
        raise ConfigError(
            f"SEARCH.PARTIAL_CHANNELS {s.PARTIAL_CHANNELS}: the narrowest cell has {width}"
            " channels, and a part of them must be an even number; make SEARCH.INIT_CHANNELS a"
            f" multiple of {4 * s.PARTIAL_CHANNELS}"
        )
    with translate_option_errors(EXTRA_KEYS):
        network = SearchNetwork(
            space,
            num_keypoints=cfg.MODEL.NUM_JOINTS,
            init_channels=s.INIT_CHANNELS,
            layers=s.LAYERS,
            se_reduction=cfg.MODEL.EXTRA.get("SE_REDUCTION", 1),
            partial_channels=s.PARTIAL_CHANNELS,
            recompute=s.CHECKPOINTING,
        )
    network.init_weights()
    return network
