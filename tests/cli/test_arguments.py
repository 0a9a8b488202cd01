"""Test the command-line parser: options and KEY VALUE pairs in any order."""

import importlib
import itertools
import subprocess
import sys

import pytest
from poise import cli
from poise.cli.arguments import ToolParser, add_experiment_arguments, add_overrides, experiment
from poise.errors import ConfigError
from support.paths import ROOT

MODULES = [
    path for path in sorted((ROOT / "lib/poise/cli").glob("*.py")) if path.stem in cli.COMMANDS
]
TOOLS = [path for path in MODULES if "ToolParser" in path.read_text()]


def loaded(name):
    """Return the module of a command."""
    return importlib.import_module(f"poise.cli.{name}")


@pytest.fixture
def parser():
    parser = ToolParser(prog="tool")
    parser.add_argument("--out")
    parser.add_argument("--eval", nargs="+", default=[])
    parser.add_argument("--force", action="store_true")
    add_experiment_arguments(parser)
    return parser


GROUPS = (
    ["--cfg", "e.yaml"],
    ["--out", "r.pkl"],
    ["--eval", "mAP", "PCKh"],
    ["--force"],
    ["SEED", "1"],
    ["TRAIN.WD", "-1e-3"],
)


def test_parse_options_in_every_order_gives_the_same(parser):
    for order in itertools.permutations(GROUPS):
        args = parser.parse_args(list(itertools.chain(*order)))
        pairs = [group for group in order if group[0].isupper()]
        assert (args.cfg, args.out, args.eval, args.force) == (
            "e.yaml",
            "r.pkl",
            ["mAP", "PCKh"],
            True,
        )
        assert args.overrides == list(itertools.chain(*pairs))


@pytest.mark.parametrize(
    "words, out, metrics, overrides",
    [
        (
            ["--eval", "mAP", "TEST.FLIP_TEST", "True", "--out", "a.pkl"],
            "a.pkl",
            ["mAP"],
            ["TEST.FLIP_TEST", "True"],
        ),
        (["SEED", "1", "--eval", "mAP", "SEED", "2"], None, ["mAP"], ["SEED", "1", "SEED", "2"]),
        (
            ["CPU_THREADS", "-1", "GPUS", "()", "--out=r.pkl"],
            "r.pkl",
            [],
            ["CPU_THREADS", "-1", "GPUS", "()"],
        ),
        (["LR", "0.1", "--ou", "a.b"], "a.b", [], ["LR", "0.1"]),
        (["MODEL.PRETRAINED", "", "--out", "MODEL.pth"], "MODEL.pth", [], ["MODEL.PRETRAINED", ""]),
        (["--", "SEED", "3"], None, [], ["SEED", "3"]),
    ],
)
def test_parse_keys_and_options_are_separated(parser, words, out, metrics, overrides):
    args = parser.parse_args(["--cfg", "e.yaml", *words])
    assert (args.out, args.eval, args.overrides) == (out, metrics, overrides)


@pytest.mark.parametrize(
    "words, message",
    [
        (["SEED", "1", "--outt", "r.pkl"], "unrecognized arguments: --outt"),
        (["SEED", "1", "--out"], "argument --out: expected one argument"),
        (["--out", "--force", "SEED", "1"], "argument --out: expected one argument"),
        (["--eval", "SEED", "1"], "argument --eval: expected at least one argument"),
    ],
)
def test_parse_invalid_options_raise(parser, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--cfg", "e.yaml", *words])
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["SEED"], ["SEED", "--force"], ["SEED", "--force", "WORKERS", "1"]]
)
def test_parse_key_without_value_raises(parser, tiny_experiment, words):
    args = parser.parse_args(["--cfg", str(tiny_experiment), *words])
    with pytest.raises(
        ConfigError, match="command line: 'SEED' has no value; overrides are KEY VALUE pairs"
    ):
        experiment(args)


def test_parse_positional_arguments_come_before_keys():
    parser = ToolParser()
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--to", required=True)
    add_overrides(parser)
    args = parser.parse_args(["in.pth", "--to", "poise", "out.pth", "SEED", "1"])
    assert (args.source, args.target, args.to, args.overrides) == (
        "in.pth",
        "out.pth",
        "poise",
        ["SEED", "1"],
    )


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_tools_accept_options_after_keys(tool, monkeypatch, capsys):
    """--help is last, so a tool that parsed it as a KEY or VALUE would fail."""
    before = ["in.pth", "out.pth"] if tool.stem == "convert_weights" else []
    monkeypatch.setattr("sys.argv", [tool.name, *before, "SEED", "1", "TRAIN.WD", "-1", "--help"])
    with pytest.raises(SystemExit) as end:
        loaded(tool.stem).main()
    assert end.value.code == 0 and "KEY VALUE" in capsys.readouterr().out


def test_tools_with_overrides_use_tool_parser():
    assert len(TOOLS) >= 11
    for path in MODULES:
        text = path.read_text()
        assert path in TOOLS or (
            "add_experiment_arguments" not in text and "overrides" not in text
        ), path


def test_plot_log_accepts_options_between_folders(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plot_log.py", "a", "--output", "x.html", "b"])
    assert loaded("plot_log").parse_args().runs == ["a", "b"]
    names = ["mmpose_hrnet_w32_coco_256x192", "mmpose_mspn_2stg_coco_256x192"]
    monkeypatch.setattr("sys.argv", ["download_weights.py", names[0], "--list", names[1]])
    assert loaded("download_weights").main() == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def test_commands_modules_and_tools_are_equal():
    modules = {path.stem for path in (ROOT / "lib/poise/cli").glob("*.py")}
    assert modules - {"__init__", "arguments"} == set(cli.COMMANDS)
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_main_with_argv_ignores_the_arguments_of_the_process(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"tools/{name}.py", "--not-an-option"])
    with pytest.raises(SystemExit) as end:
        loaded(name).main(["--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: {name}.py ")


def test_commands_import_nothing_heavy():
    names = ", ".join(f"poise.cli.{name}" for name in cli.COMMANDS)
    code = f"import sys, {names}; print(*{{'torch', 'numpy', 'cv2', 'yacs'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
