"""Train one experiment: read top to bottom."""
from __future__ import annotations

import itertools
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from yacs.config import CfgNode

from poise import visualize, weights
from poise.codecs import Codec, build_codec
from poise.config import data_path
from poise.datasets import PersonTable, build_loader, read_set
from poise.datasets.persons import BatchLoader
from poise.engine import checkpoint, device, logs
from poise.engine.batch import denormalize, encode_targets, normalize
from poise.engine.distributed import ALONE, Processes, local_processes
from poise.engine.interrupt import Interrupt, Interrupted
from poise.engine.predict import Predictions, predict
from poise.engine.progress import Progress, find_checkpoint
from poise.engine.schedule import Schedule, build_optimizer, set_learning_rate
from poise.engine.score import check_truth, score
from poise.engine.threads import CpuThreads
from poise.errors import PoiseError
from poise.losses import build_loss
from poise.metrics.pck import heatmap_pck
from poise.models import build_model
from poise.writing import replacing

log = logging.getLogger(__name__)

_STEPS_OF_A_SEED = 1_000_000_007     # the random numbers of one seed's steps do not meet those of the next one's


@dataclass
class Training:
    """What a training consists of. metrics and board are rank 0's alone, which writes."""

    cfg: CfgNode
    cfg_path: str
    folder: Path
    processes: Processes
    devices: list[torch.device]
    threads: CpuThreads
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    criterion: nn.Module
    loader: BatchLoader
    test_loader: BatchLoader
    progress: Progress
    metrics: logs.MetricsFile | None = None
    board: logs.TensorBoard | None = None

    @property
    def device(self) -> torch.device:
        """Where batches are prepared and losses lie."""
        return self.devices[0]


def run(cfg: CfgNode, cfg_path: str, command: list[str], processes: Processes = ALONE) -> None:
    """Train as the configuration says, going on from a checkpoint where it asks for that; one of `processes`, which all call this.

    Writes the run folder and the TensorBoard folder of docs/design.md, section 3. Raises Interrupted after Ctrl-C, with a
    checkpoint written, and PoiseError for what cannot be used.
    """
    logs.start_console(processes.rank)
    folder = Path(cfg.OUTPUT_DIR) / logs.run_names(cfg, cfg_path)
    devices = device.choose_devices(cfg, processes)
    saved = processes.from_first(lambda: find_checkpoint(cfg, cfg_path, folder))
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    table, images = read_set(cfg, train=True)
    test_table, test_images = read_set(cfg, train=False)
    if processes.main:
        check_truth(cfg, test_table)
    share = {"devices": len(devices), "on_gpu": devices[0].type == "cuda", "rank": processes.rank, "world": processes.world, "local_world": local_processes()}
    loader = build_loader(cfg, table, images, train=True, **share)
    test_loader = build_loader(cfg, test_table, test_images, train=False, **share)
    if saved is None and cfg.MODEL.INIT_WEIGHTS and processes.main:     # the others take rank 0's when they wrap the network
        weights.load_pretrained(model, data_path(cfg, cfg.MODEL.PRETRAINED), data_path(cfg, "models/pytorch/imagenet"),
                                replace_head=cfg.MODEL.REPLACE_HEAD, rgb=cfg.DATASET.COLOR_RGB)
    device.set_up(cfg)
    threads = CpuThreads(cfg, devices[0], saved and saved["threads"])
    model = device.lay_on(model, devices, cfg.CHANNELS_LAST)
    optimizer = build_optimizer(cfg, model)
    criterion = build_loss(cfg).to(devices[0])
    schedule = Schedule.from_config(cfg, len(loader), loader.batches.batch_size)

    progress = Progress(cfg.TRAIN.BEGIN_EPOCH)
    if saved is not None:
        progress.restore(saved, model, optimizer)
        if progress.step and progress.sums["samples"] != min(progress.step * loader.batches.batch_size, len(table)):
            log.warning("epoch %d was begun with another batch size, number of devices or training set; it is begun again", progress.epoch)
            progress.begin(progress.epoch)
        del saved       # as large as the network and its optimiser
    processes.from_first(lambda: logs.make_run_folder(cfg, cfg_path))
    logs.add_file(folder / "train.log", processes.rank)
    with logs.errors_in_file():
        model = processes.wrap(model, cfg.MODEL.IMAGE_SIZE)
        training = Training(cfg, cfg_path, folder, processes, devices, threads, model, optimizer, schedule, criterion, loader, test_loader, progress)
        if processes.main:
            _begin_records(training, command)
        try:
            with Interrupt() as interrupt:
                _epochs(training, interrupt)
        finally:
            if training.board is not None:
                training.board.close()


def _begin_records(training: Training, command: list[str]) -> None:
    """What is run, in the log and in config.yaml; the files that the epochs will write to."""
    t, cfg = training, training.cfg
    logs.log_environment(cfg, command)
    log.info("%s: %.2f million parameters; %d samples a step, epochs %d to %d", cfg.MODEL.NAME, sum(p.numel() for p in t.model.parameters()) / 1e6,
             t.loader.batches.batch_size, t.progress.epoch, t.schedule.epochs - 1)
    log.info("schedule: %s", t.schedule)
    with replacing(t.folder / "config.yaml") as part:
        part.write_text(cfg.dump(), encoding="utf-8")
    t.metrics = logs.MetricsFile(t.folder / "metrics.jsonl", t.progress.epoch)
    t.board = logs.TensorBoard(cfg, t.cfg_path)


def _epochs(training: Training, interrupt: Interrupt) -> None:
    t, cfg, progress, processes = training, training.cfg, training.progress, training.processes
    table, bare = t.test_loader.crops.table, device.bare(t.model)
    while progress.epoch < t.schedule.epochs:
        epoch = progress.epoch
        train_one_epoch(t, interrupt)
        asked = processes.any(interrupt.asked)      # before the look at the weights: a process whose loss was not finite has more to tell
        _check_weights(bare, progress)
        if asked:
            _save_and_stop(t)
        values = {"epoch": epoch, "lr": t.schedule.rate(epoch * t.schedule.steps_per_epoch + progress.step - 1), **progress.averages()}
        log.info("epoch %d: train loss %.6f, accuracy %.3f, %.1f images/s, %.0f %% of the time waiting for data", epoch,
                 values["train_loss"], values["train_acc"], values["images_per_second"], 100 * values["data_time_share"])
        processes.spread(bare.buffers())    # batch norm's of rank 0 are those that are tested and saved
        best = False
        if (epoch + 1) % cfg.TRAIN.EVAL_INTERVAL == 0 or epoch + 1 == t.schedule.epochs:
            try:
                found = predict(cfg, device.for_testing(cfg, t.model, t.devices), t.test_loader, t.device, t.criterion, lambda: interrupt.asked, processes)
            except KeyboardInterrupt:
                _save_and_stop(t)
            metrics, deciding = processes.from_first(lambda: score(cfg, table, found, t.folder))
            values.update({"valid_loss": found.loss, "valid_acc": found.accuracy} if found.loss is not None else {}, **metrics)
            # of equal scores the later counts, as in HRNet; so the last weights are kept where a test set has no labels and every score is 0
            best = deciding >= progress.best_score
            if best:
                progress.best_score, progress.best_epoch = deciding, epoch
            if processes.main:
                _show(t.board, values, found, table, epoch)
        if processes.main:
            if best:
                checkpoint.save(t.folder / "model_best.pth", bare.state_dict())
                log.info("best score so far: %.4f; model_best.pth written", progress.best_score)
            t.metrics.write(**values)
        # last: a run that is killed before this trains the epoch again and writes the two again; killed after it, the run has them
        progress.begin(epoch + 1)
        _save(t)
    if processes.main:
        checkpoint.save(t.folder / "final_state.pth", bare.state_dict())
    log.info("done: best score %.4f at epoch %d; weights in %s", progress.best_score, progress.best_epoch, t.folder)


def _save(training: Training) -> None:
    """The run folder's checkpoint, by rank 0. The others wait: a process that ended meanwhile would make torchrun end rank 0."""
    t, path = training, training.folder / checkpoint.NAME
    t.processes.from_first(lambda: t.progress.save(path, t.cfg, t.cfg_path, t.model, t.optimizer))
    t.progress.kept = path


def _save_and_stop(training: Training) -> NoReturn:
    _save(training)
    raise Interrupted(f"stopped at epoch {training.progress.epoch}, step {training.progress.step}; {training.progress.kept} is written, "
                      "the same command with AUTO_RESUME True goes on")


def train_one_epoch(training: Training, interrupt: Interrupt) -> None:
    """The rest of progress.epoch from progress.step on. Returns early, between two steps, when an interrupt is asked for.

    The loss of a step is looked at after the next one has been launched, so that a GPU does not wait for the CPU's look. Of
    several processes each trains on its share of a batch, and all of them have the sums over the whole batches.
    """
    from tqdm import tqdm

    cfg, model, optimizer, schedule, progress, processes, where = (
        training.cfg, training.model, training.optimizer, training.schedule, training.progress, training.processes, training.device)
    loader, table, sums, codec = training.loader, training.loader.crops.table, progress.sums, build_codec(cfg)
    model.train()
    loader.batches.begin(progress.epoch, progress.step)
    steps = schedule.steps_in(progress.epoch)
    bar = tqdm(total=steps, initial=progress.step, desc=f"epoch {progress.epoch}", unit="step", leave=False, disable=None if processes.main else True)
    pending: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor] | None = None
    stop = False
    begin = time.perf_counter()

    def settle() -> None:
        """Look at the loss, and take the figures of all processes into the sums; with them each learns that one was asked to stop."""
        nonlocal pending, stop
        if pending is None:
            return
        loss, right, counted, own, persons = pending
        pending = None
        value = float(loss)
        if not math.isfinite(value):
            names = ", ".join(dict.fromkeys(table.image_name(int(p)) for p in persons))
            raise PoiseError(f"epoch {progress.epoch}, step {progress.step - 1}: the loss is {value}; "
                             f"{f'the last good checkpoint is {progress.kept}' if progress.kept else 'no checkpoint was written yet'}; lower TRAIN.LR, "
                             f"or look at the images of this batch: {names}")
        figures = [value * own, float(right), float(counted), own] if own else [0.0] * 4
        *figures, asked = processes.sum([*figures, float(interrupt.asked)])
        for name, figure in zip(("loss", "right", "counted", "samples"), figures):
            sums[name] += figure
        stop = stop or asked > 0

    with bar:
        for batch in itertools.islice(loader, steps - progress.step):
            data_seconds = time.perf_counter() - begin
            step = progress.epoch * schedule.steps_per_epoch + progress.step
            own, whole = loader.batches.share(progress.step)
            set_learning_rate(optimizer, schedule.rate(step))
            # stochastic depth draws from it; so a resumed run draws the same, and each process something else
            torch.manual_seed((cfg.SEED * _STEPS_OF_A_SEED + step * processes.world + processes.rank) % 2**63)
            images = normalize(cfg, batch["images"], where)
            targets = encode_targets(cfg, codec, batch, where)
            outputs = model(images)
            loss = training.criterion(outputs, targets)
            settle()
            optimizer.zero_grad()
            # gradients become the mean over processes: by this weight they are those of the mean over the whole batch
            (loss * (own * processes.world / whole)).backward()
            optimizer.step()
            with torch.no_grad():
                pending = (loss.detach(), *heatmap_pck(outputs[-1].detach(), targets.finest), own, batch["person"])
            progress.step += 1
            if where.type == "cpu" or progress.step == steps:
                settle()
            seconds = time.perf_counter() - begin
            sums["seconds"] += seconds
            sums["data_seconds"] += data_seconds
            bar.update()
            if processes.main and (progress.step % cfg.PRINT_FREQ == 0 or progress.step == steps):
                _report(training, bar, step, schedule.rate(step), seconds, data_seconds, whole)
                if cfg.DEBUG.DEBUG:
                    _save_debug_pictures(cfg, codec, batch, images, outputs[-1].detach(), targets, loader,
                                         training.folder / "debug" / f"train_{progress.epoch}_{progress.step}")
            if stop or interrupt.asked and processes.world == 1:
                settle()
                return
            training.threads.look()
            begin = time.perf_counter()


def _report(training: Training, bar, step: int, rate: float, seconds: float, data_seconds: float, samples: int) -> None:
    """A line in the log, and TensorBoard's figures, of a step counted over the whole training."""
    progress, mean = training.progress, training.progress.averages()
    bar.set_postfix(loss=f"{mean['train_loss']:.5f}", acc=f"{mean['train_acc']:.3f}", lr=f"{rate:g}", refresh=False)
    log.info("epoch %d [%d/%d]  %.3f s/step (%.3f waiting for data)  %.1f images/s  loss %.6f  accuracy %.3f  lr %g", progress.epoch,
             progress.step, training.schedule.steps_in(progress.epoch), seconds, data_seconds, samples / seconds, mean["train_loss"], mean["train_acc"], rate,
             extra=logs.FILE_ONLY if sys.stderr.isatty() else None)
    training.board.scalars({"train_loss": mean["train_loss"], "train_acc": mean["train_acc"], "learning_rate": rate,
                            "images_per_second": samples / seconds, "data_waiting_seconds": data_seconds}, step + 1)


def _show(board: logs.TensorBoard, values: dict[str, float], found: Predictions, table: PersonTable, epoch: int) -> None:
    """The epoch's figures and its first test batch on the TensorBoard page."""
    train_side = ("epoch", "lr", "train_loss", "train_acc", "images_per_second", "data_time_share")
    board.scalars({name if name.startswith("valid") else f"test/{name}": value for name, value in values.items() if name not in train_side}, epoch)
    first = found.first_batch
    board.picture("predictions", visualize.crop_mosaic(first["crops"], first["joints"], first["shown"], table.skeleton), epoch)
    board.picture("heatmaps", visualize.heatmap_mosaic(first["crops"][:len(first["heatmaps"])], first["heatmaps"]), epoch)


def _save_debug_pictures(cfg, codec: Codec, batch, images, output, targets, loader, prefix: Path) -> None:
    """The four kinds of debug pictures of HRNet, of the last batch."""
    crops = denormalize(cfg, images[:32])
    skeleton, maps = loader.crops.table.skeleton, output[:32].float().cpu().numpy()
    visible = batch["visible"][:32].numpy()
    if cfg.DEBUG.SAVE_BATCH_IMAGES_GT:
        visualize.save(f"{prefix}_gt.jpg", visualize.crop_mosaic(crops, batch["joints"][:32].numpy(), visible, skeleton))
    if cfg.DEBUG.SAVE_BATCH_IMAGES_PRED:
        coords, _ = codec.decode(maps)
        visualize.save(f"{prefix}_pred.jpg", visualize.crop_mosaic(crops, coords, visible, skeleton))
    if cfg.DEBUG.SAVE_HEATMAPS_GT:
        visualize.save(f"{prefix}_hm_gt.jpg", visualize.heatmap_mosaic(crops[:8], targets.finest[:8].cpu().numpy() / codec.amplitude))
    if cfg.DEBUG.SAVE_HEATMAPS_PRED:
        visualize.save(f"{prefix}_hm_pred.jpg", visualize.heatmap_mosaic(crops[:8], maps[:8] / codec.amplitude))


def _check_weights(model: nn.Module, progress: Progress) -> None:
    """The last step may spoil the weights without a loss to show it; such weights are not saved."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise PoiseError(f"epoch {progress.epoch}: a weight is not finite after the last step; lower TRAIN.LR; "
                         f"{f'the last good checkpoint is {progress.kept}' if progress.kept else 'no checkpoint was written yet'}")
