"""IoU tracker with Hungarian matching.

Matches maximize the sum of IoUs, as in SORT (Bewley et al., Simple Online and Realtime Tracking,
ICIP 2016, arXiv 1602.00763), but without a motion model, as in the IoU tracker (Bochinski et al.,
AVSS 2017). A person who moves by more than half a box between two frames gets a new track. Letters:
N boxes of a frame.
"""

from __future__ import annotations

import numpy as np

from poise.structures.boxes import pairwise_iou


class Tracker:
    """Assign track ids to boxes. Ids start at 1 and are not reused.

    Args:
        min_iou: minimum IoU of a box with the last box of its track.
        patience: seconds after which an unmatched track is removed.
    """

    def __init__(self, min_iou: float = 0.3, patience: float = 1.0):
        from scipy.optimize import linear_sum_assignment

        self._assign = linear_sum_assignment
        self.min_iou, self.patience = min_iou, patience
        self._last_number = 0
        self._numbers = np.empty(0, np.int64)
        self._boxes = np.empty((0, 4))
        self._seen = np.empty(0)

    def update(self, boxes: np.ndarray, seconds: float) -> np.ndarray:
        """Return the track ids (N,) int64 of a frame. Frames must be in order.

        Args:
            boxes: (N, 4) left, top, right, bottom.
            seconds: time of the frame.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        alive = self._seen >= seconds - self.patience
        self._numbers = self._numbers[alive]
        self._boxes = self._boxes[alive]
        self._seen = self._seen[alive]
        overlap = pairwise_iou(boxes, self._boxes)
        # otherwise a match that is rejected below could prevent a valid one
        overlap[overlap < self.min_iou] = 0
        box, track = self._assign(overlap, maximize=True)
        is_match = overlap[box, track] > 0
        box, track = box[is_match], track[is_match]
        numbers = np.zeros(len(boxes), np.int64)
        numbers[box] = self._numbers[track]
        new = np.flatnonzero(numbers == 0)
        numbers[new] = self._last_number + 1 + np.arange(len(new))
        self._last_number += len(new)
        waiting = np.setdiff1d(np.arange(len(self._numbers)), track)
        self._numbers = np.concatenate([numbers, self._numbers[waiting]])
        self._boxes = np.concatenate([boxes, self._boxes[waiting]])
        self._seen = np.concatenate([np.full(len(boxes), float(seconds)), self._seen[waiting]])
        return numbers
