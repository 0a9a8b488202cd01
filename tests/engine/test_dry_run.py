"""Test tools/train.py --dry-run: estimates, and that nothing is written."""

import math
import os
import subprocess
import sys

import pytest
from poise import config
from poise.datasets import load_split
from poise.engine import dry_run, train
from poise.errors import PoiseError
from support.paths import ROOT
from support.runs import run_train
from torch import nn

pytestmark = pytest.mark.usefixtures("no_tensorboard_images")


def test_dry_run_logs_cost_and_writes_nothing(tiny_experiment, tmp_path, capsys):
    """Two steps, one batch of the test set, figures of the whole run; no file, and none is
    changed.
    """
    cfg = config.load(
        tiny_experiment,
        [
            "GPUS",
            "()",
            "TRAIN.END_EPOCH",
            "30",
            "TRAIN.EVAL_INTERVAL",
            "10",
            "TRAIN.EMA_DECAY",
            "0.9",
        ],
    )
    before = sorted(tmp_path.rglob("*"))
    dry_run.run(cfg, str(tiny_experiment))
    assert sorted(tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in steps] == ["step 1", "step 2"] and all(
        "images/s, loss 0.0" in line for line in steps
    )
    assert "test: 16 persons in" in out and "memory of the process, besides its workers: " in out
    # 50 persons in batches of 8 are 7 steps; 3 tests of the weights and of their average, of 22
    # persons in batches of 8
    assert (
        "the whole run: 210 steps of " in out
        and " and 6 tests of 3 batches of " in out
        and "nothing was written" in out
    )


def test_dry_run_started_run_is_unchanged(tiny_experiment, capsys):
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = [
        sys.executable,
        str(ROOT / "tools" / "train.py"),
        "--cfg",
        str(tiny_experiment),
        "--dry-run",
        "GPUS",
        "()",
        "AUTO_RESUME",
        "True",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (
        (done.returncode, done.stderr) == (0, "")
        and "resuming at epoch 1, step 0" in done.stdout
        and "the whole run: 7 steps of " in done.stdout
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_dry_run_estimate_equals_hand_figures(tiny_experiment, monkeypatch, caplog):
    """By a clock on which a step takes 2 seconds, the first test needs a minute to start, each
    later one 5 seconds, and a batch 1 second.
    """
    now, calls, workers = [0.0], [], []
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now[0])

    def predicting(cfg, model, loader, device, codec, stop, processes):
        calls.append(len(loader))
        workers.append(loader._loader.num_workers)
        now[0] += 60 if len(calls) == 1 else 5
        for _ in range(len(loader)):
            assert stop() is False
            now[0] += 1

    train_step = train.train_step

    def training_step(*arguments):
        now[0] += 2
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", training_step)
    monkeypatch.setattr(dry_run, "predict", predicting)
    # WORKERS are shared by the processes of a machine
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    overrides = [
        "GPUS",
        "()",
        "TRAIN.END_EPOCH",
        "10",
        "TEST.BATCH_SIZE_PER_GPU",
        "1",
        "WORKERS",
        "2",
    ]
    with caplog.at_level("INFO", logger="poise"):
        monkeypatch.setattr(train.logger, "start_console", lambda _: None)
        dry_run.run(config.load(tiny_experiment, overrides), str(tiny_experiment))
    # 50 persons in batches of 8, 10 times: 70 x 2 seconds; 22 persons one by one in each of 10
    # tests: 10 x (5 + 22) seconds
    assert calls == [2, 2] and workers == [1, 1]
    assert (
        "70 steps of 2.000 s and 10 tests of 22 batches of 1.000 s after 5.000 s, about 7 minutes"
        " at the pace" in caplog.text
    )


@pytest.mark.parametrize(
    "overrides, reason",
    [
        ((), "all its epochs are done"),
        (("TRAIN.END_EPOCH", 1), "all its epochs are done"),
        (("TRAIN.END_EPOCH", 9, "TRAIN.PATIENCE", 1), "it has stopped early (TRAIN.PATIENCE)"),
    ],
)
def test_dry_run_finished_run_logs_nothing_to_train(
    tiny_experiment, monkeypatch, capsys, overrides, reason
):
    given = iter([0.5, 0.4])
    monkeypatch.setattr(train, "evaluate_predictions", lambda *_: ({"AP": 0.0}, next(given)))
    run_train(tiny_experiment, "TRAIN.BATCH_SIZE_PER_GPU", 50)
    monkeypatch.setattr(train, "train_step", lambda *_: pytest.fail("trained on"))
    capsys.readouterr()
    words = [
        str(word)
        for word in ("GPUS", "()", "TRAIN.BATCH_SIZE_PER_GPU", 50, "AUTO_RESUME", True, *overrides)
    ]
    dry_run.run(config.load(tiny_experiment, words), str(tiny_experiment))
    assert (
        f"nothing is left to do in this run: {reason}; nothing was written"
        in capsys.readouterr().out
    )


def test_dry_run_caches_and_downloads_nothing(tiny_experiment, monkeypatch, tmp_path, capsys):
    """Neither in the user's cache nor among the downloaded weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("poise.io.cache.MIN_BYTES", 0, raising=True)
    monkeypatch.setattr("poise.io.download.download_file", lambda *_: pytest.fail("fetched"))
    before = sorted(tmp_path.rglob("*"))
    words = ["GPUS", "()", "MODEL.PRETRAINED", "https://example.com/weights-01234567.pth"]
    dry_run.run(config.load(tiny_experiment, words), str(tiny_experiment))
    assert (
        sorted(tmp_path.rglob("*")) == before
        and "MODEL.PRETRAINED is not fetched by a dry run" in capsys.readouterr().out
    )
    load_split(config.load(tiny_experiment), train=True)
    assert any((tmp_path / "cache").rglob("*")), (
        "nothing is kept of so small a set anyway: nothing was tested"
    )


def test_dry_run_nan_loss_raises(tiny_experiment, monkeypatch):
    monkeypatch.setattr("poise.codecs.build_loss", lambda cfg: _NoNumber())
    with pytest.raises(PoiseError, match="dry run, step 1: the loss is nan; lower TRAIN.LR"):
        dry_run.run(config.load(tiny_experiment, ["GPUS", "()"]), str(tiny_experiment))


class _NoNumber(nn.Module):
    def forward(self, outputs, targets):
        return outputs[-1].mean() * math.nan
