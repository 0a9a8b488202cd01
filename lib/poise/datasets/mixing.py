"""Training sets of several data sets as one table, with the joints of the first (DATASET.MIX).

Joints are matched by name, or as DATASET.MIX.<name>.JOINTS says. Those that a set does not have are UNKNOWN there: they count for nothing in
the loss, and a mirror swaps them as the first data set's file says.
"""
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.config.following import joint_places
from poise.datasets.decoding import Picture
from poise.datasets.reading import ImageFolder
from poise.datasets.table import UNKNOWN, PackedNames, PersonTable
from poise.errors import DataError
from poise.skeleton import dataset_of

log = logging.getLogger(__name__)


class ImageFolders:
    """The image folders of several sets. An image's name begins with its set's name and a /; in the first set's, with / alone."""

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

    def open(self, name: str) -> Picture:
        """See ImageFolder."""
        folder, own = self._of(name)
        return folder.open(own)

    def read(self, name: str) -> np.ndarray:
        """See ImageFolder."""
        folder, own = self._of(name)
        return folder.read(own)

    def undecodable(self, name: str) -> DataError:
        """See ImageFolder."""
        folder, own = self._of(name)
        return folder.undecodable(own)

    def _of(self, name: str) -> tuple[ImageFolder, str]:
        key, own = name.split("/", 1)
        return self.folders[key], own


def as_set(cfg: CfgNode, name: str) -> CfgNode:
    """`cfg` with the data set of a group of DATASET.MIX as its own."""
    group, other = cfg.DATASET.MIX[name], cfg.clone()
    other.defrost()
    other.DATASET.FILE, other.DATASET.TRAIN_SET, other.DATASET.ROOT, other.DATASET.MIX = group.FILE, group.SET, group.ROOT, CfgNode()
    other.DATASET.DATA_FORMAT = group.DATA_FORMAT or cfg.DATASET.DATA_FORMAT
    other.freeze()
    return other


def mixed(cfg: CfgNode, sets: dict[str, tuple[PersonTable, ImageFolder]]) -> tuple[PersonTable, ImageFolders]:
    """One table and its images of several sets, the first of them of cfg's own data set, the others of DATASET.MIX. Raises DataError.

    Images keep their ids in the first set; those of the others come behind. What was mixed is in the log.
    """
    ours = dataset_of(cfg)
    tables, first = [], True
    images, next_id = 0, 0
    for name, (table, folder) in sets.items():
        if not table.labelled:
            raise DataError(f"{folder.location}: a set without labels cannot be trained on")
        joints, visible, repeat = table.joints, table.visible, np.ones(len(table))
        if not first:
            group = cfg.DATASET.MIX[name]
            places = joint_places(dataset_of(as_set(cfg, name)), ours, group.JOINTS)
            joints, visible = in_places(table.joints, table.visible, places, ours.skeleton.num_joints)
            repeat = repeat * group.REPEAT
            lost = [joint for place, joint in enumerate(ours.skeleton.names) if place not in places.values()]
            log.info("%s", f"DATASET.MIX.{name}: {len(table)} persons, each {group.REPEAT:g} times an epoch, with {len(places)} of {ours.skeleton.num_joints} joints"
                           f"{'; without ' + ', '.join(lost[:8]) + (' and others' if len(lost) > 8 else '') if lost else ''}")
        ids = table.image_ids if first else next_id + np.arange(len(table.image_ids), dtype=np.int64)
        tables.append((table, name, joints, visible, repeat, ids, images))
        images, next_id, first = images + len(table.image_ids), int(ids.max(initial=-1)) + 1, False
    columns = {key: np.concatenate([getattr(table, key) for table, *_ in tables]) for key in ("center", "extent", "scale", "score", "ids")}
    dropped = {f"{reason} ({name})" if name else reason: count for table, name, *_ in tables for reason, count in table.dropped.items()}
    return PersonTable(
        ours.skeleton, PackedNames.of([f"{name}/{image}" for table, name, *_ in tables for image in table.image_names]),
        np.concatenate([ids for *_, ids, _ in tables]), np.concatenate([table.image_index + begin for table, *_, begin in tables]).astype(np.int32),
        joints=np.concatenate([joints for _, _, joints, *_ in tables]), visible=np.concatenate([visible for _, _, _, visible, *_ in tables]),
        box_source="gt", dropped=dropped, category_id=tables[0][0].category_id, repeat=np.concatenate([repeat for *_, repeat, _, _ in tables]),
        **columns), ImageFolders({name: folder for name, (_, folder) in sets.items()})


def in_places(joints: np.ndarray, visible: np.ndarray, places: dict[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N, K, 2) and visible (N, K) of one joint set in the places of another with `count` joints; what is nowhere is UNKNOWN."""
    found = np.zeros((len(joints), count, 2), joints.dtype), np.full((len(joints), count), UNKNOWN, visible.dtype)
    theirs, ours = list(places.keys()), list(places.values())
    found[0][:, ours], found[1][:, ours] = joints[:, theirs], visible[:, theirs]
    return found
