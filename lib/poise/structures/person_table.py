"""PersonTable: every person of a set as NumPy arrays, which worker processes share without
copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from poise.errors import pluralize
from poise.structures.skeleton import Skeleton

UNKNOWN = -1.0  # visible: the set that a person is of does not have the joint (DATASET.MIX)


class PackedNames(Sequence):
    """Many strings in one byte buffer. A list of str would be copied into every worker as its
    reference counts change.
    """

    def __init__(self, buffer: np.ndarray, ends: np.ndarray) -> None:
        """buffer: uint8, the strings' UTF-8 one after the other. ends (M,): where each one ends."""
        self.buffer, self.ends = buffer, ends

    @classmethod
    def of(cls, names: Sequence[str]) -> PackedNames:
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

    image_names (M): file names relative to the set's image folder. image_ids (M,) int64.
    image_index (N,) int32: the image of each person. center (N, 2) pixels, extent (N, 2) box width
    and height in pixels, and scale (N, 2) in units of 200 pixels, the extent after margin and
    aspect fit: see poise.structures.crops. joints (N, J, 2) float32 pixels, visible (N, J) float32
    as COCO's flag: 0 not labelled, 1 labelled but hidden, 2 labelled and seen; both None where the
    set has no labels (detections, test sets); UNKNOWN where only other sets of a mix have the
    joint. score (N,): of the detector; 1 for annotated boxes. ids (N,): annotation id, or the
    detection's position. dropped: why and how many entries of the file are not here. box_source:
    'gt' or a detection file's name. category_id: of the set's persons, for result files. repeat
    (N,): how often a person comes in an epoch of training; None: once.
    """

    skeleton: Skeleton
    image_names: PackedNames
    image_ids: np.ndarray
    image_index: np.ndarray
    center: np.ndarray
    extent: np.ndarray
    scale: np.ndarray
    joints: np.ndarray | None
    visible: np.ndarray | None
    score: np.ndarray
    ids: np.ndarray
    box_source: str
    dropped: dict[str, int] = field(default_factory=dict)
    category_id: int = 1
    repeat: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def labelled(self) -> bool:
        return self.joints is not None

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) x, y, width and height in pixels, without margin."""
        return np.concatenate([self.center - self.extent / 2, self.extent], axis=1)

    def image_name(self, person: int) -> str:
        return self.image_names[int(self.image_index[person])]

    def select(self, keep: np.ndarray, reason: str) -> PersonTable:
        """The persons where `keep` (N,) bool is true; the others are counted under `reason`."""
        dropped = dict(self.dropped)
        if not keep.all():
            dropped[reason] = dropped.get(reason, 0) + int((~keep).sum())
        return PersonTable(
            self.skeleton,
            self.image_names,
            self.image_ids,
            self.image_index[keep],
            self.center[keep],
            self.extent[keep],
            self.scale[keep],
            None if self.joints is None else self.joints[keep],
            None if self.visible is None else self.visible[keep],
            self.score[keep],
            self.ids[keep],
            self.box_source,
            dropped,
            self.category_id,
            None if self.repeat is None else self.repeat[keep],
        )

    def summary(self) -> str:
        """One line for the log: persons, images, boxes, and what was dropped and why."""
        boxes = "ground-truth boxes" if self.box_source == "gt" else f"boxes of {self.box_source}"
        images = (
            f"{len(np.unique(self.image_index))} of {pluralize(len(self.image_names), 'image')}"
        )
        line = f"{pluralize(len(self), 'person')} in {images}, {boxes}"
        if self.dropped:
            line += "; dropped " + ", ".join(
                f"{count} {reason}" for reason, count in sorted(self.dropped.items())
            )
        return line
