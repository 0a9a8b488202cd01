"""Combine training sets of several datasets with the keypoints of the first (DATASET.MIX).

Keypoints are matched by name, or as DATASET.MIX.<name>.JOINTS says. Keypoints that a dataset does
not have are NOT_ANNOTATED there: the loss ignores them, and a flip swaps them as in the first
dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from poise.errors import DataError
from poise.io.decoding import EncodedImage
from poise.io.image_folder import ImageFolder
from poise.structures.person_table import NOT_ANNOTATED, PackedStrings, PersonTable
from poise.structures.skeleton import DatasetInfo, joint_mapping

log = logging.getLogger(__name__)


class ConcatImageFolders:
    """The image folders of several datasets.

    Image names start with the name of their dataset and a slash; the first dataset has no name.
    """

    def __init__(self, folders: dict[str, ImageFolder]) -> None:
        self.folders = folders

    @property
    def location(self) -> Path:
        """The first folder."""
        return next(iter(self.folders.values())).location

    def check(self) -> None:
        """Raise DataError if a folder or archive is missing."""
        for folder in self.folders.values():
            folder.check()

    def open(self, name: str) -> EncodedImage:
        """See ImageFolder."""
        folder, own_name = self._split(name)
        return folder.open(own_name)

    def read(self, name: str) -> np.ndarray:
        """See ImageFolder."""
        folder, own_name = self._split(name)
        return folder.read(own_name)

    def decode_error(self, name: str) -> DataError:
        """See ImageFolder."""
        folder, own_name = self._split(name)
        return folder.decode_error(own_name)

    def _split(self, name: str) -> tuple[ImageFolder, str]:
        key, own_name = name.split("/", 1)
        return self.folders[key], own_name


def cfg_for_source(cfg: CfgNode, name: str) -> CfgNode:
    """Return `cfg` with a dataset of DATASET.MIX as its only dataset."""
    group = cfg.DATASET.MIX[name]
    other = cfg.clone()
    other.defrost()
    other.DATASET.FILE = group.FILE
    other.DATASET.TRAIN_SET = group.SET
    other.DATASET.ROOT = group.ROOT
    other.DATASET.MIX = CfgNode()
    other.DATASET.DATA_FORMAT = group.DATA_FORMAT or cfg.DATASET.DATA_FORMAT
    other.freeze()
    return other


def concat(
    sources: Mapping[str, tuple[PersonTable, ImageFolder]],
) -> tuple[PersonTable, ConcatImageFolders]:
    """Return one table and its images for several tables with the keypoints of the first.

    Images of the first table keep their ids; those of the others get the following ones. See
    convert_skeleton.
    """
    tables: list[PersonTable] = []
    next_id = num_images = 0
    for table, _ in sources.values():
        image_ids = table.image_ids
        repeat_factor = table.repeat_factor
        if tables:
            image_ids = next_id + np.arange(len(image_ids))
        else:
            repeat_factor = np.ones(len(table))
        tables.append(
            replace(
                table,
                image_ids=image_ids,
                image_index=table.image_index + np.int32(num_images),
                repeat_factor=repeat_factor,
            )
        )
        next_id = max(next_id, int(image_ids.max(initial=-1)) + 1)
        num_images += len(image_ids)
    columns = (
        "image_ids",
        "image_index",
        "center",
        "box_wh",
        "scale",
        "keypoints",
        "visibility",
        "score",
        "ann_ids",
        "repeat_factor",
    )
    image_names: list[str] = []
    dropped: dict[str, int] = {}
    for name, table in zip(sources, tables):
        image_names += [f"{name}/{image}" for image in table.image_names]
        for reason, count in table.dropped.items():
            dropped[f"{reason} ({name})" if name else reason] = count
    arrays: dict[str, Any] = {
        key: np.concatenate([getattr(table, key) for table in tables]) for key in columns
    }
    packed = PackedStrings.pack(image_names)
    joined = replace(tables[0], image_names=packed, dropped=dropped, **arrays)
    return joined, ConcatImageFolders({name: folder for name, (_, folder) in sources.items()})


def convert_skeleton(
    target: DatasetInfo,
    table: PersonTable,
    source: DatasetInfo,
    *,
    name: str,
    joints: Mapping[str, str] | None = None,
    repeat: float = 1.0,
) -> PersonTable:
    """Return a table with the keypoints of another dataset and log what was matched.

    Args:
        target: The dataset whose keypoints the table gets.
        table: Persons with keypoints.
        source: The dataset of the table.
        name: Its name in DATASET.MIX, for the log.
        joints: {name in source: name in target} of keypoints with different names.
        repeat: How often a person occurs in an epoch.
    """
    count = target.skeleton.num_keypoints
    mapping = joint_mapping(source, target, dict(joints or {}))
    matched = set(mapping.values())
    missing = [each for index, each in enumerate(target.skeleton.names) if index not in matched]
    line = (
        f"DATASET.MIX.{name}: {len(table)} persons, each {repeat:g} times an epoch, with"
        f" {len(mapping)} of {count} joints"
    )
    if missing:
        line += f"; without {', '.join(missing[:8])}"
    if len(missing) > 8:
        line += " and others"
    log.info("%s", line)
    keypoints, visibility = remap_joints(table.keypoints, table.visibility, mapping, count)
    return replace(
        table,
        skeleton=target.skeleton,
        keypoints=keypoints,
        visibility=visibility,
        repeat_factor=np.full(len(table), repeat),
    )


def remap_joints(
    keypoints: np.ndarray, visibility: np.ndarray, mapping: dict[int, int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Move keypoints to their positions in another skeleton.

    Args:
        keypoints: (N, K, 2).
        visibility: (N, K).
        mapping: {position here: position there}.
        count: Number of keypoints of the other skeleton.

    Returns:
        (N, count, 2) and (N, count); NOT_ANNOTATED where nothing maps to a keypoint.
    """
    source, target = list(mapping.keys()), list(mapping.values())
    new_keypoints = np.zeros((len(keypoints), count, 2), keypoints.dtype)
    new_visibility = np.full((len(keypoints), count), NOT_ANNOTATED, visibility.dtype)
    new_keypoints[:, target] = keypoints[:, source]
    new_visibility[:, target] = visibility[:, source]
    return new_keypoints, new_visibility
