"""Prediction on the CPU: batch norm folded, in float32 and bf16, against the network as the references run it."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from comparing import Row, compared, in_turns, main
from train_step import BATCH, NETWORKS

from poise import config
from poise.models import build_model
from poise.models.folding import fold_batch_norms

ROOT = Path(__file__).resolve().parents[1]


@torch.no_grad()
def measure() -> Iterator[Row]:
    """A batch of 4, 256x192, channels last, against NCHW in float32."""
    for name, file in NETWORKS.items():
        cfg = config.load(ROOT / "experiments" / "coco" / f"{file}.yaml", ["MODEL.PRETRAINED", "", "GPUS", "()"])
        torch.manual_seed(0)
        model = build_model(cfg)
        images = torch.randn(BATCH, 3, *reversed(cfg.MODEL.IMAGE_SIZE))
        model.train()(images)       # so that batch norm has figures of its own
        model.eval()
        folded = fold_batch_norms(model).to(memory_format=torch.channels_last)
        inner = images.contiguous(memory_format=torch.channels_last)

        def bf16(folded=folded, inner=inner) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return folded(inner)

        works = {"poise": lambda folded=folded, inner=inner: folded(inner), "bf16": bf16, "reference": lambda model=model, images=images: model(images)}
        wanted = works["reference"]()
        seconds = in_turns(works, 7)
        yield compared(f"inference, {name}, folded, float32", seconds, 1.2)
        yield compared(f"inference, {name}, folded, bf16", seconds, 2.2, product="bf16")
        error = ((works["poise"]() - wanted).abs().max() / wanted.abs().max()).item()
        yield Row(f"the same: largest difference of the float32 maps, {name}", "", "relative", error, "most", 1e-4, "")


if __name__ == "__main__":
    main(measure)
