"""A person detector in an ONNX file, run by onnxruntime, which must be installed (the extra
`onnx`).

What is taken, told apart by the outputs' shapes:

- As torchvision's detectors are exported: an input (3, H, W) or (1, 3, H, W), float32 RGB from 0 to
  1, and three outputs: boxes (N, 4) left, top, right, bottom in pixels of the input, labels (N,)
  with 1 for a person, and scores (N,); a leading 1 in a shape is fine.
- As YOLO's (v8, v9, 11): an input (1, 3, H, W) as above and one output (1, 4 + C, A): for each of A
  places its centre x, y, width and height in pixels of the input and the scores of C classes, of
  which class 0 is a person. Boxes that overlap by more than 0.7 of a better one's are dropped. An
  output (1, A, 4 + C) is the same, turned. 85 numbers a place are those of v5 to v7 for COCO's 80
  classes: before the classes stands how likely it is that there is anything, by which their scores
  are multiplied.
- As YOLO's that need no suppression (v10, 26, and any that were exported with it): one output (1,
N, 6): left, top, right, bottom in pixels of the input, score, class.

What Ultralytics writes into its files' metadata (names, end2end, args) is believed: which class is
called person, how many there are, so that the joints of a pose network are not taken for classes,
and whether the output needs suppression.

Where the file fixes H and W, the picture is scaled to fit and the rest is grey; where it leaves
them open, YOLO's get 640 x 640 and the others the picture as it is. An input of uint8 gets pixels
from 0 to 255.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from poise.errors import ConfigError, DataError, escape_name, single_line
from poise.evaluation.nms import box_nms
from poise.inference.detectors.base import PERSON, persons
from poise.inference.export.onnx_network import create_session

log = logging.getLogger(__name__)

_SIDE = 640  # of YOLO's input, where the file does not say
_GREY = 114  # beside a picture of another shape, as YOLO is trained
_OVERLAP = 0.7
_MOST_TEXT = 100_000  # of metadata
_PERSON_OF_YOLO = 0  # in COCO's 80 classes, and where the file does not say
_COLUMNS_OF_V5 = 4 + 1 + 80
_FORMS = (
    "outputs boxes (N, 4), labels (N,) and scores (N,), or one of (1, 4 + classes, places) or (1,"
    " N, 6)"
)


class OnnxDetector:
    """See the module. Raises DataError for a file that is not of one of these kinds.

    weights: must be None, the file has its own. folder: not used, nothing is downloaded.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "auto",
        score_threshold: float = 0.5,
        *,
        weights: str | Path | None = None,
        folder: str | Path | None = None,
    ):
        if weights is not None:
            raise ConfigError(
                f"{path}: an ONNX file has its weights in it; {weights} cannot be used with it"
            )
        if not Path(path).is_file():
            raise DataError(f"{path}: no such detector file")
        self._path, self._threshold = str(path), score_threshold
        self._session, _ = create_session(path, device)
        self._quiet = _quiet_options()
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._input = inputs[0]
        shape = self._input.shape
        if (
            len(inputs) != 1
            or len(shape) not in (3, 4)
            or self._input.type not in ("tensor(float)", "tensor(uint8)")
            or len(outputs) not in (1, 3)
        ):
            raise DataError(
                f"{path}: not a detector that is understood; it needs one input (1, 3, H, W) or (3,"
                f" H, W) of float or uint8 and {_FORMS}"
            )
        self._yolo = len(outputs) == 1
        self._classes, self._person, self._suppressed = (
            _told_by_ultralytics(path, self._session.get_modelmeta().custom_metadata_map)
            if self._yolo
            else (None, 0, False)
        )
        height, width = (
            side if isinstance(side, int) and side > 0 else _SIDE if self._yolo else None
            for side in shape[-2:]
        )
        self._size = None if height is None or width is None else (width, height)

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        placed, zoom, left, top = (
            (image, 1.0, 0, 0) if self._size is None else _fitted(image, self._size)
        )
        pixels = np.ascontiguousarray(placed.transpose(2, 0, 1))
        if self._input.type == "tensor(float)":
            pixels = pixels.astype(np.float32) / 255
        try:
            answers = self._session.run(
                None,
                {self._input.name: pixels[None] if len(self._input.shape) == 4 else pixels},
                self._quiet,
            )
        except Exception as error:
            size = f"{placed.shape[1]} x {placed.shape[0]}"
            raise DataError(
                f"{self._path}: the detector fails on a picture of {size}"
                f" ({single_line(error)[:200]})"
            ) from None
        boxes, scores = self._of_yolo(answers[0]) if self._yolo else self._of_three(answers)
        return persons(
            (boxes - [left, top, left, top]) / zoom, scores, self._threshold, image.shape
        )

    def _of_three(self, answers: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if any(answer.ndim == 3 for answer in answers):  # each has a batch's dimension in front
            answers = [answer[0] if len(answer) == 1 else answer for answer in answers]
        boxes = [answer for answer in answers if answer.ndim == 2 and answer.shape[1] == 4]
        labels = [answer for answer in answers if answer.ndim == 1 and answer.dtype.kind in "iu"]
        scores = [answer for answer in answers if answer.ndim == 1 and answer.dtype.kind == "f"]
        if not len(boxes) == len(labels) == len(scores) == 1 or not len(boxes[0]) == len(
            labels[0]
        ) == len(scores[0]):
            raise DataError(
                f"{self._path}: the detector's outputs have the shapes"
                f" {', '.join(str(answer.shape) for answer in answers)}; it needs {_FORMS}"
            )
        person = labels[0] == PERSON
        return boxes[0][person].astype(np.float64), scores[0][person].astype(np.float64)

    def _of_yolo(self, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        suppressed = answer.ndim == 3 and (
            answer.shape[2] == 6 or self._suppressed and answer.shape[2] > 6
        )
        if answer.ndim != 3 or answer.shape[0] != 1 or min(answer.shape[1:]) < 5 and not suppressed:
            raise DataError(
                f"{self._path}: the detector's output has the shape {answer.shape}; it needs"
                f" {_FORMS}"
            )
        table = answer[0].astype(np.float64)
        if suppressed:
            person = table[:, 5] == self._person
            return table[person, :4], table[person, 4]
        if table.shape[0] <= table.shape[1]:  # there are more places than classes
            table = table.T
        classes = table[:, 4:] if table.shape[1] != _COLUMNS_OF_V5 else table[:, 4:5] * table[:, 5:]
        classes = classes[:, : self._classes]
        if classes.shape[1] <= self._person:
            raise DataError(
                f"{self._path}: the detector's output has {classes.shape[1]} classes, and its"
                f" person is number {self._person}"
            )
        best, scores = classes.argmax(axis=1), classes[:, self._person]
        chosen = (
            (best == self._person)
            & (scores >= self._threshold)
            & np.isfinite(table[:, :4]).all(axis=1)
        )
        center, half, scores = table[chosen, :2], table[chosen, 2:4] / 2, scores[chosen]
        boxes = np.concatenate([center - half, center + half], axis=1)
        kept = box_nms(boxes, scores, _OVERLAP)
        return boxes[kept], scores[kept]


def _told_by_ultralytics(
    path: str | Path, metadata: Mapping[str, str]
) -> tuple[int | None, int, bool]:
    """(number of classes, None where it is not told; number of the class of persons; whether the
    output needs no suppression).

    Where several classes are named and none of them person, the first is taken, and the log says
    so: a network may be of dogs.
    """
    names, arguments = (_literal(metadata.get(key, "")) for key in ("names", "args"))
    suppressed = (
        metadata.get("end2end") == "True"
        or isinstance(arguments, dict)
        and arguments.get("nms") is True
    )
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not set(names) <= set(range(len(names))):
        return None, _PERSON_OF_YOLO, suppressed
    persons = [number for number, name in names.items() if str(name).lower() == "person"]
    if not persons and len(names) > 1:
        log.warning(
            "%s",
            f"{single_line(path)}: finds no class person but"
            f" {escape_name(', '.join(map(str, names.values())))}; the first is taken",
        )
    return len(names), persons[0] if persons else 0, suppressed


def _literal(text: str) -> Any:
    """What a Python literal in the metadata stands for, None for other text. No code is run."""
    try:
        return ast.literal_eval(text) if len(text) < _MOST_TEXT else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _quiet_options() -> Any:
    """onnxruntime writes nothing of its own on stderr when it fails on a picture: our error
    tells it in one line.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _fitted(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, int, int]:
    """The picture scaled into the middle of a grey one of `size` (width, height); the zoom, and
    its left and top there.
    """
    width, height = size
    zoom = min(width / image.shape[1], height / image.shape[0])
    inner = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas = np.full((height, width, 3), _GREY, np.uint8)
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(
        image, inner, interpolation=cv2.INTER_LINEAR
    )
    return canvas, zoom, left, top
