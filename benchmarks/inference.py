"""Time prediction on the CPU as in tools/test.py, float32 and bf16, against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from poise import config
from poise.codecs import build_codec
from poise.config.datasets import dataset_info
from poise.engine import device
from poise.models import build_model
from poise.models.forward import forward_with_flip_test
from timing import Row, compare, main, time_alternately
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
        model.train()(images)  # gives batch norm statistics
        model.eval()
        codec = build_codec(cfg)
        order = torch.from_numpy(dataset_info(cfg).skeleton.flip_indices)
        cpu = torch.device("cpu")
        inner = images.contiguous(memory_format=torch.channels_last)

        def prepared(amp: str, cfg=cfg, model=model, codec=codec, order=order, inner=inner):
            own = config.override(cfg, ["CHANNELS_LAST", True, "AMP", amp, "TEST.FLIP_TEST", False])
            tested = device.prepare_for_inference(own, model, [cpu])
            return lambda: forward_with_flip_test(
                tested, inner, codec, order, flip_test=False, amp=amp
            )

        works = {
            "poise": prepared(""),
            "bf16": prepared("bf16"),
            "reference": lambda model=model, images=images: model(images),
        }
        maps = {kind: work() for kind, work in works.items()}
        seconds = time_alternately(works, 7)
        yield compare(
            f"inference, {name}, folded and packed, float32, CHANNELS_LAST True", seconds, 1.2
        )
        yield compare(
            f"inference, {name}, folded and packed, bf16, CHANNELS_LAST True",
            seconds,
            2.2,
            product="bf16",
        )
        for kind, dtype, bound in (("poise", "float32", 1e-4), ("bf16", "bf16", 0.05)):
            error = (
                (maps[kind] - maps["reference"]).abs().max() / maps["reference"].abs().max()
            ).item()
            yield Row(
                f"the same: largest difference of the {dtype} heatmaps, {name}",
                "",
                "of the largest value",
                error,
                "max",
                bound,
                "",
            )


if __name__ == "__main__":
    main(measure)
