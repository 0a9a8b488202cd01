"""Test full disks: each run ends with one line and earlier files stay valid."""

import errno
import shutil
import signal
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from poise import config
from poise.engine import logger
from poise.errors import DataError
from support.runs import (
    folder_of,
    in_larger_steps,
    positions,
    run_train,
    same_weights,
)

pytestmark = pytest.mark.usefixtures("no_tensorboard_images")


@pytest.fixture
def tiny_experiment(tiny_experiment):
    tiny_experiment.write_text(in_larger_steps(tiny_experiment.read_text()))
    return tiny_experiment


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of the given size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
        )
        if done.returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_train_full_disk_keeps_checkpoints_and_resumes(tiny_experiment, small_disk):
    """The run ends with one line, earlier checkpoints are valid, and it resumes with more space."""
    undisturbed = run_train(tiny_experiment)
    size = (undisturbed / "checkpoint.pth").stat().st_size
    disk = small_disk(8 * size)
    overrides = ("OUTPUT_DIR", disk)
    folder = disk / "coco" / "pose_res2net" / "tiny"
    run_train(tiny_experiment, *overrides, "TRAIN.END_EPOCH", 1)
    room = shutil.disk_usage(disk).free
    (disk / "others").write_bytes(bytes(room - size // 2))
    with pytest.raises(
        DataError,
        match=(
            r"checkpoint_next.pth: cannot be written \(No space left on device: the disk at"
            rf" {disk}\); the file before it, "
            "if any, is kept"
        ),
    ) as error:
        run_train(tiny_experiment, *overrides, "AUTO_RESUME", True, "TRAIN.CHECKPOINT_STEPS", 1)
    assert (
        "\n" not in str(error.value)
        and positions(folder) == [(1, 0)]
        and not list(folder.glob(".*.part"))
    )
    (disk / "others").unlink()
    run_train(tiny_experiment, *overrides, "AUTO_RESUME", True)
    assert same_weights(folder / "final_state.pth", undisturbed / "final_state.pth") and positions(
        folder
    ) == [(2, 0), (1, 0)]


@contextmanager
def within(seconds):
    """Fail a test that would wait forever."""

    def late(*_):
        raise TimeoutError(f"not done in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_train_full_log_disk_ends_with_checkpoint(tiny_experiment, small_disk, capfd):
    """LOG_DIR on a full disk: one line, a checkpoint, no waiting for TensorBoard's thread."""
    disk = small_disk(16 * 1024)
    with within(120), pytest.raises(DataError) as error:
        run_train(
            tiny_experiment,
            "LOG_DIR",
            disk,
            "PRINT_FREQ",
            1,
            "TRAIN.END_EPOCH",
            400,
            "TRAIN.EVAL_INTERVAL",
            400,
            "TRAIN.LR_STEP",
            [400],
        )
    folder = folder_of(tiny_experiment)
    assert str(error.value).startswith(
        f"{disk}/coco/pose_res2net/tiny_"
    ) and "cannot be written (No space left on device); free disk space, or set LOG_DIR" in str(
        error.value
    )
    assert (
        f"{folder}/checkpoint.pth is written; resume with the same command and AUTO_RESUME True"
        in str(error.value)
        and "\n" not in str(error.value)
    )
    (epoch, step), *_ = positions(folder)
    assert 0 < 4 * epoch + step < 1600 and capfd.readouterr().err == ""
    run_train(
        tiny_experiment, "AUTO_RESUME", True, "TRAIN.END_EPOCH", epoch + 1, "TRAIN.LR_STEP", [400]
    )
    assert f"resuming at epoch {epoch}, step {step}" in (folder / "train.log").read_text()


def test_train_failing_log_at_the_end_warns(tiny_experiment, monkeypatch, capfd):
    """Only a warning, because the weights are written."""
    monkeypatch.setattr(
        "tensorboardX.record_writer.RecordWriter.flush",
        lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    monkeypatch.setattr(logger.TensorBoard, "_raise_error", lambda _: None)
    with within(120):
        folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    out, err = capfd.readouterr()
    assert (
        (folder / "final_state.pth").exists()
        and out.count("the TensorBoard page cannot be written (No space left on device)") == 1
        and err == ""
    )


def test_tensorboard_ended_thread_raises(tiny_experiment):
    board = logger.TensorBoard(config.load(tiny_experiment), str(tiny_experiment))
    board._events._worker.stop()
    for call in (
        lambda: board.add_scalars({"a": 1.0}, 0),
        lambda: board.add_image("a", np.zeros((2, 2, 3), np.uint8), 0),
    ):
        with pytest.raises(DataError, match="the TensorBoard page cannot be written"):
            call()
    with within(20):
        board.close()


def test_train_full_disk_of_debug_images_ends_with_checkpoint(tiny_experiment, monkeypatch):
    """An error of the image thread ends the run with a checkpoint too."""
    monkeypatch.setattr(
        "poise.visualization.draw.save_image",
        lambda path, _: (_ for _ in ()).throw(
            OSError(errno.ENOSPC, "No space left on device", str(path))
        ),
    )
    with (
        within(120),
        pytest.raises(
            DataError,
            match=(
                "No space left on device.*; free disk space, or set DEBUG.DEBUG False;"
                " .*checkpoint.pth is written"
            ),
        ),
    ):
        run_train(
            tiny_experiment,
            "DEBUG.DEBUG",
            True,
            "DEBUG.SAVE_BATCH_IMAGES_GT",
            True,
            "PRINT_FREQ",
            1,
            "TRAIN.END_EPOCH",
            50,
            "TRAIN.EVAL_INTERVAL",
            50,
        )
    assert positions(folder_of(tiny_experiment))[0] < (50, 0)
