"""What is fuzzed: each harness gives some bytes to one of Poise's readers, as the file that it
would be.

A reader may take them or refuse them with a PoiseError whose line names the file; anything else is
a fault: another exception, a line without end, pixels outside of what was asked for, a file outside
of its folder. Time and memory are watched from outside (run.py, tests/security/test_fuzz.py).
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

_GUARD = 4096  # bytes before and behind an image that no decoder may write


@dataclass(frozen=True)
class Harness:
    """run(bytes) raises for a fault. seeds: makes good files. mutate: a broken one from a good one.
    share: of the time of a long run.

    compiled: what is tested is not Python, so there is no coverage to guide.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: mutation.Mutation
    share: int = 1
    compiled: bool = False


class Scratch:
    """One file at a time, in memory where the system has such a folder."""

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


# how often a reader took what it was given: a fuzzer whose inputs are all refused at once shows
# little
read = 0
_scratch: Scratch | None = None


def scratch() -> Scratch:
    global _scratch
    if _scratch is None:
        _scratch = Scratch()
        logging.getLogger("poise").setLevel(logging.CRITICAL)  # warnings by the million
    return _scratch


def close() -> None:
    """Remove the scratch files."""
    global _scratch
    if _scratch is not None:
        _scratch.close()
        _scratch = None


def remove_left_over() -> None:
    """Scratch files of processes that were ended from outside."""
    memory = Path("/dev/shm")
    for folder in (memory if memory.is_dir() else Path(tempfile.gettempdir())).glob("poise-fuzz-*"):
        if not Path(f"/proc/{folder.name.split('-')[2]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def refused(call: Callable[[], object], path: Path | None = None) -> object | None:
    """What `call` returns; None where it refuses the file in one line that names it."""
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
    cfg = refused(lambda: configuration.load(path))
    if cfg is not None:
        cfg.dump()
        assert configuration.load(path) == cfg


def command_line(data: bytes) -> None:
    """KEY VALUE behind an experiment file."""
    from poise import config as configuration

    path = scratch().folder / "plain.yaml"
    if not path.exists():
        path.write_bytes(seeds.config()[0])
    words = data.decode("utf-8", "surrogateescape").split("\n")[:20]
    refused(lambda: configuration.load(path, words))


def _settings(kind: str):
    """The configuration of a set whose files lie in the scratch folder."""
    from poise.config.defaults import default_config

    cfg = default_config()
    cfg.DATASET.DATASET, cfg.DATASET.ROOT, cfg.DATASET.CACHE = kind, str(scratch().folder), False
    cfg.DATASET.TRAIN_SET = cfg.DATASET.TEST_SET = "set"
    cfg.MODEL.IMAGE_SIZE = [24, 32]
    return cfg


class _Grey:
    """Images of one colour, for crops."""

    def open(self, _):
        from poise.io.decoding import EncodedImage

        return EncodedImage(_GREY)


_GREY = struct.pack(
    "<2sIIIIiiHHIIiiII", b"BM", 54 + 24000, 0, 54, 40, 100, 80, 1, 24, 0, 24000, 0, 0, 0, 0
) + bytes(24000)


def _cut(table) -> None:
    """Samples of the first persons, as training takes them."""
    from poise.datasets.augment import Augmentation
    from poise.datasets.loader import TopDownDataset

    augmentation = Augmentation.from_config(_settings("coco")) if table.has_keypoints else None
    crops = TopDownDataset(
        table, _Grey(), image_size=(24, 32), rgb=True, seed=0, augmentation=augmentation
    )
    batch = crops.__getitems__([(0, person) for person in range(min(len(table), 3))])
    assert isinstance(batch, dict) and np.isfinite(batch["joints"].numpy()).all(), (
        "a sample without joints"
    )


def annotations(data: bytes) -> None:
    from poise.datasets import coco

    path = scratch().file("annotations/person_keypoints_set.json", data)
    cfg = _settings("coco")
    cfg.DATASET.BOX_CLIP = ("hrnet", "mmpose", "none")[len(data) % 3]
    table = refused(lambda: coco.read_table(cfg, "set", detections=False), path)
    if table is not None:
        _cut(table)


def truth(data: bytes) -> None:
    """The same file as the evaluation reads it; where it does not fit the results, both are
    meant and neither is named.
    """
    from poise.evaluation import coco as coco_ap

    path = scratch().file("truth.json", data)
    refused(lambda: coco_ap.average_precision(path, seeds.results_for_truth()))


def results(data: bytes) -> None:
    from poise.evaluation import coco as coco_ap

    path = scratch().file("results.json", data)
    refused(lambda: coco_ap.average_precision(seeds.persons(), path))


def mpii(data: bytes) -> None:
    from poise.datasets import mpii as mpii_set

    path = scratch().file("annot/set.json", data)
    table = refused(lambda: mpii_set.read_table(_settings("mpii"), "set"), path)
    if table is not None:
        _cut(table)


def detections(data: bytes) -> None:
    from poise.datasets import coco

    folder = scratch().folder
    if not (folder / "annotations/person_keypoints_listed.json").exists():
        scratch().file("annotations/person_keypoints_listed.json", seeds.annotations()[0])
    path = scratch().file("boxes.json", data)
    cfg = _settings("coco")
    cfg.TEST.COCO_BBOX_FILE = str(path)
    table = refused(lambda: coco.read_table(cfg, "listed", detections=True), path)
    if table is not None:
        _cut(table)


def genotype(data: bytes) -> None:
    from poise.models.posenas.genotypes import read_genotype

    path = scratch().file("genotype.json", data)
    refused(lambda: read_genotype(path), path)


def matlab(data: bytes) -> None:
    from poise.evaluation.mpii import pckh

    path = scratch().file("gt_valid.mat", data)
    refused(lambda: pckh(np.ones((3, 16, 2)), path), path)


def checkpoint(data: bytes) -> None:
    """As weights, as a run to go on with, and as weights to convert."""
    from poise.engine import checkpoint as checkpoints
    from poise.models.weights import reading
    from poise.models.weights.loading import StateDictSource

    path = scratch().file("weights.pth", data)
    file = refused(lambda: reading.read_weight_file(path), path)
    if file is not None:
        source = refused(lambda: StateDictSource(file), path)
        if source is not None:
            assert all(
                tensor.numel() * tensor.element_size() <= 1 << 30
                for tensor in source.state.values()
            ), "more values than the file holds"
    refused(lambda: checkpoints.load(path, "seed"), path)


def weight_names(data: bytes) -> None:
    """Names and shapes, written as JSON, of a file's tensors: recognised, described, renamed,
    converted, and compared with a network.
    """
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
    # no names and shapes at all
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
    file = refused(lambda: weights.read_weight_file(path), path)
    if file is None:
        return
    source = refused(
        lambda: loading.StateDictSource(
            file, {name: tuple(tensor.shape) for name, tensor in reversed(state.items())}
        ),
        path,
    )
    network = torch.nn.Module()
    network.final_layer = torch.nn.Conv2d(2, 17, 1)
    refused(lambda: weights.load(network, path, replace_head=True), path)
    target = list(formats.TARGETS)[len(data) % len(formats.TARGETS)]
    report = refused(
        lambda: converting.convert(path, scratch().folder / "converted.pth", target, force=True),
        path,
    )
    assert source is not None and (report is None or str(report).isprintable()), (
        "a report that steers the terminal"
    )


def dataset_file(data: bytes) -> None:
    from poise.config.datasets import read_dataset

    path = scratch().file("dataset.yaml", data)
    found = refused(lambda: read_dataset(path), path)
    if found is not None:
        assert (
            found.skeleton.flip_indices.shape == (found.skeleton.num_keypoints,)
            and np.isfinite(found.skeleton.sigmas).all()
        )
        assert isinstance(found.files("train2017").annotations, str) and all(
            remark.isprintable() for remark in found.remarks
        )


def zoo(data: bytes) -> None:
    """A list of released weights, as tools/download_weights.py --zoo takes it."""
    from poise.models.weights import zoo as released

    path = scratch().file("zoo.yaml", data)
    entries = refused(lambda: released.read_zoo(path), path)
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
    """The JSON that the demo's --boxes takes, for a picture and for a frame of a video."""
    from poise.inference.boxes import BoxFile, usable
    from poise.io.video import Frame

    path = scratch().file("boxes.json", data)
    source = refused(lambda: BoxFile(path), path)
    if source is not None:
        blank = np.zeros((80, 100, 3), np.uint8)
        frames = [Frame("000000000001.jpg", 0, blank), Frame("film.mp4", 1, blank, 0.04)]
        for boxes, scores in refused(lambda: source(frames), path) or ():
            assert (
                boxes.shape == (len(scores), 4)
                and usable(boxes, 80, 100).shape == scores.shape
                and np.isfinite(boxes).all()
            )


def cache(data: bytes) -> None:
    """Damage is no error there: the source is read again."""
    from poise.io import cache as array_cache

    global read
    assert array_cache._load(scratch().file("kept.npz", data), {"never": "this"}) is None
    found = array_cache._load(scratch().folder / "kept.npz", {})
    read += found is not None
    assert found is None or all(
        isinstance(array, np.ndarray) and array.dtype != object for array in found.values()
    )


def archive(data: bytes) -> None:
    """Unpacked into an empty folder: nothing may lie beside it, and no link in it."""
    from poise.io import archives

    path = scratch().file("archive.bin", data)
    outside = scratch().folder / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    inside = outside / "a" / "b"
    inside.mkdir(parents=True)
    refused(lambda: archives.unpack(path, inside), path)
    assert [item.name for item in outside.iterdir()] == ["a"] and [
        item.name for item in (outside / "a").iterdir()
    ] == ["b"], "written beside the folder"
    for item in inside.rglob("*"):
        assert not item.is_symlink() and (item.is_dir() or item.is_file()), "a link or a device"


def zip_reader(data: bytes) -> None:
    from poise.io.images import ImageFolder

    path = scratch().file("set.zip", data)
    for name in ("000000000001.jpg", "b.png", "missing.jpg"):
        refused(lambda name=name: ImageFolder(path).read(name), path)


def image(data: bytes) -> None:
    """Decoded whole, in part, turned; the part must be the whole's, and nothing beside it may be
    written.
    """
    from poise.io import decoding
    from poise.io.images import ImageFolder

    path = scratch().file("images/picture.jpg", data)
    refused(lambda: ImageFolder(path.parent, exif=True).read(path.name), path)
    whole = refused(lambda: ImageFolder(path.parent).read(path.name), path)
    assert whole is None or (
        whole.dtype == np.uint8 and whole.ndim == 3 and whole.shape[2] == 3 and whole.size > 0
    )
    if whole is not None and whole.size > 1 << 24:  # the rest would be a second one of these
        return
    region(data)
    if decoding._jpeg is not None and whole is not None:
        height, width = whole.shape[:2]
        part = decoding.EncodedImage(data)
        draw = random.Random(data)
        left, top = draw.randrange(width), draw.randrange(height)
        box = left, top, draw.randrange(left, width) + 1, draw.randrange(top, height) + 1
        pixels = part.with_region(box)
        if part._jpeg_size is not None:  # what is not a usual JPEG is decoded whole anyway
            shown = np.s_[box[1] : box[3], box[0] : box[2]]
            assert np.array_equal(pixels[shown], whole[shown]) or _has_fault(data), (
                "a part that is not the whole's"
            )


def _has_fault(data: bytes) -> bool:
    """Whether the decoder finds fault with the whole: what lies below a part is then allowed to
    differ from OpenCV's repair.
    """
    from poise.io import decoding

    size = decoding._jpeg.size(data)
    canvas = np.empty((size[1], size[0], 3), np.uint8)
    return not decoding._jpeg.decode_region(data, canvas, 0, 0, *size)


def region(data: bytes) -> None:
    """The compiled decoder of parts of JPEGs, into an image with guards on both sides."""
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
    "config": Harness(config, seeds.config, mutation.of_lines, 2),
    "command line": Harness(command_line, seeds.command_line, mutation.of_bytes),
    "annotations": Harness(annotations, seeds.annotations, mutation.of_json, 2),
    "truth": Harness(truth, seeds.annotations, mutation.of_json),
    "results": Harness(results, seeds.results, mutation.of_json),
    "MPII annotations": Harness(mpii, seeds.mpii, mutation.of_json),
    "detections": Harness(detections, seeds.detections, mutation.of_json, 2),
    "genotype": Harness(genotype, seeds.genotype, mutation.of_json),
    "head boxes": Harness(matlab, seeds.matlab, mutation.of_bytes),
    "checkpoint": Harness(checkpoint, seeds.checkpoints, mutation.of_zip(mutation.of_bytes), 2),
    "weight names": Harness(weight_names, seeds.weight_names, mutation.of_json),
    "dataset file": Harness(dataset_file, seeds.dataset_file, mutation.of_lines),
    "released weights": Harness(zoo, seeds.zoo, mutation.of_lines),
    "given boxes": Harness(given_boxes, seeds.given_boxes, mutation.of_json),
    "cache": Harness(cache, seeds.cache, mutation.of_zip(mutation.of_bytes)),
    "archive": Harness(archive, seeds.archives, mutation.of_archive, 2),
    "zip reader": Harness(zip_reader, seeds.zips, mutation.of_zip(mutation.of_bytes), 2),
    "image reader": Harness(image, seeds.image, mutation.of_jpeg, 3, compiled=True),
    "JPEG regions": Harness(region, seeds.image, mutation.of_jpeg, 3, compiled=True),
}
