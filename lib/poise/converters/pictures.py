"""What all formats can say: pictures, their size, and persons with a box and joints."""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from poise.bounded_reading import read_bytes
from poise.datasets import image_header
from poise.datasets.reading import MOST_BYTES
from poise.errors import DataError, shown
from poise.geometry import FARTHEST
from poise.pictures import is_picture_name

log = logging.getLogger(__name__)

_MARGIN = 0.1       # of the joints' extent, where nobody drew a box


@dataclass
class LabelledPerson:
    """box (4,): x, y, width, height in pixels. keypoints (J, 3): x, y and COCO's flag, 0 where it is not labelled."""

    box: np.ndarray
    keypoints: np.ndarray


@dataclass
class LabelledPicture:
    """name: relative to the image folder. width, height: in pixels."""

    name: str
    width: int
    height: int
    persons: list[LabelledPerson] = field(default_factory=list)


def label_files(names: Iterable[str], ending: str) -> dict[str, str]:
    """{file of a picture's labels: the picture's name}. Raises DataError for two pictures that would share one, a.jpg and a.png."""
    found: dict[str, str] = {}
    for name in names:
        file = PurePosixPath(name).with_suffix(ending).as_posix()
        if file in found:
            raise DataError(f"{shown(found[file])} and {shown(name)} have their labels in one file, {shown(file)}; rename one of the pictures")
        found[file] = name
    return found


def tell_left_out(where: str | Path, left: Counter[str]) -> None:
    """What a reader has left out, with numbers, as one warning."""
    if +left:
        log.warning("%s", f"{where}: left out: " + ", ".join(f"{count} {shown(reason, 80)}" for reason, count in sorted((+left).items())))


def box_around(keypoints: np.ndarray, width: float, height: float) -> np.ndarray:
    """The box (4,) around the labelled joints (J, 3), a tenth larger on each side, within the picture."""
    points = keypoints[keypoints[:, 2] > 0, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    margin = _MARGIN * np.maximum(high - low, 0.05 * max(width, height))
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, [width, height])
    return np.concatenate([low, high - low])


def image_sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """{name: (width, height)} of the pictures in a folder and those below it, by name, from their headers. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder")
    found = {}
    for path in sorted(path for path in folder.rglob("*") if is_picture_name(path)):
        size = image_header.claimed_size(read_bytes(path, "image", MOST_BYTES))
        if size is None or 0 in size:
            raise DataError(f"{path}: not an image that is read ({image_header.FORMATS} are); remove it from the folder")
        found[path.relative_to(folder).as_posix()] = size
    if not found:
        raise DataError(f"{folder}: has no images")
    return found


def numbers(values: Iterable[object], where: str, what: str) -> list[float]:
    """Values of a file as finite numbers that can be pixels, or DataError."""
    found = []
    for value in values:
        try:
            found.append(float(value) if not isinstance(value, bool) else float("nan"))     # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            found.append(float("nan"))
        if not abs(found[-1]) < FARTHEST:
            raise DataError(f"{where}: {what} has {shown(value, 40)} where a number is needed")
    return found
