"""Person detectors of torchvision and in ONNX files.

detect = build_detector("fasterrcnn_resnet50_fpn_v2", device="auto", score_threshold=0.5)
[(boxes, scores)] = detect([image])
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from poise.errors import ConfigError
from poise.inference.detectors.base import Detector
from poise.inference.detectors.onnx import OnnxDetector
from poise.inference.detectors.torchvision import FOLDER, TORCHVISION, TorchvisionDetector

__all__ = ["DETECTORS", "Detector", "build_detector"]

ONNX = ".onnx"
#: by name; ONNX files by their suffix
DETECTORS: dict[str, Callable[..., Detector]] = {
    **dict.fromkeys(TORCHVISION, TorchvisionDetector),
    ONNX: OnnxDetector,
}


def build_detector(
    name: str,
    device: str = "auto",
    score_threshold: float = 0.5,
    *,
    weights: str | Path | None = None,
    folder: str | Path = FOLDER,
) -> Detector:
    """Return the detector `name`: one of torchvision's, or the path of an .onnx file.

    Args:
        name: a key of DETECTORS, or a path.
        device: as of PoseEstimator.
        score_threshold: minimum score of boxes.
        weights: a state dict for torchvision's detector; None: torchvision's own, downloaded once.
        folder: where downloaded weights are stored.

    Raises ConfigError or DataError.
    """
    if not 0 <= score_threshold <= 1:
        raise ConfigError(
            f"score threshold of the detector: must be from 0 to 1, got {score_threshold:g}"
        )
    kind = ONNX if str(name).lower().endswith(ONNX) else name
    if kind not in DETECTORS:
        raise ConfigError(
            f"detector {name!r}: unknown; give the path of an .onnx file or a detector of"
            f" torchvision: {', '.join(TORCHVISION)}"
        )
    return DETECTORS[kind](name, device, score_threshold, weights=weights, folder=folder)
