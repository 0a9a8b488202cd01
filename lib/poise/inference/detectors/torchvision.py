"""Detectors of torchvision with COCO weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from poise.engine.device import choose_device
from poise.errors import ConfigError, DataError, single_line
from poise.inference.detectors.base import PERSON, select_persons
from poise.io import download

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: detectors with COCO weights -> approximate size of the weight file in MB
TORCHVISION = {
    "fasterrcnn_resnet50_fpn": 160,
    "fasterrcnn_resnet50_fpn_v2": 167,
    "fasterrcnn_mobilenet_v3_large_fpn": 74,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 74,
    "retinanet_resnet50_fpn": 130,
    "retinanet_resnet50_fpn_v2": 146,
    "fcos_resnet50_fpn": 124,
    "ssd300_vgg16": 136,
    "ssdlite320_mobilenet_v3_large": 13,
}
FOLDER = Path("models") / "detectors"
_BATCH_SIZE = 4


class TorchvisionDetector:
    """A detector of torchvision.

    https://pytorch.org/vision/stable/models.html#object-detection

    Args:
        name: a key of TORCHVISION.
        device: as for PoseEstimator.
        score_threshold: minimum score of boxes.
        weights: a state dict file; None: COCO weights, downloaded once into `folder`.
        folder: for downloaded weights.
    """

    def __init__(
        self,
        name: str,
        device: str = "auto",
        score_threshold: float = 0.5,
        *,
        weights: str | Path | None = None,
        folder: str | Path = FOLDER,
    ):
        models = _torchvision_models(name)
        self._device = choose_device(device)
        self._threshold = score_threshold
        file = Path(weights) if weights is not None else _download(name, models, Path(folder))
        # the default minimum score, usually 0.05, would remove boxes above a lower threshold
        key = "score_thresh" if name.startswith(("retina", "fcos", "ssd")) else "box_score_thresh"
        model = models.get_model(
            name,
            weights=None,
            weights_backbone=None,
            num_classes=91,
            **{key: min(score_threshold, 0.05)},
        )
        _load_weights(model, file, name)
        self._name = name
        self._model = model.to(self._device).eval()

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        import torch

        detections = []
        for begin in range(0, len(images), _BATCH_SIZE):
            batch = images[begin : begin + _BATCH_SIZE]
            tensors = [
                torch.from_numpy(np.ascontiguousarray(image)).to(self._device) for image in batch
            ]
            inputs = [tensor.permute(2, 0, 1).float() / 255 for tensor in tensors]
            with torch.no_grad():
                outputs = self._run(inputs)
            for image, output in zip(batch, outputs):
                is_person = output["labels"].cpu().numpy() == PERSON
                boxes = output["boxes"].cpu().numpy()[is_person]
                scores = output["scores"].cpu().numpy()[is_person]
                detections.append(select_persons(boxes, scores, self._threshold, image.shape))
        return detections

    def _run(self, tensors: list) -> list[dict]:
        try:
            return self._model(tensors)
        except RuntimeError as error:  # a side that is scaled to 0 pixels, out of memory
            sizes = ", ".join(f"{tensor.shape[2]} x {tensor.shape[1]}" for tensor in tensors)
            raise DataError(
                f"detector {self._name}: failed on images of {sizes} ({single_line(error)[:200]})"
            ) from None


def _torchvision_models(name: str) -> ModuleType:
    try:
        from torchvision import models
    # RuntimeError: its operators were not registered
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ConfigError(
            f"detector {name}: cannot import torchvision ({single_line(error)}); its operators need"
            " the same build of torch, which a CPU-only torch wheel is not: install both with `pip"
            " install torch torchvision`, or use an .onnx detector or a JSON file of boxes"
        ) from None
    return models


def _download(name: str, models: ModuleType, folder: Path) -> Path:
    chosen = models.get_model_weights(name).DEFAULT
    target = folder / chosen.url.rsplit("/", 1)[-1]
    if not target.exists():
        log.info(
            "detector %s of torchvision: downloading COCO weights %s (%.0f MB, once) from %s to %s",
            name,
            chosen.name,
            chosen.meta.get("_file_size", TORCHVISION[name]),
            chosen.url,
            target,
        )
    return download.download_file(chosen.url, folder)


def _load_weights(model: torch.nn.Module, file: Path, name: str) -> None:
    from poise.models.weights import read_tensors

    state = read_tensors(file, "weight file of the detector")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise DataError(
            f"{file}: not the weights of detector {name} ({single_line(first)[:200]})"
        ) from None
