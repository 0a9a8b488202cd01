"""Detectors of torchvision, with their COCO weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from poise.engine.device import choose_device
from poise.errors import ConfigError, DataError, single_line
from poise.inference.detectors.base import PERSON, persons
from poise.io import download

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: torchvision's detectors that have COCO weights; about the size of their file in MB
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
_AT_ONCE = 4


class TorchvisionDetector:
    """One of torchvision's detectors
    (https://pytorch.org/vision/stable/models.html#object-detection).

    weights: a state dict; None: torchvision's own, downloaded once into `folder`.
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
        self._device, self._threshold = choose_device(device), score_threshold
        file = Path(weights) if weights is not None else _fetch(name, models, Path(folder))
        # the models' own least score, usually 0.05, would hide what a lower threshold asks for
        key = "score_thresh" if name.startswith(("retina", "fcos", "ssd")) else "box_score_thresh"
        model = models.get_model(
            name,
            weights=None,
            weights_backbone=None,
            num_classes=91,
            **{key: min(score_threshold, 0.05)},
        )
        _fill(model, file, name)
        self._name, self._model = name, model.to(self._device).eval()

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        import torch

        found = []
        with torch.no_grad():
            for begin in range(0, len(images), _AT_ONCE):
                part = images[begin : begin + _AT_ONCE]
                tensors = [
                    torch.from_numpy(np.ascontiguousarray(image))
                    .to(self._device)
                    .permute(2, 0, 1)
                    .float()
                    / 255
                    for image in part
                ]
                for image, answer in zip(part, self._answers(tensors)):
                    boxes, labels, scores = (
                        answer[key].cpu().numpy() for key in ("boxes", "labels", "scores")
                    )
                    found.append(
                        persons(
                            boxes[labels == PERSON],
                            scores[labels == PERSON],
                            self._threshold,
                            image.shape,
                        )
                    )
        return found

    def _answers(self, tensors: list) -> list[dict]:
        try:
            return self._model(tensors)
        except RuntimeError as error:  # a side that is scaled to 0 pixels, no memory left
            sizes = ", ".join(f"{tensor.shape[2]} x {tensor.shape[1]}" for tensor in tensors)
            raise DataError(
                f"detector {self._name}: fails on pictures of {sizes} ({single_line(error)[:200]})"
            ) from None


def _torchvision_models(name: str) -> ModuleType:
    try:
        from torchvision import models
    # RuntimeError: its operators were not registered
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ConfigError(
            f"detector {name}: torchvision cannot be used here ({single_line(error)}): its"
            " operators"
            " load only beside a torch of the same build, which a CPU-only torch wheel is not;"
            " install both by plain `pip install torch torchvision`, or give an .onnx detector, or"
            " boxes in a JSON"
        ) from None
    return models


def _fetch(name: str, models: ModuleType, folder: Path) -> Path:
    chosen = models.get_model_weights(name).DEFAULT
    target = folder / chosen.url.rsplit("/", 1)[-1]
    if not target.exists():
        log.info(
            "detector %s of torchvision: its COCO weights %s are fetched once, about %.0f MB, from"
            " %s to %s",
            name,
            chosen.name,
            chosen.meta.get("_file_size", TORCHVISION[name]),
            chosen.url,
            target,
        )
    return download.download_file(chosen.url, folder)


def _fill(model: torch.nn.Module, file: Path, name: str) -> None:
    from poise.models.weights import read_tensors

    state = read_tensors(file, "weight file of the detector")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise DataError(
            f"{file}: these are not the weights of detector {name} ({single_line(first)[:200]})"
        ) from None
