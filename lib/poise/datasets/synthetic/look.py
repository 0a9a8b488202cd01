"""What a synthetic person looks like: skin, hair, face and clothes, drawn at random.

Nothing here is a cue for left or right by itself: every garment is symmetric. Front and back
differ as on real people: the face, an open jacket, buttons, a print, a collar,
pockets, a rucksack.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from poise.datasets.synthetic.body import choose
from poise.datasets.synthetic.paint import Fabric

# RGB, light to dark
SKINS = np.array(
    [
        (255, 224, 198),
        (243, 205, 172),
        (230, 184, 145),
        (205, 150, 106),
        (165, 110, 74),
        (118, 76, 50),
        (84, 54, 38),
    ],
    np.float32,
)
HAIRS = np.array(
    [
        (28, 24, 24),
        (45, 32, 26),
        (78, 52, 34),
        (112, 76, 44),
        (190, 150, 88),
        (222, 190, 130),
        (140, 62, 30),
        (150, 148, 146),
        (205, 203, 200),
    ],
    np.float32,
)
PATTERNS = (
    ("plain", 0.60),
    ("hoops", 0.11),
    ("stripes", 0.06),
    ("checks", 0.04),
    ("plaid", 0.08),
    ("dots", 0.04),
    ("blotches", 0.07),
)
TOPS = (("tee", 0.34), ("shirt", 0.22), ("jacket", 0.22), ("hoodie", 0.12), ("vest", 0.10))
BOTTOMS = (("trousers", 0.62), ("shorts", 0.22), ("skirt", 0.16))
HAIRCUTS = (("short", 0.46), ("long", 0.24), ("bun", 0.10), ("cap", 0.12), ("crop", 0.08))


@dataclass(frozen=True)
class Look:
    """Colors are BGR float32; lengths are fractions of the limb (sleeve: arm, leg: leg)."""

    skin: np.ndarray
    hair: np.ndarray
    haircut: str
    hair_length: float
    beard: bool
    glasses: bool
    hat: np.ndarray
    top_kind: str
    top: Fabric
    inner: np.ndarray
    trim: np.ndarray
    sleeve: float
    hem: float
    printed: bool
    bottom_kind: str
    bottom: Fabric
    leg: float
    belt: np.ndarray | None
    shoes: np.ndarray
    sole: np.ndarray
    socks: np.ndarray
    backpack: Fabric | None


def bgr(rgb) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(rgb, np.float32)[::-1])


def cloth_color(rng: np.random.Generator) -> np.ndarray:
    """BGR of a garment: grays and muted tones more often than strong ones."""
    saturation = rng.beta(1.2, 1.6) if rng.random() < 0.75 else rng.uniform(0, 0.08)
    return bgr(colorsys.hsv_to_rgb(rng.random(), saturation, 0.18 + 0.8 * rng.random())) * 255


def sample_fabric(rng: np.random.Generator, patterned: bool = True) -> Fabric:
    pattern = choose(rng, PATTERNS) if patterned else "plain"
    base = cloth_color(rng)
    second = cloth_color(rng)
    if np.abs(base - second).max() < 50:
        second = np.float32(255) - base
    return Fabric(
        pattern,
        base,
        second,
        float(rng.uniform(0.028, 0.075)),
        float(rng.uniform(0.04, 0.15)),
        float(rng.random() * 7),
    )


def sample_look(rng: np.random.Generator, hardness: float = 1.0) -> Look:
    """Draw one person's looks; patterned clothes are rarer in an easy set."""
    tone = rng.uniform(0, len(SKINS) - 1)
    low = int(tone)
    skin = SKINS[low] + (tone - low) * (SKINS[min(low + 1, len(SKINS) - 1)] - SKINS[low])
    hair = HAIRS[
        rng.choice(len(HAIRS), p=np.array((5, 5, 5, 4, 3, 2, 2, 2, 1)) / 29)
    ] * rng.uniform(0.85, 1.15)
    if np.abs(hair - skin).max() < 70:
        hair = HAIRS[rng.integers(3)] if skin.max() > 150 else HAIRS[rng.integers(4, 6)]
    haircut = choose(rng, HAIRCUTS)
    top_kind = choose(rng, TOPS)
    sleeve = {
        "tee": rng.uniform(0.22, 0.34),
        "vest": 0.0,
        "shirt": rng.choice((0.3, 0.62, 1.0)),
        "jacket": 1.0,
        "hoodie": 1.0,
    }[top_kind]
    bottom_kind = choose(rng, BOTTOMS)
    leg = {
        "trousers": rng.choice((1.0, 1.0, 0.86)),
        "shorts": rng.uniform(0.28, 0.5),
        "skirt": rng.uniform(0.36, 0.62),
    }[bottom_kind]
    top = sample_fabric(rng, rng.random() < 0.35 + 0.65 * hardness)
    return Look(
        skin=bgr(skin * rng.uniform(0.93, 1.05)),
        hair=bgr(hair),
        haircut=haircut,
        hair_length=float(rng.uniform(0.8, 2.0)),
        beard=bool(haircut != "long" and rng.random() < 0.06 + 0.14 * hardness),
        glasses=bool(rng.random() < 0.04 + 0.12 * hardness),
        hat=cloth_color(rng),
        top_kind=top_kind,
        top=top,
        inner=cloth_color(rng),
        trim=np.clip(top.base * rng.choice((0.55, 1.5)), 0, 255).astype(np.float32),
        sleeve=float(sleeve),
        hem=float(rng.choice((-0.16, -0.06, 0.05, 0.10))),
        printed=bool(top_kind in ("tee", "hoodie") and rng.random() < 0.8),
        bottom_kind=bottom_kind,
        bottom=sample_fabric(rng, rng.random() < 0.1 + 0.4 * hardness),
        leg=float(leg),
        belt=cloth_color(rng) * 0.5 if rng.random() < 0.5 else None,
        shoes=cloth_color(rng),
        sole=cloth_color(rng) * 0.4 + 140,
        socks=cloth_color(rng),
        backpack=sample_fabric(rng, False) if rng.random() < 0.16 else None,
    )
