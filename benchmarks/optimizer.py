"""Time the optimizer step against the loop over tensors of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from poise import config
from poise.engine.optim import build_optimizer
from poise.models import build_model
from timing import Row, compare, main, time_alternately

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, WARMUP = 15, 2


def measure() -> Iterator[Row]:
    """Adam steps for ResNet-50 and HRNet-W32."""
    for name, file in (
        ("ResNet-50", "resnet/res50_256x192_d256x3_adam_lr1e-3"),
        ("HRNet-W32", "hrnet/w32_256x192_adam_lr1e-3"),
    ):
        cfg = config.load(ROOT / "experiments" / "coco" / f"{file}.yaml")
        optimizers = {}
        for kind in ("poise", "reference", "foreach"):
            torch.manual_seed(0)
            model = build_model(cfg)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) * 1e-3
            if kind == "poise":
                optimizers[kind] = build_optimizer(cfg, model)
            else:
                optimizers[kind] = torch.optim.Adam(
                    model.parameters(), lr=cfg.TRAIN.LR, foreach=kind == "foreach"
                )
        seconds = time_alternately(
            {kind: optimizer.step for kind, optimizer in optimizers.items()}, ROUNDS, warmup=WARMUP
        )
        yield compare(f"optimizer step, {name}", seconds, 3)
        ends = [
            torch.cat(
                [
                    p.detach().flatten()
                    for group in optimizers[kind].param_groups
                    for p in group["params"]
                ]
            )
            for kind in ("poise", "reference")
        ]
        yield Row(
            f"the same: largest difference of the weights after {ROUNDS + WARMUP} steps, {name}",
            "",
            "",
            (ends[0] - ends[1]).abs().max().item(),
            "max",
            1e-5,
            "",
        )
        yield compare(
            f"the same against PyTorch's foreach, {name}", seconds, None, baseline="foreach"
        )


if __name__ == "__main__":
    main(measure)
