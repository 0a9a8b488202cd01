"""Time a training step on the CPU, float32 and bf16 autocast, against the reference code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from poise import config
from poise.codecs import build_codec
from poise.datasets.sampler import EpochBatchSampler
from poise.engine import device
from poise.engine.amp import LossScaler
from poise.engine.optim import Schedule, build_optimizer
from poise.engine.state import Progress, TrainState
from poise.engine.targets import encode_targets
from poise.engine.train import train_step
from poise.models import build_model
from poise.models.forward import normalize
from postprocess import reference_accuracy
from timing import Row, compare, main, time_alternately
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "ResNet-50": "resnet/res50_256x192_d256x3_adam_lr1e-3",
    "HRNet-W32": "hrnet/w32_256x192_adam_lr1e-3",
    "MSPN, 2 stages": "mspn/mspn_2stg_256x192",
}
BATCH = 4


class ReferenceLoss(nn.Module):
    """Mean squared error in a loop over the keypoints, as in HRNet."""

    def forward(self, outputs, targets) -> torch.Tensor:
        return sum(
            self.mse_per_keypoint(output, targets.finest_heatmaps, targets.weight)
            for output in outputs
        )

    def mse_per_keypoint(
        self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        criterion, count = nn.MSELoss(reduction="mean"), output.size(1)
        predicted = output.reshape((output.size(0), count, -1)).split(1, 1)
        wanted = target.reshape((output.size(0), count, -1)).split(1, 1)
        loss = 0
        for joint in range(count):
            loss += 0.5 * criterion(
                predicted[joint].squeeze(1).mul(weight[:, joint]),
                wanted[joint].squeeze(1).mul(weight[:, joint]),
            )
        return loss / count


class ReferenceMspnLoss(nn.Module):
    """Loss in a loop over samples and supervised outputs, as in MSPN."""

    def forward(self, outputs, targets) -> torch.Tensor:
        # 2 for visible keypoints, 1 for occluded ones
        visible = targets.visible_mask + (targets.weight > 0)
        total = 0
        for number, output in enumerate(outputs):
            stage, unit = divmod(number, 4)
            labels = targets.heatmaps[:, unit + (stage == len(outputs) // 4 - 1)]
            mean = 0
            for sample in range(len(output)):
                if unit < 3:
                    wanted = labels[sample] * (visible[sample] > 1).float()[:, :, None]
                    mean = mean + ((output[sample] - wanted) ** 2).mean() / 4
                else:
                    error = ((output[sample] - labels[sample]) ** 2).mean(dim=(1, 2)) * (
                        visible[sample, :, 0] > 0
                    ).float()
                    mean = mean + error.topk(8).values.mean()
            total = total + mean / len(output)
        return total


def measure() -> Iterator[Row]:
    """A step of batch 4, 256x192: batch to updated weights, with accuracy.

    The reference code gets normalized images and targets.
    """
    for name, file in NETWORKS.items():
        yield from measure_network(
            name,
            config.load(
                ROOT / "experiments" / "coco" / f"{file}.yaml",
                ["MODEL.PRETRAINED", "", "GPUS", "()", "CHANNELS_LAST", True],
            ),
        )


def measure_network(name: str, cfg) -> Iterator[Row]:
    torch.manual_seed(0)
    cpu, codec = torch.device("cpu"), build_codec(cfg)
    width, height = cfg.MODEL.IMAGE_SIZE
    batch = {
        "images": torch.randint(0, 256, (BATCH, height, width, 3), dtype=torch.uint8),
        "joints": torch.rand(BATCH, 17, 2) * torch.tensor([width, height]),
        "visible": torch.full((BATCH, 17), 2.0),
        "person": torch.arange(BATCH),
    }
    works = {}
    for kind in ("poise", "bf16", "reference"):
        torch.manual_seed(0)
        model = build_model(cfg).train()
        if kind == "reference":
            works[kind] = reference_step(cfg, model, codec, batch)
        else:
            own = config.override(cfg, ["AMP", "bf16" if kind == "bf16" else ""])
            works[kind] = poise_step(
                own, device.to_device(model, [cpu], cfg.CHANNELS_LAST), codec, batch
            )
    first = {kind: work() for kind, work in works.items()}
    seconds = time_alternately(works, 4, warmup=0)
    yield compare(f"training step, {name}, float32, CHANNELS_LAST True", seconds, 1.1)
    yield compare(
        f"training step, {name}, bf16 autocast, CHANNELS_LAST True", seconds, 1.9, product="bf16"
    )
    difference = abs(first["poise"] - first["reference"]) / first["reference"]
    yield Row(
        f"the same: difference of the first loss in float32, {name}",
        f"{first['poise']:.6g}",
        f"reference {first['reference']:.6g}",
        difference,
        "max",
        1e-4,
        "relative",
    )


def poise_step(cfg, model, codec, batch):
    """Return a function that calls engine.train.train_step."""
    state = TrainState(
        model,
        build_optimizer(cfg, model),
        Schedule.from_config(cfg, 1, BATCH),
        LossScaler(torch.device("cpu"), enabled=cfg.AMP == "fp16"),
        None,
        Progress(),
    )
    batches = EpochBatchSampler(BATCH, BATCH, shuffle=False, seed=0)

    def step() -> float:
        metrics, _ = train_step(cfg, state, codec, batch, batches)
        float(metrics[0].num_correct)
        return float(metrics[0].loss)

    return step


def reference_step(cfg, model, codec, batch):
    """Return a step with NCHW, Adam in a loop over tensors, and loss and accuracy in loops.

    Its normalized images and targets come from the workers.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.TRAIN.LR, foreach=False)
    cpu = torch.device("cpu")
    images = normalize(
        batch["images"],
        cpu,
        mean=cfg.MODEL.MEAN,
        std=cfg.MODEL.STD,
        channels_last=cfg.CHANNELS_LAST,
    ).contiguous()
    targets = encode_targets(cfg, codec, batch, cpu)
    criterion = ReferenceMspnLoss() if cfg.LOSS.TYPE == "mspn" else ReferenceLoss()

    def step() -> float:
        outputs = model(images)
        loss = criterion(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reference_accuracy(
            outputs[-1].detach().cpu().numpy(), targets.finest_heatmaps.cpu().numpy()
        )
        return loss.item()

    return step


if __name__ == "__main__":
    main(measure)
