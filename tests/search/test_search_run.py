"""Test searches of a very small network: files, determinism, resume and errors."""

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from poise import config
from poise.datasets import load_split
from poise.datasets.loader import TopDownDataset
from poise.engine import signals as interrupt
from poise.engine import train
from poise.engine.distributed import DistributedContext
from poise.engine.memory import resource_errors
from poise.errors import ConfigError, DataError, PoiseError
from poise.models.posenas.genotypes import Genotype, find_genotype, write_genotype
from poise.search import run, state, trial
from poise.search.bilevel import BilevelOptimizer
from poise.search.space import Space
from poise.search.split import Split
from support import tool_processes
from support.paths import ROOT
from support.runs import forget_log_handlers, without_settings

SEARCH = """
OUTPUT_DIR: {folder}/output
LOG_DIR: {folder}/log
GPUS: ()
WORKERS: 0
PRINT_FREQ: 2
CPU_THREADS: 1
AUTO_RESUME: true
DATASET: {{DATASET: {dataset}, ROOT: {root}, TRAIN_SET: {train}, TEST_SET: {test},
  SCALE_FACTOR: 0.3, ROT_FACTOR: 40}}
MODEL:
  NAME: posenas
  NUM_JOINTS: {joints}
  IMAGE_SIZE: [64, 64]
  HEATMAP_SIZE: [16, 16]
  SIGMA: 1
  EXTRA: {{INIT_CHANNELS: 4, LAYERS: 4, REFINE_CHANNELS: 4, REFINE_LAYERS: 4}}
TRAIN: {{BATCH_SIZE_PER_GPU: 16, END_EPOCH: 1}}
TEST: {{BATCH_SIZE_PER_GPU: 16, USE_GT_BBOX: true}}
SEARCH:
  ENCODER_OPERATIONS: max_pool_3x3, skip_connect, std_conv_1x1
  DECODER_OPERATIONS: std_conv_3x3, se_connect
  LAYERS: 4
  INIT_CHANNELS: 4
  BATCH_SIZE: 8
  INIT_EPOCHS: 1
  EPOCHS: 3
  W_LR: 0.01
  LR_STEP: [2]
  ALPHA_LR: 0.1
  EVAL_INTERVAL: 0
"""
# what depends on the clock
TIMES = ("images_per_second", "data_time_share")


def experiment(folder, root, dataset="coco"):
    names = {"coco": ("train2017", "val2017", 17), "mpii": ("train", "valid", 16)}[dataset]
    path = folder / "tiny_search.yaml"
    path.write_text(
        SEARCH.format(
            folder=folder,
            root=root,
            dataset=dataset,
            **dict(zip(("train", "test", "joints"), names)),
        )
    )
    return path


@pytest.fixture
def tiny_search(tmp_path, small_set):
    return experiment(tmp_path, small_set)


@pytest.fixture(autouse=True)
def quick_and_loud_again(monkeypatch):
    """Steps are timed once. A search's log handlers hold this test's stdout and files; the next
    test has its own.
    """
    monkeypatch.setattr(trial, "_MAX_SECONDS", 0.0)
    yield
    forget_log_handlers()


def search(path, *overrides):
    """Search in this process; returns the genotype and the run folder."""
    cfg = config.load(path, [str(value) for value in overrides])
    found = run.run(cfg, str(path), ["tools/search.py", "--cfg", str(path)])
    folders = (path.parent / "output" / cfg.DATASET.DATASET / "posenas").iterdir()
    return found, (
        path.parent / "output" / cfg.DATASET.DATASET / "posenas" / path.stem
        if cfg.AUTO_RESUME
        else max(folders, key=lambda folder: folder.stat().st_ctime_ns)
    )


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def kept(folder):
    return torch.load(folder / "search.pth", weights_only=True)


def check_equal_to(reference, folder):
    found, wanted = kept(folder), kept(reference)
    for key in ("architecture", "state_dict"):
        assert found[key].keys() == wanted[key].keys() and all(
            torch.equal(found[key][name], value) for name, value in wanted[key].items()
        )
    assert lines_of(folder) == lines_of(reference)
    assert find_genotype(str(folder / "genotype.json")) == find_genotype(
        str(reference / "genotype.json")
    )


@pytest.fixture(scope="module")
def reference(small_set, tmp_path_factory):
    """The run folder of a search without any disturbance."""
    return search(experiment(tmp_path_factory.mktemp("reference"), small_set))[1]


# what a search writes -----------------------------------------------------------------------------


def test_search_writes_the_run_folder(reference, small_set):
    assert {path.name for path in reference.iterdir()} == {
        "cells.svg",
        "config.yaml",
        "genotype.json",
        "search.jsonl",
        "search.log",
        "search.pth",
        "split.json",
    }
    genotype = find_genotype(str(reference / "genotype.json"))
    assert (
        genotype.meta["config"]["SEARCH"]["ALPHA_LR"] == 0.1
        and genotype.meta["figures"]["epoch"] == 2
    )
    assert config.load(reference / "config.yaml").SEARCH.BATCH_SIZE == 8
    space = Space.from_config(config.load(reference / "config.yaml"))
    assert all(
        operation in space.operations[kind]
        for kind, edges in genotype.cells().items()
        for operation, _ in edges
    )


def test_search_writes_metrics_of_each_epoch(reference):
    lines = lines_of(reference)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert (
        "architecture_loss" not in lines[0]
        and "genotype" not in lines[0]
        and {"architecture_loss", "weights_loss"} <= set(lines[1])
    )
    assert lines[2]["weights_loss"] < lines[0]["weights_loss"]  # it learns
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.01, 0.002])
    for line in lines[1:]:
        for kind, table in line["probabilities"].items():
            np.testing.assert_allclose(np.sum(table, axis=1), 1)
            assert (
                np.ptp(table) > 0.01
                and len(line["entropy"][kind]) == 14
                and max(line["entropy"][kind]) < 1
            )
    assert lines[1]["changed_edges"] is None and 0 <= lines[2]["changed_edges"] <= 40
    assert lines[2]["genotype"]["upsample3"] == [
        list(edge) for edge in find_genotype(str(reference / "genotype.json")).upsample3
    ]


def test_search_log_contains_split_and_times(reference):
    log_text = (reference / "search.log").read_text()
    for part in (
        "split: 12 images with",
        "search of joint: 168 architecture values",
        "s a weights step",
        "s an architecture step",
        "GB at the peak of",
        "epochs 0 to 2, architecture from epoch 1 on",
        "epoch 2, upsample1: probabilities in per cent",
        "2 to 5",
        "seed: 2",
        "train what was found with MODEL.GENOTYPE",
    ):
        assert part in log_text, part
    assert log_text.index("GB at the peak") < log_text.index("epoch 0/3 [")
    assert "epoch 0, normal" not in log_text and log_text.count("normal    ") == 2


def test_search_writes_tensorboard_events(reference):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (page,) = (reference.parents[3] / "log/coco/posenas").glob("tiny_search_*")
    events = accumulator.EventAccumulator(
        str(page), size_guidance={"scalars": 0, "images": 0}
    ).Reload()
    tags = events.Tags()
    values = [tag for tag in tags["scalars"] if tag.count("/") == 2]
    assert len(values) == 14 * (2 * 3 + 3 * 2)
    assert [event.step for event in events.Scalars("normal/2_to_5/skip_connect")] == [1, 2]
    wanted = lines_of(reference)[2]
    assert events.Scalars("normal/2_to_5/skip_connect")[-1].value == pytest.approx(
        wanted["probabilities"]["normal"][11][1], rel=1e-5
    )
    assert events.Scalars("entropy/reduce")[-1].value == pytest.approx(
        np.mean(wanted["entropy"]["reduce"]), rel=1e-5
    )
    assert [event.step for event in events.Scalars("weights_loss")] == [0, 1, 2]
    assert sorted(tags["images"]) == [
        f"probabilities/{kind}"
        for kind in ("normal", "reduce", "upsample1", "upsample2", "upsample3")
    ]


def test_search_genotype_file_trains(tiny_search):
    _, folder = search(tiny_search, "SEARCH.EPOCHS", 2)
    cfg = config.load(
        tiny_search, ["MODEL.GENOTYPE", str(folder / "genotype.json"), "AUTO_RESUME", "False"]
    )
    train.run(cfg, str(tiny_search), ["tools/train.py"])
    (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= line["AP"] <= 1 and np.isfinite(line["train_loss"])
    weights = torch.load(folder / "final_state.pth", weights_only=True)
    genotype = find_genotype(str(folder / "genotype.json"))
    squeezed = [
        number
        for number, (operation, _) in enumerate(genotype.upsample1)
        if operation == "se_connect"
    ]
    assert [
        number for number in range(8) if f"stage2.upsamples.0._ops.{number}.fc1.weight" in weights
    ] == squeezed


@pytest.mark.parametrize(
    "dataset, metric, mode", [("coco", "AP", "decoder"), ("mpii", "Mean", "encoder")]
)
def test_search_encoder_or_decoder_with_evaluation(
    dataset, metric, mode, tmp_path, small_set, small_mpii_set
):
    path = experiment(tmp_path, small_set if dataset == "coco" else small_mpii_set, dataset)
    _, folder = search(
        path,
        "SEARCH.EVAL_INTERVAL",
        2,
        "SEARCH.SUBSET",
        0.6,
        "SEARCH.EPOCHS",
        4,
        "SEARCH.MODE",
        mode,
        "SEARCH.GENOTYPE",
        "npp_encoder",
    )
    lines = lines_of(folder)
    assert [metric in line for line in lines] == [False, True, False, True]
    best = max((1, 3), key=lambda epoch: (lines[epoch][metric], epoch))
    kept_best, given = (
        find_genotype(str(folder / "genotype_best.json")),
        find_genotype("npp_encoder"),
    )
    assert kept_best.meta["figures"]["epoch"] == best
    assert len(lines[best]["genotype"]) == (3 if mode == "decoder" else 2)
    for kind, edges in kept_best.cells().items():
        assert edges == (
            tuple(map(tuple, lines[best]["genotype"][kind]))
            if kind in lines[best]["genotype"]
            else given.cells()[kind]
        )


def test_search_without_evaluated_persons_warns_first(
    tiny_search, small_set, tmp_path, monkeypatch
):
    root = shutil.copytree(small_set, tmp_path / "set")
    path = root / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["num_keypoints"] = 0
    path.write_text(json.dumps(content))
    lines = []
    monkeypatch.setattr(run, "search_epochs", lambda *_: lines.append("first epoch"))
    monkeypatch.setattr(run.log, "warning", lambda line, *values: lines.append(line % values))
    search(tiny_search, "DATASET.ROOT", root, "SEARCH.EVAL_INTERVAL", 1)
    warnings = [line for line in lines if "test set val2017: scoring: every AP is -1" in line]
    assert len(warnings) == 1 and lines.index(warnings[0]) < lines.index("first epoch")


def test_search_new_run_removes_earlier_best_genotype(tiny_search):
    _, folder = search(tiny_search, "SEARCH.EVAL_INTERVAL", 2, "SEARCH.EPOCHS", 2)
    assert (folder / "genotype_best.json").exists()
    _, other = search(tiny_search, "AUTO_RESUME", False, "SEARCH.EPOCHS", 2)
    assert (
        other.name == "tiny_search-2"
        and (other / "genotype.json").exists()
        and not (other / "genotype_best.json").exists()
    )
    assert (folder / "genotype_best.json").exists(), "the earlier search's own"


# repeating ----------------------------------------------------------------------------------------


def test_search_seed_determines_the_result(tiny_search, reference):
    """Also where processes make the batches, and the longer half's are left over when an epoch
    ends.
    """
    check_equal_to(reference, search(tiny_search, "WORKERS", 1)[1])
    _, folder = search(tiny_search, "SEARCH.SEED", 3, "AUTO_RESUME", False)
    assert lines_of(folder)[2]["probabilities"] != lines_of(reference)[2]["probabilities"]
    assert (
        json.loads((folder / "split.json").read_text())["weights"]
        != json.loads((reference / "split.json").read_text())["weights"]
    )


@pytest.mark.parametrize("epoch, step", [(0, 1), (1, 2), (2, 0)])
def test_search_stopped_resumes_to_equal_result(tiny_search, reference, monkeypatch, epoch, step):
    class Stop(interrupt.GracefulStop):
        """Asks to stop after so many steps."""

        seen = None

        @property
        def stop_requested(self):
            return self.seen is not None and (self.seen.epoch, self.seen.step) >= (epoch, step)

        @stop_requested.setter
        def stop_requested(self, _):
            pass

    made = []
    monkeypatch.setattr(run, "GracefulStop", lambda: made.append(Stop()) or made[-1])
    add = state.SearchProgress.add

    def adding(self, *words):
        made[-1].seen = self
        add(self, *words)

    monkeypatch.setattr(state.SearchProgress, "add", adding)
    with pytest.raises(
        interrupt.RunStoppedError, match=f"stopped at epoch {epoch}, step {max(step, 1)}"
    ):
        search(tiny_search)
    monkeypatch.undo()
    check_equal_to(reference, search(tiny_search)[1])


def test_search_killed_resumes_to_equal_result(tiny_search, reference):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools/search.py"), "--cfg", str(tiny_search)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        line = next((line for line in process.stdout if line.startswith("epoch 2/3 [2/")), "")
        assert line, process.stderr.read()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    folder = tiny_search.parent / "output/coco/posenas/tiny_search"
    assert (
        process.returncode == -signal.SIGKILL
        and kept(folder)["epoch"] == 2
        and len(lines_of(folder)) == 2
    )
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and "resuming at epoch 2, step 0" in done.stdout, done.stderr
    check_equal_to(reference, folder)


def test_search_finished_is_not_repeated(tiny_search):
    found, folder = search(tiny_search, "SEARCH.EPOCHS", 2)
    before = lines_of(folder)
    again, _ = search(tiny_search, "SEARCH.EPOCHS", 2)
    assert again == found and lines_of(folder) == before
    for key, value in (("SEARCH.BATCH_SIZE", 5), ("AMP", "bf16")):
        with pytest.raises(ConfigError, match=f"trained with other settings: {key} "):
            search(tiny_search, "SEARCH.EPOCHS", 2, key, value)
    search(tiny_search)  # and one that shall be longer goes on
    assert [line["epoch"] for line in lines_of(folder)] == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"other settings: SEARCH.EPOCHS 2 \(was 3\)"):
        search(tiny_search, "SEARCH.EPOCHS", 2)


def test_search_alternates_architecture_and_weights_steps(tiny_search, monkeypatch):
    def marked(self, keys, getitems=TopDownDataset.__getitems__):
        images = self.table.image_ids[self.table.image_index[[person for _, person in keys]]]
        return {**getitems(self, keys), "image": images}

    monkeypatch.setattr(TopDownDataset, "__getitems__", marked)
    seen, fed = [], {"w": set(), "a": set()}
    for kind in ("weights_step", "architecture_step"):
        step = getattr(BilevelOptimizer, kind)

        def counted(self, batch, *words, kind=kind, step=step):
            seen.append(kind[0])
            fed[kind[0]].update(batch["image"].tolist())
            return step(self, batch, *words)

        monkeypatch.setattr(BilevelOptimizer, kind, counted)
    monkeypatch.setattr(run, "measure", lambda *_: trial.Cost(1.0, 1.0, None, None))
    for order, pair in (("weights", "wa"), ("architecture", "aw")):
        seen.clear()
        _, folder = search(
            tiny_search, "SEARCH.ORDER", order, "SEARCH.EPOCHS", 2, "AUTO_RESUME", False
        )
        text = "".join(seen)
        alone = len(text) - len(text.lstrip("w"))
        steps = text.count("a")
        # a first epoch of the weights alone, then pairs, as many as the shorter half has batches
        assert text == "w" * (alone - (order == "weights")) + pair * steps and steps >= 2
    # each half to its own step
    halves = json.loads((folder / "split.json").read_text())
    assert (
        fed["w"] == set(halves["weights"]) and fed["a"] and fed["a"] <= set(halves["architecture"])
    )


# the split ----------------------------------------------------------------------------------------


def test_split_is_by_image_and_stored(tiny_search, reference):
    cfg = config.load(tiny_search)
    table, _ = load_split(cfg, train=True)
    ids = np.unique(table.image_ids[table.image_index])
    halves = Split.draw(cfg, table)
    assert not np.intersect1d(halves.weights, halves.architecture).size
    assert (
        sorted([*halves.weights, *halves.architecture]) == ids.tolist()
        and abs(len(halves.weights) - len(halves.architecture)) <= 1
    )
    parts = halves.tables(table)
    assert sum(map(len, parts)) == len(table)
    assert not set(parts[0].image_ids[parts[0].image_index]) & set(
        parts[1].image_ids[parts[1].image_index]
    )
    stored = json.loads((reference / "split.json").read_text())
    assert stored == {
        "version": 1,
        "set": "train2017",
        "seed": 2,
        "subset": 1.0,
        "w_fraction": 0.5,
        "weights": halves.weights.tolist(),
        "architecture": halves.architecture.tolist(),
    }
    again = Split.read(reference / "split.json", cfg, table)
    assert (
        again.weights.tolist() == halves.weights.tolist()
        and again.architecture.tolist() == halves.architecture.tolist()
    )
    other = Split.draw(config.load(tiny_search, ["SEARCH.SEED", 5]), table)
    assert other.weights.tolist() != halves.weights.tolist()
    uneven = Split.draw(
        config.load(tiny_search, ["SEARCH.W_FRACTION", 0.75, "SEARCH.SUBSET", 0.5]), table
    )
    assert len(uneven.weights) == round(0.75 * round(len(ids) / 2)) and len(uneven.weights) + len(
        uneven.architecture
    ) == round(len(ids) / 2)


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda c: c.update(version=2), "not a split of a search of version 1"),
        (lambda c: c.update(weights=[]), "not a split"),
        (lambda c: c.update(weights=["1"]), "not a split"),
        (lambda c: c.update(seed=9), "drawn for seed 9, the search has 2"),
        (lambda c: c.update(set="val2017"), "drawn for set 'val2017'"),
        (lambda c: c["weights"].append(10**9), "1 of its images are not in the set"),
        (lambda c: c["weights"].append(c["architecture"][0]), "an image is in both parts"),
    ],
)
def test_split_invalid_file_raises(change, part, tiny_search, reference, tmp_path):
    cfg = config.load(tiny_search)
    table, _ = load_split(cfg, train=True)
    content = json.loads((reference / "split.json").read_text())
    change(content)
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=part) as refusal:
        Split.read(tmp_path / "split.json", cfg, table)
    assert str(refusal.value).startswith(str(tmp_path / "split.json"))


def test_split_empty_part_raises(tiny_search):
    with pytest.raises(
        DataError, match="SEARCH.SUBSET 0.02 and SEARCH.W_FRACTION 0.5 of .* both need some"
    ):
        search(tiny_search, "SEARCH.SUBSET", 0.02)
    assert not (tiny_search.parent / "output").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_search_killed_worker_names_the_checkpoint(tiny_search, workers):
    status, _, err = tool_processes.run(
        "search", tiny_search, "WORKERS", workers, before=tool_processes.KILL_WORKER.format(epoch=1)
    )
    kept = tiny_search.parent / "output/coco/posenas/tiny_search/search.pth"
    assert (status, err) == (
        1,
        (
            "error: a data loader worker was killed, probably out of memory: lower WORKERS; "
            f"the last checkpoint is {kept}; resume with the same command and AUTO_RESUME True\n"
        ),
    )


def test_search_removed_run_folder_is_restored(tiny_search, monkeypatch):
    folder, step, steps = (
        tiny_search.parent / "output/coco/posenas/tiny_search",
        BilevelOptimizer.architecture_step,
        [],
    )

    def removing(self, batch):
        if len(steps) == 3:  # the first ones are measured
            shutil.rmtree(folder)
        steps.append(1)
        return step(self, batch)

    monkeypatch.setattr(BilevelOptimizer, "architecture_step", removing)
    search(tiny_search)
    assert {"config.yaml", "split.json", "search.log", "search.pth"} <= {
        path.name for path in folder.iterdir()
    }
    assert "the run folder was removed during the search" in (folder / "search.log").read_text()
    assert search(tiny_search, "SEARCH.EPOCHS", 4)[0].cells() and kept(folder)["epoch"] == 4


def test_search_last_batch_of_one_sample_raises(tiny_search):
    cfg = config.load(tiny_search)
    table, _ = load_split(cfg, train=True)
    persons = [len(part) for part in Split.draw(cfg, table).tables(table)]
    batch = next(size for size in range(2, 12) if any(count % size == 1 for count in persons))
    with pytest.raises(
        ConfigError,
        match=f"SEARCH.BATCH_SIZE {batch}: a step of each epoch has a single sample on a device",
    ):
        search(
            tiny_search,
            "SEARCH.BATCH_SIZE",
            batch,
            "MODEL.IMAGE_SIZE",
            "[32, 32]",
            "MODEL.HEATMAP_SIZE",
            "[8, 8]",
        )


# memory and other refusals ------------------------------------------------------------------------


def test_search_out_of_memory_names_the_keys(tiny_search, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1"
            " GiB\nmore"
        )

    monkeypatch.setattr(BilevelOptimizer, "architecture_step", full)
    with pytest.raises(
        PoiseError,
        match=(
            "does not fit into the memory.*lower SEARCH.BATCH_SIZE .8., SEARCH.INIT_CHANNELS .4.,"
            " SEARCH.LAYERS .4. or MODEL.IMAGE_SIZE, or raise SEARCH.PARTIAL_CHANNELS .1.;"
            " SEARCH.CHECKPOINTING True"
        ),
    ) as refusal:
        search(tiny_search)
    assert "\n" not in str(refusal.value)
    # it is measured before anything is written
    assert not (tiny_search.parent / "output").exists()


def test_search_other_torch_errors_are_unchanged(tiny_search):
    with (
        pytest.raises(RuntimeError, match="shapes"),
        resource_errors("search", trial.search_memory_hint(config.load(tiny_search))),
    ):
        raise RuntimeError("shapes cannot be multiplied")


def test_search_trial_stops_before_memory_limit(tiny_search, monkeypatch):
    """Linux would end the process without a word."""
    steps = []
    step = BilevelOptimizer.weights_step
    monkeypatch.setattr(
        BilevelOptimizer,
        "weights_step",
        lambda self, batch, epoch: steps.append(len(batch["images"])) or step(self, batch, epoch),
    )
    monkeypatch.setattr(trial, "available_memory", lambda: 1000)
    with pytest.raises(
        PoiseError,
        match="a batch of 8 needs more than .* GB, .* GB are free.: lower SEARCH.BATCH_SIZE",
    ):
        search(tiny_search)
    assert steps == [2]  # and of the whole batch none


def test_search_real_memory_limit_is_one_line(tiny_search):
    """Report a limit of the operating system in one line."""
    code = (
        "import resource, sys, runpy; from poise.search import trial\nimport torch._dynamo    #"
        " which checkpointing may import; it needs address space that is none of the"
        " search's\nmeasure = trial.measure\ndef limited(*words):\n    now ="
        " int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n   "
        " resource.setrlimit(resource.RLIMIT_AS, (now + 400_000_000,) * 2)\n    return"
        " measure(*words)\ntrial.measure = limited\nsys.argv = ['tools/search.py', '--cfg',"
        f" {str(tiny_search)!r}, 'SEARCH.BATCH_SIZE', '24', 'SEARCH.INIT_CHANNELS',"
        f" '256']\nrunpy.run_path({str(ROOT / 'tools/search.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        "error: the search does not fit into the memory ("
    )
    assert "SEARCH.INIT_CHANNELS (256)" in done.stderr


def test_peak_memory_equals_rusage(tiny_search):
    peak = trial.peak_memory(torch.device("cpu"))
    assert (
        peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05)
        and peak > 5e7
    )


def test_search_several_processes_raise(tiny_search):
    with pytest.raises(ConfigError, match="a search is one process"):
        run.run(
            config.load(tiny_search),
            str(tiny_search),
            ["tools/search.py"],
            DistributedContext(rank=0, world_size=2, local_rank=0),
        )


def test_search_resume_mismatched_checkpoint_raises(tiny_search):
    search(tiny_search, "SEARCH.EPOCHS", 2)
    fitting = [
        (["SEARCH.INIT_CHANNELS", 8], "does not fit the network"),
        (["SEARCH.DECODER_OPERATIONS", "se_connect std_conv_3x3"], "a search in another space"),
        (["SEARCH.MODE", "encoder"], "a search in another space"),
    ]
    for overrides, part in [
        (["SEARCH.SEED", 3], r"SEARCH.SEED 3 \(was 2\)"),
        *((overrides, overrides[0]) for overrides, _ in fitting),
    ]:
        with pytest.raises(
            ConfigError,
            match=f"search.pth: this run was trained with other settings: {part}.*; restore them",
        ):
            search(tiny_search, *overrides)
    folder = tiny_search.parent / "output/coco/posenas/tiny_search"
    without_settings(folder / "search.pth", folder / "search.pth")
    for overrides, part in fitting:
        with pytest.raises(PoiseError, match=f"search.pth: .*{part}"):
            search(tiny_search, *overrides)
    (folder / "split.json").unlink()
    with pytest.raises(
        DataError,
        match="split.json: cannot read the split .*; to start a new search, remove search.pth",
    ):
        search(tiny_search)


def test_search_resume_other_fixed_half_raises(tiny_search):
    """Two encoders of the same operations have the same weights by name and shape."""
    for name, mirrored in (("one.json", False), ("other.json", True)):
        cells = find_genotype("posenas").cells()
        if mirrored:
            cells["normal"] = tuple(
                (operation, 1 - source) if source < 2 else (operation, source)
                for operation, source in cells["normal"]
            )
        write_genotype(tiny_search.parent / name, Genotype(**cells))
    decoder = ("SEARCH.MODE", "decoder", "SEARCH.GENOTYPE")
    search(tiny_search, *decoder, tiny_search.parent / "one.json", "SEARCH.EPOCHS", 2)
    with pytest.raises(PoiseError, match="search.pth: .* in another space .*SEARCH.GENOTYPE"):
        search(tiny_search, *decoder, tiny_search.parent / "other.json")
    with pytest.raises(ConfigError, match="MODEL.EXTRA.SE_REDUCTION must be 1 or 2, got 0"):
        search(tiny_search, "MODEL.EXTRA.SE_REDUCTION", 0, "AUTO_RESUME", False)
    with pytest.raises(
        ConfigError, match="MODEL.NAME 'pose_hrnet': what is searched are the cells of posenas"
    ):
        search(tiny_search, "MODEL.NAME", "pose_hrnet", "AUTO_RESUME", False)


def test_search_resume_other_architecture_settings_raise(tiny_search):
    """Of a checkpoint that says nothing of its settings they are the configuration's, not those
    that PyTorch would keep.
    """
    _, folder = search(tiny_search, "SEARCH.EPOCHS", 2)
    others = ("SEARCH.ALPHA_LR", 0.5, "SEARCH.ALPHA_BETAS", [0.5, 0.99], "SEARCH.ALPHA_WD", 0.25)
    with pytest.raises(
        ConfigError,
        match=(
            r"SEARCH.ALPHA_BETAS .*, SEARCH.ALPHA_LR 0.5 \(was .*, SEARCH.ALPHA_WD 0.25 \(was"
            r" 0.0001\); restore them"
        ),
    ):
        search(tiny_search, *others)
    without_settings(folder / "search.pth", folder / "search.pth")
    search(tiny_search, *others)
    (group,) = kept(folder)["architecture_optimizer"]["param_groups"]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.5, (0.5, 0.99), 0.25)


def test_train_resume_other_genotype_raises(tiny_search):
    """The weights of two wirings of the same operations would fit."""
    cells = find_genotype("posenas").cells()
    path = tiny_search.parent / "genotype.json"
    write_genotype(path, Genotype(**cells))
    cfg = config.load(tiny_search, ["MODEL.GENOTYPE", str(path)])
    train.run(cfg, str(tiny_search), ["tools/train.py"])
    folder = tiny_search.parent / "output/coco/posenas/tiny_search"
    assert find_genotype(str(folder / "genotype.json")) == Genotype(**cells)
    write_genotype(
        path,
        Genotype(
            **{
                **cells,
                "normal": tuple(
                    (operation, max(source - 1, 0)) for operation, source in cells["normal"]
                ),
            }
        ),
    )
    with pytest.raises(
        PoiseError,
        match=(
            r"checkpoint.pth: checkpoint of a network with other cells \(MODEL.GENOTYPE or its file"
            " has changed"
        ),
    ):
        train.run(cfg, str(tiny_search), ["tools/train.py"])


# the tool -----------------------------------------------------------------------------------------


@pytest.fixture
def tool(run_script):
    """Run tools/search.py."""
    return functools.partial(run_script, "search")


def test_search_command_random_writes_genotypes(tool, tiny_search):
    status, output, _ = tool("--random", 0, 7, "--cfg", tiny_search, "SEARCH.MODE", "decoder")
    folder = tiny_search.parent / "output/coco/posenas/tiny_search"
    assert status == 0 and output.count(" written") == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "random_0.json",
        "random_0.svg",
        "random_7.json",
        "random_7.svg",
    ]
    cfg = config.load(tiny_search, ["SEARCH.MODE", "decoder"])
    drawn = find_genotype(str(folder / "random_7.json"))
    assert (
        drawn == Space.from_config(cfg).random(7)
        and drawn.normal == find_genotype("posenas").normal
    )
    assert (
        drawn.meta["source"] == "drawn at random, seed 7"
        and drawn.meta["config"]["SEARCH"]["MODE"] == "decoder"
    )


@pytest.mark.parametrize(
    "words, part",
    [
        (["--random", "x", "--cfg", "FILE"], "--random x: takes one or more seeds"),
        (
            ["--cfg", "FILE", "SEARCH.ENCODER_OPERATIONS", "se_connect"],
            "SEARCH.ENCODER_OPERATIONS: se_connect does not stride",
        ),
        (
            ["--cfg", "FILE", "SEARCH.EPOCH", "2"],
            "unknown key SEARCH.EPOCH; the nearest known keys are SEARCH.EPOCHS",
        ),
        (["--cfg", "FILE", "DATASET.ROOT", "nowhere"], "nowhere"),
    ],
)
def test_search_command_invalid_arguments_exit_with_error(words, part, tool, tiny_search):
    status, _, err = tool(*(tiny_search if word == "FILE" else word for word in words))
    assert status in (1, 2) and err.startswith("error: ") and part in err and err.count("\n") == 1
    assert not (tiny_search.parent / "output").exists()
