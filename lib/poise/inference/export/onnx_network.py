"""Run an exported ONNX file as the network of a PoseEstimator."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from poise import config
from poise.codecs import build_codec, codec_class
from poise.codecs.codec import Arrays, Output, to_arrays
from poise.config.datasets import dataset_info
from poise.errors import ConfigError, DataError, single_line
from poise.inference.export import metadata
from poise.inference.export.formats import onnx_session, require_packages
from poise.inference.export.graph import IMAGES, KEYPOINTS, SCORES, normalized
from poise.models.forward import forward_with_flip_test
from poise.structures.skeleton import first_joint_mismatch

log = logging.getLogger(__name__)

_CUDA = "CUDAExecutionProvider"


def is_onnx(file: str | os.PathLike) -> bool:
    """Return whether a weight file is an ONNX file, by its name."""
    return Path(file).suffix.lower() == ".onnx"


def create_session(file: str | os.PathLike, device: str | torch.device) -> tuple[Any, torch.device]:
    """Return an onnxruntime session of a file and its device.

    Args:
        file: path of an ONNX file.
        device: 'auto', or see parse_device.

    Raises DataError, and ConfigError for a device that cannot be used.
    """
    chosen = best_device() if device == "auto" else parse_device(device)
    session = onnx_session(file, chosen)
    # onnxruntime falls back to the CPU silently
    if chosen.type == "cuda" and _CUDA not in session.get_providers():
        if device != "auto":
            raise ConfigError(
                f"{file}: onnxruntime cannot start CUDA; repair its installation, or set device cpu"
            )
        chosen = torch.device("cpu")
    return session, chosen


def best_device() -> torch.device:
    """Return the first CUDA device if onnxruntime supports CUDA, else the CPU."""
    require_packages(("onnxruntime",), "running an .onnx file")
    import onnxruntime

    return torch.device("cuda" if _CUDA in onnxruntime.get_available_providers() else "cpu")


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device cpu, cuda or cuda:1. Raises ConfigError for others.

    PyTorch itself need not support it.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device {str(device)!r} cannot be used with an ONNX file; set auto, cpu, cuda or"
            " cuda:1"
        )
    return chosen


class OnnxNetwork:
    """A file of tools/export.py --format onnx, run by onnxruntime.

    Args:
        file: path of the ONNX file.
        cfg: an experiment that agrees with the file; None: that of the file's metadata.
        device: 'auto', or see parse_device.
        flip_test: None: as exported; if neither flip test nor decoding is exported,
            TEST.FLIP_TEST.
        overrides: KEY, VALUE, ... of the experiment.

    Attributes:
        cfg, codec, device: what is used.
        decodes: whether calls return keypoints and scores.

    Raises DataError for an invalid file, ConfigError for an unsupported request.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        cfg: CfgNode | None,
        device: str | torch.device,
        flip_test: bool | None,
        overrides: Sequence[Any] = (),
    ):
        if not Path(file).is_file():
            raise DataError(f"{file}: no such ONNX file")
        self._file = file
        self._session, self.device = create_session(file, device)
        text = self._session.get_modelmeta().custom_metadata_map.get(metadata.KEY)
        if text is None:
            raise DataError(
                f"{file}: missing metadata of Poise; only files of tools/export.py --format onnx"
                " are supported"
            )
        exported, self._options = metadata.from_text(text, str(file))
        self.decodes = self._options.decode
        self._check_graph(exported)
        cfg = config.override(exported if cfg is None else cfg, overrides)
        self._check_agreement(exported, cfg)
        flip_test = self._resolve_flip_test(cfg, flip_test)
        self.cfg = config.override(cfg, ["TEST.FLIP_TEST", flip_test, "AMP", ""])
        # the flip test, if the graph does not contain it
        self._outer_flip_test = flip_test and not self._options.flip
        self.codec = build_codec(self.cfg)
        self._flip_indices = torch.from_numpy(dataset_info(cfg).skeleton.flip_indices)

    def __call__(self, crops: np.ndarray) -> Arrays:
        """Run the network, see poise.inference.estimator.Network."""
        images = torch.from_numpy(crops)
        if self._options.normalize:
            images = images.permute(0, 3, 1, 2)
        else:
            images = normalized(self.cfg, images)
        if self._options.decode:
            return tuple(self._run(images, [KEYPOINTS, SCORES]))
        output = forward_with_flip_test(
            self._run_network,
            images,
            self.codec,
            self._flip_indices,
            flip_test=self._outer_flip_test,
        )
        return to_arrays(output)

    def _run_network(self, images: torch.Tensor) -> Output:
        arrays = self._run(images, list(self.codec.output_names))
        tensors = tuple(map(torch.from_numpy, arrays))
        return tensors if len(tensors) > 1 else tensors[0]

    def _run(self, images: torch.Tensor, outputs: list[str]) -> list[np.ndarray]:
        """Run the session on images (B, 3, H, W), uint8 if the graph normalizes."""
        if self._options.normalize:
            images = images.permute(0, 2, 3, 1)
        try:
            return self._session.run(outputs, {IMAGES: images.contiguous().numpy()})
        except Exception as error:  # onnxruntime's classes have no common base
            raise DataError(
                f"{self._file}: onnxruntime failed on {len(images)} crops"
                f" ({single_line(error)[:200]})"
            ) from None

    def _resolve_flip_test(self, cfg: CfgNode, flip_test: bool | None) -> bool:
        """Return whether to use the flip test. Raises ConfigError if the graph cannot do it."""
        options = self._options
        if flip_test is None:
            flip_test = options.flip or (cfg.TEST.FLIP_TEST and not options.decode)
            if cfg.TEST.FLIP_TEST and not flip_test:
                log.warning(
                    "%s",
                    f"{single_line(self._file)}: was exported with decoding and without the flip"
                    " test, so TEST.FLIP_TEST True has no effect; set flip_test False, or export"
                    " it with --with-flip",
                )
        elif options.flip and not flip_test:
            raise ConfigError(
                f"{self._file}: was exported with the flip test; export it without --with-flip, or"
                " omit flip_test"
            )
        elif flip_test and options.decode and not options.flip:
            raise ConfigError(
                f"{self._file}: was exported with decoding and without the flip test; export it"
                " with --with-flip, or omit flip_test"
            )
        return bool(flip_test)

    def _check_graph(self, exported: CfgNode) -> None:
        """Raise DataError if the graph's inputs and outputs are not those of its metadata."""
        width, height = exported.MODEL.IMAGE_SIZE
        if self._options.normalize:
            expected = ("tensor(uint8)", [height, width, 3])
        else:
            expected = ("tensor(float)", [3, height, width])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        codec = build_codec(exported)
        shapes = codec.output_shapes(exported.MODEL.NUM_JOINTS)
        if (
            [one.name for one in inputs] != [IMAGES]
            or (inputs[0].type, list(inputs[0].shape[1:])) != expected
            or [one.name for one in outputs] != self._options.output_names(codec)
            or [tuple(one.shape[1:]) for one in outputs[-len(shapes) :]] != shapes
        ):
            raise DataError(
                f"{self._file}: inputs and outputs do not match the metadata; export it again"
            )

    def _check_agreement(self, exported: CfgNode, cfg: CfgNode) -> None:
        """Raise ConfigError if the file cannot be used with the experiment `cfg`."""
        codec = codec_class(exported.MODEL.TARGET_TYPE)
        fixed_keys = metadata.network_keys(codec)
        if self._options.decode:
            fixed_keys += codec.decode_keys
        if self._options.flip:
            fixed_keys += codec.flip_keys
        for key in fixed_keys:
            old, new = metadata.value_of(exported, key), metadata.value_of(cfg, key)
            if old != new:
                raise ConfigError(
                    f"{self._file}: was exported with {key} {old}, the experiment has {new}; export"
                    " it again, or omit the experiment"
                )
        for key in metadata.WARNED_KEYS:
            old, new = metadata.value_of(exported, key), metadata.value_of(cfg, key)
            if old != new:
                log.warning(
                    "%s",
                    f"{single_line(self._file)}: was exported with {key} {old}, and is used with"
                    f" {new}: keypoints may be inaccurate",
                )
        skeleton, needed = dataset_info(exported).skeleton, dataset_info(cfg).skeleton
        difference = first_joint_mismatch(skeleton.names, needed.names)
        if not difference and not np.array_equal(skeleton.flip_indices, needed.flip_indices):
            difference = "its flip pairs differ"
        if difference:
            raise ConfigError(
                f"{self._file}: was exported with other keypoints than the experiment's"
                f" ({difference}); export it again, or omit the experiment"
            )
