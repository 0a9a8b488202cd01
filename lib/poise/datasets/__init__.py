"""Read annotations, crop persons and load batches."""

from __future__ import annotations

import logging

import numpy as np
from yacs.config import CfgNode

from poise.codecs import codec_class
from poise.config.datasets import dataset_info, image_folder
from poise.datasets import coco, mpii
from poise.datasets.augment import Augmentation
from poise.datasets.loader import BatchLoader, TopDownDataset
from poise.datasets.mixing import ConcatImageFolders, cfg_for_source, concat, convert_skeleton
from poise.datasets.sampler import SINGLE_SHARD, EpochBatchSampler, Shard
from poise.errors import DataError
from poise.io.image_folder import ImageFolder
from poise.structures.crops import PIXEL_STD
from poise.structures.person_table import PersonTable

log = logging.getLogger(__name__)

__all__ = ["READERS", "build_loader", "load_split", "read_table", "PersonTable", "ImageFolder"]

#: annotation formats by the `format` of the dataset file; the names are those of
#: poise.config.dataset_yaml.METRICS
READERS = {"coco": coco.READER, "mpii": mpii.READER}


def load_split(
    cfg: CfgNode, *, train: bool
) -> tuple[PersonTable, ImageFolder | ConcatImageFolders]:
    """Load persons and images of DATASET.TRAIN_SET with DATASET.MIX, or of DATASET.TEST_SET.

    Logs what was dropped.
    """
    data = dataset_info(cfg)
    if not train:
        for remark in data.remarks:
            log.warning("%s", remark)
    elif not data.skeleton.upper_body:
        log.info("%s", f"{data.path}: has no upper_body; half-body augmentation is off")
    split = _load_one(cfg, train=train)
    if not train or not cfg.DATASET.MIX:
        return split
    sources = {"": split}
    # sorted: a configuration that was written and read again has another order
    for name in sorted(cfg.DATASET.MIX):
        sources[name] = _load_one(cfg_for_source(cfg, name), train=True)
    for table, folder in sources.values():
        if not table.has_keypoints:
            raise DataError(f"{folder.location}: a set without labels cannot be trained on")
    for name in sorted(cfg.DATASET.MIX):
        table, folder = sources[name]
        group = cfg.DATASET.MIX[name]
        table = convert_skeleton(
            data,
            table,
            dataset_info(cfg_for_source(cfg, name)),
            name=name,
            joints=group.JOINTS,
            repeat=group.REPEAT,
        )
        sources[name] = table, folder
    return concat(sources)


def _load_one(cfg: CfgNode, *, train: bool) -> tuple[PersonTable, ImageFolder]:
    kind = "train" if train else "test"
    split = cfg.DATASET.TRAIN_SET if train else cfg.DATASET.TEST_SET
    table = read_table(cfg, train=train)
    log.info("%s set %s: %s", kind, split, table.summary())
    return table, image_folder(cfg, split)


def read_table(cfg: CfgNode, *, train: bool) -> PersonTable:
    """Read the persons of DATASET.TRAIN_SET without DATASET.MIX, or of DATASET.TEST_SET.

    Raises DataError or ConfigError, naming the file or key.
    """
    reader = READERS[dataset_info(cfg).format]
    if not train:
        return reader.read_table(
            cfg,
            cfg.DATASET.TEST_SET,
            detections=not cfg.TEST.USE_GT_BBOX,
            margin=cfg.TEST.BOX_MARGIN,
        )
    table = reader.read_table(
        cfg, cfg.DATASET.TRAIN_SET, detections=False, margin=cfg.DATASET.BOX_MARGIN
    )
    if cfg.DATASET.SELECT_DATA:
        reason = "joints far from the box's center, DATASET.SELECT_DATA"
        table = table.select(select_data(table), reason)
    return table


def build_loader(
    cfg: CfgNode,
    table: PersonTable,
    images: ImageFolder | ConcatImageFolders,
    *,
    train: bool,
    devices: int = 1,
    on_gpu: bool = False,
    shard: Shard = SINGLE_SHARD,
) -> BatchLoader:
    """Build the loader of a split.

    Training batches are shuffled and augmented; test batches are in the order of the images.

    Args:
        cfg: The experiment.
        table: Persons of the split.
        images: Their images.
        train: Whether the loader is for training or testing.
        devices: Number of devices of this process; each gets BATCH_SIZE_PER_GPU samples in a step.
        on_gpu: Whether they are GPUs, for PIN_MEMORY.
        shard: Position of this process. In training each process gets its rows of every batch, in
            testing every world_size-th batch.
    """
    dataset = TopDownDataset(
        table,
        images,
        image_size=cfg.MODEL.IMAGE_SIZE,
        rgb=cfg.DATASET.COLOR_RGB,
        seed=cfg.SEED,
        augmentation=Augmentation.from_config(cfg) if train else None,
        udp=codec_class(cfg.MODEL.TARGET_TYPE).udp,
    )
    batch_size = (cfg.TRAIN if train else cfg.TEST).BATCH_SIZE_PER_GPU * max(devices, 1)
    if train:
        batch_size *= shard.world_size
    batch_sampler = EpochBatchSampler(
        len(table),
        batch_size,
        shuffle=train and cfg.TRAIN.SHUFFLE,
        seed=cfg.SEED,
        shard=shard,
        shard_by_batch=not train,
        order=None if train else np.argsort(table.image_index, kind="stable"),
        repeat=table.repeat_factor if train else None,
    )
    return BatchLoader(
        dataset,
        batch_sampler,
        workers=-(-cfg.WORKERS // shard.local_world_size),
        pin_memory=cfg.PIN_MEMORY and on_gpu,
    )


def select_data(table: PersonTable) -> np.ndarray:
    """Return which persons (N,) have the mean of their keypoints near the center of the box.

    The fewer keypoints are labeled, the nearer it must be. Source: HRNet
    lib/dataset/JointsDataset.py select_data; the threshold rises from 0.45 for 1 keypoint by 0.0125
    per keypoint, to 0.65 for COCO's 17. With more keypoints it rises to 0.65 for all of them.
    """
    is_labeled = table.visibility > 0
    count = is_labeled.sum(axis=1)
    total = (table.keypoints * is_labeled[:, :, None]).sum(axis=1)
    mean = total / np.maximum(count, 1)[:, None]
    distance = np.square(mean - table.center).sum(axis=1)
    area = table.scale.prod(axis=1) * PIXEL_STD**2
    similarity = np.exp(-distance / (2 * 0.2**2 * area))
    rise = 0.2 / max(16, table.skeleton.num_keypoints - 1)
    return (count > 0) & (similarity > rise * count + 0.45 - rise)
