"""All persons of a dataset split as NumPy arrays, which worker processes share without copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from poise.errors import pluralize
from poise.structures.skeleton import Skeleton

NOT_ANNOTATED = -1.0  # visibility of a keypoint that the person's dataset lacks (DATASET.MIX)

_PERSON_COLUMNS = (
    "image_index",
    "center",
    "box_wh",
    "scale",
    "keypoints",
    "visibility",
    "score",
    "ann_ids",
)


class PackedStrings(Sequence):
    """Many strings in one byte buffer.

    A list of str would be copied into every worker process as its reference counts change.

    Args:
        buffer: uint8, the UTF-8 of all strings.
        ends: (M,) end of each string in the buffer.
    """

    def __init__(self, buffer: np.ndarray, ends: np.ndarray) -> None:
        self.buffer = buffer
        self.ends = ends

    @classmethod
    def pack(cls, names: Sequence[str]) -> PackedStrings:
        """Return the strings of a sequence in a new buffer."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        return cls(
            np.frombuffer(b"".join(encoded), dtype=np.uint8),
            np.cumsum([len(name) for name in encoded], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        start = self.ends[index - 1] if index else 0
        return self.buffer[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class PersonTable:
    """N persons in M images.

    Attributes:
        image_names: (M,) file names, relative to the image folder of the split.
        image_ids: (M,) int64.
        image_index: (N,) int32, the image of each person.
        center: (N, 2) box centers in pixels.
        box_wh: (N, 2) width and height of the boxes in pixels, without margin.
        scale: (N, 2) box_wh after margin and aspect ratio, in units of 200 pixels; see
            poise.structures.crops.
        keypoints: (N, K, 2) float32 pixels; zeros if has_keypoints is False.
        visibility: (N, K) float32, COCO's flag: 0 not labeled, 1 labeled but occluded, 2 visible;
            NOT_ANNOTATED for keypoints that only other datasets of DATASET.MIX have.
        score: (N,) detection score; 1 for annotated boxes.
        ann_ids: (N,) annotation id, or the position in the detection file.
        box_source: 'gt' or the name of a detection file.
        dropped: {reason: number of entries of the file that are left out}.
        category_id: category of the persons, for result files.
        repeat_factor: (N,) how often each person is drawn per epoch of training; None is once.
        has_keypoints: False for detections and for splits without annotations.
    """

    skeleton: Skeleton
    image_names: PackedStrings
    image_ids: np.ndarray
    image_index: np.ndarray
    center: np.ndarray
    box_wh: np.ndarray
    scale: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    score: np.ndarray
    ann_ids: np.ndarray
    box_source: str
    dropped: dict[str, int] = field(default_factory=dict)
    category_id: int = 1
    repeat_factor: np.ndarray | None = None
    has_keypoints: bool = True

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def boxes(self) -> np.ndarray:
        """Boxes (N, 4) x, y, width and height in pixels, without margin."""
        return np.concatenate([self.center - self.box_wh / 2, self.box_wh], axis=1)

    def image_name(self, person: int) -> str:
        return self.image_names[int(self.image_index[person])]

    def select(self, keep: np.ndarray, reason: str) -> PersonTable:
        """Return the persons of the mask `keep` (N,); the others are counted under `reason`."""
        dropped = dict(self.dropped)
        if not keep.all():
            dropped[reason] = dropped.get(reason, 0) + int((~keep).sum())
        selected = {name: getattr(self, name)[keep] for name in _PERSON_COLUMNS}
        if self.repeat_factor is not None:
            selected["repeat_factor"] = self.repeat_factor[keep]
        return replace(self, dropped=dropped, **selected)

    def summary(self) -> str:
        """Return one line for the log: persons, images, boxes, and what was dropped and why."""
        boxes = f"boxes of {self.box_source}"
        if self.box_source == "gt":
            boxes = "ground-truth boxes"
        images = (
            f"{len(np.unique(self.image_index))} of {pluralize(len(self.image_names), 'image')}"
        )
        line = f"{pluralize(len(self), 'person')} in {images}, {boxes}"
        if self.dropped:
            line += "; dropped " + ", ".join(
                f"{count} {reason}" for reason, count in sorted(self.dropped.items())
            )
        return line
