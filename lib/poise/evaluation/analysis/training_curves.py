"""The metrics.jsonl of one or several runs as curves: tools/plot_log.py."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from poise.errors import ConfigError, DataError, escape_html
from poise.evaluation.analysis.matching import distinct
from poise.io.files import atomic_write, read_bytes
from poise.visualization import charts
from poise.visualization.html import format_number, render_document, render_table
from poise.visualization.tables import align_columns

# each chart's title and the figures that it shows, where a run has them
CHARTS = {
    "loss": ("train_loss", "valid_loss", "ema_valid_loss", "weights_loss", "architecture_loss"),
    "accuracy": ("train_acc", "valid_acc", "ema_valid_acc", "weights_acc", "architecture_acc"),
    "AP": ("AP", "Ap .5", "AP .75", "ema_AP"),
    "AP by size": ("AP (M)", "AP (L)"),
    "PCKh": ("Mean", "Mean@0.1", "ema_Mean"),
    "learning rate": ("lr",),
    "images per second": ("images_per_second",),
    "share of the time waiting for data": ("data_time_share",),
}
# a rate falls by factors of ten
_LOGARITHMIC = ("loss", "learning rate")
_MOST_BYTES = 1 << 28
# of the figures of a chart: lines, and where there is one epoch marks
_STYLES, _MARKS = ("-", "--", ":", "-.", "."), "os^Dv"
#: the figure that decides which weights are best, of COCO and of MPII
PRIMARY_METRICS = ("AP", "Mean")

Figures = dict[str, list[tuple[float, float]]]


def read_log(path: str | Path) -> Figures:
    """Figure -> [(epoch, value)] of a metrics.jsonl, or that of a run folder.

    Lines that are cut off, as of a run that was killed, are left out, and so are values that are no
    finite numbers. Of an epoch written twice the later line counts. Raises DataError where there is
    no such file or no epoch in it.
    """
    file = log_file(path)
    text = read_bytes(
        file, "log", _MOST_BYTES, "give a metrics.jsonl, or a run folder that has one"
    ).decode("utf-8", "replace")
    epochs: dict[float, dict] = {}
    for line in text.splitlines():
        try:
            values = json.loads(line)
            epoch = float(values["epoch"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            continue
        if math.isfinite(epoch):
            epochs[epoch] = values
    figures: Figures = {}
    for epoch in sorted(epochs):
        for name, value in epochs[epoch].items():
            if name != "epoch" and type(value) in (int, float) and abs(value) <= sys.float_info.max:
                figures.setdefault(name, []).append((epoch, float(value)))
    if not figures:
        raise DataError(
            f"{file}: holds no line with an epoch and a figure; a run writes one after each epoch"
        )
    return figures


def log_file(path: str | Path) -> Path:
    """The metrics.jsonl of a run folder, or the file itself."""
    return Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)


def read_logs(paths: Sequence[str | Path]) -> dict[str, Figures]:
    """Runs by the shortest names that tell them apart: of a metrics.jsonl that of its folder.
    Raises DataError.
    """
    files = [log_file(path) for path in paths]
    places = [
        file.absolute().parent if file.name == "metrics.jsonl" else file.absolute()
        for file in files
    ]
    if len(set(places)) < len(places):
        twice = next(path for path, place in zip(paths, places) if places.count(place) > 1)
        raise DataError(f"{twice}: given twice")
    return dict(zip(distinct(places), map(read_log, files)))


def chart_lines(
    runs: Mapping[str, Figures], wanted: Sequence[str] = ()
) -> dict[str, list[charts.Curve]]:
    """Title -> curves: a colour for each run, a kind of line for each figure of a chart. wanted:
    figures to show, each in a chart of its own, instead of CHARTS.

    Raises ConfigError for a figure that no run has.
    """
    there = sorted({name for figures in runs.values() for name in figures})
    strange = [name for name in wanted if name not in there]
    if strange:
        raise ConfigError(f"--figures {strange[0]}: no run has it; there are {', '.join(there)}")
    several = {}
    for title, possible in ({name: (name,) for name in wanted} if wanted else CHARTS).items():
        names = [name for name in possible if name in there]
        curves = []
        for colour, (run, figures) in enumerate(runs.items()):
            for name, style, mark in zip(names, _STYLES, _MARKS):
                if name in figures:
                    epochs, values = zip(*figures[name])
                    label = (
                        name if len(runs) == 1 else run if len(possible) == 1 else f"{run}: {name}"
                    )
                    curves.append(
                        charts.Curve(
                            label,
                            epochs,
                            values,
                            colour if len(runs) > 1 else names.index(name),
                            mark if len(epochs) == 1 else style,
                        )
                    )
        if curves:
            several[title] = curves
    return several


def best_rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """For each run: name, epochs, last training loss, best AP or PCKh with its epoch, and the
    last one.
    """
    rows = []
    for run, figures in runs.items():
        epochs = {epoch for values in figures.values() for epoch, _ in values}
        loss = figures.get("train_loss", [(0, math.nan)])[-1][1]
        deciding = next((name for name in PRIMARY_METRICS if name in figures), None)
        # of equal ones the later, whose weights the run keeps
        best = (
            max(figures[deciding], key=lambda pair: (pair[1], pair[0]))
            if deciding
            else (math.nan, math.nan)
        )
        rows.append(
            [
                run,
                str(len(epochs)),
                format_number(loss, 6),
                deciding or "–",
                format_number(best[1]),
                f"{best[0]:g}" if deciding else "–",
                format_number(figures[deciding][-1][1]) if deciding else "–",
            ]
        )
    return rows


_HEAD = ["run", "epochs", "last train_loss", "figure", "best", "at epoch", "last"]


def format_summary(runs: Mapping[str, Figures]) -> str:
    """A table for the terminal."""
    return align_columns([_HEAD, *best_rows(runs)], right=(1, 2, 4, 5, 6))


def write(runs: Mapping[str, Figures], path: str | Path, wanted: Sequence[str] = ()) -> None:
    """The curves as a PNG or, by the name's ending, as an HTML page. Raises ConfigError for
    another ending, DataError where nothing can be drawn.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"--output {path}: curves are written to a .png or an .html file")
    several = chart_lines(runs, wanted)
    if not several:
        raise DataError(
            f"none of the figures that are drawn is in {', '.join(runs)}; --figures takes others"
        )
    if path.suffix.lower() == ".png":
        data = charts.lines_as_png(
            [
                (title, curves, "epoch", _logarithmic(title, curves))
                for title, curves in several.items()
            ]
        )
    else:
        title = f"Training of {', '.join(runs)}"
        parts = [f"<h1>{escape_html(title)}</h1>", render_table(_HEAD, best_rows(runs), (3,))]
        for name, curves in several.items():
            chart = charts.lines(
                name,
                curves,
                "epoch",
                name,
                limits=None,
                size=(9, 4.2),
                logarithmic=_logarithmic(name, curves),
            )
            parts.append(f"<h2>{escape_html(name)}</h2><figure>{chart}</figure>")
        data = render_document(title, parts).encode("utf-8", errors="backslashreplace")
    with atomic_write(path) as part:
        part.write_bytes(data)


def _logarithmic(title: str, curves: Sequence[charts.Curve]) -> bool:
    return title in _LOGARITHMIC and all(value > 0 for curve in curves for value in curve.y)
