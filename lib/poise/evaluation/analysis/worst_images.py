"""The pictures in which most goes wrong, drawn: the labelled persons, and beside them the predicted
ones with their errors.

Letters: as poise.evaluation.analysis.matching; I pictures.
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
from poise.io.images import ImageFolder
from poise.visualization import draw as visualize
from poise.visualization.html import encode_data_uri

# of the lines from a wrong joint to its place, BGR; none of them is a colour of the skeletons
ERROR_COLOURS = {INVERSION: (220, 60, 220), SWAP: (50, 50, 235), MISS: (40, 220, 240)}
# most pixels of a picture's panels together, and of their height
ROW_WIDTH, PANEL_HEIGHT = 1010, 420
_LINES = 0.7  # of the skeletons, beside those of single crops
_BLANK = 235


@dataclass(frozen=True)
class OperatingPoint:
    """The score from which on predictions would best be believed: where F1 of COCO's matching at
    OKS 0.5 is highest; with the precision and recall there.
    """

    score: float
    precision: float
    recall: float


def operating_point(found: Results) -> OperatingPoint:
    truth = found.truth
    matches = keypoint_ap.match(
        truth.persons,
        found.image,
        found.keypoints,
        found.scores,
        truth.sigmas,
        thresholds=np.array([0.5]),
        sizes=[keypoint_ap.SIZES["all"]],
    )
    counted = ~matches.dismissed[0, 0]
    scores, right = found.scores[matches.order][counted], matches.person[0, 0][counted] >= 0
    if not len(scores):
        return OperatingPoint(0.0, 0.0, 0.0)
    best_first = np.argsort(-scores, kind="stable")
    scores, hits = scores[best_first], np.cumsum(right[best_first])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / truth.counted.sum()
    # a score's predictions are believed together
    last = np.append(scores[1:] != scores[:-1], True)
    f1 = np.where(last, 2 * precision * recall / np.maximum(precision + recall, 1e-12), -1)
    best = int(f1.argmax())
    return OperatingPoint(float(scores[best]), float(precision[best]), float(recall[best]))


def losses(found: Results, least_score: float) -> np.ndarray:
    """(I,): what goes wrong in each picture: 1 - OKS of every labelled person who counts, 1 for
    those not found, and 1 for each duplicate or background prediction that is scored
    `least_score` or more.
    """
    truth, pairs = found.truth, found.pairs
    lost = np.bincount(
        truth.persons.image, np.where(truth.counted, 1 - pairs.found_oks, 0), len(truth.images)
    )
    return lost + np.bincount(
        found.image[false_ones(found, least_score)], minlength=len(truth.images)
    )


def false_ones(found: Results, least_score: float) -> np.ndarray:
    """(D,) bool: duplicate and background predictions scored `least_score` or more."""
    return np.isin(found.pairs.kind, (DUPLICATE, BACKGROUND)) & (found.scores >= least_score)


@dataclass(frozen=True)
class WorstImage:
    """A drawn picture. panels: (title, JPEG as data URI); notes: a line for each result file;
    lost: one figure for each.
    """

    name: str
    image_id: object
    lost: list[float]
    panels: list[tuple[str, str]]
    notes: list[str]


def draw(
    places: Sequence[int],
    founds: Sequence[Results],
    errors: Sequence[JointErrors],
    points: Sequence[OperatingPoint],
    folder: ImageFolder | None,
) -> list[WorstImage]:
    """The pictures at `places` of truth.images, with a panel of the labelled persons and one of
    each result file's.
    """
    truth = founds[0].truth
    lost = [losses(found, point.score) for found, point in zip(founds, points)]
    pictures = []
    for place in places:
        image, note = _read(folder, truth, place)
        people = np.flatnonzero(
            (truth.persons.image == place)
            & ~truth.persons.crowd
            & (truth.persons.keypoints[:, :, 2] > 0).any(axis=1)
        )
        shown = [
            np.flatnonzero(
                (found.image == place)
                & ((found.pairs.kind == FOUND) | false_ones(found, point.score))
            )
            for found, point in zip(founds, points)
        ]
        view = _View.around(
            truth,
            place,
            people,
            [found.keypoints[d, :, :2] for found, d in zip(founds, shown)],
            image,
            ROW_WIDTH // (1 + len(founds)),
        )
        panels = [("labelled", _labelled_panel(view, truth, people))]
        panels += [
            (found.name, _predicted_panel(view, found, wrong, d))
            for found, wrong, d in zip(founds, errors, shown)
        ]
        notes = [
            _note(found, wrong, place, point.score)
            for found, wrong, point in zip(founds, errors, points)
        ]
        entry = truth.images[place]
        pictures.append(
            WorstImage(
                single_line(entry.get("file_name", "")),
                entry["id"],
                [float(each[place]) for each in lost],
                [(title, encode_data_uri(panel)) for title, panel in panels],
                [*([note] if note else []), *notes],
            )
        )
    return pictures


@dataclass(frozen=True)
class _View:
    """The part of a picture that is shown. pixels (h, w, 3): enlarged or reduced by `zoom`;
    corner (2,): its left upper pixel in the picture.
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
        """Around all persons drawn, as far as the picture reaches, on a blank where there is no
        picture; no wider than `width`.
        """
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
            corners = (
                np.array([[0.0, 0.0], [640.0, 480.0]])
                if not size.all()
                else np.array([[0.0, 0.0], size])
            )
        # an annotation file that does not tell the size: as far as its joints reach
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
        """Pixels of the view (..., 2) of pixels of the picture."""
        return (points - self.corner + 0.5) * self.zoom - 0.5


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 < value < 100_000 else 0.0


def _read(
    folder: ImageFolder | None, truth: GroundTruth, place: int
) -> tuple[np.ndarray | None, str]:
    """The picture and '', or None and what to say instead."""
    name = truth.images[place].get("file_name")
    if folder is None:
        return None, ""
    if not isinstance(name, str) or not name:
        return None, "the annotation file does not name the picture's file"
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
            scale=_LINES,
            person_side=float(truth.persons.box[person, 2:].max()) * view.zoom,
        )
    return panel


def _predicted_panel(
    view: _View, found: Results, errors: JointErrors, shown: np.ndarray
) -> np.ndarray:
    """The predictions `shown`, each with its OKS; false ones in a box with their score."""
    panel, labels = view.pixels.copy(), found.truth.persons.keypoints
    for d in shown:
        points = view(found.keypoints[d, :, :2])
        visualize.draw_person(
            panel,
            points,
            found.truth.skeleton,
            scale=_LINES,
            person_side=float(np.ptp(points, axis=0).max()),
        )
        person = found.pairs.person[d]
        low = points.min(axis=0)
        if person < 0:
            high = points.max(axis=0)
            cv2.rectangle(
                panel,
                _pixel(low),
                _pixel(high),
                ERROR_COLOURS[SWAP],
                1,
                cv2.LINE_AA,
            )
            _write(panel, f"{PREDICTIONS[found.pairs.kind[d]]} {found.scores[d]:.2f}", low)
            continue
        row = int(np.searchsorted(errors.prediction, d))
        for joint in np.flatnonzero(np.isin(errors.kind[row], tuple(ERROR_COLOURS))):
            cv2.line(
                panel,
                _pixel(points[joint]),
                _pixel(view(labels[person, joint, :2])),
                ERROR_COLOURS[errors.kind[row, joint]],
                2,
                cv2.LINE_AA,
            )
        _write(panel, f"{found.pairs.oks[d]:.2f}", low)
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
    for colour, thick in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(panel, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thick, cv2.LINE_AA)


def _note(found: Results, errors: JointErrors, place: int, least_score: float) -> str:
    """What goes wrong in the picture, in words."""
    truth, pairs = found.truth, found.pairs
    here = (truth.persons.image == place) & truth.counted
    parts = [f"{int((pairs.prediction[here] >= 0).sum())} of {int(here.sum())} persons found"]
    rows = np.isin(errors.prediction, np.flatnonzero(found.image == place))
    parts += [
        f"{int((errors.kind[rows] == which).sum())} x {JOINTS[which]}"
        for which in range(2, len(JOINTS))
        if (errors.kind[rows] == which).any()
    ]
    false = false_ones(found, least_score) & (found.image == place)
    parts += [
        f"{int((pairs.kind[false] == which).sum())} x {PREDICTIONS[which]}"
        for which in (DUPLICATE, BACKGROUND)
        if (pairs.kind[false] == which).any()
    ]
    return f"{found.name}: {', '.join(parts)}"
