"""Test worker processes that die: one line, the exit status, no process left.

The tools run as real processes: see tool_processes.py.
"""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from poise.datasets.synthetic import write
from poise.engine import train
from poise.engine.memory import resource_errors
from poise.errors import PoiseError
from support.paths import ROOT
from support.runs import folder_of, run_train, state_of
from support.tool_processes import (
    KILL_WORKER,
    PATIENCE,
    SMALL_SHARED_MEMORY,
    any_left,
    assert_none_left,
    ended,
    run,
    started,
)

# what is done in the tool's process before it begins
KILL_WORKER_WHILE_WRITING = """
import multiprocessing, time, torch
save = torch.serialization._save
def killed(*arguments):
    for worker in multiprocessing.active_children():
        worker.kill()
    time.sleep(1)
    save(*arguments)
torch.serialization._save = killed
"""
FAIL = """
from torch import nn
def fail(*_):
    raise {error}
import poise.codecs.losses
poise.codecs.losses.JointsMSELoss.forward = fail
"""
PRINT_WORKERS = """
import multiprocessing
from poise.datasets.loader import BatchLoader
batches = BatchLoader.__iter__
def printing(self):
    for batch in batches(self):
        print("workers", *(worker.pid for worker in multiprocessing.active_children()), flush=True)
        yield batch
BatchLoader.__iter__ = printing
"""


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)])
def workers(request):
    return request.param


# what the machine lacks ---------------------------------------------------------------------------


def test_train_full_shared_memory_ends_in_one_line(tiny_experiment, own_mounts, workers):
    status, _, err = run(
        "train", tiny_experiment, "WORKERS", workers, shell=SMALL_SHARED_MEMORY, words=own_mounts
    )
    assert (status, err) == (
        1,
        (
            "error: /dev/shm is full: start the container with --shm-size, or lower WORKERS or the "
            "batch size; no checkpoint was written yet\n"
        ),
    )


def test_train_killed_worker_names_the_checkpoint(tiny_experiment, workers):
    status, _, err = run(
        "train",
        tiny_experiment,
        "WORKERS",
        workers,
        "TRAIN.CHECKPOINT_STEPS",
        1,
        "TRAIN.END_EPOCH",
        3,
        before=KILL_WORKER.format(epoch=2),
    )
    kept = folder_of(tiny_experiment) / "checkpoint.pth"
    assert (status, err) == (
        1,
        (
            "error: a data loader worker was killed, probably out of memory: lower WORKERS; "
            f"the last checkpoint is {kept}; resume with the same command and AUTO_RESUME True\n"
        ),
    )
    assert state_of(kept)["epoch"] in (1, 2)
    assert (
        "a data loader worker was killed"
        in (kept.parent / "train.log").read_text().splitlines()[-1]
    )


def test_train_worker_killed_during_save_is_not_a_disk_error(tiny_experiment, workers):
    """PyTorch raises in the main process wherever it is, here in torch.save."""
    status, _, err = run(
        "train", tiny_experiment, "WORKERS", workers, before=KILL_WORKER_WHILE_WRITING
    )
    assert (status, err) == (
        1,
        (
            "error: a data loader worker was killed, probably out of memory: lower WORKERS; "
            "no checkpoint was written yet\n"
        ),
    )
    assert not list(folder_of(tiny_experiment).glob("*.pth")) and not list(
        folder_of(tiny_experiment).glob(".*.part")
    )


@pytest.mark.slow
@pytest.mark.parametrize("debug", [False, True])
def test_train_few_file_handles_end_the_run(tiny_experiment, workers, debug):
    status, _, err = run(
        "train", tiny_experiment, "WORKERS", workers, shell="ulimit -n 24; ", debug=debug
    )
    assert status == 1
    if not debug:
        # a worker may print what Python cannot clean up without a handle
        assert err.splitlines()[-1].startswith(
            "error: too many open files: raise the limit (ulimit -n), or lower WORKERS; "
        ), err


@pytest.mark.slow
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("fault", ["shared memory", "killed worker"])
@pytest.mark.parametrize("tool", ["train", "train --dry-run", "test"])
def test_tools_lost_workers_end_in_one_line(
    tiny_experiment, own_mounts, workers, tool, fault, debug
):
    name, *options = tool.split()
    if name == "test":
        run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    more = (
        {"shell": SMALL_SHARED_MEMORY}
        if fault == "shared memory"
        else {"before": KILL_WORKER.format(epoch=0)}
    )
    status, _, err = run(
        name,
        tiny_experiment,
        "WORKERS",
        workers,
        options=options,
        debug=debug,
        words=own_mounts,
        **more,
    )
    message = {
        "shared memory": "/dev/shm is full: start the container",
        "killed worker": "a data loader worker was killed",
    }[fault]
    assert status == 1 and message in err
    if not debug:
        # PyTorch raises a worker's death wherever the main process is; what it imports on first use
        # catches that too, and logs it before the error ends the run
        assert err.splitlines()[-1].startswith("error: ") and err.count("error: ") == 1
        assert fault == "killed worker" or err.count("\n") == 1


@pytest.mark.slow
def test_train_full_log_disk_ends_the_run(tiny_experiment, tmp_path, own_mounts, workers):
    (tmp_path / "log").mkdir()
    status, _, err = run(
        "train",
        tiny_experiment,
        "WORKERS",
        workers,
        "PRINT_FREQ",
        1,
        "TRAIN.END_EPOCH",
        400,
        "TRAIN.EVAL_INTERVAL",
        400,
        words=own_mounts,
        shell=f"mount -t tmpfs -o size=16k tmpfs {tmp_path / 'log'} && ",
    )
    assert status == 1 and err.count("\n") == 1
    assert (
        err.startswith(f"error: {tmp_path}/log/")
        and "cannot be written (No space left on device)" in err
    )


# errors of the program ----------------------------------------------------------------------------


def test_train_unexpected_error_ends_the_run(tiny_experiment, workers):
    status, _, err = run(
        "train",
        tiny_experiment,
        "WORKERS",
        workers,
        before=FAIL.format(error="RuntimeError('planted')"),
    )
    assert status == 1 and err.endswith("RuntimeError: planted\n") and err.count("Traceback") == 1


@pytest.mark.slow
def test_train_error_with_debug_ends_the_run(tiny_experiment, workers):
    status, _, err = run(
        "train",
        tiny_experiment,
        "WORKERS",
        workers,
        debug=True,
        before=FAIL.format(error="__import__('poise.errors').errors.DataError('planted')"),
    )
    assert status == 1 and err.endswith("DataError: planted\n") and err.count("Traceback") == 1


def test_loader_of_failing_program_ends_with_it(tiny_experiment):
    """A program other than the tools that holds a loader when it fails."""
    code = (
        "from poise import config\nfrom poise.datasets import build_loader, load_split\n"
        f"cfg = config.load({str(tiny_experiment)!r}, ['WORKERS', '2'])\n"
        "loader = build_loader(cfg, *load_split(cfg, train=True), train=True)\n"
        "for batch in loader:\n    1 / 0"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
        start_new_session=True,
    )
    status, _, err = ended(process)
    assert status == 1 and err.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("tool", ["train", pytest.param("test", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGABRT, marks=pytest.mark.slow)]
)
def test_workers_killed_tool_leaves_none(tiny_experiment, tool, number):
    if tool == "test":
        run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)
    process = started(tool, tiny_experiment, "WORKERS", 2, before=PRINT_WORKERS)
    try:
        for line in process.stdout:
            if line.startswith("workers "):
                break
        assert len(line.split()) == 3
        process.send_signal(number)
        process.wait(timeout=PATIENCE)
        assert_none_left(process)
    finally:
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
)
def test_end_with_parent_ends_a_worker_that_starts_after_the_kill(tmp_path, method):
    """The main process may be gone before a worker starts."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, signal, sys, time\n"
        "def work():\n"
        "    from poise.datasets.worker_exit import exit_with_parent\n"
        "    os.write(1, b'started\\n')\n"
        "    time.sleep(1)\n"
        "    exit_with_parent()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    workers = [context.Process(target=work) for _ in range(2)]\n"
        "    for worker in workers:\n"
        "        worker.start()\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
        start_new_session=True,
    )
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["started\n"] * 2
        process.kill()
        process.wait(timeout=PATIENCE)
        assert_none_left(process)
    finally:
        process.stdout.close()
        if any_left(process):
            os.killpg(process.pid, signal.SIGKILL)


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_synthetic_killed_worker_is_named(tmp_path, monkeypatch):
    """multiprocessing.Pool would wait forever."""
    monkeypatch.setattr(write, "_coco_picture", killed)
    with pytest.raises(
        PoiseError,
        match=(
            "a process that draws val2017 was killed, probably out of memory: give fewer --workers"
        ),
    ):
        write.make_coco(tmp_path, {"val2017": 16}, workers=2, progress=False)


# memory that runs out -----------------------------------------------------------------------------


OF_CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB\nmore"
)
OF_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to "
    "allocate 9 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("error", [OF_CUDA, OF_CPU, MemoryError()], ids=["cuda", "cpu", "python"])
def test_train_out_of_memory_names_keys_and_checkpoint(tiny_experiment, monkeypatch, error):
    step = train.train_step

    def full(cfg, state, *arguments):
        if state.progress.step == 2:
            raise error
        return step(cfg, state, *arguments)

    monkeypatch.setattr(train, "train_step", full)
    with pytest.raises(PoiseError) as raised:
        run_train(tiny_experiment, "TRAIN.CHECKPOINT_STEPS", 1)
    line, kept = str(raised.value), folder_of(tiny_experiment) / "checkpoint.pth"
    assert (
        line.startswith("the training does not fit into the memory (")
        and "\n" not in line
        and raised.value.status == 1
    )
    assert (
        "lower TRAIN.BATCH_SIZE_PER_GPU (8) and raise TRAIN.ACCUMULATE (1) by the same factor, "
        "lower TEST.BATCH_SIZE_PER_GPU (8) or MODEL.IMAGE_SIZE (64 x 64), or set AMP bf16; "
        f"the last checkpoint is {kept}; resume with the same command and AUTO_RESUME True" in line
    )
    assert state_of(kept)["step"] == 2


def test_evaluate_out_of_memory_names_keys(tiny_experiment, monkeypatch):
    from poise import config
    from poise.engine import evaluate

    run_train(tiny_experiment, "TRAIN.END_EPOCH", 1)

    def full(*_, **__):
        raise OF_CUDA

    monkeypatch.setattr(evaluate, "predict", full)
    with pytest.raises(
        PoiseError,
        match=r"lower TEST.BATCH_SIZE_PER_GPU \(8\) or set AMP bf16; a smaller MODEL.IMAGE_SIZE",
    ) as raised:
        evaluate.run(config.load(tiny_experiment, ["GPUS", "()"]), str(tiny_experiment), [])
    assert "\n" not in str(raised.value)


def test_train_real_out_of_memory_ends_in_one_line(tiny_experiment):
    """An allocation beyond the limit of the system in a layer."""
    fail = "__import__('torch').empty(1 << 50)"
    status, _, err = run(
        "train", tiny_experiment, "WORKERS", 1, before=FAIL.format(error=f"TypeError({fail})")
    )
    assert status == 1 and err.startswith(
        "error: the training does not fit into the memory (can't allocate memory: "
        "you tried to allocate"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback:\nMemoryError",
            "a data loader worker ran out of memory",
        ),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that",
            "/dev/shm is full",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "a data loader worker was killed"),
    ],
)
def test_machine_limits_worker_error_is_one_line(text, message):
    with pytest.raises(PoiseError, match=f"^{message}"), resource_errors("run", ""):
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "text",
    [
        "shapes cannot be multiplied",
        "DataLoader worker (pid 7) is killed by signal: Segmentation fault. ",
        "DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost",
    ],
)
def test_machine_limits_other_errors_are_unchanged(text):
    with pytest.raises(RuntimeError, match=re.escape(text)), resource_errors("run", ""):
        raise RuntimeError(text)
