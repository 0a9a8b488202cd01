"""A short training beside the plain loop of the references: the same losses and weights from the same samples.

The plain loop is written here in the manner of HRNet's and SimpleBaseline's lib/core/function.py, loss.py and JointsDataset.py: each sample is
turned into floats and normalised by itself, its targets are drawn joint by joint in NumPy, the loss is a loop over joints, and Adam is the plain one.
"""
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from poise import config
from poise.engine import step, train
from poise.models import build_model
from runs import quick_and_quiet  # noqa: F401

EPOCHS = 3


def normalised(crop, mean, std):
    """(H, W, 3) uint8 -> (3, H, W) float32."""
    pixels = crop.astype(np.float32) / 255
    return ((pixels - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def drawn(joints, visible, image_size, heatmap_size, sigma):
    """Targets (J, h, w) and weights (J, 1) of one sample: a Gaussian in a square of 3 sigma, pasted at the joint's cell."""
    stride, reach = np.array(image_size) / np.array(heatmap_size), sigma * 3
    targets, weights = np.zeros((len(joints), heatmap_size[1], heatmap_size[0]), np.float32), np.zeros((len(joints), 1), np.float32)
    for joint, (x, y) in enumerate(joints):
        weights[joint] = visible[joint] > 0
        column, row = int(x / stride[0] + 0.5), int(y / stride[1] + 0.5)
        left, top, right, bottom = int(column - reach), int(row - reach), int(column + reach + 1), int(row + reach + 1)
        if left >= heatmap_size[0] or top >= heatmap_size[1] or right < 0 or bottom < 0:
            weights[joint] = 0
        if not weights[joint]:
            continue
        places = np.arange(0, 2 * reach + 1, 1, np.float32)
        middle = len(places) // 2
        gaussian = np.exp(-((places - middle) ** 2 + (places[:, None] - middle) ** 2) / (2 * sigma**2))
        begin, end = (max(0, -left), max(0, -top)), (min(right, heatmap_size[0]) - left, min(bottom, heatmap_size[1]) - top)
        targets[joint, max(0, top):min(bottom, heatmap_size[1]), max(0, left):min(right, heatmap_size[0])] = gaussian[begin[1]:end[1], begin[0]:end[0]]
    return targets, weights


def plain_loss(output, target, weight):
    criterion, joints, loss = nn.MSELoss(), output.size(1), 0
    predicted, wanted = (maps.reshape(len(maps), joints, -1).split(1, 1) for maps in (output, target))
    for joint in range(joints):
        share = weight[:, joint]
        loss = loss + 0.5 * criterion(predicted[joint].squeeze(1) * share, wanted[joint].squeeze(1) * share)
    return loss / joints


def plain_losses(cfg, batches, batches_an_epoch):
    """The loss of each batch, and the network afterwards; the learning rate falls when an epoch of LR_STEP begins."""
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.TRAIN.LR, foreach=False, fused=False)
    losses = []
    for number, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = cfg.TRAIN.LR * cfg.TRAIN.LR_FACTOR ** sum(number // batches_an_epoch >= epoch for epoch in cfg.TRAIN.LR_STEP)
        images = torch.from_numpy(np.stack([normalised(crop, cfg.MODEL.MEAN, cfg.MODEL.STD) for crop in batch["images"].numpy()]))
        pairs = [drawn(joints, visible, cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE, cfg.MODEL.SIGMA)
                 for joints, visible in zip(batch["joints"].numpy(), batch["visible"].numpy())]
        target, weight = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs))
        loss = plain_loss(model(images)[-1], target, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses, model


@pytest.mark.parametrize("channels_last", [False, True])
def test_losses_are_those_of_a_plain_loop(tiny_experiment, channels_last):
    """To 1e-5 of each loss, over three epochs with augmentation, a falling rate and a last batch that is not full."""
    words = ["GPUS", "()", "CHANNELS_LAST", str(channels_last), "TRAIN.BATCH_SIZE_PER_GPU", "12", "TRAIN.END_EPOCH", str(EPOCHS), "DATASET.FLIP", "True",
             "DATASET.SCALE_FACTOR", "0.3", "DATASET.ROT_FACTOR", "40", "TRAIN.LR", "0.0001", "TRAIN.LR_STEP", "[1, 2]"]
    cfg = config.load(tiny_experiment, words)
    training = train.build(cfg, str(tiny_experiment), train.ALONE)
    training.model.train()
    codec, steps = train.build_codec(cfg), training.schedule.steps_per_epoch
    batches, losses = [], []
    for epoch in range(EPOCHS):
        training.progress.begin(epoch)
        training.loader.batches.begin(epoch)
        for batch in itertools.islice(training.loader, steps):
            batches.append({key: value.clone() for key, value in batch.items()})
            (figures,), _ = step.train_step(training, codec, batch, lambda: None)
            losses.append(float(figures.loss))
            training.progress.step += 1
    assert len(batches) == 15 and {len(batch["images"]) for batch in batches} == {12, 2}
    plain, network = plain_losses(cfg, batches, steps)
    assert losses == pytest.approx(plain, rel=1e-5) and len(set(losses)) == 15 and min(losses) < 0.95 * losses[0]
    begin = build_model(cfg).state_dict()
    for (name, one), two in zip(training.model.named_parameters(), network.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-5), name
        assert name.endswith("bias") or begin[name].dim() == 1 or not torch.allclose(one, begin[name], atol=1e-5), name
