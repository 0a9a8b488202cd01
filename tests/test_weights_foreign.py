"""What lies beside the weights in published checkpoints, and networks that are nearly the right ones."""
import argparse
import collections
import logging

import numpy as np
import pytest
import torch
from small_networks import small
from weight_files import equal, mmpose, module, refusal, saved

from poise import weights


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.INFO, logger="poise")
    return caplog


class HistoryBuffer:
    """As mmengine's: it would run its __setstate__ when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __setstate__(self, state):
        open(state["path"], "w").close()


class Expression:
    """Unpickled, it would be evaluated."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return eval, (f"open({self.path!r}, 'w').close()",)


class CfgNode(dict):
    """As yacs': a dict of another class."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_objects_beside_the_weights_are_not_read_and_not_run(tmp_path, zipped, messages):
    """mmpose 1.x keeps NumPy arrays and mmengine's loggers, timm its arguments, other trainers their configuration."""
    state = small("resnet", seed=1).state_dict()
    content = {"meta": {"dataset_meta": {"sigmas": np.arange(17.0), "names": np.array(["a"], dtype=object)}, "cfg": CfgNode(A=CfgNode(B=1))},
               "message_hub": {"log": HistoryBuffer(tmp_path / "ran"), "hook": Expression(tmp_path / "evaluated"), "counts": collections.defaultdict(list, a=[1])},
               "args": argparse.Namespace(lr=0.1), "state_dict": state}
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = small("resnet", seed=2)
    weights.load(model, path)
    assert equal(model, state) and not (tmp_path / "ran").exists() and not (tmp_path / "evaluated").exists()
    assert "not read, because that could run code: " in messages.text
    file = weights.read_weight_file(path)
    assert {"argparse.Namespace", "test_weights_foreign.HistoryBuffer", "test_weights_foreign.CfgNode"} <= set(file.foreign)
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists() and (tmp_path / "evaluated").exists(), "the file of this test would have run code"


def test_weights_that_are_objects_are_refused(tmp_path):
    path = saved(tmp_path / "w.pth", {"state_dict": {"conv1.weight": HistoryBuffer(tmp_path / "ran")}})
    text = refusal(weights.load, small("resnet"), path)
    assert "HistoryBuffer), and reading it could run a stranger's code" in text and not (tmp_path / "ran").exists()


def test_networks_alike_are_refused_with_what_differs(tmp_path):
    """mmpose's SCNet and SEResNet have a ResNet's names and more; a ResNet of other widths has them all."""
    state = mmpose(small("resnet").state_dict())
    text = refusal(weights.load, small("resnet"), saved(tmp_path / "w.pth", {**state, "backbone.layer1.0.conv2.k2.1.weight": torch.zeros(4, 4, 3, 3)}))
    assert "unexpected 1, mismatched 0" in text and text.endswith("another network, like ResNet-50, 17 joints, but with other layers")
    text = refusal(weights.load, small("resnet", "MODEL.EXTRA.NUM_CHANNELS", [8, 8, 8, 8]), saved(tmp_path / "w.pth", state))
    assert text.endswith("another network, like ResNet-50, 17 joints, but with other sizes")


def test_a_checkpoint_to_go_on_from_holds_nothing_foreign(tmp_path):
    """Where a run goes on there is no reason for leniency: Poise wrote the file."""
    path = saved(tmp_path / "c.pth", {"state_dict": {}, "cfg": CfgNode(A=1)})
    assert "CfgNode), and reading it could run a stranger's code" in refusal(weights.read_tensors, path, "checkpoint")
    path = saved(tmp_path / "c.pth", {"epoch": 5, "perf": np.float64(0.7)})     # HRNet's: read, so that it can be told what it is
    assert weights.read_tensors(path, "checkpoint")["epoch"] == 5


def test_twice_wrapped_and_compiled(tmp_path):
    state = small("resnet", seed=1).state_dict()
    model = small("resnet", seed=2)
    weights.load(model, saved(tmp_path / "w.pth", {"model": {"state_dict": {f"module._orig_mod.{n}": t for n, t in state.items()}}}))
    assert equal(model, state)
    assert "holds conv1.weight twice" in refusal(weights.load, model, saved(tmp_path / "w.pth", {**state, **module(state)}))


@pytest.mark.parametrize("changed", ["backbone.top.top.0.conv.weight", "backbone.multi_stage_mspn.0.downsample.layer1.0.conv1.weight"])
def test_weights_of_known_names_and_strange_sizes(tmp_path, changed):
    """What the names promise the sizes need not keep: a line, not an IndexError of the renaming."""
    state = {"backbone.top.top.0.conv.weight": torch.zeros(4, 3, 7, 7), "backbone.multi_stage_mspn.0.downsample.layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1)}
    for shape in ((), (3,)):
        path = saved(tmp_path / "w.pth", {**state, changed: torch.zeros(shape)})
        assert "of 588 tensors, missing" in refusal(weights.load, small("mspn"), path, rgb=False)


def test_half_a_network_is_not_converted(tmp_path):
    from poise.weights.converting import convert

    state = small("mspn").state_dict()
    del state["top.conv.bn.running_mean"]
    path = saved(tmp_path / "w.pth", state)
    assert "but not all of them, or of other sizes" in refusal(convert, path, tmp_path / "out.pth", "mmpose") and not (tmp_path / "out.pth").exists()


def test_numbers_in_names_are_not_counted_up_to(tmp_path):
    """Stage 10^900 of a MogaNet."""
    from poise.weights.families import describe

    names = ["backbone.patch_embed1.projection.0.weight", "backbone.blocks1.0.attn.proj_1.weight", f"backbone.blocks{'9' * 900}.0.attn.proj_1.weight"]
    path = saved(tmp_path / "w.pth", {name: torch.zeros(4, 3, 1, 1) for name in names})
    assert describe({name: tuple(tensor.shape) for name, tensor in weights.read_state_dict(path).items()}).startswith("MogaNet of widths")
