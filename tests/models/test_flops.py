"""Test parameter and FLOP counts against published and recorded figures; get_flops.py."""

import functools
import json

import pytest
import torch
from poise import config
from poise.cli.get_flops import size_overrides
from poise.errors import ConfigError
from poise.models import build_on_meta, flops
from support.paths import GOLDEN, ROOT
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

COCO, MPII = "experiments/coco", "experiments/mpii"
EXPERIMENT = {  # record in tests/golden/models -> experiment
    **{
        f"pose_resnet{d}_coco": f"{COCO}/resnet/res{d}_256x192_d256x3_adam_lr1e-3.yaml"
        for d in (50, 101, 152)
    },
    "pose_resnet50_mpii": f"{MPII}/resnet/res50_256x256_d256x3_adam_lr1e-3.yaml",
    **{
        f"pose_res2net{d}_coco": f"{COCO}/res2net/res2net{d}_4s_26w_256x192_d256x3_adam_lr1e-3.yaml"
        for d in (50, 101)
    },
    **{
        f"pose_res2net{d}_v1b_coco": (
            f"{COCO}/res2net/res2net{d}_v1b_4s_26w_256x192_d256x3_adam_lr1e-3.yaml"
        )
        for d in (50, 101)
    },
    "pose_res2net50_mpii": f"{MPII}/res2net/res2net50_256x256_d256x3_adam_lr1e-3.yaml",
    **{f"pose_hrnet_w{w}_coco": f"{COCO}/hrnet/w{w}_256x192_adam_lr1e-3.yaml" for w in (32, 48)},
    "pose_hrnet_w32_mpii": f"{MPII}/hrnet/w32_256x256_adam_lr1e-3.yaml",
    **{f"mspn_{s}stg_coco": f"{COCO}/mspn/mspn_{s}stg_256x192.yaml" for s in (1, 2, 3, 4)},
    "mspn_4stg_coco_384x288": f"{COCO}/mspn/mspn_4stg_384x288.yaml",
    **{f"mspn_{s}stg_mpii": f"{MPII}/mspn/mspn_{s}stg_256x256.yaml" for s in (2, 4)},
    **{f"posenas_l18_c{c}_coco": f"{COCO}/posenas/256x192_18l_{c}c.yaml" for c in (48, 64)},
    **{f"posenas_l18_c{c}_mpii": f"{MPII}/posenas/256x256_18l_{c}c.yaml" for c in (48, 64)},
    **{
        f"moganet_{v}_coco": f"{COCO}/moganet/moganet_{v}_256x192.yaml"
        for v in ("xt", "t", "s", "b", "l", "xl")
    },
}
RECORDS = sorted(path.stem for path in (GOLDEN / "models").glob("*.json"))


@functools.cache
def sizes(name, height, width, rule="macs"):
    """Return the (evaluation, training) sizes of the experiment of a record."""
    cfg = config.load(ROOT / EXPERIMENT[name])
    cfg = config.load(
        ROOT / EXPERIMENT[name],
        [*size_overrides(cfg, height, width), "MODEL.INIT_WEIGHTS", False],
    )
    model = build_on_meta(cfg)
    found = [
        flops.measure(model, cfg.MODEL.IMAGE_SIZE, rule=rule, all_outputs=outputs)
        for outputs in (False, True)
    ]
    assert not any(size.unknown for size in found)
    return found


@pytest.mark.parametrize("name", RECORDS)
def test_measure_recorded_networks_equals_reference(name):
    """The reference code computes every output."""
    record = json.loads((GOLDEN / "models" / f"{name}.json").read_text())
    for run in record["runs"]:
        _, trained = sizes(name, *run["input"][2:])
        assert trained.network.parameters == record["params"]
        assert trained.network.operations == run["macs_per_image"]
        assert [list(trained.network.output)] == [run["outputs"][-1]["shape"][1:]]


@pytest.mark.parametrize(
    "name, published, shown",
    [
        (
            "posenas_l18_c48_coco",
            (22_170_738, 9_783_535_104),
            ("21.14 Mi (2^20)", "9.11 Gi (2^30)"),
        ),
        (
            "posenas_l18_c64_coco",
            (35_186_594, 15_907_774_464),
            ("33.56 Mi (2^20)", "14.82 Gi (2^30)"),
        ),
    ],
)
def test_measure_posenas_equals_published_binary_units(name, published, shown):
    """21.1M / 9.1G and 33.6M / 14.8G of its README are in 2^20 and 2^30. The published count
    contains one layer twice, as does our training.
    """
    tested, trained = sizes(name, 384, 288)
    assert (trained.network.parameters, trained.network.operations) == published
    lines = flops.report(tested, trained, depth=0).splitlines()
    assert lines[1].endswith(f"= {shown[0]}")
    assert lines[3].endswith(f"= {shown[1]}: of every supervised output, as in training")
    assert "run again   in training: reduce_channel_prev.1 2 times; counted each time" in lines
    # testing needs neither the second call nor the first decoder's heatmaps
    spared = (
        sum(
            layer.self_operations
            for _, layer in trained.network.walk()
            if layer.name == "final_layer"
        )
        // 2
    )
    spared += (
        next(
            layer for layer in trained.network.layers if layer.name == "reduce_channel_prev"
        ).operations
        // 2
    )
    assert tested.network.operations == published[1] - spared


@pytest.mark.parametrize(
    "variant, small, large, params",
    [
        ("xt", "1.84", "4.15", 5_652_555),
        ("t", "2.15", "4.85", 8_091_965),
        ("s", "5.99", "13.48", 29_022_884),
        ("b", "10.85", "24.42", 47_407_684),
    ],
)
def test_measure_moganet_mmcv_rule_equals_published(variant, small, large, params):
    """The README rounds again, to 1.8, 4.2, 2.2, 4.9, 6.0, 13.5, 10.9 and 24.4."""
    for (height, width), want in (((256, 192), small), ((384, 288), large)):
        tested, trained = sizes(f"moganet_{variant}_coco", height, width, rule="mmcv")
        assert tested.network.parameters == params
        assert f"{tested.network.operations / 1e9:.2f}" == want
        assert tested.network.operations == trained.network.operations


@pytest.mark.parametrize(
    "variant, small, large", [("l", "16.743", "37.672"), ("xl", "35.060", "78.885")]
)
def test_measure_moganet_large_sizes_mmcv_rule_equals_recorded(variant, small, large):
    for (height, width), want in (((256, 192), small), ((384, 288), large)):
        found = sizes(f"moganet_{variant}_coco", height, width, rule="mmcv")[0].network.operations
        assert f"{found / 1e9:.3f}" == want


@pytest.mark.parametrize(
    "stages, params, small, large",
    [
        (1, 25_141_708, (5.073, 4.967), (11.413, 11.176)),
        (2, 56_867_032, (11.263, 10.730), (25.341, 24.143)),
        (3, 88_592_356, (17.453, 16.493), (39.269, 37.109)),
        (4, 120_317_680, (23.643, 22.256), (53.197, 50.076)),
    ],
)
def test_measure_mspn_counts_all_heads_or_the_last(stages, params, small, large):
    for (height, width), want in (((256, 192), small), ((384, 288), large)):
        tested, trained = sizes(f"mspn_{stages}stg_coco", height, width)
        assert tested.network.parameters == params
        assert (
            round(trained.network.operations / 1e9, 3),
            round(tested.network.operations / 1e9, 3),
        ) == want


@pytest.mark.parametrize(
    "stages, params, want", [(2, 56_848_576, (14.992, 14.297)), (4, 120_280_768, (31.474, 29.665))]
)
def test_measure_mspn_mpii_counts_all_heads_or_the_last(stages, params, want):
    tested, trained = sizes(f"mspn_{stages}stg_mpii", 256, 256)
    assert tested.network.parameters == params
    assert (
        round(trained.network.operations / 1e9, 3),
        round(tested.network.operations / 1e9, 3),
    ) == want


@pytest.mark.parametrize("width, small, large", [(32, "7.1", "16.0"), (48, "14.6", "32.9")])
def test_measure_hrnet_equals_published_binary_units(width, small, large):
    """The GFLOPs of its README are in 1024^3; its parameters, 28.5M and 63.6M, in millions."""
    for (height, w), want in (((256, 192), small), ((384, 288), large)):
        tested, _ = sizes(f"pose_hrnet_w{width}_coco", height, w)
        assert f"{tested.network.operations / 2**30:.1f}" == want
        assert f"{tested.network.parameters / 1e6:.1f}" == {32: "28.5", 48: "63.6"}[width]


@pytest.mark.parametrize(
    "name",
    [
        "pose_res2net50_v1b_coco",
        "pose_hrnet_w32_coco",
        "mspn_2stg_coco",
        "posenas_l18_c48_coco",
        "moganet_xt_coco",
    ],
)
def test_measure_equals_torch_flop_counter(name):
    """torch counts every product wherever it is called, and a multiply-add as two."""
    tested, _ = sizes(name, 64, 96)
    overrides = [
        *size_overrides(config.load(ROOT / EXPERIMENT[name]), 64, 96),
        "MODEL.INIT_WEIGHTS",
        False,
    ]
    model = build_on_meta(config.load(ROOT / EXPERIMENT[name], overrides)).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 96, device="meta"))
    assert counter.get_total_flops() == 2 * tested.network.operations > 0


class Every(nn.Module):
    """One layer of each known type and some unknown ones."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1, groups=1)  # 8 x 4 x 8
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2)  # 8 x 2 x 4
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.gelu = nn.GELU()
        self.deconv = nn.ConvTranspose2d(8, 4, 4, 2, 1)  # 4 x 4 x 8
        self.linear = nn.Linear(8, 5)  # on the last axis: 4 x 4 x 5
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.pool(self.act(self.norm(self.conv(x))))
        x = self.gelu(self.plain(self.depthwise(x)))
        x = self.linear(self.deconv(x))
        return (x, x) if self.training else x


def test_measure_both_rules_equal_hand_counts():
    products = {
        "conv": 8 * 3 * 9 * 32,
        "depthwise": 8 * 9 * 8,
        "deconv": 8 * 4 * 16 * 8,
        "linear": 16 * 8 * 5,
    }
    size = flops.measure(Every(), (16, 8))
    assert {
        layer.name: layer.operations for layer in size.network.layers if layer.operations
    } == products
    assert size.network.operations == sum(products.values()) and size.network.output == (4, 4, 5)
    size = flops.measure(Every(), (16, 8), rule="mmcv")
    others = {
        "norm": 2 * 8 * 32,
        "act": 8 * 32,
        "pool": 8 * 32,
        "plain": 8 * 8,
        "unused": 0,
        "gelu": 0,
    }
    biases = {"conv": 8 * 32, "depthwise": 0, "deconv": 4 * 4 * 8, "linear": 0}
    want = {**others, **{name: products[name] + biases[name] for name in products}}
    assert {layer.name: layer.operations for layer in size.network.layers} == want
    assert size.network.parameters == sum(p.numel() for p in Every().parameters())
    text = flops.report(size, size)
    assert (
        "not run     1 layer with 20 of the parameters, unused the first" in text
        and "WARNING" not in text
    )


def test_measure_leaves_the_model_unchanged():
    for device in ("cpu", "meta"):
        model = Every().to(device)
        model.act.eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sums = {
            outputs: flops.measure(model, (16, 8), all_outputs=outputs).network.operations
            for outputs in (False, True)
        }
        assert sums[False] == sums[True] == 12_224
        assert model.training and model.norm.training and not model.act.training
        assert not any(
            module._forward_hooks or module._forward_pre_hooks for module in model.modules()
        )
        if device == "cpu":
            assert all(
                torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()
            )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.mix = nn.Sequential(nn.Identity(), SelfProduct())
        self.kernel = nn.Parameter(torch.ones(8, 8, 1, 1))

    def forward(self, x):
        return F.conv2d(self.mix(self.embed(x)), self.kernel)


class SelfProduct(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2)
        return (
            (tokens.transpose(1, 2) @ tokens @ tokens.transpose(1, 2))
            .transpose(1, 2)
            .reshape(x.shape)
        )


def test_measure_unknown_operations_are_reported():
    size = flops.measure(Attention(), (16, 8))
    assert size.unknown == {"bmm in mix.1": 2, "convolution in the network itself": 1}
    assert size.network.operations == 8 * 3 * 16 * 8
    text = flops.report(size, size, depth=0)
    assert (
        "WARNING     not counted: bmm in mix.1 (2 times); the operations are more than this" in text
    )


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        self.group = nn.ModuleList([self.first, nn.Conv2d(3, 3, 1, bias=False)])

    def forward(self, x):
        return self.group[1](self.first(self.group[0](x)))


def test_measure_shared_layers_counts_parameters_once():
    size = flops.measure(Shared(), (2, 2))
    assert (size.network.parameters, size.network.operations) == (18, 3 * 9 * 4)
    first, group = size.network.layers
    assert (first.calls, first.operations, [layer.name for layer in group.layers]) == (
        2,
        2 * 9 * 4,
        ["1"],
    )
    assert (
        "3 x 2 x 2, 2 times" in (text := flops.report(size, size))
        and "run again   in testing: first 2 times; counted each time" in text
    )


def test_size_overrides_fractional_heatmap_raises():
    cfg = config.load(ROOT / EXPERIMENT["pose_resnet50_coco"])
    assert size_overrides(cfg, 384, 288) == [
        "MODEL.IMAGE_SIZE",
        [288, 384],
        "MODEL.HEATMAP_SIZE",
        [72, 96],
    ]
    for height, width in ((258, 192), (256, 191), (0, 192), (256, -4)):
        with pytest.raises(ConfigError, match="multiples of 4 above 0"):
            size_overrides(cfg, height, width)


RES50 = EXPERIMENT["pose_resnet50_coco"]


@pytest.fixture
def tool(monkeypatch, run_script):
    """Run tools/get_flops.py on ResNet-50 at the root of the repository."""
    monkeypatch.chdir(ROOT)
    return functools.partial(run_script, "get_flops", "--cfg", RES50)


def test_get_flops_prints_layers_and_totals(tool):
    status, output, _ = tool("--depth", "1", "--shape", "384", "288", "MODEL.NUM_JOINTS", "17")
    assert status == 0
    lines = output.splitlines()
    assert lines[0] == f"pose_resnet of {RES50}"
    table = [line.split() for line in lines[1 : lines.index("")]]
    assert table[0] == ["layer", "type", "parameters", "share", "operations", "share", "output"]
    assert table[1][:3] == ["network", "PoseResNet", "33,999,697"] and table[1][-5:] == [
        "17",
        "x",
        "96",
        "x",
        "72",
    ]
    operations = [int(row[5].replace(",", "")) for row in table[2:]]
    assert sum(operations) == int(table[1][5].replace(",", "")) == 5_426_380_800 * 9 // 4
    assert sum(float(row[6]) for row in table[2:]) == pytest.approx(100, abs=0.1)
    # columns stand below each other
    assert len({line.index(" %") for line in lines[2 : lines.index("")]}) == 1
    assert "parameters  33,999,697 = 34.00 M (10^6) = 32.42 Mi (2^20)" in lines
    assert "operations  12,209,356,800 = 12.21 G (10^9) = 11.37 Gi (2^30)" in lines


@pytest.mark.parametrize(
    "words, shape",
    [(["--shape", "128"], "128 x 128"), (["--shape", "64", "96"], "64 x 96"), ([], "256 x 192")],
)
def test_get_flops_shape_option_sets_input(words, shape, tool):
    status, output, _ = tool("--total-only", "--rule", "mmcv", *words)
    assert (
        status == 0
        and f"input       3 x {shape} (channels, height, width), one image" in output
        and "conv1" not in output
    )
    assert "rule        mmcv" in output


@pytest.mark.parametrize(
    "words, part",
    [
        (["--shape", "256", "192", "3"], "takes a height and a width"),
        (["--shape", "wide"], "takes a height and a width"),
        (["--shape", "255", "192"], "multiples of 4 above 0"),
        (["--shape", "100", "100"], "multiples of 32"),
        (["--depth", "-1"], "must be 0 or more"),
        (["--rule", "fvcore"], "invalid choice"),
        (["MODEL.EXTRA.NUM_LAYERS", "51"], "MODEL.EXTRA.NUM_LAYERS must be one of"),
    ],
)
def test_get_flops_invalid_option_exits_with_error(words, part, tool):
    status, output, errors = tool(*words)
    assert status == 2 and output == "" and part in errors
