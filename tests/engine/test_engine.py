"""Test runs of a very small network: files, resume, devices, signals and logging."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from poise import config
from poise.config.dataset_yaml import COCO
from poise.datasets import build_loader, load_split
from poise.datasets.sampler import EpochBatchSampler, Shard
from poise.engine import (
    checkpoint,
    device,
    evaluate,
    logger,
    optim,
    signals,
    train,
)
from poise.engine import (
    device as threads,
)
from poise.engine.micro_batches import smallest_micro_batch
from poise.engine.optim import build_optimizer
from poise.engine.run_logger import TrainLogger
from poise.engine.state import load_network
from poise.engine.trained_weights import warn_config_mismatch
from poise.errors import ConfigError, DataError, PoiseError
from poise.models import build_model, weights
from support.paths import ROOT
from support.runs import (
    TINY,
    folder_of,
    in_larger_steps,
    metrics_of,
    run_train,
    same_weights,
    state_of,
    unfinished,
    without_settings,
)
from torch import nn

pytestmark = pytest.mark.usefixtures("no_tensorboard_images")


@pytest.fixture
def tiny_experiment(tiny_experiment):
    tiny_experiment.write_text(in_larger_steps(tiny_experiment.read_text()))
    return tiny_experiment


@pytest.fixture
def tiny_mpii_experiment(tiny_mpii_experiment):
    tiny_mpii_experiment.write_text(in_larger_steps(tiny_mpii_experiment.read_text()))
    return tiny_mpii_experiment


def run_test(path, *overrides):
    return evaluate.run(
        config.load(path, [str(value) for value in overrides]), str(path), ["tools/test.py"]
    )


@pytest.fixture(scope="module")
def reference(small_set, tmp_path_factory):
    """The run folder of two epochs without any disturbance."""
    path = tmp_path_factory.mktemp("reference") / "tiny.yaml"
    text = in_larger_steps(
        TINY.format(dataset="coco", root=small_set, train="train2017", test="val2017", joints=17)
    )
    path.write_text(f"OUTPUT_DIR: {path.parent / 'output'}\nLOG_DIR: {path.parent / 'log'}\n{text}")
    return run_train(path)


@pytest.fixture(scope="module")
def steps(reference):
    """How many steps an epoch of the reference run has."""
    cfg = config.load(reference / "config.yaml")
    count = -(-len(load_split(cfg, train=True)[0]) // 16)
    assert count >= 3
    return count


def check_equal_to(reference, folder):
    assert metrics_of(folder) == metrics_of(reference)
    assert same_weights(folder / "final_state.pth", reference / "final_state.pth")
    assert same_weights(folder / "model_best.pth", reference / "model_best.pth")
    assert not unfinished(folder)


# what a run writes --------------------------------------------------------------------------------


def test_train_writes_the_run_folder(reference):
    assert {path.name for path in reference.iterdir()} == {
        "config.yaml",
        "train.log",
        "metrics.jsonl",
        "checkpoint.pth",
        "checkpoint_1.pth",
        "model_best.pth",
        "final_state.pth",
        "results",
    }
    assert [path.name for path in (reference / "results").iterdir()] == [
        "keypoints_val2017_results_gt_boxes.json"
    ]
    boards = list((reference.parents[3] / "log" / "coco" / "pose_res2net").iterdir())
    assert len(boards) == 1 and boards[0].name.startswith("tiny_2")
    (events,) = boards[0].glob("events.out.tfevents.*")
    assert (
        events.read_bytes().count(b"predictions") == events.read_bytes().count(b"heatmaps") == 2
        and events.stat().st_size > 50_000
    )
    log = (reference / "train.log").read_text()
    for part in (
        "train set train2017: ",
        "test set val2017: ",
        "MODEL.PRETRAINED is empty",
        "command: tools/train.py --cfg",
        "seed: 0",
        "torch " + torch.__version__,
        "epoch 0/2 [2/",
        "| pose_res2net |",
        "model_best.pth written",
        "done: best score",
    ):
        assert part in log, part
    assert "Traceback" not in log and not unfinished(reference)


def test_train_writes_metrics_of_each_epoch(reference):
    lines = metrics_of(reference)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(
        {"lr", "train_loss", "train_acc", "valid_loss", "valid_acc", "AP", "Ap .5", "AR"}
        <= line.keys()
        for line in lines
    )
    assert 0 < lines[1]["train_loss"] < lines[0]["train_loss"] < 0.1


def test_load_config_yaml_of_a_run_is_equal(reference, tmp_path):
    """config.yaml with other folders is the same experiment."""
    again = config.load(
        reference / "config.yaml",
        ["OUTPUT_DIR", str(tmp_path / "output"), "LOG_DIR", str(tmp_path / "log")],
    )
    shutil.copy(reference / "config.yaml", tmp_path / "tiny.yaml")
    train.run(again, str(tmp_path / "tiny.yaml"), ["x"])
    check_equal_to(reference, tmp_path / "output" / "coco" / "pose_res2net" / "tiny")


def test_load_weights_of_a_run_matches_every_tensor(reference):
    for name in ("final_state.pth", "model_best.pth", "checkpoint.pth"):
        network = build_model(config.load(reference / "config.yaml"))
        assert not weights.load(network, reference / name).missing
        assert weights.read_weight_file(reference / name).joints == COCO.names
    assert torch.equal(
        network.final_layer.weight, state_of(reference / "final_state.pth")["final_layer.weight"]
    )


def test_train_learning_rate_follows_the_config(reference, tmp_path):
    assert [line["lr"] for line in metrics_of(reference)] == [0.001, pytest.approx(0.0001)]
    assert state_of(reference / "checkpoint.pth")["optimizer"]["param_groups"][0][
        "lr"
    ] == pytest.approx(0.0001)
    (tmp_path / "hrnet.yaml").write_text(
        "MODEL: {NUM_JOINTS: 16}\nTRAIN: {LR: 0.001, LR_FACTOR: 0.1, LR_STEP: [170, 200],"
        " END_EPOCH: 210}\n"
    )
    cfg = config.load(tmp_path / "hrnet.yaml")
    rates = [
        optim.Schedule.from_config(cfg, 10, 128).lr_at(epoch * 10)
        for epoch in (0, 169, 170, 199, 200, 209)
    ]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_schedule_lr_steps_after_the_end_are_named(tmp_path):
    (tmp_path / "e.yaml").write_text(
        "MODEL: {NUM_JOINTS: 16}\nTRAIN: {LR_STEP: [60, 90], END_EPOCH: 90}\n"
    )
    described = str(optim.Schedule.from_config(config.load(tmp_path / "e.yaml"), 10, 32))
    assert "x0.1 at epochs 60, 90 (90: after the end, without effect)" in described


# the same run, cut up -----------------------------------------------------------------------------


def test_train_any_number_of_workers_gives_equal_run(tiny_experiment, reference):
    check_equal_to(reference, run_train(tiny_experiment, "WORKERS", 4))


def test_resume_after_an_epoch_gives_equal_run(tiny_experiment, reference):
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    assert len(metrics_of(folder)) == 1
    run_train(tiny_experiment, "AUTO_RESUME", True)
    check_equal_to(reference, folder)
    # gone on with once more, it has nothing left to do
    written = (folder / "metrics.jsonl").read_bytes()
    run_train(tiny_experiment, "TRAIN.RESUME", True)
    check_equal_to(reference, folder)
    assert (folder / "metrics.jsonl").read_bytes() == written


def test_train_without_auto_resume_starts_again(tiny_experiment, reference):
    run_train(tiny_experiment, "TRAIN.END_EPOCH", 1, "TRAIN.LR", 0.01)
    check_equal_to(reference, run_train(tiny_experiment))


@pytest.fixture
def stopped_run(tiny_experiment, monkeypatch):
    """A function that trains until a step of an epoch and is then asked to stop, as by Ctrl-C;
    step None is in the evaluation.
    """

    def run(epoch, step, *overrides):
        asked, now = [], [0]
        report, predict = TrainLogger.log_step, train.predict

        def reporting(records, *rest):
            at = records._state.progress
            now[0] = at.epoch
            if (at.epoch, at.step) == (epoch, step):
                asked[-1].stop_requested = True
            report(records, *rest)

        def predicting(*arguments):
            if step is None and now[0] == epoch:
                asked[-1].stop_requested = True
            return predict(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(
                train, "GracefulStop", lambda: asked.append(signals.GracefulStop()) or asked[-1]
            )
            patch.setattr(TrainLogger, "log_step", reporting)
            patch.setattr(train, "predict", predicting)
            # no pytest.raises: what it keeps makes a circle with the loaders, and worker processes
            # that are left to Python's collector of circles end only after a timeout of PyTorch's
            try:
                run_train(tiny_experiment, "PRINT_FREQ", 1, *overrides)
            except signals.RunStoppedError as stopped:
                return str(stopped)
        pytest.fail("the run did not stop")

    return run


@pytest.mark.parametrize("epoch, step", [(0, 2), (1, 1), (1, "last"), (0, "evaluation")])
def test_resume_mid_epoch_gives_equal_run(
    tiny_experiment, reference, stopped_run, steps, epoch, step
):
    done = step if isinstance(step, int) else steps
    message = stopped_run(epoch, None if step == "evaluation" else done)
    assert message.startswith(f"stopped at epoch {epoch}, step {done}; ")
    assert message.endswith(
        "checkpoint.pth is written; resume with the same command and AUTO_RESUME True"
    )
    folder = run_train(tiny_experiment, "AUTO_RESUME", True)
    check_equal_to(reference, folder)
    assert f"resuming at epoch {epoch}, step {done}" in (folder / "train.log").read_text()


def test_resume_repeatedly_gives_equal_run(tiny_experiment, reference, stopped_run):
    """Also with another number of workers each time."""
    stopped_run(0, 1)
    stopped_run(0, 3, "AUTO_RESUME", True, "WORKERS", 2)
    check_equal_to(reference, run_train(tiny_experiment, "AUTO_RESUME", True))


def test_resume_other_batch_size_restarts_the_epoch(tiny_experiment, stopped_run, steps):
    """Restart the epoch, whose first steps the checkpoint does not define; use each person once."""
    stopped_run(0, 2)
    folder = run_train(
        tiny_experiment, "AUTO_RESUME", True, "TRAIN.BATCH_SIZE_PER_GPU", 32, "TRAIN.END_EPOCH", 1
    )
    log = (folder / "train.log").read_text()
    assert (
        "epoch 0 was started with another batch size, number of devices or training set; starting"
        " it again" in log
    )
    assert (
        state_of(folder / "checkpoint.pth")["epoch"] == 1
        and f"epoch 0/1 [{-(-steps // 2)}/{-(-steps // 2)}]" in log
    )


def test_resume_killed_between_files_gives_equal_run(tiny_experiment, reference, monkeypatch):
    """Killed after model_best.pth and metrics.jsonl, before the checkpoint: the epoch is trained
    again, its line is not doubled.
    """
    write = checkpoint.save_and_rotate

    def killed(folder, content, *rest, **more):
        if content["epoch"] == 2:
            raise SystemExit(9)
        return write(folder, content, *rest, **more)

    monkeypatch.setattr(checkpoint, "save_and_rotate", killed)
    with pytest.raises(SystemExit):
        run_train(tiny_experiment)
    monkeypatch.undo()
    folder = run_train(tiny_experiment, "AUTO_RESUME", True)
    check_equal_to(reference, folder)


def test_train_zipped_images_equals_folder(tiny_experiment, reference, small_set, tmp_path):
    zipped = tmp_path / "zipped"
    shutil.copytree(small_set / "annotations", zipped / "annotations")
    (zipped / "images").mkdir()
    # the official archives have a folder, others do not
    for split, below in (("train2017", "train2017/"), ("val2017", "")):
        with zipfile.ZipFile(zipped / "images" / f"{split}.zip", "w") as archive:
            for image in sorted((small_set / "images" / split).iterdir()):
                archive.write(image, below + image.name)
    check_equal_to(
        reference,
        run_train(
            tiny_experiment, "DATASET.ROOT", zipped, "DATASET.DATA_FORMAT", "zip", "WORKERS", 2
        ),
    )


def test_train_other_seed_changes_the_loss(tiny_experiment, reference):
    folder = run_train(tiny_experiment, "SEED", 1, "TRAIN.END_EPOCH", 1)
    assert metrics_of(folder)[0]["train_loss"] != metrics_of(reference)[0]["train_loss"]


# the best weights ---------------------------------------------------------------------------------


@pytest.fixture
def scores(monkeypatch):
    """A function that sets the deciding score of each epoch."""

    def prepare(*values):
        given = iter(values)
        monkeypatch.setattr(train, "evaluate_predictions", lambda *_: ({"AP": 0.0}, next(given)))

    return prepare


def test_resume_keeps_the_best_score(tiny_experiment, scores):
    scores(0.5)
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    best = (folder / "model_best.pth").read_bytes()
    scores(0.3)
    run_train(tiny_experiment, "AUTO_RESUME", True)
    assert (folder / "model_best.pth").read_bytes() == best and not same_weights(
        folder / "model_best.pth", folder / "final_state.pth"
    )
    assert state_of(folder / "checkpoint.pth")["best"] == {"score": 0.5, "epoch": 0}
    scores(0.6)
    run_train(tiny_experiment, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 3)
    assert same_weights(folder / "model_best.pth", folder / "final_state.pth")
    assert state_of(folder / "checkpoint.pth")["best"] == {"score": 0.6, "epoch": 2}


def test_train_without_evaluated_persons_best_is_by_loss(
    tiny_experiment, small_set, tmp_path, monkeypatch
):
    """Warn before the first epoch that each AP is -1, because num_keypoints is 0 everywhere."""
    root = shutil.copytree(small_set, tmp_path / "set")
    path = root / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["num_keypoints"] = 0
    path.write_text(json.dumps(content))
    losses, predict = iter([0.3, 0.1, 0.2]), train.predict

    def predicting(*arguments):
        found = predict(*arguments)
        found.loss = next(losses)
        return found

    monkeypatch.setattr(train, "predict", predicting)
    folder = run_train(tiny_experiment, "DATASET.ROOT", root, "TRAIN.END_EPOCH", 3)
    saved = state_of(folder / "checkpoint.pth")
    assert saved["best"]["epoch"] == 1 and saved["best"]["score"] == pytest.approx(-1.1)
    assert not same_weights(folder / "model_best.pth", folder / "final_state.pth")
    log = (folder / "train.log").read_text()
    assert log.count("best score so far: validation loss 0.") == 2
    assert (
        "done: best score validation loss 0.100000 (the metric has no labeled persons) at epoch 1"
        in log
    )


def test_primary_metric_falls_back_to_loss():
    assert evaluate.selection_score(0.0, 5.0) == 0 and evaluate.selection_score(0.3, 0.1) == 0.3
    assert evaluate.selection_score(-1.0, None) == -1 and evaluate.selection_score(
        -1.0, 0.2
    ) > evaluate.selection_score(-1.0, 0.3)
    assert evaluate.selection_score(float("nan"), 0.5) == -1.5


def test_train_equal_scores_the_later_is_best(tiny_experiment, scores):
    scores(0.0, 0.0)
    folder = run_train(tiny_experiment)
    assert same_weights(folder / "model_best.pth", folder / "final_state.pth")


def test_train_nan_score_is_never_best(tiny_experiment, scores):
    """PCKh of a set on which nothing is labeled is NaN."""
    scores(math.nan, math.nan)
    folder = run_train(tiny_experiment)
    assert not (folder / "model_best.pth").exists() and (folder / "final_state.pth").exists()


def test_train_eval_interval_includes_the_last_epoch(tiny_experiment):
    folder = run_train(tiny_experiment, "TRAIN.EVAL_INTERVAL", 2, "TRAIN.END_EPOCH", 3)
    assert ["AP" in line for line in metrics_of(folder)] == [False, True, True]


# what goes wrong ----------------------------------------------------------------------------------


def test_train_diverging_loss_raises(tiny_experiment):
    with pytest.raises(PoiseError) as error:
        run_train(tiny_experiment, "TRAIN.LR", 9e29)
    assert "the loss is " in str(
        error.value
    ) and "no checkpoint was written yet; lower TRAIN.LR" in str(error.value)
    folder = folder_of(tiny_experiment)
    assert not list(folder.glob("*.pth")) and not unfinished(folder)
    assert "ERROR epoch 0, step 1: the loss is" in (folder / "train.log").read_text()


def test_train_nan_loss_keeps_checkpoint_and_names_images(tiny_experiment, monkeypatch):
    """The last good checkpoint stays, and the images of the batch are named."""
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    before = {
        name: (folder / name).read_bytes()
        for name in ("checkpoint.pth", "model_best.pth", "metrics.jsonl")
    }

    class Spoiled(nn.Module):
        steps = 0

        def forward(self, outputs, targets):
            self.steps += 1
            return outputs[-1].mean() * (math.nan if self.steps == 3 else 1)

    monkeypatch.setattr("poise.codecs.build_loss", lambda cfg: Spoiled())
    with pytest.raises(PoiseError) as error:
        run_train(tiny_experiment, "AUTO_RESUME", True)
    cfg = config.load(tiny_experiment)
    table, _ = load_split(cfg, train=True)
    batches = EpochBatchSampler(len(table), 16, shuffle=True, seed=0)
    batches.set_epoch(1)
    names = dict.fromkeys(table.image_name(person) for _, person in list(batches)[2])
    assert (
        str(error.value) == "epoch 1, step 2: the loss is nan; the last good checkpoint is"
        f" {folder / 'checkpoint.pth'}; lower TRAIN.LR, or check the images of this batch:"
        f" {', '.join(names)}"
    )
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_train_nan_loss_does_not_name_older_checkpoint(tiny_experiment):
    """Name no checkpoint, because the new run has not written one."""
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    assert (folder / "checkpoint.pth").exists()
    with pytest.raises(
        PoiseError, match="the loss is .*; no checkpoint was written yet; lower TRAIN.LR"
    ):
        run_train(tiny_experiment, "TRAIN.LR", 9e29)


@pytest.fixture
def spoiling_step(monkeypatch):
    """A function after which a given step of the optimizer makes weights infinite; only a later
    loss could show it.
    """

    def prepare(number):
        class Spoiling(torch.optim.SGD):
            done = 0

            def step(self):
                super().step()
                self.done += 1
                if self.done == number:
                    self.param_groups[0]["params"][0].data.fill_(math.inf)

        monkeypatch.setattr(
            train, "build_optimizer", lambda cfg, model: Spoiling(model.parameters(), lr=1e-3)
        )

    return prepare


def test_train_nan_weight_after_last_step_raises(tiny_experiment, spoiling_step, steps):
    spoiling_step(steps)
    with pytest.raises(
        PoiseError,
        match=(
            "epoch 0: a weight is not finite after the last step; lower TRAIN.LR; no checkpoint was"
            " written yet"
        ),
    ):
        run_train(tiny_experiment)
    assert not list(folder_of(tiny_experiment).glob("*.pth"))


def test_train_nan_weight_is_not_saved_on_ctrl_c(tiny_experiment, spoiling_step, stopped_run):
    spoiling_step(2)
    with pytest.raises(PoiseError, match="a weight is not finite"):
        stopped_run(0, 2)
    assert not list(folder_of(tiny_experiment).glob("*.pth"))


def test_save_full_disk_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    checkpoint.save(path, {"a": torch.ones(3)})
    good = path.read_bytes()

    def full(content, file):
        file.write_bytes(good[:50])
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        DataError, match="checkpoint.pth: cannot be written .*the file before it, if any, is kept"
    ):
        checkpoint.save(path, {"a": torch.zeros(3)})
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_resume_mismatched_checkpoint_raises(tiny_experiment, reference, tmp_path):
    def refusal(*overrides):
        with pytest.raises(PoiseError) as error:
            run_train(tiny_experiment, *overrides)
        assert "\n" not in str(error.value) and not (tmp_path / "output").exists()
        return str(error.value)

    good = reference / "checkpoint.pth"
    shutil.copy(good, tmp_path / "c.pth")
    wider = "[8, 8, 8, 32]"
    assert "MODEL.EXTRA.NUM_CHANNELS [8, 8, 8, 32] (was [8, 8, 8, 16]); restore them" in refusal(
        "TRAIN.CHECKPOINT", good, "MODEL.EXTRA.NUM_CHANNELS", wider
    )
    assert "TRAIN.OPTIMIZER 'sgd' (was 'adam'); restore them" in refusal(
        "TRAIN.CHECKPOINT", good, "TRAIN.OPTIMIZER", "sgd"
    )
    silent = without_settings(good, tmp_path / "silent.pth")
    assert "does not fit the network or optimizer" in refusal(
        "TRAIN.CHECKPOINT", silent, "MODEL.EXTRA.NUM_CHANNELS", wider
    )
    assert "TRAIN.OPTIMIZER is another" in refusal(
        "TRAIN.CHECKPOINT", silent, "TRAIN.OPTIMIZER", "sgd"
    )
    assert "no such checkpoint; TRAIN.CHECKPOINT takes a checkpoint.pth" in refusal(
        "TRAIN.CHECKPOINT", tmp_path / "none.pth"
    )
    assert "not a checkpoint of this version of Poise" in refusal(
        "TRAIN.CHECKPOINT", reference / "final_state.pth"
    )
    for content in (good.read_bytes()[:2000], b"", b"text", good.read_bytes()[:-30]):
        (tmp_path / "c.pth").write_bytes(content)
        assert "c.pth: not a checkpoint of PyTorch, or damaged" in refusal(
            "TRAIN.CHECKPOINT", tmp_path / "c.pth"
        )
    content = state_of(good)
    torch.save({**content, "experiment": "another"}, tmp_path / "c.pth")
    assert (
        "a checkpoint of experiment another, not of tiny; give it as MODEL.PRETRAINED"
        in refusal("TRAIN.CHECKPOINT", tmp_path / "c.pth")
    )
    for key in ("sums", "optimizer", "best"):
        torch.save({k: v for k, v in content.items() if k != key}, tmp_path / "c.pth")
        assert "not a checkpoint of this version" in refusal("TRAIN.CHECKPOINT", tmp_path / "c.pth")
    torch.save({**content, "state_dict": 3}, tmp_path / "c.pth")
    assert "does not fit the network" in refusal("TRAIN.CHECKPOINT", tmp_path / "c.pth")


def test_resume_train_checkpoint_path_gives_equal_run(tiny_experiment, reference):
    """TRAIN.CHECKPOINT goes on from a file outside of the run folder, to the same end."""
    folder = run_train(
        tiny_experiment, "TRAIN.CHECKPOINT", reference / "checkpoint.pth", "TRAIN.END_EPOCH", 3
    )
    assert [line["epoch"] for line in metrics_of(folder)] == [2]


def test_train_pretrained_pose_network_starts_from_it(tiny_experiment, reference):
    """Weights of a run as the beginning of another, which hardly moves away from them."""
    folder = run_train(
        tiny_experiment,
        "MODEL.PRETRAINED",
        reference / "final_state.pth",
        "TRAIN.END_EPOCH",
        1,
        "TRAIN.LR",
        1e-12,
    )
    begin, end = state_of(reference / "final_state.pth"), state_of(folder / "final_state.pth")
    assert all(
        torch.allclose(begin[name], end[name], atol=1e-9)
        for name in begin
        if name.endswith("conv1.weight")
    )
    assert "loaded 290 of 290 tensors" in (folder / "train.log").read_text()


def test_train_pretrained_other_keypoints_replaces_head(
    tiny_experiment, reference, tmp_path, tiny_mpii_experiment
):
    """MODEL.REPLACE_HEAD decides; a test never replaces."""
    weights_of_coco = reference / "final_state.pth"
    with pytest.raises(DataError, match="17 keypoints"):
        run_train(tiny_mpii_experiment, "MODEL.PRETRAINED", weights_of_coco, "TRAIN.END_EPOCH", 1)
    with pytest.raises(DataError, match="17 keypoints"):
        run_test(
            tiny_mpii_experiment, "TEST.MODEL_FILE", weights_of_coco, "MODEL.REPLACE_HEAD", True
        )
    folder = run_train(
        tiny_mpii_experiment,
        "MODEL.PRETRAINED",
        weights_of_coco,
        "MODEL.REPLACE_HEAD",
        True,
        "TRAIN.END_EPOCH",
        1,
        "TRAIN.LR",
        1e-12,
    )
    begin, end = state_of(weights_of_coco), state_of(folder / "final_state.pth")
    assert end["final_layer.weight"].shape[0] == 16 and torch.allclose(
        begin["conv1.weight"], end["conv1.weight"], atol=1e-9
    )


# variants -----------------------------------------------------------------------------------------


def test_train_sgd_uses_its_settings(tiny_experiment, reference):
    folder = run_train(
        tiny_experiment, "TRAIN.OPTIMIZER", "sgd", "TRAIN.NESTEROV", True, "TRAIN.END_EPOCH", 1
    )
    optimizer = state_of(folder / "checkpoint.pth")["optimizer"]
    assert (
        optimizer["param_groups"][0]["nesterov"]
        and optimizer["param_groups"][0]["weight_decay"] == 0.0001
    )
    assert all("momentum_buffer" in state for state in optimizer["state"].values())
    run_train(
        tiny_experiment, "TRAIN.OPTIMIZER", "sgd", "TRAIN.NESTEROV", True, "AUTO_RESUME", True
    )
    assert [line["epoch"] for line in metrics_of(folder)] == [0, 1]


def test_train_ohkm_and_joint_weights_raise_the_loss(tiny_experiment):
    """On weights that hardly move: the mean over the hardest joints, or with heavier joints, is
    larger than that over all.
    """
    plain, ohkm, heavier = (
        metrics_of(run_train(tiny_experiment, "TRAIN.LR", 1e-12, "TRAIN.END_EPOCH", 1, *overrides))[
            0
        ]
        for overrides in (
            (),
            ("LOSS.USE_OHKM", True, "LOSS.TOPK", 4),
            ("LOSS.USE_DIFFERENT_JOINTS_WEIGHT", True),
        )
    )
    for name in ("train_loss", "valid_loss"):
        assert plain[name] < 0.98 * ohkm[name] and plain[name] < 0.98 * heavier[name]
        assert ohkm[name] < 17 / 4 * plain[name] * 1.001 and heavier[name] < 1.5**2 * plain[name]


def test_train_debug_writes_images(tiny_experiment, steps):
    import cv2

    folder = run_train(
        tiny_experiment,
        "DEBUG.DEBUG",
        True,
        "DEBUG.SAVE_BATCH_IMAGES_GT",
        True,
        "DEBUG.SAVE_BATCH_IMAGES_PRED",
        True,
        "DEBUG.SAVE_HEATMAPS_GT",
        True,
        "DEBUG.SAVE_HEATMAPS_PRED",
        True,
        "PRINT_FREQ",
        steps - 1,
        "TRAIN.END_EPOCH",
        1,
        "DATASET.COLOR_RGB",
        True,
    )
    pictures = sorted(path.name for path in (folder / "debug").iterdir())
    assert pictures == sorted(
        f"train_0_{step}_{kind}.jpg"
        for step in (steps - 1, steps)
        for kind in ("gt", "pred", "hm_gt", "hm_pred")
    )
    assert all(cv2.imread(str(folder / "debug" / name)).std() > 10 for name in pictures)


def test_train_without_debug_writes_no_images(tiny_experiment):
    assert not (
        run_train(tiny_experiment, "DEBUG.SAVE_BATCH_IMAGES_GT", True, "TRAIN.END_EPOCH", 1)
        / "debug"
    ).exists()


# testing ------------------------------------------------------------------------------------------


def copy_run(reference, path):
    folder = folder_of(path)
    shutil.copytree(reference, folder)
    return folder


def test_evaluate_weights_of_a_run_gives_training_figures(tiny_experiment, reference):
    folder = copy_run(reference, tiny_experiment)
    result = folder / "results" / "keypoints_val2017_results_gt_boxes.json"
    of_training = result.read_bytes()
    result.unlink()
    metrics = run_test(tiny_experiment, "TEST.MODEL_FILE", folder / "final_state.pth")
    assert result.read_bytes() == of_training
    assert (
        metrics == {key: value for key, value in metrics_of(reference)[1].items() if key in metrics}
        and "AP" in metrics
    )
    assert len(list((folder / "pictures").glob("*.jpg"))) == 8
    log = (folder / "test.log").read_text()
    assert (
        f"weights: {folder / 'final_state.pth'}" in log
        and "ground-truth boxes, flip test on:" in log
        and "| left_ankle |" in log
    )
    assert not unfinished(folder)


def test_model_file_empty_takes_weights_of_the_run(tiny_experiment, reference):
    folder = copy_run(reference, tiny_experiment)
    cfg = config.load(tiny_experiment)
    assert evaluate.find_weights(cfg, folder).name == "model_best.pth"
    (folder / "model_best.pth").unlink()
    assert evaluate.find_weights(cfg, folder).name == "final_state.pth"
    (folder / "final_state.pth").unlink()
    with pytest.raises(
        DataError,
        match=(
            "TEST.MODEL_FILE is empty and .* has no model_best.pth or final_state.pth; train first"
        ),
    ):
        evaluate.find_weights(cfg, folder)


def said_of_training(caplog, path, *overrides):
    caplog.clear()
    cfg = config.load(path, [str(value) for value in overrides])
    warn_config_mismatch(
        cfg, Path(cfg.TEST.MODEL_FILE), weights.read_weight_file(cfg.TEST.MODEL_FILE).experiment
    )
    return [record.getMessage() for record in caplog.records]


def test_evaluate_other_codec_weights_log_a_warning(tiny_experiment, reference, tmp_path, caplog):
    """Log one line for files of a run folder and for a moved checkpoint."""
    shutil.copy(reference / "checkpoint.pth", tmp_path / "moved.pth")
    shutil.copy(reference / "final_state.pth", tmp_path / "final.pth")
    torch.save(dict(state_of(reference / "final_state.pth")), tmp_path / "bare.pth")
    for file in (
        reference / "model_best.pth",
        reference / "checkpoint.pth",
        tmp_path / "moved.pth",
        tmp_path / "final.pth",
    ):
        assert said_of_training(caplog, tiny_experiment, "TEST.MODEL_FILE", file) == []
        assert said_of_training(
            caplog, tiny_experiment, "TEST.MODEL_FILE", file, "MODEL.TARGET_TYPE", "udp"
        ) == [
            f"{file}: trained with MODEL.TARGET_TYPE gaussian (tested with udp); keypoints may be"
            " misplaced"
        ]
        assert said_of_training(
            caplog,
            tiny_experiment,
            "TEST.MODEL_FILE",
            file,
            "MODEL.IMAGE_SIZE",
            "[96, 64]",
            "MODEL.HEATMAP_SIZE",
            "[24, 16]",
            "DATASET.COLOR_RGB",
            True,
        ) == [
            f"{file}: trained with MODEL.IMAGE_SIZE [64, 64] (tested with [96, 64]),"
            " DATASET.COLOR_RGB False (tested with True), MODEL.HEATMAP_SIZE [16, 16] (tested with"
            " [24, 16]); keypoints may be misplaced"
        ]
    # nothing is known of bare weights, nor from a config.yaml that is another program's
    assert (
        said_of_training(
            caplog,
            tiny_experiment,
            "TEST.MODEL_FILE",
            tmp_path / "bare.pth",
            "MODEL.TARGET_TYPE",
            "udp",
        )
        == []
    )
    for text in (
        "MODEL: [1, 2]",
        "- 3",
        "MODEL: {TARGET_TYPE: [}",
        "\0",
        "",
        "DATASET: {COLOR_RGB: false}\nMODEL: {NAME: x}",
    ):
        (tmp_path / "config.yaml").write_text(text)
        assert (
            said_of_training(
                caplog,
                tiny_experiment,
                "TEST.MODEL_FILE",
                tmp_path / "bare.pth",
                "MODEL.TARGET_TYPE",
                "udp",
            )
            == []
        )


def test_evaluate_other_codec_prints_a_warning(tiny_experiment, reference, capsys):
    run_test(
        tiny_experiment,
        "TEST.MODEL_FILE",
        reference / "final_state.pth",
        "MODEL.TARGET_TYPE",
        "udp",
        "TEST.PICTURES",
        0,
    )
    assert (
        capsys.readouterr().out.count("trained with MODEL.TARGET_TYPE gaussian (tested with udp)")
        == 1
    )
    run_test(tiny_experiment, "TEST.MODEL_FILE", reference / "final_state.pth", "TEST.PICTURES", 0)
    assert "trained with" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "metrics, out, message",
    [
        (["AP"], None, "--eval AP: coco is always evaluated with mAP"),
        (["mAP", "PCKh"], None, "--eval PCKh: coco is always evaluated with mAP"),
        ([], "r.json", "--out r.json: predictions are written to a pickle"),
        ([], "r", "--out r: predictions are written to a pickle"),
    ],
)
def test_evaluate_unsupported_eval_or_out_raises(tiny_experiment, reference, metrics, out, message):
    cfg = config.load(tiny_experiment, ["TEST.MODEL_FILE", str(reference / "final_state.pth")])
    with pytest.raises(ConfigError, match=message):
        evaluate.run(cfg, str(tiny_experiment), ["test"], metrics=metrics, out=out)
    assert not (tiny_experiment.parent / "output").exists()


def test_evaluate_detected_boxes_writes_results(tiny_experiment, reference, small_set):
    name = "COCO_val2017_detections_AP_H_56_person"
    folder = copy_run(reference, tiny_experiment)
    overrides = (
        "TEST.USE_GT_BBOX",
        False,
        "TEST.COCO_BBOX_FILE",
        small_set / "person_detection_results" / f"{name}.json",
    )
    metrics = run_test(tiny_experiment, *overrides, "TEST.FLIP_TEST", False, "TEST.PICTURES", 0)
    results = json.loads(
        (folder / "results" / f"keypoints_val2017_results_{name}.json").read_text()
    )
    assert {len(entry["keypoints"]) for entry in results} == {51} and set(metrics) >= {"AP", "AR"}
    table, _ = load_split(config.load(tiny_experiment, [str(v) for v in overrides]), train=False)
    assert 0 < len(results) <= len(table) and {entry["image_id"] for entry in results} == {
        int(i) for i in table.image_ids[table.image_index]
    }
    # HRNet's rescoring: the box's score times the mean of the joints', so never above it
    assert max(entry["score"] for entry in results) <= table.score.max()
    assert not (folder / "pictures").exists()
    assert f"boxes of {name}, flip test off:" in (folder / "test.log").read_text()


def test_evaluate_unlabeled_set_writes_results_only(
    tiny_experiment, reference, small_set, tmp_path
):
    """test-dev: images and detections only. The result file is written, nothing is scored."""
    root = tmp_path / "set"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "images" / "test2017").symlink_to(small_set / "images" / "val2017")
    truth = json.loads((small_set / "annotations" / "person_keypoints_val2017.json").read_text())
    (root / "annotations" / "image_info_test-dev2017.json").write_text(
        json.dumps({"images": truth["images"]})
    )
    copy_run(reference, tiny_experiment)
    boxes = small_set / "person_detection_results" / "COCO_val2017_detections_AP_H_56_person.json"
    metrics = run_test(
        tiny_experiment,
        "DATASET.ROOT",
        root,
        "DATASET.TEST_SET",
        "test-dev2017",
        "TEST.USE_GT_BBOX",
        False,
        "TEST.COCO_BBOX_FILE",
        boxes,
    )
    assert metrics == {}
    folder = folder_of(tiny_experiment)
    written = json.loads(
        (folder / "results" / f"keypoints_test-dev2017_results_{boxes.stem}.json").read_text()
    )
    # the names and fields that COCO's server takes
    archive = folder / "results" / "person_keypoints_test-dev2017_tiny_results.zip"
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["person_keypoints_test-dev2017_tiny_results.json"]
        sent = json.loads(opened.read(opened.namelist()[0]))
    fields = ("image_id", "category_id", "keypoints", "score")
    assert sent == [{field: entry[field] for field in fields} for entry in written] and sent
    assert f"submit {archive} to the evaluation server" in (folder / "test.log").read_text()


def test_mpii_train_and_evaluate(tiny_mpii_experiment, small_mpii_set, capsys):
    from scipy.io import loadmat

    folder = run_train(tiny_mpii_experiment)
    lines = metrics_of(folder)
    names = ["Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Mean", "Mean@0.1"]
    assert len(lines) == 2 and set(names) <= lines[0].keys()
    trained = loadmat(folder / "results" / "pred.mat")["preds"]
    persons = json.loads((small_mpii_set / "annot" / "valid.json").read_text())
    assert trained.shape == (len(persons), 16, 2)
    metrics = run_test(tiny_mpii_experiment, "TEST.MODEL_FILE", folder / "final_state.pth")
    assert list(metrics) == names and metrics == {name: lines[1][name] for name in names}
    assert np.array_equal(loadmat(folder / "results" / "pred.mat")["preds"], trained)
    assert "| right_ankle |" in capsys.readouterr().out
    # the set whose joints are secret: predictions only, and under another name
    assert run_test(tiny_mpii_experiment, "DATASET.TEST_SET", "test") == {}
    assert loadmat(folder / "results" / "pred_test.mat")["preds"].shape == trained.shape


def test_mpii_predictions_are_one_based(tiny_mpii_experiment, monkeypatch):
    """A network whose every heatmap has its peak in the middle predicts the center of each
    person's box, counted from 1.
    """
    from scipy.io import loadmat

    class Middle(nn.Module):
        def forward(self, images):
            maps = torch.zeros(len(images), 16, 16, 16)
            maps[:, :, 8, 8] = 1
            return maps

    monkeypatch.setattr(evaluate, "build_model", lambda cfg: Middle())
    torch.save({"a": torch.zeros(1)}, tiny_mpii_experiment.parent / "w.pth")
    monkeypatch.setattr(evaluate, "load_trained_weights", lambda *_: None)
    run_test(
        tiny_mpii_experiment,
        "TEST.MODEL_FILE",
        tiny_mpii_experiment.parent / "w.pth",
        "TEST.FLIP_TEST",
        False,
        "TEST.FOLD_BN",
        False,
    )
    cfg = config.load(tiny_mpii_experiment)
    table, _ = load_split(cfg, train=False)
    found = loadmat(folder_of(tiny_mpii_experiment) / "results" / "pred.mat")["preds"]
    assert np.allclose(found, table.center[:, None] + 1)


# devices ------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_train_without_cuda_runs_on_cpu(tiny_experiment, reference, capsys):
    folder = run_train(tiny_experiment, "GPUS", "(0,1,2,3)", "TRAIN.END_EPOCH", 1)
    assert (
        "no CUDA device: running on the CPU; a step has 1 x BATCH_SIZE_PER_GPU samples instead"
        " of 4 x" in capsys.readouterr().out
    )
    assert metrics_of(folder)[0] == metrics_of(reference)[0]


@pytest.mark.parametrize(
    "present, wanted, used, warning",
    [
        (4, (0, 1, 2, 3), [0, 1, 2, 3], ""),
        (
            2,
            (0, 1, 2, 3),
            [0, 1],
            (
                "GPUS lists 4 devices, 2 of them exist: using [0, 1]; a step has 2 x"
                " BATCH_SIZE_PER_GPU samples instead of 4 x"
            ),
        ),
        (4, (2,), [2], ""),
        (4, (3, 1), [3, 1], ""),
        (1, (3,), None, "GPUS [3] do not exist, 1 do: running on the CPU"),
        (4, (), None, ""),
        (0, (0,), None, "no CUDA device: running on the CPU"),
    ],
)
def test_choose_devices_follows_gpus_and_availability(
    tiny_experiment, monkeypatch, caplog, present, wanted, used, warning
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    found = device.choose_devices(config.load(tiny_experiment, ["GPUS", wanted]))
    assert found == (
        [torch.device("cpu")] if used is None else [torch.device("cuda", number) for number in used]
    )
    assert warning in caplog.text and bool(warning) == bool(caplog.text)


@pytest.mark.parametrize(
    "on_gpu, wanted, pinned", [(False, True, False), (True, True, True), (True, False, False)]
)
def test_pin_memory_is_used_for_gpus_only(tiny_experiment, monkeypatch, on_gpu, wanted, pinned):
    """Also where there is a GPU that the run does not use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = config.load(tiny_experiment, ["PIN_MEMORY", wanted])
    assert (
        build_loader(
            cfg, *load_split(cfg, train=False), train=False, on_gpu=on_gpu
        )._loader.pin_memory
        == pinned
    )


def test_to_device_wraps_and_unwraps():
    network = nn.Linear(2, 2)
    assert (
        device.to_device(network, [torch.device("cpu")]) is network
        and device.unwrap_model(network) is network
    )
    assert device.unwrap_model(nn.DataParallel(network)) is network


@pytest.fixture
def thread_counts(monkeypatch):
    """Return the counts that torch gets, in order; the measurement gives 5, 6, 7, ..."""
    counts, measured = [], iter(range(5, 99))
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(threads, "fastest_threads", lambda *_: next(measured))
    return counts


@pytest.mark.parametrize(
    "wanted, saved, count",
    [(3, 2, 3), (0, 2, 2), (0, 99, 4), (-1, 2, 5), (0, None, 4), (-1, None, 5)],
)
def test_cpu_threads_follow_config_and_checkpoint(
    tiny_experiment, thread_counts, monkeypatch, wanted, saved, count
):
    """What CPU_THREADS says, else the count of the run that is gone on with, else all cores; -1
    measures.
    """
    monkeypatch.setattr(threads, "available_cpus", lambda: 4)
    cfg = config.load(tiny_experiment, ["CPU_THREADS", wanted])
    threads.CpuThreads(cfg.CPU_THREADS, torch.device("cpu"), saved)
    assert thread_counts == [count]


def test_cpu_threads_retune_by_load(thread_counts, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(threads, "available_cpus", lambda: 4)
    fixed, adaptive = (threads.CpuThreads(count, torch.device("cpu")) for count in (0, -1))
    for seconds in (1, 20, 1, 20):
        now[0] += seconds
        fixed.retune(), adaptive.retune()
    assert thread_counts == [4, 5, 6, 7]


def test_cpu_threads_unchanged_on_gpu(thread_counts):
    threads.CpuThreads(-1, torch.device("cuda", 0), 4).retune()
    assert thread_counts == []


def test_fastest_threads_is_within_available_cpus():
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        assert 1 <= threads.fastest_threads() <= threads.available_cpus()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.random.get_rng_state(), state), (
        "the measurement changed the run's random numbers"
    )


# signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_interrupt_first_signal_requests_stop(number):
    before = signal.getsignal(number)
    with signals.GracefulStop() as asking:
        assert not asking.stop_requested
        signal.raise_signal(number)
        assert asking.stop_requested
    assert signal.getsignal(number) is before


def test_interrupt_ignored_sighup_stays_ignored():
    """As nohup starts a program that is to outlive its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.GracefulStop() as asking:
            signal.raise_signal(signal.SIGHUP)
            assert not asking.stop_requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interrupt_second_signal_ends_the_process():
    code = (
        "import signal; from poise.engine.signals import GracefulStop\nwith GracefulStop():\n   "
        " signal.raise_signal(signal.SIGINT); print('still here', flush=True);"
        " signal.raise_signal(signal.SIGINT); print('too long')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "lib", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "still here\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_train_signal_to_process_group_stops_cleanly(tiny_experiment, number):
    """As a terminal or a scheduler sends it: to the whole process group, workers included. Ends
    within seconds, can be gone on with.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "tools" / "train.py"),
        "--cfg",
        str(tiny_experiment),
        "WORKERS",
        "2",
        "TRAIN.END_EPOCH",
        "1000",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        last_line = ""
        for line in process.stdout:
            last_line = line
            if line.startswith("epoch 0/1000 [2/"):
                break
        assert last_line.startswith("epoch 0/1000 [2/"), process.stderr.read()
        begin = time.monotonic()
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and time.monotonic() - begin < 25
    assert err == "" and "Traceback" not in out
    last = out.splitlines()[-1]
    assert last.startswith("stopped at epoch ") and last.endswith(
        "resume with the same command and AUTO_RESUME True"
    )
    folder = folder_of(tiny_experiment)
    saved = checkpoint.load(folder / "checkpoint.pth", "tiny")
    assert saved["step"] >= 2 or saved["epoch"] > 0
    assert not unfinished(folder)
    run_train(tiny_experiment, "AUTO_RESUME", True, "TRAIN.END_EPOCH", saved["epoch"] + 1)
    assert [line["epoch"] for line in metrics_of(folder)] == list(range(saved["epoch"] + 1))


@pytest.mark.parametrize("layouts", [(True, False), (False, True)])
def test_resume_optimizer_state_takes_layout_of_weights(tiny_experiment, layouts):
    """Fused Adam walks raw memory: averages saved in one layout and taken over as they lie would
    meet other weights.
    """
    folder = run_train(
        tiny_experiment, "CHANNELS_LAST", layouts[0], "TRAIN.END_EPOCH", 1, "AUTO_RESUME", False
    )
    cfg = config.load(tiny_experiment)
    model = device.to_device(build_model(cfg), [torch.device("cpu")], layouts[1])
    optimizer = build_optimizer(cfg, model)
    saved = checkpoint.load(folder / "checkpoint.pth", "tiny")
    load_network(saved, model, optimizer)
    several = 0
    for number, (parameter, state) in enumerate(optimizer.state.items()):
        for name in ("exp_avg", "exp_avg_sq"):
            assert state[name].stride() == parameter.stride()
            assert torch.equal(state[name], saved["optimizer"]["state"][number][name])
            several += saved["optimizer"]["state"][number][name].stride() != parameter.stride()
    assert several > 0, "the layouts of the two runs are the same, so nothing was tested"


# logs ---------------------------------------------------------------------------------------------


def test_metrics_file_invalid_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"epoch": 0, "AP": 0.1}\n{"epoch": 1}\n[3]\n{"epoch": "x"}\n{"epoch": 2}\n\xff\xfe\n{"epo'
    )
    file = logger.MetricsFile(path, 2)
    assert path.read_text() == '{"epoch": 0, "AP": 0.1}\n{"epoch": 1}\n'
    file.write(epoch=2, AP=0.5, Head=math.nan)
    line = path.read_text().splitlines()[-1]
    # NaN is not JSON; other programs' readers end at it
    assert json.loads(line, parse_constant=lambda word: pytest.fail(word)) == {
        "epoch": 2,
        "AP": 0.5,
        "Head": None,
    }


def test_logger_file_contains_earlier_lines(tmp_path, capsys):
    logger.start_console()
    log = logging.getLogger("poise.engine.somewhere")
    log.info("before")
    logger.add_file(tmp_path / "run.log")
    log.info("after")
    log.info("hidden", extra=logger.FILE_ONLY)
    with pytest.raises(DataError), logger.errors_in_file():
        raise DataError("a fault\nof two lines")
    assert capsys.readouterr().out == "before\nafter\n"
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO before",
        "INFO after",
        "INFO hidden",
        "ERROR a fault of two lines",
    ]


def test_logger_unexpected_error_logs_traceback(tmp_path, capsys):
    logger.start_console()
    logger.add_file(tmp_path / "run.log")
    with pytest.raises(ZeroDivisionError), logger.errors_in_file():
        raise ZeroDivisionError
    assert (
        "Traceback" in (tmp_path / "run.log").read_text()
        and "Traceback" not in capsys.readouterr().out
    )


def test_run_names_escape_separators(tiny_experiment):
    cfg = config.load(tiny_experiment, ["DATASET.HYBRID_JOINTS_TYPE", "a:b"])
    assert logger.run_names(cfg, "x/y.yaml").as_posix() == "coco_a_b/pose_res2net/y"


def test_checkpoint_contains_config_of_the_run(reference):
    saved = state_of(reference / "checkpoint.pth")
    assert yaml.safe_load(saved["config"])["TRAIN"]["LR"] == 0.001
    assert (saved["experiment"], saved["epoch"], saved["step"]) == ("tiny", 2, 0)


def test_evaluate_released_udp_weights_warn_about_codec(tiny_experiment, capsys):
    """Warn about mmpose's UDP networks, which the zoo names; their own codec gives no warning."""
    from poise.models.weights import zoo

    entry = next(e for e in zoo.read_zoo().values() if "udp" in e.overrides)
    for overrides, warns in ((), True), (("MODEL.TARGET_TYPE", "udp"), False):
        logger.start_console()
        warn_config_mismatch(config.load(tiny_experiment, overrides), Path(entry.file))
        assert (
            "trained with MODEL.TARGET_TYPE udp (tested with gaussian)" in capsys.readouterr().out
        ) == warns


# settings and folders that a run cannot use -------------------------------------------------------


def test_train_last_batch_of_one_sample_raises(tiny_experiment):
    """50 persons in batches of 7, at 32 x 32 pixels: the last feature map is 1 x 1, of which
    batch norm needs two.
    """
    small = ("MODEL.IMAGE_SIZE", "[32, 32]", "MODEL.HEATMAP_SIZE", "[8, 8]")
    with pytest.raises(
        ConfigError,
        match=(
            "TRAIN.BATCH_SIZE_PER_GPU 7: a step of each epoch has a single sample on a device, and"
            " batch norm over maps of 1 x 1 needs two; set another batch size, or a"
            " MODEL.IMAGE_SIZE larger than 32 x 32"
        ),
    ):
        run_train(tiny_experiment, *small, "TRAIN.BATCH_SIZE_PER_GPU", 7)
    assert not folder_of(tiny_experiment).exists()
    run_train(tiny_experiment, *small, "TRAIN.END_EPOCH", 1)


@pytest.mark.parametrize(
    "batch, parts, world, devices, least",
    [
        (8, 1, 1, 1, 2),
        (7, 1, 1, 1, 1),
        (8, 2, 1, 1, 2),
        (4, 3, 1, 1, 2),
        (8, 1, 2, 1, 1),
        (8, 1, 1, 2, 1),
        (25, 1, 1, 1, 25),
        (9, 1, 1, 4, 2),
    ],
)
def test_smallest_part_equals_hand_figures(batch, parts, world, devices, least):
    """batch: of a device, in each part; the last batch has what is left."""
    batches = EpochBatchSampler(
        50, batch * parts * world * devices, shuffle=False, seed=0, shard=Shard(world - 1, world)
    )
    assert smallest_micro_batch(batches, batches.num_batches, parts, devices) == least
    assert smallest_micro_batch(batches, 1, parts, devices) == min(batch, 50)


def test_train_begin_epoch_without_steps_raises(tiny_experiment):
    with pytest.raises(
        ConfigError,
        match="TRAIN.BEGIN_EPOCH 1: nothing is left to train of 4 steps with 4 an epoch",
    ):
        run_train(tiny_experiment, "TRAIN.ITERATIONS", 4, "TRAIN.BEGIN_EPOCH", 1)


def test_train_removed_run_folder_is_restored(tiny_experiment, monkeypatch):
    folder, step = folder_of(tiny_experiment), train.train_step

    def removing(cfg, state, *arguments):
        if (state.progress.epoch, state.progress.step) in ((0, 2), (1, 2)):
            shutil.rmtree(folder)
        return step(cfg, state, *arguments)

    monkeypatch.setattr(train, "train_step", removing)
    run_train(tiny_experiment, "TRAIN.CHECKPOINT_STEPS", 4)
    cfg = config.load(tiny_experiment, ["GPUS", "()", "TRAIN.CHECKPOINT_STEPS", "4"])
    assert (folder / "config.yaml").read_text() == cfg.dump()
    text = (folder / "train.log").read_text()
    assert (
        text.count("the run folder was removed during the run; config.yaml is written again") == 1
        and text.count("done: best score") == 1
    )
    assert [line["epoch"] for line in metrics_of(folder)] == [1]
    assert {"checkpoint.pth", "final_state.pth"} <= {path.name for path in folder.iterdir()}
