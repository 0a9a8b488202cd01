"""Test converting weights to the released formats and back."""

import os
import subprocess
import sys

import pytest
import torch
from poise.cli import convert_weights
from poise.errors import ConfigError
from poise.models import weights
from poise.models.weights import converting, formats
from support.golden_inputs import filled_input
from support.paths import ROOT
from support.small_networks import (
    EXPERIMENT,
    command_line,
    filled,
    mmpose_mspn_names,
    resnet_names,
    small,
)
from support.weight_files import MSPN, equal, mmpose, refusal, same, saved


def read(path):
    return torch.load(path, weights_only=True)


OWN = {
    "resnet": "simplebaseline",
    "res2net": "simplebaseline",
    "res2net_v1b": "simplebaseline",
    "hrnet": "hrnet",
    "mspn": "mspn",
    "posenas": "posenas",
    "moganet": "moganet",
}
# how the repository of each family opens the file that it wrote
OPENED = {
    "simplebaseline": lambda c: c,
    "hrnet": lambda c: c,
    "mspn": lambda c: c["model"],
    "posenas": lambda c: c,
    "moganet": lambda c: c["state_dict"],
}


@pytest.mark.parametrize("family", EXPERIMENT)
def test_convert_released_format_round_trip_is_equal(tmp_path, family):
    """Every tensor bit for bit, under the names that the family's own code loads strictly."""
    state = small(family, seed=1).state_dict()
    source, released, back = (
        saved(tmp_path / "a.pth", {"state_dict": state, "epoch": 3}),
        tmp_path / "b.pth",
        tmp_path / "c.pth",
    )
    report = converting.convert(source, released, OWN[family])
    own = OPENED[OWN[family]](read(released))
    assert same(own, state)
    assert (
        f"{len(state)} tensors, renamed 0, added 0, dropped 0; written as {OWN[family]} to"
        f" {released}" in str(report)
    )
    converting.convert(released, back, "poise")
    assert same(read(back), state)
    model = small(family, seed=2)
    weights.load(model, released)
    assert equal(model, state)


@pytest.mark.parametrize("family", ["resnet", "hrnet"])
def test_convert_mmpose_round_trip_is_equal(tmp_path, family):
    state = small(family, seed=1).state_dict()
    source, there, back = saved(tmp_path / "a.pth", state), tmp_path / "b.pth", tmp_path / "c.pth"
    converting.convert(source, there, "mmpose")
    assert read(there)["state_dict"].keys() == mmpose(state).keys()
    converting.convert(there, back, "poise")
    assert same(read(back), state)


@pytest.mark.parametrize("stages", [1, 3])
def test_convert_mspn_from_mmpose_round_trip_is_equal(tmp_path, stages):
    """From mmpose everything comes back bit for bit, and the names are mmpose's."""
    file = filled(mmpose_mspn_names(stages, **MSPN, joints=17), seed=3)
    source, poise, back = (
        saved(tmp_path / "a.pth", {"meta": {}, "state_dict": file}),
        tmp_path / "b.pth",
        tmp_path / "c.pth",
    )
    report = str(converting.convert(source, poise, "mspn"))
    assert (
        f"MSPN of {stages} stage{'s' * (stages > 1)}, 17 joints (names of mmpose's MSPN):"
        f" {len(file)} tensors, renamed {len(file)}, added " in report
    )
    assert "first convolution reversed for BGR" in report
    converting.convert(poise, back, "mmpose")
    again = read(back)["state_dict"]
    assert same(again, file)


def test_convert_mspn_to_mmpose_keeps_outputs(tmp_path):
    """mmpose's convolutions have no biases: they go into the running means behind them, and the
    heatmaps stay.
    """
    model = small("mspn", seed=4)
    there = tmp_path / "b.pth"
    converting.convert(
        saved(tmp_path / "a.pth", {"model": model.state_dict(), "iteration": 96000}),
        there,
        "mmpose",
    )
    assert read(there)["state_dict"].keys() == mmpose_mspn_names(2, **MSPN, joints=17).keys()
    again = small("mspn", seed=5)
    weights.load(again, there)
    image = filled_input("image", (2, 3, 64, 64), 0)
    with torch.no_grad():
        expected = model(image)
        assert torch.allclose(again(image), expected, atol=1e-5 * float(expected.std()))
    assert not equal(again, model.state_dict())


def test_targets_cover_every_family():
    for target in formats.TARGETS.values():
        assert set(target.families) <= {*EXPERIMENT, "unknown"}
    assert all(
        any(
            family in target.families for name, target in formats.TARGETS.items() if name != "poise"
        )
        for family in EXPERIMENT
    )


def test_convert_existing_output_needs_force(tmp_path):
    source = saved(tmp_path / "a.pth", small("resnet").state_dict())
    (tmp_path / "b.pth").write_bytes(b"mine")
    assert "file exists; give --force" in refusal(
        converting.convert, source, tmp_path / "b.pth", "poise"
    )
    assert (tmp_path / "b.pth").read_bytes() == b"mine"
    converting.convert(source, tmp_path / "b.pth", "poise", force=True)
    assert len(read(tmp_path / "b.pth")) == len(small("resnet").state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_convert_unsupported_weights_raise(tmp_path):
    out = tmp_path / "out.pth"
    posenas = saved(tmp_path / "p.pth", small("posenas").state_dict())
    text = refusal(converting.convert, posenas, out, "mmpose")
    assert (
        "has the weights of PoseNAS-L4-C8, 17 joints, which mmpose has no names for; convert it to"
        " poise, posenas" in text
    )
    imagenet = saved(tmp_path / "r.pth", filled(resnet_names(4, (1, 1, 1, 1))))
    assert "such files are not converted, use them as MODEL.PRETRAINED" in refusal(
        converting.convert, imagenet, out, "poise"
    )
    unknown = saved(tmp_path / "s.pth", {"a.weight": torch.zeros(1)})
    assert "unsupported, its network is unknown" in refusal(
        converting.convert, unknown, out, "poise"
    )
    with pytest.raises(ConfigError, match="the formats are poise, simplebaseline"):
        converting.convert(posenas, out, "onnx")
    assert "no such weight file" in refusal(converting.convert, tmp_path / "none.pth", out, "poise")
    assert not out.exists()


def test_convert_with_experiment_checks_completeness(tmp_path):
    """With the experiment given, a file that lacks a tensor or has one more is refused, and old
    counters are made up for.
    """
    state = dict(small("hrnet", seed=1).state_dict())
    less = saved(
        tmp_path / "less.pth",
        {name: tensor for name, tensor in state.items() if name != "conv2.weight"},
    )
    out = tmp_path / "out.pth"
    assert "missing 1" in refusal(converting.convert, less, out, "hrnet", model=small("hrnet"))
    old = saved(
        tmp_path / "old.pth",
        {
            name: tensor
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
        },
    )
    report = converting.convert(old, out, "hrnet", model=small("hrnet"))
    assert (
        report.added == sum(name.endswith("num_batches_tracked") for name in state)
        and report.renamed == report.dropped == 0
    )
    assert read(out).keys() == state.keys() and torch.equal(
        read(out)["conv2.weight"], state["conv2.weight"]
    )


# the tool -----------------------------------------------------------------------------------------


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, ROOT / "tools/convert_weights.py", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"},
    )


def test_convert_weights_command_writes_the_target_format(tmp_path):
    file = filled(mmpose_mspn_names(2, **MSPN, joints=17), seed=6)
    saved(tmp_path / "mmpose.pth", {"meta": {}, "state_dict": file})
    path, overrides = command_line("mspn")
    done = run(
        "mmpose.pth",
        "iter-96000.pth",
        "--to",
        "mspn",
        "--cfg",
        ROOT / path,
        *overrides,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "names of mmpose's MSPN)" in done.stdout
        and "written as mspn to iter-96000.pth" in done.stdout
    )
    model = small("mspn")
    weights.load(model, tmp_path / "iter-96000.pth")
    assert torch.equal(
        model.state_dict()["stage1.upsample.up4.res_conv1.conv.weight"],
        file["keypoint_head.predict_layers.7.conv_layers.0.conv.weight"],
    )


@pytest.fixture
def tool():
    return convert_weights


def test_convert_weights_command_other_arguments(tmp_path, tool, monkeypatch, capsys):
    source, target = saved(tmp_path / "a.pth", small("resnet").state_dict()), tmp_path / "b.pth"
    assert tuple(formats.TARGETS) == convert_weights.FORMATS
    monkeypatch.setattr(
        sys,
        "argv",
        ["convert_weights.py", str(source), str(target), "--to", "mmpose", "MODEL.NAME", "mspn"],
    )
    with pytest.raises(
        ConfigError, match="MODEL.NAME: keys belong to an experiment; give --cfg FILE"
    ):
        tool.main()
    for force in ([], ["--force"]):
        monkeypatch.setattr(
            sys, "argv", ["convert_weights.py", str(source), "--to", "mmpose", *force, str(target)]
        )
        assert tool.main() == 0 and "written as mmpose" in capsys.readouterr().out
