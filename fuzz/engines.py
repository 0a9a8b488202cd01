"""Engines that draw the inputs of one harness: atheris (coverage-guided) or plain numbers."""

from __future__ import annotations

import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

MAX_SECONDS = 20
MAX_MEMORY_MB = 1000
MAX_INPUT_BYTES = 1 << 16
# on top of the imported modules; the system then refuses an allocation of terabytes
_ADDRESS_SPACE = 2 << 30

Count = Callable[[int], None]


class LimitExceededError(BaseException):
    """An input took too much time or memory.

    Not an Exception, because readers treat any Exception of a library as a corrupt file.
    """


def make_input(name: str, number: int) -> bytes:
    """Return input `number` of a harness; it is the same on every machine."""
    import harnesses

    harness = harnesses.HARNESSES[name]
    good = _load_seeds(name)
    draw = random.Random(f"{name} {number}")
    data = good[number % len(good)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = harness.mutate(data, draw)[:MAX_INPUT_BYTES]
    return data


_seed_cache: dict[str, list[bytes]] = {}


def _load_seeds(name: str) -> list[bytes]:
    import harnesses

    if name not in _seed_cache:
        _seed_cache[name] = harnesses.HARNESSES[name].seeds()
    return _seed_cache[name]


def make_timer(seconds: int = MAX_SECONDS) -> Callable[[bool], None]:
    """Return a function that starts (True) and stops (False) the timer of one input.

    LimitExceededError is raised when the time is over.
    """

    def on_timeout(*_):
        raise LimitExceededError(f"took more than {seconds} seconds")

    signal.signal(signal.SIGALRM, on_timeout)
    return lambda on: signal.setitimer(signal.ITIMER_REAL, seconds if on else 0) and None


def peak_memory_mb() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1 << 10
    )


def limit_memory() -> None:
    """Limit the address space to the present size plus 2 GB."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ADDRESS_SPACE, resource.RLIM_INFINITY))


def run_by_number(
    name: str, folder: Path, seconds: float, inputs: int, first: int, count: Count
) -> None:
    """Run the inputs first, first + 1, ...; save one that fails in `folder` and raise its error."""
    import harnesses

    harness = harnesses.HARNESSES[name]
    _warm_up(name)
    clock, end = make_timer(), time.monotonic() + seconds
    for done in range(inputs):
        data = make_input(name, first + done)
        begin = time.monotonic()
        try:
            clock(True)
            harness.run(data)
            clock(False)
            # compiled code is not stopped by the timer
            if time.monotonic() - begin > MAX_SECONDS:
                raise LimitExceededError(f"took more than {MAX_SECONDS} seconds")
            if peak_memory_mb() > MAX_MEMORY_MB:
                raise LimitExceededError(f"more than {MAX_MEMORY_MB} MB of memory")
        except BaseException:
            clock(False)
            (folder / f"crash-{first + done}").write_bytes(data)
            raise
        finally:
            count(done + 1)
        if time.monotonic() > end:
            break


def run_by_coverage(
    name: str, folder: Path, seconds: float, inputs: int, first: int, count: Count
) -> None:
    """Run atheris, which ends the process.

    Inputs that reach new lines are kept in folder/corpus, failing inputs in folder.
    """
    import atheris

    with atheris.instrument_imports(include=["poise", "torch._weights_only_unpickler"]):
        import harnesses

        harness = harnesses.HARNESSES[name]
        _warm_up(name)
    done = 0
    run = harness.run

    def run_counted(data: bytes) -> None:
        nonlocal done
        done += 1
        count(done)
        run(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.7:
            return harness.mutate(bytes(data), draw)[:max_size]
        return atheris.Mutate(data, max_size)[:max_size]

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(_load_seeds(name)):
        (corpus / f"seed{number}").write_bytes(data)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-runs={min(inputs, 2**31 - 1)}",
            f"-max_total_time={int(seconds)}",
            f"-timeout={MAX_SECONDS}",
            f"-rss_limit_mb={MAX_MEMORY_MB}",
            f"-max_len={MAX_INPUT_BYTES}",
            f"-seed={first % (1 << 31) + 1}",
            f"-artifact_prefix={folder}/",
            "-verbosity=1",
            "-len_control=0",
        ],
        run_counted,
        custom_mutator=mutate,
        internal_libfuzzer=True,
    )
    atheris.Fuzz()


def _warm_up(name: str) -> None:
    """Import everything and read the seeds before memory is limited."""
    import harnesses

    for data in _load_seeds(name):
        harnesses.HARNESSES[name].run(data)
    limit_memory()


ENGINES = {"atheris": run_by_coverage, "numbers": run_by_number}
