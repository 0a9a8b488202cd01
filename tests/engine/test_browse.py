"""Test tools/browse.py: it shows the samples of a training."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch
from poise import config
from poise.engine import browse, train
from poise.errors import DataError, run_tool
from poise.visualization import draw
from support.paths import ROOT
from support.runs import forget_log_handlers


def tool():
    spec = importlib.util.spec_from_file_location("tools_browse", ROOT / "tools" / "browse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, *arguments):
    """Exit status of tools/browse.py."""
    monkeypatch.setattr("sys.argv", ["browse.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        run_tool(tool().main)
    forget_log_handlers()
    return end.value.code or 0


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "MODEL.TARGET_TYPE",
            "megvii",
            "LOSS.USE_DIFFERENT_JOINTS_WEIGHT",
            True,
            "DATASET.COLOR_RGB",
            True,
        ],
    ],
)
def test_browse_samples_equal_training_batches(tiny_experiment, monkeypatch, overrides):
    """Compare each batch of two training epochs with the samples of browse for any batch size and
    number of workers.
    """
    seen = []
    original = train.train_step

    def recorded(cfg, state, *arguments):
        epoch = state.progress.epoch
        figures, shown = original(cfg, state, *arguments)
        seen.append((epoch, {key: value.clone() for key, value in shown[0].items()}, shown[3]))
        return figures, shown

    monkeypatch.setattr(train, "train_step", recorded)
    cfg = config.load(
        tiny_experiment,
        [
            "TRAIN.BATCH_SIZE_PER_GPU",
            5,
            "TEST.PICTURES",
            0,
            "DATASET.PROB_HALF_BODY",
            0.5,
            *overrides,
        ],
    )
    train.run(cfg, str(tiny_experiment), ["test"])
    forget_log_handlers()
    assert {epoch for epoch, _, _ in seen} == {0, 1} and len(seen) > 4
    drawing = config.load(
        tiny_experiment,
        ["TRAIN.BATCH_SIZE_PER_GPU", 3, "WORKERS", 2, "DATASET.PROB_HALF_BODY", 0.5, *overrides],
    )
    for epoch in (0, 1):
        batches = [(batch, targets) for number, batch, targets in seen if number == epoch]
        whole = {
            key: torch.cat([batch[key] for batch, _ in batches]).numpy() for key in batches[0][0]
        }
        first = 4
        samples = browse.draw(drawing, count=1000, epoch=epoch, first=first)
        assert [person for _, person in samples.keys] == whole["person"][first:].tolist()
        crops = whole["images"][first:]
        assert np.array_equal(
            samples.crops, crops[:, :, :, ::-1] if drawing.DATASET.COLOR_RGB else crops
        )
        assert np.array_equal(samples.joints, whole["joints"][first:]) and np.array_equal(
            samples.visible, whole["visible"][first:]
        )
        heatmaps = torch.cat([targets.finest_heatmaps for _, targets in batches]).numpy()[first:]
        assert np.allclose(
            samples.target_maps[:, -1], heatmaps / (255 if overrides else 1), atol=1e-6
        )
        assert np.array_equal(
            samples.weight,
            torch.cat([targets.weight for _, targets in batches]).numpy()[first:, :, 0],
        )
        assert (samples.target_maps.shape[1] > 1) == bool(overrides) and (
            1.5 in samples.weight
        ) == bool(overrides)
    # two epochs are augmented differently
    assert not np.array_equal(
        browse.draw(drawing, count=4).crops, browse.draw(drawing, count=4, epoch=1).crops
    )


def test_browse_draw_shows_keypoints_heatmaps_and_weights(tiny_experiment):
    cfg = config.load(
        tiny_experiment, ["DATASET.PROB_HALF_BODY", 1.0, "DATASET.NUM_JOINTS_HALF_BODY", 2]
    )
    samples = browse.draw(cfg, count=12)
    zoom = 160 / 64
    picture = browse.joint_mosaic(samples)
    assert picture.shape == (2 * (160 + 14) + 2, 8 * 160 + 7 * 2, 3)
    inside = (samples.weight > 0) & (samples.visible > 1)
    outside = (samples.visible > 0) & (samples.weight == 0)
    assert inside.sum() > 40 and outside.sum() > 5
    # the last joint, over which nothing is drawn but rings
    ankles = np.argwhere(inside & (np.array(samples.skeleton.names) == "right_ankle"))
    assert len(ankles)
    for row, joint in ankles:
        x, y = np.rint((samples.joints[row, joint] + 0.5) * zoom - 0.5).astype(int)
        cell = picture[row // 8 * (174 + 2) + y, row % 8 * 162 + x].astype(int)
        assert abs(cell - (255, 120, 30)).max() < 60, "the right is blue"
    red = (np.abs(picture.astype(int) - browse._RING).max(axis=2) < 40).sum()
    assert red > 5 * 4
    rows = browse.target_mosaic(samples, rows=3)
    assert rows.shape[1] == 19 * 128 + 18 * 2
    # below the heatmap of a joint stands its weight; in the map its place is the hottest, red in
    # OpenCV's jet, once it counts
    row, joint = np.argwhere(samples.weight[:3] > 0)[0]
    x, y = np.rint((samples.joints[row, joint] + 0.5) * 2).astype(int).clip(0, 127)
    left = (2 + joint) * 130
    around = rows[row * 144 : row * 144 + 128, left : left + 128].astype(int)
    hottest = np.unravel_index((around[:, :, 2] - around[:, :, 0]).argmax(), around.shape[:2])
    assert np.hypot(hottest[1] - x, hottest[0] - y) < 14  # less than two of the 16 cells


def test_browse_command_writes_mosaics(tiny_experiment, tmp_path, monkeypatch, capsys):
    assert (
        run(
            monkeypatch,
            "--cfg",
            tiny_experiment,
            "--output",
            tmp_path / "look",
            "--count",
            5,
            "MODEL.TARGET_TYPE",
            "megvii",
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "persons in" in shown
    for name in ("joints.jpg", "heatmaps.jpg", "sharpness.jpg"):
        assert (
            str(tmp_path / "look" / name) in shown
            and cv2.imread(str(tmp_path / "look" / name)) is not None
        )
    assert not (tmp_path / "output").exists(), "a run folder is for trainings"


def test_browse_largest_mosaic_is_written(tiny_experiment):
    """Write the largest number of samples that fits."""
    cfg = config.load(tiny_experiment)
    most, crop = browse.max_samples(cfg), np.zeros((64, 64, 3), np.uint8)
    rows = most // 8
    picture = np.zeros(
        (
            rows
            * (browse._with_words(browse._enlarged(crop, browse._zoom((64, 64))), "").shape[0] + 2),
            8,
            3,
        ),
        np.uint8,
    )
    assert len(draw.encode_image(picture, ".jpg")) > 0
    with pytest.raises(DataError, match="an image of 8 x 70000 pixels cannot be written as jpg"):
        draw.encode_image(np.zeros((70_000, 8, 3), np.uint8), ".jpg")


def test_browse_command_output_is_a_file_exits_1(tiny_experiment, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    assert (
        run(monkeypatch, "--cfg", tiny_experiment, "--output", tmp_path / "file", "--count", 2) == 1
    )
    logged = capsys.readouterr().err
    assert (
        logged.count("\n") == 1
        and f"error: {tmp_path / 'file' / 'joints.jpg'}: cannot be written" in logged
        and (tmp_path / "file").read_text() == "mine"
    )


def test_browse_command_mpii_writes_mosaics(tiny_mpii_experiment, tmp_path, monkeypatch):
    assert (
        run(monkeypatch, "--cfg", tiny_mpii_experiment, "--output", tmp_path / "look", "--count", 3)
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == [
        "heatmaps.jpg",
        "joints.jpg",
    ]


@pytest.mark.parametrize(
    "options, status, message",
    [
        (["--count", 0], 2, "--count 0: must be 1 or more"),
        (["--epoch", -1], 2, "--epoch -1: must be 0 or more"),
        (["--first", 5000], 2, "--first 5000: an epoch has the samples 0 to"),
        (
            ["--count", 3000],
            2,
            (
                "--count 3000: a picture has room for 2952 of these samples; show the others with"
                " --first"
            ),
        ),
        (["DATASET.ROOT", "absent"], 1, "annotation file"),
    ],
)
def test_browse_command_invalid_input_exits_with_error(
    tiny_experiment, tmp_path, monkeypatch, capsys, options, status, message
):
    keys = options if options[0].startswith("DATASET") else []
    assert (
        run(
            monkeypatch,
            *([] if keys else options),
            "--cfg",
            tiny_experiment,
            "--output",
            tmp_path / "look",
            *keys,
        )
        == status
    )
    logged = capsys.readouterr().err
    assert logged.count("\n") == 1 and message in logged and not (tmp_path / "look").exists()
