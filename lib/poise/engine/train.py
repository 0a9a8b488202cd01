"""Train one experiment.

Read from top to bottom: run, build, train_epochs, train_one_epoch, train_step, evaluate_networks.

Elsewhere: what a checkpoint stores (state.py) and when it is written (checkpointer.py), what is
logged (run_logger.py), what the processes exchange after a step (step_metrics.py).
"""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from poise.engine.evaluate import evaluate_predictions, format_score
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

# larger than any number of steps, so that no two values of SEED share a random state
_SEED_STRIDE = 1_000_000_007


@dataclass(frozen=True)
class Setup:
    """Parts of a training, before anything is written.

    Attributes:
        state: what a checkpoint stores.
        devices: devices of this process; the batches are on the first one.
    """

    state: TrainState
    codec: Codec
    loader: BatchLoader
    test_loader: BatchLoader
    devices: list[torch.device]
    threads: CpuThreads


def run(
    cfg: CfgNode, cfg_path: str, command: list[str], processes: DistributedContext = SINGLE_PROCESS
) -> Path:
    """Train as the configuration says; return the run folder.

    Resumes from a checkpoint if AUTO_RESUME, TRAIN.RESUME or TRAIN.CHECKPOINT asks for it. Leaves a
    finished run unchanged. All processes call this. The files are listed in docs/design.md.

    Raises:
        RunStoppedError: after a signal; a checkpoint is written.
        PoiseError: for invalid input.
    """
    logger.start_console(processes.rank)
    with resource_errors("training", training_memory_hint(cfg)), run_folder.Lock() as lock:
        is_restarted = processes.all_reduce_any(checkpoint.is_restarted())
        resumes = partial(resumes_in, cfg, cfg_path, restarted=is_restarted)
        name = processes.run_on_main(
            run_folder.choose_run_name, cfg, cfg_path, run_folder.TRAINING, resumes, lock
        )
        is_renamed = name != cfg.RUN_NAME
        cfg = run_folder.with_run_name(cfg, name)
        # build before the folder is created: invalid input leaves no files behind
        setup = build(cfg, cfg_path, processes)
        state = setup.state
        run_logger = TrainLogger(cfg, cfg_path, state, setup.loader, setup.codec, processes)
        if not processes.run_on_main(_is_finished, cfg, state, run_logger.folder):
            processes.run_on_main(run_folder.create, cfg, cfg_path, run_folder.TRAINING, lock)
            logger.add_file(run_logger.folder / run_logger.log_name, processes.rank)
            hint = run_folder.resume_hint(cfg.RUN_NAME)
            with (
                logger.errors_in_file(),
                resource_errors("training", training_memory_hint(cfg), state.progress, hint),
            ):
                # broadcasts the weights and buffers of rank 0
                setup_ddp_and_compile(cfg, state, setup.devices, processes)
                run_logger.start(command)
                with closing(run_logger), GracefulStop() as stop:
                    checkpointer = Checkpointer(cfg, cfg_path, run_logger, stop, processes)
                    train_epochs(cfg, setup, run_logger, checkpointer, processes)
    if is_renamed:
        log.info("test this run with RUN_NAME %s", name)
    return run_logger.folder


@gc_disabled()
def build(cfg: CfgNode, cfg_path: str, processes: DistributedContext) -> Setup:
    """Build a training and restore its checkpoint, if any. Writes nothing."""
    devices = device.choose_devices(cfg, processes)
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    is_restarted = processes.all_reduce_any(checkpoint.is_restarted())
    saved = processes.run_on_main(find_checkpoint, cfg, cfg_path, folder, is_restarted)

    torch.manual_seed(cfg.SEED)
    model: nn.Module = build_model(cfg)
    loader, test_loader = _build_loaders(cfg, devices, processes)
    # only on rank 0: DistributedDataParallel broadcasts its weights
    if saved is None and cfg.MODEL.INIT_WEIGHTS and processes.is_main_process:
        weights.load_pretrained(
            model,
            data_path(cfg, cfg.MODEL.PRETRAINED),
            data_path(cfg, "models/pytorch/imagenet"),
            replace_head=cfg.MODEL.REPLACE_HEAD,
            rgb=cfg.DATASET.COLOR_RGB,
        )
    device.configure_cudnn(cfg, devices)
    threads = CpuThreads(cfg.CPU_THREADS, devices[0], saved["threads"] if saved else None)
    # before the optimizer, which keeps references to the parameters on their device
    model = device.to_device(model, devices, cfg.CHANNELS_LAST)
    network = device.unwrap_model(model)

    sampler = loader.batch_sampler
    schedule = Schedule.from_config(cfg, len(loader), sampler.batch_size)
    is_synced = cfg.SYNC_BN and processes.world_size > 1
    fewest = smallest_micro_batch(sampler, schedule.total_steps, cfg.TRAIN.ACCUMULATE, len(devices))
    if fewest == 1 and not is_synced:
        key = f"TRAIN.BATCH_SIZE_PER_GPU {cfg.TRAIN.BATCH_SIZE_PER_GPU}"
        check_single_sample(network, cfg.MODEL.IMAGE_SIZE, key)
    state = TrainState(
        model=model,
        optimizer=build_optimizer(cfg, model),
        schedule=schedule,
        scaler=LossScaler(devices[0], enabled=cfg.AMP == "fp16"),
        ema=ModelEma(network, cfg.TRAIN.EMA_DECAY) if cfg.TRAIN.EMA_DECAY else None,
        progress=Progress(cfg.TRAIN.BEGIN_EPOCH),
    )
    if saved is not None:
        state.load_state_dict(saved, cfg, sampler)
    return Setup(state, build_codec(cfg), loader, test_loader, devices, threads)


def _build_loaders(
    cfg: CfgNode, devices: list[torch.device], processes: DistributedContext
) -> tuple[BatchLoader, BatchLoader]:
    """Build the loaders of the training set and of the test set."""
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
    on_gpu = devices[0].type == "cuda"
    shard = Shard(processes.rank, processes.world_size, local_world_size())
    loader = build_loader(
        cfg,
        table,
        images,
        train=True,
        devices=len(devices) * cfg.TRAIN.ACCUMULATE,
        on_gpu=on_gpu,
        shard=shard,
    )
    test_loader = build_loader(
        cfg,
        test_table,
        test_images,
        train=False,
        devices=len(devices),
        on_gpu=on_gpu,
        shard=shard,
    )
    return loader, test_loader


def _is_finished(cfg: CfgNode, state: TrainState, folder: Path) -> bool:
    """Return whether nothing is left to train or to write, and log it."""
    progress = state.progress
    if state.has_epochs_left(cfg.TRAIN.PATIENCE):
        return False
    is_longer = progress.epoch > state.schedule.epochs
    check_finished(progress.last_checkpoint, progress.changed, is_longer)
    for name, network in state.networks.items():
        is_written = not name or progress.ema_epoch >= 0
        file = folder / _weight_file("final_state", name)
        if is_written and not checkpoint.file_has_weights(file, network):
            return False
    checkpoint.cleanup_stale(folder, None)
    log.info(
        "%s: this run is finished: best score %s at epoch %d of %d, with the settings of its"
        " config.yaml; nothing is trained or written; increase TRAIN.END_EPOCH to continue it, or"
        " set another RUN_NAME to start a new run",
        folder,
        format_score(progress.best_score),
        progress.best_epoch,
        progress.epoch,
    )
    return True


def _weight_file(stem: str, name: str) -> str:
    """Return the file name of a network's weights; name: "" or "ema", see TrainState.networks."""
    return f"{stem}_{name}.pth" if name else f"{stem}.pth"


def setup_ddp_and_compile(
    cfg: CfgNode, state: TrainState, devices: list[torch.device], processes: DistributedContext
) -> None:
    """Wrap the model in DistributedDataParallel if there are several processes; compile it."""
    if cfg.SYNC_BN and processes.world_size == 1:
        log.warning("SYNC_BN True: no effect in a single process; start the training with torchrun")
    state.model = processes.wrap_ddp(state.model, cfg.MODEL.IMAGE_SIZE, cfg.SYNC_BN)
    device.compile_network(cfg, state.model, devices)


def train_epochs(
    cfg: CfgNode,
    setup: Setup,
    run_logger: TrainLogger,
    checkpointer: Checkpointer,
    processes: DistributedContext,
) -> None:
    """Train and evaluate the epochs that are left, and write the final weights."""
    state = setup.state
    progress = state.progress
    while state.has_epochs_left(cfg.TRAIN.PATIENCE):
        epoch = progress.epoch
        train_one_epoch(cfg, setup, run_logger, checkpointer, processes)
        # First a collective call: a rank whose loss was not finite has raised its own error, which
        # names the images, and ends the others here.
        is_stopped = processes.all_reduce_any(checkpointer.stop_requested())
        state.check_finite()
        if is_stopped:
            checkpointer.save_and_stop(state)

        metrics = run_logger.log_epoch()
        best: list[str] = []
        if (epoch + 1) % cfg.TRAIN.EVAL_INTERVAL == 0 or epoch + 1 == state.schedule.epochs:
            results = evaluate_networks(cfg, setup, run_logger, checkpointer, processes)
            run_logger.add_tests(metrics, results, setup.test_loader.dataset.table)
            best = progress.update_scores({name: one.score for name, one in results.items()})

        # The checkpoint comes last. A run that is killed before it trains the epoch again and
        # replaces the weights and the line of metrics; a run that is killed after it has them.
        run_logger.restore_folder()
        for name in best:
            file = _weight_file("model_best", name)
            checkpointer.save_weights(file, state.networks[name])
            run_logger.log_best(name, file)
        run_logger.write_epoch(metrics)
        progress.start_epoch(epoch + 1)
        checkpointer.save(state)
        checkpointer.raise_output_error(state)
    if state.should_stop_early(cfg.TRAIN.PATIENCE):
        log.info(
            "stopped early: no better score in %d evaluations (TRAIN.PATIENCE)",
            progress.evals_without_improvement,
        )
    for name, network in state.networks.items():
        checkpointer.save_weights(_weight_file("final_state", name), network)
    run_logger.log_end()


def train_one_epoch(
    cfg: CfgNode,
    setup: Setup,
    run_logger: TrainLogger,
    checkpointer: Checkpointer,
    processes: DistributedContext,
) -> None:
    """Train the rest of the current epoch; return early, between two steps, if asked to stop."""
    state, loader = setup.state, setup.loader
    progress, sampler = state.progress, loader.batch_sampler
    num_steps = state.schedule.num_steps(progress.epoch)
    interval = cfg.TRAIN.CHECKPOINT_STEPS
    collector = StepCollector(state, loader.dataset.table, checkpointer, processes)
    state.model.train()
    sampler.set_epoch(progress.epoch, progress.step)
    start = time.perf_counter()
    with run_logger.progress_bar() as bar:
        for batch in itertools.islice(loader, num_steps - progress.step):
            data_seconds = time.perf_counter() - start
            _, num_samples = sampler.local_and_global_size(progress.step)
            metrics, debug_batch = train_step(cfg, state, setup.codec, batch, sampler)
            progress.step += 1
            # On a GPU the metrics of a step are read after the next step was launched, so that the
            # GPU does not wait. Whatever depends on them calls sync() first.
            collector.add(metrics)
            if progress.step == num_steps:
                collector.sync()
            seconds = time.perf_counter() - start
            progress.add_time(seconds, data_seconds)
            bar.update()
            run_logger.log_step(bar, seconds, data_seconds, num_samples, debug_batch)
            if collector.stop_requested():
                collector.sync()
                return
            if collector.checkpoint_due or interval and state.global_step % interval == 0:
                collector.sync()
                state.check_finite()
                checkpointer.save(state)
                collector.checkpoint_due = False
            setup.threads.retune()
            start = time.perf_counter()


def train_step(
    cfg: CfgNode,
    state: TrainState,
    codec: Codec,
    batch: dict[str, torch.Tensor],
    sampler: EpochBatchSampler,
) -> tuple[list[StepMetrics], tuple]:
    """Train on this process's samples of a batch, in TRAIN.ACCUMULATE micro-batches.

    Does not change state.progress.

    Args:
        batch: the process's samples of the step, on the CPU.
        sampler: of the loader, for the sizes of the batch on all processes.

    Returns:
        The metrics of each micro-batch, which a GPU may still compute, and what `DebugImages.add`
        draws of the last one.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    step, batch_device = state.global_step, state.device
    rank, world_size = sampler.shard.rank, sampler.shard.world_size
    set_learning_rate(optimizer, state.schedule.lr_at(step))
    # Stochastic depth draws from this generator. Its state depends on the step and the rank only,
    # so that a resumed run draws the same numbers, and each process different ones.
    torch.manual_seed((cfg.SEED * _SEED_STRIDE + step * world_size + rank) % 2**63)

    _, global_size = sampler.local_and_global_size(state.progress.step)
    micro_batches = split_batch(batch, sampler, state.progress.step, cfg.TRAIN.ACCUMULATE)
    metrics: list[StepMetrics] = []
    optimizer.zero_grad()
    for number, (micro_batch, size) in enumerate(micro_batches):
        # DistributedDataParallel averages the gradients in the last backward pass of the step
        is_last = number == len(micro_batches) - 1
        no_sync: AbstractContextManager = nullcontext()
        if isinstance(model, DistributedDataParallel) and not is_last:
            no_sync = model.no_sync()
        with no_sync:
            images = normalize(
                micro_batch["images"],
                batch_device,
                mean=cfg.MODEL.MEAN,
                std=cfg.MODEL.STD,
                channels_last=cfg.CHANNELS_LAST,
            )
            targets = encode_targets(cfg, codec, micro_batch, batch_device)
            with autocast(batch_device, cfg.AMP):
                outputs = model(images)
            outputs = [map_output(torch.Tensor.float, output) for output in outputs]
            loss = codec.loss(outputs, targets)
            # The loss is a mean over `size` samples, and the processes average their gradients.
            # This weight makes the sum the gradient of the mean over the global batch.
            scaler.backward(loss * (size * world_size / global_size))
        with torch.no_grad():
            prediction = map_output(torch.Tensor.detach, outputs[-1])
            num_correct, num_valid = codec.accuracy(prediction, targets)
        persons = micro_batch["person"]
        metrics.append(StepMetrics(loss.detach(), num_correct, num_valid, size, persons))
    scaler.step(optimizer)
    if state.ema and not scaler.step_skipped():
        state.ema.update(state.network)
    return metrics, (micro_batch, images, prediction, targets)


def evaluate_networks(
    cfg: CfgNode,
    setup: Setup,
    run_logger: TrainLogger,
    checkpointer: Checkpointer,
    processes: DistributedContext,
) -> dict[str, TestResult]:
    """Evaluate the network and its moving average; return the results by their names.

    The caller uses the scores after both evaluations, so that a run that is stopped between them
    can repeat both.
    """
    loader, devices = setup.test_loader, setup.devices
    results = {}
    for name, network in setup.state.networks.items():
        # each process has its own batch norm statistics; evaluate and save those of rank 0
        processes.broadcast_(network.buffers())
        model = device.prepare_for_inference(cfg, network, devices)
        with checkpointer.stop_on_interrupt(setup.state):
            predictions = predict(
                cfg,
                model,
                loader,
                devices[0],
                setup.codec,
                checkpointer.stop_requested,
                processes,
            )
        metrics, score = processes.run_on_main(
            evaluate_predictions,
            cfg,
            loader.dataset.table,
            predictions,
            run_logger.folder / name,
            run_logger.reported_reasons,
        )
        results[name] = TestResult(predictions, metrics, score)
    return results
