"""Joints without tremor: the One-Euro filter (Casiez, Roussel and Vogel, 1 Euro Filter, CHI 2012),
for each joint of each tracked person.

A low-pass filter whose cutoff frequency rises with the speed: a joint at rest is held still, a fast
one is followed with little lag. The paper's speed is in the signal's own unit. A pixel means little
without the size of the person, so the speed here is in body sizes (the square root of the box's
area) a second, and one pair of parameters serves near and far persons.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# : MIN_CUTOFF in Hz, for what is at rest; BETA in Hz for each body size a second. docs/demo.md has
# what they were chosen by
MIN_CUTOFF, BETA = 1.0, 5.0
#: of the speed itself, in Hz; the paper's value
SPEED_CUTOFF = 1.0


class OneEuroFilter:
    """The filter of one signal of points (..., D), whose D coordinates share one speed."""

    def __init__(
        self, min_cutoff: float = MIN_CUTOFF, beta: float = BETA, speed_cutoff: float = SPEED_CUTOFF
    ):
        self.min_cutoff, self.beta, self.speed_cutoff = min_cutoff, beta, speed_cutoff
        self._seconds = -math.inf
        self._value: np.ndarray | None = None
        self._velocity: np.ndarray | None = None

    def __call__(self, value: np.ndarray, seconds: float, unit: float = 1.0) -> np.ndarray:
        """The filtered value (..., D), float64, at the time `seconds`. unit: the length that beta's
        speed is counted in.

        The first value passes as it is; one that is not later than the last counts for nothing.
        """
        value = np.asarray(value, np.float64)
        if self._value is None:
            self._seconds, self._value, self._velocity = seconds, value.copy(), np.zeros_like(value)
            return self._value.copy()
        period = seconds - self._seconds
        if period <= 0:
            return self._value.copy()
        # the paper takes the difference from the last filtered value, as its authors' code does
        velocity = (value - self._value) / period
        share = _share(self.speed_cutoff, period)
        self._velocity = share * velocity + (1 - share) * self._velocity
        speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True) / max(unit, 1e-9)
        share = _share(self.min_cutoff + self.beta * speed, period)
        self._value = share * value + (1 - share) * self._value
        self._seconds = seconds
        return self._value.copy()


def _share(cutoff: Any, period: float) -> Any:
    """Of the new value in the mean of new and old: the alpha of a low-pass filter of that cutoff
    in Hz; equation 5 of the paper.
    """
    return 1 / (1 + 1 / (2 * math.pi * cutoff * period))


class PoseSmoother:
    """A filter for each track. patience: seconds after which a track that was not seen begins
    anew.
    """

    def __init__(self, min_cutoff: float = MIN_CUTOFF, beta: float = BETA, patience: float = 1.0):
        self._parameters, self.patience = (min_cutoff, beta), patience
        self._filters: dict[int, tuple[OneEuroFilter, float]] = {}

    def update(
        self, tracks: np.ndarray, keypoints: np.ndarray, boxes: np.ndarray, seconds: float
    ) -> np.ndarray:
        """The smoothed keypoints (N, J, 2) float32 of a frame: tracks (N,), keypoints (N, J, 2)
        and boxes (N, 4) xyxy in pixels.
        """
        self._filters = {
            track: (one, seen)
            for track, (one, seen) in self._filters.items()
            if seen >= seconds - self.patience
        }
        smoothed = np.empty(np.shape(keypoints), np.float32)
        for person, track in enumerate(np.asarray(tracks).tolist()):
            one, _ = self._filters.get(track) or (OneEuroFilter(*self._parameters), seconds)
            width, height = boxes[person][2:] - boxes[person][:2]
            smoothed[person] = one(
                keypoints[person], seconds, math.sqrt(max(float(width) * float(height), 0.0))
            )
            self._filters[track] = (one, seconds)
        return smoothed
