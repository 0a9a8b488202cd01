"""Test a short training against the plain loop of the reference code.

The plain loop is written here in the manner of HRNet's and SimpleBaseline's lib/core/function.py,
loss.py and JointsDataset.py: each sample is turned into floats and normalized by itself, its
targets are drawn joint by joint in NumPy, the loss is a loop over joints, and Adam is the plain
one.
"""

import itertools

import numpy as np
import pytest
import torch
from poise import config
from poise.engine import train
from poise.models import build_model
from torch import nn

pytestmark = pytest.mark.usefixtures("no_tensorboard_images")

EPOCHS, EPS = 3, 1e-4


def normalized(crop, mean, std):
    """(H, W, 3) uint8 -> (3, H, W) float32."""
    pixels = crop.astype(np.float32) / 255
    return ((pixels - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def drawn(joints, visible, image_size, heatmap_size, sigma):
    """Targets (J, h, w) and weights (J, 1) of one sample: a Gaussian in a square of 3 sigma,
    pasted at the joint's cell.
    """
    stride, reach = np.array(image_size) / np.array(heatmap_size), sigma * 3
    targets, weights = (
        np.zeros((len(joints), heatmap_size[1], heatmap_size[0]), np.float32),
        np.zeros((len(joints), 1), np.float32),
    )
    for joint, (x, y) in enumerate(joints):
        weights[joint] = visible[joint] > 0
        column, row = int(x / stride[0] + 0.5), int(y / stride[1] + 0.5)
        left, top, right, bottom = (
            int(column - reach),
            int(row - reach),
            int(column + reach + 1),
            int(row + reach + 1),
        )
        if left >= heatmap_size[0] or top >= heatmap_size[1] or right < 0 or bottom < 0:
            weights[joint] = 0
        if not weights[joint]:
            continue
        places = np.arange(0, 2 * reach + 1, 1, np.float32)
        middle = len(places) // 2
        gaussian = np.exp(
            -((places - middle) ** 2 + (places[:, None] - middle) ** 2) / (2 * sigma**2)
        )
        begin, end = (
            (max(0, -left), max(0, -top)),
            (
                min(right, heatmap_size[0]) - left,
                min(bottom, heatmap_size[1]) - top,
            ),
        )
        targets[
            joint,
            max(0, top) : min(bottom, heatmap_size[1]),
            max(0, left) : min(right, heatmap_size[0]),
        ] = gaussian[begin[1] : end[1], begin[0] : end[0]]
    return targets, weights


def plain_loss(output, target, weight):
    criterion, joints, loss = nn.MSELoss(), output.size(1), 0
    predicted, wanted = (
        maps.reshape(len(maps), joints, -1).split(1, 1) for maps in (output, target)
    )
    for joint in range(joints):
        share = weight[:, joint]
        loss = loss + 0.5 * criterion(
            predicted[joint].squeeze(1) * share, wanted[joint].squeeze(1) * share
        )
    return loss / joints


def plain_losses(cfg, batches, batches_an_epoch, dtype):
    """The loss of each batch, and the network afterwards; the learning rate falls when an epoch
    of LR_STEP begins.
    """
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg).to(dtype).train()
    t = cfg.TRAIN
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=t.LR, eps=EPS, foreach=False, fused=False)
        if t.OPTIMIZER == "adam"
        else torch.optim.SGD(
            model.parameters(),
            lr=t.LR,
            momentum=t.MOMENTUM,
            weight_decay=t.WD,
            foreach=False,
            fused=False,
        )
    )
    losses = []
    for number, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = t.LR * t.LR_FACTOR ** sum(
                number // batches_an_epoch >= epoch for epoch in t.LR_STEP
            )
        images = torch.from_numpy(
            np.stack(
                [
                    normalized(crop, cfg.MODEL.MEAN, cfg.MODEL.STD)
                    for crop in batch["images"].numpy()
                ]
            )
        ).to(dtype)
        pairs = [
            drawn(joints, visible, cfg.MODEL.IMAGE_SIZE, cfg.MODEL.HEATMAP_SIZE, cfg.MODEL.SIGMA)
            for joints, visible in zip(batch["joints"].numpy(), batch["visible"].numpy())
        ]
        target, weight = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs))
        loss = plain_loss(model(images)[-1], target.to(dtype), weight.to(dtype))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize(
    "optimizer, rate, dtype", [("sgd", 0.1, torch.float32), ("adam", 0.0003, torch.float64)]
)
def test_train_losses_and_weights_equal_plain_loop(
    tiny_experiment, monkeypatch, optimizer, rate, dtype
):
    """Of each step to 1e-5, over three epochs with augmentation, a falling rate and a last batch
    that is not full.

    Adam makes steps of full length of gradients that are rounding alone: with its eps of 1e-8,
    images that differ by 1e-7 change the tenth loss by 1e-3 in the plain loop itself, in float64
    too. So here both have one of 1e-4, and a network in float64.
    """
    words = [
        "GPUS",
        "()",
        "CHANNELS_LAST",
        str(optimizer == "sgd"),
        "TRAIN.BATCH_SIZE_PER_GPU",
        "12",
        "TRAIN.END_EPOCH",
        str(EPOCHS),
        "DATASET.FLIP",
        "True",
        "DATASET.SCALE_FACTOR",
        "0.3",
        "DATASET.ROT_FACTOR",
        "40",
        "TRAIN.OPTIMIZER",
        optimizer,
        "TRAIN.LR",
        str(rate),
        "TRAIN.LR_STEP",
        "[1, 2]",
    ]
    cfg = config.load(tiny_experiment, words)
    monkeypatch.setattr(train, "build_model", lambda cfg: build_model(cfg).to(dtype))
    normalize = train.normalize
    monkeypatch.setattr(
        train, "normalize", lambda *args, **keywords: normalize(*args, **keywords).to(dtype)
    )
    training = train.build(cfg, str(tiny_experiment), train.SINGLE_PROCESS)
    state = training.state
    for group in state.optimizer.param_groups:
        if "eps" in group:
            group["eps"] = EPS
    state.model.train()
    steps = state.schedule.steps_per_epoch
    batches, losses = [], []
    for epoch in range(EPOCHS):
        state.progress.start_epoch(epoch)
        training.loader.batch_sampler.set_epoch(epoch)
        for batch in itertools.islice(training.loader, steps):
            batches.append({key: value.clone() for key, value in batch.items()})
            (figures,), _ = train.train_step(
                cfg, state, training.codec, batch, training.loader.batch_sampler
            )
            losses.append(float(figures.loss))
            state.progress.step += 1
    assert len(batches) == 15 and {len(batch["images"]) for batch in batches} == {12, 2}
    plain, network = plain_losses(cfg, batches, steps, dtype)
    print(
        "losses",
        losses[0],
        losses[-2],
        "largest relative difference",
        max(abs(one / two - 1) for one, two in zip(losses, plain)),
    )
    assert (
        losses == pytest.approx(plain, rel=1e-5)
        and len(set(losses)) == 15
        and losses[-2] < losses[0]
    )
    torch.manual_seed(cfg.SEED)
    begin = build_model(cfg).state_dict()
    moved = [(one - begin[name]).abs().max().item() for name, one in state.model.named_parameters()]
    apart = [
        (one - two).abs().max().item()
        for one, two in zip(state.model.parameters(), network.parameters(), strict=True)
    ]
    print("weights moved by", max(moved), "and are apart by", max(apart))
    assert min(moved) > 0 and max(apart) < 1e-2 * max(moved)
