"""Every command of the README and of the first pages runs as it is written.

Small weights and datasets stand in for the real ones, under the paths that the pages name.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/quickstart.md", "docs/train.md", "docs/evaluate.md")
# tested elsewhere: the clone needs a network, the environment is the one that runs this test,
# tensorboard serves until it is stopped, and the make targets are run by CI itself; weights are
# downloaded and converted in tests/models/test_zoo.py and test_weights_convert.py, data in
# tests/datasets/test_prepare_data.py
NOT_RUN = (
    "git clone",
    "source .venv",
    "make quickstart",
    "tensorboard --logdir",
    "python tools/convert_weights.py",
    "python tools/prepare_data.py",
)
DOWNLOADS = re.compile(r"python tools/download_weights\.py ([a-z]\w+)$")
# weights that a command of the same page writes
WRITTEN = {"model_best.pth", "mspn_2stg.pth"}


def commands():
    """Return the command lines of the pages' code blocks, with continued lines joined."""
    lines = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
            lines += block.replace("\\\n", " ").splitlines()
    return [
        " ".join(line.split())
        for line in lines
        if re.match(r"(git|make|source|python|pip|tensorboard)\s", line)
    ]


def test_readme_contains_its_commands():
    text = "\n".join(commands())
    for part in (
        "tools/train.py --cfg experiments/coco/",
        "tools/test.py --cfg experiments/coco/",
        "tools/train.py --cfg experiments/mpii/",
        "tools/test.py --cfg experiments/mpii/",
        "TEST.USE_GT_BBOX False",
        "make quickstart",
        "tensorboard --logdir log",
        "tools/make_synthetic.py",
        "tools/train.py --dry-run",
    ):
        assert part in text


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, small_set, small_mpii_set):
    """The project's tools and experiments in a folder of their own, with small sets and filled
    weights where the README wants data.
    """
    import torch
    from poise import config
    from poise.models import build_model
    from poise.models.weights.zoo import read_zoo

    folder = tmp_path_factory.mktemp("checkout")
    for name in ("tools", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "models").mkdir()
    shutil.copy(ROOT / "models/zoo.yaml", folder / "models")
    (folder / "data").mkdir()
    shutil.copytree(small_set, folder / "data/coco")
    shutil.copytree(small_set, folder / "data/synthetic")
    shutil.copytree(small_mpii_set, folder / "data/mpii")
    # random weights of the right shapes, where download_weights.py puts the released ones
    entries = read_zoo()
    for name in (
        "res2net50_imagenet",
        "mmpose_hrnet_w32_coco_256x192",
        "mmpose_hrnet_w32_mpii_256x256",
    ):
        target = folder / entries[name].target
        target.parent.mkdir(parents=True, exist_ok=True)
        model = build_model(config.load(ROOT / entries[name].experiments[0]))
        state = model.state_dict()
        if entries[name].what == "imagenet":
            state = {k: v for k, v in state.items() if not k.startswith(model.head_prefixes)}
            state["fc.weight"] = torch.zeros(2, 2)
        torch.save(state, target)
    return folder


@pytest.mark.parametrize(
    "command",
    [c for c in dict.fromkeys(commands()) if not c.startswith(NOT_RUN) and not DOWNLOADS.match(c)],
)
def test_readme_command_runs(command, checkout):
    """Overrides after the words of the page cut training to one epoch of small images."""
    words = shlex.split(command)
    assert words[0] == "python"
    words[0] = sys.executable
    if words[1].removeprefix("tools/") in (
        "train.py",
        "test.py",
        "search.py",
        "demo.py",
        "export.py",
    ):
        words += ["WORKERS", "0", "CPU_THREADS", "1", "TEST.PICTURES", "1", "TRAIN.END_EPOCH", "1"]
        # the quick start's network is small, and its heatmaps are half of its input
        if "quickstart" not in command:
            words += ["MODEL.IMAGE_SIZE", "[64,64]", "MODEL.HEATMAP_SIZE", "[16,16]"]
    if words[1] == "tools/search.py":
        words += [
            "SEARCH.LAYERS",
            "4",
            "SEARCH.INIT_CHANNELS",
            "4",
            "SEARCH.BATCH_SIZE",
            "4",
            "SEARCH.INIT_EPOCHS",
            "1",
            "SEARCH.EPOCHS",
            "2",
        ]
    if words[1] == "tools/make_synthetic.py":
        # the last of two equal options counts
        words += ["--train", "2", "--val", "1", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run(
        words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if words[1] == "tools/test.py":
        assert "| AP " in done.stdout or "| Head " in done.stdout


def test_python_example_runs(checkout, monkeypatch, capsys):
    photo = next((checkout / "data/coco/images/val2017").glob("*.jpg"))
    shutil.copy(photo, checkout / "image.jpg")

    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    assert len(example.splitlines()) <= 10
    monkeypatch.chdir(checkout)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(1, 17, 2) ")
    assert (checkout / "poses.json").is_file() and (checkout / "drawn.jpg").is_file()


def test_model_table_names_experiments_and_weights():
    from poise.models.weights.zoo import read_zoo

    entries = read_zoo()
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| [")]
    assert len(rows) >= 6
    for row in rows:
        experiment = "experiments/coco/" + re.search(r"`(.*)`", row[7])[1]
        weights = re.search(r"`(\w+)`", row[8])[1]
        assert (ROOT / experiment).is_file() and experiment in entries[weights].experiments


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 180
    assert not [line for line in lines if len(line) > 100 and not line.startswith(("|", "[!["))]


def test_make_quickstart_runs(checkout):
    """What make quickstart would run, on a handful of images and for one epoch."""
    shown = subprocess.run(
        ["make", "-n", "-o", "setup", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [shlex.split(line) for line in shown.splitlines() if " tools/" in line]
    assert [line[1] for line in lines] == [
        "tools/make_synthetic.py",
        "tools/train.py",
        "tools/test.py",
    ]
    cut = {"tools/make_synthetic.py": ["--train", "6", "--val", "2", "--workers", "1"]}
    for line in lines:
        words = [
            sys.executable,
            *line[1:],
            *cut.get(line[1], ["TRAIN.END_EPOCH", "1", "WORKERS", "0", "CPU_THREADS", "1"]),
        ]
        done = subprocess.run(
            words,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "| AP " in done.stdout
    assert (
        len(
            list(
                (checkout / "output/coco/pose_res2net/res2net18_quickstart/pictures").glob("*.jpg")
            )
        )
        == 2
    )


def test_readme_tensorboard_reads_the_log(checkout):
    """tensorboard --logdir log finds the scalars and images that a training run wrote; the
    test above this one has trained.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted((checkout / "log").glob("coco/pose_res2net/res2net18_quickstart_*"))
    if not folders:
        pytest.skip("no training run came before, as when this test is run alone")
    events = EventAccumulator(str(folders[-1])).Reload()
    assert {
        "train_loss",
        "train_acc",
        "learning_rate",
        "images_per_second",
        "data_waiting_seconds",
        "valid_loss",
        "valid_acc",
    } <= set(events.Tags()["scalars"])
    assert {"predictions", "heatmaps"} <= set(events.Tags()["images"])
    assert any(tag.startswith("test/") for tag in events.Tags()["scalars"])


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
        "lib/poise/inference/estimator.py",
    ],
)
def test_docs_every_weight_file_is_in_the_zoo(page):
    """By the command that the page gives, to the path that the example names."""
    from poise.models.weights.zoo import read_zoo

    text = (ROOT / page).read_text(encoding="utf-8")
    examples = (
        "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M))
        if page.endswith(".md")
        else text
    )
    files = {
        path
        for path in re.findall(r"[\w./-]*\w\.pth(?:\.tar)?\b", examples)
        if Path(path).name not in WRITTEN
    }
    fetched = {entry.target: entry for entry in read_zoo().values() if not entry.by_hand}
    assert files <= fetched.keys(), files - fetched.keys()
    if page.endswith(".md"):
        assert all(
            re.search(rf"download_weights\.py [^\n]*\b{fetched[path].name}\b", text)
            for path in files
        ), files
    if page in (*PAGES[2:], "README.md", "docs/inference.md", "docs/export.md"):
        assert files


def test_readme_download_commands_name_zoo_entries():
    from poise.models.weights.zoo import read_zoo

    names = [match[1] for match in map(DOWNLOADS.match, commands()) if match]
    entries = read_zoo()
    assert len(names) > 5 and all(name in entries and not entries[name].by_hand for name in names)


def test_readme_every_named_file_exists():
    for path in re.findall(r"experiments/[\w./-]+\.yaml", README):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / path).is_file(), path
