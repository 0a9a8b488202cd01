"""Exportable module: fused network plus optional normalization, flip test and decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs.codec import Codec, Output, map_output, tensors_of
from poise.config.datasets import dataset_info
from poise.models.forward import forward_with_flip_test, normalize
from poise.models.fuse import fold_batch_norms

KEYPOINTS, SCORES, IMAGES = "keypoints", "scores", "images"


@dataclass(frozen=True)
class ExportOptions:
    """What a graph contains besides the network.

    The last outputs are always those of the network, float32, under the names of the codec.

    Attributes:
        normalize: the input is crops (B, H, W, 3) uint8 RGB; otherwise it is normalized images
            (B, 3, H, W) float32 in the network's channel order.
        flip: run the flip test.
        decode: the first outputs are keypoints (B, K, 2) in crop pixels and scores (B, K), float32.
    """

    normalize: bool = False
    flip: bool = False
    decode: bool = False

    def output_names(self, codec: Codec) -> list[str]:
        """Return the names of the graph's outputs."""
        names = list(codec.output_names)
        if self.decode:
            return [KEYPOINTS, SCORES, *names]
        return names


class Graph(nn.Module):
    """The network of an experiment in eval mode, with batch norms fused, and `options`."""

    flip_order: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, cfg: CfgNode, codec: Codec, model: nn.Module, options: ExportOptions):
        super().__init__()
        self.network = fold_batch_norms(model)
        self.options = options
        self.bgr = not cfg.DATASET.COLOR_RGB
        self.codec = codec
        self.output_names = options.output_names(codec)
        self.decoder = codec.build_decoder() if options.decode else None
        self.register_buffer(
            "flip_order", torch.from_numpy(dataset_info(cfg).skeleton.flip_indices)
        )
        for name in ("MEAN", "STD"):
            self.register_buffer(
                name.lower(),
                (torch.tensor(cfg.MODEL[name], dtype=torch.float32) * 255)[:, None, None],
            )
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.options.normalize:
            images = images.permute(0, 3, 1, 2).float()
            if self.bgr:
                images = images.flip(1)
            images = (images - self.mean) / self.std
        if self.options.flip:  # one forward pass, so that the graph contains the network once
            both = self.network(torch.cat([images, images.flip(3)]))
            pairs = map_output(lambda one: one.unflatten(0, (2, -1)), both)
            output = self.codec.flip_average_in_graph(
                map_output(lambda pair: pair[0], pairs),
                map_output(lambda pair: pair[1], pairs),
                self.flip_order,
            )
        else:
            output = self.network(images)
        decoded = () if self.decoder is None else self.decoder(output)
        return *decoded, *tensors_of(output)

    def example(self, cfg: CfgNode, count: int = 2) -> torch.Tensor:
        """Return an input of `count` crops."""
        width, height = cfg.MODEL.IMAGE_SIZE
        if self.options.normalize:
            return torch.zeros(count, height, width, 3, dtype=torch.uint8)
        return torch.zeros(count, 3, height, width)


@torch.no_grad()
def reference_output(
    cfg: CfgNode, codec: Codec, model: nn.Module, crops: torch.Tensor, flip: bool
) -> Output:
    """Return the output that a graph is compared with, for crops (B, H, W, 3) uint8 RGB.

    The network computes in float32, without fused batch norms.
    """
    flip_indices = torch.from_numpy(dataset_info(cfg).skeleton.flip_indices)
    return forward_with_flip_test(
        model.eval(), normalized(cfg, crops), codec, flip_indices, flip_test=flip
    )


def normalized(cfg: CfgNode, crops: torch.Tensor) -> torch.Tensor:
    """Normalize crops (B, H, W, 3) uint8 RGB for the network.

    Returns: images (B, 3, H, W) float32 in the network's channel order, contiguous.
    """
    ordered = crops if cfg.DATASET.COLOR_RGB else crops.flip(3)
    return normalize(
        ordered,
        torch.device("cpu"),
        mean=cfg.MODEL.MEAN,
        std=cfg.MODEL.STD,
        channels_last=cfg.CHANNELS_LAST,
    ).contiguous()
