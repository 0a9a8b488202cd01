"""Where the persons are: found by a detector, read from a JSON, or the whole picture. Boxes are
(N, 4) left, top, right, bottom in pixels.
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

#: of the JSON that tools/demo.py writes; docs/demo_schema.json describes it
FORMAT = "poise poses"
_FORMS = "a list of COCO detections, COCO annotations, or a poses.json of tools/demo.py"

_NAMES_NEEDED = (
    "give the COCO annotation file as --boxes, or detections with a file_name each, "
    "as tools/make_boxes.py writes them"
)


class BoxProvider(Protocol):
    """name: as it is told and written into the JSON."""

    name: str

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        """Boxes and their scores of each frame."""


class FullImage:
    name = "whole picture"

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        return [
            (np.array([[0.0, 0.0, frame.image.shape[1], frame.image.shape[0]]]), np.ones(1))
            for frame in frames
        ]


class DetectorBoxes:
    """What a detector of poise.inference.detectors finds."""

    def __init__(self, detector: Detector, name: str):
        self._detector, self.name = detector, name

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        return self._detector([frame.image for frame in frames])


@dataclass
class _Entry:
    """What a file of boxes says of one image. size: (width, height), None where it is not given."""

    boxes: list[tuple[Any, float]] = field(default_factory=list)
    size: tuple[float, float] | None = None


class BoxFile:
    """Boxes of a JSON: COCO detections, COCO annotations, or a file of tools/demo.py.

    An image is found by the longest common ending of its path and a file name of the JSON, whose
    nearest folder, if it has one, must be the image's. Only in detections without file names it is
    found by number, where the name is a number: 000000000785.jpg and COCO_val2014_000000000785.jpg
    are image 785. A frame of a video is found by its index from 0: image_id, the id of an image, or
    the index in a file of tools/demo.py.

    Boxes are x, y, width, height in pixels; those with a score below `threshold` are left out.
    Annotations have score 1. category: name or id; of a file that has one category alone all boxes
    are used. Annotations say which id has the name; in detections it is COCO's 1.

    missing: frames that the file does not list. with_boxes: frames that got a box.
    Raises DataError, naming the file and the entry, for what cannot be used.
    """

    def __init__(self, path: str | Path, threshold: float = 0.0, category: str | int = "person"):
        self.name, self.missing, self.with_boxes = str(path), 0, 0
        self._threshold, self._category = threshold, category
        self._named: dict[str, _Entry] = {}
        self._numbered: dict[int, _Entry] = {}  # detections without file names
        self._indexed: dict[int, _Entry] = {}  # by the index of a video's frame
        self._of_path: dict[str, _Entry | None] = {}
        self._video = ""  # the one that a file of tools/demo.py is of
        self._picture = ""  # a picture's file name of an entry that has a frame's index too
        content = read_json(path, "file of boxes")
        try:
            if isinstance(content, list):
                self._take_detections(content)
            elif (
                isinstance(content, dict)
                and content.get("format") == FORMAT
                and isinstance(content.get("frames"), list)
            ):
                self._take_own(content["frames"])
            elif (
                isinstance(content, dict)
                and isinstance(content.get("annotations"), list)
                and isinstance(content.get("images"), list)
            ):
                self._take_annotations(content)
            else:
                raise DataError(f"{path}: the file of boxes is none of these: {_FORMS}")
        except _BadEntryError as error:
            raise DataError(f"{path}: {error}") from None
        # last part first and sorted, so that the names with the longest common ending are neighbors
        self._endings = sorted(_parts(name)[::-1] for name in self._named)
        self._folders = sorted({ending[1:] for ending in self._endings})

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        unknown = [f.name for f in frames if f.seconds is None and f.name not in self._of_path]
        if unknown:
            self._match(unknown)
        entries = [
            self._of_path[frame.name] if frame.seconds is None else self._indexed.get(frame.index)
            for frame in frames
        ]
        for frame, entry in zip(frames, entries):
            self._check_size(frame, entry)
        found = [self._boxes_of(entry) for entry in entries]
        self.missing += entries.count(None)
        self.with_boxes += sum(len(boxes) > 0 for boxes, _ in found)
        return found

    def check(self, source: ImageFiles | Video) -> None:
        """Raise DataError where two images could be meant, or no frame of `source` can have a
        box.
        """
        if isinstance(source, ImageFiles):
            self._match(source.paths)
            entries = [self._of_path[path] for path in source.paths]
            example = next(iter(self._named), None) or next(iter(self._numbered), "none")
            whose = (
                f"the pictures of --input ({len(entries)}), such as {source.paths[0]}; its own "
                f"are such as {escape_name(example)}"
            )
        else:
            if self._picture:
                raise DataError(
                    f"{self.name}: its boxes are of pictures, such as"
                    f" {escape_name(self._picture)}, "
                    f"and {source.name} is a video; give those pictures as --input, or "
                    "entries without a file_name, with the frame's index from 0 as image_id"
                )
            entries = [entry for index, entry in self._indexed.items() if index >= 0]
            whose = f"{source.name}; a frame is listed by its index from 0 as image_id or id"
            if self._video and _parts(self._video)[-1] != _parts(source.name)[-1]:
                log.warning(
                    "%s",
                    f"{single_line(self.name)}: its boxes are of {escape_name(self._video)}, "
                    f"not of {single_line(source.name)}",
                )
        boxes = [score for entry in entries if entry is not None for _, score in entry.boxes]
        if not boxes:
            raise DataError(f"{self.name}: has no box for any of {whose}")
        if max(boxes) < self._threshold:
            raise DataError(
                f"{self.name}: no box has a score of {self._threshold:g} or more; lower "
                f"--score-threshold, the best has {max(boxes):g}"
            )

    def check_length(self, frames: int) -> None:
        """Warn of boxes behind the last of a video's `frames`."""
        last = max((index for index, entry in self._indexed.items() if entry.boxes), default=0)
        if last >= frames:
            log.warning(
                "%s",
                f"{single_line(self.name)}: has boxes of frame {last}, and the last frame "
                f"is {frames - 1}; frames are counted from 0",
            )

    def _boxes_of(self, entry: _Entry | None) -> Detections:
        kept = [pair for pair in entry.boxes if pair[1] >= self._threshold] if entry else []
        boxes = np.array([box for box, _ in kept], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes, np.array([score for _, score in kept], np.float64)

    def _check_size(self, frame: Frame, entry: _Entry | None) -> None:
        height, width = frame.image.shape[:2]
        if entry is None or entry.size is None or entry.size == (width, height):
            return
        of = "of another picture"
        if entry.size == (height, width):
            of = "of the picture before its EXIF orientation is applied"
        raise DataError(
            f"{frame.name}: is {width} x {height} pixels, in {self.name} it is "
            f"{entry.size[0]:g} x {entry.size[1]:g}; its boxes are {of}"
        )

    def _match(self, paths: Sequence[str]) -> None:
        """Find the entry of each picture, None where there is none.

        Raises DataError where two entries could be meant by one picture or two pictures by one
        entry, where an entry is of another folder, and where a picture's number cannot be known.
        """
        claims: dict[str, list[tuple[int, str]]] = {}
        for path in paths:
            name, common = self._closest(path)
            if name is not None:
                claims.setdefault(name, []).append((common, path))
        self._of_path.update(dict.fromkeys(paths))
        for name, pictures in claims.items():
            common, path = max(pictures)
            rivals = [other for length, other in pictures if length == common]
            if len(rivals) > 1:
                raise DataError(
                    f"{self.name}: {escape_name(name)} could be {rivals[0]} or {rivals[1]}; "
                    "file names with more of their folders are needed"
                )
            if common == 1 < len(_parts(name)):
                raise DataError(
                    f"{self.name}: {escape_name(name)} is in another folder than {path}; rename "
                    "the folder of the pictures, or remove the folders from file_name"
                )
            self._of_path[path] = self._named[name]
        if self._numbered:
            self._match_numbers([path for path in paths if self._of_path[path] is None])

    def _closest(self, path: str) -> tuple[str | None, int]:
        """The name with the longest common ending, and how many parts that has."""
        own = _parts(os.path.abspath(path))[::-1]
        common, longest = _nearest(self._endings, own)
        if not common:  # a name may lack the file's extension
            own = (PurePosixPath(own[0]).stem, *own[1:])
            common, longest = _nearest(self._endings, own)
        if not common:
            return None, 0
        whole = _joined(own[:common])
        if whole in self._named:
            return whole, common
        if common - 1 < _nearest(self._folders, own[1:])[0]:
            return None, 0  # the picture's folder is listed, without the picture
        if len(longest) > 1:
            raise DataError(
                f"{self.name}: {path} could be {escape_name(_joined(longest[0]))} or "
                f"{escape_name(_joined(longest[1]))}; its folders must be named as in one of them"
            )
        return _joined(longest[0]), common

    def _entry_of(self, name: str) -> _Entry:
        """The entry of a file name, the same one for cam1/1.jpg and ./cam1/1.jpg."""
        return self._named.setdefault(_joined(_parts(name)[::-1]), _Entry())

    def _index(self, index: int, entry: _Entry, name: str | None) -> None:
        """Note the id of an entry, which is a frame's index where the input is a video."""
        self._indexed.setdefault(index, entry)
        if name is not None and is_image_name(name):
            self._picture = self._picture or name

    def _match_numbers(self, paths: Sequence[str]) -> None:
        seen: dict[int, str] = {}
        for path in paths:
            number = _number_in_name(path)
            other = None if number is None else seen.setdefault(number, path)
            if number is None or (other != path and number in self._numbered):
                fault = (
                    "whose name is not the number of an image"
                    if number is None
                    else f"whose number is that of {other} too"
                )
                raise DataError(
                    f"{self.name}: names images by number only, and there is {path}, "
                    f"{fault}; {_NAMES_NEEDED}"
                )
            self._of_path[path] = self._numbered.get(number)

    def _add(self, to: _Entry, box: Any, score: Any, entry: str) -> None:
        numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else [None]
        if not all(
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and abs(value) < MAX_COORD
            for value in numbers
        ):
            raise _BadEntryError(
                f"{entry} needs a bbox of x, y, width, height in pixels and a score, all numbers; "
                f"it has {str(box)[:60]} and {str(score)[:20]}"
            )
        to.boxes.append((box, float(score)))

    def _take_detections(self, entries: list) -> None:
        categories = {_category(entry) for entry in _dicts(entries, "detection")}
        default = self._category if isinstance(self._category, int) else 1
        wanted = categories.pop() if len(categories) == 1 else str(default)
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
                own = self._entry_of(name)
            else:
                assert index is not None, "an entry has a name or a number: see above"
                own = self._numbered.setdefault(index, _Entry())
            if index is not None:
                self._index(index, own, name)
            self._add(own, entry.get("bbox"), entry.get("score", 1.0), f"detection {number}")

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
        chosen = chosen or (listed[0] if len(listed) == 1 else None)
        if chosen is None:
            raise _BadEntryError(
                f"none of its {len(listed)} categories is {short_repr(self._category)}, whose"
                " boxes are wanted"
            )
        for number, entry in enumerate(_dicts(content["annotations"], "annotation")):
            crowd = crowd_flag(entry)
            if crowd is None:
                fault = describe_field_error(entry, "iscrowd", "0 or 1")
                raise _BadEntryError(f"annotation {number} {fault}; correct or remove it")
            if crowd or _category(entry) != str(_image_key(chosen.get("id"))):
                continue
            own = entries.get(_image_key(entry.get("image_id")))
            if own is None:
                raise _BadEntryError(
                    f"annotation {number} is of an image that the file does not list"
                )
            self._add(own, entry.get("bbox"), 1.0, f"annotation {number}")

    def _take_own(self, frames: list) -> None:
        for number, frame in enumerate(_dicts(frames, "frame")):
            name, persons = frame.get("file"), frame.get("persons")
            if (
                not _is_name(name)
                or not isinstance(frame.get("index"), int)
                or not isinstance(persons, list)
            ):
                raise _BadEntryError(f"frame {number} needs a file, an index and persons")
            if frame.get("seconds") is None:
                own = self._entry_of(name)
            else:
                own, self._video = self._indexed.setdefault(frame["index"], _Entry()), name
            own.size = _size(frame)
            for person in _dicts(persons, f"person of frame {number}"):
                self._add(
                    own,
                    person.get("bbox"),
                    person.get("box_score", 1.0),
                    f"a person of frame {number}",
                )


class _BadEntryError(Exception):
    pass


def _dicts(entries: Any, what: str) -> Iterable[dict]:
    if not isinstance(entries, list):
        raise _BadEntryError(f"{what}: a list is needed")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _BadEntryError(f"{what} {number} is no object but {str(entry)[:40]}")
        yield entry


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(_parts(value))


def _image_key(value: Any) -> int | str | None:
    """The id of an image as a number where it is one, else as text."""
    number = parse_id(value)
    return number if number is not None else value if isinstance(value, str) else None


def _category(entry: dict) -> str:
    """The id of an entry's category as text, for ids that are no numbers too."""
    value = entry.get("category_id", 1)
    number = parse_id(value)
    return str(value if number is None else number)


def _size(entry: dict) -> tuple[float, float] | None:
    """(width, height) that an image or frame of a file gives, None without."""
    width, height = entry.get("width"), entry.get("height")
    if isinstance(width, (int, float)) and isinstance(height, (int, float)):
        return (width, height) if width > 0 and height > 0 else None
    return None


def _parts(name: str) -> tuple[str, ...]:
    """A path's parts, whichever system and Unicode normalization it comes from."""
    path = posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    return tuple(part for part in PurePosixPath(path).parts if part != "..")


def _joined(ending: Sequence[str]) -> str:
    """The path of which `ending` has the parts, last first."""
    return str(PurePosixPath(*reversed(ending)))


def _nearest(
    endings: list[tuple[str, ...]], own: tuple[str, ...]
) -> tuple[int, list[tuple[str, ...]]]:
    """Find the entries of a sorted list that begin with the most parts of `own`.

    Returns how many parts that is, and the one entry, or two to four where there are several.
    """
    place = bisect.bisect_left(endings, own)
    near = endings[max(place - 2, 0) : place + 2]
    lengths = [_common_beginning(own, ending) for ending in near]
    most = max(lengths, default=0)
    longest = [ending for ending, length in zip(near, lengths) if length == most]
    return most, longest


def _common_beginning(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts at the beginning of two sequences are the same."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


def _number_in_name(path: str) -> int | None:
    """The image id that a file name is: 000000000785.jpg, COCO_val2014_000000000785.jpg."""
    found = re.fullmatch(r"(?:COCO_[^_]+_)?([0-9]{1,18})", Path(path).stem)
    return int(found.group(1)) if found else None


def usable(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N,) bool: boxes (N, 4) that are finite, have a pixel of width and height, and touch the
    picture. Of others no crop shows a person.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
        inside = (boxes[:, :2] < (width, height)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        return (
            np.asarray(inside) & (np.abs(boxes) < MAX_COORD).all(axis=1) & (sides >= 1).all(axis=1)
        )
