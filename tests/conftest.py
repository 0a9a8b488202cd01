"""Shared fixtures: recorded figures, real data if present, and small synthetic datasets."""

import json
import runpy
import sys

import pytest
from support.paths import GOLDEN, ROOT, SHARED
from support.runs import TINY, forget_log_handlers


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Use one thread for deterministic sums and no competition for cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep tests and the tools they start out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_logging():
    """Remove the log handlers of a run, which hold the stdout and files of its test."""
    yield
    forget_log_handlers()


@pytest.fixture(scope="session")
def pipeline():
    """Recorded figures of HRNet's pipeline on real images."""
    return json.loads((GOLDEN / "pipeline.json").read_text())


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared")
    return SHARED


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """A synthetic COCO dataset with 24 training and 12 validation images."""
    from poise.datasets.synthetic.write import make_coco

    folder = tmp_path_factory.mktemp("synthetic") / "coco"
    make_coco(folder, {"train2017": 24, "val2017": 12}, seed=3, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def small_mpii_set(tmp_path_factory):
    """A synthetic MPII dataset with 16 training and 8 validation images."""
    from poise.datasets.synthetic.write import make_mpii

    folder = tmp_path_factory.mktemp("synthetic") / "mpii"
    make_mpii(folder, {"train": 16, "valid": 8}, seed=3, workers=1, progress=False)
    return folder


@pytest.fixture
def tiny_experiment(tmp_path, small_set):
    """An experiment file that trains a very small network in seconds; outputs go to tmp_path."""
    text = TINY.format(dataset="coco", root=small_set, train="train2017", test="val2017", joints=17)
    path = tmp_path / "tiny.yaml"
    path.write_text(f"OUTPUT_DIR: {tmp_path / 'output'}\nLOG_DIR: {tmp_path / 'log'}\n{text}")
    return path


@pytest.fixture
def tiny_mpii_experiment(tmp_path, small_mpii_set):
    text = TINY.format(dataset="mpii", root=small_mpii_set, train="train", test="valid", joints=16)
    path = tmp_path / "tiny_mpii.yaml"
    path.write_text(f"OUTPUT_DIR: {tmp_path / 'output'}\nLOG_DIR: {tmp_path / 'log'}\n{text}")
    return path


@pytest.fixture
def no_tensorboard_images(monkeypatch):
    """Write no images for TensorBoard; they take half of the time of a small run."""
    from poise.engine.run_logger import TrainLogger

    monkeypatch.setattr(TrainLogger, "_show_test", lambda *_: None)


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Return a function that runs a script of tools/ in this process.

    The function returns (exit status, stdout, stderr).
    """

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        return (ended.value.code or 0, *capsys.readouterr())

    return run
