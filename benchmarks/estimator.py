"""Poses of 32 persons in one call of PoseEstimator against 32 calls of one person each, on the
CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from comparing import Row, in_turns, main, ratio, shown
from poise import PoseEstimator, config
from poise.models import build_model
from train_step import NETWORKS

ROOT = Path(__file__).resolve().parents[1]
PERSONS = 32


def written_weights(cfg, folder: str) -> Path:
    """Random weights whose batch norms have figures of their own."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with torch.no_grad():
        model(torch.randn(2, 3, *reversed(cfg.MODEL.IMAGE_SIZE)))
    file = Path(folder) / "weights.pth"
    torch.save(model.state_dict(), file)
    return file


def measure() -> Iterator[Row]:
    """A picture of 640x480 and boxes, from the picture to the keypoints, 256x192, without flip
    test; as it comes on the CPU.
    """
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (480, 640, 3), np.uint8)
    corners = rng.uniform((0, 0), (500, 240), (PERSONS, 2))
    boxes = np.concatenate(
        [corners, corners + rng.uniform((60, 120), (140, 240), (PERSONS, 2))], axis=1
    )
    for name in ("ResNet-50", "HRNet-W32"):
        cfg = config.load(
            ROOT / "experiments" / "coco" / f"{NETWORKS[name]}.yaml", ["MODEL.PRETRAINED", ""]
        )
        with tempfile.TemporaryDirectory() as folder:
            file = written_weights(cfg, folder)
            pose = PoseEstimator(cfg, file, device="cpu", flip_test=False, batch_size=PERSONS)
        works = {
            "one call": lambda pose=pose: pose(picture, boxes),
            "calls of one": lambda pose=pose: [pose(picture, box[None]) for box in boxes],
        }
        seconds = in_turns(works, 3)
        yield Row(
            f"a person of {PERSONS} in a call of PoseEstimator, {name}",
            shown(seconds["one call"], PERSONS),
            f"a call each {shown(seconds['calls of one'], PERSONS)}",
            ratio(seconds, "calls of one", "one call"),
            "ratio",
            1.0,
        )
        together, alone = works["one call"](), works["calls of one"]()
        moved = np.abs(
            together.keypoints - np.concatenate([poses.keypoints for poses in alone])
        ).max(axis=2)
        yield Row(
            f"the same: joints that lie elsewhere by more than 0.001 px, {name}",
            "",
            "",
            float((moved >= 1e-3).mean() * 100),
            "most",
            1.0,
            "%",
        )


if __name__ == "__main__":
    main(measure)
