"""The snippets of docs/inference.md and docs/export.md run in order and as they are.

A narrower network replaces that of the pages, to save time.
"""

import ast
import importlib.util
import re
import shlex
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from poise import config
from poise.errors import run_tool
from support.paths import ROOT
from support.small_networks import command_line, small

PAGE = "\n".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("inference.md", "export.md")
)
EXPERIMENT = "experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml"
WEIGHTS = "models/pytorch/pose_coco/hrnet_w32_coco_256x192-c78dce93_20200708.pth"
NARROW = [
    "MODEL.IMAGE_SIZE",
    [64, 96],
    "MODEL.HEATMAP_SIZE",
    [16, 24],
    "MODEL.EXTRA.NUM_LAYERS",
    18,
]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the experiment, weights and images that the page names."""
    from poise.config.diff import as_yaml
    from poise.datasets.synthetic.scene import sample_scene

    path, words = command_line("resnet", *NARROW)
    experiment = tmp_path / EXPERIMENT
    assert (ROOT / EXPERIMENT).is_file()
    experiment.parent.mkdir(parents=True)
    experiment.write_text(as_yaml(config.load(ROOT / path, words)))
    assert yaml.safe_load(experiment.read_text())["MODEL"]["IMAGE_SIZE"] == [64, 96]
    (tmp_path / WEIGHTS).parent.mkdir(parents=True)
    torch.save(small("resnet", *NARROW).state_dict(), tmp_path / WEIGHTS)
    for number, name in enumerate(("image.jpg", "other.jpg")):
        cv2.imwrite(
            str(tmp_path / name),
            cv2.resize(sample_scene(np.random.default_rng(number)).image, (480, 360)),
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(line, monkeypatch):
    words = shlex.split(line)
    assert words[0] == "python", line
    monkeypatch.setattr(sys, "argv", words[1:])
    spec = importlib.util.spec_from_file_location("tool_of_the_page", ROOT / words[1])
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with pytest.raises(SystemExit) as done:
        run_tool(tool.main)
    assert done.value.code == 0, line


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_docs_inference_snippets_run(place, monkeypatch, capsys):
    assert [kind for kind, _ in BLOCKS].count("python") >= 7 and {kind for kind, _ in BLOCKS} == {
        "python",
        "bash",
    }
    names: dict = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, f"docs/inference.md: {text.splitlines()[0]}", "exec"), names)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                if "download_weights" not in line:
                    run_command(line, monkeypatch)
    message = capsys.readouterr().out
    assert (
        "nose at [" in message
        and "1 0 1\n" in message
        and message.count("synthetic persons: 8 crops: heatmaps differ by at most") == 4
        and "'left_ankle': [" in message
    )
    assert (
        len(yaml.safe_load((place / "poses.json").read_text())) == 2
        and (place / "drawn.png").is_file()
        and (place / "whole.onnx").is_file()
    )
    assert float((names["again"] - names["crop_keypoints"]).abs().max()) < 0.01
    assert names["people"].keypoints.shape == (1, 17, 2) and names["keypoints"].shape == (2, 17, 2)


# without UDP's Newton step, which magnifies rounding where random weights make a flat peak
UDP = ["MODEL.TARGET_TYPE", "udp", "TEST.DECODE", "quarter", "TEST.BOX_MARGIN", "[1.15,1.3]"]


@pytest.mark.parametrize("codec", [[], UDP], ids=["gaussian", "udp"])
def test_docs_export_snippet_equals_estimator(place, monkeypatch, codec):
    """Of boxes that are wide, tall, small and partly outside of the image, to 0.01 pixels."""
    from poise import PoseEstimator

    (snippet,) = (text for kind, text in BLOCKS if kind == "python" and "cv2.warpAffine" in text)
    assert (
        len(snippet.splitlines()) <= 25 and "poise." not in snippet and "import cv2" not in snippet
    )
    export = next(
        line
        for kind, text in BLOCKS
        if kind == "bash"
        for line in text.replace("\\\n", " ").splitlines()
        if "whole.onnx" in line
    )
    run_command(f"{export} {' '.join(codec)}", monkeypatch)
    boxes = [
        [60, 40, 210, 330],
        [230, 50, 330, 320],
        [-50, 100, 300, 200],
        [400, 200, 520, 380],
        [10, 10, 30, 60],
        [0, 0, 480, 360],
        [100.5, 20.25, 180.75, 90.5],
    ]
    page = "boxes = np.array([[60, 40, 210, 330], [230, 50, 330, 320]])"
    assert page in snippet
    names = {"cv2": cv2}
    exec(
        compile(snippet.replace(page, f"boxes = np.array({boxes})"), "docs/export.md", "exec"),
        names,
    )
    estimator = PoseEstimator(EXPERIMENT, WEIGHTS, overrides=codec)
    people = estimator("image.jpg", boxes)
    assert np.abs(names["keypoints"] - people.keypoints).max() < 0.01
    assert np.abs(names["scores"] - people.scores).max() < 1e-3
    # what the page had before: the plain box, neither padded nor of the network's aspect ratio
    plain = [cv2.resize(names["image"][40:330, 60:210], (64, 96))]
    (of_plain,) = names["session"].run(["keypoints"], {"images": np.stack(plain)})
    of_plain = of_plain[0] * [150 / 64, 290 / 96] + [60, 40]
    assert np.median(np.abs(of_plain - people.keypoints[0])) > 1


def test_docs_inference_names_every_option_and_field():
    from dataclasses import fields
    from inspect import signature

    from poise import PoseEstimator, Poses

    reported = re.findall(r"^\| `(\w+)=([^`]+)` \|", PAGE, re.MULTILINE)
    for function, names in ((Poses.draw, reported[:4]), (PoseEstimator.__init__, reported[4:])):
        options = {
            name: option.default
            for name, option in signature(function).parameters.items()
            if option.kind is option.KEYWORD_ONLY
        }
        assert options and options == {name: ast.literal_eval(value) for name, value in names}
    named = re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)
    assert {field.name for field in fields(Poses)} - {"vis_threshold"} <= set(named)
    source = (ROOT / "lib/poise/cli/export.py").read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert len(options) > 5 and all(f'"{option}"' in source for option in options - {"--cfg"}), (
        options
    )
