"""The interface of a codec: keypoints to what a network learns, and its outputs back to keypoints.

Legend of the codecs: B batch, K keypoints, H W input pixels, h w heatmap cells, L target levels.
Sizes are (width, height).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

# one output of a network: a tensor, or a tuple of tensors that belong together. A network in train
# mode returns a sequence of outputs (deep supervision), in eval mode one output.
Output: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
Arrays: TypeAlias = np.ndarray | tuple[np.ndarray, ...]


def map_output(function: Callable[[Any], Any], output: Any) -> Any:
    """Apply a function to each tensor or array of an output."""
    return tuple(map(function, output)) if isinstance(output, tuple) else function(output)


def tensors_of(output: Any) -> tuple[Any, ...]:
    """Return the tensors or arrays of an output."""
    return output if isinstance(output, tuple) else (output,)


def to_arrays(output: Output) -> Arrays:
    """Copy an output to the CPU as NumPy arrays."""
    return map_output(lambda tensor: tensor.cpu().numpy(), output)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a network learns for a batch; each representation adds its labels.

    weight: (B, K, 1), 0 for keypoints that are not labeled or outside of the crop.
    visible_mask: (B, K, 1), 1 for those of the others that are not occluded.
    annotated_mask: (B, K, 1), 0 for keypoints that the person's dataset does not have; None: all
    are annotated.
    """

    weight: torch.Tensor
    visible_mask: torch.Tensor
    annotated_mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Codec(ABC):
    """One representation of keypoints, with its loss, metrics, flip test and pictures.

    The types of outputs and targets are those of the subclass: Output and Arrays, and a subclass of
    Targets.

    image_size: of the crops, in pixels. loss_function: called with the supervised outputs of the
    network and the targets.
    """

    image_size: tuple[int, int]
    loss_function: nn.Module = field(kw_only=True, repr=False, compare=False)

    udp: ClassVar[bool] = False  # crops are UDP's: see poise.structures.crops
    vis_threshold: ClassVar[float] = 0.2  # keypoints above it are drawn
    # keys that the representation depends on, besides MODEL.IMAGE_SIZE
    config_keys: ClassVar[tuple[str, ...]]
    # keys that decoding and the flip test depend on
    decode_keys: ClassVar[tuple[str, ...]] = ()
    flip_keys: ClassVar[tuple[str, ...]] = ()
    # what the outputs are called in messages, on TensorBoard and in file names
    representation: ClassVar[str]
    output_names: ClassVar[tuple[str, ...]]  # of an exported graph

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: CfgNode, loss_function: nn.Module) -> Codec:
        """Build the codec that a configuration describes."""

    @abstractmethod
    def encode(self, keypoints: torch.Tensor, visible: torch.Tensor) -> Targets:
        """Make the targets of a batch, on the device of `keypoints`.

        Args:
            keypoints: (B, K, 2) crop pixels.
            visible: (B, K), COCO's flag 0, 1 or 2; -1 is as 0.
        """

    def loss(self, outputs: Sequence[Output], targets: Targets) -> torch.Tensor:
        """Return the loss of all supervised outputs, a scalar; the prediction is the last."""
        return self.loss_function(outputs, targets)

    @abstractmethod
    def accuracy(self, output: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many keypoints of a batch are (right, counted), on the device of `output`."""

    @abstractmethod
    def decode(self, output: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return keypoints (B, K, 2) float32 in crop pixels and scores (B, K) float32."""

    def decode_with_accuracy(
        self, output: Any, targets: Any
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
        """Return what decode and accuracy return: keypoints, scores, right, counted."""
        return *self.decode(to_arrays(output)), *self.accuracy(output, targets)

    @abstractmethod
    def flip_average(self, output: Any, flipped: Any, flip_indices: torch.Tensor) -> Any:
        """Average two outputs, the second of the flipped images.

        flip_indices: (K,) indices of poise.structures.skeleton.
        """

    @abstractmethod
    def flip_average_in_graph(self, output: Any, flipped: Any, flip_indices: torch.Tensor) -> Any:
        """Do what flip_average does, by operations that can be exported."""

    @abstractmethod
    def build_decoder(self) -> nn.Module:
        """Build a module that does what decode does, by operations that can be exported.

        Its forward maps an output to keypoints (B, K, 2) and scores (B, K).
        """

    @abstractmethod
    def output_shapes(self, num_keypoints: int) -> list[tuple[int, ...]]:
        """Return the shapes of an output's tensors, without the batch."""

    @abstractmethod
    def output_maps(self, output: Any) -> np.ndarray:
        """Return maps (B, K, h, w) of an output, 0 to 1, to be drawn over the crops."""

    @abstractmethod
    def target_maps(self, targets: Any, count: int | None = None) -> np.ndarray:
        """Return maps (B, L, K, h, w) of the first `count` targets, from coarse to fine."""
