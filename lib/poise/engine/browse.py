"""Training samples as training sees them: tools/browse.py. The same table, sampler, augmentation
and targets, drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from yacs.config import CfgNode

from poise.codecs import build_codec
from poise.datasets import build_loader, load_split
from poise.engine.targets import encode_targets
from poise.errors import ConfigError
from poise.io.files import atomic_write
from poise.models.forward import denormalize, normalize
from poise.structures.skeleton import Skeleton
from poise.visualization import draw as visualize

_COLUMNS = 8  # of the mosaic of joints
_SMALLEST = 160  # pixels of a drawn crop's shorter side, at least
_STRIP = 14  # pixels below a crop, for words
_RING = (50, 50, 235)  # BGR, around a joint that does not count


@dataclass(frozen=True)
class Samples:
    """Samples of an epoch in the order of training. keys (N, 2): epoch and person of the table.
    names: of their pictures.

    crops (N, H, W, 3) uint8 BGR; joints (N, J, 2) crop pixels; visible (N, J) flags 0, 1, 2;
    target_maps (N, L, J, h, w), 0 to 1, from coarse to fine; weight (N, J). representation: what
    the codec calls the maps.
    """

    keys: list[tuple[int, int]]
    names: list[str]
    crops: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    target_maps: np.ndarray
    weight: np.ndarray
    skeleton: Skeleton
    representation: str


def run(
    cfg: CfgNode, folder: str | Path, *, count: int = 32, epoch: int = 0, first: int = 0
) -> list[Path]:
    """Write joints.jpg, <representation>.jpg (a row for each of the first 8 samples) and, for
    targets of several levels, sharpness.jpg.

    The samples first, first + 1, ... of an epoch, `count` of them or as many as there are. Returns
    the pictures' paths. Raises PoiseError.
    """
    if count > (most := max_samples(cfg)):
        raise ConfigError(
            f"--count {count}: a picture has room for {most} of these samples; show the others with"
            " --first"
        )
    samples = draw(cfg, count=count, epoch=epoch, first=first)
    folder = Path(folder)
    pictures = {
        "joints.jpg": joint_mosaic(samples),
        f"{samples.representation}.jpg": target_mosaic(samples),
    }
    if samples.target_maps.shape[1] > 1:
        pictures["sharpness.jpg"] = sharpness_mosaic(samples)
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / name)
        with atomic_write(paths[-1]) as part:
            part.write_bytes(visualize.encode_image(picture, ".jpg"))
    return paths


def max_samples(cfg: CfgNode) -> int:
    """As many as a mosaic of the joints has room for."""
    height = cfg.MODEL.IMAGE_SIZE[1]
    return (
        visualize.JPEG_SIDE
        // (round(height * _zoom(cfg.MODEL.IMAGE_SIZE)) + _STRIP + visualize.GAP)
        * _COLUMNS
    )


def draw(cfg: CfgNode, *, count: int, epoch: int = 0, first: int = 0) -> Samples:
    """The samples as every training makes them, whatever its processes and batches: a sample
    depends on seed, epoch and person alone.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.WORKERS = 0  # workers would make many more samples than are shown
    table, images = load_split(cfg, train=True)
    loader = build_loader(cfg, table, images, train=True)
    if not 0 <= first < len(table):
        raise ConfigError(f"--first {first}: an epoch has the samples 0 to {len(table) - 1}")
    loader.batch_sampler.set_epoch(epoch, first // loader.batch_sampler.batch_size)
    begun = loader.batch_sampler.first_batch * loader.batch_sampler.batch_size
    needed = min(first + count, len(table)) - begun
    parts, codec, device = [], build_codec(cfg), torch.device("cpu")
    for batch in itertools.islice(loader, -(-needed // loader.batch_sampler.batch_size)):
        targets = encode_targets(cfg, codec, batch, device)
        normalized = normalize(
            batch["images"],
            device,
            mean=cfg.MODEL.MEAN,
            std=cfg.MODEL.STD,
            channels_last=cfg.CHANNELS_LAST,
        )
        crops = denormalize(
            normalized, mean=cfg.MODEL.MEAN, std=cfg.MODEL.STD, rgb=cfg.DATASET.COLOR_RGB
        )
        parts.append(
            (
                batch["person"].numpy(),
                crops,
                batch["joints"].numpy(),
                batch["visible"].numpy(),
                codec.target_maps(targets),
                targets.weight[:, :, 0].numpy(),
            )
        )
    person, crops, joints, visible, maps, weight = (
        np.concatenate(columns)[first - begun : needed] for columns in zip(*parts)
    )
    return Samples(
        [(epoch, int(p)) for p in person],
        [table.image_name(int(p)) for p in person],
        crops,
        joints,
        visible,
        maps,
        weight,
        table.skeleton,
        codec.representation,
    )


def joint_mosaic(samples: Samples, columns: int = _COLUMNS) -> np.ndarray:
    """The crops with all labelled joints: rings where the weight is 0 (outside of the crop),
    crosses where they are hidden; below, person and picture.
    """
    pictures, zoom = [], _zoom(samples.crops.shape[1:3])
    for row, crop in enumerate(samples.crops):
        picture = _enlarged(crop, zoom)
        points, visible = (samples.joints[row] + 0.5) * zoom - 0.5, samples.visible[row]
        visualize.draw_person(picture, points, samples.skeleton, shown=visible > 0)
        for joint in np.flatnonzero(visible > 0):
            at = tuple(int(v) for v in np.clip(np.rint(points[joint]), -9999, 9999))
            if samples.weight[row, joint] == 0:
                # those outside are marked where they leave the crop
                at = tuple(
                    int(v) for v in np.clip(at, 0, [picture.shape[1] - 1, picture.shape[0] - 1])
                )
                cv2.circle(picture, at, 6, _RING, 2, cv2.LINE_AA)
            elif visible[joint] == 1:
                cv2.drawMarker(picture, at, (0, 0, 0), cv2.MARKER_TILTED_CROSS, 7, 1, cv2.LINE_AA)
        words = f"{samples.keys[row][1]} {Path(samples.names[row]).name}"
        pictures.append(_with_words(picture, words))
    return visualize.make_grid(pictures, min(columns, len(pictures)))


def target_mosaic(samples: Samples, rows: int = 8) -> np.ndarray:
    """A row for each sample: the crop, all its maps together, then each joint's with its
    weight.
    """
    titles = [
        name.replace("_", " ").replace("left ", "l ").replace("right ", "r ")
        for name in samples.skeleton.names
    ]
    pictures = []
    for row in range(min(rows, len(samples.crops))):
        crop = _enlarged(samples.crops[row], _zoom(samples.crops.shape[1:3]) / 1.25)
        maps, words = (
            samples.target_maps[row, -1],
            [f"{title} w {weight:g}" for title, weight in zip(titles, samples.weight[row])],
        )
        pictures += [
            _with_words(crop.copy(), f"person {samples.keys[row][1]}"),
            _with_words(visualize.overlay_heatmap(crop, maps.max(axis=0)), "all joints"),
        ]
        pictures += [
            _with_words(visualize.overlay_heatmap(crop, one), text)
            for one, text in zip(maps, words)
        ]
    return visualize.make_grid(pictures, 2 + len(titles))


def sharpness_mosaic(samples: Samples, rows: int = 8) -> np.ndarray:
    """A row for each sample: the crop, then all joints together in each sharpness, from coarse
    to fine.
    """
    pictures = []
    for row in range(min(rows, len(samples.crops))):
        crop = _enlarged(samples.crops[row], _zoom(samples.crops.shape[1:3]))
        pictures += [_with_words(crop.copy(), f"person {samples.keys[row][1]}")]
        pictures += [
            _with_words(
                visualize.overlay_heatmap(crop, maps.max(axis=0)),
                f"sharpness {k} of {samples.target_maps.shape[1]}",
            )
            for k, maps in enumerate(samples.target_maps[row], 1)
        ]
    return visualize.make_grid(pictures, 1 + samples.target_maps.shape[1])


def _zoom(sides: Sequence[int]) -> float:
    return max(_SMALLEST / min(sides), 1.0)


def _enlarged(crop: np.ndarray, zoom: float) -> np.ndarray:
    return cv2.resize(
        crop,
        (round(crop.shape[1] * zoom), round(crop.shape[0] * zoom)),
        interpolation=cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA,
    )


def _with_words(picture: np.ndarray, words: str) -> np.ndarray:
    strip = np.full((_STRIP, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(
        strip,
        words.encode("ascii", "replace").decode(),
        (2, 11),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.36,
        (30, 30, 30),
        1,
        cv2.LINE_AA,
    )
    return np.concatenate([picture, strip])
