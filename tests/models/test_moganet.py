"""Test MogaNet-Pose: formulas, stochastic depth, sizes and invalid options."""

import pytest
import torch
from poise import config
from poise.errors import ConfigError
from poise.models import build_model
from poise.models.drop_path import DropPath, linear_rates
from poise.models.moganet import (
    ALIASES,
    ARCHS,
    ChannelAggregationFFN,
    MogaBlock,
    MultiOrderDWConv,
    MultiOrderGatedAggregation,
)
from support.golden_inputs import filled_input, filled_state
from support.paths import ROOT
from torch import nn
from torch.nn import functional as F

EXPERIMENT = ROOT / "experiments/coco/moganet/moganet_xt_256x192.yaml"
SMALL = [
    "MODEL.EXTRA.EMBED_DIMS",
    [8, 16, 24, 32],
    "MODEL.EXTRA.DEPTHS",
    [1, 2, 1, 1],
    "MODEL.EXTRA.FFN_RATIOS",
    [4, 4, 2, 2],
    "MODEL.EXTRA.NUM_DECONV_FILTERS",
    [16, 16, 16],
    "MODEL.IMAGE_SIZE",
    [64, 96],
    "MODEL.HEATMAP_SIZE",
    [16, 24],
]


def small(*overrides):
    return build_model(config.load(EXPERIMENT, [*SMALL, *overrides]))


def filled(model, seed=0):
    model.load_state_dict(filled_state(model.state_dict(), seed))
    return model


def test_backbone_stages_have_published_shapes():
    model = filled(small()).eval()
    with torch.no_grad():
        images = filled_input("stages", (2, 3, 96, 64), 0)
        features = model.backbone(images)
        assert [tuple(f.shape) for f in features] == [
            (2, 8, 24, 16),
            (2, 16, 12, 8),
            (2, 24, 6, 4),
            (2, 32, 3, 2),
        ]
        # the norm that ends a stage stands before the next one too
        torch.testing.assert_close(
            model.backbone.norm3(
                model.backbone.blocks3[0](model.backbone.patch_embed3(features[1]))
            ),
            features[2],
        )
        torch.testing.assert_close(model(images), model.keypoint_head(features[3]))


def test_forward_train_and_eval_return_heatmaps():
    model = small("MODEL.EXTRA.DROP_PATH", 0.5)
    images = filled_input("modes", (4, 3, 96, 64), 0)
    outputs = model.train()(images)
    assert isinstance(outputs, tuple) and [output.shape for output in outputs] == [(4, 17, 24, 16)]
    outputs[0].square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.eval()(images).shape == (4, 17, 24, 16)


def test_multi_order_dwconv_equals_formula():
    layer = filled(MultiOrderDWConv(16)).eval()
    x = filled_input("orders", (1, 16, 20, 20), 0)
    y = F.conv2d(x, layer.DW_conv0.weight, layer.DW_conv0.bias, padding=2, groups=16)
    low, middle, high = y[:, :2], y[:, 2:8], y[:, 8:]
    middle = F.conv2d(
        middle, layer.DW_conv1.weight, layer.DW_conv1.bias, padding=4, dilation=2, groups=6
    )
    high = F.conv2d(
        high, layer.DW_conv2.weight, layer.DW_conv2.bias, padding=9, dilation=3, groups=8
    )
    want = F.conv2d(torch.cat([low, middle, high], 1), layer.PW_conv.weight, layer.PW_conv.bias)
    torch.testing.assert_close(layer(x), want)


def test_gated_aggregation_and_ffn_equal_formulas():
    x = filled_input("mixers", (2, 16, 10, 10), 0)
    with torch.no_grad():
        moga = filled(MultiOrderGatedAggregation(16))
        u = moga.proj_1(x)
        u = u + moga.sigma.scale * (u - u.mean((2, 3), keepdim=True))
        u = u * torch.sigmoid(u)
        gate, value = moga.gate(u), moga.value(u)
        want = moga.proj_2(gate * gate.sigmoid() * value * value.sigmoid()) + x
        torch.testing.assert_close(moga(x), want)
        ffn = filled(ChannelAggregationFFN(16, 64))
        h = ffn.dwconv(ffn.fc1(x))
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
        shared = ffn.decompose(h)
        assert shared.shape == (2, 1, 10, 10)
        h = h + ffn.sigma.scale * (h - shared * 0.5 * (1 + torch.erf(shared / 2**0.5)))
        torch.testing.assert_close(ffn(x), ffn.fc2(h))


def test_moga_block_has_published_parameters():
    # the published code's
    assert sum(p.numel() for p in MogaBlock(32, 8, 0.0, 1e-5).parameters()) == 26_137


def test_moga_block_small_init_value_is_near_identity():
    x = filled_input("block", (2, 16, 8, 8), 0)
    near, far = MogaBlock(16, 4, 0.0, 1e-5), MogaBlock(16, 4, 0.0, 1.0)
    with torch.no_grad():
        assert 0 < (near(x) - x).abs().max() < 1e-3
        assert (far(x) - x).abs().max() > 0.1


def test_drop_path_train_mode_drops_samples_and_keeps_mean():
    torch.manual_seed(0)
    layer, x = DropPath(0.3).train(), torch.full((20_000, 2, 3, 1), 2.0)
    y = layer(x)
    survived = y[:, 0, 0, 0] != 0
    assert torch.equal(y, torch.where(survived[:, None, None, None], x / 0.7, torch.zeros_like(x)))
    # 4.6 standard deviations
    assert survived.float().mean().item() == pytest.approx(0.7, abs=0.015)
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)  # from torch's global generator
    assert not torch.equal(layer(x), y)


def test_drop_path_eval_mode_or_rate_0_is_identity():
    x = filled_input("drop", (8, 4), 0)
    state = torch.get_rng_state()
    assert DropPath(0.5).eval()(x) is x and DropPath(0.0).train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_drop_path_rates_rise_linearly():
    assert linear_rates(0.4, 5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4]) and linear_rates(
        0.4, 1
    ) == [0]
    model = small("MODEL.EXTRA.DROP_PATH", 0.4)
    assert [m.rate for m in model.modules() if isinstance(m, DropPath)] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4]
    )


@pytest.mark.parametrize(
    "size, rate, height",
    [
        ("xt", 0.1, 256),
        ("xt", 0.1, 384),
        ("t", 0.15, 256),
        ("t", 0.15, 384),
        ("s", 0.2, 256),
        ("s", 0.2, 384),
        ("b", 0.3, 256),
        ("b", 0.4, 384),
        ("l", 0.4, 256),
        ("xl", 0.5, 256),
    ],
)
def test_experiments_moganet_have_published_size_and_drop_path(size, rate, height):
    cfg = config.load(
        ROOT / f"experiments/coco/moganet/moganet_{size}_{height}x{height * 3 // 4}.yaml"
    )
    with torch.device("meta"):
        model = build_model(cfg)
    dims, depths, _ = ARCHS[ALIASES[size]]
    assert model.backbone.norm4.num_features == dims[3] and [
        len(model.backbone.get_submodule(f"blocks{k}")) for k in (1, 2, 3, 4)
    ] == list(depths)
    assert model.backbone.blocks4[-1].drop_path.rate == pytest.approx(rate)
    assert (
        [height * 3 // 4, height] == cfg.MODEL.IMAGE_SIZE
        and cfg.MODEL.SIGMA == 2
        and [height * 3 // 16, height // 4] == cfg.MODEL.HEATMAP_SIZE
    )
    assert f"moganet_{ALIASES[size]}_sz224" in cfg.MODEL.PRETRAINED


@pytest.mark.parametrize("alias", [*ALIASES, "XT", "Tiny"])
def test_build_model_arch_alias_gives_the_same_size(alias):
    with torch.device("meta"):
        model = build_model(config.load(EXPERIMENT, ["MODEL.EXTRA.ARCH", alias]))
    assert (
        model.backbone.norm4.num_features == ARCHS[ALIASES.get(alias.lower(), alias.lower())][0][3]
    )


def test_init_weights_follow_the_reference():
    torch.manual_seed(0)
    model = build_model(config.load(EXPERIMENT, ["MODEL.EXTRA.INIT_VALUE", 0.5]))
    scales = [p for name, p in model.named_parameters() if "layer_scale" in name]
    assert len(scales) == 36 and all((p == 0.5).all() for p in scales)
    assert all((p == 1e-5).all() for name, p in model.named_parameters() if "sigma" in name)
    head = [
        m for m in model.keypoint_head.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    assert len(head) == 4 and all(
        m.weight.std().item() == pytest.approx(0.001, rel=0.1) for m in head
    )
    assert not model.keypoint_head.final_layer.bias.any()


def test_build_model_fewer_deconv_layers_give_smaller_heatmaps():
    model = small(
        "MODEL.EXTRA.NUM_DECONV_LAYERS",
        2,
        "MODEL.EXTRA.NUM_DECONV_FILTERS",
        [16, 16],
        "MODEL.EXTRA.NUM_DECONV_KERNELS",
        [4, 4],
        "MODEL.HEATMAP_SIZE",
        [8, 12],
    )
    assert model.eval()(torch.zeros(1, 3, 96, 64)).shape == (1, 17, 12, 8)


@pytest.mark.parametrize(
    "overrides, part",
    [
        (
            ["MODEL.EXTRA.ARCH", "huge"],
            "MODEL.EXTRA.ARCH must be one of xtiny, tiny, .* got 'huge'",
        ),
        (["MODEL.EXTRA.ARCH", 3], "MODEL.EXTRA.ARCH must be one of"),
        (["MODEL.EXTRA.EMBED_DIMS", [8, 16, 24]], "MODEL.EXTRA.EMBED_DIMS must hold four"),
        (["MODEL.EXTRA.EMBED_DIMS", [8, 16, 24, 36]], "multiples of 8"),
        (["MODEL.EXTRA.DEPTHS", [1, 0, 1, 1]], "MODEL.EXTRA.DEPTHS must hold four"),
        (["MODEL.EXTRA.DEPTHS", 4], "MODEL.EXTRA.DEPTHS must hold four"),
        (["MODEL.EXTRA.FFN_RATIOS", [4, 4, 2, 1.5]], "MODEL.EXTRA.FFN_RATIOS must hold four"),
        (["MODEL.EXTRA.DROP_PATH", 1], "MODEL.EXTRA.DROP_PATH must be a number from 0 to below 1"),
        (["MODEL.EXTRA.DROP_PATH", "high"], "MODEL.EXTRA.DROP_PATH"),
        (["MODEL.EXTRA.INIT_VALUE", 0], "MODEL.EXTRA.INIT_VALUE must be a number above 0"),
        (["MODEL.EXTRA.INIT_VALUE", True], "MODEL.EXTRA.INIT_VALUE"),
        (["MODEL.EXTRA.NUM_DECONV_KERNELS", [4, 5, 4]], "must be of 2, 3 and 4"),
        (
            ["MODEL.EXTRA.ARCHS", "tiny"],
            "MODEL.EXTRA.ARCHS is not a key of moganet; the nearest known keys are ARCH",
        ),
        (
            ["MODEL.IMAGE_SIZE", [64, 80], "MODEL.HEATMAP_SIZE", [16, 20]],
            "moganet takes multiples of 32",
        ),
        (["MODEL.HEATMAP_SIZE", [32, 48]], "heatmaps of 1/4"),
    ],
)
def test_build_model_invalid_options_raise(overrides, part):
    with pytest.raises(ConfigError, match=part):
        small(*overrides)
