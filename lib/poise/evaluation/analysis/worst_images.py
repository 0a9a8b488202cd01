"""Draw the images with the highest loss: labeled persons, and predictions with their errors.

Letters: as poise.evaluation.analysis.matching; I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from poise.errors import DataError, single_line
from poise.evaluation import keypoint_ap
from poise.evaluation.analysis.errors import INVERSION, JOINTS, MISS, SWAP, JointErrors
from poise.evaluation.analysis.matching import (
    BACKGROUND,
    DUPLICATE,
    FOUND,
    PREDICTIONS,
    GroundTruth,
    Results,
)
from poise.io.image_folder import ImageFolder
from poise.visualization import draw as visualize
from poise.visualization.html import encode_data_uri

# BGR of the lines from a wrong keypoint to its position; different from skeleton colors
ERROR_COLORS = {INVERSION: (220, 60, 220), SWAP: (50, 50, 235), MISS: (40, 220, 240)}
# maximum width of all panels of an image together, and maximum height, in pixels
ROW_WIDTH, PANEL_HEIGHT = 1010, 420
_LINE_SCALE = 0.7  # of skeletons, relative to those of single crops
_BLANK = 235  # gray value without an image


@dataclass(frozen=True)
class OperatingPoint:
    """The score threshold that maximizes F1 at OKS 0.5, with its precision and recall."""

    score: float
    precision: float
    recall: float


def operating_point(results: Results) -> OperatingPoint:
    """Return the best score threshold; zeros without scored predictions."""
    truth = results.truth
    matches = keypoint_ap.match(
        truth.persons,
        results.image,
        results.keypoints,
        results.scores,
        truth.sigmas,
        thresholds=np.array([0.5]),
        sizes=[keypoint_ap.SIZES["all"]],
    )
    counted = ~matches.dismissed[0, 0]
    scores = results.scores[matches.order][counted]
    is_match = matches.person[0, 0][counted] >= 0
    if not len(scores):
        return OperatingPoint(0.0, 0.0, 0.0)
    best_first = np.argsort(-scores, kind="stable")
    scores = scores[best_first]
    hits = np.cumsum(is_match[best_first])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / truth.counted.sum()
    # a threshold includes all predictions of equal score
    last = np.append(scores[1:] != scores[:-1], True)
    f1 = np.where(last, 2 * precision * recall / np.maximum(precision + recall, 1e-12), -1)
    best = int(f1.argmax())
    return OperatingPoint(float(scores[best]), float(precision[best]), float(recall[best]))


def losses(results: Results, min_score: float) -> np.ndarray:
    """Return the loss (I,) of each image.

    The sum of 1 - OKS of every scored person, 1 for persons without a match, and 1 for each
    duplicate or background prediction with a score of `min_score` or more.
    """
    truth, pairs = results.truth, results.pairs
    lost = np.bincount(
        truth.persons.image, np.where(truth.counted, 1 - pairs.found_oks, 0), len(truth.images)
    )
    return lost + np.bincount(
        results.image[false_predictions(results, min_score)], minlength=len(truth.images)
    )


def false_predictions(results: Results, min_score: float) -> np.ndarray:
    """Return a mask (D,) of duplicate and background predictions of `min_score` or more."""
    return np.isin(results.pairs.kind, (DUPLICATE, BACKGROUND)) & (results.scores >= min_score)


@dataclass(frozen=True)
class WorstImage:
    """A drawn image.

    Attributes:
        name, image_id: of the image.
        lost: loss in each result file.
        panels: (title, JPEG as data URI).
        notes: a line per result file.
    """

    name: str
    image_id: object
    lost: list[float]
    panels: list[tuple[str, str]]
    notes: list[str]


def draw(
    places: Sequence[int],
    result_files: Sequence[Results],
    errors: Sequence[JointErrors],
    points: Sequence[OperatingPoint],
    folder: ImageFolder | None,
) -> list[WorstImage]:
    """Draw images of truth.images, with a panel of the labels and one per result file.

    Args:
        places: indices of the images.
        result_files, errors, points: of each result file.
        folder: of the images; None: draw without them.
    """
    truth = result_files[0].truth
    lost = [losses(results, point.score) for results, point in zip(result_files, points)]
    drawn = []
    for place in places:
        image, note = _read(folder, truth, place)
        people = np.flatnonzero(
            (truth.persons.image == place)
            & ~truth.persons.crowd
            & (truth.persons.keypoints[:, :, 2] > 0).any(axis=1)
        )
        shown = [
            np.flatnonzero(
                (results.image == place)
                & ((results.pairs.kind == FOUND) | false_predictions(results, point.score))
            )
            for results, point in zip(result_files, points)
        ]
        view = _View.around(
            truth,
            place,
            people,
            [results.keypoints[d, :, :2] for results, d in zip(result_files, shown)],
            image,
            ROW_WIDTH // (1 + len(result_files)),
        )
        panels = [("labeled", _labelled_panel(view, truth, people))]
        panels += [
            (results.name, _predicted_panel(view, results, wrong, d))
            for results, wrong, d in zip(result_files, errors, shown)
        ]
        notes = [
            _note(results, wrong, place, point.score)
            for results, wrong, point in zip(result_files, errors, points)
        ]
        entry = truth.images[place]
        drawn.append(
            WorstImage(
                single_line(entry.get("file_name", "")),
                entry["id"],
                [float(each[place]) for each in lost],
                [(title, encode_data_uri(panel)) for title, panel in panels],
                [*([note] if note else []), *notes],
            )
        )
    return drawn


@dataclass(frozen=True)
class _View:
    """The displayed region of an image.

    Attributes:
        pixels: (h, w, 3), scaled by `zoom`.
        corner: (2,) left upper pixel in the image.
        zoom: scale.
    """

    pixels: np.ndarray
    corner: np.ndarray
    zoom: float

    @classmethod
    def around(
        cls,
        truth: GroundTruth,
        place: int,
        people: np.ndarray,
        predicted: Sequence[np.ndarray],
        image: np.ndarray | None,
        width: int,
    ) -> _View:
        """Return a view of all persons, at most `width` wide, blank without an image."""
        persons = truth.persons
        known = [
            persons.box[people, :2],
            persons.box[people, :2] + persons.box[people, 2:],
            *(points.reshape(-1, 2) for points in predicted),
        ]
        joints = persons.keypoints[people].reshape(-1, 3)
        corners = np.concatenate([*known, joints[joints[:, 2] > 0, :2]])
        entry = truth.images[place]
        if image is not None:
            size = np.array(image.shape[1::-1], float)
        else:
            size = np.array([_number(entry.get(key)) for key in ("width", "height")])
        if not len(corners):
            corners = np.array([[0.0, 0.0], size if size.all() else [640.0, 480.0]])
        # if the annotation file has no image size: up to the outermost keypoint
        size = np.where(size > 0, size, np.clip(corners.max(axis=0) * 1.1, 64, 10_000))
        low, high = corners.min(axis=0), corners.max(axis=0)
        margin = 0.08 * (high - low) + 8
        low = np.clip(np.floor(low - margin), 0, np.maximum(size - 16, 0))
        high = np.clip(np.ceil(high + margin), low + 16, np.maximum(size, low + 16))
        left, top = low.astype(int)
        right, bottom = high.astype(int)
        zoom = min(width / (right - left), PANEL_HEIGHT / (bottom - top))
        shape = max(1, round((bottom - top) * zoom)), max(1, round((right - left) * zoom))
        if image is None:
            return cls(np.full((*shape, 3), _BLANK, np.uint8), low, zoom)
        way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        return cls(
            cv2.resize(image[top:bottom, left:right], shape[::-1], interpolation=way), low, zoom
        )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Convert image pixels (..., 2) to pixels of the view."""
        return (points - self.corner + 0.5) * self.zoom - 0.5


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 < value < 100_000 else 0.0


def _read(
    folder: ImageFolder | None, truth: GroundTruth, place: int
) -> tuple[np.ndarray | None, str]:
    """Return the image and '', or None and a note."""
    name = truth.images[place].get("file_name")
    if folder is None:
        return None, ""
    if not isinstance(name, str) or not name:
        return None, "the annotation file has no file name of the image"
    try:
        return folder.read(name), ""
    except DataError as error:
        return None, str(error)


def _labelled_panel(view: _View, truth: GroundTruth, people: np.ndarray) -> np.ndarray:
    panel = view.pixels.copy()
    for person in people:
        visualize.draw_person(
            panel,
            view(truth.persons.keypoints[person, :, :2]),
            truth.skeleton,
            shown=truth.persons.keypoints[person, :, 2] > 0,
            scale=_LINE_SCALE,
            person_side=float(truth.persons.box[person, 2:].max()) * view.zoom,
        )
    return panel


def _predicted_panel(
    view: _View, results: Results, errors: JointErrors, shown: np.ndarray
) -> np.ndarray:
    """Draw the predictions `shown` with their OKS; false ones in a box with their score."""
    panel = view.pixels.copy()
    labels = results.truth.persons.keypoints
    for d in shown:
        points = view(results.keypoints[d, :, :2])
        visualize.draw_person(
            panel,
            points,
            results.truth.skeleton,
            scale=_LINE_SCALE,
            person_side=float(np.ptp(points, axis=0).max()),
        )
        person = results.pairs.person[d]
        low = points.min(axis=0)
        if person < 0:
            high = points.max(axis=0)
            cv2.rectangle(
                panel,
                _pixel(low),
                _pixel(high),
                ERROR_COLORS[SWAP],
                1,
                cv2.LINE_AA,
            )
            _write(panel, f"{PREDICTIONS[results.pairs.kind[d]]} {results.scores[d]:.2f}", low)
            continue
        row = int(np.searchsorted(errors.prediction, d))
        for k in np.flatnonzero(np.isin(errors.kind[row], tuple(ERROR_COLORS))):
            cv2.line(
                panel,
                _pixel(points[k]),
                _pixel(view(labels[person, k, :2])),
                ERROR_COLORS[errors.kind[row, k]],
                2,
                cv2.LINE_AA,
            )
        _write(panel, f"{results.pairs.oks[d]:.2f}", low)
    return panel


def _pixel(point: np.ndarray) -> tuple[int, int]:
    x, y = np.clip(point, -9999, 9999)
    return int(x), int(y)


def _write(panel: np.ndarray, text: str, corner: np.ndarray) -> None:
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 3)
    x, y = (
        int(v)
        for v in np.clip(
            corner, [2, 12], [max(panel.shape[1] - width - 2, 2), max(panel.shape[0] - 4, 12)]
        )
    )
    for color, thick in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(panel, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, thick, cv2.LINE_AA)


def _note(results: Results, errors: JointErrors, place: int, min_score: float) -> str:
    """Return the numbers of errors in an image as text."""
    truth, pairs = results.truth, results.pairs
    here = (truth.persons.image == place) & truth.counted
    parts = [f"{int((pairs.prediction[here] >= 0).sum())} of {int(here.sum())} persons matched"]
    rows = np.isin(errors.prediction, np.flatnonzero(results.image == place))
    parts += [
        f"{int((errors.kind[rows] == which).sum())} x {JOINTS[which]}"
        for which in range(2, len(JOINTS))
        if (errors.kind[rows] == which).any()
    ]
    false = false_predictions(results, min_score) & (results.image == place)
    parts += [
        f"{int((pairs.kind[false] == which).sum())} x {PREDICTIONS[which]}"
        for which in (DUPLICATE, BACKGROUND)
        if (pairs.kind[false] == which).any()
    ]
    return f"{results.name}: {', '.join(parts)}"
