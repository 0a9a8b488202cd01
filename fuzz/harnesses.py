"""Fuzzing harnesses: each passes bytes to one reader of Poise as a file.

A reader may accept them or raise a PoiseError whose message names the file. Anything else is a
fault: another exception, a very long message, pixels outside the requested region, a file outside
its folder. Time and memory are checked by the caller (run.py, tests/security/test_fuzz.py).
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mutation
import numpy as np
import seeds
from poise.errors import MAX_CHARACTERS, PoiseError, format_error

_GUARD = 4096  # bytes before and after an image that no decoder may write


@dataclass(frozen=True)
class Harness:
    """One fuzzed reader.

    run(data) raises on a fault, seeds() makes valid files, mutate(data, random) breaks one.
    weight: relative time in a long run. compiled: the reader is not Python, without coverage.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: mutation.Mutation
    weight: int = 1
    compiled: bool = False


class Scratch:
    """A temporary folder, in memory if /dev/shm exists."""

    def __init__(self):
        memory = Path("/dev/shm")
        self.folder = Path(
            tempfile.mkdtemp(
                prefix=f"poise-fuzz-{os.getpid()}-", dir=memory if memory.is_dir() else None
            )
        )

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


# inputs that a reader accepted; a fuzzer whose inputs are all refused tests little
read = 0
_scratch: Scratch | None = None


def scratch() -> Scratch:
    global _scratch
    if _scratch is None:
        _scratch = Scratch()
        logging.getLogger("poise").setLevel(logging.CRITICAL)  # too many warnings
    return _scratch


def close() -> None:
    """Remove the scratch files."""
    global _scratch
    if _scratch is not None:
        _scratch.close()
        _scratch = None


def remove_stale_files() -> None:
    """Remove the scratch files of killed processes."""
    memory = Path("/dev/shm")
    for folder in (memory if memory.is_dir() else Path(tempfile.gettempdir())).glob("poise-fuzz-*"):
        if not Path(f"/proc/{folder.name.split('-')[2]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def call_reader(call: Callable[[], object], path: Path | None = None) -> object | None:
    """Return the result of `call`, or None if it raises a one-line PoiseError naming `path`."""
    global read
    try:
        result = call()
        read += 1
        return result
    except PoiseError as error:
        line = format_error(error)
        assert len(line) <= MAX_CHARACTERS, f"a line of {len(line)} characters"
        assert line.isprintable(), "a line with control characters"
        assert path is None or path.name in line, f"a line that does not name the file: {line}"
        return None


def config(data: bytes) -> None:
    from poise import config as configuration

    path = scratch().file("experiment.yaml", data)
    base = scratch().folder / "base.yaml"
    if not base.exists():
        base.write_text("TRAIN: {LR: 0.002}\n")
    cfg = call_reader(lambda: configuration.load(path))
    if cfg is not None:
        cfg.dump()
        assert configuration.load(path) == cfg


def command_line(data: bytes) -> None:
    """KEY VALUE arguments after an experiment file."""
    from poise import config as configuration

    path = scratch().folder / "plain.yaml"
    if not path.exists():
        path.write_bytes(seeds.config()[0])
    words = data.decode("utf-8", "surrogateescape").split("\n")[:20]
    call_reader(lambda: configuration.load(path, words))


def _make_config(kind: str):
    """Return the configuration of a dataset in the scratch folder."""
    from poise.config.defaults import default_config

    cfg = default_config()
    cfg.DATASET.DATASET, cfg.DATASET.ROOT, cfg.DATASET.CACHE = kind, str(scratch().folder), False
    cfg.DATASET.TRAIN_SET = cfg.DATASET.TEST_SET = "set"
    cfg.MODEL.IMAGE_SIZE = [24, 32]
    return cfg


class _GrayImages:
    """Gray images for crops."""

    def open(self, _):
        from poise.io.decoding import EncodedImage

        return EncodedImage(_GRAY_BMP)


_GRAY_BMP = struct.pack(
    "<2sIIIIiiHHIIiiII", b"BM", 54 + 24000, 0, 54, 40, 100, 80, 1, 24, 0, 24000, 0, 0, 0, 0
) + bytes(24000)


def _load_samples(table) -> None:
    """Load the samples of the first persons as in training."""
    from poise.datasets.augment import Augmentation
    from poise.datasets.loader import TopDownDataset

    augmentation = Augmentation.from_config(_make_config("coco")) if table.has_keypoints else None
    crops = TopDownDataset(
        table, _GrayImages(), image_size=(24, 32), rgb=True, seed=0, augmentation=augmentation
    )
    batch = crops.__getitems__([(0, person) for person in range(min(len(table), 3))])
    assert isinstance(batch, dict) and np.isfinite(batch["joints"].numpy()).all(), (
        "a sample without joints"
    )


def annotations(data: bytes) -> None:
    from poise.datasets import coco

    path = scratch().file("annotations/person_keypoints_set.json", data)
    cfg = _make_config("coco")
    cfg.DATASET.BOX_CLIP = ("hrnet", "mmpose", "none")[len(data) % 3]
    table = call_reader(lambda: coco.read_table(cfg, "set", detections=False), path)
    if table is not None:
        _load_samples(table)


def truth(data: bytes) -> None:
    """The file as ground truth; an error about a mismatch with the results names neither."""
    from poise.evaluation import coco as coco_ap

    path = scratch().file("truth.json", data)
    call_reader(lambda: coco_ap.average_precision(path, seeds.results_for_truth()))


def results(data: bytes) -> None:
    from poise.evaluation import coco as coco_ap

    path = scratch().file("results.json", data)
    call_reader(lambda: coco_ap.average_precision(seeds.persons(), path))


def mpii(data: bytes) -> None:
    from poise.datasets import mpii as mpii_set

    path = scratch().file("annot/set.json", data)
    table = call_reader(lambda: mpii_set.read_table(_make_config("mpii"), "set"), path)
    if table is not None:
        _load_samples(table)


def detections(data: bytes) -> None:
    from poise.datasets import coco

    folder = scratch().folder
    if not (folder / "annotations/person_keypoints_listed.json").exists():
        scratch().file("annotations/person_keypoints_listed.json", seeds.annotations()[0])
    path = scratch().file("boxes.json", data)
    cfg = _make_config("coco")
    cfg.TEST.COCO_BBOX_FILE = str(path)
    table = call_reader(lambda: coco.read_table(cfg, "listed", detections=True), path)
    if table is not None:
        _load_samples(table)


def genotype(data: bytes) -> None:
    from poise.models.posenas.genotypes import read_genotype

    path = scratch().file("genotype.json", data)
    call_reader(lambda: read_genotype(path), path)


def matlab(data: bytes) -> None:
    from poise.evaluation.mpii import pckh

    path = scratch().file("gt_valid.mat", data)
    call_reader(lambda: pckh(np.ones((3, 16, 2)), path), path)


def checkpoint(data: bytes) -> None:
    """The file as weights, as weights to load and as a checkpoint to resume."""
    from poise.engine import checkpoint as checkpoints
    from poise.models.weights import reading
    from poise.models.weights.loading import StateDictSource

    path = scratch().file("weights.pth", data)
    file = call_reader(lambda: reading.read_weight_file(path), path)
    if file is not None:
        source = call_reader(lambda: StateDictSource(file), path)
        if source is not None:
            assert all(
                tensor.numel() * tensor.element_size() <= 1 << 30
                for tensor in source.state.values()
            ), "more values than the file holds"
    call_reader(lambda: checkpoints.load(path, "seed"), path)


def weight_names(data: bytes) -> None:
    """Tensor names and shapes (as JSON): recognize, describe, rename, convert and load them."""
    import torch
    from poise.models import weights
    from poise.models.weights import converting, formats, loading

    try:
        shapes = json.loads(data)
        state = {
            name: torch.zeros(shape)
            for name, shape in shapes.items()
            if all(type(side) is int and side < 1 << 16 for side in shape)
            and math.prod(shape) <= 1 << 16
        }
        torch.save(state, scratch().file("names.pth", b""))
    # not names and shapes
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        return
    path = scratch().folder / "names.pth"
    file = call_reader(lambda: weights.read_weight_file(path), path)
    if file is None:
        return
    source = call_reader(
        lambda: loading.StateDictSource(
            file, {name: tuple(tensor.shape) for name, tensor in reversed(state.items())}
        ),
        path,
    )
    network = torch.nn.Module()
    network.final_layer = torch.nn.Conv2d(2, 17, 1)
    call_reader(lambda: weights.load(network, path, replace_head=True), path)
    target = list(formats.TARGETS)[len(data) % len(formats.TARGETS)]
    report = call_reader(
        lambda: converting.convert(path, scratch().folder / "converted.pth", target, force=True),
        path,
    )
    assert source is not None and (report is None or str(report).isprintable()), (
        "a report with control characters"
    )


def dataset_file(data: bytes) -> None:
    from poise.config.dataset_yaml import read_dataset

    path = scratch().file("dataset.yaml", data)
    found = call_reader(lambda: read_dataset(path), path)
    if found is not None:
        assert (
            found.skeleton.flip_indices.shape == (found.skeleton.num_keypoints,)
            and np.isfinite(found.skeleton.sigmas).all()
        )
        assert isinstance(found.files("train2017").annotations, str) and all(
            remark.isprintable() for remark in found.remarks
        )


def zoo(data: bytes) -> None:
    """A list of released weights for tools/download_weights.py --zoo."""
    from poise.models.weights import zoo as released

    path = scratch().file("zoo.yaml", data)
    entries = call_reader(lambda: released.read_zoo(path), path)
    for entry in (entries or {}).values():
        assert (
            released.describe(entry).replace("\n", "").isprintable()
            and released.manual_instructions(entry, released.target_path(entry)).isprintable()
        )
        assert (
            not released.target_path(entry).is_absolute()
            and ".." not in released.target_path(entry).parts
        ), "a target outside"
    if entries:
        assert released.table(entries.values()).replace("\n", "").isprintable()


def given_boxes(data: bytes) -> None:
    """A JSON file for the --boxes of the demo, for an image and for a video frame."""
    from poise.inference.boxes import BoxFile, usable
    from poise.io.video import Frame

    path = scratch().file("boxes.json", data)
    source = call_reader(lambda: BoxFile(path), path)
    if source is not None:
        blank = np.zeros((80, 100, 3), np.uint8)
        frames = [Frame("000000000001.jpg", 0, blank), Frame("film.mp4", 1, blank, 0.04)]
        for boxes, scores in call_reader(lambda: source(frames), path) or ():
            assert (
                boxes.shape == (len(scores), 4)
                and usable(boxes, 80, 100).shape == scores.shape
                and np.isfinite(boxes).all()
            )


def cache(data: bytes) -> None:
    """A corrupt cache file is not an error: the source is read again."""
    from poise.io import cache as array_cache

    global read
    assert array_cache._load(scratch().file("kept.npz", data), {"never": "this"}) is None
    found = array_cache._load(scratch().folder / "kept.npz", {})
    read += found is not None
    assert found is None or all(
        isinstance(array, np.ndarray) and array.dtype != object for array in found.values()
    )


def archive(data: bytes) -> None:
    """Unpack into an empty folder: no file outside it, no link inside it."""
    from poise.io import archives

    path = scratch().file("archive.bin", data)
    outside = scratch().folder / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    inside = outside / "a" / "b"
    inside.mkdir(parents=True)
    call_reader(lambda: archives.unpack(path, inside), path)
    assert [item.name for item in outside.iterdir()] == ["a"] and [
        item.name for item in (outside / "a").iterdir()
    ] == ["b"], "written outside the folder"
    for item in inside.rglob("*"):
        assert not item.is_symlink() and (item.is_dir() or item.is_file()), "a link or a device"


def zip_reader(data: bytes) -> None:
    from poise.io.image_folder import ImageFolder

    path = scratch().file("set.zip", data)
    for name in ("000000000001.jpg", "b.png", "missing.jpg"):
        call_reader(lambda name=name: ImageFolder(path).read(name), path)


def image(data: bytes) -> None:
    """Decode fully, with EXIF rotation and a region; the region must equal that of the image."""
    from poise.io import decoding
    from poise.io.image_folder import ImageFolder

    path = scratch().file("images/picture.jpg", data)
    call_reader(lambda: ImageFolder(path.parent, exif=True).read(path.name), path)
    whole = call_reader(lambda: ImageFolder(path.parent).read(path.name), path)
    assert whole is None or (
        whole.dtype == np.uint8 and whole.ndim == 3 and whole.shape[2] == 3 and whole.size > 0
    )
    if whole is not None and whole.size > 1 << 24:  # the rest would need the same memory again
        return
    region(data)
    if decoding._jpeg is not None and whole is not None:
        height, width = whole.shape[:2]
        part = decoding.EncodedImage(data)
        draw = random.Random(data)
        left, top = draw.randrange(width), draw.randrange(height)
        box = left, top, draw.randrange(left, width) + 1, draw.randrange(top, height) + 1
        pixels = part.with_region(box)
        if part._jpeg_size is not None:  # other files are decoded fully
            shown = np.s_[box[1] : box[3], box[0] : box[2]]
            assert np.array_equal(pixels[shown], whole[shown]) or _is_corrupt(data), (
                "a region that differs from the image"
            )


def _is_corrupt(data: bytes) -> bool:
    """Return True if the decoder reports an error; pixels may then differ from OpenCV."""
    from poise.io import decoding

    size = decoding._jpeg.size(data)
    canvas = np.empty((size[1], size[0], 3), np.uint8)
    return not decoding._jpeg.decode_region(data, canvas, 0, 0, *size)


def region(data: bytes) -> None:
    """Decode JPEG regions with the compiled decoder into an image with guards on both sides."""
    from poise.io import decoding

    if decoding._jpeg is None:
        return
    size = decoding._jpeg.size(data)
    if size is None or size[0] * size[1] > 1 << 22:
        return
    global read
    read += 1
    width, height = size
    memory = np.full(height * width * 3 + 2 * _GUARD, 0xA5, np.uint8)
    canvas = memory[_GUARD:-_GUARD].reshape(height, width, 3)
    draw = random.Random(data)
    for _ in range(2):
        left, top = draw.randrange(width), draw.randrange(height)
        right, bottom = draw.randrange(left, width) + 1, draw.randrange(top, height) + 1
        decoding._jpeg.decode_region(data, canvas, left, top, right, bottom)
    assert (memory[:_GUARD] == 0xA5).all() and (memory[-_GUARD:] == 0xA5).all(), (
        "written outside of the image"
    )


HARNESSES = {
    "config": Harness(config, seeds.config, mutation.mutate_lines, 2),
    "command line": Harness(command_line, seeds.command_line, mutation.mutate_bytes),
    "annotations": Harness(annotations, seeds.annotations, mutation.mutate_json, 2),
    "truth": Harness(truth, seeds.annotations, mutation.mutate_json),
    "results": Harness(results, seeds.results, mutation.mutate_json),
    "MPII annotations": Harness(mpii, seeds.mpii, mutation.mutate_json),
    "detections": Harness(detections, seeds.detections, mutation.mutate_json, 2),
    "genotype": Harness(genotype, seeds.genotype, mutation.mutate_json),
    "head boxes": Harness(matlab, seeds.matlab, mutation.mutate_bytes),
    "checkpoint": Harness(
        checkpoint, seeds.checkpoints, mutation.mutate_zip_with(mutation.mutate_bytes), 2
    ),
    "weight names": Harness(weight_names, seeds.weight_names, mutation.mutate_json),
    "dataset file": Harness(dataset_file, seeds.dataset_file, mutation.mutate_lines),
    "released weights": Harness(zoo, seeds.zoo, mutation.mutate_lines),
    "given boxes": Harness(given_boxes, seeds.given_boxes, mutation.mutate_json),
    "cache": Harness(cache, seeds.cache, mutation.mutate_zip_with(mutation.mutate_bytes)),
    "archive": Harness(archive, seeds.archives, mutation.mutate_archive, 2),
    "zip reader": Harness(
        zip_reader, seeds.zips, mutation.mutate_zip_with(mutation.mutate_bytes), 2
    ),
    "image reader": Harness(image, seeds.image, mutation.mutate_jpeg, 3, compiled=True),
    "JPEG regions": Harness(region, seeds.image, mutation.mutate_jpeg, 3, compiled=True),
}
