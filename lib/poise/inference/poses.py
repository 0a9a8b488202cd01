"""Poses: the persons found in one picture, as other programs use them. Letters: N persons, J
joints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from poise.errors import ConfigError, DataError, pluralize
from poise.structures.skeleton import Skeleton


@dataclass(eq=False, repr=False)  # arrays have no single answer to ==
class Poses:
    """The N persons of one picture. Iterating or indexing gives Poses of one person each.

    keypoints: (N, J, 2) float32, x and y in pixels of the picture; (0, 0) is the middle of its
    first pixel. scores: (N, J) float32, of each joint, about 0 to 1. boxes: (N, 4) float32, left,
    top, right, bottom in pixels, as they were asked for. person_scores: (N,) float32, the mean of
    the joint scores above TEST.IN_VIS_THRE, 0 where none is; for a score as tools/test.py writes
    it, multiply by the detector's. skeleton: names and limbs of the joints. vis_threshold: joints
    above it are drawn.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    person_scores: np.ndarray
    skeleton: Skeleton
    vis_threshold: float = 0.2

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, index: int | slice | np.ndarray) -> Poses:
        """Return the persons of a slice or mask, or the one of a number."""
        if isinstance(index, (int, np.integer)):
            # counts from the end below 0, raises IndexError beyond
            index = np.array([range(len(self))[index]])
        picked = {
            name: getattr(self, name)[index]
            for name in ("keypoints", "scores", "boxes", "person_scores")
        }
        return replace(self, **picked)

    def __iter__(self) -> Iterator[Poses]:
        return (self[person] for person in range(len(self)))

    def __repr__(self) -> str:
        scores = ", ".join(f"{score:.2f}" for score in self.person_scores[:8])
        more = ", ..." if len(self) > 8 else ""
        joints = f"{self.skeleton.num_keypoints} keypoints of {self.skeleton.name}"
        return f"Poses({pluralize(len(self), 'person')}, {joints}, person_scores=[{scores}{more}])"

    def to_coco(self, image_id: int = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """A dict for each person in COCO's format of keypoint results: image_id, category_id,
        keypoints (3 J numbers: x, y, score), score.

        Plain numbers, ready for json.dump. Raises DataError where a keypoint or score is not
        finite.
        """
        from poise.evaluation import coco_results

        keypoints = np.concatenate([self.keypoints, self.scores[:, :, None]], axis=2)
        results = coco_results(
            np.full(len(self), image_id), keypoints, self.person_scores, category_id=category_id
        )
        return [{**result, "keypoints": result["keypoints"].tolist()} for result in results]

    def draw(
        self,
        image: str | os.PathLike | np.ndarray,
        *,
        least_score: float | None = None,
        color: str = "auto",
        boxes: bool = False,
        ids: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """Return a copy of the RGB picture (H, W, 3) uint8, an array or a path, with the persons
        drawn.

        least_score: keypoints above it are drawn; by default `vis_threshold`. color: of the limbs;
        'side': the person's left orange, the right blue, the middle green; 'person': a hue for each
        person; 'auto': 'person' where there are several or `ids`. Dots always have the colors of
        'side'. boxes: draw boxes with the persons' scores. ids: (N,) numbers of tracked persons,
        which keep their hue; they are drawn in boxes.

        Raises DataError where there is no such picture, ConfigError for another `color` or number
        of `ids`.
        """
        from poise.io.images import as_rgb_array
        from poise.visualization import draw as visualize

        if color not in ("auto", "person", "side"):
            raise ConfigError(f"color {color!r}: must be 'auto', 'person' or 'side'")
        if ids is not None and len(ids) != len(self):
            raise ConfigError(
                f"ids: has {len(ids)} numbers for {len(self)} persons; give one for each"
            )
        # a copy; visualize's colours are BGR
        drawn = np.array(as_rgb_array(image, "picture")[:, :, ::-1], order="C")
        least = self.vis_threshold if least_score is None else least_score
        by_person = color == "person" or (color == "auto" and (ids is not None or len(self) > 1))
        numbers = range(len(self)) if ids is None else [int(number) for number in ids]
        hues = [visualize.person_color(number) if by_person else None for number in numbers]
        for keypoints, scores, box, hue in zip(self.keypoints, self.scores, self.boxes, hues):
            visualize.draw_person(
                drawn,
                keypoints,
                self.skeleton,
                shown=scores > least,
                person_side=_side(box),
                limb_color=hue,
            )
        if boxes or ids is not None:
            for box, number, score, hue in zip(self.boxes, numbers, self.person_scores, hues):
                label = [str(number)] * (ids is not None) + [f"{score:.2f}"] * boxes
                visualize.draw_box(drawn, box, " ".join(label), *([hue] if hue else []))
        return np.ascontiguousarray(drawn[:, :, ::-1])

    def save(
        self,
        path: str | os.PathLike,
        image: str | os.PathLike | np.ndarray | None = None,
        **options: Any,
    ) -> None:
        """Write the persons to a file: for .json as `to_coco`, else `image` with the persons drawn.

        image: as for `draw`. options: those of `to_coco` or `draw`. Raises DataError for a file
        that cannot be written.
        """
        from poise.io.files import atomic_write
        from poise.visualization import draw as visualize

        ending = Path(path).suffix.lower()
        if ending == ".json":
            data = json.dumps(self.to_coco(**options)).encode()
        elif not cv2.haveImageWriter(f"x{ending}"):
            raise DataError(
                f"{path}: unknown kind of file; use a name that ends in .json, .jpg or .png"
            )
        elif image is None:
            raise DataError(
                f"{path}: a picture to draw on is missing; give it as the second argument"
            )
        else:
            data = visualize.encode_image(
                np.ascontiguousarray(self.draw(image, **options)[:, :, ::-1]), ending
            )
        with atomic_write(path) as part:
            part.write_bytes(data)


def _side(box: np.ndarray) -> float:
    """Return the longer side of a box of left, top, right, bottom."""
    return float(max(box[2] - box[0], box[3] - box[1]))
