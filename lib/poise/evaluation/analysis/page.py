"""The report as one HTML file that needs nothing else: no script, no request, charts and
pictures inside, light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from poise.errors import escape_html, pluralize
from poise.evaluation.analysis.breakdowns import TITLES
from poise.evaluation.analysis.errors import JOINTS, MEANINGS
from poise.evaluation.analysis.report import Report, metric_title
from poise.evaluation.analysis.worst_images import WorstImage
from poise.visualization import charts
from poise.visualization.html import Markup, format_number, render_document, render_table


def render(report: Report) -> str:
    """The page as text."""
    two = len(report.founds) == 2
    title = "Where it errs: " + " beside ".join(found.file for found in report.founds)
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
        _pictures(
            "Worst pictures" + (f" of {report.founds[0].file}" if two else ""),
            report.costliest,
            report,
        ),
    ]
    if two:
        parts.append(
            _pictures("Pictures in which the two differ most", report.most_different, report)
        )
    return render_document(title, parts)


def _names(report: Report) -> list[str]:
    return [found.name for found in report.founds]


def beside(values: Sequence[float | None], less_is_better: bool = False) -> list[str]:
    """Cells of one figure of each result file, and of two files their difference."""
    cells = [format_number(value) for value in values]
    if len(values) == 2:
        usable = [v for v in values if v is not None and math.isfinite(v) and v != -1]
        comparable = len(usable) == 2
        change = usable[1] - usable[0] if comparable else 0.0
        kind = (
            "soft"
            if abs(change) < 0.0005
            else "better"
            if (change > 0) != less_is_better
            else "worse"
        )
        cells.append(Markup(f'<span class="{kind}">{change:+.3f}</span>') if comparable else "–")
    return cells


def _head(report: Report) -> list[str]:
    names = _names(report)
    return [*names, "difference"] if len(names) == 2 else names


def _intro(report: Report) -> str:
    first = report.figures[0]
    text = (
        f"{first['annotations']}: {pluralize(first['images'], 'picture')},"
        f" {pluralize(first['labelled persons'], 'labelled person')} that count (no crowds, and one"
        " labelled joint or more). AP and OKS as COCO defines them; what else is counted here is"
        " described in docs/analysis.md."
    )
    rows = []
    for found, figures in zip(report.founds, report.figures):
        kinds = figures["predictions"]
        rows.append(
            [
                found.name,
                found.file,
                found.box_source,
                str(kinds["all"]),
                *(
                    str(kinds[kind])
                    for kind in (
                        "found a person",
                        "outranked",
                        "duplicate",
                        "background",
                        "not counted",
                    )
                ),
                f"{figures['found persons']} of {figures['labelled persons']}",
            ]
        )
    head = [
        "",
        "file",
        "boxes",
        "predictions",
        "found a person",
        "outranked",
        "duplicate",
        "background",
        "not counted",
        "persons found",
    ]
    return (
        f"<p>{escape_html(text)}</p>"
        + render_table(head, rows, (1, 2))
        + '<p class="soft">Found from an OKS of 0.1 on.</p>'
    )


def _overall(report: Report) -> str:
    rows = [
        [metric_title(name), *beside([figures["coco"][name] for figures in report.figures])]
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
        + "<h3>By the source of the boxes</h3>"
        + render_table(["boxes", "file", "predictions", "per picture", "AP", "AR"], sources, (1,))
        + '<p class="soft">The source is read from the result file\'s name; give a second file, of'
        " other boxes, to --compare.</p>"
    )


def _errors(report: Report) -> str:
    costs = [figures["errors"] for figures in report.figures]
    chart = charts.bars(
        "AP that each kind of error costs",
        {
            name: [cost[kind]["AP"] for kind in MEANINGS]
            for name, cost in zip(_names(report), costs)
        },
        list(MEANINGS),
        "AP that would be won by putting it right",
        limits=None,
    )
    head = ["error", "what it is"]
    for name in _names(report):
        head += (
            [f"{name}: count", "AP", "AP .5", "AP .75"]
            if len(costs) == 2
            else ["count", "AP", "AP .5", "AP .75"]
        )
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
        "<h2>What the errors cost</h2><p>Each row: the AP with the errors of one kind put right,"
        " less the AP as it is. The kinds of joint errors are those of Ronchi and Perona (ICCV"
        " 2017). Kinds are put right one at a time, so their costs do not add up to what is"
        f" missing.</p><figure>{chart}</figure>" + render_table(head, rows, (1,))
    )


def _joint_errors(report: Report) -> str:
    names, parts = report.figures[0]["joint errors"]["joints"], JOINTS[1:]
    shares = {}
    for found, figures in zip(report.founds, report.figures):
        errors = figures["joint errors"]
        total = [max(sum(errors[part][j] for part in parts), 1) for j in range(len(names))]
        shares[found.name] = {
            part: [errors[part][j] / total[j] for j in range(len(names))] for part in parts
        }
    chart = charts.stacked(
        "Kinds of error by joint",
        shares,
        [_words(name) for name in names],
        "share of the joint, over the persons found",
    )
    tables = []
    for found, figures in zip(report.founds, report.figures):
        errors = figures["joint errors"]
        rows = [
            [_words(name), *(str(errors[part][j]) for part in parts)]
            for j, name in enumerate(names)
        ]
        rows.append(["all", *(str(sum(errors[part])) for part in parts)])
        tables.append(_titled(report, found.name) + render_table(["joint", *parts], rows))
    return f"<h2>Joint errors</h2><figure>{chart}</figure>" + _side_by_side(tables)


def _titled(report: Report, name: str) -> str:
    return f"<h3>{escape_html(name)}</h3>" if len(report.founds) == 2 else ""


def _side_by_side(parts: Sequence[str]) -> str:
    return '<div class="panels">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _breakdowns(report: Report) -> str:
    groups, tables = {}, []
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
            head += [f"{start}AP", "AP .5", "AP .75", "found", "mean OKS"]
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
        "<h2>By person</h2><p>The AP of a group leaves all other persons out, and predictions that"
        " are like one of them. Predictions that are like nobody belong to no group and count in"
        " each with the group's share of all persons, so that groups can be compared. Found: with"
        " OKS 0.5 or more. Mean OKS: of all persons of the group, 0 for those not"
        f" found.</p><figure>{charts.panels('AP by person', groups, 'AP')}</figure>"
        + "".join(tables)
    )


def _joints(report: Report) -> str:
    several = [figures["per joint"] for figures in report.figures]
    names = several[0]["joints"]
    chart = charts.bars(
        "AP of each joint",
        {name: one["AP"] for name, one in zip(_names(report), several)},
        [_words(name) for name in names],
        "AP of the joint alone",
        limits=(0, 1.1),
    )
    columns = [column for column in several[0] if column not in ("joints", "labelled")]
    parts = []
    for name, one in zip(_names(report), several):
        rows = [
            [
                _words(joint),
                str(one["labelled"][j]),
                *(format_number(one[column][j]) for column in columns),
            ]
            for j, joint in enumerate(names)
        ]
        parts.append(_titled(report, name) + render_table(["joint", "labelled", *columns], rows))
    return (
        "<h2>By joint</h2><p>AP: as if the joint were the only one. Similarity: the mean of its"
        " term of the OKS. pck: the share with a similarity above 0.5, as tools/test.py prints it."
        " pck@s: the share within s of the longer side of the person's box.</p>"
        + f"<figure>{chart}</figure>"
        + _side_by_side(parts)
    )


def _precision_recall(report: Report) -> str:
    lines, styles = [], ("-", "--")
    for number_, (found, figures) in enumerate(zip(report.founds, report.figures)):
        curve = figures["precision-recall"]
        start = f"{found.name}: " if len(report.founds) == 2 else ""
        lines += [
            charts.Curve(start + name, curve["recall"], curve[name], colour, styles[number_])
            for name, colour in zip((name for name in curve if name != "recall"), (0, 2, 3, 5))
        ]
    chart = charts.lines("Precision over recall", lines, "recall", "precision", size=(8, 4.6))
    return f"<h2>Precision and recall</h2><figure>{chart}</figure>"


def _calibration(report: Report) -> str:
    parts, rows = [], []
    points = [
        [
            found.name,
            *(
                format_number(figures["operating point"][key])
                for key in ("score", "precision", "recall")
            ),
        ]
        for found, figures in zip(report.founds, report.figures)
    ]
    for key, y in (
        ("persons", "mean OKS, 0 for nobody"),
        ("joints", "share with similarity above 0.5"),
    ):
        several = [figures["calibration"][key] for figures in report.figures]
        lines = [
            charts.Curve(found.name, one["score"], one["value"], number_, "o-")
            for number_, (found, one) in enumerate(zip(report.founds, several))
        ]
        chart = charts.lines(
            f"Scores of {key}", lines, f"mean score of {key}", y, diagonal=True, size=(5.2, 3.9)
        )
        parts.append(f"<h3>{key.capitalize()}</h3><figure>{chart}</figure>")
        rows += [
            [found.name, key, format_number(one["error"]), _correlation(one["correlation"])]
            for found, one in zip(report.founds, several)
        ]
    return (
        "<h2>Scores</h2><p>Ten bins of equally many predictions each. A calibrated score lies on"
        " the dotted line; for the AP only the order counts, which the rank correlation tells.</p>"
        + _side_by_side(parts)
        + render_table(
            ["", "scores of", "expected calibration error", "rank correlation"], rows, (1,)
        )
        + "<p>The best score threshold is where F1 at OKS 0.5 is highest.</p>"
        + render_table(["", "best score threshold", "precision there", "recall there"], points)
    )


def _correlation(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # here -1 is a figure


def _pictures(title: str, pictures: Sequence[WorstImage], report: Report) -> str:
    if not pictures:
        return f"<h2>{escape_html(title)}</h2><p>None.</p>"
    blocks = []
    for picture in pictures:
        shown = "".join(
            f'<figure><img src="{uri}"'
            f' alt="{escape_html(f"{name}, picture {picture.image_id}")}">'
            f"<figcaption>{escape_html(name)}</figcaption></figure>"
            for name, uri in picture.panels
        )
        lost = " and ".join(f"{value:.2f}" for value in picture.lost)
        blocks.append(
            f'<div class="picture"><p><b>{escape_html(picture.name or "without a name")}</b> (id'
            f" {escape_html(str(picture.image_id))}), lost {lost}</p>"
            + "".join(f'<p class="soft">{escape_html(note)}</p>' for note in picture.notes)
            + f'<div class="panels">{shown}</div></div>'
        )
    return (
        f"<h2>{escape_html(title)}</h2><p>Lost: 1 - OKS of every labelled person, 1 for each who"
        " was not found, and 1 for each duplicate or background prediction scored above the best"
        " score threshold. The person's left is orange, the right blue. Lines lead from a wrong"
        " joint to its place: yellow a miss, red a swap, magenta an inversion; false predictions"
        " have a red box. The number at a person is the OKS, at a false prediction the score.</p>"
        + "".join(blocks)
    )
