"""Metric oks: average precision of COCO, as HRNet evaluates it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.config.datasets import dataset_info, require_annotation_path, split_info
from poise.evaluation import diagnose
from poise.evaluation.coco import (
    CocoGroundTruth,
    evaluate_arrays,
    format_joint_table,
    oks_nms_per_image,
    per_joint_pck_of_arrays,
    read_ground_truth,
    rescore,
)
from poise.evaluation.evaluators.base import Evaluator
from poise.evaluation.results import write_results, write_submission
from poise.io.cache import stat_key
from poise.structures.crops import PIXEL_STD
from poise.structures.person_table import PersonTable
from poise.structures.skeleton import DatasetInfo

log = logging.getLogger(__name__)


class CocoEvaluator(Evaluator):
    """Rescore, suppress duplicates by OKS-NMS, write COCO result files, compute the AP.

    Args:
        data: the dataset file.
        split: name of the test set.
        annotations: its annotation file.
        labeled: whether the annotations are public; without them only result files are written.
        joint_threshold: keypoints of a higher score count for the score of a person.
        nms_threshold: OKS above which a person is a duplicate; None: no OKS-NMS.
        soft_nms: lower the scores of duplicates instead of removing them.
    """

    eval_name = "mAP"
    primary_metric = "AP"
    needs_areas = True
    #: area of a person as a fraction of the box; None: as annotated
    area_of_box: float | None = None
    #: remark on a page of poise.evaluation.analysis
    remark = ""
    average = staticmethod(evaluate_arrays)

    def __init__(
        self,
        *,
        data: DatasetInfo,
        split: str,
        annotations: Path,
        labeled: bool = True,
        joint_threshold: float = 0.2,
        nms_threshold: float | None = 0.9,
        soft_nms: bool = False,
    ):
        self.data = data
        self.split = split
        self.annotations = annotations
        self.labeled = labeled
        self.joint_threshold = joint_threshold
        self.nms_threshold = nms_threshold
        self.soft_nms = soft_nms

    def truth(self) -> CocoGroundTruth:
        """Return the annotations, read once; they must not be changed. Raises DataError."""
        try:
            state = stat_key(self.annotations)
        except OSError:  # reading the file raises the error
            state = None
        return _read_cached(
            self.annotations,
            state,
            self.data.skeleton.num_keypoints,
            self.data.category,
            self.area_of_box,
        )

    def check(self, table: PersonTable) -> None:
        """Read the annotations: OKS needs areas, which custom files often lack."""
        if self.labeled:
            self.truth()

    def explain_unscorable(self) -> str:
        return diagnose.explain_unscorable(self.truth()) if self.labeled else ""

    def process(
        self, table: PersonTable, keypoints: np.ndarray, scores: np.ndarray, folder: Path
    ) -> None:
        image_ids = table.image_ids[table.image_index]
        keypoints = np.concatenate([keypoints, scores[:, :, None]], axis=2)
        person_scores = rescore(scores, table.score, self.joint_threshold)
        keep = np.arange(len(table))
        method = "kept, no OKS-NMS"
        if self.nms_threshold is not None:
            keep = oks_nms_per_image(
                keypoints,
                person_scores,
                table.scale.prod(axis=1) * PIXEL_STD**2,
                image_ids,
                self.nms_threshold,
                self.soft_nms,
                table.skeleton.sigmas,
            )
            method = "kept by soft OKS-NMS" if self.soft_nms else "kept by OKS-NMS"
        self._table = table
        self._keep = keep
        self._image_ids = image_ids[keep]
        self._keypoints = keypoints[keep]
        self._scores = person_scores[keep]
        source = "gt_boxes" if table.box_source == "gt" else table.box_source
        path = folder / f"keypoints_{self.split}_results_{source}.json"
        write_results(
            path,
            self._image_ids,
            self._keypoints,
            self._scores,
            table.center[keep],
            table.scale[keep],
            table.category_id,
        )
        log.info("%d of %d poses %s; written to %s", len(keep), len(table), method, path)
        if not self.labeled:
            self._submit(folder, path)

    def _submit(self, folder: Path, path: Path) -> None:
        """Log which file to submit to the evaluation server; for COCO write a zip archive."""
        if self.data.name == "coco":  # https://cocodataset.org/#upload
            algorithm = re.sub(r"[^\w.+-]", "-", folder.parent.name)
            path = folder / f"person_keypoints_{self.split}_{algorithm}_results.zip"
            write_submission(
                path, self._image_ids, self._keypoints, self._scores, self._table.category_id
            )
        log.info("%s has no public labels; submit %s to the evaluation server", self.split, path)

    def compute(self) -> dict[str, float]:
        """Evaluate the arrays: equal to evaluating the file that was written."""
        if not self.labeled:
            return {}
        return self.average(
            self.truth(),
            self._image_ids,
            self._keypoints,
            self._scores,
            self._table.skeleton.sigmas,
            self._table.category_id,
        )

    def describe_boxes(self) -> str:
        source = self._table.box_source
        return "ground-truth boxes" if source == "gt" else f"boxes of {source}"

    def diagnose(self, figures: Mapping[str, float], weights: str) -> list[str]:
        if not diagnose.should_diagnose(figures):
            return []
        table = self._table
        context = diagnose.EvalContext(
            self._image_ids,
            self._keypoints,
            self._scores,
            table.boxes[self._keep],
            table.skeleton.sigmas,
            table.skeleton.flip_indices,
            table.category_id,
            table.box_source,
            table.dropped,
            self.joint_threshold,
            weights,
        )
        return diagnose.diagnose(self.truth(), context, figures)

    def format_keypoint_table(self) -> str:
        skeleton = self._table.skeleton
        figures = per_joint_pck_of_arrays(
            self.truth(),
            self._image_ids,
            self._table.category_id,
            self._keypoints,
            skeleton.sigmas,
        )
        return format_joint_table(skeleton.names, figures)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CocoEvaluator:
        split, test = cfg.DATASET.TEST_SET, cfg.TEST
        return cls(
            data=dataset_info(cfg),
            split=split,
            annotations=require_annotation_path(cfg, split),
            labeled=split_info(cfg, split).labelled,
            joint_threshold=test.IN_VIS_THRE,
            nms_threshold=test.OKS_THRE if test.OKS_NMS else None,
            soft_nms=test.SOFT_NMS,
        )


@lru_cache(maxsize=1)
def _read_cached(
    path: Path,
    state: tuple[int, int, int] | None,
    joints: int,
    category: str | int,
    area_of_box: float | None,
) -> CocoGroundTruth:
    """Read annotations with a cache. state: stat of the file; a changed file is read again."""
    return read_ground_truth(path, joints, category, area_of_box)
