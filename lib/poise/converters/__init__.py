"""Keypoint annotations between COCO's form and those of labelling tools: one file a format, each with `read` and `write`.

    pictures = converters.read("labelme", "data/hands/labels", dataset_file, images="data/hands/images/train")
    converters.write("coco", "data/hands/annotations/train.json", dataset_file, pictures)
"""
from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from poise.converters.pictures import LabelledPicture
from poise.skeleton import DatasetFile


def read(form: str, source: str | Path, data: DatasetFile, *, images: str | Path | None = None) -> list[LabelledPicture]:
    """The pictures of a file (coco, cvat) or folder (yolo, labelme). form: a module of this package. images: their folder, which yolo needs.

    Raises DataError, in one line.
    """
    return import_module(f"poise.converters.{form}").read(Path(source), data, None if images is None else Path(images))


def write(form: str, target: str | Path, data: DatasetFile, pictures: Sequence[LabelledPicture]) -> None:
    """Write pictures in a format, to a file (coco, cvat) or into a folder (yolo, labelme). Raises DataError where they cannot be written."""
    import_module(f"poise.converters.{form}").write(Path(target), data, pictures)
