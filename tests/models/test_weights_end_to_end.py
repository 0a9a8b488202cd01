"""Test every released weight format from file to evaluation."""

import shutil

import pytest
from poise import config
from poise.engine import evaluate
from support.paths import ROOT
from support.small_networks import command_line, filled, mmpose_mspn_names, small
from support.weight_files import MSPN, mmpose, module, saved

FILES = {
    "simplebaseline": ("resnet", lambda: small("resnet").state_dict()),
    "res2net": ("res2net_v1b", lambda: {"state_dict": module(small("res2net_v1b").state_dict())}),
    "hrnet": ("hrnet", lambda: small("hrnet").state_dict()),
    "mspn": ("mspn", lambda: {"model": small("mspn").state_dict(), "iteration": 96000}),
    "posenas": ("posenas", lambda: module(small("posenas").state_dict())),
    "moganet": ("moganet", lambda: {"meta": {}, "state_dict": small("moganet").state_dict()}),
    "mmpose_resnet": (
        "resnet",
        lambda: {"meta": {}, "state_dict": mmpose(small("resnet").state_dict())},
    ),
    "mmpose_hrnet": (
        "hrnet",
        lambda: {"meta": {}, "state_dict": mmpose(small("hrnet").state_dict(), "head")},
    ),
    "mmpose_mspn": (
        "mspn",
        lambda: {"meta": {}, "state_dict": filled(mmpose_mspn_names(2, **MSPN, joints=17))},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_evaluate_released_file_gives_figures(tmp_path, small_set, name):
    family, content = FILES[name]
    path, overrides = command_line(family)
    weights = saved(tmp_path / "w.pth", content())
    cfg = config.load(
        ROOT / path,
        [
            *overrides,
            "DATASET.ROOT",
            str(small_set),
            "OUTPUT_DIR",
            str(tmp_path / "output"),
            "LOG_DIR",
            str(tmp_path / "log"),
            "TEST.USE_GT_BBOX",
            True,
            "TEST.MODEL_FILE",
            str(weights),
            "TEST.PICTURES",
            0,
            "WORKERS",
            0,
            "CPU_THREADS",
            1,
            "GPUS",
            "(0,)",
        ],
    )
    metrics = evaluate.run(cfg, path, ["tools/test.py"])
    assert 0 <= metrics["AP"] < 0.2, "filled weights predict nothing"
    logged = next((tmp_path / "output").rglob("test.log")).read_text()
    assert "loaded " in logged and "missing 0, unexpected 0, mismatched 0; identified as " in logged
    shutil.rmtree(tmp_path / "output")
