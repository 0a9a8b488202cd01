"""Where frames come from and go to: a picture, a folder, a glob, a video file or a camera, read
one by one; a drawn video, written.
"""

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
_USUAL_FPS = 30.0
_MIN_FPS, _MAX_FPS = 0.1, 1000.0
_FPS_ERROR = 0.01  # of the header's rate; within it the header's is the exact one
_TIMED_FRAMES = 2000  # of a video, whose times decide on its rate; a long one is not read twice
# no lines of FFmpeg's own beside ours about damaged files; OpenCV reads it once, when it first
# opens a video
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@dataclass
class Frame:
    """One picture. name: its file, or the video or camera that it is of. index: from 0. seconds:
    since the video's beginning, None of a picture.
    """

    name: str
    index: int
    image: np.ndarray  # RGB (H, W, 3) uint8
    seconds: float | None = None


class ImageFiles:
    """Picture files, in the order given. One that cannot be read is put into `skipped`, (file,
    reason), and the rest go on.
    """

    fps, live = None, False

    def __init__(self, paths: list[str]):
        self.paths, self.skipped = paths, []

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
        """Put a picture that cannot be used into `skipped`, and say so; raise `error` again
        where there is no other picture.
        """
        if len(self.paths) == 1:
            raise error
        reason = str(error).removeprefix(f"{path}: ")
        log.warning("%s", f"left out: {single_line(f'{path}: {reason}')}")
        self.skipped.append((path, reason))


class Video:
    """A video file, or a camera by its number.

    fps: frames a second, from the frames' own times where the header says another rate; 30 where
    neither is known. A video that ends before the frames that it claims is put into `skipped`.
    Raises DataError where it cannot be opened or has no frame.
    """

    def __init__(self, name: str, camera: int | None = None):
        self.name, self.live, self.skipped = name, camera is not None, []
        _check_name(name)
        with quiet_opencv():
            self._capture = cv2.VideoCapture(name if camera is None else camera)
            opened = self._capture.isOpened()
        if not opened:
            raise DataError(
                f"{name}: cannot be opened; is it connected, and may this user read it?"
                if self.live
                else f"{name}: not a video that OpenCV can read, or a damaged one"
            )
        claimed = self._capture.get(cv2.CAP_PROP_FPS)
        known = math.isfinite(claimed) and _MIN_FPS <= claimed <= _MAX_FPS
        measured = None if self.live else _measured_fps(name, claimed if known else 0.0)
        self.fps = measured or (claimed if known else _USUAL_FPS)
        if self.fps != claimed:
            log.warning(
                "%s",
                f"{single_line(name)}: says {claimed:g} frames a second; {self.fps:g} is taken"
                + (", by the times of its frames" if measured else ""),
            )
        # the count of a header without one is its duration times its rate
        self._count = 0.0 if measured else self._capture.get(cv2.CAP_PROP_FRAME_COUNT)

    def __len__(self) -> int:
        """Frames that the file claims; 0 where it is not known."""
        return (
            int(self._count)
            if not self.live and math.isfinite(self._count) and 0 < self._count < 1e9
            else 0
        )

    def __iter__(self) -> Iterator[Frame]:
        begin, index, seconds = time.monotonic(), 0, -math.inf
        try:
            while True:
                with quiet_opencv():
                    done, image = self._capture.read()
                if not done:
                    break
                # the file's own times where they rise, as they do in most; a camera's are the
                # clock's
                told = (
                    time.monotonic() - begin
                    if self.live
                    else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                )
                seconds = (
                    told
                    if math.isfinite(told) and told > seconds and (told > 0 or not index)
                    else index / self.fps
                )
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


def _measured_fps(name: str, claimed: float) -> float | None:
    """The mean rate of a video's first frames by their times; None where it is `claimed` or not
    known.

    The times are first read without decoding. What they say is not believed alone: a packet may
    hold half a frame or a hidden one, and OpenCV before 4.9 gives no times for packets.
    """
    for options in ([cv2.CAP_PROP_FORMAT, -1], []):
        rate = _mean_fps(name, options)
        if rate is not None and abs(claimed / rate - 1) <= _FPS_ERROR:
            return None
    return rate


def _mean_fps(name: str, options: list[int]) -> float | None:
    count, first, last = 0, math.inf, -math.inf
    with quiet_opencv():
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG, options)
        while count < _TIMED_FRAMES and capture.isOpened() and capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            count, first, last = count + 1, min(first, seconds), max(last, seconds)
        capture.release()
    rate = (count - 1) / (last - first) if last > first else 0.0
    return round(rate, 3) if _MIN_FPS <= rate <= _MAX_FPS else None


def _check_name(path: str | Path) -> None:
    """OpenCV crashes on a name of a video that is not UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{path}: OpenCV cannot open a video whose name is not UTF-8; rename it or its folder"
        ) from None


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(
        image, cv2.COLOR_GRAY2RGB if image.ndim == 2 or image.shape[2] == 1 else cv2.COLOR_BGR2RGB
    )


def open_input(name: str) -> ImageFiles | Video:
    """What a word of the command line names. Raises DataError where there is nothing.

    A file with the ending of a video is a video, any other file a picture; a folder stands for its
    files with the ending of a picture, not those of folders below, by name; a number is a camera;
    and what is none of these is a pattern (*, ?, [], ** for folders below) of pictures, by name, or
    of one video.
    """
    path = Path(name)
    try:
        if name and path.is_dir():
            return ImageFiles(_pictures_in(path))
        if name and path.exists():
            return Video(name) if path.suffix.lower() in VIDEO_EXTENSIONS else ImageFiles([name])
    except (OSError, ValueError) as error:  # a folder that may not be read, a name that is none
        raise DataError(
            f"{name!r}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None
    if name.isascii() and name.isdecimal():
        return Video(f"camera {int(name)}", camera=int(name))
    if glob.has_magic(name):
        # a pattern with ** twice gives a file several times
        found = sorted(
            {entry for entry in glob.glob(name, recursive=True) if not os.path.isdir(entry)}
        )
        if not found:
            raise DataError(f"{name}: no file fits this pattern")
        if all(Path(entry).suffix.lower() in VIDEO_EXTENSIONS for entry in found):
            if len(found) > 1:
                raise DataError(f"{name}: {len(found)} videos fit this pattern; give one at a time")
            return Video(found[0])
        return ImageFiles(found)
    raise DataError(
        f"{name or repr('')}: no such file or folder; give a picture, a folder, a pattern, a video"
        " or the number of a camera"
    )


def _pictures_in(folder: Path) -> list[str]:
    """The folder's files with the ending of a picture, by name; the others are named in the log."""
    entries = sorted(folder.iterdir())
    folders = sum(entry.is_dir() for entry in entries)
    files = [entry for entry in entries if not entry.is_dir()]
    found = [str(file) for file in files if is_image_name(file)]
    below = ""
    if folders:
        below = (
            f"; folders are not searched ({folders}), {single_line(folder)}/**/* is a pattern for"
            " them"
        )
    if not found:
        raise DataError(f"{folder}: the folder holds no file with the ending of a picture{below}")
    others = [single_line(file.name) for file in files if not is_image_name(file)]
    if others:
        some = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        count = pluralize(len(others), "file")
        log.warning(
            "%s: left out: %s without the ending of a picture: %s%s",
            single_line(folder),
            count,
            some,
            below,
        )
    elif folders:
        log.warning("%s", f"{single_line(folder)}{below}")
    return found


class VideoWriter:
    """An mp4 (MPEG-4 part 2, which every build of OpenCV writes) of RGB frames of one size; it
    appears whole when it is closed.

    path: its final place. The first frame decides the size; frames of another size are scaled to
    it. live: frames are repeated to keep to the clock, because a camera's come as fast as they can
    be worked on. Raises DataError where it cannot be written.
    """

    def __init__(self, path: Path, fps: float, live: bool = False):
        # MPEG-4 counts time in fractions with denominators of up to 16 bits
        self.path, self.live = path, live
        rates = ((round(fps, digits), 10**digits) for digits in (3, 2, 1))
        self.fps = next(rate for rate, base in rates if rate * base < 1 << 16)
        self._part: Path | None = None
        self._writer: cv2.VideoWriter | None = None
        self._size, self._written = (0, 0), 0

    def write(self, image: np.ndarray, seconds: float) -> None:
        if self._writer is None:
            self._size = (image.shape[1], image.shape[0])
            self._open()
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        due = max(1, int(seconds * self.fps) + 1 - self._written) if self.live else 1
        with quiet_opencv():  # a full disk is told by `close`
            for _ in range(min(due, 1000)):
                self._writer.write(image)
                self._written += 1

    def _open(self) -> None:
        _check_name(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._part = create_temporary_file(self.path, ".mp4")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        with quiet_opencv():
            self._writer = cv2.VideoWriter(
                str(self._part), cv2.VideoWriter_fourcc(*"mp4v"), self.fps, self._size
            )
        if not self._writer.isOpened():
            self._part.unlink(missing_ok=True)
            raise DataError(
                f"{self.path}: OpenCV cannot write an mp4 of {self._size[0]} x {self._size[1]} at"
                f" {self.fps:g} frames a second"
            )

    def _frames_in_file(self) -> int:
        with quiet_opencv():
            capture = cv2.VideoCapture(str(self._part))
            frames = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
            capture.release()
        return int(frames)

    def close(self, keep: bool = True) -> None:
        """Put the video in its place, or with keep False throw it away. Raises DataError where
        it was not written whole.
        """
        if self._writer is None:
            return
        with quiet_opencv():
            self._writer.release()
        self._writer = None
        try:
            if keep:
                # OpenCV says nothing of a disk that is full
                if self._frames_in_file() != self._written:
                    raise DataError(
                        f"{self.path}: the video could not be written to its end; is the disk full?"
                    )
                os.replace(self._part, self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        finally:
            self._part.unlink(missing_ok=True)
