"""Poses of pictures and videos, drawn and as JSON: what tools/demo.py does."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from yacs.config import CfgNode

from poise.config.datasets import dataset_info
from poise.engine.evaluate import model_file
from poise.engine.logger import run_names, start_console
from poise.engine.signals import GracefulStop
from poise.errors import ConfigError, DataError, pluralize, single_line
from poise.inference import pose_json
from poise.inference.boxes import (
    BoxFile,
    BoxProvider,
    Detections,
    DetectorBoxes,
    FullImage,
    usable,
)
from poise.inference.detectors import build_detector
from poise.inference.estimator import PoseEstimator
from poise.inference.poses import Poses
from poise.inference.smoothing import PoseSmoother
from poise.inference.tracking import Tracker
from poise.io.files import atomic_write
from poise.io.video import Frame, ImageFiles, Video, VideoWriter, open_input
from poise.visualization.draw import JPEG_SIDE, encode_image

log = logging.getLogger(__name__)

JSON_NAME = "poses.json"
_FRAMES_AT_ONCE, _PIXELS_AT_ONCE = 8, 50_000_000
# of a name that is written; file systems take 255, of which some are for endings
_NAME_BYTES = 200
#: the parts that the time is split into, in their order
PARTS = ("reading", "detection", "crop", "network", "decode", "tracking", "drawing")


@dataclass
class Summary:
    """What was done. seconds: of each of PARTS and in `total`; `other` is the rest."""

    folder: Path
    frames: int = 0
    persons: int = 0
    left_out_boxes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys((*PARTS, "other", "total"), 0.0)
    )

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds["total"] if self.seconds["total"] > 0 else 0.0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begin


@dataclass(frozen=True)
class DemoOptions:
    """What is done with the poses of each frame.

    Attributes:
        draw: write images, or the mp4.
        track: number the persons over the frames of a video.
        smooth: track, and smooth their keypoints with the One-Euro filter.
        joint_score: keypoints of a higher score are drawn; None: as the codec has it.
        max_frames: end after this many; 0: all.
        draw_boxes: draw the boxes with the persons' scores too.
    """

    draw: bool = True
    track: bool = False
    smooth: bool = False
    joint_score: float | None = None
    max_frames: int = 0
    draw_boxes: bool = False


class Demo:
    """One run over a source of frames."""

    def __init__(
        self,
        estimator: PoseEstimator,
        source: ImageFiles | Video,
        boxes: BoxProvider,
        folder: str | Path,
        options: DemoOptions,
    ):
        track = options.track or options.smooth
        if track and source.fps is None:
            raise ConfigError(
                "--track and --smooth need a video or a camera: pictures have no time"
            )
        self._estimator, self._source, self._boxes, self._folder = (
            estimator,
            source,
            boxes,
            Path(folder),
        )
        self._options = options
        self._tracker = Tracker() if track else None
        self._smoother = PoseSmoother() if options.smooth else None
        self._names: set[str] = set()
        self._video: VideoWriter | None = None
        if options.draw and source.fps is not None:
            self._video = VideoWriter(
                self._folder / f"{_drawn_name(source.name)}.mp4", source.fps, source.live
            )
        self.summary = Summary(self._folder)

    def run(self, head: dict[str, Any]) -> Summary:
        """Work through the source. head: what the JSON says of the run besides. Ctrl-C ends it,
        and what was done till then is kept.
        """
        from tqdm import tqdm

        summary, source = self.summary, self._source
        video = (
            None
            if source.fps is None
            else {"fps": source.fps, "drawn": self._video.path.name if self._video else None}
        )
        head = {
            **head,
            "boxes": self._boxes.name,
            "video": video,
            "tracked": self._tracker is not None,
            "smoothed": self._smoother is not None,
        }
        total = min(filter(None, (len(source), self._options.max_frames)), default=None)
        begin = time.perf_counter()
        try:
            with (
                pose_json.open_pose_json(
                    self._folder / JSON_NAME, self._estimator.skeleton, head
                ) as poses,
                GracefulStop() as interrupt,
                tqdm(total=total, unit="frame", disable=None, file=sys.stderr) as bar,
            ):
                for frames in self._groups():
                    self._work(frames, poses)
                    bar.update(len(frames))
                    if interrupt.asked:
                        # there is no other way to end a camera
                        summary.interrupted = not source.live
                        break
                summary.skipped = list(source.skipped)
                summary.seconds["total"] = time.perf_counter() - begin
                summary.seconds["other"] = summary.seconds["total"] - sum(
                    summary.seconds[part] for part in PARTS
                )
                poses.tail = self._tail()
                if not summary.frames:
                    raise DataError(
                        f"none of the {len(source)} pictures can be used"
                        if source.fps is None
                        else f"{source.name}: no frame was read"
                    )
                if isinstance(self._boxes, BoxFile) and not summary.interrupted:
                    self._check_boxes(self._boxes)
                if self._video:
                    self._video.close()
        finally:
            if self._video:
                self._video.close(keep=False)  # of a run that failed
        return summary

    def _check_boxes(self, given: BoxFile) -> None:
        frames = self.summary.frames
        if not given.with_boxes:
            raise DataError(
                f"{given.name}: has no box for any frame that was read ({frames} in all)"
            )
        if (
            isinstance(self._source, Video)
            and not self._source.live
            and not self._options.max_frames
        ):
            given.check_length(frames)

    def _groups(self) -> Iterator[list[Frame]]:
        """The frames, some at once, as long as they are not too large together; a camera's one
        by one.
        """
        most = 1 if self._source.live else _FRAMES_AT_ONCE
        group: list[Frame] = []
        frames, left = iter(self._source), self._options.max_frames or -1
        while left:
            with self.summary.timed("reading"):
                frame = next(frames, None)
            if frame is None:
                break
            left -= 1
            group.append(frame)
            if len(group) == most or sum(each.image.size // 3 for each in group) >= _PIXELS_AT_ONCE:
                yield group
                group = []
        if group:
            yield group

    def _work(self, frames: list[Frame], poses: pose_json.PoseFile) -> None:
        summary = self.summary
        with summary.timed("detection"):
            frames, found = self._found(frames)
        chosen = [usable(boxes, *frame.image.shape[:2]) for frame, (boxes, _) in zip(frames, found)]
        summary.left_out_boxes += sum(int((~one).sum()) for one in chosen)
        boxes = [own[one] for (own, _), one in zip(found, chosen)]
        before = dict(self._estimator.seconds)
        people = self._estimator([frame.image for frame in frames], boxes)
        for part in ("crop", "network", "decode"):
            summary.seconds[part] += self._estimator.seconds[part] - before[part]
        for frame, own, (_, scores), one in zip(frames, people, found, chosen):
            with summary.timed("tracking"):
                tracks = (
                    None
                    if self._tracker is None
                    else self._tracker.update(own.boxes, frame.seconds)
                )
                if self._smoother is not None:
                    own.keypoints = self._smoother.update(
                        tracks, own.keypoints, own.boxes, frame.seconds
                    )
            with summary.timed("drawing"):
                name = (
                    self._draw_frame(frame, own, scores[one], tracks)
                    if self._options.draw
                    else None
                )
            poses.add(frame, own, scores[one], tracks, name)
            summary.frames += 1
            summary.persons += len(own)

    def _found(self, frames: list[Frame]) -> tuple[list[Frame], list[Detections]]:
        """The frames with the boxes of each, without pictures on which the detector fails: one
        odd picture does not end a folder's run.
        """
        try:
            return frames, self._boxes(frames)
        except DataError as error:
            if not isinstance(self._source, ImageFiles):
                raise
            if len(frames) == 1:
                self._source.skip(frames[0].name, error)
                return [], []
        parts = [self._found([frame]) for frame in frames]
        return [frame for part, _ in parts for frame in part], [
            one for _, found in parts for one in found
        ]

    def _draw_frame(
        self, frame: Frame, poses: Poses, box_scores: np.ndarray, tracks: np.ndarray | None
    ) -> str | None:
        """Write the picture, and return its name, or put the frame into the video."""
        # as in the JSON
        scored = replace(poses, person_scores=poses.person_scores * box_scores)
        # without ids, the order of the persons and so their hues would change from frame to frame
        color = "side" if self._video and tracks is None else "auto"
        image = scored.draw(
            frame.image,
            least_score=self._options.joint_score,
            color=color,
            boxes=self._options.draw_boxes,
            ids=tracks,
        )
        if self._video:
            self._video.write(image, frame.seconds)
            return None
        ending = ".jpg" if max(image.shape[:2]) <= JPEG_SIDE else ".png"
        name = self._new_name(_drawn_name(frame.name))
        with atomic_write(self._folder / f"{name}{ending}") as part:
            part.write_bytes(encode_image(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ending))
        return f"{name}{ending}"

    def _new_name(self, name: str) -> str:
        """`name`, with a number behind it where a.jpg and a.png, or files of two folders, would
        have one name.
        """
        number, new = 1, name
        while new in self._names:
            number += 1
            new = f"{name}_{number}"
        self._names.add(new)
        return new

    def _tail(self) -> dict[str, Any]:
        summary = self.summary
        return {
            "skipped": [{"file": name, "reason": reason} for name, reason in summary.skipped],
            "interrupted": summary.interrupted,
            "seconds": {part: round(value, 4) for part, value in summary.seconds.items()},
            "frames_per_second": round(summary.frames_per_second, 3),
        }


def _drawn_name(name: str) -> str:
    """Of what is drawn of a picture or video `name`, without ending; long names are cut."""
    stem = Path(name).stem
    while len(os.fsencode(stem)) > _NAME_BYTES:
        stem = stem[:-1]
    return f"{stem}_pose"


@dataclass(frozen=True)
class DemoRequest:
    """What the command line asks for.

    Attributes:
        input: an image, a folder, a pattern, a video, or the number of a camera.
        weights: weight file; '': TEST.MODEL_FILE, else the best ones of the run folder.
        boxes: file of person boxes; without boxes and detector an image is one person.
        detector: name of a person detector.
        detector_weights: weights of torchvision's detector; '': its own.
        score_threshold: boxes of a lower score are left out.
        output: folder to write to.
        device: as of PoseEstimator.
        half: compute the pose network in 16 bits.
        overrides: KEY, VALUE, ... of the experiment that the weights carry.
        options: what is done with the poses.
    """

    input: str
    weights: str = ""
    boxes: str = ""
    detector: str = ""
    detector_weights: str = ""
    score_threshold: float = 0.5
    output: str = "output/demo"
    device: str = "auto"
    half: bool = False
    overrides: Sequence[str] = ()
    options: DemoOptions = DemoOptions()


def run(cfg: CfgNode | None, cfg_path: str | None, request: DemoRequest) -> Summary:
    """Find, write and draw the poses; print a report. Raises PoiseError for what cannot be used.

    cfg: None for weights that carry their experiment: files of a training, .onnx files.
    """
    start_console()
    source = open_input(request.input)
    _check_folder(request.output, source)
    file = request.weights or model_file(cfg, Path(cfg.OUTPUT_DIR) / run_names(cfg, cfg_path))
    estimator = PoseEstimator(
        cfg, file, device=request.device, half=request.half, overrides=request.overrides
    )
    boxes = _box_source(request, source, dataset_info(estimator.cfg).category)
    head = {
        "input": request.input,
        "experiment": cfg_path,
        "weights": str(file),
        "score_threshold": request.score_threshold,
        "device": str(estimator.device),
        "half": bool(estimator.cfg.AMP),
        "flip_test": bool(estimator.cfg.TEST.FLIP_TEST),
    }
    summary = Demo(estimator, source, boxes, request.output, request.options).run(head)
    print(report(summary, boxes), flush=True)
    return summary


def _box_source(
    request: DemoRequest, source: ImageFiles | Video, category: str | int
) -> BoxProvider:
    """Where the boxes come from: a file, a detector, or each whole image as one person."""
    if request.boxes:
        given = BoxFile(request.boxes, request.score_threshold, category)
        given.check(source)
        return given
    if request.detector:
        detect = build_detector(
            request.detector,
            request.device,
            request.score_threshold,
            weights=request.detector_weights or None,
        )
        return DetectorBoxes(detect, request.detector)
    log.warning(
        "each whole picture is taken as one person; where it shows more than a crop of "
        "one, give --detector NAME or --boxes FILE"
    )
    return FullImage()


def _check_folder(folder: str | Path, source: ImageFiles | Video) -> None:
    """Raise ConfigError where the output would lie among the pictures of a folder or pattern: it
    would be taken for input at the next run.
    """
    files = source.paths if isinstance(source, ImageFiles) else []
    if len(files) > 1 and any(
        Path(file).resolve().parent == Path(folder).resolve() for file in files
    ):
        raise ConfigError(
            f"--output {folder}: the pictures of --input lie there; give another folder"
        )


def report(summary: Summary, boxes: BoxProvider) -> str:
    """What was done, in a few lines, with where the time went."""
    lines = [
        f"{pluralize(summary.frames, 'frame')}, {pluralize(summary.persons, 'person')},"
        f" {summary.frames_per_second:.2f} frames/s; {JSON_NAME} and what was drawn are in"
        f" {single_line(summary.folder)}"
    ]
    if summary.interrupted:
        lines.append("interrupted: the rest was not looked at")
    total = max(summary.seconds["total"], 1e-9)
    split = [
        f"{part} {summary.seconds[part]:.2f} s ({summary.seconds[part] / total:.0%})"
        for part in (*PARTS, "other")
    ]
    lines.append(f"{total:.2f} s: {', '.join(split)}")
    if summary.left_out_boxes:
        lines.append(
            f"{summary.left_out_boxes} boxes lie outside their picture, are less than a pixel wide"
            " or high, or are not finite: left out"
        )
    if isinstance(boxes, BoxFile) and boxes.missing:
        lines.append(
            f"{boxes.missing} of {summary.frames} frames have no boxes in {single_line(boxes.name)}"
        )
    if summary.skipped:
        lines.append(
            f"{len(summary.skipped)} of the input could not be used: "
            + ", ".join(single_line(name) for name, _ in summary.skipped[:5])
            + (", ..." if len(summary.skipped) > 5 else "")
        )
    return "\n".join(lines)
