"""Test tools/plot_log.py: reading logs, charts and invalid input."""

import importlib.util
import re

import cv2
import numpy as np
import pytest
from poise.engine.logger import MetricsFile
from poise.errors import ConfigError, DataError, run_tool
from poise.evaluation.analysis import training_curves
from support.paths import ROOT

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="needs matplotlib (pip install poise[plot])",
)


def run(monkeypatch, *arguments):
    """Return the exit status of tools/plot_log.py."""
    spec = importlib.util.spec_from_file_location("tools_plot_log", ROOT / "tools" / "plot_log.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", ["plot_log.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        run_tool(module.main)
    return end.value.code or 0


def write_run(folder, scale=1.0, epochs=6, **more):
    """Write a log as in training: evaluated every second epoch, one metric missing."""
    folder.mkdir(parents=True)
    file = MetricsFile(folder / "metrics.jsonl", 0)
    for epoch in range(epochs):
        tested = (
            {
                "valid_loss": 0.02,
                "valid_acc": 0.5,
                "AP": scale * (0.3 + 0.1 * min(epoch, 3)),
                "Ap .5": 0.8,
                "AP (M)": 0.4,
                "AP (L)": float("nan"),
            }
            if epoch % 2
            else {}
        )
        file.write(
            epoch=epoch,
            lr=0.001 * 0.1 ** (epoch // 4),
            train_loss=scale * 0.01 / (epoch + 1),
            train_acc=0.6,
            images_per_second=90.0,
            data_time_share=0.05,
            **tested,
            **more,
        )
    return folder


def test_read_log_invalid_lines_are_skipped(tmp_path):
    folder = write_run(tmp_path / "run", epochs=4)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            '{"epoch": 3, "AP": 0.9, "best": true, "name": "x"}\nnonsense\n[1]\n{"AP":'
            ' 1}\n{"epoch": null}\n{"epoch": 4, "train_lo'
        )
    figures = training_curves.read_log(folder)
    assert figures == training_curves.read_log(folder / "metrics.jsonl")
    assert (
        figures["AP"] == [(1, pytest.approx(0.4)), (3, 0.9)]
        and "AP (L)" not in figures
        and not {"best", "name", "epoch"} & figures.keys()
    )
    assert figures["train_loss"] == [
        (epoch, pytest.approx(0.01 / (epoch + 1))) for epoch in range(3)
    ]


def test_read_log_huge_numbers_are_skipped(tmp_path):
    """Integers of hundreds of digits are valid JSON but not metrics."""
    huge = "9" * 400
    (tmp_path / "metrics.jsonl").write_text(
        f'{{"epoch": {huge}, "AP": 0.1}}\n{{"epoch": 0, "AP": {huge}, "Mean": 1e400, "lr": -{huge},'
        ' "train_loss": 0.5}\n'
    )
    assert training_curves.read_log(tmp_path) == {"train_loss": [(0.0, 0.5)]}


def test_best_epochs_ties_take_the_later(tmp_path):
    runs = training_curves.read_logs(
        [write_run(tmp_path / "a/one"), write_run(tmp_path / "b/one", 0.5)]
    )
    assert list(runs) == ["a/one", "b/one"]
    # epochs 3 and 5 are equally good: the later one, whose weights the run has kept
    assert training_curves.best_rows(runs) == [
        ["a/one", "6", "0.001667", "AP", "0.600", "5", "0.600"],
        ["b/one", "6", "0.000833", "AP", "0.300", "5", "0.300"],
    ]


def test_chart_lines_group_the_metrics(tmp_path):
    one = {"only": training_curves.read_log(write_run(tmp_path / "only", Mean=88.0))}
    drawn = training_curves.chart_lines(one)
    assert list(drawn) == [
        "loss",
        "accuracy",
        "AP",
        "AP by size",
        "PCKh",
        "learning rate",
        "images per second",
        "fraction of the time waiting for data",
    ]
    assert [curve.name for curve in drawn["AP"]] == ["AP", "Ap .5"] and drawn["AP"][0].x == (
        1,
        3,
        5,
    )
    two = {**one, "other": training_curves.read_log(write_run(tmp_path / "other"))}
    drawn = training_curves.chart_lines(two)
    assert [(curve.name, curve.color) for curve in drawn["loss"]] == [
        ("only: train_loss", 0),
        ("only: valid_loss", 0),
        ("other: train_loss", 1),
        ("other: valid_loss", 1),
    ]
    assert [curve.name for curve in drawn["learning rate"]] == ["only", "other"] and len(
        drawn["PCKh"]
    ) == 1
    assert list(training_curves.chart_lines(two, ["Ap .5"])) == ["Ap .5"]
    # one epoch gives no lines; markers distinguish the figures
    short = training_curves.chart_lines(
        {"short": training_curves.read_log(write_run(tmp_path / "short", epochs=2))}
    )
    assert [(curve.name, curve.style) for curve in short["AP"]] == [
        ("AP", "o"),
        ("Ap .5", "s"),
    ] and [curve.style for curve in short["loss"]] == ["-", "s"]
    with pytest.raises(
        ConfigError, match="--figures loss: no run has it; available: AP, AP .M., Ap .5, Mean, "
    ):
        training_curves.chart_lines(two, ["loss"])


@needs_matplotlib
@pytest.mark.parametrize("epochs", [[0], [1], [209], [0, 1], [3, 5], list(range(210))])
def test_chart_epoch_axis_has_integer_ticks(epochs):
    from poise.visualization import charts

    figure, axes = charts.new_figure(6, 3.6)
    curve = charts.Curve("AP", epochs, [0.3] * len(epochs), 0, "o")
    charts._draw_lines(axes[0, 0], charts.PAPER, [curve], "epoch", "AP", limits=None)
    figure.canvas.draw()
    low, high = axes[0, 0].get_xlim()
    shown = [tick for tick in axes[0, 0].get_xticks() if low <= tick <= high]
    assert shown and all(float(tick).is_integer() for tick in shown), shown
    labels = [label.get_text() for label in axes[0, 0].get_xticklabels()]
    assert not any("." in label for label in labels), labels


@needs_matplotlib
def test_plot_log_writes_image_and_page(tmp_path, monkeypatch, capsys):
    folders = [write_run(tmp_path / "first"), write_run(tmp_path / "_<second> $x$", 0.9, epochs=1)]
    assert run(monkeypatch, *folders, "--output", tmp_path / "curves.png") == 0
    assert re.search(r"first +6 +0\.001667 +AP +0\.600 +5 +0\.600", capsys.readouterr().out)
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape[1] == 1320 and picture[0, 0].tolist() == [255, 255, 255]
    # the colors of both runs, and none of those that stand for a page's
    for color in ("1f6fb4", "d9730d"):
        blue, green, red = (int(color[i : i + 2], 16) for i in (4, 2, 0))
        assert (np.abs(picture.astype(int) - (blue, green, red)).max(axis=2) < 6).sum() > 50, color
    assert (picture.max(axis=2) < 8).sum() == 0
    assert run(monkeypatch, *folders, "--output", tmp_path / "curves.html") == 0
    text = (tmp_path / "curves.html").read_text()
    assert (
        text.count("<svg") == 7
        and "<second>" not in text
        and "&lt;second&gt; $x$" in text
        and "<script" not in text
    )
    assert "http" not in text.replace("http-equiv", "") and "mathdefault" not in text
    assert (
        run(monkeypatch, folders[0], "--output", tmp_path / "one.html", "--figures", "AP", "lr")
        == 0
    )
    assert (tmp_path / "one.html").read_text().count("<svg") == 2


def test_plot_log_control_characters_in_names_are_escaped(tmp_path, monkeypatch, capsys):
    folders = [write_run(tmp_path / "a\u202eb\x07"), write_run(tmp_path / "c\u2067d")]
    with open(folders[0] / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 9, "odd\\u202e": 1}\n')
    arguments = ("--output", tmp_path / "curves.html", "--figures", "AP", "odd\u202e")
    assert run(monkeypatch, *folders, *arguments) == 0
    text = (tmp_path / "curves.html").read_text()
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "a\\u202eb\\x07" in text and "c\\u2067d" in text and "odd\\u202e" in text


def test_plot_log_invalid_input_exits_with_error(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run")
    for arguments, status, message in (
        ([tmp_path / "absent"], 1, "cannot read the log"),
        ([tmp_path], 1, "cannot read the log"),
        ([folder, folder], 1, "given twice"),
        ([folder, "--output", tmp_path / "curves.pdf"], 2, ".png or .html"),
        ([folder, "--output", tmp_path / "c.png", "--figures", "nothing"], 2, "no run has it"),
    ):
        assert run(monkeypatch, *arguments) == status
        logged = capsys.readouterr().err
        assert logged.count("\n") == 1 and message in logged
    (tmp_path / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(DataError, match="has no line with an epoch"):
        training_curves.read_log(tmp_path)
