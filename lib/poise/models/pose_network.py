"""The interface that every network of MODELS has."""

from __future__ import annotations

from torch import nn
from yacs.config import CfgNode


class PoseNetwork(nn.Module):
    """Base class of the pose networks: images (B, 3, H, W) to an output of a codec.

    In eval mode `forward` returns the prediction, in train mode a tuple of every supervised output,
    the prediction last. Constructors take keyword arguments and leave the parameters as PyTorch
    initializes them; `init_weights` initializes them as the family's authors do.

    Attributes:
        output_stride: input pixels per cell of the last map: h = H / output_stride.
        input_multiple: H and W must be multiples of this.
        head_prefixes: prefixes of the state-dict keys that an ImageNet backbone does not have.
        extra_keys: keys of MODEL.EXTRA that from_config reads.
    """

    output_stride: int = 4
    input_multiple: int = 32
    head_prefixes: tuple[str, ...] = ()
    extra_keys: tuple[str, ...] = ()

    def init_weights(self) -> None:
        """Initialize the parameters as the family's authors do."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PoseNetwork:
        """Build the network that MODEL.* describes, without `init_weights`.

        Raises ConfigError naming the key for unknown keys and invalid values.
        """
        raise NotImplementedError
