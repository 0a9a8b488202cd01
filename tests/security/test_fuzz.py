"""Fuzzing: the first inputs of each harness find no fault; planted faults are found."""

import resource
import signal
import sys

import pytest
from support.paths import ROOT

MAX_SECONDS = 20
SHORT = {
    "config": 60,
    "command line": 150,
    "checkpoint": 200,
    "cache": 250,
    "image reader": 300,
    "zip reader": 200,
    "archive": 200,
    "JPEG regions": 2500,
}
OTHERS = 300
NAMES = [
    "config",
    "command line",
    "annotations",
    "truth",
    "results",
    "MPII annotations",
    "detections",
    "genotype",
    "head boxes",
    "checkpoint",
    "weight names",
    "dataset file",
    "released weights",
    "given boxes",
    "cache",
    "archive",
    "zip reader",
    "image reader",
    "JPEG regions",
]


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "fuzz"))
        import engines
        import harnesses

        yield engines, harnesses
        harnesses.close()
    for name in ("engines", "harnesses", "mutation", "seeds", "run", "page"):
        sys.modules.pop(name, None)


@pytest.fixture
def clock(fuzz):
    engines, _ = fuzz
    before = signal.getsignal(signal.SIGALRM)
    yield engines.make_timer(MAX_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", NAMES)
def test_harness_first_inputs_find_no_error(fuzz, clock, name):
    engines, harnesses = fuzz
    harness = harnesses.HARNESSES[name]
    before, read = engines.peak_memory_mb(), harnesses.read
    for data in harness.seeds():
        harness.run(data)
    assert harnesses.read > read, "good files must be read"
    for number in range(SHORT.get(name, OTHERS)):
        data = engines.make_input(name, number)
        try:
            clock(True)
            harness.run(data)
        except BaseException as error:
            pytest.fail(f"input {number} of {name!r}: {type(error).__name__} {error}")
        finally:
            clock(False)
    assert engines.peak_memory_mb() < max(before, 400) + 600


def test_harness_names_are_complete(fuzz):
    assert list(fuzz[1].HARNESSES) == NAMES


def test_engine_inputs_are_deterministic(fuzz):
    engines, _ = fuzz
    for name in NAMES:
        assert engines.make_input(name, 11) == engines.make_input(name, 11)
        assert len({engines.make_input(name, number) for number in range(40)}) > 25, name


def test_harness_planted_error_is_found(fuzz, monkeypatch):
    """Each kind of fault that a harness detects."""
    engines, harnesses = fuzz
    from poise.datasets import coco_files
    from poise.errors import DataError
    from poise.io import decoding

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(coco_files, "find_category", lambda *_: {}["a missing check"])
        harnesses.HARNESSES["annotations"].run(harnesses.seeds.annotations()[0])
    with pytest.raises(AssertionError, match="does not name the file"):
        harnesses.call_reader(
            lambda: (_ for _ in ()).throw(DataError("something is wrong")), harnesses.Path("a.json")
        )
    if decoding._jpeg is not None:

        class Overrun:
            size = staticmethod(decoding._jpeg.size)

            @staticmethod
            def decode_region(data, canvas, *box):
                whole = canvas.base
                whole[-1] = 0

        with (
            monkeypatch.context() as patch,
            pytest.raises(AssertionError, match="outside of the image"),
        ):
            patch.setattr(decoding, "_jpeg", Overrun)
            harnesses.HARNESSES["JPEG regions"].run(harnesses.seeds.image()[2])


def test_engine_hanging_input_is_stopped(fuzz):
    engines, _ = fuzz
    before = signal.getsignal(signal.SIGALRM)
    clock = engines.make_timer(1)
    try:
        with pytest.raises(engines.LimitExceededError, match="took more than 1 seconds"):
            clock(True)
            try:
                while True:
                    pass
            # readers treat any Exception of a library as a corrupt file
            except Exception:
                pytest.fail("the timer was treated as a corrupt file")
    finally:
        clock(False)
        signal.signal(signal.SIGALRM, before)


def test_fuzz_run_counts_resumes_and_saves_errors(fuzz, tmp_path, monkeypatch, capsys):
    """Two short calls of fuzz/run.py by number, then one with a broken harness."""
    import json

    import run

    monkeypatch.setattr(run, "FOLDER", tmp_path / "fuzz")
    monkeypatch.setattr(run, "COUNTS", tmp_path / "counts.json")
    engines, harnesses = fuzz
    # the process also holds the memory of other tests
    monkeypatch.setattr(engines, "MAX_MEMORY_MB", 1 << 20)
    for expected in (40, 70):
        monkeypatch.setattr(
            sys, "argv", ["run.py", "--minutes", "1", "--inputs", str(expected), "genotype"]
        )
        monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
        children(monkeypatch, run, harnesses)
        assert run.main() == 0
        row = json.loads((tmp_path / "counts.json").read_text())["genotype"]
        assert (
            row["inputs"] == expected
            and row["engine"] == "numbers"
            and row["faults"] == 0
            and row["read"] > 0
        )
    children(monkeypatch, run, harnesses, broken=True)
    monkeypatch.setattr(sys, "argv", ["run.py", "--minutes", "1", "--inputs", "71", "genotype"])
    assert run.main() == 1
    assert "FAULT" in capsys.readouterr().out and [
        path.name for path in (tmp_path / "fuzz/genotype").glob("crash-*")
    ] == ["crash-70"]


def children(monkeypatch, run, harnesses, broken=False):
    """Run the child processes in this process, without their permanent limits."""
    import types

    import engines

    def one(command, **_):
        options = dict(zip(command[2::2], command[3::2]))
        name = options["--child"]
        monkeypatch.setattr(engines, "limit_memory", lambda: None)
        before, harness = signal.getsignal(signal.SIGALRM), harnesses.HARNESSES[name]
        if broken:
            harnesses.HARNESSES[name] = harnesses.Harness(
                lambda data: 1 / (harness.seeds().count(data) > 0), harness.seeds, harness.mutate
            )
        try:
            harnesses.read = 0
            run.child(
                name,
                run.FOLDER / name,
                30.0,
                int(options["--inputs"]),
                int(options["--first"]),
                options["--engine"],
            )
            return types.SimpleNamespace(returncode=0)
        except ZeroDivisionError:
            return types.SimpleNamespace(returncode=1)
        finally:
            harnesses.HARNESSES[name] = harness
            signal.signal(signal.SIGALRM, before)

    monkeypatch.setattr(run.subprocess, "run", one)


def test_engine_memory_limit_is_enforced():
    """In a separate process, because a limit cannot be removed."""
    import subprocess

    code = "import engines, numpy; engines.limit_memory(); numpy.empty(4 << 30, numpy.uint8)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "fuzz", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "MemoryError" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
