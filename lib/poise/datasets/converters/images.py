"""Labeled images, the common ground of all formats, and checks of their sizes."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from poise.errors import DataError, escape_name
from poise.io import image_header
from poise.io.decoding import EncodedImage
from poise.io.files import read_bytes
from poise.io.image_folder import MAX_ENCODED_BYTES, ImageFolder
from poise.io.images import is_image_name
from poise.structures.crops import MAX_COORD

log = logging.getLogger(__name__)

_MARGIN = 0.1  # of the joints' extent, if no box was drawn
_MAX_KINDS = 10  # of what was left out, that are listed
_MAX_REASONS = 1000  # counted apart; labels are as many as the file has
_OTHER = "other labels"
_ONE = re.compile(r"\A(?:(box)es|((?:crowd |other |more )?\w+)s)\b")


@dataclass
class LabeledPerson:
    """A person.

    Attributes:
        box: (4,) x, y, width, height in pixels.
        keypoints: (K, 3) x, y and COCO's flag, 0 if not labeled.
    """

    box: np.ndarray
    keypoints: np.ndarray


@dataclass
class LabeledImage:
    """An image with persons.

    Attributes:
        name: Path relative to the image folder.
        width: Pixels.
        height: Pixels.
        persons: The persons.
    """

    name: str
    width: int
    height: int
    persons: list[LabeledPerson] = field(default_factory=list)


def label_files(names: Iterable[str], ending: str) -> dict[str, str]:
    """Return {label file of an image: name of the image}.

    Raises DataError for two images with the same label file, as a.jpg and a.png.
    """
    owners: dict[str, str] = {}
    for name in names:
        file = PurePosixPath(name).with_suffix(ending).as_posix()
        if file in owners:
            raise DataError(
                f"{escape_name(owners[file])} and {escape_name(name)} have their labels in one"
                f" file, {escape_name(file)}; rename one of the images"
            )
        owners[file] = name
    return owners


class SkipCounter(Counter[str]):
    """Count skipped shapes by reason, which starts with a plural noun."""

    def add(self, reason: str, count: int = 1) -> None:
        """Count shapes; the memory stays small whatever labels a file has."""
        reason = escape_name(reason, 80)
        is_counted = reason in self or len(self) < _MAX_REASONS
        self[reason if is_counted else _OTHER] += count


def describe_skipped(left: SkipCounter) -> str:
    """Return what a reader skipped, with numbers; '' for nothing."""
    counted = +left
    kinds = sorted(counted.items())
    num_more = len(kinds) - _MAX_KINDS
    if num_more > 0:
        kinds = counted.most_common(_MAX_KINDS)
    parts = [f"{count} {_for_count(reason, count)}" for reason, count in kinds]
    if num_more > 0:
        parts.append(f"{num_more} {_for_count('more kinds', num_more)}")
    return ", ".join(parts)


def _for_count(reason: str, count: int) -> str:
    return _ONE.sub(r"\1\2", reason, count=1) if count == 1 else reason


def log_skipped(where: str | Path, left: SkipCounter) -> None:
    """Log what a reader skipped, with numbers, as one warning."""
    if +left:
        log.warning("%s", f"{where}: left out: {describe_skipped(left)}")


def match_boxes(
    where: str, boxes: Sequence[tuple[Any, np.ndarray]], persons: Sequence[Any]
) -> list[np.ndarray | None]:
    """Return each person's box, None for a person without one.

    boxes: (group, box (4,)). persons: the group of each. None stands for no group: such a box
    belongs to the only person without one, and such a person to the only box that is left. Raises
    DataError where there are several.
    """
    box_groups = Counter(group for group, _ in boxes if group is not None)
    person_groups = Counter(group for group in persons if group is not None)
    for group, count in box_groups.items():
        if count > 1 or person_groups[group] > 1:
            what = "two boxes" if count > 1 else "a box and two persons"
            raise DataError(
                f"{where}: {what} have the group_id {escape_name(group, 40)}; give each person's"
                " points "
                "and box a group_id of their own"
            )
    unused = {group: box for group, box in boxes if group is not None}
    matched = [None if group is None else unused.pop(group, None) for group in persons]
    free_boxes = [box for group, box in boxes if group is None]
    free_persons = [place for place, group in enumerate(persons) if group is None]
    if len(free_boxes) == len(free_persons) == 1:
        matched[free_persons[0]] = free_boxes[0]
        free_boxes, free_persons = [], []
    rest = [*unused.values(), *free_boxes]
    without = [place for place, box in enumerate(matched) if box is None]
    if not rest or not without or not (free_boxes or free_persons):
        return matched
    if len(rest) > 1 or len(without) > 1:
        raise DataError(
            f"{where}: boxes without a person: {len(rest)}, persons without a box: {len(without)}, "
            "and some have no group_id; give each person's points and box a group_id of their own"
        )
    matched[without[0]] = rest[0]
    return matched


def box_around(keypoints: np.ndarray, width: float, height: float) -> np.ndarray:
    """Return the box (4,) around the labeled keypoints (K, 3).

    It is a tenth larger on each side, within the image.
    """
    points = keypoints[keypoints[:, 2] > 0, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    margin = _MARGIN * np.maximum(high - low, 0.05 * max(width, height))
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, [width, height])
    return np.concatenate([low, high - low])


class ImageSize(NamedTuple):
    """Width and height of an image as read with DATASET.EXIF False (stored) and True (upright)."""

    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int


def image_size(path: Path) -> ImageSize:
    """Read the size of an image file, with few exceptions from its header. Raises DataError."""
    data = read_bytes(path, "image", MAX_ENCODED_BYTES)
    size = image_header.read_size(data)
    if size is None or 0 in size:
        raise DataError(
            f"{path}: not an image that is read ({image_header.FORMATS} are); "
            "save it as JPEG, or remove it from the folder"
        )
    orientation = image_header.exif_orientation(data)
    if orientation < 5:
        return ImageSize(size, size, orientation)
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        return ImageSize(size, size[::-1], orientation)
    if image_header.find_error(data):
        return ImageSize(size, size, orientation)
    # OpenCV's versions differ in when they turn WebP, and they turn TIFF always
    stored = EncodedImage(data, exif=False).size
    upright = EncodedImage(data, exif=True).size
    return ImageSize(stored or size, upright or size, orientation)


def image_sizes(folder: Path) -> dict[str, ImageSize]:
    """Return {name: size} of the images in a folder and those below it, by name.

    Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder")
    paths = sorted(path for path in folder.rglob("*") if is_image_name(path))
    if not paths:
        raise DataError(f"{folder}: has no images")
    return {path.relative_to(folder).as_posix(): image_size(path) for path in paths}


def check_sizes(where: str | Path, labeled_images: Sequence[LabeledImage], folder: Path) -> None:
    """Compare labels that name their image's size with the image files below `folder`.

    Raises DataError for a missing image and for one of another size. Logs which DATASET.EXIF the
    labels need, if any image has an EXIF orientation.
    """
    turned: Counter[str] = Counter()
    for image in labeled_images:
        if not (folder / image.name).is_file():
            hint = ImageFolder(folder).spelling_hint(image.name)
            raise DataError(f"{where}: {folder} has no image {escape_name(image.name)}{hint}")
        size, labeled = image_size(folder / image.name), (image.width, image.height)
        if labeled not in (size.stored, size.upright):
            raise DataError(
                f"{where}: the labels are of an image of {labeled[0]} x {labeled[1]} pixels, "
                f"and {folder / image.name} has {size.upright[0]} x {size.upright[1]}; give the "
                "images that were labeled"
            )
        if size.orientation > 1 and size.stored == size.upright:
            turned["both sizes equal: set DATASET.EXIF True if upright images were labeled"] += 1
        elif size.orientation > 1 and labeled == size.upright:
            turned["labels of the upright image: set DATASET.EXIF True"] += 1
        elif size.orientation > 1:
            turned["labels of the stored pixels: set DATASET.EXIF False"] += 1
    for text, count in turned.items():
        log.warning(
            "%s",
            f"{folder}: images with an EXIF orientation: {count} of {len(labeled_images)}; {text}",
        )


def numbers(values: Iterable[Any], where: str, description: str) -> list[float]:
    """Return values of a file as finite numbers in the range of pixels, or raise DataError."""
    result = []
    for value in values:
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not abs(number) < MAX_COORD:
            raise DataError(
                f"{where}: {description} has {escape_name(value, 40)} where a number is needed"
            )
        result.append(number)
    return result
