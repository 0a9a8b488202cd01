"""Train one experiment.

Read from top to bottom: run, build, train_epochs, train_one_epoch, train_step, evaluate_networks.
"""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from poise.codecs import build_codec
from poise.codecs.codec import Codec, map_output
from poise.config import data_path
from poise.datasets import build_loader, load_split
from poise.datasets.loader import BatchLoader
from poise.datasets.sampler import EpochBatchSampler, Shard
from poise.datasets.validation.run import log_quick_check
from poise.engine import checkpoint, device, logger, run_folder
from poise.engine.amp import LossScaler
from poise.engine.checkpointer import Checkpointer
from poise.engine.device import CpuThreads
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext, local_world_size
from poise.engine.ema import ModelEma
from poise.engine.evaluate import evaluate_predictions, format_primary_metric
from poise.engine.memory import resource_errors, training_memory_hint
from poise.engine.micro_batches import smallest_micro_batch, split_batch
from poise.engine.optim import Schedule, build_optimizer, set_learning_rate
from poise.engine.predict import predict
from poise.engine.resuming import check_finished, find_checkpoint, resumes_in
from poise.engine.run_logger import TestResult, TrainLogger
from poise.engine.signals import GracefulStop
from poise.engine.state import Progress, TrainState
from poise.engine.step_metrics import StepCollector, StepMetrics
from poise.engine.sync_bn import check_single_sample
from poise.engine.targets import encode_targets
from poise.evaluation.evaluators import build_evaluator
from poise.io.files import gc_disabled
from poise.models import build_model, weights
from poise.models.forward import autocast, normalize

log = logging.getLogger(__name__)

# the random numbers of one seed's steps do not meet those of the next one's
_STEPS_OF_A_SEED = 1_000_000_007


@dataclass(frozen=True)
class Setup:
    """What a training is built of before anything is written."""

    state: TrainState
    codec: Codec
    loader: BatchLoader
    test_loader: BatchLoader
    devices: list[torch.device]
    threads: CpuThreads


def run(
    cfg: CfgNode, cfg_path: str, command: list[str], processes: DistributedContext = SINGLE_PROCESS
) -> Path:
    """Train as the configuration says, resuming from a checkpoint where it asks for that.

    All `processes` call this. Writes the run folder and the TensorBoard folder of docs/design.md,
    section 3; returns the run folder, which no other run can use meanwhile. A finished run is left
    as it is.

    Raises:
        RunStoppedError: after Ctrl-C, with a checkpoint written.
        PoiseError: for what cannot be used.
    """
    logger.start_console(processes.rank)
    with resource_errors("training", training_memory_hint(cfg)), run_folder.Lock() as lock:
        restarted = processes.all_reduce_any(checkpoint.is_restarted())
        resumes = partial(resumes_in, cfg, cfg_path, restarted=restarted)
        name = processes.run_on_main(
            run_folder.choose_run_name, cfg, cfg_path, run_folder.TRAINING, resumes, lock
        )
        suffixed, cfg = name != cfg.RUN_NAME, run_folder.with_run_name(cfg, name)
        setup = build(cfg, cfg_path, processes)
        records = TrainLogger(cfg, cfg_path, setup.state, setup.loader, setup.codec, processes)
        if not processes.run_on_main(_is_finished, cfg, setup.state, records.folder):
            processes.run_on_main(run_folder.create, cfg, cfg_path, run_folder.TRAINING, lock)
            _train(cfg, cfg_path, command, setup, records, processes)
    if suffixed:
        log.info("test this run with RUN_NAME %s", name)
    return records.folder


@gc_disabled()
def build(cfg: CfgNode, cfg_path: str, processes: DistributedContext) -> Setup:
    """Build all that a training needs, in the state of its checkpoint if there is one.

    Writes nothing.
    """
    devices = device.choose_devices(cfg, processes)
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    restarted = processes.all_reduce_any(checkpoint.is_restarted())
    saved = processes.run_on_main(find_checkpoint, cfg, cfg_path, folder, restarted)
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    loader, test_loader = _build_loaders(cfg, devices, processes)
    # the others take rank 0's when they wrap the network
    if saved is None and cfg.MODEL.INIT_WEIGHTS and processes.is_main_process:
        weights.load_pretrained(
            model,
            data_path(cfg, cfg.MODEL.PRETRAINED),
            data_path(cfg, "models/pytorch/imagenet"),
            replace_head=cfg.MODEL.REPLACE_HEAD,
            rgb=cfg.DATASET.COLOR_RGB,
        )
    device.configure_cudnn(cfg, devices)
    threads = CpuThreads(cfg, devices[0], saved["threads"] if saved else None)
    model = device.to_device(model, devices, cfg.CHANNELS_LAST)
    optimizer = build_optimizer(cfg, model)
    codec = build_codec(cfg)
    network, batches = device.unwrap_model(model), loader.batch_sampler
    schedule = Schedule.from_config(cfg, len(loader), batches.batch_size)
    if not (cfg.SYNC_BN and processes.world_size > 1):
        _check_batch_norm(cfg, network, batches, schedule, len(devices))
    scaler = LossScaler(cfg, devices[0])
    ema = ModelEma(network, cfg.TRAIN.EMA_DECAY) if cfg.TRAIN.EMA_DECAY else None
    progress = Progress(cfg.TRAIN.BEGIN_EPOCH)
    state = TrainState(model, optimizer, schedule, scaler, ema, progress)
    if saved is not None:
        state.load_state_dict(saved, cfg, batches)
    return Setup(state, codec, loader, test_loader, devices, threads)


def _build_loaders(
    cfg: CfgNode, devices: list[torch.device], processes: DistributedContext
) -> tuple[BatchLoader, BatchLoader]:
    """Return the loaders of the training set and of the test set."""
    table, images = load_split(cfg, train=True)
    test_table, test_images = load_split(cfg, train=False)
    if processes.is_main_process:
        evaluator = build_evaluator(cfg)
        evaluator.check(test_table)
        log_quick_check(
            (table, images),
            (test_table, test_images),
            names=(cfg.DATASET.TRAIN_SET, cfg.DATASET.TEST_SET),
            evaluator=evaluator,
            seed=cfg.SEED,
        )
    keywords: dict[str, Any] = {
        "on_gpu": devices[0].type == "cuda",
        "shard": Shard(processes.rank, processes.world_size, local_world_size()),
    }
    count = len(devices)
    parts = count * cfg.TRAIN.ACCUMULATE
    return (
        build_loader(cfg, table, images, train=True, devices=parts, **keywords),
        build_loader(cfg, test_table, test_images, train=False, devices=count, **keywords),
    )


def _check_batch_norm(
    cfg: CfgNode, network: nn.Module, batches: EpochBatchSampler, schedule: Schedule, devices: int
) -> None:
    """Raise ConfigError where a batch norm would see one value per channel in some step."""
    if smallest_micro_batch(batches, schedule.total_steps, cfg.TRAIN.ACCUMULATE, devices) == 1:
        check_single_sample(
            network,
            cfg.MODEL.IMAGE_SIZE,
            f"TRAIN.BATCH_SIZE_PER_GPU {cfg.TRAIN.BATCH_SIZE_PER_GPU}",
        )


def _is_finished(cfg: CfgNode, state: TrainState, folder: Path) -> bool:
    """Return whether nothing is left to train or to write, and log it."""
    progress = state.progress
    if state.has_epochs_left(cfg):
        return False
    check_finished(
        progress.last_checkpoint, progress.changed, progress.epoch > state.schedule.epochs
    )
    for name, network in state.networks.items():
        written = not name or progress.ema_epoch >= 0
        if written and not checkpoint.file_has_weights(
            folder / _weight_file("final_state", name), network
        ):
            return False
    checkpoint.cleanup_stale(folder, None)
    log.info(
        "%s: this run is finished: best score %s at epoch %d of %d, with the settings of its"
        " config.yaml; nothing is trained or written; a later TRAIN.END_EPOCH continues it, another"
        " RUN_NAME starts a new run",
        folder,
        format_primary_metric(progress.best_score),
        progress.best_epoch,
        progress.epoch,
    )
    return True


def _weight_file(stem: str, name: str) -> str:
    """Return the file of a network's weights; name: "" or "ema", see TrainState.networks."""
    return f"{stem}_{name}.pth" if name else f"{stem}.pth"


def _train(
    cfg: CfgNode,
    cfg_path: str,
    command: list[str],
    setup: Setup,
    records: TrainLogger,
    processes: DistributedContext,
) -> None:
    """Train with a log in the run folder, which exists."""
    state = setup.state
    logger.add_file(records.folder / records.log_name, processes.rank)
    limits = resource_errors(
        "training", training_memory_hint(cfg), state.progress, run_folder.resume_hint(cfg)
    )
    with logger.errors_in_file(), limits:
        # rank 0's weights and buffers become those of all processes
        setup_ddp_and_compile(cfg, state, setup.devices, processes)
        records.start(command)
        with closing(records), GracefulStop() as interrupt:
            checkpointer = Checkpointer(cfg, cfg_path, records, interrupt, processes)
            train_epochs(cfg, setup, records, checkpointer, processes)


def setup_ddp_and_compile(
    cfg: CfgNode, state: TrainState, devices: list[torch.device], processes: DistributedContext
) -> None:
    """Connect the network with those of the other processes, and compile it with COMPILE."""
    if cfg.SYNC_BN and processes.world_size == 1:
        log.warning("SYNC_BN True has no effect without torchrun's processes")
    state.model = processes.wrap_ddp(state.model, cfg.MODEL.IMAGE_SIZE, cfg.SYNC_BN)
    device.compile_network(cfg, state.model, devices)


def train_epochs(
    cfg: CfgNode,
    setup: Setup,
    records: TrainLogger,
    checkpointer: Checkpointer,
    processes: DistributedContext,
) -> None:
    """Train and test the epochs that are left, and write the final weights."""
    state, progress = setup.state, setup.state.progress
    codec, test_loader = setup.codec, setup.test_loader
    while state.has_epochs_left(cfg):
        epoch = progress.epoch
        train_one_epoch(
            cfg, state, codec, setup.loader, setup.threads, records, checkpointer, processes
        )
        # before the weights are checked: a process whose loss was not finite has more to tell
        stop = processes.all_reduce_any(checkpointer.stop_requested())
        state.check_finite()
        if stop:
            checkpointer.save_and_stop(state)
        values, best = records.log_epoch(), []
        if (epoch + 1) % cfg.TRAIN.EVAL_INTERVAL == 0 or epoch + 1 == state.schedule.epochs:
            tests = evaluate_networks(
                cfg, state, codec, test_loader, setup.devices, records, checkpointer, processes
            )
            records.add_tests(values, tests, test_loader.dataset.table)
            best = progress.update_scores({name: test.score for name, test in tests.items()})
        records.restore_folder()
        for name in best:
            checkpointer.save_weights(_weight_file("model_best", name), state.networks[name])
            records.log_best(name, _weight_file("model_best", name))
        records.write_epoch(values)
        # last: a run that is killed before this trains the epoch again and writes the two again;
        # killed after it, the run has them
        progress.start_epoch(epoch + 1)
        checkpointer.save(state)
        checkpointer.raise_output_error(state)
    if state.should_stop_early(cfg):
        log.info(
            "ended early: the best score has not risen in %d tests (TRAIN.PATIENCE)",
            progress.evals_without_improvement,
        )
    for name, network in state.networks.items():
        checkpointer.save_weights(_weight_file("final_state", name), network)
    records.log_end()


def train_one_epoch(
    cfg: CfgNode,
    state: TrainState,
    codec: Codec,
    loader: BatchLoader,
    threads: CpuThreads,
    records: TrainLogger,
    checkpointer: Checkpointer,
    processes: DistributedContext,
) -> None:
    """Train the epoch from its next step on; return early, between two steps, to stop.

    Each of several processes trains on its share of a batch.
    """
    progress, interval = state.progress, cfg.TRAIN.CHECKPOINT_STEPS
    steps = state.schedule.num_steps(progress.epoch)
    collector = StepCollector(state, loader.dataset.table, checkpointer, processes)
    state.model.train()
    loader.batch_sampler.set_epoch(progress.epoch, progress.step)
    begin = time.perf_counter()
    with records.progress_bar() as bar:
        for batch in itertools.islice(loader, steps - progress.step):
            data_seconds = time.perf_counter() - begin
            _, samples = loader.batch_sampler.local_and_global_size(progress.step)
            metrics, debug_batch = train_step(cfg, state, codec, batch, loader.batch_sampler)
            progress.step += 1
            collector.add(metrics)  # adds them to progress.sums, on a GPU one step later
            if progress.step == steps:
                collector.sync()
            seconds = time.perf_counter() - begin
            progress.add_time(seconds, data_seconds)
            bar.update()
            records.log_step(bar, seconds, data_seconds, samples, debug_batch)
            if collector.stop_requested():
                collector.sync()
                return
            if collector.checkpoint_due or interval and state.global_step % interval == 0:
                collector.sync()
                state.check_finite()
                checkpointer.save(state)
                collector.checkpoint_due = False
            threads.look()
            begin = time.perf_counter()


def train_step(
    cfg: CfgNode,
    state: TrainState,
    codec: Codec,
    batch: dict[str, torch.Tensor],
    batches: EpochBatchSampler,
) -> tuple[list[StepMetrics], tuple]:
    """Do the epoch's next step on this process's share of a batch; state.progress stays as it is.

    The share is divided into the parts of TRAIN.ACCUMULATE.

    Returns:
        The metrics of each part, which a GPU may still compute, and what can be shown of the last
        part: (batch, normalized images, its prediction, targets).
    """
    model, optimizer, step, where = state.model, state.optimizer, state.global_step, state.device
    set_learning_rate(optimizer, state.schedule.lr_at(step))
    # stochastic depth draws from it; so a resumed run draws the same, and each process something
    # else
    torch.manual_seed(
        (cfg.SEED * _STEPS_OF_A_SEED + step * batches.shard.world_size + batches.shard.rank) % 2**63
    )
    _, global_size = batches.local_and_global_size(state.progress.step)
    parts = split_batch(batch, batches, state.progress.step, cfg.TRAIN.ACCUMULATE)
    metrics: list[StepMetrics] = []
    optimizer.zero_grad()
    for number, (part, count) in enumerate(parts):
        is_last = number == len(parts) - 1
        # the processes exchange their gradients once a step
        is_local = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if is_local else nullcontext():
            images = normalize(
                part["images"],
                where,
                mean=cfg.MODEL.MEAN,
                std=cfg.MODEL.STD,
                channels_last=cfg.CHANNELS_LAST,
            )
            targets = encode_targets(cfg, codec, part, where)
            with autocast(where, cfg.AMP):
                outputs = model(images)
            outputs = [map_output(torch.Tensor.float, output) for output in outputs]
            loss = codec.loss(outputs, targets)
            # gradients become the mean over processes: by this weight they are those of the mean
            # over the whole batch
            state.scaler.backward(loss * (count * batches.shard.world_size / global_size))
        with torch.no_grad():
            prediction = map_output(torch.Tensor.detach, outputs[-1])
            correct, valid = codec.accuracy(prediction, targets)
            metrics.append(StepMetrics(loss.detach(), correct, valid, count, part["person"]))
    state.scaler.step(optimizer)
    if state.ema and not state.scaler.step_skipped():
        state.ema.update(state.network)
    return metrics, (part, images, prediction, targets)


def evaluate_networks(
    cfg: CfgNode,
    state: TrainState,
    codec: Codec,
    loader: BatchLoader,
    devices: list[torch.device],
    records: TrainLogger,
    checkpointer: Checkpointer,
    processes: DistributedContext,
) -> dict[str, TestResult]:
    """Test the network and the average of its weights; return the results by their names.

    Scores are taken in when all have been tested: a run that is stopped between two of them tests
    both again.
    """
    results = {}
    for name, network in state.networks.items():
        # batch norm's statistics of rank 0 are those that are tested and saved
        processes.broadcast_(network.buffers())
        tested = device.prepare_for_inference(cfg, network, devices)
        with checkpointer.stop_on_interrupt(state):
            found = predict(
                cfg,
                tested,
                loader,
                devices[0],
                codec,
                checkpointer.stop_requested,
                processes,
            )
        table, folder = loader.dataset.table, records.folder / name
        metrics, deciding = processes.run_on_main(
            evaluate_predictions, cfg, table, found, folder, records.reported
        )
        results[name] = TestResult(found, metrics, deciding)
    return results
