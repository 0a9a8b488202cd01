"""Run tools as processes in their own process groups, with time limits."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from support.paths import ROOT

PATIENCE = 120  # seconds for a run of a few
SECONDS_TO_END = 5.0

# Python code that runs in the process before the tool
KILL_WORKER = """
import os, signal
from poise.datasets.loader import TopDownDataset
load = TopDownDataset.__getitems__
def killed(self, keys):
    if os.getpid() != main and keys[0][0] >= {epoch}:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(self, keys)
main, TopDownDataset.__getitems__ = os.getpid(), killed
"""
SMALL_SHARED_MEMORY = "mount -t tmpfs -o size=100k tmpfs /dev/shm && "


@pytest.fixture
def own_mounts():
    """Return the command prefix for a private mount namespace."""
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True
    )
    if done.returncode:
        pytest.skip("needs the right to mount a tmpfs in a mount namespace")
    return ["unshare", "-m"]


def started(tool, path, *overrides, options=(), before="", shell="", words=(), debug=False):
    """Start a tool in a new process group, after `shell` commands and the Python code `before`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    environment |= {"POISE_DEBUG": "1"} if debug else {}
    code = (
        f"import runpy, sys\n{before}\nsys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(ROOT / "tools" / f"{tool}.py"),
        *options,
        "--cfg",
        str(path),
        "GPUS",
        "()",
        *map(str, overrides),
    ]
    return subprocess.Popen(
        [*words, "sh", "-c", f'{shell}exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def any_left(process):
    """Return True if a process of its group is alive."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_none_left(process):
    """Fail if a process of the group is alive some seconds after the end of the process."""
    limit = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < limit:
        if not any_left(process):
            return
        time.sleep(0.1)
    pytest.fail("a process is left")


def ended(process):
    """Wait for a tool and return (status, stdout, stderr); no process may be left."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
        assert_none_left(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def run(*arguments, **more):
    return ended(started(*arguments, **more))
