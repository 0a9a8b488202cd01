"""Time the start of a command to its first batch with annotations of the size of COCO."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import json_tricks
import numpy as np
import synthetic_coco
from poise.datasets import build_loader, load_split
from pycocotools.coco import COCO
from timing import Row, compare, main, time_alternately

ROOT = Path(__file__).resolve().parents[1]
FIRST_BATCH = """
import os, sys, time
sys.argv = ["tools/train.py", *sys.argv[1:]]
from poise.engine import train
def first(cfg, state, codec, loader, *rest):
    next(iter(loader))
    used = os.times()
    print("FIRST", used.user + used.system, file=sys.__stdout__, flush=True)
    os._exit(0)
train.train_one_epoch = first
import runpy
runpy.run_path("tools/train.py", run_name="__main__")
"""


def reference_detections(annotations: Path, path: Path, threshold: float = 0.0) -> list[dict]:
    """Index the images with pycocotools, read the boxes with json_tricks, make a dictionary of
    each.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        COCO(str(annotations)).getImgIds()
    with open(path) as file:
        boxes = json_tricks.load(file, preserve_order=False)
    db = []
    for n in range(len(boxes)):
        entry = boxes[n]
        if entry["category_id"] != 1 or entry["score"] < threshold:
            continue
        center, scale = reference_box(*entry["bbox"][:4])
        db.append(
            {
                "image": f"{entry['image_id']:012d}.jpg",
                "center": center,
                "scale": scale,
                "score": entry["score"],
                "joints_3d": np.zeros((17, 3)),
                "joints_3d_vis": np.ones((17, 3)),
            }
        )
    return db


def reference_box(x, y, w, h) -> tuple[np.ndarray, np.ndarray]:
    center = np.zeros((2), dtype=np.float32)
    center[0], center[1] = x + w * 0.5, y + h * 0.5
    if w > 0.75 * h:
        h = w * 1.0 / 0.75
    elif w < 0.75 * h:
        w = h * 0.75
    scale = np.array([w * 1.0 / 200, h * 1.0 / 200], dtype=np.float32)
    return center, scale * 1.25 if center[0] != -1 else scale


def reference_annotations(path: Path) -> list[dict]:
    """Index with pycocotools, then fill arrays per person, keypoint by keypoint."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    db = []
    for index in coco.getImgIds():
        image = coco.loadImgs(index)[0]
        width, height = image["width"], image["height"]
        valid = []
        for entry in coco.loadAnns(coco.getAnnIds(imgIds=index, iscrowd=False)):
            x, y, w, h = entry["bbox"]
            x1, y1 = np.max((0, x)), np.max((0, y))
            x2 = np.min((width - 1, x1 + np.max((0, w - 1))))
            y2 = np.min((height - 1, y1 + np.max((0, h - 1))))
            if entry["area"] > 0 and x2 >= x1 and y2 >= y1:
                entry["clean_bbox"] = [x1, y1, x2 - x1, y2 - y1]
                valid.append(entry)
        for entry in valid:
            if max(entry["keypoints"]) == 0:
                continue
            joints = np.zeros((17, 3), dtype=np.float32)
            visible = np.zeros((17, 3), dtype=np.float32)
            for joint in range(17):
                joints[joint, 0] = entry["keypoints"][joint * 3]
                joints[joint, 1] = entry["keypoints"][joint * 3 + 1]
                flag = min(entry["keypoints"][joint * 3 + 2], 1)
                visible[joint, 0] = visible[joint, 1] = flag
            center, scale = reference_box(*entry["clean_bbox"][:4])
            db.append(
                {
                    "image": image["file_name"],
                    "center": center,
                    "scale": scale,
                    "joints_3d": joints,
                    "joints_3d_vis": visible,
                    "filename": "",
                    "imgnum": 0,
                }
            )
    return db


def write_dataset(folder: Path) -> None:
    """Write a dataset of the size of train2017 and val2017 whose entries share a few images."""
    names = [f"{n:012d}.jpg" for n in range(1, 25)]
    for split in ("train2017", "val2017"):
        synthetic_coco.write_images(folder / "images" / split, names)
    synthetic_coco.write_annotations(
        folder / "annotations" / "person_keypoints_train2017.json",
        names,
        synthetic_coco.TRAIN_PERSONS,
        synthetic_coco.TRAIN_LABELED,
        images=synthetic_coco.TRAIN_IMAGES,
    )
    synthetic_coco.write_annotations(
        folder / "annotations" / "person_keypoints_val2017.json",
        names,
        synthetic_coco.VAL_PERSONS,
        synthetic_coco.VAL_LABELED,
        images=synthetic_coco.VAL_IMAGES,
        crowds=synthetic_coco.VAL_CROWDS,
    )
    synthetic_coco.write_detections(
        folder / "boxes.json", synthetic_coco.DETECTIONS, synthetic_coco.VAL_IMAGES
    )


def measure() -> Iterator[Row]:
    """Read 104,125 boxes and 262,465 annotations; second start; command to first batch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_dataset(folder)
        boxes = ["TEST.USE_GT_BBOX", False, "TEST.COCO_BBOX_FILE", str(folder / "boxes.json")]
        plain, cached = (
            synthetic_coco.load_experiment(
                folder, folder, "WORKERS", 0, "DATASET.CACHE", use, *boxes
            )
            for use in (False, True)
        )
        sizes, annotations = {}, folder / "annotations"
        seconds = time_alternately(
            {
                "poise": lambda: sizes.update(poise=len(load_split(plain, train=False)[0])),
                "reference": lambda: sizes.update(
                    reference=len(
                        reference_detections(
                            annotations / "person_keypoints_val2017.json", folder / "boxes.json"
                        )
                    )
                ),
            },
            3,
            warmup=0,
        )
        yield check_counts(
            compare(
                "reading a test set of 5,000 images with a detection file of 104,125 boxes",
                seconds,
                5,
            ),
            sizes,
        )
        seconds = time_alternately(
            {
                "poise": lambda: sizes.update(poise=len(load_split(plain, train=True)[0])),
                "reference": lambda: sizes.update(
                    reference=len(
                        reference_annotations(annotations / "person_keypoints_train2017.json")
                    )
                ),
            },
            2,
            warmup=0,
        )
        yield check_counts(compare("reading annotations of train2017's size", seconds, 5), sizes)

        def second_start(train: bool) -> None:
            loader = build_loader(cached, *load_split(cached, train=train), train=train)
            loader.batch_sampler.set_epoch(0)
            next(iter(loader))

        for train, work in ((False, "104,125 detection boxes"), (True, "149,813 persons")):
            second_start(train)
            found = time_alternately(
                {"poise": lambda train=train: second_start(train)}, 5, warmup=0
            )["poise"]
            yield Row(
                f"second start, {work}: from the cache to the first batch",
                "",
                "",
                sorted(found)[len(found) // 2],
                "max",
                1.5,
                "s",
            )
        yield from measure_commands(folder)


def check_counts(row: Row, sizes: dict[str, int]) -> Row:
    if sizes["poise"] != sizes["reference"]:
        raise SystemExit(
            f"{row.work}: Poise has {sizes['poise']} persons and the reference {sizes['reference']}"
        )
    return row


def measure_commands(folder: Path) -> Iterator[Row]:
    """Time tools/train.py with HRNet-W32 and two workers until the first batch."""
    (folder / "train.yaml").write_text(
        f"_BASE_: {ROOT / 'experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml'}\nOUTPUT_DIR:"
        f" {folder / 'output'}\nLOG_DIR: {folder / 'log'}\nWORKERS: 2\nAUTO_RESUME: false\nMODEL:"
        f" {{PRETRAINED: ''}}\nDATASET: {{ROOT: {folder}}}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    for work, bound in (("cold", 5), ("from the cache", 3)):
        found = []
        for turn in range(3):
            environment["XDG_CACHE_HOME"] = str(folder / f"cold{turn if work == 'cold' else 0}")
            begin = time.perf_counter()
            with (
                tempfile.TemporaryFile("w+") as errors,
                subprocess.Popen(
                    [sys.executable, "-c", FIRST_BATCH, "--cfg", str(folder / "train.yaml")],
                    env=environment,
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                ) as process,
            ):
                line = next((line for line in process.stdout if line.startswith("FIRST")), "")
                # before the process ends, because its workers then wait some seconds
                clock = time.perf_counter() - begin
                process.stdout.read()
                if not line:
                    errors.seek(0)
                    raise SystemExit(errors.read()[-2000:])
            found.append((clock, float(line.split()[1])))
        clock, processor = (sorted(values)[1] for values in zip(*found))
        yield Row(
            f"command to first batch, 149,813 persons, {work}, wall-clock time",
            f"CPU {processor:.2f} s",
            "",
            clock,
            "max",
            bound,
            "s",
        )


if __name__ == "__main__":
    main(measure)
