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
    """keypoints (N, J, 2) float64 image pixels and scores (N, J) float32, in the table's order;
    loss and PCK where labels are known.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    loss: float | None = None
    accuracy: float | None = None
    first_batch: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def predict(
    cfg: CfgNode,
    model: nn.Module,
    loader: BatchLoader,
    device: torch.device,
    codec: Codec,
    stop: Callable[[], bool] = lambda: False,
    processes: DistributedContext = SINGLE_PROCESS,
) -> Predictions:
    """Predict every person of the loader's table. The model's mode is restored.

    `stop` is asked before each batch; where it is true KeyboardInterrupt is raised, in all
    processes. Of several processes each predicts the loader's batches, its share, and rank 0
    returns all predictions; those of the others are not complete.
    """
    from tqdm import tqdm

    table, batches = loader.dataset.table, loader.batch_sampler
    count, joints = len(table), table.skeleton.num_keypoints
    found = Predictions(np.zeros((count, joints, 2)), np.zeros((count, joints), np.float32))
    flip_indices = torch.from_numpy(table.skeleton.flip_indices).to(device)
    sums: list[torch.Tensor] = []
    persons: list[np.ndarray] = []
    stopped, silent = False, None if processes.is_main_process else True
    batches.set_epoch(0)
    begin = time.perf_counter()
    with _eval_mode(model):
        bar = tqdm(loader, desc="test", unit="batch", leave=False, disable=silent)
        for step, batch in enumerate(bar):
            stopped = stop()
            if stopped:
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
            found.scores[person] = scores
            center, scale = table.center[person], table.scale[person]
            found.keypoints[person] = crop_to_image(
                coords, center, scale, cfg.MODEL.IMAGE_SIZE, codec.udp
            )
            persons.append(person)
            if not found.first_batch:
                crops = batch["images"][:16].numpy()
                crops = crops[..., ::-1] if loader.dataset.rgb else crops
                found.first_batch = _shown_batch(codec, crops, coords, found.scores[person], output)
            if (step + 1) % cfg.PRINT_FREQ == 0 and not sys.stderr.isatty():
                done = min((step + 1) * batches.shard.world_size * batches.batch_size, count)
                speed = done / (time.perf_counter() - begin)
                log.info("test: %d of %d persons, %.1f persons/s", done, count, speed)
    if processes.all_reduce_any(stopped):
        raise KeyboardInterrupt
    _gather(processes, found, persons, sums)
    seconds, flip = time.perf_counter() - begin, ", flip test" if cfg.TEST.FLIP_TEST else ""
    log.info("test: %s in %.1f s%s", pluralize(count, "person"), seconds, flip)
    return found


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

    The sums are loss x persons, persons, right joints, counted joints.
    """
    if targets is None:
        return *codec.decode(to_arrays(output)), None
    coords, scores, right, counted = codec.decode_with_accuracy(output, targets)
    loss, samples = codec.loss([output], targets) * len(coords), counted.new_tensor(len(coords))
    return coords, scores, torch.stack([loss, samples, right, counted]).double()


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
    found: Predictions,
    persons: list[np.ndarray],
    sums: list[torch.Tensor],
) -> None:
    """Complete `found` on rank 0: every person once, loss and accuracy over all batches in their
    order.

    persons, sums: of this process's batches, whose numbers are rank, rank + world, ...
    """
    own = np.concatenate(persons) if persons else np.zeros(0, np.int64)
    shares = processes.gather(
        (
            own,
            found.keypoints[own],
            found.scores[own],
            list(torch.stack(sums).cpu()) if sums else [],
        )
    )
    if shares is None:
        return
    everyone = np.concatenate([share[0] for share in shares])
    assert (np.bincount(everyone, minlength=len(found.scores)) == 1).all(), (
        "a person was predicted twice or not at all"
    )
    for own, keypoints, scores, _ in shares:
        found.keypoints[own], found.scores[own] = keypoints, scores
    totals = torch.zeros(4, dtype=torch.float64)
    for rows in itertools.zip_longest(*(share[3] for share in shares)):
        for row in rows:
            if row is not None:  # a share may have one batch less
                totals += row
    if totals[1] > 0:
        found.loss = float(totals[0] / totals[1])
        found.accuracy = float(totals[2] / totals[3].clamp(min=1))
