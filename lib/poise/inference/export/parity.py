"""Whether an exported file finds what the network finds: largest differences of outputs and of
joints, on noise and on real crops.

B batch, J joints, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs.codec import Arrays, Codec, map_output, tensors_of, to_arrays
from poise.errors import DataError
from poise.inference.export.formats import Run
from poise.inference.export.graph import (
    KEYPOINTS,
    SCORES,
    ExportOptions,
    normalized,
    reference_output,
)
from poise.structures.crops import box_to_center_scale, crop_person

OUTPUT_TOLERANCE = 1e-4  # of the largest value of the network's own output
KEYPOINT_TOLERANCE = 0.01  # pixels of the crop
_BATCHES = (1, 3, 4)  # sizes that the graph is asked for, in turn
# of changes of the output; one in 2,000 of two equal maxima is taken for certain
_DRAWS = 16


@dataclass(frozen=True)
class Parity:
    """What was found on one kind of crops. representation: what the codec calls its outputs.

    outputs: largest difference, over the largest value. keypoints: largest difference in crop
    pixels, over the joints whose place is certain. scores: largest difference, over the largest
    score, likewise. crops, joints: how many. unsure: joints that are not counted: see compare.
    """

    kind: str
    representation: str
    outputs: float
    keypoints: float
    scores: float
    crops: int
    joints: int
    unsure: int

    @property
    def equal(self) -> bool:
        # written so that NaN is not equal
        return (
            self.outputs <= OUTPUT_TOLERANCE
            and self.keypoints <= KEYPOINT_TOLERANCE
            and self.scores <= OUTPUT_TOLERANCE
            and self.unsure < self.joints
        )

    def __str__(self) -> str:
        unsure = (
            f" ({self.unsure} whose {self.representation} leave their place open are not counted)"
            if self.unsure
            else ""
        )
        return (
            f"{self.kind}: {self.crops} crops: {self.representation} differ by at most"
            f" {self.outputs:.1e} of"
            f" their maximum, scores by {self.scores:.1e}, keypoints by {self.keypoints:.1e} px in"
            f" {self.joints} joints{unsure}"
        )


def compare(
    cfg: CfgNode,
    codec: Codec,
    model: nn.Module,
    parts: ExportOptions,
    run: Run,
    crops: np.ndarray,
    kind: str,
) -> Parity:
    """Hold what `run` gives for crops (B, H, W, 3) uint8 RGB against the network itself, in float32
    with PyTorch on the CPU, decoded by its codec.

    A joint's place is open where two cells are the maximum but for rounding, or where the output is
    so flat that a refinement amplifies the rounding: where changing the network's own output by as
    little as the file's differs moves the joint by more than half the tolerance.
    """
    own_parts: list[Arrays] = []
    outputs: list[list[np.ndarray]] = []
    begin = 0
    while begin < len(crops):
        part = torch.from_numpy(crops[begin : begin + _BATCHES[len(outputs) % len(_BATCHES)]])
        own_parts.append(to_arrays(reference_output(cfg, codec, model, part, parts.flip)))
        outputs.append(run((part if parts.normalize else normalized(cfg, part)).numpy()))
        begin += len(part)
    own = _joined(own_parts)
    if not all(np.isfinite(array).all() for array in tensors_of(own)):
        raise DataError(
            f"the network's own {codec.representation} hold NaN or infinity: it has diverged or"
            " its weights do not fit"
        )
    names = parts.output_names(codec)
    found = dict(zip(names, (np.concatenate(output) for output in zip(*outputs))))
    arrays = tuple(found[name] for name in codec.output_names)
    for array, reference in zip(arrays, tensors_of(own)):
        assert array.shape == reference.shape, (
            f"{codec.representation} of shape {array.shape} instead of {reference.shape}"
        )
    coords, scores = codec.decode(own)
    if parts.decode:
        theirs = found[KEYPOINTS], found[SCORES]
    else:
        theirs = codec.decode(arrays if isinstance(own, tuple) else arrays[0])
    difference = max(float(np.abs(a - b).max()) for a, b in zip(arrays, tensors_of(own)))
    sure = _certain(codec, own, coords, difference)
    moved = np.abs(theirs[0] - coords).max(axis=2)
    score_difference = float(np.abs(theirs[1] - scores)[sure].max(initial=0))
    return Parity(
        kind,
        codec.representation,
        difference / max(map(_largest, tensors_of(own))),
        float(moved[sure].max(initial=0)),
        score_difference / _largest(scores),
        len(crops),
        sure.size,
        int((~sure).sum()),
    )


def _largest(values: np.ndarray) -> float:
    return max(float(np.abs(values).max()), 1e-12)


def _joined(outputs: list[Arrays]) -> Arrays:
    """The outputs of several batches as one."""
    if isinstance(outputs[0], tuple):
        return tuple(map(np.concatenate, zip(*outputs)))
    return np.concatenate(outputs)


def _certain(codec: Codec, output: Arrays, coords: np.ndarray, difference: float) -> np.ndarray:
    """(B, J) bool: joints that stay within half of KEYPOINT_TOLERANCE when the output changes by
    `difference`.
    """
    rng = np.random.default_rng(0)
    change = np.array([-difference, difference], np.float32)
    sure = np.ones(coords.shape[:2], bool)
    for _ in range(_DRAWS):
        changed = map_output(lambda array: array + rng.choice(change, array.shape), output)
        sure &= np.abs(codec.decode(changed)[0] - coords).max(axis=2) <= KEYPOINT_TOLERANCE / 2
    return sure


def make_noise_crops(cfg: CfgNode, count: int = 8) -> np.ndarray:
    """Crops (count, H, W, 3) of random pixels."""
    width, height = cfg.MODEL.IMAGE_SIZE
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def make_synthetic_crops(cfg: CfgNode, codec: Codec, count: int = 8) -> np.ndarray:
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
        crops += _cut_boxes(cfg, codec, scene.image[:, :, ::-1], boxes)
        number += 1
    return np.stack(crops[:count])


def crop_full_images(cfg: CfgNode, codec: Codec, paths: Sequence[str | Path]) -> np.ndarray:
    """A crop (H, W, 3) of each picture as a whole."""
    from poise.io.images import read_image

    pictures = map(read_image, paths)
    return np.stack(
        [
            crop
            for image in pictures
            for crop in _cut_boxes(
                cfg, codec, image, np.array([[0, 0, image.shape[1], image.shape[0]]])
            )
        ]
    )


def _cut_boxes(
    cfg: CfgNode, codec: Codec, image: np.ndarray, boxes: np.ndarray
) -> list[np.ndarray]:
    """boxes: (N, 4) left, top, width, height."""
    width, height = cfg.MODEL.IMAGE_SIZE
    image = np.ascontiguousarray(image)
    places = zip(*box_to_center_scale(boxes, width / height, cfg.TEST.BOX_MARGIN))
    return [
        crop_person(image, center, scale, 0.0, False, (width, height), codec.udp)[0]
        for center, scale in places
    ]
