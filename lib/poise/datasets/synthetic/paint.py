"""Paint rounded solids on an image and record which one covers each pixel.

A `Canvas` holds the image and, per pixel, the label of what is in front. Solids are shaded as if
round: a tube's normal turns from its axis to its rim, a head's is that of its ellipsoid. Pixel (x,
y) has its center at integers. Colors are BGR float32 in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SHIFT = 4  # fractional bits of OpenCV's polygon coordinates
PART_BITS = 5
NO_PERSON = 0
_TILE = 256
# an outline's corners: round a circle, along a tube, and round its end from left to right
_CIRCLE = np.stack((np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)), 1)
_STEPS = np.linspace(0, 1, 6)[:, None]
_CAP = np.stack(
    (np.cos(np.radians((60, 30, 0, -30, -60))), np.sin(np.radians((60, 30, 0, -30, -60))))
)[..., None]


def label(person: int, part: int) -> int:
    """Return the label of part `part` (0..31) of person `person` (from 0); 0 is no person."""
    return ((person + 1) << PART_BITS) | part


@dataclass(frozen=True)
class Light:
    """Where the light comes from (x right, y down, z to the viewer; unit length) and the share
    that is ambient.
    """

    direction: tuple[float, float, float]
    ambient: float


class Canvas:
    """image: (H, W, 3) float32 BGR; owner: (H, W) int16 labels."""

    def __init__(self, image: np.ndarray, light: Light):
        self.image, self.light = image, light
        self.owner = np.zeros(image.shape[:2], np.int16)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[1], self.image.shape[0]

    def window(self, low, high):
        """Clip a box to the image; return its (y, x) slices, or None when nothing of it is
        inside.
        """
        width, height = self.size
        x0 = max(int(np.floor(low[0])) - 1, 0)
        y0 = max(int(np.floor(low[1])) - 1, 0)
        x1 = min(int(np.ceil(high[0])) + 2, width)
        y1 = min(int(np.ceil(high[1])) + 2, height)
        return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None

    def blend(self, window, alpha, color, owner):
        """Lay `color`, (3,) or (h, w, 3), over a window by alpha (h, w) in 0..1; own its pixels
        from one half on.
        """
        below = self.image[window]
        below += alpha[..., None] * (color - below)
        if owner is not None:
            self.owner[window][alpha > 0.5] = owner

    def polygon(self, corners: np.ndarray, color, owner: int | None, opacity: float = 1.0):
        """Fill a polygon, corners (K, 2), with one color or a function of the window's (xs
        (w,), ys (h, 1)).
        """
        found = self._stencil(corners)
        if found is not None:
            window, alpha = found
            if callable(color):
                color = color(*_grid(window))
            self.blend(
                window,
                alpha * opacity if opacity != 1 else alpha,
                np.asarray(color, np.float32),
                owner,
            )

    def ellipse(self, center, axes: np.ndarray, color, owner: int | None, opacity: float = 1.0):
        """Fill an ellipse; axes (2, 2) holds its two half axes as columns."""
        self.polygon(center + _CIRCLE @ axes.T, color, owner, opacity)

    def _stencil(self, corners):
        window = self.window(corners.min(0), corners.max(0))
        if window is None:
            return None
        mask = np.zeros(
            (window[0].stop - window[0].start, window[1].stop - window[1].start), np.uint8
        )
        fixed = np.rint((corners - (window[1].start, window[0].start)) * (1 << SHIFT)).astype(
            np.int32
        )
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, SHIFT)
        return window, mask.astype(np.float32) * np.float32(1 / 255)

    def tube(self, start, end, widths, paint, owner: int, caps=(1.0, 1.0), outline=None):
        """Draw a tapered tube from `start` to `end`.

        widths: half widths in pixels at the start, the middle and the end (a parabola goes through
        them). paint: a color or a function of (s, u) -> (h, w, 3) color, s (h, w) running from 0
        to 1 along the tube and u from -1 to 1 across it. caps: length of the round ends, in half
        widths. outline: (K, 2) corners that replace the tube's own outline (the shading stays the
        tube's).
        """
        along = np.asarray(end, float) - start
        length = float(np.hypot(*along))
        along = along / length if length > 1e-3 else np.array((0.0, 1.0))
        length = max(length, 1e-3)
        across = np.array((-along[1], along[0]))
        first, middle, last = (max(float(w), 0.75) for w in widths)
        bend = np.array((first, -3 * first + 4 * middle - last, 2 * first - 4 * middle + 2 * last))
        if outline is None:
            w = bend[0] + bend[1] * _STEPS + bend[2] * _STEPS * _STEPS
            spine = start + _STEPS * (length * along)
            round_end = end + last * (_CAP[0] * along * caps[1] + _CAP[1] * across)
            round_start = start - first * (_CAP[0] * along * caps[0] + _CAP[1] * across)
            outline = np.concatenate(
                (spine + w * across, round_end, (spine - w * across)[::-1], round_start)
            )
        found = self._stencil(outline)
        if found is None:
            return
        window, alpha = found
        xs, ys = _grid(window)
        xs = xs - np.float32(start[0])
        ys = ys - np.float32(start[1])
        s = xs * np.float32(along[0] / length) + ys * np.float32(along[1] / length)
        u = xs * np.float32(across[0]) + ys * np.float32(across[1])
        inside = np.clip(s, 0, 1)
        u /= np.float32(bend[0]) + inside * (np.float32(bend[1]) + inside * np.float32(bend[2]))
        np.clip(u, -1, 1, out=u)
        color = paint(s, u) if callable(paint) else paint
        shade = self.shade(u, across)
        self.blend(window, alpha, shade[..., None] * color, owner)

    def shade(self, u: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Brightness of a round surface seen from the front, u in -1..1 being the position
        across it.
        """
        light = self.light
        sideways = float(across[0] * light.direction[0] + across[1] * light.direction[1])
        lit = u * np.float32(sideways) + np.sqrt(1.02 - u * u) * np.float32(light.direction[2])
        np.maximum(lit, 0, out=lit)
        lit *= np.float32(1.12 * (1 - light.ambient))
        lit += np.float32(light.ambient)
        return lit


def _grid(window):
    return (
        np.arange(window[1].start, window[1].stop, dtype=np.float32),
        np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None],
    )


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """(height, width) float32 noise in about -1..1 whose grains are `cell` pixels wide."""
    small = (
        rng.random((max(height // cell, 1) + 3, max(width // cell, 1) + 3), dtype=np.float32) * 2
        - 1
    )
    big = cv2.resize(small, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    y, x = rng.integers(0, cell, 2)
    return big[y : y + height, x : x + width]


def _make_tiles():
    # fixed tiles, cut at random places: drawing fresh normal noise for every image would cost more
    # than the people
    rng = np.random.default_rng(77)
    grain = rng.normal(0, 1, (_TILE * 3, _TILE * 3, 3)).astype(np.float32)
    cloth = sum(
        smooth_noise(rng, _TILE, _TILE, cell) * gain
        for cell, gain in ((3, 0.35), (9, 0.5), (31, 0.6))
    )
    return grain, cloth.astype(np.float32)


GRAIN, CLOTH = _make_tiles()


@dataclass(frozen=True)
class Fabric:
    """A cloth: two BGR colors and how they alternate. period: in the units of the coordinates
    it is asked at.
    """

    pattern: str
    base: np.ndarray
    second: np.ndarray
    period: float
    rough: float
    phase: float

    def __call__(self, along: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Return the color (h, w, 3) float32 at cloth coordinates (h, w), in standing heights."""
        p, q = along / self.period + self.phase, across / self.period + self.phase
        if self.pattern == "hoops":
            mix = (p % 1 < 0.5).astype(np.float32)
        elif self.pattern == "stripes":
            mix = (q % 1 < 0.38).astype(np.float32)
        elif self.pattern == "checks":
            mix = ((p % 1 < 0.5) ^ (q % 1 < 0.5)).astype(np.float32)
        elif self.pattern == "plaid":
            mix = 0.5 * ((p % 1 < 0.35).astype(np.float32) + (q % 1 < 0.35))
        elif self.pattern == "dots":
            mix = ((p % 1 - 0.5) ** 2 + (q % 1 - 0.5) ** 2 < 0.07).astype(np.float32)
        elif self.pattern == "blotches":
            mix = np.clip(self._tile(along, across, 700) * 3, 0, 1)
        else:
            mix = np.float32(0)
        color = self.base + np.asarray(mix)[..., None] * (self.second - self.base)
        if self.rough > 0:
            color = color * (1 + np.float32(self.rough) * self._tile(along, across, 900))[..., None]
        return color

    def _tile(self, along, across, scale):
        row = (along * scale + self.phase * 97).astype(np.int32) & (_TILE - 1)
        column = (across * scale + self.phase * 53).astype(np.int32) & (_TILE - 1)
        return CLOTH[row, column]
