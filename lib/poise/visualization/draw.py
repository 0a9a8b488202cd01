"""Draw skeletons, boxes, heatmaps and image grids.

Images are (H, W, 3) uint8 BGR, as in OpenCV. Letters: B batch, K keypoints, h w heatmap cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from poise.errors import DataError
from poise.structures.skeleton import Skeleton

# left, right, middle; distinguishable with red-green color blindness
_SIDE_COLORS = {-1: (0, 165, 255), 1: (255, 120, 30), 0: (80, 220, 80)}
_BOX_COLOR = (230, 230, 230)
Color = tuple[int, int, int]  # BGR
_GOLDEN_RATIO = 0.618034  # multiples of it, modulo 1, stay far apart from each other
_MIN_RING_SIZE = 0.4  # of the lines; on smaller persons a white ring would cover the limbs
GAP = 2  # pixels between the images of a grid
JPEG_SIDE = 65_000  # maximum side of a JPEG image


def draw_person(
    image: np.ndarray,
    keypoints: np.ndarray,
    skeleton: Skeleton,
    *,
    shown: np.ndarray | None = None,
    scale: float = 1.0,
    person_side: float = 0.0,
    limb_color: Color | None = None,
) -> None:
    """Draw a skeleton into `image`: left is orange, right blue, middle green.

    Args:
        image: modified in place.
        keypoints: (K, 2) pixels.
        skeleton: limbs and sides of the keypoints.
        shown: mask (K,) of keypoints to draw; None: all.
        scale: of lines and dots.
        person_side: longer side of the person's box in pixels, which limits the size of lines and
            dots; 0: the person fills the image.
        limb_color: color of all limbs.
    """
    shown = np.ones(len(keypoints), bool) if shown is None else np.asarray(shown, bool)
    # distant points would overflow OpenCV's fixed-point coordinates
    limit = 4 * max(image.shape[:2])
    usable = (
        shown
        & np.isfinite(keypoints).all(axis=1)
        & (np.abs(np.nan_to_num(keypoints)) < limit).all(axis=1)
    )
    size = _line_size(image, person_side) * scale
    thick = max(1, round(1.6 * size))
    radius = max(1, round(2.2 * size))

    def at(k: int) -> tuple[int, int]:
        x, y = keypoints[k]
        return int(round(float(x) * 8)), int(round(float(y) * 8))

    for a, b in skeleton.limbs:
        if usable[a] and usable[b]:
            side = skeleton.side(a)
            if side != skeleton.side(b):
                side += skeleton.side(b)
            cv2.line(image, at(a), at(b), limb_color or _SIDE_COLORS[side], thick, cv2.LINE_AA, 3)
    for k in np.flatnonzero(usable).tolist():
        if size >= _MIN_RING_SIZE:
            cv2.circle(image, at(k), (radius + 1) * 8, (255, 255, 255), -1, cv2.LINE_AA, 3)
        cv2.circle(image, at(k), radius * 8, _SIDE_COLORS[skeleton.side(k)], -1, cv2.LINE_AA, 3)


def _line_size(image: np.ndarray, person_side: float) -> float:
    """Return the size of lines relative to an image of 400 pixels that a person fills."""
    side = max(image.shape[:2])
    if person_side > 0:
        side = min(side, 2 * person_side)
    return side / 400


def person_color(number: int) -> Color:
    """Return a saturated BGR color; consecutive numbers get hues that are far apart."""
    hue = round(180 * (number * _GOLDEN_RATIO % 1)) % 180
    b, g, r = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[
        0, 0
    ].tolist()
    return b, g, r


def draw_box(
    image: np.ndarray, box: np.ndarray, label: str = "", color: Color | None = None
) -> None:
    """Draw a box into `image`, with a label above it, or inside at the top edge of the image.

    Args:
        image: modified in place.
        box: (4,) left, top, right, bottom in pixels; clipped to the image.
        label: text.
        color: BGR; None: gray.
    """
    color = color or _BOX_COLOR
    height, width = image.shape[:2]
    last = np.array([width - 1, height - 1] * 2)
    left, top, right, bottom = (
        int(value) for value in np.clip(np.nan_to_num(box), 0, last).round()
    )
    size = _line_size(image, max(right - left, bottom - top))
    cv2.rectangle(image, (left, top), (right, bottom), color, max(1, round(size)), cv2.LINE_AA)
    if not label:
        return
    # scaled with the image, but not wider than the box if that is legible
    scale = 0.3 * max(height, width) / 400
    (text_width, _), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    scale = max(0.35, scale * min(1.0, (right - left) / max(text_width, 1)))
    thick = max(1, round(2 * scale))
    (text_width, text_height), below = cv2.getTextSize(
        label, cv2.FONT_HERSHEY_SIMPLEX, scale, thick
    )
    tall = text_height + below + 2
    left = max(0, min(left, width - text_width - 3))
    top = top - tall if top >= tall else top
    cv2.rectangle(image, (left, top), (left + text_width + 2, top + tall), color, -1)
    at = (left + 1, top + text_height + 1)
    cv2.putText(image, label, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thick, cv2.LINE_AA)


def overlay_heatmap(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Blend an image with a heatmap (h, w) of values from 0 to 1."""
    height, width = image.shape[:2]
    values = cv2.resize(np.clip(heatmap, 0, 1).astype(np.float32), (width, height))
    colors = cv2.applyColorMap((values * 255).astype(np.uint8), cv2.COLORMAP_JET)
    return (colors * 0.7 + image * 0.3).astype(np.uint8)


def make_grid(images: Sequence[np.ndarray], columns: int, gap: int = GAP) -> np.ndarray:
    """Return a grid of images of one size, with white gaps."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def make_crop_grid(
    crops: np.ndarray,
    keypoints: np.ndarray,
    shown: np.ndarray,
    skeleton: Skeleton,
    columns: int = 8,
) -> np.ndarray:
    """Return a grid of crops with skeletons. Small crops are enlarged.

    Args:
        crops: (B, H, W, 3).
        keypoints: (B, K, 2) crop pixels.
        shown: (B, K), above 0 for keypoints to draw.
        skeleton: limbs and sides of the keypoints.
        columns: maximum number of crops per row.
    """
    drawn = []
    zoom = max(1, round(256 / crops.shape[1]))
    for crop, points, mask in zip(crops, keypoints, shown):
        image = np.ascontiguousarray(crop)
        if zoom > 1:
            image = cv2.resize(crop, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        draw_person(image, (points + 0.5) * zoom - 0.5, skeleton, shown=mask > 0)
        drawn.append(image)
    return make_grid(drawn, min(columns, len(drawn)))


def make_heatmap_grid(crops: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """Return a row per crop (B, H, W, 3): the crop, and the crop under each of its heatmaps.

    heatmaps: (B, K, h, w); their size is that of the images.
    """
    height, width = heatmaps.shape[2:]
    images = []
    for crop, maps in zip(crops, heatmaps):
        small = cv2.resize(crop, (width, height))
        images += [small, *(overlay_heatmap(small, one) for one in maps)]
    return make_grid(images, heatmaps.shape[1] + 1, gap=1)


def encode_image(image: np.ndarray, ending: str, quality: int = 95) -> bytes:
    """Encode an image in the format of a file suffix.

    Args:
        image: BGR.
        ending: suffix such as '.jpg'.
        quality: of a JPEG.

    Raises DataError if the format does not support the image.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if ending == ".jpg" else []
    try:
        succeeded, data = cv2.imencode(ending, image, options)
    except cv2.error:
        succeeded = False
    if not succeeded:
        raise DataError(
            f"an image of {image.shape[1]} x {image.shape[0]} pixels cannot be written as"
            f" {ending[1:]}"
        )
    return data.tobytes()


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image file and create its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encode_image(image, Path(path).suffix))
