"""Test the losses against HRNet's recorded figures."""

import numpy as np
import pytest
import torch
from poise import config
from poise.codecs import build_loss
from poise.codecs.losses import DeepSupervisionLoss, JointsMSELoss, JointsOHKMMSELoss
from support.golden_inputs import generator


@pytest.fixture(scope="module")
def batch():
    rng = generator(0, "loss")
    output = rng.standard_normal((4, 17, 64, 48)).astype(np.float32)
    target = rng.uniform(0, 1, (4, 17, 64, 48)).astype(np.float32)
    weight = (rng.uniform(0, 1, (4, 17, 1)) > 0.3).astype(np.float32)
    return tuple(map(torch.from_numpy, (output, target, weight)))


def test_joints_losses_recorded_batch_equal_hrnet(pipeline, batch):
    figures = pipeline["loss"]
    assert float(JointsMSELoss(True)(*batch)) == pytest.approx(figures["JointsMSELoss"], rel=1e-5)
    assert float(JointsMSELoss(False)(*batch)) == pytest.approx(
        figures["JointsMSELoss_without_weight"], rel=1e-5
    )
    assert float(JointsOHKMMSELoss(True, 8)(*batch)) == pytest.approx(
        figures["JointsOHKMMSELoss_topk8"], rel=1e-5
    )


def test_ohkm_loss_all_keypoints_equals_mse(batch):
    assert float(JointsOHKMMSELoss(True, 17)(*batch)) == pytest.approx(
        float(JointsMSELoss(True)(*batch)), rel=1e-6
    )


def test_mse_loss_unlabeled_keypoints_have_no_gradient(batch):
    output, target, weight = batch
    output = output.clone().requires_grad_()
    JointsMSELoss(True)(output, target, weight).backward()
    labelled = weight[:, :, 0] > 0
    assert (output.grad[~labelled] == 0).all() and (output.grad[labelled] != 0).any()


def test_build_loss_config_selects_mse_or_ohkm():
    cfg = config.default_config()
    assert isinstance(build_loss(cfg), DeepSupervisionLoss) and isinstance(
        build_loss(cfg).loss, JointsMSELoss
    )
    cfg.LOSS.USE_OHKM, cfg.LOSS.TOPK = True, 5
    assert build_loss(cfg).loss.topk == 5
