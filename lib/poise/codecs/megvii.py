"""The codec of MSPN: targets are points with blurs of several sizes; outputs are blurred too.

Source: megvii-research/MSPN dataset/JointsDataset.py (generate_heatmap) and exps/*/test.py
(get_results); after CPN (Chen et al., CVPR 2018, arXiv 1711.07319). Figures:
tests/golden/mspn_functions.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from poise.codecs.heatmap import HeatmapCodec, HeatmapTargets
from poise.codecs.heatmap_decoder import HeatmapDecoder, values_at
from poise.codecs.peaks import blur, dark_kernel, find_peaks

PEAK_VALUE = 255.0
BORDER = 10  # cells of zeros around a map before the blur
STEP = 0.25  # of a cell, from the highest towards the second highest cell
DEFAULT_BLUR = 5  # cells, before decoding


class MegviiDecoder(HeatmapDecoder):
    """Megvii.decode with operations of PyTorch only."""

    def forward(self, heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.refine != "megvii":
            coords, scores = super().forward(heatmaps)
            return coords, scores / PEAK_VALUE + 0.5
        height, width = heatmaps.shape[2:]
        blurred = self.blur(F.pad(heatmaps, (BORDER, BORDER, BORDER, BORDER)))
        padded_width = width + 2 * BORDER
        flat = blurred.flatten(2)
        first = flat.argmax(dim=2)
        is_first = torch.arange(flat.shape[2], device=flat.device) == first[:, :, None]
        second = torch.where(is_first, torch.zeros_like(flat), flat).argmax(dim=2)
        cells = []
        for index in (first, second):
            row = torch.div(index, padded_width, rounding_mode="floor")
            cells.append(torch.stack([index - row * padded_width, row], dim=2).float())
        direction = cells[1] - cells[0]
        # at least 1, or 0 in empty maps
        length = direction.square().sum(dim=2, keepdim=True).sqrt()
        coords = cells[0] - BORDER + STEP * direction / torch.clamp(length, min=1)
        coords = torch.minimum(
            torch.clamp(coords, min=0), coords.new_tensor([width - 1, height - 1])
        )
        at = torch.round(coords).long()
        scores = (
            values_at(heatmaps.flatten(2), at[:, :, 1] * width + at[:, :, 0]) / PEAK_VALUE + 0.5
        )
        return coords * self.factor + self.offset, scores


@dataclass(frozen=True)
class Megvii(HeatmapCodec):
    """Targets of several blurs.

    Args:
        kernels: sizes of the blurs in cells, from coarse to fine.
    """

    kernels: tuple[int, ...] = (15, 11, 9, 7, 5)

    flip_aligned = True
    default_refinement = "megvii"
    peak_value = PEAK_VALUE
    vis_threshold = 0.7  # 0.2 of the peak value
    decoder_class = MegviiDecoder

    def encode(self, keypoints: torch.Tensor, visible: torch.Tensor) -> HeatmapTargets:
        """See Codec: heatmaps (B, L, K, h, w), one for each kernel, with maximum 255.

        The cell of a keypoint is rounded down. Keypoints are truncated to whole pixels before it is
        checked whether they are in the crop: MSPN has COCO's keypoints as integers. (It has MPII's
        as floats, so there a keypoint up to one pixel outside is ignored.)
        """
        pixels = torch.trunc(keypoints)
        size = keypoints.new_tensor(self.image_size)
        inside = ((pixels >= 0) & (pixels <= size - 1)).all(dim=2)
        weight = ((visible > 0) & inside).float()
        cell = torch.trunc(pixels / keypoints.new_tensor(self.stride)).long()
        cell = torch.where(inside[:, :, None], cell, 0)
        maps = []
        for kernel in self.kernels:
            columns, rows = (
                blurred_points(count, kernel).to(keypoints.device)[cell[:, :, axis]]
                for axis, count in enumerate(self.heatmap_size)
            )
            maps.append(
                (rows * (PEAK_VALUE * weight)[:, :, None])[:, :, :, None] * columns[:, :, None, :]
            )
        return HeatmapTargets(
            heatmaps=torch.stack(maps, dim=1),
            weight=weight[:, :, None],
            visible_mask=weight[:, :, None] * (visible > 1)[:, :, None],
        )

    def decode(
        self, output: np.ndarray, maxima: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Codec. The score is the unblurred map's value at the keypoint / 255 + 0.5.

        It may be outside of 0 to 1.
        """
        if self.refine != "megvii":
            coords, scores = super().decode(output, maxima)
            return coords, scores / np.float32(PEAK_VALUE) + np.float32(0.5)
        height, width = output.shape[2:]
        padded = np.pad(output, ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER)))
        blurred = blur(padded, self.blur_kernel)
        first, _ = find_peaks(blurred)
        batch, joint = np.indices(first.shape[:2])
        blurred[batch, joint, first[:, :, 1], first[:, :, 0]] = 0
        second, _ = find_peaks(blurred)
        direction = (second - first).astype(np.float64)
        length = np.linalg.norm(direction, axis=2, keepdims=True)
        coords = first - BORDER + STEP * direction / np.where(length > 1e-3, length, np.inf)
        coords = np.clip(coords, 0, [width - 1, height - 1])
        at = np.rint(coords).astype(np.int64)
        scores = output[batch, joint, at[:, :, 1], at[:, :, 0]] / np.float32(
            PEAK_VALUE
        ) + np.float32(0.5)
        return self.cells_to_pixels(coords).astype(np.float32), scores

    def cells_to_pixels(self, coords: np.ndarray) -> np.ndarray:
        """Return the middle of the cells, because encoding rounds down (2 pixels at stride 4)."""
        stride = np.array(self.stride)
        return (coords * stride + stride / 2).astype(np.float32)

    @classmethod
    def from_config(cls, cfg: CfgNode, loss_function: nn.Module, **more: Any) -> HeatmapCodec:
        return super().from_config(cfg, loss_function, kernels=tuple(cfg.MODEL.KERNELS), **more)

    @classmethod
    def default_blur(cls, cfg: CfgNode, refine: str) -> int:
        # TEST.BLUR_KERNEL of MSPN's experiments is for MSPN's decoding only
        if refine == "megvii":
            return cfg.TEST.BLUR_KERNEL or DEFAULT_BLUR
        return dark_kernel(cfg.MODEL.SIGMA)


@lru_cache(maxsize=64)
def blurred_points(count: int, kernel: int) -> torch.Tensor:
    """Return (count, count) float32: row i is a blurred point at i with maximum 1.

    A blurred point of a map is the product of its column and its row. MSPN's border reflects, and
    each map is divided by its own maximum, so the peak of a keypoint within a few cells of the
    border moves to the border. Kept: the published networks were trained with it.
    """
    blurred = cv2.GaussianBlur(np.eye(count, dtype=np.float32), (kernel, 1), 0)
    return torch.from_numpy(blurred / blurred.max(axis=1, keepdims=True))
