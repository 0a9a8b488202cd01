"""Where the files of a set lie: the dataset file's places below DATASET.ROOT, or below its own root where that is empty."""
from __future__ import annotations

import os
import shlex
from pathlib import Path

from yacs.config import CfgNode

from poise.config import data_path
from poise.data_sources import SOURCES
from poise.datasets.reading import ImageFolder
from poise.errors import ConfigError, DataError
from poise.skeleton import FOLDER, SetFiles, dataset_of


def set_files(cfg: CfgNode, split: str) -> SetFiles:
    """What the dataset file says of a set."""
    return dataset_of(cfg).files(split)


def root(cfg: CfgNode) -> Path:
    """The data set's folder."""
    return Path(data_path(cfg, cfg.DATASET.ROOT or dataset_of(cfg).root))


def annotation_path(cfg: CfgNode, split: str) -> Path:
    """The annotation file of a set.

    Raises ConfigError for a set that ultralytics' data.yaml does not have, and DataError, with the
    command, where YOLO labels were not converted yet.
    """
    data, files, folder = dataset_of(cfg), set_files(cfg, split), root(cfg)
    path = folder / files.annotations
    yolo_sets = [name for name, other in data.sets if other.yolo_labels]
    if yolo_sets and not files.yolo_labels:
        raise ConfigError(
            f"{data.path}: has no set {split!r}, it has {', '.join(yolo_sets)}; set "
            "DATASET.TRAIN_SET and DATASET.TEST_SET to one of them"
        )
    if files.yolo_labels and not os.path.exists(path):
        if not os.path.isdir(folder):
            raise DataError(
                f"{data.path}: no such folder {folder}; set DATASET.ROOT to the data set's"
            )
        places = (folder / files.yolo_labels, path, data.path, folder / files.images)
        labels, target, file, images = (shlex.quote(str(place)) for place in places)
        raise DataError(
            f"{path}: missing; convert the YOLO labels once: python tools/convert_data.py "
            f"yolo coco {labels} {target} --dataset {file} --images {images}"
        )
    return path


def present_annotation_path(cfg: CfgNode, split: str) -> Path:
    """The same; raises DataError too where the file of a known data set is missing, with the command."""
    place = set_files(cfg, split).annotations
    return _present(cfg, annotation_path(cfg, split), place, "annotation file")


def _present(cfg: CfgNode, path: Path, place: str, what: str) -> Path:
    command = fetching(cfg, place)
    if command and not os.path.exists(path):
        raise DataError(
            f"{path}: cannot read the {what} (No such file or directory); "
            f"check DATASET.ROOT and the set's name{command}"
        )
    return path


def fetching(cfg: CfgNode, place: str) -> str:
    """Return, for the end of a message, the command that makes or fetches a file of a data set.

    place: below DATASET.ROOT; folders end in /. '' where no tool has it, as for users' own data.
    """
    data, folder = dataset_of(cfg), root(cfg)
    source = SOURCES.get(data.name) if data.path.parent == FOLDER else None
    if source is None:
        return ""
    if "synthetic" in folder.name:
        options = f"--format {data.format} --out {shlex.quote(str(folder))}"
        return f"; draw it: python tools/make_synthetic.py {options}"
    command = f"python tools/prepare_data.py {source.name} --root {shlex.quote(str(folder))}"
    zipped = " --zipped" if place.endswith("/") and cfg.DATASET.DATA_FORMAT == "zip" else ""
    for archive in source.archives:
        if place in archive.wanted.values():
            return f"; fetch it: {command} --only {archive.name}{zipped}"
    by_hand = {entry.path for entry in source.by_hand}
    return f"; how to get it: {command}" if place.rstrip("/") in by_hand else ""


def image_folder(cfg: CfgNode, split: str) -> ImageFolder:
    """Where a set's images lie: a folder, or with DATASET.DATA_FORMAT zip the archive of its name."""
    place = set_files(cfg, split).images
    images = root(cfg) / place
    zipped = cfg.DATASET.DATA_FORMAT == "zip"
    return ImageFolder(
        images.with_name(f"{images.name}.zip") if zipped else images,
        exif=cfg.DATASET.EXIF,
        hint=fetching(cfg, f"{place}/"),
    )


def headbox_path(cfg: CfgNode) -> Path:
    """The MATLAB file with the joints and head boxes of DATASET.TEST_SET, for PCKh."""
    return root(cfg) / set_files(cfg, cfg.DATASET.TEST_SET).head_boxes


def present_headbox_path(cfg: CfgNode) -> Path:
    """The same; raises DataError where the file of a known data set is missing, with the command."""
    place = set_files(cfg, cfg.DATASET.TEST_SET).head_boxes
    return _present(cfg, headbox_path(cfg), place, "ground truth of MPII")
