"""tools/analyze.py on a result file of val2017's size: its own cost, for which there is no other
program's to compare. Not part of make bench.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import made_data
import numpy as np
from comparing import Row, in_turns, main, shown
from poise import evaluation
from poise.evaluation.analysis import report


def measure() -> Iterator[Row]:
    """Reading, all figures, the page and its JSON, without pictures."""
    with tempfile.TemporaryDirectory() as name:
        annotations, results = Path(name) / "annotations.json", Path(name) / "results.json"
        content = made_data.annotation_file(
            annotations,
            ["a.jpg"],
            made_data.VAL_PERSONS,
            made_data.VAL_LABELLED,
            images=made_data.VAL_IMAGES,
            crowds=made_data.VAL_CROWDS,
        )
        write_results(results, made_data.predictions(content, made_data.DETECTIONS))
        seconds = in_turns(
            {
                "poise": lambda: report.write(
                    report.build_report([results], annotations, pictures=0), name
                )
            },
            2,
            warm=0,
        )["poise"]
        size = (Path(name) / "analysis.html").stat().st_size / 1e6
        yield Row(
            f"analysis of {made_data.DETECTIONS:,} predictions in {made_data.VAL_IMAGES:,}"
            " pictures",
            shown(seconds),
            f"a page of {size:.1f} MB without pictures",
            sum(seconds) / len(seconds),
            "shown",
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
