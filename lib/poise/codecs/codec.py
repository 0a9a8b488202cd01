"""What every codec is: keypoints to heatmaps and back, with the crop and the flip test that belong
to it.

Legend of the codecs: B batch, J joints, H W input pixels, h w heatmap cells, K target sharpnesses.
Sizes are (width, height).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from poise.codecs.peaks import dark_step, find_maxima, quarter_step, udp_step


class Targets(NamedTuple):
    """What a batch should be answered with.

    heatmaps: (B, J, h, w), or (B, K, J, h, w) from coarse to fine. weight: (B, J, 1), 0 for joints
    without a label and those outside of the crop. seen: (B, J, 1), 1 for those of them that are not
    hidden. cells: (B, J, 2) float, x and y of the maxima of `finest`, 0 for empty maps; None where
    only a look at the maps tells. known: (B, J, 1), 0 for joints that the person's set does not
    have; None: all are.
    """

    heatmaps: torch.Tensor
    weight: torch.Tensor
    seen: torch.Tensor
    cells: torch.Tensor | None = None
    known: torch.Tensor | None = None

    @property
    def finest(self) -> torch.Tensor:
        """(B, J, h, w), the sharpest heatmaps."""
        return self.heatmaps if self.heatmaps.dim() == 4 else self.heatmaps[:, -1]


@dataclass(frozen=True)
class Codec(ABC):
    """One convention.

    refine: how a maximum is moved below the cell: 'none', 'quarter', 'dark', 'udp' or the codec's
    own. blur_kernel: size in cells of the blur that the last three begin with, odd.
    """

    image_size: tuple[int, int]
    heatmap_size: tuple[int, int]
    sigma: float = 2.0
    refine: str = "quarter"
    blur_kernel: int = 11
    empty_cell: int = 0

    unbiased: ClassVar[bool] = False  # crops are UDP's: see poise.structures.crops
    # heatmaps of a mirrored crop lie right without TEST.SHIFT_HEATMAP
    mirror_exact: ClassVar[bool] = False
    own_refine: ClassVar[str] = "quarter"  # what TEST.DECODE '' stands for
    amplitude: ClassVar[float] = 1.0  # maximum of a target
    shown_score: ClassVar[float] = 0.2  # joints above it are drawn in pictures

    @property
    def stride(self) -> tuple[float, float]:
        """Crop pixels of a heatmap cell, in x and y."""
        return self.image_size[0] / self.heatmap_size[0], self.image_size[1] / self.heatmap_size[1]

    @abstractmethod
    def encode(self, joints: torch.Tensor, visible: torch.Tensor) -> Targets:
        """Targets, on the device of `joints`. joints: (B, J, 2) crop pixels. visible: (B, J),
        COCO's flag 0, 1 or 2; -1 is as 0.
        """

    def decode(
        self, heatmaps: np.ndarray, maxima: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Joints (B, J, 2) float32 in crop pixels and scores (B, J) float32 of heatmaps (B, J, h,
        w) float32.

        A map that is nowhere above 0 has its joint in `empty_cell` and its maximum as score.
        maxima: what find_maxima gives, if it is known.
        """
        cells, scores = find_maxima(heatmaps) if maxima is None else maxima
        coords = cells.astype(np.float32)
        empty = scores <= 0
        if self.refine == "quarter":
            coords += quarter_step(heatmaps, cells) * ~empty[:, :, None]
        elif self.refine == "dark":
            coords += dark_step(heatmaps, cells, self.blur_kernel) * ~empty[:, :, None]
        elif self.refine == "udp":
            coords += udp_step(heatmaps, cells, self.blur_kernel) * ~empty[:, :, None]
        coords[empty] = self.empty_cell
        return self.cells_to_pixels(coords), scores

    def cells_to_pixels(self, coords: np.ndarray) -> np.ndarray:
        """Crop pixels (..., 2) of heatmap cells (..., 2)."""
        return coords * np.array(self.stride, dtype=np.float32)
