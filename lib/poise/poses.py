"""Poses: the persons found in one picture, as other programs use them. Letters: N persons, J joints."""
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.skeleton import Skeleton


@dataclass(eq=False)      # arrays have no single answer to ==
class Poses:
    """The N persons of one picture.

    keypoints: (N, J, 2) float32, x and y in pixels of the picture; (0, 0) is the middle of its first pixel. scores: (N, J) float32, of
    each joint, about 0 to 1. boxes: (N, 4) float32, left, top, right, bottom in pixels, as they were asked for. person_scores: (N,) float32,
    the mean of the joint scores above TEST.IN_VIS_THRE, 0 where none is; for a score as tools/test.py writes it, multiply by the
    detector's. skeleton: names and limbs of the joints. shown_score: joints above it are drawn.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    person_scores: np.ndarray
    skeleton: Skeleton
    shown_score: float = 0.2

    def __len__(self) -> int:
        return len(self.keypoints)

    def to_coco(self, image_id: int = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """A dict for each person in COCO's format of keypoint results: image_id, category_id, keypoints (3 J numbers: x, y, score), score.

        Plain numbers, ready for json.dump. Raises DataError where a keypoint or score is not finite.
        """
        from poise.metrics import coco_results

        keypoints = np.concatenate([self.keypoints, self.scores[:, :, None]], axis=2)
        results = coco_results(np.full(len(self), image_id), keypoints, self.person_scores, category_id=category_id)
        return [{**result, "keypoints": result["keypoints"].tolist()} for result in results]

    def draw(self, image: str | os.PathLike | np.ndarray, *, least_score: float | None = None) -> np.ndarray:
        """A copy of the RGB picture (H, W, 3) uint8, an array or a path, with the skeletons drawn: the person's left orange, the right blue, the middle green.

        least_score: joints above it are drawn; by default `shown_score`. Raises DataError where there is no such picture.
        """
        from poise import visualize
        from poise.pictures import as_pixels

        drawn = np.array(as_pixels(image, "picture")[:, :, ::-1], order="C")     # a copy; visualize's colours are BGR
        for keypoints, scores in zip(self.keypoints, self.scores):
            visualize.draw_person(drawn, keypoints, self.skeleton, shown=scores > (self.shown_score if least_score is None else least_score))
        return np.ascontiguousarray(drawn[:, :, ::-1])
