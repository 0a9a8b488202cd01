"""Estimate poses in images and videos, write them as JSON and draw them: tools/demo.py."""

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
from poise.engine.evaluate import find_weights
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
# bounds of a batch of frames
_MAX_FRAMES = 8
_MAX_PIXELS = 50_000_000
_MAX_NAME_BYTES = 200  # of a file name without suffix; file systems allow 255 in all
#: steps whose time is reported, in order
PARTS = ("reading", "detection", "crop", "network", "decode", "tracking", "drawing")


@dataclass
class Summary:
    """Counts and times of a run.

    Attributes:
        folder: of the output.
        frames, persons: processed.
        skipped_boxes: boxes without a usable crop.
        skipped: files that could not be used, with the reason.
        interrupted: whether Ctrl-C ended the run.
        seconds: of each of PARTS, `total`, and `other` for the rest.
    """

    folder: Path
    frames: int = 0
    persons: int = 0
    skipped_boxes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys((*PARTS, "other", "total"), 0.0)
    )

    @property
    def frames_per_second(self) -> float:
        if self.seconds["total"] <= 0:
            return 0.0
        return self.frames / self.seconds["total"]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begin


@dataclass(frozen=True)
class DemoOptions:
    """Options for the output of each frame.

    Attributes:
        draw: write images or an mp4.
        track: assign track ids to the persons of a video.
        smooth: track, and smooth the keypoints with a One-Euro filter.
        joint_score: draw keypoints with a higher score; None: the codec's vis_threshold.
        max_frames: stop after this number; 0: all.
        draw_boxes: draw boxes with the scores of the persons.
    """

    draw: bool = True
    track: bool = False
    smooth: bool = False
    joint_score: float | None = None
    max_frames: int = 0
    draw_boxes: bool = False


class Demo:
    """Process the frames of a source."""

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
                "--track and --smooth: unsupported for images; use a video or a camera"
            )
        self._estimator = estimator
        self._source = source
        self._boxes = boxes
        self._folder = Path(folder)
        self._options = options
        self._tracker: Tracker | None = None
        self._smoother: PoseSmoother | None = None
        if track:
            self._tracker = Tracker()
        if options.smooth:
            self._smoother = PoseSmoother()
        self._names: set[str] = set()
        self._video: VideoWriter | None = None
        if options.draw and source.fps is not None:
            self._video = VideoWriter(
                self._folder / f"{_drawn_name(source.name)}.mp4", source.fps, source.live
            )
        self.summary = Summary(self._folder)

    def run(self, head: dict[str, Any]) -> Summary:
        """Process all frames. Ctrl-C stops; results so far are kept.

        head: entries of the JSON file about the run.
        """
        from tqdm import tqdm

        summary, source = self.summary, self._source
        head = {**head, **self._describe()}
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
                    self._process(frames, poses)
                    bar.update(len(frames))
                    if interrupt.stop_requested:
                        # Ctrl-C is the normal end of a camera
                        summary.interrupted = not source.live
                        break
                summary.skipped = list(source.skipped)
                summary.seconds["total"] = time.perf_counter() - begin
                summary.seconds["other"] = summary.seconds["total"] - sum(
                    summary.seconds[part] for part in PARTS
                )
                poses.tail = self._tail()
                self._check_frames()
                if isinstance(self._boxes, BoxFile) and not summary.interrupted:
                    self._check_boxes(self._boxes)
                if self._video:
                    self._video.close()
        finally:
            if self._video:
                self._video.close(keep=False)  # incomplete, unless closed above
        return summary

    def _describe(self) -> dict[str, Any]:
        """Return the entries of the JSON file about boxes, video and tracking."""
        video: dict[str, Any] | None = None
        if self._source.fps is not None:
            video = {"fps": self._source.fps, "drawn": None}
            if self._video:
                video["drawn"] = self._video.path.name
        return {
            "boxes": self._boxes.name,
            "video": video,
            "tracked": self._tracker is not None,
            "smoothed": self._smoother is not None,
        }

    def _check_frames(self) -> None:
        if self.summary.frames:
            return
        if self._source.fps is None:
            raise DataError(f"none of the {len(self._source)} images can be used")
        raise DataError(f"{self._source.name}: no frame was read")

    def _check_boxes(self, given: BoxFile) -> None:
        frames = self.summary.frames
        if not given.with_boxes:
            raise DataError(f"{given.name}: has no boxes for the frames that were read ({frames})")
        if (
            isinstance(self._source, Video)
            and not self._source.live
            and not self._options.max_frames
        ):
            given.check_length(frames)

    def _groups(self) -> Iterator[list[Frame]]:
        """Yield batches of frames within _MAX_FRAMES and _MAX_PIXELS; single frames of a camera."""
        max_frames = 1 if self._source.live else _MAX_FRAMES
        group: list[Frame] = []
        frames = iter(self._source)
        remaining = self._options.max_frames or -1
        while remaining:
            with self.summary.timed("reading"):
                frame = next(frames, None)
            if frame is None:
                break
            remaining -= 1
            group.append(frame)
            num_pixels = sum(each.image.size // 3 for each in group)
            if len(group) == max_frames or num_pixels >= _MAX_PIXELS:
                yield group
                group = []
        if group:
            yield group

    def _process(self, frames: list[Frame], poses_file: pose_json.PoseFile) -> None:
        summary = self.summary
        with summary.timed("detection"):
            frames, detections = self._detect(frames)
        boxes, box_scores = [], []
        for frame, (candidates, scores) in zip(frames, detections):
            is_usable = usable(candidates, *frame.image.shape[:2])
            summary.skipped_boxes += int((~is_usable).sum())
            boxes.append(candidates[is_usable])
            box_scores.append(scores[is_usable])
        before = dict(self._estimator.seconds)
        results = self._estimator([frame.image for frame in frames], boxes)
        assert isinstance(results, list), "a list of images gives a list of poses"
        for part in ("crop", "network", "decode"):
            summary.seconds[part] += self._estimator.seconds[part] - before[part]
        for frame, poses, scores in zip(frames, results, box_scores):
            with summary.timed("tracking"):
                tracks = self._track(frame, poses)
            name = None
            if self._options.draw:
                with summary.timed("drawing"):
                    name = self._draw_frame(frame, poses, scores, tracks)
            poses_file.add(frame, poses, scores, tracks, name)
            summary.frames += 1
            summary.persons += len(poses)

    def _track(self, frame: Frame, poses: Poses) -> np.ndarray | None:
        """Return the track ids of the persons, None without tracking. Smooths their keypoints."""
        if self._tracker is None:
            return None
        assert frame.seconds is not None, "only frames of a video are tracked"
        tracks = self._tracker.update(poses.boxes, frame.seconds)
        if self._smoother is not None:
            poses.keypoints = self._smoother.update(
                tracks, poses.keypoints, poses.boxes, frame.seconds
            )
        return tracks

    def _detect(self, frames: list[Frame]) -> tuple[list[Frame], list[Detections]]:
        """Return frames with their boxes. Images on which the detector fails are skipped."""
        try:
            return frames, self._boxes(frames)
        except DataError as error:
            if not isinstance(self._source, ImageFiles):
                raise
            if len(frames) == 1:
                self._source.skip(frames[0].name, error)
                return [], []
        processed: list[Frame] = []
        detections: list[Detections] = []
        for frame in frames:
            one_frame, one_detection = self._detect([frame])
            processed += one_frame
            detections += one_detection
        return processed, detections

    def _draw_frame(
        self, frame: Frame, poses: Poses, box_scores: np.ndarray, tracks: np.ndarray | None
    ) -> str | None:
        """Write the image and return its name, or add the frame to the video."""
        # scores as in the JSON file
        scored = replace(poses, person_scores=poses.person_scores * box_scores)
        color = "auto"
        if self._video and tracks is None:
            color = "side"  # colors per person would change from frame to frame
        image = scored.draw(
            frame.image,
            least_score=self._options.joint_score,
            color=color,
            boxes=self._options.draw_boxes,
            ids=tracks,
        )
        if self._video:
            assert frame.seconds is not None, "frames of a video have a time"
            self._video.write(image, frame.seconds)
            return None
        ending = ".jpg" if max(image.shape[:2]) <= JPEG_SIDE else ".png"
        name = self._new_name(_drawn_name(frame.name))
        with atomic_write(self._folder / f"{name}{ending}") as part:
            part.write_bytes(encode_image(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ending))
        return f"{name}{ending}"

    def _new_name(self, name: str) -> str:
        """Return `name`, numbered if it is used: by a.jpg and a.png, or files of two folders."""
        number = 1
        new = name
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
    """Return the name of the drawing of an image or video, without suffix, shortened if long."""
    stem = Path(name).stem
    while len(os.fsencode(stem)) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    return f"{stem}_pose"


@dataclass(frozen=True)
class DemoRequest:
    """Arguments of the command line.

    Attributes:
        input: image, folder, glob pattern, video or camera index.
        weights: weight file; '': TEST.MODEL_FILE, else the best weights of the run folder.
        boxes: file of person boxes; without boxes and detector an image is one person.
        detector: name of a person detector.
        detector_weights: weights of torchvision's detector; '': its COCO weights.
        score_threshold: minimum score of boxes.
        output: folder to write to.
        device: as for PoseEstimator.
        half: run the pose network in 16 bits.
        overrides: KEY, VALUE, ... of the experiment that the weights carry.
        options: options for the output.
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
    """Estimate, write and draw the poses, and print a report. Raises PoiseError.

    Args:
        cfg: the experiment; None for weights that carry it (files trained by Poise, .onnx files).
        cfg_path: its file.
        request: arguments of the command line.
    """
    start_console()
    source = open_input(request.input)
    _check_folder(request.output, source)
    file: str | Path = request.weights
    if not file:
        assert cfg is not None and cfg_path is not None, "without weights an experiment is needed"
        file = find_weights(cfg, Path(cfg.OUTPUT_DIR) / run_names(cfg, cfg_path))
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
    """Return the provider of boxes: a file, a detector, or the full image."""
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
        "each full image is treated as one person; for other images give --detector NAME or"
        " --boxes FILE"
    )
    return FullImage()


def _check_folder(folder: str | Path, source: ImageFiles | Video) -> None:
    """Raise ConfigError if the output folder contains the input images.

    The next run would read the output as input.
    """
    if not isinstance(source, ImageFiles) or len(source.paths) < 2:
        return
    if Path(folder).resolve() in {Path(file).resolve().parent for file in source.paths}:
        raise ConfigError(f"--output {folder}: contains the images of --input; give another folder")


def report(summary: Summary, boxes: BoxProvider) -> str:
    """Return a report of a run: counts, times and what was skipped."""
    lines = [
        f"{pluralize(summary.frames, 'frame')}, {pluralize(summary.persons, 'person')},"
        f" {summary.frames_per_second:.2f} frames/s; {JSON_NAME} and drawings are in"
        f" {single_line(summary.folder)}"
    ]
    if summary.interrupted:
        lines.append("interrupted: the remaining frames were not processed")
    total = max(summary.seconds["total"], 1e-9)
    split = [
        f"{part} {summary.seconds[part]:.2f} s ({summary.seconds[part] / total:.0%})"
        for part in (*PARTS, "other")
    ]
    lines.append(f"{total:.2f} s: {', '.join(split)}")
    if summary.skipped_boxes:
        lines.append(
            f"{summary.skipped_boxes} boxes were skipped: outside of the image, less than a pixel"
            " wide or high, or not finite"
        )
    if isinstance(boxes, BoxFile) and boxes.missing:
        lines.append(
            f"{boxes.missing} of {summary.frames} frames have no boxes in {single_line(boxes.name)}"
        )
    if summary.skipped:
        names = [single_line(name) for name, _ in summary.skipped[:5]]
        if len(summary.skipped) > 5:
            names.append("...")
        count = pluralize(len(summary.skipped), "input file")
        lines.append(f"skipped {count}: {', '.join(names)}")
    return "\n".join(lines)
