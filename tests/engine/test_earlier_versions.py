"""Test resuming a training and a search of Poise 0.1.0 (golden/run_0.1.0.tar.xz).

Both were recorded by that version on the set of the fixture `small_set`, stopped in the middle of
an epoch, with what the same version made of them at the end (expected_*).
"""

import json
import tarfile

import pytest
from poise import config
from poise.engine import train
from poise.models.posenas.genotypes import find_genotype
from poise.search import run as search_run
from support.paths import GOLDEN
from support.runs import metrics_of


@pytest.fixture
def earlier(tmp_path, small_set, monkeypatch):
    """The unpacked archive as the working folder, with the run folders where they were."""
    with tarfile.open(GOLDEN / "run_0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for name, folder in (("run", "pose_res2net/recorded"), ("search", "posenas/search")):
        place = tmp_path / "output/coco" / folder
        place.parent.mkdir(parents=True)
        (tmp_path / name).rename(place)
    (tmp_path / "set").symlink_to(small_set)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_resume_checkpoint_of_0_1_0_gives_equal_metrics(earlier):
    overrides = ["AUTO_RESUME", "True", "TRAIN.EMA_DECAY", "0.9", "TRAIN.CHECKPOINT_STEPS", "1"]
    cfg = config.load(earlier / "recorded.yaml", overrides)
    train.run(cfg, str(earlier / "recorded.yaml"), ["tools/train.py"])
    found = metrics_of(earlier / "output/coco/pose_res2net/recorded")
    lines = (earlier / "expected_metrics.jsonl").read_text().splitlines()
    assert [line["epoch"] for line in found] == [0, 1, 2]
    for line, expected in zip(found, map(json.loads, lines), strict=True):
        # other processors sum in another order; a keypoint more or less is 0.003 to 0.006 of an
        # accuracy
        for key, value in line.items():
            tolerance = {"rel": 1e-4} if key == "lr" or "loss" in key else {"abs": 0.02}
            assert value == pytest.approx(expected[key], **tolerance), key


def test_resume_search_of_0_1_0_gives_equal_genotype(earlier):
    cfg = config.load(earlier / "search.yaml", ["AUTO_RESUME", "True"])
    search_run.run(cfg, str(earlier / "search.yaml"), ["tools/search.py"])
    found = find_genotype("output/coco/posenas/search/genotype.json")
    assert found.cells() == find_genotype("expected_genotype.json").cells()


def test_load_weights_of_0_1_0_is_strict(earlier):
    from poise.models import build_model
    from poise.models.weights import load

    model = build_model(config.load(earlier / "recorded.yaml"))
    report = load(model, earlier / "output/coco/pose_res2net/recorded/model_best.pth", rgb=False)
    assert set(report.loaded) == set(model.state_dict())


def test_load_config_of_0_1_0_keeps_values(earlier):
    cfg = config.load(earlier / "output/coco/pose_res2net/recorded/config.yaml")
    assert cfg.TRAIN.EMA_DECAY == 0.9 and tuple(cfg.MODEL.IMAGE_SIZE) == (64, 64)
