"""Whether an exported file finds what the network finds: largest differences of heatmaps and of
joints, on noise and on real crops.

B batch, J joints, H W pixels, h w heatmap cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs import Codec, build_codec
from poise.errors import DataError
from poise.inference.export.formats import Run
from poise.inference.export.graph import (
    HEATMAPS,
    KEYPOINTS,
    SCORES,
    Parts,
    eager_heatmaps,
    normalized,
)
from poise.structures.crops import box_to_center_scale, cut

HEATMAP_TOLERANCE = 1e-4  # of the largest value of the network's own heatmaps
KEYPOINT_TOLERANCE = 0.01  # pixels of the crop
_BATCHES = (1, 3, 4)  # sizes that the graph is asked for, in turn
# of changes of the heatmaps; one in 2,000 of two equal maxima is taken for certain
_DRAWS = 16


@dataclass(frozen=True)
class Parity:
    """What was found on one kind of crops.

    heatmaps: largest difference, over the largest value. keypoints: largest difference in crop
    pixels, over the joints whose place is certain. scores: largest difference, over the largest
    score, likewise. crops, joints: how many. unsure: joints that are not counted: see compare.
    """

    kind: str
    heatmaps: float
    keypoints: float
    scores: float
    crops: int
    joints: int
    unsure: int

    @property
    def equal(self) -> bool:
        # written so that NaN is not equal
        return (
            self.heatmaps <= HEATMAP_TOLERANCE
            and self.keypoints <= KEYPOINT_TOLERANCE
            and self.scores <= HEATMAP_TOLERANCE
            and self.unsure < self.joints
        )

    def __str__(self) -> str:
        unsure = (
            f" ({self.unsure} whose heatmaps leave their place open are not counted)"
            if self.unsure
            else ""
        )
        return (
            f"{self.kind}: {self.crops} crops: heatmaps differ by at most {self.heatmaps:.1e} of"
            f" their maximum, scores by {self.scores:.1e}, keypoints by {self.keypoints:.1e} px in"
            f" {self.joints} joints{unsure}"
        )


def compare(
    cfg: CfgNode, model: nn.Module, parts: Parts, run: Run, crops: np.ndarray, kind: str
) -> Parity:
    """Hold what `run` gives for crops (B, H, W, 3) uint8 RGB against the network itself, in float32
    with PyTorch on the CPU, decoded by its codec.

    A joint's place is open where two cells are the maximum but for rounding, or where the map is so
    flat that a refinement amplifies the rounding: where changing the network's own heatmaps by as
    little as the file's differ moves the joint by more than half the tolerance.
    """
    codec = build_codec(cfg)
    own_maps: list[np.ndarray] = []
    outputs: list[list[np.ndarray]] = []
    begin = 0
    while begin < len(crops):
        part = torch.from_numpy(crops[begin : begin + _BATCHES[len(outputs) % len(_BATCHES)]])
        own_maps.append(eager_heatmaps(cfg, model, part, parts.flip).numpy())
        outputs.append(run((part if parts.normalize else normalized(cfg, part)).numpy()))
        begin += len(part)
    own = np.concatenate(own_maps)
    if not np.isfinite(own).all():
        raise DataError(
            "the network's own heatmaps hold NaN or infinity: it has diverged or its weights do"
            " not fit"
        )
    found = dict(zip(parts.outputs, (np.concatenate(output) for output in zip(*outputs))))
    assert found[HEATMAPS].shape == own.shape, (
        f"heatmaps of shape {found[HEATMAPS].shape} instead of {own.shape}"
    )
    coords, scores = codec.decode(own)
    theirs = (found[KEYPOINTS], found[SCORES]) if parts.decode else codec.decode(found[HEATMAPS])
    difference = float(np.abs(found[HEATMAPS] - own).max())
    sure = _certain(codec, own, coords, difference)
    moved = np.abs(theirs[0] - coords).max(axis=2)
    score_difference = float(np.abs(theirs[1] - scores)[sure].max(initial=0))
    return Parity(
        kind,
        difference / _largest(own),
        float(moved[sure].max(initial=0)),
        score_difference / _largest(scores),
        len(crops),
        sure.size,
        int((~sure).sum()),
    )


def _largest(values: np.ndarray) -> float:
    return max(float(np.abs(values).max()), 1e-12)


def _certain(
    codec: Codec, heatmaps: np.ndarray, coords: np.ndarray, difference: float
) -> np.ndarray:
    """(B, J) bool: joints that stay within half of KEYPOINT_TOLERANCE when their heatmaps change
    by `difference`.
    """
    rng = np.random.default_rng(0)
    sure = np.ones(coords.shape[:2], bool)
    for _ in range(_DRAWS):
        changed = heatmaps + rng.choice(
            np.array([-difference, difference], np.float32), heatmaps.shape
        )
        sure &= np.abs(codec.decode(changed)[0] - coords).max(axis=2) <= KEYPOINT_TOLERANCE / 2
    return sure


def noise_crops(cfg: CfgNode, count: int = 8) -> np.ndarray:
    """Crops (count, H, W, 3) of random pixels."""
    width, height = cfg.MODEL.IMAGE_SIZE
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def drawn_crops(cfg: CfgNode, count: int = 8) -> np.ndarray:
    """Crops (count, H, W, 3) of the persons of made pictures (poise.datasets.synthetic.write)."""
    from poise.datasets.synthetic.annotations import coco_annotations
    from poise.datasets.synthetic.scene import sample_scene

    crops: list[np.ndarray] = []
    number = 0
    while len(crops) < count:
        scene = sample_scene(np.random.default_rng(number))
        boxes = np.array(
            [person["bbox"] for person in coco_annotations(scene, number) if not person["iscrowd"]],
            np.float64,
        ).reshape(-1, 4)
        crops += _cut_boxes(cfg, scene.image[:, :, ::-1], boxes)
        number += 1
    return np.stack(crops[:count])


def picture_crops(cfg: CfgNode, paths: Sequence[str | Path]) -> np.ndarray:
    """A crop (H, W, 3) of each picture as a whole."""
    from poise.io.images import read_picture

    pictures = map(read_picture, paths)
    return np.stack(
        [
            crop
            for image in pictures
            for crop in _cut_boxes(cfg, image, np.array([[0, 0, image.shape[1], image.shape[0]]]))
        ]
    )


def _cut_boxes(cfg: CfgNode, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """boxes: (N, 4) left, top, width, height."""
    width, height = cfg.MODEL.IMAGE_SIZE
    image, unbiased = np.ascontiguousarray(image), build_codec(cfg).unbiased
    places = zip(*box_to_center_scale(boxes, width / height, cfg.TEST.BOX_MARGIN))
    return [
        cut(image, center, scale, 0.0, False, (width, height), unbiased)[0]
        for center, scale in places
    ]
