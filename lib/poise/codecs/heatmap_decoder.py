"""The decoding of heatmaps by operations of PyTorch alone, for exported graphs.

The rules, their sources and their legend are those of poise.codecs.peaks.
tests/inference/test_export.py and the check of every export compare the two.
"""

from __future__ import annotations

import cv2
import torch
from torch import nn
from torch.nn import functional as F

_SMALLEST = torch.finfo(torch.float32).eps


class HeatmapDecoder(nn.Module):
    """Heatmaps (B, K, h, w) -> keypoints (B, K, 2) in crop pixels and scores (B, K).

    offset, factor: (2,), crop pixels are cells * factor + offset. The others: see HeatmapCodec.
    """

    offset: torch.Tensor
    factor: torch.Tensor
    kernel: torch.Tensor

    def __init__(
        self,
        *,
        refine: str,
        blur_kernel: int,
        empty_cell: int,
        offset: torch.Tensor,
        factor: torch.Tensor,
    ):
        super().__init__()
        self.refine, self.empty_cell = refine, empty_cell
        self.register_buffer("offset", offset)
        self.register_buffer("factor", factor)
        if refine in ("dark", "udp", "megvii"):
            self.register_buffer(
                "kernel", torch.from_numpy(cv2.getGaussianKernel(blur_kernel, 0, cv2.CV_32F)[:, 0])
            )

    def forward(self, heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = heatmaps.shape[2:]
        flat = heatmaps.flatten(2)
        index = flat.argmax(dim=2)
        scores = values_at(flat, index)
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
        return coords * self.factor + self.offset, scores

    def _dark_step(
        self, heatmaps: torch.Tensor, index: torch.Tensor, column: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        height, width = heatmaps.shape[2:]
        if height < 5 or width < 5:
            return torch.zeros_like(torch.stack([column, row], dim=2), dtype=heatmaps.dtype)
        blurred = self.blur(heatmaps)
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
            return values_at(logs, at + (dy * width + dx))

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
        blurred = self.blur(F.pad(heatmaps, (reach, reach, reach, reach), mode="reflect"))[
            :, :, reach:-reach, reach:-reach
        ]
        logs = F.pad(torch.log(torch.clamp(blurred, 0.001, 50.0)), (1, 1, 1, 1), mode="replicate")
        width, flat = logs.shape[3], logs.flatten(2)
        at = (row + 1) * width + column + 1

        def value(dx: int, dy: int) -> torch.Tensor:
            return values_at(flat, at + (dy * width + dx)).double()

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

    def blur(self, heatmaps: torch.Tensor) -> torch.Tensor:
        """OpenCV's Gaussian of the kernel's size, with zeros around each map."""
        reach = len(self.kernel) // 2
        maps = heatmaps.flatten(0, 1)[:, None]
        maps = F.conv2d(maps, self.kernel[None, None, None], padding=(0, reach))
        return F.conv2d(maps, self.kernel[None, None, :, None], padding=(reach, 0)).reshape(
            heatmaps.shape
        )


def values_at(flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, K): of maps (B, K, cells) the values at cells (B, K)."""
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
        return values_at(flat, torch.clamp(index + offset, 0, height * width - 1))

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
