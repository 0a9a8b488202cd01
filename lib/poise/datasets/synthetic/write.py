"""A made set of people, written as COCO or as MPII, so that every reader, metric and tool runs
without a download.

The pictures are drawn (synthetic_scene.py); boxes, areas, masks and visibility are read off what
was drawn. Picture i of a split depends on (seed, split, i) only: any number of workers writes the
same bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from poise.datasets.synthetic.annotations import (
    coco_annotations,
    coco_category,
    made_detections,
    mpii_annotations,
    mpii_arrays,
)
from poise.datasets.synthetic.scene import sample_scene
from poise.datasets.worker_exit import exit_with_parent
from poise.errors import ConfigError, DataError, PoiseError
from poise.io.files import atomic_write

# increase it if the same seed draws other images: sets of an older version are then drawn again
VERSION = 3
STAMP = "synthetic.json"
COCO_SPLITS = {"train2017": 2000, "val2017": 300}
MPII_SPLITS = {"train": 2000, "valid": 300}
HARDNESS = 0.0  # what a small network learns within minutes on two cores


def make_coco(
    root: str | os.PathLike,
    splits: Mapping[str, int] = COCO_SPLITS,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    force: bool = False,
    hardness: float = HARDNESS,
) -> Path:
    """Write a made set in COCO's layout under `root` and return `root`; a complete one of the same
    kind is reused.

    splits: images per split. Writes images/<split>/<12 digits>.jpg,
    annotations/person_keypoints_<split>.json and, for splits that are not named train,
    person_detection_results/COCO_<split>_detections_AP_H_56_person.json with made detections.
    workers: processes, as many as cores when None. hardness: from 0 (plain poses from the front,
    calm places) to 1 (every pose and view, busy clothes and places, more hidden). Raises
    ConfigError for bad numbers and DataError where the folder cannot be written or holds something
    else.
    """
    root = Path(root)
    splits = _checked(splits, seed, workers, hardness)
    files = {split: _coco_files(split) for split in splits}
    stamp = _stamp("coco", splits, seed, hardness)
    with _Writing(
        root, stamp, [file for pair in files.values() for file in pair], force
    ) as writing:
        for split, count in writing.missing.items():
            images: list[dict] = []
            annotations: list[dict] = []
            detections: list[dict] = []
            draw = partial(_coco_picture, root, split, seed, hardness)
            for image, persons, found in _pictures(draw, split, count, workers, progress):
                images.append(image)
                detections += found
                for person in persons:
                    annotations.append({**person, "id": len(annotations) + 1})
            keypoints = {
                "info": _info(seed, split),
                "licenses": [],
                "images": images,
                "annotations": annotations,
                "categories": [coco_category()],
            }
            for path, content in zip(files[split], (keypoints, detections)):
                _write_json(root / path, content)
    return root


def make_mpii(
    root: str | os.PathLike,
    splits: Mapping[str, int] = MPII_SPLITS,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    force: bool = False,
    hardness: float = HARDNESS,
) -> Path:
    """Write a made set in the layout of MPII's HRNet files under `root` and return `root`; see
    `make_coco`.

    Writes images/<split><8 digits>.jpg, annot/<split>.json, annot/gt_valid.mat for the split
    `valid`, and annot/test.json: the persons of `valid` without their joints (MPII keeps those of
    its own test set secret).
    """
    # imported here because importing SciPy is slow
    from scipy.io import savemat

    root = Path(root)
    splits = _checked(splits, seed, workers, hardness)
    files = [f"annot/{split}.json" for split in splits]
    if "valid" in splits:
        files += ["annot/gt_valid.mat", "annot/test.json"]
    with _Writing(root, _stamp("mpii", splits, seed, hardness), files, force) as writing:
        for split, count in writing.missing.items():
            draw = partial(_mpii_picture, root, split, seed, hardness)
            persons = [
                person
                for found in _pictures(draw, split, count, workers, progress)
                for person in found
            ]
            if split == "valid":
                with atomic_write(root / "annot/gt_valid.mat") as temporary:
                    savemat(temporary, mpii_arrays(persons), appendmat=False)
                _write_json(
                    root / "annot/test.json",
                    [
                        {key: person[key] for key in ("image", "center", "scale")}
                        for person in persons
                    ],
                )
            _write_json(
                root / f"annot/{split}.json",
                [{k: v for k, v in person.items() if k != "head_box"} for person in persons],
            )
    return root


def _coco_files(split):
    files = [f"annotations/person_keypoints_{split}.json"]
    if not split.startswith("train"):
        files.append(f"person_detection_results/COCO_{split}_detections_AP_H_56_person.json")
    return files


def _checked(splits, seed, workers, hardness):
    for split, count in splits.items():
        if not isinstance(count, (int, np.integer)) or count < 0:
            raise ConfigError(
                f"{split}: {count!r} pictures cannot be made; give a whole number from 0 on"
            )
        if not split.isalnum():
            raise ConfigError(f"split name {split!r}: give letters and digits only")
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed {seed!r}: give a whole number from 0 on")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers {workers}: give at least 1")
    if not 0 <= hardness <= 1:
        raise ConfigError(f"hardness {hardness}: give a number from 0 to 1")
    return {split: int(count) for split, count in splits.items()}


def _stamp(form, splits, seed, hardness):
    return {
        "form": form,
        "version": VERSION,
        "seed": int(seed),
        "hardness": float(hardness),
        "splits": splits,
    }


def _info(seed, split):
    return {
        "description": (
            f"drawn by poise.datasets.synthetic.write, version {VERSION}, seed {seed}, {split}"
        ),
        "version": str(VERSION),
    }


class _Writing:
    """The writing of one set: skips a complete one, guards foreign files, and stamps the set
    when all is written.
    """

    def __init__(self, root, stamp, files, force):
        self.root, self.stamp, self.files, self.force = root, stamp, files, force
        self.missing = dict(stamp["splits"])

    def __enter__(self):
        path = self.root / STAMP
        try:
            old = json.loads(path.read_text()) if path.is_file() else None
        except ValueError:
            old = {}  # cut off while it was written, by a version that did not replace it at once
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if old is None:
            foreign = next((file for file in self.files if (self.root / file).exists()), None)
            if foreign:
                raise DataError(
                    f"{self.root / foreign} was not made by this tool; choose another folder"
                )
        elif old.get("form", self.stamp["form"]) != self.stamp["form"]:
            raise DataError(
                f"{self.root} holds a made set in the layout of {old['form']}; choose another"
                " folder"
            )
        if old == {**self.stamp, "complete": True} and not self.force and self._all_there():
            print(f"{self.root}: the made set is complete (seed {self.stamp['seed']}), reused")
            self.missing = {}
            return self
        _write_json(path, {**self.stamp, "complete": False})
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            raise DataError(
                f"{error.filename or self.root}: cannot be written ({error.strerror or error})"
            ) from error
        if kind is None and self.missing:
            _write_json(self.root / STAMP, {**self.stamp, "complete": True})

    def _all_there(self):
        last = [
            _image_path(self.stamp["form"], split, index)
            for split, count in self.stamp["splits"].items()
            for index in (1, count)
            if count
        ]
        return all((self.root / file).is_file() for file in self.files + last)


def _write_json(path, content):
    with atomic_write(path) as temporary, open(temporary, "w") as file:
        json.dump(content, file, separators=(",", ":"))


def _image_path(form, split, index):
    return (
        f"images/{split}/{index:012d}.jpg" if form == "coco" else f"images/{split}{index:08d}.jpg"
    )


def _pictures(draw, split, count, workers, progress):
    """Yield what `draw` returns for every picture of a split, in order, drawn by `workers`
    processes.
    """
    workers = min(workers or os.cpu_count() or 1, max(count // 8, 1))
    # fork: the workers use neither torch nor OpenCV's threads, and a caller needs no __main__ guard
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    bar = partial(tqdm, total=count, desc=f"drawing {split}", unit="image", disable=not progress)
    if workers == 1:
        yield from bar(map(draw, range(1, count + 1)))
    else:
        # not multiprocessing's Pool, which waits forever for the answer of a worker that was killed
        pool = ProcessPoolExecutor(workers, context, initializer=_prepare_worker)
        try:
            yield from bar(pool.map(draw, range(1, count + 1), chunksize=4))
        except BrokenProcessPool:
            raise PoiseError(
                f"a process that draws {split} was killed, probably out of memory: "
                "give fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_worker():
    cv2.setNumThreads(0)
    exit_with_parent()


def _generator(seed, split, index, use):
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index, use])


def _draw_and_save(root, form, split, seed, hardness, index):
    scene = sample_scene(_generator(seed, split, index, 0), hardness)
    done, jpeg = cv2.imencode(".jpg", scene.image, (cv2.IMWRITE_JPEG_QUALITY, scene.quality))
    assert done, "OpenCV could not encode an image as JPEG"
    with (
        atomic_write(root / _image_path(form, split, index)) as temporary,
        open(temporary, "wb") as file,
    ):
        file.write(jpeg)
    return scene


def _coco_picture(root, split, seed, hardness, index):
    """Draw and save image `index`; return its entry, its annotations and its made detections."""
    scene = _draw_and_save(root, "coco", split, seed, hardness, index)
    height, width = scene.image.shape[:2]
    entry = {"id": index, "file_name": f"{index:012d}.jpg", "width": width, "height": height}
    return (
        entry,
        coco_annotations(scene, index),
        made_detections(scene, index, _generator(seed, split, index, 1)),
    )


def _mpii_picture(root, split, seed, hardness, index):
    scene = _draw_and_save(root, "mpii", split, seed, hardness, index)
    return mpii_annotations(scene, Path(_image_path("mpii", split, index)).name)
