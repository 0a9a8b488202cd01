"""Train one experiment: read top to bottom."""
from __future__ import annotations

import itertools
import logging
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from poise import visualize, weights
from poise.codecs import Codec, build_codec
from poise.config import data_path, experiment_name
from poise.datasets import PersonTable, build_loader, read_set
from poise.datasets.persons import BatchLoader
from poise.engine import checkpoint, device, logs
from poise.engine.batch import denormalize, encode_targets, normalize
from poise.engine.interrupt import Interrupt, Interrupted
from poise.engine.predict import Predictions, predict
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


def run(cfg: CfgNode, cfg_path: str, command: list[str]) -> None:
    """Train as the configuration says, going on from a checkpoint where it asks for that.

    Writes the run folder and the TensorBoard folder of docs/design.md, section 3. Raises Interrupted after Ctrl-C, with a
    checkpoint written, and PoiseError for what cannot be used.
    """
    logs.start_console()
    folder = Path(cfg.OUTPUT_DIR) / logs.run_names(cfg, cfg_path)
    devices = device.choose_devices(cfg)
    saved = find_checkpoint(cfg, cfg_path, folder)
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    table, images = read_set(cfg, train=True)
    test_table, test_images = read_set(cfg, train=False)
    check_truth(cfg, test_table)
    loader = build_loader(cfg, table, images, train=True, devices=len(devices))
    test_loader = build_loader(cfg, test_table, test_images, train=False, devices=len(devices))
    if saved is None and cfg.MODEL.INIT_WEIGHTS:
        weights.load_pretrained(model, data_path(cfg, cfg.MODEL.PRETRAINED), data_path(cfg, "models/pytorch/imagenet"))
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
    logs.make_run_folder(cfg, cfg_path)
    logs.add_file(folder / "train.log")
    with logs.errors_in_file():
        logs.log_environment(cfg, command)
        log.info("%s: %.2f million parameters; %d samples a step, epochs %d to %d", cfg.MODEL.NAME, sum(p.numel() for p in model.parameters()) / 1e6,
                 loader.batches.batch_size, progress.epoch, schedule.epochs - 1)
        log.info("schedule: %s", schedule)
        with replacing(folder / "config.yaml") as part:
            part.write_text(cfg.dump(), encoding="utf-8")
        metrics_file = logs.MetricsFile(folder / "metrics.jsonl", progress.epoch)
        board = logs.TensorBoard(cfg, cfg_path)
        try:
            with Interrupt() as interrupt:
                _epochs(cfg, cfg_path, folder, model, optimizer, schedule, criterion, loader, test_loader, progress, devices[0], threads, metrics_file, board, interrupt)
        finally:
            board.close()


class Progress:
    """Where a run is: the epoch, the steps of it that are done, their sums, and the best score so far."""

    def __init__(self, epoch: int):
        self.epoch, self.step = epoch, 0
        self.sums = dict.fromkeys(("loss", "right", "counted", "samples", "seconds", "data_seconds"), 0.0)
        self.best_score, self.best_epoch = -math.inf, -1

    def restore(self, saved: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        try:
            device.bare(model).load_state_dict(saved["state_dict"])
            # PyTorch takes another optimiser's state without a word and fails at the first step
            theirs, own = (set(state["param_groups"][0]) & {"betas", "momentum"} for state in (saved["optimizer"], optimizer.state_dict()))
            if theirs != own:
                raise ValueError("TRAIN.OPTIMIZER is another")
            optimizer.load_state_dict(saved["optimizer"])
            # the saved averages may lie in memory in another order (CHANNELS_LAST), and fused Adam walks raw memory
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        state[key] = torch.empty_like(parameter).copy_(value)
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise PoiseError(f"{saved['path']}: the checkpoint does not fit the network or optimiser of this configuration ({str(error).splitlines()[0]}); "
                             "remove it to begin anew") from None
        self.epoch, self.step, self.sums = saved["epoch"], saved["step"], dict(saved["sums"])
        self.best_score, self.best_epoch = saved["best"]["score"], saved["best"]["epoch"]
        log.info("going on at epoch %d, step %d; best score so far %.4f of epoch %d", self.epoch, self.step, self.best_score, self.best_epoch)

    def begin(self, epoch: int) -> None:
        self.epoch, self.step = epoch, 0
        self.sums = dict.fromkeys(self.sums, 0.0)

    def save(self, path: Path, cfg: CfgNode, cfg_path: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        checkpoint.save(path, {
            "format": checkpoint.FORMAT, "epoch": self.epoch, "step": self.step, "sums": self.sums,
            "best": {"score": self.best_score, "epoch": self.best_epoch},
            "state_dict": device.bare(model).state_dict(), "optimizer": optimizer.state_dict(),
            "experiment": experiment_name(cfg_path), "seed": cfg.SEED, "threads": torch.get_num_threads(),
            "config": cfg.dump(), "torch": str(torch.__version__),
        })


def find_checkpoint(cfg: CfgNode, cfg_path: str, folder: Path) -> dict | None:
    """The checkpoint to go on from: TRAIN.CHECKPOINT, else the run folder's when AUTO_RESUME or TRAIN.RESUME; or None."""
    if cfg.TRAIN.CHECKPOINT:
        path = Path(data_path(cfg, cfg.TRAIN.CHECKPOINT))
    elif (cfg.AUTO_RESUME or cfg.TRAIN.RESUME) and (folder / checkpoint.NAME).exists():
        path = folder / checkpoint.NAME
    else:
        return None
    saved = checkpoint.load(path, experiment_name(cfg_path))
    log.info("going on from %s", path)
    if saved["seed"] != cfg.SEED:
        log.warning("SEED is %d, the checkpoint's run had %d: the order of samples changes", cfg.SEED, saved["seed"])
    return saved


def _epochs(cfg, cfg_path, folder, model, optimizer, schedule, criterion, loader, test_loader, progress, where, threads, metrics_file, board, interrupt) -> None:
    def save_and_stop() -> None:
        progress.save(folder / checkpoint.NAME, cfg, cfg_path, model, optimizer)
        raise Interrupted(f"stopped at epoch {progress.epoch}, step {progress.step}; {folder / checkpoint.NAME} is written, "
                          "the same command with AUTO_RESUME True goes on")

    while progress.epoch < schedule.epochs:
        epoch = progress.epoch
        train_one_epoch(cfg, model, optimizer, schedule, criterion, loader, progress, where, threads, board, folder, interrupt)
        _check_weights(model, epoch, folder)
        if interrupt.asked:
            save_and_stop()
        values = {"epoch": epoch, "lr": schedule.rate(epoch * schedule.steps_per_epoch + progress.step - 1), **_averages(progress.sums)}
        log.info("epoch %d: train loss %.6f, accuracy %.3f, %.1f images/s, %.0f %% of the time waiting for data", epoch,
                 values["train_loss"], values["train_acc"], values["images_per_second"], 100 * values["data_time_share"])
        best = False
        if (epoch + 1) % cfg.TRAIN.EVAL_INTERVAL == 0 or epoch + 1 == schedule.epochs:
            try:
                found = predict(cfg, model, test_loader, where, criterion, interrupt.check)
            except KeyboardInterrupt:
                save_and_stop()
            metrics, deciding = score(cfg, test_loader.crops.table, found, folder)
            values.update({"valid_loss": found.loss, "valid_acc": found.accuracy} if found.loss is not None else {}, **metrics)
            # of equal scores the later counts, as in HRNet; so the last weights are kept where a test set has no labels and every score is 0
            best = deciding >= progress.best_score
            if best:
                progress.best_score, progress.best_epoch = deciding, epoch
            _show(board, values, found, test_loader.crops.table, epoch)
        if best:
            checkpoint.save(folder / "model_best.pth", device.bare(model).state_dict())
            log.info("best score so far: %.4f; model_best.pth written", progress.best_score)
        metrics_file.write(**values)
        # last: a run that is killed before this trains the epoch again and writes the two again; killed after it, the run has them
        progress.begin(epoch + 1)
        progress.save(folder / checkpoint.NAME, cfg, cfg_path, model, optimizer)
    checkpoint.save(folder / "final_state.pth", device.bare(model).state_dict())
    log.info("done: best score %.4f at epoch %d; weights in %s", progress.best_score, progress.best_epoch, folder)


def train_one_epoch(cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, criterion: nn.Module, loader: BatchLoader,
                    progress: Progress, where: torch.device, threads: CpuThreads, board: logs.TensorBoard, folder: Path, interrupt: Interrupt) -> None:
    """The rest of progress.epoch from progress.step on. Returns early, between two steps, when an interrupt is asked for.

    The loss of a step is looked at after the next one has been launched, so that a GPU does not wait for the CPU's look.
    """
    from tqdm import tqdm

    model.train()
    loader.batches.begin(progress.epoch, progress.step)
    table, sums, codec = loader.crops.table, progress.sums, build_codec(cfg)
    steps = schedule.steps_in(progress.epoch)
    bar = tqdm(total=steps, initial=progress.step, desc=f"epoch {progress.epoch}", unit="step", leave=False, disable=None)
    pending: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    begin = time.perf_counter()

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        loss, right, counted, persons = pending
        pending = None
        value = float(loss)
        if not math.isfinite(value):
            names = ", ".join(dict.fromkeys(table.image_name(int(p)) for p in persons))
            kept = folder / checkpoint.NAME
            raise PoiseError(f"epoch {progress.epoch}, step {progress.step - 1}: the loss is {value}; "
                             f"{f'the last good checkpoint is {kept}' if kept.exists() else 'no checkpoint was written yet'}; lower TRAIN.LR, "
                             f"or look at the images of this batch: {names}")
        sums["loss"] += value * len(persons)
        sums["right"] += float(right)
        sums["counted"] += float(counted)
        sums["samples"] += len(persons)

    with bar:
        for batch in itertools.islice(loader, steps - progress.step):
            data_seconds = time.perf_counter() - begin
            step = progress.epoch * schedule.steps_per_epoch + progress.step
            set_learning_rate(optimizer, schedule.rate(step))
            torch.manual_seed((cfg.SEED * _STEPS_OF_A_SEED + step) % 2**63)   # stochastic depth draws from it; so a resumed run draws the same
            images = normalize(cfg, batch["images"], where)
            targets = encode_targets(cfg, codec, batch, where)
            outputs = model(images)
            loss = criterion(outputs, targets)
            settle()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                pending = (loss.detach(), *heatmap_pck(outputs[-1].detach(), targets.finest), batch["person"])
            progress.step += 1
            if where.type == "cpu" or progress.step == steps:
                settle()
            seconds = time.perf_counter() - begin
            sums["seconds"] += seconds
            sums["data_seconds"] += data_seconds
            bar.update()
            if progress.step % cfg.PRINT_FREQ == 0 or progress.step == steps:
                _report(progress, steps, step, schedule.rate(step), seconds, data_seconds, len(batch["person"]), bar, board)
                if cfg.DEBUG.DEBUG:
                    _save_debug_pictures(cfg, codec, batch, images, outputs[-1].detach(), targets, loader, folder / "debug" / f"train_{progress.epoch}_{progress.step}")
            if interrupt.asked:
                settle()
                return
            threads.look()
            begin = time.perf_counter()


def _averages(sums: dict[str, float]) -> dict[str, float]:
    seconds = max(sums["seconds"], 1e-9)
    return {"train_loss": sums["loss"] / max(sums["samples"], 1), "train_acc": sums["right"] / max(sums["counted"], 1),
            "images_per_second": sums["samples"] / seconds, "data_time_share": sums["data_seconds"] / seconds}


def _report(progress, steps, step, rate, seconds, data_seconds, samples, bar, board) -> None:
    mean = _averages(progress.sums)
    bar.set_postfix(loss=f"{mean['train_loss']:.5f}", acc=f"{mean['train_acc']:.3f}", lr=f"{rate:g}", refresh=False)
    log.info("epoch %d [%d/%d]  %.3f s/step (%.3f waiting for data)  %.1f images/s  loss %.6f  accuracy %.3f  lr %g", progress.epoch,
             progress.step, steps, seconds, data_seconds, samples / seconds, mean["train_loss"], mean["train_acc"], rate,
             extra=logs.FILE_ONLY if sys.stderr.isatty() else None)
    board.scalars({"train_loss": mean["train_loss"], "train_acc": mean["train_acc"], "learning_rate": rate,
                   "images_per_second": samples / seconds, "data_waiting_seconds": data_seconds}, step + 1)


def _show(board: logs.TensorBoard, values: dict[str, float], found: Predictions, table: PersonTable, epoch: int) -> None:
    """The epoch's figures and its first test batch on the TensorBoard page."""
    train_side = ("epoch", "lr", "train_loss", "train_acc", "images_per_second", "data_time_share")
    board.scalars({name if name.startswith("valid") else f"test/{name}": value for name, value in values.items() if name not in train_side}, epoch)
    first = found.first_batch
    board.picture("predictions", visualize.crop_mosaic(first["crops"], first["joints"], first["scores"] > 0.2, table.skeleton), epoch)
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
        visualize.save(f"{prefix}_hm_gt.jpg", visualize.heatmap_mosaic(crops[:8], targets.finest[:8].cpu().numpy()))
    if cfg.DEBUG.SAVE_HEATMAPS_PRED:
        visualize.save(f"{prefix}_hm_pred.jpg", visualize.heatmap_mosaic(crops[:8], maps[:8]))


def _check_weights(model: nn.Module, epoch: int, folder: Path) -> None:
    """The last step may spoil the weights without a loss to show it; such weights are not saved."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise PoiseError(f"epoch {epoch}: a weight is not finite after the last step; lower TRAIN.LR; the last good checkpoint, if any, is in {folder}")
