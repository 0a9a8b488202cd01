"""Evaluators by the `metric` of the dataset file."""

from yacs.config import CfgNode

from poise.config.datasets import dataset_info
from poise.evaluation.evaluators.base import Evaluator
from poise.evaluation.evaluators.coco import CocoEvaluator
from poise.evaluation.evaluators.crowdpose import CrowdPoseEvaluator
from poise.evaluation.evaluators.mpii import MpiiEvaluator

__all__ = ["EVALUATORS", "Evaluator", "build_evaluator"]

#: the names are those of poise.config.dataset_yaml.METRICS
EVALUATORS: dict[str, type[Evaluator]] = {
    "oks": CocoEvaluator,
    "crowdpose": CrowdPoseEvaluator,
    "pckh": MpiiEvaluator,
}


def build_evaluator(cfg: CfgNode) -> Evaluator:
    """Return the evaluator of DATASET.TEST_SET. Raises DataError or ConfigError."""
    return EVALUATORS[dataset_info(cfg).metric].from_config(cfg)
