"""From pictures and person boxes to poses, for other people's programs.

    from poise import PoseEstimator
    pose = PoseEstimator("experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml",
                         "models/pytorch/pose_coco/hrnet_w32_coco_256x192-c78dce93_20200708.pth")
    people = pose("picture.jpg", boxes=[[10, 20, 110, 320]])

The way is that of tools/test.py, function by function: geometry and datasets.persons.cut, forward,
codecs, geometry again. Letters: N persons, B crops of a batch, J joints, H W pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from yacs.config import CfgNode

from poise import config
from poise.codecs import build_codec
from poise.codecs.codec import Arrays, Codec, to_arrays
from poise.config.datasets import dataset_info
from poise.engine.device import choose_device, compile_network, prepare_for_inference
from poise.errors import ConfigError, DataError
from poise.evaluation import rescore
from poise.inference.export import onnx_network
from poise.inference.poses import Poses
from poise.io.images import as_rgb_array
from poise.models import build_model
from poise.models.forward import check_precision, forward_with_flip_test, normalize
from poise.models.weights.experiment import config_from_weights
from poise.models.weights.origin import load_trained_weights
from poise.structures.crops import (
    MAX_COORD,
    PIXEL_STD,
    box_to_center_scale,
    crop_person,
    crop_to_image,
)

Picture = str | os.PathLike | np.ndarray
# crops; the maps of more leave the processor's caches, and each takes longer:
# benchmarks/estimator.py
_CPU_BATCH = 4
_LEAST_SIDE = 1e-3  # pixels of a crop in the picture


class Network(Protocol):
    """What finds joints in crops: a network of PyTorch, or a file of onnxruntime."""

    decodes: bool  # whether it returns joints and scores instead of an output for the codec

    def __call__(self, crops: np.ndarray) -> Arrays:
        """Crops (B, H, W, 3) uint8, RGB -> an output for Codec.decode; or, where it decodes itself,
        joints (B, J, 2) in crop pixels and scores (B, J).
        """


class TorchNetwork:
    """The network of an experiment with the weights of a file, as tools/test.py would run them."""

    decodes = False

    def __init__(self, cfg: CfgNode, codec: Codec, file: str | os.PathLike, device: torch.device):
        check_precision(cfg, [device])
        model = build_model(cfg)
        load_trained_weights(cfg, model, file)
        self._cfg, self._codec, self._device = cfg, codec, device
        self._model = prepare_for_inference(cfg, model, [device]).eval()
        compile_network(cfg, self._model, [device])
        self._flip_indices = torch.from_numpy(dataset_info(cfg).skeleton.flip_indices).to(device)

    @torch.no_grad()
    def __call__(self, crops: np.ndarray) -> Arrays:
        crops = crops if self._cfg.DATASET.COLOR_RGB else np.ascontiguousarray(crops[:, :, :, ::-1])
        images = normalize(self._cfg, torch.from_numpy(crops), self._device)
        return to_arrays(
            forward_with_flip_test(self._cfg, self._codec, self._model, images, self._flip_indices)
        )


class PoseEstimator:
    """Finds the joints of persons in pictures.

    cfg: the experiment, a YAML file or what poise.config.load made of one. weights: a weight file
    of any family that the experiment's network takes (see poise.models.weights.load), or an .onnx
    file of tools/export.py. Weight files that Poise trained and .onnx files say what they are: with
    them `cfg` may be None, or the file may be given alone. device: 'auto' is the first CUDA device,
    Apple's (mps) or the CPU, whichever is there; or a name or torch.device. half: compute in 16
    bits, as AMP says, else fp16 and on the CPU bf16; otherwise as the experiment's AMP says.
    flip_test: average with the mirrored crop; None is TEST.FLIP_TEST. batch_size: crops that go
    through the network at once, on the CPU no more than 4, which are faster there. overrides: KEY,
    VALUE, ... of the experiment.

    Raises PoiseError (ConfigError, DataError) in one line for what cannot be used, here and when it
    is called. Attributes: cfg, skeleton, device, and seconds, the time spent so far in reading,
    cropping, the network and decoding.
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
            raise ConfigError(f"batch_size must be a whole number of 1 or more, got {batch_size!r}")
        if weights is None:
            cfg, weights = None, _weights_alone(cfg)
        # overrides come with the file: one of them may be what the file lacks
        experiment, overrides = (
            (cfg, overrides)
            if cfg is None or isinstance(cfg, CfgNode)
            else (config.load(cfg, overrides), ())
        )
        if onnx_network.is_onnx(weights):
            if half:
                raise ConfigError(
                    f"{weights}: an ONNX file computes as it was exported; leave half out"
                )
            self._network: Network = onnx_network.OnnxNetwork(
                weights, experiment, device, flip_test, overrides
            )
            self.cfg, self.device = self._network.cfg, self._network.device
            self._codec = self._network.codec
        else:
            self.device = choose_device(device)
            if experiment is None:
                experiment, overrides = config_from_weights(weights, overrides), ()
            self.cfg = _experiment(experiment, self.device, half, flip_test, overrides)
            self._codec = build_codec(self.cfg)
            self._network = TorchNetwork(self.cfg, self._codec, weights, self.device)
        self.batch_size = (
            min(int(batch_size), _CPU_BATCH) if self.device.type == "cpu" else int(batch_size)
        )
        self.skeleton = dataset_info(self.cfg).skeleton
        self.seconds = {"read": 0.0, "crop": 0.0, "network": 0.0, "decode": 0.0}

    def __call__(
        self, image: Picture | Sequence[Picture], boxes: Any = None
    ) -> Poses | list[Poses]:
        """The poses of one picture, or of a list of pictures a list.

        image: RGB (H, W, 3) uint8, or a picture file's path, or a list of these. boxes: persons in
        the picture, (N, 4) left, top, right, bottom in pixels (right = left + width), in a list one
        such array for each picture; None is the whole picture as one person. A box grows by
        TEST.BOX_MARGIN and to the network's aspect ratio, and may lie partly or wholly outside:
        what is not picture is black. No pictures and no boxes are fine. All crops of a call go
        through the network in batches of batch_size.
        """
        if isinstance(image, (str, os.PathLike, np.ndarray)) or not isinstance(image, Iterable):
            return self._poses([image], [boxes])[0]
        images = list(image)
        sets = (
            [None] * len(images)
            if boxes is None
            else list(boxes)
            if isinstance(boxes, Iterable)
            else [boxes]
        )
        if len(sets) != len(images):
            raise DataError(
                f"boxes must be given for each picture: there are {len(images)} pictures and"
                f" {len(sets)} sets of boxes"
            )
        return self._poses(images, sets)

    def _poses(self, images: list[Picture], boxes: list[Any]) -> list[Poses]:
        names = [
            str(image) if isinstance(image, (str, os.PathLike)) else f"picture {number}"
            for number, image in enumerate(images)
        ]
        for image, name in zip(images, names):
            if not isinstance(image, (str, os.PathLike)):  # files are read one by one
                as_rgb_array(image, name)
        given = [
            None if own is None else self._checked_boxes(own, name)
            for own, name in zip(boxes, names)
        ]
        width, height = self.cfg.MODEL.IMAGE_SIZE
        persons = sum(1 if own is None else len(own) for own in given)
        crops = np.empty((min(self.batch_size, persons), height, width, 3), np.uint8)
        # centre and scale of the crops that are filled
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for number, (image, own) in enumerate(zip(images, given)):
            if own is not None and not len(own):
                continue
            pixels = self._read(image, names[number])
            if own is None:
                given[number] = own = np.array([[0.0, 0.0, pixels.shape[1], pixels.shape[0]]])
            for center, scale in zip(*self._centers_and_scales(own)):
                with self._timed("crop"):
                    crops[len(waiting)] = self._crop(pixels, center, scale, names[number])
                waiting.append((center, scale))
                if len(waiting) == self.batch_size:
                    found.append(self._find(crops, waiting))
                    waiting = []
        if waiting:
            found.append(self._find(crops[: len(waiting)], waiting))
        joints = self.skeleton.num_keypoints
        keypoints = np.concatenate(
            [np.empty((0, joints, 2), np.float32), *(part[0] for part in found)]
        )
        scores = np.concatenate([np.empty((0, joints), np.float32), *(part[1] for part in found)])
        ends = np.cumsum([0, *map(len, given)])
        return [
            self._as_poses(keypoints[begin:end], scores[begin:end], own)
            for begin, end, own in zip(ends, ends[1:], given)
        ]

    def _as_poses(self, keypoints: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> Poses:
        persons = rescore(scores, np.ones(len(scores)), self.cfg.TEST.IN_VIS_THRE).astype(
            np.float32
        )
        return Poses(
            keypoints,
            scores,
            boxes.astype(np.float32),
            persons,
            self.skeleton,
            self._codec.vis_threshold,
        )

    def _checked_boxes(self, boxes: Any, name: str) -> np.ndarray:
        """(N, 4) float64, or DataError with the number of the first box that no crop can be cut
        for.
        """
        try:
            array = np.asarray(boxes, np.float64)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor with a gradient
            raise DataError(
                f"boxes of {name}: four numbers each are needed, left, top, right, bottom"
            ) from None
        if array.size == 0:
            return np.empty((0, 4))
        if array.ndim != 2 or array.shape[1] != 4:
            raise DataError(
                f"boxes of {name}: an array (N, 4) of left, top, right, bottom is needed, its shape"
                f" is {array.shape}"
            )
        finite = np.isfinite(array).all(axis=1)
        bad = ~finite | (array[:, 2] <= array[:, 0]) | (array[:, 3] <= array[:, 1])
        fault = "has no area; left < right and top < bottom are needed (right is left plus width)"
        if not bad.any():
            bad, fault = (np.abs(array) >= MAX_COORD).any(axis=1), "is too far away"
        if not bad.any():  # there is no crop where float32 cannot tell its sides apart
            side = self._centers_and_scales(array)[1][:, 0] * PIXEL_STD
            bad, fault = (
                side
                < np.maximum(
                    _LEAST_SIDE, 4 * np.spacing(np.abs(array).max(axis=1).astype(np.float32))
                ),
                "is too small",
            )
        if bad.any():
            index = int(np.argmax(bad))
            fault = fault if finite[index] else "is not finite"
            raise DataError(
                f"box {index} of {name} ({', '.join(f'{value:.9g}' for value in array[index])})"
                f" {fault}"
            )
        return array

    def _centers_and_scales(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width, height = self.cfg.MODEL.IMAGE_SIZE
        sized = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        return box_to_center_scale(sized, width / height, self.cfg.TEST.BOX_MARGIN)

    def _read(self, image: Picture, name: str) -> np.ndarray:
        """RGB (H, W, 3) uint8, laid out as OpenCV needs it."""
        with self._timed("read"):
            return np.ascontiguousarray(as_rgb_array(image, name))

    def _crop(
        self, pixels: np.ndarray, center: np.ndarray, scale: np.ndarray, name: str
    ) -> np.ndarray:
        try:
            return crop_person(
                pixels, center, scale, 0.0, False, self.cfg.MODEL.IMAGE_SIZE, self._codec.udp
            )[0]
        except DataError as error:
            raise DataError(f"{name}: {error}") from None

    def _find(
        self, crops: np.ndarray, places: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (B, J, 2) in pixels of the pictures and scores (B, J), float32, of crops and
        their centres and scales.
        """
        with self._timed("network"):
            answer = self._network(crops)
        with self._timed("decode"):
            coords, scores = answer if self._network.decodes else self._codec.decode(answer)
            center, scale = (np.array(values) for values in zip(*places))
            keypoints = crop_to_image(
                coords, center, scale, self.cfg.MODEL.IMAGE_SIZE, self._codec.udp
            )
        if not (np.isfinite(keypoints).all() and np.isfinite(scores).all()):
            narrow = f", or AMP {self.cfg.AMP} is too narrow for it" if self.cfg.AMP else ""
            raise DataError(
                f"the network's {self._codec.representation} hold NaN or infinity: it has diverged,"
                f" its weights do not fit{narrow}"
            )
        return keypoints.astype(np.float32), np.asarray(scores, np.float32)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - begin


def _weights_alone(file: str | os.PathLike | CfgNode | None) -> str | os.PathLike:
    """Return the file of PoseEstimator(file). Raises ConfigError for an experiment."""
    if not isinstance(file, (str, os.PathLike)) or Path(file).suffix.lower() in (".yaml", ".yml"):
        raise ConfigError(
            "weights: no weight file is given; PoseEstimator takes an experiment and "
            "its weight file, or alone a weight file that carries its experiment"
        )
    return file


def _experiment(
    cfg: CfgNode, device: torch.device, half: bool, flip_test: bool | None, overrides: Sequence[Any]
) -> CfgNode:
    cfg = config.override(cfg, overrides)
    if flip_test is not None:
        cfg = config.override(cfg, ["TEST.FLIP_TEST", bool(flip_test)])
    if half and not cfg.AMP:
        cfg = config.override(cfg, ["AMP", "bf16" if device.type == "cpu" else "fp16"])
    return cfg
