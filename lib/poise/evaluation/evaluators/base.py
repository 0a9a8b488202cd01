"""The interface between a test and a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from yacs.config import CfgNode

from poise.structures.person_table import PersonTable


class Evaluator(ABC):
    """Evaluates the predictions of a test set; one subclass per metric.

    A test calls check first, then process and compute, and then diagnose and
    format_keypoint_table.

    Attributes:
        eval_name: what mmpose's --eval calls the metric.
        primary_metric: the metric that selects the best weights; higher is better.
        needs_areas: whether the annotations must have areas.
    """

    eval_name: ClassVar[str]
    primary_metric: ClassVar[str]
    needs_areas: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: CfgNode) -> Evaluator:
        """Return the evaluator of DATASET.TEST_SET. Raises DataError or ConfigError."""

    @abstractmethod
    def check(self, table: PersonTable) -> None:
        """Raise DataError or ConfigError if the test set cannot be scored."""

    def explain_unscorable(self) -> str:
        """Return why no labeled person is scored, '' if one is."""
        return ""

    @abstractmethod
    def process(
        self, table: PersonTable, keypoints: np.ndarray, scores: np.ndarray, folder: Path
    ) -> None:
        """Write result files into `folder` and store the predictions for compute.

        Args:
            table: the N persons of the test set.
            keypoints: (N, K, 2) image pixels counted from 0.
            scores: (N, K).
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the metrics by name; empty for a test set without public labels."""

    @abstractmethod
    def describe_boxes(self) -> str:
        """Return which boxes were tested, for the log."""

    @abstractmethod
    def diagnose(self, figures: Mapping[str, float], weights: str) -> list[str]:
        """Return one line per cause of metrics of 0 or without a value.

        Args:
            figures: what compute returned.
            weights: warning about the origin of the network's weights, or ''.
        """

    @abstractmethod
    def format_keypoint_table(self) -> str:
        """Return a Markdown table with a row per keypoint."""
