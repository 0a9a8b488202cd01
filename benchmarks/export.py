"""Time exported networks: onnxruntime against PyTorch on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from estimator import write_random_weights
from poise import config
from poise.cli.get_flops import size_overrides
from poise.inference.export import export
from poise.inference.export.formats import FORMATS
from poise.models import build_model, weights
from poise.models.fuse import fold_batch_norms
from timing import Row, compare, main, time_alternately
from train_step import BATCH, NETWORKS

ROOT = Path(__file__).resolve().parents[1]


def measure() -> Iterator[Row]:
    """Exports of published networks with random weights; batch 4, 256x192, float32."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ResNet-50", "HRNet-W32"):
            yield from measure_network(name, folder)


def load_experiment(name: str, height: int, width: int):
    path = ROOT / "experiments" / "coco" / f"{name}.yaml"
    own = ["MODEL.PRETRAINED", "", "GPUS", "()"]
    return config.load(path, [*own, *size_overrides(config.load(path, own), height, width)])


@torch.no_grad()
def measure_network(name: str, folder: str) -> Iterator[Row]:
    cfg = load_experiment(NETWORKS[name], 256, 192)
    file, out = write_random_weights(cfg, folder), Path(folder) / "network.onnx"
    export(cfg, file, out)
    run, model = FORMATS["onnx"].read(out), build_model(cfg).eval()
    weights.load(model, file)
    folded = fold_batch_norms(model).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, *reversed(cfg.MODEL.IMAGE_SIZE))
    inner, array = images.contiguous(memory_format=torch.channels_last), images.numpy()
    works = {
        "onnxruntime": lambda: run(array),
        "PyTorch": lambda: model(images),
        "PyTorch, folded, channels last": lambda: folded(inner),
    }
    seconds = time_alternately(works, 7)
    yield compare(
        f"onnxruntime, {name}, against the unchanged network",
        seconds,
        1.15,
        baseline="PyTorch",
        product="onnxruntime",
    )
    yield compare(
        f"onnxruntime, {name}, against the folded network",
        seconds,
        None,
        baseline="PyTorch, folded, channels last",
        product="onnxruntime",
    )


if __name__ == "__main__":
    main(measure)
