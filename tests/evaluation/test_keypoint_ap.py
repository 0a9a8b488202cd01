"""Test the array evaluation against pycocotools."""

import contextlib
import io

import numpy as np
import pytest
from poise.config.dataset_yaml import COCO as SKELETON
from poise.evaluation import keypoint_ap
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIGMAS = np.array(SKELETON.sigmas)


def made_set(seed, images=40, joints=17):
    """Return (annotations, results) with all sizes, crowds, unlabeled persons, empty images, good,
    bad and duplicate predictions, over 20 per image, and equal scores.
    """
    rng = np.random.default_rng(seed)
    persons, results = [], []
    for image_id in rng.permutation(np.arange(1, images + 1) * 7).tolist():
        here = []
        for _ in range(rng.choice([0, 1, 2, 3, 7])):
            side = rng.choice([20, 50, 90, 200])
            corner = rng.uniform(0, 400, 2)
            points = corner + rng.uniform(0, side, (joints, 2))
            flags = rng.choice([0, 1, 2], joints) * (rng.random() < 0.85)
            here.append(points)
            persons.append(
                {
                    "id": len(persons) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": int(rng.random() < 0.1),
                    "area": float(side**2 * rng.uniform(0.5, 1)),
                    "bbox": [*corner.tolist(), float(side), float(side)],
                    "num_keypoints": int((flags > 0).sum()),
                    "keypoints": (
                        np.column_stack([points * (flags > 0)[:, None], flags]).ravel().tolist()
                    ),
                }
            )
        for _ in range(rng.choice([0, 1, 5, 30])):
            points = (
                here[rng.integers(len(here))]
                + rng.normal(0, rng.choice([0, 2, 6, 40]), (joints, 2))
                if here and rng.random() < 0.8
                else rng.uniform(0, 500, (joints, 2))
            )
            score = (
                float(rng.choice([0.0, 0.25, 0.5])) if rng.random() < 0.3 else float(rng.random())
            )
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "score": score,
                    "keypoints": np.column_stack([points, np.ones(joints)]).ravel().tolist(),
                }
            )
    return persons, results, list(range(7, 7 * images + 1, 7))


def judge(persons, results, image_ids):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in image_ids],
            "categories": [{"id": 1}],
            "annotations": [dict(p) for p in persons],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return (
        evaluation.eval["precision"][:, :, 0, :, 0],
        evaluation.eval["recall"][:, 0, :, 0],
        evaluation.stats,
    )


def ours(persons, results, image_ids):
    position = {image_id: i for i, image_id in enumerate(sorted(image_ids))}
    truth = keypoint_ap.GroundTruthPersons.from_annotations(persons, position, 17)
    image = np.array([position[r["image_id"]] for r in results])
    keypoints = np.array([r["keypoints"] for r in results]).reshape(len(results), 17, 3)
    return keypoint_ap.evaluate(
        truth, image, keypoints, np.array([r["score"] for r in results]), SIGMAS
    )


@pytest.mark.parametrize("seed", range(12))
def test_evaluate_random_sets_equals_pycocotools(seed):
    made = made_set(seed)
    precision, recall, stats = judge(*made)
    found = ours(*made)
    assert np.abs(found[0] - precision).max() < 1e-12 and np.abs(found[1] - recall).max() < 1e-12
    assert keypoint_ap.summarize([found]) == pytest.approx(stats.tolist(), abs=1e-12)
    assert 0 < stats[0] < 1


def test_evaluate_small_chunks_equals_one_chunk(monkeypatch):
    made = made_set(3)
    whole = ours(*made)
    monkeypatch.setattr(keypoint_ap, "_MAX_CELLS", 1)
    parts = ours(*made)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts))


def test_evaluate_no_person_of_a_size_equals_pycocotools():
    persons, results, image_ids = made_set(1)
    small = [p | {"area": 500.0} for p in persons]
    precision, recall, stats = judge(small, results, image_ids)
    assert keypoint_ap.summarize([ours(small, results, image_ids)]) == pytest.approx(
        stats.tolist(), abs=1e-12
    )
    assert stats[3] == -1 and stats[4] == -1


@pytest.mark.skipif(
    keypoint_ap._compiled is None, reason="poise.evaluation._matching is not built here"
)
@pytest.mark.parametrize("seed", range(3))
def test_matching_numpy_equals_compiled(monkeypatch, seed):
    compiled = ours(*made_set(seed))
    monkeypatch.setattr(keypoint_ap, "_compiled", None)
    for one, other in zip(compiled, ours(*made_set(seed)), strict=True):
        np.testing.assert_array_equal(one, other)
