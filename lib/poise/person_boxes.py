"""Where the persons are: found by a detector, read from a JSON, or the whole picture. Boxes are (N, 4) left, top, right, bottom in pixels."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from poise.errors import DataError, shown_value
from poise.geometry import FARTHEST
from poise.json_files import read_json
from poise.media import Frame
from poise.skeleton import find_category

Found = tuple[np.ndarray, np.ndarray]       # boxes (N, 4) float64 and scores (N,) float64

#: of the JSON that tools/demo.py writes; docs/demo_schema.json describes it
FORMAT = "poise poses"
_FORMS = "a list of COCO detections, COCO annotations, or a poses.json of tools/demo.py"


class BoxSource(Protocol):
    """name: as it is told and written into the JSON."""

    name: str

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        """Boxes and their scores of each frame."""


class WholePictures:
    name = "whole picture"

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        return [(np.array([[0.0, 0.0, frame.image.shape[1], frame.image.shape[0]]]), np.ones(1)) for frame in frames]


class DetectedPersons:
    """What a detector of poise.detectors finds."""

    def __init__(self, detector, name: str):
        self._detector, self.name = detector, name

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        return self._detector([frame.image for frame in frames])


class GivenBoxes:
    """Boxes of a JSON: COCO's detections, COCO's annotations, or what tools/demo.py wrote.

    A picture is looked for by its file name, or, in detections, by its number: 000000000785.jpg and COCO_val2014_000000000785.jpg are image 785.
    A frame of a video is looked for by its index from 0, as image_id, as the id of an image or as the index in our own JSON. Boxes are x, y,
    width, height in pixels. Boxes with a score below `threshold` are not taken; those of annotations have score 1. category: name or id of those that are
    taken; of a file that has one category alone all are. Which id has the name is told by annotations; in detections it is taken for COCO's 1. `missing`
    counts the frames that the file says nothing about. Raises DataError, naming the file and the entry, for what cannot be used.
    """

    def __init__(self, path: str | Path, threshold: float = 0.0, category: str | int = "person"):
        self.name, self.missing, self._threshold, self._category = str(path), 0, threshold, category
        content = read_json(path, "file of boxes")
        self._of: dict[Any, list[tuple[Any, float]]] = {}
        try:
            if isinstance(content, list):
                self._take_detections(content)
            elif isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("frames"), list):
                self._take_own(content["frames"])
            elif isinstance(content, dict) and isinstance(content.get("annotations"), list) and isinstance(content.get("images"), list):
                self._take_annotations(content)
            else:
                raise DataError(f"{path}: the file of boxes is none of these: {_FORMS}")
        except _BadEntry as error:
            raise DataError(f"{path}: {error}") from None

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        return [self._of_frame(frame) for frame in frames]

    def _of_frame(self, frame: Frame) -> Found:
        for key in _keys(frame):
            if key in self._of:
                found = [(box, score) for box, score in self._of[key] if score >= self._threshold]
                boxes = np.array([box for box, _ in found], np.float64).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                return boxes, np.array([score for _, score in found], np.float64)
        self.missing += 1
        return np.empty((0, 4)), np.empty(0)

    def _add(self, key: Any, box: Any, score: Any, entry: str) -> None:
        numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else [None]
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < FARTHEST for value in numbers):
            raise _BadEntry(f"{entry} needs a bbox of x, y, width, height in pixels and a score, all numbers; "
                            f"it has {str(box)[:60]} and {str(score)[:20]}")
        self._of.setdefault(key, []).append((box, float(score)))

    def _take_detections(self, entries: list) -> None:
        categories = {str(entry.get("category_id", 1)) for entry in _dicts(entries, "detection")}
        wanted = categories.pop() if len(categories) == 1 else str(self._category) if isinstance(self._category, int) else "1"
        for number, entry in enumerate(_dicts(entries, "detection")):
            if str(entry.get("category_id", 1)) != wanted:
                continue
            image = entry.get("image_id")
            if not isinstance(image, (int, str)) or isinstance(image, bool):
                raise _BadEntry(f"detection {number} needs an image_id, a number or a file name")
            self._add(image, entry.get("bbox"), entry.get("score", 1.0), f"detection {number}")

    def _take_annotations(self, content: dict) -> None:
        names = {}
        for number, image in enumerate(_dicts(content["images"], "image")):
            name, key = image.get("file_name"), image.get("id")
            if not isinstance(name, str) or not isinstance(key, (int, str)):
                raise _BadEntry(f"image {number} needs an id and a file_name")
            names[key] = name
            self._of.setdefault(("index", key), self._of.setdefault(name, []))      # the same list under each of its names
        self._know_by_bare_names(names.values())
        listed = list(_dicts(content.get("categories") or [], "category")) or [{"id": 1}]
        chosen = find_category(content, self._category) or (listed[0] if len(listed) == 1 else None)
        if chosen is None:
            raise _BadEntry(f"none of its {len(listed)} categories is {shown_value(self._category)}, whose boxes are wanted")
        for number, entry in enumerate(_dicts(content["annotations"], "annotation")):
            if entry.get("category_id", 1) != chosen.get("id") or entry.get("iscrowd"):
                continue
            if not isinstance(entry.get("image_id"), (int, str)) or entry["image_id"] not in names:
                raise _BadEntry(f"annotation {number} is of an image that the file does not list")
            self._add(names[entry["image_id"]], entry.get("bbox"), 1.0, f"annotation {number}")

    def _take_own(self, frames: list) -> None:
        for number, frame in enumerate(_dicts(frames, "frame")):
            name, persons = frame.get("file"), frame.get("persons")
            if not isinstance(name, str) or not isinstance(frame.get("index"), int) or not isinstance(persons, list):
                raise _BadEntry(f"frame {number} needs a file, an index and persons")
            key = name if frame.get("seconds") is None else ("index", frame["index"])
            self._of.setdefault(key, [])
            for person in _dicts(persons, f"person of frame {number}"):
                self._add(key, person.get("bbox"), person.get("box_score", 1.0), f"a person of frame {number}")
        self._know_by_bare_names(frame["file"] for frame in frames if frame.get("seconds") is None)

    def _know_by_bare_names(self, names: Iterable[str]) -> None:
        """Pictures are found without their folder too, unless two have one name: then none of them is meant by the name alone."""
        names = set(names)
        bare = Counter(Path(name).name for name in names)
        for name in names:
            if bare[Path(name).name] == 1:
                self._of.setdefault(Path(name).name, self._of[name])


class _BadEntry(Exception):
    pass


def _dicts(entries: Any, what: str) -> Iterable[dict]:
    if not isinstance(entries, list):
        raise _BadEntry(f"{what}: a list is needed")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _BadEntry(f"{what} {number} is no object but {str(entry)[:40]}")
        yield entry


def _keys(frame: Frame) -> list[Any]:
    """Under what the boxes of a frame may be found, best first."""
    if frame.seconds is not None:
        return [("index", frame.index), frame.index]
    path = Path(frame.name)
    digits = re.search(r"(\d{1,18})$", path.stem)
    return [frame.name, path.name, path.stem, *([int(digits.group(1))] if digits else [])]


def usable(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N,) bool: boxes (N, 4) that are finite, have a pixel of width and height, and touch the picture. Of others no crop shows a person."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
        inside = (boxes[:, :2] < (width, height)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        return inside & (np.abs(boxes) < FARTHEST).all(axis=1) & (sides >= 1).all(axis=1)
