"""Charts as SVG that use the colors of their HTML page, in light and dark mode.

Needs matplotlib (pip install poise[plot]).
"""

from __future__ import annotations

import functools
import io
import itertools
import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from poise.errors import PoiseError, escape_control, escape_html

T = TypeVar("T")


class Palette(NamedTuple):
    """Colors of text (ink), of axes and grids (line), and of the data (series)."""

    ink: str
    line: str
    series: tuple[str, ...]


#: for PNG files and for light pages
PAPER = Palette(
    "#1b1b1b",
    "#d5d5d5",
    ("#1f6fb4", "#d9730d", "#8fb98f", "#e0b23c", "#b565c4", "#d64545", "#6b8fd6", "#888888"),
)
# matplotlib needs colors; these are replaced by CSS variables in the SVG
_CSS_COLORS = {
    "#010101": "currentColor",
    "#020202": "var(--line)",
    **{f"#0303{number:02x}": f"var(--series-{number})" for number in range(len(PAPER.series))},
}
_PLACEHOLDERS = tuple(_CSS_COLORS)
PAGE = Palette(_PLACEHOLDERS[0], _PLACEHOLDERS[1], _PLACEHOLDERS[2:])


# widths of a legend's marker with its margin and of a letter, in points
_LEGEND_MARKER = 40
_LEGEND_LETTER = 4.8
_MAX_LEGEND_COLUMNS = 4


def _settings(palette: Palette) -> dict[str, Any]:
    ink, line, _ = palette
    return {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "poise",
        "font.family": "sans-serif",
        "font.sans-serif": ["system-ui", "DejaVu Sans"],
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": line,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.titlesize": 10,
        "axes.grid": True,
        "grid.color": line,
        "grid.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.labelcolor": ink,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }


class Curve(NamedTuple):
    """A curve.

    Attributes:
        name: in the legend.
        x, y: points.
        color: index of the palette's series.
        style: matplotlib format of line and markers.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    style: str = "-"


def require_matplotlib() -> Any:
    """Return matplotlib. Raises PoiseError if it cannot be imported."""
    try:
        import matplotlib
    except ImportError as error:
        raise PoiseError(
            f"charts need matplotlib ({error}); install it with pip install 'poise[plot]'"
        ) from None
    # pages use the fonts of the reader's machine, not of this one
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    return matplotlib


def styled(palette: Palette) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Run a drawing function with our matplotlib settings. Raises PoiseError without matplotlib."""

    def decorate(draw: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(draw)
        def with_settings(*args: Any, **options: Any) -> T:
            with require_matplotlib().rc_context(_settings(palette)):
                return draw(*args, **options)

        return with_settings

    return decorate


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Return (figure, axes (rows, columns)) of a size in inches.

    Does not use pyplot, which may need a display.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def svg(figure, title: str) -> str:
    """Return the figure as an <svg> element without external references."""
    text = io.StringIO()
    figure.savefig(
        text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.S)
    # not needed inside HTML
    drawing = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", drawing)
    drawing = drawing.replace("xlink:href", "href")
    # ids must be unique among the charts of a page
    prefix = f"c{zlib.crc32((title + drawing).encode()):08x}-"
    drawing = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', drawing)
    drawing = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', drawing)
    drawing = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", drawing)
    drawing = re.sub("|".join(_CSS_COLORS), lambda match: _CSS_COLORS[match[0]], drawing)
    drawing = escape_control(drawing)  # matplotlib escapes only markup in names
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape_html(title)}"', 1)


@styled(PAGE)
def bars(
    title: str,
    series: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    value: str,
    *,
    limits: tuple[float, float] | None = (0, 1),
) -> str:
    """Draw horizontal bars, one group per label with one bar per series, without NaN and -1."""
    figure, axes = new_figure(7, 0.6 + 0.26 * len(labels) * (0.5 + 0.5 * len(series)))
    _draw_bars(axes[0, 0], series, labels, value, limits)
    return svg(figure, title)


def _draw_bars(
    axis,
    series: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    value: str,
    limits: tuple[float, float] | None,
    legend: bool = True,
) -> None:
    thick = 0.8 / len(series)
    place = np.arange(len(labels))
    for number, (name, given) in enumerate(series.items()):
        values = np.array(given, float)
        values = np.where(values == -1, np.nan, values)
        drawn = axis.barh(
            place + (number - (len(series) - 1) / 2) * thick,
            np.nan_to_num(values),
            thick * 0.92,
            label=_plain(name),
            color=PAGE.series[number],
        )
        axis.bar_label(
            drawn, [f"{v:.3f}" if np.isfinite(v) else "none" for v in values], padding=2, fontsize=7
        )
    axis.set_yticks(place, labels)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(value)
    if limits:
        axis.set_xlim(*limits)
    else:
        axis.margins(x=0.12)
    if legend and len(series) > 1:
        _legend(axis)


@styled(PAGE)
def panels(
    title: str,
    groups: Mapping[str, tuple[Mapping[str, Sequence[float]], Sequence[str]]],
    value: str,
) -> str:
    """Draw panels of bars, two per row. groups: panel title -> (series, labels)."""
    rows = -(-len(groups) // 2)
    largest = max(len(labels) * (0.5 + 0.5 * len(series)) for series, labels in groups.values())
    figure, axes = new_figure(9, rows * (0.9 + 0.27 * largest), rows, 2)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, (name, (series, labels)) in zip(axes.flat, groups.items()):
        _draw_bars(axis, series, labels, value, (0, 1.12), legend=False)
        axis.set_title(name, loc="left")
    handles, names = axes[0, 0].get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return svg(figure, title)


@styled(PAGE)
def stacked(
    title: str,
    files: Mapping[str, Mapping[str, Sequence[float]]],
    labels: Sequence[str],
    value: str,
) -> str:
    """Draw stacked bars, a panel per file and a bar per label. files: name -> part -> values."""
    figure, axes = new_figure(
        4.6 * len(files) + 1, 0.9 + 0.24 * len(labels), 1, len(files), sharey=True
    )
    for axis, (name, parts) in zip(axes[0], files.items()):
        left = np.zeros(len(labels))
        for number, (part, values) in enumerate(parts.items()):
            axis.barh(
                np.arange(len(labels)),
                values,
                0.78,
                left=left,
                color=PAGE.series[2 + number],
                label=part,
            )
            left = left + np.asarray(values, float)
        axis.set_yticks(np.arange(len(labels)), labels)
        axis.set_xlim(0, 1)
        axis.set_xlabel(value)
        axis.grid(axis="y", visible=False)
        if len(files) > 1:
            axis.set_title(name, loc="left")
    axes[0, 0].invert_yaxis()
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return svg(figure, title)


@styled(PAGE)
def lines(
    title: str,
    curves: Sequence[Curve],
    x: str,
    y: str,
    *,
    diagonal: bool = False,
    limits: tuple[float, float] | None = (0, 1.02),
    size: tuple[float, float] = (7, 4),
    logarithmic: bool = False,
) -> str:
    """Draw curves, optionally with the diagonal x = y or a logarithmic y axis."""
    figure, axes = new_figure(*size)
    _draw_lines(axes[0, 0], PAGE, curves, x, y, diagonal, limits, logarithmic)
    return svg(figure, title)


@styled(PAPER)
def lines_as_png(charts: Sequence[tuple[str, Sequence[Curve], str, bool]]) -> bytes:
    """Return a PNG with charts (title, curves, x label, is logarithmic), two per row."""
    rows = -(-len(charts) // 2)
    figure, axes = new_figure(12, 3.6 * rows, rows, 2)
    for axis, chart in itertools.zip_longest(axes.flat, charts):
        if chart is None:
            axis.set_visible(False)
            continue
        title, curves, x, logarithmic = chart
        _draw_lines(axis, PAPER, curves, x, title, logarithmic=logarithmic)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def _draw_lines(
    axis,
    palette: Palette,
    curves: Sequence[Curve],
    x: str,
    y: str,
    diagonal: bool = False,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    for curve in curves:
        axis.plot(
            curve.x,
            curve.y,
            curve.style,
            color=palette.series[curve.color % len(palette.series)],
            label=_plain(curve.name),
            linewidth=1.6,
            markersize=4,
        )
    if diagonal:
        axis.plot([0, 1], [0, 1], ":", color=palette.ink, linewidth=1, label="equal")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if limits:
        axis.set_ylim(*limits)
    if x == "epoch":
        # integer ticks, and one tick for a single epoch
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    if len(curves) > 1 or diagonal:
        _legend(axis)


def _legend(axis) -> None:
    """Add a legend above the chart with as many columns, up to 4, as fit its width.

    A wider legend would make constrained layout shrink the chart.
    """
    names = axis.get_legend_handles_labels()[1]
    # points
    width = axis.figure.get_figwidth() * 72 / axis.get_subplotspec().get_gridspec().ncols
    num_fitting = int(width / (_LEGEND_MARKER + _LEGEND_LETTER * max(map(len, names))))
    axis.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=max(1, min(_MAX_LEGEND_COLUMNS, num_fitting, len(names))),
    )


def _plain(text: str) -> str:
    """Return a name for a legend; matplotlib omits names that start with an underscore."""
    return f" {text}" if text.startswith("_") else text
