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
from poise.engine import device, logger, train
from poise.engine.distributed import ALONE, Processes, local_processes
from poise.engine.memory import machine_limits, peak_memory, training_advice
from poise.engine.predict import predict
from poise.errors import PoiseError
from poise.io import download

log = logging.getLogger(__name__)

STEPS, BATCHES = 2, 2  # of the training; of each process in a test


def run(cfg: CfgNode, cfg_path: str, processes: Processes = ALONE) -> None:
    """Build everything that the training would, take two steps and predict a few batches of the
    test set in each process; tell memory and time.

    Raises PoiseError for what cannot be used, as the training would, also for a loss that is not
    finite.
    """
    with machine_limits("training", training_advice(cfg)):
        _run(cfg, cfg_path, processes)


def _run(cfg: CfgNode, cfg_path: str, processes: Processes) -> None:
    logger.start_console(processes.rank)
    training = train.build(_writing_nothing(cfg), cfg_path, processes)
    if cfg.MODEL.INIT_WEIGHTS and download.is_url(cfg.MODEL.PRETRAINED):
        log.info(
            "MODEL.PRETRAINED is not fetched by a dry run, which takes the same memory and time"
            " with random weights"
        )
    where, loader, schedule = training.device, training.loader, training.schedule
    log.info("schedule: %s", schedule)
    left = max(
        schedule.end - training.progress.epoch * schedule.steps_per_epoch - training.progress.step,
        0,
    )
    epochs = range(training.progress.epoch, schedule.epochs)
    if not epochs or train.stale(training):
        log.info(
            "nothing is left of this run: %s; nothing was written",
            "it has ended early (TRAIN.PATIENCE)" if epochs else "all its epochs are done",
        )
        return
    train.wrap(training)
    tests = sum(
        (epoch + 1) % cfg.TRAIN.EVAL_INTERVAL == 0 or epoch + 1 == schedule.epochs
        for epoch in epochs
    ) * (2 if training.average else 1)

    training.progress.begin(training.progress.epoch)
    training.model.train()
    loader.batches.begin(training.progress.epoch)
    seconds, begin = [], time.perf_counter()
    for batch in itertools.islice(loader, STEPS):
        waited = time.perf_counter() - begin
        figures, _ = train.train_step(training, training.codec, batch, lambda: None)
        # waits for a GPU too
        loss = sum(float(part.loss) * part.own for part in figures) / max(
            sum(part.own for part in figures), 1
        )
        _, samples = loader.batches.share(training.progress.step)
        training.progress.step += 1
        seconds.append(time.perf_counter() - begin)
        log.info(
            "step %d: %.3f s (%.3f waiting for data), %.1f images/s, loss %.6f",
            training.progress.step,
            seconds[-1],
            waited,
            samples / seconds[-1],
            loss,
        )
        if processes.any(not np.isfinite(loss)):
            raise PoiseError(
                f"dry run, step {training.progress.step}: the loss is {loss}; lower TRAIN.LR"
            )
        begin = time.perf_counter()
    trained = peak_memory(where)
    start, test_seconds, batches = _test_seconds(training)
    memory = processes.gather(peak_memory(where))
    if not processes.main:
        return
    kind = (
        f"of {torch.cuda.get_device_name(where)}"
        if where.type == "cuda"
        else "of the process, besides its workers"
    )
    if None not in memory:
        most = f", the largest of {processes.world} processes" if processes.world > 1 else ""
        log.info(
            "memory %s: %.2f GB at the peak of training, %.2f GB with the test%s",
            kind,
            trained / 1e9,
            max(memory) / 1e9,
            most,
        )
    total = left * seconds[-1] + tests * (start + batches * test_seconds)
    log.info(
        "the whole run: %d steps of %.3f s and %d tests of %d batches of %.3f s after %.3f s, about"
        " %s at the pace of the last step, scoring and checkpoints not counted; nothing was"
        " written",
        left,
        seconds[-1],
        tests,
        batches,
        test_seconds,
        start,
        logger.span(total),
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


def _test_seconds(training: train.Training) -> tuple[float, float, int]:
    """(seconds until a test's first batch is there, seconds of a batch of each process, batches
    that each has in a whole test).

    Of the second test of a few batches, as most of a training's are: the worker processes live on
    and PyTorch has warmed up.
    """
    cfg, whole = training.cfg, training.test_loader.batches
    table, processes = training.test_loader.crops.table, training.processes
    few = table.select(
        np.arange(len(table)) < BATCHES * whole.batch_size * whole.world,
        "not in the batches of the dry run",
    )
    loader = build_loader(
        cfg,
        few,
        training.test_loader.crops.images,
        train=False,
        devices=len(training.devices),
        on_gpu=training.device.type == "cuda",
        rank=processes.rank,
        world=processes.world,
        local_world=local_processes(),
    )
    network = training.average.network if training.average else training.model
    for _ in range(2):
        begins: list[float] = []

        def mark(begins: list[float] = begins) -> bool:
            """Asked when a batch is there, before it is predicted."""
            begins.append(time.perf_counter())
            return False

        begin = time.perf_counter()
        predict(
            cfg,
            device.for_testing(cfg, network, training.devices),
            loader,
            training.device,
            training.codec,
            mark,
            processes,
        )
        end = time.perf_counter()
    # of more processes than batches one may have none, but never rank 0, which tells
    marks = [*begins, end]
    return (
        marks[0] - begin,
        (marks[-1] - marks[0]) / max(len(begins), 1),
        -(-whole.count // whole.world),
    )
