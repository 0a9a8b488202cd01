"""Person boxes and crops: the one place that knows about 200, 1.25 and the aspect fit.

A person is cut out by a centre (x, y) in image pixels and a scale (width, height) in units of 200 pixels. The unit comes from
MPII, whose annotation gives a person's height relative to 200 px; the HRNet family kept it for COCO. A box becomes a scale in
two steps: the shorter side is lengthened to the network's aspect ratio, then both grow by 1.25 so that joints at the border
stay inside. Only the scale's width decides the zoom: a crop never stretches the picture.

Sources: SimpleBaseline lib/utils/transforms.py and lib/dataset/coco.py; MPII: lib/dataset/mpii.py. Figures of the originals:
tests/golden/pipeline.json.
"""
from __future__ import annotations

import cv2
import numpy as np

PIXEL_STD = 200.0
BOX_MARGIN = 1.25
MPII_CENTER_DOWN = 15.0     # MPII centres sit on the torso; the readers lower them by 15 units of scale to centre the whole body


def fit_aspect(width: np.ndarray, height: np.ndarray, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengthen the shorter side so that width / height == aspect; arrays of one shape, pixels."""
    return np.maximum(width, height * aspect), np.maximum(height, width / aspect)


def box_to_center_scale(boxes: np.ndarray, aspect: float, margin: float = BOX_MARGIN) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of person boxes.

    boxes: (N, 4) x, y, width, height in pixels. aspect: network input width / height.
    Returns centre (N, 2) in pixels and scale (N, 2) in units of 200 pixels, both float64.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    center = boxes[:, :2] + boxes[:, 2:] * 0.5
    width, height = fit_aspect(boxes[:, 2], boxes[:, 3], aspect)
    return center, np.stack([width, height], axis=1) * (margin / PIXEL_STD)


def mpii_center_scale(center: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of MPII annotations: 1-based centres (N, 2) and heights (N,) in units of 200 pixels.

    Returns 0-based centre (N, 2) and square scale (N, 2). A centre of -1 means 'not given' and only loses the base.
    """
    center, scale = np.array(center, dtype=np.float64), np.array(scale, dtype=np.float64)
    given = center[:, 0] != -1
    center[given, 1] += MPII_CENTER_DOWN * scale[given]
    scale[given] *= BOX_MARGIN
    return center - 1.0, np.stack([scale, scale], axis=1)


def crop_matrix(center, scale, rotation: float, size, *, mirror_width: int | None = None) -> np.ndarray:
    """Matrix (2, 3) float64 from image pixels to crop pixels.

    center, scale: (2,) as above. rotation: degrees; the crop's frame turns clockwise on the screen. size: crop (width, height).
    mirror_width: when given, the image is this wide and is mirrored before it is cut; `center` and `rotation` then speak of
    the mirrored image, as in the HRNet family, but the pixels are moved only once.

    The matrix is solved from three points in float32, as the original does: rounding them moves far corners of the image by
    a thousandth of a pixel, and with it some grey levels.
    """
    width, height = size
    arm = float(np.float32(scale[0]) * np.float32(PIXEL_STD)) * 0.5
    angle = np.deg2rad(rotation)
    inside = np.zeros((3, 2), np.float32)
    outside = np.zeros((3, 2), np.float32)
    inside[0] = center
    inside[1] = inside[0] + (arm * np.sin(angle), -arm * np.cos(angle))
    outside[0] = (width * 0.5, height * 0.5)
    outside[1] = outside[0] + (0, -width * 0.5)
    for points in (inside, outside):
        across = points[0] - points[1]
        points[2] = points[1] + (-across[1], across[0])     # the corner that makes a right angle
    matrix = cv2.getAffineTransform(inside, outside)
    if mirror_width is not None:
        matrix[:, 2] += matrix[:, 0] * (mirror_width - 1)
        matrix[:, 0] *= -1
    return matrix


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a (2, 3) matrix to points (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def heatmap_to_image(coords: np.ndarray, center: np.ndarray, scale: np.ndarray, heatmap_size) -> np.ndarray:
    """Heatmap cells back to image pixels, for crops without rotation.

    coords: (B, J, 2) in cells. center, scale: (B, 2). heatmap_size: (w, h). Returns (B, J, 2) float64.
    The HRNet family inverts the crop at heatmap resolution, so cell 0 is the crop's left border; kept, for it shaped the
    published numbers (UDP, Huang et al. 2020, discusses the bias).
    """
    width, height = heatmap_size
    cell = np.asarray(scale, dtype=np.float64)[:, :1] * PIXEL_STD / width
    half = np.array([width * 0.5, height * 0.5])
    return (coords - half) * cell[:, None, :] + np.asarray(center, dtype=np.float64)[:, None, :]

