"""Time a sample from its JPEG to the batch of a worker, against the reference code."""

from __future__ import annotations

import copy
import itertools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import synthetic_coco
import torch
from poise.codecs import build_codec
from poise.config.dataset_yaml import COCO
from poise.datasets import build_loader, load_split
from poise.engine.targets import encode_targets
from poise.io import decoding
from poise.models.forward import normalize
from timing import Row, compare, main, time_alternately
from torch.utils.data import default_collate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ReferenceDataset:
    """Samples as HRNet makes them: decode per box, flip, warp, normalize, draw heatmaps."""

    def __init__(self, table, folder: Path, size: tuple[int, int], train: bool):
        self.size = np.array(size)
        self.heatmap = self.size // 4
        self.sigma = 2
        self.train = train
        self.db = []
        for n in range(len(table)):
            joints, visible = np.zeros((17, 3)), np.zeros((17, 3))
            if table.has_keypoints:
                joints[:, :2], visible[:, :2] = (
                    table.keypoints[n],
                    (table.visibility[n] > 0)[:, None],
                )
            self.db.append(
                {
                    "image": str(folder / table.image_name(n)),
                    "center": table.center[n],
                    "scale": table.scale[n],
                    "joints_3d": joints,
                    "joints_3d_vis": visible,
                    "filename": "",
                    "imgnum": 0,
                    "score": float(table.score[n]),
                }
            )

    def __getitem__(self, index: int):
        record = copy.deepcopy(self.db[index])
        image = cv2.imread(record["image"], cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        joints, visible = record["joints_3d"], record["joints_3d_vis"]
        c, s = record["center"], record["scale"]
        r = 0
        if self.train:
            if np.sum(visible[:, 0]) > 8 and np.random.rand() < 0.3:
                half = self.half_body(joints, visible)
                c, s = half if half else (c, s)
            s = s * np.clip(np.random.randn() * 0.35 + 1, 0.65, 1.35)
            r = np.clip(np.random.randn() * 45, -90, 90) if random.random() <= 0.6 else 0
            if random.random() <= 0.5:
                image = image[:, ::-1, :]
                joints[:, 0] = image.shape[1] - joints[:, 0] - 1
                for a, b in COCO.flip_pairs:
                    joints[a, :], joints[b, :] = joints[b, :], joints[a, :].copy()
                    visible[a, :], visible[b, :] = visible[b, :], visible[a, :].copy()
                joints = joints * visible
                c = np.array([image.shape[1] - c[0] - 1, c[1]])
        matrix = affine(c, s, r, self.size)
        crop = cv2.warpAffine(
            image, matrix, (int(self.size[0]), int(self.size[1])), flags=cv2.INTER_LINEAR
        )
        tensor = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float().div(255)
        for channel, mean, std in zip(tensor, MEAN, STD):
            channel.sub_(mean).div_(std)
        for i in range(17):
            if visible[i, 0] > 0:
                joints[i, 0:2] = matrix @ np.array([joints[i, 0], joints[i, 1], 1.0])
        target, weight = self.heatmaps(joints, visible)
        meta = {
            "image": record["image"],
            "filename": "",
            "imgnum": 0,
            "joints": joints,
            "joints_vis": visible,
            "center": c,
            "scale": s,
            "rotation": r,
            "score": record["score"],
        }
        return tensor, torch.from_numpy(target), torch.from_numpy(weight), meta

    def half_body(self, joints, visible):
        upper, lower = [], []
        for i in range(17):
            if visible[i][0] > 0:
                (upper if i in COCO.upper_body else lower).append(joints[i])
        chosen = upper
        if (np.random.randn() >= 0.5 or len(upper) <= 2) and len(lower) > 2:
            chosen = lower
        if len(chosen) < 2:
            return None
        chosen = np.array(chosen, dtype=np.float32)
        w, h = np.ptp(chosen[:, :2], axis=0)
        aspect = self.size[0] / self.size[1]
        w, h = max(w, h * aspect), max(h, w / aspect)
        return chosen.mean(axis=0)[:2], np.array([w, h], dtype=np.float32) * 1.5 / 200

    def heatmaps(self, joints, visible):
        weight = np.ones((17, 1), dtype=np.float32)
        weight[:, 0] = visible[:, 0]
        target = np.zeros((17, self.heatmap[1], self.heatmap[0]), dtype=np.float32)
        reach = self.sigma * 3
        stride = self.size / self.heatmap
        for i in range(17):
            x, y = int(joints[i][0] / stride[0] + 0.5), int(joints[i][1] / stride[1] + 0.5)
            low, high = [x - reach, y - reach], [x + reach + 1, y + reach + 1]
            if low[0] >= self.heatmap[0] or low[1] >= self.heatmap[1] or high[0] < 0 or high[1] < 0:
                weight[i] = 0
                continue
            axis = np.arange(0, 2 * reach + 1, 1, np.float32)
            patch = np.exp(
                -((axis - reach) ** 2 + (axis[:, None] - reach) ** 2) / (2 * self.sigma**2)
            )
            gx = max(0, -low[0]), min(high[0], self.heatmap[0]) - low[0]
            gy = max(0, -low[1]), min(high[1], self.heatmap[1]) - low[1]
            ix = max(0, low[0]), min(high[0], self.heatmap[0])
            iy = max(0, low[1]), min(high[1], self.heatmap[1])
            if weight[i] > 0.5:
                target[i][iy[0] : iy[1], ix[0] : ix[1]] = patch[gy[0] : gy[1], gx[0] : gx[1]]
        return target, weight


def affine(center, scale, rotation, size) -> np.ndarray:
    """Return the 2 x 3 matrix from three point pairs, as the reference code does."""
    angle = np.pi * rotation / 180
    source, target = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    arm = scale[0] * 200 * -0.5
    direction = np.array([-arm * np.sin(angle), arm * np.cos(angle)])
    source[0], source[1] = center, np.asarray(center) + direction
    target[0], target[1] = size * 0.5, np.array([size[0] * 0.5, size[1] * 0.5 - size[0] * 0.5])
    for points in (source, target):
        d = points[0] - points[1]
        points[2] = points[1] + np.array([-d[1], d[0]], dtype=np.float32)
    return cv2.getAffineTransform(source, target)


def measure() -> Iterator[Row]:
    """Training samples at both published sizes; test samples with 20 boxes per image."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [f"{n:012d}.jpg" for n in range(1, 97)]
        synthetic_coco.write_images(folder / "images" / "train2017", names)
        synthetic_coco.write_images(folder / "images" / "val2017", names[:24])
        synthetic_coco.write_annotations(
            folder / "annotations" / "person_keypoints_train2017.json",
            names,
            96,
            96,
            images=96,
            segmentations=False,
        )
        synthetic_coco.write_annotations(
            folder / "annotations" / "person_keypoints_val2017.json",
            names[:24],
            24,
            24,
            images=24,
            segmentations=False,
        )
        synthetic_coco.write_detections(folder / "boxes.json", 480, 24)
        for size in ((192, 256), (288, 384)):
            yield from measure_training_samples(folder, size)
        yield from measure_test_samples(folder)


def measure_training_samples(folder: Path, size: tuple[int, int]) -> Iterator[Row]:
    cfg = synthetic_coco.load_experiment(folder, folder, "WORKERS", 0, size=size)
    table, images = load_split(cfg, train=True)
    crops = build_loader(cfg, table, images, train=True).dataset
    reference = ReferenceDataset(table, folder / "images" / "train2017", size, train=True)
    epochs = itertools.count()
    codec, cpu = build_codec(cfg), torch.device("cpu")
    # one person per image, as in nearly every shuffled batch of train2017
    _, chosen = np.unique(table.image_index, return_index=True)
    batches = [chosen[n : n + 32].tolist() for n in range(0, len(chosen), 32)]

    def run_poise() -> list[dict]:
        epoch = next(epochs)
        return [crops.__getitems__([(epoch, person) for person in batch]) for batch in batches]

    def run_opencv() -> None:
        compiled, simple = decoding._jpeg, decoding.simplejpeg
        decoding._jpeg = decoding.simplejpeg = None
        try:
            run_poise()
        finally:
            decoding._jpeg, decoding.simplejpeg = compiled, simple

    def run_with_targets() -> None:
        for batch in run_poise():
            normalize(
                batch["images"],
                cpu,
                mean=cfg.MODEL.MEAN,
                std=cfg.MODEL.STD,
                channels_last=cfg.CHANNELS_LAST,
            )
            encode_targets(cfg, codec, batch, cpu)

    def run_reference() -> None:
        for batch in batches:
            default_collate([reference[person] for person in batch])

    seconds = time_alternately(
        {
            "poise": run_poise,
            "reference": run_reference,
            "full images by OpenCV": run_opencv,
            "normalized on this CPU": run_with_targets,
        },
        9,
    )
    shape, count = f"{size[1]}x{size[0]}", len(chosen)
    yield compare(
        f"training sample, JPEG to batch, {shape}",
        seconds,
        {192: 2.3, 288: 2.8}[size[0]],
        count=count,
    )
    yield compare(
        f"the same, full images decoded by OpenCV, {shape}",
        seconds,
        None,
        product="full images by OpenCV",
        count=count,
    )
    yield compare(
        f"the same, and normalized with targets on this CPU, {shape}",
        seconds,
        None,
        product="normalized on this CPU",
        count=count,
    )


def measure_test_samples(folder: Path) -> Iterator[Row]:
    cfg = synthetic_coco.load_experiment(
        folder,
        folder,
        "WORKERS",
        0,
        "TEST.USE_GT_BBOX",
        False,
        "TEST.COCO_BBOX_FILE",
        str(folder / "boxes.json"),
    )
    table, images = load_split(cfg, train=False)
    loader = build_loader(cfg, table, images, train=False)
    reference = ReferenceDataset(table, folder / "images" / "val2017", (192, 256), train=False)
    loader.batch_sampler.set_epoch(0)
    batches = list(loader.batch_sampler)

    def run_poise() -> None:
        for keys in batches:
            loader.dataset.__getitems__(keys)

    def run_reference() -> None:
        for begin in range(0, len(table), 32):
            default_collate(
                [reference[person] for person in range(begin, min(begin + 32, len(table)))]
            )

    seconds = time_alternately({"poise": run_poise, "reference": run_reference}, 5)
    yield compare(
        f"test sample, {len(table) / 24:.0f} detection boxes per image, 256x192",
        seconds,
        8,
        count=len(table),
    )


if __name__ == "__main__":
    main(measure)
