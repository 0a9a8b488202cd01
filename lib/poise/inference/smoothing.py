"""One-Euro smoothing of tracked keypoints (Casiez, Roussel and Vogel, 1 Euro Filter, CHI 2012).

A low-pass filter whose cutoff frequency rises with the speed: keypoints at rest do not jitter, fast
ones have little lag. Speeds are in body sizes (square root of the box area) per second, so that the
parameters do not depend on the distance of a person.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

MIN_CUTOFF = 1.0  # Hz, at rest; docs/demo.md explains the choice
BETA = 5.0  # Hz per body size per second
SPEED_CUTOFF = 1.0  # Hz, of the speed itself; the paper's value


class OneEuroFilter:
    """Filter of one signal of points (..., D), with one speed for the D coordinates."""

    def __init__(
        self, min_cutoff: float = MIN_CUTOFF, beta: float = BETA, speed_cutoff: float = SPEED_CUTOFF
    ):
        self.min_cutoff, self.beta, self.speed_cutoff = min_cutoff, beta, speed_cutoff
        self._seconds = -math.inf
        self._value: np.ndarray | None = None
        self._velocity: np.ndarray | None = None

    def __call__(self, value: np.ndarray, seconds: float, unit: float = 1.0) -> np.ndarray:
        """Return the filtered value (..., D) float64 at the time `seconds`.

        The first value is returned unchanged. A value that is not later than the last is ignored.

        unit: length of 1 in units of speed.
        """
        value = np.asarray(value, np.float64)
        if self._value is None:
            self._seconds = seconds
            self._value = value.copy()
            self._velocity = np.zeros_like(value)
            return self._value.copy()
        period = seconds - self._seconds
        if period <= 0:
            return self._value.copy()
        # difference to the last filtered value, as in the paper and its authors' code
        velocity = (value - self._value) / period
        alpha = _smoothing_factor(self.speed_cutoff, period)
        self._velocity = alpha * velocity + (1 - alpha) * self._velocity
        speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True) / max(unit, 1e-9)
        alpha = _smoothing_factor(self.min_cutoff + self.beta * speed, period)
        self._value = alpha * value + (1 - alpha) * self._value
        self._seconds = seconds
        return self._value.copy()


def _smoothing_factor(cutoff: Any, period: float) -> Any:
    """Return alpha of a low-pass filter with a cutoff in Hz, equation 5 of the paper."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * period))


class PoseSmoother:
    """A filter per track. patience: seconds after which an unseen track is forgotten."""

    def __init__(self, min_cutoff: float = MIN_CUTOFF, beta: float = BETA, patience: float = 1.0):
        self._parameters = (min_cutoff, beta)
        self.patience = patience
        self._filters: dict[int, tuple[OneEuroFilter, float]] = {}

    def update(
        self, tracks: np.ndarray, keypoints: np.ndarray, boxes: np.ndarray, seconds: float
    ) -> np.ndarray:
        """Return the smoothed keypoints (N, K, 2) float32 of a frame.

        Args:
            tracks: (N,) track ids.
            keypoints: (N, K, 2) pixels.
            boxes: (N, 4) xyxy pixels.
            seconds: time of the frame.
        """
        self._filters = {
            track: (smoothing_filter, last_seconds)
            for track, (smoothing_filter, last_seconds) in self._filters.items()
            if last_seconds >= seconds - self.patience
        }
        smoothed = np.empty(np.shape(keypoints), np.float32)
        for person, track in enumerate(np.asarray(tracks).tolist()):
            if track not in self._filters:
                self._filters[track] = (OneEuroFilter(*self._parameters), seconds)
            smoothing_filter, _ = self._filters[track]
            width, height = boxes[person][2:] - boxes[person][:2]
            smoothed[person] = smoothing_filter(
                keypoints[person], seconds, math.sqrt(max(float(width) * float(height), 0.0))
            )
            self._filters[track] = (smoothing_filter, seconds)
        return smoothed
