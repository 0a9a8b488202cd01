"""Shared fixtures: recorded figures, the real data beside the project where it is, and a small
synthetic set.
"""

import json
import logging
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Sums in one order, and no fight over the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests, and the tools that they start, keep nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_logging():
    """A run's handlers hold the stdout and the files of its test, and switch off what the next
    one may want to see.
    """
    yield
    forget_log_handlers()


@pytest.fixture(scope="session")
def pipeline():
    """Figures of HRNet's pipeline on real images."""
    return json.loads((GOLDEN / "pipeline.json").read_text())


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """A synthetic set in COCO form: 24 training and 12 test images."""
    from poise.datasets.synthetic.write import make_coco

    folder = tmp_path_factory.mktemp("synthetic") / "coco"
    make_coco(folder, {"train2017": 24, "val2017": 12}, seed=3, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def small_mpii_set(tmp_path_factory):
    """A synthetic set in MPII form: 16 training and 8 validation images."""
    from poise.datasets.synthetic.write import make_mpii

    folder = tmp_path_factory.mktemp("synthetic") / "mpii"
    make_mpii(folder, {"train": 16, "valid": 8}, seed=3, workers=1, progress=False)
    return folder


TINY = """
GPUS: (0,)
WORKERS: 0
PRINT_FREQ: 2
CPU_THREADS: 1
DATASET: {{DATASET: {dataset}, ROOT: {root}, TRAIN_SET: {train}, TEST_SET: {test}}}
MODEL:
  NAME: pose_res2net
  NUM_JOINTS: {joints}
  IMAGE_SIZE: [64, 64]
  HEATMAP_SIZE: [16, 16]
  SIGMA: 1
  EXTRA: {{NUM_LAYERS: 18, NUM_CHANNELS: [8, 8, 8, 16], NUM_DECONV_FILTERS: [8, 8, 8]}}
TRAIN: {{BATCH_SIZE_PER_GPU: 8, END_EPOCH: 2, LR_STEP: [1]}}
TEST: {{BATCH_SIZE_PER_GPU: 8, FLIP_TEST: true, POST_PROCESS: true, SHIFT_HEATMAP: true,
  USE_GT_BBOX: true, OKS_THRE: 0.9, IN_VIS_THRE: 0.2}}
"""


@pytest.fixture
def tiny_experiment(tmp_path, small_set):
    """A file that trains a very small network on the small set in seconds; run folders go to
    tmp_path.
    """
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


def forget_log_handlers():
    """After a run in this process."""
    root = logging.getLogger("poise")
    root.setLevel(logging.NOTSET)
    for handler in list(root.handlers):
        handler.close()
        root.removeHandler(handler)
    root.propagate = True
