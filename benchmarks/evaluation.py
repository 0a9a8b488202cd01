"""Time the evaluation of a set of the size of val2017: predictions to AP and result file."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import json_tricks
import numpy as np
import synthetic_coco
from oks_nms import THRESHOLD, reference_nms
from poise.config.dataset_yaml import COCO as SKELETON
from poise.engine.evaluate import evaluate_predictions
from poise.engine.predict import Predictions
from poise.evaluation import (
    average_precision,
    evaluate_arrays,
    read_ground_truth,
    read_results,
)
from poise.evaluation.evaluators import build_evaluator
from poise.structures.person_table import PackedStrings, PersonTable
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timing import Row, compare, main, time_alternately


def reference_evaluation(truth: COCO, p: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    """Evaluate as the reference code does: one dictionary per person, loops, indented JSON."""
    # the arrays that its test loop fills
    predicted = np.concatenate([p["keypoints"], p["keypoint_scores"][:, :, None]], axis=2)
    boxes = np.column_stack(
        [p["center"], p["scale"], np.prod(p["scale"] * 200, axis=1), p["box_scores"]]
    )
    persons = []
    for n in range(len(p["image_ids"])):
        persons.append(
            {
                "keypoints": predicted[n],
                "center": boxes[n][0:2],
                "scale": boxes[n][2:4],
                "area": boxes[n][4],
                "score": boxes[n][5],
                "image": int(p["image_ids"][n]),
            }
        )
    images = defaultdict(list)
    for person in persons:
        images[person["image"]].append(person)
    kept = []
    for image in images.values():
        for person in image:
            total, count = 0, 0
            for joint in range(17):
                if person["keypoints"][joint][2] > 0.2:
                    total, count = total + person["keypoints"][joint][2], count + 1
            person["score"] = (total / count if count else total) * person["score"]
        chosen = reference_nms(image, THRESHOLD)
        kept.append([image[n] for n in chosen] if chosen else image)
    results = []
    for image in kept:
        if not image:
            continue
        flat = np.zeros((len(image), 17 * 3))
        points = np.array([person["keypoints"] for person in image])
        for joint in range(17):
            flat[:, joint * 3], flat[:, joint * 3 + 1], flat[:, joint * 3 + 2] = (
                points[:, joint, 0],
                points[:, joint, 1],
                points[:, joint, 2],
            )
        results.extend(
            {
                "image_id": person["image"],
                "category_id": 1,
                "keypoints": list(flat[n]),
                "score": person["score"],
                "center": list(person["center"]),
                "scale": list(person["scale"]),
            }
            for n, person in enumerate(image)
        )
    path = folder / "reference.json"
    with open(path, "w") as file:
        json_tricks.dump(results, file, sort_keys=True, indent=4)
    with open(path) as file:
        json_tricks.load(file)  # the reference code checks that it can be read
    return run_coco_eval(COCOeval, truth, truth.loadRes(str(path)))


def run_coco_eval(kind, truth, found) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        judge = kind(truth, found, "keypoints")
        judge.params.useSegm = None
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return np.asarray(judge.stats[:10], float)


def measure() -> Iterator[Row]:
    """Rescore, OKS-NMS, result file and AP of 104,125 detections in 5,000 images."""
    logging.disable(logging.WARNING)
    try:
        yield from _measure()
    finally:
        logging.disable(logging.NOTSET)


def _measure() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "annotations" / "person_keypoints_val2017.json"
        content = synthetic_coco.write_annotations(
            path,
            ["a.jpg"],
            synthetic_coco.VAL_PERSONS,
            synthetic_coco.VAL_LABELED,
            images=synthetic_coco.VAL_IMAGES,
            crowds=synthetic_coco.VAL_CROWDS,
        )
        p = synthetic_coco.make_predictions(content, synthetic_coco.DETECTIONS)
        cfg = synthetic_coco.load_experiment(
            folder, folder, "TEST.USE_GT_BBOX", False, "TEST.OKS_THRE", THRESHOLD
        )
        ids = np.array([image["id"] for image in content["images"]])
        count = len(p["image_ids"])
        table = PersonTable(
            SKELETON,
            PackedStrings.pack(["a.jpg"] * len(ids)),
            ids,
            np.searchsorted(ids, p["image_ids"]).astype(np.int32),
            p["center"],
            p["scale"] * 200,
            p["scale"],
            np.zeros((count, 17, 2), np.float32),
            np.zeros((count, 17), np.float32),
            p["box_scores"],
            np.arange(count),
            "made",
            has_keypoints=False,
        )
        found = Predictions(p["keypoints"].astype(np.float64), p["keypoint_scores"])
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
        stats = {}
        # reads the annotations, as the reference code did above
        build_evaluator(cfg).check(table)

        def run_poise() -> None:
            # as a training does after an epoch
            stats["poise"], _ = evaluate_predictions(cfg, table, found, folder / "run")

        def run_with_keypoint_table() -> None:
            # as tools/test.py does
            evaluate_predictions(cfg, table, found, folder / "run", per_joint=True)

        def run_reference() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                stats["reference"] = reference_evaluation(truth, p, folder)

        # warm-up of Poise; the 40 s of the reference code need none
        run_poise()
        seconds = time_alternately(
            {
                "poise": run_poise,
                "with joints": run_with_keypoint_table,
                "reference": run_reference,
            },
            2,
            warmup=0,
        )
        yield compare(f"evaluation at val2017's scale, {count:,} detections", seconds, 35)
        yield Row(
            "the same: largest difference of the ten metrics",
            f"AP {stats['poise']['AP']:.4f}",
            f"reference {stats['reference'][0]:.4f}",
            float(np.abs(np.array(list(stats["poise"].values())) - stats["reference"]).max()),
            "max",
            1e-12,
            "",
        )
        yield compare(
            "the same with a table per keypoint, which the reference code does not have",
            seconds,
            None,
            product="with joints",
        )
        yield from measure_ap_only(folder, path, truth)


def measure_ap_only(folder: Path, path: Path, truth: COCO) -> Iterator[Row]:
    """Compare the AP computation with pycocotools and faster-coco-eval."""
    (file,) = (folder / "run" / "results").iterdir()
    results, content = read_results(file), read_ground_truth(path)
    arrays = (
        np.array([r["image_id"] for r in results]),
        np.array([r["keypoints"] for r in results]).reshape(-1, 17, 3),
        np.array([r["score"] for r in results]),
    )
    stats = {}
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = truth.loadRes(str(file))
    functions = {
        "poise": lambda: stats.update(poise=evaluate_arrays(content, *arrays, SKELETON.sigmas)),
        "pycocotools": lambda: stats.update(pycocotools=run_coco_eval(COCOeval, truth, loaded)),
    }
    if importlib.util.find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        with contextlib.redirect_stdout(io.StringIO()):
            faster = FasterCOCO(str(path))
            again = faster.loadRes(str(file))
        functions["faster-coco-eval"] = lambda: stats.update(
            faster=run_coco_eval(COCOeval_faster, faster, again)
        )
    seconds = time_alternately(functions, 2, warmup=0)
    for other in list(functions)[1:]:
        yield compare(f"AP alone, against {other}", seconds, None, baseline=other)
    yield Row(
        "largest difference of the metrics of the file and of the arrays",
        "average_precision",
        "of the arrays",
        max(
            abs(a - b)
            for a, b in zip(average_precision(path, file).values(), stats["poise"].values())
        ),
        "max",
        0.0,
        "",
    )


if __name__ == "__main__":
    main(measure)
