"""Where a heatmap is highest, to the cell and below it. Legend: B batch, K keypoints, h w heatmap
cells.
"""

from __future__ import annotations

import cv2
import numpy as np


def find_peaks(heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells (B, K, 2) int64 as (x, y), the first of equal ones, and values (B, K) of the maxima
    of heatmaps (B, K, h, w).
    """
    flat = _flat(heatmaps)
    index = flat.argmax(axis=2)
    row, column = np.divmod(index, heatmaps.shape[3])
    return (
        np.stack([column, row], axis=2),
        np.take_along_axis(flat, index[:, :, None], axis=2)[:, :, 0],
    )


def quarter_offset(heatmaps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(B, K, 2) float32: a quarter cell towards the higher neighbour on each axis, for maxima that
    are at least two cells from the left and upper border and one from the others (0 elsewhere).

    Source: lib/core/inference.py of SimpleBaseline and HRNet; mmpose 0.29 keypoints_from_heatmaps,
    post_process 'default'.
    """
    height, width = heatmaps.shape[2:]
    flat, (column, row) = _flat(heatmaps), (cells[:, :, 0], cells[:, :, 1])
    inner = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)
    at = np.where(inner, row * width + column, width + 1 if flat.shape[2] > 2 * width + 1 else 0)

    def neighbour(offset: int) -> np.ndarray:
        return np.take_along_axis(
            flat, np.clip(at + offset, 0, flat.shape[2] - 1)[:, :, None], axis=2
        )[:, :, 0]

    step = np.stack(
        [np.sign(neighbour(1) - neighbour(-1)), np.sign(neighbour(width) - neighbour(-width))],
        axis=2,
    )
    return (0.25 * step * inner[:, :, None]).astype(np.float32)


def dark_kernel(sigma: float) -> int:
    """The blur kernel whose sigma, by OpenCV's rule 0.3 (k / 2 - 1.5) + 0.8, is nearest to that
    of the targets: DARK blurs as wide.
    """
    return max(2 * round((sigma - 0.8) / 0.3 + 1) + 1, 3)


def dark_offset(heatmaps: np.ndarray, cells: np.ndarray, kernel: int) -> np.ndarray:
    """(B, K, 2) float32: one Newton step to the top of the Gaussian that the blurred map's
    logarithm describes.

    cells: (B, K, 2) the maxima. kernel: size of the blur in cells, odd; 11 goes with sigma 2, 17
    with sigma 3: see dark_kernel. Maxima within two cells of the border stay, and so does a map
    that is no hill there. Source: Zhang et al., Distribution-Aware Coordinate Representation
    (DARK), CVPR 2020, arXiv 1910.06278, section 3.1, equations 3 to 9; differences as in mmpose
    0.29 (_taylor). Figures: tests/golden/mmpose_functions.json.
    """
    height, width = heatmaps.shape[2:]
    step = np.zeros((*heatmaps.shape[:2], 2), np.float32)
    if height < 5 or width < 5:
        return step
    blurred = blur(heatmaps, kernel)
    peak, blurred_peak = (
        heatmaps.max(axis=(2, 3), keepdims=True),
        blurred.max(axis=(2, 3), keepdims=True),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        log_map = np.log(np.maximum(blurred * (peak / blurred_peak), 1e-10))
    flat = _flat(log_map)
    column, row = cells[:, :, 0], cells[:, :, 1]
    inner = (column > 1) & (column < width - 2) & (row > 1) & (row < height - 2)
    at = np.where(inner, row * width + column, 2 * width + 2)

    def value(dx: int, dy: int) -> np.ndarray:
        return np.take_along_axis(flat, (at + dy * width + dx)[:, :, None], axis=2)[:, :, 0]

    dx, dy = 0.5 * (value(1, 0) - value(-1, 0)), 0.5 * (value(0, 1) - value(0, -1))
    center = 2 * value(0, 0)
    dxx, dyy = (
        0.25 * (value(2, 0) - center + value(-2, 0)),
        0.25 * (value(0, 2) - center + value(0, -2)),
    )
    dxy = 0.25 * (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1))
    determinant = dxx * dyy - dxy * dxy
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        newton = np.stack(
            [(dxy * dy - dyy * dx) / determinant, (dxy * dx - dxx * dy) / determinant], axis=2
        )
    usable = inner & (determinant != 0) & np.isfinite(newton).all(axis=2)
    step[usable] = newton[usable]
    return step


def udp_offset(heatmaps: np.ndarray, cells: np.ndarray, kernel: int) -> np.ndarray:
    """(B, K, 2) float32: the Newton step as mmpose takes it for UDP, with differences of one cell
    and no rule for the border.

    cells: (B, K, 2) the maxima. The blur reflects at the border, the blurred map is cut to 0.001 ..
    50 before its logarithm, and what lies outside is as its border cell. Source: mmpose 0.29
    post_dark_udp, after UDP's own code.
    """
    reach = kernel // 2
    padded = np.pad(heatmaps, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    blurred = blur(padded, kernel)[:, :, reach:-reach, reach:-reach]
    log_map = np.pad(
        np.log(np.clip(blurred, 0.001, 50)), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"
    )
    flat, width = _flat(log_map), log_map.shape[3]
    at = (cells[:, :, 1] + 1) * width + cells[:, :, 0] + 1

    def value(dx: int, dy: int) -> np.ndarray:
        return np.take_along_axis(flat, (at + dy * width + dx)[:, :, None], axis=2)[:, :, 0].astype(
            np.float64
        )

    center, right, left, below, above = (
        value(0, 0),
        value(1, 0),
        value(-1, 0),
        value(0, 1),
        value(0, -1),
    )
    gradient = 0.5 * np.stack([right - left, below - above], axis=2)
    dxy = 0.5 * (value(1, 1) - right - below + 2 * center - left - above + value(-1, -1))
    tiny = np.finfo(np.float32).eps
    hessian = np.stack(
        [right - 2 * center + left + tiny, dxy, dxy, below - 2 * center + above + tiny], axis=2
    )
    a, b, _, d = np.moveaxis(hessian, 2, 0)
    determinant = a * d - b * b
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        newton = (
            -np.stack(
                [
                    d * gradient[..., 0] - b * gradient[..., 1],
                    a * gradient[..., 1] - b * gradient[..., 0],
                ],
                axis=2,
            )
            / determinant[..., None]
        )
    return np.where(np.isfinite(newton), newton, 0).astype(np.float32)


def blur(heatmaps: np.ndarray, kernel: int) -> np.ndarray:
    """Heatmaps (B, K, h, w) blurred by OpenCV's Gaussian of `kernel` cells, with zeros around them.

    All maps lie below each other in one picture with zeros between: one call instead of B times K.
    """
    batch, joints, height, width = heatmaps.shape
    gap = kernel // 2
    tall = np.zeros((batch * joints, height + gap, width), np.float32)
    tall[:, :height] = heatmaps.reshape(-1, height, width)
    blurred = cv2.GaussianBlur(
        tall.reshape(-1, width), (kernel, kernel), 0, borderType=cv2.BORDER_CONSTANT
    )
    return blurred.reshape(tall.shape)[:, :height].reshape(heatmaps.shape)


def _flat(heatmaps: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(heatmaps).reshape(*heatmaps.shape[:2], -1)
