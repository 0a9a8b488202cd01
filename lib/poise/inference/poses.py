"""Poses of the persons of one image.

Letters: N persons, K keypoints.
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


@dataclass(eq=False, repr=False)  # == of arrays is not a bool
class Poses:
    """The N persons of one image. Iterating or indexing returns Poses.

    Attributes:
        keypoints: (N, K, 2) float32, x and y in image pixels; (0, 0) is the center of the first
            pixel.
        scores: (N, K) float32, about 0 to 1.
        boxes: (N, 4) float32, left, top, right, bottom in pixels, as requested.
        person_scores: (N,) float32, mean of the keypoint scores above TEST.IN_VIS_THRE, or 0.
            Multiplied by the score of the detector it is the score that tools/test.py writes.
        skeleton: names and limbs of the keypoints.
        vis_threshold: keypoints of a higher score are drawn.
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
        """Return the persons of a slice or mask, or one person by index."""
        if isinstance(index, (int, np.integer)):
            # supports negative indices, raises IndexError
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
        """Return a dict per person in COCO's keypoint result format, ready for json.dump.

        Raises DataError if a keypoint or score is not finite.
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
        """Draw the persons on a copy of an image.

        Args:
            image: RGB (H, W, 3) uint8, or a path.
            least_score: keypoints of a higher score are drawn; None: vis_threshold.
            color: of the limbs. 'side': left orange, right blue, middle green; 'person': a color
                per person; 'auto': 'person' for several persons or with `ids`. Dots always have the
                colors of 'side'.
            boxes: draw boxes with the scores of the persons.
            ids: (N,) track ids, which determine the colors; they are drawn in boxes.

        Returns: RGB (H, W, 3) uint8.

        Raises DataError if the image cannot be read, ConfigError for invalid `color` or `ids`.
        """
        from poise.io.images import as_rgb_array
        from poise.visualization import draw as visualize

        if color not in ("auto", "person", "side"):
            raise ConfigError(f"color {color!r}: must be 'auto', 'person' or 'side'")
        if ids is not None and len(ids) != len(self):
            raise ConfigError(
                f"ids: has {len(ids)} numbers for {len(self)} persons; pass one per person"
            )
        # a copy; colors of visualize are BGR
        drawn = np.array(as_rgb_array(image, "image")[:, :, ::-1], order="C")
        min_score = self.vis_threshold if least_score is None else least_score
        by_person = color == "person" or (color == "auto" and (ids is not None or len(self) > 1))
        numbers = range(len(self)) if ids is None else [int(number) for number in ids]
        hues = [visualize.person_color(number) if by_person else None for number in numbers]
        for keypoints, scores, box, hue in zip(self.keypoints, self.scores, self.boxes, hues):
            visualize.draw_person(
                drawn,
                keypoints,
                self.skeleton,
                shown=scores > min_score,
                person_side=_side(box),
                limb_color=hue,
            )
        if boxes or ids is not None:
            for box, number, score, hue in zip(self.boxes, numbers, self.person_scores, hues):
                label = []
                if ids is not None:
                    label.append(str(number))
                if boxes:
                    label.append(f"{score:.2f}")
                visualize.draw_box(drawn, box, " ".join(label), hue)
        return np.ascontiguousarray(drawn[:, :, ::-1])

    def save(
        self,
        path: str | os.PathLike,
        image: str | os.PathLike | np.ndarray | None = None,
        **options: Any,
    ) -> None:
        """Write the persons as .json (see to_coco), or an image file with the persons drawn.

        Args:
            path: file to write.
            image: to draw on, as for draw.
            options: of to_coco or draw.

        Raises DataError if the file cannot be written.
        """
        from poise.io.files import atomic_write
        from poise.visualization import draw as visualize

        ending = Path(path).suffix.lower()
        if ending == ".json":
            data = json.dumps(self.to_coco(**options)).encode()
        elif not cv2.haveImageWriter(f"x{ending}"):
            raise DataError(f"{path}: unsupported file type; use .json, .jpg or .png")
        elif image is None:
            raise DataError(f"{path}: missing image to draw on; pass it as the second argument")
        else:
            data = visualize.encode_image(
                np.ascontiguousarray(self.draw(image, **options)[:, :, ::-1]), ending
            )
        with atomic_write(path) as part:
            part.write_bytes(data)


def _side(box: np.ndarray) -> float:
    """Return the longer side of a box (4,) left, top, right, bottom."""
    return float(max(box[2] - box[0], box[3] - box[1]))
