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
    """Score the predictions of a test set; one subclass per metric.

    A test calls check before anything is computed, then process and compute, and with the figures
    explain and format_keypoint_table.

    Attributes:
        eval_name: what mmpose's --eval calls the metric.
        primary_metric: the figure that decides which weights are best; higher is better.
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
        """Return why no labeled person can be scored, '' if one can."""
        return ""

    @abstractmethod
    def process(
        self, table: PersonTable, keypoints: np.ndarray, scores: np.ndarray, folder: Path
    ) -> None:
        """Write the result files of the predictions into `folder` and keep them for compute.

        Args:
            table: the N persons of the test set.
            keypoints: (N, K, 2) image pixels, from 0.
            scores: (N, K).
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the figures by name; empty for a test set without public labels."""

    @abstractmethod
    def describe_boxes(self) -> str:
        """Return which boxes were tested, for the log."""

    @abstractmethod
    def diagnose(self, figures: Mapping[str, float], weights: str) -> list[str]:
        """Return the reasons for figures of 0 or without a value, one line each.

        Args:
            figures: what compute returned.
            weights: what may be wrong with the network's weights, '' if nothing is known.
        """

    @abstractmethod
    def format_keypoint_table(self) -> str:
        """Return a Markdown table with a row per keypoint."""
