"""Draw HRNet's four kinds of debug images in a thread, so that the training does not wait."""

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

_MAX_QUEUE = 4  # batches that wait to be drawn; then the training waits


class DebugImages:
    """Draw the images of DEBUG.* in a thread; the next call of `add` raises its error."""

    def __init__(self, cfg: CfgNode, codec: Codec, skeleton: Skeleton):
        self._cfg, self._codec, self._skeleton = cfg, codec, skeleton
        self._queue: queue.Queue[tuple | None] = queue.Queue(_MAX_QUEUE)
        self._error: Exception | None = None
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
        """Draw <prefix>_<kind>.jpg of a batch.

        Args:
            prefix: path without the kind.
            batch: keypoints and visibility.
            images: (B, 3, H, W) normalized.
            output: the prediction.
            targets: of the batch.

        Raises DataError if the disk is full.
        """
        self._raise_error()
        # copies: the tensors may be reused
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
        """Wait for the images that are still to be drawn; only log an error, as the run is over."""
        self._queue.put(None)
        self._thread.join()
        if self._error:
            log.warning("debug images: %s", self._error)

    def _raise_error(self) -> None:
        if isinstance(self._error, OSError):
            raise DataError(f"{self._error}; free disk space, or set DEBUG.DEBUG False")
        if self._error:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # otherwise only empty the queue, so that `add` does not block
                try:
                    self._write(*item)
                except Exception as error:
                    self._error = error

    def _write(
        self,
        prefix: Path,
        joints: np.ndarray,
        visible: np.ndarray,
        crops: np.ndarray,
        output: Arrays,
        target_maps: np.ndarray,
    ) -> None:
        debug = self._cfg.DEBUG
        if debug.SAVE_BATCH_IMAGES_GT:
            draw.save_image(
                f"{prefix}_gt.jpg", draw.make_crop_grid(crops, joints, visible, self._skeleton)
            )
        if debug.SAVE_BATCH_IMAGES_PRED:
            coords, _ = self._codec.decode(output)
            draw.save_image(
                f"{prefix}_pred.jpg", draw.make_crop_grid(crops, coords, visible, self._skeleton)
            )
        if debug.SAVE_HEATMAPS_GT:
            draw.save_image(f"{prefix}_hm_gt.jpg", draw.make_heatmap_grid(crops[:8], target_maps))
        if debug.SAVE_HEATMAPS_PRED:
            maps = self._codec.output_maps(map_output(lambda one: one[:8], output))
            draw.save_image(f"{prefix}_hm_pred.jpg", draw.make_heatmap_grid(crops[:8], maps))
