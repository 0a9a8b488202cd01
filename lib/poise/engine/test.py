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

from poise import visualize, zoo
from poise.codecs import build_codec
from poise.config import data_path
from poise.datasets import ImageFolder, PersonTable, build_loader, read_set
from poise.datasets.truth import check_truth
from poise.engine import device, logs
from poise.engine.distributed import ALONE, Processes, local_processes
from poise.engine.memory import machine_limits, testing_advice
from poise.engine.predict import Predictions, predict
from poise.engine.score import check_wishes, score, write_predictions
from poise.engine.threads import CpuThreads
from poise.errors import DataError
from poise.losses import build_loss
from poise.models import build_model
from poise.text_table import pluralize
from poise.weights.origin import doubt, load_trained

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
    model, doubts = build_model(cfg), ""
    if processes.main:
        file = model_file(cfg, folder)
        log.info("%s", f"weights: {file}")
        doubts = doubt(model, load_trained(cfg, model, file))
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
        values, _ = score(cfg, table, found, folder, per_joint=True, weights=doubts)
        draw_predictions(cfg, table, found, images, folder)
        return values

    with logs.errors_in_file(), machine_limits("test", testing_advice(cfg)):
        criterion = build_loss(cfg).to(devices[0])
        tested = device.for_testing(cfg, model, devices)
        device.compile_network(cfg, tested, devices)
        found = predict(cfg, tested, loader, devices[0], criterion, processes=processes)
        return processes.from_first(lambda: use(found))


def model_file(cfg: CfgNode, folder: Path) -> Path:
    """TEST.MODEL_FILE, else the run folder's best or final weights. Raises DataError where there are none."""
    if cfg.TEST.MODEL_FILE:
        path = Path(data_path(cfg, cfg.TEST.MODEL_FILE))
        if not path.is_file():
            raise DataError(f"TEST.MODEL_FILE {path}: no such weight file{zoo.advice(path)}")
        return path
    if not cfg.RUN_NAME and (later := _later_run(folder)):
        log.warning("%s: a later run of this experiment has its weights in %s; test those with "
                    "RUN_NAME %s", folder, later, later.name)
    if file := _weights_in(folder):
        return file
    raise DataError(
        f"TEST.MODEL_FILE is empty and {folder} holds no model_best.pth or final_state.pth: "
        "train first, give TEST.MODEL_FILE x.pth, or "
        f"{zoo.advice_for(folder.name, cfg.DATASET.DATASET)}"
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
        persons = np.flatnonzero((table.image_index == index) & ((table.score >= 0.5) | (table.box_source == "gt")))
        for number, person in enumerate(persons):
            points = (found.keypoints[person] + 0.5) * zoom - 0.5
            visualize.draw_person(image, points, table.skeleton, shown=found.scores[person] > least,
                                  person_side=float(table.extent[person].max()) * zoom,
                                  limb_color=visualize.person_color(number) if len(persons) > 1 else None)
        # folders become part of the name: cam1/0001.jpg and cam2/0001.jpg are two pictures
        written.append(folder / "pictures" / f"{Path(name).with_suffix('').as_posix().replace('/', '_')}.jpg")
        visualize.save(written[-1], image)
    if written:
        log.info("%s with predictions in %s", pluralize(len(written), "picture"), folder / "pictures")
    return written
