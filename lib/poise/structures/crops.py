"""Person boxes and affine crops.

A crop is given by a center (x, y) in image pixels and a scale (width, height) in units of 200
pixels. The unit is that of MPII, whose annotations have a person's height relative to 200 px; the
HRNet family uses it for COCO too. A box becomes a scale in two steps: it grows by a margin (1.25 in
the HRNet family) so that keypoints at the border stay inside, and its shorter side is lengthened to
the network's aspect ratio. Only the width of the scale decides the zoom: a crop never stretches the
image.

`udp` selects the crops of UDP (Huang et al., The Devil is in the Details, CVPR 2020, arXiv
1911.07524, section 3): sizes are distances between the centers of the outer pixels, W - 1 and not
W, so that the crop of a flipped image is the flipped crop.

Sources: SimpleBaseline lib/utils/transforms.py and lib/dataset/coco.py; MPII: lib/dataset/mpii.py.
Recorded outputs of the originals: tests/golden/pipeline.json, tests/golden/mmpose_functions.json,
tests/golden/mspn_functions.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from poise.errors import DataError
from poise.structures.warp import warp

PIXEL_STD = 200.0
Pair = Sequence[float] | np.ndarray  # two numbers: x and y, or width and height
MAX_COORD = 1e7  # pixels; float32, which tables hold, still resolves single pixels there
BOX_MARGIN = (1.25, 1.25)  # in x and y
# MPII's centers are on the torso; they are lowered by 15 units of scale to the middle of the body
MPII_CENTER_OFFSET_Y = 15.0


def fix_aspect_ratio(
    width: np.ndarray, height: np.ndarray, aspect: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lengthen the shorter side so that width / height == aspect; arrays of one shape, pixels."""
    return np.maximum(width, height * aspect), np.maximum(height, width / aspect)


def box_to_center_scale(
    boxes: np.ndarray, aspect: float, margin: Pair = BOX_MARGIN
) -> tuple[np.ndarray, np.ndarray]:
    """Return center and scale of person boxes.

    Args:
        boxes: (N, 4) x, y, width, height in pixels.
        aspect: width / height of the network input.
        margin: factors in x and y.

    Returns:
        center (N, 2) in pixels and scale (N, 2) in units of 200 pixels, both float64.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return boxes[:, :2] + boxes[:, 2:] * 0.5, box_wh_to_scale(boxes[:, 2:], aspect, margin)


def box_wh_to_scale(box_wh: np.ndarray, aspect: float, margin: Pair) -> np.ndarray:
    """Return the scale (..., 2) in units of 200 px of boxes of size `box_wh` (..., 2) in pixels.

    The margin is applied before the aspect ratio, as in MSPN. The HRNet family does the reverse,
    which is the same with one factor for both axes.
    """
    grown = np.asarray(box_wh, dtype=np.float64) * np.asarray(margin, dtype=np.float64)
    return np.stack(fix_aspect_ratio(grown[..., 0], grown[..., 1], aspect), axis=-1) / PIXEL_STD


def mpii_center_box_wh(
    center: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the square boxes of MPII annotations.

    Args:
        center: (N, 2), 1-based; -1 means 'not given'. Such a center is only made 0-based, and its
            box gets no margin, as in HRNet.
        scale: (N,) heights in units of 200 pixels.

    Returns:
        0-based center (N, 2), width and height (N, 2) in pixels, and whether the center was given
        (N,).
    """
    center = np.array(center, dtype=np.float64)
    scale = np.asarray(scale, dtype=np.float64)
    given = center[:, 0] != -1
    center[given, 1] += MPII_CENTER_OFFSET_Y * scale[given]
    return center - 1.0, np.stack([scale, scale], axis=1) * PIXEL_STD, given


def crop_matrix(
    center: Pair,
    scale: Pair,
    rotation: float,
    size: Sequence[int],
    *,
    mirror_width: int | None = None,
    udp: bool = False,
) -> np.ndarray:
    """Return the matrix (2, 3) float64 from image pixels to crop pixels.

    The matrix is solved from three points in float32, as in the original: rounding them moves far
    corners of the image by a thousandth of a pixel, and changes some gray levels.

    Args:
        center: (2,) pixels.
        scale: (2,) in units of 200 pixels.
        rotation: degrees; the frame of the crop turns clockwise on the screen.
        size: crop (width, height).
        mirror_width: width of an image that is flipped before it is cropped; `center` and
            `rotation` are those in the flipped image, as in the HRNet family. The matrix includes
            the flip.
        udp: see the module.
    """
    if udp:
        matrix = _udp_matrix(center, scale, rotation, size)
    else:
        matrix = _three_point_matrix(center, scale, rotation, size)
    if mirror_width is not None:
        matrix[:, 2] += matrix[:, 0] * (mirror_width - 1)
        matrix[:, 0] *= -1
    return matrix


def _three_point_matrix(
    center: Pair, scale: Pair, rotation: float, size: Sequence[int]
) -> np.ndarray:
    width, height = size
    arm = float(np.float32(scale[0]) * np.float32(PIXEL_STD)) * 0.5
    angle = np.deg2rad(rotation)
    x = np.float32(center[0])
    y = np.float32(center[1])
    end_x = np.float32(float(x) + arm * np.sin(angle))
    end_y = np.float32(float(y) - arm * np.cos(angle))
    inside = _right_angle(x, y, end_x, end_y)
    return cv2.getAffineTransform(inside, _crop_corner(width, height))


@lru_cache(maxsize=16)
def _crop_corner(width: int, height: int) -> np.ndarray:
    x = np.float32(width * 0.5)
    y = np.float32(height * 0.5)
    return _right_angle(x, y, x, np.float32(float(y) - width * 0.5))


def _right_angle(x: np.float32, y: np.float32, end_x: np.float32, end_y: np.float32) -> np.ndarray:
    """Return (3, 2) float32: two points, and a third with a right angle at the second."""
    return np.array(
        [[x, y], [end_x, end_y], [end_x - (y - end_y), end_y + (x - end_x)]], np.float32
    )


def _udp_matrix(center: Pair, scale: Pair, rotation: float, size: Sequence[int]) -> np.ndarray:
    """Return the matrix that maps the center to the middle of the outer pixels' centers.

    As in UDP, x and y scale differ slightly.
    """
    span = np.array([size[0] - 1.0, size[1] - 1.0])
    extent = float(scale[0]) * PIXEL_STD * np.array([1.0, size[1] / size[0]])
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = (span / extent)[:, None] * turn
    return np.concatenate(
        [linear, (span * 0.5 - linear @ np.asarray(center, dtype=np.float64))[:, None]], axis=1
    )


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a (2, 3) matrix to points (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def crop_to_image(
    coords: np.ndarray,
    center: np.ndarray,
    scale: np.ndarray,
    image_size: Sequence[int],
    udp: bool = False,
) -> np.ndarray:
    """Map crop pixels back to image pixels: the inverse of crop_matrix without rotation.

    Args:
        coords: (B, K, 2) crop pixels.
        center, scale: (B, 2).
        image_size: (width, height) of the crop.
        udp: see the module.

    Returns:
        (B, K, 2) float64 image pixels.
    """
    scale = np.asarray(scale, dtype=np.float64)[:, None, :]
    center = np.asarray(center, dtype=np.float64)[:, None, :]
    size = np.array([image_size[0], image_size[1]], dtype=np.float64)
    if udp:
        span = np.maximum(size - 1, 1)
        return (coords - span * 0.5) * (
            scale[:, :, :1] * PIXEL_STD * (size / size[0]) / span
        ) + center
    return (coords - size * 0.5) * (scale[:, :, :1] * PIXEL_STD / size[0]) + center


def crop_person(
    image: np.ndarray,
    center: np.ndarray,
    scale: np.ndarray,
    rotation: float,
    mirrored: bool,
    size: tuple[int, int],
    udp: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Crop a person from an image (H, W, 3).

    Raises DataError if OpenCV 4 cannot crop the image, because a side has 32,767 pixels or more.

    Returns:
        The crop of `size` (width, height), and its matrix (2, 3), see person_crop_matrix.
    """
    matrix = person_crop_matrix(image.shape[1], center, scale, rotation, mirrored, size, udp)
    try:
        return warp(image, matrix, (size[0], size[1])), matrix
    except cv2.error:
        raise DataError(
            f"OpenCV {cv2.__version__} cannot cut persons out of an image of {image.shape[1]} x"
            f" {image.shape[0]} pixels; make it smaller, or install OpenCV 5"
        ) from None


def person_crop_matrix(
    width: int,
    center: np.ndarray,
    scale: np.ndarray,
    rotation: float,
    mirrored: bool,
    size: tuple[int, int],
    udp: bool = False,
) -> np.ndarray:
    """Return the matrix (2, 3) from an image of this width to the crop of `size` (width, height).

    `center` is that in the original image. If `mirrored`, the matrix includes the flip, so that the
    image is not copied.
    """
    if not mirrored:
        return crop_matrix(center, scale, rotation, size, udp=udp)
    center = np.array([width - 1 - center[0], center[1]])
    return crop_matrix(center, scale, rotation, size, mirror_width=width, udp=udp)


def source_roi(
    matrix: np.ndarray, size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return a box of the image that contains all pixels that cv2.warpAffine reads for a crop.

    At least one pixel, also if the crop is outside of the image.

    Args:
        matrix: (2, 3) from image pixels to crop pixels.
        size: (width, height) of the crop.
        image_size: (width, height) of the image.

    Returns:
        left, top, right and bottom, the last two exclusive.
    """
    spans = []
    inverse = cv2.invertAffineTransform(matrix).tolist()
    for (along_x, along_y, start), limit in zip(inverse, image_size):
        over = along_x * (size[0] - 1)
        down = along_y * (size[1] - 1)
        if not math.isfinite(start + over + down):  # a matrix of a box without size
            return 0, 0, *image_size
        # the neighbor that bilinear interpolation reads, and one more for the rounding
        low = math.floor(start + min(over, 0) + min(down, 0)) - 2
        high = math.ceil(start + max(over, 0) + max(down, 0)) + 3
        spans.append((min(max(low, 0), limit - 1), min(max(high, 1), limit)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom
