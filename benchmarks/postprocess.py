"""Time decoding and accuracy of a batch against the loops of the reference code."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from poise.codecs.codec import Codec, Targets
from poise.codecs.flip import average_flipped
from poise.codecs.gaussian import Gaussian
from poise.config.dataset_yaml import COCO
from poise.structures.crops import crop_to_image
from timing import Row, compare, main, time_alternately

from data import affine

BATCH = 64


def reference_peaks(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, joints, _, width = maps.shape
    flat = maps.reshape((count, joints, -1))
    index = np.argmax(flat, 2).reshape((count, joints, 1))
    values = np.amax(flat, 2).reshape((count, joints, 1))
    found = np.tile(index, (1, 1, 2)).astype(np.float32)
    found[:, :, 0] = found[:, :, 0] % width
    found[:, :, 1] = np.floor(found[:, :, 1] / width)
    return found * np.tile(np.greater(values, 0.0), (1, 1, 2)).astype(np.float32), values


def reference_decode(
    maps: np.ndarray, center: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    coords, values = reference_peaks(maps)
    height, width = maps.shape[2:]
    for n in range(coords.shape[0]):
        for joint in range(coords.shape[1]):
            px = int(np.floor(coords[n][joint][0] + 0.5))
            py = int(np.floor(coords[n][joint][1] + 0.5))
            if 1 < px < width - 1 and 1 < py < height - 1:
                one = maps[n][joint]
                coords[n][joint] += (
                    np.sign(
                        np.array(
                            [one[py][px + 1] - one[py][px - 1], one[py + 1][px] - one[py - 1][px]]
                        )
                    )
                    * 0.25
                )
    found = coords.copy()
    for n in range(coords.shape[0]):
        back = cv2.invertAffineTransform(affine(center[n], scale[n], 0, np.array([width, height])))
        for joint in range(coords.shape[1]):
            found[n, joint] = back @ np.array([coords[n, joint, 0], coords[n, joint, 1], 1.0])
    return found, values


def reference_accuracy(output: np.ndarray, target: np.ndarray) -> float:
    predicted, _ = reference_peaks(output)
    wanted, _ = reference_peaks(target)
    norm = np.ones((predicted.shape[0], 2)) * np.array(output.shape[2:]) / 10
    distances = np.zeros((predicted.shape[1], predicted.shape[0]))
    for n in range(predicted.shape[0]):
        for joint in range(predicted.shape[1]):
            counted = wanted[n, joint, 0] > 1 and wanted[n, joint, 1] > 1
            distances[joint, n] = (
                np.linalg.norm(predicted[n, joint] / norm[n] - wanted[n, joint] / norm[n])
                if counted
                else -1
            )
    total, joints = 0.0, 0
    for joint in range(len(distances)):
        there = distances[joint][distances[joint] != -1]
        if len(there):
            total, joints = total + (there < 0.5).sum() / len(there), joints + 1
    return total / max(joints, 1)


def reference_flip_average(output: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    mirrored = mirrored[:, :, :, ::-1]
    for a, b in COCO.flip_pairs:
        kept = mirrored[:, a, :, :].copy()
        mirrored[:, a, :, :] = mirrored[:, b, :, :]
        mirrored[:, b, :, :] = kept
    merged = torch.from_numpy(mirrored.copy())
    merged[:, :, :, 1:] = merged.clone()[:, :, :, 0:-1]
    return ((torch.from_numpy(output) + merged) * 0.5).numpy()


def make_heatmaps(
    codec: Codec, rng: np.random.Generator
) -> tuple[Targets, torch.Tensor, torch.Tensor]:
    """Return targets, predictions near them and those of the mirrored images, (64, 17, h, w)."""
    joints = torch.from_numpy(rng.uniform(0.02, 0.98, (BATCH, 17, 2)) * codec.image_size).float()
    visible = torch.from_numpy((rng.random((BATCH, 17)) < 0.9) * 2.0).float()
    targets = codec.encode(joints, visible)
    near = codec.encode(
        joints + torch.from_numpy(rng.normal(0, 4, joints.shape)).float(), visible
    ).heatmaps
    noise = torch.from_numpy(rng.normal(0, 0.02, (2, *near.shape))).float()
    order = torch.from_numpy(COCO.flip_indices)
    return targets, near + noise[0], (near + noise[1]).flip(3)[:, order].contiguous()


def measure() -> Iterator[Row]:
    """Decode with accuracy, without and with the flip average; batches of 64."""
    order = torch.from_numpy(COCO.flip_indices)
    for size in ((192, 256), (288, 384)):
        rng = np.random.default_rng(0)
        codec = Gaussian(size, (size[0] // 4, size[1] // 4))
        targets, output, mirrored = make_heatmaps(codec, rng)
        center = rng.uniform(100, 400, (BATCH, 2))
        scale = np.tile(rng.uniform(0.5, 2, (BATCH, 1)), (1, 2)) * (0.75, 1)
        found: dict[str, tuple] = {}

        def run_poise(
            merged: torch.Tensor = output, codec: Codec = codec, targets: Targets = targets
        ) -> None:
            coords, scores, right, counted = codec.decode_with_accuracy(merged, targets)
            found["poise"] = (
                crop_to_image(coords, center, scale, codec.image_size),
                scores,
                float(right),
                float(counted),
            )

        maps, wanted = output.numpy(), targets.finest_heatmaps.numpy()

        def run_reference(merged: np.ndarray = maps, targets: np.ndarray = wanted) -> None:
            found["reference"] = (
                *reference_decode(merged, center, scale),
                reference_accuracy(merged, targets),
            )

        name = f"{codec.heatmap_size[1]}x{codec.heatmap_size[0]}"
        seconds = time_alternately({"poise": run_poise, "reference": run_reference}, 7, repeats=8)
        yield compare(f"decoding and accuracy, batch {BATCH}, heatmaps {name}", seconds, 15)
        yield Row(
            "the same: largest distance of a keypoint",
            "",
            "",
            float(np.abs(found["poise"][0] - found["reference"][0]).max()),
            "max",
            0.01,
            "pixels",
        )
        # the reference code swaps its channels in place; every second call swaps them back
        given = mirrored.numpy().copy()
        apart = np.abs(
            average_flipped(output, mirrored, order, True).numpy()
            - reference_flip_average(output.numpy(), mirrored.numpy().copy())
        ).max()
        yield Row(
            "the same: largest difference of the averaged heatmaps",
            "",
            "",
            float(apart),
            "max",
            1e-6,
            "",
        )
        seconds = time_alternately(
            {
                "poise": lambda: run_poise(average_flipped(output, mirrored, order, True)),
                "reference": lambda: run_reference(reference_flip_average(output.numpy(), given)),
            },
            7,
            repeats=8,
        )
        yield compare(
            f"flip average, decoding and accuracy, batch {BATCH}, heatmaps {name}", seconds, 3
        )


if __name__ == "__main__":
    main(measure)
