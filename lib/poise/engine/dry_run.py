"""What a training will cost, from its first steps: tools/train.py --dry-run. Nothing is written,
and nothing is fetched.
"""

from __future__ import annotations

import itertools
import logging
import time

import numpy as np
import torch
from yacs.config import CfgNode

from poise.datasets import build_loader
from poise.datasets.sampler import Shard
from poise.engine import device, logger, train
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext, local_world_size
from poise.engine.memory import peak_memory, resource_errors, training_memory_hint
from poise.engine.predict import predict
from poise.engine.state import TrainState
from poise.errors import PoiseError
from poise.io import download

log = logging.getLogger(__name__)

STEPS, BATCHES = 2, 2  # of the training; of each process in a test


def run(cfg: CfgNode, cfg_path: str, processes: DistributedContext = SINGLE_PROCESS) -> None:
    """Build everything that the training would, take two steps and predict a few batches of the
    test set in each process; tell memory and time.

    Raises PoiseError for what cannot be used, as the training would, also for a loss that is not
    finite.
    """
    with resource_errors("training", training_memory_hint(cfg)):
        _run(cfg, cfg_path, processes)


def _run(cfg: CfgNode, cfg_path: str, processes: DistributedContext) -> None:
    logger.start_console(processes.rank)
    setup = train.build(_writing_nothing(cfg), cfg_path, processes)
    state, progress, schedule = setup.state, setup.state.progress, setup.state.schedule
    if cfg.MODEL.INIT_WEIGHTS and download.is_url(cfg.MODEL.PRETRAINED):
        log.info(
            "MODEL.PRETRAINED is not fetched by a dry run, which takes the same memory and time"
            " with random weights"
        )
    log.info("schedule: %s", schedule)
    if not state.has_epochs_left(cfg.TRAIN.PATIENCE):
        ended_early = progress.epoch < schedule.epochs
        log.info(
            "nothing is left to do in this run: %s; nothing was written",
            "it has stopped early (TRAIN.PATIENCE)" if ended_early else "all its epochs are done",
        )
        return
    steps = max(schedule.total_steps - state.global_step, 0)
    tests = _count_tests(cfg, state)
    train.setup_ddp_and_compile(cfg, state, setup.devices, processes)
    seconds = _step_seconds(cfg, setup, processes)
    trained = peak_memory(state.device)
    start, test_seconds, batches = _test_seconds(cfg, setup, processes)
    usages = processes.gather(peak_memory(state.device))
    if usages is None:
        return
    _log_memory(state.device, trained, usages)
    total = steps * seconds + tests * (start + batches * test_seconds)
    log.info(
        "the whole run: %d steps of %.3f s and %d tests of %d batches of %.3f s after %.3f s, about"
        " %s at the pace of the last step, scoring and checkpoints not counted; nothing was"
        " written",
        steps,
        seconds,
        tests,
        batches,
        test_seconds,
        start,
        logger.format_duration(total),
    )


def _count_tests(cfg: CfgNode, state: TrainState) -> int:
    """Return the tests that are left, those of the weights' average included."""
    epochs = state.schedule.epochs
    tested = [
        epoch
        for epoch in range(state.progress.epoch, epochs)
        if (epoch + 1) % cfg.TRAIN.EVAL_INTERVAL == 0 or epoch + 1 == epochs
    ]
    return len(tested) * len(state.networks)


def _step_seconds(cfg: CfgNode, setup: train.Setup, processes: DistributedContext) -> float:
    """Take a few steps of the epoch's beginning; return the seconds of the last one."""
    state, progress, batches = setup.state, setup.state.progress, setup.loader.batch_sampler
    seconds = 0.0
    progress.start_epoch(progress.epoch)
    state.model.train()
    batches.set_epoch(progress.epoch)
    begin = time.perf_counter()
    for batch in itertools.islice(setup.loader, STEPS):
        data_seconds = time.perf_counter() - begin
        metrics, _ = train.train_step(cfg, state, setup.codec, batch, batches)
        # waits for a GPU too
        loss = sum(float(part.loss) * part.samples for part in metrics)
        loss /= max(sum(part.samples for part in metrics), 1)
        _, samples = batches.local_and_global_size(progress.step)
        progress.step += 1
        seconds = time.perf_counter() - begin
        log.info(
            "step %d: %.3f s (%.3f waiting for data), %.1f images/s, loss %.6f",
            progress.step,
            seconds,
            data_seconds,
            samples / seconds,
            loss,
        )
        if processes.all_reduce_any(not np.isfinite(loss)):
            raise PoiseError(f"dry run, step {progress.step}: the loss is {loss}; lower TRAIN.LR")
        begin = time.perf_counter()
    return seconds


def _log_memory(device: torch.device, trained: int | None, usages: list[int | None]) -> None:
    """Log the peak of this process's training, and of the processes' training and test."""
    known = [usage for usage in usages if usage is not None]
    if trained is None or len(known) < len(usages):
        return
    kind = "of the process, besides its workers"
    if device.type == "cuda":
        kind = f"of {torch.cuda.get_device_name(device)}"
    log.info(
        "memory %s: %.2f GB at the peak of training, %.2f GB with the test%s",
        kind,
        trained / 1e9,
        max(known) / 1e9,
        f", the largest of {len(usages)} processes" if len(usages) > 1 else "",
    )


def _writing_nothing(cfg: CfgNode) -> CfgNode:
    """The configuration without the arrays that are kept of annotation files, and without
    weights that would have to be fetched.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.CACHE = False
    if download.is_url(cfg.MODEL.PRETRAINED):
        cfg.MODEL.PRETRAINED = ""
    cfg.freeze()
    return cfg


def _test_seconds(
    cfg: CfgNode, setup: train.Setup, processes: DistributedContext
) -> tuple[float, float, int]:
    """(seconds until a test's first batch is there, seconds of a batch of each process, batches
    that each has in a whole test).

    Of the second test of a few batches, as most of a training's are: the worker processes live on
    and PyTorch has warmed up.
    """
    whole, crops = setup.test_loader.batch_sampler, setup.test_loader.dataset
    table, where = crops.table, setup.devices[0]
    few = table.select(
        np.arange(len(table)) < BATCHES * whole.batch_size * whole.shard.world_size,
        "not in the batches of the dry run",
    )
    loader = build_loader(
        cfg,
        few,
        crops.images,
        train=False,
        devices=len(setup.devices),
        on_gpu=where.type == "cuda",
        shard=Shard(processes.rank, processes.world_size, local_world_size()),
    )
    network = setup.state.ema.network if setup.state.ema else setup.state.model
    for _ in range(2):
        clock = _BatchClock()
        begin = time.perf_counter()
        predict(
            cfg,
            device.prepare_for_inference(cfg, network, setup.devices),
            loader,
            where,
            setup.codec,
            clock,
            processes,
        )
        end = time.perf_counter()
    # of more processes than batches one may have none, but never rank 0, which logs
    times = [*clock.times, end]
    return (
        times[0] - begin,
        (times[-1] - times[0]) / max(len(clock.times), 1),
        -(-whole.num_batches // whole.shard.world_size),
    )


class _BatchClock:
    """Records when `predict` has a batch, before it is predicted: it then asks whether to stop."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self) -> bool:
        self.times.append(time.perf_counter())
        return False
