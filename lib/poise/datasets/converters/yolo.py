"""YOLO-pose text (https://docs.ultralytics.com/datasets/pose/).

One .txt per image, one line per person.

A line has the class, center x and y, width and height of the box, then x, y and the flag of each
keypoint, or x and y only; all but class and flags are fractions of the image. Keypoints without
flags are visible, those at 0, 0 not labeled. Only class 0 is read. An image without a file has no
persons. Areas are lost. Sizes are those of the upright image, which ultralytics and labeling tools
read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poise.datasets.converters.images import (
    LabeledImage,
    LabeledPerson,
    SkipCounter,
    image_sizes,
    label_files,
    numbers,
)
from poise.errors import DataError
from poise.io.files import atomic_write, read_bytes
from poise.structures.skeleton import DatasetInfo

log = logging.getLogger(__name__)

CLASS = 0
PERSON = f"a person is a line of class {CLASS}"
_MAX_BYTES = 1 << 24
_LISTS = ("classes.txt", "train.txt", "val.txt")  # labels only of an image of that name


def read(
    folder: Path, data: DatasetInfo, images: Path | None = None
) -> tuple[list[LabeledImage], SkipCounter]:
    """Read the labels of all images in `images`.

    The folder is needed because the text does not contain the size of the images.
    """
    if images is None:
        raise DataError(
            f"{folder}: YOLO's text is relative to the size of the images; give their folder with"
            " --images"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of YOLO's text files")
    sizes = image_sizes(images)
    image_names = label_files(sizes, ".txt")
    texts = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")}
    unknown = [
        text for text in sorted(texts) if text not in image_names and Path(text).name not in _LISTS
    ]
    if unknown:
        more = f", nor for {len(unknown) - 1} more files" if len(unknown) > 1 else ""
        raise DataError(f"{folder / unknown[0]}: {images} has no image of this name{more}")
    labeled_images = []
    skipped = SkipCounter()
    for text, name in image_names.items():
        width, height = sizes[name].upright
        image = LabeledImage(name, width, height)
        if text in texts:
            image.persons = _read_persons(folder / text, image, data, skipped)
        labeled_images.append(image)
    turned = sum(sizes[image.name].orientation > 1 for image in labeled_images)
    if turned:
        log.warning(
            "%s",
            f"{images}: images with an EXIF orientation: {turned} of {len(labeled_images)}; the"
            " labels are taken as those of the upright images: set DATASET.EXIF True",
        )
    return labeled_images, skipped


def _read_persons(
    path: Path, image: LabeledImage, data: DatasetInfo, skipped: SkipCounter
) -> list[LabeledPerson]:
    """Read the persons of an image that have a labeled keypoint."""
    persons = []
    text = read_bytes(path, "label file", _MAX_BYTES).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}"
        values = numbers(line.split(), where, "it")
        if not values:
            continue
        if values[0] != CLASS:
            skipped.add(f"objects of class {values[0]:g}")
            continue
        person = _person(values, image, data.skeleton.num_keypoints, where)
        if (person.keypoints[:, 2] > 0).any():
            persons.append(person)
        else:
            skipped.add("persons without a labeled joint")
    return persons


def _person(values: list[float], image: LabeledImage, joints: int, where: str) -> LabeledPerson:
    with_flags = len(values) == 5 + 3 * joints
    if not with_flags and len(values) != 5 + 2 * joints:
        raise DataError(
            f"{where}: has {len(values)} numbers, expected {5 + 3 * joints} (class, box, {joints}"
            f" joints x 3) or {5 + 2 * joints} (without flags)"
        )
    size = np.array([image.width, image.height], np.float64)
    if max(map(abs, values[1:5])) > 2:
        raise DataError(f"{where}: the box {values[1:5]} is not given in fractions of the image")
    if min(values[3:5]) < 0:
        raise DataError(
            f"{where}: the box {values[1:5]} has a negative width or height; correct or remove it"
        )
    center = np.array(values[1:3]) * size
    box_wh = np.array(values[3:5]) * size
    points = np.array(values[5:]).reshape(joints, -1)
    flags = points[:, 2] if with_flags else np.where((points != 0).any(axis=1), 2.0, 0.0)
    if not np.isin(flags, (0, 1, 2)).all():
        raise DataError(f"{where}: has a flag that is none of 0, 1 and 2")
    if np.abs(points[flags > 0, :2]).max(initial=0) > 2:
        raise DataError(f"{where}: joints are not given in fractions of the image")
    return LabeledPerson(
        np.concatenate([center - box_wh / 2, box_wh]),
        np.column_stack([points[:, :2] * size * (flags > 0)[:, None], flags]),
    )


def write(folder: Path, data: DatasetInfo, labeled_images: Sequence[LabeledImage]) -> None:
    """With flags, to eight digits: a ten-thousandth of a pixel of any image."""
    files = label_files((image.name for image in labeled_images), ".txt")
    for file, image in zip(files, labeled_images):
        size = np.array([image.width, image.height], np.float64)
        lines = []
        for person in image.persons:
            box = np.concatenate(
                [(person.box[:2] + person.box[2:] / 2) / size, person.box[2:] / size]
            )
            joints = [
                f"{x:.8f} {y:.8f} {flag:.0f}"
                for (x, y), flag in zip(person.keypoints[:, :2] / size, person.keypoints[:, 2])
            ]
            lines.append(" ".join([str(CLASS), *(f"{value:.8f}" for value in box), *joints]) + "\n")
        with atomic_write(folder / file) as part:
            part.write_text("".join(lines), encoding="utf-8")
