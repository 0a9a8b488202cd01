"""Bilevel optimization: train the weights on one batch and the alphas on another, in turns.

First order, as in PoseNAS: the gradient of the alphas is taken at the current weights, without the
second-order term of DARTS (Liu et al., ICLR 2019, arXiv 1806.09055, section 2.3, xi = 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from yacs.config import CfgNode

from poise.codecs import build_codec
from poise.codecs.codec import map_output
from poise.engine.optim import Adam, set_learning_rate
from poise.engine.targets import encode_targets
from poise.errors import PoiseError
from poise.models.forward import normalize
from poise.search.supernet import SearchNetwork, network_parameters


class BilevelOptimizer:
    """A supernet on its device, and the optimizers of its weights and alphas.

    Attributes:
        weights: parameters that are not alphas.
        alphas: architecture parameters.
    """

    def __init__(self, cfg: CfgNode, network: SearchNetwork, device: torch.device):
        s = cfg.SEARCH
        self.cfg, self.network, self.device = cfg, network, device
        self.codec = build_codec(cfg)
        self.weights = list(network_parameters(network).values())
        self.alphas = list(network.architecture.values())
        self.weight_optimizer = Adam(self.weights, lr=s.W_LR, fused=True)
        self.alpha_optimizer = Adam(self.alphas, **self._alpha_settings())

    def _alpha_settings(self) -> dict:
        s = self.cfg.SEARCH
        return {"lr": s.ALPHA_LR, "betas": tuple(s.ALPHA_BETAS), "weight_decay": s.ALPHA_WD}

    def load_alpha_optimizer(self, state: dict) -> None:
        """Restore the state of the alphas' optimizer, but not its hyperparameters."""
        self.alpha_optimizer.load_state_dict(state)
        self.alpha_optimizer.param_groups[0].update(self._alpha_settings())

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of the weights in an epoch; that of the alphas is constant."""
        s = self.cfg.SEARCH
        return s.W_LR * s.LR_FACTOR ** sum(epoch >= milestone for milestone in s.LR_STEP)

    def weights_step(
        self, batch: dict[str, torch.Tensor], epoch: int
    ) -> tuple[float, float, float]:
        """Train the weights on a batch; return loss, num_correct and num_valid keypoints."""
        set_learning_rate(self.weight_optimizer, self.lr_at(epoch))
        figures = self._gradients(batch, self.weight_optimizer, frozen=self.alphas)
        if self.cfg.SEARCH.GRAD_CLIP:
            nn.utils.clip_grad_norm_(self.weights, self.cfg.SEARCH.GRAD_CLIP)
        self.weight_optimizer.step()
        return figures

    def architecture_step(self, batch: dict[str, torch.Tensor]) -> tuple[float, float, float]:
        """Train the alphas on a batch; return loss, num_correct and num_valid keypoints.

        As in PoseNAS, the network stays in train mode: batch norm uses the statistics of the batch
        and updates the running ones.
        """
        figures = self._gradients(batch, self.alpha_optimizer, frozen=self.weights)
        self.alpha_optimizer.step()
        return figures

    def _gradients(
        self,
        batch: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        frozen: Iterable[nn.Parameter],
    ) -> tuple[float, float, float]:
        """Compute the gradients of a batch for the parameters that are not frozen.

        Freezing them saves the memory of their activations.
        """
        images = normalize(
            batch["images"],
            self.device,
            mean=self.cfg.MODEL.MEAN,
            std=self.cfg.MODEL.STD,
            channels_last=self.cfg.CHANNELS_LAST,
        )
        targets = encode_targets(self.cfg, self.codec, batch, self.device)
        self.network.train()
        optimizer.zero_grad()
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            outputs = self.network(images)
            loss = self.codec.loss(outputs, targets)
            loss.backward()
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PoiseError(
                f"the loss of the search is {value}; lower SEARCH.W_LR or SEARCH.ALPHA_LR, or set"
                " SEARCH.GRAD_CLIP"
            )
        prediction = map_output(torch.Tensor.detach, outputs[-1])
        right, counted = self.codec.accuracy(prediction, targets)
        return value, float(right), float(counted)
