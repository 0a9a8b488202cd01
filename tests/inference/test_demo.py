"""Test tools/demo.py: inputs, boxes, JSON, drawings and invalid input."""

import importlib.util
import json
import os
import shutil
import signal
import struct
import sys

import cv2
import numpy as np
import pytest
import torch
from poise import PoseEstimator, Poses, config
from poise.errors import DataError, run_tool
from poise.inference import boxes as person_boxes
from poise.inference import demo
from poise.io import video as media
from poise.io.images import read_image
from poise.models import build_model
from poise.visualization import draw as visualize
from support.image_files import PNG, READ, REFUSED
from support.paths import ROOT
from support.runs import TINY

spec = importlib.util.spec_from_file_location("tools_demo", ROOT / "tools" / "demo.py")
TOOL = importlib.util.module_from_spec(spec)
spec.loader.exec_module(TOOL)
SCHEMA = json.loads((ROOT / "docs" / "demo_schema.json").read_text(encoding="utf-8"))
ANNOTATIONS = "annotations/person_keypoints_val2017.json"


@pytest.fixture(scope="module")
def network(tmp_path_factory, small_set):
    """(experiment file, weight file) of a very small network with random weights."""
    folder = tmp_path_factory.mktemp("network")
    text = TINY.format(dataset="coco", root=small_set, train="train2017", test="val2017", joints=17)
    (folder / "tiny.yaml").write_text(f"OUTPUT_DIR: {folder / 'output'}\n{text}")
    torch.manual_seed(0)
    model = build_model(config.load(folder / "tiny.yaml"))
    # the head's own 0.001 would give maps without a maximum to speak of
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    torch.save(model.state_dict(), folder / "tiny.pth")
    return folder / "tiny.yaml", folder / "tiny.pth"


@pytest.fixture
def tool(tmp_path, network, monkeypatch, capfd):
    """Runs tools/demo.py with the small network; returns (exit status, stdout, stderr). Output
    goes to tmp_path / out.
    """

    def run(*words, weights=network[1], cfg=network[0], output=tmp_path / "out"):
        given = [
            *(("--cfg", cfg) if cfg else ()),
            *(("--weights", weights) if weights else ()),
            "--output",
            output,
            "--device",
            "cpu",
            *words,
        ]
        monkeypatch.setattr(sys, "argv", ["tools/demo.py", *map(str, given)])
        with pytest.raises(SystemExit) as done:
            run_tool(TOOL.main)
        out, error = capfd.readouterr()
        return done.value.code, out, error

    return run


@pytest.fixture
def refused(tool):
    """Runs the tool, which must refuse in one line, and gives the line."""

    def run(*words, status=1, **options):
        code, _, error = tool(*words, **options)
        lines = error.splitlines()
        assert (
            code == status
            and lines[-1].startswith("error: ")
            and len([line for line in lines if not line.startswith("usage")]) == 1
        ), error
        return lines[-1]

    return run


def result(folder):
    """The JSON of a run, held against its schema."""
    content = json.loads((folder / demo.JSON_NAME).read_text(encoding="utf-8"))
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    for frame in content["frames"]:
        assert all(
            len(person["keypoints"]) == len(content["skeleton"]["joints"])
            for person in frame["persons"]
        )
    return content


def write_video(path, frames=12, fps=25.0, size=(160, 120)):
    """Two squares that cross a gray image, in an mp4; gives their boxes, xyxy, for each frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    assert writer.isOpened()
    boxes = []
    for frame in range(frames):
        image = np.full((size[1], size[0], 3), 90, np.uint8)
        own = [[5 + 3 * frame, 10, 45 + 3 * frame, 90], [100 - 2 * frame, 30, 140 - 2 * frame, 110]]
        for (left, top, right, bottom), color in zip(own, ((0, 0, 255), (255, 0, 0))):
            image[top:bottom, left:right] = color
        writer.write(image)
        boxes.append(own)
    writer.release()
    return boxes


def as_detections(boxes, score=0.9):
    return [
        {
            "image_id": frame,
            "category_id": 1,
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
            "score": score,
        }
        for frame, own in enumerate(boxes)
        for b in own
    ]


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def all_persons(content):
    return [person for frame in content["frames"] for person in frame["persons"]]


# images -----------------------------------------------------------------------------------------


def test_demo_folder_with_annotated_boxes_writes_results(tool, tmp_path, small_set, network):
    pictures = small_set / "images" / "val2017"
    status, out, _ = tool("--input", pictures, "--boxes", small_set / ANNOTATIONS)
    assert status == 0
    content = result(tmp_path / "out")
    names = sorted(path.name for path in pictures.iterdir())
    assert (
        [os.path.basename(frame["file"]) for frame in content["frames"]] == names
        and content["skipped"] == []
        and content["video"] is None
    )
    truth = json.loads((small_set / ANNOTATIONS).read_text())
    pose = PoseEstimator(*network, device="cpu")
    by_name = {image["file_name"]: image["id"] for image in truth["images"]}
    persons = 0
    for frame, name in zip(content["frames"], names):
        boxes = np.array(
            [
                a["bbox"]
                for a in truth["annotations"]
                if a["image_id"] == by_name[name] and not a["iscrowd"]
            ],
            float,
        ).reshape(-1, 4)
        image = read_image(pictures / name)
        found = pose(image, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
        assert (frame["width"], frame["height"]) == (image.shape[1], image.shape[0]) and len(
            frame["persons"]
        ) == len(boxes)
        persons += len(boxes)
        for number, person in enumerate(frame["persons"]):
            joints = np.array(person["keypoints"])
            assert joints[:, :2] == pytest.approx(found.keypoints[number], abs=1e-3) and joints[
                :, 2
            ] == pytest.approx(found.scores[number], abs=1e-4)
            assert (
                person["bbox"] == pytest.approx(boxes[number], abs=1e-3)
                and person["track_id"] is None
                and person["box_score"] == 1
            )
            assert person["score"] == pytest.approx(found.person_scores[number], abs=1e-4)
        drawn = read_image(tmp_path / "out" / frame["drawn"])
        assert drawn.shape == image.shape
        difference = np.abs(drawn.astype(int) - found.draw(image)).mean()
        assert difference < 4 and (
            not len(found) or difference < np.abs(image.astype(int) - found.draw(image)).mean() + 2
        )
    assert persons > 10 and f"{len(names)} frames, {persons} persons" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [f"{name[:-4]}_pose.jpg" for name in names] + ["poses.json"]
    )


def test_demo_reports_time_of_each_part(tool, tmp_path, small_set):
    _, out, _ = tool("--input", small_set / "images/val2017", "--boxes", small_set / ANNOTATIONS)
    seconds = result(tmp_path / "out")["seconds"]
    assert sum(value for part, value in seconds.items() if part != "total") == pytest.approx(
        seconds["total"], abs=0.01
    )
    assert (
        all(
            seconds[part] > 0
            for part in ("reading", "detection", "crop", "network", "decode", "drawing")
        )
        and seconds["other"] >= -0.001
    )
    for part in demo.PARTS:
        assert f"{part} {seconds[part]:.2f} s (" in out
    assert f"{result(tmp_path / 'out')['frames_per_second']:.2f} frames/s" in out


def test_demo_draw_boxes_shows_box_and_score(tool, tmp_path, monkeypatch):
    path = tmp_path / "1.png"
    cv2.imwrite(str(path), np.full((300, 400, 3), 128, np.uint8))
    found = [{"image_id": 1, "category_id": 1, "bbox": [100, 50, 150, 200], "score": 0.6}]
    boxes = write_json(tmp_path / "boxes.json", found)
    labels = []
    draw_box = visualize.draw_box
    monkeypatch.setattr(
        "poise.visualization.draw.draw_box",
        lambda *words: labels.append(words[2]) or draw_box(*words),
    )
    status, out, _ = tool("--input", path, "--boxes", boxes, "--joint-threshold", "9")
    assert status == 0 and "1 frame, 1 person, " in out and not labels
    plain = read_image(tmp_path / "out" / "1_pose.jpg")
    tool("--input", path, "--boxes", boxes, "--joint-threshold", "9", "--draw-boxes")
    (person,) = all_persons(result(tmp_path / "out"))
    assert labels == [f"{person['score']:.2f}"]
    drawn = read_image(tmp_path / "out" / "1_pose.jpg").astype(int)
    edge = np.abs(drawn - plain)[60:240, [100, 250]].max(axis=2)
    assert edge.min() > 40 and np.abs(drawn - plain)[100:200, 150:200].max() < 20


def test_demo_without_boxes_uses_the_full_image(tool, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    status, out, _ = tool("--input", path)
    content = result(tmp_path / "out")
    assert (
        out.count(
            "each full image is treated as one person; for other images give --detector NAME or"
            " --boxes FILE"
        )
        == 1
    )
    assert (
        status == 0
        and content["boxes"] == "whole picture"
        and content["frames"][0]["drawn"] == "a_pose.jpg"
    )
    assert [person["bbox"] for person in all_persons(content)] == [[0, 0, 80, 60]]


def test_demo_pattern_equal_file_names_get_unique_outputs(tool, tmp_path):
    for name in ("one/a.png", "one/b.png", "two/a.png", "two/a.jpg", "two/deep/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(PNG)
    tool("--input", tmp_path / "in" / "*" / "*.png")
    assert [frame["drawn"] for frame in result(tmp_path / "out")["frames"]] == [
        "a_pose.jpg",
        "b_pose.jpg",
        "a_pose_2.jpg",
    ]
    tool("--input", tmp_path / "in" / "**" / "*.*", "--no-drawing", output=tmp_path / "deep")
    assert len(result(tmp_path / "deep")["frames"]) == 5 and [
        path.name for path in (tmp_path / "deep").iterdir()
    ] == ["poses.json"]
    assert {frame["drawn"] for frame in result(tmp_path / "deep")["frames"]} == {None}
    tool("--input", tmp_path / "in" / "two", "--max-frames", "1", output=tmp_path / "flat")
    assert [os.path.basename(frame["file"]) for frame in result(tmp_path / "flat")["frames"]] == [
        "a.jpg"
    ], "a folder's own files, by name"


def test_demo_folder_skips_and_counts_invalid_images(tool, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = {name: data for name, (data, *_) in READ.items() if media.is_image_name(name)}
    bad = {name: data for name, (data, _) in REFUSED.items() if media.is_image_name(name)}
    assert {"cmyk.jpg", "gray.jpg", "16 bit.png", "still.gif", "one.png"} <= set(good) and {
        "empty.jpg",
        "text.jpg",
        "30000.png",
        "half.jpg",
    } <= set(bad)
    for name, data in {**good, **bad}.items():
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("no picture, and none by its name")
    status, out, error = tool("--input", folder)
    content = result(tmp_path / "out")
    assert status == 0 and "error" not in error
    assert {os.path.basename(frame["file"]) for frame in content["frames"]} == set(good)
    assert {os.path.basename(entry["file"]) for entry in content["skipped"]} == set(bad) and all(
        entry["reason"] for entry in content["skipped"]
    )
    assert f"skipped {len(bad)} input files: " in out.splitlines()[-1]
    for name, (_, fault) in REFUSED.items():
        if name in bad:
            assert (
                sum(
                    f"skipped: {folder / name}: " in line and fault in line
                    for line in out.splitlines()
                )
                == 1
            )


def test_demo_folder_counts_skipped_files_and_folders(tool, refused, tmp_path):
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    assert (
        f"{folder}: the folder holds no file with an image extension; folders are not searched"
        f" (1), {folder}/**/* is a pattern" in refused("--input", folder)
    )
    for name in ("a.jfif", "b.png"):
        (folder / name).write_bytes(PNG)
    _, out, _ = tool("--input", folder)
    assert (
        f"{folder}; folders are not searched (1)" in out and "without an image extension" not in out
    )
    for name in ("c.raw", "d.mp4", "e.txt"):
        (folder / name).write_bytes(PNG)
    _, out, _ = tool("--input", folder)
    assert (
        f"{folder}: skipped: 3 files without an image extension: c.raw, d.mp4, e.txt; folders"
        " are not searched (1)" in out
    )
    assert [os.path.basename(frame["file"]) for frame in result(tmp_path / "out")["frames"]] == [
        "a.jfif",
        "b.png",
    ]


def test_demo_failing_detector_skips_the_image(tool, refused, tmp_path):
    """A detector that takes images of 80 x 60 pixels alone, though its file does not say so."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    values = {
        "boxes": np.array([[0, 0, 40, 60]], np.float32),
        "labels": np.array([1]),
        "scores": np.array([0.9], np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("ReduceSum", ["flat"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["none"]),
        helper.make_node("Add", ["boxes_value", "none"], ["boxes"]),
        *(helper.make_node("Identity", [f"{name}_value"], [name]) for name in ("labels", "scores")),
    ]
    constants = [numpy_helper.from_array(array, f"{name}_value") for name, array in values.items()]
    constants += [
        numpy_helper.from_array(np.array([3, 60, 80]), "shape"),
        numpy_helper.from_array(np.float32(0), "nothing"),
    ]
    outputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in values.items()
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, "h", "w"))],
        outputs,
        constants,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "detector.onnx",
    )
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(PNG)
    cv2.imwrite(str(folder / "b.png"), np.full((50, 80, 3), 90, np.uint8))
    status, out, error = tool("--input", folder, "--detector", tmp_path / "detector.onnx")
    assert status == 0, error
    content = result(tmp_path / "out")
    assert [os.path.basename(frame["file"]) for frame in content["frames"]] == [
        "a.png",
        "c.png",
    ] and len(all_persons(content)) == 2
    (skipped,) = content["skipped"]
    assert (
        skipped["file"] == str(folder / "b.png")
        and "the detector failed on an image of 80 x 50" in skipped["reason"]
    )
    assert f"skipped: {folder / 'b.png'}: " in out and "skipped 1 input file" in out
    assert "the detector failed on an image of 80 x 50" in refused(
        "--input",
        folder / "b.png",
        "--detector",
        tmp_path / "detector.onnx",
        output=tmp_path / "one",
    )


def test_demo_long_file_names_are_shortened(tool, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("x" * 251 + ".png", "x" * 250 + "y.png", "\u00e9" * 125 + ".png"):
        (folder / name).write_bytes(PNG)
    status, _, error = tool("--input", folder)
    assert status == 0, error
    drawn = [frame["drawn"] for frame in result(tmp_path / "out")["frames"]]
    assert drawn == [
        "x" * 200 + "_pose.jpg",
        "x" * 200 + "_pose_2.jpg",
        "\u00e9" * 100 + "_pose.jpg",
    ]
    assert all((tmp_path / "out" / name).is_file() for name in drawn)


def test_demo_output_may_be_the_input_folder(tool, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    status, _, _ = tool("--input", tmp_path / "a.png", output=tmp_path)
    assert (
        status == 0
        and (tmp_path / "a_pose.jpg").is_file()
        and (tmp_path / "a.png").read_bytes() == PNG
    )


def test_demo_only_invalid_images_exits_1(refused, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_text("404")
    assert refused("--input", folder) == "error: none of the 3 images can be used"
    assert not (tmp_path / "out" / "poses.json").exists()
    for name, (data, _fault) in REFUSED.items():
        (tmp_path / name).write_bytes(data)
    for name in ("empty.jpg", "text.jpg", "30000.png", "half.jpg", "half.gif"):
        line = refused("--input", tmp_path / name)
        assert line.startswith(f"error: {tmp_path / name}: ") and REFUSED[name][1] in line


def test_demo_non_utf8_and_control_characters_in_names(tool, tmp_path):
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    for name, data in (
        (b"caf\xe9.png", PNG),
        (b"line\nbreak.png", PNG),
        (b"\x1b[2J.jpg", b"404"),
        (b"\xff\xfe.jpg", b""),
    ):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    status, out, error = tool("--input", tmp_path / "in")
    assert status == 0, error
    assert "\x1b" not in out and "\\x1b[2J.jpg" in out and "\\udcff" in out
    content = result(tmp_path / "out")
    assert [os.path.basename(frame["file"]) for frame in content["frames"]] == [
        "caf?.png",
        "line\nbreak.png",
    ] and len(content["skipped"]) == 2
    assert set(os.listdir(os.fsencode(tmp_path / "out"))) == {
        b"caf\xe9_pose.jpg",
        b"line\nbreak_pose.jpg",
        b"poses.json",
    }


def test_demo_video_name_not_utf8_exits_1(refused, tmp_path):
    write_video(tmp_path / "a.mp4")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")
    os.rename(tmp_path / "a.mp4", name)
    assert "OpenCV cannot open a video whose name is not UTF-8" in refused("--input", name)
    write_video(tmp_path / "b.mp4")
    assert "name is not UTF-8" in refused(
        "--input", tmp_path / "b.mp4", output=os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    )


# boxes --------------------------------------------------------------------------------------------


def test_demo_detections_join_by_id_or_name(tool, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("COCO_val2014_000000000785.png", "12.png", "portrait.png", "3.png"):
        (folder / name).write_bytes(PNG)
    entries = [
        {"image_id": 785, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.8},
        {"image_id": 785, "category_id": 1, "bbox": [5, 5, 9, 9], "score": 0.4},
        {"image_id": 785, "category_id": 18, "bbox": [6, 6, 9, 9], "score": 0.9},
        {"image_id": 12, "bbox": [3, 4, 20, 30]},
        {"image_id": "portrait.png", "category_id": 1, "bbox": [0, 0, 80, 60], "score": 0.6},
    ]
    _, out, _ = tool("--input", folder, "--boxes", write_json(tmp_path / "boxes.json", entries))
    found = {
        os.path.basename(frame["file"]): [person["bbox"] for person in frame["persons"]]
        for frame in result(tmp_path / "out")["frames"]
    }
    assert found == {
        "COCO_val2014_000000000785.png": [[1, 2, 30, 40]],
        "12.png": [[3, 4, 20, 30]],
        "portrait.png": [[0, 0, 80, 60]],
        "3.png": [],
    }
    assert f"1 of 4 frames have no boxes in {tmp_path / 'boxes.json'}" in out
    tool(
        "--input",
        folder,
        "--boxes",
        tmp_path / "boxes.json",
        "--score-threshold",
        "0.3",
        output=tmp_path / "more",
    )
    content = result(tmp_path / "more")
    assert [person["box_score"] for person in all_persons(content)] == [
        1.0,
        0.8,
        0.4,
        0.6,
    ] and content["score_threshold"] == 0.3
    persons = content["frames"][2]["persons"]
    assert persons[0]["score"] / 0.8 == pytest.approx(
        np.mean([s for *_, s in persons[0]["keypoints"] if s > 0.2] or [0]), abs=1e-3
    )


@pytest.mark.parametrize("video", [False, True], ids=["pictures", "video"])
def test_demo_own_json_as_boxes_is_equal(tool, tmp_path, small_set, video):
    if video:
        boxes = write_json(tmp_path / "boxes.json", as_detections(write_video(tmp_path / "a.mp4")))
        words = ["--input", tmp_path / "a.mp4"]
    else:
        words, boxes = ["--input", small_set / "images/val2017"], small_set / ANNOTATIONS
    tool(*words, "--boxes", boxes)
    tool(*words, "--boxes", tmp_path / "out" / "poses.json", output=tmp_path / "again")
    first, second = result(tmp_path / "out"), result(tmp_path / "again")
    assert len(all_persons(first)) > 10
    for one, other in zip(all_persons(first), all_persons(second), strict=True):
        assert (
            one["bbox"] == pytest.approx(other["bbox"], abs=0.002)
            and one["box_score"] == other["box_score"]
        )
        assert np.array(one["keypoints"]) == pytest.approx(np.array(other["keypoints"]), abs=0.05)


def test_demo_boxes_outside_or_empty_are_counted(tool, tmp_path):
    (tmp_path / "1.png").write_bytes(PNG)
    # partly outside, but they show something
    boxes = [
        [-30, -20, 60, 70],
        [70, 50, 500, 500],
        [0, 0, 80, 60],
        [80, 10, 20, 20],
        [10, -40, 20, 40],
        [-9000, -9000, 10, 10],
        [10, 10, 0, 20],
        [10, 10, -5, 20],
        [10, 10, 0.5, 20],
    ]
    entries = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes]
    status, out, _ = tool(
        "--input", tmp_path / "1.png", "--boxes", write_json(tmp_path / "boxes.json", entries)
    )
    assert "treated as one person" not in out
    assert (
        status == 0
        and "6 boxes were skipped: outside of the image, less than a pixel wide or high, "
        "or not finite"
        in out
    )
    persons = all_persons(result(tmp_path / "out"))
    assert [person["bbox"] for person in persons] == boxes[:3] and np.isfinite(
        [person["keypoints"] for person in persons]
    ).all()


def test_clip_boxes_drops_invalid_boxes():
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [np.nan, 0, 5, 5],
            [0, 0, np.inf, 5],
            [5, 5, 5, 9],
            [-1e30, 0, 1e30, 10],
            [99, 49, 120, 60],
            [100, 0, 120, 9],
            [-9, -9, 0, 5],
        ]
    )
    assert person_boxes.usable(boxes, 50, 100).tolist() == [
        True,
        False,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert person_boxes.usable(np.empty((0, 4)), 5, 5).shape == (0,)


def test_box_file_other_category_is_skipped(tmp_path):
    """Use the ids and names of a custom dataset, also if the file has other persons."""
    frame = media.Frame("a.png", 0, np.zeros((50, 100, 3), np.uint8))
    boxes = [
        {"image_id": 1, "category_id": category, "bbox": [category, 0, 5, 5], "score": 0.9}
        for category in (1, 7)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "person"}, {"id": 7, "name": "hand"}],
    }

    def left(content, category):
        return person_boxes.BoxFile(write_json(tmp_path / "boxes.json", content), 0.5, category)(
            [frame]
        )[0][0][:, 0].tolist()

    assert left(content, "hand") == left(content, 7) == [7] and left(content, "person") == [1]
    with pytest.raises(
        DataError, match="none of its 2 categories is 'foot', that of the experiment"
    ):
        left(content, "foot")
    alone = {**content, "annotations": boxes[1:], "categories": content["categories"][1:]}
    assert left(alone, "foot") == [7]  # of a network in an ONNX file the category is not known
    named = [{**box, "image_id": "a.png"} for box in boxes]
    # of tools/make_boxes.py
    assert left(named, "person") == [1] and left(named, 7) == [7] and left(named[1:], "hand") == [7]


BAD_BOXES = {
    "missing": (None, "cannot read the file of boxes (No such file or directory)"),
    "text": ("not found", "not valid JSON"),
    "empty": ("", "not valid JSON"),
    "number": (
        "7",
        ("expected a list of COCO detections, COCO annotations, or a poses.json of tools/demo.py"),
    ),
    "NaN": ('[{"image_id": 1, "bbox": [NaN, 0, 5, 5], "score": 1}]', "holds NaN in line 1"),
    "text in a box": (
        [{"image_id": 1, "bbox": [1, "2", 3, 4], "score": 1}],
        "detection 0 needs a bbox of x, y, width, height in pixels and a score",
    ),
    "three numbers": ([{"image_id": 1, "bbox": [1, 2, 3], "score": 1}], "detection 0 needs a bbox"),
    "no box": ([{"image_id": 1}], "detection 0 needs a bbox"),
    "huge": ([{"image_id": 1, "bbox": [1e300, 2, 3, 4], "score": 1}], "detection 0 needs a bbox"),
    "no score": ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": None}], "a score, all numbers"),
    "no image": ([{"bbox": [1, 2, 3, 4], "score": 1}], "detection 0 needs an image_id"),
    "list image": ([{"image_id": [], "bbox": [1, 2, 3, 4]}], "needs an image_id"),
    "no object": ([5], "detection 0: expected an object, got 5"),
    "object": ({"a": 1}, "unsupported format"),
    "annotation without image": (
        {"images": [], "annotations": [{"image_id": 4, "bbox": [1, 2, 3, 4]}]},
        "annotation 0 has an image_id that is not in 'images'",
    ),
    "image without name": (
        {"images": [{"id": 4}], "annotations": []},
        "image 0 needs an id and a file_name",
    ),
    "one id twice": (
        {"images": [{"id": id, "file_name": f"{id}.jpg"} for id in (1, "01")], "annotations": []},
        "two images have id 1; give each image its own",
    ),
    "own": (
        {
            "format": "poise poses",
            "frames": [{"file": "a", "index": 0, "persons": [{"bbox": [1]}]}],
        },
        "a person of frame 0 needs a bbox",
    ),
    "own without persons": (
        {"format": "poise poses", "frames": [{"file": "a", "index": 0}]},
        "frame 0 needs a file, an index and persons",
    ),
}


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_box_file_invalid_raises(kind, tmp_path):
    content, fault = BAD_BOXES[kind]
    path = tmp_path / "boxes.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as error:
        person_boxes.BoxFile(path)
    assert (
        str(error.value).startswith(f"{path}: ")
        and fault in str(error.value)
        and "\n" not in str(error.value)
    )


def test_demo_invalid_box_file_exits_1(refused, tmp_path):
    (tmp_path / "1.png").write_bytes(PNG)
    boxes = write_json(tmp_path / "boxes.json", [5])
    assert (
        refused("--input", tmp_path / "1.png", "--boxes", boxes)
        == f"error: {boxes}: detection 0: expected an object, got 5"
    )


def test_demo_onnx_detector_gives_boxes(tool, tmp_path):
    from support.onnx_detectors import BOXES, LABELS, SCORES, onnx_file

    file = onnx_file(
        tmp_path / "detector.onnx",
        {"boxes": BOXES * 6, "labels": LABELS, "scores": SCORES},
        (1, 3, "h", "w"),
    )
    (tmp_path / "1.png").write_bytes(PNG)
    status, _, error = tool("--input", tmp_path / "1.png", "--detector", file)
    assert status == 0, error
    content = result(tmp_path / "out")
    assert content["boxes"] == file and content["seconds"]["detection"] > 0
    assert [(person["bbox"], person["box_score"]) for person in all_persons(content)] == [
        ([0, 0, 80, 60], 0.95),
        ([0, 0, 48, 54], 0.9),
    ]


# video --------------------------------------------------------------------------------------------


def test_demo_video_track_writes_ids(tool, tmp_path):
    boxes = write_video(tmp_path / "two people.mp4")
    status, out, _ = tool(
        "--input",
        tmp_path / "two people.mp4",
        "--boxes",
        write_json(tmp_path / "boxes.json", as_detections(boxes)),
        "--track",
    )
    content = result(tmp_path / "out")
    assert (
        status == 0
        and "12 frames, 24 persons" in out
        and content["video"] == {"fps": 25.0, "drawn": "two people_pose.mp4"}
    )
    assert [frame["index"] for frame in content["frames"]] == list(range(12))
    assert [frame["seconds"] for frame in content["frames"]] == pytest.approx(
        [number / 25 for number in range(12)]
    )
    assert (
        [[person["track_id"] for person in frame["persons"]] for frame in content["frames"]]
        == [[1, 2]] * 12
        and content["tracked"]
        and not content["smoothed"]
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "poses.json",
        "two people_pose.mp4",
    ]
    frames = list(media.Video(str(tmp_path / "out" / "two people_pose.mp4")))
    assert (
        len(frames) == 12
        and frames[0].image.shape == (120, 160, 3)
        and media.Video(str(tmp_path / "out" / "two people_pose.mp4")).fps == 25
    )
    assert frames[0].image[30:80, 15:35].mean(axis=(0, 1)).argmax() == 0, "red stays red"


@pytest.mark.parametrize(
    "words, color, has_ids", [(["--track"], "auto", True), ([], "side", False)]
)
def test_demo_video_colors_follow_ids_if_tracked(
    tool, tmp_path, monkeypatch, words, color, has_ids
):
    """The order of untracked persons may change from frame to frame, and their hues would change
    with it.
    """
    boxes = write_video(tmp_path / "a.mp4", frames=2)
    calls = []
    draw = Poses.draw
    monkeypatch.setattr(
        Poses,
        "draw",
        lambda self, image, **options: calls.append(options) or draw(self, image, **options),
    )
    tool(
        "--input",
        tmp_path / "a.mp4",
        "--boxes",
        write_json(tmp_path / "boxes.json", as_detections(boxes)),
        *words,
    )
    assert [call["color"] for call in calls] == [color] * 2
    assert [None if call["ids"] is None else call["ids"].tolist() for call in calls] == [
        [1, 2] if has_ids else None
    ] * 2


def test_demo_smooth_changes_later_frames(tool, tmp_path):
    boxes = write_json(tmp_path / "boxes.json", as_detections(write_video(tmp_path / "a.mp4")))
    tool("--input", tmp_path / "a.mp4", "--boxes", boxes, "--track", "--no-drawing")
    tool("--input", tmp_path / "a.mp4", "--boxes", boxes, "--smooth", output=tmp_path / "smooth")
    raw, smooth = result(tmp_path / "out"), result(tmp_path / "smooth")
    assert smooth["tracked"] and smooth["smoothed"] and raw["video"] == {"fps": 25.0, "drawn": None}
    joints = [
        np.array(
            [[person["keypoints"] for person in frame["persons"]] for frame in content["frames"]]
        )[..., :2]
        for content in (raw, smooth)
    ]
    assert joints[1][0] == pytest.approx(joints[0][0]) and not np.allclose(
        joints[1][1:], joints[0][1:]
    )
    from poise.inference.smoothing import PoseSmoother

    smoother = PoseSmoother()
    for frame, seen, given in zip(raw["frames"], joints[0], joints[1]):
        box = np.array([person["bbox"] for person in frame["persons"]])
        box[:, 2:] += box[:, :2]
        assert smoother.update([1, 2], seen, box, frame["seconds"]) == pytest.approx(
            given, abs=0.01
        )


def test_demo_pattern_of_videos_takes_one(tool, refused, tmp_path):
    write_video(tmp_path / "a.mp4", frames=3)
    assert (
        tool("--input", tmp_path / "*.mp4")[0] == 0 and len(result(tmp_path / "out")["frames"]) == 3
    )
    write_video(tmp_path / "b.MOV", frames=3)
    assert (
        refused("--input", tmp_path / "?.[mM]*")
        == f"error: {tmp_path / '?.[mM]*'}: 2 videos fit this pattern; give one at a time"
    )


def test_demo_max_frames_limits_the_video(tool, tmp_path):
    write_video(tmp_path / "a.mp4", frames=20)
    tool("--input", tmp_path / "a.mp4", "--max-frames", "10")
    content = result(tmp_path / "out")
    assert len(content["frames"]) == 10 and content["skipped"] == [] and not content["interrupted"]
    assert len(list(media.Video(str(tmp_path / "out" / "a_pose.mp4")))) == 10


def test_demo_truncated_video_writes_what_was_read(tool, tmp_path, refused):
    write_video(tmp_path / "whole.avi", frames=40)
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
    status, out, _ = tool("--input", tmp_path / "half.avi", "--no-drawing")
    content = result(tmp_path / "out")
    frames = len(content["frames"])
    assert status == 0 and 5 < frames < 35
    assert (
        content["skipped"]
        == [
            {
                "file": str(tmp_path / "half.avi"),
                "reason": f"the video ends after {frames} of 40 frames",
            }
        ]
        and "skipped 1 input file: " in out
    )
    (tmp_path / "text.mp4").write_text("404")
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "empty.mp4"):
        assert (
            refused("--input", tmp_path / name)
            == f"error: {tmp_path / name}: not a video that OpenCV can read, or a damaged one"
        )


def test_box_file_longest_common_path_suffix_wins(tmp_path):
    """A name that is listed twice means the same image both times."""
    persons = [{"bbox": [1, 2, 30, 40], "box_score": 1.0}]
    own = {
        "format": person_boxes.FORMAT,
        "frames": [
            {"file": f"x/{n}/1.jpg", "index": i, "seconds": None, "persons": persons}
            for i, n in enumerate("ab")
        ],
    }
    coco = {
        "images": (
            [{"id": i, "file_name": f"x/{n}/1.jpg"} for i, n in enumerate("ab")]
            + [{"id": n, "file_name": name} for n, name in ((2, "x/2.jpg"), (3, "./x/2.jpg"))]
        ),
        "categories": [],
        "annotations": [{"image_id": n, "bbox": [1, 2, 30, 40]} for n in range(4)],
    }
    for content, twice in ((own, 0), (coco, 2)):
        boxes = person_boxes.BoxFile(write_json(tmp_path / "boxes.json", content))
        found = boxes(
            [
                media.Frame(name, index, np.zeros((50, 50, 3), np.uint8))
                for index, name in enumerate(["x/a/1.jpg", "b/1.jpg", "x/2.jpg"])
            ]
        )
        assert [len(found_boxes) for found_boxes, _ in found] == [
            1,
            1,
            twice,
        ] and boxes.missing == (0 if twice else 1)


def cameras(folder):
    """Images of two cameras under the same names; COCO annotations and detections of them."""
    names = [f"cam{camera}/frame_000{number}.png" for camera in (1, 2) for number in range(3)]
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(PNG)
    images = [
        {"id": i, "file_name": name, "width": 80, "height": 60} for i, name in enumerate(names, 1)
    ]
    entries = [{"image_id": i, "category_id": 1, "bbox": [i, i, 30, 40]} for i in range(1, 7)]
    annotations = {
        "images": images,
        "annotations": entries,
        "categories": [{"id": 1, "name": "person"}],
    }
    return names, annotations, [{**entry, "score": 0.9} for entry in entries]


@pytest.mark.parametrize(
    "prefix, pattern",
    [("", "*/*.png"), ("set 1/images/", "*/*.png"), ("", "cam2/*.png"), ("C:\\data\\", "**/*.png")],
)
def test_demo_two_cameras_images_get_their_own_boxes(tool, tmp_path, prefix, pattern):
    names, annotations, detections = cameras(tmp_path)
    for image in annotations["images"]:
        image["file_name"] = prefix + image["file_name"]
    named = [{**entry, "file_name": prefix + names[entry["image_id"] - 1]} for entry in detections]
    for number, content in enumerate((annotations, named)):
        boxes = write_json(tmp_path / "boxes.json", content)
        status, out, error = tool(
            "--input",
            tmp_path / "images" / pattern,
            "--boxes",
            boxes,
            output=tmp_path / str(number),
        )
        assert status == 0 and "no boxes" not in out and "file name alone" not in out, error
        for frame in result(tmp_path / str(number))["frames"]:
            own = 1 + names.index(os.path.relpath(frame["file"], tmp_path / "images"))
            assert [person["bbox"] for person in frame["persons"]] == [[own, own, 30, 40]]


def test_demo_images_in_renamed_folder_exit_1(tool, refused, tmp_path):
    names, annotations, _ = cameras(tmp_path)
    os.rename(tmp_path / "images" / "cam2", tmp_path / "images" / "cam3")
    boxes = write_json(
        tmp_path / "boxes.json",
        {
            **annotations,
            "images": annotations["images"][:3],
            "annotations": annotations["annotations"][:3],
        },
    )
    _, out, _ = tool("--input", tmp_path / "images" / "*" / "*.png", "--boxes", boxes)
    found = [len(frame["persons"]) for frame in result(tmp_path / "out")["frames"]]
    assert found == [1, 1, 1, 0, 0, 0], "cam1's boxes are not given to cam3 too"
    line = refused(
        "--input", tmp_path / "images" / "cam3", "--boxes", boxes, output=tmp_path / "cam3"
    )
    assert (
        line == f"error: {boxes}: cam1/frame_0000.png is in another folder than"
        f" {tmp_path / 'images/cam3/frame_0000.png'}; rename the folder of the images, or"
        " remove the folders from file_name"
    )


def given_boxes_left(folder, names, paths):
    """The left side of each image's box, the place of its name in `names`; None without a box."""
    entries = [
        {"image_id": place, "file_name": name, "bbox": [place, 0, 9, 9], "score": 1}
        for place, name in enumerate(names)
    ]
    given = person_boxes.BoxFile(write_json(folder / "boxes.json", entries))
    given.check(media.ImageFiles(paths))
    frames = [media.Frame(path, i, np.zeros((9, 9, 3), np.uint8)) for i, path in enumerate(paths)]
    return [int(boxes[0, 0]) if len(boxes) else None for boxes, _ in given(frames)]


@pytest.mark.parametrize(
    "names, path, left",
    [
        (["cam1/1.jpg", "cam2/1.jpg", "cam2/2.jpg"], "d/cam1/2.jpg", None),
        (["s1/rgb/1.jpg", "s2/rgb/1.jpg", "s2/rgb/2.jpg"], "d/s1/rgb/2.jpg", None),
        (["cam2/1.jpg", "1.jpg"], "cam1/1.jpg", 1),
        (["cam2/1.jpg", "cam1/../1.jpg"], "cam1/1.jpg", 1),
        (["cam1/1.jpg", "cam2/1.jpg"], "cam1/1.jpg", 0),
    ],
)
def test_box_file_image_gets_boxes_of_its_folder(tmp_path, names, path, left):
    """An image without a detection is not listed, and has not the boxes of a sibling folder."""
    names, paths = [*names, "other/0.jpg"], [path, "other/0.jpg"]
    assert given_boxes_left(tmp_path, names, paths) == [left, len(names) - 1]


def test_box_file_20000_equal_file_names_is_fast(tmp_path):
    names = [f"seq_{number:05d}/rgb.jpg" for number in range(20_000)]
    paths = [f"/data/{name}" for name in reversed(names)]
    assert given_boxes_left(tmp_path, names, paths) == list(reversed(range(20_000)))


@pytest.mark.parametrize("annotations", [True, False])
def test_demo_image_boxes_for_a_video_exit_1(tool, refused, tmp_path, annotations):
    _, coco, detections = cameras(tmp_path)
    video = tmp_path / "a.mp4"
    write_video(video, frames=3)
    named = [{**entry, "file_name": "cam1/frame_0000.png"} for entry in detections]
    boxes = write_json(tmp_path / "boxes.json", coco if annotations else named)
    line = refused("--input", video, "--boxes", boxes)
    assert f"{boxes}: has boxes of images, such as cam1/frame_0000.png, but {video} is a" in line
    status, *_ = tool("--input", video, "--boxes", write_json(boxes, detections))
    assert status == 0 and len(all_persons(result(tmp_path / "out"))) == 2


def test_demo_ambiguous_boxes_exit_1(refused, tmp_path):
    names, annotations, detections = cameras(tmp_path)
    images = tmp_path / "images"
    boxes = write_json(tmp_path / "boxes.json", detections)
    needed = (
        "; give the COCO annotation file as --boxes, or detections with file_name, as"
        " tools/make_boxes.py writes them"
    )
    for pattern in (images / "*" / "*.png", images / "cam1"):
        assert (
            refused("--input", pattern, "--boxes", boxes)
            == f"error: {boxes}: lists images by id only, but the name of {images / names[0]} is"
            f" not an image id{needed}"
        )
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0001.png").write_bytes(PNG)
    line = refused("--input", tmp_path / "[ab]" / "*.png", "--boxes", boxes)
    assert (
        f"{tmp_path / 'b' / '0001.png'} and {tmp_path / 'a' / '0001.png'} have the same"
        f" id{needed}" in line
    )
    boxes = write_json(tmp_path / "boxes.json", annotations)
    (tmp_path / "frame_0001.png").write_bytes(PNG)
    assert "frame_0001.png matches both cam1/frame_0001.png and cam2/frame_0001.png" in refused(
        "--input", tmp_path / "frame_0001.png", "--boxes", boxes
    )
    bare = [{**entry, "file_name": "frame_0001.png"} for entry in detections]
    line = refused(
        "--input", images / "*" / "*.png", "--boxes", write_json(tmp_path / "boxes.json", bare)
    )
    assert (
        f"frame_0001.png matches both {images / names[1]} and {images / names[4]}; add"
        " folders to its file_name" in line
    )
    assert not (tmp_path / "out").exists()


def test_demo_boxes_of_no_frame_exit_1(refused, tmp_path):
    (tmp_path / "12.png").write_bytes(PNG)
    write_video(tmp_path / "a.mp4", frames=3)
    entry = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.3}
    for content, words, fault in [
        (
            [entry],
            ["12.png"],
            (
                "has no boxes for the images of --input (1), such as 12.png; it lists images"
                " such as 7"
            ),
        ),
        ([{**entry, "file_name": "cam/7.png"}], ["12.png"], "it lists images such as cam/7.png"),
        ([], ["12.png"], "it lists images such as none"),
        (
            [{**entry, "image_id": "12"}],
            ["12.png"],
            "no box has a score of 0.5 or more; lower --score-threshold, the highest is 0.3",
        ),
        ([{**entry, "score": 0.9}], ["a.mp4"], "has no boxes for the frames that were read (3)"),
        (
            [{**entry, "image_id": "x.png"}],
            ["a.mp4"],
            "has no boxes for a.mp4; frames are listed by index from 0",
        ),
    ]:
        boxes = write_json(tmp_path / "boxes.json", content)
        line = refused("--input", tmp_path / words[0], "--boxes", boxes)
        assert line.replace(f"{tmp_path}/", "").startswith(
            "error: boxes.json: "
        ) and fault in line.replace(f"{tmp_path}/", ""), line
    assert not (tmp_path / "out" / "poses.json").exists()


def test_demo_image_of_other_size_than_its_boxes_is_skipped(tool, refused, tmp_path):
    _, annotations, _ = cameras(tmp_path)
    annotations["images"][1].update(width=160, height=120)
    annotations["images"][2].update(width=60, height=80)
    boxes = write_json(tmp_path / "boxes.json", annotations)
    status, out, _ = tool("--input", tmp_path / "images" / "cam1", "--boxes", boxes)
    content = result(tmp_path / "out")
    assert status == 0 and len(content["frames"]) == 1 and "skipped 2 input files" in out
    assert [entry["reason"] for entry in content["skipped"]] == [
        f"has 80 x 60 pixels, in {boxes} it has 160 x 120; the boxes belong to another image",
        (
            f"has 80 x 60 pixels, in {boxes} it has 60 x 80; the boxes belong to the image before"
            " its EXIF orientation is applied"
        ),
    ]
    assert "the boxes belong to another image" in refused(
        "--input",
        tmp_path / "images/cam1/frame_0001.png",
        "--boxes",
        boxes,
        output=tmp_path / "one",
    )


def test_demo_boxes_of_later_frames_or_other_video_warn(tool, tmp_path):
    boxes = as_detections(write_video(tmp_path / "a.mp4", frames=3))
    _, out, _ = tool(
        "--input", tmp_path / "a.mp4", "--boxes", write_json(tmp_path / "boxes.json", boxes)
    )
    assert "frames are counted from 0" not in out
    from_1 = [{**entry, "image_id": entry["image_id"] + 1} for entry in boxes]
    _, out, _ = tool(
        "--input",
        tmp_path / "a.mp4",
        "--boxes",
        write_json(tmp_path / "boxes.json", from_1),
        output=tmp_path / "from 1",
    )
    assert "has boxes of frame 3, but the last frame is 2; frames are counted from 0" in out
    write_video(tmp_path / "b.mp4", frames=3)
    _, out, _ = tool(
        "--input",
        tmp_path / "b.mp4",
        "--boxes",
        tmp_path / "out" / "poses.json",
        output=tmp_path / "b",
    )
    assert f"has boxes of {tmp_path / 'a.mp4'}, not of {tmp_path / 'b.mp4'}" in out


def test_demo_real_two_cameras(tool, refused, tmp_path, shared):
    field = shared / "field/boxes_of_another_image"
    truth = json.loads((field / "val.json").read_text())
    tool("--input", field / "images/*/*.jpg", "--boxes", field / "val.json")
    for frame in result(tmp_path / "out")["frames"]:
        (image,) = (
            image for image in truth["images"] if frame["file"].endswith(image["file_name"])
        )
        assert [person["bbox"] for person in frame["persons"]] == [
            a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"]
        ]
    line = refused(
        "--input", field / "images/cam1", "--boxes", field / "det.json", output=tmp_path / "det"
    )
    assert "give the COCO annotation file as --boxes" in line


def test_demo_full_disk_keeps_the_previous_video(tool, refused, tmp_path):
    """OpenCV does not tell: the file is looked at before it takes the place of the older one."""
    import resource

    writer, random = (
        cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (160, 120)),
        np.random.default_rng(0),
    )
    for _ in range(40):
        writer.write(random.integers(0, 256, (120, 160, 3), np.uint8))
    writer.release()
    tool("--input", tmp_path / "a.mp4", "--max-frames", "3")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before["a_pose.mp4"]) > 20_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a write beyond it fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        line = refused("--input", tmp_path / "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        line
        == f"error: {tmp_path / 'out' / 'a_pose.mp4'}: the video could not be written to its end;"
        " is the disk full?"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


class Camera:
    """cv2.VideoCapture over some frames; its properties are those of a camera, or of a file that
    says nonsense. Films that were drawn are read as they are.
    """

    files = cv2.VideoCapture

    def __init__(self, properties=(), frames=6):
        self.properties, self.left, self.asked = dict(properties), frames, []

    def __call__(self, name, *options):
        if str(name).endswith(".part.mp4"):
            return self.files(name)
        if options:  # opened to measure the frame rate
            return Camera(self.properties, self.left)
        self.asked.append(name)
        return self

    def isOpened(self):
        return self.left > 0

    def get(self, key):
        return self.properties.get(key, 0.0)

    def read(self):
        self.left -= 1
        return self.left >= 0, np.full((48, 64, 3), 40, np.uint8)

    def grab(self):
        return self.read()[0]

    def release(self):
        self.left = 0


def test_demo_camera_writes_results(tool, tmp_path, monkeypatch):
    camera = Camera({cv2.CAP_PROP_FPS: 20.0, cv2.CAP_PROP_FRAME_COUNT: -1.0})
    clock = iter(np.arange(0, 100, 0.125).tolist())
    monkeypatch.setattr(media.cv2, "VideoCapture", camera)
    monkeypatch.setattr(
        media, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))})
    )
    status, _, _ = tool("--input", "2", "--track")
    monkeypatch.undo()
    content = result(tmp_path / "out")
    assert (
        status == 0
        and camera.asked == [2]
        and {frame["file"] for frame in content["frames"]} == {"camera 2"}
    )
    assert [frame["seconds"] for frame in content["frames"]] == [
        0.125 * number for number in range(1, 7)
    ], "the clock's"
    assert (
        content["video"] == {"fps": 20.0, "drawn": "camera 2_pose.mp4"}
        and [person["track_id"] for person in all_persons(content)] == [1] * 6
    )
    written = len(list(media.Video(str(tmp_path / "out" / "camera 2_pose.mp4"))))
    assert written == 16, "0.75 seconds of 20 frames a second, though 8 came each second"


def test_demo_missing_camera_exits_1(refused, monkeypatch):
    monkeypatch.setattr(media.cv2, "VideoCapture", Camera(frames=0))
    assert (
        refused("--input", "7")
        == "error: camera 7: cannot be opened; is it connected, and may this user read it?"
    )


@pytest.mark.parametrize("fps", [0.0, float("nan"), 90000.0, -1.0])
def test_open_video_invalid_fps_takes_the_default(monkeypatch, caplog, fps):
    monkeypatch.setattr(
        media.cv2,
        "VideoCapture",
        Camera(
            {
                cv2.CAP_PROP_FPS: fps,
                cv2.CAP_PROP_POS_MSEC: float("nan"),
                cv2.CAP_PROP_FRAME_COUNT: -5e18,
            }
        ),
    )
    video = media.Video("a.mp4")
    assert video.fps == 30 and len(video) == 0 and "30 is taken" in caplog.text
    assert [frame.seconds for frame in video] == pytest.approx([number / 30 for number in range(6)])


def write_video_of_wrong_rate(path):
    """40 frames at 30 a second, of which the header says 1000; Matroska's header has the
    nanoseconds of a frame.
    """
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30.0, (160, 120))
    for number in range(40):
        writer.write(np.full((120, 160, 3), 5 * number, np.uint8))
    writer.release()
    key, data = b"\x23\xe3\x83\x84", path.read_bytes()
    assert data.count(key + struct.pack(">I", 33_333_333)) == 1
    path.write_bytes(
        data.replace(key + struct.pack(">I", 33_333_333), key + struct.pack(">I", 1_000_000))
    )
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 1000


@pytest.mark.parametrize(
    "packets", [True, False], ids=["times of packets", "of decoded frames alone"]
)
def test_demo_video_fps_1000_is_measured(tool, tmp_path, monkeypatch, packets):
    write_video_of_wrong_rate(tmp_path / "a.mkv")
    if not packets:  # OpenCV 4.8 gives none
        mean = media._mean_fps
        monkeypatch.setattr(
            media, "_mean_fps", lambda name, options: None if options else mean(name, options)
        )
    status, out, _ = tool("--input", tmp_path / "a.mkv")
    content = result(tmp_path / "out")
    assert (
        status == 0
        and content["video"]["fps"] == 30
        and content["skipped"] == []
        and "the video ends" not in out
    )
    assert (
        f"{tmp_path / 'a.mkv'}: says 1000 frames a second; 30 is taken, by the times of its frames"
        in out
    )
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "a_pose.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == 30 and drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 40
    assert content["frames"][-1]["seconds"] == pytest.approx(1.3, abs=0.002)


def test_open_video_header_fps_wins_over_packets(tmp_path, monkeypatch, caplog):
    """Half a frame in each packet: as many again as there are frames."""
    write_video(tmp_path / "a.mp4")
    mean = media._mean_fps
    monkeypatch.setattr(
        media, "_mean_fps", lambda name, options: mean(name, options) * (2 if options else 1)
    )
    video = media.Video(str(tmp_path / "a.mp4"))
    assert video.fps == 25 and len(video) == 12 and not caplog.records


class EndlessVideo:
    """Frames at 25 a second, more than a rate is to be measured by."""

    def __init__(self, *_):
        self.grabbed = 0

    def isOpened(self):
        return True

    def grab(self):
        self.grabbed += 1
        assert self.grabbed < 10_000, "the whole video is read to measure its rate"
        return True

    def get(self, _):
        return self.grabbed * 40.0

    def release(self):
        pass


def test_measured_fps_long_video_reads_the_start_only(monkeypatch):
    monkeypatch.setattr(media.cv2, "VideoCapture", EndlessVideo)
    assert media._measure_fps("a.mp4", 1000.0) == 25 and media._measure_fps("a.mp4", 25.0) is None


def test_open_input_pattern_lists_each_image_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1.png", "a/2.png", "a/b/3.png"):
        (tmp_path / name).write_bytes(PNG)
    found = media.open_input(str(tmp_path / "**/**/*.png")).paths
    assert found == [str(tmp_path / name) for name in ("1.png", "a/2.png", "a/b/3.png")]


def test_demo_real_browser_recording_keeps_duration(tool, tmp_path, shared):
    tool("--input", shared / "field/video_1000_fps/browser.webm")
    assert result(tmp_path / "out")["video"]["fps"] == pytest.approx(30.35)
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "browser_pose.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) / drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(
        1.3, abs=0.05
    )


@pytest.mark.parametrize(
    "fps, written", [(97.2313, 97.23), (239.7345, 239.73), (29.97, 29.97), (1000.0, 1000.0)]
)
def test_video_writer_fractional_fps_is_written(tmp_path, fps, written):
    """MPEG-4's clock has denominators of 16 bits, so not every rate can be written."""
    writer = media.VideoWriter(tmp_path / "a.mp4", fps)
    for number in range(4):
        writer.write(np.zeros((48, 64, 3), np.uint8), number / fps)
    writer.close()
    assert media.Video(str(tmp_path / "a.mp4")).fps == pytest.approx(written)


@pytest.mark.parametrize(
    "ending, codec",
    [(".asf", "WMV2"), (".mxf", "mpg2"), (".m2ts", "mpg2"), (".vob", "mpg2"), (".m2v", "mpg2")],
)
def test_open_input_every_video_container_is_a_video(tmp_path, ending, codec):
    writer = cv2.VideoWriter(
        str(tmp_path / f"a{ending}"), cv2.VideoWriter_fourcc(*codec), 25.0, (160, 120)
    )
    for number in range(5):
        writer.write(np.full((120, 160, 3), 50 * number, np.uint8))
    writer.release()
    video = media.open_input(str(tmp_path / f"a{ending}"))
    assert isinstance(video, media.Video) and video.fps == 25 and len(list(video)) == 5


def test_demo_ctrl_c_keeps_finished_frames(tool, tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", frames=40)
    whole, calls = person_boxes.FullImage.__call__, []

    def interrupted(self, frames):
        calls.append(len(frames))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(self, frames)

    monkeypatch.setattr(person_boxes.FullImage, "__call__", interrupted)
    status, out, _ = tool("--input", tmp_path / "a.mp4")
    content = result(tmp_path / "out")
    assert (
        status == 130
        and content["interrupted"]
        and "interrupted: the remaining frames were not processed" in out
    )
    assert (
        len(content["frames"])
        == sum(calls)
        == 16
        == len(list(media.Video(str(tmp_path / "out" / "a_pose.mp4"))))
    )


def test_demo_failure_keeps_the_previous_result(refused, tmp_path, monkeypatch, tool):
    write_video(tmp_path / "a.mp4", frames=40)
    tool("--input", tmp_path / "a.mp4", "--max-frames", "3")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fails(self, frames):
        if frames[0].index:
            raise DataError("the detector fails")
        return [(np.empty((0, 4)), np.empty(0))] * len(frames)

    monkeypatch.setattr(person_boxes.FullImage, "__call__", fails)
    assert refused("--input", tmp_path / "a.mp4") == "error: the detector fails"
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before, (
        "no partial file may be left"
    )


# the command line ---------------------------------------------------------------------------------


def test_demo_invalid_arguments_exit_with_error(refused, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "empty").mkdir()
    picture = tmp_path / "a.png"
    for words, fault, status in [
        (
            ["--input", tmp_path / "none.jpg"],
            (
                "none.jpg: no such file or folder; give an image, a folder, a pattern, a video or"
                " the number of a camera"
            ),
            1,
        ),
        (
            ["--input", tmp_path / "empty"],
            "the folder holds no file with an image extension",
            1,
        ),
        (["--input", tmp_path / "*.jpg"], "no file fits this pattern", 1),
        (["--input", "a\nb.jpg"], "a b.jpg: no such file", 1),
        (["--input", ""], "no such file or folder", 1),
        (
            ["--input", picture, "--track"],
            "--track and --smooth: unsupported for images; use a video or a camera",
            2,
        ),
        (["--input", picture, "--smooth"], "unsupported for images", 2),
        (
            ["--input", picture, "--score-threshold", "1.5"],
            "--score-threshold 1.5: must be from 0 to 1",
            2,
        ),
        (
            ["--input", picture, "--score-threshold", "nan"],
            "--score-threshold nan: must be from 0 to 1",
            2,
        ),
        (
            ["--input", picture, "--joint-threshold", "nan"],
            "--joint-threshold nan: must be a number",
            2,
        ),
        (["--input", picture, "--max-frames", "-1"], "--max-frames -1: must be 0 or more", 2),
        (["--input", picture, "--detector", "yolov5"], "detector 'yolov5': unknown", 2),
        (
            ["--input", picture, "--detector", tmp_path / "none.onnx"],
            "none.onnx: no such detector file",
            1,
        ),
        (
            ["--input", picture, "--detector-weights", "x.pth"],
            "--detector-weights: needs --detector",
            2,
        ),
        (["--input", picture, "--device", "abacus"], "device 'abacus' cannot be used", 2),
        (["--input", picture, "NO.KEY", "1"], "NO.KEY", 2),
    ]:
        line = refused(*words, status=status)
        assert fault in line, line
    assert not (tmp_path / "out").exists(), "nothing is made before all of it has been looked at"


def test_demo_invalid_weights_or_output_exit_1(refused, tmp_path, network):
    (tmp_path / "a.png").write_bytes(PNG)
    picture = tmp_path / "a.png"
    assert "none.pth" in refused("--input", picture, weights=tmp_path / "none.pth")
    assert "TEST.MODEL_FILE is empty and" in refused("--input", picture, weights=None)
    assert "experiment missing; give its YAML file (--cfg FILE)" in refused(
        "--input", picture, cfg=None, status=2
    )
    (tmp_path / "b.png").write_bytes(PNG)
    assert "contains the images of --input; give another folder" in refused(
        "--input", tmp_path, output=tmp_path, status=2
    )
    (tmp_path / "file").touch()
    assert f"error: {tmp_path / 'file'}" in refused("--input", picture, output=tmp_path / "file")


def test_demo_without_weights_takes_those_of_the_run(tool, tmp_path, network):
    """Without --weights those that tools/test.py would take."""
    (tmp_path / "a.png").write_bytes(PNG)
    status, _, error = tool(
        "--input",
        tmp_path / "a.png",
        "TEST.MODEL_FILE",
        network[1],
        "TEST.FLIP_TEST",
        "False",
        weights=None,
    )
    assert status == 0, error
    content = result(tmp_path / "out")
    assert (
        content["weights"] == str(network[1])
        and content["flip_test"] is False
        and content["experiment"] == str(network[0])
    )


def test_demo_half_is_recorded(tool, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    status, _, error = tool("--input", tmp_path / "a.png", "--half")
    assert status == 0 and result(tmp_path / "out")["half"], error


def test_demo_debug_prints_the_traceback(tool, tmp_path, monkeypatch):
    monkeypatch.delenv("POISE_DEBUG", raising=False)
    monkeypatch.setattr(
        sys, "argv", ["tools/demo.py", "--cfg", "none.yaml", "--input", "none.jpg", "--debug"]
    )
    with pytest.raises(Exception, match="none.yaml"):
        run_tool(TOOL.main)
    os.environ.pop("POISE_DEBUG", None)


def test_demo_schema_rejects_invalid_json(tool, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    (tmp_path / "a.png").write_bytes(PNG)
    tool("--input", tmp_path / "a.png")
    good = (tmp_path / "out" / "poses.json").read_text()
    check = jsonschema.Draft202012Validator(SCHEMA)
    assert check.is_valid(json.loads(good))
    for spoil in (
        lambda c: c.pop("frames"),
        lambda c: c.update(version=2),
        lambda c: c["frames"][0].pop("persons"),
        lambda c: c["frames"][0].update(extra=1),
        lambda c: c["frames"][0]["persons"][0]["bbox"].append(1),
        lambda c: c["frames"][0]["persons"][0].update(track_id=0),
        lambda c: c["frames"][0]["persons"][0]["keypoints"][3].pop(),
        lambda c: c["seconds"].pop("network"),
        lambda c: c.update(video={}),
    ):
        content = json.loads(good)
        spoil(content)
        assert not check.is_valid(content)


# real images ------------------------------------------------------------------------------------


def test_demo_real_images_and_video(tool, tmp_path, shared):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("000000000785.jpg", "000000196141.jpg"):
        shutil.copy(shared / "data/coco_subset/images/val2017" / name, folder)
    boxes = (
        shared
        / "data/coco_subset/person_detection_results"
        / "COCO_val2017_detections_AP_H_56_person_2_images.json"
    )
    tool("--input", folder, "--boxes", boxes)
    content = result(tmp_path / "out")
    given = [
        entry
        for entry in json.loads(boxes.read_text())
        if entry["score"] >= 0.5 and entry["category_id"] == 1
    ]
    assert len(content["frames"]) == 2 and len(all_persons(content)) == len(given) > 2
    street = [
        [[355, 270, 565, 580], [605, 260, 790, 440]],
        [[363, 277, 551, 579], [619, 265, 816, 534]],
        [[368, 281, 544, 586], [628, 277, 870, 534]],
        [[370, 284, 544, 588], [616, 277, 872, 537]],
        [[361, 281, 525, 588], [588, 277, 806, 540]],
    ]
    tool(
        "--input",
        shared / "data/video/street.mp4",
        "--boxes",
        write_json(tmp_path / "boxes.json", as_detections(street)),
        "--smooth",
        output=tmp_path / "street",
    )
    content = result(tmp_path / "street")
    assert (
        content["video"] == {"fps": 30.0, "drawn": "street_pose.mp4"}
        and len(content["frames"]) == 5
    )
    assert [[person["track_id"] for person in frame["persons"]] for frame in content["frames"]] == [
        [1, 2]
    ] * 5
    frames = list(media.Video(str(tmp_path / "street" / "street_pose.mp4")))
    assert len(frames) == 5 and frames[0].image.shape == (720, 1280, 3)
