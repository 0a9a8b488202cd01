"""Who is who from frame to frame: boxes of one frame are given to the boxes of those before by
their overlap.

As in SORT (Bewley et al., Simple Online and Realtime Tracking, ICIP 2016, arXiv 1602.00763) the
pairs are chosen together, so that the sum of their overlaps is the largest (the Hungarian method),
but without a model of motion: a box is looked for where it was last seen, as in the IoU tracker
(Bochinski et al., AVSS 2017). A person who moves by more than half a box between two frames becomes
a new one. Letters: N boxes of a frame, T tracks.
"""

from __future__ import annotations

import numpy as np

from poise.structures.boxes import pairwise_iou


class Tracker:
    """Gives each box the number of its track.

    least_iou: a box that overlaps with the last box of a track by less is not that track. patience:
    seconds for which a track that finds no box is kept. Numbers begin at 1 and are not used twice.
    """

    def __init__(self, least_iou: float = 0.3, patience: float = 1.0):
        from scipy.optimize import linear_sum_assignment

        self._assign = linear_sum_assignment
        self.least_iou, self.patience = least_iou, patience
        self._last_number = 0
        self._numbers = np.empty(0, np.int64)
        self._boxes, self._seen = np.empty((0, 4)), np.empty(0)

    def update(self, boxes: np.ndarray, seconds: float) -> np.ndarray:
        """The tracks (N,) int64 of the boxes (N, 4), left, top, right, bottom, of the frame at
        `seconds`. Frames come in order.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        alive = self._seen >= seconds - self.patience
        self._numbers, self._boxes, self._seen = (
            self._numbers[alive],
            self._boxes[alive],
            self._seen[alive],
        )
        overlap = pairwise_iou(boxes, self._boxes)
        # or a pair that will not stand could cost another one its partner
        overlap[overlap < self.least_iou] = 0
        box, track = self._assign(overlap, maximize=True)
        stands = overlap[box, track] > 0
        box, track = box[stands], track[stands]
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
