"""Test tools/check_data.py: planted errors are reported, valid data is not."""

import contextlib
import io
import json
import os
import shutil
import sys
import zipfile

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from poise import config
from poise.config.dataset_yaml import COCO
from poise.datasets import coco, load_split
from poise.datasets.validation import left_right, run
from poise.datasets.validation.columns import read_columns
from poise.datasets.validation.findings import Findings
from poise.datasets.validation.persons import AnnotatedPersons, check_turned
from poise.datasets.validation.sources import build_sources
from poise.engine import train
from poise.engine.distributed import SINGLE_PROCESS
from poise.engine.run_logger import TrainLogger
from poise.errors import DataError, run_tool
from poise.evaluation.evaluators import build_evaluator
from poise.structures import boxes as box_forms
from support.custom_datasets import experiment, make_set
from support.paths import ROOT
from support.runs import forget_log_handlers
from support.tools import load_tool


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    make_set(folder / "set", 5, (("train", 40), ("val", 24)), sigmas=[0.1] * 5)
    return folder


@pytest.fixture
def made(tmp_path, sound):
    """A copy of a sound set that a test may spoil, and its experiment."""
    shutil.copytree(sound / "set", tmp_path / "set")
    file = tmp_path / "set" / "dots.yaml"
    file.write_text(file.read_text().replace(str(sound), str(tmp_path)))
    yield experiment(tmp_path, file)
    forget_log_handlers()


def edit(path, change, name="train"):
    file = path.parent / "set" / "labels" / f"{name}.json"
    content = json.loads(file.read_text())
    content = change(content) or content
    file.write_text(json.dumps(content) if not isinstance(content, str) else content)


def found(path, kind="error", *overrides):
    findings, _ = run.check(build_sources(config.load(path, list(overrides))))
    return [str(finding).removeprefix(f"{kind}: ") for finding in findings if finding.kind == kind]


def persons(content):
    return [a for a in content["annotations"] if a["category_id"] == 7]


def call(path, *arguments):
    """(exit status, stdout) of the tool."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = ["tools/check_data.py", "--cfg", str(path), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as done:
            run_tool(load_tool("check_data").main)
    finally:
        sys.argv = argv
    return done.value.code, out.getvalue()


# the tool -----------------------------------------------------------------------------------------


def test_check_data_valid_set_is_fine(made):
    status, out = call(made)
    assert (
        status == 0
        and out.count("verdict: fine\n") == 1
        and "error" not in out
        and "warning" not in out
    )
    assert (
        "note: train set train: persons: 60 of 60 are used, 0.0 % dropped: 40 of another category"
        in out
    )
    page = (made.parent / "output" / "dots5" / "check_data" / "dots.html").read_text()
    assert (
        page.count("<img ") == page.count("data:image/jpeg;base64,") == 24
        and "verdict: fine" in page
        and "<td>middle" in page
        and "<script" not in page
    )


def test_check_data_all_errors_are_reported_and_exit_1(made):
    edit(made, lambda c: c["annotations"].append(dict(persons(c)[0])))
    edit(made, lambda c: persons(c)[0]["bbox"].__setitem__(2, 0), "val")
    (made.parent / "set" / "frames" / "cam 1" / "val-shot 3.png").unlink()
    status, out = call(made, "--no-page")
    assert status == 1 and out.splitlines()[-1].startswith("verdict: 4 errors found")
    lines = [line for line in out.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[2] for line in lines] == [
        "ids",
        "a run would end with",
        "images",
        "boxes",
    ]
    assert not (made.parent / "output").exists()


def test_check_data_page_control_characters_are_escaped(made):
    """Escape control characters in file names, categories and joints of an untrusted file."""
    odd = "cam 1/\u202egnp.\x07 <b>.png"
    frames = made.parent / "set" / "frames"
    (frames / "cam 1" / "train-shot 0.png").rename(frames / odd)
    edit(made, lambda c: c["images"][0].update(file_name=odd, width=121))
    edit(made, lambda c: c["categories"][0].update(name="dog\u2067"))
    status, out = call(made, "--pictures", "200")
    page = (made.parent / "output" / "dots5" / "check_data" / "dots.html").read_text()
    for text in (out, page):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert status == 1 and "<figcaption>cam 1/\\u202egnp.\\x07 &lt;b&gt;.png, annotation 5<" in page
    assert "cam 1/\\u202egnp.\\x07 <b>.png" in out and "dog\\u2067 (1)" in out


def test_check_data_invalid_arguments_exit_2(made, tmp_path):
    assert call(made, "DATASET.NONE", 1)[0] == 2 and call(tmp_path / "none.yaml")[0] == 2


# each fault ---------------------------------------------------------------------------------------


def _all_keypoints(content, change):
    for person in persons(content):
        points = np.array(person["keypoints"], float).reshape(-1, 3)
        person["keypoints"] = change(points, person).ravel().tolist()


def _exchange(a, b):
    def change(points, _):
        points[[a, b]] = points[[b, a]]
        return points

    return change


def _boxes(change):
    return lambda content: (
        [person.update(bbox=change(*person["bbox"])) for person in persons(content)] and None
    )


FAULTS = {
    "the same annotation id": (
        lambda c: c["annotations"][2].update(id=c["annotations"][0]["id"]),
        "ids: 1 ids of annotations come more than once: 5",
    ),
    "the same image id": (
        lambda c: c["images"][1].update(id=c["images"][0]["id"]),
        "ids: 1 ids of images come more than once",
    ),
    "the same category id": (
        lambda c: c["categories"].append({"id": 7, "name": "other"}),
        "ids: 1 ids of categories come more than once: 7",
    ),
    "the same file twice": (
        lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]),
        "images: 1 file names are listed more than once: cam 1/train-shot 0.png",
    ),
    "an image that is not listed": (
        lambda c: persons(c)[0].update(image_id=77777),
        "ids: 1 annotations are of images that the file does not list (annotation 5, image 77777)",
    ),
    "no such category": (
        lambda c: c["categories"].pop() and None,
        "categories: none is 'dot person'",
    ),
    "joints in another order": (
        lambda c: c["categories"][1]["keypoints"].reverse(),
        "its joint 0 is 'right_1', in ",
    ),
    "another number of joints": (
        lambda c: persons(c)[3]["keypoints"].extend([1, 1, 1]),
        "annotations: 1 annotation has 18 keypoint numbers, expected 15 (5 joints x 3)",
    ),
    "text as bbox": (
        lambda c: persons(c)[0].update(bbox="all"),
        "annotations: 1 annotation has a bbox that is not four numbers",
    ),
    "no keypoints": (
        lambda c: persons(c)[0].pop("keypoints") and None,
        "annotations: 1 annotation of the category has no keypoints",
    ),
    "a flag of 7": (
        lambda c: persons(c)[0]["keypoints"].__setitem__(2, 7),
        "visibility: 1 flags are none of 0, 1 and 2 (annotation 5)",
    ),
    "no flag at all": (
        lambda c: _all_keypoints(c, lambda p, _: p * [1, 1, 0]),
        "persons: none with a labeled joint",
    ),
    "num_keypoints of nothing": (
        lambda c: [p.update(num_keypoints=1) for p in persons(c)] and None,
        "visibility: num_keypoints of 60 annotations is not",
    ),
    "a flag of -1": (
        lambda c: persons(c)[0]["keypoints"].__setitem__(2, -1),
        "visibility: 1 flags are none of 0, 1 and 2 (annotation 5)",
    ),
    "a category id beyond 64 bits": (
        lambda c: c["categories"][1].update(id=2**64 - 1),
        "categories: none is 'dot person'",
    ),
    "an annotation's category beyond 64 bits": (
        lambda c: c["annotations"][0].update(category_id=2**64 - 1),
        "annotations: 1 annotation has an id or category_id that is",
    ),
    "joints as shares": (
        lambda c: _all_keypoints(c, lambda p, _: p / [120, 64, 1]),
        "are between 0 and 1.5: they are given as fractions of the image",
    ),
    "joints beyond the image": (
        lambda c: _all_keypoints(c, lambda p, _: p * [2, 1, 1]),
        "are outside their image, such as ",
    ),
    "joints at 0, 0": (
        lambda c: _all_keypoints(c, lambda p, _: p * [[1, 1, 1]] * 4 + [[0, 0, 1]]),
        "are flagged as labeled and are at 0, 0",
    ),
    "boxes as corners": (
        _boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
        "taken as left, top, right, bottom: the file has them in that format",
    ),
    "boxes around the center": (
        _boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
        "taken as the center, width and height",
    ),
    "boxes as shares": (
        _boxes(lambda x, y, w, h: [x / 120, y / 64, w / 120, h / 64]),
        "taken as fractions of the image from 0 to 1",
    ),
    "boxes as YOLO's": (
        _boxes(lambda x, y, w, h: [(x + w / 2) / 120, (y + h / 2) / 64, w / 120, h / 64]),
        "taken as the center and size in fractions of the image",
    ),
    "a box without width": (
        lambda c: persons(c)[0]["bbox"].__setitem__(2, 0),
        "boxes: 1 have no width or height (annotation 5)",
    ),
    "a box outside": (
        lambda c: persons(c)[0]["bbox"].__setitem__(0, 500),
        "boxes: 1 are outside their image (annotation 5)",
    ),
    "boxes of other persons": (
        _boxes(lambda x, y, w, h: [110, 60, 3, 3]),
        "persons are far outside of their box",
    ),
    "areas as shares": (
        lambda c: [p.update(area=p["area"] / 7680) for p in persons(c)] and None,
        "areas: most are below 1: they are given as fractions",
    ),
    "areas larger than boxes": (
        lambda c: [p.update(area=9999) for p in persons(c)] and None,
        "areas: 60 of 60 are larger than their box",
    ),
    "another size": (
        lambda c: [i.update(width=240) for i in c["images"]] and None,
        (
            "images: 40 of 40 have another size than their annotations say: cam 1/train-shot 0.png"
            " has 120 x 64, annotated 240 x 64"
        ),
    ),
    "width and height exchanged": (
        lambda c: [i.update(width=64, height=120) for i in c["images"]] and None,
        "images: 40 have width and height exchanged",
    ),
    "a size of 0": (
        lambda c: c["images"][0].update(width=0),
        "annotations: 1 image has no width and height that can be (cam 1/train-shot 0.png)",
    ),
    "a name outside of the folder": (
        lambda c: c["images"][0].update(file_name="../../x.png"),
        "annotations: 1 image has a file_name that ",
    ),
    "all exchanged but the test set": (
        lambda c: _all_keypoints(c, lambda p, _: p[[0, 2, 1, 4, 3]]),
        (
            "left joints are on the right in 0 % of the training set's pairs and 100 % of the test"
            " set's"
        ),
    ),
    "no JSON": (lambda c: "{", "annotations: "),
    "no images": (lambda c: c.pop("images") and None, "has no list 'images'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_check_data_planted_error_is_reported(made, name):
    change, line = FAULTS[name]
    edit(made, change)
    assert any(line in text for text in found(made)), found(made)


def test_check_data_missing_areas_matter_for_testing(made):
    for name in ("train", "val"):
        edit(made, lambda c: [p.pop("area") for p in persons(c)] and None, name)
    assert [line for line in found(made) if "areas: " in line] == [
        "test set val: areas: 36 of 36 annotations have no area, which the OKS needs (annotation 5,"
        " 7, 8, ...); without masks, half of the box's area is a usual choice"
    ]
    assert any(
        "train: areas: 60 of 60 annotations have none" in line for line in found(made, "note")
    )


def test_check_data_other_keypoint_names_warn(made):
    edit(
        made,
        lambda c: c["categories"][1].update(
            keypoints=["nose", "left_0", "right_0", "left_1", "right_1"]
        ),
    )
    assert not found(made) and any(
        "1 joints have another name in " in line and "nose is middle" in line
        for line in found(made, "warning")
    )


def test_check_data_many_dropped_persons_warn(made):
    def change(content):
        for person in persons(content)[:45]:
            person.update(iscrowd=1)

    edit(made, change)
    assert any(
        "persons: 15 of 60 are used, 75.0 % dropped: 45 crowd regions, 40 of another category"
        in line
        for line in found(made, "warning")
    )


def test_check_data_unlabeled_keypoint_and_duplicate_person_warn(made):
    edit(made, lambda c: _all_keypoints(c, lambda p, _: p * [[0, 0, 0], *[[1, 1, 1]] * 4]))
    edit(made, lambda c: c["annotations"].append({**persons(c)[5], "id": 4711}))
    lines = "\n".join(found(made, "warning"))
    assert (
        "visibility: never labeled: middle" in lines
        and "persons: 1 have the same joints as another of the same image (annotation 4711)"
        in lines
    )


def test_check_data_separated_duplicate_persons_are_found(made):
    """Of three persons with the same first two joints, the first and the last are one."""

    def change(content):
        first, other = (
            persons(content)[5],
            {
                **persons(content)[5],
                "id": 4710,
                "keypoints": [*persons(content)[5]["keypoints"]],
            },
        )
        other["keypoints"][9] += 1
        content["annotations"] += [other, {**first, "id": 4711}]

    edit(made, change)
    assert any(
        "persons: 1 have the same joints as another of the same image (annotation 4711)" in line
        for line in found(made, "warning")
    )


def test_check_data_select_data_counts_dropped_persons(made):
    lines = found(made, "note", "DATASET.SELECT_DATA", "True", "DATASET.BOX_MARGIN", "[1.0, 1.0]")
    edit(made, lambda c: [p.update(bbox=[0, 0, 119, 63]) for p in persons(c)[:10]] and None)
    lines = found(made, "note", "DATASET.SELECT_DATA", "True")
    assert any(
        "train: persons: 5" in line
        and "joints far from the box's center, DATASET.SELECT_DATA" in line
        for line in lines
    ), lines


def test_check_data_dataset_remarks_are_reported_once(made):
    file = made.parent / "set" / "dots.yaml"
    file.write_text(
        "\n".join(
            line
            for line in file.read_text().splitlines()
            if not line.startswith(("sigmas", "- 0.1"))
        )
        + "\n"
    )
    assert [line for line in found(made, "warning") if "has no sigmas" in line] == [
        f"dataset file: {file}: has no sigmas, so the OKS takes 0.067 for every joint, "
        "the mean of COCO's; such an AP compares runs on this data set only"
    ]


def test_check_data_missing_metric_inputs_are_errors(
    made, tiny_mpii_experiment, tmp_path, small_mpii_set
):
    """Report a missing crowdIndex (CrowdPose) and missing head boxes (MPII, for PCKh).

    An evaluation would end with an error without them.
    """
    file = made.parent / "set" / "dots.yaml"
    file.write_text(file.read_text() + "metric: crowdpose\n")
    assert any(
        "val: a run would end with: ground truth: image 1001: missing crowdIndex" in line
        for line in found(made)
    )
    shutil.copytree(small_mpii_set, tmp_path / "mpii")
    (tmp_path / "mpii" / "annot" / "gt_valid.mat").unlink()
    lines = found(tiny_mpii_experiment, "error", "DATASET.ROOT", str(tmp_path / "mpii"))
    assert (
        len(lines) == 1
        and "test set valid: a run would end with: " in lines[0]
        and "gt_valid.mat: cannot read the ground truth of MPII" in lines[0]
    )


# images -------------------------------------------------------------------------------------------


def test_check_data_persons_with_all_flags_0_do_not_count(made):
    """The coordinates are there, and num_keypoints says so."""

    def change(content):
        for person in persons(content)[:2]:
            person["keypoints"][2::3] = [0] * 5

    edit(made, change)
    used = (
        "train set train: persons: 58 of 60 are used, 3.3 % dropped: 40 of another category, 2"
        " without labeled joints"
    )
    assert used in found(made, "note")
    (line,) = found(made)
    assert "2 annotations have num_keypoints above 0 and no labeled joint (annotation 5, " in line


def test_check_data_no_evaluated_person_is_an_error(made):
    edit(made, lambda c: [p.update(num_keypoints=0) for p in persons(c)] and None, "val")
    line = (
        "test set val: scoring: every AP is -1: no person is scored: of 36 annotations 0 are"
        " crowds, the others have no labeled keypoint (num_keypoints 0), although 36 have keypoints"
        " with a visibility above 0; correct or remove num_keypoints"
    )
    assert line in found(made) and f"error: {line}" in quick(made)


def test_check_data_missing_images_are_reported_once(made):
    frames = made.parent / "set" / "frames" / "cam 1"
    (frames / "train-shot 7.png").rename(frames / "train-shot 7.PNG")
    for n in (8, 9):
        (frames / f"train-shot {n}.png").unlink()
    assert [line for line in found(made) if "absent" in line] == [
        "train set train: images: 3 of 40 are absent, such as cam 1/train-shot 7.png, cam"
        f" 1/train-shot 8.png, cam 1/train-shot 9.png, in {frames.parent}; there is train-shot"
        " 7.PNG"
    ]
    shutil.rmtree(frames.parent)
    assert [line.split(" (")[0] for line in found(made)] == [
        "train set train: images: all 40 are absent",
        "test set val: images: all 24 are absent",
    ]


def test_check_data_misspelled_image_paths_are_explained(made):
    """Windows' backslashes, and NFC in the annotations for NFD on the disk; a training says it
    too.
    """
    frames = made.parent / "set" / "frames" / "cam 1"
    edit(
        made,
        lambda c: (
            [i.update(file_name=i["file_name"].replace("/", "\\")) for i in c["images"]] and None
        ),
    )
    (line,) = [line for line in found(made) if "absent" in line]
    assert "40 of 40 are absent" in line
    assert line.endswith(
        "; there is cam 1/train-shot 0.png (its path has /, where file_name has backslashes)"
    )
    edit(
        made,
        lambda c: (
            [i.update(file_name=i["file_name"].replace("\\", "/")) for i in c["images"]] and None
        ),
    )
    (frames / "train-shot 0.png").rename(frames / "a\u0308.png")
    edit(made, lambda c: c["images"][0].update(file_name="cam 1/\u00e4.png"))
    (line,) = [line for line in found(made) if "absent" in line]
    assert (
        "1 of 40 are absent" in line
        and "another Unicode normalization, NFD and not NFC; rename" in line
    )
    with pytest.raises(
        DataError, match="No such file .*another Unicode normalization, NFD and not NFC"
    ):
        train.run(config.load(made, []), str(made), ["tools/train.py"])


def test_check_data_invalid_images_are_reported(made):
    frames = made.parent / "set" / "frames" / "cam 1"
    (frames / "train-shot 0.png").write_bytes(b"")
    (frames / "train-shot 1.png").write_bytes(b"GIF? no")
    (frames / "train-shot 2.png").write_bytes((frames / "train-shot 2.png").read_bytes()[:20])
    (frames / "train-shot 3.png").unlink()
    os.mkfifo(frames / "train-shot 3.png")  # no process writes into it
    large = bytearray((frames / "train-shot 4.png").read_bytes())
    large[16:24] = (12_000).to_bytes(4, "big") * 2  # width and height of a PNG
    (frames / "train-shot 4.png").write_bytes(bytes(large))
    lines = found(made)
    assert [line.split("images: ")[1].split(":")[0].split(" (")[0] for line in lines] == [
        "1 are empty",
        "1 are no image that is read",
        "1 are cut off or damaged at their beginning",
        "1 are no ordinary files",
        "1 claim more pixels than are read",
    ]


def test_check_data_truncated_images_are_reported(made):
    """The usual broken transfer: the header is sound, and the rest of an epoch is lost over it."""
    frames = made.parent / "set" / "frames" / "cam 1"
    png = frames / "train-shot 0.png"
    png.write_bytes(png.read_bytes()[:-200])
    jpg = cv2.imencode(".jpg", cv2.imread(str(frames / "train-shot 1.png")))[1].tobytes()
    (frames / "train-shot 1.png").write_bytes(jpg[:-50])
    # as cameras pad
    (frames / "train-shot 2.png").write_bytes(
        cv2.imencode(".jpg", cv2.imread(str(frames / "train-shot 2.png")))[1].tobytes() + bytes(40)
    )
    assert [line.split("images: ")[1] for line in found(made)] == [
        "2 are cut off at their end: cam 1/train-shot 0.png, cam 1/train-shot 1.png"
    ]


def test_check_data_images_with_equal_start_are_not_duplicates(made):
    """Uncompressed ones of one size, black at the side where their file begins: not the same,
    but copies are.
    """
    frames = made.parent / "set" / "frames" / "cam 1"
    for name, value in (
        ("train-shot 0", 1),
        ("train-shot 1", 2),
        ("val-shot 0", 3),
        ("val-shot 1", 2),
    ):
        picture = np.zeros((400, 120, 3), np.uint8)
        picture[:20] = value
        (frames / f"{name}.png").write_bytes(cv2.imencode(".bmp", picture)[1].tobytes())
    for split in ("train", "val"):
        edit(made, lambda c: [i.update(height=400) for i in c["images"][:2]] and None, split)
    lines = found(made)
    assert [line.split("images: ")[1] for line in lines] == [
        "1 of 24 test images have the same content as a training image: cam 1/val-shot 1.png and "
        "cam 1/train-shot 1.png; scores of such a test are meaningless"
    ]
    assert not any("look the same" in line for line in found(made, "warning"))


def test_check_images_header_behind_long_segments_is_read(tmp_path):
    """A JPEG whose frame header lies behind 64 kB of other segments."""
    from poise.datasets.validation.images import _judged

    data = cv2.imencode(".jpg", np.zeros((30, 50, 3), np.uint8))[1].tobytes()
    long = data[:2] + 2 * (b"\xff\xe2\xff\xf0" + bytes(0xFFEE)) + data[2:]
    stream = io.BytesIO(long)
    assert _judged(stream.read(1 << 16), len(long), stream.read)[0] == (50, 30)


def _turn(path, orientation, upright=False):
    """Store the images with an EXIF orientation; `upright`: 6's annotations as programs show it."""
    for file in (path.parent / "set" / "frames").rglob("*.png"):
        exif = Image.Exif()
        exif[274] = orientation
        Image.open(file).convert("RGB").save(file, "JPEG", exif=exif)

    def change(content):
        for image in content["images"]:
            image.update(width=64, height=120)
        for one in persons(content):
            x, y, width, height = one["bbox"]
            points = np.array(one["keypoints"]).reshape(-1, 3)
            points = np.column_stack([64 - points[:, 1], points[:, 0], points[:, 2]])
            points[points[:, 2] == 0] = 0
            one.update(bbox=[64 - y - height, x, height, width], keypoints=points.ravel().tolist())

    if upright:
        for name in ("train", "val"):
            edit(path, change, name)


def _of_images(path, exif, kind="error"):
    lines = found(path, kind, "DATASET.EXIF", str(exif))
    return [line for line in lines if "images: " in line or "upper body" in line]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("upright", [False, True])
def test_check_data_exif_mismatch_names_the_setting(made, upright, zipped):
    """The setting that the annotations need is named, and only where it is the other one."""
    _turn(made, 6, upright)
    folder = made.parent / "set" / "frames"
    if zipped:
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
        made.write_text(made.read_text().replace("{FILE:", "{DATA_FORMAT: zip, FILE:"))
    assert _of_images(made, upright) == [] == _of_images(made, upright, "note")
    annotated = "as their EXIF entry turns them" if upright else "as they are stored"
    line, _ = _of_images(made, not upright)
    assert (
        line
        == "train set train: images: 40 have width and height exchanged, such as cam 1/train-shot"
        f" 0.png, cam 1/train-shot 1.png, cam 1/train-shot 2.png: annotated {annotated};"
        f" DATASET.EXIF {upright} reads them so"
    )
    assert not [one for one in quick(made, "DATASET.EXIF", upright) if "images: " in one]


def test_check_data_swapped_sizes_without_exif_are_reported(made):
    edit(made, lambda c: [i.update(width=64, height=120) for i in c["images"]] and None)
    for exif in (False, True):
        (line,) = _of_images(made, exif)
        assert line.endswith(
            "their EXIF entry does not turn them, so correct width and height, or the annotations"
        )


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_check_data_exif_rotation_of_equal_size_is_a_note(made, orientation):
    _turn(made, orientation)
    for exif, read in ((False, "stored"), (True, "upright")):
        assert _of_images(made, exif) == []
        line, _ = _of_images(made, exif, "note")
        assert line.startswith(
            "train set train: images: 40 have EXIF orientation 2, 3 or 4, such as "
        )
        assert f"whether they were annotated {read}, as DATASET.EXIF {exif} reads them" in line


def test_check_turned_upside_down_annotations_are_found():
    """Upright persons, and the same as they are stored in an image that is turned by 180
    degrees.
    """
    rng = np.random.default_rng(0)
    joints = rng.uniform(0, 10, (20, 17, 2)) + np.linspace(0, 90, 17)[:, None] * [0, 1]
    joints[10:] = 100 - joints[10:]
    ids, visible, image = np.arange(20), np.full((20, 17), 2.0), np.repeat([0, 1], 10)
    people = AnnotatedPersons(COCO, ids, image, joints, visible, np.tile([0, 0, 100, 100], (20, 1)))
    for orientation, wrong in (((1, 1), 0), ((3, 1), 0), ((1, 3), 1), ((6, 4), 1), ((3, 6), 0)):
        findings = Findings("set")
        check_turned(findings, people, np.array(orientation))
        assert len(findings.items) == wrong
        assert all("10 of 10 persons" in finding.text for finding in findings.items)


def test_check_data_shared_image_names_warn(made):
    def share(content):
        content["images"][0]["file_name"] = "cam 1/train-shot 4.png"

    edit(made, share, "val")
    assert any(
        "train and test: images: 1 of 24 test images are training images too: cam 1/train-shot"
        " 4.png" in line
        for line in found(made)
    )


def test_check_data_shared_image_content_warns(made):
    frames = made.parent / "set" / "frames" / "cam 1"
    shutil.copy(frames / "train-shot 4.png", frames / "val-shot 9.png")
    assert any(
        "1 of 24 test images have the same content as a training image: cam 1/val-shot 9.png and"
        " cam 1/train-shot 4.png" in line
        for line in found(made)
    )


def test_check_data_images_in_archive_are_checked(made):
    folder = made.parent / "set" / "frames"
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            if "val-shot 3" not in file.name:
                archive.write(file, f"frames/{file.relative_to(folder)}")
    assert [
        line.split(", in ")[0] for line in found(made, "error", "DATASET.DATA_FORMAT", "zip")
    ] == ["test set val: images: 1 of 24 are absent, such as cam 1/val-shot 3.png"]


# left and right -----------------------------------------------------------------------------------


def test_left_right_one_swapped_pair_is_named():
    """Pairs of bodies seen from the front and the back; the second pair is exchanged."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    names = ("left_a", "right_a", "left_b", "right_b", "left_c", "right_c")
    skeleton = replace(COCO, names=names, flip_pairs=((0, 1), (2, 3), (4, 5)))
    turned = rng.choice([-1, 1], 200)[:, None]
    x = 50 + turned * np.array([10, -10, 10, -10, 10, -10]) + rng.normal(0, 3, (200, 6))
    joints = np.stack([x, rng.uniform(0, 90, (200, 6))], axis=2)
    findings = Findings("set")
    left_right.check(findings, joints, np.ones((200, 6), bool), skeleton)
    assert not findings.items
    left_right.check(findings, joints[:, [0, 1, 3, 2, 4, 5]], np.ones((200, 6), bool), skeleton)
    assert [f.text.split(":")[1] for f in findings.items] == [" left_b and right_b look exchanged"]


def test_check_data_flip_pair_order_does_not_matter(made):
    """A mirror does not care which of a pair is named first, and the names say which is the left
    one.
    """
    file = made.parent / "set" / "dots.yaml"
    keys = yaml.safe_load(file.read_text())
    assert keys["flip_pairs"] == [["left_0", "right_0"], ["left_1", "right_1"]]
    for pairs in (
        [["left_0", "right_0"], ["right_1", "left_1"]],
        [["right_0", "left_0"], ["right_1", "left_1"]],
    ):
        file.write_text(yaml.safe_dump(keys | {"flip_pairs": pairs}))
        assert not [line for kind in ("error", "warning") for line in found(made, kind)]
        edit(made, lambda c: _all_keypoints(c, _exchange(1, 2)))
        assert any("left_0 and right_0 look exchanged" in line for line in found(made))
        edit(made, lambda c: _all_keypoints(c, _exchange(1, 2)))


def test_check_data_all_sides_swapped_is_reported(made):
    for name in ("train", "val"):
        edit(made, lambda c: _all_keypoints(c, lambda p, _: p[[0, 2, 1, 4, 3]]), name)
    assert any(
        "in 100 % of the pairs the left joint is left of the right one" in line
        for line in found(made, "warning")
    )


def test_check_data_two_contradicting_pairs_are_reported(made):
    edit(made, lambda c: _all_keypoints(c, _exchange(1, 2)))
    assert sum("look exchanged" in line for line in found(made)) == 2


@pytest.mark.parametrize("pair", range(8))
def test_left_right_real_persons_name_only_the_swapped_pair(shared, pair):
    """COCO's own left and right pass; each pair that is exchanged is named, and no other."""
    path = shared / "data" / "coco_subset" / "annotations" / "person_keypoints_val2017.json"
    columns = read_columns(path, 17, "person")
    joints, visible = columns["keypoints"][:, :, :2], columns["keypoints"][:, :, 2]
    findings = Findings("set")
    left_right.check(findings, joints, visible > 0, COCO)
    assert not findings.items
    order = np.arange(17)
    a, b = COCO.flip_pairs[pair]
    order[[a, b]] = b, a
    left_right.check(findings, joints[:, order], visible[:, order] > 0, COCO)
    assert [f.text.split(" look")[0] for f in findings.items] == [
        f"left and right: {COCO.names[a]} and {COCO.names[b]}"
    ]


def test_left_right_real_persons_all_swapped_is_reported(shared):
    columns = read_columns(
        shared / "data" / "coco_subset" / "annotations" / "person_keypoints_val2017.json",
        17,
        "person",
    )
    keypoints, findings = columns["keypoints"][:, COCO.flip_indices], Findings("set")
    left_right.check(findings, keypoints[:, :, :2], keypoints[:, :, 2] > 0, COCO)
    assert "faces, as in a mirror" in findings.items[0].text


# detections ---------------------------------------------------------------------------------------


@pytest.fixture
def detected(made):
    """Return write(change), which writes a changed detection file; unchanged it has all persons."""
    truth = json.loads((made.parent / "set" / "labels" / "val.json").read_text())
    entries = [
        {"image_id": p["image_id"], "category_id": 7, "bbox": p["bbox"], "score": 0.5 + 0.01 * n}
        for n, p in enumerate(persons(truth))
    ]

    def write(change=lambda entry: entry):
        file = made.parent / "boxes.json"
        file.write_text(json.dumps([change(dict(entry)) for entry in entries]))
        return found(made, "error", "TEST.USE_GT_BBOX", "False", "TEST.COCO_BBOX_FILE", str(file))

    write.path, write.found = (
        made,
        lambda kind, *more: found(
            made,
            kind,
            "TEST.USE_GT_BBOX",
            "False",
            "TEST.COCO_BBOX_FILE",
            str(made.parent / "boxes.json"),
            *more,
        ),
    )
    return write


def test_check_data_good_detections_pass(detected):
    assert detected() == []
    assert any(
        "recall 100.0 % at IoU 0.5, 100.0 % at IoU 0.75 of 36 labeled persons" in line
        for line in detected.found("note")
    )


@pytest.mark.parametrize(
    "change, line",
    [
        (
            lambda e: e | {"image_id": e["image_id"] + 5000},
            "detections: 36 of 36 are of images that the split does not list",
        ),
        (
            lambda e: e | {"category_id": 1},
            "detections: none of 36 has the category 7 of the split; they have 1",
        ),
        (
            lambda e: (
                e
                | {
                    "bbox": [
                        e["bbox"][0],
                        e["bbox"][1],
                        e["bbox"][0] + e["bbox"][2],
                        e["bbox"][1] + e["bbox"][3],
                    ]
                }
            ),
            "taken as left, top, right, bottom: the file has its boxes in that format",
        ),
        (
            lambda e: (
                e
                | {
                    "bbox": [
                        e["bbox"][0] / 120,
                        e["bbox"][1] / 64,
                        e["bbox"][2] / 120,
                        e["bbox"][3] / 64,
                    ]
                }
            ),
            "taken as fractions of the image from 0 to 1",
        ),
        (lambda e: e | {"bbox": [1, 1, 2, 2]}, "few persons could be found with these boxes"),
        (lambda e: {"image": 1}, "36 of 36 entries are no detections: entry 0 has no 'image_id'"),
        (
            lambda e: e | {"score": None},
            "36 of 36 entries are no detections: entry 0 has score null, expected a number",
        ),
    ],
)
def test_check_data_invalid_detections_are_reported(detected, change, line):
    assert any(line in text for text in detected(change)), detected(change)


def test_check_data_detections_below_threshold_are_an_error(detected):
    detected()
    assert any(
        "none has a score of TEST.IMAGE_THRE 0.95 or more" in line
        for line in detected.found("error", "TEST.IMAGE_THRE", "0.95")
    )


def test_check_data_low_scores_do_not_warn(detected):
    """Most of a good detection file has low scores."""
    numbers = iter(range(36))
    detected(lambda e: e | {"score": 0.9 if next(numbers) % 6 == 0 else 0.1})
    lines = detected.found("warning", "TEST.IMAGE_THRE", "0.5")
    assert not any("dropped" in line for line in lines)
    assert any(
        "detections: 6 of 36 are used, 83.3 % dropped: 30 scores below TEST.IMAGE_THRE 0.5" in line
        for line in detected.found("note", "TEST.IMAGE_THRE", "0.5")
    )


def test_check_data_missing_detection_file_is_an_error(detected, made):
    assert any(
        "detections: TEST.COCO_BBOX_FILE is empty" in line and "tools/make_boxes.py" in line
        for line in found(made, "error", "TEST.USE_GT_BBOX", "False")
    )


# what the training says ---------------------------------------------------------------------------


def test_quick_check_training_warns_and_continues(made, monkeypatch):
    edit(made, lambda c: _all_keypoints(c, lambda p, _: p[[0, 2, 1, 4, 3]]))
    (made.parent / "set" / "frames" / "cam 1" / "val-shot 3.png").unlink()
    text = []
    monkeypatch.setattr(run.log, "warning", lambda line, *values: text.append(line % values))
    training = train.build(config.load(made), str(made), SINGLE_PROCESS)
    assert len(training.loader) == 5  # it would go on
    assert any("left joints are on the right in 0 %" in line for line in text) and any(
        "1 of 24 are absent, such as cam 1/val-shot 3.png" in line for line in text
    )
    assert any("tools/check_data.py with the same arguments" in line for line in text)


def quick(path, *overrides):
    cfg = config.load(path, [str(value) for value in overrides])
    return [
        str(finding)
        for finding in run.quick_check(
            load_split(cfg, train=True),
            load_split(cfg, train=False),
            names=(cfg.DATASET.TRAIN_SET, cfg.DATASET.TEST_SET),
            evaluator=build_evaluator(cfg),
            seed=cfg.SEED,
        )
    ]


def test_quick_check_valid_set_logs_nothing(made):
    assert quick(made) == []


def test_train_diagnosis_is_logged_once(made, monkeypatch):
    """Log once in two epochs that no person of the set is large."""
    monkeypatch.setattr(TrainLogger, "_show_test", lambda *_: None)
    train.run(config.load(made, ["TRAIN.END_EPOCH", "2"]), str(made), ["tools/train.py"])
    text = (made.parent / "output" / "dots5" / "pose_res2net" / "dots" / "train.log").read_text()
    assert (
        text.count("AP (L), AR (L) are -1: no labeled person has an area of 9216") == 1
        and text.count("| pose_res2net |") == 2
    )


def test_quick_check_finds_every_missing_image(made, monkeypatch):
    """Few are opened, but of all it is known whether they are there."""
    monkeypatch.setattr(run, "_QUICK_CHECK_IMAGES", 2)
    (made.parent / "set" / "frames" / "cam 1" / "train-shot 17.png").unlink()
    assert [line.split(", in ")[0] for line in quick(made)] == [
        "error: train set train: images: 1 of 40 are absent, such as cam 1/train-shot 17.png"
    ]


def test_quick_check_mix_checks_each_dataset(made, tmp_path):
    """Each set's images, no alarm for what is of another category in one of them, and none for
    sigmas that are never used.
    """
    other = make_set(tmp_path / "other", 5, (("all", 30),), seed=1, name="more", sigmas=None)
    mix = ["DATASET.MIX.more.FILE", other, "DATASET.MIX.more.SET", "all"]
    file = tmp_path / "other" / "labels" / "all.json"
    content = json.loads(file.read_text())
    content["annotations"] += [
        {**content["annotations"][0], "id": 10_000 + n, "category_id": 1} for n in range(400)
    ]
    file.write_text(json.dumps(content))
    assert quick(made, *mix) == []
    assert found(made, "warning", *map(str, mix)) == found(made, "error", *map(str, mix)) == []
    (tmp_path / "other" / "frames" / "cam 1" / "all-shot 4.png").unlink()
    assert [line.split(", such")[0] for line in quick(made, *mix)] == [
        "error: DATASET.MIX.more: images: 1 of 30 are absent"
    ]


def test_quick_check_mix_containing_test_images_warns(made):
    """A set of the mix that lies in the test set's folder and has its images."""
    file = made.parent / "set" / "dots.yaml"
    lines = quick(made, "DATASET.MIX.again.FILE", file, "DATASET.MIX.again.SET", "val")
    assert len(lines) == 1 and lines[0].startswith(
        "error: train and test: images: 24 of 24 test images are training images too"
    )


def test_check_data_mpii_is_checked(tiny_mpii_experiment):
    findings, sets = run.check(build_sources(config.load(tiny_mpii_experiment)))
    assert [str(f) for f in findings if f.kind == "error"] == [] and all(
        one.files.there.all() for one in sets
    )


@pytest.mark.slow
def test_quick_check_149813_persons_missing_images_are_logged_once(shared, tmp_path):
    """Log the missing images of 149,813 persons in one line."""
    import gzip

    (tmp_path / "annotations").mkdir()
    for name in ("train", "val"):
        data = gzip.decompress(
            (
                shared / "data" / "coco_full_keypoints" / f"person_keypoints_{name}2017.json.gz"
            ).read_bytes()
        )
        (tmp_path / "annotations" / f"person_keypoints_{name}2017.json").write_bytes(data)
    cfg = config.load(
        ROOT / "experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml",
        ["DATASET.ROOT", str(tmp_path)],
    )
    findings, sets = run.check(build_sources(cfg))
    assert len(sets[0].persons.ids) == 149_813 and len(sets[1].persons.ids) == 6_352
    assert [str(f).split(" (")[0] for f in findings if f.kind == "error"] == [
        "error: train set train2017: images: all 56599 are absent",
        "error: test set val2017: images: all 2346 are absent",
    ]


def test_read_columns_equal_those_of_training(sound):
    """Both readers of the same file agree, part by part and entry by entry."""
    path = sound / "set" / "labels" / "train.json"
    columns, table = (
        read_columns(path, 5, "dot person"),
        coco.read_annotations(path, "train", 5, "dot person"),
    )
    assert (
        np.array_equal(columns["ids"], table["ids"])
        and np.array_equal(columns["keypoints"][:, :, :2], table["joints"])
        and np.array_equal(columns["boxes"], table["boxes"])
    )


def test_box_formats_are_recognized():
    boxes, sizes = np.array([[10.0, 20, 30, 60]]), np.array([[100.0, 200]])
    forms = {
        form.split(",")[0]: others[0].tolist()
        for form, others in box_forms.convert_from_other_formats(boxes, sizes).items()
    }
    assert (
        forms["left"] == [10, 20, 20, 40]
        and forms["the center"] == [-5, -10, 30, 60]
        and forms["y"] == [20, 10, 60, 30]
    )
    assert box_forms.best_iou(
        boxes, np.array([3]), np.array([[10.0, 20, 30, 30], [10, 20, 30, 60]]), np.array([3, 4])
    ).tolist() == [0.5]
    assert box_forms.elementwise_iou(boxes, np.array([[10.0, 20, -5, 5]])).tolist() == [0]
