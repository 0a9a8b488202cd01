"""Run the commands of docs/datasets.md on synthetic hands with five keypoints."""

import json
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
from poise.config.dataset_yaml import read_dataset
from poise.datasets import converters
from poise.errors import run_tool
from support.custom_datasets import make_set
from support.paths import ROOT
from support.runs import forget_log_handlers
from support.small_networks import command_line
from support.tools import load_tool

PAGE = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
STEPS = PAGE[PAGE.index("## Your own data") : PAGE.index("## Label formats")]
JOINTS = ["wrist", "left_thumb", "right_thumb", "left_little", "right_little"]


def commands():
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", STEPS, re.S | re.M)).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("python ")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the page's reader stands after step 3: images in two folders, labelme's files, the
    dataset file and the experiment of the page.
    """
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "experiments" / "hands").mkdir()
    dataset_file, experiment = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)[:2]
    made = read_dataset(make_set(tmp_path / "made", 5, (("train", 12), ("val", 6)), names=JOINTS))
    hands = tmp_path / "data" / "hands"
    hands.mkdir(parents=True)
    (hands / "hands.yaml").write_text(dataset_file)
    (tmp_path / "experiments" / "hands" / "w32.yaml").write_text(experiment)
    ours = read_dataset(hands / "hands.yaml")
    for name in ("train", "val"):
        pictures = converters.read("coco", tmp_path / "made" / "labels" / f"{name}.json", made)
        (hands / "images" / name).mkdir(parents=True)
        for picture in pictures:
            file = tmp_path / "made" / "frames" / picture.name
            picture.name = file.name
            shutil.copy(file, hands / "images" / name / file.name)
        converters.write("labelme", hands / "labels" / name, ours, pictures)
    shutil.rmtree(tmp_path / "made")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget_log_handlers()


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a command of the page, with `more` words behind it; returns what it printed."""

    def call(command, *more):
        words = shlex.split(command)
        assert words[0] == "python" and (ROOT / words[1]).is_file()
        monkeypatch.setattr(sys, "argv", [*words[1:], *map(str, more)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            run_tool(load_tool(words[1].removeprefix("tools/").removesuffix(".py")).main)
        out, err = capfd.readouterr()
        forget_log_handlers()
        assert done.value.code == 0, (command, out[-2000:], err[-2000:])
        return out

    return call


def narrow():
    """Overrides that make the page's network small; it starts from random weights, for the
    released ones are of the wide one.
    """
    _, words = command_line(
        "hrnet",
        "MODEL.PRETRAINED",
        "",
        "GPUS",
        "()",
        "WORKERS",
        0,
        "CPU_THREADS",
        1,
        "TRAIN.END_EPOCH",
        2,
        "TRAIN.LR_STEP",
        [1],
        "TRAIN.BATCH_SIZE_PER_GPU",
        8,
        "TEST.BATCH_SIZE_PER_GPU",
        8,
        "DATASET.NUM_JOINTS_HALF_BODY",
        1,
    )
    return words


def test_docs_datasets_commands_are_in_order():
    tools = [
        command.split()[1].removeprefix("tools/").removesuffix(".py") for command in commands()
    ]
    assert tools == [
        "convert_data",
        "convert_data",
        "check_data",
        "train",
        "train",
        "test",
        "make_boxes",
        "test",
        "demo",
        "export",
    ]


def test_docs_datasets_convert_and_check_commands_run(place, run):
    for command in commands()[:2]:
        assert "persons with " in run(command)
    content = json.loads((place / "data/hands/annotations/train.json").read_text())
    assert (
        content["categories"][0]["name"] == "hand"
        and content["categories"][0]["keypoints"] == JOINTS
        and len(content["annotations"]) == 18
    )
    out = run(commands()[2], *narrow())
    assert "verdict: fine" in out and "train set train: persons: 18 of 18 are used" in out
    assert (place / "output/hands/check_data/w32.html").read_text().count("<img ") == 12 + 9


@pytest.mark.slow
def test_docs_datasets_every_command_runs(place, run):
    """Labels, check, training, test, boxes, test with boxes, demo and export: each goes on with
    what the one before has written.
    """
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from support.onnx_detectors import onnx_file

    (place / "models" / "detectors").mkdir(parents=True)
    onnx_file(
        place / "models/detectors/hands.onnx",
        {
            "boxes": np.array([[4, 4, 56, 58], [62, 4, 116, 60]], np.float32),
            "labels": np.array([1, 1], np.int64),
            "scores": np.array([0.9, 0.8], np.float32),
        },
        [1, 3, None, None],
    )
    outputs = {}
    for command in commands():
        tool = command.split()[1].removeprefix("tools/").removesuffix(".py")
        own = [] if tool == "convert_data" else narrow()
        outputs[command] = run(command, *own)
    folder = place / "output/hands/pose_hrnet/w32"
    assert (
        len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        and (folder / "model_best.pth").is_file()
    )
    assert (
        "| wrist |" in (folder / "test.log").read_text()
        and len(list((folder / "pictures").iterdir())) == 6
    )
    results = {path.name for path in (folder / "results").iterdir()}
    assert results == {"keypoints_val_results_gt_boxes.json", "keypoints_val_results_val.json"}
    boxes = json.loads((place / "data/hands/boxes/val.json").read_text())
    assert len(boxes) == 12 and {box["category_id"] for box in boxes} == {1}
    poses = json.loads((place / "output/hands/demo/poses.json").read_text())
    assert (
        poses["skeleton"]["joints"] == JOINTS
        and sum(len(frame["persons"]) for frame in poses["frames"]) == 9
    )
    assert (
        place / "models/hands.onnx"
    ).stat().st_size > 1000 and "written: models/hands.onnx" in outputs[commands()[-1]]
