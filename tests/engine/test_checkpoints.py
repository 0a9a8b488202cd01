"""Test checkpoints: when they are written, how many are kept, and corrupt files."""

import contextlib
import errno
import os
import shutil
import signal
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from poise import config
from poise.engine import checkpoint, checkpointer, logger, signals, train
from poise.engine.run_logger import TrainLogger
from poise.errors import ConfigError, DataError, PoiseError
from support.runs import (
    TINY,
    in_larger_steps,
    positions,
    run_train,
    same_weights,
    state_of,
    without_settings,
)

pytestmark = pytest.mark.usefixtures("no_tensorboard_images")


@pytest.fixture
def tiny_experiment(tiny_experiment):
    tiny_experiment.write_text(in_larger_steps(tiny_experiment.read_text()))
    return tiny_experiment


@pytest.fixture
def written(monkeypatch):
    """Where a run was when it wrote its checkpoints."""
    found, write = [], checkpoint.save_and_rotate

    def noting(folder, content, *rest, **more):
        found.append((content["epoch"], content["step"]))
        return write(folder, content, *rest, **more)

    monkeypatch.setattr(checkpoint, "save_and_rotate", noting)
    return found


# when and how many --------------------------------------------------------------------------------


def test_checkpoint_steps_writes_and_rotates(tiny_experiment, written):
    """4 steps an epoch; counted over the whole training; the last three are kept, and the
    weights are what they are without them.
    """
    plain = run_train(tiny_experiment)
    shutil.move(plain, tiny_experiment.parent / "plain")
    assert written == [(1, 0), (2, 0)]
    written.clear()
    folder = run_train(tiny_experiment, "TRAIN.CHECKPOINT_STEPS", 3, "TRAIN.CHECKPOINTS_KEPT", 3)
    assert written == [(0, 3), (1, 0), (1, 2), (2, 0)] and positions(folder) == [
        (2, 0),
        (1, 2),
        (1, 0),
    ]
    assert same_weights(
        folder / "final_state.pth", tiny_experiment.parent / "plain" / "final_state.pth"
    )
    # fewer are kept: those beyond are removed
    run_train(
        tiny_experiment, "AUTO_RESUME", True, "TRAIN.CHECKPOINTS_KEPT", 1, "TRAIN.END_EPOCH", 3
    )
    assert positions(folder) == [(3, 0)]


def test_checkpoint_minutes_writes_after_the_interval(tiny_experiment, written, monkeypatch):
    """A clock on which a step takes a quarter of a minute."""
    now, train_step = [0.0], train.train_step

    def slow(*arguments):
        now[0] += 15
        return train_step(*arguments)

    monkeypatch.setattr(checkpointer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(train, "train_step", slow)
    run_train(tiny_experiment, "TRAIN.CHECKPOINT_MINUTES", 0.5, "TRAIN.END_EPOCH", 1)
    assert written == [(0, 2), (0, 4), (1, 0)]
    written.clear()
    run_train(tiny_experiment, "TRAIN.CHECKPOINT_MINUTES", 0, "TRAIN.END_EPOCH", 1)
    assert written == [(1, 0)]


def test_checkpoint_contains_tensors_and_plain_values(tiny_experiment):
    """Tensors and plain values, by which the run can be made again."""
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1, "TRAIN.EMA_DECAY", 0.9, "AMP", "fp16")
    saved = state_of(folder / "checkpoint.pth")  # weights_only: nothing else could be in it
    assert {
        "epoch",
        "step",
        "sums",
        "best",
        "average_best",
        "state_dict",
        "optimizer",
        "schedule",
        "scaler",
        "ema",
        "experiment",
        "seed",
        "threads",
        "config",
        "versions",
        "git",
        "job",
    } <= saved.keys()
    assert (
        saved["versions"]["torch"] == torch.__version__
        and saved["schedule"]["base_rate"] == 0.001
        and saved["scaler"]["scale"] > 0
    )
    assert (
        saved["ema"]["state_dict"].keys() == saved["state_dict"].keys()
        and saved["ema"]["updates"] == 4
    )
    assert f"(git {saved['git']})" in (folder / "train.log").read_text()


def test_resume_checkpoint_without_new_fields_works(tiny_experiment):
    """Without the fields that came later."""
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    saved = state_of(folder / "checkpoint.pth")
    for key in ("average_best", "schedule", "scaler", "versions", "git", "job", "optimizer_kind"):
        del saved[key]
    del saved["sums"]["overflows"]
    torch.save(saved, folder / "checkpoint.pth")
    run_train(tiny_experiment, "AUTO_RESUME", True)
    assert positions(folder)[0] == (2, 0)


def test_resume_other_optimizer_settings_raise(tiny_experiment, capsys):
    wanted = ("TRAIN.OPTIMIZER", "sgd", "TRAIN.WD_NORM_AND_BIAS", False)
    run_train(
        tiny_experiment, *wanted, "TRAIN.WD", 0.1, "TRAIN.MOMENTUM", 0.9, "TRAIN.END_EPOCH", 1
    )
    cfg = config.load(
        tiny_experiment,
        [
            str(word)
            for word in (
                *wanted,
                "TRAIN.WD",
                0.0,
                "TRAIN.MOMENTUM",
                0.5,
                "TRAIN.NESTEROV",
                True,
                "AUTO_RESUME",
                True,
            )
        ],
    )
    with pytest.raises(
        ConfigError,
        match=(
            r"TRAIN.MOMENTUM 0.5 \(was 0.9\), TRAIN.NESTEROV True \(was False\), TRAIN.WD 0.0 \(was"
            r" 0.1\); restore them"
        ),
    ):
        train.build(cfg, str(tiny_experiment), train.SINGLE_PROCESS)
    # of a checkpoint that says nothing of its settings they are the configuration's, not those that
    # PyTorch would keep
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, str(tiny_experiment))
    without_settings(folder / "checkpoint.pth", folder / "checkpoint.pth")
    training = train.build(cfg, str(tiny_experiment), train.SINGLE_PROCESS).state
    assert [
        (group["weight_decay"], group["momentum"], group["nesterov"], group["fused"])
        for group in training.optimizer.param_groups
    ] == [(0.0, 0.5, True, True)] * 2
    assert training.optimizer.state and all(
        "momentum_buffer" in state for state in training.optimizer.state.values()
    )


@pytest.mark.parametrize(
    "before, now", [("adam", "adamw"), ("adamw", "adam_l2"), ("adam_l2", "adam")]
)
def test_resume_other_optimizer_of_same_state_raises(tiny_experiment, before, now):
    """Their states look alike, their steps are not; also of a checkpoint that does not say its
    settings.
    """
    folder = run_train(tiny_experiment, "TRAIN.OPTIMIZER", before, "TRAIN.END_EPOCH", 1)
    with pytest.raises(
        ConfigError, match=f"TRAIN.OPTIMIZER '{now}' .was '{before}'.; restore them"
    ):
        run_train(tiny_experiment, "TRAIN.OPTIMIZER", now, "AUTO_RESUME", True)
    without_settings(folder / "checkpoint.pth", folder / "checkpoint.pth")
    kept = (folder / "checkpoint.pth").read_bytes()
    with pytest.raises(
        PoiseError,
        match=(
            rf"checkpoint.pth: .*\(TRAIN.OPTIMIZER is another: {now}, and was {before}\); remove it"
            r" to start a new run"
        ),
    ) as error:
        run_train(tiny_experiment, "TRAIN.OPTIMIZER", now, "AUTO_RESUME", True)
    assert "\n" not in str(error.value) and (folder / "checkpoint.pth").read_bytes() == kept


# damaged files ------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    """One bit in the middle of a tensor, which torch.load does not notice."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        # the rest is the pickle
        largest = max(
            (member for member in archive.infolist() if "/data/" in member.filename),
            key=lambda member: member.file_size,
        )
    # their lengths stand before the member's bytes
    name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)
    content[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 1
    path.write_bytes(bytes(content))
    torch.load(path, weights_only=True)


def empty(path):
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def stopped_twice(small_set, tmp_path_factory):
    """(experiment, its run folder with the checkpoints of epochs 1 and 2, that of a run of two
    epochs).
    """
    path = tmp_path_factory.mktemp("damaged") / "tiny.yaml"
    path.write_text(
        f"OUTPUT_DIR: {path.parent / 'output'}\nLOG_DIR: {path.parent / 'log'}\n"
        + in_larger_steps(
            TINY.format(
                dataset="coco", root=small_set, train="train2017", test="val2017", joints=17
            )
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLogger, "_show_test", lambda *_: None)
        folder = run_train(path)
    return path, folder


@pytest.fixture
def of_two_epochs(stopped_twice):
    """The same, to be spoiled; put back afterwards."""
    path, folder = stopped_twice
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    yield path, folder
    shutil.rmtree(folder)
    kept.rename(folder)


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_resume_corrupt_newest_uses_the_previous(of_two_epochs, damage, capsys):
    """Resume from the previous checkpoint, log this, and end with equal weights."""
    path, folder = of_two_epochs
    shutil.copy(folder / "final_state.pth", folder / "before.pth")
    damage(folder / "checkpoint.pth")
    damaged = (folder / "checkpoint.pth").read_bytes()
    run_train(path, "AUTO_RESUME", True)
    assert (folder / "checkpoint.pth.damaged").read_bytes() == damaged
    out = capsys.readouterr().out
    assert (
        f"{folder}/checkpoint.pth: corrupt; trying the checkpoint before it" in out
        and f"resuming from {folder}/checkpoint_1.pth" in out
    )
    assert (
        "resuming at epoch 1, step 0" in out
        and same_weights(folder / "final_state.pth", folder / "before.pth")
        and positions(folder) == [(2, 0), (1, 0)]
    )


def test_resume_all_corrupt_raises_and_keeps_files(of_two_epochs):
    """Start no new run that overwrites them."""
    path, folder = of_two_epochs
    for file in folder.glob("checkpoint*.pth"):
        cut(file)
    before = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with pytest.raises(
        DataError,
        match=(
            "checkpoint.pth: not a checkpoint of PyTorch, or damaged .*; remove it to start a new"
            " run"
        ),
    ):
        run_train(path, "AUTO_RESUME", True)
    assert {file: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


def failing_once(call, error, name="checkpoint.pth"):
    """A function that fails with the error for one file, as where a network disk is away, and
    does its work for others.
    """

    def run(path, *rest, **more):
        if str(path).endswith(f"/{name}"):
            raise error
        return call(path, *rest, **more)

    return run


@pytest.mark.parametrize(
    "error, cause",
    [
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (MemoryError(), "no memory left"),
    ],
)
@pytest.mark.parametrize("place", ["torch", "zip", "stat"])
def test_resume_unreadable_file_is_not_corrupt(of_two_epochs, monkeypatch, error, cause, place):
    """The run ends, and nothing is lost: the next start has the newest again."""
    path, folder = of_two_epochs
    before = {file: file.read_bytes() for file in folder.glob("*.pth")}
    with monkeypatch.context() as patch:
        owner, name = {
            "torch": (torch, "load"),
            "zip": (checkpoint.zipfile, "ZipFile"),
            "stat": (type(path), "is_file"),
        }[place]
        patch.setattr(owner, name, failing_once(getattr(owner, name), error))
        with pytest.raises(
            DataError,
            match=rf"checkpoint.pth: cannot be read \({cause}\); the file may be whole: try again",
        ) as raised:
            run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 3)
    assert "\n" not in str(raised.value) and not isinstance(
        raised.value, checkpoint.CorruptCheckpointError
    )
    assert {file: file.read_bytes() for file in folder.glob("*.pth*")} == before
    assert (
        train.find_checkpoint(config.load(path, ["AUTO_RESUME", "True"]), str(path), folder, False)[
            "epoch"
        ]
        == 2
    )


def _other_moments(content):
    next(iter(content["optimizer"]["state"].values()))["exp_avg"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    "change, part",
    [
        (_other_moments, "the optimizer's exp_avg has another shape than its parameter"),
        (lambda content: content.update(genotype=torch.zeros(3)), "does not fit"),
        (
            lambda content: content.update(ema={}, optimizer_kind="sgd"),
            "TRAIN.OPTIMIZER is another",
        ),
        (lambda content: content["best"].update(score="x"), "does not fit"),
        (lambda content: content["optimizer"].update(param_groups=[]), "does not fit"),
        (lambda content: content.update(seed=-1), "has seed -1, which no run has"),
    ],
)
def test_resume_edited_checkpoint_raises(of_two_epochs, change, part):
    """A line, whatever is missing in it or of another kind; nothing is begun."""
    path, folder = of_two_epochs
    content = torch.load(folder / "checkpoint.pth", weights_only=True)
    change(content)
    torch.save(content, folder / "checkpoint.pth")
    with pytest.raises(PoiseError, match=part) as raised:
        run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 3)
    assert "checkpoint.pth" in str(raised.value) and "remove it to start a new run" in str(
        raised.value
    )


def test_resume_edited_average_raises(of_two_epochs):
    path, folder = of_two_epochs
    content = torch.load(folder / "checkpoint.pth", weights_only=True)
    torch.save({**content, "ema": {}}, folder / "checkpoint.pth")
    with pytest.raises(PoiseError, match="does not fit the network"):
        run_train(path, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 3, "TRAIN.EMA_DECAY", 0.9)


def test_read_checkpoint_corrupt_zip_header_raises(tmp_path):
    """zipfile raises errors of many kinds, of which each is damage."""
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.arange(64.0)}, whole)
    content = whole.read_bytes()
    kinds = set()
    for place in range(len(content) - 200, len(content)):
        file = tmp_path / "spoiled.pth"
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            checkpoint.load(file, "x")
        # a plain one where only a comment's length or a date was hit: then it is no checkpoint
        except DataError as error:
            kinds.add(type(error))
    assert checkpoint.CorruptCheckpointError in kinds


def test_resume_older_checkpoint_keeps_the_newer(of_two_epochs, capsys):
    """The newer one is neither damaged nor lost."""
    path, folder = of_two_epochs
    newer = (folder / "checkpoint.pth").read_bytes()
    run_train(path, "TRAIN.CHECKPOINT", folder / "checkpoint_1.pth")
    assert (
        (folder / "checkpoint.pth.unused").read_bytes() == newer
        and f"{folder}/checkpoint.pth is now checkpoint.pth.unused" in capsys.readouterr().out
    )


def test_resume_run_folder_by_other_path_rotates(of_two_epochs, tmp_path, monkeypatch):
    """What is gone on with is the run's own, also through a link or from another current folder:
    the one before it is kept.
    """
    path, folder = of_two_epochs
    (tmp_path / "link").symlink_to(folder.parent)
    monkeypatch.chdir(folder.parent)
    assert checkpoint.same_folder(
        tmp_path / "link" / folder.name, folder
    ) and checkpoint.same_folder(Path(folder.name), folder)
    assert not checkpoint.same_folder(folder.parent, folder)
    run_train(
        path,
        "TRAIN.CHECKPOINT",
        tmp_path / "link" / folder.name / "checkpoint.pth",
        "TRAIN.END_EPOCH",
        3,
    )
    assert positions(folder) == [(3, 0), (2, 0)]


def test_resume_other_experiment_raises(of_two_epochs):
    """The one before it is not looked at."""
    path, folder = of_two_epochs
    torch.save(
        {**state_of(folder / "checkpoint.pth"), "experiment": "another"}, folder / "checkpoint.pth"
    )
    with pytest.raises(DataError, match="a checkpoint of experiment another, not of tiny"):
        run_train(path, "AUTO_RESUME", True)
    assert len(positions(folder)) == 2


def test_resume_new_run_ignores_older_checkpoints(of_two_epochs):
    """Else its damaged newest would be followed by another run's. Those stay where they are."""
    path, folder = of_two_epochs
    new = run_train(path, "TRAIN.END_EPOCH", 1)
    assert positions(new) == [(1, 0)] and positions(folder) == [(2, 0), (1, 0)]
    shutil.rmtree(new)


def test_save_killed_at_any_moment_leaves_a_valid_checkpoint(tmp_path, monkeypatch):
    """After each change of the folder the newest or the one before it can be read, and the next
    writing leaves order.
    """

    def contents():
        found = []
        for number in checkpoint.checkpoint_numbers(tmp_path):
            found.append(int(state_of(tmp_path / checkpoint.checkpoint_name(number))["number"]))
        return found

    class Killed(BaseException):
        pass

    calls = {"replace": os.replace, "unlink": type(tmp_path).unlink}
    for moment in range(1, 12):
        for file in tmp_path.iterdir():
            file.unlink()
        for number in (1, 2, 3):
            checkpoint.save_and_rotate(tmp_path, {"number": number}, 3, first=number == 1)
        assert contents() == [3, 2, 1]
        left = [moment]

        def counted(call):
            def run(*arguments, **more):
                if (
                    os.path.basename(str(arguments[0])).startswith("checkpoint")
                    or call is calls["replace"]
                ):
                    left[0] -= 1
                    if not left[0]:
                        raise Killed
                return call(*arguments, **more)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(calls["replace"]))
            patch.setattr(type(tmp_path), "unlink", counted(calls["unlink"]))
            with contextlib.suppress(Killed):
                checkpoint.save_and_rotate(tmp_path, {"number": 4}, 3, first=False)
        found = contents()
        assert found[0] in (3, 4) and found == sorted(found, reverse=True) and len(found) >= 2, (
            moment,
            found,
        )
        checkpoint.cleanup_stale(
            tmp_path,
            tmp_path / checkpoint.checkpoint_name(checkpoint.checkpoint_numbers(tmp_path)[0]),
        )
        checkpoint.save_and_rotate(tmp_path, {"number": 5}, 3, first=False)
        assert (
            contents()[0] == 5
            and contents() == sorted(contents(), reverse=True)
            and len(contents()) <= 3
        )
        if not left[0] > 0:
            continue
        assert found[0] == 4, "not killed at all: the writing was over"
        break
    else:
        pytest.fail("the writing had more moments than were looked at")


def test_train_removes_partial_files(tiny_experiment):
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    for name in (
        ".checkpoint_next.pth.123.part",
        ".model_best.pth.77.part",
        "checkpoint_next.pth",
        ".metrics.jsonl.5.part",
        ".config.yaml.5.part",
        "results/.keypoints_val2017_results_gt_boxes.json.8.part",
        ".train.json.0123456789abcdef.part",
    ):
        (folder / name).write_bytes(b"half")
    for name in ("notes.part", ".notes.part"):
        (folder / name).write_bytes(b"the user's")
    run_train(tiny_experiment, "AUTO_RESUME", True, "TRAIN.END_EPOCH", 1)
    assert sorted(
        path.name for path in folder.rglob("*") if "part" in path.name or "next" in path.name
    ) == [".notes.part", "notes.part"]


def test_save_syncs_folder_before_removing_old_files(tmp_path, monkeypatch):
    """After a renaming the folder is flushed, else a power cut could leave neither the new name
    nor the old file.
    """
    events, fsync, replace, unlink = [], os.fsync, os.replace, type(tmp_path).unlink

    def flushed(handle):
        events.append("flush folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "flush file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(
        os,
        "replace",
        lambda old, new: (events.append(f"rename {os.path.basename(new)}"), replace(old, new)),
    )
    monkeypatch.setattr(
        type(tmp_path),
        "unlink",
        lambda path, **more: (
            events.append(f"remove {path.name}") if path.exists() else None,
            unlink(path, **more),
        ),
    )
    for number in (1, 2):
        events.clear()
        checkpoint.save_and_rotate(tmp_path, {"number": number}, 1, first=number == 1)
    assert events == [
        "flush file",
        "rename checkpoint_next.pth",
        "flush folder",
        "rename checkpoint_1.pth",
        "rename checkpoint.pth",
        "flush folder",
        "remove checkpoint_1.pth",
    ]


# signals under torchrun ---------------------------------------------------------------------------


def test_interrupt_repeated_signal_within_a_second_is_ignored(monkeypatch):
    """torchrun passes on what the whole process group has got; later it is a second signal."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    now, ended = [100.0], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.signal, "raise_signal", ended.append)
    with signals.GracefulStop() as asking:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        assert asking.stop_requested and not ended
        now[0] += 1
        asking._handle(signal.SIGTERM, None)
        assert not ended
        now[0] += 6
        asking._handle(signal.SIGTERM, None)
        assert ended == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, asking._handle)


def test_stop_run_from_a_thread_requests_stop():
    """By a thread that has seen the launcher end."""
    assert not signals.request_stop()
    with signals.GracefulStop() as asking:
        assert signals.request_stop() and asking.stop_requested
    assert not signals.request_stop()


# restarts -----------------------------------------------------------------------------------------


def test_resume_restarted_job_uses_its_own_checkpoint(tiny_experiment, monkeypatch, capsys):
    """Without AUTO_RESUME too, but not that of another job."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    assert state_of(folder / "checkpoint.pth")["job"] == "job 1"
    cfg, path = config.load(tiny_experiment), str(tiny_experiment)
    find = train.find_checkpoint
    assert not checkpoint.is_restarted() and find(cfg, path, folder, False) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert checkpoint.is_restarted() and find(cfg, path, folder, True)["epoch"] == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 2")
    assert find(cfg, path, folder, True) is None
    assert (
        find(config.load(tiny_experiment, ["AUTO_RESUME", "True"]), path, folder, True)["epoch"]
        == 1
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert str(os.getppid()) in checkpoint.job_id()
    assert (
        logger.format_duration(50) == "50 seconds"
        and logger.format_duration(720) == "12 minutes"
        and logger.format_duration(9000) == "2.5 hours"
        and logger.format_duration(864_000) == "10.0 days"
    )
