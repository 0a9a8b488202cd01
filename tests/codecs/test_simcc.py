"""Test SimCC against mmpose 1.x, and from training to export."""

import json

import cv2
import numpy as np
import pytest
import torch
from poise import PoseEstimator, config
from poise.codecs.simcc import KLDiscretLoss, SimCC
from poise.engine import browse, train
from poise.errors import ConfigError
from poise.evaluation.analysis import report
from poise.inference.export import ExportOptions, export
from poise.io.images import read_image
from poise.models import build_model
from support.golden_inputs import generator
from support.paths import GOLDEN
from support.runs import TINY, forget_log_handlers

RECORDED = json.loads((GOLDEN / "simcc_functions.json").read_text())
SIMCC_KEYS = [
    *("MODEL.TARGET_TYPE", "simcc", "LOSS.TYPE", "kl_discret"),
    *("MODEL.EXTRA.HEAD", "simcc", "MODEL.SIMCC_SIGMA", [2.83, 2.83]),
]


def recorded_outputs(kind):
    """Return the outputs (2, 17, 384) and (2, 17, 512) of the recorded decoding."""
    rng = generator(RECORDED["seed"], f"simcc_{kind}")
    if kind == "vectors":
        x, y = (rng.standard_normal((2, 17, bins)).astype(np.float32) for bins in (384, 512))
        x[0, 3] = y[0, 3] = x[0, 4] = -1
        x[0, 5] = 0
        x[0, 5, [40, 300]] = 2
        x[0, 6] *= np.float32(0.1)
        y[0, 6] *= np.float32(0.1)
        return x, y
    mx, my = (rng.uniform(30, most, (2, 17, 1)) for most in (350, 480))
    height = rng.uniform(0.1, 1, (2, 17, 1))
    x = height * np.exp(-((np.arange(384) - mx) ** 2) / (2 * 4.9**2))
    y = (height + 0.05) * np.exp(-((np.arange(512) - my) ** 2) / (2 * 5.66**2))
    return x.astype(np.float32), y.astype(np.float32)


def recorded_loss_inputs():
    """Return the (predictions, targets) of the recorded loss."""
    rng = generator(RECORDED["seed"], "kl")
    output = tuple(
        torch.from_numpy(0.3 * rng.standard_normal((3, 17, bins))).float() for bins in (384, 512)
    )
    rng.uniform(-10, 1.05, (3, 17, 2))
    joints = torch.from_numpy(rng.uniform(0, 1, (3, 17, 2)) * [191, 255]).float()
    visible = torch.from_numpy(rng.uniform(0, 1, (3, 17)) > 0.3).float()
    assert visible.tolist() == RECORDED["kl_loss"]["weights"]
    return output, SimCC((192, 256)).encode(joints, visible)


def entries(array, recorded):
    """Return the (computed, recorded) values at the recorded indices."""
    return np.asarray(array).reshape(-1)[recorded["index"]], np.asarray(recorded["value"])


@pytest.mark.parametrize("recorded", RECORDED["encode"])
def test_encode_recorded_keypoints_equals_mmpose(recorded):
    sigma = tuple(np.broadcast_to(recorded["sigma"], 2).tolist())
    codec = SimCC(
        tuple(recorded["input_size"]),
        sigma=sigma,
        split_ratio=recorded["split_ratio"],
        normalize=recorded["normalize"],
    )
    # COCO has no visibility between 0 and 1
    rows = [row for row, flag in enumerate(recorded["visible"]) if flag in (0, 1)]
    assert len(rows) == len(recorded["visible"]) - 1
    joints, visible = (torch.tensor(recorded[key])[None] for key in ("joints", "visible"))
    targets = codec.encode(joints, visible)
    assert targets.weight[0, rows, 0].tolist() == [recorded["weights"][row] for row in rows]
    for axis, labels in zip("xy", targets.labels):
        assert list(labels.shape[1:]) == recorded[f"{axis}_shape"]
        found = labels[0, rows].numpy()
        for name, values in (
            ("argmax", found.argmax(axis=1)),
            ("sum", found.astype(np.float64).sum(axis=1)),
            ("max", found.max(axis=1)),
        ):
            wanted = np.array(recorded[f"{axis}_{name}"])[rows]
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        *entries(targets.labels[0][0, 0], recorded["x_row0"]), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("kind", ["vectors", "peaked"])
def test_decode_recorded_outputs_equals_mmpose(kind):
    recorded, codec, output = RECORDED["decode"][kind], SimCC((192, 256)), recorded_outputs(kind)
    keypoints, scores = codec.decode(output)
    np.testing.assert_array_equal(keypoints, np.float32(recorded["keypoints"]))
    np.testing.assert_allclose(scores, recorded["scores"], rtol=1e-6)
    tensors = tuple(map(torch.from_numpy, output))
    in_graph, graph_scores = codec.build_decoder()(tensors)
    assert np.array_equal(in_graph.numpy(), keypoints)
    assert np.array_equal(graph_scores.numpy(), scores)


@pytest.mark.parametrize("kind", ["vectors", "peaked"])
def test_flip_average_recorded_outputs_equals_mmpose(kind):
    recorded, codec, output = RECORDED["decode"][kind], SimCC((192, 256)), recorded_outputs(kind)
    coco = torch.tensor([0, *(joint + 1 if joint % 2 else joint - 1 for joint in range(1, 17))])
    tensors = tuple(map(torch.from_numpy, output))
    merged = codec.flip_average(tensors, tensors, coco)
    for axis, values in zip("xy", merged):
        np.testing.assert_allclose(
            *entries(values, recorded[f"flip_merged_{axis}"]), rtol=1e-6, atol=1e-7
        )
    keypoints, scores = codec.decode(tuple(values.numpy() for values in merged))
    np.testing.assert_array_equal(keypoints, np.float32(recorded["flip_merged_keypoints"]))
    np.testing.assert_allclose(scores, recorded["flip_merged_scores"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("rtmpose", {"beta": 10, "label_softmax": True}),
        ("rtmpose_no_weights", {"beta": 10, "label_softmax": True, "use_target_weight": False}),
        ("beta1", {"beta": 1, "label_softmax": True}),
        ("raw_labels", {"beta": 10}),
    ],
)
def test_loss_recorded_predictions_equals_mmpose(name, keywords):
    recorded, ((x, y), targets) = RECORDED["kl_loss"][name], recorded_loss_inputs()
    x.requires_grad_()
    loss = KLDiscretLoss(**keywords)([(x, y)], targets)
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-6)
    np.testing.assert_allclose(*entries(x.grad, recorded["grad_x"]), rtol=1e-4, atol=1e-11)


def test_loss_two_outputs_adds_them_up():
    output, targets = recorded_loss_inputs()
    codec = SimCC((192, 256))
    one = codec.loss([output], targets).item()
    assert one == pytest.approx(RECORDED["kl_loss"]["rtmpose"]["loss"], rel=1e-6)
    assert codec.loss([output, output], targets).item() == pytest.approx(2 * one, rel=1e-6)


def test_accuracy_recorded_predictions_equals_mmpose():
    output, targets = recorded_loss_inputs()
    codec, recorded = SimCC((192, 256)), RECORDED["kl_loss"]["pck"]
    right, counted = codec.accuracy(output, targets)
    # one of the two of keypoint 8
    assert (right.item(), counted.item()) == (1, int(targets.weight.sum()))
    assert recorded["of_normal"]["acc"][8] == 0.5 and int(targets.weight[:, 8].sum()) == 2
    x, y = targets.labels
    right, _ = codec.accuracy((x.roll(9, 2), y.roll(-20, 2)), targets)
    assert right.item() == recorded["of_rolled"]["avg"] == 0
    right, _ = codec.accuracy(targets.labels, targets)
    assert right == counted


def test_build_model_simcc_without_its_head_raises(tiny_experiment):
    cfg = config.load(tiny_experiment, [*SIMCC_KEYS, "MODEL.EXTRA.HEAD", "heatmap"])
    with pytest.raises(ConfigError, match="MODEL.TARGET_TYPE simcc needs 'simcc', got 'heatmap'"):
        build_model(cfg)


def test_load_simcc_with_heatmap_loss_raises(tiny_experiment):
    with pytest.raises(ConfigError, match="LOSS.TYPE must be 'kl_discret' with .* simcc"):
        config.load(tiny_experiment, [*SIMCC_KEYS, "LOSS.TYPE", "joints_mse"])


# ---- a training, and what can be done with its weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_set):
    """Return (config, run folder, TensorBoard folder) of a network that overfits 24 persons."""
    folder = tmp_path_factory.mktemp("simcc")
    text = TINY.format(
        dataset="coco", root=small_set, train="train2017", test="train2017", joints=17
    )
    path = folder / "simcc.yaml"
    path.write_text(f"OUTPUT_DIR: {folder / 'output'}\nLOG_DIR: {folder / 'log'}\n{text}")
    cfg = config.load(
        path,
        [
            *("GPUS", "()", "PRINT_FREQ", 20, *SIMCC_KEYS),
            *("TRAIN.END_EPOCH", 40, "TRAIN.LR", 0.004, "TRAIN.LR_STEP", [30]),
            *("TRAIN.EVAL_INTERVAL", 40),
            *("DATASET.FLIP", False, "DATASET.SCALE_FACTOR", 0.0, "DATASET.ROT_FACTOR", 0.0),
            *("DEBUG.DEBUG", True, "DEBUG.SAVE_BATCH_IMAGES_PRED", True),
            *("DEBUG.SAVE_HEATMAPS_GT", True, "DEBUG.SAVE_HEATMAPS_PRED", True),
        ],
    )
    run = train.run(cfg, str(path), [])
    forget_log_handlers()
    return cfg, run, folder / "log"


def test_train_simcc_learns_the_training_images(trained):
    _, run, _ = trained
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < 0.4 * lines[0]["train_loss"]
    assert lines[-1]["valid_acc"] > 0.7 and lines[-1]["AP"] > 0.3


def test_train_simcc_writes_distribution_images(trained):
    _, run, log = trained
    pictures = sorted((run / "debug").iterdir())
    assert {path.name.split("_", 3)[3] for path in pictures} == {
        "pred.jpg",
        "hm_gt.jpg",
        "hm_pred.jpg",
    }
    assert all(cv2.imread(str(path)).std() > 10 for path in pictures)
    events = b"".join(path.read_bytes() for path in log.rglob("events*"))
    assert b"distributions" in events and b"predictions" in events


def test_report_simcc_results_equals_logged_ap(trained, small_set):
    line = json.loads((trained[1] / "metrics.jsonl").read_text().splitlines()[-1])
    results = next((trained[1] / "results").glob("keypoints_train2017_results*.json"))
    made = report.build_report(
        [results], small_set / "annotations/person_keypoints_train2017.json", None, 0, "coco"
    )
    assert made.figures[0]["coco"]["AP"] == pytest.approx(line["AP"], abs=1e-6)


def test_browse_simcc_draws_distributions(trained, tmp_path):
    paths = browse.run(trained[0], tmp_path, count=4)
    assert [path.name for path in paths] == ["joints.jpg", "distributions.jpg"]
    assert all(cv2.imread(str(path)).std() > 10 for path in paths)


def test_export_simcc_equals_the_estimator(trained, tmp_path, small_set):
    pytest.importorskip("onnxscript")
    cfg, run, _ = trained
    weights, picture = run / "final_state.pth", min((small_set / "images").rglob("*.jpg"))
    wanted = PoseEstimator(None, weights, device="cpu")(read_image(picture))
    assert np.isfinite(wanted.keypoints).all() and np.ptp(wanted.keypoints) > 10
    for parts in (ExportOptions(), ExportOptions(normalize=True, flip=True, decode=True)):
        out = tmp_path / f"{parts.decode}.onnx"
        found = export(cfg, weights, out, "onnx", parts)
        assert all(one.equal and one.representation == "distributions" for one in found)
        poses = PoseEstimator(out, device="cpu")(read_image(picture))
        np.testing.assert_allclose(poses.keypoints, wanted.keypoints, atol=1e-2)
        np.testing.assert_allclose(poses.scores, wanted.scores, rtol=1e-4)
