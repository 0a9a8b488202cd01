"""Convert keypoint annotations between COCO's format and those of labeling tools.

One module per format, each with `read` and `write`:

    images = converters.read("labelme", "hands/labels", data, images="hands/images/train")
    converters.write("coco", "hands/annotations/train.json", data, images)
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
    """Read the labeled images of a file (coco, cvat) or folder (yolo, labelme).

    Logs what is skipped.

    Args:
        form: A module of this package.
        source: The file or folder.
        data: The dataset.
        images: Folder of the images. yolo needs it; for other formats image sizes are checked.

    Raises:
        DataError: in one line.
    """
    labeled_images, skipped = _read(form, source, data, images)
    log_skipped(source, skipped)
    return labeled_images


def convert(
    forms: tuple[str, str],
    source: str | Path,
    target: str | Path,
    data: DatasetInfo,
    *,
    images: str | Path | None = None,
) -> list[LabeledImage]:
    """Read labels in one format, write them in another, and return the labeled images.

    Args:
        forms: Formats of source and target.
        source: File or folder to read.
        target: File or folder to write.
        data: The dataset.
        images: See read.

    Raises:
        DataError: in one line, also if there are no persons.
    """
    labeled_images, skipped = _read(forms[0], source, data, images)
    if not any(image.persons for image in labeled_images):
        count = pluralize(len(labeled_images), "image")
        raise DataError(
            f"{source}: no persons in {count}, nothing is written; "
            f"found: {describe_skipped(skipped) or 'no labels'}; {_module(forms[0]).PERSON} "
            f"({escape_name(data.category, 40)} of {data.path})"
        )
    log_skipped(source, skipped)
    write(forms[1], target, data, labeled_images)
    return labeled_images


def write(
    form: str, target: str | Path, data: DatasetInfo, labeled_images: Sequence[LabeledImage]
) -> None:
    """Write labeled images to a file (coco, cvat) or folder (yolo, labelme). Raises DataError."""
    _module(form).write(Path(target), data, labeled_images)


def _read(
    form: str, source: str | Path, data: DatasetInfo, images: str | Path | None
) -> tuple[list[LabeledImage], SkipCounter]:
    return _module(form).read(Path(source), data, None if images is None else Path(images))


def _module(form: str) -> ModuleType:
    return import_module(f"poise.datasets.converters.{form}")
