"""Train one experiment: read top to bottom."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from poise.codecs import build_codec
from poise.codecs.codec import Codec, map_output
from poise.config import data_path, experiment_name
from poise.datasets import PersonTable, build_loader, read_set
from poise.datasets.loader import BatchLoader
from poise.datasets.sampler import EpochBatches
from poise.datasets.validation.run import log_look
from poise.engine import checkpoint, device, logger, run_folder
from poise.engine.amp import LossScale
from poise.engine.debug_images import DebugPictures
from poise.engine.device import CpuThreads, bare
from poise.engine.distributed import ALONE, Processes, local_processes
from poise.engine.ema import WeightAverage
from poise.engine.evaluate import deciding_text, score
from poise.engine.memory import machine_limits, training_advice
from poise.engine.optim import Schedule, build_optimizer, set_learning_rate
from poise.engine.predict import Predictions, predict
from poise.engine.resuming import check_finished
from poise.engine.signals import Interrupt, Interrupted
from poise.engine.state import Progress, cells_of, find_checkpoint, fitting, resumes_in
from poise.engine.sync_bn import check_single_sample
from poise.engine.targets import encode_targets
from poise.errors import DataError, PoiseError
from poise.evaluation.evaluators import build_evaluator
from poise.io.files import no_garbage_collection, replacing
from poise.models import build_model, weights
from poise.models.forward import autocast, normalize
from poise.models.posenas.genotypes import write_genotype

log = logging.getLogger(__name__)


@dataclass
class Training:
    """What a training consists of. average: of the weights, with TRAIN.EMA_DECAY. metrics and board
    are rank 0's alone, which writes.

    saved_at: when the last checkpoint was written, or the run began, by time.monotonic. fault: rank
    0's, of a file that the run does not need to go on; it ends the run with a checkpoint. told: why
    figures are 0 or -1, each reason once in a run.
    """

    cfg: CfgNode
    cfg_path: str
    folder: Path
    processes: Processes
    devices: list[torch.device]
    threads: CpuThreads
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    codec: Codec
    loader: BatchLoader
    test_loader: BatchLoader
    progress: Progress
    scale: LossScale
    average: WeightAverage | None = None
    saved_at: float = 0.0
    metrics: logger.MetricsFile | None = None
    board: logger.TensorBoard | None = None
    pictures: DebugPictures | None = None
    fault: PoiseError | None = None
    told: set[str] = field(default_factory=set)

    @property
    def device(self) -> torch.device:
        """Where batches are prepared and losses lie."""
        return self.devices[0]


def run(cfg: CfgNode, cfg_path: str, command: list[str], processes: Processes = ALONE) -> Path:
    """Train as the configuration says, going on from a checkpoint where it asks for that; one of
    `processes`, which all call this.

    Writes the run folder and the TensorBoard folder of docs/design.md, section 3; returns the run
    folder, which no other run can use meanwhile. Raises Interrupted after Ctrl-C, with a checkpoint
    written, and PoiseError for what cannot be used. A finished run is left as it is.
    """
    logger.start_console(processes.rank)
    with machine_limits("training", training_advice(cfg)), run_folder.Lock() as lock:
        restarted = processes.any(checkpoint.restarted())
        name = processes.from_first(
            lambda: run_folder.choose(
                cfg,
                cfg_path,
                run_folder.TRAINING,
                lambda folder: resumes_in(cfg, cfg_path, folder, restarted),
                lock,
            )
        )
        suffixed, cfg = name != cfg.RUN_NAME, run_folder.named(cfg, name)
        training = build(cfg, cfg_path, processes)
        if not processes.from_first(lambda: _is_finished(training)):
            processes.from_first(lambda: run_folder.make(cfg, cfg_path, run_folder.TRAINING, lock))
            _run(training, command)
    if suffixed:
        log.info("test this run with RUN_NAME %s", name)
    return training.folder


def _is_finished(training: Training) -> bool:
    """Return whether nothing is left to train or to write, and say so; by rank 0."""
    t, progress = training, training.progress
    final = {"final_state.pth": device.bare(t.model)}
    if t.average and progress.ema_epoch >= 0:
        final["final_state_ema.pth"] = t.average.network
    if _is_left_to_train(t):
        return False
    check_finished(progress.kept, progress.changed, progress.epoch > t.schedule.epochs)
    if not all(checkpoint.holds(t.folder / file, network) for file, network in final.items()):
        return False
    checkpoint.tidy(t.folder, None)
    log.info(
        "%s: this run is finished: best score %s at epoch %d of %d, with the settings of its"
        " config.yaml; nothing is trained or written; a later TRAIN.END_EPOCH continues it, another"
        " RUN_NAME starts a new run",
        t.folder,
        deciding_text(progress.best_score),
        progress.best_epoch,
        progress.epoch,
    )
    return True


def _is_left_to_train(training: Training) -> bool:
    return training.progress.epoch < training.schedule.epochs and not stale(training)


def _run(training: Training, command: list[str]) -> None:
    """Train, with a log in the run folder, which is there."""
    cfg, processes = training.cfg, training.processes
    logger.add_file(training.folder / "train.log", processes.rank)
    limits = machine_limits(
        "training",
        training_advice(cfg),
        lambda: training.progress.kept,
        run_folder.resume_hint(cfg),
    )
    with logger.errors_in_file(), limits:
        wrap(training)
        if processes.main:
            _begin_records(training, command)
        with ExitStack() as closing, Interrupt() as interrupt:
            for written in (training.board, training.pictures):
                if written is not None:
                    closing.callback(written.close)
            _epochs(training, interrupt)


@no_garbage_collection()
def build(cfg: CfgNode, cfg_path: str, processes: Processes) -> Training:
    """All that a training needs, as it was when its checkpoint was written where there is one to
    go on from. Writes nothing.
    """
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    devices = device.choose_devices(cfg, processes)
    restarted = processes.any(checkpoint.restarted())
    saved = processes.from_first(lambda: find_checkpoint(cfg, cfg_path, folder, restarted))
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    table, images = read_set(cfg, train=True)
    test_table, test_images = read_set(cfg, train=False)
    if processes.main:
        build_evaluator(cfg).check(test_table)
        log_look(cfg, (table, images), (test_table, test_images))
    share = {
        "devices": len(devices),
        "on_gpu": devices[0].type == "cuda",
        "rank": processes.rank,
        "world": processes.world,
        "local_world": local_processes(),
    }
    loader = build_loader(
        cfg, table, images, train=True, **{**share, "devices": len(devices) * cfg.TRAIN.ACCUMULATE}
    )
    test_loader = build_loader(cfg, test_table, test_images, train=False, **share)
    # the others take rank 0's when they wrap the network
    if saved is None and cfg.MODEL.INIT_WEIGHTS and processes.main:
        weights.load_pretrained(
            model,
            data_path(cfg, cfg.MODEL.PRETRAINED),
            data_path(cfg, "models/pytorch/imagenet"),
            replace_head=cfg.MODEL.REPLACE_HEAD,
            rgb=cfg.DATASET.COLOR_RGB,
        )
    device.set_up(cfg, devices)
    threads = CpuThreads(cfg, devices[0], saved and saved["threads"])
    model = device.lay_on(model, devices, cfg.CHANNELS_LAST)
    optimizer = build_optimizer(cfg, model)
    codec = build_codec(cfg)
    schedule = Schedule.from_config(cfg, len(loader), loader.batches.batch_size)
    together = cfg.SYNC_BN and processes.world > 1
    if (
        not together
        and smallest_part(loader.batches, schedule.end, cfg.TRAIN.ACCUMULATE, len(devices)) == 1
    ):
        check_single_sample(
            device.bare(model),
            cfg.MODEL.IMAGE_SIZE,
            f"TRAIN.BATCH_SIZE_PER_GPU {cfg.TRAIN.BATCH_SIZE_PER_GPU}",
        )

    progress, scale = Progress(cfg.TRAIN.BEGIN_EPOCH), LossScale(cfg, devices[0])
    average = (
        WeightAverage(device.bare(model), cfg.TRAIN.EMA_DECAY) if cfg.TRAIN.EMA_DECAY else None
    )
    if saved is not None:
        progress.restore(saved, model, optimizer, cfg.TRAIN.OPTIMIZER)
        with fitting(saved):
            scale.load_state_dict(saved.get("scaler", {}))
            if average and "ema" in saved:
                average.load_state_dict(saved["ema"])
        if average and "ema" not in saved:
            log.warning(
                "%s holds no average of the weights: TRAIN.EMA_DECAY begins with them as they are",
                saved["path"],
            )
            average.update(device.bare(model))
        if progress.step and progress.sums["samples"] != min(
            progress.step * loader.batches.batch_size, loader.batches.samples
        ):
            log.warning(
                "epoch %d was begun with another batch size, number of devices or training set; it"
                " is begun again",
                progress.epoch,
            )
            progress.begin(progress.epoch)
        del saved  # as large as the network and its optimiser
    return Training(
        cfg,
        cfg_path,
        folder,
        processes,
        devices,
        threads,
        model,
        optimizer,
        schedule,
        codec,
        loader,
        test_loader,
        progress,
        scale,
        average,
        time.monotonic(),
    )


def wrap(training: Training) -> None:
    """The network becomes that of all processes, and is compiled where that is asked for."""
    t, cfg = training, training.cfg
    if cfg.SYNC_BN and t.processes.world == 1:
        log.warning("SYNC_BN True has no effect without torchrun's processes")
    t.model = t.processes.wrap(t.model, cfg.MODEL.IMAGE_SIZE, cfg.SYNC_BN)
    device.compile_network(cfg, t.model, t.devices)


def _begin_records(training: Training, command: list[str]) -> None:
    """What is run, in the log and in config.yaml; the files that the epochs will write to."""
    t, cfg = training, training.cfg
    checkpoint.tidy(t.folder, t.progress.kept, t.progress.damaged)
    logger.log_environment(cfg, command)
    log.info(
        "%s: %.2f million parameters; %d samples a step%s, epochs %d to %d",
        cfg.MODEL.NAME,
        sum(p.numel() for p in t.model.parameters()) / 1e6,
        t.loader.batches.batch_size,
        f" in {cfg.TRAIN.ACCUMULATE} parts" if cfg.TRAIN.ACCUMULATE > 1 else "",
        t.progress.epoch,
        t.schedule.epochs - 1,
    )
    log.info("schedule: %s", t.schedule)
    # where only the final weights are missing, nothing is trained with the settings of now
    if _is_left_to_train(t) or not (t.folder / "config.yaml").exists():
        _write_origin(t)
    t.metrics = logger.MetricsFile(t.folder / "metrics.jsonl", t.progress.epoch)
    t.board = logger.TensorBoard(cfg, t.cfg_path)
    if cfg.DEBUG.DEBUG:
        t.pictures = DebugPictures(cfg, t.codec, t.loader.crops.table.skeleton)


def _write_origin(training: Training) -> None:
    """Write what the run folder's weights were made from."""
    t, cfg = training, training.cfg
    with replacing(t.folder / "config.yaml") as part:
        part.write_text(cfg.dump(), encoding="utf-8")
    # MODEL.GENOTYPE may name a file that the next search writes anew
    if (genotype := getattr(device.bare(t.model), "genotype", None)) is not None:
        write_genotype(t.folder / "genotype.json", genotype)


def _restore_folder(training: Training) -> None:
    """Write again what is lost where the run folder was removed during the run, as rank 0;
    nothing where it was not.
    """
    t = training
    if (t.folder / "config.yaml").exists():
        return
    _write_origin(t)
    logger.add_file(t.folder / "train.log")
    log.warning(
        "%s: the run folder was removed during the run; config.yaml is written again, earlier log"
        " lines and metrics are lost",
        t.folder,
    )


def _epochs(training: Training, interrupt: Interrupt) -> None:
    t, cfg, progress, processes = training, training.cfg, training.progress, training.processes
    bare = device.bare(t.model)
    while _is_left_to_train(t):
        epoch = progress.epoch
        train_one_epoch(t, interrupt)
        # before the look at the weights: a process whose loss was not finite has more to tell
        asked = processes.any(_asked(t, interrupt))
        _check_weights(t)
        if asked:
            _save_and_stop(t)
        values = {
            "epoch": epoch,
            "lr": t.schedule.rate(epoch * t.schedule.steps_per_epoch + progress.step - 1),
            **progress.averages(),
        }
        log.info(
            "epoch %d/%d: train loss %.6f, accuracy %.3f, %.1f images/s, %.0f %% of the time"
            " waiting for data",
            epoch,
            t.schedule.epochs,
            values["train_loss"],
            values["train_acc"],
            values["images_per_second"],
            100 * values["data_time_share"],
        )
        if t.scale.active:
            values.update(overflows=int(progress.sums["overflows"]), loss_scale=t.scale.value)
            log.info(
                "epoch %d/%d: %d steps left out for gradients that overflowed, loss scale %g",
                epoch,
                t.schedule.epochs,
                values["overflows"],
                values["loss_scale"],
            )
        best = (
            _test_networks(t, values, interrupt)
            if (epoch + 1) % cfg.TRAIN.EVAL_INTERVAL == 0 or epoch + 1 == t.schedule.epochs
            else {}
        )
        if processes.main:
            _restore_folder(t)
            for file, network in best.items():
                checkpoint.save(t.folder / file, _state(t, network))
                of, highest = (
                    (" of the average", progress.ema_score)
                    if "ema" in file
                    else ("", progress.best_score)
                )
                log.info("best score so far%s: %s; %s written", of, deciding_text(highest), file)
            t.metrics.write(**values)
        # last: a run that is killed before this trains the epoch again and writes the two again;
        # killed after it, the run has them
        progress.begin(epoch + 1)
        _save(t)
        _end_for_fault(t)
    if stale(t):
        log.info(
            "ended early: the best score has not risen in %d tests (TRAIN.PATIENCE)", progress.stale
        )
    if processes.main:
        checkpoint.save(t.folder / "final_state.pth", _state(t, bare))
        if t.average:
            checkpoint.save(t.folder / "final_state_ema.pth", _state(t, t.average.network))
    log.info(
        "done: best score %s at epoch %d%s; weights in %s",
        deciding_text(progress.best_score),
        progress.best_epoch,
        (
            f", of the average {deciding_text(progress.ema_score)} at epoch {progress.ema_epoch}"
            if t.average
            else ""
        ),
        t.folder,
    )


def stale(training: Training) -> bool:
    """Whether the run ends early."""
    return 0 < training.cfg.TRAIN.PATIENCE <= training.progress.stale


def _test_networks(
    training: Training, values: dict[str, float], interrupt: Interrupt
) -> dict[str, nn.Module]:
    """Test the weights and their average after an epoch; {file: the network whose weights belong
    there}, their figures in `values`.

    Progress changes when all have been tested: a run that is stopped between two of them tests both
    again.
    """
    t, progress, epoch = training, training.progress, training.progress.epoch
    networks = {"": device.bare(t.model), **({"ema": t.average.network} if t.average else {})}
    tested = {
        name: _test(t, network, t.folder / name, interrupt) for name, network in networks.items()
    }
    best: dict[str, nn.Module] = {}
    risen = False
    for name, (found, metrics, deciding) in tested.items():
        values.update({f"{name}_{key}" if name else key: value for key, value in metrics.items()})
        if t.processes.main and not name:
            _keep_fault(
                t,
                lambda found=found: _show(t.board, values, found, t.test_loader.crops.table, epoch),
            )
        highest = progress.ema_score if name else progress.best_score
        risen = risen or deciding > highest
        # of equal scores the later counts, as in HRNet; so the last weights are kept where a test
        # set has no labels and every score is 0
        if deciding >= highest and name:
            progress.ema_score, progress.ema_epoch, best["model_best_ema.pth"] = (
                deciding,
                epoch,
                networks[name],
            )
        elif deciding >= highest:
            progress.best_score, progress.best_epoch, best["model_best.pth"] = (
                deciding,
                epoch,
                networks[name],
            )
    progress.stale = 0 if risen else progress.stale + 1
    return best


def _test(
    training: Training, network: nn.Module, folder: Path, interrupt: Interrupt
) -> tuple[Predictions, dict[str, float], float]:
    """(predictions, {metric: value}, the one that decides) of the test set; result files go to
    folder/results.
    """
    t = training
    # batch norm's of rank 0 are those that are tested and saved
    t.processes.spread(network.buffers())
    try:
        found = predict(
            t.cfg,
            device.for_testing(t.cfg, network, t.devices),
            t.test_loader,
            t.device,
            t.codec,
            lambda: _asked(t, interrupt),
            t.processes,
        )
    except KeyboardInterrupt:
        _save_and_stop(t)
    metrics, deciding = t.processes.from_first(
        lambda: score(t.cfg, t.test_loader.crops.table, found, folder, t.told)
    )
    return (
        found,
        {
            **(
                {"valid_loss": found.loss, "valid_acc": found.accuracy}
                if found.loss is not None
                else {}
            ),
            **metrics,
        },
        deciding,
    )


def _state(training: Training, network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network as they are saved."""
    return checkpoint.state_of(training.cfg, network, experiment_name(training.cfg_path))


def _save(training: Training) -> None:
    """The run folder's checkpoint, by rank 0. The others wait: a process that ended meanwhile
    would make torchrun end rank 0.
    """
    t = training

    def content() -> dict:
        _restore_folder(t)
        average = {"ema": t.average.state_dict()} if t.average else {}
        return {
            **checkpoint.origin(t.cfg, t.cfg_path, t.cfg.SEED),
            **t.progress.position(),
            "state_dict": _state(t, device.bare(t.model)),
            "genotype": cells_of(t.model),
            "optimizer": t.optimizer.state_dict(),
            "optimizer_kind": t.cfg.TRAIN.OPTIMIZER,
            "schedule": asdict(t.schedule),
            "scaler": t.scale.state_dict(),
            **average,
        }

    begun_anew = t.progress.kept is None or not checkpoint.same_folder(
        t.progress.kept.parent, t.folder
    )
    t.processes.from_first(
        lambda: checkpoint.write(
            t.folder, content(), t.cfg.TRAIN.CHECKPOINTS_KEPT, first=begun_anew
        )
    )
    t.progress.kept = t.folder / checkpoint.NAME
    t.saved_at = time.monotonic()


def _keep_fault(training: Training, write: Callable[[], None]) -> None:
    """Write what the run does not need to go on; where that fails it ends with a checkpoint, as
    when it is asked to.
    """
    try:
        write()
    except PoiseError as error:
        training.fault = training.fault or error


def _asked(training: Training, interrupt: Interrupt) -> bool:
    return interrupt.asked or training.fault is not None


def _end_for_fault(training: Training) -> None:
    """Raise rank 0's fault, if there is one, in all processes. A checkpoint has been written."""
    fault = training.processes.from_first(lambda: training.fault and str(training.fault))
    if fault:
        raise DataError(
            f"{fault}; {training.progress.kept} is written, {run_folder.resume_hint(training.cfg)}"
        )


def _save_and_stop(training: Training) -> NoReturn:
    _save(training)
    _end_for_fault(training)
    raise Interrupted(
        f"stopped at epoch {training.progress.epoch}, step {training.progress.step};"
        f" {training.progress.kept} is written, {run_folder.resume_hint(training.cfg)}"
    )


def train_one_epoch(training: Training, interrupt: Interrupt) -> None:
    """The rest of progress.epoch from progress.step on. Returns early, between two steps, when an
    interrupt is asked for.

    The loss of a step is looked at after the next one has been launched, so that a GPU does not
    wait for the CPU's look. Of several processes each trains on its share of a batch, and all of
    them have the sums over the whole batches.
    """
    from tqdm import tqdm

    cfg, schedule, progress, processes, where, loader = (
        training.cfg,
        training.schedule,
        training.progress,
        training.processes,
        training.device,
        training.loader,
    )
    table, sums, codec = loader.crops.table, progress.sums, training.codec
    training.model.train()
    loader.batches.begin(progress.epoch, progress.step)
    steps = schedule.steps_in(progress.epoch)
    bar = tqdm(
        total=steps,
        initial=progress.step,
        desc=f"epoch {progress.epoch}/{schedule.epochs}",
        unit="step",
        leave=False,
        disable=None if processes.main else True,
    )
    pending: list[StepFigures] = []
    stop = old = False  # whether one was asked to stop; whether the last checkpoint is
    begin = time.perf_counter()

    def settle() -> None:
        """Look at the loss, and take the figures of all processes into the sums; with them each
        learns that one was asked to stop.
        """
        nonlocal pending, stop, old
        if not pending:
            return
        figures, parts, pending = [0.0] * 4, pending, []
        for part in parts:
            value = float(part.loss)
            if not math.isfinite(value):
                names = ", ".join(dict.fromkeys(table.image_name(int(p)) for p in part.persons))
                raise PoiseError(
                    f"epoch {progress.epoch}, step {progress.step - 1}: the loss is {value};"
                    f" {_kept_text(progress)};"
                    f" lower TRAIN.LR, or look at the images of this batch: {names}"
                )
            if part.own:
                figures = [
                    a + b
                    for a, b in zip(
                        figures,
                        (value * part.own, float(part.right), float(part.counted), part.own),
                    )
                ]
        sums["overflows"] += training.scale.overflowed()
        age = time.monotonic() - training.saved_at
        *figures, asked, due = processes.sum(
            [
                *figures,
                float(_asked(training, interrupt)),
                float(processes.main and 0 < 60 * cfg.TRAIN.CHECKPOINT_MINUTES <= age),
            ]
        )
        for name, figure in zip(("loss", "right", "counted", "samples"), figures):
            sums[name] += figure
        stop, old = stop or asked > 0, due > 0

    with bar:
        for batch in itertools.islice(loader, steps - progress.step):
            data_seconds = time.perf_counter() - begin
            step = progress.epoch * schedule.steps_per_epoch + progress.step
            _, whole = loader.batches.share(progress.step)
            pending, shown = train_step(training, codec, batch, settle)
            progress.step += 1
            if where.type == "cpu" or progress.step == steps:
                settle()
            seconds = time.perf_counter() - begin
            sums["seconds"] += seconds
            sums["data_seconds"] += data_seconds
            bar.update()
            if processes.main and (progress.step % cfg.PRINT_FREQ == 0 or progress.step == steps):
                _report(training, bar, step, schedule.rate(step), seconds, data_seconds, whole)
                if training.pictures:
                    _keep_fault(
                        training,
                        lambda shown=shown: training.pictures.add(
                            training.folder / "debug" / f"train_{progress.epoch}_{progress.step}",
                            *shown,
                        ),
                    )
            if stop or _asked(training, interrupt) and processes.world == 1:
                settle()
                return
            if old or cfg.TRAIN.CHECKPOINT_STEPS and (step + 1) % cfg.TRAIN.CHECKPOINT_STEPS == 0:
                settle()
                _check_weights(training)
                _save(training)
                old = False
            training.threads.look()
            begin = time.perf_counter()


def _report(
    training: Training,
    bar,
    step: int,
    rate: float,
    seconds: float,
    data_seconds: float,
    samples: int,
) -> None:
    """A line in the log, and TensorBoard's figures, of a step counted over the whole training."""
    progress, mean = training.progress, training.progress.averages()
    bar.set_postfix(
        loss=f"{mean['train_loss']:.5f}",
        acc=f"{mean['train_acc']:.3f}",
        lr=f"{rate:g}",
        refresh=False,
    )
    log.info(
        "epoch %d/%d [%d/%d]  %.3f s/step (%.3f waiting for data)  %.1f images/s  loss %.6f "
        " accuracy %.3f  lr %g",
        progress.epoch,
        training.schedule.epochs,
        progress.step,
        training.schedule.steps_in(progress.epoch),
        seconds,
        data_seconds,
        samples / seconds,
        mean["train_loss"],
        mean["train_acc"],
        rate,
        extra=logger.FILE_ONLY if sys.stderr.isatty() else None,
    )
    figures = {
        "train_loss": mean["train_loss"],
        "train_acc": mean["train_acc"],
        "learning_rate": rate,
        "images_per_second": samples / seconds,
        "data_waiting_seconds": data_seconds,
    }
    _keep_fault(training, lambda: training.board.scalars(figures, step + 1))


def _show(
    board: logger.TensorBoard,
    values: dict[str, float],
    found: Predictions,
    table: PersonTable,
    epoch: int,
) -> None:
    """The epoch's figures and its first test batch on the TensorBoard page."""
    train_side = ("epoch", "lr", "train_loss", "train_acc", "images_per_second", "data_time_share")
    board.scalars(
        {
            name if name.startswith("valid") else f"test/{name}": value
            for name, value in values.items()
            if name not in train_side
        },
        epoch,
    )
    board.batch(found.first_batch, table.skeleton, epoch)


def _check_weights(training: Training) -> None:
    """The last step may spoil weights, batch norm's figures or the average without a loss to
    show it; such a network is not saved.
    """
    progress, bare = training.progress, device.bare(training.model)
    looked_at = {"a weight": bare.parameters(), "a running figure of batch norm": bare.buffers()}
    if training.average:
        looked_at["a figure of the weights' average"] = (
            training.average.network.state_dict().values()
        )
    for what, tensors in looked_at.items():
        finite = [torch.isfinite(tensor).all() for tensor in tensors]
        if finite and not torch.stack(finite).all():  # one look at a GPU, not hundreds
            raise PoiseError(
                f"epoch {progress.epoch}: {what} is not finite after the last step; lower"
                " TRAIN.LR; "
                f"{_kept_text(progress)}"
            )


if TYPE_CHECKING:
    from poise.engine.train import Training

# the random numbers of one seed's steps do not meet those of the next one's
_STEPS_OF_A_SEED = 1_000_000_007


@dataclass
class StepFigures:
    """What is looked at of a part of a step when it is done. right, counted: joints, for the
    accuracy; own: the process's own samples.
    """

    loss: torch.Tensor
    right: torch.Tensor
    counted: torch.Tensor
    own: int
    persons: torch.Tensor


def train_step(
    training: Training,
    codec: Codec,
    batch: dict[str, torch.Tensor],
    before_backward: Callable[[], None],
) -> tuple[list[StepFigures], tuple]:
    """The step progress.step of the epoch, on this process's share of its batch, in parts
    (TRAIN.ACCUMULATE); progress stays as it is.

    before_backward is called when the first part's loss has been launched. Returns the figures of
    each part, and what can be shown of the last: (batch, normalised images, its last outputs,
    targets).
    """
    cfg, model, optimizer, progress, processes = (
        training.cfg,
        training.model,
        training.optimizer,
        training.progress,
        training.processes,
    )
    step = progress.epoch * training.schedule.steps_per_epoch + progress.step
    own, whole = training.loader.batches.share(progress.step)
    set_learning_rate(optimizer, training.schedule.rate(step))
    # stochastic depth draws from it; so a resumed run draws the same, and each process something
    # else
    torch.manual_seed(
        (cfg.SEED * _STEPS_OF_A_SEED + step * processes.world + processes.rank) % 2**63
    )
    figures: list[StepFigures] = []
    parts = _parts(
        batch, own, cfg.TRAIN.ACCUMULATE, training.loader.batches.batch_size, whole, processes.world
    )
    for number, (part, count) in enumerate(parts):
        last = number == len(parts) - 1
        with (
            nullcontext()
            if last or not isinstance(model, DistributedDataParallel)
            else model.no_sync()
        ):
            images = normalize(cfg, part["images"], training.device)
            targets = encode_targets(cfg, codec, part, training.device)
            with autocast(cfg, training.device):
                outputs = model(images)
            outputs = [map_output(torch.Tensor.float, output) for output in outputs]
            loss = codec.loss(outputs, targets)
            if not number:
                before_backward()
                optimizer.zero_grad()
            # gradients become the mean over processes: by this weight they are those of the mean
            # over the whole batch
            training.scale.backward(loss * (count * processes.world / whole))
        prediction = map_output(torch.Tensor.detach, outputs[-1])
        with torch.no_grad():
            figures.append(
                StepFigures(
                    loss.detach(),
                    *codec.accuracy(prediction, targets),
                    count,
                    part["person"],
                )
            )
    training.scale.step(optimizer)
    if training.average and not training.scale.left_out():
        training.average.update(bare(model))
    return figures, (part, images, prediction, targets)


def smallest_part(batches: EpochBatches, steps: int, parts: int = 1, devices: int = 1) -> int:
    """Return the fewest samples that a device has in one of the first `steps` batches of an
    epoch: in the first or the last.
    """
    found = []
    for number in (0, min(steps, batches.count) - 1):
        own, whole = batches.share(number)
        # a process without own rows has the batch's first
        rows = {"rows": torch.empty(max(own, 1))}
        for part, _ in _parts(rows, own, parts, batches.batch_size, whole, batches.world):
            found.append(len(part["rows"].chunk(devices)[-1]))  # as DataParallel divides it
    return min(found)


def _parts(
    batch: dict[str, torch.Tensor], own: int, parts: int, batch_size: int, whole: int, world: int
) -> list[tuple[dict[str, torch.Tensor], int]]:
    """[(rows of a batch, how many of them are the process's own)]: as many parts in every process,
    and no more than have something to do.

    A process without rows of its own for a part has its first row there, as the whole share has in
    EpochBatches. whole: samples of the step; batch_size: of a full one.
    """
    if parts == 1:
        return [(batch, own)]
    largest, size = -(-whole // world), -(-batch_size // (world * parts))
    count = -(-largest // size)
    edges = [own * number // count for number in range(count + 1)]
    return [
        ({key: rows[a:b] if b > a else rows[:1] for key, rows in batch.items()}, b - a)
        for a, b in zip(edges, edges[1:])
    ]


def _kept_text(progress: Progress) -> str:
    if progress.kept:
        return f"the last good checkpoint is {progress.kept}"
    return "no checkpoint was written yet"
