"""Test the experiment stored in a weight file: reading, mismatches, untrusted content."""

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from poise import PoseEstimator, config
from poise.engine import checkpoint
from poise.engine.embedded_experiment import config_from_weights
from poise.engine.trained_weights import load_trained_weights
from poise.errors import ConfigError, DataError
from poise.models import build_model, weights
from poise.models.posenas.genotypes import Genotype, find_genotype, write_genotype
from support.custom_datasets import make_set
from support.paths import ROOT
from support.small_networks import command_line, small

FAMILIES = ["resnet", "mspn", "posenas", "moganet"]


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(5).integers(0, 256, (90, 120, 3), np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(configuration, weight file as a training writes it), by family and overrides."""
    folder = tmp_path_factory.mktemp("trained")

    def of(family, *overrides, network=()):
        path, words = command_line(family, "MODEL.INIT_WEIGHTS", False, *overrides)
        cfg = config.load(ROOT / path, words)
        file = folder / f"{len(list(folder.iterdir()))}.pth"
        torch.save(
            checkpoint.model_state_dict(cfg, small(family, *network), "some_experiment"), file
        )
        return cfg, file

    return of


def with_description(file, out, **changes):
    """The same weights with another description; changes: of its JSON, None removes it."""
    state = torch.load(file, weights_only=True)
    content = json.loads(state._metadata["poise.experiment"])
    state._metadata["poise.experiment"] = json.dumps({**content, **changes})
    torch.save(state, out)
    return out


def with_settings(file, out, change):
    """The same weights with other settings in their description."""
    text = torch.load(file, weights_only=True)._metadata["poise.experiment"]
    values = yaml.safe_load(json.loads(text)["config"])
    change(values)
    return with_description(file, out, config=yaml.safe_dump(values))


@pytest.mark.parametrize("family", FAMILIES)
def test_estimator_weight_file_alone_equals_experiment(family, trained, picture):
    codec = [] if family == "mspn" else ["MODEL.TARGET_TYPE", "udp"]
    cfg, file = trained(family, *codec, "TEST.FLIP_TEST", True, "TEST.BOX_MARGIN", [1.1, 1.4])
    alone, named = PoseEstimator(file, device="cpu"), PoseEstimator(cfg, file, device="cpu")
    boxes = [[10, 10, 80, 85], [40, 5, 110, 70]]
    assert np.array_equal(alone(picture, boxes).keypoints, named(picture, boxes).keypoints)
    assert alone.skeleton == named.skeleton and {**alone.cfg.MODEL, "PRETRAINED": ""} == {
        **named.cfg.MODEL,
        "PRETRAINED": "",
    }
    assert np.array_equal(
        PoseEstimator(None, file, device="cpu")(picture, boxes).scores, named(picture, boxes).scores
    )


def test_weight_file_with_experiment_loads_in_torch(trained):
    _, file = trained("resnet")
    state = torch.load(file, weights_only=True)
    network = small("resnet")
    network.load_state_dict(state, strict=True)
    assert (
        list(state) == list(network.state_dict())
        and json.loads(state._metadata["poise.experiment"])["experiment"] == "some_experiment"
    )


def test_weight_file_contains_no_local_path(trained):
    _, file = trained(
        "resnet",
        "OUTPUT_DIR",
        "/home/me/out",
        "DATASET.ROOT",
        "/home/me/data",
        "TEST.MODEL_FILE",
        "/home/me/w.pth",
        "MODEL.PRETRAINED",
        "/home/me/p.pth",
        "DATASET.MIX.more.FILE",
        "mpii",
        "DATASET.MIX.more.SET",
        "train",
        "DATASET.MIX.more.ROOT",
        "/home/me/mpii",
    )
    assert b"/home/me" not in file.read_bytes()


def test_estimator_weight_file_alone_applies_overrides(trained):
    _, file = trained("resnet")
    assert PoseEstimator(
        file, device="cpu", overrides=["TEST.BOX_MARGIN", [2.0, 2.0]]
    ).cfg.TEST.BOX_MARGIN == [2.0, 2.0]
    with pytest.raises(ConfigError, match="overrides: unknown key TEST.NO"):
        PoseEstimator(file, device="cpu", overrides=["TEST.NO", 1])


def test_weight_file_custom_dataset_contains_keypoint_names(tmp_path):
    """Also where the dataset file is gone."""
    path = make_set(tmp_path, 5, images=())
    cfg = config.load(
        ROOT / command_line("resnet")[0],
        command_line("resnet", "DATASET.FILE", str(path), "MODEL.NUM_JOINTS", 5)[1],
    )
    torch.save(checkpoint.model_state_dict(cfg, build_model(cfg), "own"), tmp_path / "best.pth")
    path.unlink()
    skeleton = PoseEstimator(tmp_path / "best.pth", device="cpu").skeleton
    assert (
        skeleton.names[0] == "middle" and len(skeleton.names) == 5 and len(skeleton.flip_pairs) == 2
    )


def test_weight_file_searched_network_contains_genotype(tmp_path, picture):
    cells = find_genotype("posenas").cells()
    cells["normal"] = tuple(
        (operation, 1 - source) if source < 2 else (operation, source)
        for operation, source in cells["normal"]
    )
    write_genotype(tmp_path / "found.json", Genotype(**cells))
    cfg = config.load(
        ROOT / command_line("posenas")[0],
        command_line("posenas", "MODEL.GENOTYPE", str(tmp_path / "found.json"))[1],
    )
    torch.save(checkpoint.model_state_dict(cfg, build_model(cfg), "found"), tmp_path / "best.pth")
    wanted = PoseEstimator(cfg, tmp_path / "best.pth", device="cpu")(picture).keypoints
    (tmp_path / "found.json").unlink()
    assert np.array_equal(
        PoseEstimator(tmp_path / "best.pth", device="cpu")(picture).keypoints, wanted
    )


def test_estimator_without_weights_or_experiment_raises(tmp_path, trained):
    path, _ = command_line("resnet")
    with pytest.raises(ConfigError, match="weights: missing"):
        PoseEstimator(ROOT / path)
    torch.save(small("resnet").state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match="bare.pth: experiment missing; give its YAML file"):
        PoseEstimator(tmp_path / "bare.pth")


def test_estimator_overrides_complete_the_experiment(tmp_path, trained):
    """What the file lacks may be among them: an own dataset file, as the message advises."""
    _, file = trained("resnet")
    path = tmp_path / "e.yaml"
    path.write_text(f"_BASE_: {ROOT / command_line('resnet')[0]}\nDATASET: {{DATASET: hands}}\n")
    own = make_set(tmp_path, 5, images=())
    words = command_line("resnet", "DATASET.FILE", str(own), "MODEL.NUM_JOINTS", 5)[1]
    with pytest.raises(ConfigError, match="DATASET.FILE takes a file of your own"):
        PoseEstimator(path, file)
    network = build_model(config.load(path, words))
    torch.save(network.state_dict(), tmp_path / "five.pth")
    assert (
        PoseEstimator(
            path, tmp_path / "five.pth", device="cpu", overrides=words
        ).skeleton.num_keypoints
        == 5
    )


# mismatches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, settings",
    [
        (["DATASET.COLOR_RGB", False], "DATASET.COLOR_RGB True (tested with False)"),
        (["MODEL.TARGET_TYPE", "udp"], "MODEL.TARGET_TYPE gaussian (tested with udp)"),
        (
            ["MODEL.IMAGE_SIZE", [64, 96], "MODEL.HEATMAP_SIZE", [16, 24]],
            (
                "MODEL.IMAGE_SIZE [64, 64] (tested with [64, 96]), MODEL.HEATMAP_SIZE [16, 16]"
                " (tested with [16, 24])"
            ),
        ),
        (
            ["MODEL.MEAN", [0.5, 0.5, 0.5]],
            "MODEL.MEAN [0.485, 0.456, 0.406] (tested with [0.5, 0.5, 0.5])",
        ),
        (["MODEL.STD", [1.0, 1.0, 1.0]], "MODEL.STD [0.229, 0.224, 0.225] (tested with [1, 1, 1])"),
        (["TEST.BOX_MARGIN", [1.0, 1.0]], "TEST.BOX_MARGIN [1.25, 1.25] (tested with [1, 1])"),
        ([], ""),
    ],
)
def test_load_trained_other_settings_logs_a_warning(changes, settings, trained, tmp_path, caplog):
    path, words = command_line("resnet")
    cfg = config.load(ROOT / path, words)
    own = config.override(
        cfg,
        ["DATASET.COLOR_RGB", True, "MODEL.IMAGE_SIZE", [64, 64], "MODEL.HEATMAP_SIZE", [16, 16]],
    )
    torch.save(checkpoint.model_state_dict(own, small("resnet"), "x"), tmp_path / "moved.pth")
    tested = config.override(own, changes)
    load_trained_weights(tested, build_model(tested), tmp_path / "moved.pth")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == (
        [f"{tmp_path / 'moved.pth'}: trained with {settings}; keypoints may be misplaced"]
        if settings
        else []
    )


def test_load_trained_prefers_embedded_config_to_config_yaml(trained, tmp_path, caplog):
    cfg, file = trained("resnet")
    (tmp_path / "best.pth").write_bytes(file.read_bytes())
    (tmp_path / "config.yaml").write_text(config.override(cfg, ["MODEL.TARGET_TYPE", "udp"]).dump())
    load_trained_weights(cfg, build_model(cfg), tmp_path / "best.pth")
    assert "trained with" not in caplog.text


def test_weight_file_brings_its_loss(trained):
    cfg, file = trained("mspn", "LOSS.TOPK", 3, "LOSS.COARSE_TO_FINE", False)
    loss = config_from_weights(file).LOSS
    assert loss == cfg.LOSS and loss.TYPE == "mspn"


def test_weight_file_without_loss_gets_the_first_of_its_codec(trained, tmp_path):
    _, file = trained("mspn")
    old = with_settings(file, tmp_path / "old.pth", lambda values: values.pop("LOSS"))
    assert config_from_weights(old).LOSS.TYPE == "joints_mse"


SIMCC = (
    *("MODEL.TARGET_TYPE", "simcc", "MODEL.EXTRA.HEAD", "simcc"),
    *("LOSS.TYPE", "kl_discret", "LOSS.BETA", 5.0),
)


def test_weight_file_of_simcc_alone_gives_the_keypoints_of_the_experiment(trained, picture):
    cfg, file = trained("resnet", *SIMCC, network=SIMCC)
    alone, named = PoseEstimator(file, device="cpu"), PoseEstimator(cfg, file, device="cpu")
    assert alone.cfg.LOSS == cfg.LOSS
    boxes = [[10, 10, 80, 85]]
    assert np.array_equal(alone(picture, boxes).keypoints, named(picture, boxes).keypoints)


def test_load_trained_weights_simcc_of_another_sigma_warns(trained, caplog):
    cfg, file = trained("resnet", *SIMCC, network=SIMCC)
    tested = config.override(cfg, ["MODEL.SIMCC_SIGMA", [3.0, 3.0]])
    load_trained_weights(tested, build_model(tested), file)
    assert "trained with MODEL.SIMCC_SIGMA [4.9, 5.66] (tested with [3" in caplog.text


# untrusted files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"config": 5},
        {"config": "- 3"},
        {"config": "MODEL: [1, 2]"},
        {"config": "MODEL: {IMAGE_SIZE: x}"},
        {"config": "a: &a [*a]"},
        {"dataset": None},
        {"dataset": {"name": "x"}},
        {"dataset": {"name": "../x", "joints": ["a"], "flip_pairs": [], "limbs": []}},
        {"config": "MODEL: {NAME: posenas, GENOTYPE: x}", "genotype": {"normal": 3}},
        {"config": "MODEL: {NAME: posenas, GENOTYPE: x}", "genotype": [1]},
        {"config": "MODEL: {NAME: ../x}"},
        {"config": "AMP: []"},
        {"config": "TEST: {BOX_MARGIN: [.nan, 1]}"},
    ],
)
def test_config_from_weights_invalid_description_raises(changes, trained, tmp_path):
    _, file = trained("resnet")
    with pytest.raises(DataError, match="invalid.pth") as error:
        config_from_weights(with_description(file, tmp_path / "invalid.pth", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["[" * 100_000, 5, {"a": 1}, "x" * 300_000, "null"])
def test_evaluate_invalid_embedded_experiment_is_ignored(value, tmp_path, trained):
    cfg, file = trained("resnet")
    state = torch.load(file, weights_only=True)
    state._metadata["poise.experiment"] = value
    torch.save(state, tmp_path / "w.pth")
    load_trained_weights(cfg, build_model(cfg), tmp_path / "w.pth")
    with pytest.raises((ConfigError, DataError), match="w.pth: .*give .*YAML file"):
        config_from_weights(tmp_path / "w.pth")


def test_config_from_weights_opens_no_path(trained, tmp_path, monkeypatch):
    """Neither a dataset file, nor cells, nor weights that it names."""
    secret = tmp_path / "secret"
    secret.mkdir()
    make_set(secret, 17, images=(), file="set.yaml")
    write_genotype(secret / "cells.json", find_genotype("npp_encoder"))

    def paths(values):
        values["DATASET"].update(
            FILE=f"{secret}/set.yaml",
            MIX={"a": {"FILE": f"{secret}/set.yaml", "SET": "x"}},
            ROOT=str(secret),
        )
        values["MODEL"].update(PRETRAINED=f"{secret}/p.pth", GENOTYPE=f"{secret}/cells.json")
        values["TEST"].update(MODEL_FILE=f"{secret}/m.pth", COCO_BBOX_FILE=f"{secret}/boxes.json")
        values["SEARCH"] = {"GENOTYPE": f"{secret}/cells.json"}

    _, file = trained("posenas")
    bare = with_settings(file, tmp_path / "bare.pth", paths)
    named = with_description(
        bare, tmp_path / "named.pth", genotype=find_genotype("posenas").plain_cells()
    )
    opened = []
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None
    )
    assert "secret" not in config_from_weights(named).dump()
    with pytest.raises(DataError):
        config_from_weights(bare)
    assert opened and not [path for path in opened if "secret" in path]


@pytest.mark.parametrize(
    "extra", [{"NUM_DECONV_FILTERS": [10**9, 4, 4]}, {"NUM_CHANNELS": [4, 4, 4, 10**8]}]
)
def test_config_from_weights_wider_network_than_file_raises(extra, trained, tmp_path):
    _, file = trained("resnet")
    with pytest.raises(DataError, match="describes a larger network than its weights"):
        config_from_weights(
            with_settings(
                file, tmp_path / "large.pth", lambda values: values["MODEL"]["EXTRA"].update(extra)
            )
        )


def test_config_from_weights_deeper_network_than_file_raises(trained, tmp_path):
    _, file = trained("hrnet")
    with pytest.raises(DataError, match="describes a larger network than its weights"):
        config_from_weights(
            with_settings(
                file,
                tmp_path / "long.pth",
                lambda values: values["MODEL"]["EXTRA"]["STAGE2"].update(NUM_MODULES=64),
            )
        )


# tools --------------------------------------------------------------------------------------------


@pytest.fixture
def tool(monkeypatch):
    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return runpy.run_path(str(ROOT / "tools" / name))["main"]()

    return run


def test_demo_and_export_weight_file_alone_work(trained, tmp_path, picture, tool, capsys):
    _, file = trained("resnet")
    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    assert (
        tool(
            "demo.py",
            "--weights",
            file,
            "--input",
            tmp_path / "picture.png",
            "--output",
            tmp_path / "out",
            "--device",
            "cpu",
            "TEST.FLIP_TEST",
            "False",
        )
        == 0
    )
    content = json.loads((tmp_path / "out" / "poses.json").read_text())
    assert len(content["frames"]) == 1 and content["flip_test"] is False
    assert (
        tool(
            "export.py",
            "--weights",
            file,
            "--format",
            "torchscript",
            "--out",
            tmp_path / "net.torchscript",
        )
        == 0
    )
    assert "written: " in capsys.readouterr().out
    torch.save(small("resnet").state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match=r"bare.pth: experiment missing; give its YAML file"):
        tool(
            "demo.py",
            "--weights",
            tmp_path / "bare.pth",
            "--input",
            tmp_path / "picture.png",
            "--output",
            tmp_path / "out2",
        )


def test_convert_keeps_or_adds_the_experiment(trained, tmp_path, tool):
    """Kept from a checkpoint; taken from --cfg for weights that say nothing of themselves."""
    _, file = trained("resnet", "TEST.BOX_MARGIN", [1.1, 1.1])
    torch.save(
        {"state_dict": torch.load(file, weights_only=True), "epoch": 3}, tmp_path / "checkpoint.pth"
    )
    assert (
        tool(
            "convert_weights.py",
            tmp_path / "checkpoint.pth",
            tmp_path / "kept.pth",
            "--to",
            "poise",
        )
        == 0
    )
    assert (
        config_from_weights(tmp_path / "kept.pth").TEST.BOX_MARGIN == [1.1, 1.1]
        and len(weights.read_weight_file(tmp_path / "kept.pth").joints) == 17
    )
    torch.save(small("resnet").state_dict(), tmp_path / "bare.pth")
    path, words = command_line("resnet", "TEST.BOX_MARGIN", [1.3, 1.3])
    assert (
        tool(
            "convert_weights.py",
            tmp_path / "bare.pth",
            tmp_path / "taken.pth",
            "--to",
            "poise",
            "--cfg",
            ROOT / path,
            *words,
        )
        == 0
    )
    assert config_from_weights(tmp_path / "taken.pth").TEST.BOX_MARGIN == [1.3, 1.3]
    small("resnet").load_state_dict(
        torch.load(tmp_path / "taken.pth", weights_only=True), strict=True
    )
