"""Test export: files equal the network, mismatches are removed, PoseEstimator reads ONNX.

The exports of every family at two sizes take minutes and are marked slow; some narrow ones are made
in the quick suite.
"""

import json
import shutil
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from poise import PoseEstimator, config
from poise.cli import export as export_command
from poise.codecs import CODECS, build_codec
from poise.errors import ConfigError, DataError, run_tool
from poise.inference.export import export, formats, metadata, parity
from poise.inference.export.graph import ExportOptions, Graph, normalized
from poise.models import build_model
from poise.models.weights import add_keypoint_names
from support.custom_datasets import joint_names, make_set
from support.golden_inputs import filled_state
from support.paths import ROOT
from support.small_networks import EXPERIMENT, command_line, small

SHALLOW = ["MODEL.EXTRA.NUM_LAYERS", 18]  # exporters take their time for each layer
SIZES = {"64x64": [], "96x128": ["MODEL.IMAGE_SIZE", [96, 128], "MODEL.HEATMAP_SIZE", [24, 32]]}
WHOLE = ExportOptions(normalize=True, flip=True, decode=True)
TEST_KEYS = ["TEST.POST_PROCESS", True, "TEST.FLIP_TEST", True, "TEST.SHIFT_HEATMAP", True]


def narrow(family, folder, *overrides):
    """(configuration, weight file) of a narrow network."""
    path, words = command_line(family, *TEST_KEYS, *overrides)
    file = folder / f"{family}.pth"
    torch.save(small(family, *overrides).state_dict(), file)
    return config.load(ROOT / path, words), file


# ---- decoding as part of a graph


def made_heatmaps(codec, rng, batch=6, joints=17):
    """Hills at random places with some noise; some at the border, some maps empty, one flat."""
    width, height = codec.heatmap_size
    x, y = np.arange(width)[None, None, None], np.arange(height)[None, None, :, None]
    cx, cy = (rng.uniform(-1, size, (batch, joints, 1, 1)) for size in (width, height))
    maps = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * codec.sigma**2)) * rng.uniform(
        0.3, 1, (batch, joints, 1, 1)
    )
    maps = (maps + 0.02 * rng.standard_normal(maps.shape)) * codec.peak_value
    maps[0, :3], maps[1, 0] = -0.1, 0
    # with one cell above 0, the blurred map is nowhere above 0
    maps[2] = -1 - rng.random(maps[2].shape)
    maps[2, :, height // 2, width // 2] = 0.5
    return maps.astype(np.float32)


@pytest.mark.parametrize("post", [True, False])
@pytest.mark.parametrize("refine", ["", "quarter", "dark"])
@pytest.mark.parametrize(
    "target", [name for name, entry in CODECS.items() if entry.head == "heatmap"]
)
def test_graph_decoding_equals_codec(target, refine, post):
    path, words = command_line(
        "mspn" if target == "megvii" else "hrnet",
        *SIZES["96x128"],
        "MODEL.TARGET_TYPE",
        target,
        "TEST.DECODE",
        refine,
        "TEST.POST_PROCESS",
        post,
        "TEST.EMPTY_CELL",
        -1,
        *([] if target == "megvii" else ["LOSS.TYPE", "joints_mse"]),
    )
    codec = build_codec(config.load(ROOT / path, words))
    maps = made_heatmaps(codec, np.random.default_rng(2))
    coords, scores = codec.decode(maps)
    theirs, their_scores = (
        output.numpy() for output in codec.build_decoder()(torch.from_numpy(maps))
    )
    assert (
        theirs.dtype == np.float32
        and theirs.shape == coords.shape
        and np.allclose(their_scores, scores, rtol=1e-5, atol=1e-5)
    )
    moved = np.abs(theirs - coords).max(axis=2)
    assert np.median(moved) < 1e-4 and (moved < 0.01).mean() > 0.99 and np.ptp(coords) > 60


@pytest.mark.parametrize("refine", ["dark", "udp"])
def test_graph_decoding_tiny_heatmaps_equals_codec(refine):
    path, words = command_line(
        "hrnet",
        "MODEL.IMAGE_SIZE",
        [16, 16],
        "MODEL.HEATMAP_SIZE",
        [4, 4],
        "MODEL.TARGET_TYPE",
        refine,
        "TEST.BLUR_KERNEL",
        3,
    )
    codec = build_codec(config.load(ROOT / path, words))
    maps = np.random.default_rng(0).random((2, 17, 4, 4), np.float32)
    assert np.allclose(
        codec.build_decoder()(torch.from_numpy(maps))[0].numpy(), codec.decode(maps)[0], atol=1e-2
    )


# ---- files


@pytest.mark.parametrize("format", formats.FORMATS)
def test_export_every_format_equals_network(format, tmp_path):
    """With everything in the graph; what it finds is held against the network here once more,
    with another number of crops.
    """
    cfg, file = narrow("resnet", tmp_path, *SHALLOW, "DATASET.COLOR_RGB", False)
    out = tmp_path / f"net{formats.FORMATS[format].ending}"
    found = export(cfg, file, out, format, WHOLE)
    assert [one.kind for one in found] == ["noise", "synthetic persons"] and all(
        one.equal and one.joints == 8 * 17 and one.unsure < 20 for one in found
    )
    crops = parity.make_synthetic_crops(cfg, build_codec(cfg), 5)
    run = formats.FORMATS[format].read(out)
    keypoints, scores, heatmaps = run(crops)
    estimator = PoseEstimator(cfg, file, device="cpu")
    maps = estimator._network(crops)
    coords, own_scores = estimator._codec.decode(maps)
    assert (
        np.abs(heatmaps - maps).max() < 1e-5 * np.abs(maps).max()
        and np.abs(keypoints - coords).max() < 1e-3
        and np.allclose(scores, own_scores, atol=1e-5)
    )
    assert not np.allclose(
        maps, PoseEstimator(cfg, file, device="cpu", flip_test=False)._network(crops)
    )
    data = out.read_bytes()
    assert (
        str(ROOT).encode() not in data
        and b"site-packages" not in data
        and list(tmp_path.glob(".*")) == []
    )


def test_export_network_only_takes_normalized_input(tmp_path):
    """Its input is what training sees; what lies on both sides of it can be done in any program."""
    import onnxruntime

    cfg, file = narrow("resnet", tmp_path, *SHALLOW)
    export(cfg, file, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [one.name for one in session.get_inputs()] == ["images"] and [
        one.name for one in session.get_outputs()
    ] == ["heatmaps"]
    images = normalized(cfg, torch.from_numpy(parity.make_noise_crops(cfg, 3)))
    with torch.no_grad():
        wanted = small("resnet", *SHALLOW)(images).numpy()
    assert (
        np.abs(session.run(None, {"images": images.numpy()})[0] - wanted).max()
        < 1e-5 * np.abs(wanted).max()
    )
    description = json.loads(session.get_modelmeta().custom_metadata_map["poise"])
    assert (
        description["config"]["MODEL.IMAGE_SIZE"] == [64, 64]
        and description["dataset"]["joints"][0] == "nose"
        and description["parts"] == {"normalize": False, "flip": False, "decode": False}
    )
    operations = {
        node.op_type for node in __import__("onnx").load(tmp_path / "net.onnx").graph.node
    }
    assert "BatchNormalization" not in operations and "Conv" in operations


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", EXPERIMENT)
def test_export_every_family_equals_network(family, size, tmp_path):
    cfg, file = narrow(
        family, tmp_path, *SIZES[size], *(SHALLOW if family.startswith("res") else [])
    )
    for one in export(cfg, file, tmp_path / "net.onnx", "onnx", WHOLE):
        assert one.equal and one.unsure < one.joints / 4, str(one)
    if size == "64x64":
        for format in ("torchscript", "torch_export"):
            assert all(one.equal for one in export(cfg, file, tmp_path / "net", format, WHOLE))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["dark", "udp"])
def test_export_every_codec_equals_network(target, tmp_path):
    cfg, file = narrow("hrnet", tmp_path, "MODEL.TARGET_TYPE", target)
    assert all(
        one.equal and one.unsure < one.joints / 4
        for one in export(cfg, file, tmp_path / "net.onnx", "onnx", WHOLE)
    )


@pytest.mark.slow
def test_export_mpii_equals_network(tmp_path, picture):
    """Other joints and another crop; the file knows them."""
    overrides = [
        "MODEL.PRETRAINED",
        "",
        "MODEL.IMAGE_SIZE",
        [64, 64],
        "MODEL.HEATMAP_SIZE",
        [16, 16],
        *SHALLOW,
        "MODEL.EXTRA.NUM_DECONV_FILTERS",
        [4, 4, 4],
    ]
    cfg = config.load(
        ROOT / "experiments/mpii/resnet/res50_256x256_d256x3_adam_lr1e-3.yaml", overrides
    )
    model = build_model(cfg)
    torch.save(filled_state(model.state_dict(), 0), tmp_path / "mpii.pth")
    assert all(
        one.equal
        for one in export(cfg, tmp_path / "mpii.pth", tmp_path / "mpii.onnx", "onnx", WHOLE)
    )
    one = PoseEstimator(None, tmp_path / "mpii.onnx", device="cpu")(picture, BOXES)
    other = PoseEstimator(cfg, tmp_path / "mpii.pth", device="cpu", flip_test=True)(picture, BOXES)
    assert (
        one.skeleton.name == "mpii"
        and one.keypoints.shape == (3, 16, 2)
        and np.abs(one.keypoints - other.keypoints).max() < 1e-3
    )


class Spoiled(Graph):
    """A graph whose heatmaps are a little off."""

    amount = 3e-4

    def forward(self, images):
        *first, heatmaps = super().forward(images)
        return (*first, heatmaps * (1 + self.amount))


def test_export_mismatch_removes_the_file(tmp_path, monkeypatch):
    cfg, file = narrow("resnet", tmp_path)
    out = tmp_path / "net.torchscript"
    out.write_bytes(b"before")
    monkeypatch.setattr("poise.inference.export.Graph", Spoiled)
    with pytest.raises(
        DataError,
        match=(
            r"net.torchscript: the exported file differs from the network and is not kept \(noise:"
            r" .*synthetic persons"
        ),
    ) as error:
        export(cfg, file, out, "torchscript")
    assert (
        out.read_bytes() == b"before"
        and sorted(path.name for path in tmp_path.iterdir()) == ["net.torchscript", "resnet.pth"]
        and "\n" not in str(error.value)
    )
    monkeypatch.setattr(Spoiled, "amount", 0.0)
    export(cfg, file, out, "torchscript")
    assert out.read_bytes() != b"before"


def test_parity_wrong_or_nan_keypoints_are_found(tmp_path):
    """Heatmaps that are right do not excuse keypoints that are not, and what is not a number is
    never equal.
    """
    cfg, file = narrow("resnet", tmp_path)
    codec = build_codec(cfg)
    model, graph, crops = (
        small("resnet"),
        Graph(cfg, codec, small("resnet"), ExportOptions(decode=True)),
        parity.make_noise_crops(cfg),
    )

    def run(images, spoil=lambda outputs: outputs):
        with torch.no_grad():
            return spoil([output.numpy() for output in graph(torch.from_numpy(images))])

    def compared(spoil):
        return parity.compare(
            cfg,
            codec,
            model,
            ExportOptions(decode=True),
            lambda images: run(images, spoil),
            crops,
            "noise",
        )

    assert compared(lambda outputs: outputs).equal
    one = compared(lambda outputs: [outputs[0] + np.float32(0.02), *outputs[1:]])
    assert (
        not one.equal
        and one.keypoints == pytest.approx(0.02, rel=1e-2)
        and one.outputs < parity.OUTPUT_TOLERANCE
    )
    assert not compared(
        lambda outputs: [outputs[0], outputs[1] * np.float32(1.01), outputs[2]]
    ).equal
    assert not compared(lambda outputs: [*outputs[:2], outputs[2] * np.float32("nan")]).equal
    with torch.no_grad():
        model.final_layer.bias[3] = float("inf")
    with pytest.raises(DataError, match="heatmaps of the network have NaN or infinite values"):
        compared(lambda outputs: outputs)
    flat = parity._certain(
        build_codec(cfg),
        np.zeros((1, 17, 16, 16), np.float32),
        np.zeros((1, 17, 2), np.float32),
        1e-7,
    )
    assert not flat.any()  # a flat map has no defined maximum


# ---- ONNX files as PoseEstimator's weights


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(configuration, weights, {parts: ONNX file}) of a narrow network."""
    folder = tmp_path_factory.mktemp("onnx")
    cfg, file = narrow("resnet", folder, *SHALLOW, "DATASET.COLOR_RGB", False)
    files = {}
    for parts in (
        ExportOptions(),
        ExportOptions(normalize=True),
        WHOLE,
        ExportOptions(normalize=True, decode=True),
    ):
        files[parts] = folder / f"{len(files)}.onnx"
        export(cfg, file, files[parts], "onnx", parts)
    return cfg, file, files


@pytest.fixture(scope="module")
def picture():
    from poise.datasets.synthetic.scene import sample_scene

    return np.ascontiguousarray(sample_scene(np.random.default_rng(2)).image[:, :, ::-1])


BOXES = [[20, 30, 120, 200], [-40, 10, 90, 160], [5, 5, 60, 50]]


def test_estimator_onnx_file_equals_weights(exported, picture, caplog):
    cfg, file, files = exported
    for parts, onnx in files.items():
        flip = parts.flip or not parts.decode
        caplog.clear()
        wanted = PoseEstimator(cfg, file, device="cpu", flip_test=flip)(
            [picture, picture], [BOXES, None]
        )
        for experiment in (None, cfg):
            estimator = PoseEstimator(experiment, onnx, device="cpu", batch_size=3)
            assert flip == estimator.cfg.TEST.FLIP_TEST and estimator.skeleton.name == "coco"
            for one, other in zip(estimator([picture, picture], [BOXES, None]), wanted):
                assert (
                    np.abs(one.keypoints - other.keypoints).max() < 1e-3
                    and np.allclose(one.scores, other.scores, atol=1e-5)
                    and len(one) == len(other)
                )
                assert np.allclose(one.person_scores, other.person_scores, atol=1e-5)
        assert len(estimator(picture, [])) == 0
        without = (
            "was exported with decoding and without the flip test, so TEST.FLIP_TEST True has no"
            " effect"
        )
        assert caplog.text.count(without) == (0 if flip else 2)
    plain = PoseEstimator(None, files[ExportOptions()], device="cpu", flip_test=False)(picture)
    assert np.allclose(
        plain.scores,
        PoseEstimator(cfg, file, device="cpu", flip_test=False)(picture).scores,
        atol=1e-5,
    )


def test_estimator_onnx_file_unsupported_options_raise(exported, tmp_path):
    cfg, _, files = exported
    for parts, options, message in (
        (WHOLE, {"flip_test": False}, "was exported with the flip test"),
        (
            ExportOptions(normalize=True, decode=True),
            {"flip_test": True},
            "with decoding and without the flip test",
        ),
        (ExportOptions(), {"half": True}, "remove half"),
        (
            ExportOptions(),
            {"overrides": ["MODEL.IMAGE_SIZE", [32, 32], "MODEL.HEATMAP_SIZE", [8, 8]]},
            "exported with MODEL.IMAGE_SIZE",
        ),
        (
            WHOLE,
            {"overrides": ["TEST.POST_PROCESS", False]},
            "exported with TEST.POST_PROCESS True",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            PoseEstimator(None, files[parts], device="cpu", **options)
    assert not PoseEstimator(
        None, files[ExportOptions()], device="cpu", overrides=["TEST.POST_PROCESS", False]
    ).cfg.TEST.POST_PROCESS
    with pytest.raises(DataError, match="no such ONNX file"):
        PoseEstimator(None, tmp_path / "missing.onnx")


def test_estimator_failing_onnxruntime_raises(exported, monkeypatch):
    from poise.inference.export.onnx_network import OnnxNetwork

    def fail(*_):
        raise RuntimeError("no room for\nthe workspace")

    cfg, _, files = exported
    network = OnnxNetwork(files[ExportOptions()], None, "cpu", None)
    monkeypatch.setattr(network, "_session", SimpleNamespace(run=fail))
    with pytest.raises(
        DataError, match=r"onnxruntime failed on 2 crops \(no room for the workspace\)"
    ):
        network(np.zeros((2, *reversed(cfg.MODEL.IMAGE_SIZE), 3), np.uint8))


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_estimator_onnx_device_is_the_started_one(exported, monkeypatch):
    """The device is the one that onnxruntime has started, or there is an error."""
    import onnxruntime

    file = exported[2][ExportOptions()]
    for device in ("mps", "toaster", 1.5):
        with pytest.raises(
            ConfigError,
            match=(
                f"device '{device}' cannot be used with an ONNX file; set auto, cpu, cuda or cuda:1"
            ),
        ):
            PoseEstimator(None, file, device=device)
    assert (
        PoseEstimator(None, file).device == torch.device("cpu")
        and PoseEstimator(None, file, device=torch.device("cpu")).device.type == "cpu"
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        ConfigError, match="this onnxruntime cannot use cuda:1; install onnxruntime-gpu"
    ):
        PoseEstimator(None, file, device="cuda:1")
    if (
        "CUDAExecutionProvider"
        in onnxruntime.InferenceSession(
            str(file), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        ).get_providers()
    ):
        pytest.skip("this machine has a GPU")
    # a package for GPUs on a machine without one: onnxruntime itself goes on with the CPU
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    found = PoseEstimator(None, file)
    assert found.device == torch.device("cpu") and found.batch_size == 4
    with pytest.raises(
        ConfigError,
        match="onnxruntime cannot start CUDA; repair its installation, or set device cpu",
    ):
        PoseEstimator(None, file, device="cuda")


def with_metadata(source, target, text, key="poise"):
    import onnx

    model = onnx.load(source)
    del model.metadata_props[:]
    if text is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    onnx.save(model, target)
    return target


def test_metadata_from_text_without_loss_keys_sets_default_loss(exported):
    cfg = config.override(exported[0], ["LOSS.TYPE", "joints_mse", "LOSS.FACTOR", 1.0])
    text = metadata.as_text(cfg, build_codec(cfg), ExportOptions())
    assert metadata.from_text(text, "net.onnx")[0].LOSS == cfg.LOSS
    content = json.loads(text)
    for key in metadata.loss_keys():
        del content["config"][key]
    old, _ = metadata.from_text(json.dumps(content), "net.onnx")
    assert (old.LOSS.TYPE, old.LOSS.FACTOR) == ("joints_mse", 0.5)


def test_estimator_onnx_invalid_metadata_raises(exported, tmp_path):
    """It is data: whatever stands there is read as JSON, and refused in one line where it is not
    what an export writes.
    """
    cfg, _, files = exported
    good = json.loads(metadata.as_text(cfg, build_codec(cfg), ExportOptions()))

    def changed(**more):
        return json.dumps({**good, **more})

    def with_keys(**keys):
        return changed(
            config={
                **good["config"],
                **{key.replace("__", "."): value for key, value in keys.items()},
            }
        )

    cases = [
        ("missing metadata of Poise", None),
        ("invalid metadata", "{'a': 1}"),
        ("invalid metadata .*JSONDecodeError", "__import__('os').system('touch evil')"),
        ("unsupported metadata version 7", changed(version=7)),
        ("unexpected keys", with_keys(MODEL__GENOTYPE="/etc/passwd")),
        ("strings instead of numbers", with_keys(MODEL__SIGMA="2.0")),
        ("MODEL.IMAGE_SIZE must be", with_keys(MODEL__IMAGE_SIZE=[10**9, 1])),
        ("MODEL.SIGMA must be", with_keys(MODEL__SIGMA=-1.0)),
        ("LOSS.TYPE must be", with_keys(LOSS__TYPE="mspn")),
        ("too long", changed(x="y" * 300_000)),
        ("invalid metadata .*RecursionError|JSONDecodeError", "[" * 100_000),
        ("unexpected keys", changed(parts={"normalize": 1, "flip": False, "decode": False})),
        ("TypeError", "3"),
        ("do not match the metadata", changed(parts={**good["parts"], "decode": True})),
        ("TEST.BLUR_KERNEL must be", with_keys(TEST__BLUR_KERNEL=4)),
        ("invalid metadata", "null"),
        ("other keys of its joints", changed(dataset={**good["dataset"], "root": "/"})),
        (
            "its joints: flip_pairs names 'tail'",
            changed(dataset={**good["dataset"], "flip_pairs": [["nose", "tail"]]}),
        ),
        (
            "MODEL.NUM_JOINTS must be 1",
            changed(dataset={"name": "one", "joints": ["nose"], "flip_pairs": [], "limbs": []}),
        ),
    ]
    for message, text in cases:
        file = with_metadata(files[ExportOptions()], tmp_path / "foreign.onnx", text)
        with pytest.raises(DataError, match=message) as error:
            PoseEstimator(None, file, device="cpu")
        assert (
            "\n" not in str(error.value)
            and "foreign.onnx" in str(error.value)
            and len(str(error.value)) < 600
        )
    with_metadata(files[ExportOptions()], tmp_path / "foreign.onnx", json.dumps(good))
    assert (
        len(
            PoseEstimator(None, tmp_path / "foreign.onnx", device="cpu")(
                np.zeros((9, 9, 3), np.uint8)
            )
        )
        == 1
    )
    for content in (b"", b"not a model", files[ExportOptions()].read_bytes()[:5000]):
        (tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(DataError, match="onnxruntime cannot run this file") as error:
            PoseEstimator(None, tmp_path / "broken.onnx", device="cpu")
        assert "\n" not in str(error.value)


def test_export_custom_dataset_contains_keypoint_names(tmp_path):
    """An ONNX file brings its joints with it: where it is used there is no dataset file."""
    path = make_set(tmp_path, 5, images=())
    overrides = ["DATASET.FILE", str(path), "MODEL.NUM_JOINTS", 5, "TEST.FLIP_TEST", True]
    file = tmp_path / "weights.pth"
    torch.save(small("resnet", joints=5).state_dict(), file)
    experiment, words = command_line("resnet", *TEST_KEYS, *overrides)
    cfg = config.load(ROOT / experiment, words)
    export(cfg, file, tmp_path / "five.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    wanted = PoseEstimator(cfg, file, device="cpu")(picture)
    path.unlink()
    found = PoseEstimator(None, tmp_path / "five.onnx", device="cpu")
    assert found.skeleton.names == (
        "middle",
        "left_0",
        "right_0",
        "left_1",
        "right_1",
    ) and found.skeleton.flip_pairs == ((1, 2), (3, 4))
    np.testing.assert_allclose(found(picture).keypoints, wanted.keypoints, atol=1e-2)
    assert found(picture).draw(picture).shape == picture.shape


def test_parity_many_images_run_in_batches(tmp_path, monkeypatch):
    """A folder of images to check an export on may hold thousands."""
    cfg, _ = narrow("resnet", tmp_path)
    model, sizes, whole = small("resnet"), [], parity.reference_output
    graph = Graph(cfg, build_codec(cfg), small("resnet"), ExportOptions(normalize=True))
    monkeypatch.setattr(
        parity,
        "reference_output",
        lambda *arguments: sizes.append(len(arguments[3])) or whole(*arguments),
    )
    with torch.no_grad():
        one = parity.compare(
            cfg,
            graph.codec,
            model,
            graph.options,
            lambda images: [output.numpy() for output in graph(torch.from_numpy(images))],
            parity.make_noise_crops(cfg, 20),
            "noise",
        )
    assert one.equal and one.crops == sum(sizes) == 20 and max(sizes) == 4


def test_estimator_other_keypoint_names_warn_or_raise(tmp_path, caplog):
    """Warn about weights with other keypoint names; reject an ONNX file with other names."""
    sets = {
        "own": make_set(tmp_path, 5, images=()),
        "renamed": make_set(
            tmp_path,
            5,
            images=(),
            file="renamed.yaml",
            names=["middle", "left_0", "right_0", "hand", "foot"],
        ),
        "turned": make_set(
            tmp_path,
            5,
            images=(),
            file="turned.yaml",
            flip_pairs=[["left_0", "right_1"], ["left_1", "right_0"]],
        ),
    }
    experiment, cfgs = command_line("resnet")[0], {}
    for name, path in sets.items():
        cfgs[name] = config.load(
            ROOT / experiment,
            command_line("resnet", *TEST_KEYS, "DATASET.FILE", str(path), "MODEL.NUM_JOINTS", 5)[1],
        )
    file = tmp_path / "weights.pth"
    torch.save(add_keypoint_names(small("resnet", joints=5).state_dict(), joint_names(5)), file)
    warning = (
        f"{file}: trained with other keypoints than those of {sets['renamed']} (its joint 3 is"
        " left_1 and not hand); keypoints may get wrong names"
    )
    for name, warnings in (("own", []), ("turned", []), ("renamed", [warning])):
        caplog.clear()
        PoseEstimator(cfgs[name], file, device="cpu")
        assert [
            record.getMessage() for record in caplog.records if record.levelname == "WARNING"
        ] == warnings
    caplog.clear()
    export(cfgs["renamed"], file, tmp_path / "net.torchscript", "torchscript")
    assert warning in caplog.text
    export(cfgs["own"], file, tmp_path / "five.onnx")
    assert PoseEstimator(cfgs["own"], tmp_path / "five.onnx", device="cpu").skeleton.names == tuple(
        joint_names(5)
    )
    for name, fault in (
        ("renamed", "its joint 3 is left_1 and not hand"),
        ("turned", "its flip pairs differ"),
    ):
        with pytest.raises(
            ConfigError,
            match=(
                rf"exported with other keypoints than the experiment's \({fault}\); export it"
                r" again, or omit the experiment"
            ),
        ):
            PoseEstimator(cfgs[name], tmp_path / "five.onnx", device="cpu")


def test_export_weights_of_other_settings_warn(tmp_path, caplog):
    cfg, file = narrow("resnet", tmp_path, *SHALLOW)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    export(
        config.override(cfg, ["DATASET.COLOR_RGB", not cfg.DATASET.COLOR_RGB]),
        file,
        tmp_path / "net.torchscript",
        "torchscript",
    )
    assert (
        f"{file}: trained with DATASET.COLOR_RGB {cfg.DATASET.COLOR_RGB} (tested with"
        f" {not cfg.DATASET.COLOR_RGB})" in caplog.text
    )


def test_export_without_onnx_extra_raises(tmp_path, monkeypatch):
    cfg, file = narrow("resnet", tmp_path)
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ConfigError, match=r"exporting to onnx needs onnxscript .* pip install 'poise\[onnx\]'"
    ):
        export(cfg, file, tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"needs onnxruntime .* pip install 'poise\[onnx\]'"):
        PoseEstimator(None, tmp_path / "net.onnx")


# ---- the tool


@pytest.fixture
def tool(monkeypatch, capfd):
    """Run tools/export.py in this process; (status, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tools/export.py", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            run_tool(export_command.main)
        out, err = capfd.readouterr()
        return done.value.code, out, err

    return run


def test_export_command_writes_the_file(tool, tmp_path, picture):
    assert tuple(formats.FORMATS) == export_command.FORMATS
    path, words = command_line("resnet")
    file = tmp_path / "net.pth"
    torch.save({"epoch": 3, "state_dict": small("resnet").state_dict()}, file)  # a checkpoint
    cv2.imwrite(str(tmp_path / "a.jpg"), picture)
    (tmp_path / "notes.txt").write_text("no picture")
    status, out, err = tool(
        "--cfg",
        ROOT / path,
        "--weights",
        file,
        "--format",
        "torchscript",
        "--with-decode",
        "--images",
        tmp_path,
        "--images",
        tmp_path / "a.jp*",
        *words,
    )
    assert status == 0 and not err and (tmp_path / "net.torchscript").is_file(), err
    assert (
        "noise: 8 crops: heatmaps differ by at most" in out
        and "images: 2 crops: " in out
        and "px in 34 keypoints" in out
        and "written: " in out
    )
    shutil.rmtree(tmp_path / "empty", ignore_errors=True)
    (tmp_path / "empty").mkdir()
    for options, message, wanted in (
        (
            ["--images", tmp_path / "empty"],
            "the folder holds no file with an image extension",
            1,
        ),
        (["--images", "0" * 400], "cannot be read (File name too long)", 1),
        (["--images", tmp_path / "notes.txt"], "notes.txt: not an image", 1),
        (["--out", file], "give a file of its own", 2),
        (["--out", tmp_path / "empty"], "give a file of its own", 2),
    ):
        status, out, err = tool(
            "--cfg", ROOT / path, "--weights", file, "--format", "torchscript", *options, *words
        )
        assert status == wanted and message in err and err.count("\n") == 1, err
    status, _, err = tool("--cfg", ROOT / path, "--weights", tmp_path / "missing.pth", *words)
    assert status == 1 and "missing.pth: no such weight file" in err
