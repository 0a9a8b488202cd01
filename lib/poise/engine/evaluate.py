"""Evaluate one experiment: load weights, predict, compute metrics, draw images."""

from __future__ import annotations

import glob
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from yacs.config import CfgNode

from poise.codecs import build_codec, codec_class
from poise.config import data_path
from poise.config.datasets import dataset_info
from poise.datasets import READERS, ImageFolder, PersonTable, build_loader, load_split
from poise.datasets.mixing import ConcatImageFolders
from poise.datasets.sampler import Shard
from poise.engine import device, logger
from poise.engine.device import CpuThreads
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext, local_world_size
from poise.engine.memory import resource_errors, testing_memory_hint
from poise.engine.predict import Predictions, predict
from poise.engine.trained_weights import load_trained_weights, untrained_weights_warning
from poise.errors import ConfigError, DataError, pluralize
from poise.evaluation import format_table
from poise.evaluation.evaluators import EVALUATORS, build_evaluator
from poise.evaluation.results import box_ids_by_image, prediction_batches, write_pickle
from poise.io.files import gc_disabled
from poise.models import build_model
from poise.models.weights import zoo
from poise.visualization import draw

log = logging.getLogger(__name__)

_MIN_DRAWING_SIDE = 640  # pixels of the longer side of a drawn image


def run(
    cfg: CfgNode,
    cfg_path: str,
    command: list[str],
    processes: DistributedContext = SINGLE_PROCESS,
    *,
    metrics: Sequence[str] = (),
    out: str | Path | None = None,
) -> OrderedDict[str, float]:
    """Evaluate TEST.MODEL_FILE, or the best weights of the run folder, on DATASET.TEST_SET.

    All processes call this. Writes test.log, results/ and pictures/ to the run folder.

    Args:
        cfg: the experiment.
        cfg_path: its file.
        command: for the log.
        processes: the processes that share the work.
        metrics: mmpose's names of metrics; only checked, see `validate_eval_args`.
        out: pickle for the predictions, as mmpose writes it.

    Returns:
        {metric: value}.

    Raises PoiseError for invalid input.
    """
    logger.start_console(processes.rank)
    validate_eval_args(cfg, metrics, out)
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    devices = device.choose_devices(cfg, processes)
    model = build_model(cfg)
    weights_warning = ""
    if processes.is_main_process:
        file = find_weights(cfg, folder)
        log.info("weights: %s", file)
        report = load_trained_weights(cfg, model, file)
        weights_warning = untrained_weights_warning(model, report)
    processes.broadcast_(model.state_dict().values())
    table, images = load_split(cfg, train=False)
    if processes.is_main_process:
        build_evaluator(cfg).check(table)
    loader = build_loader(
        cfg,
        table,
        images,
        train=False,
        devices=len(devices),
        on_gpu=devices[0].type == "cuda",
        shard=Shard(processes.rank, processes.world_size, local_world_size()),
    )
    device.configure_cudnn(cfg, devices)
    CpuThreads(cfg.CPU_THREADS, devices[0])
    # the folder is created after everything that can be wrong with the input was checked
    processes.run_on_main(logger.make_run_folder, cfg, cfg_path)
    logger.add_file(folder / "test.log", processes.rank)
    if processes.is_main_process:
        logger.log_environment(cfg, command)
    with logger.errors_in_file(), resource_errors("test", testing_memory_hint(cfg)):
        network = device.prepare_for_inference(cfg, model, devices)
        device.compile_network(cfg, network, devices)
        predictions = predict(
            cfg, network, loader, devices[0], build_codec(cfg), processes=processes
        )
        values: OrderedDict[str, float] = OrderedDict()
        if processes.is_main_process:
            if out:
                batch_size = loader.batch_sampler.batch_size
                write_predictions(cfg, table, predictions, images, out, batch_size)
            values, _ = evaluate_predictions(
                cfg, table, predictions, folder, per_joint=True, weights_warning=weights_warning
            )
            draw_predictions(cfg, table, predictions, images, folder)
        return processes.run_on_main(lambda: values)


def find_weights(cfg: CfgNode, folder: Path) -> Path:
    """Return TEST.MODEL_FILE, or the best or final weights of the run folder.

    Raises DataError if there are none.
    """
    if cfg.TEST.MODEL_FILE:
        path = Path(data_path(cfg, cfg.TEST.MODEL_FILE))
        if not path.is_file():
            raise DataError(f"TEST.MODEL_FILE {path}: no such weight file{zoo.download_hint(path)}")
        return path
    if not cfg.RUN_NAME and (later := _later_run(folder)):
        log.warning(
            "%s: a later run of this experiment has its weights in %s; set RUN_NAME %s to test"
            " them",
            folder,
            later,
            later.name,
        )
    if file := _weights_in(folder):
        return file
    raise DataError(
        f"TEST.MODEL_FILE is empty and {folder} has no model_best.pth or final_state.pth;"
        " train first, set TEST.MODEL_FILE x.pth, or "
        f"{zoo.experiment_download_hint(folder.name, cfg.DATASET.DATASET)}"
    )


def _weights_in(folder: Path) -> Path | None:
    """Return the best weights of a run folder, or its final ones, or None."""
    files = (folder / name for name in ("model_best.pth", "final_state.pth"))
    return next((file for file in files if file.is_file()), None)


def _later_run(folder: Path) -> Path | None:
    """Return the newest of the run folders NAME-2, NAME-3, ... with weights, or None.

    NAME-2 may also be the name of an experiment: config.yaml of a renamed run has RUN_NAME.
    """
    runs: dict[int, Path] = {}
    for path in folder.parent.glob(f"{glob.escape(folder.name)}-*/config.yaml"):
        number = path.parent.name.removeprefix(f"{folder.name}-")
        taken = f"RUN_NAME: {path.parent.name}" in path.read_text("utf-8", "replace").splitlines()
        if number.isdecimal() and taken and _weights_in(path.parent):
            runs[int(number)] = path.parent
    return runs[max(runs)] if runs else None


def draw_predictions(
    cfg: CfgNode,
    table: PersonTable,
    predictions: Predictions,
    images: ImageFolder | ConcatImageFolders,
    folder: Path,
) -> list[Path]:
    """Draw the first TEST.PICTURES images to folder/pictures; return the files.

    Keypoints of low score are not drawn.
    """
    written: list[Path] = []
    vis_threshold = codec_class(cfg.MODEL.TARGET_TYPE).vis_threshold
    for index in list(dict.fromkeys(table.image_index.tolist()))[: cfg.TEST.PICTURES]:
        name = table.image_names[index]
        image = images.read(name).copy()
        zoom = max(_MIN_DRAWING_SIDE / max(image.shape[:2]), 1.0)
        if zoom > 1:  # or lines would cover the persons
            image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        is_drawn = (table.score >= 0.5) | (table.box_source == "gt")
        persons = np.flatnonzero((table.image_index == index) & is_drawn)
        for number, person in enumerate(persons):
            draw.draw_person(
                image,
                (predictions.keypoints[person] + 0.5) * zoom - 0.5,
                table.skeleton,
                shown=predictions.scores[person] > vis_threshold,
                person_side=float(table.box_wh[person].max()) * zoom,
                limb_color=draw.person_color(number) if len(persons) > 1 else None,
            )
        # folders become part of the name, so that cam1/0001.jpg and cam2/0001.jpg are two files
        stem = Path(name).with_suffix("").as_posix().replace("/", "_")
        written.append(folder / "pictures" / f"{stem}.jpg")
        draw.save_image(written[-1], image)
    if written:
        count = pluralize(len(written), "image")
        log.info("%s with predictions in %s", count, folder / "pictures")
    return written


def validate_eval_args(
    cfg: CfgNode, metrics: Sequence[str] = (), out: str | Path | None = None
) -> None:
    """Raise ConfigError for metrics of other datasets and for an invalid output file.

    Args:
        metrics: mmpose's names.
        out: file for the predictions.
    """
    metric = EVALUATORS[dataset_info(cfg).metric].eval_name
    others = [name for name in metrics if name != metric]
    if others:
        raise ConfigError(
            f"--eval {others[0]}: {cfg.DATASET.DATASET} is always evaluated with {metric};"
            f" set --eval {metric} or omit it"
        )
    if out and (Path(out).suffix not in (".pkl", ".pickle") or Path(out).is_dir()):
        raise ConfigError(
            f"--out {out}: predictions are written to a pickle; set a file that ends in .pkl"
        )


def evaluate_predictions(
    cfg: CfgNode,
    table: PersonTable,
    predictions: Predictions,
    folder: Path,
    reported_reasons: set[str] | None = None,
    *,
    per_joint: bool = False,
    weights_warning: str = "",
) -> tuple[OrderedDict[str, float], float]:
    """Compute the metrics, log them, and write the result files to folder/results.

    Args:
        cfg: the experiment.
        table: persons of the test set.
        predictions: of these persons.
        folder: the run folder.
        reported_reasons: reasons for metrics of 0 or -1 that are in the log, not to be logged
            again; new ones are added.
        per_joint: also log a table with a row for each keypoint.
        weights_warning: what may be wrong with the weights, logged with a metric of 0.

    Returns:
        {metric: value} and the score that selects the best weights. The metrics are empty for a
        test set without labels.
    """
    results = folder / "results"
    reported_reasons = set() if reported_reasons is None else reported_reasons
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{results}: cannot be created ({error.strerror}); set OUTPUT_DIR to a place you may"
            " write to"
        ) from None
    evaluator = build_evaluator(cfg)
    # the annotations are hundreds of thousands of dictionaries without reference cycles
    with gc_disabled():
        evaluator.process(table, predictions.keypoints, predictions.scores, results)
        metrics = evaluator.compute()
        if not metrics:
            return OrderedDict(), 0.0
        log.info(
            "%s, %s, flip test %s:",
            cfg.DATASET.TEST_SET,
            evaluator.describe_boxes(),
            "on" if cfg.TEST.FLIP_TEST else "off",
        )
        log.info("%s", format_table(metrics, cfg.MODEL.NAME))
        _warn_once(evaluator.diagnose(metrics, weights_warning), reported_reasons)
        if per_joint:
            log.info("%s", evaluator.format_keypoint_table())
    metric = float(metrics[evaluator.primary_metric])
    return OrderedDict(metrics), selection_score(metric, predictions.loss)


def selection_score(metric: float, loss: float | None) -> float:
    """Return the score that selects the best weights, the higher the better.

    It is the primary metric. A metric of -1 or NaN has no labeled persons and never changes, so the
    validation loss is used instead, as -1 - loss, which is below every metric; without it -1.
    """
    if metric > -1:
        return metric
    return -1.0 if loss is None else -1.0 - loss


def format_score(score: float) -> str:
    """Format a `selection_score` for the log."""
    if score < -1 and np.isfinite(score):
        return f"validation loss {-1.0 - score:.6f} (the metric has no labeled persons)"
    return f"{score:.4f}"


def write_predictions(
    cfg: CfgNode,
    table: PersonTable,
    predictions: Predictions,
    images: ImageFolder | ConcatImageFolders,
    path: str | Path,
    batch_size: int,
) -> None:
    """Write all predictions, before NMS, to a pickle like mmpose 0.x.

    mmpose counts the annotated boxes (bbox_ids) in each COCO image from 0; detections and the
    persons of MPII over the whole set. See poise.evaluation.results.prediction_batches.
    """
    reader = READERS[dataset_info(cfg).format]
    by_image = reader.box_ids_per_image and table.box_source == "gt"
    ids: Any = box_ids_by_image(table.image_index) if by_image else range(len(table))
    paths = [f"{images.location}/{table.image_name(person)}" for person in range(len(table))]
    keypoints = np.concatenate([predictions.keypoints, predictions.scores[:, :, None]], axis=2)
    write_pickle(
        path,
        prediction_batches(
            keypoints, table.center, table.scale, table.score, paths, ids, batch_size
        ),
    )
    log.info("%d predictions in batches of %d written to %s", len(table), batch_size, path)


def _warn_once(reasons: Sequence[str], reported_reasons: set[str]) -> None:
    """Log the reasons that were not logged before."""
    for reason in reasons:
        if reason not in reported_reasons:
            log.warning("%s", reason)
    reported_reasons.update(reasons)
