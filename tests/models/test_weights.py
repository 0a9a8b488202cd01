"""Test weight files: wrappers, the load report and invalid files."""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from poise.errors import DataError, single_line
from poise.models import weights
from torch import nn

pytestmark = pytest.mark.usefixtures("messages")


class Network(nn.Module):
    """A backbone and a head, with the counters that batch norm has: 9 tensors."""

    head_prefixes = ("final_layer.",)

    def __init__(self, width=4, joints=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.final_layer = nn.Conv2d(width, joints, 1)


@pytest.fixture
def trained():
    """The state dict of a network whose every value differs from a new one's."""
    torch.manual_seed(1)
    return {
        name: torch.randn(tensor.shape) + 5 if tensor.is_floating_point() else tensor + 7
        for name, tensor in Network().state_dict().items()
    }


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def equal(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in state
    )


def refusal(call, *args, **options):
    with pytest.raises(DataError) as error:
        call(*args, **options)
    return str(error.value)


WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "data_parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "wrapped_data_parallel": lambda state: {
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}
    },
    "poise_checkpoint": lambda state: {
        "format": 1,
        "epoch": 2,
        "step": 0,
        "state_dict": state,
        "optimizer": {"state": {}},
        "best": {"score": 0.5, "epoch": 1},
        "config": "SEED: 0",
    },
    # HRNet's and SimpleBaseline's checkpoint.pth: 'model' is the network's name, 'perf' a NumPy
    # number
    "hrnet_checkpoint": lambda state: {
        "epoch": 5,
        "model": "pose_hrnet",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "best_state_dict": state,
        "perf": np.float64(0.7),
        "optimizer": {},
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_load_every_wrapping_gives_equal_tensors(tmp_path, trained, wrapping, zipped):
    path = saved(
        tmp_path / "w.pth", WRAPPINGS[wrapping](trained), _use_new_zipfile_serialization=zipped
    )
    network = Network()
    report = weights.load(network, path)
    assert equal(network.state_dict(), trained)
    assert str(report) == f"{path}: loaded 9 of 9 tensors, missing 0, unexpected 0, mismatched 0"


@pytest.mark.parametrize("wrapping", ["bare", "poise_checkpoint"])
def test_add_keypoint_names_keeps_a_plain_state_dict(tmp_path, wrapping):
    state = weights.add_keypoint_names(Network().state_dict(), ("nose", "tail"))
    path = saved(tmp_path / "w.pth", WRAPPINGS[wrapping](state))
    assert (
        weights.read_weight_file(path).joints
        == weights.load(Network(), path).joints
        == ("nose", "tail")
    )
    content = torch.load(path, weights_only=True)
    found = content if wrapping == "bare" else content["state_dict"]
    assert equal(dict(found), dict(state)) and list(found) == list(Network().state_dict())
    other = torch.nn.Sequential(Network())  # as a program that knows nothing of this loads it
    other[0].load_state_dict(found, strict=True)
    assert equal(other[0].state_dict(), state)


@pytest.mark.parametrize("names", ["nose", 5, None, [1, 2], ("nose",), ["nose"] * 2000, {"a": 1}])
def test_read_weight_file_invalid_keypoint_names_are_ignored(tmp_path, names):
    state = Network().state_dict()
    assert weights.read_weight_file(saved(tmp_path / "w.pth", state)).joints == ()
    state._metadata["poise.joints"] = names
    assert weights.read_weight_file(saved(tmp_path / "w.pth", state)).joints == ()
    state._metadata = names
    assert weights.read_weight_file(saved(tmp_path / "w.pth", state)).joints == ()


def test_read_weight_file_numpy_1_scalars_are_read(tmp_path, trained):
    """NumPy 1 wrote numpy.core, NumPy 2 writes numpy._core; a file names the one that it was
    written with.
    """
    path = saved(tmp_path / "w.pth", {"state_dict": trained, "perf": np.float32(0.5)})
    data = path.read_bytes()
    new, old = b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar"
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert any(new in content for content in members.values()) or old in data
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(new, old))
    assert equal(weights.read_state_dict(path), trained)


def test_read_state_dict_strips_leading_module_only(tmp_path):
    path = saved(tmp_path / "w.pth", {"module.head.module.weight": torch.zeros(1)})
    assert list(weights.read_state_dict(path)) == ["head.module.weight"]


def test_load_half_precision_file_uses_dtype_of_the_model(tmp_path, trained):
    network = Network()
    weights.load(
        network,
        saved(
            tmp_path / "w.pth",
            {name: t.half() if t.is_floating_point() else t for name, t in trained.items()},
        ),
    )
    assert network.conv1.weight.dtype == torch.float32
    assert torch.equal(network.conv1.weight, trained["conv1.weight"].half().float())


def test_load_missing_batch_counters_are_allowed(tmp_path, trained, messages):
    counter = "bn1.num_batches_tracked"
    network = Network()
    before = network.state_dict()[counter].clone()
    report = weights.load(
        network,
        saved(tmp_path / "w.pth", {name: t for name, t in trained.items() if name != counter}),
    )
    assert report.missing == [counter] and len(report.loaded) == 8
    assert torch.equal(network.state_dict()[counter], before) and torch.equal(
        network.bn1.running_mean, trained["bn1.running_mean"]
    )
    assert (
        "loaded 8 of 9 tensors, missing 1, unexpected 0, mismatched 0 (missing:"
        " bn1.num_batches_tracked)" in messages.text
    )


# MODEL.PRETRAINED ---------------------------------------------------------------------------------


def test_load_pretrained_backbone_leaves_the_head(tmp_path, trained, messages):
    """An ImageNet file has a classifier instead of our head."""
    backbone = {name: t for name, t in trained.items() if not name.startswith("final_layer.")}
    path = saved(
        tmp_path / "resnet.pth",
        {**backbone, "fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)},
    )
    network = Network()
    head = network.final_layer.weight.clone()
    report = weights.load_pretrained(network, str(path))
    assert torch.equal(network.conv1.weight, trained["conv1.weight"]) and torch.equal(
        network.final_layer.weight, head
    )
    assert (report.missing, report.unexpected) == (
        ["final_layer.weight", "final_layer.bias"],
        ["fc.weight", "fc.bias"],
    )
    assert "loaded 7 of 9 tensors, missing 2, unexpected 2, mismatched 0" in messages.text

    text = refusal(weights.load, Network(), path)
    assert "missing 2, unexpected 2" in text and text.endswith(
        "it has the weights of another network"
    )


def test_load_pretrained_pose_network_loads_everything(tmp_path, trained):
    network = Network()
    weights.load_pretrained(network, str(saved(tmp_path / "pose.pth", {"state_dict": trained})))
    assert equal(network.state_dict(), trained)


def test_load_pretrained_incomplete_backbone_raises(tmp_path, trained):
    path = saved(
        tmp_path / "resnet.pth", {name: t for name, t in trained.items() if name != "conv1.bias"}
    )
    assert "missing 1" in refusal(weights.load_pretrained, Network(), str(path))
    path = saved(tmp_path / "resnet.pth", {**trained, "layer9.weight": torch.zeros(1)})
    assert "unexpected: layer9.weight" in refusal(weights.load_pretrained, Network(), str(path))


def test_load_pretrained_empty_path_logs_random_weights(messages):
    assert weights.load_pretrained(Network(), "") is None
    assert "MODEL.PRETRAINED is empty: the network starts from random weights" in messages.text


def test_load_pretrained_missing_file_names_the_source(tmp_path):
    path = tmp_path / "resnet50-19c8e357.pth"
    text = refusal(weights.load_pretrained, Network(), str(path))
    source = "https://download.pytorch.org/models/resnet50-19c8e357.pth"
    assert (
        text == f"MODEL.PRETRAINED {path}: no such file; python tools/download_weights.py"
        f" resnet50_imagenet downloads it from {source}; or give MODEL.PRETRAINED '' to start from"
        " random weights"
    )
    text = refusal(
        weights.load_pretrained, Network(), str(tmp_path / "res2net50_26w_4s-06e79181.pth")
    )
    assert "/res2net/res2net50_26w_4s-06e79181.pth" in text
    path = tmp_path / "pose_hrnet_w32_256x192.pth"
    text = refusal(weights.load_pretrained, Network(), str(path))
    assert (
        f"download the file {path.name} and save it as {path}; or give" in text
        and "cannot be downloaded automatically" in text
    )
    text = refusal(weights.load_pretrained, Network(), str(tmp_path / "mine.pth"))
    assert text.endswith(
        "mine.pth: no such file; or give MODEL.PRETRAINED '' to start from random weights"
    )


# refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, counts",
    [
        (
            lambda s: {**s, "conv1.weight": torch.zeros(8, 3, 3, 3)},
            "loaded 8 of 9 tensors, missing 0, unexpected 0, mismatched 1",
        ),
        (
            lambda s: {f"backbone.{name}": t for name, t in s.items()},
            "loaded 0 of 9 tensors, missing 9, unexpected 9, mismatched 0",
        ),
        (
            lambda s: {**s, "extra.weight": torch.zeros(1)},
            "loaded 9 of 9 tensors, missing 0, unexpected 1, mismatched 0",
        ),
        (
            lambda s: {n: t for n, t in s.items() if n != "bn1.weight"},
            "loaded 8 of 9 tensors, missing 1, unexpected 0, mismatched 0",
        ),
    ],
    ids=["wider", "prefixed", "more", "less"],
)
def test_load_other_network_raises_and_keeps_the_model(tmp_path, trained, change, counts):
    network = Network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    text = refusal(weights.load, network, saved(tmp_path / "other.pth", change(trained)))
    assert (
        counts in text and "other.pth" in text and "it has the weights of another network" in text
    )
    assert equal(network.state_dict(), before)


def test_load_shape_mismatch_names_both_shapes(tmp_path, trained):
    text = refusal(weights.load, Network(joints=5), saved(tmp_path / "w.pth", trained))
    assert (
        "mismatched: final_layer.weight (3, 4, 1, 1) in the file, (5, 4, 1, 1) in the network"
        in text
    )


def test_load_many_unexpected_tensors_shortens_names(tmp_path):
    text = refusal(
        weights.load,
        Network(),
        saved(tmp_path / "w.pth", {f"x{i}": torch.zeros(1) for i in range(50)}),
    )
    assert "unexpected 50" in text and "x0, x1, x2, ..." in text and "x3" not in text


class Command:
    """Unpickled, it would run a shell command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def spoiled_files(folder):
    """{name: path} of files that are no weight files."""
    good = saved(folder / "good.pth", {"conv1.weight": torch.randn(50, 50)}).read_bytes()
    legacy = saved(
        folder / "good.pth",
        {"conv1.weight": torch.randn(50, 50)},
        _use_new_zipfile_serialization=False,
    ).read_bytes()
    contents = {
        "text": b"these are not the weights you are looking for\n",
        "empty": b"",
        "html": b"<!DOCTYPE html><html>Quota exceeded</html>",
        "json": b'{"a": 1}',
        "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "zeros": bytes(5000),
        "truncated": good[: len(good) // 2],
        "truncated_by_a_byte": good[:-1],
        "truncated_legacy": legacy[: len(legacy) // 2],
        # the key of a storage is changed in one of its two places, at which torch ends with an
        # AssertionError
        "legacy_with_another_key": re.sub(
            rb"\d{10,}", lambda key: b"7" * len(key.group()), legacy, count=1
        ),
        "pickle": pickle.dumps({"a": 1}),
        "pickle_of_code": pickle.dumps(Command(folder / "ran")),
    }
    for name, content in contents.items():
        (folder / f"{name}.pth").write_bytes(content)
    with zipfile.ZipFile(folder / "photos.pth", "w") as archive:
        archive.writestr("a.jpg", b"\xff\xd8")
    (folder / "folder.pth").mkdir()
    saved(folder / "malicious.pth", {"state_dict": Command(folder / "ran")})
    saved(
        folder / "malicious_legacy.pth",
        {"state_dict": Command(folder / "ran")},
        _use_new_zipfile_serialization=False,
    )
    saved(folder / "whole_module.pth", Network())
    saved(folder / "list.pth", [torch.zeros(1)])
    saved(folder / "nothing.pth", {})
    saved(folder / "numbers.pth", {"conv1.weight": 3.0})
    return {path.stem: path for path in folder.glob("*.pth") if path.stem != "good"}


def test_load_invalid_file_raises_in_one_line(tmp_path, recwarn):
    files = spoiled_files(tmp_path)
    assert len(files) == 20
    for name, path in files.items():
        text = refusal(weights.load, Network(), path)
        assert text.startswith(f"{path}: "), name
        assert text == single_line(text) and len(text) < len(str(path)) + 250, name
    assert not (tmp_path / "ran").exists(), "code of a weight file was run"
    assert not recwarn.list, "a warning of torch is a second line on stderr"
    # the message mentions trust only for files that could run code
    text = refusal(weights.read_state_dict, files["malicious"])
    assert "untrusted code" in text and "posix.system" in text
    assert "untrusted code" in refusal(weights.read_state_dict, files["whole_module"])
    assert "AssertionError" in refusal(weights.read_state_dict, files["legacy_with_another_key"])
    assert "damaged" in refusal(
        weights.read_state_dict, files["text"]
    ) and "untrusted" not in refusal(weights.read_state_dict, files["html"])
    assert "no such weight file" in refusal(weights.read_state_dict, files["folder"])
    assert "holds no state dict" in refusal(weights.read_state_dict, files["numbers"])


def test_torch_load_malicious_file_runs_its_code(tmp_path):
    """Read by a careless program, it does what the test above says that it must not."""
    path = saved(tmp_path / "m.pth", {"state_dict": Command(tmp_path / "ran")})
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_load_corrupt_file_reads_or_raises(tmp_path, trained):
    """Bytes changed or cut at random places: read, or refused as a DataError."""
    rng = np.random.default_rng(0)
    refused = 0
    for zipped in (True, False):
        good = saved(
            tmp_path / "w.pth", trained, _use_new_zipfile_serialization=zipped
        ).read_bytes()
        for trial in range(150):
            data = bytearray(good)
            if trial % 3 == 0:
                del data[rng.integers(len(data)) :]
            else:
                for place in rng.integers(len(data), size=4):
                    data[place] = rng.integers(256)
            (tmp_path / "w.pth").write_bytes(data)
            try:
                weights.read_state_dict(tmp_path / "w.pth")
            except DataError:
                refused += 1
    assert refused > 150
