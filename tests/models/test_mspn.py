"""Test MSPN: recorded outputs of every head, checkpointing, stages and experiments.

Keys and predictions are compared in test_models.py, losses in test_mspn_functions.py."""

import json

import numpy as np
import pytest
import torch
from poise import config
from poise.errors import ConfigError
from poise.models import build_model
from support.golden_inputs import filled_input, filled_state
from support.paths import GOLDEN, ROOT
from torch import nn

EXPERIMENT = {
    **{
        f"mspn_{stages}stg_coco": f"coco/mspn/mspn_{stages}stg_256x192.yaml"
        for stages in (1, 2, 3, 4)
    },
    "mspn_4stg_coco_384x288": "coco/mspn/mspn_4stg_384x288.yaml",
    "mspn_2stg_mpii": "mpii/mspn/mspn_2stg_256x256.yaml",
}
FILES = sorted((ROOT / "experiments").glob("*/mspn/*.yaml"))
NARROW = [
    "MODEL.EXTRA.STEM_CHANNELS",
    4,
    "MODEL.EXTRA.CHANNELS",
    8,
    "MODEL.EXTRA.LAYERS",
    [1, 2, 1, 1],
]


def configured(name="mspn_2stg_coco", width=64, height=96, overrides=()):
    sizes = ["MODEL.IMAGE_SIZE", [width, height], "MODEL.HEATMAP_SIZE", [width // 4, height // 4]]
    return config.load(ROOT / "experiments" / EXPERIMENT[name], [*sizes, *overrides])


def every_head(model, images):
    """Return all supervised heatmaps with eval-mode statistics, as in the repository."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize(
    "name",
    [name if "1stg" in name else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENT],
)
def test_forward_all_outputs_equal_reference(name):
    record = json.loads((GOLDEN / "models" / f"{name}.json").read_text())
    (run,) = record["runs"]
    batch, _, height, width = run["input"]
    model = build_model(configured(name, width, height, ["MODEL.INIT_WEIGHTS", False])).eval()
    model.load_state_dict(filled_state(model.state_dict(), record["seed"]))
    images = filled_input(name, (batch, 3, height, width), record["seed"])
    with torch.no_grad():
        prediction = model(images)
    outputs = every_head(model, images)
    assert len(outputs) == len(run["outputs"]) and torch.equal(outputs[-1], prediction)
    for output, want in zip(outputs, run["outputs"]):
        assert list(output.shape) == want["shape"]
        assert (
            np.abs(output.reshape(-1).double().numpy()[want["index"]] - want["value"]).max()
            < 1e-4 * want["std"]
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.parent.name + "/" + path.stem)
def test_experiments_mspn_match_their_file_names(path):
    cfg = config.load(path)
    stages, (height, width) = int(path.stem[5]), map(int, path.stem.split("_")[2].split("x"))
    assert list(cfg.MODEL.IMAGE_SIZE) == [width, height] and stages == cfg.MODEL.EXTRA.STAGES
    with torch.device("meta"):
        outputs = build_model(cfg)(torch.empty(2, 3, height, width))
    assert [output.shape for output in outputs] == [
        (2, cfg.MODEL.NUM_JOINTS, height // 4, width // 4)
    ] * (4 * stages)


def test_experiments_mspn_recipes_equal_published():
    coco, mpii = (
        config.load(ROOT / "experiments" / EXPERIMENT[name])
        for name in ("mspn_2stg_coco", "mspn_2stg_mpii")
    )
    for cfg, iterations, period, persons in (
        (coco, 96000, 2400, 149813),
        (mpii, 28800, 1600, 22246),
    ):
        assert (
            iterations == cfg.TRAIN.ITERATIONS
            and len(cfg.GPUS) * cfg.TRAIN.BATCH_SIZE_PER_GPU == cfg.TRAIN.BASE_BATCH
        )
        assert (
            cfg.TRAIN.LR == 8 * 5e-4 and cfg.TRAIN.WD == 1e-5 and cfg.TRAIN.OPTIMIZER == "adam_l2"
        )
        # nearest whole epoch
        assert (
            abs(cfg.TRAIN.EVAL_INTERVAL * persons / cfg.TRAIN.BASE_BATCH - period)
            < persons / cfg.TRAIN.BASE_BATCH
        )
        assert list(reversed(cfg.MODEL.MEAN)) == [0.485, 0.456, 0.406] and not cfg.DATASET.COLOR_RGB
    # the margins of dataset/attribute.py: COCO's are drawn, MPII's are not
    assert [1.05 * (1 + r) for r in coco.DATASET.BOX_MARGIN_RANDOM] == pytest.approx([1.68, 1.89])
    assert mpii.DATASET.BOX_MARGIN == mpii.TEST.BOX_MARGIN == [1.25, 1.25] and not any(
        mpii.DATASET.BOX_MARGIN_RANDOM
    )


def run_modules(model, images):
    """Return the names of the convolution units that run."""
    ran, hooks = [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(
                module.register_forward_hook(
                    lambda *_, name=name: ran.append(name.removesuffix(".conv"))
                )
            )
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    assert len(ran) == len(set(ran))
    return set(ran)


def test_forward_eval_mode_runs_one_head():
    model, images = (
        build_model(configured("mspn_3stg_coco", overrides=NARROW)),
        torch.randn(2, 3, 96, 64),
    )
    units = {
        name.removesuffix(".conv")
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    heads = {name for name in units if ".res_conv" in name}
    assert len(heads) == 3 * 4 * 2
    assert run_modules(model.train(), images) == units
    assert run_modules(model.eval(), images) == units - heads | {
        "stage2.upsample.up4.res_conv1",
        "stage2.upsample.up4.res_conv2",
    }
    assert not any(
        "skip1" in name or "skip2" in name or "cross_conv" in name
        for name in units
        if name.startswith("stage2")
    )


@pytest.mark.parametrize("stages", [1, 5])
def test_build_model_any_number_of_stages_gives_outputs(stages):
    model = build_model(configured(overrides=[*NARROW, "MODEL.EXTRA.STAGES", stages]))
    outputs = model(torch.randn(2, 3, 96, 64))
    assert isinstance(outputs, tuple) and [output.shape for output in outputs] == [
        (2, 17, 24, 16)
    ] * (4 * stages)
    sum(output.square().mean() for output in outputs).backward()
    # weights without a gradient stop distributed training
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(torch.randn(1, 3, 96, 64)).shape == (1, 17, 24, 16)


def test_forward_efficient_mode_keeps_gradients_and_statistics():
    """Running statistics are updated once per batch, not twice as in the repository."""
    images, models = torch.randn(2, 3, 96, 64), []
    for efficient in (False, True):
        torch.manual_seed(0)
        models.append(
            build_model(configured(overrides=[*NARROW, "MODEL.EXTRA.EFFICIENT", efficient]))
        )
    kept = []
    for model in models:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.numel()) or t, lambda t: t
        ):
            loss = sum(output.square().mean() for output in model(images))
        loss.backward()
        kept.append(sum(saved))
    plain, efficient = models
    assert all(
        torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), efficient.parameters())
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.buffers(), efficient.buffers()))
    norms = [module for module in efficient.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1} and {
        norm.momentum for norm in norms
    } == {0.1}
    assert kept[1] < 0.6 * kept[0]


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
    torch.manual_seed(0)
    model = build_model(configured(overrides=["MODEL.EXTRA.LAYERS", [1, 1, 1, 1]]))
    for stage in (model.stage0, model.stage1):
        weight = stage.downsample.layer4[0].conv_bn_relu2.conv.weight.detach()
        # He's rule by the outputs
        assert float(weight.std()) == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
        weight = stage.upsample.up1.u_skip.conv.weight.detach()
        assert float(weight.abs().max()) <= 2048**-0.5  # PyTorch's own uniform rule


@pytest.mark.parametrize(
    "stages, rule, count", [(1, "first", 159), (2, "first", 159), (2, "all", 315)]
)
def test_pretrained_names_cover_the_backbone(stages, rule, count):
    """ResNet-50 has 53 convolutions with batch norms, 3 tensors each; 52 are below the top."""
    with torch.device("meta"):
        model = build_model(
            configured(
                overrides=["MODEL.EXTRA.STAGES", stages, "MODEL.EXTRA.PRETRAINED_STAGES", rule]
            )
        )
    given = [
        name for name, _ in model.named_parameters() if not name.startswith(model.head_prefixes)
    ]
    assert len(given) == count and model.pretrained_stages == rule
    assert not any(name.endswith("conv.bias") or "upsample" in name for name in given)


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["MODEL.EXTRA.STAGE", 2], "MODEL.EXTRA.STAGE is not a key of mspn; .*STAGES"),
        (["MODEL.EXTRA.STAGES", 0], "STAGES must be a whole number from 1 to 64, got 0"),
        (["MODEL.EXTRA.STAGES", True], "STAGES must be a whole number from 1 to 64, got True"),
        (["MODEL.EXTRA.STAGES", "two"], "STAGES must be a whole number from 1 to 64, got 'two'"),
        (["MODEL.EXTRA.STAGES", 1000], "STAGES must be a whole number from 1 to 64"),
        (["MODEL.EXTRA.LAYERS", [3, 4, 6]], "LAYERS must hold four"),
        (["MODEL.EXTRA.LAYERS", 50], "LAYERS must hold four"),
        (["MODEL.EXTRA.LAYERS", [3, 4, 0, 3]], "LAYERS must hold four"),
        (["MODEL.EXTRA.STEM_CHANNELS", 0.5], "STEM_CHANNELS must be a channel count"),
        (["MODEL.EXTRA.CHANNELS", [256]], "CHANNELS must be a channel count"),
        (["MODEL.EXTRA.EFFICIENT", "maybe"], "EFFICIENT must be True or False"),
        (["MODEL.EXTRA.PRETRAINED_STAGES", "last"], "PRETRAINED_STAGES must be 'first' or 'all'"),
        (["MODEL.EXTRA.PRETRAINED_STAGES", [0]], "PRETRAINED_STAGES must be 'first' or 'all'"),
        (["MODEL.IMAGE_SIZE", [200, 256], "MODEL.HEATMAP_SIZE", [50, 64]], "multiples of 32"),
        (["MODEL.HEATMAP_SIZE", [96, 128]], "heatmaps of 1/4"),
    ],
)
def test_build_model_invalid_options_raise(overrides, part):
    with pytest.raises(ConfigError, match=part), torch.device("meta"):
        build_model(config.load(ROOT / "experiments" / EXPERIMENT["mspn_2stg_coco"], overrides))
