"""Decode heatmaps with operations of PyTorch only, for exported graphs.

The rules, their sources and their legend are those of poise.codecs.peaks, which decodes with NumPy
and OpenCV. Both exist because a graph cannot call OpenCV, and because this module is slower on a
CPU and rounds differently: it takes 6 to 12 times as long (one core, 64 persons with 17 maps of
64 x 48 cells), and DARK and UDP differ by up to 1e-4 pixels, so results would change.
tests/inference/test_export.py compares the two for every codec and refinement, and every export
compares them again.
"""

from __future__ import annotations

import cv2
import torch
from torch import nn
from torch.nn import functional as F

_SMALLEST = torch.finfo(torch.float32).eps


class HeatmapDecoder(nn.Module):
    """Heatmaps (B, K, h, w) -> keypoints (B, K, 2) in crop pixels and scores (B, K).

    Args:
        refine: see HeatmapCodec.
        blur_kernel: see HeatmapCodec.
        empty_cell: see HeatmapCodec.
        offset: (2,), crop pixels are cells * factor + offset.
        factor: (2,).
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
        self.refine = refine
        self.empty_cell = empty_cell
        self.register_buffer("offset", offset)
        self.register_buffer("factor", factor)
        if refine in ("dark", "udp", "megvii"):
            kernel = cv2.getGaussianKernel(blur_kernel, 0, cv2.CV_32F)[:, 0]
            self.register_buffer("kernel", torch.from_numpy(kernel))

    def forward(self, heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        width = heatmaps.shape[3]
        flat = heatmaps.flatten(2)
        index = flat.argmax(dim=2)
        scores = values_at(flat, index)
        row = torch.div(index, width, rounding_mode="floor")
        column = index - row * width
        coords = torch.stack([column, row], dim=2).float()
        if self.refine == "quarter":
            coords = coords + _quarter_offset(heatmaps, index, column, row)
        elif self.refine == "dark":
            coords = coords + self._dark_offset(heatmaps, index, column, row)
        elif self.refine == "udp":
            coords = coords + self._udp_offset(heatmaps, column, row)
        is_peak = (scores > 0)[:, :, None]
        coords = torch.where(is_peak, coords, torch.full_like(coords, self.empty_cell))
        return coords * self.factor + self.offset, scores

    def _dark_offset(
        self, heatmaps: torch.Tensor, index: torch.Tensor, column: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        height, width = heatmaps.shape[2:]
        if height < 5 or width < 5:
            return torch.zeros_like(torch.stack([column, row], dim=2), dtype=heatmaps.dtype)
        blurred = self.blur(heatmaps)
        peak = heatmaps.flatten(2).amax(dim=2)[:, :, None, None]
        blurred_peak = blurred.flatten(2).amax(dim=2)[:, :, None, None]
        # a blurred peak below 0 divides too, as in poise.codecs.peaks; it is 0 in empty maps only,
        # whose offset is not used
        scaled = blurred * (peak / _nonzero(blurred_peak))
        logs = torch.log(torch.clamp(scaled, min=1e-10)).flatten(2)
        inner = (column > 1) & (column < width - 2) & (row > 1) & (row < height - 2)
        at = torch.where(inner, index, torch.full_like(index, 2 * width + 2))

        def value(x: int, y: int) -> torch.Tensor:
            return values_at(logs, at + (y * width + x))

        dx = 0.5 * (value(1, 0) - value(-1, 0))
        dy = 0.5 * (value(0, 1) - value(0, -1))
        center = 2 * value(0, 0)
        dxx = 0.25 * (value(2, 0) - center + value(-2, 0))
        dyy = 0.25 * (value(0, 2) - center + value(0, -2))
        dxy = 0.25 * (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1))
        return _newton_step(dx, dy, dxx, dyy, dxy, inner)

    def _udp_offset(
        self, heatmaps: torch.Tensor, column: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        reach = len(self.kernel) // 2
        padded = F.pad(heatmaps, (reach, reach, reach, reach), mode="reflect")
        blurred = self.blur(padded)[:, :, reach:-reach, reach:-reach]
        logs = F.pad(torch.log(torch.clamp(blurred, 0.001, 50.0)), (1, 1, 1, 1), mode="replicate")
        width = logs.shape[3]
        flat = logs.flatten(2)
        at = (row + 1) * width + column + 1

        def value(x: int, y: int) -> torch.Tensor:
            return values_at(flat, at + (y * width + x)).double()

        center = value(0, 0)
        right = value(1, 0)
        left = value(-1, 0)
        below = value(0, 1)
        above = value(0, -1)
        dx = 0.5 * (right - left)
        dy = 0.5 * (below - above)
        dxx = right - 2 * center + left + _SMALLEST
        dyy = below - 2 * center + above + _SMALLEST
        dxy = 0.5 * (value(1, 1) - right - below + 2 * center - left - above + value(-1, -1))
        return _newton_step(dx, dy, dxx, dyy, dxy, torch.ones_like(column, dtype=torch.bool))

    def blur(self, heatmaps: torch.Tensor) -> torch.Tensor:
        """Return maps blurred by OpenCV's Gaussian of the kernel's size, with zeros around them."""
        reach = len(self.kernel) // 2
        maps = heatmaps.flatten(0, 1)[:, None]
        maps = F.conv2d(maps, self.kernel[None, None, None], padding=(0, reach))
        maps = F.conv2d(maps, self.kernel[None, None, :, None], padding=(reach, 0))
        return maps.reshape(heatmaps.shape)


def values_at(flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the values (B, K) of maps (B, K, h * w) at cells (B, K)."""
    return flat.gather(2, index[:, :, None])[:, :, 0]


def _quarter_offset(
    heatmaps: torch.Tensor, index: torch.Tensor, column: torch.Tensor, row: torch.Tensor
) -> torch.Tensor:
    height, width = heatmaps.shape[2:]
    flat = heatmaps.flatten(2)
    inner = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)

    def neighbor(offset: int) -> torch.Tensor:
        return values_at(flat, torch.clamp(index + offset, 0, height * width - 1))

    x = torch.sign(neighbor(1) - neighbor(-1))
    y = torch.sign(neighbor(width) - neighbor(-width))
    return 0.25 * torch.stack([x, y], dim=2) * inner[:, :, None]


def _newton_step(
    dx: torch.Tensor,
    dy: torch.Tensor,
    dxx: torch.Tensor,
    dyy: torch.Tensor,
    dxy: torch.Tensor,
    usable: torch.Tensor,
) -> torch.Tensor:
    """Return the step (B, K, 2) float32 to the maximum of a paraboloid; 0 if not usable."""
    determinant = dxx * dyy - dxy * dxy
    numerator = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], dim=2)
    step = (numerator / _nonzero(determinant)[:, :, None]).float()
    is_finite = (step.abs() <= torch.finfo(torch.float32).max).all(dim=2)  # false for NaN too
    usable = usable & (determinant != 0) & is_finite
    return torch.where(usable[:, :, None], step, torch.zeros_like(step))


def _nonzero(divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor != 0, divisor, torch.ones_like(divisor))
