"""Test one experiment: weights, predictions, figures, pictures."""
from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml
from yacs.config import CfgNode

from poise import visualize, weights, zoo
from poise.codecs import build_codec
from poise.config import data_path
from poise.datasets import ImageFolder, PersonTable, build_loader, read_set
from poise.engine import device, logs
from poise.engine.distributed import ALONE, Processes, local_processes
from poise.engine.predict import Predictions, predict
from poise.engine.score import check_truth, check_wishes, score, write_predictions
from poise.engine.threads import CpuThreads
from poise.errors import DataError
from poise.losses import build_loss
from poise.models import build_model

log = logging.getLogger(__name__)


def run(cfg: CfgNode, cfg_path: str, command: list[str], processes: Processes = ALONE, *, metrics: Sequence[str] = (),
        out: str | Path | None = None) -> OrderedDict[str, float]:
    """Test the weights TEST.MODEL_FILE, or the best ones of the run folder, on DATASET.TEST_SET; one of `processes`, which all call this.

    Writes test.log, results/ and pictures/ in the run folder, and the predictions in mmpose's form to `out`, if given. metrics:
    names that mmpose has for what is evaluated in any case, checked. Returns {metric: value}. Raises PoiseError for what cannot
    be used.
    """
    logs.start_console(processes.rank)
    check_wishes(cfg, metrics, out)
    folder = Path(cfg.OUTPUT_DIR) / logs.run_names(cfg, cfg_path)
    devices = device.choose_devices(cfg, processes)
    model = build_model(cfg)
    if processes.main:
        file = model_file(cfg, folder)
        log.info("%s", f"weights: {file}")
        weights.load(model, file, rgb=cfg.DATASET.COLOR_RGB)
        warn_of_other_training(cfg, file)
    processes.spread(model.state_dict().values())
    table, images = read_set(cfg, train=False)
    if processes.main:
        check_truth(cfg, table)
    loader = build_loader(cfg, table, images, train=False, devices=len(devices), on_gpu=devices[0].type == "cuda",
                          rank=processes.rank, world=processes.world, local_world=local_processes())
    device.set_up(cfg, devices)
    CpuThreads(cfg, devices[0])
    processes.from_first(lambda: logs.make_run_folder(cfg, cfg_path))
    logs.add_file(folder / "test.log", processes.rank)
    if processes.main:
        logs.log_environment(cfg, command)

    def use(found: Predictions) -> OrderedDict[str, float]:
        if out:
            write_predictions(cfg, table, found, images, out, loader.batches.batch_size)
        values, _ = score(cfg, table, found, folder, per_joint=True)
        draw_predictions(cfg, table, found, images, folder)
        return values

    with logs.errors_in_file():
        criterion = build_loss(cfg).to(devices[0])
        tested = device.for_testing(cfg, model, devices)
        device.compile_network(cfg, tested, devices)
        found = predict(cfg, tested, loader, devices[0], criterion, processes=processes)
        return processes.from_first(lambda: use(found))


# what the joints found depend on besides the weights, and what a file of another value was trained with
_TRAINED_WITH = ("MODEL.TARGET_TYPE", "MODEL.IMAGE_SIZE", "DATASET.COLOR_RGB")


def warn_of_other_training(cfg: CfgNode, file: Path) -> None:
    """A warning where the weights were trained with another codec, input size or order of colours than they are tested with.

    That is known of the files of a run folder, by the config.yaml beside them, of a checkpoint, by its own content, and of released files
    whose entry in the zoo says so.
    """
    entry = zoo.released_as(file)
    try:
        beside = file.parent / "config.yaml"
        if entry is not None:
            trained = dict(zip(entry.overrides[::2], entry.overrides[1::2]))
        else:
            text = beside.read_text(encoding="utf-8") if beside.is_file() else weights.read_tensors(file, "weight file")["config"]
            groups = yaml.safe_load(text)
            trained = {key: groups[key.split(".")[0]].get(key.split(".")[1]) for key in _TRAINED_WITH}
    except (OSError, ValueError, yaml.YAMLError, DataError, LookupError, TypeError, AttributeError):    # another program's
        return
    now = {key: cfg[key.split(".")[0]][key.split(".")[1]] for key in _TRAINED_WITH}
    others = [f"{key} {trained[key]} (tested with {now[key]})" for key in _TRAINED_WITH if trained.get(key) is not None and str(trained[key]) != str(now[key])]
    if others:
        log.warning("%s was trained with %s: joints may be found in the wrong places", file, ", ".join(others))


def model_file(cfg: CfgNode, folder: Path) -> Path:
    """TEST.MODEL_FILE, else the run folder's best or final weights. Raises DataError where there are none."""
    if cfg.TEST.MODEL_FILE:
        path = Path(data_path(cfg, cfg.TEST.MODEL_FILE))
        if not path.is_file():
            raise DataError(f"TEST.MODEL_FILE {path}: no such weight file{zoo.advice(path)}")
        return path
    for name in ("model_best.pth", "final_state.pth"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"TEST.MODEL_FILE is empty and {folder} holds no model_best.pth or final_state.pth: train first, or give TEST.MODEL_FILE x.pth")


def draw_predictions(cfg: CfgNode, table: PersonTable, found: Predictions, images: ImageFolder, folder: Path) -> list[Path]:
    """The first TEST.PICTURES images with their predicted skeletons, in folder/pictures. Joints of low score are not drawn."""
    written: list[Path] = []
    least = build_codec(cfg).shown_score
    for index in list(dict.fromkeys(table.image_index.tolist()))[:cfg.TEST.PICTURES]:
        name = table.image_names[index]
        image = images.read(name).copy()
        if max(image.shape[:2]) < 640:      # small pictures are enlarged, or lines would cover what they show
            zoom = 640 / max(image.shape[:2])
            image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        else:
            zoom = 1.0
        for person in np.flatnonzero(table.image_index == index):
            if table.score[person] >= 0.5 or table.box_source == "gt":
                visualize.draw_person(image, (found.keypoints[person] + 0.5) * zoom - 0.5, table.skeleton, shown=found.scores[person] > least)
        # folders become part of the name: cam1/0001.jpg and cam2/0001.jpg are two pictures
        written.append(folder / "pictures" / f"{Path(name).with_suffix('').as_posix().replace('/', '_')}.jpg")
        visualize.save(written[-1], image)
    if written:
        log.info("%d pictures with predictions in %s", len(written), folder / "pictures")
    return written
