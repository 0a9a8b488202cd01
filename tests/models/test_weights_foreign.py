"""Test foreign objects in published checkpoints and nearly matching networks."""

import argparse
import collections
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from poise.models import weights
from poise.models.weights.converting import convert
from support.small_networks import small
from support.weight_files import equal, mmpose, module, refusal, same, saved
from torch.optim.swa_utils import AveragedModel

pytestmark = pytest.mark.usefixtures("messages")


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
def test_load_foreign_objects_are_not_executed(tmp_path, zipped, messages):
    """mmpose 1.x keeps NumPy arrays and mmengine's loggers, timm its arguments, other trainers
    their configuration.
    """
    state = small("resnet", seed=1).state_dict()
    content = {
        "meta": {
            "dataset_meta": {"sigmas": np.arange(17.0), "names": np.array(["a"], dtype=object)},
            "cfg": CfgNode(A=CfgNode(B=1)),
        },
        "message_hub": {
            "log": HistoryBuffer(tmp_path / "ran"),
            "hook": Expression(tmp_path / "evaluated"),
            "counts": collections.defaultdict(list, a=[1]),
        },
        "args": argparse.Namespace(lr=0.1),
        "state_dict": state,
    }
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = small("resnet", seed=2)
    weights.load(model, path)
    assert (
        equal(model, state)
        and not (tmp_path / "ran").exists()
        and not (tmp_path / "evaluated").exists()
    )
    assert "not read, because that could run code: " in messages.text
    file = weights.read_weight_file(path)
    assert {
        "argparse.Namespace",
        "test_weights_foreign.HistoryBuffer",
        "test_weights_foreign.CfgNode",
    } <= set(file.foreign)
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists() and (tmp_path / "evaluated").exists(), (
        "the file of this test would have run code"
    )


def test_load_weights_that_are_objects_raise(tmp_path):
    path = saved(
        tmp_path / "w.pth", {"state_dict": {"conv1.weight": HistoryBuffer(tmp_path / "ran")}}
    )
    text = refusal(weights.load, small("resnet"), path)
    assert (
        "HistoryBuffer), and reading it could run untrusted code" in text
        and not (tmp_path / "ran").exists()
    )


def test_load_similar_network_raises_with_differences(tmp_path):
    """mmpose's SCNet and SEResNet have a ResNet's names and more; a ResNet of other widths has
    them all.
    """
    state = mmpose(small("resnet").state_dict())
    text = refusal(
        weights.load,
        small("resnet"),
        saved(
            tmp_path / "w.pth",
            {**state, "backbone.layer1.0.conv2.k2.1.weight": torch.zeros(4, 4, 3, 3)},
        ),
    )
    assert "unexpected 1, mismatched 0" in text and text.endswith(
        "a network like ResNet-50, 17 joints, but with other layers"
    )
    text = refusal(
        weights.load,
        small("resnet", "MODEL.EXTRA.NUM_CHANNELS", [8, 8, 8, 8]),
        saved(tmp_path / "w.pth", state),
    )
    assert text.endswith("a network like ResNet-50, 17 joints, but with other sizes")


def test_read_checkpoint_foreign_object_raises(tmp_path):
    """Where a run goes on there is no reason for leniency: Poise wrote the file."""
    path = saved(tmp_path / "c.pth", {"state_dict": {}, "cfg": CfgNode(A=1)})
    assert "CfgNode), and reading it could run untrusted code" in refusal(
        weights.read_tensors, path, "checkpoint"
    )
    # one of HRNet is read, so that the message can name its format
    path = saved(tmp_path / "c.pth", {"epoch": 5, "perf": np.float64(0.7)})
    assert weights.read_tensors(path, "checkpoint")["epoch"] == 5


def test_load_nested_wrappers_gives_equal_tensors(tmp_path):
    state = small("resnet", seed=1).state_dict()
    model = small("resnet", seed=2)
    weights.load(
        model,
        saved(
            tmp_path / "w.pth",
            {"model": {"state_dict": {f"module._orig_mod.{n}": t for n, t in state.items()}}},
        ),
    )
    assert equal(model, state)
    assert "holds conv1.weight twice" in refusal(
        weights.load, model, saved(tmp_path / "w.pth", {**state, **module(state)})
    )


class TrainingLoop(torch.nn.Module):
    """As a Lightning module: the network as an attribute, a loss with a buffer next to it."""

    def __init__(self, attribute, network, loss=False):
        super().__init__()
        setattr(self, attribute, network)
        if loss:
            self.loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(17))


def wrap_compiled_part(network):
    network.layer1 = torch.compile(network.layer1)
    return network


WRAPPERS = {
    "averaged": AveragedModel,
    "data_parallel": torch.nn.DataParallel,
    "compiled": torch.compile,
    "averaged, compiled, data parallel": lambda n: AveragedModel(
        torch.compile(torch.nn.DataParallel(n))
    ),
    "compiled part": wrap_compiled_part,
    "lightning model": lambda n: TrainingLoop("model", n),
    "lightning net": lambda n: TrainingLoop("net", n),
    "lightning with a loss": lambda n: TrainingLoop("model", n, loss=True),
    "lightning, compiled": lambda n: TrainingLoop("model", torch.compile(n)),
    "lightning, data parallel": lambda n: TrainingLoop("net", torch.nn.DataParallel(n), loss=True),
    "lightning, nested": lambda n: TrainingLoop("model", TrainingLoop("net", n), loss=True),
    "average in lightning": lambda n: TrainingLoop("model", AveragedModel(n)),
    "average in nested lightning": lambda n: TrainingLoop(
        "net", TrainingLoop("model", AveragedModel(n)), loss=True
    ),
    "lightning, averaged": lambda n: AveragedModel(TrainingLoop("model", n)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # of importing torch.compile
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_load_wrapped_network_equals_bare(tmp_path, wrapper):
    state = small("resnet", seed=1).state_dict()
    path = saved(
        tmp_path / "w.ckpt", {"state_dict": WRAPPERS[wrapper](small("resnet", seed=1)).state_dict()}
    )
    model = small("resnet", seed=2)
    weights.load(model, path)
    assert equal(model, state)
    convert(path, tmp_path / "converted.pth", "poise")
    assert same(torch.load(tmp_path / "converted.pth", weights_only=True), state)


def test_load_lightning_checkpoint_logs_ignored_tensors(tmp_path, messages):
    loop = TrainingLoop("model", small("resnet", seed=1), loss=True)
    weights.load(small("resnet"), saved(tmp_path / "w.ckpt", {"state_dict": loop.state_dict()}))
    assert "skipped 1 tensor outside of the network (loss.pos_weight)" in messages.text


def test_load_lightning_checkpoint_of_other_network_raises(tmp_path):
    loop = TrainingLoop("net", small("hrnet"))
    text = refusal(weights.load, small("resnet"), saved(tmp_path / "w.ckpt", loop.state_dict()))
    assert "it has the weights of HRNet-W" in text


def test_load_custom_network_with_wrapper_names_keeps_them(tmp_path):
    """A network of the user's own may call a part `model`, and count something as n_averaged."""
    own = TrainingLoop("model", torch.nn.Linear(2, 1))
    own.register_buffer("n_averaged", torch.tensor(3))
    for wrapped in (own, torch.nn.DataParallel(own)):
        other = TrainingLoop("model", torch.nn.Linear(2, 1))
        other.register_buffer("n_averaged", torch.tensor(0))
        weights.load(other, saved(tmp_path / "w.pth", wrapped.state_dict()))
        assert equal(other, own.state_dict())


def test_load_averaged_lightning_checkpoint_drops_the_counter(tmp_path, messages):
    loop = TrainingLoop("model", AveragedModel(small("resnet", seed=1)))
    weights.load(small("resnet"), saved(tmp_path / "w.ckpt", {"state_dict": loop.state_dict()}))
    assert "unexpected 0" in messages.text and "n_averaged" not in messages.text


@pytest.mark.parametrize("network", ["resnet", "hrnet", "mspn"])
def test_load_safetensors_equals_torch(tmp_path, network):
    torch_files = pytest.importorskip("safetensors.torch")
    state = small(network, seed=1).state_dict()
    for name in ("w.safetensors", "w.bin"):
        torch_files.save_file(state, tmp_path / name, metadata={"format": "pt"})
        model = small(network, seed=2)
        weights.load(model, tmp_path / name)
        assert equal(model, state)


def test_load_safetensors_truncated_raises(tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "w.safetensors"
    torch_files.save_file(small("resnet").state_dict(), path)
    content = path.read_bytes()
    for kept in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:kept])
        text = refusal(weights.load, small("resnet"), path)
        assert text.startswith(f"{path}: not a weight file of safetensors, or damaged (")


def test_load_safetensors_without_the_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (tmp_path / "w.bin").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    text = refusal(weights.read_weight_file, tmp_path / "w.bin")
    assert text.endswith(
        "is a file of safetensors, which is not installed; pip install 'poise[safetensors]'"
    )


@pytest.mark.parametrize(
    "changed",
    [
        "backbone.top.top.0.conv.weight",
        "backbone.multi_stage_mspn.0.downsample.layer1.0.conv1.weight",
    ],
)
def test_load_known_names_with_invalid_shapes_raises(tmp_path, changed):
    """What the names promise the sizes need not keep: a line, not an IndexError of the renaming."""
    state = {
        "backbone.top.top.0.conv.weight": torch.zeros(4, 3, 7, 7),
        "backbone.multi_stage_mspn.0.downsample.layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1),
    }
    for shape in ((), (3,)):
        path = saved(tmp_path / "w.pth", {**state, changed: torch.zeros(shape)})
        assert "of 588 tensors, missing" in refusal(weights.load, small("mspn"), path, rgb=False)


def test_convert_incomplete_network_raises(tmp_path):
    from poise.models.weights.converting import convert

    state = small("mspn").state_dict()
    del state["top.conv.bn.running_mean"]
    path = saved(tmp_path / "w.pth", state)
    assert (
        "are missing or have other sizes" in refusal(convert, path, tmp_path / "out.pth", "mmpose")
        and not (tmp_path / "out.pth").exists()
    )


def test_describe_network_huge_index_is_fast(tmp_path):
    """Stage 10^900 of a MogaNet."""
    from poise.models.weights.families import describe_network

    names = [
        "backbone.patch_embed1.projection.0.weight",
        "backbone.blocks1.0.attn.proj_1.weight",
        f"backbone.blocks{'9' * 900}.0.attn.proj_1.weight",
    ]
    path = saved(tmp_path / "w.pth", {name: torch.zeros(4, 3, 1, 1) for name in names})
    assert describe_network(
        {name: tuple(tensor.shape) for name, tensor in weights.read_state_dict(path).items()}
    ).startswith("MogaNet of widths")


def test_load_named_pipe_raises(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    code = "import sys; from poise.models import weights; weights.read_weight_file(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "w.pth")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"{tmp_path / 'w.pth'}: no such weight file" in done.stderr
