"""Test MPII PCKh against hand-computed figures and two published networks."""

import json
import re

import numpy as np
import pytest
from poise import evaluation
from poise.errors import DataError
from scipy.io import loadmat, savemat
from support.mpii_names import NAMES
from support.paths import SHARED

PREDICTIONS = SHARED / "data" / "mpii_predictions"
needs_shared = pytest.mark.skipif(not PREDICTIONS.is_dir(), reason=f"{PREDICTIONS} is not here")

J = {name: i for i, name in enumerate(NAMES)}


@pytest.fixture
def truth(tmp_path):
    """Four persons with head boxes of 30 x 40, so that the head length is 0.6 * 50 = 30 pixels.
    The left shoulder is labeled in persons 0 and 1 only, the right wrist never.
    """
    positions = np.random.default_rng(0).uniform(1, 500, (16, 2, 4))
    corner = np.random.default_rng(1).uniform(1, 500, (2, 4))
    missing = np.zeros((16, 4), np.uint8)
    missing[J["lsho"], 2:] = 1
    missing[J["rwri"]] = 1
    positions[J["rwri"]] = np.nan
    content = {
        "jnt_missing": missing,
        "pos_gt_src": positions,
        "headboxes_src": np.stack([corner, corner + [[30], [40]]]),
        "dataset_joints": np.array([NAMES], dtype=object),
    }
    savemat(tmp_path / "gt_valid.mat", content)
    return tmp_path / "gt_valid.mat", positions.transpose(2, 0, 1).copy()


def test_pckh_small_set_equals_hand_figures(truth):
    path, predictions = truth
    predictions[0, J["head"]] += 100  # 1 of 4 wrong
    predictions[0, J["lsho"], 0] += 14.9  # within 15 pixels
    predictions[1, J["lsho"], 1] += 15.1  # not within: 1 of 2 labeled wrong
    predictions[2, J["lsho"]] += 500  # not labeled, so of no account
    predictions[:, J["pelv"]] += 500  # not scored
    predictions[3, J["rank"]] = np.nan  # counted as wrong
    predictions[:2, J["lank"], 0] += 3.15  # 0.105 heads
    figures = evaluation.pckh(predictions, path)
    assert list(figures) == [
        "Head",
        "Shoulder",
        "Elbow",
        "Wrist",
        "Hip",
        "Knee",
        "Ankle",
        "Mean",
        "Mean@0.1",
    ]
    assert (
        figures["Head"] == 75
        and figures["Shoulder"] == (50 + 100) / 2
        and figures["Ankle"] == (75 + 100) / 2
    )
    assert figures["Elbow"] == figures["Hip"] == figures["Knee"] == 100
    # 13 scored joints with 4 labels and the left shoulder with 2, less wrist: 12 * 4 + 2 labels,
    # three of them wrong
    assert figures["Mean"] == pytest.approx(100 * 47 / 50)
    # 14.9 pixels are not within 0.11 heads; 0.105 heads are, so HRNet's "0.1" counts them and a
    # threshold of 0.1 not
    assert figures["Mean@0.1"] == pytest.approx(100 * 46 / 50)
    assert evaluation.mean_pckh(predictions, path, 0.1) == pytest.approx(100 * 44 / 50)
    # no right wrist is labeled, and HRNet would show NaN as the Mean too
    assert np.isnan(figures["Wrist"])

    share, count = evaluation.per_joint_pckh(predictions, path)
    want = np.full(16, 100.0)
    want[[J["head"], J["lsho"], J["rank"], J["pelv"], J["rwri"]]] = 75, 50, 75, 0, np.nan
    assert np.array_equal(share, want, equal_nan=True)
    assert count.tolist() == [2 if n == "lsho" else 0 if n == "rwri" else 4 for n in NAMES]


def test_pckh_error_at_threshold_counts(truth):
    path, predictions = truth
    content = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    # whole pixels, so that 15 of 30 pixels is exactly one half
    content["pos_gt_src"][:] = 100
    content["headboxes_src"][:] = np.array([[[0], [0]], [[30], [40]]])
    savemat(path, content)
    predictions[:] = 100
    predictions[:, J["neck"], 0] += 15
    assert evaluation.per_joint_pckh(predictions, path)[0][J["neck"]] == 100
    predictions[:, J["neck"], 0] += 1e-9
    assert evaluation.per_joint_pckh(predictions, path)[0][J["neck"]] == 0


def test_pckh_mismatched_predictions_raise(truth):
    path, predictions = truth
    with pytest.raises(
        DataError, match=re.escape(f"{path}: has 4 persons, predictions have 3")
    ) as error:
        evaluation.pckh(predictions[:3], path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"\(4, 16, 3\)"):
        evaluation.pckh(np.zeros((4, 16, 3)), path)
    with pytest.raises(ValueError, match=r"\(4, 17, 2\)"):
        evaluation.pckh(np.zeros((4, 17, 2)), path)


def test_pckh_invalid_ground_truth_raises(truth, tmp_path):
    path, predictions = truth
    with pytest.raises(
        DataError, match=r"absent.mat: cannot read the ground truth of MPII \(No such file"
    ):
        evaluation.pckh(predictions, tmp_path / "absent.mat")
    (tmp_path / "text.mat").write_text("not a matrix" * 50)
    with pytest.raises(DataError, match="text.mat is not a readable MATLAB file"):
        evaluation.pckh(predictions, tmp_path / "text.mat")
    savemat(tmp_path / "preds.mat", {"preds": predictions})
    with pytest.raises(DataError, match="preds.mat: not MPII ground truth: missing pos_gt_src"):
        evaluation.pckh(predictions, tmp_path / "preds.mat")


@needs_shared
@pytest.mark.parametrize("name", ["bearpaw-hg_s1_b1.mat", "bearpaw-hg_s2_b1.mat"])
def test_pckh_published_hourglass_predictions_equal_recorded(name):
    want = json.loads((PREDICTIONS / "expected_pckh.json").read_text())[name]
    truth = SHARED / "data" / "mpii_subset" / "annot" / "gt_valid.mat"
    predictions = loadmat(PREDICTIONS / name)["preds"]
    figures = evaluation.pckh(predictions, truth)
    assert list(figures.values())[:7] == pytest.approx(
        want["head_sho_elb_wri_hip_kne_ank"], abs=1e-4
    )
    assert figures["Mean"] == pytest.approx(want["mean_weighted_simplebaseline"], abs=1e-4)
    assert evaluation.mean_pckh(predictions, truth, 0.1) == pytest.approx(
        want["mean_at_0p1_weighted"], abs=1e-4
    )
