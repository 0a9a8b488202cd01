"""Codecs with one heatmap for each keypoint: what their conventions have in common.

Legend: see poise.codecs.codec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs.codec import Codec, Targets
from poise.codecs.flip import average_flipped, average_flipped_in_graph
from poise.codecs.heatmap_decoder import HeatmapDecoder
from poise.codecs.losses import DeepSupervisionLoss, JointsMSELoss
from poise.codecs.peaks import dark_kernel, dark_offset, find_peaks, quarter_offset, udp_offset

PCK_THRESHOLD = 0.5  # tenths of the heatmap's size


@dataclass(frozen=True, kw_only=True)
class HeatmapTargets(Targets):
    """Target heatmaps of a batch.

    heatmaps: (B, K, h, w), or (B, L, K, h, w) from coarse to fine. peaks: (B, K, 2) float, x and y
    of the maxima of `finest_heatmaps`, 0 for empty maps; None where they have to be searched.
    """

    heatmaps: torch.Tensor
    peaks: torch.Tensor | None = None

    @property
    def finest_heatmaps(self) -> torch.Tensor:
        """(B, K, h, w), the sharpest heatmaps."""
        return self.heatmaps if self.heatmaps.dim() == 4 else self.heatmaps[:, -1]


def _mean_squared_error() -> nn.Module:
    return DeepSupervisionLoss(JointsMSELoss())


@dataclass(frozen=True)
class HeatmapCodec(Codec):
    """One convention of heatmaps.

    refine: how a maximum is moved below the cell: 'none', 'quarter', 'dark', 'udp' or the codec's
    own. blur_kernel: size in cells of the blur that the last three begin with, odd. empty_cell:
    both coordinates of a keypoint whose map is nowhere above 0. shift_flipped: move the map of the
    flipped crop one cell to the right in the flip test.
    """

    heatmap_size: tuple[int, int]
    sigma: float = 2.0
    refine: str = "quarter"
    blur_kernel: int = 11
    empty_cell: int = 0
    shift_flipped: bool = False
    loss_function: nn.Module = field(
        default_factory=_mean_squared_error, kw_only=True, repr=False, compare=False
    )

    # the heatmap of a flipped crop is aligned without TEST.SHIFT_HEATMAP
    flip_aligned: ClassVar[bool] = False
    default_refinement: ClassVar[str] = "quarter"  # what TEST.DECODE '' stands for
    peak_value: ClassVar[float] = 1.0  # maximum of a target
    config_keys = ("MODEL.HEATMAP_SIZE", "MODEL.SIGMA", "MODEL.KERNELS")
    decode_keys = ("TEST.POST_PROCESS", "TEST.DECODE", "TEST.BLUR_KERNEL", "TEST.EMPTY_CELL")
    flip_keys = ("TEST.SHIFT_HEATMAP",)
    representation = "heatmaps"
    output_names = ("heatmaps",)
    decoder_class: ClassVar[type[HeatmapDecoder]] = HeatmapDecoder

    @property
    def stride(self) -> tuple[float, float]:
        """Crop pixels of a heatmap cell, in x and y."""
        return self.image_size[0] / self.heatmap_size[0], self.image_size[1] / self.heatmap_size[1]

    def accuracy(
        self, output: torch.Tensor, targets: HeatmapTargets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Codec and pck_accuracy."""
        return pck_accuracy(output, targets.finest_heatmaps, peaks=targets.peaks)

    def decode(
        self, output: np.ndarray, maxima: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return keypoints and scores of heatmaps (B, K, h, w) float32: see Codec.

        A map that is nowhere above 0 has its keypoint in `empty_cell` and its maximum as score.
        maxima: what find_peaks returns, if it is known.
        """
        cells, scores = find_peaks(output) if maxima is None else maxima
        coords = cells.astype(np.float32)
        empty = scores <= 0
        if self.refine == "quarter":
            coords += quarter_offset(output, cells) * ~empty[:, :, None]
        elif self.refine == "dark":
            coords += dark_offset(output, cells, self.blur_kernel) * ~empty[:, :, None]
        elif self.refine == "udp":
            coords += udp_offset(output, cells, self.blur_kernel) * ~empty[:, :, None]
        coords[empty] = self.empty_cell
        return self.cells_to_pixels(coords), scores

    def decode_with_accuracy(
        self, output: torch.Tensor, targets: HeatmapTargets
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
        """See Codec. The maxima are searched once."""
        maps = output.cpu().numpy()
        maxima = find_peaks(maps)
        right, counted = pck_accuracy(
            output, targets.finest_heatmaps, maxima=maxima, peaks=targets.peaks
        )
        return *self.decode(maps, maxima), right, counted

    def cells_to_pixels(self, coords: np.ndarray) -> np.ndarray:
        """Crop pixels (..., 2) of heatmap cells (..., 2)."""
        return coords * np.array(self.stride, dtype=np.float32)

    def flip_average(
        self, output: torch.Tensor, flipped: torch.Tensor, flip_indices: torch.Tensor
    ) -> torch.Tensor:
        return average_flipped(output, flipped, flip_indices, self.shift_flipped)

    def flip_average_in_graph(
        self, output: torch.Tensor, flipped: torch.Tensor, flip_indices: torch.Tensor
    ) -> torch.Tensor:
        return average_flipped_in_graph(output, flipped, flip_indices, self.shift_flipped)

    def build_decoder(self) -> nn.Module:
        # cells to pixels is a factor and an offset
        corners = torch.from_numpy(self.cells_to_pixels(np.array([[0, 0], [1, 1]], np.float32)))
        return self.decoder_class(
            refine=self.refine,
            blur_kernel=self.blur_kernel,
            empty_cell=self.empty_cell,
            offset=corners[0],
            factor=corners[1] - corners[0],
        )

    def output_shapes(self, num_keypoints: int) -> list[tuple[int, ...]]:
        return [(num_keypoints, self.heatmap_size[1], self.heatmap_size[0])]

    def output_maps(self, output: np.ndarray) -> np.ndarray:
        return output / self.peak_value

    def target_maps(self, targets: HeatmapTargets, count: int | None = None) -> np.ndarray:
        maps = targets.heatmaps[:count]
        return (maps if maps.dim() == 5 else maps[:, None]).cpu().numpy() / self.peak_value

    @classmethod
    def from_config(cls, cfg: CfgNode, loss_function: nn.Module, **more: Any) -> HeatmapCodec:
        """Build the codec; it decodes as TEST.POST_PROCESS, DECODE and BLUR_KERNEL say."""
        refine = (cfg.TEST.DECODE or cls.default_refinement) if cfg.TEST.POST_PROCESS else "none"
        return cls(
            image_size=tuple(cfg.MODEL.IMAGE_SIZE),
            heatmap_size=tuple(cfg.MODEL.HEATMAP_SIZE),
            sigma=cfg.MODEL.SIGMA,
            refine=refine,
            blur_kernel=cls.default_blur(cfg, refine),
            empty_cell=cfg.TEST.EMPTY_CELL,
            shift_flipped=cfg.TEST.SHIFT_HEATMAP and not cls.flip_aligned,
            loss_function=loss_function,
            **more,
        )

    @classmethod
    def default_blur(cls, cfg: CfgNode, refine: str) -> int:
        """Return the blur of TEST.BLUR_KERNEL, or the one that fits the targets."""
        return cfg.TEST.BLUR_KERNEL or dark_kernel(cfg.MODEL.SIGMA)


def pck_accuracy(
    output: torch.Tensor,
    target: torch.Tensor,
    maxima: tuple[np.ndarray, np.ndarray] | None = None,
    peaks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count how often a heatmap's maximum is near its target's: PCK during training.

    A keypoint counts when its target's maximum is beyond the first two rows and columns (an empty
    target has it in cell 0). It is right when the maxima are less than PCK_THRESHOLD tenths of the
    heatmap's size apart. Source: lib/core/evaluate.py of SimpleBaseline and HRNet. There the x
    distance was divided by the height and the y distance by the width of the heatmap, which only
    misreports and only where it is not square; here each by its own.

    Args:
        output, target: (B, K, h, w).
        maxima: those of `output`, if find_peaks has found them already.
        peaks: those of `target`, if the codec knows them (HeatmapTargets.peaks).

    Returns:
        (right, counted) as two scalars on the device of `output`.
    """
    height, width = target.shape[2:]
    if maxima is None:
        predicted = _maxima(output)
    else:
        predicted = _where_any(*map(torch.from_numpy, maxima)).to(output.device)
    wanted = _maxima(target) if peaks is None else peaks
    counted = (wanted > 1).all(dim=2)
    size = torch.tensor([width, height], device=output.device, dtype=torch.float32) / 10
    distance = torch.linalg.vector_norm((predicted - wanted) / size, dim=2)
    return ((distance < PCK_THRESHOLD) & counted).sum(), counted.sum()


def _maxima(heatmaps: torch.Tensor) -> torch.Tensor:
    """(B, K, 2) x, y in cells; 0, 0 where no value is above 0."""
    # NumPy's search is many times as fast as PyTorch's there
    if heatmaps.device.type == "cpu" and heatmaps.dtype == torch.float32:
        return _where_any(*map(torch.from_numpy, find_peaks(heatmaps.detach().numpy())))
    values, index = heatmaps.flatten(2).max(dim=2)
    width = heatmaps.shape[3]
    return _where_any(torch.stack([index % width, index // width], dim=2), values)


def _where_any(cells: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return cells.float() * (values > 0)[:, :, None]
