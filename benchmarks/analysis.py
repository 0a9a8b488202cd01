"""Time tools/analyze.py on a result file of the size of val2017.

There is no other program to compare with. Not part of make bench.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import synthetic_coco
from poise import evaluation
from poise.evaluation.analysis import report
from timing import Row, format_seconds, main, time_alternately


def measure() -> Iterator[Row]:
    """Read the results, compute all metrics, write the page and its JSON, without images."""
    with tempfile.TemporaryDirectory() as name:
        annotations, results = Path(name) / "annotations.json", Path(name) / "results.json"
        content = synthetic_coco.write_annotations(
            annotations,
            ["a.jpg"],
            synthetic_coco.VAL_PERSONS,
            synthetic_coco.VAL_LABELED,
            images=synthetic_coco.VAL_IMAGES,
            crowds=synthetic_coco.VAL_CROWDS,
        )
        write_results(results, synthetic_coco.make_predictions(content, synthetic_coco.DETECTIONS))
        seconds = time_alternately(
            {
                "poise": lambda: report.write(
                    report.build_report([results], annotations, num_images=0), name
                )
            },
            2,
            warmup=0,
        )["poise"]
        size = (Path(name) / "analysis.html").stat().st_size / 1e6
        yield Row(
            f"analysis of {synthetic_coco.DETECTIONS:,} predictions in"
            f" {synthetic_coco.VAL_IMAGES:,} images",
            format_seconds(seconds),
            f"a page of {size:.1f} MB without images",
            sum(seconds) / len(seconds),
            "none",
            None,
            "s",
        )


def write_results(path: Path, p: dict) -> None:
    scores = evaluation.rescore(p["keypoint_scores"], p["box_scores"], 0.2)
    evaluation.write_results(
        path,
        p["image_ids"],
        np.concatenate([p["keypoints"], p["keypoint_scores"][:, :, None]], axis=2),
        scores,
    )


if __name__ == "__main__":
    main(measure)
