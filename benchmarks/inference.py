"""Prediction on the CPU as tools/test.py does it, in float32 and bf16, against the network as
the references run it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from comparing import Row, compared, in_turns, main
from poise import config
from poise.codecs import build_codec
from poise.config.datasets import dataset_info
from poise.engine import device
from poise.models import build_model
from poise.models.forward import forward_with_flip_test
from train_step import BATCH, NETWORKS

ROOT = Path(__file__).resolve().parents[1]


@torch.no_grad()
def measure() -> Iterator[Row]:
    """A batch of 4, 256x192, channels last, against NCHW in float32."""
    for name, file in NETWORKS.items():
        cfg = config.load(
            ROOT / "experiments" / "coco" / f"{file}.yaml", ["MODEL.PRETRAINED", "", "GPUS", "()"]
        )
        torch.manual_seed(0)
        model = build_model(cfg)
        images = torch.randn(BATCH, 3, *reversed(cfg.MODEL.IMAGE_SIZE))
        model.train()(images)  # so that batch norm has figures of its own
        model.eval()
        codec, order, cpu = (
            build_codec(cfg),
            torch.from_numpy(dataset_info(cfg).skeleton.flip_indices),
            torch.device("cpu"),
        )
        inner = images.contiguous(memory_format=torch.channels_last)

        def prepared(amp: str, cfg=cfg, model=model, codec=codec, order=order, inner=inner):
            own = config.override(cfg, ["CHANNELS_LAST", True, "AMP", amp, "TEST.FLIP_TEST", False])
            tested = device.prepare_for_inference(own, model, [cpu])
            return lambda: forward_with_flip_test(own, codec, tested, inner, order)

        works = {
            "poise": prepared(""),
            "bf16": prepared("bf16"),
            "reference": lambda model=model, images=images: model(images),
        }
        maps = {kind: work() for kind, work in works.items()}
        seconds = in_turns(works, 7)
        yield compared(
            f"inference, {name}, folded and packed, float32, CHANNELS_LAST True", seconds, 1.2
        )
        yield compared(
            f"inference, {name}, folded and packed, bf16, CHANNELS_LAST True",
            seconds,
            2.2,
            product="bf16",
        )
        for kind, bound in (("poise", 1e-4), ("bf16", 0.05)):
            error = (
                (maps[kind] - maps["reference"]).abs().max() / maps["reference"].abs().max()
            ).item()
            yield Row(
                f"the same: largest difference of the {'float32' if kind == 'poise' else 'bf16'}"
                f" maps, {name}",
                "",
                "of the largest value",
                error,
                "most",
                bound,
                "",
            )


if __name__ == "__main__":
    main(measure)
