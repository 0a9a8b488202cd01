"""YOLO-pose text (https://docs.ultralytics.com/datasets/pose/): a .txt for each image, a line for each person.

Class, centre x, y, width and height of the box, then x, y and the flag of each joint, or x and y alone; all but class and flags as shares of the image. Joints
without flags are taken as seen, those at 0, 0 as not labelled. Class 0 is read. An image without a file has nobody in it. Areas are not kept.
"""
from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from poise.bounded_reading import read_bytes
from poise.converters.pictures import LabelledPerson, LabelledPicture, image_sizes, numbers
from poise.errors import DataError
from poise.skeleton import DatasetFile
from poise.writing import replacing

log = logging.getLogger(__name__)

CLASS = 0
_MOST_BYTES = 1 << 24


def read(folder: Path, data: DatasetFile, images: Path | None = None) -> list[LabelledPicture]:
    """The pictures of `images`, which must be given: the text does not say how large they are."""
    if images is None:
        raise DataError(f"{folder}: YOLO's text is relative to the size of the images; give their folder with --images")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of YOLO's text files")
    sizes = image_sizes(images)
    by_text = {PurePosixPath(name).with_suffix(".txt").as_posix(): name for name in sizes}
    texts = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt") if path.name not in ("classes.txt", "train.txt", "val.txt"))
    strange = [text for text in texts if text not in by_text]
    if strange:
        raise DataError(f"{folder / strange[0]}: {images} has no image of this name{f', nor for {len(strange) - 1} more files' if len(strange) > 1 else ''}")
    pictures = []
    there, left = set(texts), 0
    for text, name in by_text.items():
        picture = LabelledPicture(name, *sizes[name])
        if text in there:
            lines = read_bytes(folder / text, "label file", _MOST_BYTES).decode("utf-8", "replace").splitlines()
            for number, line in enumerate(lines, 1):
                values = numbers(line.split(), f"{folder / text}, line {number}", "it")
                if values and values[0] != CLASS:
                    left += 1
                elif values:
                    picture.persons.append(_person(values, picture, data.skeleton.num_joints, f"{folder / text}, line {number}"))
        pictures.append(picture)
    if left:
        log.warning("%d objects of other classes than %d were left out", left, CLASS)
    return pictures


def _person(values: list[float], picture: LabelledPicture, joints: int, where: str) -> LabelledPerson:
    with_flags = len(values) == 5 + 3 * joints
    if not with_flags and len(values) != 5 + 2 * joints:
        raise DataError(f"{where}: has {len(values)} numbers, expected {5 + 3 * joints} (class, box, {joints} joints x 3) or {5 + 2 * joints} (without flags)")
    size = np.array([picture.width, picture.height], np.float64)
    if max(map(abs, values[1:5])) > 2:
        raise DataError(f"{where}: the box {values[1:5]} is not given as shares of the image")
    centre, extent = np.array(values[1:3]) * size, np.array(values[3:5]) * size
    points = np.array(values[5:]).reshape(joints, -1)
    flags = points[:, 2] if with_flags else np.where((points != 0).any(axis=1), 2.0, 0.0)
    if not np.isin(flags, (0, 1, 2)).all():
        raise DataError(f"{where}: has a flag that is none of 0, 1 and 2")
    return LabelledPerson(np.concatenate([centre - extent / 2, extent]), np.column_stack([points[:, :2] * size * (flags > 0)[:, None], flags]))


def write(folder: Path, data: DatasetFile, pictures: Sequence[LabelledPicture]) -> None:
    """With flags, to eight digits: a ten-thousandth of a pixel of any picture."""
    for picture in pictures:
        size = np.array([picture.width, picture.height], np.float64)
        lines = []
        for person in picture.persons:
            box = np.concatenate([(person.box[:2] + person.box[2:] / 2) / size, person.box[2:] / size])
            joints = [f"{x:.8f} {y:.8f} {flag:.0f}" for (x, y), flag in zip(person.keypoints[:, :2] / size, person.keypoints[:, 2])]
            lines.append(" ".join([str(CLASS), *(f"{value:.8f}" for value in box), *joints]) + "\n")
        with replacing(folder / PurePosixPath(picture.name).with_suffix(".txt")) as part:
            part.write_text("".join(lines), encoding="utf-8")
