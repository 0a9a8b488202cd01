"""Test planted faults: one line, the exit status, and no code of a file is executed."""

import signal
import sys

import pytest
import torch
from poise import config
from poise.errors import DataError, run_tool
from poise.models import build_model
from support import planted_faults
from support.paths import ROOT
from support.planted_faults import FAULTS, TAKES_WEIGHTS, Place, malicious, plain_pickle
from support.runs import forget_log_handlers
from support.tools import load_tool

SECONDS = 60


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory, small_set):
    from support.runs import TINY

    folder = tmp_path_factory.mktemp("weights")
    (folder / "tiny.yaml").write_text(
        TINY.format(dataset="coco", root=small_set, train="train2017", test="val2017", joints=17)
    )
    torch.save(build_model(config.load(folder / "tiny.yaml")).state_dict(), folder / "fitting.pth")
    return folder / "fitting.pth"


@pytest.fixture
def place(tmp_path, small_set, tiny_experiment, weight_file):
    return Place(
        tmp_path,
        planted_faults.copy_of(tmp_path, small_set),
        tiny_experiment,
        weight_file,
        tmp_path / "CANARY",
    )


@pytest.fixture
def run(monkeypatch, capfd, place):
    """Run a tool in this process with a time limit."""

    def out_of_time(*_):
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, out_of_time)

    def call(tool, arguments):
        monkeypatch.chdir(place.folder)
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, arguments)])
        capfd.readouterr()
        signal.alarm(SECONDS)
        try:
            run_tool(load_tool(tool).main)
        except SystemExit as done:
            status = done.code
        finally:
            signal.alarm(0)
        return status, *capfd.readouterr()

    yield call
    signal.signal(signal.SIGALRM, before)
    forget_log_handlers()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.how}")
def test_tool_planted_fault_ends_in_one_line(fault, place, run):
    status, out, err = run(fault.tool, fault.plant(place))
    assert status == fault.status, (out, err)
    assert "Traceback" not in out + err
    (line,) = err.splitlines()
    assert line.startswith("error: ") and line.isprintable() and len(line) < 1200
    assert fault.line in line
    assert "\x1b" not in out
    assert (
        not place.canary.exists()
        and not (place.folder / "up.jpg").exists()
        and not (place.folder.parent / "up.jpg").exists()
    )
    assert [path for path in place.folder.rglob("*") if path.name.endswith((".part", ".tmp"))] == []


def test_planted_faults_cover_every_kind():
    assert len(FAULTS) >= 60 and len({(fault.kind, fault.how) for fault in FAULTS}) == len(FAULTS)
    assert {fault.kind for fault in FAULTS} == {
        "configuration",
        "annotations",
        "boxes",
        "images",
        "weights",
        "archives",
    }


@pytest.mark.parametrize("way", TAKES_WEIGHTS)
@pytest.mark.parametrize("form", ["zip", "before 1.6", "bare pickle"])
def test_tool_code_in_weights_is_not_executed(way, form, place, run):
    """In every tool and option that takes weights."""
    path = (
        plain_pickle(place) if form == "bare pickle" else malicious(place, old=form == "before 1.6")
    )
    tool, arguments = TAKES_WEIGHTS[way]
    status, out, err = run(tool, arguments(place, path))
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1 and "holds more than tensors and plain values (posix.system)" in line
    assert not place.canary.exists()


@pytest.mark.parametrize("form", ["zip", "before 1.6", "bare pickle"])
def test_detector_code_in_weights_is_not_executed(form, place):
    """For --detector-weights, whose networks need a torchvision that may be missing."""
    from poise.inference.detectors import torchvision

    path = (
        plain_pickle(place) if form == "bare pickle" else malicious(place, old=form == "before 1.6")
    )
    with pytest.raises(DataError, match="could run untrusted code"):
        torchvision._load_weights(torch.nn.Linear(1, 1), path, "fasterrcnn_resnet50_fpn")
    assert not place.canary.exists()


def test_torch_load_malicious_pickle_writes_the_file(place):
    """Otherwise the tests above could not fail."""
    torch.load(malicious(place), weights_only=False)
    assert place.canary.exists()


def test_fault_tables_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "fuzz"))
    import page

    for path in page.TABLES:
        assert page.filled(path) == path.read_text(encoding="utf-8"), (
            f"docs/{path.name} is out of date; run python fuzz/page.py"
        )
