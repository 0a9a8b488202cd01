"""Test the search space: candidates, deriving genotypes, random genotypes, drawings."""

import json
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from poise import config
from poise.config.defaults import default_config
from poise.errors import ConfigError, DataError
from poise.models import build_model
from poise.models.posenas.genotypes import GENOTYPES, find_genotype, read_genotype, write_genotype
from poise.models.posenas.operations import OPERATIONS
from poise.search.architecture import derive, derive_cells, entropy, init_alphas, probabilities
from poise.search.drawing import cells_svg
from poise.search.search_logger import (
    changed_edges,
    derive_genotype,
    probability_picture,
    probability_table,
)
from poise.search.space import EDGES, Space
from support.golden_inputs import filled_input, filled_state
from support.paths import GOLDEN, ROOT

EXPERIMENT = ROOT / "experiments/mpii/posenas/search_256x256.yaml"
SIX = ("a", "b", "c", "d", "e", "f")


def space(*overrides):
    return Space.from_config(config.load(EXPERIMENT, overrides))


def one_hot(of, genotype):
    """Return architecture values of a genotype: the first edge of each node is the strongest."""
    values = init_alphas(of)
    for kind, table in values.items():
        for number, (operation, source) in enumerate(genotype.cells()[kind]):
            table.data[
                EDGES.index((2 + number // 2, source)), of.operations[kind].index(operation)
            ] = 9.0 - number % 2
    return values


def test_space_defaults_equal_published():
    found = space()
    assert EDGES == (
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
        (3, 2),
        (4, 0),
        (4, 1),
        (4, 2),
        (4, 3),
        (5, 0),
        (5, 1),
        (5, 2),
        (5, 3),
        (5, 4),
    )
    assert found.num_alphas == 420
    values = init_alphas(found)
    assert list(values) == ["normal", "reduce", "upsample1", "upsample2", "upsample3"]
    assert all(table.shape == (14, 6) and (table == 1e-3).all() for table in values.values())
    assert found.operations["reduce"] == (
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "dil_conv_3x3_2",
        "std_conv_1x1",
        "std_conv_3x3",
    )
    assert found.operations["upsample2"] == (
        "avg_pool_3x3",
        "max_pool_3x3",
        "std_conv_3x3",
        "dil_conv_3x3_2",
        "dil_conv_3x3_4",
        "se_connect",
    )


@pytest.mark.parametrize(
    "mode, kinds",
    [("encoder", ["normal", "reduce"]), ("decoder", ["upsample1", "upsample2", "upsample3"])],
)
def test_space_encoder_or_decoder_keeps_given_cells(mode, kinds):
    found = space("SEARCH.MODE", mode, "SEARCH.GENOTYPE", "npp_encoder")
    assert list(init_alphas(found)) == kinds and found.num_alphas == 84 * len(kinds)
    drawn, given = found.random(0).cells(), GENOTYPES["npp_encoder"].cells()
    assert {kind for kind in drawn if drawn[kind] != given[kind]} == set(kinds)


@pytest.mark.parametrize("name", sorted(GENOTYPES))
def test_derive_cells_one_hot_gives_the_genotype(name):
    of = space()
    genotype = GENOTYPES[name]
    assert derive_cells(of, probabilities(one_hot(of, genotype))) == genotype.cells()


def test_derive_one_hot_network_equals_recorded(tmp_path):
    cfg, of = config.load(EXPERIMENT), space()
    found = derive_genotype(
        cfg, str(EXPERIMENT), of, probabilities(one_hot(of, GENOTYPES["posenas"])), {"epoch": 39}
    )
    write_genotype(tmp_path / "genotype.json", found)
    record = json.loads((GOLDEN / "models/posenas_l18_c48_coco.json").read_text())
    model = build_model(
        config.load(
            ROOT / "experiments/coco/posenas/256x192_18l_48c.yaml",
            ["MODEL.GENOTYPE", str(tmp_path / "genotype.json"), "MODEL.INIT_WEIGHTS", False],
        )
    ).eval()
    assert [[name, list(value.shape)] for name, value in model.state_dict().items()] == record[
        "keys"
    ]
    model.load_state_dict(filled_state(model.state_dict(), record["seed"]))
    run = record["runs"][0]
    with torch.no_grad():
        output = (
            model(filled_input("posenas_l18_c48_coco", run["input"], record["seed"]))
            .reshape(-1)
            .double()
            .numpy()
        )
    want = run["outputs"][-1]
    assert np.abs(output[want["index"]] - want["value"]).max() < 1e-4 * want["std"]


def test_derive_equals_hand_result():
    table = np.full((14, 6), 0.1)
    table[0, 5], table[1, 2] = 0.3, 0.2  # node 2: the edge from 0 is stronger
    table[2, 1], table[3, 1], table[4, 3] = 0.2, 0.4, 0.3  # node 3: from 1, then from 2
    # node 4: from 3, then, of even ones, from 0; of even operations the first
    table[8, 4] = 0.5
    # node 5: even, so the earlier state first
    table[12, 0], table[13, 0] = 0.5, 0.5
    assert derive(SIX, table) == (
        ("f", 0),
        ("c", 1),
        ("b", 1),
        ("d", 2),
        ("e", 3),
        ("a", 0),
        ("a", 3),
        ("a", 4),
    )


def test_derive_none_is_never_selected():
    table = np.full((14, 6), 0.1)
    table[:, 0], table[1, 3], table[3, 3] = 0.5, 0.2, 0.2
    found = derive(("none", *SIX[1:]), table)
    assert all(operation != "none" for operation, _ in found)
    assert found[:4] == (("d", 1), ("b", 0), ("d", 1), ("b", 0))


def test_entropy_equals_hand_figures():
    table = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(entropy(table), [1, 0, 0.5])
    assert entropy(np.ones((2, 1))).tolist() == [0, 0]


def test_space_random_is_seeded_and_uniform():
    of = space()
    drawn = [of.random(seed) for seed in range(200)]
    assert of.random(7) == drawn[7] and len(set(drawn)) == 200
    sources, operations = Counter(), Counter()
    for genotype in drawn:
        for kind, edges in genotype.cells().items():
            assert {operation for operation, _ in edges} <= set(of.operations[kind])
            assert all(edges[k][1] != edges[k + 1][1] for k in range(0, 8, 2))
            sources.update(source for _, source in edges[6:])
            operations.update((kind, operation) for operation, _ in edges)
    # 2000 sources of 5 states, 1600 operations of 6 for each kind; five standard deviations
    assert all(abs(sources[state] - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5 for state in range(5))
    assert len(operations) == 30 and all(
        abs(count - 1600 / 6) < 5 * (1600 / 6 * 5 / 6) ** 0.5 for count in operations.values()
    )
    assert "none" not in {
        operation
        for operation, _ in (
            space("SEARCH.ENCODER_OPERATIONS", "none, std_conv_1x1").random(0).normal
        )
    }


def test_changed_edges_ignore_order():
    of, genotype = space(), GENOTYPES["posenas"]
    assert changed_edges(genotype, None, of) is None
    cells = dict(genotype.cells())
    one, two, *rest = cells["normal"]
    assert changed_edges(of.genotype({**cells, "normal": (two, one, *rest)}, {}), genotype, of) == 0
    assert (
        changed_edges(
            of.genotype({**cells, "normal": (("skip_connect", 1), two, *rest)}, {}), genotype, of
        )
        == 1
    )
    half = space("SEARCH.MODE", "decoder")
    assert (
        changed_edges(
            of.genotype({**cells, "normal": (("skip_connect", 1), two, *rest)}, {}), genotype, half
        )
        == 0
    )


@pytest.mark.parametrize(
    "overrides, part",
    [
        (
            ["SEARCH.ENCODER_OPERATIONS", "std_conv_3x3, se_connect"],
            "SEARCH.ENCODER_OPERATIONS: se_connect does not stride",
        ),
        (["SEARCH.ENCODER_OPERATIONS", "spatial_wise"], "spatial_wise does not stride"),
        (
            ["SEARCH.DECODER_OPERATIONS", "std_conv_3x4"],
            (
                "SEARCH.DECODER_OPERATIONS: 'std_conv_3x4' is not an operation .*did you mean"
                " std_conv_3x3"
            ),
        ),
        (["SEARCH.DECODER_OPERATIONS", "se_connect se_connect"], "an operation is there twice"),
        (["SEARCH.DECODER_OPERATIONS", "none"], "at least one operation other than none"),
        (["SEARCH.DECODER_OPERATIONS", ""], "at least one operation other than none, got ''"),
        (
            ["SEARCH.GENOTYPE", "posenass"],
            "SEARCH.GENOTYPE 'posenass' is neither .* did you mean posenas",
        ),
        (["SEARCH.MODE", "both"], "SEARCH.MODE must be one of 'joint', 'encoder', 'decoder'"),
        (["SEARCH.LAYERS", 18], "SEARCH.LAYERS must be a multiple of 4"),
        (["SEARCH.INIT_EPOCHS", 40], "SEARCH.INIT_EPOCHS must be .* below SEARCH.EPOCHS"),
        (["SEARCH.W_FRACTION", 1], "SEARCH.W_FRACTION must be between 0 and 1"),
        (["SEARCH.ALPHA_BETAS", [0.9]], "SEARCH.ALPHA_BETAS must be two numbers"),
    ],
)
def test_space_invalid_options_raise(overrides, part):
    with pytest.raises(ConfigError, match=part) as refusal:
        space(*overrides)
    assert "\n" not in str(refusal.value)


def test_space_other_operations_are_allowed():
    """As in docs/search.md: every operation can be a candidate."""
    of = space(
        "SEARCH.DECODER_OPERATIONS",
        ", ".join(OPERATIONS),
        "SEARCH.ENCODER_OPERATIONS",
        "skip_connect none",
    )
    assert of.num_alphas == 14 * (2 * 2 + 3 * len(OPERATIONS))


# files and images -------------------------------------------------------------------------------


def test_write_genotype_then_read_keeps_origin(tmp_path):
    cfg, of = config.load(EXPERIMENT), space()
    found = derive_genotype(
        cfg,
        "x/search_256x256.yaml",
        of,
        probabilities(one_hot(of, GENOTYPES["npp_encoder"])),
        {"epoch": 3, "Mean": 61.5},
    )
    write_genotype(tmp_path / "found.json", found)
    again = read_genotype(tmp_path / "found.json")
    assert again == found == GENOTYPES["npp_encoder"]
    assert (
        again.meta["config"]["SEARCH"] == dict(cfg.SEARCH)
        and again.meta["config"]["DATASET"]["DATASET"] == "mpii"
    )
    assert again.meta["figures"] == {"epoch": 3, "Mean": 61.5}
    strong, weak = (np.exp(9 - k) / (np.exp(9 - k) + 5 * np.exp(1e-3)) for k in (0, 1))
    np.testing.assert_allclose(again.meta["probabilities"]["reduce"], [strong, weak] * 4, atol=1e-6)
    nothing_counted = derive_genotype(
        cfg,
        "x/search_256x256.yaml",
        of,
        probabilities(one_hot(of, found)),
        {"epoch": 3, "Ankle": float("nan")},
    )
    write_genotype(tmp_path / "uncounted.json", nothing_counted)
    assert read_genotype(tmp_path / "uncounted.json").meta["figures"] == {"epoch": 3, "Ankle": None}
    lines = (tmp_path / "found.json").read_text().splitlines()
    # a cell on a line, for people
    assert lines[3].startswith('  "normal": [["std_conv_3x3", 0], ["std_conv_3x3", 1]')


def test_read_genotype_other_version_raises(tmp_path):
    write_genotype(tmp_path / "old.json", GENOTYPES["posenas"])
    path = tmp_path / "old.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(DataError, match="a genotype of version 7; this Poise reads version 1"):
        find_genotype(str(path))


def test_cells_svg_contains_every_edge():
    genotype = GENOTYPES["posenas"]
    root = ElementTree.fromstring(
        cells_svg(genotype, "a < b & c \u202e\x07", {"normal": [0.5] * 8})
    )
    svg = "{http://www.w3.org/2000/svg}"
    panels = root.findall(f"{svg}g")
    assert len(panels) == 6 and root.find(f"{svg}title").text == "a < b & c \\u202e\\x07"
    looks = {
        "std_conv_3x3": "3x3",
        "dil_conv_3x3_2": "3x3 d2",
        "se_connect": "SE",
        "avg_pool_3x3": "avg",
    }
    for panel, (kind, edges) in zip(panels, genotype.cells().items()):
        texts = [text.text for text in panel.findall(f"{svg}text")]
        assert texts[0].startswith(f"{kind}: ")
        halved = [" /2" if kind == "reduce" and source < 2 else "" for _, source in edges]
        assert [text for text in texts if text.split(" /2")[0] in looks.values()] == [
            looks[name] + half for (name, _), half in zip(edges, halved)
        ]
        assert texts.count("50.0 %") == (8 if kind == "normal" else 0)
        # a dot on the line of its source for every edge
        dots = Counter(
            circle.get("cy") for circle in panel.findall(f"{svg}circle") if circle.get("r") == "3.2"
        )
        assert sorted(dots.values()) == sorted(Counter(source for _, source in edges).values())
    assert {
        name
        for name in (text.text for text in panels[5].findall(f"{svg}text"))
        if name in OPERATIONS
    } == set(looks)


def test_probability_table_and_image_equal_values():
    of, genotype = space(), GENOTYPES["posenas"]
    table = probabilities(one_hot(of, genotype))["upsample3"]
    lines = probability_table(of, "upsample3", table, genotype).splitlines()
    assert (
        lines[0].split() == ["edge", *of.operations["upsample3"], "undecided"] and len(lines) == 15
    )
    assert sum(line.count("*") for line in lines) == 8
    # se_connect on state 0
    assert lines[1].startswith("0 to 2") and f"*{100 * table[0, 5]:.2f}" in lines[1]
    even = np.full((14, 6), 1 / 6)
    pictures = [probability_picture(of, "upsample3", values, genotype) for values in (table, even)]
    assert pictures[0].shape == pictures[1].shape and pictures[0].dtype == np.uint8
    fields = [picture[30:48, 70 + 5 * 120 + 4 : 70 + 5 * 120 + 30].mean() for picture in pictures]
    assert fields[0] < fields[1] - 50 and fields[1] == 255


# the page -----------------------------------------------------------------------------------------


def test_docs_search_names_existing_keys():
    text = (ROOT / "docs/search.md").read_text(encoding="utf-8")
    keys = default_config()
    named = set(re.findall(r"\b([A-Z]+)\.([A-Z][A-Z_]+)\b", text)) - {("DATASET", "ROOT")}
    assert len(named) > 10
    assert [f"{group}.{key}" for group, key in named if key not in keys[group]] == []
    for path in re.findall(r"\b(?:experiments|tools|lib|docs)/[\w./-]+\.(?:yaml|py|md|svg)", text):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\(([\w/]+\.svg)\)", text):
        assert (
            cells_svg(GENOTYPES["posenas"], "The cells of PoseNAS, as published")
            == (ROOT / "docs" / path).read_text()
        )
    # the key of a table's second column belongs to SEARCH
    rows = re.findall(r"^\| `[^|]*\| ([^|]*)\|$", text.split("## Keys")[1].split("##")[0], re.M)
    own = {word for row in rows for word in re.findall(r"`([A-Z_]+)`", row)}
    assert {"ALPHA_LR", "GRAD_CLIP", "SUBSET"} <= own <= set(keys.SEARCH)
