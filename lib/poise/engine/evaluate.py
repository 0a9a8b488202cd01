"""Test one experiment: weights, predictions, figures, pictures."""

from __future__ import annotations

import glob
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

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


def run(
    cfg: CfgNode,
    cfg_path: str,
    command: list[str],
    processes: DistributedContext = SINGLE_PROCESS,
    *,
    metrics: Sequence[str] = (),
    out: str | Path | None = None,
) -> OrderedDict[str, float]:
    """Test the weights TEST.MODEL_FILE, or the best ones of the run folder, on DATASET.TEST_SET;
    one of `processes`, which all call this.

    Writes test.log, results/ and pictures/ in the run folder, and the predictions in mmpose's form
    to `out`, if given. metrics: names that mmpose has for what is evaluated in any case, checked.
    Returns {metric: value}. Raises PoiseError for what cannot be used.
    """
    logger.start_console(processes.rank)
    validate_eval_args(cfg, metrics, out)
    folder = Path(cfg.OUTPUT_DIR) / logger.run_names(cfg, cfg_path)
    devices = device.choose_devices(cfg, processes)
    model, doubts = build_model(cfg), ""
    if processes.is_main_process:
        file = model_file(cfg, folder)
        log.info("%s", f"weights: {file}")
        doubts = untrained_weights_warning(model, load_trained_weights(cfg, model, file))
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
    processes.run_on_main(lambda: logger.make_run_folder(cfg, cfg_path))
    logger.add_file(folder / "test.log", processes.rank)
    if processes.is_main_process:
        logger.log_environment(cfg, command)

    def use(found: Predictions) -> OrderedDict[str, float]:
        if out:
            write_predictions(cfg, table, found, images, out, loader.batch_sampler.batch_size)
        values, _ = evaluate_predictions(cfg, table, found, folder, per_joint=True, weights=doubts)
        draw_predictions(cfg, table, found, images, folder)
        return values

    with logger.errors_in_file(), resource_errors("test", testing_memory_hint(cfg)):
        codec = build_codec(cfg)
        tested = device.prepare_for_inference(cfg, model, devices)
        device.compile_network(cfg, tested, devices)
        found = predict(cfg, tested, loader, devices[0], codec, processes=processes)
        return processes.run_on_main(lambda: use(found))


def model_file(cfg: CfgNode, folder: Path) -> Path:
    """TEST.MODEL_FILE, else the run folder's best or final weights. Raises DataError where there
    are none.
    """
    if cfg.TEST.MODEL_FILE:
        path = Path(data_path(cfg, cfg.TEST.MODEL_FILE))
        if not path.is_file():
            raise DataError(f"TEST.MODEL_FILE {path}: no such weight file{zoo.download_hint(path)}")
        return path
    if not cfg.RUN_NAME and (later := _later_run(folder)):
        log.warning(
            "%s: a later run of this experiment has its weights in %s; test those with RUN_NAME %s",
            folder,
            later,
            later.name,
        )
    if file := _weights_in(folder):
        return file
    raise DataError(
        f"TEST.MODEL_FILE is empty and {folder} holds no model_best.pth or final_state.pth: "
        "train first, give TEST.MODEL_FILE x.pth, or "
        f"{zoo.experiment_download_hint(folder.name, cfg.DATASET.DATASET)}"
    )


def _weights_in(folder: Path) -> Path | None:
    """Return the best weights of a run folder, else its final ones; None where it has none."""
    files = (folder / name for name in ("model_best.pth", "final_state.pth"))
    return next((file for file in files if file.is_file()), None)


def _later_run(folder: Path) -> Path | None:
    """Return the newest of the folders NAME-2, NAME-3, ... that a run took and that has weights.

    NAME-2 may also be the name of an experiment; config.yaml has RUN_NAME for a run's own folder.
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
    found: Predictions,
    images: ImageFolder | ConcatImageFolders,
    folder: Path,
) -> list[Path]:
    """The first TEST.PICTURES images with their predicted skeletons, in folder/pictures. Joints
    of low score are not drawn.
    """
    written: list[Path] = []
    least = codec_class(cfg.MODEL.TARGET_TYPE).vis_threshold
    for index in list(dict.fromkeys(table.image_index.tolist()))[: cfg.TEST.PICTURES]:
        name = table.image_names[index]
        image = images.read(name).copy()
        # small pictures are enlarged, or lines would cover what they show
        if max(image.shape[:2]) < 640:
            zoom = 640 / max(image.shape[:2])
            image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        else:
            zoom = 1.0
        persons = np.flatnonzero(
            (table.image_index == index) & ((table.score >= 0.5) | (table.box_source == "gt"))
        )
        for number, person in enumerate(persons):
            points = (found.keypoints[person] + 0.5) * zoom - 0.5
            draw.draw_person(
                image,
                points,
                table.skeleton,
                shown=found.scores[person] > least,
                person_side=float(table.box_wh[person].max()) * zoom,
                limb_color=draw.person_color(number) if len(persons) > 1 else None,
            )
        # folders become part of the name: cam1/0001.jpg and cam2/0001.jpg are two pictures
        written.append(
            folder / "pictures" / f"{Path(name).with_suffix('').as_posix().replace('/', '_')}.jpg"
        )
        draw.save_image(written[-1], image)
    if written:
        log.info(
            "%s with predictions in %s", pluralize(len(written), "picture"), folder / "pictures"
        )
    return written


def validate_eval_args(
    cfg: CfgNode, metrics: Sequence[str] = (), out: str | Path | None = None
) -> None:
    """Raise ConfigError for metrics that the dataset does not have, by mmpose's names, and for a
    file that predictions cannot go to.
    """
    own = EVALUATORS[dataset_info(cfg).metric].eval_name
    others = [name for name in metrics if name != own]
    if others:
        raise ConfigError(
            f"--eval {others[0]}: {cfg.DATASET.DATASET} is evaluated with {own}, and always is;"
            f" give --eval {own} or leave it out"
        )
    if out and (Path(out).suffix not in (".pkl", ".pickle") or Path(out).is_dir()):
        raise ConfigError(
            f"--out {out}: predictions are written to a pickle; give a file that ends in .pkl"
        )


def evaluate_predictions(
    cfg: CfgNode,
    table: PersonTable,
    found: Predictions,
    folder: Path,
    reported_reasons: set[str] | None = None,
    *,
    per_joint: bool = False,
    weights: str = "",
) -> tuple[OrderedDict[str, float], float]:
    """Result files in folder/results, the family's table in the log; ({metric: value}, the one that
    decides which weights are best).

    reported_reasons: reasons for figures of 0 or -1 that an earlier test has logged, which are
    not repeated, and to which others are added. per_joint: a second table with a row per joint.
    weights: what may be wrong with the network's, told with a figure of 0. Test sets have no public
    labels: for them only the files are written and the metrics are empty.
    """
    results = folder / "results"
    reported_reasons = set() if reported_reasons is None else reported_reasons
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{results}: cannot be made ({error.strerror}); set OUTPUT_DIR to a place you may"
            " write to"
        ) from None
    evaluator = build_evaluator(cfg)
    # an annotation file is hundreds of thousands of dictionaries, none of them garbage
    with gc_disabled():
        evaluator.process(table, found.keypoints, found.scores, results)
        figures = evaluator.compute()
        if not figures:
            return OrderedDict(), 0.0
        log.info(
            "%s, %s, flip test %s:",
            cfg.DATASET.TEST_SET,
            evaluator.describe_boxes(),
            "on" if cfg.TEST.FLIP_TEST else "off",
        )
        log.info("%s", format_table(figures, cfg.MODEL.NAME))
        _warn_once(evaluator.diagnose(figures, weights), reported_reasons)
        if per_joint:
            log.info("%s", evaluator.format_keypoint_table())
    best = float(figures[evaluator.primary_metric])
    return OrderedDict(figures), primary_metric(best, found.loss)


def primary_metric(figure: float, loss: float | None) -> float:
    """Return the figure that decides which weights are best: the higher, the better.

    A metric of -1 or NaN has nobody to count and never changes, so the validation loss decides:
    -1 - loss, which is below every figure of a metric. Without a loss it is -1.
    """
    if figure > -1:
        return figure
    return -1.0 if loss is None else -1.0 - loss


def format_primary_metric(figure: float) -> str:
    """Return a figure of `deciding` for the log."""
    if figure < -1 and np.isfinite(figure):
        return f"validation loss {-1.0 - figure:.6f} (the metric has no labeled persons)"
    return f"{figure:.4f}"


def write_predictions(
    cfg: CfgNode,
    table: PersonTable,
    found: Predictions,
    images: ImageFolder | ConcatImageFolders,
    path: str | Path,
    batch_size: int,
) -> None:
    """All predictions, before any suppression, as mmpose 0.x pickles them: see
    poise.evaluation.results.prediction_batches.

    bbox_ids: mmpose counts the annotated boxes of each COCO image from 0, and detections, like the
    persons of MPII, over the whole set.
    """
    reader = READERS[dataset_info(cfg).format]
    by_image = reader.box_ids_per_image and table.box_source == "gt"
    ids = box_ids_by_image(table.image_index) if by_image else range(len(table))
    paths = [f"{images.location}/{table.image_name(person)}" for person in range(len(table))]
    keypoints = np.concatenate([found.keypoints, found.scores[:, :, None]], axis=2)
    write_pickle(
        path,
        prediction_batches(
            keypoints, table.center, table.scale, table.score, paths, ids, batch_size
        ),
    )
    log.info("%d predictions in batches of %d written to %s", len(table), batch_size, path)


def _warn_once(reasons: Sequence[str], reported_reasons: set[str]) -> None:
    for reason in reasons:
        if reason not in reported_reasons:
            log.warning("%s", reason)
    reported_reasons.update(reasons)
