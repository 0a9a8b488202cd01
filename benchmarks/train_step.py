"""A training step on the CPU: float32 as the project trains, and bf16 autocast, against the references' step."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from comparing import Row, compared, in_turns, main
from torch import nn

from poise import config
from poise.codecs import build_codec
from poise.engine import device
from poise.engine.batch import encode_targets
from poise.engine.schedule import build_optimizer
from poise.forward import normalize
from poise.losses import build_loss
from poise.metrics.pck import heatmap_pck
from poise.models import build_model
from postprocess import reference_accuracy

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"ResNet-50": "resnet/res50_256x192_d256x3_adam_lr1e-3", "HRNet-W32": "hrnet/w32_256x192_adam_lr1e-3", "MSPN, 2 stages": "mspn/mspn_2stg_256x192"}
BATCH = 4


class ReferenceLoss(nn.Module):
    """Joint after joint, each with the mean squared error of its own."""

    def forward(self, output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        criterion, count = nn.MSELoss(reduction="mean"), output.size(1)
        predicted = output.reshape((output.size(0), count, -1)).split(1, 1)
        wanted = target.reshape((output.size(0), count, -1)).split(1, 1)
        loss = 0
        for joint in range(count):
            loss += 0.5 * criterion(predicted[joint].squeeze(1).mul(weight[:, joint]), wanted[joint].squeeze(1).mul(weight[:, joint]))
        return loss / count


def measure() -> Iterator[Row]:
    """A step of batch 4, 256x192: from the loader's batch to the changed weights, with the accuracy. The references get float batches."""
    for name, file in NETWORKS.items():
        yield from steps(name, config.load(ROOT / "experiments" / "coco" / f"{file}.yaml", ["MODEL.PRETRAINED", "", "GPUS", "()", "CHANNELS_LAST", True]))


def steps(name: str, cfg) -> Iterator[Row]:
    torch.manual_seed(0)
    cpu, codec, criterion = torch.device("cpu"), build_codec(cfg), build_loss(cfg)
    width, height = cfg.MODEL.IMAGE_SIZE
    batch = {"images": torch.randint(0, 256, (BATCH, height, width, 3), dtype=torch.uint8), "joints": torch.rand(BATCH, 17, 2) * torch.tensor([width, height]),
             "visible": torch.full((BATCH, 17), 2.0)}
    works = {}
    for kind in ("poise", "bf16", "reference"):
        torch.manual_seed(0)
        model = build_model(cfg).train()
        if kind == "reference":
            works[kind] = reference_step(cfg, model, codec, batch, criterion)
        else:
            model = device.lay_on(model, [cpu], cfg.CHANNELS_LAST)
            works[kind] = poise_step(cfg, model, codec, batch, criterion, kind == "bf16")
    seconds = in_turns(works, 5)
    yield compared(f"training step, {name}, float32", seconds, 1.1)
    yield compared(f"training step, {name}, bf16 autocast", seconds, 1.9, product="bf16")


def poise_step(cfg, model, codec, batch, criterion, bf16: bool):
    optimizer, cpu = build_optimizer(cfg, model), torch.device("cpu")

    def step() -> None:
        images, targets = normalize(cfg, batch["images"], cpu), encode_targets(cfg, codec, batch, cpu)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(images)
        outputs = tuple(output.float() for output in outputs)
        loss = criterion(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            heatmap_pck(outputs[-1].detach(), targets.finest)
        float(loss.detach())

    return step


def reference_step(cfg, model, codec, batch, criterion):
    """NCHW, Adam tensor by tensor, the loss joint by joint (MSPN's own loss stays), the accuracy of copies. Targets come from the workers."""
    optimizer, cpu = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False), torch.device("cpu")
    images, targets = normalize(cfg, batch["images"], cpu).contiguous(), encode_targets(cfg, codec, batch, cpu)
    joint_by_joint = ReferenceLoss()

    def step() -> None:
        outputs = model(images)
        loss = criterion(outputs, targets) if cfg.LOSS.TYPE == "mspn" else sum(joint_by_joint(output, targets.finest, targets.weight) for output in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        reference_accuracy(outputs[-1].detach().cpu().numpy(), targets.finest.cpu().numpy())

    return step


if __name__ == "__main__":
    main(measure)
