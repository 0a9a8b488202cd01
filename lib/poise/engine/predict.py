"""Predict every person of a set, with or without the flip test, in one process or several."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs.codec import Codec, map_output, to_arrays
from poise.datasets.loader import BatchLoader
from poise.engine.distributed import ALONE, Processes
from poise.engine.targets import encode_targets
from poise.errors import pluralize
from poise.models.forward import forward_flipped, normalize
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
    processes: Processes = ALONE,
) -> Predictions:
    """Predict every person of the loader's table. The model's mode is restored.

    `stop` is asked before each batch; where it is true KeyboardInterrupt is raised, in all
    processes. Of several processes each predicts the loader's batches, its share, and rank 0
    returns all predictions; those of the others are not complete.
    """
    from tqdm import tqdm

    table, batches = loader.crops.table, loader.batches
    count, joints = len(table), table.skeleton.num_joints
    found = Predictions(np.zeros((count, joints, 2)), np.zeros((count, joints), np.float32))
    flip_order = torch.from_numpy(table.skeleton.flip_order).to(device)
    # of each batch: loss x persons, persons, right joints, counted joints
    sums: list[torch.Tensor] = []
    persons: list[np.ndarray] = []
    stopped = False
    was_training = model.training
    model.eval()
    batches.begin(0)
    begin = time.perf_counter()
    try:
        for step, batch in enumerate(
            tqdm(
                loader,
                desc="test",
                unit="batch",
                leave=False,
                disable=None if processes.main else True,
            )
        ):
            stopped = stop()
            if stopped:
                break
            output = forward_flipped(
                cfg, codec, model, normalize(cfg, batch["images"], device), flip_order
            )
            person = batch["person"].numpy()
            if table.labelled:
                targets = encode_targets(cfg, codec, batch, device)
                coords, scores, right, counted = codec.decode_with_accuracy(output, targets)
                sums.append(
                    torch.stack(
                        [
                            codec.loss([output], targets) * len(person),
                            counted.new_tensor(len(person)),
                            right,
                            counted,
                        ]
                    ).double()
                )
            else:
                coords, scores = codec.decode(to_arrays(output))
            found.scores[person] = scores
            found.keypoints[person] = crop_to_image(
                coords,
                table.center[person],
                table.scale[person],
                cfg.MODEL.IMAGE_SIZE,
                codec.unbiased,
            )
            persons.append(person)
            if not found.first_batch:
                crops = batch["images"][:16].numpy()
                found.first_batch = {
                    "crops": crops[..., ::-1] if loader.crops.rgb else crops,
                    "joints": coords[:16],
                    "shown": found.scores[person][:16] > codec.shown_score,
                    "maps": codec.output_maps(to_arrays(map_output(lambda one: one[:4], output))),
                    "representation": codec.representation,
                }
            if (step + 1) % cfg.PRINT_FREQ == 0 and not sys.stderr.isatty():
                done = min((step + 1) * batches.world * batches.batch_size, count)
                log.info(
                    "test: %d of %d persons, %.1f persons/s",
                    done,
                    count,
                    done / (time.perf_counter() - begin),
                )
    finally:
        model.train(was_training)
    if processes.any(stopped):
        raise KeyboardInterrupt
    _gather(processes, found, persons, sums)
    log.info(
        "test: %s in %.1f s%s",
        pluralize(count, "person"),
        time.perf_counter() - begin,
        ", flip test" if cfg.TEST.FLIP_TEST else "",
    )
    return found


def _gather(
    processes: Processes, found: Predictions, persons: list[np.ndarray], sums: list[torch.Tensor]
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
