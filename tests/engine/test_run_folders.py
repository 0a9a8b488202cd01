"""Test run folders: protection of results, settings that may change on resume, the lock."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from poise import config
from poise.engine import checkpoint, evaluate, logger, run_folder, train
from poise.engine.resuming import IN_SEARCH, IN_TRAINING, check_settings, resumes_in
from poise.engine.run_logger import TrainLogger
from poise.errors import ConfigError
from support.paths import ROOT
from support.runs import (
    TINY,
    folder_of,
    in_larger_steps,
    metrics_of,
    run_train,
    state_of,
)

pytestmark = pytest.mark.usefixtures("no_tensorboard_images")


def experiment(folder, small_set):
    path = folder / "tiny.yaml"
    text = in_larger_steps(
        TINY.format(dataset="coco", root=small_set, train="train2017", test="val2017", joints=17)
    )
    path.write_text(f"OUTPUT_DIR: {folder / 'output'}\nLOG_DIR: {folder / 'log'}\n{text}")
    return path


@pytest.fixture(scope="module")
def once(small_set, tmp_path_factory):
    """The run folder of one epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLogger, "_show_test", lambda *_: None)
        return run_train(
            experiment(tmp_path_factory.mktemp("once"), small_set), "TRAIN.END_EPOCH", 1
        )


@pytest.fixture
def finished(once, small_set, tmp_path):
    """(experiment, its folder with a finished run of one epoch)."""
    path = experiment(tmp_path, small_set)
    shutil.copytree(once, folder_of(path))
    return path, folder_of(path)


def contents(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def loaded(path, *overrides):
    return config.load(path, ["GPUS", "()", *map(str, overrides)])


def chosen(path, *overrides, restarted=False):
    """The name of the folder that a training takes; '' is the experiment's."""
    cfg = loaded(path, *overrides)
    with run_folder.Lock() as lock:
        return run_folder.choose_run_name(
            cfg,
            str(path),
            run_folder.TRAINING,
            lambda folder: resumes_in(cfg, str(path), folder, restarted),
            lock,
        )


# nothing is replaced ------------------------------------------------------------------------------


def test_run_folder_without_resume_is_new(finished, capsys):
    path, folder = finished
    before = contents(folder)
    new = run_train(path, "TRAIN.END_EPOCH", 1, "TRAIN.LR", 0.01)
    assert (
        new == folder.with_name("tiny-2")
        and contents(folder) == before
        and len(metrics_of(new)) == 1
    )
    message = (
        f"{folder} has the results of another run, which are kept: this run has RUN_NAME tiny-2"
    )
    assert (
        capsys.readouterr().out.count(message) == 1 and message in (new / "train.log").read_text()
    )
    (board,) = (path.parent / "log" / "coco" / "pose_res2net").iterdir()
    assert (
        board.name.startswith("tiny-2_") and config.load(new / "config.yaml").RUN_NAME == "tiny-2"
    )
    assert (
        run_folder.resume_hint(config.load(new / "config.yaml").RUN_NAME)
        == "resume with the same command and AUTO_RESUME True RUN_NAME tiny-2"
    )
    # tools/test.py finds it by the same key
    cfg = loaded(path, "RUN_NAME", "tiny-2")
    assert (
        evaluate.find_weights(cfg, path.parent / "output" / logger.run_names(cfg, str(path)))
        == new / "model_best.pth"
    )
    assert (new / "train.log").read_text().count("test this run with RUN_NAME tiny-2\n") == 1


def test_evaluate_weights_of_earlier_run_warns(finished, caplog):
    path, folder = finished
    cfg = loaded(path)
    runs = {"tiny-2": "tiny-2", "tiny-10": "tiny-10", "tiny-11": "", "tiny-12": "tiny-12"}
    for name, run_name in runs.items():
        shutil.copytree(folder, folder.with_name(name))
        file = folder.with_name(name) / "config.yaml"
        file.write_text(
            file.read_text().replace("RUN_NAME: ''", f"RUN_NAME: {run_name or repr('')}")
        )
    for file in folder.with_name("tiny-12").glob("*.pth"):  # a run that has no weights yet
        file.unlink()
    assert evaluate.find_weights(cfg, folder) == folder / "model_best.pth"
    later = folder.with_name("tiny-10")  # tiny-11 is an experiment of that name
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: a later run of this experiment has its weights in {later}; set RUN_NAME "
        "tiny-10 to test them"
    ]
    caplog.clear()
    evaluate.find_weights(loaded(path, "RUN_NAME", "tiny"), folder)
    evaluate.find_weights(loaded(path, "TEST.MODEL_FILE", folder / "final_state.pth"), folder)
    evaluate.find_weights(loaded(path, "RUN_NAME", "tiny-2"), folder.with_name("tiny-2"))
    assert not caplog.records


@pytest.mark.parametrize(
    "left, overrides, wanted",
    [
        ((), (), ""),
        (("train.log", "config.yaml"), (), ""),
        (("metrics.jsonl",), (), "tiny-2"),
        (("model_best.pth",), (), "tiny-2"),
        (("final_state_ema.pth",), (), "tiny-2"),
        (("checkpoint_1.pth",), (), "tiny-2"),
        (("checkpoint_1.pth",), ("AUTO_RESUME", True), ""),
        (("checkpoint.pth",), ("TRAIN.RESUME", True), ""),
        (("model_best.pth",), ("AUTO_RESUME", True), "tiny-2"),
        (("checkpoint.pth",), ("RUN_NAME", "other"), "other"),
        (("empty/metrics.jsonl",), (), ""),
    ],
)
def test_run_folder_with_results_is_used_only_to_resume(
    left, overrides, wanted, small_set, tmp_path
):
    path = experiment(tmp_path, small_set)
    for name in left:
        file = folder_of(path) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (folder_of(path) / "metrics.jsonl").touch() if folder_of(path).is_dir() else None
    assert chosen(path, *overrides) == wanted


def test_run_folder_suffixes_are_counted_and_resumed(finished):
    path, folder = finished
    for number in (2, 3):
        shutil.copytree(folder, folder.with_name(f"tiny-{number}"))
    assert chosen(path) == "tiny-4" and chosen(path, "AUTO_RESUME", True) == ""
    assert (
        chosen(path, "RUN_NAME", "tiny-3", "AUTO_RESUME", True) == "tiny-3"
        and chosen(path, "RUN_NAME", "tiny-3") == "tiny-3-2"
    )
    assert (
        chosen(path, "TRAIN.CHECKPOINT", folder.with_name("tiny-3") / "checkpoint.pth") == "tiny-3"
    )
    # a run whose checkpoint was removed starts again in a new folder, and resumes there
    for file in folder.glob("checkpoint*"):
        file.unlink()
    assert chosen(path, "AUTO_RESUME", True) == "tiny-2"


def test_run_folder_restarted_job_uses_its_own(finished, monkeypatch):
    """Without AUTO_RESUME too."""
    path, folder = finished
    for number in (2, 3):
        shutil.copytree(folder, folder.with_name(f"tiny-{number}"))
    torch.save(
        {**state_of(folder / "checkpoint.pth"), "job": "mine"},
        folder.with_name("tiny-2") / "checkpoint.pth",
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert chosen(path, restarted=True) == "tiny-2" and chosen(path) == "tiny-4"


def test_run_folder_restarted_job_skips_folders_of_others(finished, monkeypatch):
    path, folder = finished
    for number in (2, 3):
        shutil.copytree(folder, folder.with_name(f"tiny-{number}"))
    for file in folder.glob("checkpoint*"):
        file.write_bytes(b"damaged")
    state = state_of(folder.with_name("tiny-2") / "checkpoint.pth")
    files = [folder.with_name(f"tiny-{number}") / "checkpoint.pth" for number in (2, 3)]
    torch.save({**state, "experiment": "other"}, files[0])
    torch.save({**state, "job": "mine"}, files[1])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert chosen(path, restarted=True) == "tiny-3"
    files[1].unlink()
    (folder.with_name("tiny-3") / "model_best.pth").touch()
    assert chosen(path, restarted=True) == "tiny-4"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a\\b", "a\nb"])
def test_load_invalid_run_name_raises(name, small_set, tmp_path):
    with pytest.raises(ConfigError, match="RUN_NAME must be a name for a folder, not a path"):
        loaded(experiment(tmp_path, small_set), "RUN_NAME", name)


# finished runs ------------------------------------------------------------------------------------


def test_resume_finished_run_writes_nothing(finished, capsys):
    path, folder = finished
    before = contents(folder)
    assert run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 1, "WORKERS", 2) == folder
    output = capsys.readouterr().out
    best = state_of(folder / "checkpoint.pth")["best"]["score"]
    assert (
        f"{folder}: this run is finished: best score {best:.4f} at epoch 0 of 1, with the settings"
        " of its config.yaml; nothing is trained or written" in output
    )
    assert (
        "settings that differ from the checkpoint's and may change: " in output
        and "WORKERS 2 (was 0)" in output
        and "done: " not in output
    )
    assert contents(folder) == before and not (path.parent / "log").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("TRAIN.LR", 0.01),
        ("MODEL.TARGET_TYPE", "udp"),
        ("DATASET.ROT_FACTOR", 5),
        ("DATASET.COLOR_RGB", True, "TRAIN.END_EPOCH", 2),
        ("SEED", 1),
        ("TRAIN.BATCH_SIZE_PER_GPU", 12),
        ("TRAIN.ACCUMULATE", 2),
        ("AMP", "bf16"),
        ("DATASET.ROOT", "elsewhere"),
        ("TRAIN.EMA_DECAY", 0.9),
    ],
)
def test_resume_finished_run_other_settings_raises(finished, overrides):
    path, folder = finished
    before = contents(folder)
    if overrides[0] == "DATASET.ROOT":
        root = path.parent / overrides[1]
        root.symlink_to(loaded(path).DATASET.ROOT)
        overrides = (overrides[0], root)
    with pytest.raises(
        ConfigError,
        match=(
            rf"checkpoint.pth: this run was trained with other settings: {overrides[0]} .*; restore"
            r" them, or start a new run"
        ),
    ) as error:
        run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 1, *overrides)
    assert error.value.status == 2 and "\n" not in str(error.value) and contents(folder) == before


def test_resume_finished_run_shorter_length_raises(finished):
    path, folder = finished
    run_train(path, "AUTO_RESUME", True, "TRAIN.BATCH_SIZE_PER_GPU", 50)
    assert state_of(folder / "checkpoint.pth")["epoch"] == 2
    with pytest.raises(ConfigError, match=r"other settings: TRAIN.END_EPOCH 1 \(was 2\); restore"):
        run_train(
            path, *["AUTO_RESUME", "True", "TRAIN.BATCH_SIZE_PER_GPU", "50", "TRAIN.END_EPOCH", "1"]
        )


def test_resume_finished_run_best_by_loss_is_logged(finished, capsys):
    path, folder = finished
    state = state_of(folder / "checkpoint.pth")
    torch.save({**state, "best": {"score": -1.5, "epoch": 0}}, folder / "checkpoint.pth")
    run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 1)
    assert "is finished: best score validation loss 0.500000 (the metric" in capsys.readouterr().out


@pytest.mark.parametrize("older", [False, True])
def test_resume_killed_before_final_weights_writes_them(finished, older):
    """They may also be there from an earlier end of the same run."""
    path, folder = finished
    wanted = state_of(folder / "final_state.pth")
    (folder / "final_state.pth").unlink()
    if older:
        torch.save(
            {name: torch.zeros_like(value) for name, value in wanted.items()},
            folder / "final_state.pth",
        )
    origin = contents(folder)[Path("config.yaml")]
    run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 1, "PRINT_FREQ", 3)
    assert checkpoint.file_has_weights(folder / "final_state.pth", model_of(path, wanted))
    assert contents(folder)[Path("config.yaml")] == origin


def model_of(path, state):
    from poise.models import build_model

    model = build_model(loaded(path))
    model.load_state_dict(state)
    return model


def compared(path, before, now, ignored=IN_TRAINING, epoch=1, step=0):
    saved = {
        "path": "checkpoint.pth",
        "config": loaded(path, *before).dump(),
        "epoch": epoch,
        "step": step,
    }
    check_settings(saved, loaded(path, *now), ignored)


@pytest.mark.parametrize(
    "before, now, epoch, step",
    [
        ((), ("WORKERS", 3, "PRINT_FREQ", 5, "CPU_THREADS", 2, "TRAIN.CHECKPOINTS_KEPT", 5), 1, 0),
        ((), ("OUTPUT_DIR", "a", "DATASET.ROOT", "b", "RUN_NAME", "c"), 1, 0),
        ((), ("TRAIN.END_EPOCH", 9), 1, 0),
        ((), ("TRAIN.END_EPOCH", 9, "TRAIN.LR_STEP", [1, 5]), 4, 3),
        ((), ("TRAIN.LR_STEP", [2]), 1, 0),
        ((), ("TRAIN.BATCH_SIZE_PER_GPU", 4, "TRAIN.ACCUMULATE", 2), 1, 0),
        ((), ("TRAIN.EMA_DECAY", 0.9), 1, 0),
        ((), ("SEARCH.SEED", 8), 1, 0),
        (("MODEL.PRETRAINED", "a/w.pth"), ("MODEL.PRETRAINED", "b/w.pth"), 1, 0),
        (
            ("TRAIN.LR_SCHEDULE", "linear", "TRAIN.ITERATIONS", 90),
            ("TRAIN.LR_SCHEDULE", "linear", "TRAIN.ITERATIONS", 90, "TRAIN.END_EPOCH", 9),
            1,
            0,
        ),
    ],
)
def test_resume_allowed_settings_are_logged(small_set, tmp_path, caplog, before, now, epoch, step):
    with caplog.at_level("INFO", logger="poise"):
        compared(experiment(tmp_path, small_set), before, now, epoch=epoch, step=step)
    logged = [key for key in now[::2] if f"{key} " in caplog.text]
    unchanged = {
        key
        for key in now[::2]
        if key in before and before[before.index(key) + 1] == now[now.index(key) + 1]
    }
    assert logged == [key for key in now[::2] if key not in unchanged | {"RUN_NAME", "SEARCH.SEED"}]


@pytest.mark.parametrize(
    "before, now, epoch, step",
    [
        ((), ("TRAIN.LR_STEP", [2]), 1, 1),
        ((), ("TRAIN.LR_STEP", [1, 3]), 4, 0),
        ((), ("TRAIN.LR_FACTOR", 0.5), 1, 0),
        ((), ("TRAIN.WD", 0.5), 1, 0),
        ((), ("DATASET.FLIP", False), 1, 0),
        (
            ("TRAIN.LR_SCHEDULE", "cosine"),
            ("TRAIN.LR_SCHEDULE", "cosine", "TRAIN.END_EPOCH", 9),
            1,
            0,
        ),
        (("TRAIN.EMA_DECAY", 0.9), ("TRAIN.EMA_DECAY", 0.99), 1, 0),
        ((), ("MODEL.EXTRA.DECONV_WITH_BIAS", True), 1, 0),
        ((), ("TEST.FLIP_TEST", False), 1, 0),
        (("MODEL.PRETRAINED", "a/w.pth"), ("MODEL.PRETRAINED", "a/v.pth"), 1, 0),
        ((), ("DATASET.MIX.more.FILE", "coco", "DATASET.MIX.more.SET", "val2017"), 1, 0),
        ((), ("SYNC_BN", True), 1, 0),
    ],
)
def test_resume_result_changing_settings_raise(small_set, tmp_path, before, now, epoch, step):
    with pytest.raises(ConfigError, match="this run was trained with other settings: "):
        compared(experiment(tmp_path, small_set), before, now, epoch=epoch, step=step)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_resume_other_length_names_the_schedule(small_set, tmp_path, kind):
    before = ("TRAIN.LR_SCHEDULE", kind)
    message = rf"TRAIN.END_EPOCH 9 \(was 2; TRAIN.LR_SCHEDULE {kind} depends on the length\);"
    with pytest.raises(ConfigError, match=message):
        compared(experiment(tmp_path, small_set), before, (*before, "TRAIN.END_EPOCH", 9))


def test_resume_search_compares_its_own_settings(small_set, tmp_path):
    path = experiment(tmp_path, small_set)
    compared(path, (), ("TRAIN.LR", 0.5, "SEED", 4, "SEARCH.EPOCHS", 90), IN_SEARCH)
    for now in (
        ("SEARCH.W_LR", 0.5),
        ("TRAIN.SHUFFLE", False),
        ("SEARCH.SEED", 4),
        ("LOSS.USE_TARGET_WEIGHT", False),
    ):
        with pytest.raises(ConfigError, match=now[0]):
            compared(path, (), now, IN_SEARCH)


def test_resume_older_config_is_compared_with_defaults(small_set, tmp_path):
    """A key that it does not have is at its default, and one that is no more is passed over."""
    import yaml

    path = experiment(tmp_path, small_set)
    values = yaml.safe_load(loaded(path).dump())
    del values["AMP"], values["RUN_NAME"], values["DATASET"]["FLIP"]
    values["TRAIN"]["GONE"] = 3
    saved = {"path": "checkpoint.pth", "config": yaml.safe_dump(values), "epoch": 1, "step": 0}
    check_settings(saved, loaded(path), IN_TRAINING)
    with pytest.raises(ConfigError, match="DATASET.FLIP False .was True."):
        check_settings(saved, loaded(path, "DATASET.FLIP", False), IN_TRAINING)


# the lock -----------------------------------------------------------------------------------------


def test_lock_of_running_run_raises_and_ends_with_sigkill(small_set, tmp_path):
    """The first run's worker process does not keep the lock."""
    path = experiment(tmp_path, small_set)
    words = [
        "GPUS",
        "()",
        "WORKERS",
        "1",
        "PRINT_FREQ",
        "1",
        "TRAIN.END_EPOCH",
        "5000",
        "TRAIN.CHECKPOINT_STEPS",
        "1",
        "TEST.PICTURES",
        "0",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/train.py"), "--cfg", str(path), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        assert any(line.startswith("epoch 0/5000 [3/") for line in process.stdout)
        folder = folder_of(path)
        for overrides in ((), ("AUTO_RESUME", True)):
            with pytest.raises(
                ConfigError,
                match=(
                    rf"{folder}: in use by process {process.pid} on {os.uname().nodename}; wait"
                    r" until it ends"
                ),
            ) as error:
                run_train(path, *overrides)
            assert error.value.status == 2 and "\n" not in str(error.value)
        assert {one.name for one in folder.parent.iterdir()} == {"tiny"}
        process.kill()
        process.wait(20)
        epoch = state_of(folder / "checkpoint.pth")["epoch"]
        assert run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", epoch + 1) == folder
        assert len(metrics_of(folder)) == epoch + 1 and not (folder / run_folder.NAME).exists()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_lock_search_takes_it(small_set, tmp_path):
    from poise.search import run

    path = experiment(tmp_path, small_set)
    cfg = loaded(path, "MODEL.NAME", "posenas")
    folder = path.parent / "output" / logger.run_names(cfg, str(path))
    folder.mkdir(parents=True)
    with run_folder.Lock() as lock:
        lock.take(folder)
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on "):
            run.run(cfg, str(path), ["search"])
    assert not list(folder.iterdir())


def test_lock_simultaneous_second_run_raises(finished, monkeypatch):
    """Both have found the folder free."""
    path, folder = finished
    kept = folder.rename(folder.with_name("elsewhere"))
    build = train.build

    def late(*words):
        shutil.copytree(kept, folder)
        return build(*words)

    monkeypatch.setattr(train, "build", late)
    with pytest.raises(
        ConfigError, match="another run has used it in the meantime; start this run again"
    ):
        run_train(path)
    assert contents(folder) == contents(kept)
