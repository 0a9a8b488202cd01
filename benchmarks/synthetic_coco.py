"""Make synthetic images, annotations, detections and predictions of the size of COCO.

No dataset is read.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import orjson

TRAIN_IMAGES, TRAIN_PERSONS, TRAIN_LABELED = 118_287, 262_465, 149_813  # train2017
# val2017 and a detector's boxes
VAL_IMAGES, VAL_PERSONS, VAL_LABELED, VAL_CROWDS, DETECTIONS = 5000, 10_996, 6352, 230, 104_125
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


def make_jpeg(seed: int, width: int = 640, height: int = 427, quality: int = 85) -> bytes:
    """Return a 4:4:4 JPEG with the spectrum of photographs (amplitude 1 / frequency).

    It has about 150 kB at the default size.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(
        np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    )
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        spectrum = (
            rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        ) / frequency**1.1
        plane = np.fft.irfft2(spectrum, (height, width))
        planes.append(plane / plane.std())
    gray = planes[0]
    image = np.stack([gray + 0.25 * plane for plane in planes], axis=2)
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpg", np.clip(image * 50 + 120, 0, 255).astype(np.uint8), options)[
        1
    ].tobytes()


def write_images(folder: Path, names: list[str], **size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(make_jpeg(number, **size))


def sample_boxes(
    rng: np.random.Generator, count: int, width: int = 640, height: int = 427
) -> np.ndarray:
    """Return boxes (N, 4) x, y, width, height; 20 to 90 % of the image in height."""
    tall = rng.uniform(0.2, 0.9, count) * height
    wide = np.minimum(tall * rng.uniform(0.3, 0.8, count), width * 0.8)
    return np.column_stack(
        [
            rng.uniform(0, 1, count) * (width - wide),
            rng.uniform(0, 1, count) * (height - tall),
            wide,
            tall,
        ]
    )


def sample_keypoints(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    """Return keypoints (N, 17, 2) inside the boxes (N, 4)."""
    return box[:, None, :2] + rng.uniform(0.05, 0.95, (len(box), 17, 2)) * box[:, None, 2:]


def write_annotations(
    path: Path,
    names: list[str],
    count: int,
    labeled: int,
    *,
    images: int,
    crowds: int = 0,
    segmentations: bool = True,
    seed: int = 0,
    size: tuple[int, int] = (640, 427),
) -> dict:
    """Write a COCO annotation file and return its content, without segmentations returned.

    The images take the given names in turn.
    """
    rng = np.random.default_rng(seed)
    box = np.round(sample_boxes(rng, count, *size), 2)
    points = np.round(sample_keypoints(rng, box)).astype(int)
    flags = np.where(rng.random((count, 17)) < 0.75, rng.integers(1, 3, (count, 17)), 0)
    flags[:, 0] = 2
    of_image = rng.integers(0, images, count)
    segmentation = np.round(rng.uniform(0, 400, (count, 40)), 2).tolist() if segmentations else None
    entries = []
    for n in range(count):
        keypoints = (
            np.column_stack([points[n] * (flags[n] > 0)[:, None], flags[n]]).ravel().tolist()
            if n < labeled
            else [0] * 51
        )
        entry = {
            "num_keypoints": int((flags[n] > 0).sum()) if n < labeled else 0,
            "area": round(float(box[n, 2] * box[n, 3]) * 0.6, 4),
            "iscrowd": int(n >= count - crowds),
            "keypoints": keypoints,
            "image_id": int(of_image[n]) + 1,
            "bbox": box[n].tolist(),
            "category_id": 1,
            "id": 100_000 + n,
        }
        entries.append({"segmentation": [segmentation[n]], **entry} if segmentations else entry)
    order = rng.permutation(count)
    content = {
        "info": {"description": "synthetic, for benchmarks"},
        "licenses": [],
        "images": [
            {
                "license": 1,
                "file_name": names[n % len(names)],
                "height": size[1],
                "width": size[0],
                "date_captured": "2013-11-14 11:18:45",
                "id": n + 1,
            }
            for n in range(images)
        ],
        "annotations": [entries[n] for n in order],
        "categories": [
            {
                "supercategory": "person",
                "id": 1,
                "name": "person",
                "keypoints": [str(j) for j in range(17)],
                "skeleton": [],
            }
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(content))
    return content


def write_detections(path: Path, count: int, images: int, seed: int = 1) -> None:
    """Write detections sorted by image."""
    rng = np.random.default_rng(seed)
    box, of_image = (
        np.round(sample_boxes(rng, count), 2).tolist(),
        np.sort(rng.integers(1, images + 1, count)).tolist(),
    )
    scores = np.round(rng.beta(0.4, 1.2, count) * 0.999 + 0.001, 3).tolist()
    path.write_bytes(
        orjson.dumps(
            [
                {"bbox": b, "category_id": 1, "image_id": i, "score": s}
                for b, i, s in zip(box, of_image, scores)
            ]
        )
    )


def make_predictions(content: dict, count: int, seed: int = 2) -> dict[str, np.ndarray]:
    """Return predictions for an annotation file: labeled persons with noise and false positives.

    Keys: image_ids (N,), keypoints (N, 17, 2) and keypoint_scores (N, 17) float32,
    box_scores (N,), center (N, 2), scale (N, 2).
    """
    rng = np.random.default_rng(seed)
    persons = [a for a in content["annotations"] if a["num_keypoints"]]
    chosen = rng.integers(0, len(persons), count)
    found = rng.random(count) < 0.35
    true_box = np.array([p["bbox"] for p in persons])[chosen]
    points = np.array([p["keypoints"] for p in persons], float).reshape(-1, 17, 3)[chosen, :, :2]
    # unlabeled keypoints have zeros in the annotations
    free = sample_keypoints(rng, true_box)
    points = (
        np.where((points.sum(axis=2) > 0)[:, :, None], points, free)
        + rng.normal(0, 1, (count, 17, 2))
        * (
            SIGMAS
            * np.sqrt(true_box[:, 2:].prod(axis=1))[:, None]
            * rng.uniform(0.2, 2.5, (count, 1))
        )[:, :, None]
    )
    other_box = sample_boxes(rng, count)
    box = np.where(found[:, None], true_box, other_box)
    keypoints = np.where(found[:, None, None], points, sample_keypoints(rng, other_box))
    image_ids = np.where(
        found,
        np.array([p["image_id"] for p in persons])[chosen],
        rng.integers(1, len(content["images"]) + 1, count),
    )
    order = np.argsort(image_ids, kind="stable")
    keypoint_scores = (rng.beta(3, 1.5, (count, 17)) * np.where(found, 1, 0.6)[:, None]).astype(
        np.float32
    )
    keypoint_scores[rng.random(count) < 0.01] = 0.05  # some score exactly 0 after rescoring
    box_scores = np.where(found, rng.uniform(0.3, 1, count), rng.beta(0.4, 2, count))
    scale = np.maximum(box[:, 2:], box[:, [3, 2]] * (0.75, 1 / 0.75)) * 1.25 / 200
    # float32, as in the reference code; both get the same values
    return {
        "image_ids": image_ids[order],
        "keypoints": keypoints[order].astype(np.float32),
        "keypoint_scores": keypoint_scores[order],
        "box_scores": box_scores[order],
        "center": (box[:, :2] + box[:, 2:] / 2)[order],
        "scale": scale[order],
    }


def load_experiment(folder: Path, root: Path, *overrides, size: tuple[int, int] = (192, 256)):
    """Load an HRNet experiment on the dataset in `root`, with overrides KEY, VALUE, ..."""
    from poise import config

    path = folder / "experiment.yaml"
    path.write_text(
        f"OUTPUT_DIR: {folder / 'output'}\nLOG_DIR: {folder / 'log'}\nDATASET: {{DATASET: coco,"
        f" ROOT: {root}, TRAIN_SET: train2017, TEST_SET: val2017, PROB_HALF_BODY: 0.3,"
        f" SCALE_FACTOR: 0.35, ROT_FACTOR: 45}}\nMODEL: {{IMAGE_SIZE: [{size[0]}, {size[1]}],"
        f" HEATMAP_SIZE: [{size[0] // 4}, {size[1] // 4}]}}\nTEST: {{USE_GT_BBOX: true, FLIP_TEST:"
        " true, POST_PROCESS: true, SHIFT_HEATMAP: true, OKS_THRE: 0.9, IN_VIS_THRE: 0.2,"
        " IMAGE_THRE: 0.0}\n"
    )
    return config.load(path, overrides)
