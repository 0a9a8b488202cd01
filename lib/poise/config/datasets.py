"""Paths of the files of a dataset, by the configuration of an experiment."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from yacs.config import CfgNode

from poise.config.dataset_yaml import DATASETS_DIR, load_dataset_info
from poise.config.sources import SOURCES
from poise.errors import ConfigError, DataError
from poise.io.image_folder import ImageFolder
from poise.structures.skeleton import DatasetInfo, SplitInfo


def dataset_info(cfg: CfgNode) -> DatasetInfo:
    """Return the dataset of DATASET.FILE, else of DATASET.DATASET, as config.load has read it.

    Raises ConfigError.
    """
    return load_dataset_info(cfg.DATASET.FILE or cfg.DATASET.DATASET)


def split_info(cfg: CfgNode, split: str) -> SplitInfo:
    """Return the paths of a split below the root of the dataset."""
    return dataset_info(cfg).files(split)


def dataset_root(cfg: CfgNode) -> Path:
    """Return the folder of the dataset."""
    return Path(data_path(cfg, cfg.DATASET.ROOT or dataset_info(cfg).root))


def annotation_path(cfg: CfgNode, split: str) -> Path:
    """Return the annotation file of a split.

    Raises ConfigError for a split that ultralytics' data.yaml does not have, and DataError, with
    the command, if YOLO labels have to be converted first.
    """
    data = dataset_info(cfg)
    files = split_info(cfg, split)
    folder = dataset_root(cfg)
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
        labels = shlex.quote(str(folder / files.yolo_labels))
        images = shlex.quote(str(folder / files.images))
        raise DataError(
            f"{path}: missing; convert the YOLO labels once: python tools/convert_data.py "
            f"yolo coco {labels} {shlex.quote(str(path))} --dataset {shlex.quote(str(data.path))}"
            f" --images {images}"
        )
    return path


def require_annotation_path(cfg: CfgNode, split: str) -> Path:
    """Return the annotation file of a split.

    Raises DataError, with the command that downloads it, if the file of a built-in dataset is
    missing.
    """
    name = split_info(cfg, split).annotations
    return _require(cfg, annotation_path(cfg, split), name, "annotation file")


def download_hint(cfg: CfgNode, name: str) -> str:
    """Return the command that creates or downloads a file, for the end of an error message.

    '' if no command does, as for users' own data.

    Args:
        cfg: the configuration.
        name: of the file below DATASET.ROOT; folders end in /.
    """
    data = dataset_info(cfg)
    folder = dataset_root(cfg)
    if data.path.parent != DATASETS_DIR or data.name not in SOURCES:
        return ""
    source = SOURCES[data.name]
    if "synthetic" in folder.name:
        options = f"--format {data.format} --out {shlex.quote(str(folder))}"
        return f"; create it: python tools/make_synthetic.py {options}"
    command = f"python tools/prepare_data.py {source.name} --root {shlex.quote(str(folder))}"
    zipped = " --zipped" if name.endswith("/") and cfg.DATASET.DATA_FORMAT == "zip" else ""
    for archive in source.archives:
        if name in archive.members.values():
            return f"; download it: {command} --only {archive.name}{zipped}"
    if any(name.rstrip("/") == entry.path for entry in source.manual_downloads):
        return f"; how to get it: {command}"
    return ""


def image_folder(cfg: CfgNode, split: str) -> ImageFolder:
    """Return the images of a split: a folder, or with DATASET.DATA_FORMAT zip an archive."""
    name = split_info(cfg, split).images
    location = dataset_root(cfg) / name
    if cfg.DATASET.DATA_FORMAT == "zip":
        location = location.with_name(f"{location.name}.zip")
    return ImageFolder(location, exif=cfg.DATASET.EXIF, hint=download_hint(cfg, f"{name}/"))


def headbox_path(cfg: CfgNode) -> Path:
    """Return the MATLAB file with the joints and head boxes of DATASET.TEST_SET, for PCKh."""
    return dataset_root(cfg) / split_info(cfg, cfg.DATASET.TEST_SET).head_boxes


def require_headbox_path(cfg: CfgNode) -> Path:
    """Return headbox_path; raises DataError, with the command, if that of MPII is missing."""
    name = split_info(cfg, cfg.DATASET.TEST_SET).head_boxes
    return _require(cfg, headbox_path(cfg), name, "ground truth of MPII")


def data_path(cfg: CfgNode, path: str) -> str:
    """Return a path of the configuration below DATA_DIR, as in HRNet; not '' and URLs."""
    if not path or "://" in path or not cfg.DATA_DIR:
        return path
    return str(Path(cfg.DATA_DIR) / path)


def _require(cfg: CfgNode, path: Path, name: str, description: str) -> Path:
    command = download_hint(cfg, name)
    if command and not os.path.exists(path):
        raise DataError(
            f"{path}: cannot read the {description} (No such file or directory); "
            f"check DATASET.ROOT and the set's name{command}"
        )
    return path
