"""Test experiment files: ours, those of HRNet, SimpleBaseline, Res2Net-Pose, invalid ones."""

import re

import pytest
import yaml
from poise import config
from poise.config.defaults import default_config
from poise.errors import ConfigError
from support.paths import ROOT
from yacs.config import CfgNode

EXPERIMENTS = sorted(
    path
    for path in (ROOT / "experiments").rglob("*.yaml")
    if not {"_base_", "datasets"} & set(path.parts)
)

# in the layout and with the values of HRNet's experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml
HRNET = """
AUTO_RESUME: true
CUDNN: {BENCHMARK: true, DETERMINISTIC: false, ENABLED: true}
DATA_DIR: ''
GPUS: (0,1,2,3)
OUTPUT_DIR: 'output'
LOG_DIR: 'log'
WORKERS: 24
PRINT_FREQ: 100
DATASET:
  COLOR_RGB: true
  DATASET: 'coco'
  DATA_FORMAT: jpg
  FLIP: true
  NUM_JOINTS_HALF_BODY: 8
  PROB_HALF_BODY: 0.3
  ROOT: 'data/coco/'
  ROT_FACTOR: 45
  SCALE_FACTOR: 0.35
  TEST_SET: 'val2017'
  TRAIN_SET: 'train2017'
MODEL:
  INIT_WEIGHTS: true
  NAME: pose_hrnet
  NUM_JOINTS: 17
  PRETRAINED: 'models/pytorch/imagenet/hrnet_w32-36af842e.pth'
  TARGET_TYPE: gaussian
  IMAGE_SIZE:
  - 192
  - 256
  HEATMAP_SIZE:
  - 48
  - 64
  SIGMA: 2
  EXTRA:
    PRETRAINED_LAYERS: ['conv1', 'bn1', 'layer1', 'transition1', 'stage2', '*']
    FINAL_CONV_KERNEL: 1
    STAGE2: {NUM_MODULES: 1, NUM_BRANCHES: 2, BLOCK: BASIC, NUM_BLOCKS: [4, 4],
      NUM_CHANNELS: [32, 64], FUSE_METHOD: SUM}
    STAGE3: {NUM_MODULES: 4, NUM_BRANCHES: 3, BLOCK: BASIC, NUM_BLOCKS: [4, 4, 4],
      NUM_CHANNELS: [32, 64, 128], FUSE_METHOD: SUM}
LOSS:
  USE_TARGET_WEIGHT: true
TRAIN:
  BATCH_SIZE_PER_GPU: 32
  SHUFFLE: true
  BEGIN_EPOCH: 0
  END_EPOCH: 210
  OPTIMIZER: adam
  LR: 0.001
  LR_FACTOR: 0.1
  LR_STEP:
  - 170
  - 200
  WD: 0.0001
  GAMMA1: 0.99
  GAMMA2: 0.0
  MOMENTUM: 0.9
  NESTEROV: false
TEST:
  BATCH_SIZE_PER_GPU: 32
  COCO_BBOX_FILE: 'data/coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json'
  BBOX_THRE: 1.0
  IMAGE_THRE: 0.0
  IN_VIS_THRE: 0.2
  MODEL_FILE: ''
  NMS_THRE: 1.0
  OKS_THRE: 0.9
  USE_GT_BBOX: true
  FLIP_TEST: true
  POST_PROCESS: true
  SHIFT_HEATMAP: true
DEBUG: {DEBUG: true, SAVE_BATCH_IMAGES_GT: true, SAVE_BATCH_IMAGES_PRED: true,
  SAVE_HEATMAPS_GT: true, SAVE_HEATMAPS_PRED: true}
"""

# in the layout and with the values of SimpleBaseline's
# experiments/coco/resnet50/256x192_d256x3_adam_lr1e-3.yaml
SIMPLE_BASELINE = """
GPUS: '0'
DATA_DIR: ''
OUTPUT_DIR: 'output'
LOG_DIR: 'log'
WORKERS: 4
PRINT_FREQ: 100
DATASET: {DATASET: 'coco', ROOT: 'data/coco/', TEST_SET: 'val2017', TRAIN_SET: 'train2017',
  FLIP: true, ROT_FACTOR: 40, SCALE_FACTOR: 0.3}
MODEL:
  NAME: 'pose_resnet'
  PRETRAINED: 'models/pytorch/imagenet/resnet50-19c8e357.pth'
  IMAGE_SIZE:
  - 192
  - 256
  NUM_JOINTS: 17
  EXTRA:
    TARGET_TYPE: 'gaussian'
    HEATMAP_SIZE:
    - 48
    - 64
    SIGMA: 3
    FINAL_CONV_KERNEL: 1
    DECONV_WITH_BIAS: false
    NUM_DECONV_LAYERS: 3
    NUM_DECONV_FILTERS:
    - 256
    - 256
    - 256
    NUM_DECONV_KERNELS:
    - 4
    - 4
    - 4
    NUM_LAYERS: 50
LOSS: {USE_TARGET_WEIGHT: true}
TRAIN:
  BATCH_SIZE: 24
  SHUFFLE: true
  BEGIN_EPOCH: 0
  END_EPOCH: 140
  RESUME: false
  OPTIMIZER: 'adam'
  LR: 0.001
  LR_FACTOR: 0.1
  LR_STEP:
  - 90
  - 120
  WD: 0.0001
  GAMMA1: 0.99
  GAMMA2: 0.0
  MOMENTUM: 0.9
  NESTEROV: false
TEST:
  BATCH_SIZE: 16
  COCO_BBOX_FILE: 'data/coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json'
  BBOX_THRE: 1.0
  FLIP_TEST: false
  IN_VIS_THRE: 0.2
  MODEL_FILE: ''
  OKS_THRE: 0.9
  USE_GT_BBOX: true
DEBUG: {DEBUG: true, SAVE_BATCH_IMAGES_GT: true}
"""

# the keys in which Res2Net-Pose's files differ from HRNet's pose_resnet files
RES2NET = """
AUTO_RESUME: true
GPUS: (0,1,2,3)
DATASET: {COLOR_RGB: false, DATASET: 'coco', ROOT: 'data/coco/', TEST_SET: 'val2017',
  TRAIN_SET: 'train2017', ROT_FACTOR: 40, SCALE_FACTOR: 0.3}
MODEL:
  NAME: 'pose_res2net'
  PRETRAINED: 'models/pytorch/imagenet/res2net50_26w_4s-06e79181.pth'
  IMAGE_SIZE: [192, 256]
  HEATMAP_SIZE: [48, 64]
  SIGMA: 2
  NUM_JOINTS: 17
  TARGET_TYPE: 'gaussian'
  SCALE: 8
  BASEWIDTH: 14
  EXTRA: {FINAL_CONV_KERNEL: 1, DECONV_WITH_BIAS: false, NUM_DECONV_LAYERS: 3,
    NUM_DECONV_FILTERS: [256, 256, 256],
          NUM_DECONV_KERNELS: [4, 4, 4], NUM_LAYERS: 50}
TRAIN: {BATCH_SIZE_PER_GPU: 32, LR_STEP: [90, 120], END_EPOCH: 140}
TEST: {BATCH_SIZE_PER_GPU: 32, USE_GT_BBOX: true, FLIP_TEST: true, POST_PROCESS: true,
  SHIFT_HEATMAP: true, OKS_THRE: 0.9, IN_VIS_THRE: 0.2}
"""

# the least that is checked: MPII, which is the default data set, has 16 joints
MINIMAL = "MODEL: {NUM_JOINTS: 16}\n"


@pytest.fixture
def written(tmp_path):
    """Return a function that writes an experiment file and returns its path."""

    def write(text, name="experiment.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path, overrides=()):
    """Return the one-line ConfigError of a file, which names its source."""
    with pytest.raises(ConfigError) as error:
        config.load(path, overrides)
    text = str(error.value)
    assert path.name in text or text.startswith("command line:")
    assert len(text) < 1000
    return text


@pytest.mark.parametrize(
    "path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT / "experiments"))
)
def test_load_every_experiment_succeeds(path):
    cfg = config.load(path)
    assert cfg.is_frozen()
    assert all(
        image % heatmap == 0 for image, heatmap in zip(cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE)
    )
    # the name of a published experiment says the input size, height x width; its heatmaps are a
    # quarter of that
    size = re.search(r"(\d+)x(\d+)_d256", path.stem)
    if size:
        assert [int(size.group(2)), int(size.group(1))] == cfg.MODEL.IMAGE_SIZE
        assert [side // 4 for side in cfg.MODEL.IMAGE_SIZE] == cfg.MODEL.HEATMAP_SIZE


def test_experiments_are_at_least_15():
    assert len(EXPERIMENTS) >= 15


def test_load_hrnet_file_keeps_its_values(written):
    cfg = config.load(written(HRNET))
    assert cfg.GPUS == (0, 1, 2, 3) and cfg.WORKERS == 24 and cfg.AUTO_RESUME is True
    assert (
        cfg.MODEL.NAME == "pose_hrnet"
        and cfg.MODEL.IMAGE_SIZE == [192, 256]
        and cfg.MODEL.HEATMAP_SIZE == [48, 64]
    )
    assert cfg.MODEL.SIGMA == 2.0 and isinstance(cfg.MODEL.SIGMA, float)
    assert (
        cfg.MODEL.EXTRA.STAGE2.NUM_CHANNELS == [32, 64] and cfg.MODEL.EXTRA.STAGE2.BLOCK == "BASIC"
    )
    assert cfg.MODEL.EXTRA.PRETRAINED_LAYERS[-1] == "*"
    assert (cfg.DATASET.PROB_HALF_BODY, cfg.DATASET.ROT_FACTOR, cfg.DATASET.SCALE_FACTOR) == (
        0.3,
        45.0,
        0.35,
    )
    assert cfg.DATASET.COLOR_RGB is True
    assert cfg.TRAIN.LR_STEP == [170, 200] and cfg.TRAIN.END_EPOCH == 210
    assert (cfg.TEST.OKS_THRE, cfg.TEST.IN_VIS_THRE, cfg.TEST.IMAGE_THRE) == (0.9, 0.2, 0.0)
    assert cfg.DEBUG.SAVE_HEATMAPS_PRED is True


def test_load_hrnet_file_missing_keys_take_hrnet_defaults(written):
    silent = written(
        HRNET.replace("  POST_PROCESS: true\n  SHIFT_HEATMAP: true\n", "").replace(
            "  IMAGE_THRE: 0.0\n", ""
        )
    )
    cfg = config.load(silent)
    assert (cfg.TEST.POST_PROCESS, cfg.TEST.SHIFT_HEATMAP, cfg.TEST.IMAGE_THRE) == (
        False,
        False,
        0.1,
    )


def test_load_negative_prob_half_body_is_allowed(written):
    assert (
        config.load(written(MINIMAL + "DATASET: {PROB_HALF_BODY: -1.0}\n")).DATASET.PROB_HALF_BODY
        == -1.0
    )


def test_load_simple_baseline_file_translates_keys(written):
    cfg = config.load(written(SIMPLE_BASELINE))
    assert cfg.GPUS == (0,)
    assert (cfg.TRAIN.BATCH_SIZE_PER_GPU, cfg.TEST.BATCH_SIZE_PER_GPU) == (24, 16)
    assert (
        cfg.MODEL.HEATMAP_SIZE == [48, 64]
        and cfg.MODEL.SIGMA == 3.0
        and cfg.MODEL.TARGET_TYPE == "gaussian"
    )
    assert not {"HEATMAP_SIZE", "SIGMA", "TARGET_TYPE"} & set(cfg.MODEL.EXTRA)
    assert (
        cfg.MODEL.EXTRA.NUM_DECONV_FILTERS == [256, 256, 256] and cfg.MODEL.EXTRA.NUM_LAYERS == 50
    )
    # its files do not name these; its defaults differ from HRNet's
    assert cfg.TEST.POST_PROCESS is True and cfg.TEST.SHIFT_HEATMAP is True
    assert (cfg.TEST.IMAGE_THRE, cfg.TEST.NMS_THRE) == (0.0, 1.0)
    assert cfg.DATASET.COLOR_RGB is False and cfg.DATASET.PROB_HALF_BODY == 0.0


def test_load_simple_baseline_file_with_post_process_keeps_it(written):
    cfg = config.load(
        written(
            SIMPLE_BASELINE.replace(
                "  FLIP_TEST: false\n",
                "  FLIP_TEST: true\n  POST_PROCESS: false\n  IMAGE_THRE: 0.2\n",
            )
        )
    )
    assert (
        cfg.TEST.FLIP_TEST,
        cfg.TEST.POST_PROCESS,
        cfg.TEST.IMAGE_THRE,
        cfg.TEST.SHIFT_HEATMAP,
    ) == (True, False, 0.2, True)


def test_load_simple_baseline_file_without_joints_is_mpii(written):
    cfg = config.load(
        written(
            "GPUS: '0,1'\nMODEL: {EXTRA: {HEATMAP_SIZE: [64, 64], SIGMA: 2}}\nTRAIN: {BATCH_SIZE:"
            " 8}\n"
        )
    )
    assert cfg.MODEL.NUM_JOINTS == 16 and cfg.GPUS == (0, 1) and cfg.TEST.BATCH_SIZE_PER_GPU == 32


def test_load_simple_baseline_file_empty_groups_take_defaults(written):
    cfg = config.load(written("MODEL:\nTEST:\nTRAIN: {BATCH_SIZE: 8}\n"))
    assert (cfg.TRAIN.BATCH_SIZE_PER_GPU, cfg.TEST.POST_PROCESS, cfg.MODEL.NUM_JOINTS) == (
        8,
        True,
        16,
    )
    assert "MODEL is a group of keys, got 3" in refusal(
        written("MODEL: 3\nTRAIN: {BATCH_SIZE: 8}\n")
    )


def test_load_res2net_file_keeps_its_values(written):
    cfg = config.load(written(RES2NET))
    assert (cfg.MODEL.SCALE, cfg.MODEL.BASEWIDTH) == (8, 14)
    assert cfg.MODEL.EXTRA.NUM_LAYERS == 50 and cfg.TRAIN.LR_STEP == [90, 120]
    assert (
        config.load(written(RES2NET.replace("  SCALE: 8\n  BASEWIDTH: 14\n", ""))).MODEL.BASEWIDTH
        == 26
    )


@pytest.mark.parametrize(
    "text",
    [HRNET, SIMPLE_BASELINE, RES2NET, MINIMAL],
    ids=["hrnet", "simple_baseline", "res2net", "minimal"],
)
def test_load_dumped_config_is_equal(written, text):
    """The config.yaml of a run folder is an experiment file."""
    cfg = config.load(
        written(text),
        [
            "TRAIN.LR",
            "3e-5",
            "TEST.MODEL_FILE",
            "a b: 'c'.pth",
            "MODEL.SIGMA",
            "1.5",
            "SEED",
            2**63 - 1,
        ],
    )
    again = config.load(written(cfg.dump(), "config.yaml"))
    assert again == cfg
    assert again.TEST.MODEL_FILE == "a b: 'c'.pth" and again.TRAIN.LR == 3e-5


def test_load_result_is_frozen(written):
    cfg = config.load(written(MINIMAL))
    with pytest.raises(AttributeError):
        cfg.TRAIN.LR = 1.0
    with pytest.raises(AttributeError):
        cfg.MODEL.EXTRA.NUM_LAYERS = 18
    assert config.load(written(MINIMAL)) == cfg


def test_default_config_returns_a_new_copy():
    default_config().TRAIN.LR_STEP.append(7)
    assert default_config().TRAIN.LR_STEP == [90, 110]


# _BASE_ -------------------------------------------------------------------------------------------


def test_load_base_is_overridden_key_by_key(written):
    written(
        "MODEL: {NUM_JOINTS: 16, SIGMA: 3, EXTRA: {NUM_LAYERS: 101, FINAL_CONV_KERNEL: 1}}\nTRAIN:"
        " {LR_STEP: [1, 2]}\n",
        "bases/base.yaml",
    )
    cfg = config.load(
        written(
            "_BASE_: bases/base.yaml\nMODEL: {EXTRA: {NUM_LAYERS: 50}}\nTRAIN: {LR_STEP: [5]}\n"
        )
    )
    assert cfg.MODEL.SIGMA == 3 and cfg.TRAIN.LR_STEP == [5]
    assert dict(cfg.MODEL.EXTRA) == {"NUM_LAYERS": 50, "FINAL_CONV_KERNEL": 1}
    assert "_BASE_" not in cfg


def test_load_base_list_applies_in_order(written):
    written("MODEL: {NUM_JOINTS: 16}\nWORKERS: 1\nPRINT_FREQ: 1\nSEED: 1\n", "one.yaml")
    written("WORKERS: 2\nPRINT_FREQ: 2\n", "two.yaml")
    cfg = config.load(written("_BASE_: [one.yaml, two.yaml]\nPRINT_FREQ: 3\n"))
    assert (cfg.SEED, cfg.WORKERS, cfg.PRINT_FREQ) == (1, 2, 3)


def test_load_nested_base_is_relative_to_its_file(written):
    written("MODEL: {NUM_JOINTS: 16}\nWORKERS: 11\n", "a/b/deepest.yaml")
    written("_BASE_: b/deepest.yaml\nSEED: 12\n", "a/deeper.yaml")
    cfg = config.load(written("_BASE_: a/deeper.yaml\n"))
    assert (cfg.WORKERS, cfg.SEED) == (11, 12)


def test_load_base_used_twice_is_allowed(written):
    """Only circles are refused, not two paths to the same file."""
    written("MODEL: {NUM_JOINTS: 16}\n", "root.yaml")
    written("_BASE_: root.yaml\nSEED: 4\n", "left.yaml")
    written("_BASE_: root.yaml\nWORKERS: 5\n", "right.yaml")
    cfg = config.load(written("_BASE_: [left.yaml, right.yaml]\n"))
    assert (cfg.SEED, cfg.WORKERS) == (4, 5)


def test_load_circular_base_raises(written):
    written("_BASE_: experiment.yaml\n", "other.yaml")
    text = refusal(written("_BASE_: other.yaml\n"))
    assert "_BASE_ leads back to itself (experiment.yaml -> other.yaml -> experiment.yaml)" in text
    assert "leads back to itself" in refusal(written("_BASE_: self.yaml\n", "self.yaml"))


def test_load_base_chain_over_16_raises(written):
    for i in range(20):
        written(f"_BASE_: chain{i + 1}.yaml\n", f"chain{i}.yaml")
    with pytest.raises(ConfigError, match="more than 16 files deep"):
        config.load(written("_BASE_: chain0.yaml\n"))


def test_load_missing_base_raises(written):
    path = written("_BASE_: nowhere.yaml\n")
    with pytest.raises(
        ConfigError, match=r"nowhere\.yaml: cannot read the experiment file \(No such file"
    ):
        config.load(path)


@pytest.mark.parametrize("value", ["3", "{a: 1}", "[1, 2]", "[[a.yaml]]"])
def test_load_base_invalid_type_raises(written, value):
    assert "_BASE_ must be a path or a list of paths" in refusal(written(f"_BASE_: {value}\n"))


def test_load_base_with_zero_byte_raises(written):
    with pytest.raises(ConfigError, match="has a text with a zero byte"):
        config.load(written('_BASE_: "a\\0b.yaml"\n'))


def test_load_simple_baseline_file_as_base_translates_keys(written):
    written(SIMPLE_BASELINE, "theirs.yaml")
    cfg = config.load(written("_BASE_: theirs.yaml\nTRAIN: {END_EPOCH: 3}\n"))
    assert (cfg.TRAIN.BATCH_SIZE_PER_GPU, cfg.TRAIN.END_EPOCH, cfg.TEST.SHIFT_HEATMAP) == (
        24,
        3,
        True,
    )


# KEY VALUE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value, wanted",
    [
        ("TRAIN.LR", "1e-4", 1e-4),
        ("TRAIN.LR", 1, 1.0),
        ("WORKERS", "0", 0),
        ("WORKERS", 3.0, 3),
        ("SEED", 7, 7),
        ("TEST.USE_GT_BBOX", "True", True),
        ("TEST.USE_GT_BBOX", "true", True),
        ("TEST.FLIP_TEST", "false", False),
        ("AUTO_RESUME", True, True),
        ("GPUS", "(0,1)", (0, 1)),
        ("GPUS", "0,1", (0, 1)),
        ("GPUS", "2", (2,)),
        ("GPUS", [1, 2], (1, 2)),
        ("GPUS", "()", ()),
        ("GPUS", "(0,)", (0,)),
        ("TRAIN.LR_STEP", "[3, 4]", [3, 4]),
        ("TRAIN.LR_STEP", (3, 4), [3, 4]),
        ("TRAIN.LR_STEP", "(3,)", [3]),
        ("TRAIN.LR_STEP", "5", [5]),
        ("MODEL.IMAGE_SIZE", "[192, 256]", [192, 256]),
        ("MODEL.IMAGE_SIZE", "128", [128, 128]),
        ("MODEL.IMAGE_SIZE", "(192.0, 256.0)", [192, 256]),
        ("TEST.MODEL_FILE", "12", "12"),
        ("TEST.MODEL_FILE", "None", "None"),
        ("TEST.MODEL_FILE", None, ""),
        ("DATASET.ROOT", "true", "true"),
        ("MODEL.EXTRA.NUM_LAYERS", "18", 18),
        ("MODEL.EXTRA.NEW", "word", "word"),
        ("MODEL.EXTRA.STAGE2.BLOCK", "BASIC", "BASIC"),
    ],
)
def test_load_override_converts_the_type(written, key, value, wanted):
    found = config.load(written(MINIMAL), [key, value])
    for part in key.split("."):
        found = found[part]
    assert found == wanted and type(found) is type(wanted)
    if isinstance(wanted, (list, tuple)):
        assert [type(item) for item in found] == [type(item) for item in wanted]


def test_load_last_override_wins(written):
    assert config.load(written(MINIMAL + "SEED: 1\n"), ["SEED", "2", "SEED", "3"]).SEED == 3


def test_load_override_without_value_raises(written):
    assert "command line: 'WORKERS' has no value" in refusal(
        written(MINIMAL), ["SEED", "1", "WORKERS"]
    )


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("TEST.MODELFILE", "TEST.MODEL_FILE"),
        ("Test.MODEL_FILE", "TEST.MODEL_FILE"),
        ("LR", "TRAIN.LR"),
        ("TRAIN.BATCH_SIZE_GPU", "TRAIN.BATCH_SIZE_PER_GPU"),
        ("MODEL.IMAGE_SIZ", "MODEL.IMAGE_SIZE"),
        ("test.use_gt_bbox", "TEST.USE_GT_BBOX"),
        ("USE_GT_BBOX", "TEST.USE_GT_BBOX"),
        ("MODEL.LR", "TRAIN.LR"),
    ],
)
def test_load_unknown_key_suggests_nearest(written, key, nearest):
    text = refusal(written(MINIMAL), [key, "1"])
    assert text.startswith(f"command line: unknown key {key}; the nearest known keys are ")
    assert nearest in text.split("are ")[1].split(", ")
    group, _, rest = key.rpartition(".")
    in_file = f"{group}: {{{rest}: 1}}\n" if group else f"{rest}: 1\n"
    text = refusal(written(in_file))
    assert f"experiment.yaml: unknown key {key}; " in text and nearest in text


def test_load_simple_baseline_key_as_override_raises(written):
    text = refusal(written(MINIMAL), ["TRAIN.BATCH_SIZE", "8"])
    assert (
        "unknown key TRAIN.BATCH_SIZE; the nearest known keys are TRAIN.BATCH_SIZE_PER_GPU" in text
    )


def test_load_unknown_key_without_similar_has_no_suggestion(written):
    assert refusal(written("XYZZYPLUGH: 1\n")).endswith("unknown key XYZZYPLUGH")


# wrong values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value, kind",
    [
        ("TRAIN.LR", "fast", "a number"),
        ("TRAIN.LR", "[1]", "a number"),
        ("TRAIN.LR", "True", "a number"),
        ("TRAIN.LR", "{'X': 1}", "a number"),
        ("WORKERS", "2.5", "a whole number"),
        ("WORKERS", "many", "a whole number"),
        ("WORKERS", "True", "a whole number"),
        ("WORKERS", float("inf"), "a whole number"),
        ("TRAIN.LR", 10**400, "a number"),
        ("TEST.FLIP_TEST", "1", "True or False"),
        ("TEST.FLIP_TEST", "yes please", "True or False"),
        ("GPUS", "all", "a list of numbers"),
        ("GPUS", "", "a list of numbers"),
        ("GPUS", "('0', '1')", "hold numbers"),
        ("GPUS", "(True,)", "hold numbers"),
        ("TRAIN.LR_STEP", "{3: 4}", "a list of numbers"),
        ("TRAIN.OPTIMIZER", ["adam"], "text"),
        ("TRAIN.OPTIMIZER", 3, "text"),
        ("TRAIN", "3", "is a group of keys"),
        ("MODEL.EXTRA", "x", "is a group of keys"),
        ("TRAIN.LR.X", "3", "a number"),
    ],
)
def test_load_override_invalid_type_raises(written, key, value, kind):
    text = refusal(written(MINIMAL), [key, value])
    assert text.startswith("command line: ") and key.removesuffix(".X") in text and kind in text


@pytest.mark.parametrize(
    "key, value",
    [
        ("TRAIN.LR", "0"),
        ("TRAIN.LR", "-1"),
        ("TRAIN.LR", float("nan")),
        ("TRAIN.LR", float("inf")),
        ("TRAIN.LR", "1e999"),
        ("TRAIN.LR", "1e39"),
        ("TRAIN.LR_FACTOR", "0"),
        ("TRAIN.LR_FACTOR", float("nan")),
        ("TRAIN.OPTIMIZER", "lamb"),
        ("TRAIN.BEGIN_EPOCH", "-1"),
        ("TRAIN.END_EPOCH", "-1"),
        ("TRAIN.EVAL_INTERVAL", "0"),
        ("TRAIN.BATCH_SIZE_PER_GPU", "0"),
        ("TEST.BATCH_SIZE_PER_GPU", "-3"),
        ("TRAIN.MOMENTUM", "-0.1"),
        ("TRAIN.MOMENTUM", "1"),
        ("TRAIN.MOMENTUM", float("nan")),
        ("TRAIN.WD", "-1"),
        ("TRAIN.WD", float("inf")),
        ("MODEL.SIGMA", "0"),
        ("MODEL.SIGMA", "1e-30"),
        ("MODEL.SIGMA", "1e30"),
        ("MODEL.SIGMA", float("nan")),
        ("MODEL.NUM_JOINTS", "-1"),
        ("MODEL.NUM_JOINTS", "17"),
        ("MODEL.STYLE", "tensorflow"),
        ("MODEL.SCALE", "0"),
        ("MODEL.IMAGE_SIZE", "[0, 256]"),
        ("MODEL.IMAGE_SIZE", "[256]"),
        ("MODEL.IMAGE_SIZE", "[1e999, 256]"),
        ("MODEL.IMAGE_SIZE", "[256.5, 256]"),
        ("MODEL.IMAGE_SIZE", "100000"),
        ("MODEL.HEATMAP_SIZE", "[512, 64]"),
        ("MODEL.HEATMAP_SIZE", "[1, 2, 3]"),
        ("GPUS", "(-1,)"),
        ("GPUS", "(0.5,)"),
        ("GPUS", "(0, 0)"),
        ("GPUS", (float("nan"),)),
        ("GPUS", (10**400,)),
        ("WORKERS", "-1"),
        ("WORKERS", "100000"),
        ("CPU_THREADS", "-2"),
        ("SEED", "-1"),
        ("SEED", 2**63),
        ("PRINT_FREQ", "0"),
        ("DATASET.DATASET", "imagenet"),
        ("DATASET.SCALE_FACTOR", "1"),
        ("DATASET.SCALE_FACTOR", float("nan")),
        ("DATASET.ROT_FACTOR", "-1"),
        ("DATASET.ROT_FACTOR", float("inf")),
        ("DATASET.PROB_HALF_BODY", "1.5"),
        ("DATASET.PROB_HALF_BODY", float("nan")),
        ("TEST.OKS_THRE", "0"),
        ("TEST.OKS_THRE", float("nan")),
        ("TEST.OKS_THRE", float("inf")),
        ("TEST.IMAGE_THRE", float("nan")),
        ("TEST.IN_VIS_THRE", float("nan")),
        ("TEST.PICTURES", "-1"),
        ("TRAIN.LR_STEP", "[90, 60]"),
        ("TRAIN.LR_STEP", "[-1, 60]"),
        ("TRAIN.LR_STEP", "[60.5, 90]"),
        ("TRAIN.LR_STEP", [float("nan")]),
        ("SEARCH.LR_STEP", "[30, 20]"),
        ("SEARCH.LR_STEP", "[-1]"),
        ("SEARCH.LR_STEP", "[1e400]"),
        ("GPUS", "(0, 1.5)"),
        ("SEARCH.ALPHA_BETAS", [0.9, float("nan")]),
        ("SEARCH.ALPHA_BETAS", "[0.9]"),
        ("MODEL.MEAN", [0.4, 0.4, float("nan")]),
        ("MODEL.STD", "[1, 1, 0]"),
        ("MODEL.SIMCC_SIGMA", [4.9]),
        ("MODEL.SIMCC_SIGMA", [0, 5.66]),
        ("MODEL.SIMCC_SPLIT_RATIO", 0),
        ("MODEL.KERNELS", "[5, 7]"),
        ("MODEL.KERNELS", "[]"),
        ("DATASET.BOX_MARGIN", [1.25, float("nan")]),
        ("TEST.BOX_MARGIN", "[1.25]"),
        ("DATASET.BOX_MARGIN_RANDOM", "[-0.1, 0]"),
        ("DATASET.HALF_BODY_MARGIN_RANDOM", "[0.6, 0.8, 1]"),
    ],
)
def test_load_value_out_of_range_raises(written, key, value):
    text = refusal(written(MINIMAL), [key, value])
    assert f"experiment.yaml: {key} must be " in text


def test_list_keys_all_have_a_range_test():
    """A new list key needs a case in the test above."""

    def lists(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, CfgNode):
                yield from lists(value, f"{prefix}{key}.")
            elif isinstance(value, (list, tuple)):
                yield f"{prefix}{key}"

    marks = {mark.name: mark for mark in test_load_value_out_of_range_raises.pytestmark}
    tried = {key for key, _ in marks["parametrize"].args[1]}
    assert set(lists(default_config())) <= tried


def test_load_repeated_lr_steps_are_kept(written):
    assert config.load(written(MINIMAL), ["TRAIN.LR_STEP", "[5, 7, 7]"]).TRAIN.LR_STEP == [5, 7, 7]


def test_load_inconsistent_values_raise(written):
    path = written(MINIMAL)
    assert "TRAIN.END_EPOCH must be more than TRAIN.BEGIN_EPOCH (5)" in refusal(
        path, ["TRAIN.BEGIN_EPOCH", 5, "TRAIN.END_EPOCH", 5]
    )
    assert "TRAIN.END_EPOCH must be more than TRAIN.BEGIN_EPOCH (0)" in refusal(
        path, ["TRAIN.END_EPOCH", 0]
    )
    assert "TRAIN.MOMENTUM must be above 0 with TRAIN.NESTEROV" in refusal(
        path, ["TRAIN.MOMENTUM", 0, "TRAIN.NESTEROV", True]
    )
    assert "LOSS.TOPK must be from 1 to 16 joints" in refusal(
        path, ["LOSS.USE_OHKM", True, "LOSS.TOPK", 17]
    )
    assert "MODEL.NUM_JOINTS must be 17, as coco has, got 16" in refusal(
        path, ["DATASET.DATASET", "coco"]
    )
    # without effect, so no reason to refuse
    config.load(path, ["LOSS.USE_OHKM", False, "LOSS.TOPK", 17])


def test_load_yaml_nan_and_text_numbers(written):
    assert "TRAIN.LR must be above 0 and below 1e30, got nan" in refusal(
        written(MINIMAL + "TRAIN: {LR: .nan}\n")
    )
    # a string in YAML 1.1
    assert config.load(written(MINIMAL + "TRAIN: {LR: 1e-4}\n")).TRAIN.LR == 1e-4


# not an experiment file ---------------------------------------------------------------------------


def test_load_missing_file_raises(tmp_path):
    assert (
        "cannot read the experiment file (No such file or directory); --cfg takes a file of"
        " experiments/" in refusal(tmp_path / "none.yaml")
    )
    (tmp_path / "folder.yaml").mkdir()
    assert "Is a directory" in refusal(tmp_path / "folder.yaml")


def test_load_circular_links_raise(tmp_path):
    (tmp_path / "a.yaml").symlink_to(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "a.yaml")
    assert "cannot read the experiment file" in refusal(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "TRAIN: [1, 2",
        "TRAIN: {LR: 1",
        "\tTRAIN: 1",
        "a: b: c",
        "!!python/object/apply:os.system ['true']",
        "TRAIN: !!int ''",
        "TRAIN: 2021-99-99",
        "x: !!float 'a'",
        b"\xff\xfe\x00\xd8",
        b"\x80\x81",
        "a: \x01",
        "? [a]\n: b",
    ],
    ids=range(12),
)
def test_load_invalid_yaml_raises(written, text):
    path = written(text)
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(path)


def test_load_deep_nesting_raises(written):
    assert "is nested more than 64 deep" in refusal(written("[" * 3000))


def test_load_empty_file_equals_defaults(written):
    assert config.load(written("")).MODEL.NUM_JOINTS == 16
    assert config.load(written("# nothing yet\n")) == config.load(written(MINIMAL))


@pytest.mark.parametrize(
    "text, kind", [("- 1\n- 2\n", "list"), ("just words\n", "str"), ("3\n", "int")]
)
def test_load_yaml_without_mapping_raises(written, text, kind):
    assert f"expected KEY: VALUE lines, got a {kind}" in refusal(written(text))


def test_load_non_string_keys_raise(written):
    assert "key '1' is not a name" in refusal(written("1: 2\n"))
    assert "key 'TRAIN.True' is not a name" in refusal(written("TRAIN: {yes: 2}\n"))


def test_load_huge_file_raises(written):
    assert "more than the 1.0 MB that are read" in refusal(written(b"# " + b"x" * (1 << 20)))


def test_load_alias_bomb_raises(written):
    """PyYAML shares aliases of aliases; iterating over them would never end."""
    lines = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)
    ]
    assert "stands for more than 100000 values" in refusal(written("\n".join(lines) + "\n"))
    assert "has an alias that stands for itself" in refusal(
        written("MODEL: {EXTRA: &a {STAGE2: *a}}\n")
    )


def test_load_yaml_alias_is_allowed(written):
    assert config.load(
        written("MODEL: {NUM_JOINTS: 16, IMAGE_SIZE: &size [128, 128], HEATMAP_SIZE: *size}\n")
    ).MODEL.HEATMAP_SIZE == [128, 128]


def test_load_long_invalid_value_is_shortened(written):
    assert len(refusal(written(yaml.safe_dump({"TRAIN": {"LR": list(range(20000))}})))) < 500


# names and paths ----------------------------------------------------------------------------------


def test_data_path_relative_path_is_under_data_dir(written):
    cfg = config.load(written(MINIMAL), ["DATA_DIR", "/data"])
    assert config.data_path(cfg, "coco/x.json") == "/data/coco/x.json"
    assert config.data_path(cfg, "/else/x.json") == "/else/x.json"
    assert (
        config.data_path(cfg, "") == ""
        and config.data_path(cfg, "https://host/x.pth") == "https://host/x.pth"
    )
    assert config.data_path(config.load(written(MINIMAL)), "coco/x.json") == "coco/x.json"


def test_experiment_name_drops_the_last_suffix():
    assert config.experiment_name("experiments/coco/w32_256x192.adam.yaml") == "w32_256x192.adam"
