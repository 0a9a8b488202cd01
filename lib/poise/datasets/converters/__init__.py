"""Keypoint annotations between COCO's form and those of labelling tools: one file a format, each
with `read` and `write`.

    pictures = converters.read("labelme", "data/hands/labels", dataset_file,
    images="data/hands/images/train") converters.write("coco", "data/hands/annotations/train.json",
    dataset_file, pictures)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from poise.datasets.converters.images import (
    LabeledImage,
    SkipCounter,
    describe_skipped,
    log_skipped,
)
from poise.errors import DataError, escape_name, pluralize
from poise.structures.skeleton import DatasetInfo


def read(
    form: str, source: str | Path, data: DatasetInfo, *, images: str | Path | None = None
) -> list[LabeledImage]:
    """The pictures of a file (coco, cvat) or folder (yolo, labelme). form: a module of this
    package. images: their folder, which yolo needs.

    With `images` the other formats have the sizes of their images checked. What is left out is in
    the log. Raises DataError, in one line.
    """
    pictures, left = _read(form, source, data, images)
    log_skipped(source, left)
    return pictures


def convert(
    forms: tuple[str, str],
    source: str | Path,
    target: str | Path,
    data: DatasetInfo,
    *,
    images: str | Path | None = None,
) -> list[LabeledImage]:
    """Read labels in one format, write them in another, and return the pictures.

    forms: of source and target. Raises DataError, also where nobody would be written.
    """
    pictures, left = _read(forms[0], source, data, images)
    if not any(picture.persons for picture in pictures):
        raise DataError(
            f"{source}: no persons in {pluralize(len(pictures), 'image')}, nothing is written; "
            f"found: {describe_skipped(left) or 'no labels'}; {_module(forms[0]).PERSON} "
            f"({escape_name(data.category, 40)} of {data.path})"
        )
    log_skipped(source, left)
    write(forms[1], target, data, pictures)
    return pictures


def write(
    form: str, target: str | Path, data: DatasetInfo, pictures: Sequence[LabeledImage]
) -> None:
    """Write pictures in a format, to a file (coco, cvat) or into a folder (yolo, labelme).
    Raises DataError where they cannot be written.
    """
    _module(form).write(Path(target), data, pictures)


def _read(
    form: str, source: str | Path, data: DatasetInfo, images: str | Path | None
) -> tuple[list[LabeledImage], SkipCounter]:
    return _module(form).read(Path(source), data, None if images is None else Path(images))


def _module(form: str) -> ModuleType:
    return import_module(f"poise.datasets.converters.{form}")
