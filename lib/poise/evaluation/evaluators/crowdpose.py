"""Metric crowdpose: the AP of CrowdPose, also of easy, medium and hard images alone."""

from __future__ import annotations

from poise.evaluation.crowdpose import AREA_OF_BOX, crowd_average_precision, crowd_indices
from poise.evaluation.evaluators.coco import CocoEvaluator
from poise.structures.person_table import PersonTable


class CrowdPoseEvaluator(CocoEvaluator):
    """Evaluates as COCO, with areas from boxes; images need a crowdIndex."""

    needs_areas = False
    area_of_box = AREA_OF_BOX
    remark = (
        "CrowdPose evaluation: the area of a person is 0.53 times that of the box; images are easy,"
        " medium or hard by crowdIndex."
    )
    average = staticmethod(crowd_average_precision)

    def check(self, table: PersonTable) -> None:
        super().check(table)
        if self.labeled:
            crowd_indices(self.truth())
