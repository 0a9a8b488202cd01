"""Test COCO evaluation against hand-computed and recorded figures; invalid input."""

import copy
import json
import logging
import math
import os
import re
import shutil

import numpy as np
import pytest
from poise import config, evaluation
from poise.config.dataset_yaml import COCO
from poise.errors import DataError
from poise.evaluation.coco import STATS
from poise.evaluation.evaluators import build_evaluator
from support.paths import GOLDEN, SHARED

needs_shared = pytest.mark.skipif(
    not (SHARED / "conformance").is_dir(), reason=f"{SHARED} is not here"
)


def moved(xy, area, sigmas, similarity):
    """Move the keypoints `xy` (J, 2) to the right until each OKS term is `similarity`."""
    distance = np.sqrt(-np.log(similarity) * 2 * (2 * np.asarray(sigmas)) ** 2 * area)
    return xy + np.stack([distance, np.zeros(len(xy))], axis=1)


def person(xy, area, **fields):
    keypoints = np.concatenate([xy, np.full((len(xy), 1), 2)], axis=1)
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    box = [x0, y0, x1 - x0, y1 - y0]
    return dict(category_id=1, keypoints=keypoints.ravel().tolist(), area=area, bbox=box, **fields)


def result(image_id, xy, score):
    keypoints = np.concatenate([xy, np.ones((len(xy), 1))], axis=1)
    return {
        "image_id": image_id,
        "category_id": 1,
        "keypoints": keypoints.ravel().tolist(),
        "score": score,
    }


def small_set(sigmas):
    """Two images with one person each (50^2 and 200^2 pixels), predicted with OKS 1 and 0.72, and
    a false positive with the best score. Annotation ids start at 0; iscrowd and num_keypoints
    are missing, as in many custom files.
    """
    joints = len(sigmas)
    line = np.linspace(0, 1, joints)[:, None] * [1, 1]
    medium, large = 10 + 50 * line, 100 + 200 * line
    truth = {
        "images": [{"id": 7}, {"id": 8}, {"id": 9}],
        "annotations": [
            person(medium, 50.0**2, id=0, image_id=7),
            person(large, 200.0**2, id=1, image_id=8),
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    results = [
        result(7, medium, 0.9),
        result(8, moved(large, 200.0**2, sigmas, 0.72), 0.5),
        result(8, np.full((joints, 2), 900.0), 0.95),
    ]
    return truth, results


@pytest.mark.parametrize("sigmas", [None, (0.05, 0.1), (0.03,) * 133])
def test_average_precision_small_set_equals_hand_figures(sigmas, tmp_path, capsys):
    truth, results = small_set(sigmas or COCO.sigmas)
    before = copy.deepcopy((truth, results))
    figures = evaluation.average_precision(truth, results, sigmas)
    # thresholds .50 to .70: false, true, true; precision at most 2/3, at any recall. Thresholds .75
    # to .95: false, true, false; precision 1/2 up to recall 1/2, which is 51 of 101 points. The
    # false person's area is 0, so it counts for neither size; the 0.72 one has the large size
    low, high = 2 / 3, 51 / 101 / 2
    want = ((low + high) / 2, low, high, 1, 0.5, 0.75, 1, 0.5, 1, 0.5)
    assert list(figures) == list(STATS)
    assert list(figures.values()) == pytest.approx(want, abs=1e-12)
    assert (truth, results) == before
    assert capsys.readouterr().out == ""

    # the same from files
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert (
        evaluation.average_precision(
            tmp_path / "truth.json", str(tmp_path / "results.json"), sigmas
        )
        == figures
    )


def test_average_precision_pycocotools_object_without_size_is_minus_1():
    from pycocotools.coco import COCO as CocoFile

    truth, results = small_set(COCO.sigmas)
    del truth["annotations"][1], results[1:]
    coco = CocoFile()
    coco.dataset = truth
    coco.createIndex()
    figures = evaluation.average_precision(coco, results)
    assert figures["AP"] == pytest.approx(1) and figures["AP (L)"] == figures["AR (L)"] == -1


def test_evaluator_ground_truth_is_cached_until_changed(tiny_experiment, small_set, tmp_path):
    """A changed file is read again, even with equal size and time."""
    root = tmp_path / "set"
    shutil.copytree(small_set, root)
    cfg = config.load(tiny_experiment, ["DATASET.ROOT", str(root)])
    path, first = root / "annotations/person_keypoints_val2017.json", build_evaluator(cfg).truth()
    assert build_evaluator(cfg).truth() is first and first.persons[1] is first.persons[1]
    other, before = path.with_name("other.json"), path.stat()
    number = str(first["annotations"][0]["area"])
    other.write_text(
        path.read_text()
        .replace(f'"area": {number}', f'"area": {number[:-1]}{(int(number[-1]) + 1) % 10}')
        .replace(f'"area":{number}', f'"area":{number[:-1]}{(int(number[-1]) + 1) % 10}')
    )
    other.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (
        path.stat().st_size == before.st_size
        and build_evaluator(cfg).truth()["annotations"][0]["area"]
        != first["annotations"][0]["area"]
    )


def test_average_precision_no_results_is_zero_and_warns(caplog):
    truth, _ = small_set(COCO.sigmas)
    with caplog.at_level(logging.WARNING):
        assert evaluation.average_precision(truth, []) == dict.fromkeys(STATS, 0.0)
    assert "no predictions to evaluate" in caplog.text
    figures = evaluation.per_joint_pck(truth, [])
    assert figures["labelled"].tolist() == [2] * 17 and figures["pck"].tolist() == [0] * 17


def test_average_precision_mismatched_results_raise():
    truth, results = small_set((0.05,) * 14)
    with pytest.raises(DataError, match="14 keypoints, the OKS sigmas 17; pass the OKS sigmas"):
        evaluation.average_precision(truth, results)
    with pytest.raises(DataError, match="14 keypoints, the OKS sigmas 16$"):
        evaluation.average_precision(truth, results, [0.05] * 16)
    with pytest.raises(
        DataError, match="have 1 image ids that the ground truth does not have, such as 5"
    ):
        evaluation.average_precision(truth, [dict(results[0], image_id=5)], [0.05] * 14)
    del truth["annotations"][1]["area"]
    with pytest.raises(DataError, match="the ground truth: annotation 1: missing area"):
        evaluation.average_precision(truth, results, [0.05] * 14)


def test_per_joint_pck_equals_hand_figures():
    sigmas = np.array([0.1, 0.05, 0.05])
    xy, area = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]]), 2500.0
    whole = person(xy, area, id=1, image_id=1)
    # the second person, in another image, has only joint 0 labeled; the third has no prediction; a
    # crowd is not counted
    one_joint = person(xy, area, id=2, image_id=2)
    one_joint["keypoints"] = [0, 0, 1, 0, 0, 0, 0, 0, 0]
    missed = person(xy, area, id=3, image_id=3)
    missed["keypoints"] = [0, 0, 1, 50, 0, 1, 0, 0, 0]
    crowd = person(xy, area, id=4, image_id=1, iscrowd=1)
    truth = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "annotations": [whole, one_joint, missed, crowd],
    }
    near = moved(xy, area, sigmas, 0.9)
    near[1] = moved(xy, area, sigmas, 0.3)[1]
    results = [
        # OKS 0.5: not the match, though its score is higher
        result(1, moved(xy, area, sigmas, 0.5), 0.9),
        result(1, near, 0.1),  # OKS (0.9 + 0.3 + 0.9) / 3
        result(2, moved(xy, area, sigmas, 0.6), 0.5),
    ]
    figures = evaluation.per_joint_pck(truth, results, sigmas)
    assert figures["labelled"].tolist() == [3, 2, 1]
    assert figures["similarity"] == pytest.approx([(0.9 + 0.6) / 3, 0.3 / 2, 0.9])
    assert figures["pck"] == pytest.approx([2 / 3, 0, 1])
    assert evaluation.per_joint_pck(truth, results, sigmas, threshold=0.7)["pck"] == pytest.approx(
        [1 / 3, 0, 1]
    )

    table = evaluation.format_joint_table(("a", "b", "c"), figures).splitlines()
    assert table[2:] == [
        "| a | 3 | 0.500 | 0.667 |",
        "| b | 2 | 0.150 | 0.000 |",
        "| c | 1 | 0.900 | 1.000 |",
    ]


def test_per_joint_pck_unlabeled_keypoint_is_nan():
    truth, results = small_set((0.05, 0.05))
    for annotation in truth["annotations"]:
        annotation["keypoints"][5] = 0
    figures = evaluation.per_joint_pck(truth, results, (0.05, 0.05))
    assert figures["labelled"].tolist() == [2, 0]
    assert figures["similarity"][0] == pytest.approx((1 + 0.72) / 2)
    assert np.isnan([figures["similarity"][1], figures["pck"][1]]).all()


def test_rescore_equals_hand_figures():
    joints = np.array([[0.2, 0.6, 0.4], [0.1, 0.2, 0.0], [0.9, 0.1, 0.1]])
    # the threshold itself does not count
    assert evaluation.rescore(joints, [0.5, 0.7, 1.0], 0.2) == pytest.approx([0.25, 0, 0.9])
    assert evaluation.rescore(np.zeros((0, 17)), np.zeros(0), 0.2).shape == (0,)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2,\)"):
        evaluation.rescore(joints, [0.5, 0.7], 0.2)


def test_rescore_recorded_predictions_equals_hrnet():
    golden = np.load(GOLDEN / "evaluate.npz")
    scores = evaluation.rescore(golden["preds"][:, :, 2], golden["box_scores"], 0.2)
    assert scores.tolist() == golden["scores"].tolist()


@pytest.mark.parametrize("soft", [False, True])
def test_oks_nms_per_image_keeps_order_of_first_appearance(soft):
    golden = np.load(GOLDEN / "evaluate.npz")
    arrays = golden["preds"], golden["scores"], golden["areas"], golden["image_id"]
    want = golden["kept_soft" if soft else "kept_hard"]
    assert evaluation.oks_nms_per_image(*arrays, 0.9, soft).tolist() == want.tolist()

    # image ids that fall, and images mixed with one another (no two scores of an image tie)
    assert (
        evaluation.oks_nms_per_image(*arrays[:3], -arrays[3], 0.9, soft).tolist() == want.tolist()
    )
    mixed = np.random.default_rng(0).permutation(len(arrays[3]))
    kept = mixed[evaluation.oks_nms_per_image(*(array[mixed] for array in arrays), 0.9, soft)]
    images = list(dict.fromkeys(arrays[3][mixed].tolist()))
    assert kept.tolist() == [k for image in images for k in want.tolist() if arrays[3][k] == image]
    assert evaluation.oks_nms_per_image(np.zeros((0, 17, 3)), [], [], [], 0.9, soft).shape == (0,)


def test_suppress_nan_keypoints_raise():
    golden = np.load(GOLDEN / "evaluate.npz")
    keypoints = golden["preds"][:5].copy()
    keypoints[2, 0, 1] = np.nan
    with pytest.raises(
        DataError, match=f"1 of 5 predicted persons are NaN .* in image {golden['image_id'][2]}"
    ):
        evaluation.oks_nms_per_image(
            keypoints, golden["scores"][:5], golden["areas"][:5], golden["image_id"][:5], 0.9
        )
    with pytest.raises(ValueError, match=r"\(5, 17, 3\), \(5,\), \(4,\), \(5,\)"):
        evaluation.oks_nms_per_image(
            keypoints, golden["scores"][:5], golden["areas"][:4], golden["image_id"][:5], 0.9
        )


def test_write_results_then_read_is_equal(tmp_path):
    rng = np.random.default_rng(1)
    keypoints, scores = rng.uniform(0, 500, (4, 17, 3)).astype(np.float32), rng.uniform(0, 1, 4)
    path = tmp_path / "results" / "keypoints_val_results.json"
    evaluation.write_results(path, np.array([5, 5, 9, 2**40]), keypoints, scores)
    read = evaluation.read_results(path)
    assert [r["image_id"] for r in read] == [5, 5, 9, 2**40]
    assert all(
        set(r) == {"image_id", "category_id", "keypoints", "score"} and r["category_id"] == 1
        for r in read
    )
    assert (
        np.array([r["keypoints"] for r in read]).tolist()
        == keypoints.reshape(4, 51).astype(float).tolist()
    )
    assert [r["score"] for r in read] == scores.tolist()

    centers, scales = rng.uniform(0, 500, (4, 2)), rng.uniform(0, 3, (4, 2))
    evaluation.write_results(path, np.arange(4), keypoints, scores, centers, scales, category_id=3)
    read = evaluation.read_results(path)
    assert [r["center"] for r in read] == centers.tolist() and [
        r["scale"] for r in read
    ] == scales.tolist()
    assert {r["category_id"] for r in read} == {3}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file stays


def test_write_results_no_persons_writes_empty_list(tmp_path):
    evaluation.write_results(tmp_path / "r.json", [], np.zeros((0, 17, 3)), [])
    assert evaluation.read_results(tmp_path / "r.json") == []


def test_write_and_read_results_invalid_raise(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("[]")
    keypoints = np.ones((2, 17, 3))
    keypoints[1, 3, 0] = np.nan
    with pytest.raises(
        DataError, match="1 of 2 predicted persons are NaN or infinite .the first in image 8"
    ):
        evaluation.write_results(path, [7, 8], keypoints, [1, 1])
    assert path.read_text() == "[]"
    with pytest.raises(ValueError, match=r"\(2,\), \(1, 17, 3\), \(1,\)"):
        evaluation.write_results(path, [7, 8], keypoints[:1], [1])
    with pytest.raises(DataError, match=re.escape(f"{path / 'x.json'}: cannot be written")):
        evaluation.write_results(path / "x.json", [7], keypoints[:1], [1])
    for text, message in (
        ("[{", "is not valid JSON"),
        ("{}", "expected a list, got dict"),
        ('[{"image_id": 1, "score": 1}]', "entry 0 has no category_id, keypoints"),
        ("[3]", "entry 0 has no image_id"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as error:
            evaluation.read_results(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(
        DataError, match="absent.json: cannot read the annotation file .No such file"
    ):
        evaluation.average_precision(tmp_path / "absent.json", [])


def test_format_table_equals_hrnet():
    figures = {"AP": 0.74412, "Ap .5": 0.9}
    assert evaluation.format_table(figures, "pose_resnet").splitlines() == [
        "| Arch | AP | Ap .5 |",
        "|---|---|---|",
        "| pose_resnet | 0.744 | 0.900 |",
    ]
    assert "| posenas_... | 0.744 |" in evaluation.format_table(figures, "posenas_search_coco")


@needs_shared
@pytest.mark.parametrize("case", [0, 1])
def test_average_precision_recorded_predictions_equal_hrnet(case):
    want = json.loads((SHARED / "conformance" / "pipeline.json").read_text())["evaluate"][case]
    arrays = np.load(SHARED / "conformance" / "evaluate.npz")
    keypoints, boxes, image_ids = arrays["preds"], arrays["boxes"], arrays["image_id"]
    scores = evaluation.rescore(keypoints[:, :, 2], boxes[:, 5], want["in_vis_thre"])
    kept = evaluation.oks_nms_per_image(
        keypoints, scores, boxes[:, 4], image_ids, want["oks_thre"], want["soft_nms"]
    )
    assert len(keypoints) == want["instances"] and len(kept) == want["kept_after_nms"]
    truth = SHARED / "data" / "coco_subset" / "annotations" / "person_keypoints_val2017.json"
    figures = evaluation.average_precision(
        truth, evaluation.coco_results(image_ids[kept], keypoints[kept], scores[kept])
    )
    assert list(figures) == list(want["stats"])
    assert figures == pytest.approx(want["stats"], abs=1e-6)


@needs_shared
def test_average_precision_equals_cocoapi_documentation():
    folder = SHARED / "data" / "coco_eval_oracle"
    truth = folder / "person_keypoints_val2014_first100_reconstructed.json"
    figures = evaluation.average_precision(
        truth, folder / "person_keypoints_val2014_fakekeypoints100_results.json"
    )
    want = [0.372, 0.636, 0.348, 0.384, 0.386, 0.514, 0.734, 0.504, 0.508, 0.522]
    assert [round(value, 3) for value in figures.values()] == want
    assert not math.isnan(sum(figures.values()))
