"""Test the launch scripts: arguments for torchrun and jobs of two processes."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from poise import config
from poise.datasets import load_split
from poise.engine import evaluate
from poise.models import build_model
from support.paths import ROOT

TRAIN, TEST = ROOT / "tools" / "dist_train.sh", ROOT / "tools" / "dist_test.sh"
RESULTS = "results/keypoints_val2017_results_gt_boxes.json"
OF_TORCHRUN = (
    "PORT",
    "NNODES",
    "NODE_RANK",
    "MASTER_ADDR",
    "PYTHON",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
)


def start(script, *arguments, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in OF_TORCHRUN}
    return subprocess.Popen(
        [str(script), *map(str, arguments)],
        cwd=cwd,
        env={**kept, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def listener():
    """Return a socket that listens on a free local port."""
    return socket.create_server(("127.0.0.1", 0))


def ended(process, timeout=90):
    """Return (exit status, stdout, stderr) of a process."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


# what they pass on --------------------------------------------------------------------------------


@pytest.fixture
def record_call(tmp_path):
    """Return a function that runs a script and returns the arguments and the environment that its
    interpreter gets.
    """
    python = tmp_path / "my python"
    python.write_text(
        f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{tmp_path}/arguments'\nenv -0 >"
        f" '{tmp_path}/environment'\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)

    def run(script, *arguments, **environment):
        assert ended(
            start(script, *arguments, cwd=tmp_path, PYTHON=str(python), **environment)
        ) == (0, "", "")
        words, variables = (
            (tmp_path / name).read_text().split("\0")[:-1] for name in ("arguments", "environment")
        )
        return words, dict(variable.split("=", 1) for variable in variables)

    return run


def test_dist_train_passes_arguments_to_torchrun(record_call):
    words, environment = record_call(
        TRAIN,
        "my experiment.yaml",
        "2",
        "MODEL.PRETRAINED",
        "",
        "DATASET.ROOT",
        "a b;'\"*$HOME",
        PYTHONPATH="/mine",
        OMP_NUM_THREADS="3",
    )
    assert words == [
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--nproc-per-node=2",
        "--standalone",
        "--local-addr=127.0.0.1",
        str(ROOT / "tools" / "train.py"),
        "--cfg",
        "my experiment.yaml",
        "MODEL.PRETRAINED",
        "",
        "DATASET.ROOT",
        "a b;'\"*$HOME",
    ]
    assert (
        environment["PYTHONPATH"] == f"{ROOT / 'lib'}:/mine"
        and environment["OMP_NUM_THREADS"] == "3"
    )


def test_dist_test_several_machines_passes_arguments(record_call):
    words, environment = record_call(
        TEST,
        "e.yaml",
        "my weights.pth",
        "8",
        "--out",
        "r.pkl",
        "--eval",
        "mAP",
        "TEST.FLIP_TEST",
        "False",
        NNODES="3",
        NODE_RANK="2",
        MASTER_ADDR="10.0.0.1",
        PORT="12345",
    )
    assert words == [
        "-m",
        "torch.distributed.run",
        "--nnodes=3",
        "--nproc-per-node=8",
        "--node-rank=2",
        "--master-addr=10.0.0.1",
        "--master-port=12345",
        str(ROOT / "tools" / "test.py"),
        "--cfg",
        "e.yaml",
        "--out",
        "r.pkl",
        "--eval",
        "mAP",
        "TEST.FLIP_TEST",
        "False",
        "TEST.MODEL_FILE",
        "my weights.pth",
    ]
    assert (
        environment["PYTHONPATH"] == str(ROOT / "lib") and int(environment["OMP_NUM_THREADS"]) >= 1
    )


def test_launch_given_port_is_passed_on(record_call):
    with listener() as listening:
        port = str(listening.getsockname()[1])
    words, _ = record_call(TRAIN, "e.yaml", "2", PORT=port)
    assert words[4:7] == ["--node-rank=0", "--master-addr=127.0.0.1", f"--master-port={port}"]


@pytest.mark.parametrize("variables", [{}, {"NNODES": "2", "MASTER_ADDR": "127.0.0.1"}])
@pytest.mark.parametrize(
    "script, arguments", [(TRAIN, ["e.yaml", "1"]), (TEST, ["e.yaml", "w.pth", "1"])]
)
def test_launch_port_in_use_exits_with_error(script, arguments, variables, tmp_path):
    with listener() as listening:
        port = str(listening.getsockname()[1])
        job = start(script, *arguments, cwd=tmp_path, PYTHON=sys.executable, PORT=port, **variables)
        status, out, err = ended(job)
    assert (status, out) == (1, "")
    assert (
        err == f"error: PORT={port}: Address already in use; give a free port, or none on a single"
        " machine\n"
    )


def test_launch_invalid_port_exits_with_error(tmp_path):
    status, out, err = ended(
        start(TRAIN, "e.yaml", "1", cwd=tmp_path, PYTHON=sys.executable, PORT="http")
    )
    assert (status, out, len(err.splitlines())) == (1, "", 1) and err.startswith(
        "error: PORT=http: must be a number from 0 to 65535; give a free port"
    )


def test_launch_through_a_symlink_finds_the_repository(record_call, tmp_path):
    (tmp_path / "poise").symlink_to(ROOT)
    words, environment = record_call(tmp_path / "poise" / "tools" / "dist_train.sh", "e.yaml", "1")
    assert str(ROOT / "tools" / "train.py") in words and environment["PYTHONPATH"] == str(
        ROOT / "lib"
    )


@pytest.mark.parametrize(
    "script, arguments",
    [
        (TRAIN, []),
        (TRAIN, ["e.yaml"]),
        (TRAIN, ["e.yaml", "two"]),
        (TRAIN, ["e.yaml", "0"]),
        (TRAIN, ["e.yaml", "-1"]),
        (TEST, ["e.yaml", "w.pth"]),
        (TEST, ["e.yaml", "2", "w.pth"]),
        (TEST, ["e.yaml", "w.pth", ""]),
    ],
)
def test_launch_invalid_arguments_print_usage(script, arguments, tmp_path):
    status, out, err = ended(start(script, *arguments, cwd=tmp_path, PYTHON="false"))
    assert (
        status == 2
        and out == ""
        and err.startswith(f"usage: {script.name} CONFIG ")
        and len(err.splitlines()) == 1
    )


@pytest.mark.parametrize(
    "script, arguments", [(TRAIN, ["e.yaml", "2"]), (TEST, ["e.yaml", "w.pth", "2"])]
)
def test_launch_several_machines_without_address_exits_with_error(script, arguments, tmp_path):
    status, out, err = ended(start(script, *arguments, cwd=tmp_path, PYTHON="false", NNODES="2"))
    assert (status, out) == (
        2,
        "",
    ) and err == "error: NNODES=2 needs MASTER_ADDR, the first machine's address\n"


# the examples -------------------------------------------------------------------------------------

TWO_MACHINES, SLURM = (
    ROOT / "experiments" / "launch" / "two_machines.sh",
    ROOT / "experiments" / "launch" / "slurm.sh",
)


def test_two_machines_passes_arguments_to_torchrun(record_call):
    words, environment = record_call(
        TWO_MACHINES, "10.0.0.1:29400", "8", "some/my experiment.yaml", "SEED", "1", RESTARTS="5"
    )
    assert words == [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=8",
        "--max-restarts=5",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=10.0.0.1:29400",
        "--rdzv-id=my experiment",
        str(ROOT / "tools" / "train.py"),
        "--cfg",
        "some/my experiment.yaml",
        "AUTO_RESUME",
        "True",
        "SEED",
        "1",
    ]
    assert environment["PYTHONPATH"] == str(ROOT / "lib") and environment["OMP_NUM_THREADS"] == "4"
    assert (
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
        and environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "150"
    )
    _, environment = record_call(
        TWO_MACHINES, "10.0.0.1:29400", "8", "e.yaml", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="60"
    )
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "60"


@pytest.mark.parametrize(
    "script, arguments, usage",
    [
        (TWO_MACHINES, ["10.0.0.1", "8", "e.yaml"], "usage: two_machines.sh HOST:PORT GPUS CONFIG"),
        (TWO_MACHINES, ["a:1", "0", "e.yaml"], "usage: two_machines.sh"),
        (SLURM, ["e.yaml"], "usage: sbatch"),
    ],
)
def test_examples_invalid_arguments_print_usage(script, arguments, usage, tmp_path):
    status, out, err = ended(start(script, *arguments, cwd=tmp_path, PYTHON="false"))
    assert (status, out) == (2, "") and err.startswith(usage) and len(err.splitlines()) == 1


@pytest.fixture
def cluster(tmp_path):
    """Return a function that starts the SLURM example with fake SLURM programs. The training exits
    with `status` on SIGTERM, otherwise by itself.
    """
    programs = {
        "scontrol": (
            'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >>'
            f' "{tmp_path}/requeued"; fi'
        ),
        "srun": 'shift; exec "$@"',
        "scancel": f'echo "$@" > "{tmp_path}/canceled"; kill -TERM "$(cat "{tmp_path}/pid")"',
        "python": (
            f'echo $$ > "{tmp_path}/pid"; echo "$@" > "{tmp_path}/arguments"; env >'
            f' "{tmp_path}/environment"; trap "exit $STATUS" TERM; echo ready; if [ $TENTHS = fail'
            " ]; then exit $STATUS; fi; for i in $(seq $TENTHS); do sleep 0.1; done; exit 0"
        ),
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(status, tenths, stop=None):
        job = start(
            SLURM,
            "e.yaml",
            "SEED",
            "2",
            cwd=tmp_path,
            PATH=f"{tmp_path}:{os.environ['PATH']}",
            SLURM_JOB_ID="77",
            SLURM_SUBMIT_DIR=str(ROOT),
            SLURM_JOB_NODELIST="node[7-8]",
            SLURM_JOB_NUM_NODES="2",
            SLURM_GPUS_ON_NODE="4",
            STATUS=str(status),
            TENTHS=str(tenths),
        )
        assert job.stdout.readline() == "ready\n", job.stderr.read()
        if stop:
            job.send_signal(stop)
        return ended(job), tmp_path

    return run


def test_slurm_finished_job_is_not_requeued(cluster):
    (status, out, err), folder = cluster(1, 2)
    assert (status, out, err) == (0, "", "") and not (folder / "requeued").exists()
    assert (folder / "arguments").read_text().split() == [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=4",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=node7:29400",
        "--rdzv-id=77",
        str(ROOT / "tools" / "train.py"),
        "--cfg",
        "e.yaml",
        "AUTO_RESUME",
        "True",
        "SEED",
        "2",
    ]
    assert {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150"} <= set(
        (folder / "environment").read_text().splitlines()
    )


def test_torchrun_reads_the_variables_of_the_examples():
    """Detects a PyTorch version without these variables."""
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous
    from torch.distributed.launcher.api import LaunchConfig

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "151")
        assert LaunchConfig(1, 1, 1).shutdown_timeout == 151
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in Path(dynamic_rendezvous.__file__).read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_preempted_job_is_requeued(cluster, number):
    """The training gets the signal, and the job is requeued when it has ended."""
    (status, out, err), folder = cluster(1, 600, number)
    assert (
        status == 1
        and err == ""
        and out == "stopped before its time was over; back into the queue\n"
    )
    assert (folder / "canceled").read_text() == "--signal=TERM 77.0\n" and (
        folder / "requeued"
    ).read_text() == "requeue 77\n"


def test_slurm_failed_job_is_not_requeued(cluster):
    (status, out, _), folder = cluster(3, "fail")
    assert status == 3 and out == "" and not (folder / "requeued").exists()


# whole jobs ---------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tiny_experiment, tmp_path):
    """A folder with a space in its name and the tiny experiment with relative paths, on CPU."""
    folder = tmp_path / "some where"
    folder.mkdir()
    text = tiny_experiment.read_text().replace("GPUS: (0,)", "GPUS: ()").replace(f"{tmp_path}/", "")
    assert "OUTPUT_DIR: output\n" in text and "GPUS: ()" in text
    (folder / "tiny.yaml").write_text(text)
    return folder


def job(script, *arguments, cwd):
    return start(script, *arguments, cwd=cwd, PYTHON=sys.executable, OMP_NUM_THREADS="1")


def run_folder(elsewhere):
    return elsewhere / "output" / "coco" / "pose_res2net" / "tiny"


def test_dist_train_stopped_then_dist_test_gives_results(elsewhere, monkeypatch):
    """SIGTERM of torchrun stops both processes; two processes evaluate like one."""
    training = job(TRAIN, "tiny.yaml", 2, "TRAIN.END_EPOCH", "1000", "WORKERS", 1, cwd=elsewhere)
    try:
        for line in training.stdout:
            if line.startswith("epoch 1/1000 [2/"):
                break
        begin = time.monotonic()
        training.send_signal(signal.SIGTERM)
    finally:
        status, out, err = ended(training)
    assert (
        time.monotonic() - begin < 20
        and status == 1
        and "Traceback" not in out
        and "Interrupted" not in err
    )
    last = out.splitlines()[-1]
    assert (
        last.startswith("stopped at epoch ")
        and last.endswith("resume with the same command and AUTO_RESUME True")
        and out.count("stopped at") == 1
    )
    folder = run_folder(elsewhere)
    saved = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert saved["epoch"] >= 1 and {
        len(list(elsewhere.glob(f"{name}/coco/pose_res2net/*"))) for name in ("output", "log")
    } == {1}

    monkeypatch.chdir(elsewhere)
    arguments = (
        "--out",
        "r.pkl",
        "--eval",
        "mAP",
        "TEST.FLIP_TEST",
        "False",
        "TEST.BATCH_SIZE_PER_GPU",
        "10",
        "TEST.PICTURES",
        1,
    )
    status, out, err = ended(
        job(TEST, "tiny.yaml", folder / "model_best.pth", 2, *arguments, cwd=elsewhere)
    )
    assert (
        (status, err) == (0, "") and out.count("| pose_res2net |") == 1 and "flip test off" in out
    )
    of_two = [(elsewhere / "r.pkl").read_bytes(), (folder / RESULTS).read_bytes()]
    (folder / RESULTS).unlink()
    overrides = [
        "TEST.FLIP_TEST",
        "False",
        "TEST.BATCH_SIZE_PER_GPU",
        "10",
        "TEST.PICTURES",
        "1",
        "TEST.MODEL_FILE",
        str(folder / "model_best.pth"),
    ]
    evaluate.run(config.load("tiny.yaml", overrides), "tiny.yaml", ["test"], out="of one.pkl")
    assert of_two == [(elsewhere / "of one.pkl").read_bytes(), (folder / RESULTS).read_bytes()]
    assert [len(batch["bbox_ids"]) for batch in pickle.loads(of_two[0])] == [10, 10, 2]


def test_dist_train_unreadable_image_is_reported_once(elsewhere, tmp_path, small_set):
    """One line of Poise and the report of torchrun, which names the process."""
    root = shutil.copytree(small_set, tmp_path / "set")
    truth = json.loads((root / "annotations" / "person_keypoints_train2017.json").read_text())
    persons = [entry["image_id"] for entry in truth["annotations"] if entry["num_keypoints"]]
    entry = next(image for image in truth["images"] if persons.count(image["id"]) == 1)
    image = root / "images" / "train2017" / entry["file_name"]
    image.write_bytes(image.read_bytes()[:-200])
    status, out, err = ended(job(TRAIN, "tiny.yaml", 2, "DATASET.ROOT", root, cwd=elsewhere))
    ours, report = err.split("\n", 1)
    assert status == 1 and ours == f"error: {image}: the image file is cut off; download it again"
    assert (
        "error: " not in report
        and "DataError" not in err
        and report.count("exitcode  : 1 ") == 1
        and "exitcode  : -15" in report
    )
    assert (
        "train loss" not in out
        and "Traceback" not in (run_folder(elsewhere) / "train.log").read_text()
    )


def test_dist_train_unknown_key_is_reported_once(elsewhere):
    """The default port of torchrun is in use, as by another job."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("", 29500)))
        status, out, err = ended(
            job(TEST, "tiny.yaml", "w.pth", 2, "TEST.FLIPTEST", "True", cwd=elsewhere)
        )
    assert (
        status == 1
        and out == ""
        and err.startswith("error: command line: unknown key TEST.FLIPTEST; ")
        and err.count("error: ") == 1
    )
    assert "exitcode  : 2 " in err and not (elsewhere / "output").exists()


# results.pkl --------------------------------------------------------------------------------------


@pytest.fixture
def weights(elsewhere):
    torch.manual_seed(5)
    torch.save(build_model(config.load(elsewhere / "tiny.yaml")).state_dict(), elsewhere / "w.pth")
    return elsewhere / "w.pth"


def pickled(elsewhere, weights, *overrides):
    """Return (batches of results.pkl, evaluated table)."""
    cfg = config.load(
        elsewhere / "tiny.yaml",
        [
            "OUTPUT_DIR",
            str(elsewhere / "output"),
            "TEST.MODEL_FILE",
            str(weights),
            "TEST.PICTURES",
            "0",
            *map(str, overrides),
        ],
    )
    evaluate.run(cfg, str(elsewhere / "tiny.yaml"), ["test"], out=elsewhere / "sub" / "r.pkl")
    return pickle.loads((elsewhere / "sub" / "r.pkl").read_bytes()), load_split(cfg, train=False)[0]


def test_dist_test_out_equals_mmpose_format(elsewhere, weights, small_set):
    batches, table = pickled(elsewhere, weights, "TEST.OKS_NMS", False)
    assert isinstance(batches, list) and [len(batch["preds"]) for batch in batches] == [8, 8, 6]
    for batch in batches:
        count = len(batch["preds"])
        assert (
            list(batch) == ["preds", "boxes", "image_paths", "bbox_ids", "output_heatmap"]
            and batch["output_heatmap"] is None
        )
        assert {
            (name, batch[name].dtype.name, batch[name].shape) for name in ("preds", "boxes")
        } == {("preds", "float32", (count, 17, 3)), ("boxes", "float32", (count, 6))}
        assert (
            type(batch["image_paths"]) is type(batch["bbox_ids"]) is list
            and len(batch["image_paths"]) == len(batch["bbox_ids"]) == count
        )
        assert {type(number) for number in batch["bbox_ids"]} == {int}
    boxes = np.concatenate([batch["boxes"] for batch in batches])
    assert (
        np.allclose(boxes[:, :2], table.center)
        and np.allclose(boxes[:, 2:4], table.scale)
        and (boxes[:, 5] == 1).all()
    )
    assert np.allclose(boxes[:, 4], (table.scale * 200).prod(axis=1))
    # the boxes of each image are counted from 0, and an image and a number name one person
    paths, numbers = (
        sum((batch[name] for batch in batches), []) for name in ("image_paths", "bbox_ids")
    )
    assert paths == [
        f"{small_set}/images/val2017/{table.image_name(person)}" for person in range(len(table))
    ]
    for path in set(paths):
        of_image = [number for number, other in zip(numbers, paths) if other == path]
        assert of_image == list(range(len(of_image)))
    assert max(numbers) > 0
    # every person's joints in image pixels, as in the result file
    preds = np.concatenate([batch["preds"] for batch in batches])
    written = {
        (entry["image_id"], *np.round(entry["center"], 3)): entry["keypoints"]
        for entry in json.loads((run_folder(elsewhere) / RESULTS).read_text())
    }
    assert len(written) == len(table)
    for person in range(len(table)):
        key = (int(table.image_ids[table.image_index[person]]), *np.round(table.center[person], 3))
        assert np.allclose(preds[person].reshape(-1), written[key], atol=1e-3)


def test_dist_test_out_bbox_ids_count_over_the_set(elsewhere, weights, small_set):
    file = small_set / "person_detection_results" / "COCO_val2017_detections_AP_H_56_person.json"
    batches, table = pickled(
        elsewhere, weights, "TEST.USE_GT_BBOX", False, "TEST.COCO_BBOX_FILE", file
    )
    assert sum((batch["bbox_ids"] for batch in batches), []) == list(range(len(table)))
    assert np.allclose(np.concatenate([batch["boxes"][:, 5] for batch in batches]), table.score)


def test_dist_test_out_unwritable_keeps_the_file(elsewhere, weights, monkeypatch):
    before, _ = pickled(elsewhere, weights)
    content = (elsewhere / "sub" / "r.pkl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pickle, "dump", full)
        from poise.errors import DataError

        with pytest.raises(
            DataError,
            match=(
                "r.pkl: cannot be written .*No space left on device.*; the file before it, if any,"
                " is kept"
            ),
        ):
            pickled(elsewhere, weights)
    assert (elsewhere / "sub" / "r.pkl").read_bytes() == content and os.listdir(
        elsewhere / "sub"
    ) == ["r.pkl"]
