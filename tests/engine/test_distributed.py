"""Test several processes over gloo: collectives, training, evaluation, stops and errors."""

import hashlib
import json
import math
import os
import signal
import socket
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from poise import codecs, config
from poise.datasets.sampler import EpochBatchSampler, Shard
from poise.engine import device, distributed
from poise.engine import distributed as process_group
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext
from poise.errors import ConfigError, PoiseError
from poise.models import build_model
from support.gloo_processes import train_here
from support.runs import TINY, copied, folder_of, metrics_of, same_weights, state_of
from torch import nn

RESULTS = "results/keypoints_val2017_results_gt_boxes.json"


# an experiment that ends in seconds ---------------------------------------------------------------


def adapted(text):
    """Batches of 12 of the 50 training persons: 4 whole ones, and one of 2; in two processes 24,
    24 and 2.
    """
    assert "GPUS: (0,)" in text and text.count("BATCH_SIZE_PER_GPU: 8") == 2
    return text.replace("GPUS: (0,)", "GPUS: ()").replace(
        "BATCH_SIZE_PER_GPU: 8, END", "BATCH_SIZE_PER_GPU: 12, END"
    )


@pytest.fixture
def tiny(tiny_experiment):
    tiny_experiment.write_text(adapted(tiny_experiment.read_text()))
    return tiny_experiment


@pytest.fixture(scope="module")
def of_two(together, small_set, tmp_path_factory):
    """Return the file and the results of the processes of an undisturbed run of two processes."""
    path = tmp_path_factory.mktemp("of_two") / "tiny.yaml"
    text = adapted(
        TINY.format(dataset="coco", root=small_set, train="train2017", test="val2017", joints=17)
    )
    path.write_text(f"OUTPUT_DIR: {path.parent / 'output'}\nLOG_DIR: {path.parent / 'log'}\n{text}")
    return path, together(2, digest_here, path)


# what processes tell each other -------------------------------------------------------------------


def talk(processes):
    own = torch.full((2, 3), float(processes.rank))
    sideways = torch.full((2, 3, 4, 5), float(processes.rank)).to(memory_format=torch.channels_last)
    count, nothing = torch.tensor(processes.rank), torch.zeros(0)
    processes.broadcast_([own, count, sideways, nothing])
    processes.broadcast_([])
    return {
        "any": [
            processes.all_reduce_any(False),
            processes.all_reduce_any(processes.rank == 1),
            processes.all_reduce_any(True),
        ],
        "sum": processes.all_reduce_sum([0.1 * (processes.rank + 1), 1e15, 0.0]),
        "gather": processes.gather({"of": processes.rank}),
        "first": processes.run_on_main(lambda: ("made by", processes.rank)),
        "spread": [
            own.unique().tolist(),
            sideways.unique().tolist(),
            int(count),
            sideways.is_contiguous(memory_format=torch.channels_last),
        ],
        "main": processes.is_main_process,
        "local": processes.local_rank,
    }


def test_collectives_equal_over_processes(together):
    results = [done.result for done in together(3, talk)]
    assert [one["any"] for one in results] == [[False, True, True]] * 3
    assert (
        results[0]["sum"]
        == results[1]["sum"]
        == results[2]["sum"]
        == pytest.approx([0.6, 3e15, 0.0], rel=1e-15)
    )
    assert [one["gather"] for one in results] == [[{"of": 0}, {"of": 1}, {"of": 2}], None, None]
    assert [one["first"] for one in results] == [("made by", 0)] * 3
    assert [one["spread"] for one in results] == [[[0.0], [0.0], 0, True]] * 3
    assert [one["main"] for one in results] == [True, False, False] and [
        one["local"] for one in results
    ] == [0, 1, 2]


def test_single_process_collectives_return_input():
    tensor = torch.ones(2)
    SINGLE_PROCESS.broadcast_([tensor])
    network = nn.Linear(1, 1)
    assert (
        SINGLE_PROCESS.is_main_process
        and not SINGLE_PROCESS.all_reduce_any(False)
        and SINGLE_PROCESS.all_reduce_any(True)
        and SINGLE_PROCESS.all_reduce_sum([1.5]) == [1.5]
        and SINGLE_PROCESS.gather(3) == [3]
    )
    assert (
        SINGLE_PROCESS.run_on_main(lambda: 4) == 4
        and SINGLE_PROCESS.wrap_ddp(network, (8, 8)) is network
        and SINGLE_PROCESS.local_rank is None
    )


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 but no RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, "no MASTER_PORT"),
        (
            {
                "WORLD_SIZE": "2",
                "RANK": "zero",
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "x",
                "MASTER_PORT": "1",
            },
            "no numbers as ranks",
        ),
        (
            {
                "WORLD_SIZE": "many",
                "RANK": "0",
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "x",
                "MASTER_PORT": "1",
            },
            "WORLD_SIZE=many but no numbers",
        ),
    ],
)
def test_init_distributed_incomplete_environment_raises(monkeypatch, environment, message):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), distributed.init_distributed():
        pytest.fail("joined")


def test_choose_devices_single_torchrun_process_takes_one_gpu(tiny, monkeypatch):
    """Has one GPU, as each of several has; a plain process has those of GPUS."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    cfg = config.load(tiny, ["GPUS", "(2, 3)"])
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with distributed.init_distributed() as processes:
        assert processes is SINGLE_PROCESS and device.choose_devices(cfg, processes) == [
            torch.device("cuda", 2),
            torch.device("cuda", 3),
        ]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with distributed.init_distributed() as processes:
        assert (
            processes.is_main_process
            and processes.world_size == 1
            and device.choose_devices(cfg, processes) == [torch.device("cuda", 0)]
        )


# shares -------------------------------------------------------------------------------------------


def rows_of(persons, size, world, *, whole, first=0, epoch=2):
    """The persons of each process's batches."""
    rows = []
    for rank in range(world):
        batches = EpochBatchSampler(
            persons, size, shuffle=True, seed=7, shard=Shard(rank, world), shard_by_batch=whole
        )
        batches.set_epoch(epoch, first)
        rows.append([[person for _, person in batch] for batch in batches])
        if not first:
            assert len(rows[-1]) == len(batches)
    return rows


@pytest.mark.parametrize(
    "persons, size, world",
    [
        (50, 12, 1),
        (50, 12, 2),
        (50, 12, 3),
        (50, 10, 5),
        (5, 12, 3),
        (2, 4, 4),
        (1, 2, 2),
        (48, 12, 4),
    ],
)
def test_sampler_local_batches_add_up_to_the_global(persons, size, world):
    """Together the shares are the batches of one process; what is not a process's own is a
    repetition.
    """
    (whole,) = rows_of(persons, size, 1, whole=False)
    assert sorted(sum(whole, [])) == list(range(persons))
    shares = rows_of(persons, size, world, whole=False)
    assert {len(share) for share in shares} == {len(whole)}
    for number, batch in enumerate(whole):
        own = [
            EpochBatchSampler(
                persons, size, shuffle=True, seed=7, shard=Shard(rank, world)
            ).local_and_global_size(number)
            for rank in range(world)
        ]
        assert [length for _, length in own] == [len(batch)] * world
        counts = [count for count, _ in own]
        assert (
            max(counts) - min(counts) <= 1
            and counts == sorted(counts, reverse=True)
            and sum(counts) == len(batch)
        )
        assert sum((share[number][:count] for share, count in zip(shares, counts)), []) == batch
        assert all(len(share[number]) == max(count, 1) for share, count in zip(shares, counts))
        assert all(share[number][0] in batch for share in shares)


@pytest.mark.parametrize(
    "persons, size, world", [(50, 12, 2), (50, 12, 3), (5, 12, 3), (1, 2, 2), (24, 8, 3)]
)
def test_sampler_shard_by_batch_alternates_batches(persons, size, world):
    (alone,) = rows_of(persons, size, 1, whole=True)
    shares = rows_of(persons, size, world, whole=True)
    assert [shares[number % world][number // world] for number in range(len(alone))] == alone
    assert sum(map(len, shares)) == len(alone)
    counted = EpochBatchSampler(
        persons, size, shuffle=False, seed=0, shard=Shard(1, world), shard_by_batch=True
    )
    assert [counted.local_and_global_size(number)[0] for number in range(counted.num_batches)] == [
        len(batch) * (n % world == 1) for n, batch in enumerate(alone)
    ]


def test_sampler_local_batches_from_mid_epoch_equal():
    assert [share[2:] for share in rows_of(50, 12, 3, whole=False)] == rows_of(
        50, 12, 3, whole=False, first=2
    )


# training as one ----------------------------------------------------------------------------------


class Recorded(torch.optim.SGD):
    """Keeps the gradients and leaves the weights."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.gradients = []

    def step(self):
        self.gradients.append(
            [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]
        )


def gradients_here(processes, path, overrides):
    """Gradients of every step of an epoch whose weights stay, with batch norm at rest, whose
    sums would be each process's own.
    """
    kept = []

    def prepare(train):
        build = train.build_model

        def resting(cfg):
            model = build(cfg)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train = lambda mode=True, module=module: nn.Module.train(module, False)
            return model

        train.build_model = resting
        train.build_optimizer = lambda cfg, model: (
            kept.append(Recorded(model.parameters())) or kept[0]
        )

    train_here(processes, path, overrides, prepare)
    return [[gradient.numpy() for gradient in step] for step in kept[0].gradients]


def test_ddp_gradients_equal_single_process(together, tiny):
    """In one, two and three processes; the last batch has two persons, so the third process has
    none of its own.
    """
    found, lines = {}, {}
    for world in (1, 2, 3):
        path = copied(tiny, f"of{world}")
        found[world] = [
            done.result
            for done in together(
                world,
                gradients_here,
                path,
                ("TRAIN.BATCH_SIZE_PER_GPU", 12 // world, "TRAIN.END_EPOCH", 1),
            )
        ]
        lines[world] = json.loads((folder_of(path) / "metrics.jsonl").read_text())
    (alone,) = found[1]
    assert len(alone) == 5
    for world in (2, 3):
        for rank in range(world):
            for step, (gradients, wanted) in enumerate(zip(found[world][rank], alone, strict=True)):
                size = max(np.abs(tensor).max() for tensor in wanted)
                assert size > 1e-4
                for gradient, tensor in zip(gradients, wanted, strict=True):
                    assert np.abs(gradient - tensor).max() <= 1e-5 * size, (world, rank, step)
        # and the log has the means over all persons
        for name in ("train_loss", "valid_loss", "lr"):
            assert lines[world][name] == pytest.approx(lines[1][name], rel=1e-6)
        for name in ("train_acc", "valid_acc", "AP"):
            assert lines[world][name] == lines[1][name]


def synchronised_here(processes, path, overrides):
    """Gradients of the steps of a run whose weights stay, with batch norm over the processes, and
    its statistics in the end.

    In float64, for in float32 the rounding alone of some twenty batch norms one after the other
    comes to 1e-4 of a gradient.
    """

    def prepare(train):
        kept, epochs, build, normalize = [], train.train_epochs, train.build_model, train.normalize

        def watched(cfg, setup, *rest):
            epochs(cfg, setup, *rest)
            buffers = setup.state.network.named_buffers()
            kept.append({name: buffer.numpy() for name, buffer in buffers})

        train.build_optimizer = lambda cfg, model: (
            kept.append(Recorded(model.parameters())) or kept[0]
        )
        train.train_epochs = watched
        train.build_model = lambda cfg: build(cfg).double()
        train.normalize = lambda *args, **options: normalize(*args, **options).double()
        train.device.prepare_for_inference = lambda cfg, model, devices: device.unwrap_model(
            model
        ).float()
        process_group.unused_parameters = lambda *_: []
        return kept

    optimizer, buffers = train_here(processes, path, overrides, prepare)
    return [[gradient.numpy() for gradient in step] for step in optimizer.gradients], buffers


def test_sync_batch_norm_training_equals_single_process(together, tiny):
    """Two processes with half the batch each: gradients and running statistics of one with the
    whole, in two steps of 24 persons.
    """
    found = {}
    for world in (1, 2):
        path = copied(tiny, f"of{world}")
        overrides = (
            "SYNC_BN",
            True,
            "TRAIN.BATCH_SIZE_PER_GPU",
            24 // world,
            "TRAIN.ITERATIONS",
            2,
        )
        found[world] = [done.result for done in together(world, synchronised_here, path, overrides)]
    ((alone, buffers),) = found[1]
    assert len(alone) == 2
    for gradients, others in found[2]:
        for step, wanted in zip(gradients, alone, strict=True):
            size = max(np.abs(tensor).max() for tensor in wanted)
            assert (
                size > 1e-4
                and max(np.abs(one - two).max() for one, two in zip(step, wanted, strict=True))
                <= 1e-5 * size
            )
        assert buffers.keys() == others.keys() and all(
            np.allclose(others[name], values, rtol=1e-5, atol=1e-6)
            for name, values in buffers.items()
        )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"affine": False},
        {"momentum": None},
        {"track_running_stats": False},
        {"eps": 0.1, "momentum": 0.3},
    ],
)
def test_sync_batch_norm_every_setting_equals_pytorch(together, settings):
    """With every setting of nn.BatchNorm2d: outputs, gradients and running figures are those of
    the whole batch in one process.
    """
    x = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = nn.BatchNorm2d(3, **settings).double()
    whole = x.clone().requires_grad_()
    for _ in range(3):
        out = norm(whole)
    (out * x).sum().backward()
    wanted = [
        out.detach(),
        whole.grad,
        *norm.buffers(),
        *(parameter.grad for parameter in norm.parameters()),
    ]
    first, second = (done.result for done in together(2, batch_norm_here, x.numpy(), settings))
    assert len(first) == len(second) == len(wanted)
    joined = [np.concatenate(pair) for pair in zip(first[:2], second[:2])]
    sums = len(list(norm.parameters()))
    joined += first[2 : len(first) - sums] + [
        a + b for a, b in zip(first[len(first) - sums :], second[len(second) - sums :])
    ]
    for one, two in zip(joined, wanted, strict=True):
        assert np.allclose(one, two.numpy(), rtol=1e-9, atol=1e-10)


def batch_norm_here(processes, x, settings):
    """Two persons in one process and four in the other, three times."""
    from poise.engine.sync_bn import convert_sync_batchnorm

    network = nn.Sequential(nn.BatchNorm2d(3, **settings)).double()
    # its device is asked of a parameter
    holder = network if list(network.parameters()) else nn.Sequential(network, nn.Conv2d(1, 1, 1))
    convert_sync_batchnorm(holder, torch.distributed.group.WORLD)
    norm = network[0]
    assert type(norm) is not nn.BatchNorm2d
    own = torch.from_numpy(x)[:2] if processes.is_main_process else torch.from_numpy(x)[2:]
    share = own.clone().requires_grad_()
    for _ in range(3):
        out = norm(share)
    (out * own).sum().backward()
    return [
        tensor.detach().numpy()
        for tensor in (
            out,
            share.grad,
            *norm.buffers(),
            *(parameter.grad for parameter in norm.parameters()),
        )
    ]


def persons_here(processes, path, overrides, stop):
    """Trains; the process's own persons of every step. Stopped, as by a signal, in step `stop`,
    counted from 1.
    """

    def prepare(train):
        seen, train_step = [], train.train_step

        def watched(cfg, state, codec, batch, batches):
            own, _ = batches.local_and_global_size(state.progress.step)
            seen.append(batch["person"][:own].tolist())
            if len(seen) == stop:
                signal.raise_signal(signal.SIGTERM)
            return train_step(cfg, state, codec, batch, batches)

        train.train_step = watched
        return seen

    seen = []
    train_here(processes, path, overrides, lambda train: seen.append(prepare(train)))
    return seen[0]


def test_resume_other_number_of_processes_keeps_global_batches(together, tiny):
    """Two processes stop in the middle of an epoch, three go on: the persons of every step, in
    their order, are those of one process.
    """

    def of_all(done):
        return [sum(shares, []) for shares in zip(*(one.result for one in done), strict=True)]

    path = copied(tiny, "alone")
    alone = of_all(together(1, persons_here, path, ("TRAIN.BATCH_SIZE_PER_GPU", 12), None))
    assert len(alone) == 10 and sorted(sum(alone[:5], [])) == list(range(50))
    begun = of_all(together(2, persons_here, tiny, ("TRAIN.BATCH_SIZE_PER_GPU", 6), 3))
    rest = of_all(
        together(3, persons_here, tiny, ("TRAIN.BATCH_SIZE_PER_GPU", 4, "AUTO_RESUME", True), None)
    )
    assert len(begun) == 3 and begun + rest == alone


def digest_here(processes, path):
    """Train; returns a hash of the process's own weights after the last step and of rank 0's
    batch norm, which it was given for the test.
    """

    def prepare(train):
        digest, epochs = [], train.train_epochs

        def watched(cfg, setup, *rest):
            epochs(cfg, setup, *rest)
            state = setup.state.network.state_dict()
            digest.append(
                hashlib.sha256(
                    b"".join(tensor.numpy().tobytes() for tensor in state.values())
                ).hexdigest()
            )

        train.train_epochs = watched
        return digest

    return train_here(processes, path, (), prepare)


def test_ddp_processes_end_with_equal_weights(of_two, tiny):
    """Which are those that were saved, and what they found together is what one process finds
    with them.
    """
    path, done = of_two
    saved = state_of(folder_of(path) / "final_state.pth")
    assert (
        done[0].result
        == done[1].result
        == [
            hashlib.sha256(
                b"".join(tensor.numpy().tobytes() for tensor in saved.values())
            ).hexdigest()
        ]
    )
    metrics = evaluate_here(
        SINGLE_PROCESS, tiny, ("TEST.MODEL_FILE", folder_of(path) / "final_state.pth"), None
    )
    last = json.loads((folder_of(path) / "metrics.jsonl").read_text().splitlines()[-1])
    assert dict(metrics) == {name: last[name] for name in metrics}
    assert (folder_of(tiny) / RESULTS).read_bytes() == (folder_of(path) / RESULTS).read_bytes()


def test_ddp_two_processes_write_one_set_of_files(of_two):
    path, (first, second) = of_two
    folder = folder_of(path)
    assert {file.name for file in folder.iterdir()} == {
        "config.yaml",
        "train.log",
        "metrics.jsonl",
        "checkpoint.pth",
        "checkpoint_1.pth",
        "model_best.pth",
        "final_state.pth",
        "results",
    }
    assert [
        line["epoch"]
        for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ] == [0, 1]
    assert len(list((path.parent / "log" / "coco" / "pose_res2net").iterdir())) == 1
    log = (folder / "train.log").read_text()
    for once in (
        "train set train2017: ",
        "command: tools/train.py",
        "DistributedDataParallel over gloo",
        "epoch 1/2: train loss",
        "done: best score",
    ):
        assert log.count(once) == 1 and first.out.count(once) == 1, once
    assert "24 samples a step, epochs 0 to 1" in log and "epoch 0/2 [3/3]" in log
    assert second.out == second.err == "" and first.err == ""
    checkpoint = state_of(folder / "checkpoint.pth")
    assert checkpoint["epoch"] == 2 and not [
        name for name in checkpoint["state_dict"] if name.startswith("module.")
    ]


def stopped_here(processes, path, overrides, rank, when):
    """A signal reaches one of the processes only, in a step of epoch 0."""

    def prepare(train):
        normalize, count = train.normalize, [0]

        def normalize_after_signal(*args, **options):
            count[0] += 1
            if processes.rank == rank and count[0] == when:
                signal.raise_signal(signal.SIGTERM)
            return normalize(*args, **options)

        train.normalize = normalize_after_signal

    return train_here(processes, path, overrides, prepare)


def test_ddp_stopped_run_resumes_bit_exactly(together, tiny, of_two):
    """To the same weights, bit for bit; a signal to one process stops all of them after the same
    train.
    """
    other, _ = of_two
    stopped = together(2, stopped_here, tiny, (), 1, 2)
    checkpoint = folder_of(tiny) / "checkpoint.pth"
    assert [done.result for done in stopped] == [
        f"stopped at epoch 0, step 2; {checkpoint} is written; resume with the same command and"
        " AUTO_RESUME True"
    ] * 2
    assert state_of(checkpoint)["sums"]["samples"] == 48
    log = (folder_of(tiny) / "train.log").read_text()
    assert "INFO stopped at epoch 0, step 2" in log and "Traceback" not in log
    together(2, train_here, tiny, ("AUTO_RESUME", True))
    assert "resuming at epoch 0, step 2" in (folder_of(tiny) / "train.log").read_text()
    assert same_weights(folder_of(tiny) / "final_state.pth", folder_of(other) / "final_state.pth")
    assert metrics_of(folder_of(tiny)) == metrics_of(folder_of(other))


def test_ddp_resume_other_number_of_processes_continues_epoch(together, tiny):
    """With as many samples a step the epoch goes on where it was."""
    together(2, stopped_here, tiny, ("TRAIN.END_EPOCH", 1), 0, 1)
    together(
        3,
        train_here,
        tiny,
        ("TRAIN.END_EPOCH", 1, "AUTO_RESUME", True, "TRAIN.BATCH_SIZE_PER_GPU", 8),
    )
    log = (folder_of(tiny) / "train.log").read_text()
    assert (
        "resuming at epoch 0, step 1" in log
        and "starting it again" not in log
        and "epoch 0/1 [3/3]" in log
    )
    assert state_of(folder_of(tiny) / "checkpoint.pth")["epoch"] == 1


def test_ddp_random_numbers_differ_by_process_and_step(together, tiny):
    seeds = [done.result for done in together(2, seeds_here, tiny, ("TRAIN.END_EPOCH", 1))]
    assert len(seeds[0]) == len(seeds[1]) == 3 and len({*seeds[0], *seeds[1]}) == 6


def seeds_here(processes, path, overrides):
    def prepare(train):
        seeds = []
        normalize = train.normalize
        train.normalize = lambda *arguments, **keywords: (
            seeds.append(torch.initial_seed()) or normalize(*arguments, **keywords)
        )
        return seeds

    return train_here(processes, path, overrides, prepare)


# parameters without a part ------------------------------------------------------------------------


class Idle(nn.Module):
    """A network with a layer that nothing comes from, batch norm and random numbers."""

    def __init__(self):
        super().__init__()
        self.used, self.norm, self.idle = (
            nn.Conv2d(3, 17, 4, 4),
            nn.BatchNorm2d(17),
            nn.Conv2d(3, 5, 1),
        )

    def forward(self, images):
        self.idle(images)
        heatmaps = nn.functional.dropout(self.norm(self.used(images)), 0.1, self.training)
        return (heatmaps,) if self.training else heatmaps


def test_unused_parameters_are_found():
    network = Idle().eval()
    before, random = (
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        torch.random.get_rng_state(),
    )
    assert process_group.unused_parameters(network, (16, 8)) == ["idle.weight", "idle.bias"]
    assert not network.training and torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def idle_here(processes, path, overrides):
    def prepare(train):
        train.build_model = lambda cfg: Idle()

    return train_here(processes, path, overrides, prepare)


def test_ddp_unused_parameters_are_logged(together, tiny):
    first, _ = together(2, idle_here, tiny, ("TRAIN.END_EPOCH", 1))
    assert (
        "2 parameters do not contribute to the outputs: idle.weight, idle.bias" in first.out
        and "done: best score" in first.out
    )


# testing as one -----------------------------------------------------------------------------------


def evaluate_here(processes, path, overrides, out):
    from poise.engine import evaluate

    return evaluate.run(
        config.load(path, [str(value) for value in overrides]),
        str(path),
        ["tools/test.py"],
        processes,
        out=out,
    )


@pytest.fixture
def weights(tiny):
    """Weights that find something, so that an order of persons or a missing one would show."""
    torch.manual_seed(5)
    network = build_model(config.load(tiny))
    with torch.no_grad():
        network.final_layer.weight.normal_(0, 0.5)
    torch.save(network.state_dict(), tiny.parent / "w.pth")
    return tiny.parent / "w.pth"


def test_evaluate_any_number_of_processes_gives_equal_files(together, tiny, weights):
    """To the last bit of all files: 3 batches of the 22 test persons on 1, 2, 3 and 4 processes,
    so that one has nothing to do.
    """
    found = {}
    for world in (1, 2, 3, 4):
        path = copied(tiny, f"of{world}")
        out = path.parent / "out.pkl"
        done = together(world, evaluate_here, path, ("TEST.MODEL_FILE", weights), out)
        assert [dict(one.result) for one in done] == [dict(done[0].result)] * world and len(
            done[0].result
        ) == 10
        assert [one.out for one in done[1:]] == [""] * (world - 1)
        pictures = {
            picture.name: picture.read_bytes()
            for picture in (folder_of(path) / "pictures").iterdir()
        }
        assert len(pictures) == 8
        found[world] = (
            dict(done[0].result),
            (folder_of(path) / RESULTS).read_bytes(),
            out.read_bytes(),
            pictures,
        )
        assert done[0].out.count("| pose_res2net |") == 1
    assert len(json.loads(found[1][1])) > 10
    for world in (2, 3, 4):
        assert found[world] == found[1], world


def test_evaluate_stop_request_ends_every_process(together, tiny):
    """Predicting in training's evaluation ends on all processes when one of them is asked to."""

    def result(done):
        return [one.result for one in done]

    assert result(together(2, predicting_here, tiny, 1)) == ["stopped"] * 2
    assert result(together(2, predicting_here, tiny, None)) == [22, None]


def predicting_here(processes, path, asked):
    from poise.datasets import build_loader, load_split
    from poise.engine.predict import predict

    cfg = config.load(path)
    loader = build_loader(
        cfg,
        *load_split(cfg, train=False),
        train=False,
        shard=Shard(processes.rank, processes.world_size),
    )
    try:
        found = predict(
            cfg,
            build_model(cfg),
            loader,
            torch.device("cpu"),
            codecs.build_codec(cfg),
            lambda: processes.rank == asked,
            processes,
        )
    except KeyboardInterrupt:
        return "stopped"
    return int((found.scores != 0).any(axis=1).sum()) if processes.is_main_process else None


# what a job lives through -------------------------------------------------------------------------


def patient_here(processes, path, overrides):
    """Train with scores that rise in rank 0's eyes only, for the others have none to look at;
    the epochs that the process has trained.
    """

    def prepare(train):
        scores, epochs, train_one_epoch = iter([0.5, 0.4, 0.3, 0.2]), [], train.train_one_epoch
        train.evaluate_predictions = lambda *_: ({"AP": 0.0}, next(scores))
        train.train_one_epoch = lambda cfg, setup, *rest: (
            epochs.append(setup.state.progress.epoch),
            train_one_epoch(cfg, setup, *rest),
        )
        return epochs

    return train_here(processes, path, overrides, prepare)


def test_ddp_early_stopping_ends_every_process(together, tiny):
    done = together(2, patient_here, tiny, ("TRAIN.PATIENCE", 2, "TRAIN.END_EPOCH", 4))
    assert [one.result for one in done] == [[0, 1, 2]] * 2
    assert (
        done[0].out.count("stopped early: no better score in 2 evaluations") == 1
        and len(metrics_of(folder_of(tiny))) == 3
    )


def full_here(processes, path, overrides):
    """The disk of rank 0's logs is full from the second line on."""

    def prepare(train):
        scalars, count = train.logger.TensorBoard.add_scalars, [0]

        def writing(board, *arguments):
            count[0] += 1
            if count[0] == 2:
                board._error = OSError(28, "No space left on device")
            scalars(board, *arguments)

        train.logger.TensorBoard.add_scalars = writing

    return train_here(processes, path, overrides, prepare)


def test_ddp_full_log_disk_ends_every_process(together, tiny):
    """End all processes after the same step, with a checkpoint and one error."""
    done = together(2, full_here, tiny, ("PRINT_FREQ", 1, "TRAIN.END_EPOCH", 9), fails=True)
    assert [one.status for one in done] == [1, 1]
    errors = [one.err for one in done if one.err]
    assert (
        len(errors) == 1
        and "the TensorBoard page cannot be written (No space left on device)" in errors[0]
        and "checkpoint.pth is written" in errors[0]
    )
    saved = state_of(folder_of(tiny) / "checkpoint.pth")
    # the third step had started when the error of the second was reported
    assert (saved["epoch"], saved["step"]) == (0, 3)


def restarted_here(processes, path, overrides):
    """Rank 1's machine alone has counted a failure: the other's processes were started again for
    the sake of the meeting.
    """
    os.environ.update(TORCHELASTIC_RUN_ID="job 1", TORCHELASTIC_RESTART_COUNT=str(processes.rank))
    return train_here(processes, path, overrides)


def begun_here(processes, path, overrides):
    os.environ.update(TORCHELASTIC_RUN_ID="job 1", TORCHELASTIC_RESTART_COUNT="0")
    return train_here(processes, path, overrides)


def test_ddp_restart_counted_by_one_machine_resumes_everywhere(together, tiny):
    together(2, begun_here, tiny, ("TRAIN.END_EPOCH", 1))
    first, _ = together(2, restarted_here, tiny, ("TRAIN.END_EPOCH", 2))
    assert "resuming at epoch 1, step 0" in first.out and len(metrics_of(folder_of(tiny))) == 2


def met_here(processes):
    return processes.all_reduce_sum([1.0])


@pytest.mark.parametrize(
    "shared, counts, meets",
    [("True", ("1", "1"), True), ("False", ("0", "1"), True), ("True", ("0", "1"), False)],
)
def test_rendezvous_after_restart_uses_counts(together, shared, counts, meets):
    """Counts that differ between machines keep processes apart only in a store that has outlived
    the restart; then each says so in a line.

    (PyTorch's own warnings of its sockets stand before it.)
    """
    environments = [
        {"TORCHELASTIC_USE_AGENT_STORE": shared, "TORCHELASTIC_RESTART_COUNT": count}
        for count in counts
    ]
    done = together(2, met_here, fails=True, environments=environments, seconds=60 if meets else 2)
    if meets:
        assert [(one.status, one.result) for one in done] == [(0, [2.0])] * 2, [
            one.err for one in done
        ]
    else:
        assert [one.status for one in done] == [1, 1]
        for rank, one in enumerate(done):
            last_line = one.err.splitlines()[-1]
            assert (
                last_line.startswith(
                    f"error: process {rank} did not meet the 1 others at 127.0.0.1:"
                )
                and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in last_line
            )
            assert one.err.count("error: ") == 1 and "Traceback" not in one.err


def test_rendezvous_port_in_use_names_the_port(monkeypatch):
    """The environment of a launcher other than torchrun: rank 0 makes the store itself."""
    with socket.create_server(("", 0)) as listening:
        port = str(listening.getsockname()[1])
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        monkeypatch.setattr(process_group, "_RENDEZVOUS_TIMEOUT", timedelta(seconds=10))
        with pytest.raises(PoiseError, match=f"MASTER_PORT {port}: another program uses this port"):
            process_group._rendezvous(0, 2)


def orphaned_here(processes, path, overrides, how):
    """In step 2 the launcher ends without its processes, as of a signal that it does not know:
    it is their parent, or has only their store.
    """

    def prepare(train):
        train_step, count = train.train_step, [0]

        def watched(*arguments):
            count[0] += 1
            if count[0] == 2:
                if how == "parent":
                    process_group.os.getppid = lambda: 1
                else:

                    class Gone:
                        def check(self, _):
                            raise torch.distributed.DistNetworkError("Connection reset by peer")

                        add = check

                    processes._store = Gone()
            if count[0] >= 2:
                time.sleep(0.2)
            return train_step(*arguments)

        train.train_step = watched

    return train_here(processes, path, overrides, prepare)


@pytest.mark.parametrize("how", ["parent", "store"])
def test_ddp_missing_launcher_stops_with_checkpoint(together, tiny, how):
    """The run stops after a step, with a checkpoint, as for a signal."""
    done = together(
        2, orphaned_here, tiny, ("TRAIN.END_EPOCH", 200, "TRAIN.EVAL_INTERVAL", 200), how
    )
    assert (
        all(one.result.startswith("stopped at epoch ") for one in done)
        and len({one.result for one in done}) == 1
    )
    assert (folder_of(tiny) / "checkpoint.pth").exists()


# failing ------------------------------------------------------------------------------------------


def failing_here(processes, how):
    process_group._SHUTDOWN_SECONDS = 2.0
    if how == "both":
        raise ConfigError("a key of everyone")
    if how == "Ctrl-C":
        raise KeyboardInterrupt
    if processes.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "bug":
            raise ZeroDivisionError("a fault of the program")
        raise PoiseError("an image of rank 1")
    if how == "busy":
        time.sleep(50)
    processes.all_reduce_any(False)


@pytest.mark.parametrize(
    "how, message, statuses",
    [
        ("one", "error: an image of rank 1\n", [1, 1]),
        ("both", "error: a key of everyone\n", None),
        ("busy", "error: an image of rank 1\n", [1, 1]),
        (
            "killed",
            (
                "error: another process of this run was terminated, perhaps out of memory;"
                " torchrun's report names it\n"
            ),
            [1, -9],
        ),
        ("bug", "ZeroDivisionError: a fault of the program\n", [1, 1]),
    ],
)
def test_ddp_error_is_reported_once(together, how, message, statuses):
    """End all processes within seconds: those that wait, that fail too, or that are busy."""
    begin = time.monotonic()
    done = together(2, failing_here, how, fails=True)
    assert time.monotonic() - begin < 20
    errors = [one.err for one in done if one.err]
    assert (
        len(errors) == 1
        and errors[0].endswith(message)
        and errors[0].count("Traceback") == (how == "bug")
    ), errors
    if how != "bug":
        assert errors == [message]
    if statuses is None:  # the first process to fail reports, with its status
        assert sorted(one.status for one in done) == [1, 2]
    else:
        assert [one.status for one in done] == statuses
    assert [one.out for one in done] == ["", ""]


def spoiled_here(processes, path, overrides):
    """The loss of one process is no number in step 2."""

    def prepare(train):
        class Spoiled(nn.Module):
            steps = 0

            def forward(self, outputs, targets):
                self.steps += 1
                return outputs[-1].square().mean() * (
                    math.nan if self.steps == 3 and processes.rank == 1 else 1
                )

        codecs.build_loss = lambda cfg: Spoiled()

    return train_here(processes, path, overrides, prepare)


def test_ddp_nan_loss_on_one_process_names_its_images(together, tiny):
    """Name the images of this process and save nothing."""
    done = together(2, spoiled_here, tiny, (), fails=True)
    table_of_rank_1 = EpochBatchSampler(50, 24, shuffle=True, seed=0, shard=Shard(1, 2))
    persons = [person for _, person in list(table_of_rank_1)[2]]
    assert [one.status for one in done] == [1, 1] and done[0].err == ""
    assert done[1].err.startswith(
        "error: epoch 0, step 2: the loss is nan; no checkpoint was written yet; lower TRAIN.LR, or"
        " check the images of this batch: "
    )
    assert (
        len(done[1].err.splitlines()) == 1
        and len(done[1].err.split("batch: ")[1].split(", ")) == len(persons) == 1
    )
    log = (folder_of(tiny) / "train.log").read_text()
    assert (
        "ERROR rank 1: epoch 0, step 2: the loss is nan" in log
        and "Traceback" not in log
        and log.count("ERROR") == 1
    )
    assert not list(folder_of(tiny).glob("*.pth"))


def unscored_here(processes, path, overrides):
    """The disk is full when rank 0 writes results."""

    def prepare(train):
        def full(*_):
            raise PoiseError("results.json: cannot be written (No space left on device)")

        train.evaluate_predictions = full

    return train_here(processes, path, overrides, prepare)


def test_ddp_failing_evaluation_ends_every_process(together, tiny):
    done = together(2, unscored_here, tiny, (), fails=True)
    assert [one.status for one in done] == [1, 1] and done[1].err == ""
    assert done[0].err == "error: results.json: cannot be written (No space left on device)\n"


def test_ddp_ctrl_c_prints_nothing(together):
    assert [
        (one.status, one.out, one.err) for one in together(2, failing_here, "Ctrl-C", fails=True)
    ] == [(130, "", "")] * 2


def test_is_peer_failure_recognizes_gloo_and_nccl_errors():
    assert distributed.is_peer_failure(
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
        )
    )
    assert distributed.is_peer_failure(
        torch.distributed.DistBackendError("NCCL error: remote process exited")
    )
    assert not distributed.is_peer_failure(
        RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    ) and not distributed.is_peer_failure(OSError("/gloo/"))


# devices ------------------------------------------------------------------------------------------


class Answering(DistributedContext):
    """One of several processes, of which another answers `others` to every flag."""

    def __init__(self, local_rank, others=False):
        super().__init__(local_rank, 2, local_rank)
        self.others = others

    def all_reduce_any(self, flag):
        return flag or self.others


@pytest.mark.parametrize(
    "present, wanted, local_rank, others, used, warning",
    [
        (2, (0, 1, 2, 3), 1, False, "cuda:1", ""),
        (8, (0,), 5, False, "cuda:5", ""),
        (2, (), 1, False, "cpu", ""),
        (0, (0,), 0, False, "cpu", "no CUDA device: running on the CPU"),
        (
            1,
            (0,),
            1,
            False,
            "cpu",
            "more processes than CUDA devices (1) on this machine",
        ),
        (2, (0,), 0, True, "cpu", "another process has no CUDA device"),
    ],
)
def test_choose_devices_of_a_process_follow_local_rank(
    tiny, monkeypatch, caplog, present, wanted, local_rank, others, used, warning
):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device.choose_devices(
        config.load(tiny, ["GPUS", wanted]), Answering(local_rank, others)
    ) == [torch.device(used)]
    assert (
        chosen == ([torch.device(used)] if used != "cpu" else [])
        and warning in caplog.text
        and bool(warning) == bool(caplog.text)
    )


@pytest.mark.parametrize(
    "cores, processes, wish, count",
    [
        (8, "", "", 8),
        (8, "2", "", 4),
        (8, "2", "3", 3),
        (8, "2", "6", 4),
        (2, "3", "", 1),
        (8, "", "5", 5),
    ],
)
def test_threads_cores_are_divided_among_processes(monkeypatch, cores, processes, wish, count):
    from poise.engine import device as threads

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    for name, value in (("LOCAL_WORLD_SIZE", processes), ("OMP_NUM_THREADS", wish)):
        monkeypatch.setenv(name, value)
    assert threads.available_cpus() == count
