"""Compare the ONNX exports of every family with PyTorch, at two sizes.

Not part of make bench because it takes ten minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from estimator import write_random_weights
from export import load_experiment
from poise.inference.export import export
from poise.inference.export.graph import ExportOptions
from timing import Row, main
from train_step import NETWORKS

FAMILIES = {
    "SimpleBaseline ResNet-50": NETWORKS["ResNet-50"],
    "Res2Net-50": "res2net/res2net50_4s_26w_256x192_d256x3_adam_lr1e-3",
    "Res2Net-50 v1b": "res2net/res2net50_v1b_4s_26w_256x192_d256x3_adam_lr1e-3",
    "HRNet-W32": NETWORKS["HRNet-W32"],
    "MSPN, 2 stages": NETWORKS["MSPN, 2 stages"],
    "PoseNAS, 48 channels": "posenas/256x192_18l_48c",
    "MogaNet-T": "moganet/moganet_t_256x192",
}
SIZES = ((256, 192), (384, 288))  # height and width


def measure() -> Iterator[Row]:
    """Published networks with random weights, exported with normalization, flip and decoding."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FAMILIES:
            for size in SIZES:
                yield from measure_differences(name, size, folder)


def measure_differences(name: str, size: tuple[int, int], folder: str) -> Iterator[Row]:
    """Compare the full graph: normalize, network, flip test, decode; the larger error of two
    inputs, noise and synthetic persons.
    """
    cfg = load_experiment(FAMILIES[name], *size)
    found = export(
        cfg,
        write_random_weights(cfg, folder),
        Path(folder) / "whole.onnx",
        "onnx",
        ExportOptions(normalize=True, flip=True, decode=True),
    )
    joints, unsure = (sum(values) for values in zip(*((one.joints, one.unsure) for one in found)))
    title = f"ONNX, {name}, {size[0]}x{size[1]}"
    yield Row(
        f"{title}: heatmaps, of their maximum",
        "",
        "PyTorch",
        max(one.outputs for one in found),
        "max",
        1e-4,
        "",
    )
    yield Row(
        f"{title}: keypoints",
        f"{joints} keypoints, {unsure} undecided",
        "PyTorch",
        max(one.keypoints for one in found),
        "max",
        0.01,
        "px",
    )


if __name__ == "__main__":
    main(measure)
