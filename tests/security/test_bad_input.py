"""Test invalid input: one line that names the file or key, exit status 1 or 2, no output.

Most runs are in this process through poise.errors.run_tool, as the tools run; a few are processes
of their own.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from poise import config
from poise.errors import run_tool
from poise.models import build_model
from support.paths import ROOT

TOOLS = {}
for tool_name in ("train", "test"):
    spec = importlib.util.spec_from_file_location(
        f"tools_{tool_name}", ROOT / "tools" / f"{tool_name}.py"
    )
    TOOLS[tool_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(TOOLS[tool_name])
ENGINE = {"train": "poise.engine.train", "test": "poise.engine.evaluate"}
TRUTH = "annotations/person_keypoints_{}.json"
BOXES = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"


@pytest.fixture
def root(tmp_path, small_set):
    """A copy of the small dataset that a test may break."""
    return shutil.copytree(small_set, tmp_path / "set")


@pytest.fixture
def tool(tmp_path, tiny_experiment, root, monkeypatch, capfd):
    """Return a function that runs a tool on the copy and returns (exit status, stdout, stderr)."""

    def run(name, *overrides, cfg=tiny_experiment):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                f"tools/{name}.py",
                "--cfg",
                str(cfg),
                "DATASET.ROOT",
                str(root),
                *map(str, overrides),
            ],
        )
        capfd.readouterr()
        try:
            run_tool(TOOLS[name].main)
        except SystemExit as done:
            status = done.code
        # handlers hold files open that are looked for below
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def weight_file(tmp_path, tiny_experiment):
    """Matching weights for tests that fail before they are used."""
    path = tmp_path / "fitting.pth"
    torch.save(build_model(config.load(tiny_experiment)).state_dict(), path)
    return path


def check_refusal(result, status, *named):
    """Check that stderr is one line with everything in `named`, and return it."""
    found, out, err = result
    assert "Traceback" not in out + err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ") and len(lines[0]) < 1000
    for name in named:
        assert str(name) in lines[0]
    assert found == status
    return lines[0]


def check_nothing_written(folder):
    assert not (folder / "output").exists() and not (folder / "log").exists()


def check_nothing_half_written(folder):
    assert [path for path in folder.rglob("*") if path.suffix in (".part", ".tmp")] == []


def edited(path, change):
    """Apply `change` to the content of a JSON file; its result, if any, replaces the content."""
    content = json.loads(path.read_text())
    content = change(content) or content
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# annotations --------------------------------------------------------------------------------------


def first(**fields):
    """Return a change of the first labeled person."""

    def change(content):
        person = next(entry for entry in content["annotations"] if entry["num_keypoints"])
        person.update(fields, id=4711)

    return change


ANNOTATIONS = {
    "without person": (
        lambda content: content.update(categories=[{"id": 1, "name": "dog"}]),
        "has no category 'person'",
    ),
    "other joints": (
        first(keypoints=[1, 1, 2] * 14),
        "annotation 4711 has 42 keypoint numbers, expected 51",
    ),
    "box of no area": (
        first(bbox=[10, 10, 0, 20]),
        "annotation 4711 has a bbox without area inside its image",
    ),
    "box outside": (
        first(bbox=[5000, 10, 20, 20]),
        "annotation 4711 has a bbox without area inside its image",
    ),
    "nan in box": (first(bbox=[float("nan"), 10, 20, 20]), "holds NaN"),
    "nan in joint": (first(keypoints=[float("nan")] + [1] * 50), "holds NaN"),
    "null in box": (
        first(bbox=[None, 10, 20, 20]),
        "annotation 4711 has null as number 0 of its bbox, expected a number",
    ),
    "text in joint": (
        first(keypoints=["left"] + [1] * 50),
        "annotation 4711 has 'left' as number 0 of its keypoints, expected a number",
    ),
    "unknown image": (
        first(image_id=999),
        "annotation 4711 belongs to image 999, which 'images' does not list",
    ),
    "no images": (lambda content: content.update(images=[]), "has no list 'images'"),
    "no persons": (lambda content: content.update(annotations=[]), "no person is left to use"),
    "cut off": (lambda content: json.dumps(content)[:-100], "not valid JSON"),
    "another format": (lambda content: json.dumps([{"image": "a.jpg"}]), "has no list 'images'"),
}


@pytest.mark.parametrize("kind", ANNOTATIONS)
@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_invalid_annotations_exit_1(tool, root, tmp_path, weight_file, name, kind):
    path = root / TRUTH.format("train2017" if name == "train" else "val2017")
    change, fault = ANNOTATIONS[kind]
    edited(path, change)
    check_refusal(
        tool(name, *(("TEST.MODEL_FILE", weight_file) if name == "test" else ())), 1, path, fault
    )
    check_nothing_written(tmp_path)


@pytest.mark.parametrize("kind", ["box outside", "cut off"])
def test_train_invalid_test_annotations_exit_before_training(tool, root, tmp_path, kind):
    path = root / TRUTH.format("val2017")
    edited(path, ANNOTATIONS[kind][0])
    check_refusal(tool("train"), 1, path, ANNOTATIONS[kind][1])
    check_nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_missing_annotation_file_exits_1(tool, root, tmp_path, weight_file, name):
    path = root / TRUTH.format("train2017" if name == "train" else "val2017")
    path.unlink()
    check_refusal(
        tool(name, "TEST.MODEL_FILE", weight_file),
        1,
        path,
        "No such file or directory",
        "check DATASET.ROOT",
    )
    check_nothing_written(tmp_path)


def test_train_invalid_mpii_files_exit_1(tool, tmp_path, small_mpii_set, tiny_mpii_experiment):
    root = shutil.copytree(small_mpii_set, tmp_path / "mpii")
    truth, heads = root / "annot" / "train.json", root / "annot" / "gt_valid.mat"
    good = truth.read_text()
    for change, fault in [
        (
            lambda persons: persons[0].update(joints=[[1, 2]] * 17),
            "person 0 (train00000001.jpg) has 17 joints",
        ),
        (lambda persons: persons[0].update(scale=0), "has scale 0.0, a box of no area"),
        (lambda persons: persons[0].update(center=[float("nan"), 3]), "holds NaN"),
    ]:
        edited(truth, change)
        check_refusal(
            tool("train", "DATASET.ROOT", root, cfg=tiny_mpii_experiment), 1, truth, fault
        )
        truth.write_text(good)
    # no epoch could be evaluated without it; the run ends before the first one
    heads.rename(root / "elsewhere.mat")
    check_refusal(
        tool("train", "DATASET.ROOT", root, cfg=tiny_mpii_experiment),
        1,
        heads,
        "No such file or directory",
    )
    heads.write_text("no MATLAB file")
    check_refusal(
        tool("train", "DATASET.ROOT", root, cfg=tiny_mpii_experiment),
        1,
        heads,
        "is not a readable MATLAB file",
    )
    (root / "elsewhere.mat").rename(heads)
    edited(root / "annot" / "valid.json", lambda persons: persons[1:])
    check_refusal(
        tool("train", "DATASET.ROOT", root, cfg=tiny_mpii_experiment),
        1,
        heads,
        "persons, predictions have",
    )
    check_nothing_written(tmp_path)


# detections ---------------------------------------------------------------------------------------


DETECTIONS = {
    "cut off": (lambda boxes: json.dumps(boxes)[:-20], "not valid JSON"),
    "no list": (lambda boxes: json.dumps({"annotations": boxes}), "is not a list"),
    "nan in box": (lambda boxes: boxes[2].update(bbox=[1, 2, float("nan"), 4]), "holds NaN"),
    "box of three": (lambda boxes: boxes[2].update(bbox=[1, 2, 3]), "entry 2 is not a detection"),
    "without score": (
        lambda boxes: boxes[2].pop("score") and None,
        "entry 2 is not a detection (it has no 'score')",
    ),
    "all of another set": (
        lambda boxes: [box.update(image_id=10**6) for box in boxes] and None,
        "no person is left to use",
    ),
}


@pytest.mark.parametrize("kind", DETECTIONS)
def test_evaluate_invalid_detections_exit_1(tool, root, tmp_path, weight_file, kind):
    change, fault = DETECTIONS[kind]
    edited(root / BOXES, change)
    boxes = ("TEST.USE_GT_BBOX", False, "TEST.COCO_BBOX_FILE", root / BOXES)
    check_refusal(tool("test", "TEST.MODEL_FILE", weight_file, *boxes), 1, root / BOXES, fault)
    if kind == "cut off":  # training tests after each epoch, with the same boxes
        check_refusal(tool("train", *boxes), 1, root / BOXES, fault)
    check_nothing_written(tmp_path)


def test_evaluate_missing_detections_exit_1(tool, tmp_path, weight_file):
    boxes = tmp_path / "nowhere.json"
    detected = ("TEST.MODEL_FILE", weight_file, "TEST.USE_GT_BBOX", False)
    check_refusal(
        tool("test", *detected, "TEST.COCO_BBOX_FILE", boxes),
        1,
        boxes,
        "No such file",
        "TEST.USE_GT_BBOX True does without",
    )
    check_refusal(tool("test", *detected), 2, "TEST.COCO_BBOX_FILE is empty")
    check_nothing_written(tmp_path)


# images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize(
    "kind, fault",
    [
        ("missing", "No such file or directory"),
        ("truncated", "the image file is cut off"),
        ("text", "not an image that OpenCV can read"),
    ],
)
def test_tool_invalid_image_exits_1(tool, root, tmp_path, weight_file, name, kind, fault):
    """Found when the image is read: the run folder has a log with the error and no partial file."""
    split = "train2017" if name == "train" else "val2017"
    truth = json.loads((root / TRUTH.format(split)).read_text())
    number = next(entry["image_id"] for entry in truth["annotations"] if entry["num_keypoints"])
    image = (
        root
        / "images"
        / split
        / next(entry["file_name"] for entry in truth["images"] if entry["id"] == number)
    )
    if kind == "missing":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:2000] if kind == "truncated" else b"404: not found\n")
    line = check_refusal(tool(name, "TEST.MODEL_FILE", weight_file), 1, image, fault)
    folder = tmp_path / "output" / "coco" / "pose_res2net" / "tiny"
    assert line.removeprefix("error: ") in (folder / f"{name}.log").read_text()
    check_nothing_half_written(tmp_path)
    assert not list(folder.rglob("*.pth")) and not list(folder.rglob("*results_*"))


@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_missing_image_folder_exits_1(tool, root, tmp_path, weight_file, name):
    folder = root / "images" / ("train2017" if name == "train" else "val2017")
    folder.rename(root / "images" / "elsewhere")
    check_refusal(tool(name, "TEST.MODEL_FILE", weight_file), 1, f"{folder}: no such image folder")
    check_refusal(
        tool(name, "TEST.MODEL_FILE", weight_file, "DATASET.DATA_FORMAT", "zip"),
        1,
        f"{folder}.zip: no such archive",
    )
    check_nothing_written(tmp_path)


# keys and values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, named",
    [
        (("TEST.MODELFILE", "x.pth"), ("unknown key TEST.MODELFILE", "TEST.MODEL_FILE")),
        (("LR", 0.1), ("unknown key LR", "TRAIN.LR")),
        (("TRAIN.LR", "fast"), ("TRAIN.LR must be a number, got 'fast'",)),
        (("TRAIN.LR", "nan"), ("TRAIN.LR must be a number",)),
        (("TRAIN.LR", -1), ("TRAIN.LR must be above 0",)),
        (("WORKERS", 1.5), ("WORKERS must be a whole number",)),
        (("GPUS", "all"), ("GPUS must be a list of numbers",)),
        (("WORKERS",), ("'WORKERS' has no value",)),
        (("MODEL.NAME", "pose_resnest"), ("MODEL.NAME 'pose_resnest'", "did you mean pose_res")),
        (("MODEL.EXTRA.NUM_LAYER", 50), ("MODEL.EXTRA.NUM_LAYER", "NUM_LAYERS")),
        (
            ("MODEL.TARGET_TYPE", "megavii"),
            (
                "MODEL.TARGET_TYPE must be one of 'gaussian', 'dark', 'udp', 'megvii', 'simcc', "
                "got 'megavii'",
            ),
        ),
        (("MODEL.EXTRA.NUM_LAYERS", 51), ("MODEL.EXTRA.NUM_LAYERS", "51")),
        (
            ("MODEL.IMAGE_SIZE", "[60, 64]", "MODEL.HEATMAP_SIZE", "[15, 16]"),
            ("MODEL.IMAGE_SIZE [60, 64]",),
        ),
        (("MODEL.NUM_JOINTS", 16), ("MODEL.NUM_JOINTS must be 17",)),
        (
            ("DATASET.FILE", "nowhere.yaml"),
            ("DATASET.FILE: nowhere.yaml: cannot read the dataset file", "template.yaml"),
        ),
        (
            ("DATASET.FILE", "hands"),
            ("DATASET.FILE: no dataset file 'hands': it must be one of coco, crowdpose, mpii",),
        ),
    ],
    ids=lambda value: (
        "-".join(map(str, value)) if isinstance(value, tuple) and len(value) < 5 else None
    ),
)
@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_invalid_key_or_value_exits_2(tool, tmp_path, weight_file, name, overrides, named):
    check_refusal(tool(name, "TEST.MODEL_FILE", weight_file, *overrides), 2, *named)
    check_nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_invalid_experiment_file_exits_2(tool, tmp_path, name):
    missing = tmp_path / "nowhere.yaml"
    check_refusal(
        tool(name, cfg=missing),
        2,
        f"{missing}: cannot read the experiment file (No such file or directory)",
    )
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("TRAIN: {LR: 1")
    check_refusal(tool(name, cfg=wrong), 2, f"{wrong}: not valid YAML")
    wrong.write_text("TRAIN: {LERNING_RATE: 1}")
    check_refusal(tool(name, cfg=wrong), 2, f"{wrong}: unknown key TRAIN.LERNING_RATE")
    check_nothing_written(tmp_path)


# weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, key", [("test", "TEST.MODEL_FILE"), ("train", "MODEL.PRETRAINED")])
def test_tool_invalid_weights_exit_1(tool, tmp_path, tiny_experiment, weight_file, name, key):
    missing = tmp_path / "nowhere.pth"
    check_refusal(tool(name, key, missing), 1, f"{key} {missing}: no such")

    other = tmp_path / "other.pth"
    torch.save(
        build_model(
            config.load(tiny_experiment, ["MODEL.EXTRA.NUM_CHANNELS", [8, 8, 8, 32]])
        ).state_dict(),
        other,
    )
    line = check_refusal(
        tool(name, key, other), 1, f"{other}: loaded ", "it has the weights of a network like"
    )
    assert "missing 0, unexpected 0, mismatched " in line

    for content in (b"no weights\n", b"", weight_file.read_bytes()[:3000], b"\x80\x05K\x01."):
        other.write_bytes(content)
        check_refusal(tool(name, key, other), 1, f"{other}: ")
    check_nothing_written(tmp_path)


def test_evaluate_without_trained_weights_exits_1(tool, tmp_path):
    check_refusal(
        tool("test"),
        1,
        "TEST.MODEL_FILE is empty",
        tmp_path / "output" / "coco" / "pose_res2net" / "tiny",
        "train first",
    )
    check_nothing_written(tmp_path)


def test_train_corrupt_checkpoint_exits_1(tool, tmp_path):
    folder = tmp_path / "output" / "coco" / "pose_res2net" / "tiny"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pth").write_bytes(b"PK\x03\x04 cut off")
    check_refusal(
        tool("train", "AUTO_RESUME", True),
        1,
        folder / "checkpoint.pth",
        "damaged",
        "remove it to start a new run",
    )
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pth"]


# folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_invalid_output_folder_exits_1(tool, tmp_path, weight_file, name):
    """No folder can be created below a regular file, even by root."""
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "output"
    check_refusal(
        tool(name, "TEST.MODEL_FILE", weight_file, "OUTPUT_DIR", output),
        1,
        output,
        "Not a directory",
        "OUTPUT_DIR",
    )
    check_nothing_written(tmp_path)


def test_train_invalid_log_folder_exits_1(tool, tmp_path):
    (tmp_path / "file").touch()
    check_refusal(
        tool("train", "LOG_DIR", tmp_path / "file" / "log"),
        1,
        tmp_path / "file" / "log",
        "set LOG_DIR to a place you may write to",
    )
    check_nothing_half_written(tmp_path)


# how the tools end --------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """Python's default SIGINT handler, also if the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_ctrl_c_before_first_step_exits_130(
    tool, tmp_path, weight_file, monkeypatch, ctrl_c, name
):
    """For example while the dataset is read; SIGINT then raises KeyboardInterrupt."""
    module = importlib.import_module(ENGINE[name])
    monkeypatch.setattr(module, "load_split", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    status, out, err = tool(name, "TEST.MODEL_FILE", weight_file)
    assert (status, err) == (130, "") and "Traceback" not in out
    check_nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["train", "test"])
def test_tool_internal_error_keeps_its_traceback(tool, weight_file, monkeypatch, name):
    def fault(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module(ENGINE[name]), "load_split", fault)
    with pytest.raises(ZeroDivisionError):
        tool(name, "TEST.MODEL_FILE", weight_file)


def process(name, *arguments, **environment):
    """Run a tool as a process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "lib"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_process_unreadable_image_in_worker_is_one_line(root, tmp_path, tiny_experiment):
    """With more workers than cores; PyTorch's warning about them must not be printed."""
    truth = json.loads((root / TRUTH.format("train2017")).read_text())
    for entry in truth["images"]:
        image = root / "images" / "train2017" / entry["file_name"]
        image.write_bytes(image.read_bytes()[:-200])
    workers = 2 * (os.cpu_count() or 1)
    done = process(
        "train",
        "--cfg",
        tiny_experiment,
        "--dataDir",
        root,
        "DATASET.ROOT",
        ".",
        "WORKERS",
        workers,
    )
    line = check_refusal(done, 1, "the image file is cut off; download it again")
    assert f"error: {root}/images/train2017/0" in line
    check_nothing_half_written(tmp_path)


def test_process_unknown_key_is_one_line(tmp_path, tiny_experiment):
    done = process("train", "--cfg", tiny_experiment, "TRAIN.BATCHSIZE", "8")
    check_refusal(done, 2, "unknown key TRAIN.BATCHSIZE", "TRAIN.BATCH_SIZE_PER_GPU")
    check_nothing_written(tmp_path)


def test_process_invalid_weights_is_one_line(tmp_path, tiny_experiment):
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    done = process("test", "--cfg", tiny_experiment, "TEST.MODEL_FILE", tmp_path / "photo.pth")
    check_refusal(done, 1, f"{tmp_path / 'photo.pth'}: not a weight file")
    check_nothing_written(tmp_path)


def test_process_closed_stdout_continues(tmp_path, tiny_experiment):
    """As with `| head`: no traceback per line, and the log file is complete."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "tools" / "train.py"),
        "--cfg",
        str(tiny_experiment),
        "TRAIN.END_EPOCH",
        "1",
    ]
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout.readline()
    started.stdout.close()
    err = started.stderr.read()
    started.wait(timeout=60)
    started.stderr.close()
    assert "Traceback" not in err and "Logging error" not in err
    assert (
        "done: best score"
        in (tmp_path / "output" / "coco" / "pose_res2net" / "tiny" / "train.log").read_text()
    )


def test_process_poise_debug_prints_traceback(tmp_path, tiny_experiment):
    status, _, err = process("test", "--cfg", tmp_path / "nowhere.yaml", POISE_DEBUG="1")
    assert (
        status == 1
        and "Traceback" in err
        and err.rstrip().endswith("--cfg takes a file of experiments/")
    )
