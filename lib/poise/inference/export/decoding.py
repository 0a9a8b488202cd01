"""What the codecs' `decode` does, by operations of PyTorch alone, so that it can be part of an
exported graph.

The rules, their sources and their legend are those of poise.codecs.peaks and poise.codecs.megvii;
these are their counterparts, held to the same answers by tests/test_export.py and by the check of
every export. B batch, J joints, h w heatmap cells.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from poise.codecs import Codec
from poise.codecs.megvii import AMPLITUDE, BORDER, STEP, Megvii

_SMALLEST = torch.finfo(torch.float32).eps


class Decoder(nn.Module):
    """Heatmaps (B, J, h, w) -> joints (B, J, 2) in crop pixels and scores (B, J), as
    codec.decode.
    """

    def __init__(self, codec: Codec):
        super().__init__()
        self.refine, self.empty_cell = codec.refine, codec.empty_cell
        self.megvii_scores = isinstance(codec, Megvii)
        # cells to pixels is a factor and an offset
        corners = torch.from_numpy(codec.cells_to_pixels(np.array([[0, 0], [1, 1]], np.float32)))
        self.register_buffer("offset", corners[0])
        self.register_buffer("factor", corners[1] - corners[0])
        if self.refine in ("dark", "udp", "megvii"):
            self.register_buffer(
                "kernel",
                torch.from_numpy(cv2.getGaussianKernel(codec.blur_kernel, 0, cv2.CV_32F)[:, 0]),
            )

    def forward(self, heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.refine == "megvii":
            return self._megvii(heatmaps)
        height, width = heatmaps.shape[2:]
        flat = heatmaps.flatten(2)
        index = flat.argmax(dim=2)
        scores = _values(flat, index)
        row = torch.div(index, width, rounding_mode="floor")
        column = index - row * width
        coords = torch.stack([column, row], dim=2).float()
        found = (scores > 0)[:, :, None]
        if self.refine == "quarter":
            coords = coords + _quarter_step(flat, index, column, row, height, width)
        elif self.refine == "dark":
            coords = coords + self._dark_step(heatmaps, index, column, row)
        elif self.refine == "udp":
            coords = coords + self._udp_step(heatmaps, column, row)
        coords = torch.where(found, coords, torch.full_like(coords, self.empty_cell))
        if self.megvii_scores:
            scores = scores / AMPLITUDE + 0.5
        return coords * self.factor + self.offset, scores

    def _dark_step(
        self, heatmaps: torch.Tensor, index: torch.Tensor, column: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        height, width = heatmaps.shape[2:]
        if height < 5 or width < 5:
            return torch.zeros_like(torch.stack([column, row], dim=2), dtype=heatmaps.dtype)
        blurred = self._blur(heatmaps)
        peak, blurred_peak = (
            maps.flatten(2).amax(dim=2)[:, :, None, None] for maps in (heatmaps, blurred)
        )
        # also a blurred peak below 0 divides, as in the codec; one of 0 is an empty map's, whose
        # step is not used
        logs = torch.log(torch.clamp(blurred * (peak / _nonzero(blurred_peak)), min=1e-10)).flatten(
            2
        )
        inner = (column > 1) & (column < width - 2) & (row > 1) & (row < height - 2)
        at = torch.where(inner, index, torch.full_like(index, 2 * width + 2))

        def value(dx: int, dy: int) -> torch.Tensor:
            return _values(logs, at + (dy * width + dx))

        dx, dy = 0.5 * (value(1, 0) - value(-1, 0)), 0.5 * (value(0, 1) - value(0, -1))
        center = 2 * value(0, 0)
        dxx, dyy = (
            0.25 * (value(2, 0) - center + value(-2, 0)),
            0.25 * (value(0, 2) - center + value(0, -2)),
        )
        dxy = 0.25 * (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1))
        determinant = dxx * dyy - dxy * dxy
        newton = (
            torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], dim=2)
            / _nonzero(determinant)[:, :, None]
        )
        return _where_usable(inner & (determinant != 0), newton)

    def _udp_step(
        self, heatmaps: torch.Tensor, column: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        reach = len(self.kernel) // 2
        blurred = self._blur(F.pad(heatmaps, (reach, reach, reach, reach), mode="reflect"))[
            :, :, reach:-reach, reach:-reach
        ]
        logs = F.pad(torch.log(torch.clamp(blurred, 0.001, 50.0)), (1, 1, 1, 1), mode="replicate")
        width, flat = logs.shape[3], logs.flatten(2)
        at = (row + 1) * width + column + 1

        def value(dx: int, dy: int) -> torch.Tensor:
            return _values(flat, at + (dy * width + dx)).double()

        center, right, left, below, above = (
            value(0, 0),
            value(1, 0),
            value(-1, 0),
            value(0, 1),
            value(0, -1),
        )
        dx, dy = 0.5 * (right - left), 0.5 * (below - above)
        dxy = 0.5 * (value(1, 1) - right - below + 2 * center - left - above + value(-1, -1))
        dxx, dyy = right - 2 * center + left + _SMALLEST, below - 2 * center + above + _SMALLEST
        determinant = dxx * dyy - dxy * dxy
        newton = (
            torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], dim=2)
            / _nonzero(determinant)[:, :, None]
        )
        return _where_usable(determinant != 0, newton.float())

    def _megvii(self, heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = heatmaps.shape[2:]
        blurred = self._blur(F.pad(heatmaps, (BORDER, BORDER, BORDER, BORDER)))
        wide, flat = width + 2 * BORDER, blurred.flatten(2)
        first = flat.argmax(dim=2)
        second = torch.where(
            torch.arange(flat.shape[2], device=flat.device) == first[:, :, None],
            torch.zeros_like(flat),
            flat,
        ).argmax(dim=2)
        places = []
        for index in (first, second):
            row = torch.div(index, wide, rounding_mode="floor")
            places.append(torch.stack([index - row * wide, row], dim=2).float())
        way = places[1] - places[0]
        # at least 1, or 0 where nothing is blurred to above 0
        length = way.square().sum(dim=2, keepdim=True).sqrt()
        coords = places[0] - BORDER + STEP * way / torch.clamp(length, min=1)
        coords = torch.minimum(
            torch.clamp(coords, min=0), coords.new_tensor([width - 1, height - 1])
        )
        at = torch.round(coords).long()
        scores = _values(heatmaps.flatten(2), at[:, :, 1] * width + at[:, :, 0]) / AMPLITUDE + 0.5
        return coords * self.factor + self.offset, scores

    def _blur(self, heatmaps: torch.Tensor) -> torch.Tensor:
        """OpenCV's Gaussian of the kernel's size, with zeros around each map."""
        reach = len(self.kernel) // 2
        maps = heatmaps.flatten(0, 1)[:, None]
        maps = F.conv2d(maps, self.kernel[None, None, None], padding=(0, reach))
        return F.conv2d(maps, self.kernel[None, None, :, None], padding=(reach, 0)).reshape(
            heatmaps.shape
        )


def _values(flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, J): of maps (B, J, cells) the values at cells (B, J)."""
    return flat.gather(2, index[:, :, None])[:, :, 0]


def _quarter_step(
    flat: torch.Tensor,
    index: torch.Tensor,
    column: torch.Tensor,
    row: torch.Tensor,
    height: int,
    width: int,
) -> torch.Tensor:
    inner = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)

    def neighbour(offset: int) -> torch.Tensor:
        return _values(flat, torch.clamp(index + offset, 0, height * width - 1))

    step = torch.stack(
        [
            torch.sign(neighbour(1) - neighbour(-1)),
            torch.sign(neighbour(width) - neighbour(-width)),
        ],
        dim=2,
    )
    return 0.25 * step * inner[:, :, None]


def _nonzero(divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor != 0, divisor, torch.ones_like(divisor))


def _where_usable(usable: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    finite = (step.abs() <= torch.finfo(torch.float32).max).all(dim=2)  # false for NaN too
    return torch.where((usable & finite)[:, :, None], step, torch.zeros_like(step))
