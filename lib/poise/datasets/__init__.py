"""Who is in which image (coco, mpii, synthetic), reading images, augmentation, batches."""

from __future__ import annotations

import logging

import numpy as np
from yacs.config import CfgNode

from poise.codecs import codec_class
from poise.config.datasets import dataset_info, image_folder
from poise.datasets import coco, mpii
from poise.datasets.augment import Augmentation
from poise.datasets.loader import BatchLoader, TopDownDataset
from poise.datasets.mixing import ConcatImageFolders, cfg_for_source, convert_skeleton, mixed
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
    """Persons and images of DATASET.TRAIN_SET, with those of DATASET.MIX, or of
    DATASET.TEST_SET; what was dropped is in the log.
    """
    if not train:
        for remark in dataset_info(cfg).remarks:
            log.warning("%s", remark)
    elif not dataset_info(cfg).skeleton.upper_body:
        log.info(
            "%s", f"{dataset_info(cfg).path}: has no upper_body; half-body augmentation is off"
        )
    own = _read_one(cfg, train)
    if not train or not cfg.DATASET.MIX:
        return own
    # in an order of their own, for a configuration that was written and read again has the groups
    # in another
    names = sorted(cfg.DATASET.MIX)
    sets = {"": own, **{name: _read_one(cfg_for_source(cfg, name), train) for name in names}}
    for table, folder in sets.values():
        if not table.has_keypoints:
            raise DataError(f"{folder.location}: a set without labels cannot be trained on")
    for name in names:
        table, folder = sets[name]
        group, theirs = cfg.DATASET.MIX[name], dataset_info(cfg_for_source(cfg, name))
        table = convert_skeleton(
            dataset_info(cfg), table, theirs, name=name, joints=group.JOINTS, repeat=group.REPEAT
        )
        sets[name] = table, folder
    return mixed(sets)


def _read_one(cfg: CfgNode, train: bool) -> tuple[PersonTable, ImageFolder]:
    table, split = (
        read_table(cfg, train=train),
        (cfg.DATASET.TRAIN_SET if train else cfg.DATASET.TEST_SET),
    )
    log.info("%s set %s: %s", "train" if train else "test", split, table.summary())
    return table, image_folder(cfg, split)


def read_table(cfg: CfgNode, *, train: bool) -> PersonTable:
    """Persons of DATASET.TRAIN_SET, without DATASET.MIX, or of DATASET.TEST_SET. Raises
    DataError or ConfigError, naming the file or key.
    """
    split, margin = (
        (cfg.DATASET.TRAIN_SET, cfg.DATASET.BOX_MARGIN)
        if train
        else (cfg.DATASET.TEST_SET, cfg.TEST.BOX_MARGIN)
    )
    table = READERS[dataset_info(cfg).format].read_table(
        cfg, split, detections=not train and not cfg.TEST.USE_GT_BBOX, margin=margin
    )
    if train and cfg.DATASET.SELECT_DATA:
        table = table.select(
            select_data(table), "joints far from the box's centre, DATASET.SELECT_DATA"
        )
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
    """(N,) bool: the mean of a person's joints lies near the box's centre, the nearer the fewer
    joints there are.

    Source: HRNet lib/dataset/JointsDataset.py select_data; the threshold rises from 0.45 for 1
    joint by 0.0125 a joint, to 0.65 for COCO's 17; where there are more, to 0.65 for all of them.
    """
    labelled = table.visibility > 0
    count = labelled.sum(axis=1)
    mean = (table.keypoints * labelled[:, :, None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    distance = np.square(mean - table.center).sum(axis=1)
    area = table.scale.prod(axis=1) * PIXEL_STD**2
    similarity = np.exp(-distance / (2 * 0.2**2 * area))
    rise = 0.2 / max(16, table.skeleton.num_keypoints - 1)
    return (count > 0) & (similarity > rise * count + 0.45 - rise)
