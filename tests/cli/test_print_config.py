"""Test tools/print_config.py: YAML output, differences and the origin of values."""

import functools

import pytest
from poise import config
from poise.config import diff
from poise.config.defaults import default_config
from support.paths import ROOT

RES384 = "experiments/coco/resnet/res50_384x288_d256x3_adam_lr1e-3.yaml"
EXPERIMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "experiments").glob("*/**/*.yaml")
    if not {"_base_", "datasets"} & set(path.parts)
)
OLD = """
MODEL:
  NAME: pose_resnet
  EXTRA: {SIGMA: 2, HEATMAP_SIZE: [64, 64], NUM_LAYERS: 50, ODD: {TEXT: "a: # 'b'\\n",
    MORE: [1.5, 2]}}
TEST: {BATCH_SIZE: 16}
"""


@pytest.fixture
def tool(monkeypatch, run_script):
    """Run tools/print_config.py at the root of the repository."""
    monkeypatch.chdir(ROOT)
    return functools.partial(run_script, "print_config")


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_print_config_every_experiment_loads_again(path, tool, tmp_path):
    status, text, _ = tool("--cfg", path)
    assert status == 0
    (tmp_path / "printed.yaml").write_text(text)
    assert dict(diff.flatten(config.load(tmp_path / "printed.yaml"))) == dict(
        diff.flatten(config.load(ROOT / path))
    )


def test_print_config_unusual_values_load_again(tool, tmp_path):
    old, printed = tmp_path / "old.yaml", tmp_path / "printed.yaml"
    old.write_text(OLD)
    overrides = [
        "OUTPUT_DIR",
        "a: b # c\n\td'é",
        "MODEL.PRETRAINED",
        "null",
        "TRAIN.LR",
        "1e-5",
        "GPUS",
        "()",
    ]
    status, text, _ = tool("--cfg", old, *overrides)
    assert status == 0
    printed.write_text(text)
    cfg = config.load(printed)
    assert cfg == config.load(old, overrides)
    assert (
        overrides[1] == cfg.OUTPUT_DIR
        and cfg.MODEL.PRETRAINED == "null"
        and cfg.GPUS == ()
        and cfg.MODEL.EXTRA.ODD.TEXT == "a: # 'b'\n"
    )


def test_print_config_lists_every_key_with_default(tool):
    _, text, _ = tool("--cfg", RES384)
    lines = text.splitlines()
    keys = dict(diff.flatten(config.load(ROOT / RES384)))
    assert set(dict(diff.flatten(default_config()))) <= set(keys)
    noted = [line for line in lines[1:] if "# " in line]
    assert lines[0] == f"# {RES384}: {len(noted)} of {len(keys)} keys differ from the defaults"
    assert (
        "  IMAGE_SIZE: [288, 384]                                      # default: [256, 256]"
        in lines
    )
    assert "  STYLE: pytorch" in lines  # as the default
    assert "    NUM_LAYERS: 50                                            # no default" in lines
    short = {
        line.index("# ") for line in noted if len(line.split("#")[0].rstrip()) <= diff.NOTE_COLUMN
    }
    assert short == {diff.NOTE_COLUMN + 2}


def test_print_config_diff_shows_value_default_and_file(tool):
    status, text, _ = tool("--cfg", RES384, "--diff", "TRAIN.LR", "0.01", "WORKERS", "24")
    lines = text.splitlines()
    rows = {line.split()[0]: line.split("  ") for line in lines[2:]}
    cells = {key: [cell.strip() for cell in row if cell.strip()] for key, row in rows.items()}
    assert status == 0 and len(rows) == int(lines[0].split()[1])
    assert cells["TRAIN.LR"] == ["TRAIN.LR", "0.01", "0.001", "command line"]
    # the command line repeats the value
    assert cells["WORKERS"] == ["WORKERS", "24", "4", "experiments/_base_/simple_baseline.yaml"]
    assert cells["MODEL.SIGMA"] == ["MODEL.SIGMA", "3.0", "2.0", RES384]
    assert cells["DATASET.ROT_FACTOR"] == [
        "DATASET.ROT_FACTOR",
        "40.0",
        "30.0",
        "experiments/coco/_base_/simple_baseline.yaml",
    ]
    assert cells["MODEL.EXTRA.NUM_LAYERS"] == ["MODEL.EXTRA.NUM_LAYERS", "50", "-", RES384]
    assert "MODEL.NAME" not in cells and "MODEL.STYLE" not in cells  # as the defaults
    assert len({line.index(row[-1]) for line, row in zip(lines[2:], cells.values())}) == 1


def test_print_config_diff_of_defaults_is_empty(tool, tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("MODEL: {NUM_JOINTS: 16}\n")
    _, text, _ = tool("--cfg", path, "--diff")
    assert text.splitlines()[0].endswith(
        f"1 of {len(dict(diff.flatten(default_config())))} keys differ from the defaults"
    )
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["MODEL.NUM_JOINTS", "16", "0", str(path)]
    ]


def test_print_config_simple_baseline_shows_its_defaults(tool, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    cells = {
        line.split()[0]: line.split() for line in tool("--cfg", path, "--diff")[1].splitlines()[2:]
    }
    assert cells["TEST.BATCH_SIZE_PER_GPU"][1:3] == ["16", "32"]
    assert cells["TEST.POST_PROCESS"][1:] == ["true", "false", str(path)]


def test_print_config_against_shows_differences(tool):
    other = RES384.replace("384x288", "256x192")
    status, text, _ = tool("--cfg", RES384, "--against", other, "TRAIN.END_EPOCH", "10")
    assert status == 0
    keys = ["MODEL.IMAGE_SIZE", "MODEL.HEATMAP_SIZE", "MODEL.SIGMA", "TRAIN.END_EPOCH"]
    assert [line.split("  ")[0] for line in text.splitlines()] == ["4 keys differ", "key", *keys]
    cells = [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in text.splitlines()[1:]
    ]
    assert cells[0] == ["key", RES384, other]
    assert cells[2] == ["MODEL.HEATMAP_SIZE", "[72, 96]", "[48, 64]"] and cells[4] == [
        "TRAIN.END_EPOCH",
        "10",
        "140",
    ]
    assert tool("--cfg", RES384, "--against", RES384)[1] == "0 keys differ\n"


@pytest.mark.parametrize(
    "words, part",
    [
        (["--cfg", "nowhere.yaml"], "nowhere.yaml: cannot read"),
        (["--cfg", RES384, "--against", "nowhere.yaml"], "nowhere.yaml: cannot read"),
        (["--cfg", RES384, "TRAIN.LRR", "1"], "TRAIN.LR"),
        (["--cfg", RES384, "--diff", "--against", RES384], "not allowed with"),
    ],
)
def test_print_config_invalid_arguments_exit_with_error(words, part, tool):
    status, output, errors = tool(*words)
    assert status == 2 and output == "" and part in errors
