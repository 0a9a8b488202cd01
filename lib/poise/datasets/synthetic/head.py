"""A synthetic head: an ellipsoid looked at from any side, with hair, ears and a face that sit where
they are labeled.

Places on a head are given on the unit sphere: x to the person's left, y up, z forward; they are
stretched by the head's radii, turned by its frame (columns left, up, forward; rows x right, y down,
z to the viewer) and dropped onto the image. Each pixel is traced back to the sphere, so that a face
turns away correctly at any yaw, nod and tilt.
"""

from __future__ import annotations

import cv2
import numpy as np

from poise.datasets.synthetic.look import Look
from poise.datasets.synthetic.paint import Canvas

NOSE = np.array((0.0, -0.21, 1.12))
EYES = np.array(((0.37, 0.06, 0.927), (-0.37, 0.06, 0.927)))
EARS = np.array(((1.03, -0.06, -0.12), (-1.03, -0.06, -0.12)))
_EAR_RADII = np.array((0.10, 0.26, 0.20))
# hair grows above this height (on the hair's own, larger sphere) as a function of how far forward a
# place is
_FORWARD = np.array((-1.0, -0.35, 0.0, 0.22, 0.45, 1.0), np.float32)
_HAIRLINES = {
    "short": (-0.80, -0.62, -0.30, 0.22, 0.40, 0.46),
    "long": (-1.2, -1.2, -0.95, 0.00, 0.38, 0.44),
    "bun": (-0.78, -0.62, -0.25, 0.30, 0.46, 0.52),
    "cap": (-0.70, -0.55, -0.20, 0.24, 0.26, 0.26),
    "crop": (-0.72, -0.55, -0.15, 0.35, 0.55, 0.62),
}
_VOLUME = {"short": 1.09, "long": 1.13, "bun": 1.06, "cap": 1.08, "crop": 1.025}


def head_radii(size: float) -> np.ndarray:
    """(3,) half width, height and depth of a head that is `size` high."""
    return np.array((0.385, 0.5, 0.46)) * size


def on_head(
    place: np.ndarray, center: np.ndarray, frame: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """Camera coordinates (..., 3) of places (..., 3) on the unit sphere."""
    return center + (place * radii) @ frame.T


def silhouette(frame: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(2, 2) half axes (columns) of the ellipse that an ellipsoid covers in the image."""
    spread = (frame * radii**2) @ frame.T
    return np.linalg.cholesky(spread[:2, :2] + 1e-9 * np.eye(2))


def face_turn(place: np.ndarray, frame: np.ndarray, radii: np.ndarray) -> float:
    """How far the skin at a place on the sphere faces the viewer: 1 fully, 0 edge on, negative
    away.
    """
    normal = frame @ (place / radii)
    return float(normal[2] / np.linalg.norm(normal))


def _trace(px, py, frame, radii):
    """Meet the viewing rays at pixels px (h, w), py (h, w) from the center: (hit (h, w), x, y, z
    on the sphere).
    """
    form = (frame / radii**2) @ frame.T
    a = form[2, 2]
    b = np.float32(form[0, 2]) * px + np.float32(form[1, 2]) * py
    c = (
        np.float32(form[0, 0]) * px * px
        + np.float32(2 * form[0, 1]) * px * py
        + np.float32(form[1, 1]) * py * py
        - 1
    )
    inside = b * b - np.float32(a) * c
    pz = (np.sqrt(np.maximum(inside, 0)) - b) / np.float32(a)
    back = (frame / radii).astype(np.float32)
    return (inside >= 0, *(px * back[0, k] + py * back[1, k] + pz * back[2, k] for k in range(3)))


def draw_head(
    canvas: Canvas,
    center: np.ndarray,
    frame: np.ndarray,
    radii: np.ndarray,
    look: Look,
    owner: int,
    brim_owner: int,
):
    """Draw a head; center (3,) and radii (3,) in pixels. A cap's brim has a label of its own: it
    may hide the eyes.
    """
    facing = frame[2, 2]
    ears = on_head(EARS, center, frame, radii)
    nearer = [ears[k, 2] > center[2] for k in range(2)]
    hidden_ears = look.haircut == "long"
    if look.haircut == "bun":
        # behind the head unless the head is seen from behind
        knot = on_head(np.array((0, 0.55, -1.05)), center, frame, radii)
        if facing > 0:
            _ball(canvas, knot, radii[1] * 0.36, look.hair, owner)
    for k in range(2):
        if not nearer[k] and not hidden_ears:
            _ear(canvas, ears[k], frame, radii, look, owner)
    _skull(canvas, center, frame, radii, look, owner)
    for k in range(2):
        if nearer[k] and not hidden_ears:
            _ear(canvas, ears[k], frame, radii, look, owner)
    if look.haircut == "bun" and facing <= 0:
        _ball(canvas, knot, radii[1] * 0.36, look.hair, owner)
    if facing > -0.22:
        ridge = on_head(
            np.array(
                (
                    (0, 0.08, 1.0),
                    (0.13, -0.25, 1.0),
                    (0.04, -0.20, 1.20),
                    (-0.04, -0.20, 1.20),
                    (-0.13, -0.25, 1.0),
                    (0, -0.33, 0.96),
                )
            ),
            center,
            frame,
            radii,
        )[:, :2]
        hull = cv2.convexHull(ridge.astype(np.float32))[:, 0].astype(float)
        shade = canvas.shade(np.zeros((1, 1), np.float32), np.zeros(2))[0, 0]
        canvas.polygon(hull, look.skin * (shade * 0.74), owner, 0.85)
    if look.haircut == "cap" and facing > -0.45:
        brim = np.array(
            [(0.80 * np.sin(a), 0.33, 0.62 + 0.78 * np.cos(a)) for a in np.linspace(-1.5, 1.5, 7)]
        )
        brim = on_head(
            np.concatenate((brim, [(0.6, 0.40, 0.75), (-0.6, 0.40, 0.75)])), center, frame, radii
        )[:, :2]
        canvas.polygon(
            cv2.convexHull(brim.astype(np.float32))[:, 0].astype(float), look.hat * 0.62, brim_owner
        )


def _ball(canvas, center, radius, color, owner):
    canvas.tube(center[:2] - (0, 0.05), center[:2] + (0, 0.05), (radius,) * 3, color, owner)


def _ear(canvas, center, frame, radii, look, owner):
    axes = silhouette(frame, _EAR_RADII * radii[1])
    canvas.ellipse(center[:2], axes, look.skin * 0.78, owner)
    canvas.ellipse(center[:2], axes * 0.5, look.skin * 0.6, owner)


def _skull(canvas, center, frame, radii, look, owner):
    reach = float(radii.max()) * 1.25
    window = canvas.window(center[:2] - reach, center[:2] + reach)
    if window is None:
        return
    # rays per pixel and axis: features of a small head are thin
    fine = int(np.clip(round(30 / radii[1]), 1, 4))
    height, width = window[0].stop - window[0].start, window[1].stop - window[1].start
    px = (
        (np.arange(width * fine, dtype=np.float32) + 0.5) / fine - 0.5 + window[1].start - center[0]
    )[None]
    py = (
        (np.arange(height * fine, dtype=np.float32) + 0.5) / fine
        - 0.5
        + window[0].start
        - center[1]
    )[:, None]
    px, py = np.broadcast_arrays(px, py)

    volume = _VOLUME[look.haircut]
    offset = frame @ (np.array((0.0, 0.05, -0.07)) * radii * (volume - 1) * 10)
    on_hair, hx, hy, hz = _trace(
        px - np.float32(offset[0]), py - np.float32(offset[1]), frame, radii * volume
    )
    hairline = np.interp(hz, _FORWARD, _HAIRLINES[look.haircut])
    on_hair &= hy > hairline + 0.05 * np.sin(hx * 9)  # an uneven fringe
    on_skin, x, y, z = _trace(px, py, frame, radii)
    color = np.empty((*on_skin.shape, 3), np.float32)
    color[:] = look.skin
    _face(color, x, y, z, look, radii[1])
    color *= _lit(canvas, frame, radii, x, y, z)[..., None]
    hair = (
        np.where((hy > 0.24)[..., None], look.hat, look.hair)
        if look.haircut == "cap"
        else look.hair
    )
    strands = 1 + 0.14 * np.sin(hx * 17 + 5 * hy) * np.sin(hy * 7 + hx * 3)
    hair = hair * (strands * _lit(canvas, frame, radii, hx, hy, hz))[..., None]
    color = np.where(on_hair[..., None], hair, color)
    alpha = (on_hair | on_skin).astype(np.float32)
    if fine > 1:
        alpha_small = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)
        color = cv2.resize(color * alpha[..., None], (width, height), interpolation=cv2.INTER_AREA)
        color /= np.maximum(alpha_small, 1e-3)[..., None]
        alpha = alpha_small
    canvas.blend(window, alpha, color, owner)


def _lit(canvas, frame, radii, x, y, z):
    """(h, w) brightness of an ellipsoid's surface at places x, y, z on its sphere."""
    light = canvas.light
    toward = frame.T @ np.array(light.direction) / radii
    n = (
        (x / np.float32(radii[0])) ** 2
        + (y / np.float32(radii[1])) ** 2
        + (z / np.float32(radii[2])) ** 2
    )
    cosine = (
        x * np.float32(toward[0]) + y * np.float32(toward[1]) + z * np.float32(toward[2])
    ) / np.sqrt(n + 1e-9)
    return np.float32(light.ambient) + np.float32(1.12 * (1 - light.ambient)) * np.maximum(
        cosine, 0
    )


def _face(color, x, y, z, look, half_height):
    """Paint eyes, brows, mouth, beard and glasses onto the skin colors (h, w, 3) at places x,
    y, z of the sphere.
    """
    grow = float(np.clip(10 / half_height, 1, 1.7))  # what is thinner than a pixel would vanish
    front = z > 0.05
    across = np.abs(x)
    if look.beard:
        color[
            front & (y < -0.30 - 0.12 * (across < 0.3)) | (y < -0.05) & (across > 0.82) & (z > -0.2)
        ] = look.hair
        color[front & (np.abs(y + 0.37) < 0.045 * grow) & (across < 0.30)] = look.hair
    color[front & (np.abs(y + 0.52) < 0.060 * grow) & (across < 0.28)] = look.skin * (
        0.50,
        0.45,
        0.78,
    )
    # below the nose
    color[front & (np.abs(y + 0.30) < 0.045 * grow) & (across < 0.13)] = look.skin * 0.62
    dx = across - 0.37
    dy = y - 0.06
    color[front & ((dx / 0.23) ** 2 + (dy / 0.17) ** 2 < grow)] = look.skin * 0.70
    color[front & ((dx / 0.175) ** 2 + (dy / 0.115) ** 2 < grow)] = (236, 238, 240)
    color[front & (dx * dx + dy * dy < (0.112 * grow) ** 2)] = (38, 32, 28)
    color[front & (np.abs(y - 0.28 + 0.25 * dx * dx) < 0.048 * grow) & (np.abs(dx) < 0.19)] = (
        look.hair * 0.7
    )
    if look.glasses:
        ring = (dx / 0.25) ** 2 + (dy / 0.19) ** 2
        color[
            front & (ring > 0.72) & (ring < 1.0 + 0.2 * grow)
            | front & (np.abs(dy) < 0.03) & (across < 0.14)
            | (z > -0.05) & (across > 0.6) & (np.abs(dy) < 0.04)
        ] = (30, 28, 26)
