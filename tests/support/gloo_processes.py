"""Fixtures that start processes over gloo as torchrun does, forked to save the imports."""

import multiprocessing
import os
import pickle
import socket
import sys
import time
from datetime import timedelta

import pytest
import torch
from poise import config
from poise.engine import distributed
from poise.engine import distributed as process_group
from poise.errors import run_tool

from support.paths import ROOT

_PATIENCE = 240  # seconds; usually a few are enough


@pytest.fixture(scope="module")
def forks():
    """A multiprocessing context that forks from a process which has only imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{ROOT / 'lib'}{os.pathsep}{ROOT / 'tests'}")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            [
                "poise.engine.train",
                "poise.engine.evaluate",
                "poise.engine.distributed",
                "tensorboardX",
                "scipy.io",
            ]
        )
        context.Process(target=int).start()
    return context


class Done:
    """A finished process: exit status, output and the result of its function, if any."""

    def __init__(self, status, folder):
        self.status, self.out, self.err = (
            status,
            (folder / "out").read_text(),
            (folder / "err").read_text(),
        )
        self.result = (
            pickle.loads((folder / "result").read_bytes()) if (folder / "result").exists() else None
        )


@pytest.fixture(scope="module")
def together(forks, tmp_path_factory):
    """Return a function that runs function(processes, *arguments) in `world` processes.

    It returns a Done for each process. environments: variables of each process in addition to
    those of torchrun. seconds: timeout of the rendezvous.
    """

    def run(world, function, *arguments, fails=False, environments=None, seconds=60):
        environments = environments or [{}] * world
        store = (
            None
            if any(one.get("TORCHELASTIC_USE_AGENT_STORE") == "False" for one in environments)
            else torch.distributed.TCPStore(
                # torchrun holds it in its own process
                "127.0.0.1",
                0,
                is_master=True,
                wait_for_workers=False,
            )
        )
        port = store.port if store else free_port()
        folders = [tmp_path_factory.mktemp("process") for _ in range(world)]
        started = [
            forks.Process(
                target=_process,
                args=(rank, world, port, folder, function, arguments, environment, seconds),
            )
            for rank, (folder, environment) in enumerate(zip(folders, environments))
        ]
        for process in started:
            process.start()
        limit = time.monotonic() + _PATIENCE
        for process in started:
            process.join(max(limit - time.monotonic(), 0))
            if process.is_alive():
                for other in started:
                    other.kill()
                pytest.fail(
                    f"still running after {_PATIENCE} seconds:"
                    f" {[folder.joinpath('err').read_text() for folder in folders]}"
                )
        done = [Done(process.exitcode, folder) for process, folder in zip(started, folders)]
        assert fails or [one.status for one in done] == [0] * world, [one.err for one in done]
        return done

    return run


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _process(rank, world, port, folder, function, arguments, environment, seconds):
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    # drop text that was buffered before the fork
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    os.environ.update(environment)
    process_group._RENDEZVOUS_TIMEOUT = timedelta(seconds=seconds)
    process_group._SILENT_SECONDS = 0.2  # no torchrun would end it

    def main():
        with distributed.init_distributed() as processes:
            (folder / "result").write_bytes(pickle.dumps(function(processes, *arguments)))

    run_tool(main)


def train_here(processes, path, overrides=(), prepare=None):
    """Train as one of the processes and return the result of prepare(train) or the stop message.

    prepare(train) patches the module in this process.
    """
    from poise.engine import train
    from poise.engine.run_logger import TrainLogger
    from poise.engine.signals import RunStoppedError

    TrainLogger._show_test = lambda *_: None  # images take half of the time
    result = prepare(train) if prepare else None
    try:
        train.run(
            config.load(path, [str(value) for value in overrides]),
            str(path),
            ["tools/train.py"],
            processes,
        )
    except RunStoppedError as stopped:
        return str(stopped)
    return result
