"""What draws the inputs of one harness in a process: atheris, guided by coverage, or plain
numbers.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

SECONDS_FOR_ONE = 20
MOST_MEGABYTES = 1000
LONGEST_INPUT = 1 << 16
# beyond what the modules take; so a claim of terabytes is refused by the system and not granted
# untouched
_ADDRESS_SPACE = 2 << 30

Count = Callable[[int], None]


class Fault(BaseException):
    """An input took too long or too much memory. Not an Exception: readers take any of those for
    damage of the file, and refuse it.
    """


def drawn(name: str, number: int) -> bytes:
    """Input `number` of a harness, the same on every machine."""
    import harnesses

    harness = harnesses.HARNESSES[name]
    good = _seeds(name)
    draw = random.Random(f"{name} {number}")
    data = good[number % len(good)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = harness.mutate(data, draw)[:LONGEST_INPUT]
    return data


_made: dict[str, list[bytes]] = {}


def _seeds(name: str) -> list[bytes]:
    import harnesses

    if name not in _made:
        _made[name] = harnesses.HARNESSES[name].seeds()
    return _made[name]


def watch(seconds: int = SECONDS_FOR_ONE) -> Callable[[bool], None]:
    """A function that starts (True) and stops (False) the clock of one input; Fault is raised
    where it runs out.
    """

    def out_of_time(*_):
        raise Fault(f"took more than {seconds} seconds")

    signal.signal(signal.SIGALRM, out_of_time)
    return lambda on: signal.setitimer(signal.ITIMER_REAL, seconds if on else 0) and None


def megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1 << 10
    )


def limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ADDRESS_SPACE, resource.RLIM_INFINITY))


def by_number(
    name: str, folder: Path, seconds: float, inputs: int, first: int, count: Count
) -> None:
    """Inputs first, first + 1, ...; one that is a fault lies in `folder` when its exception ends
    the process.
    """
    import harnesses

    harness = harnesses.HARNESSES[name]
    _warm_up(name)
    clock, end = watch(), time.monotonic() + seconds
    for done in range(inputs):
        data = drawn(name, first + done)
        begin = time.monotonic()
        try:
            clock(True)
            harness.run(data)
            clock(False)
            # in compiled code, which the clock does not stop
            if time.monotonic() - begin > SECONDS_FOR_ONE:
                raise Fault(f"took more than {SECONDS_FOR_ONE} seconds")
            if megabytes() > MOST_MEGABYTES:
                raise Fault(f"more than {MOST_MEGABYTES} MB of memory")
        except BaseException:
            clock(False)
            (folder / f"crash-{first + done}").write_bytes(data)
            raise
        finally:
            count(done + 1)
        if time.monotonic() > end:
            break


def by_coverage(
    name: str, folder: Path, seconds: float, inputs: int, first: int, count: Count
) -> None:
    """atheris. It keeps what reaches new lines in folder/corpus, writes faults beside it, and
    ends the process.
    """
    import atheris

    with atheris.instrument_imports(include=["poise", "torch._weights_only_unpickler"]):
        import harnesses

        harness = harnesses.HARNESSES[name]
        _warm_up(name)
    done = 0
    run = harness.run

    def take(data: bytes) -> None:
        nonlocal done
        done += 1
        count(done)
        run(data)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        changed = (
            harness.mutate(bytes(data), draw) if draw.random() < 0.7 else atheris.Mutate(data, most)
        )
        return changed[:most]

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(_seeds(name)):
        (corpus / f"seed{number}").write_bytes(data)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-runs={min(inputs, 2**31 - 1)}",
            f"-max_total_time={int(seconds)}",
            f"-timeout={SECONDS_FOR_ONE}",
            f"-rss_limit_mb={MOST_MEGABYTES}",
            f"-max_len={LONGEST_INPUT}",
            f"-seed={first % (1 << 31) + 1}",
            f"-artifact_prefix={folder}/",
            "-verbosity=1",
            "-len_control=0",
        ],
        take,
        custom_mutator=mutated,
        internal_libfuzzer=True,
    )
    atheris.Fuzz()


def _warm_up(name: str) -> None:
    """Everything imported and the good files taken, before memory is limited."""
    import harnesses

    for data in _seeds(name):
        harnesses.HARNESSES[name].run(data)
    limit_memory()


ENGINES = {"atheris": by_coverage, "numbers": by_number}
