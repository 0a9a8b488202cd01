"""Test the diagnosis of a PCKh of 0: each planted reason is the only one named."""

import numpy as np
import pytest
import torch
from poise import config
from poise.config.dataset_yaml import MPII
from poise.engine import evaluate
from poise.evaluation import diagnose_mpii, pckh
from poise.models import build_model
from scipy.io import savemat
from support.mpii_names import NAMES
from support.runs import forget_log_handlers

PERSONS = 30


class Made:
    """Persons of 200 pixels with heads of 20, all labeled and predicted; write() writes
    gt_valid.mat.
    """

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.file, self.labelled = folder / "gt_valid.mat", np.ones((PERSONS, 16), bool)
        self.corner = rng.uniform(0, 400, (PERSONS, 2))
        self.joints = self.corner[:, None] + rng.uniform(0, 200, (PERSONS, 16, 2))
        self.boxes = np.concatenate([self.corner - 20, np.full((PERSONS, 2), 240.0)], axis=1)
        self.keypoints = self.joints + rng.normal(0, 1, self.joints.shape)
        self.head = np.array([20.0, 20]) / 2**0.5 / 0.6
        self.weights = ""

    def evaluate_and_diagnose(self):
        corners = np.stack([self.corner.T, self.corner.T + self.head[:, None]])
        truth = getattr(self, "truth", self.joints)
        savemat(
            self.file,
            {
                "jnt_missing": (~self.labelled.T).astype(np.uint8),
                "pos_gt_src": truth.transpose(1, 2, 0) + 1,
                "headboxes_src": corners,
                "dataset_joints": np.array([NAMES], dtype=object),
            },
        )
        figures = pckh(self.keypoints + 1, self.file)
        lines = diagnose_mpii.diagnose(
            self.file,
            self.keypoints,
            self.boxes,
            self.joints,
            2.0 * self.labelled,
            MPII.flip_indices,
            figures,
            self.weights,
        )
        return figures, lines


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def test_diagnose_mpii_good_predictions_has_no_lines(made):
    figures, lines = made.evaluate_and_diagnose()
    assert figures["Mean"] > 99 and lines == [] and not diagnose_mpii.should_diagnose(figures)


def test_diagnose_mpii_unlabeled_keypoints_are_named(made):
    made.labelled[:, [NAMES.index("rwri"), NAMES.index("lwri")]] = False
    figures, lines = made.evaluate_and_diagnose()
    assert diagnose_mpii.should_diagnose(figures) and lines == [
        f"Wrist is NaN: {made.file} has no labels of the keypoints averaged"
    ]
    made.labelled[:] = False
    figures, lines = made.evaluate_and_diagnose()
    assert len(lines) == 1 and lines[0].startswith(
        "Head, Shoulder, Elbow, Wrist, Hip, Knee, Ankle, Mean, Mean@0.1 are NaN"
    )


def _in_boxes(change):
    """Return wrong boxes and the predictions of a network in them."""

    def plant(made):
        wrong = change(made.boxes)
        relative = (made.keypoints - made.boxes[:, None, :2]) / made.boxes[:, None, 2:]
        made.keypoints, made.boxes = (
            wrong[:, None, :2] + np.roll(relative, 5, axis=1) * wrong[:, None, 2:] + 80,
            wrong,
        )

    return plant


def _away(made):
    made.keypoints += 100


def _exchange(made):
    made.keypoints = made.keypoints[:, MPII.flip_indices]


def _order(made):
    made.truth = np.roll(made.joints, 7, axis=0)


def _heads(made):
    made.head = made.head / 640


def _same(made):
    made.keypoints = made.boxes[:, None, :2] + np.zeros((PERSONS, 16, 2))


def _weights(made):
    made.weights = "weights not loaded: 3 %"
    _away(made)


REASONS = {
    "larger boxes": (
        _in_boxes(lambda b: b * [1, 1, 200, 200]),
        "wrong box size: boxes of the annotations are 2",
    ),
    "smaller boxes": (
        _in_boxes(lambda b: b / [1, 1, 200, 200]),
        "wrong box size: boxes of the annotations are 0.00",
    ),
    "boxes elsewhere": (
        _in_boxes(lambda b: b + [700, 0, 0, 0]),
        "misplaced boxes: 0 % of the labeled keypoints are inside",
    ),
    "another order": (_order, "persons do not match: 30 of 30 persons have other keypoints in "),
    "heads": (_heads, "wrong unit of head boxes: half of those in "),
    "left and right": (
        _exchange,
        "left and right swapped: swapping the keypoints raises the PCKh from ",
    ),
    "same for all": (_same, "constant predictions: keypoints differ between persons"),
    "weights": (_weights, "weights not loaded: 3 %"),
    "none of them": (_away, "no known cause applies"),
}


@pytest.mark.parametrize("name", REASONS)
def test_diagnose_mpii_planted_reason_is_the_only_one(made, name):
    plant, line = REASONS[name]
    plant(made)
    figures, lines = made.evaluate_and_diagnose()
    assert any(value == 0 for value in figures.values()), figures
    assert any(line in text for text in lines), lines
    assert not [
        other
        for key, (_, other) in REASONS.items()
        if key != name and any(other in text for text in lines)
    ], lines


def test_evaluate_mpii_zero_pckh_logs_the_diagnosis(tiny_mpii_experiment, tmp_path):
    """A new network predicts no keypoint within half a head length."""
    cfg = config.load(tiny_mpii_experiment)
    model = build_model(cfg)
    with torch.no_grad():  # heatmaps with their peak in one corner for every crop
        model.final_layer.weight.zero_()
    torch.save(model.state_dict(), tmp_path / "new.pth")
    figures = evaluate.run(
        config.load(tiny_mpii_experiment, ["TEST.MODEL_FILE", str(tmp_path / "new.pth")]),
        str(tiny_mpii_experiment),
        ["tools/test.py"],
    )
    text = next((tmp_path / "output").rglob("test.log")).read_text()
    forget_log_handlers()
    assert (
        diagnose_mpii.should_diagnose(figures)
        and "0: weights not trained: the batch norms' running statistics in " in text
    )
