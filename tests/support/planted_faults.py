"""Faults in configs, annotations, boxes, images, weights and archives, with their messages.

tests/security/test_planted_faults.py runs them; fuzz/page.py writes docs/faults.md from them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRUTH = {
    "train": "annotations/person_keypoints_train2017.json",
    "test": "annotations/person_keypoints_val2017.json",
}
BOXES = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"


@dataclass(frozen=True)
class Fault:
    """A fault: `how` is shown in the table, `tool` is run with the arguments of plant(Place),
    `line` is part of the one line on stderr (stdout for prepare_data).
    """

    kind: str
    how: str
    tool: str
    plant: Callable[[Place], list]
    line: str
    status: int


@dataclass(frozen=True)
class Place:
    """A dataset and an experiment to break. canary: a file that malicious code would write."""

    folder: Path
    root: Path
    experiment: Path
    weights: Path
    canary: Path

    def arguments(self, *overrides: Any) -> list:
        return ["--cfg", self.experiment, "DATASET.ROOT", self.root, *overrides]

    def edited(self, name: str, change: Callable[[Any], Any]) -> Path:
        """Apply `change` to a JSON file of the dataset; text that it returns replaces the content,
        and words between @ are written without quotes.
        """
        path = self.root / name
        content = json.loads(path.read_text())
        content = change(content) or content
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        if isinstance(text, str):
            for word in ("@1e400@", "@NaN@"):
                text = text.replace(f'"{word}"', word[1:-1])
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def image(self, split: str = "val2017") -> Path:
        """Return the image of the first labeled person."""
        truth = json.loads((self.root / f"annotations/person_keypoints_{split}.json").read_text())
        number = next(entry["image_id"] for entry in truth["annotations"] if entry["num_keypoints"])
        return (
            self.root
            / "images"
            / split
            / next(entry["file_name"] for entry in truth["images"] if entry["id"] == number)
        )


def _config(how: str, text: str | bytes, line: str) -> Fault:
    def plant(place: Place) -> list:
        path = place.folder / "invalid.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["--cfg", path]

    return Fault("configuration", how, "print_config", plant, line, 2)


def _key(how: str, *overrides: Any, line: str, status: int = 2) -> Fault:
    return Fault(
        "configuration", how, "train", lambda place: place.arguments(*overrides), line, status
    )


def _path(how: str, make: Callable[[Path], Any], line: str) -> Fault:
    def plant(place: Place) -> list:
        make(place.folder / "invalid.yaml")
        return ["--cfg", place.folder / "invalid.yaml"]

    return Fault("configuration", how, "print_config", plant, line, 2)


def _bomb(merge: bool) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        inner = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(
            f"a{level}: &a{level} " + (f"{{<<: [{inner}], z{level}: 1}}" if merge else f"[{inner}]")
        )
    return "\n".join(lines)


def _many_bases(path: Path) -> None:
    names = [path.name, *(f"{level}.yaml" for level in range(14))]
    for name, base in zip(names, names[1:]):
        (path.parent / name).write_text(f"_BASE_: [{', '.join([base] * 8)}]\n")
    (path.parent / names[-1]).write_text("WORKERS: 1\n")


CONFIG = [
    _path(
        "no such file",
        lambda path: None,
        "cannot read the experiment file (No such file or directory)",
    ),
    _path(
        "a folder", lambda path: path.mkdir(), "cannot read the experiment file (Is a directory)"
    ),
    _path("a pipe without a writer", os.mkfifo, "it is a device or a pipe, not a file"),
    _path(
        "a link to /dev/zero",
        lambda path: path.symlink_to("/dev/zero"),
        "it is a device or a pipe, not a file",
    ),
    _config("a bracket that is not closed", "TRAIN: {LR: 1", "not valid YAML"),
    _config(
        "an object of Python's that runs a command",
        "TRAIN: !!python/object/apply:os.system ['touch CANARY']",
        "not valid YAML (could not determine a constructor for the tag",
    ),
    _config(
        "aliases that stand for 10^11 values", _bomb(False), "stands for more than 100000 values"
    ),
    _config(
        "merge keys that stand for 10^11 values", _bomb(True), "stands for more than 100000 values"
    ),
    _config("an alias that stands for itself", "a: &a [*a]", "has an alias that stands for itself"),
    _config("lists nested 5000 deep", "[" * 5000, "is nested more than 64 deep"),
    _config(
        "a file of 2 MB",
        "#" * 2_000_000,
        "the experiment file has 2.0 MB, more than the 1.0 MB that are read",
    ),
    _config("Latin-1", "OUTPUT_DIR: Größe".encode("latin-1"), "not valid YAML"),
    _config("bytes of an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not valid YAML"),
    _config("a list", "- a\n- b\n", "expected KEY: VALUE lines, got a list"),
    _config("a misspelt key", "TRAIN: {LERNING_RATE: 1}", "unknown key TRAIN.LERNING_RATE"),
    _config("a key that clears the terminal", '"\\e[2J\\nx": 1', "unknown key \\x1b[2J"),
    _config(
        "a text where a number belongs",
        "TRAIN: {LR: fast}",
        "TRAIN.LR must be a number, got 'fast'",
    ),
    _config(
        "a rate that is NaN",
        "MODEL: {NUM_JOINTS: 16}\nTRAIN: {LR: .nan}",
        "TRAIN.LR must be above 0 and below 1e30, got nan",
    ),
    _config(
        "a rate of 1e400",
        "MODEL: {NUM_JOINTS: 16}\nTRAIN: {LR: 1.0e+400}",
        "TRAIN.LR must be above 0 and below 1e30, got inf",
    ),
    _config(
        "a negative batch",
        "MODEL: {NUM_JOINTS: 16}\nTRAIN: {BATCH_SIZE_PER_GPU: -4}",
        "TRAIN.BATCH_SIZE_PER_GPU must be",
    ),
    _config(
        "a number of 5000 digits", "WORKERS: " + "1" * 5000, "has a whole number of 5000 digits"
    ),
    _config("a base that leads back", "_BASE_: invalid.yaml", "_BASE_ leads back to itself"),
    _config(
        "a base that is not there",
        "_BASE_: nowhere.yaml",
        "nowhere.yaml: cannot read the experiment file",
    ),
    _path(
        "bases that name eight bases each, 14 levels deep",
        _many_bases,
        "more than 100 files to read by _BASE_",
    ),
    _config(
        "a whole number in base 60 that takes minutes",
        "WORKERS: " + ":".join(["59"] * 200_000),
        "has a whole number of 599999 digits",
    ),
    _config("a text with a zero byte", 'OUTPUT_DIR: "a\\0b"', "has a text with a zero byte"),
    _key(
        "a run folder whose name is too long",
        "OUTPUT_DIR",
        "x" * 300,
        line="cannot create the run folder (File name too long)",
        status=1,
    ),
    _key(
        "weights whose name is too long",
        "MODEL.PRETRAINED",
        "x" * 300,
        line="File name too long",
        status=1,
    ),
    _key("a key without a value", "WORKERS", line="'WORKERS' has no value"),
    _key(
        "an input that the network cannot halve",
        "MODEL.IMAGE_SIZE",
        "[60, 64]",
        "MODEL.HEATMAP_SIZE",
        "[15, 16]",
        line="MODEL.IMAGE_SIZE [60, 64]",
    ),
    _key(
        "a number of joints that the set has not",
        "MODEL.NUM_JOINTS",
        16,
        line="MODEL.NUM_JOINTS must be 17",
    ),
    _key(
        "brackets nested 10,000 deep",
        "TRAIN.LR_STEP",
        "[" * 10_000,
        line="TRAIN.LR_STEP must be a list of numbers",
    ),
]


def _annotated(
    how: str,
    change: Callable[[Any], Any],
    line: str,
    tool: str = "train",
    kind: str = "annotations",
) -> Fault:
    def plant(place: Place) -> list:
        place.edited(TRUTH[tool], change)
        return place.arguments("TEST.MODEL_FILE", place.weights)

    return Fault(kind, how, tool, plant, line, 1)


def _person(**fields: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        next(entry for entry in content["annotations"] if entry["num_keypoints"]).update(
            {"id": 4711, **fields}
        )

    return change


def _image(**fields: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        content["images"][0].update(fields)

    return change


def _all_images(rename: Callable[[str], str]) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for image in content["images"]:
            image["file_name"] = rename(image["file_name"])

    return change


def _two_persons(content: Any) -> None:
    content["categories"].append({"id": 2, "name": "person"})
    content["annotations"][-1]["category_id"] = 2


def _in_place(how: str, make: Callable[[Path], Any], line: str) -> Fault:
    def plant(place: Place) -> list:
        path = place.root / TRUTH["train"]
        path.unlink()
        make(path)
        return place.arguments()

    return Fault("annotations", how, "train", plant, line, 1)


ANNOTATIONS = [
    _in_place(
        "no such file",
        lambda path: None,
        "cannot read the annotation file (No such file or directory)",
    ),
    _in_place("a pipe without a writer", os.mkfifo, "it is a device or a pipe, not a file"),
    _in_place(
        "a folder", lambda path: path.mkdir(), "cannot read the annotation file (Is a directory)"
    ),
    _in_place(
        "a file with a hole of 5 GB",
        lambda path: (path.touch(), os.truncate(path, 5 * 10**9)),
        "the annotation file has 5.0 GB, more than the 4.3 GB that are read",
    ),
    _annotated("cut off", lambda content: json.dumps(content)[:-100], "not valid JSON"),
    _annotated("lists nested 100,000 deep", lambda content: "[" * 100_000, "not valid JSON"),
    _annotated(
        "UTF-16",
        lambda content: json.dumps(content).encode("utf-16"),
        "it is in UTF-16; save it as UTF-8",
    ),
    _annotated(
        "Latin-1",
        lambda content: json.dumps({"a": "é"}, ensure_ascii=False).encode("latin-1"),
        "it is in another encoding than UTF-8; save it as UTF-8",
    ),
    _annotated(
        "a name that is half of a letter",
        lambda content: json.dumps({"images": "\ud800"}),
        "not valid JSON",
    ),
    _annotated(
        "another format", lambda content: json.dumps([{"image": "a.jpg"}]), "has no list 'images'"
    ),
    _annotated("no images", lambda content: content.update(images=[]), "has no list 'images'"),
    _annotated(
        "no category person",
        lambda content: content.update(categories=[{"id": 1, "name": "dog"}]),
        "has no category 'person'",
    ),
    _annotated(
        "no persons", lambda content: content.update(annotations=[]), "no person is left to use"
    ),
    _annotated(
        "an image without a width",
        lambda content: content["images"][0].pop("width") and None,
        "has no 'width'; each needs id, file_name, width and height",
    ),
    _annotated("an image of negative size", _image(width=-640), "has width and height [-640.0"),
    _annotated("an image of 1e400 pixels", _image(height="@1e400@"), "annotation file"),
    _annotated(
        "two images of one id",
        lambda content: content["images"][1].update(id=content["images"][0]["id"]),
        "two entries of 'images' have the same id",
    ),
    _annotated(
        "an image id of 22 digits",
        _image(id=2**70),
        "has id 1.1805916207174113e+21, expected a whole number",
    ),
    _annotated(
        "a file_name that is a number", _image(file_name=7), "has a file_name that is not text"
    ),
    _annotated(
        "a file_name that leads out of the folder",
        _image(file_name="../../../etc/passwd"),
        "the file_name ../../../etc/passwd of 'images' leads out of the folder",
    ),
    _annotated(
        "an absolute file_name",
        _image(file_name="/etc/passwd"),
        "the file_name /etc/passwd of 'images' leads out of the folder",
    ),
    _annotated(
        "a file_name with a NUL",
        _image(file_name="a\0b.jpg"),
        "the file_name a\\x00b.jpg of 'images' is no name",
    ),
    _annotated(
        "file_names with newlines and terminal escapes",
        _all_images(lambda name: f"\x1b[2J\nerror: all is well\r{name}"),
        "\\x1b[2J",
    ),
    _annotated(
        "a joint that is NaN", _person(keypoints=["@NaN@"] + [1] * 50), "holds NaN in line 1"
    ),
    _annotated("a joint of 1e400", _person(keypoints=["@1e400@"] + [1] * 50), "annotation file"),
    _annotated(
        "a joint of 1e300",
        _person(keypoints=[1e300] + [1] * 50),
        "annotation 4711 has a keypoint that is not finite or beyond any image",
    ),
    _annotated(
        "a joint that is a text",
        _person(keypoints=["left"] + [1] * 50),
        "annotation 4711 has 'left' as number 0 of its keypoints, expected a number",
    ),
    _annotated(
        "14 joints",
        _person(keypoints=[1, 1, 2] * 14),
        "annotation 4711 has 42 keypoint numbers, expected 51",
    ),
    _annotated(
        "a person of an image that is not listed",
        _person(image_id=10**6),
        "annotation 4711 belongs to image 1000000, which 'images' does not list",
    ),
    _annotated("an id that is a list", _person(id=[1]), "annotation [1]"),
    _annotated(
        "an area that is a text (found before the first epoch)",
        _person(area="big"),
        "annotation 4711 has area 'big', expected a number",
        tool="test",
    ),
    _annotated(
        "an area that is null",
        _person(area=None),
        "annotation 4711 has area null, expected a number",
    ),
    _annotated(
        "a flag that is a text",
        _person(keypoints=[1, 1, 2] * 16 + [1, 1, "2"]),
        "annotation 4711 has '2' as number 50 of its keypoints, expected a number",
    ),
    _annotated(
        "an iscrowd that is a word",
        _person(iscrowd="no"),
        "annotation 4711 has iscrowd 'no', expected 0 or 1",
    ),
    _annotated(
        "an image id that is a word", _image(id="first"), "has id 'first', expected a whole number"
    ),
    _annotated(
        "two categories of one name, both with persons",
        _two_persons,
        "2 categories are named 'person' (ids 1, 2), and 2 of them have annotations; name one by"
        " its id",
    ),
]


def _detected(how: str, change: Callable[[Any], Any], line: str) -> Fault:
    def plant(place: Place) -> list:
        place.edited(BOXES, change)
        return place.arguments(
            "TEST.MODEL_FILE",
            place.weights,
            "TEST.USE_GT_BBOX",
            False,
            "TEST.COCO_BBOX_FILE",
            place.root / BOXES,
        )

    return Fault("boxes", how, "test", plant, line, 1)


def _boxes(how: str, box: list, line: str) -> Fault:
    return _annotated(how, _person(bbox=box), line, kind="boxes")


BOXES_FAULTS = [
    _boxes(
        "of no area", [10, 10, 0, 20], "annotation 4711 has a bbox without area inside its image"
    ),
    _boxes(
        "of negative width",
        [10, 10, -5, 20],
        "annotation 4711 has a bbox without area inside its image",
    ),
    _boxes(
        "outside of its image",
        [5000, 10, 20, 20],
        "annotation 4711 has a bbox without area inside its image",
    ),
    _boxes("NaN", ["@NaN@", 10, 20, 20], "holds NaN in line 1"),
    _boxes("1e400", [10, 10, "@1e400@", 20], "annotation file"),
    _boxes(
        "1e300",
        [10, 10, 1e300, 20],
        "annotation 4711 has a bbox that is not finite or beyond any image",
    ),
    _boxes(
        "null",
        [None, 10, 20, 20],
        "annotation 4711 has null as number 0 of its bbox, expected a number",
    ),
    _boxes("three numbers", [1, 2, 3], "annotation 4711 has 3 numbers in its bbox"),
    _detected(
        "a detection file that is cut off", lambda boxes: json.dumps(boxes)[:-20], "not valid JSON"
    ),
    _detected(
        "a detection file that is no list", lambda boxes: {"annotations": boxes}, "is not a list"
    ),
    _detected(
        "a detection without a score",
        lambda boxes: boxes[2].pop("score") and None,
        "entry 2 is not a detection (it has no 'score')",
    ),
    _detected(
        "a detection whose score is null",
        lambda boxes: boxes[2].update(score=None),
        "entry 2 is not a detection (it has score null, expected a number)",
    ),
    _detected(
        "a detection of three numbers",
        lambda boxes: boxes[2].update(bbox=[1, 2, 3]),
        "entry 2 is not a detection",
    ),
    _detected(
        "a detection that is NaN",
        lambda boxes: boxes[2].update(bbox=[1, 2, "@NaN@", 4]),
        "holds NaN",
    ),
    _detected(
        "a detection of 1e300",
        lambda boxes: boxes[2].update(bbox=[1e300, 2, 3, 4]),
        "entry 2 has a bbox or score that is not finite or beyond any image",
    ),
    _detected(
        "detections that are numbers", lambda boxes: list(range(9)), "entry 0 is not a detection"
    ),
    _detected(
        "detections of other images",
        lambda boxes: [box.update(image_id=10**6) for box in boxes] and None,
        "no person is left to use",
    ),
    _detected(
        "detections of negative size",
        lambda boxes: [box.update(bbox=[9, 9, -3, -3]) for box in boxes] and None,
        "no person is left to use",
    ),
]


def _make_hole(path):
    path.touch()
    os.truncate(path, 3 * 10**9)


def _pictured(how: str, make: Callable[[Path], Any], line: str, tool: str = "test") -> Fault:
    def plant(place: Place) -> list:
        path = place.image("train2017" if tool == "train" else "val2017")
        data = path.read_bytes()
        path.unlink()
        made = make(path)
        if isinstance(made, Callable):
            made = made(data)
        if isinstance(made, bytes):
            path.write_bytes(made)
        return place.arguments("TEST.MODEL_FILE", place.weights)

    return Fault("images", how, tool, plant, line, 1)


def _claiming(data: bytes, width: int, height: int) -> bytes:
    """Change the size in the frame header of a JPEG."""
    at = next(at for at in range(2, len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _png(width: int, height: int) -> bytes:
    import zlib

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def _many_scans(data: bytes) -> bytes:
    at = data.index(b"\xff\xda")
    return _claiming(data, 8000, 8000)[:at] + data[at:-2] * 100 + data[-2:]


def _progressive_of_many_scans(_: bytes) -> bytes:
    import cv2
    import numpy as np

    data = cv2.imencode(
        ".jpg", np.zeros((200, 200, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    )[1].tobytes()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 10_000 + data[-2:]


def _tiff_of_one_tile() -> bytes:
    tags = [
        (256, 40),
        (257, 30),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (322, 16000),
        (323, 16000),
        (324, 200),
        (325, 100),
    ]
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + bytes(160)
    )


def _zipped(how: str, make: Callable[[Path, str, bytes], Any], line: str) -> Fault:
    """Write images/val2017.zip with make(archive, name, image)."""

    def plant(place: Place) -> list:
        image = place.image()
        archive = place.root / "images" / "val2017.zip"
        make(archive, image.name, image.read_bytes())
        return place.arguments("TEST.MODEL_FILE", place.weights, "DATASET.DATA_FORMAT", "zip")

    return Fault("images", how, "test", plant, line, 1)


def _packed(
    archive: Path, name: str, content: bytes, patch: Callable[[bytearray], Any] = lambda data: None
) -> None:
    """Write one member under the names of all images; `patch` breaks the bytes of the file."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(name, content)
    data = bytearray(archive.read_bytes())
    patch(data)
    archive.write_bytes(data)


def _claim_of_member(data: bytearray) -> None:
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 3 << 30)


def _locked(data: bytearray) -> None:
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1


def _flipped(data: bytearray) -> None:
    data[200] ^= 0xFF


IMAGES = [
    _pictured("missing", lambda path: None, "cannot read the image (No such file or directory)"),
    _pictured(
        "missing, in training",
        lambda path: None,
        "cannot read the image (No such file or directory)",
        "train",
    ),
    _pictured(
        "missing, and there with an ending in capitals",
        lambda path: path.with_suffix(".JPG").write_bytes(b"") and None,
        "(No such file or directory); check DATASET.ROOT and the annotation file; there is ",
    ),
    _pictured("empty", lambda path: b"", "the image file is empty; download it again"),
    _pictured(
        "cut off",
        lambda path: lambda data: data[:2000],
        "the image file is cut off; download it again",
    ),
    _pictured(
        "a page of a web server",
        lambda path: b"404: not found\n",
        "not an image that OpenCV can read",
    ),
    _pictured(
        "a format whose decoder has known attacks (OpenEXR)",
        lambda path: b"v/1\x01" + bytes(500),
        "not an image that OpenCV can read (JPEG, PNG, BMP, GIF, TIFF and WebP are)",
    ),
    _pictured("a folder", lambda path: path.mkdir(), "cannot read the image (Is a directory)"),
    _pictured("a pipe without a writer", os.mkfifo, "it is a device or a pipe, not a file"),
    _pictured(
        "a link to /dev/zero",
        lambda path: path.symlink_to("/dev/zero"),
        "it is a device or a pipe, not a file",
    ),
    _pictured(
        "a link to itself",
        lambda path: path.symlink_to(path),
        "cannot read the image (Too many levels of symbolic links)",
    ),
    _pictured(
        "a JPEG that claims 60,000 x 60,000 pixels",
        lambda path: lambda data: _claiming(data, 60_000, 60_000),
        "claims 60000 x 60000 pixels, and at most 110 million are read",
    ),
    _pictured(
        "a PNG of 1 kB that claims 50,000 x 50,000 pixels",
        lambda path: _png(50_000, 50_000),
        "claims 50000 x 50000 pixels, and at most 110 million are read",
    ),
    _pictured("a JPEG of a hundred scans", lambda path: _many_scans, "has more than 64 scans"),
    _pictured(
        "a small JPEG of ten thousand scans",
        lambda path: _progressive_of_many_scans,
        "has more than 64 scans",
    ),
    _pictured(
        "a TIFF of 300 bytes with a tile of 256 million pixels",
        lambda path: _tiff_of_one_tile(),
        "is decoded in parts of more than 220 MB",
    ),
    _pictured(
        "a file with a hole of 3 GB",
        _make_hole,
        "the image has 3.0 GB, more than the 536.9 MB that are read",
    ),
    _zipped("an archive that is not there", lambda archive, name, image: None, "no such archive"),
    _zipped(
        "an archive that is none",
        lambda archive, name, image: archive.write_bytes(b"no archive"),
        "cannot open the archive (File is not a zip file)",
    ),
    _zipped(
        "an archive without the image",
        lambda archive, name, image: _packed(archive, "other.jpg", image),
        "the archive holds no ",
    ),
    _zipped(
        "an archive whose image says that it has 3 GB",
        lambda archive, name, image: _packed(archive, name, image, _claim_of_member),
        "has 3.2 GB, and at most 536.9 MB are read",
    ),
    _zipped(
        "an archive with a password",
        lambda archive, name, image: _packed(archive, name, image, _locked),
        "cannot read ",
    ),
    _zipped(
        "an archive with a wrong byte",
        lambda archive, name, image: _packed(archive, name, image, _flipped),
        "cannot read ",
    ),
]


class Malicious:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def malicious(place: Place, old: bool = False) -> Path:
    import torch

    path = place.folder / "malicious.pth"
    state = torch.load(place.weights, weights_only=True)
    torch.save(
        {"state_dict": state, "best": Malicious(place.canary)},
        path,
        _use_new_zipfile_serialization=not old,
    )
    return path


def plain_pickle(place: Place, protocol: int = 2) -> Path:
    path = place.folder / "malicious.pth"
    path.write_bytes(pickle.dumps(Malicious(place.canary), protocol))
    return path


def _in_run_folder(place: Place, path: Path, name: str) -> list:
    """Return arguments that make a tool resume from the file in the run folder."""
    target = place.folder / "output" / "coco" / "pose_res2net" / "tiny" / name
    target.parent.mkdir(parents=True)
    shutil.move(path, target)
    return place.arguments("AUTO_RESUME", True)


#: every way in which a tool takes a file of torch.save: the tool, and its arguments
TAKES_WEIGHTS: dict[str, tuple[str, Callable[[Place, Path], list]]] = {
    "train": ("train", lambda place, path: place.arguments("MODEL.PRETRAINED", path)),
    "train with TRAIN.CHECKPOINT": (
        "train",
        lambda place, path: place.arguments("TRAIN.CHECKPOINT", path),
    ),
    "train with AUTO_RESUME": (
        "train",
        lambda place, path: _in_run_folder(place, path, "checkpoint.pth"),
    ),
    "search": ("search", lambda place, path: _in_run_folder(place, path, "search.pth")),
    "test": ("test", lambda place, path: place.arguments("TEST.MODEL_FILE", path)),
    "convert_weights": (
        "convert_weights",
        lambda place, path: [path, place.folder / "out.pth", "--to", "poise"],
    ),
    "demo": (
        "demo",
        lambda place, path: [
            "--cfg",
            place.experiment,
            "--weights",
            path,
            "--input",
            place.image(),
            "--output",
            place.folder / "demo",
        ],
    ),
    "export": (
        "export",
        lambda place, path: [
            "--cfg",
            place.experiment,
            "--weights",
            path,
            "--format",
            "torchscript",
            "--out",
            place.folder / "net.pt",
        ],
    ),
}


def _weighed(how: str, make: Callable[[Place], Path | None], line: str, way: str = "test") -> Fault:
    tool, arguments = TAKES_WEIGHTS[way]
    return Fault(
        "weights",
        how,
        tool,
        lambda place: arguments(place, make(place) or place.folder / "invalid.pth"),
        line,
        1,
    )


def _saved(content: Callable[[dict], Any]) -> Callable[[Place], Path]:
    """Save content(matching state dict)."""

    def make(place: Place) -> Path:
        import torch

        path = place.folder / "invalid.pth"
        torch.save(content(torch.load(place.weights, weights_only=True)), path)
        return path

    return make


def _written(data: Callable[[bytes], bytes]) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        path = place.folder / "invalid.pth"
        path.write_bytes(data(place.weights.read_bytes()))
        return path

    return make


def _with(tensor: Callable[[Any], Any]) -> Callable[[dict], dict]:
    """Return the state dict with its first tensor changed."""
    return lambda state: {**state, next(iter(state)): tensor(next(iter(state.values())))}


def _checkpoint(how: str, content: Callable[[dict], Any], line: str) -> Fault:
    def plant(place: Place) -> list:
        path = _saved(content)(place)
        return place.arguments("TRAIN.CHECKPOINT", path)

    return Fault("weights", how, "train", plant, line, 1)


def _run(**changes: Any) -> Callable[[dict], dict]:
    """Return a checkpoint with the required fields only."""
    return lambda state: {
        "format": 1,
        "epoch": 1,
        "step": 0,
        "sums": {},
        "state_dict": state,
        "optimizer": {},
        "best": {},
        "experiment": "tiny",
        "seed": 0,
        "threads": 1,
        **changes,
    }


def _compressed(place: Place) -> Path:
    import torch

    path = _saved(lambda state: {**state, "zeros": torch.zeros(1_000_000)})(place)
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(place.folder / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return place.folder / "packed.pth"


def _exported(script: bool) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        import torch

        path = place.folder / "exported.pth"
        network, example = torch.nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)
        with open(path, "wb") as file:
            if script:
                torch.jit.save(torch.jit.trace(network, example), file)
            else:
                torch.export.save(torch.export.export(network, (example,)), file)
        return path

    return make


WEIGHTS = [
    _weighed("no such file", lambda place: None, "no such weight file"),
    _weighed("no such file, in training", lambda place: None, "no such file", "train"),
    _weighed(
        "no such file, to convert", lambda place: None, "no such weight file", "convert_weights"
    ),
    _weighed(
        "a text", _written(lambda data: b"no weights\n"), "not a weight file of PyTorch, or damaged"
    ),
    _weighed("empty", _written(lambda data: b""), "not a weight file of PyTorch, or damaged"),
    _weighed(
        "cut off", _written(lambda data: data[:3000]), "not a weight file of PyTorch, or damaged"
    ),
    _weighed("a list", _saved(lambda state: [1, 2]), "holds no state dict (names and tensors)"),
    _weighed(
        "another network's",
        _saved(lambda state: {"a.weight": next(iter(state.values()))}),
        "loaded 0 of",
    ),
    _weighed(
        "names that clear the terminal",
        _saved(lambda state: {**state, "\x1b[2J\nx": next(iter(state.values()))}),
        "\\x1b[2J",
    ),
    _weighed(
        "a tensor without memory",
        _saved(_with(lambda tensor: tensor.to("meta"))),
        "is not a plain tensor",
    ),
    _weighed(
        "a sparse tensor", _saved(_with(lambda tensor: tensor.to_sparse())), "is not a plain tensor"
    ),
    _weighed(
        "10^12 values that are one",
        _saved(_with(lambda tensor: tensor.reshape(-1)[:1].expand(10**6, 10**6))),
        "is not a plain tensor",
    ),
    _weighed(
        "a pickle that writes a file",
        malicious,
        "holds more than tensors and plain values (posix.system)",
    ),
    _weighed(
        "a pickle that writes a file, in training",
        malicious,
        "holds more than tensors and plain values (posix.system)",
        "train",
    ),
    _weighed(
        "a pickle that writes a file, to convert",
        malicious,
        "holds more than tensors and plain values (posix.system)",
        "convert_weights",
    ),
    _weighed(
        "the same in the form before PyTorch 1.6",
        lambda place: malicious(place, old=True),
        "holds more than tensors and plain values (posix.system)",
    ),
    _weighed(
        "a bare pickle that writes a file",
        plain_pickle,
        "holds more than tensors and plain values (posix.system)",
    ),
    _weighed(
        "the same in pickle's protocol 4, which PyTorch does not use",
        lambda place: plain_pickle(place, 4),
        "not a weight file of PyTorch, or damaged",
    ),
    _checkpoint(
        "a checkpoint to go on from that is bare weights",
        lambda state: state,
        "not a checkpoint of this version of Poise",
    ),
    _checkpoint(
        "a checkpoint whose epoch is a text",
        _run(epoch="three"),
        "not a checkpoint of this version of Poise",
    ),
    _checkpoint(
        "a checkpoint before the first epoch",
        _run(epoch=-3),
        "the checkpoint has epoch -3, which no run has",
    ),
    _checkpoint(
        "a checkpoint of a run without threads",
        _run(threads=0),
        "the checkpoint has threads 0, which no run has",
    ),
    _checkpoint(
        "a checkpoint at step 2^70",
        _run(step=2**70),
        "the checkpoint has step 1180591620717411303424, which no run has",
    ),
    _checkpoint(
        "a checkpoint with 10^12 values that are one",
        lambda state: _run(
            optimizer={"state": [next(iter(state.values())).reshape(-1)[:1].expand(10**6, 10**6)]}
        )(state),
        "the checkpoint has an unsupported tensor",
    ),
    _checkpoint(
        "a checkpoint without its best score and optimizer",
        _run(),
        "the checkpoint does not fit the network or optimizer of this configuration",
    ),
    _checkpoint(
        "a checkpoint of another experiment",
        _run(experiment="\x1b[2J"),
        "a checkpoint of experiment \\x1b[2J, not of tiny",
    ),
    _weighed(
        "a pickle that writes a file, to go on from",
        malicious,
        "holds more than tensors and plain values (posix.system)",
        "train with TRAIN.CHECKPOINT",
    ),
    _weighed(
        "a pickle that writes a file, in the run folder",
        malicious,
        "holds more than tensors and plain values (posix.system)",
        "train with AUTO_RESUME",
    ),
    _weighed(
        "a pickle that writes a file, of a search",
        malicious,
        "holds more than tensors and plain values (posix.system)",
        "search",
    ),
    _weighed(
        "a pickle that writes a file, for the demo",
        malicious,
        "holds more than tensors and plain values (posix.system)",
        "demo",
    ),
    _weighed(
        "a pickle that writes a file, to export",
        malicious,
        "holds more than tensors and plain values (posix.system)",
        "export",
    ),
    _weighed(
        "compressed, so that 20 kB become 4 MB",
        _compressed,
        "its members are compressed or larger than the file",
    ),
    _weighed(
        "a network as TorchScript, which is code",
        _exported(True),
        "holds an exported network (TorchScript or torch.export), not a weight file",
    ),
    _weighed(
        "a network of torch.export",
        _exported(False),
        "holds an exported network (TorchScript or torch.export), not a weight file",
    ),
    _weighed(
        "a tensor with a name of 5000 letters",
        _saved(lambda state: {**state, "layer1." + "9" * 5000: next(iter(state.values()))}),
        "holds a tensor with a name of 5007 letters",
    ),
]


def _archived(how: str, make: Callable[[Path], Any], line: str) -> Fault:
    """Write a replacement of MPII's image archive with make(path)."""

    def plant(place: Place) -> list:
        root = place.folder / "mpii"
        root.mkdir()
        make(root / "mpii_human_pose_v1.tar.gz")
        return ["mpii", "--root", root]

    return Fault("archives", how, "prepare_data", plant, line, 1)


def _tar(*members: tuple[str, bytes, str], size: int = 100) -> Callable[[Path], None]:
    """members: name, type, link target."""

    def make(path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for name, kind, link in (("images/good.jpg", tarfile.REGTYPE, ""), *members):
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = (
                    kind,
                    link,
                    size if kind == tarfile.REGTYPE else 0,
                )
                archive.addfile(info, io.BytesIO(bytes(info.size)))

    return make


def _tar_with_long_header(path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def _zip_with_link(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("images/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc")


def _zip_named(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "x")

    return make


def _cut(path: Path) -> None:
    _tar(size=300_000)(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


ARCHIVES = [
    _archived(
        "a member with ..",
        _tar(("images/../../up.jpg", tarfile.REGTYPE, "")),
        "images/../../up.jpg leads out of the folder; nothing was unpacked",
    ),
    _archived(
        "an absolute member",
        _tar(("/tmp/up.jpg", tarfile.REGTYPE, "")),
        "/tmp/up.jpg leads out of the folder; nothing was unpacked",
    ),
    _archived(
        "a symbolic link out of the folder",
        _tar(("images/l", tarfile.SYMTYPE, "/etc"), ("images/l/up.jpg", tarfile.REGTYPE, "")),
        "images/l is a link; nothing was unpacked",
    ),
    _archived(
        "a hard link",
        _tar(("images/l", tarfile.LNKTYPE, "/etc/passwd")),
        "images/l is a link; nothing was unpacked",
    ),
    _archived(
        "a device",
        _tar(("images/d", tarfile.CHRTYPE, "")),
        "images/d is no file; nothing was unpacked",
    ),
    _archived(
        "a pipe",
        _tar(("images/p", tarfile.FIFOTYPE, "")),
        "images/p is no file; nothing was unpacked",
    ),
    _archived(
        "a member twice",
        _tar(("images/good.jpg", tarfile.REGTYPE, "")),
        "holds images/good.jpg twice; nothing was unpacked",
    ),
    _archived(
        "a name that clears the terminal",
        _tar(("images/\x1b[2J/../../x", tarfile.REGTYPE, "")),
        "images/\\x1b[2J/../../x leads out of the folder",
    ),
    _archived(
        "a header of 8 GB",
        _tar_with_long_header,
        "a header in it is larger than a name can be; nothing was unpacked",
    ),
    _archived(
        "a file with holes",
        _tar(("images/h", tarfile.GNUTYPE_SPARSE, "")),
        "images/h is a file with holes; nothing was unpacked",
    ),
    _archived(
        "100 MB in 100 kB",
        _tar(("images/zeros.jpg", tarfile.REGTYPE, ""), size=50_000_000),
        "would become more than",
    ),
    _archived("cut off", _cut, "the archive is damaged"),
    _archived(
        "no archive", lambda path: path.write_bytes(b"404: not found\n"), "cannot open the archive"
    ),
    _archived(
        "a ZIP file with a link", _zip_with_link, "images/link is a link; nothing was unpacked"
    ),
    _archived(
        "a ZIP file with ..",
        _zip_named("images/../../../up.jpg"),
        "images/../../../up.jpg leads out of the folder; nothing was unpacked",
    ),
    _archived(
        "a ZIP file with a drive",
        _zip_named("C:/up.jpg"),
        "C:/up.jpg leads out of the folder; nothing was unpacked",
    ),
]

FAULTS = [*CONFIG, *ANNOTATIONS, *BOXES_FAULTS, *IMAGES, *WEIGHTS, *ARCHIVES]


def table() -> str:
    """Return the faults as a Markdown table."""
    rows = [
        f"| {fault.kind} | {fault.how} | `{fault.tool}` | {_code(fault.line)} | {fault.status} |"
        for fault in FAULTS
    ]
    return "\n".join(
        [
            f"{len(FAULTS)} faults:",
            "",
            "| where | what is planted | tool | the line says | exit status |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _code(text: str) -> str:
    return "`" + text.strip().replace("|", "\\|") + "`"


def copy_of(folder: Path, small_set: Path) -> Path:
    return Path(shutil.copytree(small_set, folder / "set"))
