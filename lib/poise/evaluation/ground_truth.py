"""The labels that predictions of DATASET.TEST_SET are scored against, looked at before an epoch
is spent on what could not be scored.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.config.datasets import (
    dataset_of,
    present_annotation_path,
    present_headbox_path,
    set_files,
)
from poise.errors import ConfigError
from poise.evaluation import pckh, read_truth
from poise.evaluation.coco import Truth
from poise.evaluation.crowdpose import AREA_OF_BOX, crowd_indices
from poise.evaluation.mpii import JOINTS as MPII_JOINTS
from poise.io.cache import file_state
from poise.structures.person_table import PersonTable


def check_truth(cfg: CfgNode, table: PersonTable) -> None:
    """Raise DataError or ConfigError where the test set could not be scored.

    MPII's head boxes lie in a file of their own; COCO's OKS needs areas, which custom annotation
    files often lack; CrowdPose's figures a crowdIndex.
    """
    data, files = dataset_of(cfg), set_files(cfg, cfg.DATASET.TEST_SET)
    if data.metric == "pckh" and files.head_boxes:
        if data.skeleton.num_joints != MPII_JOINTS:
            raise ConfigError(
                f"{data.path}: metric pckh is for the {MPII_JOINTS} joints of MPII, joints has"
                f" {data.skeleton.num_joints}"
            )
        pckh(np.zeros((len(table), MPII_JOINTS, 2)), present_headbox_path(cfg))
    if data.metric != "pckh" and files.labelled:
        labels(cfg)


def labels(cfg: CfgNode) -> Truth:
    """The annotations of DATASET.TEST_SET, as its metric takes them: see metrics.read_truth. Not
    to be changed, for they are kept from one test to the next.
    """
    data, path = dataset_of(cfg), present_annotation_path(cfg, cfg.DATASET.TEST_SET)
    try:
        state = file_state(path)
    except OSError:  # told by the reading
        state = None
    return _labels(path, state, data.skeleton.num_joints, data.category, data.metric == "crowdpose")


@lru_cache(maxsize=1)
def _labels(
    path: Path, state: tuple[int, int, int] | None, joints: int, category: str | int, crowded: bool
) -> Truth:
    """state: of the file, so that one that was changed is read again."""
    truth = read_truth(path, joints, category, AREA_OF_BOX if crowded else None)
    if crowded:
        crowd_indices(truth)
    return truth
