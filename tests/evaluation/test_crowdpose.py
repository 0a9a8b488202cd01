"""Test CrowdPose AP against plain loops and published figures."""

import contextlib
import io
import json
import logging
import math
import shutil

import numpy as np
import pytest
from poise import config, evaluation
from poise.config.dataset_yaml import load_dataset_info
from poise.datasets import load_split
from poise.engine import evaluate, train
from poise.engine.run_logger import TrainLogger
from poise.errors import DataError
from poise.evaluation.crowdpose import AREA_OF_BOX, CROWD_STATS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.custom_datasets import experiment
from support.runs import forget_log_handlers

# of crowdpose-api, in the order of its joints
SIGMAS = [
    0.079,
    0.079,
    0.072,
    0.072,
    0.062,
    0.062,
    0.107,
    0.107,
    0.087,
    0.087,
    0.089,
    0.089,
    0.079,
    0.079,
]


def plain_figures(truth, results):
    """The nine metrics, computed one prediction and one person at a time."""
    images = {image["id"]: image["crowdIndex"] for image in truth["images"]}
    kinds = [
        set(images),
        {i for i, c in images.items() if c < 0.2},
        {i for i, c in images.items() if 0.2 <= c < 0.8},
        {i for i, c in images.items() if c >= 0.8},
    ]
    curves = [plain_curves(truth, results, kind) for kind in kinds]
    thresholds = sorted(curves[0])
    mean_precision = [
        mean([value for t in thresholds for value in curve[t][0]]) for curve in curves
    ]
    figures = [
        mean_precision[0],
        mean(curves[0][0.5][0]),
        mean(curves[0][0.75][0]),
        mean([curves[0][t][1] for t in thresholds]),
        curves[0][0.5][1],
        curves[0][0.75][1],
    ]
    return figures + mean_precision[1:]


def mean(values):
    return sum(values) / len(values)


def plain_curves(truth, results, images):
    """Return {threshold: (101 precisions, recall)}; -1 without persons."""
    found = {}
    for step in range(10):
        threshold = round(0.5 + 0.05 * step, 2)
        # (score, right) of predictions that count, image after image
        verdicts, wanted = [], 0
        for image in sorted(images):
            persons = [p for p in truth["annotations"] if p["image_id"] == image]
            for person in persons:
                person["left_out"] = bool(person["iscrowd"]) or person["num_keypoints"] == 0
                person["found"] = False
            wanted += sum(not person["left_out"] for person in persons)
            persons.sort(key=lambda person: person["left_out"])
            for prediction in sorted(
                (r for r in results if r["image_id"] == image), key=lambda r: -r["score"]
            )[:20]:
                best, least = None, min(threshold, 1 - 1e-10)
                for person in persons:
                    if person["found"] and not person["iscrowd"]:
                        continue
                    if best is not None and not best["left_out"] and person["left_out"]:
                        break
                    similarity = plain_oks(person, prediction)
                    if similarity >= least:
                        best, least = person, similarity
                if best is None:
                    verdicts.append((prediction["score"], False))
                else:
                    best["found"] = True
                    if not best["left_out"]:
                        verdicts.append((prediction["score"], True))
        if not wanted:
            found[threshold] = [-1] * 101, -1
            continue
        verdicts.sort(key=lambda verdict: -verdict[0])
        right, precision, recall = 0, [], []
        for number, (_, is_right) in enumerate(verdicts, 1):
            right += is_right
            precision.append(right / (number + np.spacing(1)))
            recall.append(right / wanted)
        best_from_here = [max(precision[i:]) for i in range(len(precision))]
        at = []
        for level in np.linspace(0, 1, 101):
            place = next((i for i, value in enumerate(recall) if value >= level), None)
            at.append(0 if place is None else best_from_here[place])
        found[threshold] = at, recall[-1] if recall else 0
    return found


def plain_oks(person, prediction):
    x, y, width, height = person["bbox"]
    area = height * width * 0.53
    any_labelled = any(flag > 0 for flag in person["keypoints"][2::3])
    total, count = 0.0, 0
    for joint, sigma in enumerate(SIGMAS):
        px, py = prediction["keypoints"][3 * joint : 3 * joint + 2]
        tx, ty, flag = person["keypoints"][3 * joint : 3 * joint + 3]
        if any_labelled and flag <= 0:
            continue
        if any_labelled:
            dx, dy = px - tx, py - ty
        else:
            dx = max(0, x - width - px) + max(0, px - (x + 2 * width))
            dy = max(0, y - height - py) + max(0, py - (y + 2 * height))
        total += math.exp(-(dx**2 + dy**2) / (2 * sigma) ** 2 / (area + np.spacing(1)) / 2)
        count += 1
    return total / count


def made_crowd(
    seed, indices=(0.0, 0.1, 0.2, 0.35, 0.6, 0.79, 0.8, 0.93, 1.0), annotated_area=False
):
    """Return (ground truth, results) of crowded images with overlaps, unlabeled persons, crowds
    and good, bad and duplicate predictions.
    """
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    results = []
    for n in range(3 * len(indices)):
        image_id = int(rng.permutation(100)[0]) + 100 * n
        truth["images"].append({"id": image_id, "crowdIndex": indices[n % len(indices)]})
        persons, here = int(rng.integers(1, 7)), []
        for _ in range(persons):
            # all on top of each other
            size, corner = rng.uniform(60, 200, 2), rng.uniform(0, 60, 2)
            points = corner + size * rng.random((14, 2))
            flags = rng.choice([0, 1, 2], 14) * (rng.random() < 0.9)
            here.append(points)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": int(rng.random() < 0.05),
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "num_keypoints": int((flags > 0).sum()),
                    "keypoints": (
                        np.column_stack([points * (flags > 0)[:, None], flags]).ravel().tolist()
                    ),
                }
            )
            if annotated_area:
                truth["annotations"][-1]["area"] = float(size.prod() * rng.uniform(0.2, 0.8))
        for k in range(int(rng.choice([0, persons, 25]))):
            points = here[k % persons] + rng.normal(0, rng.choice([0, 3, 8, 40]), (14, 2))
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "score": float(rng.choice([0.25, 0.5, rng.random()])),
                    "keypoints": np.column_stack([points, np.ones(14)]).ravel().tolist(),
                }
            )
    return truth, results


def ours(truth, results):
    arrays = (
        np.array([r["image_id"] for r in results]),
        np.array([r["keypoints"] for r in results]).reshape(-1, 14, 3),
        np.array([r["score"] for r in results]),
    )
    return evaluation.crowd_average_precision(
        evaluation.read_ground_truth(truth, 14, area_of_box=AREA_OF_BOX),
        *arrays,
        load_dataset_info("crowdpose").skeleton.sigmas,
    )


def test_crowdpose_dataset_has_published_keypoints_and_sigmas():
    skeleton = load_dataset_info("crowdpose").skeleton
    assert (
        skeleton.num_keypoints == 14
        and list(skeleton.sigmas) == SIGMAS
        and load_dataset_info("crowdpose").metric == "crowdpose"
    )


@pytest.mark.parametrize("seed", range(6))
def test_crowdpose_ap_random_sets_equals_plain_loops(seed):
    truth, results = made_crowd(seed)
    figures = ours(truth, results)
    assert tuple(figures) == CROWD_STATS
    assert list(figures.values()) == pytest.approx(plain_figures(truth, results), abs=1e-12)
    assert (
        0 < figures["AP (easy)"] < 1
        and 0 < figures["AP (hard)"] < 1
        and len({round(v, 6) for v in figures.values()}) > 5
    )


def test_crowdpose_ap_empty_crowding_level_is_minus_1():
    truth, results = made_crowd(1, (0.3, 0.9))
    for person in truth["annotations"]:
        if (
            next(
                image["crowdIndex"]
                for image in truth["images"]
                if image["id"] == person["image_id"]
            )
            == 0.9
        ):
            person["num_keypoints"] = 0
    figures = ours(truth, results)
    assert list(figures.values()) == pytest.approx(plain_figures(truth, results), abs=1e-12)
    assert (
        figures["AP (easy)"] == figures["AP (hard)"] == -1
        and 0 < figures["AP"] < figures["AP (medium)"]
    )


def test_crowdpose_ap_ignores_annotated_areas():
    truth, results = made_crowd(2)
    plain = ours(truth, results)
    assert (
        ours({**truth, "annotations": [{**p, "area": 1.0} for p in truth["annotations"]]}, results)
        == plain
    )


def test_crowdpose_ap_missing_crowd_index_raises():
    truth, results = made_crowd(3)
    truth["images"][4]["crowdIndex"] = "0.9"
    with pytest.raises(DataError, match="invalid crowdIndex '0.9'; CrowdPose"):
        ours(truth, results)
    del truth["images"][4]["crowdIndex"]
    with pytest.raises(
        DataError,
        match=(f"image {truth['images'][4]['id']}: missing crowdIndex.*metric: oks"),
    ):
        ours(truth, results)


def test_crowdpose_ap_no_results_warns_and_unknown_images_raise(caplog):
    truth, results = made_crowd(4)
    with caplog.at_level(logging.WARNING):
        assert ours(truth, []) == dict.fromkeys(CROWD_STATS, 0.0)
    assert "no predictions to evaluate" in caplog.text
    with pytest.raises(
        DataError, match="have 1 image ids that the ground truth does not have, such as -5"
    ):
        ours(truth, [{**results[0], "image_id": -5}])


@pytest.mark.parametrize("seed", range(4))
def test_coco_ap_crowded_sets_equals_pycocotools(seed):
    """The same crowds with areas and the metric oks, as in OCHuman."""
    truth, results = made_crowd(seed, annotated_area=True)
    with contextlib.redirect_stdout(io.StringIO()):
        file = COCO()
        file.dataset = {"info": {}, **truth, "annotations": [dict(p) for p in truth["annotations"]]}
        file.createIndex()
        judge = COCOeval(file, file.loadRes([dict(r) for r in results]), "keypoints")
        judge.params.kpt_oks_sigmas = np.array(SIGMAS)
        judge.evaluate(), judge.accumulate(), judge.summarize()
    found = evaluation.average_precision(truth, results, SIGMAS)
    assert (
        list(found.values()) == pytest.approx(judge.stats.tolist(), abs=1e-12)
        and 0 < found["AP"] < 1
    )


def test_crowdpose_ap_published_example_equals_xtcocotools(shared):
    """The usual example of CrowdPose; figures of xtcocotools 1.14.3 (keypoints_crowd, use_area
    False), which rounds the last three.
    """
    folder = shared / "data" / "crowdpose_sample"
    truth, results = (
        json.loads((folder / f"example_crowdpose_{name}.json").read_text())
        for name in ("val", "preds")
    )
    figures = list(ours(truth, results).values())
    assert figures == pytest.approx(plain_figures(truth, results), abs=1e-12)
    assert figures[:6] == pytest.approx(
        [0.78772159, 0.98811881, 0.73143564, 0.82222222, 1.0, 0.77777778], abs=1e-8
    )
    assert figures[6:] == pytest.approx([1.0, 0.9802, 0.4116], abs=5e-5)


def test_crowdpose_real_images_train_and_evaluate(tmp_path, shared, monkeypatch):
    """Two images in CrowdPose's layout with annotated and detected boxes."""
    monkeypatch.setattr(TrainLogger, "_show_test", lambda *_: None)
    source, root = shared / "data" / "crowdpose_sample", tmp_path / "crowdpose"
    (root / "images").mkdir(parents=True), (root / "json").mkdir()
    for name in ("train", "val"):
        shutil.copy(source / "test_crowdpose.json", root / "json" / f"crowdpose_{name}.json")
    for name in ("103319.jpg", "106848.jpg"):
        shutil.copy(source / name, root / "images" / name)
    path = experiment(tmp_path, "''")
    overrides = ["DATASET.DATASET", "crowdpose", "DATASET.ROOT", str(root)]
    cfg = config.load(path, overrides)
    table, images = load_split(cfg, train=True)
    assert (
        len(table) == 4
        and table.dropped == {"without labeled joints": 1}
        and table.keypoints.shape == (4, 14, 2)
        and images.read(table.image_name(0)).shape[2] == 3
    )
    try:
        train.run(cfg, str(path), ["tools/train.py"])
        for more in (
            [],
            [
                "TEST.USE_GT_BBOX",
                "False",
                "TEST.COCO_BBOX_FILE",
                str(source / "test_crowdpose_det_AP_40.json"),
            ],
        ):
            figures = evaluate.run(
                config.load(path, overrides + more), str(path), ["tools/test.py"]
            )
            assert (
                tuple(figures) == CROWD_STATS
                and figures["AP (easy)"] == figures["AP (hard)"] == -1
                and figures["AP (medium)"] == figures["AP"] >= 0
            )
    finally:
        forget_log_handlers()
