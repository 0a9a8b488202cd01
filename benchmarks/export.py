"""Exported networks: onnxruntime against PyTorch on the CPU, and what the exports of every family differ by at two sizes."""
from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from comparing import Row, compared, in_turns, main
from estimator import written_weights
from train_step import BATCH, NETWORKS

from poise import complexity, config, weights
from poise.export import export
from poise.export.formats import FORMATS
from poise.export.graph import Parts
from poise.models import build_model
from poise.models.folding import fold_batch_norms

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {"SimpleBaseline ResNet-50": NETWORKS["ResNet-50"], "Res2Net-50": "res2net/res2net50_4s_26w_256x192_d256x3_adam_lr1e-3",
            "Res2Net-50 v1b": "res2net/res2net50_v1b_4s_26w_256x192_d256x3_adam_lr1e-3", "HRNet-W32": NETWORKS["HRNet-W32"],
            "MSPN, 2 stages": NETWORKS["MSPN, 2 stages"], "PoseNAS, 48 channels": "posenas/256x192_18l_48c", "MogaNet-T": "moganet/moganet_t_256x192"}
SIZES = ((256, 192), (384, 288))        # height and width
BOTH_SIZES = ("SimpleBaseline ResNet-50",)      # of the others the second alone would take minutes; docs/performance.md has their figures


def measure() -> Iterator[Row]:
    """Exports of published networks with random weights; times of a batch of 4, 256x192, float32."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ResNet-50", "HRNet-W32"):
            yield from times(name, folder)
        for name in FAMILIES:
            for size in SIZES if name in BOTH_SIZES else SIZES[:1]:
                yield from differences(name, size, folder)


def experiment(name: str, height: int, width: int):
    path = ROOT / "experiments" / "coco" / f"{name}.yaml"
    own = ["MODEL.PRETRAINED", "", "GPUS", "()"]
    return config.load(path, [*own, *complexity.size_overrides(config.load(path, own), height, width)])


@torch.no_grad()
def times(name: str, folder: str) -> Iterator[Row]:
    cfg = experiment(NETWORKS[name], *SIZES[0])
    file, out = written_weights(cfg, folder), Path(folder) / "network.onnx"
    export(cfg, file, out)
    run, model = FORMATS["onnx"].read(out), build_model(cfg).eval()
    weights.load(model, file)
    folded = fold_batch_norms(model).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, *reversed(cfg.MODEL.IMAGE_SIZE))
    inner, array = images.contiguous(memory_format=torch.channels_last), images.numpy()
    works = {"onnxruntime": lambda: run(array), "PyTorch": lambda: model(images), "PyTorch, folded, channels last": lambda: folded(inner)}
    seconds = in_turns(works, 9)
    yield compared(f"onnxruntime, {name}, against the network as it is", seconds, 1.15, baseline="PyTorch", product="onnxruntime")
    yield compared(f"onnxruntime, {name}, against the folded network", seconds, None, baseline="PyTorch, folded, channels last", product="onnxruntime")


def differences(name: str, size: tuple[int, int], folder: str) -> Iterator[Row]:
    """Of the whole graph: normalising, network, flip test, decoding; the larger figure of noise and of made persons."""
    cfg = experiment(FAMILIES[name], *size)
    found = export(cfg, written_weights(cfg, folder), Path(folder) / "whole.onnx", "onnx", Parts(normalize=True, flip=True, decode=True))
    joints, unsure = (sum(values) for values in zip(*((one.joints, one.unsure) for one in found)))
    title = f"ONNX, {name}, {size[0]}x{size[1]}"
    yield Row(f"{title}: heatmaps, of their maximum", "", "PyTorch", max(one.heatmaps for one in found), "most", 1e-4, "")
    yield Row(f"{title}: keypoints", f"{joints} joints, {unsure} with an open place", "PyTorch", max(one.keypoints for one in found), "most", 0.01, "px")


if __name__ == "__main__":
    main(measure)
