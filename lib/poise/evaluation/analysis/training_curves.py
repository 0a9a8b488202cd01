"""Plot metrics.jsonl of one or several runs: tools/plot_log.py."""

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

# title of each chart and its metrics, if a run has them
CHARTS = {
    "loss": ("train_loss", "valid_loss", "ema_valid_loss", "weights_loss", "architecture_loss"),
    "accuracy": ("train_acc", "valid_acc", "ema_valid_acc", "weights_acc", "architecture_acc"),
    "AP": ("AP", "Ap .5", "AP .75", "ema_AP"),
    "AP by size": ("AP (M)", "AP (L)"),
    "PCKh": ("Mean", "Mean@0.1", "ema_Mean"),
    "learning rate": ("lr",),
    "images per second": ("images_per_second",),
    "fraction of the time waiting for data": ("data_time_share",),
}
_LOGARITHMIC = ("loss", "learning rate")
_MAX_BYTES = 1 << 28
# of the metrics of a chart; marks if there is only one epoch
_STYLES = ("-", "--", ":", "-.", ".")
_MARKS = "os^Dv"
#: metrics that select the best weights, of COCO and of MPII
PRIMARY_METRICS = ("AP", "Mean")

Figures = dict[str, list[tuple[float, float]]]


def read_log(path: str | Path) -> Figures:
    """Read metrics.jsonl of a run.

    Truncated lines, as of a killed run, and values that are not finite are skipped. The last line
    of an epoch is used.

    Args:
        path: the file or the run folder.

    Returns: metric -> [(epoch, value)].

    Raises DataError if the file is missing or has no epochs.
    """
    file = log_file(path)
    text = read_bytes(
        file, "log", _MAX_BYTES, "give a metrics.jsonl, or a run folder that has one"
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
            f"{file}: has no line with an epoch and a metric; runs write one after each epoch"
        )
    return figures


def log_file(path: str | Path) -> Path:
    """Return metrics.jsonl of a run folder, or the file itself."""
    path = Path(path)
    return path / "metrics.jsonl" if path.is_dir() else path


def read_logs(paths: Sequence[str | Path]) -> dict[str, Figures]:
    """Read several runs. The keys are the shortest distinct names of their folders or files.

    Raises DataError.
    """
    files = [log_file(path) for path in paths]
    sources = [
        file.absolute().parent if file.name == "metrics.jsonl" else file.absolute()
        for file in files
    ]
    for path, source in zip(paths, sources):
        if sources.count(source) > 1:
            raise DataError(f"{path}: given twice")
    return dict(zip(distinct(sources), map(read_log, files)))


def chart_lines(
    runs: Mapping[str, Figures], wanted: Sequence[str] = ()
) -> dict[str, list[charts.Curve]]:
    """Return the curves of each chart: a color per run, a line style per metric.

    Args:
        runs: from read_logs.
        wanted: metrics to plot, one chart each, instead of CHARTS.

    Raises ConfigError for a metric that no run has.
    """
    available = sorted({name for figures in runs.values() for name in figures})
    for name in wanted:
        if name not in available:
            raise ConfigError(f"--figures {name}: no run has it; available: {', '.join(available)}")
    names_by_title = {name: (name,) for name in wanted} or CHARTS
    charts_by_title = {}
    for title, names in names_by_title.items():
        curves = _curves(runs, [name for name in names if name in available], len(names) == 1)
        if curves:
            charts_by_title[title] = curves
    return charts_by_title


def _curves(
    runs: Mapping[str, Figures], names: Sequence[str], is_single: bool
) -> list[charts.Curve]:
    """Return the curves of a chart. is_single: the chart has only one possible metric."""
    curves = []
    for run_index, (run, figures) in enumerate(runs.items()):
        for index, (name, style, mark) in enumerate(zip(names, _STYLES, _MARKS)):
            if name not in figures:
                continue
            epochs, values = zip(*figures[name])
            label = run if is_single else f"{run}: {name}"
            color = run_index
            if len(runs) == 1:
                label = name
                color = index
            if len(epochs) == 1:
                style = mark
            curves.append(charts.Curve(label, epochs, values, color, style))
    return curves


def best_rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """Return a table row per run.

    Returns: name, number of epochs, last training loss, primary metric, its best value, the epoch
    of that, and its last value.
    """
    rows = []
    for run, figures in runs.items():
        epochs = {epoch for values in figures.values() for epoch, _ in values}
        loss = figures.get("train_loss", [(0, math.nan)])[-1][1]
        row = [run, str(len(epochs)), format_number(loss, 6)]
        metric = next((name for name in PRIMARY_METRICS if name in figures), None)
        if metric is None:
            row += ["–"] * 4
        else:
            # the later of equal values, whose weights the run keeps
            epoch, best = max(figures[metric], key=lambda pair: (pair[1], pair[0]))
            last = figures[metric][-1][1]
            row += [metric, format_number(best), f"{epoch:g}", format_number(last)]
        rows.append(row)
    return rows


_HEAD = ["run", "epochs", "last train_loss", "metric", "best", "at epoch", "last"]


def format_summary(runs: Mapping[str, Figures]) -> str:
    """Return a table for the terminal."""
    return align_columns([_HEAD, *best_rows(runs)], right=(1, 2, 4, 5, 6))


def write(runs: Mapping[str, Figures], path: str | Path, wanted: Sequence[str] = ()) -> None:
    """Write the curves as a .png or .html file.

    Raises ConfigError for another suffix, DataError if there is nothing to plot.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"--output {path}: unsupported; use a .png or .html file")
    charts_by_title = chart_lines(runs, wanted)
    if not charts_by_title:
        raise DataError(f"{', '.join(runs)}: no metric to plot; select others with --figures")
    if path.suffix.lower() == ".png":
        data = charts.lines_as_png(
            [
                (title, curves, "epoch", _logarithmic(title, curves))
                for title, curves in charts_by_title.items()
            ]
        )
    else:
        title = f"Training of {', '.join(runs)}"
        parts = [f"<h1>{escape_html(title)}</h1>", render_table(_HEAD, best_rows(runs), (3,))]
        for name, curves in charts_by_title.items():
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
