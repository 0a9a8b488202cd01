"""Find the peaks of heatmaps, to the cell and below it, with NumPy and OpenCV.

These functions decode on the CPU in evaluation and inference. heatmap_decoder.py does the same with
PyTorch for exported graphs, which cannot call OpenCV; see there why both exist.

Legend: B batch, K keypoints, h w heatmap cells.
"""

from __future__ import annotations

import cv2
import numpy as np


def find_peaks(heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells and values of the maxima.

    Args:
        heatmaps: (B, K, h, w).

    Returns:
        Cells (B, K, 2) int64 as (x, y), the first of equal ones, and values (B, K).
    """
    flat = _flatten(heatmaps)
    index = flat.argmax(axis=2)
    row, column = np.divmod(index, heatmaps.shape[3])
    values = np.take_along_axis(flat, index[:, :, None], axis=2)[:, :, 0]
    return np.stack([column, row], axis=2), values


def quarter_offset(heatmaps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return a quarter cell towards the higher neighbor on each axis.

    It is 0 for peaks less than two cells from the left and upper border or less than one from the
    others. Source: lib/core/inference.py of SimpleBaseline and HRNet; mmpose 0.29
    keypoints_from_heatmaps, post_process 'default'.

    Args:
        heatmaps: (B, K, h, w).
        cells: (B, K, 2) of the peaks.

    Returns:
        (B, K, 2) float32.
    """
    height, width = heatmaps.shape[2:]
    flat = _flatten(heatmaps)
    column, row = cells[:, :, 0], cells[:, :, 1]
    inner = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)
    # any cell of the map for peaks at the border
    inside = width + 1 if flat.shape[2] > 2 * width + 1 else 0
    index = np.where(inner, row * width + column, inside)

    def neighbor(offset: int) -> np.ndarray:
        at = np.clip(index + offset, 0, flat.shape[2] - 1)
        return np.take_along_axis(flat, at[:, :, None], axis=2)[:, :, 0]

    x = np.sign(neighbor(1) - neighbor(-1))
    y = np.sign(neighbor(width) - neighbor(-width))
    return (0.25 * np.stack([x, y], axis=2) * inner[:, :, None]).astype(np.float32)


def dark_kernel(sigma: float) -> int:
    """Return the size of the blur kernel for targets of `sigma` cells.

    DARK blurs as wide as the targets: the kernel's sigma, by OpenCV's rule 0.3 (k / 2 - 1.5) + 0.8,
    is the nearest to theirs.
    """
    return max(2 * round((sigma - 0.8) / 0.3 + 1) + 1, 3)


def dark_offset(heatmaps: np.ndarray, cells: np.ndarray, kernel: int) -> np.ndarray:
    """Return a Newton step to the maximum of the logarithm of the blurred map.

    The logarithm of a Gaussian is a parabola. The step is 0 for peaks within two cells of the
    border and where it is not finite. Source: Zhang et al., Distribution-Aware Coordinate
    Representation (DARK), CVPR 2020, arXiv 1910.06278, section 3.1, equations 3 to 9; differences
    as in mmpose 0.29 (_taylor). Figures: tests/golden/mmpose_functions.json.

    Args:
        heatmaps: (B, K, h, w).
        cells: (B, K, 2) of the peaks.
        kernel: size of the blur in cells, odd; 11 for sigma 2, 17 for sigma 3: see dark_kernel.

    Returns:
        (B, K, 2) float32.
    """
    height, width = heatmaps.shape[2:]
    step = np.zeros((*heatmaps.shape[:2], 2), np.float32)
    if height < 5 or width < 5:
        return step
    blurred = blur(heatmaps, kernel)
    peak = heatmaps.max(axis=(2, 3), keepdims=True)
    blurred_peak = blurred.max(axis=(2, 3), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_map = np.log(np.maximum(blurred * (peak / blurred_peak), 1e-10))
    flat = _flatten(log_map)
    column, row = cells[:, :, 0], cells[:, :, 1]
    inner = (column > 1) & (column < width - 2) & (row > 1) & (row < height - 2)
    index = np.where(inner, row * width + column, 2 * width + 2)

    def value(x: int, y: int) -> np.ndarray:
        at = index + y * width + x
        return np.take_along_axis(flat, at[:, :, None], axis=2)[:, :, 0]

    dx = 0.5 * (value(1, 0) - value(-1, 0))
    dy = 0.5 * (value(0, 1) - value(0, -1))
    center = 2 * value(0, 0)
    dxx = 0.25 * (value(2, 0) - center + value(-2, 0))
    dyy = 0.25 * (value(0, 2) - center + value(0, -2))
    dxy = 0.25 * (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1))
    determinant = dxx * dyy - dxy * dxy
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = (dxy * dy - dyy * dx) / determinant
        y = (dxy * dx - dxx * dy) / determinant
    newton = np.stack([x, y], axis=2)
    usable = inner & (determinant != 0) & np.isfinite(newton).all(axis=2)
    step[usable] = newton[usable]
    return step


def udp_offset(heatmaps: np.ndarray, cells: np.ndarray, kernel: int) -> np.ndarray:
    """Return the Newton step of UDP: differences of one cell, and no exception for the border.

    The blur reflects at the border, the blurred map is clipped to 0.001 .. 50 before its logarithm,
    and cells outside of it are as those at its border. Source: mmpose 0.29 post_dark_udp, after
    UDP's own code.

    Args:
        heatmaps: (B, K, h, w).
        cells: (B, K, 2) of the peaks.
        kernel: size of the blur in cells, odd.

    Returns:
        (B, K, 2) float32.
    """
    reach = kernel // 2
    padded = np.pad(heatmaps, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    blurred = blur(padded, kernel)[:, :, reach:-reach, reach:-reach]
    log_map = np.pad(
        np.log(np.clip(blurred, 0.001, 50)), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"
    )
    flat = _flatten(log_map)
    width = log_map.shape[3]
    index = (cells[:, :, 1] + 1) * width + cells[:, :, 0] + 1

    def value(x: int, y: int) -> np.ndarray:
        at = index + y * width + x
        return np.take_along_axis(flat, at[:, :, None], axis=2)[:, :, 0].astype(np.float64)

    center = value(0, 0)
    right = value(1, 0)
    left = value(-1, 0)
    below = value(0, 1)
    above = value(0, -1)
    dx = 0.5 * (right - left)
    dy = 0.5 * (below - above)
    tiny = np.finfo(np.float32).eps
    dxx = right - 2 * center + left + tiny
    dyy = below - 2 * center + above + tiny
    dxy = 0.5 * (value(1, 1) - right - below + 2 * center - left - above + value(-1, -1))
    determinant = dxx * dyy - dxy * dxy
    step = -np.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        newton = step / determinant[..., None]
    return np.where(np.isfinite(newton), newton, 0).astype(np.float32)


def blur(heatmaps: np.ndarray, kernel: int) -> np.ndarray:
    """Blur heatmaps (B, K, h, w) by OpenCV's Gaussian of `kernel` cells, with zeros around them.

    All maps are stacked into one image with zeros between them: one call instead of B times K.
    """
    batch, joints, height, width = heatmaps.shape
    gap = kernel // 2
    tall = np.zeros((batch * joints, height + gap, width), np.float32)
    tall[:, :height] = heatmaps.reshape(-1, height, width)
    blurred = cv2.GaussianBlur(
        tall.reshape(-1, width), (kernel, kernel), 0, borderType=cv2.BORDER_CONSTANT
    )
    return blurred.reshape(tall.shape)[:, :height].reshape(heatmaps.shape)


def _flatten(heatmaps: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(heatmaps).reshape(*heatmaps.shape[:2], -1)
