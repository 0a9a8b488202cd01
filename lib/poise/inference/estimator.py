"""Estimate the poses of persons in images.

    from poise import PoseEstimator
    estimator = PoseEstimator(
        "experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml",
        "models/pytorch/pose_coco/hrnet_w32_coco_256x192-c78dce93_20200708.pth",
    )
    poses = estimator("image.jpg", boxes=[[10, 20, 110, 320]])

The steps are those of tools/test.py and call the same functions. Letters: N persons, B crops of a
batch, K keypoints, H W pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from yacs.config import CfgNode

from poise import config
from poise.codecs import build_codec
from poise.codecs.codec import Arrays, Codec, to_arrays
from poise.config.datasets import dataset_info
from poise.engine.device import choose_device, compile_network, prepare_for_inference
from poise.engine.embedded_experiment import config_from_weights
from poise.engine.trained_weights import load_trained_weights
from poise.errors import ConfigError, DataError
from poise.evaluation import rescore
from poise.inference.export import onnx_network
from poise.inference.poses import Poses
from poise.io.images import as_rgb_array
from poise.models import build_model
from poise.models.forward import check_precision, forward_with_flip_test, normalize
from poise.structures.crops import (
    MAX_COORD,
    PIXEL_STD,
    box_to_center_scale,
    crop_person,
    crop_to_image,
)

ImageInput: TypeAlias = str | os.PathLike | np.ndarray
# more crops at once are slower on the CPU, because feature maps leave its caches:
# benchmarks/estimator.py
_MAX_CPU_BATCH = 4
_MIN_SIDE = 1e-3  # pixels of a crop in the image


class Network(Protocol):
    """A pose network on crops: a PyTorch model or an ONNX file."""

    decodes: bool  # whether it returns keypoints and scores instead of an output for the codec

    def __call__(self, crops: np.ndarray) -> Arrays:
        """Run the network on crops (B, H, W, 3) uint8 RGB.

        Returns: an output for Codec.decode, or with `decodes` keypoints (B, K, 2) in crop pixels
        and scores (B, K).
        """


class TorchNetwork:
    """The network of an experiment with trained weights, run as in tools/test.py."""

    decodes = False

    def __init__(self, cfg: CfgNode, codec: Codec, file: str, device: torch.device):
        check_precision([device], cfg.AMP)
        model = build_model(cfg)
        load_trained_weights(cfg, model, file)
        self._cfg, self._codec, self._device = cfg, codec, device
        self._model = prepare_for_inference(cfg, model, [device]).eval()
        compile_network(cfg, self._model, [device])
        self._flip_indices = torch.from_numpy(dataset_info(cfg).skeleton.flip_indices).to(device)

    @torch.no_grad()
    def __call__(self, crops: np.ndarray) -> Arrays:
        if not self._cfg.DATASET.COLOR_RGB:
            crops = np.ascontiguousarray(crops[:, :, :, ::-1])
        images = normalize(
            torch.from_numpy(crops),
            self._device,
            mean=self._cfg.MODEL.MEAN,
            std=self._cfg.MODEL.STD,
            channels_last=self._cfg.CHANNELS_LAST,
        )
        return to_arrays(
            forward_with_flip_test(
                self._model,
                images,
                self._codec,
                self._flip_indices,
                flip_test=self._cfg.TEST.FLIP_TEST,
                amp=self._cfg.AMP,
            )
        )


class PoseEstimator:
    """Estimates the keypoints of persons in images.

    Args:
        cfg: the experiment: a YAML file or the result of poise.config.load. None for weights that
            carry their experiment (files trained by Poise, .onnx files); then the weight file may
            also be the only argument.
        weights: a weight file that poise.models.weights.load accepts, or an .onnx file of
            tools/export.py.
        device: a name, a torch.device, or 'auto': the first CUDA device, else mps, else the CPU.
        half: compute in 16 bits: as AMP says, else fp16, on the CPU bf16.
        flip_test: average with the flipped crop; None: TEST.FLIP_TEST.
        batch_size: crops per forward pass; at most 4 on the CPU, where this is faster.
        overrides: KEY, VALUE, ... of the experiment.

    Attributes:
        cfg, skeleton, device: what is used.
        seconds: time spent so far in read, crop, network and decode.

    Raises PoiseError (ConfigError, DataError) with a one-line message, also when it is called.
    """

    def __init__(
        self,
        cfg: str | os.PathLike | CfgNode | None,
        weights: str | os.PathLike | None = None,
        *,
        device: str | torch.device = "auto",
        half: bool = False,
        flip_test: bool | None = None,
        batch_size: int = 32,
        overrides: Sequence[Any] = (),
    ):
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ConfigError(
                f"batch_size: invalid {batch_size!r}; expected an integer of 1 or more"
            )
        if weights is None:
            weights = _weights_alone(cfg)
            cfg = None
        weights = os.fspath(weights)
        # overrides of a file are applied together with it: it may lack what they set
        experiment: CfgNode | None
        if cfg is None or isinstance(cfg, CfgNode):
            experiment = cfg
        else:
            experiment = config.load(os.fspath(cfg), overrides)
            overrides = ()
        if onnx_network.is_onnx(weights):
            if half:
                raise ConfigError(
                    f"{weights}: ONNX files run in the precision of their export; remove half"
                )
            network = onnx_network.OnnxNetwork(weights, experiment, device, flip_test, overrides)
            self._network: Network = network
            self._codec = network.codec
            self.cfg, self.device = network.cfg, network.device
        else:
            self.device = choose_device(device)
            if experiment is None:
                experiment = config_from_weights(weights, overrides)
                overrides = ()
            self.cfg = _override(experiment, self.device, half, flip_test, overrides)
            self._codec = build_codec(self.cfg)
            self._network = TorchNetwork(self.cfg, self._codec, weights, self.device)
        self.batch_size = int(batch_size)
        if self.device.type == "cpu":
            self.batch_size = min(self.batch_size, _MAX_CPU_BATCH)
        self.skeleton = dataset_info(self.cfg).skeleton
        self.seconds = {"read": 0.0, "crop": 0.0, "network": 0.0, "decode": 0.0}

    def __call__(
        self, image: ImageInput | Sequence[ImageInput], boxes: Any = None
    ) -> Poses | list[Poses]:
        """Return the poses of an image, or a list of poses for a list of images.

        Args:
            image: RGB (H, W, 3) uint8, the path of an image file, or a list of these.
            boxes: persons of the image, (N, 4) left, top, right, bottom in pixels
                (right = left + width); for a list of images one array per image. None: the full
                image is one person. A box is enlarged by TEST.BOX_MARGIN and to the aspect ratio
                of the network; what is outside of the image is black.

        Lists and boxes may be empty. All crops of a call are processed in batches of batch_size.
        """
        if isinstance(image, (str, os.PathLike, np.ndarray)) or not isinstance(image, Iterable):
            return self._estimate([image], [boxes])[0]
        images = list(image)
        if boxes is None:
            box_sets = [None] * len(images)
        elif isinstance(boxes, Iterable):
            box_sets = list(boxes)
        else:
            box_sets = [boxes]
        if len(box_sets) != len(images):
            raise DataError(
                f"boxes: got {len(images)} images and {len(box_sets)} sets of boxes; pass one set"
                " per image"
            )
        return self._estimate(images, box_sets)

    def _estimate(self, images: list[ImageInput], box_sets: list[Any]) -> list[Poses]:
        names = [
            str(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
            for number, image in enumerate(images)
        ]
        for image, name in zip(images, names):
            if not isinstance(image, (str, os.PathLike)):  # files are read one at a time
                as_rgb_array(image, name)
        checked = [
            None if boxes is None else self._checked_boxes(boxes, name)
            for boxes, name in zip(box_sets, names)
        ]
        width, height = self.cfg.MODEL.IMAGE_SIZE
        num_persons = sum(1 if boxes is None else len(boxes) for boxes in checked)
        crops = np.empty((min(self.batch_size, num_persons), height, width, 3), np.uint8)
        pending: list[tuple[np.ndarray, np.ndarray]] = []  # center and scale of filled crops
        predictions: list[tuple[np.ndarray, np.ndarray]] = []
        all_boxes: list[np.ndarray] = []
        for image, boxes, name in zip(images, checked, names):
            if boxes is not None and not len(boxes):
                all_boxes.append(boxes)
                continue
            pixels = self._read(image, name)
            if boxes is None:
                boxes = np.array([[0.0, 0.0, pixels.shape[1], pixels.shape[0]]])
            all_boxes.append(boxes)
            for center, scale in zip(*self._centers_and_scales(boxes)):
                crops[len(pending)] = self._crop(pixels, center, scale, name)
                pending.append((center, scale))
                if len(pending) == self.batch_size:
                    predictions.append(self._predict(crops, pending))
                    pending = []
        if pending:
            predictions.append(self._predict(crops[: len(pending)], pending))
        num_keypoints = self.skeleton.num_keypoints
        keypoints = np.concatenate(
            [np.empty((0, num_keypoints, 2), np.float32), *(part[0] for part in predictions)]
        )
        scores = np.concatenate(
            [np.empty((0, num_keypoints), np.float32), *(part[1] for part in predictions)]
        )
        ends = np.cumsum([0, *map(len, all_boxes)])
        return [
            self._to_poses(keypoints[begin:end], scores[begin:end], boxes)
            for begin, end, boxes in zip(ends, ends[1:], all_boxes)
        ]

    def _to_poses(self, keypoints: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> Poses:
        person_scores = rescore(scores, np.ones(len(scores)), self.cfg.TEST.IN_VIS_THRE)
        return Poses(
            keypoints,
            scores,
            boxes.astype(np.float32),
            person_scores.astype(np.float32),
            self.skeleton,
            self._codec.vis_threshold,
        )

    def _checked_boxes(self, boxes: Any, name: str) -> np.ndarray:
        """Return boxes (N, 4) float64. Raises DataError for a box without a valid crop."""
        try:
            array = np.asarray(boxes, np.float64)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor with a gradient
            raise DataError(
                f"boxes of {name}: expected four numbers each: left, top, right, bottom"
            ) from None
        if array.size == 0:
            return np.empty((0, 4))
        if array.ndim != 2 or array.shape[1] != 4:
            raise DataError(
                f"boxes of {name}: expected an array (N, 4) of left, top, right, bottom; got shape"
                f" {array.shape}"
            )
        is_finite = np.asarray(np.isfinite(array).all(axis=1))
        if not is_finite.all():
            raise _box_error(array, ~is_finite, name, "is not finite")
        is_empty = np.logical_or(array[:, 2] <= array[:, 0], array[:, 3] <= array[:, 1])
        if is_empty.any():
            raise _box_error(
                array,
                is_empty,
                name,
                "has no area; left < right and top < bottom are needed (right is left plus width)",
            )
        is_far = np.asarray((np.abs(array) >= MAX_COORD).any(axis=1))
        if is_far.any():
            raise _box_error(array, is_far, name, "is too far away")
        # float32 must be able to tell the sides of the crop apart
        spacing = np.spacing(np.abs(array).max(axis=1).astype(np.float32))
        side = self._centers_and_scales(array)[1][:, 0] * PIXEL_STD
        is_small = np.asarray(side < np.maximum(_MIN_SIDE, 4 * spacing))
        if is_small.any():
            raise _box_error(array, is_small, name, "is too small")
        return array

    def _centers_and_scales(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width, height = self.cfg.MODEL.IMAGE_SIZE
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        return box_to_center_scale(xywh, width / height, self.cfg.TEST.BOX_MARGIN)

    def _read(self, image: ImageInput, name: str) -> np.ndarray:
        """Return RGB (H, W, 3) uint8, contiguous for OpenCV."""
        with self._timed("read"):
            return np.ascontiguousarray(as_rgb_array(image, name))

    def _crop(
        self, pixels: np.ndarray, center: np.ndarray, scale: np.ndarray, name: str
    ) -> np.ndarray:
        size = self.cfg.MODEL.IMAGE_SIZE
        with self._timed("crop"):
            try:
                return crop_person(pixels, center, scale, 0.0, False, size, self._codec.udp)[0]
            except DataError as error:
                raise DataError(f"{name}: {error}") from None

    def _predict(
        self, crops: np.ndarray, boxes: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return keypoints (B, K, 2) in image pixels and scores (B, K), float32.

        Args:
            crops: (B, H, W, 3) uint8 RGB.
            boxes: center and scale of each crop.
        """
        with self._timed("network"):
            output = self._network(crops)
        with self._timed("decode"):
            if self._network.decodes:
                coords, scores = output
            else:
                coords, scores = self._codec.decode(output)
            center, scale = (np.array(values) for values in zip(*boxes))
            keypoints = crop_to_image(
                coords, center, scale, self.cfg.MODEL.IMAGE_SIZE, self._codec.udp
            )
        if not (np.isfinite(keypoints).all() and np.isfinite(scores).all()):
            cause = "the network has diverged or its weights do not fit"
            if self.cfg.AMP:
                cause += f", or the range of AMP {self.cfg.AMP} is too small"
            raise DataError(
                f"{self._codec.representation} of the network have NaN or infinite values; {cause}"
            )
        return keypoints.astype(np.float32), np.asarray(scores, np.float32)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - begin


def _weights_alone(file: str | os.PathLike | CfgNode | None) -> str | os.PathLike:
    """Return the weight file of PoseEstimator(file). Raises ConfigError for an experiment."""
    if not isinstance(file, (str, os.PathLike)) or Path(file).suffix.lower() in (".yaml", ".yml"):
        raise ConfigError(
            "weights: missing; pass an experiment and its weight file, or only a weight file that"
            " carries its experiment"
        )
    return file


def _override(
    cfg: CfgNode, device: torch.device, half: bool, flip_test: bool | None, overrides: Sequence[Any]
) -> CfgNode:
    """Return `cfg` with the arguments of PoseEstimator applied."""
    cfg = config.override(cfg, list(overrides))
    if flip_test is not None:
        cfg = config.override(cfg, ["TEST.FLIP_TEST", bool(flip_test)])
    if half and not cfg.AMP:
        cfg = config.override(cfg, ["AMP", "bf16" if device.type == "cpu" else "fp16"])
    return cfg


def _box_error(boxes: np.ndarray, is_invalid: np.ndarray, name: str, problem: str) -> DataError:
    """Return the error of the first invalid box."""
    index = int(np.argmax(is_invalid))
    values = ", ".join(f"{value:.9g}" for value in boxes[index])
    return DataError(f"box {index} of {name} ({values}) {problem}")
