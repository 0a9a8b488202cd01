"""The base class of codecs with one heatmap per keypoint.

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

PCK_THRESHOLD = 0.5  # in tenths of the heatmap's size


@dataclass(frozen=True, kw_only=True)
class HeatmapTargets(Targets):
    """Target heatmaps of a batch.

    Args:
        heatmaps: (B, K, h, w), or (B, L, K, h, w) from coarse to fine.
        peaks: (B, K, 2) float, x and y of the maxima of `finest_heatmaps` in cells, 0 for empty
            maps; None if the codec does not compute them.
    """

    heatmaps: torch.Tensor
    peaks: torch.Tensor | None = None

    @property
    def finest_heatmaps(self) -> torch.Tensor:
        """The finest heatmaps, (B, K, h, w)."""
        return self.heatmaps if self.heatmaps.dim() == 4 else self.heatmaps[:, -1]


def _default_loss() -> nn.Module:
    return DeepSupervisionLoss(JointsMSELoss())


@dataclass(frozen=True)
class HeatmapCodec(Codec):
    """A convention of heatmaps.

    Args:
        heatmap_size: (w, h) in cells.
        sigma: of the target Gaussians in cells.
        refine: offset of a peak from its cell: 'none', 'quarter', 'dark', 'udp' or the codec's own.
        blur_kernel: size in cells of the blur before 'dark', 'udp' and the codec's own, odd.
        empty_cell: both coordinates of a keypoint whose map has no value above 0.
        shift_flipped: move the map of the flipped crop one cell to the right in the flip test.
    """

    heatmap_size: tuple[int, int]
    sigma: float = 2.0
    refine: str = "quarter"
    blur_kernel: int = 11
    empty_cell: int = 0
    shift_flipped: bool = False
    loss_function: nn.Module = field(
        default_factory=_default_loss, kw_only=True, repr=False, compare=False
    )

    # whether the heatmap of a flipped crop is aligned without TEST.SHIFT_HEATMAP
    flip_aligned: ClassVar[bool] = False
    default_refinement: ClassVar[str] = "quarter"  # of TEST.DECODE ''
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

        The keypoint of a map without a value above 0 is at `empty_cell`.
        maxima: result of find_peaks for these heatmaps, if it is known.
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
        """See Codec. The peaks are searched once."""
        maps = output.cpu().numpy()
        maxima = find_peaks(maps)
        num_correct, num_valid = pck_accuracy(
            output, targets.finest_heatmaps, maxima=maxima, peaks=targets.peaks
        )
        return *self.decode(maps, maxima), num_correct, num_valid

    def cells_to_pixels(self, coords: np.ndarray) -> np.ndarray:
        """Return the crop pixels (..., 2) of heatmap cells (..., 2)."""
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
        # cells_to_pixels is linear
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
        if maps.dim() == 4:
            maps = maps[:, None]
        return maps.cpu().numpy() / self.peak_value

    @classmethod
    def from_config(cls, cfg: CfgNode, loss_function: nn.Module, **more: Any) -> HeatmapCodec:
        """Build the codec of MODEL.* and its decoding of TEST.*."""
        refine = "none"
        if cfg.TEST.POST_PROCESS:
            refine = cfg.TEST.DECODE or cls.default_refinement
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
        """Return the size of the blur: TEST.BLUR_KERNEL, or the one for the targets' sigma."""
        return cfg.TEST.BLUR_KERNEL or dark_kernel(cfg.MODEL.SIGMA)


def pck_accuracy(
    output: torch.Tensor,
    target: torch.Tensor,
    maxima: tuple[np.ndarray, np.ndarray] | None = None,
    peaks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the heatmaps whose peak is near the target's: the PCK of training.

    A keypoint is valid if its target's peak is beyond the first two rows and columns (the peak of
    an empty target is cell 0). It is correct if the peaks are less than PCK_THRESHOLD tenths of the
    heatmap's size apart. Source: lib/core/evaluate.py of SimpleBaseline and HRNet. There the x
    distance is divided by the height and the y distance by the width of the heatmap, which
    misreports heatmaps that are not square; here each by its own.

    Args:
        output: (B, K, h, w).
        target: (B, K, h, w).
        maxima: result of find_peaks for `output`, if it is known.
        peaks: those of `target`, if the codec computes them (HeatmapTargets.peaks).

    Returns:
        (num_correct, num_valid) as scalars on the device of `output`.
    """
    height, width = target.shape[2:]
    if maxima is None:
        predicted = _find_peaks(output)
    else:
        predicted = _zero_if_empty(*map(torch.from_numpy, maxima)).to(output.device)
    if peaks is None:
        peaks = _find_peaks(target)
    valid = (peaks > 1).all(dim=2)
    size = torch.tensor([width, height], device=output.device, dtype=torch.float32) / 10
    distance = torch.linalg.vector_norm((predicted - peaks) / size, dim=2)
    return ((distance < PCK_THRESHOLD) & valid).sum(), valid.sum()


def _find_peaks(heatmaps: torch.Tensor) -> torch.Tensor:
    """Return the peaks (B, K, 2) as x, y in cells; 0, 0 for maps without a value above 0."""
    # NumPy's argmax is several times as fast as PyTorch's on a CPU
    if heatmaps.device.type == "cpu" and heatmaps.dtype == torch.float32:
        return _zero_if_empty(*map(torch.from_numpy, find_peaks(heatmaps.detach().numpy())))
    values, index = heatmaps.flatten(2).max(dim=2)
    width = heatmaps.shape[3]
    return _zero_if_empty(torch.stack([index % width, index // width], dim=2), values)


def _zero_if_empty(cells: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return cells.float() * (values > 0)[:, :, None]
