"""Boxes of persons from a detector, a JSON file, or the full image.

Boxes are (N, 4) left, top, right, bottom in pixels.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeGuard

import numpy as np

from poise.errors import DataError, escape_name, short_repr, single_line
from poise.inference.detectors.base import Detector
from poise.io.images import is_image_name
from poise.io.json_file import describe_field_error, read_json
from poise.io.video import Frame, ImageFiles, Video
from poise.structures.crops import MAX_COORD
from poise.structures.ids import parse_id
from poise.structures.skeleton import crowd_flag, find_category

log = logging.getLogger(__name__)

Detections = tuple[np.ndarray, np.ndarray]  # boxes (N, 4) float64 and scores (N,) float64

#: format name in the JSON of tools/demo.py, see docs/demo_schema.json
FORMAT = "poise poses"
_FORMATS = "a list of COCO detections, COCO annotations, or a poses.json of tools/demo.py"

_NAMES_HINT = (
    "give the COCO annotation file as --boxes, or detections with file_name, as"
    " tools/make_boxes.py writes them"
)


class BoxProvider(Protocol):
    """A source of person boxes.

    Attributes:
        name: for log lines and the JSON file.
    """

    name: str

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        """Return boxes and scores of each frame."""


class FullImage:
    """Treat each full image as one person."""

    name = "whole picture"  # a value of the JSON file

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        return [
            (np.array([[0.0, 0.0, frame.image.shape[1], frame.image.shape[0]]]), np.ones(1))
            for frame in frames
        ]


class DetectorBoxes:
    """Boxes of a detector of poise.inference.detectors."""

    def __init__(self, detector: Detector, name: str):
        self._detector = detector
        self.name = name

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        return self._detector([frame.image for frame in frames])


@dataclass
class _Entry:
    """Boxes of one image of a file.

    Attributes:
        boxes: (bbox, score) pairs.
        size: (width, height) of the image; None: not known.
    """

    boxes: list[tuple[Any, float]] = field(default_factory=list)
    size: tuple[float, float] | None = None


class BoxFile:
    """Boxes of a JSON file: COCO detections, COCO annotations, or a file of tools/demo.py.

    An image is matched with the file name of the JSON that shares the most path components from the
    end; the parent folder in the JSON, if any, must be that of the image. Detections without file
    names are matched by id if the image is named by its id: 000000000785.jpg and
    COCO_val2014_000000000785.jpg are image 785. A frame of a video is matched by its index from 0:
    image_id, the id of an image, or the index in a file of tools/demo.py.

    Boxes in the file are x, y, width, height in pixels. Annotations have score 1.

    Args:
        path: of the JSON file.
        threshold: boxes of a lower score are ignored.
        category: name or id; ignored if the file has only one category. In detections every name
            has COCO's id 1.

    Attributes:
        missing: number of frames that the file does not list.
        with_boxes: number of frames with boxes.

    Raises DataError that names the file and the entry.
    """

    def __init__(self, path: str | Path, threshold: float = 0.0, category: str | int = "person"):
        self.name = str(path)
        self.missing = 0
        self.with_boxes = 0
        self._threshold, self._category = threshold, category
        self._named: dict[str, _Entry] = {}
        self._numbered: dict[int, _Entry] = {}  # detections without file names
        self._indexed: dict[int, _Entry] = {}  # by frame index
        self._of_path: dict[str, _Entry | None] = {}
        self._video = ""  # video of a file of tools/demo.py
        self._image_name = ""  # a file name of an entry that also has an id
        content = read_json(path, "file of boxes")
        try:
            if isinstance(content, list):
                self._take_detections(content)
            elif (
                isinstance(content, dict)
                and content.get("format") == FORMAT
                and isinstance(content.get("frames"), list)
            ):
                self._take_demo_file(content["frames"])
            elif (
                isinstance(content, dict)
                and isinstance(content.get("annotations"), list)
                and isinstance(content.get("images"), list)
            ):
                self._take_annotations(content)
            else:
                raise DataError(f"{path}: unsupported format of boxes; expected {_FORMATS}")
        except _BadEntryError as error:
            raise DataError(f"{path}: {error}") from None
        # reversed and sorted, so that names with the longest common suffix are neighbors
        self._endings = sorted(_parts(name)[::-1] for name in self._named)
        self._folders = sorted({ending[1:] for ending in self._endings})

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        unknown = [f.name for f in frames if f.seconds is None and f.name not in self._of_path]
        if unknown:
            self._match(unknown)
        entries = [self._find_entry(frame) for frame in frames]
        for frame, entry in zip(frames, entries):
            self._check_size(frame, entry)
        detections = [self._boxes_of(entry) for entry in entries]
        self.missing += entries.count(None)
        self.with_boxes += sum(len(boxes) > 0 for boxes, _ in detections)
        return detections

    def check(self, source: ImageFiles | Video) -> None:
        """Raise DataError if matches are ambiguous or no frame of `source` can have a box."""
        if isinstance(source, ImageFiles):
            self._match(source.paths)
            entries = [self._of_path[path] for path in source.paths]
            example = next(iter(self._named), None) or next(iter(self._numbered), "none")
            missing = (
                f"the images of --input ({len(entries)}), such as {source.paths[0]}; it lists"
                f" images such as {escape_name(example)}"
            )
        else:
            if self._image_name:
                raise DataError(
                    f"{self.name}: has boxes of images, such as {escape_name(self._image_name)},"
                    f" but {source.name} is a video; give these images as --input, or remove"
                    " file_name and use the frame index from 0 as image_id"
                )
            entries = [entry for index, entry in self._indexed.items() if index >= 0]
            missing = f"{source.name}; frames are listed by index from 0 as image_id or id"
            if self._video and _parts(self._video)[-1] != _parts(source.name)[-1]:
                log.warning(
                    "%s",
                    f"{single_line(self.name)}: has boxes of {escape_name(self._video)},"
                    f" not of {single_line(source.name)}",
                )
        scores = [score for entry in entries if entry is not None for _, score in entry.boxes]
        if not scores:
            raise DataError(f"{self.name}: has no boxes for {missing}")
        if max(scores) < self._threshold:
            raise DataError(
                f"{self.name}: no box has a score of {self._threshold:g} or more; lower"
                f" --score-threshold, the highest is {max(scores):g}"
            )

    def _find_entry(self, frame: Frame) -> _Entry | None:
        if frame.seconds is None:
            return self._of_path[frame.name]
        return self._indexed.get(frame.index)

    def check_length(self, frames: int) -> None:
        """Warn of boxes after the last of a video's `frames`."""
        last = max((index for index, entry in self._indexed.items() if entry.boxes), default=0)
        if last >= frames:
            log.warning(
                "%s",
                f"{single_line(self.name)}: has boxes of frame {last}, but the last frame is"
                f" {frames - 1}; frames are counted from 0",
            )

    def _boxes_of(self, entry: _Entry | None) -> Detections:
        pairs = []
        if entry is not None:
            pairs = [pair for pair in entry.boxes if pair[1] >= self._threshold]
        boxes = np.array([box for box, _ in pairs], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes, np.array([score for _, score in pairs], np.float64)

    def _check_size(self, frame: Frame, entry: _Entry | None) -> None:
        height, width = frame.image.shape[:2]
        if entry is None or entry.size is None or entry.size == (width, height):
            return
        owner = "another image"
        if entry.size == (height, width):
            owner = "the image before its EXIF orientation is applied"
        raise DataError(
            f"{frame.name}: has {width} x {height} pixels, in {self.name} it has"
            f" {entry.size[0]:g} x {entry.size[1]:g}; the boxes belong to {owner}"
        )

    def _match(self, paths: Sequence[str]) -> None:
        """Set the entry of each image, None if the file has none.

        Raises DataError if a match is ambiguous, an entry names another folder, or an image has no
        id.
        """
        claims: dict[str, list[tuple[int, str]]] = {}
        for path in paths:
            name, common = self._closest(path)
            if name is not None:
                claims.setdefault(name, []).append((common, path))
        self._of_path.update(dict.fromkeys(paths))
        for name, images in claims.items():
            common, path = max(images)
            rivals = [other for length, other in images if length == common]
            if len(rivals) > 1:
                raise DataError(
                    f"{self.name}: {escape_name(name)} matches both {rivals[0]} and {rivals[1]};"
                    " add folders to its file_name"
                )
            if common == 1 < len(_parts(name)):
                raise DataError(
                    f"{self.name}: {escape_name(name)} is in another folder than {path}; rename"
                    " the folder of the images, or remove the folders from file_name"
                )
            self._of_path[path] = self._named[name]
        if self._numbered:
            self._match_numbers([path for path in paths if self._of_path[path] is None])

    def _closest(self, path: str) -> tuple[str | None, int]:
        """Return the name with the longest common suffix and its number of common components."""
        parts = _parts(os.path.abspath(path))[::-1]
        common, longest = _nearest(self._endings, parts)
        if not common:  # a name may lack the file's suffix
            parts = (PurePosixPath(parts[0]).stem, *parts[1:])
            common, longest = _nearest(self._endings, parts)
        if not common:
            return None, 0
        name = _joined(parts[:common])
        if name in self._named:
            return name, common
        if common - 1 < _nearest(self._folders, parts[1:])[0]:
            return None, 0  # the image's folder is listed, but not the image
        if len(longest) > 1:
            raise DataError(
                f"{self.name}: {path} matches both {escape_name(_joined(longest[0]))} and"
                f" {escape_name(_joined(longest[1]))}; name its folders as in one of them"
            )
        return _joined(longest[0]), common

    def _entry_of(self, name: str) -> _Entry:
        """Return the entry of a file name, the same for cam1/1.jpg and ./cam1/1.jpg."""
        return self._named.setdefault(_joined(_parts(name)[::-1]), _Entry())

    def _index(self, index: int, entry: _Entry, name: str | None) -> None:
        """Register the id of an entry, which is the frame index if the input is a video."""
        self._indexed.setdefault(index, entry)
        if name is not None and is_image_name(name):
            self._image_name = self._image_name or name

    def _match_numbers(self, paths: Sequence[str]) -> None:
        first_paths: dict[int, str] = {}
        for path in paths:
            number = _number_in_name(path)
            if number is None:
                raise DataError(
                    f"{self.name}: lists images by id only, but the name of {path} is not an image"
                    f" id; {_NAMES_HINT}"
                )
            other = first_paths.setdefault(number, path)
            if other != path and number in self._numbered:
                raise DataError(
                    f"{self.name}: lists images by id only, but {path} and {other} have the same"
                    f" id; {_NAMES_HINT}"
                )
            self._of_path[path] = self._numbered.get(number)

    def _add(self, to: _Entry, box: Any, score: Any, entry: str) -> None:
        numbers = [None]
        if isinstance(box, list) and len(box) == 4:
            numbers = [*box, score]
        if not all(
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and abs(value) < MAX_COORD
            for value in numbers
        ):
            raise _BadEntryError(
                f"{entry} needs a bbox of x, y, width, height in pixels and a score, all numbers;"
                f" it has {str(box)[:60]} and {str(score)[:20]}"
            )
        to.boxes.append((box, float(score)))

    def _take_detections(self, entries: list) -> None:
        categories = {_category(entry) for entry in _dicts(entries, "detection")}
        wanted = str(self._category) if isinstance(self._category, int) else "1"
        if len(categories) == 1:
            wanted = categories.pop()
        for number, entry in enumerate(_dicts(entries, "detection")):
            if _category(entry) != wanted:
                continue
            name, index = entry.get("file_name"), parse_id(entry.get("image_id"))
            if name is None and index is None:
                name = entry.get("image_id")
            if not (_is_name(name) or name is None and index is not None):
                raise _BadEntryError(
                    f"detection {number} needs an image_id, a number or a file name"
                )
            if name is not None:
                target = self._entry_of(name)
            else:
                assert index is not None, "checked above"
                target = self._numbered.setdefault(index, _Entry())
            if index is not None:
                self._index(index, target, name)
            self._add(target, entry.get("bbox"), entry.get("score", 1.0), f"detection {number}")

    def _take_annotations(self, content: dict) -> None:
        entries: dict[Any, _Entry] = {}
        for number, image in enumerate(_dicts(content["images"], "image")):
            name, key = image.get("file_name"), _image_key(image.get("id"))
            if not _is_name(name) or key is None:
                raise _BadEntryError(f"image {number} needs an id and a file_name")
            if key in entries:
                raise _BadEntryError(
                    f"two images have id {escape_name(str(key))}; give each image its own"
                )
            entries[key] = self._entry_of(name)
            entries[key].size = _size(image)
            if isinstance(key, int):
                self._index(key, entries[key], name)
        listed = list(_dicts(content.get("categories") or [], "category")) or [{"id": 1}]
        parts = [content["annotations"]]
        chosen = find_category(content, self._category, self.name, parts)
        if chosen is None and len(listed) == 1:
            chosen = listed[0]
        if chosen is None:
            raise _BadEntryError(
                f"none of its {len(listed)} categories is {short_repr(self._category)}, that of the"
                " experiment"
            )
        for number, entry in enumerate(_dicts(content["annotations"], "annotation")):
            crowd = crowd_flag(entry)
            if crowd is None:
                problem = describe_field_error(entry, "iscrowd", "0 or 1")
                raise _BadEntryError(f"annotation {number} {problem}; correct or remove it")
            if crowd or _category(entry) != str(_image_key(chosen.get("id"))):
                continue
            target = entries.get(_image_key(entry.get("image_id")))
            if target is None:
                raise _BadEntryError(f"annotation {number} has an image_id that is not in 'images'")
            self._add(target, entry.get("bbox"), 1.0, f"annotation {number}")

    def _take_demo_file(self, frames: list) -> None:
        for number, frame in enumerate(_dicts(frames, "frame")):
            name, persons = frame.get("file"), frame.get("persons")
            if (
                not _is_name(name)
                or not isinstance(frame.get("index"), int)
                or not isinstance(persons, list)
            ):
                raise _BadEntryError(f"frame {number} needs a file, an index and persons")
            if frame.get("seconds") is None:
                target = self._entry_of(name)
            else:
                target = self._indexed.setdefault(frame["index"], _Entry())
                self._video = name
            target.size = _size(frame)
            for person in _dicts(persons, f"person of frame {number}"):
                self._add(
                    target,
                    person.get("bbox"),
                    person.get("box_score", 1.0),
                    f"a person of frame {number}",
                )


class _BadEntryError(Exception):
    """An entry is invalid; the file's name is added where this is caught."""


def _dicts(entries: Any, what: str) -> Iterable[dict]:
    if not isinstance(entries, list):
        raise _BadEntryError(f"{what}: expected a list")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _BadEntryError(f"{what} {number}: expected an object, got {str(entry)[:40]}")
        yield entry


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(_parts(value))


def _image_key(value: Any) -> int | str | None:
    """Return the id of an image as an integer if it is one, else as text."""
    number = parse_id(value)
    if number is None and isinstance(value, str):
        return value
    return number


def _category(entry: dict) -> str:
    """Return the id of an entry's category as text; it may be any value."""
    value = entry.get("category_id", 1)
    number = parse_id(value)
    if number is not None:
        value = number
    return str(value)


def _size(entry: dict) -> tuple[float, float] | None:
    """Return (width, height) of an image or frame entry; None: not known."""
    width, height = entry.get("width"), entry.get("height")
    if not isinstance(width, (int, float)) or not isinstance(height, (int, float)):
        return None
    if width <= 0 or height <= 0:
        return None
    return width, height


def _parts(name: str) -> tuple[str, ...]:
    """Return the components of a path of any operating system and Unicode normalization."""
    path = posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    return tuple(part for part in PurePosixPath(path).parts if part != "..")


def _joined(ending: Sequence[str]) -> str:
    """Return the path of components in reverse order."""
    return str(PurePosixPath(*reversed(ending)))


def _nearest(
    endings: list[tuple[str, ...]], parts: tuple[str, ...]
) -> tuple[int, list[tuple[str, ...]]]:
    """Find the entries of a sorted list that share the most leading components with `parts`.

    Returns: the number of shared components, and the entries: one, or two to four if ambiguous.
    """
    index = bisect.bisect_left(endings, parts)
    near = endings[max(index - 2, 0) : index + 2]
    lengths = [_common_prefix(parts, ending) for ending in near]
    max_length = max(lengths, default=0)
    longest = [ending for ending, length in zip(near, lengths) if length == max_length]
    return max_length, longest


def _common_prefix(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the common prefix of two sequences."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


def _number_in_name(path: str) -> int | None:
    """Return the image id of a file name such as 785.jpg or COCO_val2014_000000000785.jpg."""
    match = re.fullmatch(r"(?:COCO_[^_]+_)?([0-9]{1,18})", Path(path).stem)
    return int(match.group(1)) if match else None


def usable(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a mask (N,) of boxes that are finite, overlap the image and are 1 pixel or larger."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
        inside = (boxes[:, :2] < (width, height)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        return (
            np.asarray(inside) & (np.abs(boxes) < MAX_COORD).all(axis=1) & (sides >= 1).all(axis=1)
        )
