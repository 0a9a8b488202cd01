"""An exported ONNX file in the place of the network, for PoseEstimator."""

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
    return Path(file).suffix.lower() == ".onnx"


def best_device() -> torch.device:
    """The first CUDA device where this onnxruntime can use one, else the CPU."""
    require_packages(("onnxruntime",), "running an .onnx file")
    import onnxruntime

    return torch.device("cuda" if _CUDA in onnxruntime.get_available_providers() else "cpu")


def named_device(device: str | torch.device) -> torch.device:
    """cpu, cuda or cuda:1. Raises ConfigError for any other. PyTorch itself need not be able to
    use it.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device {str(device)!r} cannot be used with an ONNX file; give auto, cpu, cuda or"
            " cuda:1"
        )
    return chosen


def create_session(file: str | os.PathLike, device: str | torch.device) -> tuple[Any, torch.device]:
    """The file's onnxruntime session, and the device that it runs on: 'auto', or see
    named_device. Raises DataError, and ConfigError for a device that does not start.
    """
    chosen = best_device() if device == "auto" else named_device(device)
    session = onnx_session(file, chosen)
    # onnxruntime goes on without a word
    if chosen.type == "cuda" and _CUDA not in session.get_providers():
        if device != "auto":
            raise ConfigError(
                f"{file}: onnxruntime cannot start CUDA here; mend its installation, or give"
                " device cpu"
            )
        chosen = torch.device("cpu")
    return session, chosen


class OnnxNetwork:
    """A file of tools/export.py --format onnx under onnxruntime.

    cfg: an experiment, which must agree with the file, or None for what the file says of itself;
    overrides: KEY, VALUE, ... on either. device: 'auto', or see named_device. flip_test: None is as
    the file does it, or, where it does neither flip test nor decoding, TEST.FLIP_TEST. Raises
    DataError for a file that is not such a one, ConfigError where it cannot do what it is asked
    for. The attributes `cfg` and `device` are what it then works by.
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
                f"{file}: has no metadata of Poise; only files of tools/export.py --format onnx are"
                " read"
            )
        own, self._parts = metadata.from_text(text, str(file))
        self.decodes = self._parts.decode
        self._check_form(file, own)
        cfg = config.override(own if cfg is None else cfg, overrides)
        self._check_agreement(file, own, cfg)
        if flip_test is None:
            flip_test = self._parts.flip or (cfg.TEST.FLIP_TEST and not self._parts.decode)
            if cfg.TEST.FLIP_TEST and not flip_test:
                log.warning(
                    "%s",
                    f"{single_line(file)}: was exported with decoding and without the flip test, so"
                    " TEST.FLIP_TEST True has no effect; give flip_test False, or export it with"
                    " --with-flip",
                )
        elif flip_test != self._parts.flip and (self._parts.flip or self._parts.decode):
            raise ConfigError(
                f"{file}: was exported"
                f" {'with' if self._parts.flip else 'with decoding and without'} the flip test;"
                f" export it {'without' if self._parts.flip else 'with'} --with-flip, or leave"
                " flip_test out"
            )
        self.cfg = config.override(cfg, ["TEST.FLIP_TEST", bool(flip_test), "AMP", ""])
        # what is left to do outside of the graph
        self._outside = config.override(
            self.cfg, ["TEST.FLIP_TEST", bool(flip_test) and not self._parts.flip]
        )
        self.codec = build_codec(self.cfg)
        self._flip_indices = torch.from_numpy(dataset_info(cfg).skeleton.flip_indices)

    def __call__(self, crops: np.ndarray) -> Arrays:
        """See poise.inference.estimator.Network."""
        images = torch.from_numpy(crops)
        images = (
            images.permute(0, 3, 1, 2) if self._parts.normalize else normalized(self.cfg, images)
        )
        if self._parts.decode:
            return tuple(self._run(images, [KEYPOINTS, SCORES]))
        return to_arrays(
            forward_with_flip_test(
                self._outside, self.codec, self._output, images, self._flip_indices
            )
        )

    def _output(self, images: torch.Tensor) -> Output:
        """The output of the graph's network."""
        arrays = self._run(images, list(self.codec.output_names))
        tensors = tuple(map(torch.from_numpy, arrays))
        return tensors if len(tensors) > 1 else tensors[0]

    def _run(self, images: torch.Tensor, outputs: list[str]) -> list[np.ndarray]:
        """images: (B, 3, H, W), uint8 where the graph normalises."""
        given = images.permute(0, 2, 3, 1) if self._parts.normalize else images
        try:
            return self._session.run(outputs, {IMAGES: given.contiguous().numpy()})
        except Exception as error:  # of onnxruntime, which has one class for each kind
            raise DataError(
                f"{self._file}: onnxruntime fails on {len(images)} crops"
                f" ({single_line(error)[:200]})"
            ) from None

    def _check_form(self, file: str | os.PathLike, own: CfgNode) -> None:
        """Raise DataError where the graph's input and outputs are not those that its metadata
        tells.
        """
        width, height = own.MODEL.IMAGE_SIZE
        wanted = (
            ("tensor(uint8)", [height, width, 3])
            if self._parts.normalize
            else ("tensor(float)", [3, height, width])
        )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        codec = build_codec(own)
        shapes = codec.output_shapes(own.MODEL.NUM_JOINTS)
        if (
            [one.name for one in inputs] != [IMAGES]
            or (inputs[0].type, list(inputs[0].shape[1:])) != wanted
            or [one.name for one in outputs] != self._parts.output_names(codec)
            or [tuple(one.shape[1:]) for one in outputs[-len(shapes) :]] != shapes
        ):
            raise DataError(
                f"{file}: its input and outputs are not those that its metadata tells; export it"
                " anew"
            )

    def _check_agreement(self, file: str | os.PathLike, own: CfgNode, cfg: CfgNode) -> None:
        codec = codec_class(own.MODEL.TARGET_TYPE)
        fixed = (
            metadata.network_keys(codec)
            + (codec.decode_keys if self._parts.decode else ())
            + (codec.flip_keys if self._parts.flip else ())
        )
        for key in fixed:
            if metadata.value_of(own, key) != metadata.value_of(cfg, key):
                raise ConfigError(
                    f"{file}: was exported with {key} {metadata.value_of(own, key)}, and is to be"
                    f" used with {metadata.value_of(cfg, key)}; export it anew, or leave the"
                    " experiment out"
                )
        for key in metadata.WARNED_KEYS:
            if metadata.value_of(own, key) != metadata.value_of(cfg, key):
                log.warning(
                    "%s",
                    f"{single_line(file)}: was exported with {key} {metadata.value_of(own, key)},"
                    " and"
                    f" is used with {metadata.value_of(cfg, key)}: joints may be found in the wrong"
                    " places",
                )
        exported, wanted = dataset_info(own).skeleton, dataset_info(cfg).skeleton
        other = first_joint_mismatch(exported.names, wanted.names)
        if not other and not np.array_equal(exported.flip_indices, wanted.flip_indices):
            other = "its mirror pairs differ"
        if other:
            raise ConfigError(
                f"{file}: was exported with other joints than the experiment's ({other}); export it"
                " anew, or leave the experiment out"
            )
