"""Test trainings that are killed at random points: the final weights are bit-identical."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from poise import config
from poise.datasets import load_split
from poise.engine import checkpoint
from support.gloo_processes import free_port, train_here
from support.paths import ROOT
from support.runs import copied, folder_of, metrics_of, same_weights

pytestmark = pytest.mark.slow

# where in a step the process dies: before it, between gradients and weights, half of the checkpoint
# written, between two names, and in a test
PLACES = ("step", "weights", "writing", "renaming", "test")
KILLS = 6  # of each of the four runs


def killed_here(processes, path, overrides, rank, place, count):
    """Train until the process `rank` kills itself at its count-th visit of a place."""

    def prepare(train):
        from poise.engine import train
        from poise.engine.amp import LossScaler

        left = [count if processes.rank == rank else -1]

        def die():
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def before(owner, name):
            call = getattr(owner, name)
            setattr(owner, name, lambda *arguments, **more: (die(), call(*arguments, **more))[1])

        def half_written(content, file, *rest, save=torch.save, **more):
            save(content, file, *rest, **more)
            if isinstance(file, os.PathLike):  # not what is sent to another process
                os.truncate(file, os.path.getsize(file) // 2)
                die()
                save(content, file)

        if place == "writing":
            torch.save = half_written
        else:
            before(
                *{
                    "step": (train, "normalize"),
                    "weights": (LossScaler, "step"),
                    "renaming": (os, "replace"),
                    "test": (train, "evaluate_predictions"),
                }[place]
            )

    return train_here(processes, path, overrides, prepare)


@pytest.fixture
def tiny(tiny_experiment):
    """Four epochs of five steps, with a checkpoint after each step."""
    text = (
        tiny_experiment.read_text()
        .replace("GPUS: (0,)", "GPUS: ()")
        .replace(
            "END_EPOCH: 2", "END_EPOCH: 4, EVAL_INTERVAL: 2, CHECKPOINT_STEPS: 1, EMA_DECAY: 0.9"
        )
    )
    tiny_experiment.write_text(text.replace("LR_STEP: [1]", "LR_STEP: [2]"))
    assert len(load_split(config.load(tiny_experiment), train=True)[0]) == 50
    return tiny_experiment


def assert_as_undisturbed(path, other):
    for name in ("final_state.pth", "final_state_ema.pth", "model_best.pth", "model_best_ema.pth"):
        assert same_weights(folder_of(path) / name, folder_of(other) / name), name
    assert (
        metrics_of(folder_of(path)) == metrics_of(folder_of(other))
        and len(metrics_of(folder_of(path))) == 4
    )
    assert (
        not list(folder_of(path).glob(".*.pth.*"))
        and not (folder_of(path) / "checkpoint_next.pth").exists()
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_train_killed_repeatedly_ends_with_equal_weights(together, tiny, world, workers):
    # WORKERS are a machine's
    overrides = ("WORKERS", workers * world, "TRAIN.BATCH_SIZE_PER_GPU", 12 // world)
    kill_again_and_again(together, tiny, world, overrides, f"{world} {workers}")


def test_train_killed_with_drop_path_ends_with_equal_weights(together, tiny):
    """MogaNet's drop path is random in every step, and a step has two micro-batches."""
    text = tiny.read_text().replace("  NAME: pose_res2net", "  NAME: moganet")
    extra = (
        "{EMBED_DIMS: [8, 8, 16, 16], DEPTHS: [1, 1, 2, 1], DROP_PATH: 0.5, NUM_DECONV_FILTERS: [8,"
        " 8, 8]}"
    )
    tiny.write_text(re.sub(r"  EXTRA: .*", f"  EXTRA: {extra}", text))
    kill_again_and_again(
        together, tiny, 2, ("TRAIN.BATCH_SIZE_PER_GPU", 3, "TRAIN.ACCUMULATE", 2), "moganet"
    )
    assert "12 samples a step in 2 parts" in (folder_of(tiny) / "train.log").read_text()


def kill_again_and_again(together, path, world, overrides, seed):
    draw = random.Random(seed)
    overrides = (*overrides, "AUTO_RESUME", True)
    undisturbed = copied(path, "undisturbed")
    together(world, train_here, undisturbed, (*overrides, "WORKERS", 0))
    # the test comes last, when enough epochs are over
    places = [*PLACES[:-1], *draw.choices(PLACES[:-1], k=KILLS - len(PLACES)), "test"]
    reached = []
    for place in places:
        # files are written by rank 0 alone
        rank = draw.randrange(world) if place in ("step", "weights") else 0
        # so that most of them come a step further
        count = 1 if place == "test" else draw.randint(2, 4)
        done = together(world, killed_here, path, overrides, rank, place, count, fails=True)
        assert done[rank].status == -signal.SIGKILL, (place, count, [one.err for one in done])
        assert all(one.status == 1 for number, one in enumerate(done) if number != rank), [
            one.status for one in done
        ]
        newest = checkpoint.load_latest(folder_of(path), "tiny")
        reached.append((newest["epoch"], newest["step"]) if newest else (0, 0))
    assert reached == sorted(reached) and len(set(reached)) > 2, reached
    together(world, train_here, path, overrides)
    log = (folder_of(path) / "train.log").read_text()
    assert (
        log.count("resuming at epoch") >= KILLS - 1
        and "damaged" not in log
        and "corrupt" not in log
    )
    assert_as_undisturbed(path, undisturbed)


# torchrun -----------------------------------------------------------------------------------------


def descendants(pid):
    """Return the descendant processes by command line."""
    found = {}
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout.split()
    for child in map(int, children):
        # a process may end between the list and this, as `ps` itself does
        with suppress(FileNotFoundError, ProcessLookupError):
            environment = Path(f"/proc/{child}/environ").read_bytes()
            found[child] = environment.decode(errors="replace").split("\0")
            found |= descendants(child)
    return found


def launched(*command):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "lib"),
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
    }
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def torchrun(path, *words, options=(), restarts=0):
    return launched(
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        2,
        "--max-restarts",
        restarts,
        "--master-port",
        free_port(),
        *options,
        ROOT / "tools" / "train.py",
        "--cfg",
        path,
        *words,
    )


def wait_for_line(job, begin):
    for line in job.stdout:
        if line.startswith(begin):
            return
    pytest.fail(f"ended without {begin!r}: {job.stderr.read()}")


def end(*jobs):
    for job in jobs:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def kill_rank(job, rank, begin):
    """Send SIGKILL to a rank when an output line starts with a text; return its pid."""
    wait_for_line(job, begin)
    (victim,) = (
        pid for pid, variables in descendants(job.pid).items() if f"RANK={rank}" in variables
    )
    os.kill(victim, signal.SIGKILL)
    return victim


def test_torchrun_restarted_job_ends_with_equal_weights(together, tiny):
    """--max-restarts 2, AUTO_RESUME off: one rank is killed, then the other."""
    undisturbed = copied(tiny, "undisturbed")
    overrides = ("TRAIN.BATCH_SIZE_PER_GPU", 6, "PRINT_FREQ", 1)
    together(2, train_here, undisturbed, overrides)
    job = torchrun(tiny, *overrides, restarts=2)
    try:
        kill_rank(job, 1, "epoch 0/4 [3/")
        kill_rank(job, 0, "epoch 1/4 [2/")
        out, err = job.communicate(timeout=300)
    finally:
        end(job)
    assert job.returncode == 0, err
    log = (folder_of(tiny) / "train.log").read_text()
    assert log.count("resuming at epoch") == 2 and "done: best score" in out
    assert_as_undisturbed(tiny, undisturbed)


def test_torchrun_killed_rank_ends_the_job(tiny):
    """Within seconds and with a report that names the rank."""
    job = torchrun(tiny, "TRAIN.BATCH_SIZE_PER_GPU", 6, "PRINT_FREQ", 1)
    try:
        victim = kill_rank(job, 1, "epoch 0/4 [2/")
        begin = time.monotonic()
        out, err = job.communicate(timeout=120)
    finally:
        end(job)
    assert time.monotonic() - begin < 60 and job.returncode == 1
    assert (
        "rank      : 1 (local_rank: 1)" in err
        and f"exitcode  : -9 (pid: {victim})" in err
        and "Signal 9 (SIGKILL)" in err
    )
    assert (folder_of(tiny) / "checkpoint.pth").exists()


@pytest.mark.parametrize("handled", [False, True])
def test_torchrun_sigusr1_stops_with_checkpoint(tiny, handled):
    """torchrun dies of SIGUSR1 unless it forwards it; the processes stop with a checkpoint."""
    signals = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1") if handled else ()
    job = torchrun(
        tiny,
        "TRAIN.BATCH_SIZE_PER_GPU",
        6,
        "PRINT_FREQ",
        1,
        "TRAIN.END_EPOCH",
        1000,
        "TRAIN.EVAL_INTERVAL",
        1000,
        options=signals,
    )
    try:
        wait_for_line(job, "epoch 0/1000 [2/")
        workers = list(descendants(job.pid))
        assert len(workers) == 2
        job.send_signal(signal.SIGUSR1)
        out, err = job.communicate(timeout=60)  # until both processes have closed their output
        limit = time.monotonic() + 20
        while (
            any(os.path.exists(f"/proc/{worker}") for worker in workers)
            and time.monotonic() < limit
        ):
            time.sleep(0.1)
        assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)
    finally:
        end(job)
    assert job.returncode == (1 if handled else -signal.SIGUSR1)
    assert (
        out.splitlines()[-1].startswith("stopped at epoch ")
        and 'Traceback (most recent call last):\n  File "' + str(ROOT) not in err
    )
    newest = checkpoint.load_latest(folder_of(tiny), "tiny")
    assert f"stopped at epoch {newest['epoch']}, step {newest['step']}; " in out


def test_two_machines_killed_process_restarts_both(together, tiny):
    """Two torchrun on this machine; the other one restarts for the rendezvous without a failure."""
    overrides = ("TRAIN.BATCH_SIZE_PER_GPU", 6, "PRINT_FREQ", 1, "GPUS", "()")
    undisturbed = copied(tiny, "undisturbed")
    together(2, train_here, undisturbed, overrides)
    script, meeting = (
        ROOT / "experiments" / "launch" / "two_machines.sh",
        f"127.0.0.1:{free_port()}",
    )
    jobs = [launched(script, meeting, 1, tiny, *overrides) for _ in range(2)]
    try:
        # whichever came first has rank 0; its process speaks
        ranks = {}
        while len(ranks) < 2:
            for job in jobs:
                for pid, variables in descendants(job.pid).items():
                    ranks |= {
                        variable: (job, pid)
                        for variable in variables
                        if variable in ("RANK=0", "RANK=1")
                    }
            time.sleep(0.1)
        wait_for_line(ranks["RANK=0"][0], "epoch 1/4 [2/")
        os.kill(ranks["RANK=1"][1], signal.SIGKILL)
        outputs = [job.communicate(timeout=200) for job in (ranks["RANK=0"][0], ranks["RANK=1"][0])]
    finally:
        end(*jobs)
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert (folder_of(tiny) / "train.log").read_text().count("resuming at epoch") >= 1
    assert_as_undisturbed(tiny, undisturbed)


# memory -------------------------------------------------------------------------------------------


def resident_here(processes, path, overrides):
    """Train and return the resident memory in MB after every 100 steps."""

    def prepare(train):
        train_step, found, count = train.train_step, [], [0]

        def watched(*arguments):
            count[0] += 1
            if count[0] % 100 == 0:
                with open("/proc/self/status", encoding="ascii") as file:
                    found.append(
                        next(
                            int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS")
                        )
                    )
            return train_step(*arguments)

        train.train_step = watched
        return found

    return train_here(processes, path, overrides, prepare)


def test_train_memory_is_flat_over_2000_steps(together, tiny, monkeypatch):
    """With EMA, evaluations, checkpoints and TensorBoard."""
    monkeypatch.setattr("support.gloo_processes._PATIENCE", 500)
    overrides = (
        "TRAIN.BATCH_SIZE_PER_GPU",
        4,
        "TRAIN.CHECKPOINT_STEPS",
        50,
        "TRAIN.ITERATIONS",
        2000,
        "TRAIN.EVAL_INTERVAL",
        20,
    )
    (done,) = together(1, resident_here, tiny, overrides)
    found = done.result
    print("megabytes after every 100 steps:", *(f"{value:.1f}" for value in found))
    assert len(found) == 20
    early, late = sum(found[4:8]) / 4, sum(found[-4:]) / 4
    assert late - early < 5, found
