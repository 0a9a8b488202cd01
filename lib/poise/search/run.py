"""Search one experiment's cells: read top to bottom."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from yacs.config import CfgNode

from poise.datasets import build_loader, read_set
from poise.datasets.loader import BatchLoader
from poise.datasets.validation.findings import Findings
from poise.datasets.validation.run import check_scored
from poise.engine import device as devices
from poise.engine import logger, run_folder
from poise.engine.device import CpuThreads
from poise.engine.distributed import ALONE, Processes
from poise.engine.evaluate import score
from poise.engine.memory import machine_limits
from poise.engine.predict import predict
from poise.engine.resuming import check_finished
from poise.engine.signals import Interrupt, Interrupted
from poise.engine.sync_bn import check_single_sample
from poise.engine.train import smallest_part
from poise.errors import ConfigError, DataError, PoiseError
from poise.evaluation.evaluators import build_evaluator
from poise.io.files import replacing
from poise.models.posenas.genotypes import Genotype, write_genotype
from poise.search import split
from poise.search.alternation import Alternation
from poise.search.architecture import probabilities
from poise.search.drawing import write_drawing
from poise.search.progress import NAME, SearchProgress, find_kept
from poise.search.records import LAST, PICTURE, Records, plain_config
from poise.search.space import Space
from poise.search.supernet import build, weights_of
from poise.search.trial import measure, search_advice

log = logging.getLogger(__name__)


@dataclass
class Search:
    """What a search consists of. test_loader is None where SEARCH.EVAL_INTERVAL is 0."""

    cfg: CfgNode
    cfg_path: str
    folder: Path
    halves: split.Split
    space: Space
    alternation: Alternation
    weights_loader: BatchLoader
    architecture_loader: BatchLoader
    test_loader: BatchLoader | None
    threads: CpuThreads
    progress: SearchProgress
    records: Records

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch: the weights' batches, and once both are trained in turns no more
        than the shorter loader has, as in PoseNAS.
        """
        if epoch < self.cfg.SEARCH.INIT_EPOCHS:
            return len(self.weights_loader)
        return min(len(self.weights_loader), len(self.architecture_loader))


def run(cfg: CfgNode, cfg_path: str, command: list[str], processes: Processes = ALONE) -> Genotype:
    """Search as SEARCH.* says, going on from the run folder's checkpoint with AUTO_RESUME; the
    genotype of the last epoch.

    Writes into OUTPUT_DIR/<dataset>/<model>/<experiment>: genotype.json, genotype_best.json (best
    test score), cells.svg, split.json, search.log, search.jsonl, search.pth, config.yaml, results/;
    and a TensorBoard folder as training does. Raises Interrupted after Ctrl-C, with a checkpoint
    written, and PoiseError for what cannot be used. A finished search is left as it is.
    """
    logger.start_console(processes.rank)
    if processes.world > 1:
        raise ConfigError("a search is one process; start it without torchrun")
    with machine_limits("search", search_advice(cfg)), run_folder.Lock() as lock:
        name = run_folder.choose(
            cfg,
            cfg_path,
            run_folder.SEARCH,
            lambda folder: cfg.AUTO_RESUME and (folder / NAME).exists(),
            lock,
        )
        return _run(run_folder.named(cfg, name), cfg_path, command, lock)


def _run(cfg: CfgNode, cfg_path: str, command: list[str], lock: run_folder.Lock) -> Genotype:
    """The search, in the folder of its RUN_NAME."""
    loading = _as_training(cfg)
    space = Space.from_config(cfg)
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    found = devices.choose_devices(cfg)
    device = found[0]
    if len(found) > 1:
        log.warning("a search uses one device: %s", device)
    saved = find_kept(cfg, cfg_path, folder)
    table, images = read_set(loading, train=True)
    halves = (
        split.Split.read(folder / split.NAME, cfg, table) if saved else split.Split.draw(cfg, table)
    )
    test_set = read_set(loading, train=False) if cfg.SEARCH.EVAL_INTERVAL else None
    if test_set:
        build_evaluator(cfg).check(test_set[0])
        found = Findings(f"test set {cfg.DATASET.TEST_SET}")
        check_scored(cfg, found)
        for finding in found.found:
            log.warning("%s", finding)
    on_gpu = device.type == "cuda"
    loaders = [
        build_loader(loading, part, images, train=True, on_gpu=on_gpu)
        for part in halves.tables(table)
    ]
    test_loader = build_loader(loading, *test_set, train=False, on_gpu=on_gpu) if test_set else None
    devices.set_up(cfg, [device])
    threads = CpuThreads(cfg, device, saved and saved["threads"])

    log.info(
        "split: %d images with %d persons for the weights, %d with %d for the architecture",
        len(halves.weights),
        len(loaders[0].crops),
        len(halves.architecture),
        len(loaders[1].crops),
    )
    cost = measure(cfg, space, _first_batch(loaders[0]), device)
    torch.manual_seed(cfg.SEARCH.SEED)
    alternation = Alternation(
        cfg, devices.lay_on(build(cfg, space), [device], cfg.CHANNELS_LAST), device
    )
    for loader in loaders:
        if smallest_part(loader.batches, loader.batches.count) == 1:
            check_single_sample(
                alternation.network,
                cfg.MODEL.IMAGE_SIZE,
                f"SEARCH.BATCH_SIZE {cfg.SEARCH.BATCH_SIZE}",
            )
    progress = SearchProgress()
    if saved:
        progress.take_over(saved, alternation, space)
        batches = loaders[0].batches
        if progress.step and progress.sums["weights_samples"] != min(
            progress.step * batches.batch_size, batches.samples
        ):
            log.warning(
                "epoch %d was begun with another batch size or training set; it is begun again",
                progress.epoch,
            )
            progress.begin(progress.epoch)
    if progress.genotype is not None and progress.epoch >= cfg.SEARCH.EPOCHS:
        check_finished(progress.kept, progress.changed, progress.epoch > cfg.SEARCH.EPOCHS)
        log.info(
            "%s: this search is finished, with the settings of its config.yaml; nothing is searched"
            " or written; a later SEARCH.EPOCHS continues it, another RUN_NAME starts a new search",
            folder,
        )
        return progress.genotype

    run_folder.make(cfg, cfg_path, run_folder.SEARCH, lock)
    logger.add_file(folder / "search.log")
    with logger.errors_in_file():
        logger.log_environment(loading, command)
        _write_origin(cfg, folder, halves)
        records = Records(cfg, cfg_path, folder, space, progress.epoch)
        search = Search(
            cfg,
            cfg_path,
            folder,
            halves,
            space,
            alternation,
            *loaders,
            test_loader,
            threads,
            progress,
            records,
        )
        _announce(search, cost)
        try:
            with (
                Interrupt() as interrupt,
                machine_limits(
                    "search", search_advice(cfg), lambda: progress.kept, run_folder.resume_hint(cfg)
                ),
            ):
                _epochs(search, interrupt)
        finally:
            records.close()
        log.info(
            "done: %s and %s in %s; train what was found with MODEL.GENOTYPE %s",
            LAST,
            PICTURE,
            folder,
            folder / LAST,
        )
    return progress.genotype


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


def _as_training(cfg: CfgNode) -> CfgNode:
    """The configuration as the loaders of a training read it: the search's seed and batch in
    their keys.
    """
    loading = cfg.clone()
    loading.defrost()
    loading.SEED, loading.TRAIN.BATCH_SIZE_PER_GPU = cfg.SEARCH.SEED, cfg.SEARCH.BATCH_SIZE
    loading.freeze()
    return loading


def _first_batch(loader: BatchLoader) -> dict[str, torch.Tensor]:
    """The first batch of the first epoch, made in this process."""
    loader.batches.begin(0)
    batch = loader.crops.__getitems__(next(iter(loader.batches)))
    if isinstance(batch, DataError):
        raise batch
    return batch


def _announce(search: Search, cost) -> None:
    s, progress = search.cfg.SEARCH, search.progress
    parameters = sum(weight.numel() for weight in weights_of(search.alternation.network).values())
    log.info(
        "search of %s: %d architecture values, a network of %.2f million parameters, %d samples a"
        " step",
        s.MODE,
        search.space.values,
        parameters / 1e6,
        s.BATCH_SIZE,
    )
    seconds = 0.0
    for epoch in range(progress.epoch, s.EPOCHS):
        turns = cost.weights_seconds + (cost.architecture_seconds if epoch >= s.INIT_EPOCHS else 0)
        seconds += turns * (
            search.steps_in(epoch) - (progress.step if epoch == progress.epoch else 0)
        )
    log.info("first batch: %s", cost)
    log.info(
        "epochs %d to %d, architecture from epoch %d on; %d and %d steps an epoch; about %s at this"
        " pace, tests not counted",
        progress.epoch,
        s.EPOCHS - 1,
        s.INIT_EPOCHS,
        search.steps_in(0),
        search.steps_in(s.EPOCHS - 1),
        logger.span(seconds),
    )


def _epochs(search: Search, interrupt: Interrupt) -> None:
    cfg, progress = search.cfg, search.progress
    while progress.epoch < cfg.SEARCH.EPOCHS:
        epoch, alone = progress.epoch, progress.epoch < cfg.SEARCH.INIT_EPOCHS
        search_one_epoch(search, interrupt)
        if interrupt.asked:
            _save_and_stop(search)
        figures = {"epoch": epoch, "lr": search.alternation.rate(epoch), **progress.averages()}
        log.info(
            "epoch %d/%d: %s, %.1f images/s, %.0f %% of the time waiting for data",
            epoch,
            cfg.SEARCH.EPOCHS,
            _losses(figures),
            figures["images_per_second"],
            100 * figures["data_time_share"],
        )
        best = False
        if search.test_loader and (
            (epoch + 1) % cfg.SEARCH.EVAL_INTERVAL == 0 or epoch + 1 == cfg.SEARCH.EPOCHS
        ):
            metrics, deciding = _test(search, interrupt)
            figures.update(metrics)
            # of equal scores the later counts, as in training
            best = not alone and deciding >= progress.best_score
            if best:
                progress.best_score, progress.best_epoch = deciding, epoch
        if alone:
            search.records.warm_up(figures)
        else:
            progress.genotype = search.records.epoch(
                figures,
                probabilities(search.alternation.network.architecture),
                progress.genotype,
                best,
            )
        # last: a search that is killed before this does the epoch again and writes the rest again
        progress.begin(epoch + 1)
        _save(search)


def _test(search: Search, interrupt: Interrupt) -> tuple[dict[str, float], float]:
    """Figures of the search's network, all candidates in it, on the test set; and the one that
    decides.
    """
    turns, table = search.alternation, search.test_loader.crops.table
    try:
        found = predict(
            search.cfg,
            turns.network,
            search.test_loader,
            turns.device,
            turns.codec,
            lambda: interrupt.asked,
        )
    except KeyboardInterrupt:
        _save_and_stop(search)
    metrics, deciding = score(search.cfg, table, found, search.folder)
    return {
        **(
            {"valid_loss": found.loss, "valid_acc": found.accuracy}
            if found.loss is not None
            else {}
        ),
        **metrics,
    }, deciding


def _write_origin(cfg: CfgNode, folder: Path, halves: split.Split) -> None:
    """Write what the search's checkpoint is resumed with."""
    halves.write(folder / split.NAME)
    with replacing(folder / "config.yaml") as part:
        part.write_text(cfg.dump(), encoding="utf-8")


def _save(search: Search) -> None:
    folder = search.folder
    if not (folder / "config.yaml").exists():
        _write_origin(search.cfg, folder, search.halves)
        logger.add_file(folder / "search.log")
        log.warning(
            "%s: the run folder was removed during the search; config.yaml and %s are written"
            " again, the rest is lost",
            folder,
            split.NAME,
        )
    search.progress.keep(
        search.folder / NAME, search.cfg, search.cfg_path, search.alternation, search.space
    )


def _save_and_stop(search: Search) -> None:
    _save(search)
    raise Interrupted(
        f"stopped at epoch {search.progress.epoch}, step {search.progress.step};"
        f" {search.progress.kept} is written, {run_folder.resume_hint(search.cfg)}"
    )


def search_one_epoch(search: Search, interrupt: Interrupt) -> None:
    """The rest of progress.epoch from progress.step on. Returns early, between two pairs of
    steps, when an interrupt is asked for.
    """
    from tqdm import tqdm

    cfg, turns, progress = search.cfg, search.alternation, search.progress
    epoch, alone, steps = (
        progress.epoch,
        progress.epoch < cfg.SEARCH.INIT_EPOCHS,
        search.steps_in(progress.epoch),
    )
    for loader in (search.weights_loader, search.architecture_loader):
        loader.batches.begin(epoch, progress.step)
    others = itertools.repeat(None) if alone else search.architecture_loader
    bar = tqdm(
        total=steps,
        initial=progress.step,
        desc=f"epoch {epoch}/{cfg.SEARCH.EPOCHS}",
        unit="step",
        leave=False,
        disable=None,
    )
    begin = time.perf_counter()
    with bar:
        for batches in zip(itertools.islice(search.weights_loader, steps - progress.step), others):
            waited = time.perf_counter() - begin
            pair = dict(zip(("weights", "architecture"), batches))
            for kind in sorted(pair, reverse=cfg.SEARCH.ORDER == "weights"):
                batch = pair[kind]
                if batch is None:
                    continue
                try:
                    figures = (
                        turns.weights_step(batch, epoch)
                        if kind == "weights"
                        else turns.architecture_step(batch)
                    )
                except PoiseError as error:
                    raise PoiseError(f"epoch {epoch}, step {progress.step}: {error}") from None
                progress.add(kind, figures, len(batch["images"]))
            progress.step += 1
            seconds = time.perf_counter() - begin
            progress.sums["seconds"] += seconds
            progress.sums["data_seconds"] += waited
            bar.update()
            if progress.step % cfg.PRINT_FREQ == 0 or progress.step == steps:
                log.info(
                    "epoch %d/%d [%d/%d]  %.3f s/step (%.3f waiting for data)  %s",
                    epoch,
                    cfg.SEARCH.EPOCHS,
                    progress.step,
                    steps,
                    seconds,
                    waited,
                    _losses(progress.averages()),
                    extra=logger.FILE_ONLY if sys.stderr.isatty() else None,
                )
            if interrupt.asked:
                return
            search.threads.look()
            begin = time.perf_counter()


def _losses(figures: dict[str, float]) -> str:
    return ", ".join(
        f"{kind} loss {figures[f'{kind}_loss']:.6f}, accuracy {figures[f'{kind}_acc']:.3f}"
        for kind in ("weights", "architecture")
        if f"{kind}_loss" in figures
    )
