"""Analyze one or two result files and write the report as HTML and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from poise.config.dataset_yaml import load_dataset_info
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
from poise.io.image_folder import ImageFolder
from poise.io.json_file import replace_non_finite

_MIN_DIFFERENCE = 0.05  # loss by which the images of two files must differ to be drawn


@dataclass(frozen=True)
class Report:
    """An analysis of one or two result files.

    Attributes:
        truth: the ground truth.
        result_files: the predictions.
        figures: a dictionary per result file, see docs/analysis.md.
        costliest: images with the highest loss of the first file.
        most_different: images in which two files differ most.
        notes: remarks for the reader.
    """

    truth: GroundTruth
    result_files: list[Results]
    figures: list[dict]
    costliest: list[worst_images.WorstImage]
    most_different: list[worst_images.WorstImage]
    notes: list[str]


def build_report(
    paths: Sequence[str | Path],
    annotations: str | Path,
    images: str | Path | None = None,
    num_images: int = 12,
    data: str = "coco",
) -> Report:
    """Analyze one or two result files.

    Args:
        paths: result files.
        annotations: annotation file.
        images: folder or zip archive of the images.
        num_images: number of worst images to draw.
        data: name or path of the dataset file with the keypoints.

    Raises ConfigError for the dataset file, DataError for other files.
    """
    truth = load_ground_truth(annotations, load_dataset_info(data))
    result_files = named([load_results(path, truth) for path in paths], paths)
    errors = [error_kinds.joint_errors(results) for results in result_files]
    points = [worst_images.operating_point(results) for results in result_files]
    folder, notes = image_folder(images)
    notes = [*filter(None, map(_note_missing_predictions, result_files)), *notes]
    if truth.evaluator.remark:
        notes.insert(0, truth.evaluator.remark)
    losses = np.array(
        [worst_images.losses(results, point.score) for results, point in zip(result_files, points)]
    )
    worst = _largest(losses[0], num_images, 0.0)
    most_different: list[worst_images.WorstImage] = []
    if len(result_files) == 2:
        different = _largest(np.abs(losses[0] - losses[1]), num_images, _MIN_DIFFERENCE)
        most_different = worst_images.draw(different, result_files, errors, points, folder)
    return Report(
        truth,
        result_files,
        [figures_of(*item) for item in zip(result_files, errors, points)],
        worst_images.draw(worst, result_files, errors, points, folder),
        most_different,
        notes,
    )


def _largest(values: np.ndarray, count: int, minimum: float) -> list[int]:
    """Return the indices of the `count` largest values above `minimum`."""
    order = np.argsort(-values, kind="stable")[:count].tolist()
    return [index for index in order if values[index] > minimum]


def figures_of(results: Results, errors: JointErrors, point: worst_images.OperatingPoint) -> dict:
    """Return all figures of one result file as plain values, NaN if undefined."""
    truth, pairs = results.truth, results.pairs
    image_ids = np.array([image["id"] for image in truth.images])[results.image]
    headline = truth.evaluator.average(
        truth.content, image_ids, results.keypoints, results.scores, truth.sigmas, truth.category
    )
    counted = truth.counted
    predictions = np.bincount(pairs.kind, minlength=len(PREDICTIONS)).tolist()
    return {
        "results": results.file,
        "annotations": truth.name,
        "boxes": results.box_source,
        "images": len(truth.images),
        "labelled persons": int(counted.sum()),
        "found persons": int((pairs.prediction[counted] >= 0).sum()),
        "predictions": {"all": len(results), **dict(zip(PREDICTIONS, predictions))},
        "coco": {name: float(value) for name, value in headline.items()},
        "errors": error_kinds.costs(results, errors, average_precision(results)),
        "joint errors": {
            "joints": list(truth.skeleton.names),
            **{name: counts.tolist() for name, counts in error_kinds.table(errors).items()},
        },
        "breakdowns": breakdowns.breakdown(results),
        "per joint": {
            "joints": list(truth.skeleton.names),
            **{name: values.tolist() for name, values in per_joint(results).items()},
        },
        "precision-recall": curves.precision_recall(results),
        "calibration": curves.calibration(results),
        "operating point": asdict(point),
    }


def image_folder(images: str | Path | None) -> tuple[ImageFolder | None, list[str]]:
    """Return the folder of the images, or None and a note."""
    if images is None:
        return None, ["Without --images FOLDER the worst images have a blank background."]
    folder = ImageFolder(images)
    try:
        folder.check()
    except DataError:
        raise DataError(
            f"--images {images}: no such folder or zip archive; without --images, worst images"
            " have a blank background"
        ) from None
    return folder, []


def _note_missing_predictions(results: Results) -> str:
    """Return a note if images with labeled persons have no prediction, else ''."""
    labelled = np.unique(results.truth.persons.image[results.truth.counted])
    count = int((~np.isin(labelled, results.image)).sum())
    if not count:
        return ""
    return (
        f"{results.file}: no predictions in {count} of {len(labelled)} images with labeled persons;"
        " these persons count as missed, even if the images were not tested."
    )


def write(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """Write analysis.html and analysis.json into a folder and return their paths."""
    import orjson

    from poise.evaluation.analysis import page

    html, figures = Path(folder) / "analysis.html", Path(folder) / "analysis.json"
    text = page.render(report)
    content = {
        "notes": report.notes,
        "files": report.figures,
        "worst pictures": [_without_pixels(image) for image in report.costliest],
        "pictures that differ most": [_without_pixels(image) for image in report.most_different],
    }
    with atomic_write(figures) as part:
        part.write_bytes(orjson.dumps(replace_non_finite(content), option=orjson.OPT_INDENT_2))
    with atomic_write(html) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return html, figures


def _without_pixels(image: worst_images.WorstImage) -> dict:
    return {
        "file_name": image.name,
        "image_id": image.image_id,
        "lost": image.lost,
        "notes": image.notes,
    }


def format_summary(report: Report) -> str:
    """Return a summary for the terminal."""
    from poise.visualization.tables import align_columns

    lines = [
        f"{results.name}: {results.file}, boxes: {results.box_source}\n"
        for results in report.result_files
    ]
    lines += [f"{note}\n" for note in report.notes]
    header = [""]
    for results in report.result_files:
        header += [results.name, ""]
    rows = [header]
    for name in ("AP", "Ap .5", "AP .75", "AR"):
        row = [metric_title(name)]
        for figures in report.figures:
            row += [f"{figures['coco'][name]:.3f}", ""]
        rows.append(row)
    rows.append(["AP cost of errors", *(["AP", "count"] * len(report.figures))])
    for name in error_kinds.MEANINGS:
        row = [f"  {name}"]
        for figures in report.figures:
            cost = figures["errors"][name]
            row += [f"{cost['AP']:+.3f}", str(cost["count"])]
        rows.append(row)
    return "".join(lines) + align_columns(rows, right=range(1, len(rows[0])))


def metric_title(name: str) -> str:
    """Return the name of a COCO metric for pages. Result tables and logs keep HRNet's 'Ap .5'."""
    return name.replace("Ap ", "AP ")
