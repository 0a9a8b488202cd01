"""Person detectors in ONNX files, run by onnxruntime (extra `onnx`).

Supported graphs, recognized by the shapes of their outputs:

- Exports of torchvision's detectors: input (3, H, W) or (1, 3, H, W), float32 RGB from 0 to 1;
  outputs boxes (N, 4) left, top, right, bottom in input pixels, labels (N,) with 1 for a person,
  and scores (N,), optionally with a leading batch dimension of 1.
- YOLO v8, v9, 11: input (1, 3, H, W) as above, output (1, 4 + C, A) or (1, A, 4 + C): center x, y,
  width, height in input pixels and the scores of C classes for each of A anchors; class 0 is a
  person. Boxes with an IoU above 0.7 with a better one are removed. With 85 numbers per anchor
  (v5 to v7, 80 COCO classes) class scores are multiplied by an objectness score before them.
- YOLO without NMS (v10, 26, and exports with NMS): output (1, N, 6): left, top, right, bottom in
  input pixels, score, class.

Metadata of Ultralytics (names, end2end, args) defines which class is a person, the number of
classes (so that keypoints of a pose network are not read as classes) and whether NMS is needed.

If the file fixes H and W, the image is scaled to fit and padded with gray. Otherwise YOLO gets
640 x 640 and other detectors the original size. An input of uint8 gets pixels from 0 to 255.
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
from poise.inference.detectors.base import PERSON, select_persons
from poise.inference.export.onnx_network import create_session

log = logging.getLogger(__name__)

_SIDE = 640  # YOLO's input size, if the file has none
_GRAY = 114  # padding, as in the training of YOLO
_NMS_IOU = 0.7
_MAX_TEXT = 100_000  # characters of metadata
_YOLO_PERSON = 0  # in COCO's 80 classes; default if the file has no class names
_V5_COLUMNS = 4 + 1 + 80
_FORMS = (
    "outputs boxes (N, 4), labels (N,) and scores (N,), or one of (1, 4 + classes, anchors) or (1,"
    " N, 6)"
)


class OnnxDetector:
    """A detector in an ONNX file, see the module.

    Args:
        path: of the file.
        device: as for PoseEstimator.
        score_threshold: minimum score of boxes.
        weights: must be None, the file contains its weights.
        folder: not used, nothing is downloaded.

    Raises DataError for an unsupported file.
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
                f"{path}: an ONNX file contains its weights; omit --detector-weights {weights}"
            )
        if not Path(path).is_file():
            raise DataError(f"{path}: no such detector file")
        self._path = str(path)
        self._threshold = score_threshold
        self._session, _ = create_session(path, device)
        self._run_options = _run_options()
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
                f"{path}: unsupported detector; expected one input (1, 3, H, W) or (3, H, W) of"
                f" float or uint8 and {_FORMS}"
            )
        self._is_yolo = len(outputs) == 1
        self._num_classes: int | None = None
        self._person = _YOLO_PERSON
        self._has_nms = False
        if self._is_yolo:
            self._read_metadata(self._session.get_modelmeta().custom_metadata_map)
        self._size = self._input_size(shape)

    def _input_size(self, shape: Sequence[Any]) -> tuple[int, int] | None:
        """Return (width, height) of the input, None for images of any size."""
        sides = []
        for side in shape[-2:]:
            if isinstance(side, int) and side > 0:
                sides.append(side)
            elif self._is_yolo:
                sides.append(_SIDE)
            else:
                return None
        height, width = sides
        return width, height

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._size is None:
            padded, zoom, left, top = image, 1.0, 0, 0
        else:
            padded, zoom, left, top = _letterbox(image, self._size)
        pixels = np.ascontiguousarray(padded.transpose(2, 0, 1))
        if self._input.type == "tensor(float)":
            pixels = pixels.astype(np.float32) / 255
        if len(self._input.shape) == 4:
            pixels = pixels[None]
        try:
            outputs = self._session.run(None, {self._input.name: pixels}, self._run_options)
        except Exception as error:
            raise DataError(
                f"{self._path}: the detector failed on an image of"
                f" {padded.shape[1]} x {padded.shape[0]} ({single_line(error)[:200]})"
            ) from None
        if self._is_yolo:
            boxes, scores = self._parse_yolo(outputs[0])
        else:
            boxes, scores = self._parse_torchvision(outputs)
        boxes = (boxes - [left, top, left, top]) / zoom
        return select_persons(boxes, scores, self._threshold, image.shape)

    def _parse_torchvision(self, outputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if any(output.ndim == 3 for output in outputs):  # all have a batch dimension
            outputs = [output[0] if len(output) == 1 else output for output in outputs]
        boxes = [output for output in outputs if output.ndim == 2 and output.shape[1] == 4]
        labels = [output for output in outputs if output.ndim == 1 and output.dtype.kind in "iu"]
        scores = [output for output in outputs if output.ndim == 1 and output.dtype.kind == "f"]
        if not len(boxes) == len(labels) == len(scores) == 1 or not len(boxes[0]) == len(
            labels[0]
        ) == len(scores[0]):
            raise DataError(
                f"{self._path}: the detector's outputs have the shapes"
                f" {', '.join(str(output.shape) for output in outputs)}; expected {_FORMS}"
            )
        is_person = labels[0] == PERSON
        return boxes[0][is_person].astype(np.float64), scores[0][is_person].astype(np.float64)

    def _parse_yolo(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        has_nms = False
        if output.ndim == 3:
            has_nms = output.shape[2] == 6 or (self._has_nms and output.shape[2] > 6)
        if output.ndim != 3 or output.shape[0] != 1 or (min(output.shape[1:]) < 5 and not has_nms):
            raise DataError(
                f"{self._path}: the detector's output has the shape {output.shape}; expected"
                f" {_FORMS}"
            )
        rows = output[0].astype(np.float64)
        if has_nms:
            is_person = rows[:, 5] == self._person
            return rows[is_person, :4], rows[is_person, 4]
        if rows.shape[0] <= rows.shape[1]:  # there are more anchors than classes
            rows = rows.T
        classes = rows[:, 4:]
        if rows.shape[1] == _V5_COLUMNS:
            classes = rows[:, 4:5] * rows[:, 5:]
        classes = classes[:, : self._num_classes]
        if classes.shape[1] <= self._person:
            raise DataError(
                f"{self._path}: the detector's output has {classes.shape[1]} classes, person is"
                f" class {self._person}"
            )
        scores = classes[:, self._person]
        selected = (
            (classes.argmax(axis=1) == self._person)
            & (scores >= self._threshold)
            & np.isfinite(rows[:, :4]).all(axis=1)
        )
        center = rows[selected, :2]
        half = rows[selected, 2:4] / 2
        boxes = np.concatenate([center - half, center + half], axis=1)
        remaining = box_nms(boxes, scores[selected], _NMS_IOU)
        return boxes[remaining], scores[selected][remaining]

    def _read_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set classes and NMS from metadata of Ultralytics.

        If there are several classes without person, the first is used and a warning is logged: the
        detector may be for dogs.
        """
        names = _parse_literal(metadata.get("names", ""))
        arguments = _parse_literal(metadata.get("args", ""))
        self._has_nms = metadata.get("end2end") == "True" or (
            isinstance(arguments, dict) and arguments.get("nms") is True
        )
        if isinstance(names, (list, tuple)):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names or not set(names) <= set(range(len(names))):
            return
        self._num_classes = len(names)
        persons = [number for number, name in names.items() if str(name).lower() == "person"]
        self._person = next(iter(persons), 0)
        if not persons and len(names) > 1:
            classes = ", ".join(map(str, names.values()))
            log.warning(
                "%s",
                f"{single_line(self._path)}: no class person; using the first of"
                f" {escape_name(classes)}",
            )


def _parse_literal(text: str) -> Any:
    """Return the value of a Python literal, None for other text. Runs no code."""
    if len(text) >= _MAX_TEXT:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _run_options() -> Any:
    """Return options that silence onnxruntime's stderr; errors are reported by _detect."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, int, int]:
    """Scale an image to fit into `size` (width, height) and pad it.

    Returns: the padded image, the scale, and left and top of the image in it.
    """
    width, height = size
    zoom = min(width / image.shape[1], height / image.shape[0])
    inner = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas = np.full((height, width, 3), _GRAY, np.uint8)
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(
        image, inner, interpolation=cv2.INTER_LINEAR
    )
    return canvas, zoom, left, top
