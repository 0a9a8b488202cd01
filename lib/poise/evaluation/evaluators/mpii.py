"""Metric pckh: PCKh of MPII, as HRNet evaluates it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.config.datasets import dataset_info, require_headbox_path, split_info
from poise.errors import ConfigError
from poise.evaluation import diagnose_mpii
from poise.evaluation.evaluators.base import Evaluator
from poise.evaluation.mpii import JOINTS, pckh, per_joint_pckh
from poise.io.files import atomic_write
from poise.structures.person_table import PersonTable

log = logging.getLogger(__name__)


class MpiiEvaluator(Evaluator):
    """Writes predictions as a MATLAB file and computes PCKh.

    Args:
        split: name of the test set.
        head_boxes: MATLAB file with keypoints and head boxes; None where they are not public.
    """

    eval_name = "PCKh"
    primary_metric = "Mean"

    def __init__(self, *, split: str, head_boxes: Path | None):
        self.split, self.head_boxes = split, head_boxes

    def check(self, table: PersonTable) -> None:
        if self.head_boxes is not None:
            pckh(np.zeros((len(table), JOINTS, 2)), self.head_boxes)

    def process(
        self, table: PersonTable, keypoints: np.ndarray, scores: np.ndarray, folder: Path
    ) -> None:
        from scipy.io import savemat

        self._table, self._keypoints = table, keypoints
        path = folder / ("pred.mat" if self.split == "valid" else f"pred_{self.split}.mat")
        with atomic_write(path) as part:
            savemat(part, {"preds": self._one_based()}, appendmat=False)
        log.info("%d predictions written to %s", len(keypoints), path)

    def compute(self) -> dict[str, float]:
        if self.head_boxes is None:
            log.info(
                "PCKh needs head boxes; they are public for MPII's split 'valid', %s has none",
                self.split,
            )
            return {}
        return pckh(self._one_based(), self.head_boxes)

    def describe_boxes(self) -> str:
        return "boxes of the annotations"

    def diagnose(self, figures: Mapping[str, float], weights: str) -> list[str]:
        if self.head_boxes is None or not diagnose_mpii.should_diagnose(figures):
            return []
        table = self._table
        return diagnose_mpii.diagnose(
            self.head_boxes,
            self._keypoints,
            table.boxes,
            table.keypoints,
            table.visibility,
            table.skeleton.flip_indices,
            figures,
            weights,
        )

    def format_keypoint_table(self) -> str:
        assert self.head_boxes is not None, "no metrics without head boxes"
        percent, count = per_joint_pckh(self._one_based(), self.head_boxes)
        rows = [
            f"| {name} | {n} | {value:.1f} |"
            for name, n, value in zip(self._table.skeleton.names, count, percent)
        ]
        return "\n".join(["| Joint | labelled | PCKh@0.5 |", "|---|---|---|", *rows])

    def _one_based(self) -> np.ndarray:
        """Return predictions (N, 16, 2) in pixels counted from 1, as in MPII's files."""
        return self._keypoints + 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MpiiEvaluator:
        data = dataset_info(cfg)
        split = cfg.DATASET.TEST_SET
        if not split_info(cfg, split).head_boxes:
            return cls(split=split, head_boxes=None)
        if data.skeleton.num_keypoints != JOINTS:
            raise ConfigError(
                f"{data.path}: metric pckh needs the {JOINTS} joints of MPII, joints has"
                f" {data.skeleton.num_keypoints}"
            )
        return cls(split=split, head_boxes=require_headbox_path(cfg))
