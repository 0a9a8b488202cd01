"""Compare an exported file with its network: largest differences of outputs and keypoints.

Letters: B batch, K keypoints, H W pixels.
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

OUTPUT_TOLERANCE = 1e-4  # relative to the largest value of the network's output
KEYPOINT_TOLERANCE = 0.01  # pixels of the crop
_BATCH_SIZES = (1, 3, 4)  # used in turn
# random changes of the output per keypoint; 1 of 2,000 ambiguous maxima passes as certain
_NUM_CHANGES = 16


@dataclass(frozen=True)
class Parity:
    """Largest differences on one kind of crops.

    Attributes:
        kind: of the crops.
        representation: name of the codec's outputs.
        outputs: largest difference relative to the largest value.
        keypoints: largest difference in crop pixels, of keypoints that are not ambiguous.
        scores: largest difference relative to the largest score, likewise.
        crops, joints: numbers of crops and keypoints.
        unsure: number of ambiguous keypoints, see compare.
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
        """Whether all differences are within the tolerances; false for NaN."""
        return (
            self.outputs <= OUTPUT_TOLERANCE
            and self.keypoints <= KEYPOINT_TOLERANCE
            and self.scores <= OUTPUT_TOLERANCE
            and self.unsure < self.joints
        )

    def __str__(self) -> str:
        ambiguous = f" ({self.unsure} ambiguous ones are excluded)" if self.unsure else ""
        return (
            f"{self.kind}: {self.crops} crops: {self.representation} differ by at most"
            f" {self.outputs:.1e} of"
            f" their maximum, scores by {self.scores:.1e}, keypoints by {self.keypoints:.1e} px in"
            f" {self.joints} keypoints{ambiguous}"
        )


def compare(
    cfg: CfgNode,
    codec: Codec,
    model: nn.Module,
    options: ExportOptions,
    run: Run,
    crops: np.ndarray,
    kind: str,
) -> Parity:
    """Compare `run` with the network in float32 PyTorch on the CPU, decoded by its codec.

    A keypoint is ambiguous if two maxima are equal except for rounding, or if the output is so flat
    that the refinement amplifies rounding: if a change of the network's output as small as the
    file's difference moves it by more than half the tolerance.

    Args:
        cfg, codec, model: the network.
        options: of the exported file.
        run: runs the exported file.
        crops: (B, H, W, 3) uint8 RGB.
        kind: name of the crops in the result.
    """
    expected, outputs = _run_both(cfg, codec, model, options, run, crops)
    if not all(np.isfinite(array).all() for array in tensors_of(expected)):
        raise DataError(
            f"{codec.representation} of the network have NaN or infinite values; it has diverged or"
            " its weights do not fit"
        )
    arrays = tuple(outputs[name] for name in codec.output_names)
    for array, reference in zip(arrays, tensors_of(expected)):
        assert array.shape == reference.shape, (
            f"{codec.representation} of shape {array.shape} instead of {reference.shape}"
        )
    coords, scores = codec.decode(expected)
    if options.decode:
        file_coords, file_scores = outputs[KEYPOINTS], outputs[SCORES]
    elif isinstance(expected, tuple):
        file_coords, file_scores = codec.decode(arrays)
    else:
        file_coords, file_scores = codec.decode(arrays[0])
    difference = max(float(np.abs(a - b).max()) for a, b in zip(arrays, tensors_of(expected)))
    is_certain = _certain(codec, expected, coords, difference)
    distance = np.abs(file_coords - coords).max(axis=2)
    score_difference = float(np.abs(file_scores - scores)[is_certain].max(initial=0))
    return Parity(
        kind,
        codec.representation,
        difference / max(map(_largest, tensors_of(expected))),
        float(distance[is_certain].max(initial=0)),
        score_difference / _largest(scores),
        len(crops),
        is_certain.size,
        int((~is_certain).sum()),
    )


def make_noise_crops(cfg: CfgNode, count: int = 8) -> np.ndarray:
    """Return crops (count, H, W, 3) of random pixels."""
    width, height = cfg.MODEL.IMAGE_SIZE
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def make_synthetic_crops(cfg: CfgNode, codec: Codec, count: int = 8) -> np.ndarray:
    """Return crops (count, H, W, 3) of persons of synthetic images."""
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
        crops += _crop_boxes(cfg, codec, scene.image[:, :, ::-1], boxes)
        number += 1
    return np.stack(crops[:count])


def crop_full_images(cfg: CfgNode, codec: Codec, paths: Sequence[str | Path]) -> np.ndarray:
    """Return a crop (H, W, 3) of each full image."""
    from poise.io.images import read_image

    crops: list[np.ndarray] = []
    for image in map(read_image, paths):
        full = np.array([[0, 0, image.shape[1], image.shape[0]]])
        crops += _crop_boxes(cfg, codec, image, full)
    return np.stack(crops)


def _run_both(
    cfg: CfgNode,
    codec: Codec,
    model: nn.Module,
    options: ExportOptions,
    run: Run,
    crops: np.ndarray,
) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Run network and file on batches of different sizes.

    Returns: the output of the network, and the outputs of the file by name.
    """
    expected: list[Arrays] = []
    outputs: list[list[np.ndarray]] = []
    begin = 0
    while begin < len(crops):
        size = _BATCH_SIZES[len(outputs) % len(_BATCH_SIZES)]
        batch = torch.from_numpy(crops[begin : begin + size])
        expected.append(to_arrays(reference_output(cfg, codec, model, batch, options.flip)))
        images = batch if options.normalize else normalized(cfg, batch)
        outputs.append(run(images.numpy()))
        begin += len(batch)
    arrays = [np.concatenate(output) for output in zip(*outputs)]
    return _concatenate(expected), dict(zip(options.output_names(codec), arrays))


def _largest(values: np.ndarray) -> float:
    return max(float(np.abs(values).max()), 1e-12)


def _concatenate(outputs: list[Arrays]) -> Arrays:
    """Concatenate the outputs of several batches."""
    if isinstance(outputs[0], tuple):
        return tuple(map(np.concatenate, zip(*outputs)))
    return np.concatenate(outputs)


def _certain(codec: Codec, output: Arrays, coords: np.ndarray, difference: float) -> np.ndarray:
    """Return a mask (B, K) of keypoints that are not ambiguous.

    They stay within half of KEYPOINT_TOLERANCE if the output changes by `difference`.
    """
    rng = np.random.default_rng(0)
    change = np.array([-difference, difference], np.float32)
    is_certain = np.ones(coords.shape[:2], bool)
    for _ in range(_NUM_CHANGES):
        changed = map_output(lambda array: array + rng.choice(change, array.shape), output)
        distance = np.abs(codec.decode(changed)[0] - coords).max(axis=2)
        is_certain &= distance <= KEYPOINT_TOLERANCE / 2
    return is_certain


def _crop_boxes(
    cfg: CfgNode, codec: Codec, image: np.ndarray, boxes: np.ndarray
) -> list[np.ndarray]:
    """Return a crop (H, W, 3) for each box (N, 4) left, top, width, height."""
    width, height = cfg.MODEL.IMAGE_SIZE
    image = np.ascontiguousarray(image)
    centers, scales = box_to_center_scale(boxes, width / height, cfg.TEST.BOX_MARGIN)
    return [
        crop_person(image, center, scale, 0.0, False, (width, height), codec.udp)[0]
        for center, scale in zip(centers, scales)
    ]
