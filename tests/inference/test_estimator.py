"""Test PoseEstimator: results equal tools/test.py; inputs, outputs and errors."""

import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import poise
import pytest
import torch
from PIL import Image
from poise import PoseEstimator, Poses, config
from poise.datasets import load_split
from poise.engine import evaluate
from poise.errors import ConfigError, DataError, PoiseError
from poise.models import build_model
from support.golden_inputs import filled_state
from support.paths import ROOT
from support.runs import forget_log_handlers
from support.small_networks import command_line, small

COCO_BOXES = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
MPII = "experiments/mpii/resnet/res50_256x256_d256x3_adam_lr1e-3.yaml"
REFINED = ["TEST.POST_PROCESS", True, "TEST.FLIP_TEST", True]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """(experiment file, overrides, weight file) of a narrow network, by family."""
    folder = tmp_path_factory.mktemp("weights")

    def of(family, *overrides):
        path, words = command_line(family, *overrides)
        file = folder / f"{family}.pth"
        if not file.is_file():
            torch.save(small(family).state_dict(), file)
        return str(ROOT / path), words, file

    return of


@pytest.fixture(scope="module")
def estimator(narrow):
    path, words, file = narrow("resnet")
    return PoseEstimator(path, file, device="cpu", batch_size=4, overrides=words)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(5).integers(0, 256, (90, 120, 3), np.uint8)


def predicted_by_tool(cfg_path, overrides, file, out):
    """What tools/test.py predicts: keypoints (N, J, 3) in the order of the table, the table, and
    the images' folder.
    """
    cfg = config.load(cfg_path, [*overrides, "TEST.MODEL_FILE", str(file), "TEST.PICTURES", 0])
    try:
        evaluate.run(cfg, cfg_path, ["test"], out=out)
    finally:
        forget_log_handlers()
    table, images = load_split(cfg, train=False)
    with open(out, "rb") as stream:
        batches = pickle.load(stream)
    return np.concatenate([batch["preds"] for batch in batches]), table, images.location


def assert_same(cfg_path, overrides, file, folder):
    """In the same batches: another number of crops gives other last bits, which UDP's decoder
    amplifies on the rough maps of random weights.
    """
    folder.mkdir(exist_ok=True)
    overrides = [
        *overrides,
        "OUTPUT_DIR",
        str(folder / "output"),
        "LOG_DIR",
        str(folder / "log"),
        "GPUS",
        "()",
        "WORKERS",
        0,
        "TEST.BATCH_SIZE_PER_GPU",
        4,
    ]
    wanted, table, images = predicted_by_tool(cfg_path, overrides, file, folder / "found.pkl")
    boxes = np.concatenate(
        [table.center - table.box_wh / 2, table.center + table.box_wh / 2], axis=1
    )
    persons = [
        np.flatnonzero(table.image_index == index) for index in range(len(table.image_names))
    ]
    estimator = PoseEstimator(cfg_path, file, device="cpu", batch_size=4, overrides=overrides)
    found = estimator(
        [images / table.image_names[index] for index in range(len(persons))],
        [boxes[own] for own in persons],
    )
    assert [len(poses) for poses in found] == [len(own) for own in persons] and len(table) > 10
    for poses, own in zip(found, persons):
        assert np.abs(poses.keypoints - wanted[own, :, :2]).max(initial=0) < 1e-3
        assert np.abs(poses.scores - wanted[own, :, 2]).max(initial=0) < 1e-5
        assert np.allclose(poses.boxes, boxes[own], atol=1e-3) and poses.skeleton is table.skeleton
    # joints lie in many places, so that equal is not the same as constant
    assert np.ptp(wanted[:, :, :2], axis=0).min() > 5


@pytest.mark.parametrize(
    "family, overrides",
    [
        ("resnet", [*REFINED, "TEST.SHIFT_HEATMAP", True, "TEST.BOX_MARGIN", [1.1, 1.4]]),
        ("res2net_v1b", ["TEST.FLIP_TEST", False, "TEST.POST_PROCESS", False]),
        ("hrnet", [*REFINED, "MODEL.TARGET_TYPE", "dark", "DATASET.COLOR_RGB", False]),
        ("hrnet", [*REFINED, "MODEL.TARGET_TYPE", "udp"]),
        ("mspn", [*REFINED]),
        ("posenas", [*REFINED, "CHANNELS_LAST", True]),
        ("moganet", [*REFINED, "TEST.FOLD_BN", False]),
    ],
    ids=["resnet", "res2net", "dark", "udp", "megvii", "posenas", "moganet"],
)
def test_estimator_every_family_equals_evaluation(family, overrides, narrow, small_set, tmp_path):
    cfg_path, words, file = narrow(family)
    own = [
        "DATASET.ROOT",
        str(small_set),
        "TEST.USE_GT_BBOX",
        False,
        "TEST.COCO_BBOX_FILE",
        str(small_set / COCO_BOXES),
        "TEST.IMAGE_THRE",
        0.0,
    ]
    assert_same(cfg_path, [*words, *overrides, *own], file, tmp_path)


def test_estimator_mpii_equals_evaluation(small_mpii_set, tmp_path):
    overrides = [
        "DATASET.ROOT",
        str(small_mpii_set),
        "MODEL.IMAGE_SIZE",
        [64, 64],
        "MODEL.HEATMAP_SIZE",
        [16, 16],
        "MODEL.PRETRAINED",
        "",
        "MODEL.EXTRA.NUM_DECONV_FILTERS",
        [4, 4, 4],
        "MODEL.EXTRA.NUM_CHANNELS",
        [4, 4, 4, 4],
    ]
    model = build_model(config.load(ROOT / MPII, overrides))
    torch.save(filled_state(model.state_dict(), 0), tmp_path / "mpii.pth")
    assert_same(str(ROOT / MPII), overrides, tmp_path / "mpii.pth", tmp_path / "run")


def test_estimator_image_or_list_gives_equal_poses(estimator, picture, tmp_path):
    boxes = [np.array([[10, 5, 60, 80]]), np.array([[0, 0, 120, 90], [30.5, 2, 70, 88.5]])]
    single = estimator(picture, boxes[1])
    assert (
        isinstance(single, Poses)
        and single.keypoints.shape == (2, 17, 2)
        and single.scores.shape == (2, 17)
        and single.boxes.shape == (2, 4)
    )
    assert (
        single.keypoints.dtype == single.scores.dtype == np.float32
        and single.person_scores.shape == (2,)
    )
    first, second = estimator([picture, picture], boxes)
    assert np.allclose(second.keypoints, single.keypoints, atol=1e-4) and len(first) == 1
    (whole,) = estimator([picture])
    assert np.allclose(
        whole.keypoints, second.keypoints[:1], atol=1e-4
    ) and whole.boxes.tolist() == [[0, 0, 120, 90]]
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), picture[:, :, ::-1])
    mixed = estimator([str(file), picture, file], [None, boxes[0], boxes[1].tolist()])
    for poses, wanted in zip(mixed, (whole, first, second)):
        assert np.allclose(poses.keypoints, wanted.keypoints, atol=1e-4)
    assert np.allclose(
        estimator(np.asfortranarray(picture), boxes[1]).keypoints, single.keypoints, atol=1e-4
    )
    assert (
        set(estimator.seconds) == {"read", "crop", "network", "decode"}
        and min(estimator.seconds.values()) > 0
    )


def test_estimator_batches_crops_of_all_images(narrow, picture, monkeypatch):
    path, words, file = narrow("resnet")
    estimator = PoseEstimator(path, file, device="cpu", batch_size=4, overrides=words)
    sizes, kind = [], type(estimator._network)
    whole = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, crops: sizes.append(len(crops)) or whole(self, crops)
    )
    estimator([picture] * 4, [np.tile([[1.0, 2, 40, 50]], (count, 1)) for count in (3, 0, 5, 1)])
    assert sizes == [4, 4, 1]


def test_estimator_empty_input_returns_empty(estimator, picture):
    assert estimator([]) == []
    for none in ([], np.zeros((0, 4)), ()):
        poses = estimator(picture, none)
        assert (
            len(poses) == 0
            and poses.keypoints.shape == (0, 17, 2)
            and poses.scores.shape == (0, 17)
            and poses.boxes.shape == (0, 4)
        )
        assert (
            poses.person_scores.shape == (0,)
            and poses.to_coco() == []
            and np.array_equal(poses.draw(picture), picture)
        )


def test_estimator_box_outside_image_is_padded_black(estimator, picture):
    """Partly outside equals an image with a black border; outside equals a black image."""
    box = np.array([[-30.0, 40, 50, 130]])
    rim = np.pad(picture, ((50, 100), (100, 100), (0, 0)))
    partly = estimator(picture, box)
    assert np.allclose(
        partly.keypoints, estimator(rim, box + [100, 50, 100, 50]).keypoints - [100, 50], atol=1e-2
    )
    outside = estimator(picture, [[500, 500, 560, 580]])
    assert np.allclose(
        outside.scores, estimator(np.zeros_like(picture), [[20, 5, 80, 85]]).scores, atol=1e-6
    )
    # as far as files of boxes may reach
    far = estimator(picture, [[-9e6, -9e6, 9e6, 9e6], [9e6, 5, 9.9e6, 80]])
    assert np.isfinite(far.keypoints).all() and np.isfinite(far.scores).all()


def test_poses_to_coco_is_json(estimator, picture):
    import json

    poses = estimator(picture, [[10, 5, 60, 80], [0, 0, 120, 90]])
    results = json.loads(json.dumps(poses.to_coco(image_id=42)))
    assert [result["image_id"] for result in results] == [42, 42] and results[0]["category_id"] == 1
    assert np.allclose(
        np.reshape(results[1]["keypoints"], (17, 3)),
        np.column_stack([poses.keypoints[1], poses.scores[1]]),
    )
    assert results[1]["score"] == pytest.approx(float(poses.person_scores[1]))
    threshold = estimator.cfg.TEST.IN_VIS_THRE
    shown = poses.scores[0][poses.scores[0] > threshold]
    assert poses.person_scores[0] == pytest.approx(float(shown.mean()) if len(shown) else 0)


def test_poses_draw_shows_visible_keypoints(picture, tmp_path):
    keypoints = np.array([[[20, 20]] * 5 + [[30, 20], [60, 20]] + [[20, 20]] * 10], np.float32)
    scores = np.zeros((1, 17), np.float32)
    scores[0, 5:7] = 0.9
    poses = Poses(
        keypoints,
        scores,
        np.zeros((1, 4), np.float32),
        np.ones(1, np.float32),
        poise.config.dataset_yaml.COCO,
    )
    before = picture.copy()
    drawn = poses.draw(picture)
    assert drawn is not picture and np.array_equal(picture, before) and drawn.shape == picture.shape
    rows, columns = np.nonzero((drawn != picture).any(axis=2))
    assert {rows.min() >= 14, rows.max() <= 26, columns.min() >= 24, columns.max() <= 66} == {True}
    # left orange, right blue, as RGB
    assert tuple(drawn[20, 30]) == (255, 165, 0) and tuple(drawn[20, 60]) == (30, 120, 255)
    assert np.array_equal(poses.draw(picture, least_score=0.95), picture)
    cv2.imwrite(str(tmp_path / "a.png"), picture[:, :, ::-1])
    assert np.array_equal(poses.draw(tmp_path / "a.png"), drawn)
    with pytest.raises(
        DataError, match=r"image: an RGB array \(H, W, 3\) of uint8 is needed, got \(90, 120\)"
    ):
        poses.draw(picture[:, :, 0])
    assert poses == poses and poses != Poses(
        keypoints,
        scores,
        np.zeros((1, 4), np.float32),
        np.ones(1, np.float32),
        poise.config.dataset_yaml.COCO,
    )


@pytest.mark.parametrize(
    "boxes, message",
    [
        ([[0, 0, 10, 10], [np.nan, 0, 5, 5]], r"box 1 of image 0 \(nan, 0, 5, 5\) is not finite"),
        ([[0, 0, np.inf, 5]], "box 0 .*not finite"),
        ([[5, 5, 5, 9]], "box 0 of image 0 .* has no area; left < right"),
        ([[0, 9, 5, 5]], "has no area"),
        ([[1e30, 0, 2e30, 9]], "too far away"),
        ([[1e6, 1e6, 1e6 + 1e-4, 1e6 + 1e-4]], "too small"),
        ([1, 2, 3, 4], r"an array \(N, 4\)"),
        ([[1, 2, 3]], r"an array \(N, 4\)"),
        ([["a", 1, 2, 3]], "four numbers"),
        ("abc", "four numbers"),
        (5, r"an array \(N, 4\)"),
        ([[1, 2, None, 4]], "not finite"),
        (torch.tensor([[1.0, 2, 3, 4]], requires_grad=True), "four numbers"),
        ([[0, 0, 1e-4, 1e-4]], "too small"),
    ],
)
def test_estimator_invalid_boxes_raise(estimator, picture, boxes, message):
    with pytest.raises(DataError, match=message) as error:
        estimator(picture, boxes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4), np.uint8), r"image 0: an RGB array \(H, W, 3\) of uint8"),
        (np.zeros((4, 4, 4), np.uint8), "RGB array"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((0, 4, 3), np.uint8), "RGB array"),
        ("no/such.jpg", "no/such.jpg: cannot read the image"),
        ([None], "image 0: an RGB array .* or a path is needed, it is a NoneType"),
        (None, "it is a NoneType"),
        (3, "it is a int"),
        (torch.zeros(2, 4, 4, 3), "image 0: .* it is a Tensor"),
        (Image.new("RGB", (4, 4)), "it is a Image"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got \(2, 4, 4, 3\)"),
    ],
)
def test_estimator_invalid_image_raises(estimator, image, message):
    with pytest.raises(DataError, match=message) as error:
        estimator(image)
    assert "\n" not in str(error.value)


def test_estimator_read_only_or_strided_image_is_accepted(estimator, picture):
    wanted = estimator(picture)
    fixed = picture.copy()
    fixed.setflags(write=False)
    sparse = np.zeros((180, 240, 3), np.uint8)[::2, ::2]
    sparse[:] = picture
    for image in (
        fixed,
        sparse,
        picture[:, :, ::-1].copy()[:, :, ::-1],
        picture[::-1].copy()[::-1],
    ):
        found = estimator(image)
        assert np.array_equal(found.keypoints, wanted.keypoints) and np.array_equal(
            found.scores, wanted.scores
        )
        assert np.array_equal(found.draw(image), wanted.draw(picture)) and np.array_equal(
            image, picture
        )


def test_estimator_image_over_opencv_limit_raises(estimator):
    """OpenCV 5 takes it."""
    long = np.zeros((4, 40_000, 3), np.uint8)
    long[:, -50:] = 200
    if int(cv2.__version__.split(".")[0]) >= 5:
        end = estimator(long, [[39_950, 0, 40_000, 4]])
        assert np.allclose(
            end.keypoints - [39_000, 0],
            estimator(long[:, 39_000:], [[950, 0, 1000, 4]]).keypoints,
            atol=0.01,
        )
    else:
        with pytest.raises(
            DataError,
            match=(
                "image 0: OpenCV 4.* cannot cut persons out of an image of 40000 x 4 pixels; make"
                " it smaller, or install OpenCV 5"
            ),
        ):
            estimator(long)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_estimator_nan_weights_raise(narrow, picture, tmp_path):
    path, words, file = narrow("resnet")
    state = torch.load(file, weights_only=True)
    for value in (float("nan"), float("inf")):
        state["final_layer.bias"][3] = value
        torch.save(state, tmp_path / "bad.pth")
        for half, message in (
            (False, "its weights do not fit$"),
            (True, "do not fit, or the range of AMP bf16 is too small$"),
        ):
            with pytest.raises(
                DataError, match=f"heatmaps of the network have NaN or infinite values; .*{message}"
            ):
                PoseEstimator(path, tmp_path / "bad.pth", device="cpu", half=half, overrides=words)(
                    picture
                )


def test_estimator_invalid_image_file_raises(estimator, tmp_path):
    files = {
        "empty.jpg": b"",
        "text.jpg": b"not a picture",
        "cut.png": cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()[:60],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name) as error:
            estimator(tmp_path / name)
        assert "\n" not in str(error.value)
    cv2.imwrite(str(tmp_path / "one.png"), np.full((1, 1, 3), 200, np.uint8))
    cv2.imwrite(str(tmp_path / "gray.jpg"), np.full((30, 20), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((30, 20, 3), 9000, np.uint16))
    for name in ("one.png", "gray.jpg", "deep.png"):
        assert len(estimator(tmp_path / name)) == 1


def test_estimator_invalid_arguments_raise(narrow, estimator, picture):
    path, words, file = narrow("resnet")
    for more, message in (
        ({"batch_size": 0}, "batch_size: invalid 0; expected an integer"),
        ({"batch_size": "8"}, "batch_size: invalid '8'; expected an integer of 1 or more"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"overrides": [*words, "TEST.NOTHING", 1]}, "unknown key TEST.NOTHING"),
    ):
        with pytest.raises(ConfigError, match=message):
            PoseEstimator(path, file, **{"overrides": words, **more})
    with pytest.raises(ConfigError, match="give its YAML file"):
        PoseEstimator(None, file)
    with pytest.raises(DataError, match="no such weight file"):
        PoseEstimator(path, "missing.pth", overrides=words)
    with pytest.raises(PoiseError, match="cannot read the experiment file"):
        PoseEstimator("missing.yaml", file)
    for sets in ([None], 5, iter([None])):
        with pytest.raises(DataError, match="2 images and 1 sets of boxes"):
            estimator([picture, picture], sets)


def test_estimator_allocates_for_given_persons_only(narrow, picture):
    path, words, file = narrow("resnet")
    estimator = PoseEstimator(path, file, device="cpu", overrides=words)
    estimator.batch_size = 10**12  # as on a GPU, where it is not lowered
    assert len(estimator(picture, [[1, 2, 40, 50]] * 6)) == 6 and len(estimator(picture, [])) == 0


def test_estimator_compile_without_compiler_raises(narrow, monkeypatch):
    path, words, file = narrow("resnet")

    def no_compiler(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(
        ConfigError, match=r"COMPILE True: torch.compile does not work here \(no compiler\)"
    ):
        PoseEstimator(path, file, device="cpu", overrides=[*words, "COMPILE", True])


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_estimator_malicious_weights_raise(narrow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pth")
    path, words, _ = narrow("resnet")
    with pytest.raises(DataError, match="could run untrusted code"):
        PoseEstimator(path, "evil.pth", overrides=words)
    assert not Path("evil").exists()


def test_estimator_flip_test_half_and_config_arguments(narrow, picture):
    """flip_test, half and a configuration instead of a file."""
    path, words, file = narrow("hrnet", "TEST.FLIP_TEST", True)
    cfg = config.load(path, words)
    plain, flipped = (
        PoseEstimator(cfg, file, device="cpu", flip_test=flip) for flip in (False, None)
    )
    assert not plain.cfg.TEST.FLIP_TEST and flipped.cfg.TEST.FLIP_TEST and cfg.TEST.FLIP_TEST
    assert not np.allclose(plain(picture).scores, flipped(picture).scores)
    half = PoseEstimator(path, file, device="cpu", half=True, flip_test=False, overrides=words)
    assert half.cfg.AMP == "bf16" and plain.cfg.AMP == ""
    scores = half(picture).scores
    assert not np.array_equal(scores, plain(picture).scores) and np.allclose(
        scores, plain(picture).scores, rtol=0.1, atol=0.1 * np.abs(scores).max()
    )
    assert (
        PoseEstimator(
            cfg, file, device="cpu", overrides=["TEST.IN_VIS_THRE", 0.5]
        ).cfg.TEST.IN_VIS_THRE
        == 0.5
        != cfg.TEST.IN_VIS_THRE
    )


def test_import_poise_imports_no_heavy_package():
    import subprocess

    code = (
        "import sys, poise; assert 'PoseEstimator' in poise.__all__; print([name for name in"
        " ('torch', 'cv2', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "lib"
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = poise.nothing
