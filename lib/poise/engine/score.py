"""What predictions are worth: result files, the family's table, and the figure that decides which weights are best."""
from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from poise.datasets import ImageFolder, PersonTable
from poise.datasets.places import headbox_path, set_files
from poise.datasets.truth import labels
from poise.engine.predict import Predictions
from poise.errors import ConfigError, DataError
from poise.garbage import no_garbage_collection
from poise.geometry import PIXEL_STD
from poise.metrics import (average_precision_of_arrays, crowd_average_precision, explain, explain_pckh, format_joint_table, format_table, pckh,
                           per_joint_pck_of_arrays, per_joint_pckh, rescore, suppress, write_results)
from poise.metrics.results import box_ids_by_image, prediction_batches, write_pickle, write_submission
from poise.skeleton import dataset_of
from poise.writing import replacing

log = logging.getLogger(__name__)

METRICS = {"oks": "mAP", "crowdpose": "mAP", "pckh": "PCKh"}   # what mmpose calls the one metric of a dataset


def check_wishes(cfg: CfgNode, metrics: Sequence[str] = (), out: str | Path | None = None) -> None:
    """Raise ConfigError for metrics that the dataset does not have, by mmpose's names, and for a file that predictions cannot go to."""
    own = METRICS[dataset_of(cfg).metric]
    others = [name for name in metrics if name != own]
    if others:
        raise ConfigError(f"--eval {others[0]}: {cfg.DATASET.DATASET} is evaluated with {own}, and always is; give --eval {own} or leave it out")
    if out and (Path(out).suffix not in (".pkl", ".pickle") or Path(out).is_dir()):
        raise ConfigError(f"--out {out}: predictions are written to a pickle; give a file that ends in .pkl")


def score(cfg: CfgNode, table: PersonTable, found: Predictions, folder: Path, told: set[str] | None = None, *, per_joint: bool = False,
          weights: str = "") -> tuple[OrderedDict[str, float], float]:
    """Result files in folder/results, the family's table in the log; ({metric: value}, the one that decides which weights are best).

    told: reasons for figures of 0 or -1 that an earlier test of the same set has told, which are not repeated, and to which others are added. per_joint: a second
    table with a row per joint. weights: what may be wrong with the network's, told with a figure of 0. Test sets have no public labels: for them only the files are
    written and the metrics are empty.
    """
    results, told = folder / "results", set() if told is None else told
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{results}: cannot be made ({error.strerror}); set OUTPUT_DIR to a place you may write to") from None
    if dataset_of(cfg).metric == "pckh":
        return _score_mpii(cfg, table, found, results, per_joint, weights, told)
    with no_garbage_collection():       # the persons' dictionaries, hundreds of thousands, make none
        return _score_coco(cfg, table, found, results, per_joint, weights, told)


def deciding(figure: float, loss: float | None) -> float:
    """Return the figure that decides which weights are best: the higher, the better.

    A metric of -1 or NaN has nobody to count and never changes, so the validation loss decides:
    -1 - loss, which is below every figure of a metric. Without a loss it is -1.
    """
    if figure > -1:
        return figure
    return -1.0 if loss is None else -1.0 - loss


def deciding_text(figure: float) -> str:
    """Return a figure of `deciding` for the log."""
    if figure < -1 and np.isfinite(figure):
        return f"validation loss {-1.0 - figure:.6f} (nobody counts in the metric)"
    return f"{figure:.4f}"


def write_predictions(cfg: CfgNode, table: PersonTable, found: Predictions, images: ImageFolder, path: str | Path, batch_size: int) -> None:
    """All predictions, before any suppression, as mmpose 0.x pickles them: see poise.metrics.results.prediction_batches.

    bbox_ids: mmpose counts the annotated boxes of each COCO image from 0, and detections, like the persons of MPII, over the whole set.
    """
    by_image = dataset_of(cfg).format == "coco" and table.box_source == "gt"
    ids = box_ids_by_image(table.image_index) if by_image else range(len(table))
    paths = [f"{images.location}/{table.image_name(person)}" for person in range(len(table))]
    keypoints = np.concatenate([found.keypoints, found.scores[:, :, None]], axis=2)
    write_pickle(path, prediction_batches(keypoints, table.center, table.scale, table.score, paths, ids, batch_size))
    log.info("%d predictions in batches of %d written to %s", len(table), batch_size, path)


def _tell(reasons: Sequence[str], told: set[str]) -> None:
    for reason in reasons:
        if reason not in told:
            log.warning("%s", reason)
    told.update(reasons)


def _score_coco(cfg: CfgNode, table: PersonTable, found: Predictions, results: Path, per_joint: bool,
                weights: str, told: set[str]) -> tuple[OrderedDict[str, float], float]:
    split, skeleton = cfg.DATASET.TEST_SET, table.skeleton
    image_ids = table.image_ids[table.image_index]
    keypoints = np.concatenate([found.keypoints, found.scores[:, :, None]], axis=2)
    scores = rescore(found.scores, table.score, cfg.TEST.IN_VIS_THRE)
    area = table.scale.prod(axis=1) * PIXEL_STD**2
    kept = np.arange(len(table))
    if cfg.TEST.OKS_NMS:
        kept = suppress(keypoints, scores, area, image_ids, cfg.TEST.OKS_THRE, cfg.TEST.SOFT_NMS, skeleton.sigmas)
    source = "gt_boxes" if table.box_source == "gt" else table.box_source
    path = results / f"keypoints_{split}_results_{source}.json"
    write_results(path, image_ids[kept], keypoints[kept], scores[kept], table.center[kept], table.scale[kept], table.category_id)
    way = f"kept by {'soft ' if cfg.TEST.SOFT_NMS else ''}OKS-NMS" if cfg.TEST.OKS_NMS else "kept, no OKS-NMS"
    log.info("%d of %d poses %s; written to %s", len(kept), len(table), way, path)
    if not set_files(cfg, split).labelled:
        if dataset_of(cfg).name == "coco":      # https://cocodataset.org/#upload
            algorithm = re.sub(r"[^\w.+-]", "-", results.parent.name)
            path = results / f"person_keypoints_{split}_{algorithm}_results.zip"
            write_submission(path, image_ids[kept], keypoints[kept], scores[kept], table.category_id)
        log.info("%s has no public labels: send %s to the server of the data set", split, path)
        return OrderedDict(), 0.0
    truth = labels(cfg)
    average = crowd_average_precision if dataset_of(cfg).metric == "crowdpose" else average_precision_of_arrays
    # of the arrays, not of the file that was just written: the same to the last digit, and a large set's file takes seconds to read
    metrics = average(truth, image_ids[kept], keypoints[kept], scores[kept], skeleton.sigmas, table.category_id)
    log.info("%s, %s, flip test %s:", split, "ground-truth boxes" if table.box_source == "gt" else f"boxes of {table.box_source}",
             "on" if cfg.TEST.FLIP_TEST else "off")
    log.info("%s", format_table(metrics, cfg.MODEL.NAME))
    if explain.is_wanted(metrics):
        tested = explain.Tested(image_ids[kept], keypoints[kept], scores[kept], table.boxes[kept], skeleton.sigmas, skeleton.flip_order, table.category_id,
                                table.box_source, table.dropped, cfg.TEST.IN_VIS_THRE, weights)
        _tell(explain.reasons(truth, tested, metrics), told)
    if per_joint:
        log.info("%s", format_joint_table(skeleton.names, per_joint_pck_of_arrays(truth, image_ids[kept], table.category_id, keypoints[kept], skeleton.sigmas)))
    return OrderedDict(metrics), deciding(float(metrics["AP"]), found.loss)


def _score_mpii(cfg: CfgNode, table: PersonTable, found: Predictions, results: Path, per_joint: bool,
                weights: str, told: set[str]) -> tuple[OrderedDict[str, float], float]:
    from scipy.io import savemat

    split = cfg.DATASET.TEST_SET
    one_based = found.keypoints + 1.0
    path = results / ("pred.mat" if split == "valid" else f"pred_{split}.mat")
    with replacing(path) as part:
        savemat(part, {"preds": one_based}, appendmat=False)
    log.info("%d predictions written to %s", len(one_based), path)
    if not set_files(cfg, split).head_boxes:
        log.info("PCKh needs head boxes, which are public for MPII's set 'valid'; %s has none here", split)
        return OrderedDict(), 0.0
    metrics = pckh(one_based, headbox_path(cfg))
    log.info("%s, boxes of the annotations, flip test %s:", split, "on" if cfg.TEST.FLIP_TEST else "off")
    log.info("%s", format_table(metrics, cfg.MODEL.NAME))
    if explain_pckh.is_wanted(metrics):
        found_reasons = explain_pckh.reasons(headbox_path(cfg), found.keypoints, table.boxes, table.joints, table.visible, table.skeleton.flip_order, metrics, weights)
        _tell(found_reasons, told)
    if per_joint:
        share, count = per_joint_pckh(one_based, headbox_path(cfg))
        rows = [f"| {name} | {n} | {value:.1f} |" for name, n, value in zip(table.skeleton.names, count, share)]
        log.info("%s", "\n".join(["| Joint | labelled | PCKh@0.5 |", "|---|---|---|", *rows]))
    return OrderedDict(metrics), deciding(float(metrics["Mean"]), found.loss)
