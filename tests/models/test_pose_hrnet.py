"""Test HRNet: released files, other widths and invalid options."""

import pytest
import torch
from poise import config
from poise.errors import ConfigError
from poise.models import build_model
from support.paths import ROOT
from torch import nn

W32, W48 = (
    ROOT / "experiments/coco/hrnet" / name
    for name in ("w32_256x192_adam_lr1e-3.yaml", "w48_384x288_adam_lr1e-3.yaml")
)
FILES = sorted((ROOT / "experiments").glob("*/hrnet/*.yaml"))

# in the layout and with the values of HRNet's experiments/coco/hrnet/w48_384x288_adam_lr1e-3.yaml
PUBLISHED = """
AUTO_RESUME: true
CUDNN: {BENCHMARK: true, DETERMINISTIC: false, ENABLED: true}
DATA_DIR: ''
GPUS: (0,1,2,3)
OUTPUT_DIR: 'output'
LOG_DIR: 'log'
WORKERS: 24
PRINT_FREQ: 100
DATASET: {COLOR_RGB: true, DATASET: 'coco', DATA_FORMAT: jpg, FLIP: true,
  NUM_JOINTS_HALF_BODY: 8, PROB_HALF_BODY: 0.3, ROOT: 'data/coco/',
          ROT_FACTOR: 45, SCALE_FACTOR: 0.35, TEST_SET: 'val2017', TRAIN_SET: 'train2017'}
MODEL:
  INIT_WEIGHTS: true
  NAME: pose_hrnet
  NUM_JOINTS: 17
  PRETRAINED: 'models/pytorch/imagenet/hrnet_w48-8ef0771d.pth'
  TARGET_TYPE: gaussian
  IMAGE_SIZE: [288, 384]
  HEATMAP_SIZE: [72, 96]
  SIGMA: 3
  EXTRA:
    PRETRAINED_LAYERS: ['conv1', 'bn1', 'conv2', 'bn2', 'layer1', 'transition1', 'stage2',
      'transition2', 'stage3', 'transition3', 'stage4']
    FINAL_CONV_KERNEL: 1
    STAGE2: {NUM_MODULES: 1, NUM_BRANCHES: 2, BLOCK: BASIC, NUM_BLOCKS: [4, 4],
      NUM_CHANNELS: [48, 96], FUSE_METHOD: SUM}
    STAGE3: {NUM_MODULES: 4, NUM_BRANCHES: 3, BLOCK: BASIC, NUM_BLOCKS: [4, 4, 4],
      NUM_CHANNELS: [48, 96, 192], FUSE_METHOD: SUM}
    STAGE4: {NUM_MODULES: 3, NUM_BRANCHES: 4, BLOCK: BASIC, NUM_BLOCKS: [4, 4, 4, 4],
      NUM_CHANNELS: [48, 96, 192, 384], FUSE_METHOD: SUM}
LOSS: {USE_TARGET_WEIGHT: true}
TRAIN: {BATCH_SIZE_PER_GPU: 24, SHUFFLE: true, BEGIN_EPOCH: 0, END_EPOCH: 210, OPTIMIZER: adam,
  LR: 0.001, LR_FACTOR: 0.1, LR_STEP: [170, 200],
        WD: 0.0001, GAMMA1: 0.99, GAMMA2: 0.0, MOMENTUM: 0.9, NESTEROV: false}
TEST: {BATCH_SIZE_PER_GPU: 24,
  COCO_BBOX_FILE: 'data/coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json',
  BBOX_THRE: 1.0,
       IMAGE_THRE: 0.0, IN_VIS_THRE: 0.2, MODEL_FILE: '', NMS_THRE: 1.0, OKS_THRE: 0.9,
         USE_GT_BBOX: true, FLIP_TEST: true, POST_PROCESS: true,
       SHIFT_HEATMAP: true}
DEBUG: {DEBUG: true, SAVE_BATCH_IMAGES_GT: true, SAVE_BATCH_IMAGES_PRED: true,
  SAVE_HEATMAPS_GT: true, SAVE_HEATMAPS_PRED: true}
"""
NARROW = ["MODEL.EXTRA.STEM_CHANNELS", 8]
for key, branches in (("STAGE2", 2), ("STAGE3", 3), ("STAGE4", 4)):
    NARROW += [
        f"MODEL.EXTRA.{key}.NUM_CHANNELS",
        [4, 8, 8, 12][:branches],
        f"MODEL.EXTRA.{key}.NUM_BLOCKS",
        [1] * branches,
        f"MODEL.EXTRA.{key}.NUM_MODULES",
        1,
    ]


def configured(width=64, height=96, overrides=()):
    return config.load(
        W32,
        [
            "MODEL.IMAGE_SIZE",
            [width, height],
            "MODEL.HEATMAP_SIZE",
            [width // 4, height // 4],
            *overrides,
        ],
    )


def test_load_published_hrnet_file_equals_our_experiment(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED)
    theirs, ours = (config.load(p) for p in (path, W48))
    for cfg in (theirs, ours):
        cfg.defrost()
        del cfg["DEBUG"]  # theirs has every debug image on
        del cfg.TEST["NMS_THRE"]  # without effect
    # ours says nothing: the dataset file says data/coco
    assert theirs.DATASET.ROOT == "data/coco/" and ours.DATASET.ROOT == ""
    theirs.DATASET.ROOT = ""
    assert theirs == ours


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.parent.name + "/" + path.stem)
def test_experiments_hrnet_match_their_file_names(path):
    cfg = config.load(path)
    width, (height, across) = int(path.stem[1:3]), map(int, path.stem.split("_")[1].split("x"))
    assert (
        list(cfg.MODEL.IMAGE_SIZE) == [across, height]
        and (3 if height == 384 else 2) == cfg.MODEL.SIGMA
    )
    assert [cfg.MODEL.EXTRA[f"STAGE{stage}"].NUM_CHANNELS for stage in (2, 3, 4)] == [
        [width << i for i in range(stage)] for stage in (2, 3, 4)
    ]
    assert f"hrnet_w{width}-" in cfg.MODEL.PRETRAINED
    with torch.device("meta"):
        assert build_model(cfg).eval()(torch.empty(1, 3, height, across)).shape == (
            1,
            cfg.MODEL.NUM_JOINTS,
            height // 4,
            across // 4,
        )


def test_backward_narrow_network_reaches_every_weight():
    model = build_model(configured(overrides=NARROW))
    outputs = model(torch.randn(2, 3, 96, 64))
    assert isinstance(outputs, tuple) and len(outputs) == 1 and outputs[0].shape == (2, 17, 24, 16)
    outputs[0].square().mean().backward()
    # weights without a gradient stop distributed training
    assert all(p.grad is not None for p in model.parameters())


def test_build_model_other_blocks_and_widths_give_heatmaps():
    wider = [
        "MODEL.EXTRA.STAGE3.NUM_CHANNELS",
        [6, 8, 10],
        "MODEL.EXTRA.STAGE4.BLOCK",
        "BOTTLENECK",
        "MODEL.EXTRA.FINAL_CONV_KERNEL",
        3,
    ]
    model = build_model(configured(overrides=[*NARROW, *wider])).eval()
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, 17, 24, 16)
    assert model.transition2[0][0].weight.shape == (6, 4, 3, 3) and isinstance(
        model.transition2[1], nn.Identity
    )
    assert model.final_layer.weight.shape == (17, 16, 3, 3)


def test_build_model_other_branches_give_heatmaps():
    stage3 = [
        "MODEL.EXTRA.STAGE3.NUM_BRANCHES",
        4,
        "MODEL.EXTRA.STAGE3.NUM_BLOCKS",
        [1] * 4,
        "MODEL.EXTRA.STAGE3.NUM_CHANNELS",
        [4, 8, 8, 12],
    ]
    # two branches are new at once
    model = build_model(configured(overrides=[*NARROW, *stage3])).eval()
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, 17, 24, 16)
    stage4 = [
        "MODEL.EXTRA.STAGE4.NUM_BRANCHES",
        3,
        "MODEL.EXTRA.STAGE4.NUM_BLOCKS",
        [1] * 3,
        "MODEL.EXTRA.STAGE4.NUM_CHANNELS",
        [4, 8, 8],
    ]
    # multiples of 16 are enough then
    model = build_model(configured(width=48, height=80, overrides=[*NARROW, *stage4])).eval()
    assert model(torch.randn(1, 3, 80, 48)).shape == (1, 17, 20, 12)


def test_forward_channels_last_equals_contiguous():
    model, images = build_model(configured(overrides=NARROW)).eval(), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        plain = model(images)
        channels_last = model.to(memory_format=torch.channels_last)(
            images.to(memory_format=torch.channels_last)
        )
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain, channels_last, atol=1e-4 * float(plain.std()))


def test_init_weights_follow_the_reference():
    model = build_model(configured())
    assert (
        float(model.final_layer.weight.detach().std()) == pytest.approx(0.001, rel=0.1)
        and (model.final_layer.bias == 0).all()
    )
    weight = model.stage4[0].branches[3][0].conv1.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    torch.manual_seed(0)
    untouched = build_model(configured(overrides=[*NARROW, "MODEL.INIT_WEIGHTS", False]))
    assert (untouched.final_layer.bias != 0).any()


def test_pretrained_names_cover_the_backbone():
    model = build_model(configured(overrides=NARROW))
    assert [name for name in model.state_dict() if name.startswith(model.head_prefixes)] == [
        "final_layer.weight",
        "final_layer.bias",
    ]
    parts = {name.split(".")[0] for name in model.state_dict()}
    assert (
        parts - set(model.pretrained_layers) == {"final_layer"}
        and set(model.pretrained_layers) < parts
    )


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["MODEL.EXTRA.STAGE2.NUM_BRANCH", 2], "STAGE2 must be a group of .* got .*NUM_BRANCH"),
        (["MODEL.EXTRA.STAGE5.NUM_BRANCHES", 2], "STAGE5 is not a key of pose_hrnet"),
        (["MODEL.EXTRA.STAGE3.BLOCK", "BASIK"], "STAGE3.BLOCK must be BASIC or BOTTLENECK"),
        (["MODEL.EXTRA.STAGE3.BLOCK", [1]], "STAGE3.BLOCK must be BASIC or BOTTLENECK"),
        (["MODEL.EXTRA.STAGE3.FUSE_METHOD", "CAT"], "FUSE_METHOD must be SUM"),
        (["MODEL.EXTRA.STAGE3.NUM_MODULES", 0], "NUM_MODULES must be a whole number from 1"),
        (["MODEL.EXTRA.STAGE3.NUM_MODULES", "many"], "NUM_MODULES must be a whole number from 1"),
        (["MODEL.EXTRA.STAGE3.NUM_BRANCHES", 1], "NUM_BRANCHES must be a whole number from 2"),
        (["MODEL.EXTRA.STAGE3.NUM_BRANCHES", 2], "STAGE3.NUM_BLOCKS must hold 2 numbers"),
        (["MODEL.EXTRA.STAGE3.NUM_CHANNELS", [32, 64]], "STAGE3.NUM_CHANNELS must hold 3 numbers"),
        (
            ["MODEL.EXTRA.STAGE3.NUM_CHANNELS", [32, 64, 0]],
            "STAGE3.NUM_CHANNELS must hold 3 numbers above 0",
        ),
        (["MODEL.EXTRA.STAGE3.NUM_BLOCKS", [4, 4, 1000]], "NUM_BLOCKS must be at most 64"),
        (
            [
                "MODEL.EXTRA.STAGE4.NUM_BRANCHES",
                2,
                "MODEL.EXTRA.STAGE4.NUM_BLOCKS",
                [4, 4],
                "MODEL.EXTRA.STAGE4.NUM_CHANNELS",
                [32, 64],
            ],
            "must not fall",
        ),
        (["MODEL.EXTRA.FINAL_CONV_KERNEL", 2], "FINAL_CONV_KERNEL must be 1 or 3"),
        (["MODEL.EXTRA.PRETRAINED_LAYERS", "conv1"], "PRETRAINED_LAYERS must be a list"),
        (["MODEL.EXTRA.PRETRAINED_LAYERS", []], "PRETRAINED_LAYERS must be a list"),
        (
            ["MODEL.EXTRA.PRETRAINED_LAYERS", ["conv1", "stge2"]],
            "PRETRAINED_LAYERS: 'stge2' is not a part",
        ),
        (["MODEL.EXTRA.STEM_CHANNELS", 0], "STEM_CHANNELS must be a channel count"),
        (["MODEL.IMAGE_SIZE", [200, 256], "MODEL.HEATMAP_SIZE", [50, 64]], "multiples of 32"),
        (["MODEL.HEATMAP_SIZE", [96, 128]], "heatmaps of 1/4"),
    ],
)
def test_build_model_invalid_options_raise(overrides, part):
    with pytest.raises(ConfigError, match=part), torch.device("meta"):
        build_model(config.load(W32, overrides))


def test_build_model_without_stages_raises(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("DATASET: {DATASET: coco}\nMODEL: {NAME: pose_hrnet, NUM_JOINTS: 17}\n")
    with pytest.raises(ConfigError, match="STAGE2 must be a group of NUM_MODULES.*; it is missing"):
        build_model(config.load(path))
