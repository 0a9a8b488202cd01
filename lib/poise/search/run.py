"""Search one experiment's cells.

Read from top to bottom: run, build, search_epochs, search_one_epoch, search_step, evaluate_network.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from yacs.config import CfgNode

from poise.datasets import build_loader, load_split
from poise.datasets.loader import BatchLoader
from poise.datasets.validation.findings import Findings
from poise.datasets.validation.run import check_scorable
from poise.engine import device as devices
from poise.engine import logger, run_folder
from poise.engine.checkpointer import Checkpointer
from poise.engine.device import CpuThreads
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext
from poise.engine.evaluate import evaluate_predictions
from poise.engine.memory import resource_errors
from poise.engine.micro_batches import smallest_micro_batch
from poise.engine.predict import predict
from poise.engine.resuming import check_finished
from poise.engine.run_logger import TestResult
from poise.engine.signals import GracefulStop
from poise.engine.sync_bn import check_single_sample
from poise.errors import ConfigError, DataError, PoiseError
from poise.evaluation.evaluators import build_evaluator
from poise.models.posenas.genotypes import Genotype, write_genotype
from poise.search import split
from poise.search.architecture import probabilities
from poise.search.bilevel import BilevelOptimizer
from poise.search.drawing import write_drawing
from poise.search.search_logger import LAST, PICTURE, SearchLogger, plain_config
from poise.search.space import Space
from poise.search.state import NAME, SearchProgress, SearchState, find_checkpoint
from poise.search.supernet import build as build_network
from poise.search.supernet import network_parameters
from poise.search.trial import Cost, measure, search_memory_hint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What a search is built of before anything is written.

    test_loader is None where SEARCH.EVAL_INTERVAL is 0.
    """

    state: SearchState
    weights_loader: BatchLoader
    architecture_loader: BatchLoader
    test_loader: BatchLoader | None
    halves: split.Split
    cost: Cost
    threads: CpuThreads


def run(
    cfg: CfgNode, cfg_path: str, command: list[str], processes: DistributedContext = SINGLE_PROCESS
) -> Genotype:
    """Search as SEARCH.* says, resuming from the run folder's checkpoint with AUTO_RESUME.

    Writes into OUTPUT_DIR/<dataset>/<model>/<experiment>: genotype.json, genotype_best.json (best
    test score), cells.svg, split.json, search.log, search.jsonl, search.pth, config.yaml, results/;
    and a TensorBoard folder as training does. A finished search is left as it is. Returns the
    genotype of the last epoch.

    Raises:
        RunStoppedError: after Ctrl-C, with a checkpoint written.
        PoiseError: for what cannot be used.
    """
    logger.start_console(processes.rank)
    if processes.world_size > 1:
        raise ConfigError("a search is one process; start it without torchrun")
    with resource_errors("search", search_memory_hint(cfg)), run_folder.Lock() as lock:
        resumes = partial(_resumes_in, cfg)
        name = run_folder.choose_run_name(cfg, cfg_path, run_folder.SEARCH, resumes, lock)
        cfg = run_folder.with_run_name(cfg, name)
        setup = build(cfg, cfg_path)
        records = SearchLogger(cfg, cfg_path, setup.state, setup.halves)
        progress = setup.state.progress
        if not _is_finished(cfg, progress, records.folder):
            run_folder.create(cfg, cfg_path, run_folder.SEARCH, lock)
            _search(cfg, cfg_path, command, setup, records)
        return cast(Genotype, progress.genotype)  # the last epoch has one


def _resumes_in(cfg: CfgNode, folder: Path) -> bool:
    """Return whether the run continues the search of this folder."""
    return cfg.AUTO_RESUME and (folder / NAME).exists()


def build(cfg: CfgNode, cfg_path: str) -> Setup:
    """Build all that a search needs, in the state of its checkpoint if there is one.

    Writes nothing.
    """
    loading, space = _as_training(cfg), Space.from_config(cfg)
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    device, *others = devices.choose_devices(cfg)
    if others:
        log.warning("a search uses one device: %s", device)
    saved = find_checkpoint(cfg, cfg_path, folder)
    table, images = load_split(loading, train=True)
    if saved:
        halves = split.Split.read(folder / split.NAME, cfg, table)
    else:
        halves = split.Split.draw(cfg, table)
    test_set = _read_test_set(loading)
    on_gpu = device.type == "cuda"
    loaders = [
        build_loader(loading, part, images, train=True, on_gpu=on_gpu)
        for part in halves.tables(table)
    ]
    test_loader = build_loader(loading, *test_set, train=False, on_gpu=on_gpu) if test_set else None
    devices.configure_cudnn(cfg, [device])
    threads = CpuThreads(cfg.CPU_THREADS, device, saved["threads"] if saved else None)

    log.info(
        "split: %d images with %d persons for the weights, %d with %d for the architecture",
        len(halves.weights),
        len(loaders[0].dataset),
        len(halves.architecture),
        len(loaders[1].dataset),
    )
    cost = measure(cfg, space, _first_batch(loaders[0]), device)
    torch.manual_seed(cfg.SEARCH.SEED)
    network = build_network(cfg, space)
    devices.to_device(network, [device], cfg.CHANNELS_LAST)
    state = SearchState(BilevelOptimizer(cfg, network, device), space, SearchProgress())
    for loader in loaders:
        if smallest_micro_batch(loader.batch_sampler, loader.batch_sampler.num_batches) == 1:
            name = f"SEARCH.BATCH_SIZE {cfg.SEARCH.BATCH_SIZE}"
            check_single_sample(network, cfg.MODEL.IMAGE_SIZE, name)
    if saved:
        state.load_state_dict(saved, loaders[0].batch_sampler)
    return Setup(state, loaders[0], loaders[1], test_loader, halves, cost, threads)


def _read_test_set(cfg: CfgNode) -> tuple | None:
    """Return the test set's table and images; None where SEARCH.EVAL_INTERVAL is 0."""
    if not cfg.SEARCH.EVAL_INTERVAL:
        return None
    table, images = load_split(cfg, train=False)
    evaluator = build_evaluator(cfg)
    evaluator.check(table)
    findings = Findings(f"test set {cfg.DATASET.TEST_SET}")
    check_scorable(evaluator, findings)
    for finding in findings.items:
        log.warning("%s", finding)
    return table, images


def _as_training(cfg: CfgNode) -> CfgNode:
    """Return the configuration with the search's seed and batch in the keys of a training."""
    loading = cfg.clone()
    loading.defrost()
    loading.SEED, loading.TRAIN.BATCH_SIZE_PER_GPU = cfg.SEARCH.SEED, cfg.SEARCH.BATCH_SIZE
    loading.freeze()
    return loading


def _first_batch(loader: BatchLoader) -> dict[str, torch.Tensor]:
    """Return the first batch of the first epoch, made in this process."""
    loader.batch_sampler.set_epoch(0)
    batch = loader.dataset.__getitems__(next(iter(loader.batch_sampler)))
    if isinstance(batch, DataError):
        raise batch
    return batch


def _is_finished(cfg: CfgNode, progress: SearchProgress, folder: Path) -> bool:
    """Return whether nothing is left to search, and log it."""
    if progress.genotype is None or progress.epoch < cfg.SEARCH.EPOCHS:
        return False
    check_finished(progress.last_checkpoint, progress.changed, progress.epoch > cfg.SEARCH.EPOCHS)
    log.info(
        "%s: this search is finished, with the settings of its config.yaml; nothing is searched"
        " or written; a later SEARCH.EPOCHS continues it, another RUN_NAME starts a new search",
        folder,
    )
    return True


def _search(
    cfg: CfgNode, cfg_path: str, command: list[str], setup: Setup, records: SearchLogger
) -> None:
    """Search with a log in the run folder, which exists."""
    progress = setup.state.progress
    logger.add_file(records.folder / records.log_name)
    limits = resource_errors(
        "search", search_memory_hint(cfg), progress, run_folder.resume_hint(cfg.RUN_NAME)
    )
    with logger.errors_in_file():
        logger.log_environment(_as_training(cfg), command)
        records.start()
        _log_summary(cfg, setup)
        with closing(records), GracefulStop() as interrupt, limits:
            checkpointer = Checkpointer(cfg, cfg_path, records, interrupt)
            search_epochs(cfg, setup, records, checkpointer)
        log.info(
            "done: %s and %s in %s; train what was found with MODEL.GENOTYPE %s",
            LAST,
            PICTURE,
            records.folder,
            records.folder / LAST,
        )


def _count_steps(cfg: CfgNode, setup: Setup, epoch: int) -> int:
    """Return the steps of an epoch: the weights' batches.

    Once both are trained in turns, no more than the shorter loader has, as in PoseNAS.
    """
    if epoch < cfg.SEARCH.INIT_EPOCHS:
        return len(setup.weights_loader)
    return min(len(setup.weights_loader), len(setup.architecture_loader))


def _log_summary(cfg: CfgNode, setup: Setup) -> None:
    """Log what is searched and how long it takes."""
    s, state, progress, cost = cfg.SEARCH, setup.state, setup.state.progress, setup.cost
    parameters = sum(
        weight.numel() for weight in network_parameters(state.bilevel.network).values()
    )
    log.info(
        "search of %s: %d architecture values, a network of %.2f million parameters, %d samples a"
        " step",
        s.MODE,
        state.space.num_alphas,
        parameters / 1e6,
        s.BATCH_SIZE,
    )
    seconds = 0.0
    for epoch in range(progress.epoch, s.EPOCHS):
        step_seconds = cost.weights_seconds
        if epoch >= s.INIT_EPOCHS:
            step_seconds += cost.architecture_seconds
        done = progress.step if epoch == progress.epoch else 0
        seconds += step_seconds * (_count_steps(cfg, setup, epoch) - done)
    log.info("first batch: %s", cost)
    log.info(
        "epochs %d to %d, architecture from epoch %d on; %d and %d steps an epoch; about %s at this"
        " pace, tests not counted",
        progress.epoch,
        s.EPOCHS - 1,
        s.INIT_EPOCHS,
        _count_steps(cfg, setup, 0),
        _count_steps(cfg, setup, s.EPOCHS - 1),
        logger.format_duration(seconds),
    )


def search_epochs(
    cfg: CfgNode, setup: Setup, records: SearchLogger, checkpointer: Checkpointer
) -> None:
    """Search and test the epochs that are left."""
    state, progress, test_loader = setup.state, setup.state.progress, setup.test_loader
    while progress.epoch < cfg.SEARCH.EPOCHS:
        epoch, is_warm_up = progress.epoch, progress.epoch < cfg.SEARCH.INIT_EPOCHS
        search_one_epoch(cfg, setup, records, checkpointer)
        if checkpointer.stop_requested():
            checkpointer.save_and_stop(state)
        values, is_best = records.log_epoch(), False
        if test_loader and (
            (epoch + 1) % cfg.SEARCH.EVAL_INTERVAL == 0 or epoch + 1 == cfg.SEARCH.EPOCHS
        ):
            test = evaluate_network(cfg, state, test_loader, records, checkpointer)
            values |= test.values
            # of equal scores the later counts, as in training
            is_best = not is_warm_up and test.score >= progress.best_score
            if is_best:
                progress.best_score, progress.best_epoch = test.score, epoch
        if is_warm_up:
            records.write_warm_up(values)
        else:
            found = probabilities(state.bilevel.network.architecture)
            progress.genotype = records.write_epoch(values, found, is_best)
        # last: a search that is killed before this does the epoch again and writes the rest again
        progress.start_epoch(epoch + 1)
        checkpointer.save(state)


def search_one_epoch(
    cfg: CfgNode, setup: Setup, records: SearchLogger, checkpointer: Checkpointer
) -> None:
    """Search the epoch from its next step on; return early, between two steps, to stop.

    A step trains the weights and, after the warm-up epochs, the architecture values.
    """
    state, progress = setup.state, setup.state.progress
    steps = _count_steps(cfg, setup, progress.epoch)
    for loader in (setup.weights_loader, setup.architecture_loader):
        loader.batch_sampler.set_epoch(progress.epoch, progress.step)
    others: Iterable = setup.architecture_loader
    if progress.epoch < cfg.SEARCH.INIT_EPOCHS:
        others = itertools.repeat(None)
    begin = time.perf_counter()
    with records.progress_bar(steps) as bar:
        for batches in zip(itertools.islice(setup.weights_loader, steps - progress.step), others):
            data_seconds = time.perf_counter() - begin
            search_step(cfg, state, *batches)
            progress.step += 1
            seconds = time.perf_counter() - begin
            progress.add_time(seconds, data_seconds)
            bar.update()
            records.log_step(steps, seconds, data_seconds)
            if checkpointer.stop_requested():
                return
            setup.threads.retune()
            begin = time.perf_counter()


def search_step(
    cfg: CfgNode,
    state: SearchState,
    weights_batch: dict[str, torch.Tensor],
    architecture_batch: dict[str, torch.Tensor] | None,
) -> None:
    """Train the weights on a batch and the architecture values on another, in SEARCH.ORDER."""
    turns, progress = state.bilevel, state.progress
    batches = {"weights": weights_batch, "architecture": architecture_batch}
    for kind in sorted(batches, reverse=cfg.SEARCH.ORDER == "weights"):
        batch = batches[kind]
        if batch is None:
            continue
        try:
            if kind == "weights":
                metrics = turns.weights_step(batch, progress.epoch)
            else:
                metrics = turns.architecture_step(batch)
        except PoiseError as error:
            raise PoiseError(f"epoch {progress.epoch}, step {progress.step}: {error}") from None
        progress.add(kind, metrics, len(batch["images"]))


def evaluate_network(
    cfg: CfgNode,
    state: SearchState,
    loader: BatchLoader,
    records: SearchLogger,
    checkpointer: Checkpointer,
) -> TestResult:
    """Test the search's network, with all candidates in it, on the test set."""
    turns = state.bilevel
    with checkpointer.stop_on_interrupt(state):
        found = predict(
            cfg, turns.network, loader, turns.device, turns.codec, checkpointer.stop_requested
        )
    metrics, deciding = evaluate_predictions(cfg, loader.dataset.table, found, records.folder)
    return TestResult(found, metrics, deciding)


def write_random(cfg: CfgNode, cfg_path: str, seeds: list[int]) -> None:
    """Write random_<seed>.json, a genotype drawn from the search's space, and its picture for
    each seed into the run folder.
    """
    logger.start_console()
    space, folder = Space.from_config(cfg), logger.make_run_folder(cfg, cfg_path)
    for seed in seeds:
        drawn = space.random(seed)
        genotype = space.genotype(
            {kind: drawn.cells()[kind] for kind in space.operations},
            {**drawn.meta, "config": plain_config(cfg)},
        )
        write_genotype(folder / f"random_{seed}.json", genotype)
        write_drawing(folder / f"random_{seed}.svg", genotype, genotype.meta["source"])
        log.info("%s written", folder / f"random_{seed}.json")
