"""Evaluation of a test set at the size of val2017, from the network's predictions to the AP and
the file for the server.
"""

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
import made_data
import numpy as np
from comparing import Row, compared, in_turns, main
from oks_nms import THRESHOLD, reference_nms
from poise.config.datasets import COCO as SKELETON
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


def reference_evaluation(truth: COCO, p: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    """As the references do it: a dictionary for each person, loops, an indented file, which is
    read again twice.
    """
    # the arrays that their test loop fills
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
        json_tricks.load(file)  # to see whether it is whole
    return judged(COCOeval, truth, truth.loadRes(str(path)))


def judged(kind, truth, found) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        judge = kind(truth, found, "keypoints")
        judge.params.useSegm = None
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return np.asarray(judge.stats[:10], float)


def measure() -> Iterator[Row]:
    """Rescoring, OKS-NMS, result file and AP of 104,125 detections in 5,000 images."""
    logging.disable(logging.WARNING)
    try:
        yield from _measured()
    finally:
        logging.disable(logging.NOTSET)


def _measured() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "annotations" / "person_keypoints_val2017.json"
        content = made_data.annotation_file(
            path,
            ["a.jpg"],
            made_data.VAL_PERSONS,
            made_data.VAL_LABELLED,
            images=made_data.VAL_IMAGES,
            crowds=made_data.VAL_CROWDS,
        )
        p = made_data.predictions(content, made_data.DETECTIONS)
        cfg = made_data.experiment(
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
        build_evaluator(cfg).check(
            table
        )  # reads the annotations, as the references' index of them above

        def poise() -> None:
            # as a training does after an epoch
            stats["poise"], _ = evaluate_predictions(cfg, table, found, folder / "run")

        def with_joints() -> None:
            evaluate_predictions(
                cfg, table, found, folder / "run", per_joint=True
            )  # as tools/test.py does

        def by_reference() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                stats["reference"] = reference_evaluation(truth, p, folder)

        # the round that does not count; the reference's of 40 s would find nothing warmer
        poise()
        seconds = in_turns(
            {"poise": poise, "with joints": with_joints, "reference": by_reference}, 2, warm=0
        )
        yield compared(f"evaluation at val2017's scale, {count:,} detections", seconds, 35)
        yield Row(
            "the same: largest difference of the ten figures",
            f"AP {stats['poise']['AP']:.4f}",
            f"reference {stats['reference'][0]:.4f}",
            float(np.abs(np.array(list(stats["poise"].values())) - stats["reference"]).max()),
            "most",
            1e-12,
            "",
        )
        yield compared(
            "the same with a table per joint, which the references do not have",
            seconds,
            None,
            product="with joints",
        )
        yield from figures_alone(folder, path, truth)


def figures_alone(folder: Path, path: Path, truth: COCO) -> Iterator[Row]:
    """The AP alone, of the same file, against the programs that others would take."""
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
    contenders = {
        "poise": lambda: stats.update(poise=evaluate_arrays(content, *arrays, SKELETON.sigmas)),
        "pycocotools": lambda: stats.update(pycocotools=judged(COCOeval, truth, loaded)),
    }
    if importlib.util.find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        with contextlib.redirect_stdout(io.StringIO()):
            faster = FasterCOCO(str(path))
            again = faster.loadRes(str(file))
        contenders["faster-coco-eval"] = lambda: stats.update(
            faster=judged(COCOeval_faster, faster, again)
        )
    seconds = in_turns(contenders, 2, warm=0)
    for other in list(contenders)[1:]:
        yield compared(f"AP alone, against {other}", seconds, None, baseline=other)
    yield Row(
        "largest difference of the file's figures and the arrays'",
        "average_precision",
        "of the arrays",
        max(
            abs(a - b)
            for a, b in zip(average_precision(path, file).values(), stats["poise"].values())
        ),
        "most",
        0.0,
        "",
    )


if __name__ == "__main__":
    main(measure)
