"""Where the files of a set lie: the dataset file's places below DATASET.ROOT, or below its own root where that is empty."""
from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from poise.config import data_path
from poise.datasets.reading import ImageFolder
from poise.skeleton import SetFiles, dataset_of


def set_files(cfg: CfgNode, split: str) -> SetFiles:
    """What the dataset file says of a set."""
    return dataset_of(cfg).files(split)


def root(cfg: CfgNode) -> Path:
    """The data set's folder."""
    return Path(data_path(cfg, cfg.DATASET.ROOT or dataset_of(cfg).root))


def annotation_path(cfg: CfgNode, split: str) -> Path:
    """The annotation file of a set."""
    return root(cfg) / set_files(cfg, split).annotations


def image_folder(cfg: CfgNode, split: str) -> ImageFolder:
    """Where a set's images lie: a folder, or with DATASET.DATA_FORMAT zip the archive of its name."""
    images = root(cfg) / set_files(cfg, split).images
    return ImageFolder(images.with_name(f"{images.name}.zip") if cfg.DATASET.DATA_FORMAT == "zip" else images, exif=cfg.DATASET.EXIF)


def headbox_path(cfg: CfgNode) -> Path:
    """The MATLAB file with the joints and head boxes of DATASET.TEST_SET, for PCKh."""
    return root(cfg) / set_files(cfg, cfg.DATASET.TEST_SET).head_boxes
