"""All figures of one or two result files, as plain data, and the files that they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from poise.config.datasets import load_dataset_info
from poise.errors import DataError
from poise.evaluation.analysis import breakdowns, curves, worst_images
from poise.evaluation.analysis import errors as error_kinds
from poise.evaluation.analysis.errors import JointErrors
from poise.evaluation.analysis.matching import (
    PREDICTIONS,
    GroundTruth,
    Results,
    average_precision,
    load_ground_truth,
    load_results,
    named,
)
from poise.evaluation.analysis.per_keypoint import per_joint
from poise.io.files import atomic_write
from poise.io.images import ImageFolder
from poise.io.json_file import replace_non_finite


@dataclass(frozen=True)
class Report:
    """figures: one dictionary for each result file, as docs/analysis.md describes; costliest and
    most_different: drawn pictures, the second only of two files. notes: what could not be shown,
    and why.
    """

    truth: GroundTruth
    founds: list[Results]
    figures: list[dict]
    costliest: list[worst_images.WorstImage]
    most_different: list[worst_images.WorstImage]
    notes: list[str]


def build_report(
    results: Sequence[str | Path],
    annotations: str | Path,
    images: str | Path | None = None,
    pictures: int = 12,
    data: str = "coco",
) -> Report:
    """Analyse one or two result files. images: folder or zip archive of the pictures. pictures:
    how many of the worst to draw. data: name or path of the dataset file that says what the
    joints are. Raises ConfigError for that one, DataError for other files that cannot be used or
    do not belong together.
    """
    truth = load_ground_truth(annotations, load_dataset_info(data))
    founds = named([load_results(path, truth) for path in results], results)
    errors = [error_kinds.joint_errors(found) for found in founds]
    points = [worst_images.operating_point(found) for found in founds]
    figures = [
        figures_of(found, wrong, point) for found, wrong, point in zip(founds, errors, points)
    ]
    folder, notes = image_folder(images)
    notes = [*filter(None, map(_without_predictions, founds)), *notes]
    if truth.evaluator.remark:
        notes.insert(0, truth.evaluator.remark)
    lost = np.array(
        [worst_images.losses(found, point.score) for found, point in zip(founds, points)]
    )
    places = [
        place
        for place in np.argsort(-lost[0], kind="stable")[:pictures].tolist()
        if lost[0][place] > 0
    ]
    costliest = worst_images.draw(places, founds, errors, points, folder)
    most_different = []
    if len(founds) == 2:
        apart = np.abs(lost[0] - lost[1])
        places = [
            place
            for place in np.argsort(-apart, kind="stable")[:pictures].tolist()
            if apart[place] > 0.05
        ]
        most_different = worst_images.draw(places, founds, errors, points, folder)
    return Report(truth, founds, figures, costliest, most_different, notes)


def figures_of(found: Results, errors: JointErrors, point: worst_images.OperatingPoint) -> dict:
    """Everything that is told of one result file, in plain values; NaN where there is nothing to
    count.
    """
    truth, pairs = found.truth, found.pairs
    image_ids = np.array([image["id"] for image in truth.images])[found.image]
    headline = truth.evaluator.average(
        truth.content, image_ids, found.keypoints, found.scores, truth.sigmas, truth.category
    )
    counted, predictions = (
        truth.counted,
        np.bincount(pairs.kind, minlength=len(PREDICTIONS)).tolist(),
    )
    return {
        "results": found.file,
        "annotations": truth.name,
        "boxes": found.box_source,
        "images": len(truth.images),
        "labelled persons": int(counted.sum()),
        "found persons": int((pairs.prediction[counted] >= 0).sum()),
        "predictions": {"all": len(found), **dict(zip(PREDICTIONS, predictions))},
        "coco": {name: float(value) for name, value in headline.items()},
        "errors": error_kinds.costs(found, errors, average_precision(found)),
        "joint errors": {
            "joints": list(truth.skeleton.names),
            **{name: counts.tolist() for name, counts in error_kinds.table(errors).items()},
        },
        "breakdowns": breakdowns.breakdown(found),
        "per joint": {
            "joints": list(truth.skeleton.names),
            **{name: values.tolist() for name, values in per_joint(found).items()},
        },
        "precision-recall": curves.precision_recall(found),
        "calibration": curves.calibration(found),
        "operating point": asdict(point),
    }


def image_folder(images: str | Path | None) -> tuple[ImageFolder | None, list[str]]:
    """Where the pictures lie, or None, and what to say about it."""
    if images is None:
        return None, ["Without --images FOLDER the worst pictures are drawn on a blank ground."]
    folder = ImageFolder(images)
    try:
        folder.check()
    except DataError:
        raise DataError(
            f"--images {images}: no such folder or zip archive; without it the worst pictures are"
            " drawn on a blank ground"
        ) from None
    return folder, []


def _without_predictions(found: Results) -> str:
    """That pictures with labelled persons have no prediction, as where only a part of the set
    was tested; '' where all have one.
    """
    labelled = np.unique(found.truth.persons.image[found.truth.counted])
    count = int((~np.isin(labelled, found.image)).sum())
    if not count:
        return ""
    return (
        f"{found.file}: no prediction in {count} of the {len(labelled)} pictures with labelled"
        " persons, who count as missed, even if those pictures were not tested."
    )


def write(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """folder/analysis.html and folder/analysis.json."""
    import orjson

    from poise.evaluation.analysis import page

    html, figures = Path(folder) / "analysis.html", Path(folder) / "analysis.json"
    text = page.render(report)
    content = {
        "notes": report.notes,
        "files": report.figures,
        "worst pictures": [_without_pixels(picture) for picture in report.costliest],
        "pictures that differ most": [
            _without_pixels(picture) for picture in report.most_different
        ],
    }
    with atomic_write(figures) as part:
        part.write_bytes(orjson.dumps(replace_non_finite(content), option=orjson.OPT_INDENT_2))
    with atomic_write(html) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return html, figures


def _without_pixels(picture: worst_images.WorstImage) -> dict:
    return {
        "file_name": picture.name,
        "image_id": picture.image_id,
        "lost": picture.lost,
        "notes": picture.notes,
    }


def format_summary(report: Report) -> str:
    """A few lines for the terminal."""
    from poise.visualization.tables import align_columns

    head = "".join(
        f"{found.name}: {found.file}, boxes: {found.box_source}\n" for found in report.founds
    ) + "".join(f"{note}\n" for note in report.notes)
    rows = [["", *(cell for found in report.founds for cell in (found.name, ""))]]
    rows += [
        [
            metric_title(name),
            *(cell for figures in report.figures for cell in (f"{figures['coco'][name]:.3f}", "")),
        ]
        for name in ("AP", "Ap .5", "AP .75", "AR")
    ]
    rows += [
        ["AP that the errors cost", *(cell for _ in report.founds for cell in ("AP", "count"))]
    ]
    for name in error_kinds.MEANINGS:
        costs = [figures["errors"][name] for figures in report.figures]
        rows.append(
            [
                f"  {name}",
                *(cell for cost in costs for cell in (f"{cost['AP']:+.3f}", str(cost["count"]))),
            ]
        )
    return head + align_columns(rows, right=range(1, len(rows[0])))


def metric_title(name: str) -> str:
    """Return the name of a COCO metric as pages show it: result tables and logs keep HRNet's 'Ap
    .5'.
    """
    return name.replace("Ap ", "AP ")
