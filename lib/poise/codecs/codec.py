"""The interface of codecs, which convert keypoints to targets and outputs to keypoints.

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
    """The targets of a batch. Each representation adds its labels.

    Args:
        weight: (B, K, 1), 0 for keypoints that are not labeled or outside of the crop, else 1.
        visible_mask: (B, K, 1), 1 for keypoints of weight 1 that are not occluded, else 0.
        annotated_mask: (B, K, 1), 0 for keypoints that the person's dataset does not have; None:
            all are annotated.
    """

    weight: torch.Tensor
    visible_mask: torch.Tensor
    annotated_mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Codec(ABC):
    """A representation of keypoints, with its loss, accuracy, flip test and maps to draw.

    The types of outputs and targets are those of the subclass: Output and Arrays, and a subclass of
    Targets.

    Args:
        image_size: size of the crops in pixels.
        loss_function: called with the supervised outputs of the network and the targets.
    """

    image_size: tuple[int, int]
    loss_function: nn.Module = field(kw_only=True, repr=False, compare=False)

    udp: ClassVar[bool] = False  # whether crops are those of UDP, see poise.structures.crops
    vis_threshold: ClassVar[float] = 0.2  # lowest score of keypoints that are drawn
    # configuration keys of the representation, besides MODEL.IMAGE_SIZE
    config_keys: ClassVar[tuple[str, ...]]
    # configuration keys of decoding and of the flip test
    decode_keys: ClassVar[tuple[str, ...]] = ()
    flip_keys: ClassVar[tuple[str, ...]] = ()
    # name of the outputs in messages, on TensorBoard and in file names
    representation: ClassVar[str]
    output_names: ClassVar[tuple[str, ...]]  # of an exported graph

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: CfgNode, loss_function: nn.Module) -> Codec:
        """Build the codec of a configuration."""

    @abstractmethod
    def encode(self, keypoints: torch.Tensor, visible: torch.Tensor) -> Targets:
        """Return the targets of a batch, on the device of `keypoints`.

        Args:
            keypoints: (B, K, 2) in crop pixels.
            visible: (B, K) of COCO's visibility flag 0, 1 or 2; -1 is treated as 0.
        """

    def loss(self, outputs: Sequence[Output], targets: Targets) -> torch.Tensor:
        """Return the loss of all supervised outputs, the prediction last, as a scalar."""
        return self.loss_function(outputs, targets)

    @abstractmethod
    def accuracy(self, output: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (num_correct, num_valid) of a batch's keypoints, on the device of `output`."""

    @abstractmethod
    def decode(self, output: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return keypoints (B, K, 2) in crop pixels and scores (B, K), both float32."""

    def decode_with_accuracy(
        self, output: Any, targets: Any
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
        """Return the results of decode and accuracy: keypoints, scores, num_correct, num_valid."""
        return *self.decode(to_arrays(output)), *self.accuracy(output, targets)

    @abstractmethod
    def flip_average(self, output: Any, flipped: Any, flip_indices: torch.Tensor) -> Any:
        """Average the outputs of images and of the flipped images.

        Args:
            output: output of the images.
            flipped: output of the flipped images.
            flip_indices: (K,) indices of poise.structures.skeleton.
        """

    @abstractmethod
    def flip_average_in_graph(self, output: Any, flipped: Any, flip_indices: torch.Tensor) -> Any:
        """Return the same as flip_average with operations that can be exported."""

    @abstractmethod
    def build_decoder(self) -> nn.Module:
        """Build a module that decodes with operations that can be exported.

        It maps an output to keypoints (B, K, 2) in crop pixels and scores (B, K).
        """

    @abstractmethod
    def output_shapes(self, num_keypoints: int) -> list[tuple[int, ...]]:
        """Return the shapes of an output's tensors without the batch dimension."""

    @abstractmethod
    def output_maps(self, output: Any) -> np.ndarray:
        """Return maps (B, K, h, w) of an output with values 0 to 1, to draw over the crops."""

    @abstractmethod
    def target_maps(self, targets: Any, count: int | None = None) -> np.ndarray:
        """Return maps (B, L, K, h, w) of the first `count` targets, from coarse to fine."""
