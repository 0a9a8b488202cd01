"""Render a report as one HTML file: no scripts, no requests, light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

from poise.errors import escape_html, pluralize
from poise.evaluation.analysis.breakdowns import TITLES
from poise.evaluation.analysis.errors import JOINTS, MEANINGS
from poise.evaluation.analysis.report import Report, metric_title
from poise.evaluation.analysis.worst_images import WorstImage
from poise.visualization import charts
from poise.visualization.html import Markup, format_number, render_document, render_table


def render(report: Report) -> str:
    """Return the HTML page of a report."""
    is_comparison = len(report.result_files) == 2
    title = "Error analysis: " + " and ".join(results.file for results in report.result_files)
    worst_title = "Worst images"
    if is_comparison:
        worst_title += f" of {report.result_files[0].file}"
    parts = [
        f"<h1>{escape_html(title)}</h1>",
        _intro(report),
        *(f'<p class="soft">{escape_html(note)}</p>' for note in report.notes),
        _overall(report),
        _errors(report),
        _joint_errors(report),
        _breakdowns(report),
        _joints(report),
        _precision_recall(report),
        _calibration(report),
        _images(worst_title, report.costliest),
    ]
    if is_comparison:
        parts.append(_images("Images in which the two files differ most", report.most_different))
    return render_document(title, parts)


def _names(report: Report) -> list[str]:
    return [results.name for results in report.result_files]


def comparison_cells(values: Sequence[float | None], less_is_better: bool = False) -> list[str]:
    """Return the table cells of a metric of each result file, and of two files the difference."""
    cells = [format_number(value) for value in values]
    if len(values) != 2:
        return cells
    first, second = values
    if not (_is_number(first) and _is_number(second)):
        return [*cells, "–"]
    change = second - first
    style = "better" if (change > 0) != less_is_better else "worse"
    if abs(change) < 0.0005:
        style = "soft"
    return [*cells, Markup(f'<span class="{style}">{change:+.3f}</span>')]


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value != -1


def _head(report: Report) -> list[str]:
    names = _names(report)
    return [*names, "difference"] if len(names) == 2 else names


def _intro(report: Report) -> str:
    first = report.figures[0]
    text = (
        f"{first['annotations']}: {pluralize(first['images'], 'image')},"
        f" {pluralize(first['labelled persons'], 'scored person')} (no crowds, at least one labeled"
        " keypoint). AP and OKS as in COCO; the other figures are described in docs/analysis.md."
    )
    kinds = ("all", "found a person", "outranked", "duplicate", "background", "not counted")
    rows = []
    for results, figures in zip(report.result_files, report.figures):
        counts = [str(figures["predictions"][kind]) for kind in kinds]
        persons = f"{figures['found persons']} of {figures['labelled persons']}"
        rows.append([results.name, results.file, results.box_source, *counts, persons])
    head = [
        "",
        "file",
        "boxes",
        "predictions",
        "matched",
        *kinds[2:5],
        "ignored",
        "persons matched",
    ]
    return (
        f"<p>{escape_html(text)}</p>"
        + render_table(head, rows, (1, 2))
        + '<p class="soft">Predictions are matched with persons from an OKS of 0.1.</p>'
    )


def _overall(report: Report) -> str:
    rows = [
        [
            metric_title(name),
            *comparison_cells([figures["coco"][name] for figures in report.figures]),
        ]
        for name in report.figures[0]["coco"]
    ]
    sources = [
        [
            figures["boxes"],
            figures["results"],
            str(figures["predictions"]["all"]),
            format_number(figures["predictions"]["all"] / figures["images"], 1),
            format_number(figures["coco"]["AP"]),
            format_number(figures["coco"]["AR"]),
        ]
        for figures in report.figures
    ]
    return (
        "<h2>Average precision</h2>"
        + render_table(["", *_head(report)], rows)
        + "<h3>By source of the boxes</h3>"
        + render_table(["boxes", "file", "predictions", "per image", "AP", "AR"], sources, (1,))
        + '<p class="soft">The source is part of the result file\'s name; pass a second file with'
        " other boxes to --compare.</p>"
    )


def _errors(report: Report) -> str:
    costs = [figures["errors"] for figures in report.figures]
    chart = charts.bars(
        "AP cost of each kind of error",
        {
            name: [cost[kind]["AP"] for kind in MEANINGS]
            for name, cost in zip(_names(report), costs)
        },
        list(MEANINGS),
        "AP gained by correcting the errors",
        limits=None,
    )
    head = ["error", "meaning"]
    for name in _names(report):
        count = f"{name}: count" if len(costs) == 2 else "count"
        head += [count, "AP", "AP .5", "AP .75"]
    rows = []
    for kind, meaning in MEANINGS.items():
        row = [kind, meaning]
        for cost in costs:
            row += [
                str(cost[kind]["count"]),
                *(f"{cost[kind][key]:+.3f}" for key in ("AP", "AP .5", "AP .75")),
            ]
        rows.append(row)
    return (
        "<h2>AP cost of errors</h2><p>Each row: AP after correcting all errors of one kind minus"
        " the AP of the file. The kinds of keypoint errors are those of Ronchi and Perona (ICCV"
        " 2017). Kinds are corrected one at a time, so the costs do not add up to 1 - AP."
        f"</p><figure>{chart}</figure>" + render_table(head, rows, (1,))
    )


def _joint_errors(report: Report) -> str:
    names = report.figures[0]["joint errors"]["joints"]
    parts = JOINTS[1:]
    shares = {}
    for results, figures in zip(report.result_files, report.figures):
        errors = figures["joint errors"]
        total = [max(sum(errors[part][j] for part in parts), 1) for j in range(len(names))]
        shares[results.name] = {
            part: [errors[part][j] / total[j] for j in range(len(names))] for part in parts
        }
    chart = charts.stacked(
        "Kinds of error by keypoint",
        shares,
        [_readable(name) for name in names],
        "fraction of the keypoint's labels, over matched persons",
    )
    tables = []
    for results, figures in zip(report.result_files, report.figures):
        errors = figures["joint errors"]
        rows = [
            [_readable(name), *(str(errors[part][j]) for part in parts)]
            for j, name in enumerate(names)
        ]
        rows.append(["all", *(str(sum(errors[part])) for part in parts)])
        tables.append(_titled(report, results.name) + render_table(["keypoint", *parts], rows))
    return f"<h2>Keypoint errors</h2><figure>{chart}</figure>" + _side_by_side(tables)


def _titled(report: Report, name: str) -> str:
    return f"<h3>{escape_html(name)}</h3>" if len(report.result_files) == 2 else ""


def _side_by_side(parts: Sequence[str]) -> str:
    return '<div class="panels">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _breakdowns(report: Report) -> str:
    groups = {}
    tables = []
    for key, (title, meaning) in TITLES.items():
        several = [figures["breakdowns"][key] for figures in report.figures]
        there = [group for group, values in several[0].items() if values["persons"]]
        groups[title] = (
            {
                name: [one[group]["AP"] for group in there]
                for name, one in zip(_names(report), several)
            },
            there,
        )
        head = [title.lower(), "persons"]
        for name in _names(report):
            start = f"{name}: " if len(several) == 2 else ""
            head += [f"{start}AP", "AP .5", "AP .75", "recall .5", "mean OKS"]
        rows = [
            [
                group,
                str(several[0][group]["persons"]),
                *(
                    format_number(one[group][value])
                    for one in several
                    for value in ("AP", "AP .5", "AP .75", "found", "oks")
                ),
            ]
            for group in several[0]
        ]
        tables.append(
            f'<h3>{escape_html(title)}</h3><p class="soft">{escape_html(meaning)}</p>'
            + render_table(head, rows)
        )
    return (
        "<h2>By person</h2><p>The AP of a group ignores the persons of other groups and predictions"
        " similar to them. Background predictions belong to no group; they count in each group with"
        " the weight of its fraction of all persons, so that groups can be compared. Recall .5:"
        " persons detected with an OKS of 0.5 or more. Mean OKS: 0 for persons without a match."
        f"</p><figure>{charts.panels('AP by person', groups, 'AP')}</figure>" + "".join(tables)
    )


def _joints(report: Report) -> str:
    several = [figures["per joint"] for figures in report.figures]
    names = several[0]["joints"]
    chart = charts.bars(
        "AP of each keypoint",
        {name: one["AP"] for name, one in zip(_names(report), several)},
        [_readable(name) for name in names],
        "AP of the keypoint alone",
        limits=(0, 1.1),
    )
    columns = [column for column in several[0] if column not in ("joints", "labelled")]
    parts = []
    for name, one in zip(_names(report), several):
        rows = [
            [
                _readable(joint),
                str(one["labelled"][j]),
                *(format_number(one[column][j]) for column in columns),
            ]
            for j, joint in enumerate(names)
        ]
        parts.append(_titled(report, name) + render_table(["keypoint", "labeled", *columns], rows))
    return (
        "<h2>By keypoint</h2><p>AP: with this keypoint only. Similarity: mean of its term of the"
        " OKS. pck: fraction with a similarity above 0.5, as in tools/test.py. pck@s: fraction"
        " within s times the longer side of the person's box.</p>"
        + f"<figure>{chart}</figure>"
        + _side_by_side(parts)
    )


def _precision_recall(report: Report) -> str:
    lines = []
    for results, figures, style in zip(report.result_files, report.figures, ("-", "--")):
        curve = figures["precision-recall"]
        start = f"{results.name}: " if len(report.result_files) == 2 else ""
        names = [name for name in curve if name != "recall"]
        lines += [
            charts.Curve(start + name, curve["recall"], curve[name], color, style)
            for name, color in zip(names, (0, 2, 3, 5))
        ]
    chart = charts.lines("Precision over recall", lines, "recall", "precision", size=(8, 4.6))
    return f"<h2>Precision and recall</h2><figure>{chart}</figure>"


def _calibration(report: Report) -> str:
    parts = []
    rows = []
    points = [
        [
            results.name,
            *(
                format_number(figures["operating point"][key])
                for key in ("score", "precision", "recall")
            ),
        ]
        for results, figures in zip(report.result_files, report.figures)
    ]
    for key, y in (
        ("persons", "mean OKS, 0 without a match"),
        ("joints", "fraction with similarity above 0.5"),
    ):
        several = [figures["calibration"][key] for figures in report.figures]
        noun = "keypoints" if key == "joints" else key
        lines = [
            charts.Curve(results.name, one["score"], one["value"], color, "o-")
            for color, (results, one) in enumerate(zip(report.result_files, several))
        ]
        chart = charts.lines(
            f"Scores of {noun}", lines, f"mean score of {noun}", y, diagonal=True, size=(5.2, 3.9)
        )
        parts.append(f"<h3>{noun.capitalize()}</h3><figure>{chart}</figure>")
        rows += [
            [results.name, noun, format_number(one["error"]), _correlation(one["correlation"])]
            for results, one in zip(report.result_files, several)
        ]
    return (
        "<h2>Score calibration</h2><p>Ten bins with the same number of predictions. Calibrated"
        " scores are on the dotted line. The AP depends only on the ranking, see the rank"
        " correlation.</p>"
        + _side_by_side(parts)
        + render_table(
            ["", "scores of", "expected calibration error", "rank correlation"], rows, (1,)
        )
        + "<p>The best score threshold maximizes F1 at OKS 0.5.</p>"
        + render_table(["", "best score threshold", "precision", "recall"], points)
    )


def _correlation(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # -1 is a valid correlation


def _images(title: str, images: Sequence[WorstImage]) -> str:
    if not images:
        return f"<h2>{escape_html(title)}</h2><p>None.</p>"
    return (
        f"<h2>{escape_html(title)}</h2><p>Loss of an image: 1 - OKS of every scored person, 1 for a"
        " person without a match, and 1 for each duplicate or background prediction scored above"
        " the best score threshold. The person's left is orange, the right blue. Lines lead from a"
        " wrong keypoint to its position: yellow a miss, red a swap, magenta an inversion. False"
        " predictions have a red box. The number at a person is the OKS, at a false prediction the"
        " score.</p>" + "".join(map(_image, images))
    )


def _image(image: WorstImage) -> str:
    panels = "".join(
        f'<figure><img src="{uri}" alt="{escape_html(f"{name}, image {image.image_id}")}">'
        f"<figcaption>{escape_html(name)}</figcaption></figure>"
        for name, uri in image.panels
    )
    losses = " and ".join(f"{value:.2f}" for value in image.lost)
    notes = "".join(f'<p class="soft">{escape_html(note)}</p>' for note in image.notes)
    return (
        f'<div class="picture"><p><b>{escape_html(image.name or "unnamed")}</b> (id'
        f" {escape_html(str(image.image_id))}), loss {losses}</p>{notes}"
        f'<div class="panels">{panels}</div></div>'
    )
