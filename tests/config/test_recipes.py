"""Test recipe settings: normalization, losses, optimizers, warm-up, EXIF, box clipping."""

import json

import cv2
import numpy as np
import pytest
import torch
from poise import config
from poise.codecs import build_loss
from poise.codecs.heatmap import HeatmapTargets
from poise.datasets import coco, load_split
from poise.engine import optim
from poise.engine.optim import build_optimizer
from poise.errors import ConfigError
from poise.io.image_folder import ImageFolder
from poise.models import forward
from support.paths import ROOT


def published(name, *overrides):
    return config.load(ROOT / f"experiments/coco/{name}.yaml", overrides)


def test_normalization_of_recipes_equals_published():
    """MSPN's mean and std are for BGR; HRNet's are for RGB."""
    pixels = torch.tensor([[[[10, 100, 200]]]], dtype=torch.uint8)
    for name, mean, std in (
        ("mspn/mspn_2stg_256x192", (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)),
        ("hrnet/w32_256x192_adam_lr1e-3", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        cfg = published(name)
        found = forward.normalize(
            pixels, torch.device("cpu"), mean=cfg.MODEL.MEAN, std=cfg.MODEL.STD
        )
        assert found[0, :, 0, 0].tolist() == pytest.approx(
            [(v / 255 - m) / s for v, m, s in zip((10, 100, 200), mean, std)], rel=1e-5
        )
        back = forward.denormalize(
            found, mean=cfg.MODEL.MEAN, std=cfg.MODEL.STD, rgb=cfg.DATASET.COLOR_RGB
        )[0, 0, 0].tolist()
        assert back == ([200, 100, 10] if cfg.DATASET.COLOR_RGB else [10, 100, 200])


def test_loss_factor_of_recipes_equals_published():
    """mmpose has no factor 0.5."""
    output, target = torch.rand(2, 17, 8, 6), torch.rand(2, 17, 8, 6)
    ones = torch.ones(2, 17, 1)
    targets = HeatmapTargets(heatmaps=target, weight=ones, visible_mask=ones)
    for name, factor in (
        ("moganet/moganet_s_256x192", 1.0),
        ("hrnet/w32_256x192_adam_lr1e-3", 0.5),
    ):
        assert float(build_loss(published(name))((output,), targets)) == pytest.approx(
            factor * float((output - target).square().mean()), rel=1e-6
        )
    two = build_loss(published("posenas/256x192_18l_48c"))((output, output), targets)
    # both outputs count
    assert float(two) == pytest.approx(float((output - target).square().mean()), rel=1e-6)


@pytest.mark.parametrize(
    "name, kind, decay",
    [
        ("mspn/mspn_2stg_256x192", torch.optim.Adam, 1e-5),
        ("moganet/moganet_s_256x192", torch.optim.Adam, 0),
        ("hrnet/w32_256x192_adam_lr1e-3", torch.optim.Adam, 0),
    ],
)
def test_optimizer_of_recipes_equals_published(name, kind, decay):
    optimizer = build_optimizer(published(name), torch.nn.Linear(2, 2))
    assert type(optimizer).__base__ is kind and optimizer.param_groups[0]["weight_decay"] == decay


def test_weight_decay_adam_l2_and_adamw_differ():
    """adam_l2 adds decay to the gradient, adamw to the weight; one step with a zero gradient shows
    it.
    """
    moved = {}
    for name in ("adam", "adam_l2", "adamw"):
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(layer.weight, 2.0)
        optimizer = build_optimizer(
            published(
                "moganet/moganet_s_256x192",
                "TRAIN.OPTIMIZER",
                name,
                "TRAIN.WD",
                0.1,
                "TRAIN.LR",
                0.01,
            ),
            layer,
        )
        layer.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        moved[name] = 2.0 - layer.weight.item()
    assert (
        moved["adam"] == 0
        and moved["adam_l2"] == pytest.approx(0.01, rel=1e-4)
        and moved["adamw"] == pytest.approx(0.01 * 0.1 * 2, rel=1e-3)
    )


def test_schedule_moganet_warm_up_equals_mmpose():
    """Warm-up factor of step i < 500: 1 - (1 - i / 500) (1 - 0.001); steps at 170 and 200."""
    plan = optim.Schedule.from_config(published("moganet/moganet_s_256x192"), 586, 256)
    for step in (0, 1, 250, 499):
        assert plan.lr_at(step) == pytest.approx(
            1e-3 * (1 - (1 - step / 500) * (1 - 0.001)), rel=1e-9
        )
    assert [
        plan.lr_at(step) for step in (500, 170 * 586 - 1, 170 * 586, 200 * 586, 210 * 586 - 1)
    ] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5])
    assert plan.total_steps == 210 * 586 and plan.epochs == 210


def test_schedule_other_batch_size_scales_rate():
    """An eighth of the batch gets an eighth of the rate; the number of epochs stays."""
    plan = optim.Schedule.from_config(
        published("moganet/moganet_s_256x192", "TRAIN.BASE_BATCH", 256), 4682, 32
    )
    assert plan.base_rate == pytest.approx(1e-3 / 8) and plan.total_steps == 983_220
    assert "983220 steps (210.0 epochs of 4682), learning rate 0.000125" in str(
        plan
    ) and "for 256 samples a step it would be 122902 steps at 0.001" in str(plan)


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["MODEL.KERNELS", [15, 11, 9]], "MODEL.KERNELS must be 5 sizes"),
        (["MODEL.KERNELS", [17, 15, 11, 9, 7, 5]], "MODEL.KERNELS must be 5 sizes"),
        (
            [
                "MODEL.KERNELS",
                [15, 11, 9, 7],
                "LOSS.COARSE_TO_FINE",
                False,
                "MODEL.TARGET_TYPE",
                "gaussian",
            ],
            "LOSS.TYPE must be",
        ),
        (["MODEL.KERNELS", [5, 7, 9, 11, 15]], "MODEL.KERNELS must be falling"),
        (["MODEL.KERNELS", [15, 11, 9, 7, 4]], "MODEL.KERNELS must be odd"),
        (
            ["LOSS.USE_DIFFERENT_JOINTS_WEIGHT", True],
            "LOSS.USE_DIFFERENT_JOINTS_WEIGHT must be False",
        ),
        (["TRAIN.ITERATIONS", -1], "TRAIN.ITERATIONS must be 0 or more, got -1"),
        (["TRAIN.BASE_BATCH", -1], "TRAIN.BASE_BATCH must be"),
        (["TEST.BLUR_KERNEL", 4], "TEST.BLUR_KERNEL must be"),
        (["DATASET.BOX_MARGIN", [1.25]], "DATASET.BOX_MARGIN must be"),
        (["MODEL.STD", [1, 0, 1]], "MODEL.STD must be"),
        (["DATASET.PROB_ROTATION", 1.5], "DATASET.PROB_ROTATION must be"),
        (["TEST.DECODE", "darc"], "TEST.DECODE must be one of '', 'quarter', 'dark', got 'darc'"),
        (["DATASET.BOX_CLIP", "no"], "DATASET.BOX_CLIP must be one of"),
    ],
)
def test_load_inconsistent_recipe_raises(overrides, named):
    with pytest.raises(ConfigError) as error:
        published("mspn/mspn_2stg_256x192", *overrides)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_load_four_kernels_without_coarse_to_fine_is_allowed():
    published(
        "mspn/mspn_2stg_256x192", "MODEL.KERNELS", [15, 11, 9, 7], "LOSS.COARSE_TO_FINE", False
    )


@pytest.fixture
def one_image(tmp_path):
    """A dataset with one image: 60 x 40 stored, 40 x 60 by EXIF, stored upper left red."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:10, :10] = (0, 0, 255)
    folder = tmp_path / "images/train2017"
    folder.mkdir(parents=True)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    # an APP1 segment with one entry: orientation 6, turn by 90 degrees clockwise
    tiff = (
        b"MM\x00*\x00\x00\x00\x08"
        + b"\x00\x01"
        + b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
        + b"\x00\x00\x00\x00"
    )
    segment = b"Exif\x00\x00" + tiff
    (folder / "a.jpg").write_bytes(
        data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    )
    person = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 100.0,
        "bbox": [-5, 10, 40, 40],
        "num_keypoints": 1,
        "keypoints": [10, 12, 2] * 17,
    }
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [person],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/person_keypoints_train2017.json").write_text(json.dumps(content))
    return tmp_path


def test_read_set_exif_rotates_images_if_set(one_image):
    for exif, shape, red in ((False, (40, 60, 3), (5, 5)), (True, (60, 40, 3), (5, 35))):
        cfg = published(
            "moganet/moganet_s_256x192", "DATASET.ROOT", str(one_image), "DATASET.EXIF", exif
        )
        _, images = load_split(cfg, train=True)
        picture = images.read("a.jpg")
        assert picture.shape == shape and picture[red][2] > 200 and picture[red][0] < 60
    # COCO's annotations are of the stored pixels
    assert ImageFolder(one_image / "images/train2017").read("a.jpg").shape == (40, 60, 3)


@pytest.mark.parametrize(
    "name, box",
    [
        # one pixel narrower than from the corner that was cut
        ("hrnet/w32_256x192_adam_lr1e-3", (0, 10, 39, 29)),
        ("moganet/moganet_s_256x192", (0, 10, 40, 29)),
        ("mspn/mspn_2stg_256x192", (-5, 10, 40, 40)),
    ],
)
def test_read_table_clips_boxes_as_published(one_image, name, box):
    cfg = published(name, "DATASET.ROOT", str(one_image))
    table = coco.read_table(cfg, "train2017", detections=False)
    assert table.box_wh[0].tolist() == [box[2], box[3]] and table.center[0].tolist() == [
        box[0] + box[2] / 2,
        box[1] + box[3] / 2,
    ]


def test_read_set_box_margins_differ_for_train_and_test(one_image):
    """MSPN's recipe has separate margins for training and testing."""
    cfg = published(
        "mspn/mspn_2stg_256x192",
        "DATASET.ROOT",
        str(one_image),
        "TEST.USE_GT_BBOX",
        True,
        "DATASET.TEST_SET",
        "train2017",
    )
    train, test = (load_split(cfg, train=train)[0] for train in (True, False))
    # 40 x 40 by 1.05, fitted to 3:4
    assert train.scale[0] == pytest.approx(np.array([42, 56]) / 200)
    # 43.6 x 45.4, fitted
    assert test.scale[0] == pytest.approx(np.array([43.6, 43.6 / 0.75]) / 200)
