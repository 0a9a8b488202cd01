"""Splits of an experiment, as the checks read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from yacs.config import CfgNode

from poise.config import data_path
from poise.config.datasets import (
    dataset_info,
    image_folder,
    require_annotation_path,
    split_info,
)
from poise.datasets import read_table
from poise.datasets.mixing import cfg_for_source
from poise.errors import PoiseError
from poise.evaluation.evaluators import Evaluator, build_evaluator
from poise.io.image_folder import ImageFolder
from poise.structures.person_table import PersonTable
from poise.structures.skeleton import DatasetInfo


@dataclass(frozen=True)
class SplitSource:
    """A split and how a run reads it.

    Attributes:
        title: Such as 'train set train2017'.
        data: Its dataset.
        images: Its image folder.
        is_train: Whether it is a training split.
        labelled: Whether it has keypoints.
        annotations: The annotation file; None where there is none.
        annotations_error: Why there is none.
        cache: DATASET.CACHE.
        detections: TEST.COCO_BBOX_FILE of a test split; None where it is not used or empty.
        uses_detections: Whether a test reads detections instead of annotated boxes.
        min_score: TEST.IMAGE_THRE.
        read_table: Read the persons as a run does.
        build_evaluator: Build the evaluator of a test split.
    """

    title: str
    data: DatasetInfo
    images: ImageFolder
    is_train: bool
    labelled: bool
    annotations: Path | None
    annotations_error: str
    cache: bool
    detections: Path | None
    uses_detections: bool
    min_score: float
    read_table: Callable[[], PersonTable]
    build_evaluator: Callable[[], Evaluator]

    @classmethod
    def from_config(cls, cfg: CfgNode, title: str, *, train: bool) -> SplitSource:
        """Return DATASET.TRAIN_SET or DATASET.TEST_SET."""
        split = cfg.DATASET.TRAIN_SET if train else cfg.DATASET.TEST_SET
        annotations, reason = None, ""
        try:
            annotations = require_annotation_path(cfg, split)
        except PoiseError as error:
            reason = str(error)
        uses_detections = not train and not cfg.TEST.USE_GT_BBOX
        detections = None
        if uses_detections and cfg.TEST.COCO_BBOX_FILE:
            detections = Path(data_path(cfg, cfg.TEST.COCO_BBOX_FILE))
        return cls(
            title=title,
            data=dataset_info(cfg),
            images=image_folder(cfg, split),
            is_train=train,
            labelled=split_info(cfg, split).labelled,
            annotations=annotations,
            annotations_error=reason,
            cache=cfg.DATASET.CACHE,
            detections=detections,
            uses_detections=uses_detections,
            min_score=cfg.TEST.IMAGE_THRE,
            read_table=partial(read_table, cfg, train=train),
            build_evaluator=partial(build_evaluator, cfg),
        )


def build_sources(cfg: CfgNode) -> list[SplitSource]:
    """Return DATASET.TRAIN_SET, the splits of DATASET.MIX and last DATASET.TEST_SET."""
    sources = [SplitSource.from_config(cfg, f"train set {cfg.DATASET.TRAIN_SET}", train=True)]
    for name in sorted(cfg.DATASET.MIX):
        mix_cfg = cfg_for_source(cfg, name)
        sources.append(SplitSource.from_config(mix_cfg, f"DATASET.MIX.{name}", train=True))
    test_title = f"test set {cfg.DATASET.TEST_SET}"
    return [*sources, SplitSource.from_config(cfg, test_title, train=False)]
