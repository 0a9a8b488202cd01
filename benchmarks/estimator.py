"""Time one call of PoseEstimator with 32 persons against 32 calls with one, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from poise import PoseEstimator, config
from poise.models import build_model
from timing import Row, format_seconds, main, ratio, time_alternately
from train_step import NETWORKS

ROOT = Path(__file__).resolve().parents[1]
PERSONS = 32


def write_random_weights(cfg, folder: str) -> Path:
    """Write random weights whose batch norms have statistics of a forward pass."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with torch.no_grad():
        model(torch.randn(2, 3, *reversed(cfg.MODEL.IMAGE_SIZE)))
    file = Path(folder) / "weights.pth"
    torch.save(model.state_dict(), file)
    return file


def measure() -> Iterator[Row]:
    """An image of 640x480 with boxes to keypoints, 256x192, without flip test, defaults."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (480, 640, 3), np.uint8)
    corners = rng.uniform((0, 0), (500, 240), (PERSONS, 2))
    boxes = np.concatenate(
        [corners, corners + rng.uniform((60, 120), (140, 240), (PERSONS, 2))], axis=1
    )
    for name in ("ResNet-50", "HRNet-W32"):
        cfg = config.load(
            ROOT / "experiments" / "coco" / f"{NETWORKS[name]}.yaml", ["MODEL.PRETRAINED", ""]
        )
        with tempfile.TemporaryDirectory() as folder:
            file = write_random_weights(cfg, folder)
            pose = PoseEstimator(cfg, file, device="cpu", flip_test=False, batch_size=PERSONS)
        works = {
            "one call": lambda pose=pose: pose(image, boxes),
            "calls of one": lambda pose=pose: [pose(image, box[None]) for box in boxes],
        }
        seconds = time_alternately(works, 3)
        yield Row(
            f"one of {PERSONS} persons per call of PoseEstimator, {name}",
            format_seconds(seconds["one call"], PERSONS),
            f"one call each {format_seconds(seconds['calls of one'], PERSONS)}",
            ratio(seconds, "calls of one", "one call"),
            "min",
            1.0,
        )
        together, alone = works["one call"](), works["calls of one"]()
        moved = np.abs(
            together.keypoints - np.concatenate([poses.keypoints for poses in alone])
        ).max(axis=2)
        yield Row(
            f"the same: keypoints that differ by more than 0.001 px, {name}",
            "",
            "",
            float((moved >= 1e-3).mean() * 100),
            "max",
            1.0,
            "%",
        )


if __name__ == "__main__":
    main(measure)
