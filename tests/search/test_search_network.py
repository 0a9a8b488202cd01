"""Test the search network: mixed operations, partial channels, checkpointing, both steps."""

import copy

import pytest
import torch
from poise import config
from poise.errors import ConfigError, PoiseError
from poise.models.posenas.genotypes import GENOTYPES
from poise.models.posenas.operations import OPERATIONS, SIZE_PRESERVING
from poise.search.bilevel import BilevelOptimizer
from poise.search.mixed import MixedCell, MixedOperation, without_affine
from poise.search.space import EDGES, Space
from poise.search.supernet import SearchNetwork, build, network_parameters
from poise.search.trial import kept_bytes
from support.golden_inputs import filled_input, filled_state
from support.paths import ROOT
from torch import nn
from torch.nn import functional as F

EXPERIMENT = ROOT / "experiments/coco/posenas/search_256x192.yaml"
SMALL = [
    "SEARCH.LAYERS",
    4,
    "SEARCH.INIT_CHANNELS",
    8,
    "MODEL.IMAGE_SIZE",
    [64, 64],
    "MODEL.HEATMAP_SIZE",
    [16, 16],
    "GPUS",
    (),
]


def small(*overrides, seed=0):
    """Return a small search network in train mode with filled weights, its space and config."""
    cfg = config.load(EXPERIMENT, [*SMALL, *overrides])
    space = Space.from_config(cfg)
    network = build(cfg, space).train()
    network.load_state_dict(filled_state(network.state_dict(), seed))
    return network, space, cfg


def batch_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randint(0, 256, (count, 64, 64, 3), generator=generator, dtype=torch.uint8),
        "joints": 8 + 48 * torch.rand(count, 17, 2, generator=generator),
        "visible": torch.full((count, 17), 2.0),
    }


def copies(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def equal(parameters, before):
    return [torch.equal(now, then) for now, then in zip(parameters, before)]


# operations and cells -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, stride",
    [
        (name, stride)
        for name in OPERATIONS
        for stride in (1, 2)
        if stride == 1 or name not in SIZE_PRESERVING
    ],
)
def test_mixed_operation_one_hot_equals_the_operation(name, stride):
    names = tuple(other for other in OPERATIONS if stride == 1 or other not in SIZE_PRESERVING)
    chosen = names.index(name)
    x, single = filled_input("mixed", (2, 8, 12, 16), 0), OPERATIONS[name](8, stride, 1)
    without_affine(single)
    mixed = MixedOperation(names, 8, stride, 1)
    mixed.load_state_dict(filled_state(mixed.state_dict(), 0))
    single.load_state_dict(mixed.candidates[chosen].state_dict())
    assert torch.equal(mixed(x, F.one_hot(torch.tensor(chosen), len(names)).float()), single(x))


def test_mixed_operation_is_a_weighted_sum():
    x, weights = filled_input("mixed", (2, 8, 6, 6), 0), torch.tensor([0.5, 0.3, 0.2])
    mixed = MixedOperation(("skip_connect", "std_conv_1x1", "avg_pool_3x3"), 8, 1, 1)
    conv, pool = mixed.candidates[1].net[1], mixed.candidates[2].pool

    def normed(y):
        return (y - y.mean((0, 2, 3), keepdim=True)) / (
            y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
        ).sqrt()

    with torch.no_grad():
        want = 0.5 * x + 0.3 * normed(conv(x.relu())) + 0.2 * normed(pool(x))
        torch.testing.assert_close(mixed(x, weights), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_operation_partial_channels_equals_formula(stride):
    x, weights = filled_input("partial", (2, 8, 6, 6), 0), torch.tensor([0.25, 0.75])
    mixed = MixedOperation(
        ("skip_connect", "std_conv_3x3"), 8, stride, 1, partial_channels=4
    ).eval()
    mixed.load_state_dict(filled_state(mixed.state_dict(), 0))
    assert mixed.candidates[1].net[1].weight.shape == (2, 2, 3, 3)
    with torch.no_grad():
        through = 0.25 * mixed.candidates[0](x[:, :2]) + 0.75 * mixed.candidates[1](x[:, :2])
        by = (
            x[:, 2:]
            if stride == 1
            else x[:, 2:].unflatten(2, (3, 2)).unflatten(4, (3, 2)).amax((3, 5))
        )
        got, both = mixed(x, weights), torch.cat([through, by], 1)
    # channel c of group g of the four goes to place 4 c + g: the first two of the next edge are of
    # two groups
    for group in range(4):
        for channel in range(2):
            assert torch.equal(got[:, 4 * channel + group], both[:, 2 * group + channel])


def test_search_network_candidates_have_no_affine():
    joint, encoder, decoder = (
        small("SEARCH.MODE", mode)[0] for mode in ("joint", "encoder", "decoder")
    )

    def affine(module):
        return {norm.affine for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)}

    for network in (joint, encoder):
        assert affine(network.cells) == {False}
    assert affine(decoder.cells) == {True} and affine(encoder.decoder) == {True}
    for network in (joint, decoder):
        assert all(
            affine(cell.edges) == {False} and affine(cell.preprocess0) == {True}
            for cell in network.decoder.upsamples
        )
    assert not [
        name for name, _ in joint.cells.named_parameters() if "bn" in name or "net.2" in name
    ]


def test_search_network_one_hot_equals_genotype_network():
    """With "none" edges and one-hot values, only the operations of the genotype remain."""
    genotype = GENOTYPES["npp_encoder"]
    network, space, _ = small(
        "SEARCH.ENCODER_OPERATIONS",
        "max_pool_3x3 std_conv_3x3 dil_conv_3x3_2 none",
        "SEARCH.DECODER_OPERATIONS",
        "none se_connect std_conv_3x3 avg_pool_3x3 dil_conv_3x3_2",
    )
    single = SearchNetwork(Space({}, genotype), num_keypoints=17, init_channels=8, layers=4).train()
    names = {}
    for kind, values in network.architecture.items():
        values.data.zero_()
        for row, (node, source) in enumerate(EDGES):
            chosen = {
                edge_source: operation
                for operation, edge_source in genotype.cells()[kind][
                    2 * (node - 2) : 2 * (node - 1)
                ]
            }
            values.data[row, space.operations[kind].index(chosen.get(source, "none"))] = 1e4
    groups = {"cells": network.cells, "decoder.upsamples": network.decoder.upsamples}
    for place, cell in [
        (f"{group}.{k}", cell) for group, cells in groups.items() for k, cell in enumerate(cells)
    ]:
        for number, (operation, source) in enumerate(genotype.cells()[cell.kind]):
            row, column = (
                EDGES.index((2 + number // 2, source)),
                space.operations[cell.kind].index(operation),
            )
            names[f"{place}._ops.{number}."] = f"{place}.edges.{row}.candidates.{column}."
    state, theirs = network.state_dict(), {}
    for name, value in single.state_dict().items():
        place = next(
            (
                names[prefix] + name.removeprefix(prefix)
                for prefix in names
                if name.startswith(prefix)
            ),
            name,
        )
        # batch norms without scale
        theirs[name] = state.get(
            place, torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
        )
    single.load_state_dict(theirs)
    images = filled_input("decided", (2, 3, 64, 64), 0)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[0], single(images)[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(network.eval()(images), network(images)) and network(images).std() > 0


def test_search_network_has_published_size():
    """Figures of an independent prototype: 20.24 million weights, 799 convolutions."""
    with torch.device("meta"):
        network = SearchNetwork(Space.from_config(config.load(EXPERIMENT)), num_keypoints=16)
    assert (
        round(sum(weight.numel() for weight in network_parameters(network).values()) / 1e6, 2)
        == 20.24
    )
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 799
    kinds = [cell.kind for cell in network.cells]
    assert kinds == ["normal", "normal", "normal", "reduce"] + [
        "normal",
        "normal",
        "reduce",
    ] * 2 + ["normal", "normal"]


@pytest.mark.parametrize("mode", ["joint", "encoder", "decoder"])
@pytest.mark.parametrize(
    "options", [[], ["SEARCH.PARTIAL_CHANNELS", 2], ["SEARCH.CHECKPOINTING", True]]
)
def test_search_network_outputs_and_gradients_are_finite(mode, options):
    network, space, cfg = small("SEARCH.MODE", mode, *options)
    outputs = network(filled_input("outputs", (2, 3, 64, 64), 0))
    assert isinstance(outputs, tuple) and [output.shape for output in outputs] == [(2, 17, 16, 16)]
    (outputs[0] - 1).square().mean().backward()
    assert [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ] == []
    assert all(values.grad.abs().sum() > 0 for values in network.architecture.values())
    with torch.no_grad():
        assert network.eval()(filled_input("outputs", (2, 3, 64, 64), 0)).shape == (2, 17, 16, 16)


def test_search_network_checkpointing_keeps_gradients():
    (plain, *_), (spare, *_) = small(), small("SEARCH.CHECKPOINTING", True)
    images = filled_input("recompute", (2, 3, 64, 64), 0)
    kept = [
        kept_bytes(
            lambda network=network: network(images)[0].square().mean().backward(),
            list(network.parameters()),
        )
        for network in (plain, spare)
    ]
    assert kept[1] < 0.5 * kept[0]
    for (name, one), other in zip(plain.named_parameters(), spare.parameters()):
        torch.testing.assert_close(
            other.grad,
            one.grad,
            rtol=1e-4,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    # the running statistics too: the second look at the batch does not count
    for (name, one), other in zip(plain.state_dict().items(), spare.state_dict().values()):
        assert torch.equal(one, other), name


def test_search_network_partial_channels_use_less_memory():
    kept = []
    for k in (1, 2):
        network, _, _ = small("SEARCH.PARTIAL_CHANNELS", k)
        kept.append(
            kept_bytes(
                lambda network=network: (
                    network(filled_input("partial", (2, 3, 64, 64), 0))[0].mean().backward()
                ),
                list(network.parameters()),
            )
        )
    assert kept[1] < 0.7 * kept[0]


def test_search_network_invalid_partial_channels_raise():
    with pytest.raises(
        ConfigError,
        match="SEARCH.PARTIAL_CHANNELS 4: the narrowest cell has 4 channels.*a multiple of 16",
    ):
        small("SEARCH.PARTIAL_CHANNELS", 4)


def test_search_network_init_weights_keep_architecture():
    cfg = config.load(EXPERIMENT, SMALL)
    torch.manual_seed(0)
    network = build(cfg, Space.from_config(cfg))
    assert all((values == 1e-3).all() for values in network.architecture.values())
    convs = torch.cat(
        [module.weight.flatten() for module in network.modules() if isinstance(module, nn.Conv2d)]
    )
    assert convs.std().item() == pytest.approx(0.001, rel=0.02)


# steps --------------------------------------------------------------------------------------------


def alternation(*overrides):
    network, _, cfg = small(*overrides)
    return BilevelOptimizer(cfg, network, torch.device("cpu"))


def test_alternation_step_changes_its_own_parameters():
    turns = alternation()
    assert len(turns.alphas) == 5 and sum(values.numel() for values in turns.alphas) == 420
    everything = {id(parameter) for parameter in turns.network.parameters()}
    mine = [
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (turns.weight_optimizer, turns.alpha_optimizer)
    ]
    assert mine[0] | mine[1] == everything and not mine[0] & mine[1] and len(mine[1]) == 5

    weights, values = copies(turns.weights), copies(turns.alphas)
    turns.weights_step(batch_of(4), 0)
    assert all(equal(turns.alphas, values)) and not any(equal(turns.weights, weights))
    assert all(value.grad is None for value in turns.alphas)

    weights = copies(turns.weights)
    turns.architecture_step(batch_of(4, seed=1))
    assert all(equal(turns.weights, weights)) and not any(equal(turns.alphas, values))
    assert all(parameter.requires_grad for parameter in turns.network.parameters())


def test_alternation_architecture_step_descends():
    """Adam's first step moves each value by the learning rate against its gradient."""
    turns = alternation("SEARCH.ALPHA_LR", 0.1, "SEARCH.ALPHA_WD", 0)
    before = copies(turns.alphas)
    turns.architecture_step(batch_of(4))
    for values, old in zip(turns.alphas, before):
        torch.testing.assert_close(
            old - values.detach(), 0.1 * values.grad / (values.grad.abs() + 1e-8), rtol=0, atol=1e-5
        )


def test_alternation_weights_step_clips_gradients():
    norms = {}
    for clip in (0.0, 1e-4):
        turns = alternation("SEARCH.GRAD_CLIP", clip)
        turns.weights_step(batch_of(4), 0)
        norms[clip] = torch.cat([weight.grad.flatten() for weight in turns.weights]).norm().item()
    assert norms[0.0] > 1e-3 and norms[1e-4] == pytest.approx(1e-4, rel=1e-3)


def test_alternation_rate_follows_lr_step():
    turns = alternation("SEARCH.LR_STEP", [20, 30], "SEARCH.W_LR", 0.001)
    assert [turns.lr_at(epoch) for epoch in (0, 19, 20, 30, 39)] == pytest.approx(
        [1e-3, 1e-3, 2e-4, 4e-5, 4e-5]
    )
    turns.weights_step(batch_of(2), 20)
    assert turns.weight_optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)
    group = turns.alpha_optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (4e-4, (0.9, 0.999), 1e-4)


def test_alternation_weights_steps_reduce_loss():
    turns = alternation("SEARCH.W_LR", 0.01)
    turns.network.init_weights()
    losses = [turns.weights_step(batch_of(4), 0)[0] for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_alternation_nan_loss_raises_and_restores_requires_grad():
    turns = alternation()
    before = copy.deepcopy(turns.network.state_dict())
    turns.network.decoder.final_layer.bias.data.fill_(float("inf"))
    with pytest.raises(PoiseError, match="the loss of the search is .*lower SEARCH.W_LR"):
        turns.architecture_step(batch_of(2))
    assert all(parameter.requires_grad for parameter in turns.network.parameters())
    assert all(
        torch.equal(value, before[f"architecture.{kind}"])
        for kind, value in turns.network.architecture.items()
    )


def test_search_network_cells_of_a_kind_share_probabilities():
    network, _, _ = small("SEARCH.LAYERS", 8)
    network(filled_input("shared", (2, 3, 64, 64), 0))
    by_kind = {}
    for cell in network.modules():
        if isinstance(cell, MixedCell):
            by_kind.setdefault(cell.kind, []).append(cell.weights)
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "normal": 5,
        "reduce": 3,
        "upsample1": 1,
        "upsample2": 1,
        "upsample3": 1,
    }
    for kind, found in by_kind.items():
        for weights in found:
            torch.testing.assert_close(weights.sum(1), torch.ones(14))
            assert torch.equal(weights, network.architecture[kind].softmax(1))
