"""Write the JSON of tools/demo.py frame by frame, with constant memory.

Its schema is docs/demo_schema.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from poise.inference.boxes import FORMAT
from poise.inference.poses import Poses
from poise.io.files import atomic_write
from poise.io.json_file import replace_non_finite
from poise.io.video import Frame
from poise.structures.skeleton import Skeleton

VERSION = 1


class PoseFile:
    """A JSON file that is being written: add frames, then set `tail`, the keys after them."""

    def __init__(self, file: BinaryIO):
        self._file, self._first = file, True
        self.tail: dict[str, Any] = {}

    def add(
        self,
        frame: Frame,
        poses: Poses,
        box_scores: np.ndarray,
        tracks: np.ndarray | None,
        drawn: str | None,
    ) -> None:
        """Write a frame.

        Args:
            frame: the image and its name.
            poses: its N persons.
            box_scores: (N,) scores of their boxes.
            tracks: (N,) track ids; None: not tracked.
            drawn: name of the drawn image; None: not drawn.
        """
        entry = {
            "file": frame.name,
            "index": frame.index,
            "seconds": None if frame.seconds is None else round(frame.seconds, 6),
            "width": frame.image.shape[1],
            "height": frame.image.shape[0],
            "drawn": drawn,
            "persons": _persons(poses, box_scores, tracks),
        }
        self._file.write((b"\n" if self._first else b",\n") + _bytes(entry))
        self._first = False


@contextmanager
def open_pose_json(
    path: str | Path, skeleton: Skeleton, head: dict[str, Any]
) -> Iterator[PoseFile]:
    """Write a PoseFile that replaces `path` on success. head: keys before the frames."""
    fixed = {
        "format": FORMAT,
        "version": VERSION,
        "skeleton": {
            "name": skeleton.name,
            "joints": list(skeleton.names),
            "limbs": [list(limb) for limb in skeleton.limbs],
        },
    }
    with atomic_write(path) as part, open(part, "wb") as file:
        file.write(_bytes({**fixed, **head})[:-1] + b',\n"frames": [')
        poses = PoseFile(file)
        yield poses
        file.write(b"\n],\n" + _bytes(poses.tail)[1:] + b"\n")


def _persons(
    poses: Poses, box_scores: np.ndarray, tracks: np.ndarray | None
) -> list[dict[str, Any]]:
    boxes = poses.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    keypoints = np.concatenate(
        [poses.keypoints.astype(np.float64), poses.scores[:, :, None]], axis=2
    ).round(4)
    scores = (poses.person_scores * box_scores).round(4).tolist()
    track_ids = [None] * len(scores) if tracks is None else np.asarray(tracks).tolist()
    return [
        {
            "bbox": box,
            "box_score": box_score,
            "score": score,
            "keypoints": points,
            "track_id": track_id,
        }
        for box, box_score, score, points, track_id in zip(
            boxes.round(3).tolist(),
            np.asarray(box_scores, np.float64).round(4).tolist(),
            scores,
            keypoints.tolist(),
            track_ids,
        )
    ]


def _bytes(content: dict[str, Any]) -> bytes:
    import orjson

    try:
        return orjson.dumps(replace_non_finite(content))
    except TypeError:  # JSON is UTF-8, file names may not be
        return orjson.dumps(_in_utf8(replace_non_finite(content)))


def _in_utf8(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_utf8(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_utf8(inner) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value
