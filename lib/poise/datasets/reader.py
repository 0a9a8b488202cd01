"""The interface of an annotation format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from poise.structures.person_table import PersonTable


@dataclass(frozen=True)
class Reader:
    """An annotation format.

    Attributes:
        read_table: called as read_table(cfg, split, detections=..., margin=...), where `detections`
            asks for the boxes of TEST.COCO_BBOX_FILE and `margin` is a factor in x and y.
        has_detections: whether detection files exist for this format.
        box_ids_per_image: whether mmpose counts the annotated boxes of each image from 0.
    """

    read_table: Callable[..., PersonTable]
    has_detections: bool = False
    box_ids_per_image: bool = False
