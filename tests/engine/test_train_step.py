"""Test options of a training step: micro-batches, AMP, torch.compile, EMA, early stopping."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from poise import config
from poise.datasets.sampler import EpochBatchSampler, Shard
from poise.engine import device, optim, signals, state, train
from poise.engine.amp import LossScaler
from poise.engine.ema import ModelEma
from poise.engine.micro_batches import split_batch
from poise.engine.optim import SGD, Adam, AdamW, build_optimizer
from poise.engine.step_metrics import StepCollector
from poise.errors import ConfigError, PoiseError
from poise.models import forward
from support.paths import ROOT
from support.runs import (
    copied,
    folder_of,
    metrics_of,
    run_train,
    same,
    state_of,
    without_settings,
)
from torch import nn

pytestmark = pytest.mark.usefixtures("no_tensorboard_images")

# parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, world, parts, whole",
    [
        (24, 1, 3, 24),
        (24, 1, 3, 7),
        (24, 1, 3, 2),
        (48, 2, 3, 48),
        (48, 2, 3, 47),
        (48, 2, 3, 5),
        (24, 3, 2, 2),
        (24, 3, 4, 9),
    ],
)
def test_split_batch_parts_add_up_to_local_batch(size, world, parts, whole):
    """Together they are the share, none is larger than a part of a full batch, and all processes
    have as many.
    """
    batches = [
        EpochBatchSampler(whole, size, shuffle=False, seed=0, shard=Shard(rank, world))
        for rank in range(world)
    ]
    counts = set()
    for batch in batches:
        rows = torch.tensor([person for _, person in next(iter(batch))])
        own, _ = batch.local_and_global_size(0)
        found = split_batch({"person": rows}, batch, 0, parts)
        counts.add(len(found))
        assert sum(count for _, count in found) == own and all(
            len(part["person"]) == max(count, 1) for part, count in found
        )
        assert (
            torch.cat([part["person"][:count] for part, count in found]).tolist()
            == rows[:own].tolist()
        )
        assert max(count for _, count in found) <= size // world // parts
    assert len(counts) == 1 and counts.pop() <= parts


def test_split_batch_one_part_is_the_batch():
    batch = {"person": torch.arange(3)}
    ((part, own),) = split_batch(batch, EpochBatchSampler(3, 8, shuffle=False, seed=0), 0, 1)
    assert part is batch and own == 3


def gradients(path, *overrides):
    """Of the first step, with batch norm at rest, whose figures would be a part's own."""
    cfg = config.load(path, ["GPUS", "()", *map(str, overrides)])
    training = train.build(cfg, str(path), train.SINGLE_PROCESS)
    state, batches = training.state, training.loader.batch_sampler
    state.model.eval()
    forward = state.model.forward
    state.model.forward = lambda images: (forward(images),)
    batches.set_epoch(0)
    batch = next(iter(training.loader))
    state.scaler.step = lambda _: None
    figures, _ = train.train_step(cfg, state, training.codec, batch, batches)
    assert len(figures) == cfg.TRAIN.ACCUMULATE
    return [parameter.grad.clone() for parameter in state.model.parameters()], figures


def test_accumulate_gradients_equal_whole_batch(tiny_experiment):
    """24 samples at once, and 8 three times: the same persons, gradients and figures."""
    whole, of_whole = gradients(tiny_experiment, "TRAIN.BATCH_SIZE_PER_GPU", 24)
    parts, of_parts = gradients(
        tiny_experiment, "TRAIN.BATCH_SIZE_PER_GPU", 8, "TRAIN.ACCUMULATE", 3
    )
    assert max(tensor.abs().max() for tensor in whole) > 1e-4
    for one, two in zip(whole, parts, strict=True):
        assert (one - two).abs().max() <= 1e-5 * one.abs().max() + 1e-9
    assert (
        torch.cat([figure.persons for figure in of_parts]).tolist() == of_whole[0].persons.tolist()
    )
    assert sum(float(figure.loss) * figure.samples for figure in of_parts) == pytest.approx(
        float(of_whole[0].loss) * 24, rel=1e-5
    )
    assert sum(float(figure.num_valid) for figure in of_parts) == float(of_whole[0].num_valid)


def test_train_accumulate_writes_run_folder(tiny_experiment):
    folder = run_train(
        tiny_experiment,
        "TRAIN.ACCUMULATE",
        2,
        "TRAIN.END_EPOCH",
        1,
        "DEBUG.DEBUG",
        True,
        "DEBUG.SAVE_BATCH_IMAGES_GT",
        True,
    )
    log = (folder / "train.log").read_text()
    assert (
        "16 samples a step in 2 parts, epochs 0 to 0" in log
        and "epoch 0/1 [4/4]" in log
        and len(list((folder / "debug").iterdir())) == 2
    )
    saved = state_of(folder / "checkpoint.pth")
    assert saved["optimizer"]["state"][0]["step"] == 4 and metrics_of(folder)[0]["train_loss"] > 0


# groups and schedules -----------------------------------------------------------------------------


def test_build_optimizer_norm_and_bias_do_not_decay(tiny_experiment):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.GroupNorm(1, 2)),
    )
    model.scale = nn.Parameter(torch.ones(1, 2, 1, 1))  # a layer's own weight, not of a norm
    for name, decay in (("adamw", 0.1), ("sgd", 0.1), ("adam_l2", 0.1), ("adam", 0.0)):
        cfg = config.load(
            tiny_experiment,
            ["TRAIN.OPTIMIZER", name, "TRAIN.WD", "0.1", "TRAIN.WD_NORM_AND_BIAS", "False"],
        )
        groups = build_optimizer(cfg, model).param_groups
        decayed, others = (
            ({id(parameter) for parameter in group["params"]}, group["weight_decay"])
            for group in groups
        )
        assert (
            decayed == ({id(model.scale), id(model[0].weight), id(model[2][0].weight)}, decay)
            and others[1] == 0
        )
        assert len(others[0]) == 5 and not others[0] & decayed[0]
    cfg = config.load(tiny_experiment, ["TRAIN.OPTIMIZER", "adamw"])
    assert len(build_optimizer(cfg, model).param_groups) == 1


@pytest.mark.parametrize(
    "name, settings",
    [
        ("adam", {}),
        ("adam_l2", {"weight_decay": 0.01}),
        ("adamw", {"weight_decay": 0.01}),
        ("sgd", {"weight_decay": 0.01, "momentum": 0.9}),
        ("sgd", {"weight_decay": 0.01, "momentum": 0.9, "nesterov": True}),
    ],
)
def test_optimizer_fused_equals_plain(tiny_experiment, name, settings):
    """To float rounding, over twenty steps, also from one layout in memory and with a weight
    that has no gradient.
    """
    overrides = [
        "TRAIN.OPTIMIZER",
        name,
        "TRAIN.WD",
        "0.01",
        "TRAIN.LR",
        "0.01",
        "TRAIN.NESTEROV",
        str("nesterov" in settings),
    ]
    torch.manual_seed(0)
    # no bias before the norm: its gradient is rounding alone, of which Adam makes whole steps
    start = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1))
    start.register_parameter("idle", nn.Parameter(torch.ones(3)))
    start = start.to(memory_format=torch.channels_last)
    fused, plain = copy.deepcopy(start), copy.deepcopy(start)
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}.get(name, torch.optim.Adam)
    optimizers = {
        fused: build_optimizer(config.load(tiny_experiment, overrides), fused),
        plain: kind(plain.parameters(), lr=0.01, foreach=False, fused=False, **settings),
    }
    assert (
        type(optimizers[fused]).__base__ is kind
        and optimizers[fused].defaults["fused"]
        and not optimizers[plain].defaults["fused"]
    )
    for number in range(20):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        for network, optimizer in optimizers.items():
            optim.set_learning_rate(optimizer, 0.01 / (1 + number))
            optimizer.zero_grad()
            network(images).square().mean().backward()
            optimizer.step()
    for one, two, before in zip(
        fused.parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-7) and (
            one.dim() == 1 or not torch.allclose(one, before, atol=1e-4)
        )


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizer_does_not_import_the_compiler(tiny_experiment, name):
    """Its import takes a second; every method that a training uses would bring it with it."""
    program = f"""
import sys, torch
from poise import config
from poise.engine.micro_batches import split_batch
from poise.engine.optim import SGD, Adam, AdamW, build_optimizer
from poise.engine.step_metrics import StepCollector
layer = torch.nn.Linear(2, 2)
cfg = config.load({str(tiny_experiment)!r}, ["TRAIN.OPTIMIZER", {name!r}])
optimizer = build_optimizer(cfg, layer)
for _ in range(2):
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
    )


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_optimizer_step_disables_gradients_except_in_closure(kind):
    parameter = nn.Parameter(torch.ones(2))
    plan, seen = kind([parameter], lr=0.1), []
    plan.register_step_pre_hook(lambda *_: seen.append("hook"))

    def closure():
        seen.append(torch.is_grad_enabled())
        plan.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert plan.step(closure).item() == 2 and seen == ["hook", True] and torch.is_grad_enabled()
    assert parameter.is_leaf and parameter.requires_grad and (parameter < 1).all()


def test_schedule_base_batch_scales_rate_and_length(tiny_experiment):
    """TRAIN.BASE_BATCH with half of the samples: half of the rate, twice the steps, and a log line.

    Nothing is scaled without it.
    """
    half, whole, unscaled = (
        train.build(
            config.load(tiny_experiment, ["GPUS", "()", "TRAIN.ITERATIONS", "10", *words]),
            str(tiny_experiment),
            train.SINGLE_PROCESS,
        ).state.schedule
        for words in (["TRAIN.BASE_BATCH", "16"], ["TRAIN.BASE_BATCH", "8"], [])
    )
    assert (half.base_rate, half.total_steps) == (0.0005, 20) and (
        whole.base_rate,
        whole.total_steps,
    ) == (
        unscaled.base_rate,
        unscaled.total_steps,
    ) == (0.001, 10)
    assert "learning rate 0.0005" in str(
        half
    ) and "for 16 samples a step it would be 10 steps at 0.001" in str(half)
    folder = run_train(tiny_experiment, "TRAIN.BASE_BATCH", 16, "TRAIN.END_EPOCH", 1)
    assert (
        metrics_of(folder)[0]["lr"] == 0.0005
        and "schedule: 7 steps (1.0 epochs of 7), learning rate 0.0005"
        in (folder / "train.log").read_text()
    )


def test_resume_other_parameter_groups_raise(tiny_experiment):
    folder = run_train(tiny_experiment, "TRAIN.OPTIMIZER", "adamw", "TRAIN.END_EPOCH", 1)
    without_settings(folder / "checkpoint.pth", folder / "checkpoint.pth")
    with pytest.raises(PoiseError, match="does not fit the network or optimizer"):
        run_train(
            tiny_experiment,
            "TRAIN.OPTIMIZER",
            "adamw",
            "TRAIN.WD_NORM_AND_BIAS",
            False,
            "AUTO_RESUME",
            True,
        )


def test_schedule_cosine_equals_formula(tiny_experiment):
    cfg = config.load(
        tiny_experiment,
        [
            "TRAIN.LR_SCHEDULE",
            "cosine",
            "TRAIN.WARMUP_ITERS",
            "10",
            "TRAIN.LR",
            "0.01",
            "TRAIN.END_EPOCH",
            "11",
        ],
    )
    plan = optim.Schedule.from_config(cfg, 10, 8)
    rates = [plan.lr_at(step) for step in range(110)]
    assert (
        rates[0] == pytest.approx(0.001)
        and rates[5] == pytest.approx(0.0055)
        and rates[10] == pytest.approx(0.01)
    )
    assert (
        rates[60] == pytest.approx(0.005)
        and rates[35] == pytest.approx(0.01 * (1 + math.sqrt(0.5)) / 2)
        and 0 < rates[109] < 1e-5
    )
    assert rates[10:] == sorted(
        rates[10:], reverse=True
    ) and "learning rate 0.01, cosine to 0, warm-up over 10 steps" in str(plan)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for step in range(10, 110):
        assert rates[step] == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step(), theirs.step()


# 16 bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, dtype", [("", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_amp_sets_dtype(tiny_experiment, kind, dtype):
    cfg = config.load(tiny_experiment, ["AMP", kind])
    with forward.autocast(torch.device("cpu"), cfg.AMP):
        assert nn.Conv2d(3, 4, 1)(torch.zeros(1, 3, 8, 8)).dtype == dtype
    assert LossScaler(torch.device("cpu"), enabled=cfg.AMP == "fp16").is_enabled == (kind == "fp16")


def test_train_bf16_is_close_to_float32(tiny_experiment):
    """Not to the bit, but near; the log and the weights are float32."""
    plain, half = (
        metrics_of(run_train(tiny_experiment, "AMP", kind, "TRAIN.END_EPOCH", 1))[0]
        for kind in ("", "bf16")
    )
    assert half["train_loss"] != plain["train_loss"] and half["train_loss"] == pytest.approx(
        plain["train_loss"], rel=0.05
    )
    assert (
        half["valid_loss"] != plain["valid_loss"]
        and half["valid_loss"] == pytest.approx(plain["valid_loss"], rel=0.1)
        and "overflows" not in half
    )
    assert {
        tensor.dtype for tensor in state_of(folder_of(tiny_experiment) / "final_state.pth").values()
    } == {torch.float32, torch.int64}


def test_amp_bf16_unsupported_gpu_raises(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "An old GPU")
    with pytest.raises(ConfigError, match="AMP bf16: not supported by An old GPU; use AMP fp16"):
        forward.check_precision([torch.device("cuda", 0)], "bf16")
    with pytest.raises(
        ConfigError,
        match=(
            "AMP bf16: not supported on 2 GPUS in one process; start one process per GPU with"
            " torchrun"
        ),
    ):
        forward.check_precision([torch.device("cuda", 0), torch.device("cuda", 1)], "bf16")
    forward.check_precision([torch.device("cuda", 0), torch.device("cuda", 1)], "fp16")


class Overflowing(nn.Module):
    """A loss whose gradients do not fit into float32 in its third step if they are scaled by
    more than `most`.
    """

    def __init__(self, most):
        super().__init__()
        self.most, self.steps = most, 0

    def forward(self, outputs, targets):
        if self.training:
            self.steps += 1
        loss = outputs[-1].square().mean()
        return loss + (loss * 0 if self.steps != 3 else _Huge.apply(loss, self.most))


class _Huge(torch.autograd.Function):
    """0, with a gradient that is infinite where what comes in is above `most`."""

    @staticmethod
    def forward(ctx, x, most):
        ctx.most = most
        return x * 0

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (math.inf if gradient.abs() > ctx.most else 1), None


def test_train_fp16_overflow_skips_the_step(tiny_experiment, monkeypatch):
    """Count and log the step and halve the scale; a resumed run has the scale of its checkpoint."""
    monkeypatch.setattr("poise.codecs.build_loss", lambda cfg: Overflowing(1e4))
    folder = run_train(tiny_experiment, "AMP", "fp16", "TRAIN.END_EPOCH", 1)
    (line,) = metrics_of(folder)
    saved = state_of(folder / "checkpoint.pth")
    assert (line["overflows"], line["loss_scale"]) == (1, 2.0**15) and saved["scaler"][
        "scale"
    ] == 2.0**15
    assert saved["optimizer"]["state"][0]["step"] == 6, "7 steps, of which one was left out"
    assert all(
        bool(torch.isfinite(tensor).all())
        for tensor in state_of(folder / "final_state.pth").values()
    )
    assert (
        "epoch 0/1: 1 steps skipped because of overflowing gradients, loss scale 32768"
        in (folder / "train.log").read_text()
    )
    monkeypatch.setattr("poise.codecs.build_loss", lambda cfg: Overflowing(math.inf))
    run_train(tiny_experiment, "AMP", "fp16", "AUTO_RESUME", True)
    assert [(line["overflows"], line["loss_scale"]) for line in metrics_of(folder)] == [
        (1, 2.0**15),
        (0, 2.0**15),
    ]


def test_train_skipped_step_leaves_the_average(tiny_experiment, monkeypatch):
    """Else the weights before it would count twice."""
    monkeypatch.setattr("poise.codecs.build_loss", lambda cfg: Overflowing(1e4))
    folder = run_train(tiny_experiment, "AMP", "fp16", "TRAIN.END_EPOCH", 1, "TRAIN.EMA_DECAY", 0.9)
    saved = state_of(folder / "checkpoint.pth")
    assert (
        metrics_of(folder)[0]["overflows"] == 1
        and saved["optimizer"]["state"][0]["step"] == saved["ema"]["updates"] == 6
    )


def test_train_deferred_metrics_give_equal_run(tiny_experiment, monkeypatch):
    """As on a GPU: sums, steps that are left out, the average and checkpoints in an epoch."""
    overrides = ("AMP", "fp16", "TRAIN.END_EPOCH", 1, "TRAIN.EMA_DECAY", 0.9)
    monkeypatch.setattr("poise.codecs.build_loss", lambda cfg: Overflowing(1e4))
    folder = run_train(tiny_experiment, *overrides)
    other, add, unread = copied(tiny_experiment, "later"), StepCollector.add, []

    def add_deferred(collector, parts):
        collector._is_deferred = True
        add(collector, parts)
        unread.append(len(collector._unread))

    monkeypatch.setattr(StepCollector, "add", add_deferred)
    later = run_train(other, *overrides, "TRAIN.CHECKPOINT_STEPS", 2)
    assert unread == [1] * 7 and metrics_of(later) == metrics_of(folder)
    assert metrics_of(later)[0]["overflows"] == 1
    for name in ("final_state.pth", "final_state_ema.pth"):
        assert same(state_of(later / name), state_of(folder / name))


def test_train_fp16_permanent_overflow_raises(tiny_experiment, monkeypatch):
    class Never(Overflowing):
        def forward(self, outputs, targets):
            self.steps = 2
            return super().forward(outputs, targets)

    monkeypatch.setattr("poise.codecs.build_loss", lambda cfg: Never(0.0))
    with pytest.raises(
        PoiseError, match="AMP fp16: gradients are not finite even with a loss scale of 0.000"
    ):
        run_train(
            tiny_experiment, "AMP", "fp16", "TRAIN.BATCH_SIZE_PER_GPU", 1, "TRAIN.EVAL_INTERVAL", 9
        )


# torch.compile ------------------------------------------------------------------------------------


def test_compile_without_compiler_raises(tiny_experiment):
    """One line that names the key."""
    code = (
        "import sys; from poise import config; from poise.engine import device; import torch\nfrom"
        f" poise.errors import run_tool; cfg = config.load({str(tiny_experiment)!r}, ['COMPILE',"
        " 'True'])\nrun_tool(lambda: device.compile_network(cfg, torch.nn.Identity(),"
        " [torch.device('cpu')]))"
    )
    environment = {
        **os.environ,
        "CXX": "/nowhere/g++",
        "PYTHONPATH": str(ROOT / "lib"),
        "TORCHINDUCTOR_CACHE_DIR": str(tiny_experiment.parent / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert (
        done.stderr.startswith("error: COMPILE True: torch.compile does not work here (")
        and "install them or leave COMPILE False" in done.stderr
    )


def test_compile_several_devices_raises(tiny_experiment):
    with pytest.raises(
        ConfigError,
        match=(
            "COMPILE True: unsupported for 2 GPUS in one process; start one process per GPU with"
            " torchrun"
        ),
    ):
        device.compile_network(
            config.load(tiny_experiment, ["COMPILE", "True"]),
            nn.Identity(),
            [torch.device("cuda", 0), torch.device("cuda", 1)],
        )


@pytest.mark.slow
def test_train_compiled_is_close_to_plain(tiny_experiment):
    """Trains as the plain one does, but for rounding, and its files have the plain names."""
    plain = state_of(run_train(tiny_experiment, "TRAIN.END_EPOCH", 1) / "final_state.pth")
    before = metrics_of(folder_of(tiny_experiment))[0]
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1, "COMPILE", True)
    assert metrics_of(folder)[0]["train_loss"] == pytest.approx(before["train_loss"], rel=1e-3)
    found = state_of(folder / "final_state.pth")
    assert found.keys() == plain.keys() and not same(found, plain)


# the average --------------------------------------------------------------------------------------


def test_ema_update_equals_hand_figures():
    """By hand, its beginning included; batch norm's figures too."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = ModelEma(model, 0.5)
    expected = None
    for step in range(6):
        for tensor in model.state_dict().values():
            tensor.copy_(torch.full_like(tensor, step + 1))
        average.update(model)
        share = min(0.5, (1 + step) / (10 + step))
        expected = 1.0 if expected is None else share * expected + (1 - share) * (step + 1)
        for name, tensor in average.network.state_dict().items():
            if tensor.is_floating_point():
                assert torch.allclose(tensor, torch.tensor(expected)), (name, step)
    other = ModelEma(copy.deepcopy(model), 0.5)
    other.load_state_dict(average.state_dict())
    for one in (average, other):
        one.update(model)
    assert (
        same(average.state_dict()["state_dict"], other.state_dict()["state_dict"])
        and average.state_dict()["updates"] == other.state_dict()["updates"] == 7
    )


def test_train_ema_is_saved_and_resumed(tiny_experiment):
    """Evaluate and save the average without a change of the weights; resume to an equal one."""
    plain = state_of(run_train(tiny_experiment) / "final_state.pth")
    folder = run_train(tiny_experiment, "TRAIN.EMA_DECAY", 0.9)
    assert same(state_of(folder / "final_state.pth"), plain)
    of_average = state_of(folder / "final_state_ema.pth")
    assert of_average.keys() == plain.keys() and not torch.equal(
        of_average["final_layer.weight"], plain["final_layer.weight"]
    )
    lines = metrics_of(folder)
    assert all(
        {"AP", "ema_AP", "valid_loss", "ema_valid_loss"} <= line.keys()
        and line["ema_valid_loss"] != line["valid_loss"]
        for line in lines
    )
    assert (folder / "model_best_ema.pth").exists() and len(
        list((folder / "ema" / "results").iterdir())
    ) == 1
    run_train(tiny_experiment, "TRAIN.EMA_DECAY", 0.9, "TRAIN.END_EPOCH", 1, "RUN_NAME", "parts")
    folder = run_train(
        tiny_experiment, "TRAIN.EMA_DECAY", 0.9, "AUTO_RESUME", True, "RUN_NAME", "parts"
    )
    assert folder.name == "parts" and same(state_of(folder / "final_state_ema.pth"), of_average)
    assert "of the average" in (folder / "train.log").read_text()


def test_resume_ema_without_average_starts_from_weights(tiny_experiment):
    """Start the average from the weights if the checkpoint has none, and log this."""
    folder = run_train(tiny_experiment, "TRAIN.END_EPOCH", 1, "TRAIN.LR_FACTOR", 1e-9)
    begin = state_of(folder / "final_state.pth")
    run_train(tiny_experiment, "AUTO_RESUME", True, "TRAIN.EMA_DECAY", 0.9, "TRAIN.LR_FACTOR", 1e-9)
    end = state_of(folder / "final_state_ema.pth")
    assert "has no moving average of the weights" in (folder / "train.log").read_text()
    assert all(
        torch.allclose(begin[name], end[name], atol=1e-8)
        for name in begin
        if name.endswith("conv1.weight")
    )


@pytest.mark.parametrize(
    "where, text",
    [
        ("buffer", "a running statistic of batch norm is not finite"),
        ("average", "a moving average of the weights is not finite"),
    ],
)
def test_train_nan_buffer_or_average_raises(tiny_experiment, monkeypatch, where, text):
    """Nothing of them is saved."""
    train_step = train.train_step

    def spoiling(cfg, state, *rest):
        found = train_step(cfg, state, *rest)
        if state.progress.step == 6:
            network = state.model if where == "buffer" else state.ema.network
            (network.bn1.running_var if where == "buffer" else network.conv1.weight).data.fill_(
                math.inf
            )
        return found

    monkeypatch.setattr(train, "train_step", spoiling)
    with pytest.raises(
        PoiseError,
        match=f"epoch 0: {text} after the last step; lower TRAIN.LR; no checkpoint was written yet",
    ):
        run_train(tiny_experiment, "TRAIN.EMA_DECAY", 0.9)
    assert not list(folder_of(tiny_experiment).glob("*.pth"))


# early end ----------------------------------------------------------------------------------------


def ended_after(path, monkeypatch, values, *overrides):
    given = iter(values)
    monkeypatch.setattr(train, "evaluate_predictions", lambda *_: ({"AP": 0.0}, next(given)))
    folder = run_train(
        path, "TRAIN.END_EPOCH", len(values), "TRAIN.BATCH_SIZE_PER_GPU", 50, *overrides
    )
    return len(metrics_of(folder)), folder


@pytest.mark.parametrize(
    "values, patience, epochs",
    [
        ([0.5, 0.4, 0.3, 0.2], 0, 4),
        ([0.5, 0.4, 0.3, 0.2], 2, 3),
        ([0.5, 0.4, 0.6, 0.5, 0.6, 0.1], 2, 5),
        ([0.0, 0.0, 0.0, 0.0], 2, 3),
        ([math.nan, math.nan, math.nan], 1, 1),
    ],
)
def test_train_patience_stops_early(tiny_experiment, monkeypatch, values, patience, epochs):
    done, folder = ended_after(tiny_experiment, monkeypatch, values, "TRAIN.PATIENCE", patience)
    assert done == epochs and (folder / "final_state.pth").exists()
    assert ("stopped early: no better score in" in (folder / "train.log").read_text()) == (
        epochs < len(values)
    )
    if epochs < len(values):  # gone on with, it has nothing to do
        monkeypatch.setattr(train, "train_one_epoch", lambda *_: pytest.fail("trained on"))
        run_train(
            tiny_experiment,
            "TRAIN.PATIENCE",
            patience,
            "TRAIN.END_EPOCH",
            len(values),
            "AUTO_RESUME",
            True,
            "TRAIN.BATCH_SIZE_PER_GPU",
            50,
        )


def test_resume_patience_counts_earlier_evaluations(tiny_experiment, monkeypatch):
    """The tests before count."""
    ended_after(tiny_experiment, monkeypatch, [0.5, 0.4], "TRAIN.PATIENCE", 2)
    given = iter([0.3, 0.2])
    monkeypatch.setattr(train, "evaluate_predictions", lambda *_: ({"AP": 0.0}, next(given)))
    folder = run_train(
        tiny_experiment,
        "TRAIN.PATIENCE",
        2,
        "TRAIN.END_EPOCH",
        4,
        "AUTO_RESUME",
        True,
        "TRAIN.BATCH_SIZE_PER_GPU",
        50,
    )
    assert len(metrics_of(folder)) == 3


def test_resume_patience_counts_interrupted_evaluation_once(tiny_experiment, monkeypatch):
    """By a signal in the test of the average: the weights' test before it has not counted, and
    counts when it is done again.
    """
    # of the weights and of their average in turns
    values, asked, tests = [0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.4, 0.0], [], [0]
    scores = {number: value for number, value in enumerate(values)}
    installed, predict = signals.GracefulStop, train.predict

    def predicting(*arguments):
        if tests[0] == 3:
            asked[-1].stop_requested = True
        return predict(*arguments)

    def scored(*_):
        tests[0] += 1
        return {"AP": 0.0}, scores[tests[0] - 1]

    overrides = (
        "TRAIN.PATIENCE",
        1,
        "TRAIN.EMA_DECAY",
        0.9,
        "TRAIN.END_EPOCH",
        4,
        "TRAIN.BATCH_SIZE_PER_GPU",
        50,
    )
    with monkeypatch.context() as patch:
        patch.setattr(train, "GracefulStop", lambda: asked.append(installed()) or asked[-1])
        patch.setattr(train, "predict", predicting)
        patch.setattr(train, "evaluate_predictions", scored)
        with pytest.raises(signals.RunStoppedError, match="stopped at epoch 1, step 1"):
            run_train(tiny_experiment, *overrides)
    folder = folder_of(tiny_experiment)
    assert state_of(folder / "checkpoint.pth")["best"] == {"score": 0.1, "epoch": 0} and state_of(
        folder / "checkpoint.pth"
    )["average_best"] == (0.0, 0, 0)
    tests[0] = 2
    monkeypatch.setattr(train, "evaluate_predictions", scored)
    run_train(tiny_experiment, *overrides, "AUTO_RESUME", True)
    assert len(metrics_of(folder)) == 4 and state_of(folder / "checkpoint.pth")["best"] == {
        "score": 0.4,
        "epoch": 3,
    }
    assert "stopped early" not in (folder / "train.log").read_text()


def test_train_patience_improving_average_continues(tiny_experiment, monkeypatch):
    """Scores in turns: of the weights, of their average."""
    values = [0.5, 0.1, 0.4, 0.2, 0.3, 0.3, 0.2, 0.2]
    given = iter(values)
    monkeypatch.setattr(train, "evaluate_predictions", lambda *_: ({"AP": 0.0}, next(given)))
    folder = run_train(
        tiny_experiment,
        "TRAIN.PATIENCE",
        1,
        "TRAIN.EMA_DECAY",
        0.9,
        "TRAIN.END_EPOCH",
        4,
        "TRAIN.BATCH_SIZE_PER_GPU",
        50,
    )
    assert len(metrics_of(folder)) == 4
    fresh = state.Progress(0)
    fresh.load_state_dict({**state_of(folder / "checkpoint.pth"), "path": folder})
    assert (fresh.ema_score, fresh.ema_epoch, fresh.evals_without_improvement) == (0.3, 2, 1)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("AMP", "fp8", "AMP must be '', 'bf16' or 'fp16'"),
        ("TRAIN.ACCUMULATE", 0, "TRAIN.ACCUMULATE must be from 1"),
        ("TRAIN.EMA_DECAY", 1.0, "TRAIN.EMA_DECAY must be from 0 to below 1"),
        ("TRAIN.PATIENCE", -1, "TRAIN.PATIENCE must be from 0"),
        ("TRAIN.CHECKPOINTS_KEPT", 0, "TRAIN.CHECKPOINTS_KEPT must be from 1"),
        ("TRAIN.CHECKPOINT_MINUTES", -1, "TRAIN.CHECKPOINT_MINUTES must be 0 or more"),
        ("TRAIN.CHECKPOINT_STEPS", -1, "TRAIN.CHECKPOINT_STEPS must be from 0"),
        ("TRAIN.LR_SCHEDULE", "sine", "TRAIN.LR_SCHEDULE must be one of"),
    ],
)
def test_load_invalid_training_values_raise(tiny_experiment, key, value, message):
    with pytest.raises(ConfigError, match=message):
        config.load(tiny_experiment, [key, str(value)])
