"""Frames of images, videos and cameras, read one at a time, and an mp4 writer."""

from __future__ import annotations

import glob
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from poise.errors import DataError, pluralize, single_line
from poise.io.decoding import quiet_opencv
from poise.io.files import create_temporary_file
from poise.io.images import is_image_name, read_image

log = logging.getLogger(__name__)

VIDEO_EXTENSIONS = (
    ".mp4",
    ".avi",
    ".mov",
    ".mkv",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".ts",
    ".mts",
    ".3gp",
    ".ogv",
    ".m2ts",
    ".asf",
    ".mxf",
    ".m2v",
    ".vob",
    ".f4v",
    ".3g2",
    ".divx",
)
_DEFAULT_FPS = 30.0
_MIN_FPS = 0.1
_MAX_FPS = 1000.0
_FPS_TOLERANCE = 0.01  # relative; within it the rate of the header is taken as the exact one
_TIMED_FRAMES = 2000  # whose times decide on the rate, so that a long video is not read twice
_MAX_REPEATS = 1000  # of a frame that is written
# no messages of FFmpeg about damaged files; OpenCV reads it when it first opens a video
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def open_input(name: str) -> ImageFiles | Video:
    """Open an image, directory, glob pattern, video or camera index. Raises DataError.

    A file with the extension of a video is a video, any other file an image. A directory stands for
    its images by name, without subdirectories. A pattern (*, ?, [], ** for subdirectories) stands
    for images by name, or for one video.
    """
    path = Path(name)
    try:
        if name and path.is_dir():
            return ImageFiles(_list_images(path))
        if name and path.exists():
            return Video(name) if _is_video_name(name) else ImageFiles([name])
    except (OSError, ValueError) as error:  # a directory without permission, an invalid name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name!r}: cannot be read ({reason})") from None
    if name.isascii() and name.isdecimal():
        return Video(f"camera {int(name)}", camera=int(name))
    if glob.has_magic(name):
        return _open_pattern(name)
    raise DataError(
        f"{name or repr('')}: no such file or folder; give an image, a folder, a pattern, a video"
        " or the number of a camera"
    )


@dataclass
class Frame:
    """One image.

    Attributes:
        name: its file, or the video or camera that it is of.
        index: from 0.
        image: (H, W, 3) uint8 in RGB order.
        seconds: since the start of the video; None for an image file.
    """

    name: str
    index: int
    image: np.ndarray
    seconds: float | None = None


class ImageFiles:
    """Image files, in the order given.

    Attributes:
        skipped: (file, reason) of the files that cannot be read.
    """

    fps: None = None
    live = False

    def __init__(self, paths: list[str]):
        self.paths = paths
        self.skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            try:
                image = read_image(path)
            except DataError as error:
                self.skip(path, error)
                continue
            yield Frame(path, index, image)

    def skip(self, path: str, error: DataError) -> None:
        """Skip an image that cannot be used; raise `error` if it is the only one."""
        if len(self.paths) == 1:
            raise error
        reason = str(error).removeprefix(f"{path}: ")
        log.warning("%s", f"skipped: {single_line(f'{path}: {reason}')}")
        self.skipped.append((path, reason))


class Video:
    """A video file, or a camera by its index. Raises DataError if it cannot be opened.

    Attributes:
        fps: frames per second, from the times of the frames if the header has another rate; 30 if
            neither is known.
        live: whether it is a camera.
        skipped: (name, reason) if the video ends before the number of frames that it claims.
    """

    fps: float

    def __init__(self, name: str, camera: int | None = None):
        self.name = name
        self.live = camera is not None
        self.skipped: list[tuple[str, str]] = []
        _check_name(name)
        with quiet_opencv():
            if camera is None:
                self._capture = cv2.VideoCapture(name)
            else:
                self._capture = cv2.VideoCapture(camera)
            is_open = self._capture.isOpened()
        if not is_open and self.live:
            raise DataError(
                f"{name}: cannot be opened; is it connected, and may this user read it?"
            )
        if not is_open:
            raise DataError(f"{name}: not a video that OpenCV can read, or a damaged one")
        claimed = self._capture.get(cv2.CAP_PROP_FPS)
        is_plausible = math.isfinite(claimed) and _MIN_FPS <= claimed <= _MAX_FPS
        measured = None if self.live else _measure_fps(name, claimed if is_plausible else 0.0)
        if measured:
            self.fps = measured
        elif is_plausible:
            self.fps = claimed
        else:
            self.fps = _DEFAULT_FPS
        if self.fps != claimed:
            source = ", by the times of its frames" if measured else ""
            log.warning(
                "%s",
                f"{single_line(name)}: says {claimed:g} frames a second; {self.fps:g} is"
                f" taken{source}",
            )
        # a header without a count reports its duration times its rate
        self._count = 0.0 if measured else self._capture.get(cv2.CAP_PROP_FRAME_COUNT)

    def __len__(self) -> int:
        """Return the number of frames that the file claims; 0 if it is unknown."""
        if self.live or not math.isfinite(self._count) or not 0 < self._count < 1e9:
            return 0
        return int(self._count)

    def __iter__(self) -> Iterator[Frame]:
        begin = time.monotonic()
        index = 0
        seconds = -math.inf
        try:
            while True:
                with quiet_opencv():
                    done, image = self._capture.read()
                if not done:
                    break
                seconds = self._frame_time(index, seconds, begin)
                yield Frame(self.name, index, _as_rgb(image), seconds)
                index += 1
        finally:
            self._capture.release()
        if not index:
            raise DataError(f"{self.name}: no frame of the video can be read")
        if index < len(self):
            reason = f"the video ends after {index} of {len(self)} frames"
            log.warning("%s", f"{single_line(self.name)}: {reason}")
            self.skipped.append((self.name, reason))

    def _frame_time(self, index: int, previous: float, begin: float) -> float:
        """Return the time of a frame: by the file if its times rise, for a camera by the clock."""
        if self.live:
            seconds = time.monotonic() - begin
        else:
            seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if math.isfinite(seconds) and seconds > previous and (seconds > 0 or not index):
            return seconds
        return index / self.fps


class VideoWriter:
    """An mp4 (MPEG-4 part 2, which every build of OpenCV writes) of RGB frames of one size.

    The file appears when it is closed. Raises DataError if it cannot be written.

    Args:
        path: its final place.
        fps: frames per second.
        live: repeat frames to keep to the clock, because a camera delivers them as fast as they are
            processed.
    """

    def __init__(self, path: Path, fps: float, live: bool = False):
        self.path = path
        self.live = live
        # MPEG-4 counts time in fractions with denominators of up to 16 bits
        rates = ((round(fps, digits), 10**digits) for digits in (3, 2, 1))
        self.fps = next(rate for rate, base in rates if rate * base < 1 << 16)
        self._part: Path | None = None
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._written = 0

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Append a frame (H, W, 3); the first one decides the size, others are resized to it."""
        if self._writer is None:
            self._size = (image.shape[1], image.shape[0])
            self._writer = self._open()
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        count = 1
        if self.live:
            count = max(1, int(seconds * self.fps) + 1 - self._written)
        with quiet_opencv():  # `close` reports a full disk
            for _ in range(min(count, _MAX_REPEATS)):
                self._writer.write(image)
                self._written += 1

    def close(self, keep: bool = True) -> None:
        """Move the video to its place, or with keep=False delete it.

        Raises DataError if it was not written completely.
        """
        if self._writer is None or self._part is None:
            return
        with quiet_opencv():
            self._writer.release()
        self._writer = None
        try:
            if keep:
                # OpenCV does not report a full disk
                if self._count_frames(self._part) != self._written:
                    raise DataError(
                        f"{self.path}: the video could not be written to its end; is the disk full?"
                    )
                os.replace(self._part, self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        finally:
            self._part.unlink(missing_ok=True)

    def _open(self) -> cv2.VideoWriter:
        _check_name(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._part = create_temporary_file(self.path, ".mp4")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        with quiet_opencv():
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(self._part), codec, self.fps, self._size)
        if not writer.isOpened():
            self._part.unlink(missing_ok=True)
            raise DataError(
                f"{self.path}: OpenCV cannot write an mp4 of {self._size[0]} x {self._size[1]} at"
                f" {self.fps:g} frames a second"
            )
        return writer

    @staticmethod
    def _count_frames(path: Path) -> int:
        with quiet_opencv():
            capture = cv2.VideoCapture(str(path))
            frames = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
            capture.release()
        return int(frames)


def _open_pattern(pattern: str) -> ImageFiles | Video:
    # a pattern with ** twice gives a file several times
    files = sorted({file for file in glob.glob(pattern, recursive=True) if not os.path.isdir(file)})
    if not files:
        raise DataError(f"{pattern}: no file fits this pattern")
    if not all(_is_video_name(file) for file in files):
        return ImageFiles(files)
    if len(files) > 1:
        raise DataError(f"{pattern}: {len(files)} videos fit this pattern; give one at a time")
    return Video(files[0])


def _list_images(folder: Path) -> list[str]:
    """Return the image files of a folder by name; the log names the others."""
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if not entry.is_dir()]
    num_folders = len(entries) - len(files)
    images = [str(file) for file in files if is_image_name(file)]
    hint = ""
    if num_folders:
        hint = (
            f"; folders are not searched ({num_folders}), {single_line(folder)}/**/* is a pattern"
            " for them"
        )
    if not images:
        raise DataError(f"{folder}: the folder holds no file with an image extension{hint}")
    others = [single_line(file.name) for file in files if not is_image_name(file)]
    if others:
        names = ", ".join(others[:5])
        if len(others) > 5:
            names += ", ..."
        log.warning(
            "%s: skipped: %s without an image extension: %s%s",
            single_line(folder),
            pluralize(len(others), "file"),
            names,
            hint,
        )
    elif num_folders:
        log.warning("%s", f"{single_line(folder)}{hint}")
    return images


def _is_video_name(path: str) -> bool:
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def _measure_fps(name: str, claimed: float) -> float | None:
    """Return the mean rate of the first frames by their times; None if it is `claimed` or unknown.

    The times are read without decoding first. That alone is not reliable: a packet may hold half a
    frame or a hidden one, and OpenCV before 4.9 has no times for packets.
    """
    rate = None
    attempts: tuple[list[int], ...] = ([cv2.CAP_PROP_FORMAT, -1], [])
    for options in attempts:
        rate = _mean_fps(name, options)
        if rate is not None and abs(claimed / rate - 1) <= _FPS_TOLERANCE:
            return None
    return rate


def _mean_fps(name: str, options: list[int]) -> float | None:
    count = 0
    first = math.inf
    last = -math.inf
    with quiet_opencv():
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG, options)
        while count < _TIMED_FRAMES and capture.isOpened() and capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            count += 1
            first = min(first, seconds)
            last = max(last, seconds)
        capture.release()
    rate = (count - 1) / (last - first) if last > first else 0.0
    return round(rate, 3) if _MIN_FPS <= rate <= _MAX_FPS else None


def _check_name(path: str | Path) -> None:
    """Raise DataError for a name that is not UTF-8, with which OpenCV crashes."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{path}: OpenCV cannot open a video whose name is not UTF-8; rename it or its folder"
        ) from None


def _as_rgb(image: np.ndarray) -> np.ndarray:
    is_gray = image.ndim == 2 or image.shape[2] == 1
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if is_gray else cv2.COLOR_BGR2RGB)
