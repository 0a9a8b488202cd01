"""Training sets of several data sets as one table, with the joints of the first (DATASET.MIX).

Joints are matched by name, or as DATASET.MIX.<name>.JOINTS says. Those that a set does not have are
NOT_ANNOTATED there: they count for nothing in the loss, and a mirror swaps them as the first data
set's file says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.errors import DataError
from poise.io.decoding import EncodedImage
from poise.io.image_folder import ImageFolder
from poise.structures.person_table import NOT_ANNOTATED, PackedStrings, PersonTable
from poise.structures.skeleton import DatasetInfo, joint_mapping

log = logging.getLogger(__name__)


class ConcatImageFolders:
    """The image folders of several sets. An image's name begins with its set's name and a /; in
    the first set's, with / alone.
    """

    def __init__(self, folders: dict[str, ImageFolder]):
        self.folders = folders

    @property
    def location(self) -> Path:
        """The first set's."""
        return next(iter(self.folders.values())).location

    def check(self) -> None:
        """Raise DataError when a folder or archive is not there."""
        for folder in self.folders.values():
            folder.check()

    def open(self, name: str) -> EncodedImage:
        """See ImageFolder."""
        folder, own = self._of(name)
        return folder.open(own)

    def read(self, name: str) -> np.ndarray:
        """See ImageFolder."""
        folder, own = self._of(name)
        return folder.read(own)

    def decode_error(self, name: str) -> DataError:
        """See ImageFolder."""
        folder, own = self._of(name)
        return folder.decode_error(own)

    def _of(self, name: str) -> tuple[ImageFolder, str]:
        key, own = name.split("/", 1)
        return self.folders[key], own


def cfg_for_source(cfg: CfgNode, name: str) -> CfgNode:
    """`cfg` with the data set of a group of DATASET.MIX as its own."""
    group, other = cfg.DATASET.MIX[name], cfg.clone()
    other.defrost()
    other.DATASET.FILE, other.DATASET.TRAIN_SET, other.DATASET.ROOT, other.DATASET.MIX = (
        group.FILE,
        group.SET,
        group.ROOT,
        CfgNode(),
    )
    other.DATASET.DATA_FORMAT = group.DATA_FORMAT or cfg.DATASET.DATA_FORMAT
    other.freeze()
    return other


def mixed(
    sets: Mapping[str, tuple[PersonTable, ImageFolder]],
) -> tuple[PersonTable, ConcatImageFolders]:
    """Return one table and its images of several sets whose joints are those of the first.

    Images keep their ids in the first set; those of the others come behind. See convert_skeleton.
    """
    parts: list[PersonTable] = []
    for table, _ in sets.values():
        part = table
        if not parts:
            part = replace(table, repeat_factor=np.ones(len(table)))
        else:
            part = replace(
                part,
                image_ids=max(int(other.image_ids.max(initial=-1)) for other in parts)
                + 1
                + np.arange(len(table.image_ids)),
                image_index=table.image_index
                + np.int32(sum(len(other.image_ids) for other in parts)),
            )
        parts.append(part)
    arrays = (
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
    names = [f"{name}/{image}" for name, part in zip(sets, parts) for image in part.image_names]
    dropped = {
        f"{reason} ({name})" if name else reason: count
        for name, part in zip(sets, parts)
        for reason, count in part.dropped.items()
    }
    table = replace(
        parts[0],
        image_names=PackedStrings.pack(names),
        dropped=dropped,
        **{key: np.concatenate([getattr(part, key) for part in parts]) for key in arrays},
    )
    return table, ConcatImageFolders({name: folder for name, (_, folder) in sets.items()})


def convert_skeleton(
    ours: DatasetInfo,
    table: PersonTable,
    theirs: DatasetInfo,
    *,
    name: str,
    joints: Mapping[str, str] | None = None,
    repeat: float = 1.0,
) -> PersonTable:
    """Return a table with the joints of another dataset. What was mixed is in the log.

    Args:
        ours: the dataset whose joints the table gets.
        table: persons with labels.
        theirs: the dataset of the table.
        name: of the group in DATASET.MIX, for the log.
        joints: {its name: ours} for joints that are not called the same.
        repeat: how often a person comes in an epoch.
    """
    count = ours.skeleton.num_keypoints
    places = joint_mapping(theirs, ours, dict(joints or {}))
    lost = [
        joint for place, joint in enumerate(ours.skeleton.names) if place not in places.values()
    ]
    without = (
        f"; without {', '.join(lost[:8])}{' and others' if len(lost) > 8 else ''}" if lost else ""
    )
    log.info(
        "%s",
        f"DATASET.MIX.{name}: {len(table)} persons, each {repeat:g} times an epoch, with"
        f" {len(places)} of {count} joints{without}",
    )
    moved, visible = remap_joints(table.keypoints, table.visibility, places, count)
    return replace(
        table,
        skeleton=ours.skeleton,
        keypoints=moved,
        visibility=visible,
        repeat_factor=np.full(len(table), repeat),
    )


def remap_joints(
    joints: np.ndarray, visible: np.ndarray, places: dict[int, int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N, K, 2) and visible (N, K) of one joint set in the places of another with `count`
    joints; what is nowhere is NOT_ANNOTATED.
    """
    found = (
        np.zeros((len(joints), count, 2), joints.dtype),
        np.full((len(joints), count), NOT_ANNOTATED, visible.dtype),
    )
    theirs, ours = list(places.keys()), list(places.values())
    found[0][:, ours], found[1][:, ours] = joints[:, theirs], visible[:, theirs]
    return found
