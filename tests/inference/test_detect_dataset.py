"""Test tools/make_boxes.py: it writes detections that tools/test.py can read."""

import json
import sys

import numpy as np
import pytest
from poise import config
from poise.datasets import load_split
from poise.errors import ConfigError, DataError, run_tool
from poise.inference import detect_dataset
from support.custom_datasets import experiment, make_set
from support.runs import forget_log_handlers
from support.tools import load_tool


@pytest.fixture
def made(tmp_path):
    yield experiment(tmp_path, make_set(tmp_path / "set", 5, (("train", 2), ("val", 6))))
    forget_log_handlers()


def detect(pictures):
    """The brighter half and a doubtful box of each image."""
    assert all(picture.shape == (64, 120, 3) and picture.dtype == np.uint8 for picture in pictures)
    return [
        (np.array([[1.0, 2, 50, 60], [60, 4, 110.1234567, 50]]), np.array([0.9, 0.125]))
        for _ in pictures
    ]


def test_write_detections_is_readable_by_evaluation(made, tmp_path):
    cfg = config.load(
        made,
        ["TEST.USE_GT_BBOX", "False", "TEST.COCO_BBOX_FILE", str(tmp_path / "boxes" / "val.json")],
    )
    assert detect_dataset.write_detections(
        cfg, "val", detect, detect_dataset.output_path(cfg, "")
    ) == (12, 6, 0)
    entries = json.loads((tmp_path / "boxes" / "val.json").read_text())
    name = "cam 1/val-shot 0.png"
    assert entries[:2] == [
        {
            "image_id": 1001,
            "file_name": name,
            "category_id": 7,
            "bbox": [1.0, 2.0, 49.0, 58.0],
            "score": 0.9,
        },
        {
            "image_id": 1001,
            "file_name": name,
            "category_id": 7,
            "bbox": [60.0, 4.0, 50.123, 46.0],
            "score": 0.125,
        },
    ]
    table, _ = load_split(cfg, train=False)
    assert (
        len(table) == 12
        and not table.dropped
        and table.score[:2].tolist() == [0.9, 0.125]
        and table.box_source == "val"
    )
    np.testing.assert_allclose(table.box_wh[0], [49, 58])


def test_write_detections_unreadable_images_are_skipped(made, tmp_path, caplog):
    cfg, frames = config.load(made), tmp_path / "set" / "frames" / "cam 1"
    (frames / "val-shot 1.png").unlink()
    assert detect_dataset.write_detections(cfg, "val", detect, tmp_path / "b.json") == (10, 5, 1)
    assert len({entry["image_id"] for entry in json.loads((tmp_path / "b.json").read_text())}) == 5
    for file in frames.glob("val*"):
        file.unlink()
    with pytest.raises(DataError, match="none of the 6 images"):
        detect_dataset.write_detections(cfg, "val", detect, tmp_path / "c.json")
    assert (
        not (tmp_path / "c.json").exists() and [file.name for file in tmp_path.glob("*.part")] == []
    )


def test_write_detections_other_category_warns(made, tmp_path, caplog):
    detect_dataset.write_detections(config.load(made), "val", detect, tmp_path / "b.json")
    assert not caplog.messages
    detect_dataset.write_detections(
        config.load(made), "val", detect, tmp_path / "b.json", finds_persons=True
    )
    assert caplog.messages == [
        "the detector detects persons; its boxes are written as category 'dot person'"
        f" of {tmp_path / 'set' / 'dots.yaml'}"
    ]


def test_write_detections_invalid_arguments_raise(made, tiny_mpii_experiment):
    with pytest.raises(ConfigError, match="--out: missing; give the file to write"):
        detect_dataset.output_path(config.load(made), "")
    with pytest.raises(ConfigError, match="format mpii does not support detection files"):
        detect_dataset.write_detections(
            config.load(tiny_mpii_experiment), "valid", detect, made.parent / "x.json"
        )


def test_make_boxes_command_onnx_detector_writes_file(made, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from support.onnx_detectors import onnx_file

    outputs = {
        "boxes": np.array([[10, 10, 50, 60], [0, 0, 30, 30]], np.float32),
        "labels": np.array([1, 2], np.int64),
        "scores": np.array([0.75, 0.9], np.float32),
    }
    onnx_file(tmp_path / "found.onnx", outputs, [1, 3, None, None])
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "tools/make_boxes.py",
            "--cfg",
            str(made),
            "--detector",
            str(tmp_path / "found.onnx"),
            "--out",
            str(tmp_path / "b.json"),
        ],
    )
    with pytest.raises(SystemExit) as done:
        run_tool(load_tool("make_boxes").main)
    assert (
        done.value.code == 0
        and capsys.readouterr().out.splitlines()[-1]
        == f"6 boxes in 6 images written to {tmp_path / 'b.json'}"
    )
    assert {tuple(entry["bbox"]) for entry in json.loads((tmp_path / "b.json").read_text())} == {
        (10.0, 10.0, 40.0, 50.0)
    }
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "tools/make_boxes.py",
            "--cfg",
            str(made),
            "--detector",
            "none.onnx",
            "--out",
            str(tmp_path / "b.json"),
        ],
    )
    with pytest.raises(SystemExit) as done:
        run_tool(load_tool("make_boxes").main)
    assert (
        done.value.code == 1
        and capsys.readouterr().err == "error: none.onnx: no such detector file\n"
    )
