"""What stands behind and before synthetic people: rooms, streets, meadows, plain noise;
furniture, poles, foliage.
"""

from __future__ import annotations

import cv2
import numpy as np

from poise.datasets.synthetic.body import choose
from poise.datasets.synthetic.look import HAIRS, SKINS, bgr, cloth_color, sample_fabric
from poise.datasets.synthetic.paint import NO_PERSON, Canvas, smooth_noise

PLACES = (("room", 0.30), ("street", 0.25), ("meadow", 0.27), ("noise", 0.18))
OCCLUDERS = (("box", 0.36), ("pole", 0.22), ("foliage", 0.27), ("rail", 0.15))


def draw_backdrop(
    rng: np.random.Generator, width: int, height: int, hardness: float
) -> tuple[np.ndarray, float]:
    """Return an image (height, width, 3) float32 BGR without people, and the y of its horizon.

    The lower the hardness, the more the background is blurred and hazy.
    """
    horizon = height * rng.uniform(0.32, 0.62)
    place = choose(rng, PLACES)
    image: np.ndarray = np.empty((height, width, 3), np.uint8)
    if place == "noise":
        image[:] = cloth_color(rng).astype(np.uint8)
    else:
        far, near = _tints(rng, place)
        line = int(horizon)
        image[:line] = _gradient(rng, far, line)
        image[line:] = _gradient(rng, near, height - line)
    {"room": _room, "street": _street, "meadow": _meadow, "noise": _shapes}[place](
        rng, image, int(horizon)
    )
    if rng.random() < 0.30 * hardness:
        _shapes(rng, image, int(horizon), 4)
    focus = (1 - hardness) * rng.uniform(0.5, 1.0)
    if focus > 0.05:
        image = cv2.GaussianBlur(image, (0, 0), 0.3 + 3.2 * focus)
        haze = 0.45 * focus
        image = cv2.addWeighted(image, 1 - haze, np.full_like(image, cv2.mean(image)[:3]), haze, 0)
    picture = image.astype(np.float32)
    noise = sum(
        smooth_noise(rng, height, width, cell)
        * np.float32(strength * rng.uniform(0.2, 0.5 + 0.8 * hardness))
        for cell, strength in ((3, 7.0), (13, 9.0), (59, 15.0))
    )
    picture += cv2.merge((noise, noise, noise))
    if place == "noise":
        picture += cv2.merge([smooth_noise(rng, height, width, 31) for _ in range(3)]) * np.float32(
            rng.uniform(8, 32)
        )
    return picture, horizon


def _tints(rng, place):
    if place == "meadow":
        return bgr((rng.uniform(110, 200), rng.uniform(160, 215), rng.uniform(190, 250))), bgr(
            (rng.uniform(60, 130), rng.uniform(95, 160), rng.uniform(40, 85))
        )
    if place == "street":
        return bgr(np.full(3, rng.uniform(120, 225)) + rng.normal(0, 14, 3)), bgr(
            np.full(3, rng.uniform(70, 165)) + rng.normal(0, 8, 3)
        )
    return 0.55 * cloth_color(rng) + 95, 0.6 * cloth_color(rng) + rng.uniform(20, 70)


def _gradient(rng, color, rows):
    ramp = np.linspace(-1, 1, max(rows, 1))[:, None] * rng.uniform(-28, 28)
    return np.clip(color + ramp, 0, 255)[:rows, None].astype(np.uint8)


def _color(rng, low=0.25, high=1.0):
    return tuple(float(c) for c in cloth_color(rng) * rng.uniform(low, high))


def _rectangle(image, x, y, w, h, color, thickness=-1):
    cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), color, thickness)


def _room(rng, image, line):
    height, width = image.shape[:2]
    if rng.random() < 0.45:  # wallpaper or planks
        step = int(rng.integers(8, 40))
        tint = _color(rng, 0.5)
        for x in range(int(rng.integers(step)), width, step):
            cv2.line(image, (x, 0), (x, line), tint, int(rng.integers(1, 1 + max(step // 4, 1))))
    if rng.random() < 0.5:  # tiles of the floor, running to a vanishing point
        middle = width * rng.uniform(0.2, 0.8)
        tint = _color(rng, 0.4, 0.9)
        for x in range(-width, 2 * width, int(rng.integers(30, 90))):
            cv2.line(
                image, (int(middle + (x - middle) * 0.35), line), (x, height), tint, 1, cv2.LINE_AA
            )
    _rectangle(image, 0, line - 3, width, 5, _color(rng))
    for _ in range(rng.integers(1, 5)):  # pictures and windows
        w, h = rng.uniform(0.08, 0.28, 2) * width
        x, y = rng.uniform(-20, width), rng.uniform(-10, max(line - h, 1))
        _rectangle(image, x, y, w, h, _color(rng))
        _rectangle(image, x, y, w, h, _color(rng, 0.1, 0.6), int(rng.integers(1, 5)))
        if rng.random() < 0.5:
            cv2.line(
                image,
                (int(x + w / 2), int(y)),
                (int(x + w / 2), int(y + h)),
                _color(rng, 0.1, 0.6),
                2,
            )
    for _ in range(rng.integers(1, 4)):  # cupboards and sofas
        w = rng.uniform(0.12, 0.32) * width
        h = rng.uniform(0.10, 0.35) * height
        x = rng.uniform(-30, width)
        y = line + rng.uniform(-0.8, 0.05) * h
        tint = np.array(_color(rng))
        _rectangle(image, x, y, w, h, tuple(tint.tolist()))
        _rectangle(image, x, y, w, h * 0.14, tuple(np.minimum(tint * 1.25, 255).tolist()))
        for k in range(1, int(rng.integers(1, 4))):
            _rectangle(image, x + 3, y + h * k / 4, w - 6, h / 5, tuple((tint * 0.8).tolist()), 1)


def _street(rng, image, line):
    height, width = image.shape[:2]
    x = -20
    while x < width:  # house fronts with rows of windows
        w = int(rng.uniform(0.12, 0.4) * width)
        h = int(rng.uniform(0.4, 1.0) * line)
        tint = 0.45 * np.array(_color(rng, 0.6)) + rng.uniform(25, 130)
        _rectangle(image, x, line - h, w, h, tuple(tint.tolist()))
        pane = tuple((tint * rng.uniform(0.3, 1.4)).clip(0, 255).tolist())
        step = int(rng.integers(12, 28))
        for wx in range(x + 5, x + w - 8, step):
            for wy in range(line - h + 6, line - 10, step + 4):
                _rectangle(image, wx, wy, step * 0.5, step * 0.6, pane)
        x += w + int(rng.integers(0, 14))
    for _ in range(rng.integers(0, 4)):  # kerbs and markings
        y = rng.uniform(line, height)
        cv2.line(
            image,
            (0, int(y)),
            (width, int(y + rng.uniform(-25, 25))),
            _color(rng, 0.6),
            int(rng.integers(1, 6)),
            cv2.LINE_AA,
        )
    for _ in range(rng.integers(0, 3)):  # parked cars
        w = rng.uniform(0.18, 0.34) * width
        x = rng.uniform(-40, width)
        h = w * 0.26
        tint = _color(rng)
        y = line - h * rng.uniform(0, 0.5)
        _rectangle(image, x, y, w, h, tint)
        cv2.ellipse(
            image,
            (int(x + w / 2), int(y)),
            (int(w * 0.32), int(h * 0.8)),
            0,
            180,
            360,
            tint,
            -1,
            cv2.LINE_AA,
        )
        for wheel in (0.22, 0.78):
            cv2.circle(
                image,
                (int(x + w * wheel), int(y + h)),
                int(h * 0.36),
                (25, 25, 28),
                -1,
                cv2.LINE_AA,
            )


def _meadow(rng, image, line):
    height, width = image.shape[:2]
    for _ in range(rng.integers(1, 4)):  # hills
        xs = np.linspace(0, width, 16)
        ys = (
            line
            - rng.uniform(4, 0.3 * line)
            * (1 + np.sin(xs / width * rng.uniform(3, 12) + rng.uniform(0, 6)))
            / 2
        )
        tint = bgr(rng.uniform((40, 80, 40), (130, 150, 120)))
        corners = np.concatenate((np.stack((xs, ys), 1), ((width, line + 2), (0, line + 2))))
        cv2.fillPoly(image, [corners.astype(np.int32)], tuple(tint.tolist()))
    for _ in range(rng.integers(1, 6)):
        _tree(
            rng,
            image,
            rng.uniform(0, width),
            line + rng.uniform(-5, 25),
            rng.uniform(0.3, 0.9) * height,
        )
    for _ in range(rng.integers(10, 60)):  # tufts
        x, y = rng.uniform(0, width), rng.uniform(line, height)
        tint = tuple(float(c) for c in bgr(rng.uniform((40, 70, 20), (160, 170, 90))))
        tip = (int(x + rng.uniform(-4, 4)), int(y - rng.uniform(3, 10)))
        cv2.line(image, (int(x), int(y)), tip, tint, 1, cv2.LINE_AA)


def _tree(rng, image, x, y, size):
    trunk = bgr(rng.uniform((50, 35, 25), (110, 85, 65)))
    _rectangle(
        image, x - size * 0.035, y - size * 0.5, size * 0.07, size * 0.5, tuple(trunk.tolist())
    )
    tint = rng.uniform((30, 70, 20), (120, 140, 70))
    for _ in range(14):
        place = (int(x + rng.normal(0, 0.14) * size), int(y - size * rng.uniform(0.45, 0.95)))
        shade = tuple(bgr(tint * rng.uniform(0.6, 1.2)).tolist())
        axes = (int(size * rng.uniform(0.06, 0.15)), int(size * rng.uniform(0.05, 0.11)))
        cv2.ellipse(image, place, axes, 0, 0, 360, shade, -1, cv2.LINE_AA)


def _shapes(rng, image, line, count=10):
    """Draw boxes, blobs, bars and stripes; some have the colors of skin and hair.

    Color alone is not a cue for a person.
    """
    height, width = image.shape[:2]
    for _ in range(rng.integers(2, count + 1)):
        tint = _color(rng)
        if rng.random() < 0.3:
            tint = tuple(bgr((SKINS if rng.random() < 0.7 else HAIRS)[rng.integers(7)]).tolist())
        x = rng.uniform(0, width)
        y = rng.uniform(0, height)
        kind = rng.integers(10) // 3
        size = rng.uniform(0.04, 0.22) * width
        if kind == 0:
            _rectangle(image, x, y, size, size * rng.uniform(0.3, 2), tint)
        elif kind == 1:
            cv2.ellipse(
                image,
                (int(x), int(y)),
                (int(size * 0.5), int(size * rng.uniform(0.2, 0.7))),
                float(rng.uniform(0, 180)),
                0,
                360,
                tint,
                -1,
                cv2.LINE_AA,
            )
        elif kind == 2:
            turn = rng.uniform(0, np.pi)
            end = (int(x + 1.8 * size * np.cos(turn)), int(y + 1.8 * size * np.sin(turn)))
            cv2.line(
                image,
                (int(x), int(y)),
                end,
                tint,
                int(rng.integers(2, 2 + size * 0.25)),
                cv2.LINE_AA,
            )
        else:
            for k in range(int(rng.integers(3, 9))):
                _rectangle(image, x + k * size * 0.2, y, size * 0.1, size, tint)


def draw_stool(
    canvas: Canvas, rng: np.random.Generator, seat: np.ndarray, floor: float, size: float
):
    """A block to sit on, its top at seat (2,), down to y = floor."""
    tint = cloth_color(rng) * 0.8
    half = size * rng.uniform(0.10, 0.15)
    top = seat[1]
    canvas.polygon(
        np.array(
            (
                (seat[0] - half, top),
                (seat[0] + half, top),
                (seat[0] + half, floor),
                (seat[0] - half, floor),
            )
        ),
        tint * 0.75,
        NO_PERSON,
    )
    canvas.polygon(
        np.array(
            (
                (seat[0] - half, top),
                (seat[0] + half, top),
                (seat[0] + half * 1.08, top + size * 0.045),
                (seat[0] - half * 1.08, top + size * 0.045),
            )
        ),
        tint,
        NO_PERSON,
    )


def draw_occluder(canvas: Canvas, rng: np.random.Generator, near: np.ndarray | None):
    """Draw an occluder in front of all persons, at `near` (2,) or anywhere."""
    width, height = canvas.size
    x, y = (rng.uniform(0, width), rng.uniform(0.4, 1) * height) if near is None else near
    kind = choose(rng, OCCLUDERS)
    if kind == "box":
        w = rng.uniform(0.07, 0.2) * width
        h = rng.uniform(0.10, 0.28) * height
        fabric = sample_fabric(rng)
        base = np.array(((x - w / 2, y), (x + w / 2, y), (x + w / 2, y + h), (x - w / 2, y + h)))
        canvas.polygon(
            base, lambda xs, ys: 0.8 * fabric(*np.broadcast_arrays(ys / 300, xs / 300)), NO_PERSON
        )
        lid = np.array(
            (
                (x - w / 2, y),
                (x + w / 2, y),
                (x + w * 0.42, y - h * 0.16),
                (x - w * 0.42, y - h * 0.16),
            )
        )
        canvas.polygon(lid, np.minimum(fabric.base * 1.1 + 12, 255), NO_PERSON)
    elif kind == "pole":
        w = rng.uniform(0.008, 0.03) * width
        top = -5.0 if rng.random() < 0.6 else height * rng.uniform(0.1, 0.5)
        foot = (x + rng.normal(0, 6), height * rng.uniform(0.8, 1.1))
        canvas.tube(np.array((x, top)), np.array(foot), (w, w, w), cloth_color(rng), NO_PERSON)
    elif kind == "rail":
        tint = cloth_color(rng)
        reach = rng.uniform(0.15, 0.4) * width
        w = rng.uniform(0.006, 0.012) * width
        for level in np.linspace(0, 0.16, rng.integers(2, 4)) * height:
            ends = np.array(((x - reach / 2, y + level), (x + reach / 2, y + level)))
            canvas.tube(ends[0], ends[1], (w, w, w), tint, NO_PERSON)
        for post in (-0.5, 0.5):
            canvas.tube(
                np.array((x + post * reach, y - 3)),
                np.array((x + post * reach, y + 0.26 * height)),
                (w * 1.3,) * 3,
                tint,
                NO_PERSON,
            )
    else:
        tint = rng.uniform((30, 65, 15), (125, 150, 70))
        size = rng.uniform(0.05, 0.12) * width
        for _ in range(rng.integers(9, 18)):
            leaf = rng.normal(0, 0.5, 2) * size + (x, y)
            turn = rng.uniform(0, np.pi)
            axes = np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn)))) * (
                size * 0.42,
                size * 0.2,
            )
            canvas.ellipse(leaf, axes, bgr(tint * rng.uniform(0.55, 1.25)), NO_PERSON)
