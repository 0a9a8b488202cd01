"""Person boxes and crops: the one place that knows about 200, 1.25 and the aspect fit.

A person is cut out by a centre (x, y) in image pixels and a scale (width, height) in units of 200
pixels. The unit comes from MPII, whose annotation gives a person's height relative to 200 px; the
HRNet family kept it for COCO. A box becomes a scale in two steps: it grows by a margin (1.25 in the
HRNet family) so that joints at the border stay inside, and its shorter side is lengthened to the
network's aspect ratio. Only the scale's width decides the zoom: a crop never stretches the picture.

'unbiased' crops are UDP's (Huang et al., The Devil is in the Details, CVPR 2020, arXiv 1911.07524,
section 3): sizes are distances between the outer pixels' centres, W - 1 and not W, so that a
mirrored crop is the crop mirrored.

Sources: SimpleBaseline lib/utils/transforms.py and lib/dataset/coco.py; MPII: lib/dataset/mpii.py.
Figures of the originals: tests/golden/pipeline.json, tests/golden/mmpose_functions.json,
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
# pixels: coordinates and sides of pictures stay below it, and float32, which tables hold, tells
# whole pixels apart there
MAX_COORD = 1e7
BOX_MARGIN = (1.25, 1.25)  # in x and y
# MPII centres sit on the torso; the readers lower them by 15 units of scale to centre the whole
# body
MPII_CENTER_OFFSET_Y = 15.0


def fix_aspect_ratio(
    width: np.ndarray, height: np.ndarray, aspect: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lengthen the shorter side so that width / height == aspect; arrays of one shape, pixels."""
    return np.maximum(width, height * aspect), np.maximum(height, width / aspect)


def box_to_center_scale(
    boxes: np.ndarray, aspect: float, margin: Pair = BOX_MARGIN
) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of person boxes.

    boxes: (N, 4) x, y, width, height in pixels. aspect: network input width / height. margin:
    factors in x and y. Returns centre (N, 2) in pixels and scale (N, 2) in units of 200 pixels,
    both float64.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return boxes[:, :2] + boxes[:, 2:] * 0.5, box_wh_to_scale(boxes[:, 2:], aspect, margin)


def box_wh_to_scale(extent: np.ndarray, aspect: float, margin: Pair) -> np.ndarray:
    """Scale (..., 2) in units of 200 pixels of boxes of width and height `extent` (..., 2) in
    pixels, after margin and aspect fit.

    The margin comes first, as in MSPN. The HRNet family fits first; with one factor for both axes
    that is the same.
    """
    grown = np.asarray(extent, dtype=np.float64) * np.asarray(margin, dtype=np.float64)
    return np.stack(fix_aspect_ratio(grown[..., 0], grown[..., 1], aspect), axis=-1) / PIXEL_STD


def mpii_center_box_wh(
    center: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of MPII annotations: 1-based centres (N, 2) and heights (N,) in units of 200 pixels.

    Returns 0-based centre (N, 2), the extent (N, 2) of the square boxes in pixels, and whether the
    centre was given (N,). A centre of -1 means 'not given': it only loses the base, and such a box
    has no margin, as in HRNet.
    """
    center, scale = np.array(center, dtype=np.float64), np.asarray(scale, dtype=np.float64)
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
    """Matrix (2, 3) float64 from image pixels to crop pixels.

    center, scale: (2,) as above. rotation: degrees; the crop's frame turns clockwise on the screen.
    size: crop (width, height). mirror_width: when given, the image is this wide and is mirrored
    before it is cut; `center` and `rotation` then speak of the mirrored image, as in the HRNet
    family, but the pixels are moved only once. udp: UDP's crop.

    The matrix is solved from three points in float32, as the original does: rounding them moves far
    corners of the image by a thousandth of a pixel, and with it some grey levels.
    """
    matrix = (
        _unbiased_matrix(center, scale, rotation, size)
        if udp
        else _three_point_matrix(center, scale, rotation, size)
    )
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
    x, y = np.float32(center[0]), np.float32(center[1])
    inside = _right_angle(
        x, y, np.float32(float(x) + arm * np.sin(angle)), np.float32(float(y) - arm * np.cos(angle))
    )
    return cv2.getAffineTransform(inside, _crop_corner(width, height))


@lru_cache(maxsize=16)
def _crop_corner(width: int, height: int) -> np.ndarray:
    x, y = np.float32(width * 0.5), np.float32(height * 0.5)
    return _right_angle(x, y, x, np.float32(float(y) - width * 0.5))


def _right_angle(x: np.float32, y: np.float32, end_x: np.float32, end_y: np.float32) -> np.ndarray:
    """(3, 2) float32: the two points and the corner that makes a right angle at the second."""
    return np.array(
        [[x, y], [end_x, end_y], [end_x - (y - end_y), end_y + (x - end_x)]], np.float32
    )


def _unbiased_matrix(center: Pair, scale: Pair, rotation: float, size: Sequence[int]) -> np.ndarray:
    """The centre goes to the middle of the outer pixels' centres. The two axes' zooms differ by
    a hair, as in UDP.
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
    """Crop pixels back to image pixels, for crops without rotation: the inverse of crop_matrix.

    coords: (B, J, 2) crop pixels. center, scale: (B, 2). image_size: of the crop (width, height).
    Returns (B, J, 2) float64.
    """
    scale, center = (
        np.asarray(scale, dtype=np.float64)[:, None, :],
        np.asarray(center, dtype=np.float64)[:, None, :],
    )
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
    """Cut a person out of an image (H, W, 3): the crop of `size` (width, height), and the matrix
    (2, 3) that made it: see person_crop_matrix.

    Raises DataError for an image of a side of 32,767 pixels or more with OpenCV 4, which cannot.
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
    """Matrix (2, 3) from an image of this width to the crop of `size` (width, height).

    `center` is of the image as it is; when `mirrored`, the mirror is part of the matrix, so no
    mirrored copy of the image is made. udp: see poise.structures.crops.
    """
    if mirrored:
        center = np.array([width - 1 - center[0], center[1]])
    return crop_matrix(
        center, scale, rotation, size, mirror_width=width if mirrored else None, udp=udp
    )


def source_roi(
    matrix: np.ndarray, size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (the last two not included) of what cv2.warpAffine looks at in an
    image of image_size, or more.

    At least one pixel, where the crop lies beside the image.
    """
    spans = []
    for (along_x, along_y, start), most in zip(
        cv2.invertAffineTransform(matrix).tolist(), image_size
    ):
        over, down = along_x * (size[0] - 1), along_y * (size[1] - 1)
        if not math.isfinite(start + over + down):  # a matrix of a box without size
            return 0, 0, *image_size
        # the neighbour that bilinear interpolation looks at, and one more for the rounding
        low = math.floor(start + min(over, 0) + min(down, 0)) - 2
        high = math.ceil(start + max(over, 0) + max(down, 0)) + 3
        spans.append((min(max(low, 0), most - 1), min(max(high, 1), most)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom
