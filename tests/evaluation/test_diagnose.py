"""Test the diagnosis of an AP of 0 or -1: each planted reason is the only one named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from poise import config
from poise.engine import evaluate
from poise.engine.trained_weights import untrained_weights_warning
from poise.evaluation import diagnose, evaluate_arrays
from poise.evaluation.coco import read_ground_truth
from poise.models import build_model, weights
from support.custom_datasets import experiment, make_set
from support.runs import forget_log_handlers

SIGMAS = np.full(5, 0.05)
FLIP = np.array([0, 2, 1, 4, 3])


def made(count=30, size=60.0, seed=0):
    """Return ground truth with one person per image of 640 x 480 and predictions of all persons."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(20, 300, (count, 2))
    points = corner[:, None] + size * (
        0.5
        + np.array([[0, -0.4], [0.3, -0.2], [-0.3, -0.2], [0.3, 0.4], [-0.3, 0.4]])
        + rng.uniform(-0.1, 0.1, (count, 5, 2))
    )
    boxes = np.concatenate([corner, np.full((count, 2), size)], axis=1)
    ids = np.arange(count) + 100
    content = {
        "images": [
            {"id": int(i), "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in ids
        ],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": n,
                "image_id": int(i),
                "category_id": 1,
                "area": float(0.7 * size**2),
                "bbox": box.tolist(),
                "iscrowd": 0,
                "keypoints": np.column_stack([p, np.full(5, 2)]).ravel().tolist(),
                "num_keypoints": 5,
            }
            for n, (i, box, p) in enumerate(zip(ids, boxes, points))
        ],
    }
    keypoints = np.concatenate(
        [points + rng.normal(0, 0.5, points.shape), rng.uniform(0.5, 1, (count, 5, 1))], axis=2
    )
    return content, diagnose.EvalContext(
        ids, keypoints, rng.uniform(0.5, 1, count), boxes, SIGMAS, FLIP
    )


def evaluate_and_diagnose(content, tested):
    truth = read_ground_truth(content)
    figures = evaluate_arrays(
        truth, tested.image_ids, tested.keypoints, tested.scores, SIGMAS, tested.category_id
    )
    return figures, diagnose.diagnose(truth, tested, figures)


def test_diagnose_good_predictions_explains_sizes_only():
    content, tested = made()
    figures, lines = evaluate_and_diagnose(content, tested)
    assert figures["AP"] > 0.9 and lines == [
        "AP (L), AR (L) are -1: no labeled person has an area of 9216 or more square pixels"
        " (large); the 30 scored persons have 2520 to 2520"
    ]
    content["annotations"][0]["area"] = 9999.0
    figures, lines = evaluate_and_diagnose(content, tested)
    assert lines == [] and not diagnose.should_diagnose(figures)


def test_diagnose_no_person_of_a_size_names_the_range():
    content, tested = made(size=30)
    lines = evaluate_and_diagnose(content, tested)[1]
    assert (
        [line.split(":")[0] for line in lines]
        == [
            "AP (M), AR (M) are -1",
            "AP (L), AR (L) are -1",
        ]
        and "from 1024 to 9216 square pixels (medium); the 30 scored persons have 630 to 630"
        in lines[0]
    )


def test_should_diagnose_figures_shown_as_zero():
    assert (
        diagnose.should_diagnose({"AP": 0.0004})
        and diagnose.should_diagnose({"AP": 0.5, "AP (M)": -1})
        and not diagnose.should_diagnose({"AP": 0.0006, "AR": 1})
    )
    content, tested = made()
    keypoints = tested.keypoints + [300, 0, 0]
    lines = diagnose.diagnose(
        read_ground_truth(content),
        replace(tested, keypoints=keypoints),
        {"AP": 0.0004, "Ap .5": 0.002},
    )
    assert len(lines) == 1 and lines[0].startswith("AP is 0: no known cause applies")


def test_diagnose_one_size_uses_its_persons():
    """Medium persons are missed; the diagnosis ignores the large ones."""
    content, tested = made(size=60)
    large, found = made(size=200, seed=1)
    for annotation in large["annotations"]:
        annotation.update(id=annotation["id"] + 100)
    content["annotations"] += large["annotations"]
    both = {
        key: np.concatenate([getattr(tested, key), getattr(found, key)])
        for key in ("image_ids", "keypoints", "scores", "box")
    }
    both["keypoints"][:30, :, :2] += [0, 150]
    figures, lines = evaluate_and_diagnose(content, replace(tested, **both))
    assert figures["AP (M)"] == 0 and figures["AP (L)"] > 0.9 and len(lines) == 1
    assert (
        lines[0].startswith("AP (M), AR (M) are 0: no known cause applies")
        and int(lines[0].split("prediction is ")[1].split(" %")[0]) > 60
    )


def test_diagnose_areas_in_fractions_are_named():
    content, tested = made()
    for annotation in content["annotations"]:
        annotation["area"] /= 640 * 480
    assert (
        "annotation areas are fractions of the image; square pixels are expected"
        in evaluate_and_diagnose(content, tested)[1]
    )


def test_diagnose_no_evaluated_person_is_named():
    content, tested = made()
    for annotation in content["annotations"][:10]:
        annotation["iscrowd"] = 1
    for annotation in content["annotations"][10:]:
        annotation.update(num_keypoints=0, keypoints=[0] * 15)
    figures, lines = evaluate_and_diagnose(content, tested)
    assert (
        figures["AP"] == -1
        and len(lines) == 1
        and "no person is scored: of 30 annotations 10 are crowds, the others have no labeled"
        in lines[0]
    )
    content["annotations"] = []
    assert (
        "has no annotations of the scored category" in evaluate_and_diagnose(content, tested)[1][0]
    )


def _boxes_and_joints(change):
    """Return predictions of a network for wrong boxes."""

    def plant(content, tested):
        boxes = change(tested.box)
        relative = (tested.keypoints[:, :, :2] - tested.box[:, None, :2]) / tested.box[:, None, 2:]
        keypoints = tested.keypoints.copy()
        keypoints[:, :, :2] = boxes[:, None, :2] + relative * boxes[:, None, 2:] + 40
        return replace(tested, box=boxes, keypoints=keypoints, box_source="found")

    return plant


def _categories(content, tested):
    return replace(tested, category_id=3)


def _other_images(content, tested):
    content["images"] += [
        {"id": 900 + n, "file_name": "x", "width": 640, "height": 480} for n in range(30)
    ]
    return replace(tested, image_ids=tested.image_ids + 800)


def _keypoints(change):
    def plant(content, tested):
        keypoints = tested.keypoints.copy()
        keypoints[:, :, :2] = change(keypoints[:, :, :2])
        return replace(tested, keypoints=keypoints)

    return plant


def _not_at_all(content, tested):
    none = np.zeros(0, int)
    return replace(
        tested,
        image_ids=none,
        keypoints=tested.keypoints[none],
        scores=tested.scores[none],
        box=tested.box[none],
        dropped={"scores below TEST.IMAGE_THRE 0.9": 30},
    )


def _low_joints(content, tested):
    keypoints = tested.keypoints + [300, 0, 0]
    keypoints[:, :, 2] = 0.01
    return replace(tested, keypoints=keypoints, joint_threshold=0.2)


def _same_for_all(content, tested):
    keypoints = tested.keypoints.copy()
    keypoints[:, :, :2] = tested.box[:, None, :2] + tested.box[:, None, 2:] * [0.05, 0.05]
    return replace(tested, keypoints=keypoints)


REASONS = {
    "boxes as shares": (
        _boxes_and_joints(lambda b: b / [640, 480, 640, 480]),
        (
            "wrong box format: those of found overlap the labeled keypoints by 0.00, read as"
            " fractions of the image from 0 to 1"
        ),
    ),
    "boxes as corners": (
        _boxes_and_joints(lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)),
        "read as left, top, right, bottom by",
    ),
    "boxes elsewhere": (
        _boxes_and_joints(lambda b: b + [300, 60, 0, 0]),
        "misplaced boxes: those of found overlap the labeled keypoints by only 0.0",
    ),
    "left and right": (
        _keypoints(lambda k: k[:, FLIP]),
        "left and right swapped: swapping the keypoints raises the AP from ",
    ),
    "mirrored images": (
        _keypoints(lambda k: [639, 0] + k[:, FLIP] * [-1, 1]),
        "mirrored images: mirroring the predictions raises the AP from ",
    ),
    "category": (
        _categories,
        "ids do not match: predictions have category_id 3, annotations 1",
    ),
    "other images": (
        _other_images,
        (
            "ids do not match: 0 of 30 images with labeled persons have a prediction, although 30"
            " images have one"
        ),
    ),
    "nothing": (
        _not_at_all,
        "no predictions; dropped: 30 scores below TEST.IMAGE_THRE 0.9",
    ),
    "low joints": (
        _low_joints,
        ("low keypoint scores: the highest is 0.01, TEST.IN_VIS_THRE is 0.2"),
    ),
    "equal scores": (
        lambda c, t: replace(t, scores=np.full(30, 0.5), keypoints=t.keypoints + [300, 0, 0]),
        "equal scores: all 30 predictions have 0.5",
    ),
    "same for all": (_same_for_all, "constant predictions: keypoints differ between persons"),
    "weights": (
        lambda c, t: replace(
            t, weights="weights not loaded: 3 %", keypoints=t.keypoints + [300, 0, 0]
        ),
        "weights not loaded: 3 %",
    ),
    "none of them": (
        lambda c, t: replace(t, keypoints=t.keypoints + [60, 0, 0]),
        "no known cause applies",
    ),
}


def test_diagnose_boxes_outside_their_image_is_no_id_mismatch():
    content, tested = made()
    plant, line = REASONS["boxes as shares"]
    planted = replace(plant(content, tested), dropped={"boxes outside their image": 1000})
    _, lines = evaluate_and_diagnose(content, planted)
    assert any(line in text for text in lines), lines
    assert not any("ids do not match" in text for text in lines), lines


@pytest.mark.parametrize("name", REASONS)
def test_diagnose_planted_reason_is_the_only_one(name):
    content, tested = made()
    content["annotations"][0]["area"] = 9999.0  # a large one too, so that no figure is -1
    plant, line = REASONS[name]
    figures, lines = evaluate_and_diagnose(content, plant(content, tested))
    assert figures["AP"] < 0.05, figures
    assert any(line in text for text in lines), lines
    others = [
        other
        for key, (_, other) in REASONS.items()
        if key != name and any(other in text for text in lines)
    ]
    assert not others, others


def test_untrained_weights_warning_names_the_cause(tmp_path):
    path = experiment(tmp_path, make_set(tmp_path / "set", 5, (("train", 4), ("val", 4))))
    cfg = config.load(path)
    model = build_model(cfg)
    torch.save(model.state_dict(), tmp_path / "new.pth")
    assert (
        "weights not trained: the batch norms' running statistics in "
        in untrained_weights_warning(model, weights.load(model, tmp_path / "new.pth"))
    )
    state = model.state_dict()
    for name in state:
        if name.endswith("running_mean"):
            state[name] += 1
    torch.save(state, tmp_path / "trained.pth")
    report = weights.load(model, tmp_path / "trained.pth")
    assert untrained_weights_warning(model, report) == ""
    report.loaded = [name for name in report.loaded if name.startswith("final_layer")]
    assert untrained_weights_warning(model, report).startswith(
        "weights not loaded: 0."
    ) and "% of the network's values are from " in untrained_weights_warning(model, report)


def test_evaluate_zero_ap_logs_the_diagnosis(tmp_path):
    """A new network detects no person."""
    path = experiment(
        tmp_path, make_set(tmp_path / "set", 5, (("train", 12), ("val", 6)), sigmas=[0.01] * 5)
    )
    cfg = config.load(path)
    torch.save(build_model(cfg).state_dict(), tmp_path / "new.pth")
    figures = evaluate.run(
        config.load(path, ["TEST.MODEL_FILE", str(tmp_path / "new.pth")]),
        str(path),
        ["tools/test.py"],
    )
    text = (tmp_path / "output" / "dots5" / "pose_res2net" / "dots" / "test.log").read_text()
    assert (
        figures["AP (L)"] == -1
        and "AP (L), AR (L) are -1: no labeled person has an area of 9216 or more square pixels "
        "(large)"
        in text
    )
    assert (
        figures["AP"] == 0
        and "are 0: weights not trained: the batch norms' running statistics in " in text
    )
    forget_log_handlers()
