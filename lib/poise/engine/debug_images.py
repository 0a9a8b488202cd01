"""The four kinds of debug pictures of HRNet, drawn and written beside the training, which does
not wait for them.
"""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from poise.codecs.codec import Arrays, Codec, Output, Targets, map_output
from poise.errors import DataError
from poise.models.forward import denormalize
from poise.structures.skeleton import Skeleton
from poise.visualization import draw

log = logging.getLogger(__name__)

_WAITING = 4  # batches whose pictures are still to be drawn; then the training waits


class DebugImages:
    """Pictures of steps, as DEBUG.* asks for them, written by a thread of their own. What it
    fails with is raised by the next call.
    """

    def __init__(self, cfg: CfgNode, codec: Codec, skeleton: Skeleton):
        self._cfg, self._codec, self._skeleton = cfg, codec, skeleton
        self._queue: queue.Queue[tuple | None] = queue.Queue(_WAITING)
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(
        self,
        prefix: Path,
        batch: dict[str, torch.Tensor],
        images: torch.Tensor,
        output: Output,
        targets: Targets,
    ) -> None:
        """Pictures <prefix>_<kind>.jpg of a batch; images (B, 3, H, W) normalised. Raises
        DataError for a disk that is full.
        """
        self._raise()
        # copied here: the tensors may be written to again
        self._queue.put(
            (
                prefix,
                batch["joints"][:32].numpy(),
                batch["visible"][:32].numpy(),
                denormalize(
                    images[:32],
                    mean=self._cfg.MODEL.MEAN,
                    std=self._cfg.MODEL.STD,
                    rgb=self._cfg.DATASET.COLOR_RGB,
                ),
                map_output(lambda one: one[:32].float().cpu().numpy().copy(), output),
                self._codec.target_maps(targets, 8)[:, -1],
            )
        )

    def close(self) -> None:
        """Wait for the pictures that are still to be drawn. Where they cannot be written that is
        only said: the run is over.
        """
        self._queue.put(None)
        self._thread.join()
        if self._fault:
            log.warning("debug pictures: %s", self._fault)

    def _raise(self) -> None:
        if isinstance(self._fault, OSError):
            raise DataError(f"{self._fault}; free disk space, or set DEBUG.DEBUG False")
        if self._fault:
            raise self._fault

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._fault is None:  # else only emptied, so that nobody waits
                try:
                    self._write(*item)
                except Exception as error:
                    self._fault = error

    def _write(
        self,
        prefix: Path,
        joints: np.ndarray,
        visible: np.ndarray,
        crops: np.ndarray,
        output: Arrays,
        target_maps: np.ndarray,
    ) -> None:
        wanted = self._cfg.DEBUG
        if wanted.SAVE_BATCH_IMAGES_GT:
            draw.save_image(
                f"{prefix}_gt.jpg", draw.make_crop_grid(crops, joints, visible, self._skeleton)
            )
        if wanted.SAVE_BATCH_IMAGES_PRED:
            coords, _ = self._codec.decode(output)
            draw.save_image(
                f"{prefix}_pred.jpg", draw.make_crop_grid(crops, coords, visible, self._skeleton)
            )
        if wanted.SAVE_HEATMAPS_GT:
            draw.save_image(f"{prefix}_hm_gt.jpg", draw.make_heatmap_grid(crops[:8], target_maps))
        if wanted.SAVE_HEATMAPS_PRED:
            maps = self._codec.output_maps(map_output(lambda one: one[:8], output))
            draw.save_image(f"{prefix}_hm_pred.jpg", draw.make_heatmap_grid(crops[:8], maps))
