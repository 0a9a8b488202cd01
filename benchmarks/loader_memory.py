"""Measure the memory of a loader of the size of train2017 with its workers.

Memory is the sum of the proportional set sizes (PSS) of all processes.
"""

from __future__ import annotations

import copy
import gc
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import synthetic_coco
import torch
from poise.datasets import build_loader, load_split
from timing import Row, main
from torch.utils.data import DataLoader, Dataset


def total_pss() -> float:
    """Return the PSS of this process and its children, in MB."""
    total = 0
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    for process in [str(os.getpid()), *children]:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def poise_epoch(folder: Path, workers: int, fraction: float) -> Iterator[float]:
    cfg = synthetic_coco.load_experiment(
        folder, folder, "WORKERS", workers, "DATASET.CACHE", False, "TRAIN.BATCH_SIZE_PER_GPU", 64
    )
    loader = build_loader(cfg, *load_split(cfg, train=True), train=True)
    loader.batch_sampler.set_epoch(0)
    yield from pss_during(loader, len(loader), fraction)


class ReferenceDataset(Dataset):
    """A list of dictionaries, as in the reference code. Reference counting in the workers copies
    its memory page by page.
    """

    def __init__(self, table, folder: Path):
        self.folder = folder
        self.db = [
            {
                "image": f"{folder}/{table.image_name(n)}",
                "center": table.center[n].astype(np.float32),
                "scale": table.scale[n].astype(np.float32),
                "joints_3d": np.pad(table.keypoints[n], ((0, 0), (0, 1))),
                "joints_3d_vis": np.repeat(table.visibility[n][:, None] > 0, 3, 1).astype(
                    np.float32
                ),
                "filename": "",
                "imgnum": 0,
            }
            for n in range(len(table))
        ]

    def __len__(self) -> int:
        return len(self.db)

    def __getitem__(self, index: int):
        record = copy.deepcopy(self.db[index])
        image = cv2.imread(record["image"])[:, :: -1 if random.random() < 0.5 else 1]
        crop = cv2.resize(image, (192, 256))
        return (
            torch.from_numpy(crop.transpose(2, 0, 1).astype(np.float32)),
            torch.zeros(17, 64, 48),
            torch.ones(17, 1),
            record,
        )


def reference_epoch(folder: Path, workers: int, fraction: float) -> Iterator[float]:
    cfg = synthetic_coco.load_experiment(folder, folder)
    dataset = ReferenceDataset(load_split(cfg, train=True)[0], folder / "images" / "train2017")
    gc.collect()
    loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=workers)
    yield from pss_during(loader, len(loader), fraction)


def pss_during(loader, batches: int, fraction: float) -> Iterator[float]:
    """Yield the PSS after 1/20 and after each quarter of the batches that are run."""
    last = int(batches * fraction)
    moments = {last // 20, *(last * quarter // 4 for quarter in (1, 2, 3)), last - 1}
    for number, _ in enumerate(loader):
        if number in moments:
            yield total_pss()
        if number + 1 >= last:
            break


def run_child(kind: str, folder: str, workers: str, fraction: str) -> None:
    from timing import use_one_thread

    use_one_thread()
    epoch = poise_epoch if kind == "poise" else reference_epoch
    for pss in epoch(Path(folder), int(workers), float(fraction)):
        print(f"PSS {pss:.1f}", flush=True)


def run_in_process(kind: str, folder: Path, workers: int, fraction: float) -> list[float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, str(folder), str(workers), str(fraction)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("PSS")]


def measure() -> Iterator[Row]:
    """One epoch with 2 workers, a tenth of one with 8, and the reference code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [f"{n:012d}.jpg" for n in range(1, 25)]
        # small, because memory does not depend on the image size
        synthetic_coco.write_images(folder / "images" / "train2017", names, width=160, height=107)
        synthetic_coco.write_annotations(
            folder / "annotations" / "person_keypoints_train2017.json",
            names,
            synthetic_coco.TRAIN_PERSONS,
            synthetic_coco.TRAIN_LABELED,
            images=synthetic_coco.TRAIN_IMAGES,
            size=(160, 107),
        )
        reference = run_in_process("reference", folder, 2, 0.1)
        two = run_in_process("poise", folder, 2, 1.0)
        eight = run_in_process("poise", folder, 8, 0.1)
        yield Row(
            "memory of the loader, 149,813 persons, 2 workers",
            "largest PSS of an epoch",
            f"reference {max(reference):.0f} MB after a tenth of one",
            max(two),
            "max",
            700,
            "MB",
        )
        yield Row(
            "growth over the epoch, from its first 1/20",
            f"{two[0]:.0f} to {two[-1]:.0f} MB",
            f"reference {reference[0]:.0f} to {reference[-1]:.0f} MB",
            two[-1] / two[0],
            "max",
            1.03,
        )
        yield Row(
            "8 workers against 2",
            f"{max(eight):.0f} MB",
            f"{max(two):.0f} MB",
            max(eight) / max(two),
            "max",
            1.2,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
    else:
        main(measure)
