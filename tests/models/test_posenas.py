"""Test PoseNAS: genotypes, operations and Fusion-and-Enhancement."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from poise import config
from poise.errors import ConfigError, DataError
from poise.models import build_model
from poise.models.posenas.cells import Cell, EncoderCells, reduction_cells
from poise.models.posenas.genotypes import GENOTYPES, find_genotype, read_genotype
from poise.models.posenas.network import PoseNAS
from poise.models.posenas.operations import (
    OPERATIONS,
    SIZE_PRESERVING,
    FactorizedReduce,
    SqueezeExcite,
)
from support.golden_inputs import filled_input, filled_state
from support.paths import GOLDEN, ROOT
from torch import nn
from torch.nn import functional as F

EXPERIMENT = ROOT / "experiments/coco/posenas/256x192_18l_48c.yaml"
SMALL = [
    "MODEL.EXTRA.INIT_CHANNELS",
    8,
    "MODEL.EXTRA.LAYERS",
    4,
    "MODEL.EXTRA.REFINE_CHANNELS",
    4,
    "MODEL.EXTRA.REFINE_LAYERS",
    4,
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


def as_the_original(model, images):
    """Both heatmaps as in the original: the decoder changes its input list and applies ReLU in
    place.
    """

    def decode(stage, features):
        for level, cell in zip((2, 1, 0), stage.upsamples):
            features[level] = cell(features[level + 1], features[level])
        return stage.final_layer(F.relu_(features[0]))

    s0 = model.stem1(model.stem0(images))
    features = model.cells(s0, model.stem2(s0))
    before = features  # meant as the encoder's features, but the same list
    first = decode(model.stage1, features)
    s0 = model.reduce_channel_prev(before[0])
    s1 = s0 + model.reduce_channel_prev(features[0])
    refined = model.refine_cells(s0, s1)
    enhanced = []
    for level in range(4):
        reduced = getattr(model, f"reduce_channel{level}")(refined[level])
        enhanced.append(
            before[level] + features[level] + reduced if level < 3 else before[level] + reduced
        )
    return first, decode(model.stage2, enhanced)


def as_intended(model, images):
    """Both heatmaps without the side effects of the original."""
    s0 = model.stem1(model.stem0(images))
    f = model.cells(s0, model.stem2(s0))
    t = model.stage1(*f)
    prev = model.reduce_channel_prev
    s0 = prev(f[0])
    g = model.refine_cells(s0, s0 + prev(t[0]))
    reduced = [getattr(model, f"reduce_channel{level}")(g[level]) for level in range(4)]
    e = [f[level] + t[level] + reduced[level] for level in range(3)] + [f[3] + reduced[3]]
    return model.stage1.final_layer(t[0].relu()), model.stage2.final_layer(
        model.stage2(*e)[0].relu()
    )


@pytest.mark.parametrize("aliased, reference", [(True, as_the_original), (False, as_intended)])
@pytest.mark.parametrize("training", [True, False])
def test_forward_aliased_features_equals_reference_formula(aliased, reference, training):
    model, twin = (
        filled(small("MODEL.EXTRA.ALIASED_FEATURES", aliased)).train(training) for _ in range(2)
    )
    images = filled_input("fusion", (2, 3, 96, 64), 0)
    with torch.no_grad():
        got, want = model(images), reference(twin, images)
    got = got if training else (None, got)
    for output, expected in zip(got, want):
        if output is not None:
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    # the running statistics too, reduce_channel_prev's two steps per batch among them
    for (name, have), expected in zip(model.state_dict().items(), twin.state_dict().values()):
        torch.testing.assert_close(
            have, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert model.reduce_channel_prev[2].num_batches_tracked == 2 * training


def test_forward_aliased_features_changes_outputs():
    images = filled_input("fusion", (2, 3, 96, 64), 0)
    with torch.no_grad():
        one, other = (
            filled(small("MODEL.EXTRA.ALIASED_FEATURES", aliased)).eval()(images)
            for aliased in (True, False)
        )
    assert (one - other).abs().max() > 0.1 * one.std()


def test_forward_train_mode_first_heatmaps_equal_reference():
    record = json.loads((GOLDEN / "models/posenas_l18_c48_coco.json").read_text())
    model = filled(
        build_model(config.load(EXPERIMENT, ["MODEL.INIT_WEIGHTS", False])), record["seed"]
    ).eval()
    calls = []
    model.stage1.final_layer.register_forward_hook(lambda *_: calls.append(1))
    features = {}
    model.stage1.register_forward_hook(
        lambda module, inputs, outputs: features.update(t4=outputs[0])
    )
    run = record["runs"][0]
    with torch.no_grad():
        model(filled_input("posenas_l18_c48_coco", run["input"], record["seed"]))
        assert not calls
        first = model.stage1.head(features["t4"])
    want = run["outputs"][0]
    assert list(first.shape) == want["shape"]
    assert (
        np.abs(first.reshape(-1).double().numpy()[want["index"]] - want["value"]).max()
        < 1e-4 * want["std"]
    )


def test_backward_two_outputs_reach_every_weight():
    model = filled(small()).train()
    outputs = model(filled_input("gradient", (2, 3, 96, 64), 0))
    assert [output.shape for output in outputs] == [(2, 17, 24, 16)] * 2
    sum(output.square().mean() for output in outputs).backward()
    assert [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ] == []


def test_init_weights_follow_the_reference():
    torch.manual_seed(0)
    model = build_model(config.load(EXPERIMENT))
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert torch.cat([conv.weight.flatten() for conv in convs]).std().item() == pytest.approx(
        0.001, rel=0.01
    )
    assert all(conv.bias is None or not conv.bias.any() for conv in convs)


@pytest.mark.parametrize(
    "layers, reductions, taps",
    [
        (18, (3, 8, 15), (2, 7, 14, 17)),
        (12, (3, 6, 9), (2, 5, 8, 11)),
        (4, (1, 2, 3), (0, 1, 2, 3)),
        (20, (5, 10, 15), (4, 9, 14, 19)),
    ],
)
def test_encoder_cells_reduce_and_tap_at_published_layers(layers, reductions, taps):
    assert reduction_cells(layers) == reductions
    genotype = GENOTYPES["posenas"]
    with torch.device("meta"):
        cells = EncoderCells(genotype.normal, genotype.reduce, 16, 4, layers, 1)
        features = cells(torch.zeros(1, 16, 64, 32), torch.zeros(1, 16, 64, 32))
    assert cells.taps == taps
    assert [tuple(f.shape[1:]) for f in features] == [
        (16, 64, 32),
        (32, 32, 16),
        (64, 16, 8),
        (128, 8, 4),
    ]
    assert [
        k for k, cell in enumerate(cells) if isinstance(cell.preprocess0, FactorizedReduce)
    ] == [k + 1 for k in reductions if k + 1 < layers]


@pytest.mark.parametrize(
    "name, stride",
    [
        (name, stride)
        for name in OPERATIONS
        for stride in (1, 2)
        if stride == 1 or name not in SIZE_PRESERVING
    ],
)
def test_operations_stride_keeps_or_halves_size(name, stride):
    x = filled_input(name, (2, 8, 12, 16), 0)
    kept = x.clone()
    output = OPERATIONS[name](8, stride, 1).eval()(x)
    assert output.shape == (2, 8, 12 // stride, 16 // stride)
    assert torch.equal(x, kept)  # a state feeds several edges
    assert output.any() == (name != "none")


def test_operations_equal_formulas():
    x = filled_input("operations", (2, 8, 6, 6), 0)
    counts = F.avg_pool2d(torch.ones(1, 1, 6, 6), 3, 1, 1) * 9

    def built(name, stride=1):
        return filled(OPERATIONS[name](8, stride, 2)).eval()

    def normed(bn, y):
        shape = (1, 8, 1, 1)
        return (y - bn.running_mean.view(shape)) / (
            bn.running_var.view(shape) + 1e-5
        ).sqrt() * bn.weight.view(shape) + bn.bias.view(shape)

    with torch.no_grad():
        average = built("avg_pool_3x3")
        # the border counts only what is there
        torch.testing.assert_close(
            average(x), normed(average.bn, F.avg_pool2d(x, 3, 1, 1) * 9 / counts)
        )
        largest = built("max_pool_3x3", 2)
        torch.testing.assert_close(
            largest(x), normed(largest.bn, F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-1e9), 3, 2))
        )
        assert torch.equal(built("skip_connect")(x), x)
        halved = built("skip_connect", 2)
        positive = x.relu()
        parts = [
            F.conv2d(positive[:, :, ::2, ::2], halved.conv1.weight),
            F.conv2d(positive[:, :, 1::2, 1::2], halved.conv2.weight),
        ]
        torch.testing.assert_close(halved(x), normed(halved.bn, torch.cat(parts, 1)))
        gate = built("spatial_wise")
        torch.testing.assert_close(
            gate(x), x * torch.einsum("oc,bchw->bohw", gate.conv.weight[:, :, 0, 0], x).sigmoid()
        )
        excite = built("se_connect")
        assert excite.fc1.weight.shape == (4, 8, 1, 1)
        hidden = (x.mean((2, 3)) @ excite.fc1.weight[:, :, 0, 0].T + excite.fc1.bias).relu()
        weight = (hidden @ excite.fc2.weight[:, :, 0, 0].T + excite.fc2.bias).sigmoid()
        torch.testing.assert_close(excite(x), x * weight[:, :, None, None])
        dilated = built("dil_conv_3x3_4")
        assert (dilated.net[1].dilation, dilated.net[1].groups) == ((4, 4), 1)
        torch.testing.assert_close(
            dilated(x),
            normed(
                dilated.net[2], F.conv2d(positive, dilated.net[1].weight, padding=4, dilation=4)
            ),
        )


def test_cell_output_equals_its_genotype():
    edges = (
        ("skip_connect", 1),
        ("skip_connect", 0),
        ("none", 2),
        ("skip_connect", 2),
        ("skip_connect", 3),
        ("skip_connect", 0),
        ("none", 0),
        ("none", 1),
    )
    a, b = filled_input("a", (1, 2, 3, 3), 0), filled_input("b", (1, 2, 3, 3), 0)
    output = Cell(edges, nn.Identity(), nn.Identity(), 2, 1)(a, b)
    torch.testing.assert_close(output, torch.cat([a + b, a + b, a + b + a, torch.zeros_like(a)], 1))


def test_build_model_se_reduction_2_has_published_parameters():
    with torch.device("meta"):
        model = build_model(config.load(EXPERIMENT, ["MODEL.EXTRA.SE_REDUCTION", 2]))
    assert sum(p.numel() for p in model.parameters()) == 22_108_002
    assert {
        m.fc1.out_channels * 2 == m.fc1.in_channels
        for m in model.modules()
        if isinstance(m, SqueezeExcite)
    } == {True}


def test_read_genotype_written_file_is_equal(tmp_path):
    for genotype in GENOTYPES.values():
        path = tmp_path / "genotype.json"
        path.write_text(json.dumps(genotype.as_json()))
        again = read_genotype(path)
        assert again == genotype and again.meta == genotype.meta


def test_genotypes_shipped_equal_published():
    genotype = GENOTYPES["posenas"]
    assert genotype.normal[:4] == (
        ("std_conv_3x3", 1),
        ("std_conv_3x3", 0),
        ("std_conv_3x3", 2),
        ("std_conv_3x3", 1),
    )
    assert genotype.upsample3[2:6] == (
        ("avg_pool_3x3", 0),
        ("se_connect", 2),
        ("se_connect", 0),
        ("dil_conv_3x3_2", 1),
    )
    encoder, decoder = GENOTYPES["npp_encoder"], GENOTYPES["npp_decoder"]
    assert (
        encoder.reduce[:2] == (("max_pool_3x3", 1), ("std_conv_3x3", 0))
        and encoder.upsample1 == genotype.upsample1
    )
    assert (
        decoder.upsample2[6:] == (("dil_conv_3x3_4", 4), ("std_conv_3x3", 3))
        and decoder.normal == genotype.normal
    )
    assert len(set(GENOTYPES.values())) == 3  # hashable, whatever their meta
    assert all(g.meta["source"] for g in GENOTYPES.values())


@pytest.mark.parametrize("name", sorted(GENOTYPES))
def test_build_model_genotype_name_or_file_gives_equal_networks(name, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(GENOTYPES[name].as_json()))
    images = filled_input("genotype", (1, 3, 96, 64), 0)
    with torch.no_grad():
        one, two = (
            filled(small("MODEL.GENOTYPE", which)).eval()(images) for which in (name, str(path))
        )
    assert one.shape == (1, 17, 24, 16) and one.isfinite().all() and torch.equal(one, two)


def written(change):
    content = GENOTYPES["posenas"].as_json()
    change(content)
    return json.dumps(content)


def edge(cell, number, value):
    def change(content):
        group = "decoder" if cell.startswith("up") else "encoder"
        content[group][cell][number] = value

    return change


@pytest.mark.parametrize(
    "text, part",
    [
        ("[1, 2]", "the genotype must be an object with version, got list"),
        ("{", "not valid JSON"),
        ("{}", "the genotype has no 'version'"),
        (written(lambda c: c.update(version=2)), "version 2; this Poise reads version 1"),
        (written(lambda c: c.update(version=True)), "version True"),
        (written(lambda c: c.pop("decoder")), "the genotype has no 'decoder'"),
        (
            written(lambda c: c.update(encoder=[])),
            "encoder must be an object with normal, reduce, got list",
        ),
        (written(lambda c: c["encoder"].pop("reduce")), "encoder has no 'reduce'"),
        (
            written(lambda c: c["decoder"].update(upsample4=[])),
            "decoder has an unknown key 'upsample4'",
        ),
        (written(lambda c: c.update(author="me")), "unknown key 'author'"),
        (
            written(lambda c: c["encoder"].update(concat=[2, 3])),
            r"encoder.concat must be \[2, 3, 4, 5\]",
        ),
        (written(lambda c: c.update(meta="me")), "meta must be an object, got str"),
        (
            written(lambda c: c["encoder"]["normal"].pop()),
            "encoder.normal must be a list of 8 edges, 2 for each of 4 nodes; got 7",
        ),
        (
            written(lambda c: c["encoder"].update(normal="std")),
            "encoder.normal must be a list of 8 edges.* got str",
        ),
        (
            written(edge("upsample1", 3, ["std_conv_3x3"])),
            r"decoder.upsample1\[3\] must be \[operation, state\]",
        ),
        (
            written(edge("upsample2", 0, ["std_conv_3x4", 0])),
            (
                r"decoder.upsample2\[0\]: 'std_conv_3x4' is not an operation .*did you mean"
                r" std_conv_3x3\?"
            ),
        ),
        (written(edge("upsample2", 0, [["std_conv_3x3"], 0])), "is not an operation"),
        (
            written(edge("normal", 2, ["std_conv_3x3", 3])),
            r"encoder.normal\[2\]: node 3 takes its input from states 0 to 2, got 3",
        ),
        (
            written(edge("normal", 7, ["std_conv_3x3", 5])),
            r"encoder.normal\[7\]: node 5 takes its input from states 0 to 4, got 5",
        ),
        (written(edge("normal", 0, ["std_conv_3x3", -1])), "states 0 to 1, got -1"),
        (written(edge("normal", 0, ["std_conv_3x3", True])), "got True"),
        (written(edge("normal", 0, ["std_conv_3x3", 1.0])), "got 1.0"),
        (
            written(edge("reduce", 1, ["se_connect", 0])),
            r"encoder.reduce\[1\]: se_connect does not stride",
        ),
        (
            written(edge("reduce", 2, ["spatial_wise", 1])),
            r"encoder.reduce\[2\]: spatial_wise does not stride",
        ),
    ],
)
def test_find_genotype_invalid_file_raises(text, part, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match=part) as refusal:
        find_genotype(str(path))
    assert str(refusal.value).startswith(str(path)) and "\n" not in str(refusal.value)


def test_build_model_stride_blind_operation_inside_reduction_cell_is_allowed():
    reduce = list(GENOTYPES["posenas"].reduce)
    reduce[2] = ("se_connect", 2)
    genotype = dataclasses.replace(GENOTYPES["posenas"], reduce=tuple(reduce))
    model = PoseNAS(
        genotype=genotype,
        num_keypoints=3,
        init_channels=4,
        layers=4,
        refine_channels=4,
        refine_layers=4,
    ).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "overrides, part",
    [
        (
            ["MODEL.GENOTYPE", "posenass"],
            "MODEL.GENOTYPE 'posenass' is neither a genotype of Poise .*did you mean posenas",
        ),
        (["MODEL.GENOTYPE", ""], "MODEL.GENOTYPE '' is neither"),
        (["MODEL.EXTRA.LAYERS", 14], "MODEL.EXTRA.LAYERS must be 18 or a multiple of 4 .*got 14"),
        (["MODEL.EXTRA.LAYERS", 0], "MODEL.EXTRA.LAYERS"),
        (["MODEL.EXTRA.REFINE_LAYERS", "deep"], "MODEL.EXTRA.REFINE_LAYERS .*got 'deep'"),
        (["MODEL.EXTRA.INIT_CHANNELS", 47], "MODEL.EXTRA.INIT_CHANNELS must be an even number"),
        (["MODEL.EXTRA.INIT_CHANNELS", True], "MODEL.EXTRA.INIT_CHANNELS"),
        (["MODEL.EXTRA.REFINE_CHANNELS", [16]], "MODEL.EXTRA.REFINE_CHANNELS"),
        (["MODEL.EXTRA.SE_REDUCTION", 3], "MODEL.EXTRA.SE_REDUCTION must be 1 or 2"),
        (["MODEL.EXTRA.ALIASED_FEATURES", 1], "MODEL.EXTRA.ALIASED_FEATURES must be True or False"),
        (
            ["MODEL.EXTRA.LAYER", 18],
            "MODEL.EXTRA.LAYER is not a key of posenas; the nearest known keys are LAYERS",
        ),
        (
            ["MODEL.IMAGE_SIZE", [64, 80], "MODEL.HEATMAP_SIZE", [16, 20]],
            "posenas takes multiples of 32",
        ),
        (["MODEL.HEATMAP_SIZE", [32, 48]], "heatmaps of 1/4"),
    ],
)
def test_build_model_invalid_options_raise(overrides, part):
    with pytest.raises(ConfigError, match=part):
        small(*overrides)


def test_build_model_missing_genotype_file_raises():
    with pytest.raises(DataError, match="none.json: cannot read the genotype"):
        small("MODEL.GENOTYPE", "none.json")


def test_genotype_replace_invalid_reduction_raises():
    with pytest.raises(ConfigError, match=r"encoder.reduce\[0\]: spatial_wise does not stride"):
        dataclasses.replace(
            GENOTYPES["posenas"], reduce=(("spatial_wise", 1), *GENOTYPES["posenas"].reduce[1:])
        )
