"""Predict every person of a set, with or without the flip test, in one process or several."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs.codec import Codec, Output, Targets, map_output, to_arrays
from poise.datasets.loader import BatchLoader
from poise.engine.distributed import SINGLE_PROCESS, DistributedContext
from poise.engine.targets import encode_targets
from poise.errors import pluralize
from poise.models.forward import forward_with_flip_test, normalize
from poise.structures.crops import crop_to_image

log = logging.getLogger(__name__)


@dataclass
class Predictions:
    """Predictions of all persons, in the order of the table.

    Attributes:
        keypoints: (N, K, 2) float64, in image pixels.
        scores: (N, K) float32.
        loss, accuracy: over all persons, if the keypoints are labeled.
        first_batch: what TensorBoard shows.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    loss: float | None = None
    accuracy: float | None = None
    first_batch: dict[str, Any] = field(default_factory=dict)


def _never() -> bool:
    return False


@torch.no_grad()
def predict(
    cfg: CfgNode,
    model: nn.Module,
    loader: BatchLoader,
    device: torch.device,
    codec: Codec,
    stop_requested: Callable[[], bool] = _never,
    processes: DistributedContext = SINGLE_PROCESS,
) -> Predictions:
    """Predict every person of the loader's table; restores the mode of the model.

    Each process predicts its batches. Rank 0 returns all predictions; those of the others are
    incomplete.

    Args:
        stop_requested: called before each batch; if it returns True, KeyboardInterrupt is raised in
            all processes.
    """
    from tqdm import tqdm

    table, sampler = loader.dataset.table, loader.batch_sampler
    num_persons, num_keypoints = len(table), table.skeleton.num_keypoints
    predictions = Predictions(
        np.zeros((num_persons, num_keypoints, 2)),
        np.zeros((num_persons, num_keypoints), np.float32),
    )
    flip_indices = torch.from_numpy(table.skeleton.flip_indices).to(device)
    sums: list[torch.Tensor] = []
    persons: list[np.ndarray] = []
    is_stopped = False
    sampler.set_epoch(0)
    start = time.perf_counter()
    with _eval_mode(model):
        is_hidden = None if processes.is_main_process else True  # None: shown on a terminal
        bar = tqdm(loader, desc="test", unit="batch", leave=False, disable=is_hidden)
        for step, batch in enumerate(bar):
            is_stopped = stop_requested()
            if is_stopped:
                break
            images = normalize(
                batch["images"],
                device,
                mean=cfg.MODEL.MEAN,
                std=cfg.MODEL.STD,
                channels_last=cfg.CHANNELS_LAST,
            )
            output = forward_with_flip_test(
                model, images, codec, flip_indices, flip_test=cfg.TEST.FLIP_TEST, amp=cfg.AMP
            )
            targets = encode_targets(cfg, codec, batch, device) if table.has_keypoints else None
            coords, scores, batch_sums = _decode(codec, output, targets)
            if batch_sums is not None:
                sums.append(batch_sums)
            person = batch["person"].numpy()
            persons.append(person)
            predictions.scores[person] = scores
            predictions.keypoints[person] = crop_to_image(
                coords, table.center[person], table.scale[person], cfg.MODEL.IMAGE_SIZE, codec.udp
            )
            if not predictions.first_batch:
                crops = batch["images"][:16].numpy()
                if loader.dataset.rgb:
                    crops = crops[..., ::-1]
                shown_scores = predictions.scores[person]
                predictions.first_batch = _shown_batch(codec, crops, coords, shown_scores, output)
            if (step + 1) % cfg.PRINT_FREQ == 0 and not sys.stderr.isatty():
                done = (step + 1) * sampler.shard.world_size * sampler.batch_size
                done = min(done, num_persons)
                speed = done / (time.perf_counter() - start)
                log.info("test: %d of %d persons, %.1f persons/s", done, num_persons, speed)
    if processes.all_reduce_any(is_stopped):
        raise KeyboardInterrupt
    _gather(processes, predictions, persons, sums)
    seconds = time.perf_counter() - start
    flip = ", flip test" if cfg.TEST.FLIP_TEST else ""
    log.info("test: %s in %.1f s%s", pluralize(num_persons, "person"), seconds, flip)
    return predictions


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode within; restore its mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _decode(
    codec: Codec, output: Output, targets: Targets | None
) -> tuple[np.ndarray, np.ndarray, torch.Tensor | None]:
    """Return keypoints (B, K, 2) in crop pixels, scores (B, K) and, with targets, sums (4,).

    The sums are loss * persons, persons, correct keypoints and valid keypoints.
    """
    if targets is None:
        return *codec.decode(to_arrays(output)), None
    coords, scores, num_correct, num_valid = codec.decode_with_accuracy(output, targets)
    loss_sum = codec.loss([output], targets) * len(coords)
    num_persons = num_valid.new_tensor(len(coords))
    sums = torch.stack([loss_sum, num_persons, num_correct, num_valid]).double()
    return coords, scores, sums


def _shown_batch(
    codec: Codec, crops: np.ndarray, coords: np.ndarray, scores: np.ndarray, output: Output
) -> dict[str, Any]:
    """Return what TensorBoard shows of a batch: 16 crops with their keypoints, 4 with maps."""
    return {
        "crops": crops,
        "joints": coords[:16],
        "shown": scores[:16] > codec.vis_threshold,
        "maps": codec.output_maps(to_arrays(map_output(lambda one: one[:4], output))),
        "representation": codec.representation,
    }


def _gather(
    processes: DistributedContext,
    predictions: Predictions,
    persons: list[np.ndarray],
    sums: list[torch.Tensor],
) -> None:
    """Complete the predictions on rank 0; compute loss and accuracy in the order of the batches.

    Args:
        persons: rows of the table in each batch of this process; batch i of rank r is batch
            i * world_size + r of the set.
        sums: the sums of these batches, see `_decode`.
    """
    rows = np.concatenate(persons) if persons else np.zeros(0, np.int64)
    local_sums = list(torch.stack(sums).cpu()) if sums else []
    gathered = processes.gather(
        (rows, predictions.keypoints[rows], predictions.scores[rows], local_sums)
    )
    if gathered is None:
        return
    counts = np.bincount(
        np.concatenate([rows for rows, *_ in gathered]), minlength=len(predictions.scores)
    )
    assert (counts == 1).all(), "a person was predicted twice or not at all"
    for rows, keypoints, scores, _ in gathered:
        predictions.keypoints[rows] = keypoints
        predictions.scores[rows] = scores
    total = torch.zeros(4, dtype=torch.float64)
    for batch_sums in itertools.zip_longest(*(sums for *_, sums in gathered)):
        for one in batch_sums:
            if one is not None:  # the last batches of some ranks
                total += one
    if total[1] > 0:
        predictions.loss = float(total[0] / total[1])
        predictions.accuracy = float(total[2] / total[3].clamp(min=1))
