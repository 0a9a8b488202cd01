"""Metrics (COCO AP, CrowdPose AP, MPII PCKh) and result files."""

from poise.evaluation.coco import (
    average_precision,
    evaluate_arrays,
    format_joint_table,
    oks_nms_per_image,
    per_joint_pck,
    per_joint_pck_of_arrays,
    read_ground_truth,
    rescore,
    result_arrays,
)
from poise.evaluation.crowdpose import crowd_average_precision
from poise.evaluation.mpii import mean_pckh, pckh, per_joint_pckh
from poise.evaluation.results import coco_results, format_table, read_results, write_results

__all__ = [
    "average_precision",
    "evaluate_arrays",
    "coco_results",
    "crowd_average_precision",
    "format_joint_table",
    "format_table",
    "mean_pckh",
    "pckh",
    "per_joint_pck",
    "per_joint_pck_of_arrays",
    "per_joint_pckh",
    "read_results",
    "read_ground_truth",
    "rescore",
    "result_arrays",
    "oks_nms_per_image",
    "write_results",
]
