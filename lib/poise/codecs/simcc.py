"""SimCC: a classification of each axis instead of a heatmap.

Each keypoint has one distribution over the bins of the x axis and one over those of the y axis,
with `split_ratio` bins per pixel of the crop. Source: Li et al., SimCC: a Simple Coordinate
Classification Perspective for Human Pose Estimation, ECCV 2022, arXiv 2107.03332, sections 3.1 and
3.2; mmpose 1.x codecs/simcc_label.py with smoothing_type 'gaussian', as RTMPose uses it. Figures:
tests/golden/simcc_functions.json. One-hot labels, DARK refinement and visibility are not
implemented.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from poise.codecs.codec import Codec, Targets

PCK_THRESHOLD = 0.05  # of the crop's size
DRAWN_CELL = 4  # pixels of the crop in a cell of a map that is drawn

AxisOutput = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SimCCTargets(Targets):
    """Target distributions of a batch.

    Args:
        labels: (B, K, bins of x) and (B, K, bins of y).
        peaks: (B, K, 2), their maxima in crop pixels.
    """

    labels: AxisOutput
    peaks: torch.Tensor


class KLDiscretLoss(nn.Module):
    """Kullback-Leibler divergence of both axes, summed over all supervised outputs.

    It is the mean over the bins and the sum over the batch, divided by the number of keypoints.
    Source: mmpose 1.x models/losses/classification_loss.py.

    Args:
        beta: factor of the prediction before its softmax.
        label_softmax: whether the labels have a softmax too.
        label_beta: factor of the labels before it.
        use_target_weight: ignore keypoints of weight 0.
    """

    def __init__(
        self,
        beta: float = 1.0,
        label_softmax: bool = False,
        label_beta: float = 10.0,
        use_target_weight: bool = True,
    ):
        super().__init__()
        self.beta = beta
        self.label_softmax = label_softmax
        self.label_beta = label_beta
        self.use_target_weight = use_target_weight

    def forward(self, outputs: Sequence[AxisOutput], targets: SimCCTargets) -> torch.Tensor:
        weight = targets.weight[:, :, 0]
        total = weight.new_zeros(())
        for output in outputs:
            for axis, labels in zip(output, targets.labels):
                divergence = self._divergence(axis, labels)
                if self.use_target_weight:
                    divergence = divergence * weight
                total = total + divergence.sum() / weight.shape[1]
        return total

    def _divergence(self, axis: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the divergence (B, K) of a prediction and labels (B, K, bins)."""
        if self.label_softmax:
            labels = F.softmax(labels * self.label_beta, dim=2)
        predicted = F.log_softmax(axis * self.beta, dim=2)
        return F.kl_div(predicted, labels, reduction="none").mean(dim=2)


class SimCCDecoder(nn.Module):
    """SimCC.decode with operations of PyTorch only."""

    def __init__(self, split_ratio: float):
        super().__init__()
        self.split_ratio = split_ratio

    def forward(self, output: AxisOutput) -> tuple[torch.Tensor, torch.Tensor]:
        bins = torch.stack([axis.argmax(dim=2) for axis in output], dim=2).float()
        scores = torch.minimum(*(axis.amax(dim=2) for axis in output))
        bins = torch.where(scores[:, :, None] > 0, bins, torch.full_like(bins, -1))
        return bins / self.split_ratio, scores


@dataclass(frozen=True)
class SimCC(Codec):
    """One distribution per axis.

    Args:
        sigma: standard deviation of the labels in x and y, in bins.
        split_ratio: number of bins per pixel.
        normalize: whether the labels have the sum 1 instead of the maximum 1.
    """

    sigma: tuple[float, float] = (4.9, 5.66)
    split_ratio: float = 2.0
    normalize: bool = False
    loss_function: nn.Module = field(
        default_factory=lambda: KLDiscretLoss(beta=10.0, label_softmax=True),
        kw_only=True,
        repr=False,
        compare=False,
    )

    config_keys = (
        "MODEL.HEATMAP_SIZE",
        "MODEL.SIMCC_SPLIT_RATIO",
        "MODEL.SIMCC_SIGMA",
        "MODEL.SIMCC_NORMALIZE",
    )
    representation = "distributions"
    output_names = ("simcc_x", "simcc_y")

    @property
    def bins(self) -> tuple[int, int]:
        """The number of bins of the x and the y axis."""
        width, height = (round(side * self.split_ratio) for side in self.image_size)
        return width, height

    @property
    def peak_value(self) -> tuple[float, float]:
        """The maximum of a label, in x and y."""
        if not self.normalize:
            return 1.0, 1.0
        x, y = (1 / (sigma * math.sqrt(2 * math.pi)) for sigma in self.sigma)
        return x, y

    def encode(self, keypoints: torch.Tensor, visible: torch.Tensor) -> SimCCTargets:
        """See Codec. The weight is also 0 if an axis has no bin within 3 sigma of the keypoint."""
        center = torch.round(keypoints * self.split_ratio)  # half to even, as NumPy does
        reach = 3 * center.new_tensor(self.sigma)
        size = center.new_tensor(self.bins)
        inside = ((center - reach < size) & (center + reach + 1 >= 0)).all(dim=2)
        weight = ((visible > 0) & inside).float()
        labels = []
        for axis, (bins, sigma, peak_value) in enumerate(
            zip(self.bins, self.sigma, self.peak_value)
        ):
            positions = torch.arange(bins, device=center.device, dtype=center.dtype)
            distance = positions - center[:, :, axis, None]
            values = torch.exp(-distance.square() / (2 * sigma**2)) * peak_value
            labels.append(values * weight[:, :, None])
        return SimCCTargets(
            labels=(labels[0], labels[1]),
            peaks=torch.minimum(center.clamp(min=0), size - 1) / self.split_ratio,
            weight=weight[:, :, None],
            visible_mask=weight[:, :, None] * (visible > 1)[:, :, None],
        )

    def accuracy(
        self, output: AxisOutput, targets: SimCCTargets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Codec: PCK at PCK_THRESHOLD of the crop's size.

        x is divided by the height and y by the width, as in mmpose 1.x (simcc_pck_accuracy), so
        that its logs are comparable.
        """
        predicted, _ = SimCCDecoder(self.split_ratio)(output)
        valid = targets.weight[:, :, 0] > 0
        difference = (predicted - targets.peaks) / predicted.new_tensor(self.image_size[::-1])
        near = torch.linalg.vector_norm(difference, dim=2) < PCK_THRESHOLD
        return (near & valid).sum(), valid.sum()

    def decode(self, output: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """See Codec. Bin i is the pixel i / split_ratio; the score is the lower of the maxima.

        If it is not above 0, both coordinates are those of bin -1.
        """
        bins = np.stack([axis.argmax(axis=2) for axis in output], axis=2).astype(np.float32)
        scores = np.minimum(*(axis.max(axis=2) for axis in output))
        bins[scores <= 0] = -1
        return bins / np.float32(self.split_ratio), scores

    def flip_average(
        self, output: AxisOutput, flipped: AxisOutput, flip_indices: torch.Tensor
    ) -> AxisOutput:
        """See Codec. As in mmpose, the x axes of the two are one bin apart."""
        x = (output[0] + flipped[0].flip(2)[:, flip_indices]) * 0.5
        y = (output[1] + flipped[1][:, flip_indices]) * 0.5
        return x, y

    def flip_average_in_graph(
        self, output: AxisOutput, flipped: AxisOutput, flip_indices: torch.Tensor
    ) -> AxisOutput:
        return self.flip_average(output, flipped, flip_indices)

    def build_decoder(self) -> nn.Module:
        return SimCCDecoder(self.split_ratio)

    def output_shapes(self, num_keypoints: int) -> list[tuple[int, ...]]:
        return [(num_keypoints, bins) for bins in self.bins]

    def output_maps(self, output: tuple[np.ndarray, ...]) -> np.ndarray:
        """See Codec. The maps are outer products of the two axes."""
        step = max(round(DRAWN_CELL * self.split_ratio), 1)
        profiles = []
        for axis, peak_value in zip(output, self.peak_value):
            cells = np.maximum.reduceat(axis, np.arange(0, axis.shape[2], step), axis=2)
            profiles.append(cells.clip(min=0) / peak_value)
        x, y = profiles
        return y[:, :, :, None] * x[:, :, None, :]

    def target_maps(self, targets: SimCCTargets, count: int | None = None) -> np.ndarray:
        labels = tuple(axis[:count].cpu().numpy() for axis in targets.labels)
        return self.output_maps(labels)[:, None]

    @classmethod
    def from_config(cls, cfg: CfgNode, loss_function: nn.Module) -> SimCC:
        return cls(
            image_size=tuple(cfg.MODEL.IMAGE_SIZE),
            sigma=tuple(cfg.MODEL.SIMCC_SIGMA),
            split_ratio=cfg.MODEL.SIMCC_SPLIT_RATIO,
            normalize=cfg.MODEL.SIMCC_NORMALIZE,
            loss_function=loss_function,
        )


def kl_discret_from_config(cfg: CfgNode) -> KLDiscretLoss:
    """Build the loss of LOSS.BETA, LOSS.LABEL_SOFTMAX and LOSS.USE_TARGET_WEIGHT."""
    return KLDiscretLoss(
        beta=cfg.LOSS.BETA,
        label_softmax=cfg.LOSS.LABEL_SOFTMAX,
        use_target_weight=cfg.LOSS.USE_TARGET_WEIGHT,
    )
