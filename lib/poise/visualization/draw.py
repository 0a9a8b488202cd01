"""Pictures: skeletons on images and crops, heatmaps, mosaics. Images are (H, W, 3) uint8 in BGR
order, as OpenCV writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from poise.errors import DataError
from poise.structures.skeleton import Skeleton

# left, right, middle: told apart also by people who do not tell red from green
_SIDE_COLOURS = {-1: (0, 165, 255), 1: (255, 120, 30), 0: (80, 220, 80)}
_BOX_COLOUR = (230, 230, 230)
Color = tuple[int, int, int]  # BGR
_GOLDEN_RATIO = 0.618034  # multiples of it, modulo 1, stay far apart from each other
_RING_SIZE = 0.4  # dots of smaller persons have no white ring, which would cover the limbs
GAP = 2  # pixels between the images of a grid
JPEG_SIDE = 65_000  # a JPEG has no longer one


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
    """Draw a skeleton into `image`: keypoints (J, 2) pixels; shown (J,) bool, all by default;
    scale: of lines and dots.

    The person's left is orange, the right blue, the middle green; limb_color is used for all limbs
    instead. person_side: longer side of the person's box in pixels, for lines and dots that fit
    small persons; 0: the person fills the image.
    """
    shown = np.ones(len(keypoints), bool) if shown is None else np.asarray(shown, bool)
    # far outside points would overflow OpenCV's fixed-point coordinates
    limit = 4 * max(image.shape[:2])
    usable = (
        shown
        & np.isfinite(keypoints).all(axis=1)
        & (np.abs(np.nan_to_num(keypoints)) < limit).all(axis=1)
    )
    size = _line_size(image, person_side) * scale
    thick, radius = max(1, round(1.6 * size)), max(1, round(2.2 * size))

    def at(joint: int) -> tuple[int, int]:
        return int(round(float(keypoints[joint, 0]) * 8)), int(
            round(float(keypoints[joint, 1]) * 8)
        )

    for a, b in skeleton.limbs:
        if usable[a] and usable[b]:
            side = (
                skeleton.side(a)
                if skeleton.side(a) == skeleton.side(b)
                else skeleton.side(a) + skeleton.side(b)
            )
            cv2.line(image, at(a), at(b), limb_color or _SIDE_COLOURS[side], thick, cv2.LINE_AA, 3)
    for joint in np.flatnonzero(usable).tolist():
        if size >= _RING_SIZE:
            cv2.circle(image, at(joint), (radius + 1) * 8, (255, 255, 255), -1, cv2.LINE_AA, 3)
        cv2.circle(
            image, at(joint), radius * 8, _SIDE_COLOURS[skeleton.side(joint)], -1, cv2.LINE_AA, 3
        )


def _line_size(image: np.ndarray, person_side: float) -> float:
    """Return the size of lines relative to those of an image of 400 pixels that a person fills."""
    side = max(image.shape[:2])
    return (min(side, 2 * person_side) if person_side > 0 else side) / 400


def person_color(number: int) -> Color:
    """Return a saturated BGR color; consecutive numbers get hues that are far apart."""
    hue = round(180 * (number * _GOLDEN_RATIO % 1)) % 180
    b, g, r = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[
        0, 0
    ].tolist()
    return b, g, r


def draw_box(
    image: np.ndarray, box: np.ndarray, label: str = "", color: Color = _BOX_COLOUR
) -> None:
    """Draw a person's box into `image`: (4,) left, top, right, bottom in pixels, clipped to the
    image.

    The label stands above the box, or inside where there is no room.
    """
    height, width = image.shape[:2]
    last = np.array([width - 1, height - 1] * 2)
    left, top, right, bottom = (
        int(value) for value in np.clip(np.nan_to_num(box), 0, last).round()
    )
    size = _line_size(image, max(right - left, bottom - top))
    cv2.rectangle(image, (left, top), (right, bottom), color, max(1, round(size)), cv2.LINE_AA)
    if not label:
        return
    # as large as the image allows, but no wider than the box where that is legible
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
    """The image darkened under one heatmap (h, w), whose values are expected from 0 to 1."""
    height, width = image.shape[:2]
    values = cv2.resize(np.clip(heatmap, 0, 1).astype(np.float32), (width, height))
    colours = cv2.applyColorMap((values * 255).astype(np.uint8), cv2.COLORMAP_JET)
    return (colours * 0.7 + image * 0.3).astype(np.uint8)


def make_grid(images: Sequence[np.ndarray], columns: int, gap: int = GAP) -> np.ndarray:
    """Pictures of one size in rows of `columns`, with white gaps."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def make_crop_grid(
    crops: np.ndarray, joints: np.ndarray, shown: np.ndarray, skeleton: Skeleton, columns: int = 8
) -> np.ndarray:
    """Crops (B, H, W, 3) with their skeletons: joints (B, J, 2) crop pixels, shown (B, J). Small
    crops are enlarged.
    """
    drawn, zoom = [], max(1, round(256 / crops.shape[1]))
    for crop, points, mask in zip(crops, joints, shown):
        drawn.append(
            cv2.resize(crop, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
            if zoom > 1
            else np.ascontiguousarray(crop)
        )
        draw_person(drawn[-1], (points + 0.5) * zoom - 0.5, skeleton, shown=mask > 0)
    return make_grid(drawn, min(columns, len(drawn)))


def make_heatmap_grid(crops: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """A row per crop (B, H, W, 3): the crop, then it under each of its heatmaps (B, J, h, w), at
    heatmap size.
    """
    height, width = heatmaps.shape[2:]
    pictures = []
    for crop, maps in zip(crops, heatmaps):
        small = cv2.resize(crop, (width, height))
        pictures += [small, *(overlay_heatmap(small, one) for one in maps)]
    return make_grid(pictures, heatmaps.shape[1] + 1, gap=1)


def encode_image(image: np.ndarray, ending: str, quality: int = 95) -> bytes:
    """A picture file's content, of the kind that `ending` says. quality: of a JPEG. Raises
    DataError for a picture that such a file cannot hold.
    """
    try:
        done, data = cv2.imencode(
            ending, image, [cv2.IMWRITE_JPEG_QUALITY, quality] if ending == ".jpg" else []
        )
    except cv2.error:
        done = False
    if not done:
        raise DataError(
            f"a picture of {image.shape[1]} x {image.shape[0]} cannot be written as {ending[1:]}"
        )
    return data.tobytes()


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write a picture; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encode_image(image, Path(path).suffix))
