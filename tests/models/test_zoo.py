"""Test models/zoo.yaml and tools/download_weights.py."""

import hashlib
import os
import re
import subprocess
import sys

import pytest
import yaml
from poise import config
from poise.engine.evaluate import find_weights
from poise.engine.logger import run_names
from poise.errors import ConfigError, DataError
from poise.io import download
from poise.models.weights import read_state_dict, zoo
from support.paths import ROOT
from support.weight_server import CONTENT, files, serving

ENTRIES = zoo.read_zoo()


def experiments():
    return sorted(
        path for path in ROOT.glob("experiments/*/*/*.yaml") if path.parent.name != "_base_"
    )


def test_zoo_entries_sha256_prefix_equals_file_name():
    for entry in ENTRIES.values():
        assert entry.sha256_prefix == (download.sha256_prefix(entry.file) or ""), entry.name
        assert (
            entry.by_hand
            or entry.url.startswith("https://")
            and entry.url.endswith(f"/{entry.file}")
        ), entry.name
        assert entry.page.startswith("https://") and entry.licence, entry.name
        assert entry.file or entry.by_hand and entry.note, entry.name
    assert len({entry.target for entry in ENTRIES.values()}) == len(ENTRIES), (
        "two files would lie in one place"
    )


def test_zoo_entries_targets_equal_experiment_files():
    """Every pretrained file of an experiment is listed, and the experiments of each entry start
    from it or have its size.
    """
    by_target = {entry.target: entry for entry in ENTRIES.values()}
    for path in experiments():
        cfg = config.load(path)
        name = str(path.relative_to(ROOT))
        if cfg.MODEL.PRETRAINED:
            assert name in by_target[cfg.MODEL.PRETRAINED].experiments, (
                f"{name} starts from {cfg.MODEL.PRETRAINED}"
            )
    for entry in ENTRIES.values():
        for name in entry.experiments:
            cfg = config.load(ROOT / name, entry.overrides)
            if entry.what == "imagenet":
                assert entry.target == cfg.MODEL.PRETRAINED, (entry.name, name)
            else:
                assert entry.target.startswith(f"models/pytorch/pose_{cfg.DATASET.DATASET}/"), (
                    entry.name
                )
                size = re.search(r"(\d{3})x(\d{3})", entry.name)
                assert list(cfg.MODEL.IMAGE_SIZE) == [int(size[2]), int(size[1])], (
                    entry.name,
                    name,
                )


def test_zoo_entries_cover_published_experiments():
    """All published rows with released weights; the header of zoo.yaml names the others."""
    tested = {
        name for entry in ENTRIES.values() if entry.what == "pose" for name in entry.experiments
    }
    not_released = re.compile(
        r"search_|res2net|mpii/posenas|mpii/mspn|coco/mspn/mspn_4stg_384|moganet_x?l_"
    )
    for path in experiments():
        name = str(path.relative_to(ROOT))
        if not name.startswith("experiments/synthetic"):
            assert (name in tested) != bool(not_released.search(name)), name
    head = zoo.ZOO.read_text().split("\n\n")[0]
    assert "Res2Net-Pose" in head and "PoseNAS on MPII" in head


@pytest.mark.parametrize(
    "change, part",
    [
        ({"name": ""}, "name is missing"),
        ({"licence": ""}, "licence is missing"),
        ({"urll": "https://x"}, "unknown key urll"),
        ({"what": "detector"}, "what must be imagenet or pose"),
        ({"by_hand": True}, "either a url or by_hand"),
        ({"url": None}, "either a url or by_hand"),
        ({"sha256_prefix": 12345678}, "sha256_prefix must be text"),
        ({"sha256_prefix": "12AB34CD"}, "lower-case hex digits"),
        ({"size_bytes": -1}, "size_bytes must be a whole number"),
        ({"experiments": "a.yaml"}, "experiments must be a list"),
        ({"file": 5}, "file must be text"),
        ({"licence": "\x1b[2J"}, "licence must be text of one line"),
        ({"size_bytes": 2**70}, "size_bytes must be a whole number"),
        ({"target": "/etc/passwd"}, "the target /etc/passwd leads out of the folder"),
        ({"target": "../../up/"}, "leads out of the folder"),
        ({"overrides": ["A\nB"]}, "overrides must be a list"),
    ],
)
def test_read_zoo_invalid_entry_raises(tmp_path, change, part):
    good = {
        "name": "a",
        "family": "resnet",
        "what": "pose",
        "file": "a.pth",
        "url": "https://x.org/",
        "page": "https://x.org",
        "licence": "MIT",
        "target": "models/",
    }
    path = tmp_path / "zoo.yaml"
    path.write_text(yaml.safe_dump([{"files": [good]}]))
    assert (
        zoo.read_zoo(path)["a"].target == "models/a.pth"
        and zoo.read_zoo(path)["a"].url == "https://x.org/a.pth"
    )
    path.write_text(yaml.safe_dump([{**good, "files": [change]}]))
    with pytest.raises(DataError, match=re.escape(str(path)) + f".*{part}"):
        zoo.read_zoo(path)


@pytest.mark.parametrize(
    "text, part",
    [
        ("- a: [", "not valid YAML"),
        ("files: 1", "must be a list of groups"),
        ("[1]", "must be a list of groups"),
        ("- {files: [1]}", "must be a group of keys"),
        (
            (
                "- {name: a, family: f, what: pose, page: p, licence: l, target: t, by_hand: true,"
                " files: [{}, {}]}"
            ),
            "two entries are called a",
        ),
    ],
)
def test_read_zoo_invalid_file_raises(tmp_path, text, part):
    (tmp_path / "zoo.yaml").write_text(text)
    with pytest.raises(DataError, match=part):
        zoo.read_zoo(tmp_path / "zoo.yaml")


def test_read_zoo_missing_file_raises(tmp_path):
    with pytest.raises(DataError, match="cannot read the list"):
        zoo.read_zoo(tmp_path / "zoo.yaml")


def test_zoo_find_unknown_name_suggests_nearest():
    assert zoo.find(ENTRIES, "resnet50-19c8e357.pth").name == "resnet50_imagenet"
    with pytest.raises(ConfigError, match="the nearest names are hrnet_w32_imagenet"):
        zoo.find(ENTRIES, "hrnet_w32_imagnet")
    with pytest.raises(ConfigError, match="is not in"):
        zoo.find(ENTRIES, "")


# the tool -----------------------------------------------------------------------------------------


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def list_of(tmp_path, server):
    """Return a function that writes a list with files of the local server."""

    def write(**entry):
        values = {
            "name": "net",
            "family": "resnet",
            "what": "imagenet",
            "page": "https://x.org/page",
            "licence": "MIT",
            "file": "net.pth",
            "target": "models/pytorch/imagenet/",
            "url": server.url("net.pth"),
            **entry,
        }
        (tmp_path / "zoo.yaml").write_text(yaml.safe_dump([{"files": [values]}]))
        return tmp_path / "zoo.yaml"

    return write


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, ROOT / "tools/download_weights.py", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "no_proxy": "127.0.0.1"},
    )


def test_download_weights_saves_to_the_target(tmp_path, server, list_of):
    whole = hashlib.sha256(CONTENT).hexdigest()
    path = list_of(sha256_prefix=whole[:8])
    done = run("net", "--zoo", path, cwd=tmp_path)
    target = tmp_path / "models/pytorch/imagenet/net.pth"
    assert done.returncode == 0 and target.read_bytes() == CONTENT, done.stderr
    assert (
        "downloading" in done.stdout and "(2.3 MB)" in done.stdout and "licence: MIT" in done.stdout
    )
    assert run("net", "--zoo", path, cwd=tmp_path).returncode == 0 and len(server.asked) == 1
    assert (
        run(
            "net", "--zoo", path, "--force", "--to", tmp_path / "elsewhere", cwd=tmp_path
        ).returncode
        == 0
    )
    assert files(tmp_path / "elsewhere") == ["net.pth"] and len(server.asked) == 2
    target.write_bytes(b"damaged")
    done = run("net", "--zoo", path, cwd=tmp_path)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and "the file was removed" in done.stderr
        and not target.exists()
    )


def test_download_weights_broken_transfer_resumes(tmp_path, server, list_of):
    path = list_of(sha256_prefix=hashlib.sha256(CONTENT).hexdigest()[:8])
    server.breaks_after = 1_500_000
    done = run("net", "--zoo", path, cwd=tmp_path)
    assert (
        done.returncode == 1
        and "the next try resumes from" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )
    server.breaks_after = None
    assert run("net", "--zoo", path, cwd=tmp_path).returncode == 0
    assert server.asked == [None, "bytes=1500000-"]


def test_download_weights_wrong_checksum_removes_file(tmp_path, server, list_of):
    done = run("net", "--zoo", list_of(sha256_prefix="0123abcd"), cwd=tmp_path)
    assert (
        done.returncode == 1 and "and 0123abcd was published; the file was removed" in done.stderr
    )
    assert files(tmp_path / "models/pytorch/imagenet") == []


def test_download_weights_without_checksum_prints_it(tmp_path, server, list_of):
    done = run("net", "--zoo", list_of(), cwd=tmp_path)
    assert (
        done.returncode == 0
        and "was not checked, because its publisher gives no sum" in done.stderr
    )


def test_download_weights_manual_entry_prints_instructions(tmp_path, list_of):
    path = list_of(url=None, by_hand=True, sha256_prefix=hashlib.sha256(b"net").hexdigest()[:8])
    done = run("net", "--zoo", path, cwd=tmp_path)
    assert (
        done.returncode == 1
        and done.stdout
        == "net cannot be downloaded automatically; open https://x.org/page, download the file"
        " net.pth and save it as models/pytorch/imagenet/net.pth\n"
    )
    target = tmp_path / "models/pytorch/imagenet/net.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"net")
    assert run("net", "--zoo", path, cwd=tmp_path).returncode == 0
    target.write_bytes(b"cut")
    assert "its sha256 begins with" in run("net", "--zoo", path, cwd=tmp_path).stderr


@pytest.mark.parametrize(
    "experiment, name",
    [
        ("experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml", "mmpose_hrnet_w32_coco_256x192"),
        ("experiments/mpii/hrnet/w32_256x256_adam_lr1e-3.yaml", "mmpose_hrnet_w32_mpii_256x256"),
        (
            "experiments/coco/resnet/res50_256x192_d256x3_adam_lr1e-3.yaml",
            "mmpose_resnet50_coco_256x192",
        ),
        ("experiments/coco/posenas/256x192_18l_48c.yaml", "--list"),  # by hand alone
        ("experiments/synthetic/res2net18_quickstart.yaml", "--list"),
    ],
)
def test_model_file_empty_names_released_weights(tmp_path, experiment, name):
    cfg = config.load(ROOT / experiment)
    folder = tmp_path / run_names(cfg, experiment)
    with pytest.raises(DataError) as error:
        find_weights(cfg, folder)
    assert (
        str(error.value)
        == f"TEST.MODEL_FILE is empty and {folder} has no model_best.pth or final_state.pth;"
        " train first, set TEST.MODEL_FILE x.pth, or download released weights: python"
        f" tools/download_weights.py {name}"
    )


def test_read_state_dict_missing_released_file_names_command(tmp_path):
    """For the demo, exports, PoseEstimator and conversion."""
    entry = zoo.read_zoo()["mmpose_hrnet_w32_coco_256x192"]
    with pytest.raises(
        DataError,
        match=(
            "no such weight file; python tools/download_weights.py "
            f"mmpose_hrnet_w32_coco_256x192 downloads it from {re.escape(entry.url)}"
        ),
    ):
        read_state_dict(tmp_path / entry.target)
    with pytest.raises(DataError, match="own.pth: no such weight file$"):
        read_state_dict(tmp_path / "own.pth")


def test_download_weights_list_prints_entries(tmp_path):
    done = run("--list", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(ENTRIES) + 1
    assert re.search(
        r"^resnet50_imagenet +imagenet +102.5 +automatic +19c8e357 +BSD-3-Clause$",
        done.stdout,
        re.M,
    )
    assert re.search(r"^mspn_2stg_coco_256x192 +pose +\? +manual +nothing", done.stdout, re.M)
    done = run("--list", "mmpose_hrnet_w32_udp_coco_256x192", cwd=tmp_path)
    command = (
        r"^python tools/test.py --cfg experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml"
        r" TEST.MODEL_FILE models/.* MODEL.TARGET_TYPE udp$"
    )
    assert re.search(command, done.stdout, re.M)


def test_download_weights_invalid_arguments_exit_2(tmp_path):
    assert run(cwd=tmp_path).returncode == 2
    done = run("resnet5", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "the nearest names are resnet50_imagenet" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


def test_gitignore_keeps_zoo_yaml():
    assert "!models/zoo.yaml" in (ROOT / ".gitignore").read_text().splitlines()
