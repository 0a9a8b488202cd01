"""Where the files of a set lie: the dataset file's places below DATASET.ROOT, or below its own root where that is empty."""
from __future__ import annotations

import shlex
from pathlib import Path

from yacs.config import CfgNode

from poise.config import data_path
from poise.datasets.reading import ImageFolder
from poise.errors import ConfigError, DataError
from poise.skeleton import SetFiles, dataset_of


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
    if files.yolo_labels and not path.exists():
        if not folder.is_dir():
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


def image_folder(cfg: CfgNode, split: str) -> ImageFolder:
    """Where a set's images lie: a folder, or with DATASET.DATA_FORMAT zip the archive of its name."""
    images = root(cfg) / set_files(cfg, split).images
    return ImageFolder(images.with_name(f"{images.name}.zip") if cfg.DATASET.DATA_FORMAT == "zip" else images, exif=cfg.DATASET.EXIF)


def headbox_path(cfg: CfgNode) -> Path:
    """The MATLAB file with the joints and head boxes of DATASET.TEST_SET, for PCKh."""
    return root(cfg) / set_files(cfg, cfg.DATASET.TEST_SET).head_boxes
