"""Result files in the formats of COCO and mmpose, and the metrics table that HRNet prints.

Letters: N persons, K keypoints.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from poise.errors import DataError, short_repr
from poise.io.files import atomic_write, gc_disabled
from poise.io.json_file import is_finite, read_json
from poise.structures.crops import PIXEL_STD
from poise.structures.ids import parse_id, parse_ids

FIELDS = ("image_id", "category_id", "keypoints", "score")
_BATCH_SIZE = 2048  # persons converted to JSON at once, which bounds the memory


def coco_results(
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    centers: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    category_id: int = 1,
) -> list[dict]:
    """Convert arrays to the COCO result format (https://cocodataset.org/#format-results).

    Args:
        image_ids: (N,).
        keypoints: (N, K, 3) x, y in pixels and score.
        scores: (N,).
        centers, scales: (N, 2), written as `center` and `scale` as in HRNet; None: omitted.
        category_id: category of all persons.

    Returns: a dict per person; its `keypoints` are a (3 K,) float64 array.

    Raises ValueError for other shapes, DataError for values that are not finite.
    """
    return _entries(_checked(image_ids, keypoints, scores, centers, scales), category_id)


def write_results(
    path: str | os.PathLike,
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    centers: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    category_id: int = 1,
) -> None:
    """Write a result file for the COCO server. Arguments and errors as coco_results.

    Floats keep every digit, so the file has exactly the AP of the arrays. It is written atomically:
    a truncated submission would be scored as if the remaining persons had not been detected.
    Raises DataError if it cannot be written.
    """
    columns = _checked(image_ids, keypoints, scores, centers, scales)
    with atomic_write(path) as part, open(part, "wb") as file:
        _write_entries(file, columns, category_id)


def write_submission(
    path: str | os.PathLike,
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    category_id: int = 1,
) -> None:
    """Write a zip archive with one result file, as the COCO server expects it.

    Arguments and errors as write_results, without the fields that HRNet adds.
    """
    columns = _checked(image_ids, keypoints, scores, None, None)
    name = f"{Path(path).stem}.json"
    with (
        atomic_write(path) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        _write_entries(file, columns, category_id)


def _write_entries(file: IO[bytes], columns: Columns, category_id: int) -> None:
    """Write the persons as JSON, _BATCH_SIZE at a time."""
    import orjson

    with gc_disabled():
        file.write(b"[")
        for begin in range(0, len(columns[0]), _BATCH_SIZE):
            rows = slice(begin, begin + _BATCH_SIZE)
            entries = _entries(_rows(columns, rows), category_id)
            file.write(b"," if begin else b"")
            file.write(memoryview(orjson.dumps(entries, option=orjson.OPT_SERIALIZE_NUMPY))[1:-1])
        file.write(b"]")


def _rows(columns: Columns, rows: slice) -> Columns:
    image_ids, keypoints, scores, centers, scales = columns
    if centers is not None:
        centers = centers[rows]
    if scales is not None:
        scales = scales[rows]
    return image_ids[rows], keypoints[rows], scores[rows], centers, scales


Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]


def _checked(
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    centers: np.ndarray | None,
    scales: np.ndarray | None,
) -> Columns:
    """Return the arguments of coco_results as arrays, keypoints as (N, 3 K). Raises its errors."""
    keypoints = np.asarray(keypoints, np.float64)
    scores = np.asarray(scores, np.float64)
    image_ids = np.asarray(image_ids)
    if keypoints.size == 0:
        keypoints = keypoints.reshape(0, 0, 3)
    if (
        keypoints.ndim != 3
        or keypoints.shape[2] != 3
        or {len(image_ids), len(scores)} != {len(keypoints)}
    ):
        raise ValueError(
            f"results: expected N image ids, keypoints (N, K, 3), N scores; got {image_ids.shape},"
            f" {keypoints.shape}, {scores.shape}"
        )
    check_finite(image_ids, keypoints, scores)
    for key, values in (("center", centers), ("scale", scales)):
        if values is not None and np.shape(values) != (len(scores), 2):
            raise ValueError(f"{key}s must be ({len(scores)}, 2); got {np.shape(values)}")
    flat = np.ascontiguousarray(keypoints.reshape(len(keypoints), 3 * keypoints.shape[1]))
    if centers is not None:
        centers = np.asarray(centers, np.float64)
    if scales is not None:
        scales = np.asarray(scales, np.float64)
    return image_ids, flat, scores, centers, scales


def _entries(columns: Columns, category_id: int) -> list[dict]:
    image_ids, keypoints, scores, centers, scales = columns
    results = [
        {"image_id": image_id, "category_id": category_id, "keypoints": row, "score": score}
        for image_id, row, score in zip(image_ids.tolist(), keypoints, scores.tolist())
    ]
    for key, values in (("center", centers), ("scale", scales)):
        if values is not None:
            for result, row in zip(results, values.tolist()):
                result[key] = row
    return results


def prediction_batches(
    keypoints: np.ndarray,
    centers: np.ndarray,
    scales: np.ndarray,
    scores: np.ndarray,
    image_paths: Sequence[str],
    box_ids: Sequence[int],
    batch_size: int,
) -> list[dict]:
    """Return what mmpose 0.x's tools/test.py --out pickles: a dict per `batch_size` persons.

    Args:
        keypoints: (N, K, 3) x, y in image pixels and score.
        centers: (N, 2) of the boxes, pixels.
        scales: (N, 2) of the boxes, in units of 200 pixels.
        scores: (N,) of the boxes.
        image_paths, box_ids: N.
        batch_size: persons per dict.

    Returns: dicts with preds (n, K, 3) float32, boxes (n, 6) float32 (center, scale, area in square
    pixels, score), lists image_paths and bbox_ids of n, and output_heatmap None.

    Source: mmpose 0.29 mmpose/models/heads/topdown_heatmap_base_head.py.
    """
    preds = np.asarray(keypoints, np.float32)
    size = np.asarray(scales, np.float32)
    area = np.prod(size * np.float32(PIXEL_STD), axis=1)
    boxes = np.column_stack(
        [np.asarray(centers, np.float32), size, area, np.asarray(scores, np.float32)]
    )
    return [
        {
            "preds": preds[begin : begin + batch_size],
            "boxes": boxes[begin : begin + batch_size],
            "image_paths": list(image_paths[begin : begin + batch_size]),
            "bbox_ids": [int(box_id) for box_id in box_ids[begin : begin + batch_size]],
            "output_heatmap": None,
        }
        for begin in range(0, len(preds), batch_size)
    ]


def write_pickle(path: str | os.PathLike, batches: list[dict]) -> None:
    """Write the batches of prediction_batches atomically. Raises DataError."""
    with atomic_write(path) as part, open(part, "wb") as file:
        pickle.dump(batches, file)


def box_ids_by_image(image_index: np.ndarray) -> np.ndarray:
    """Number the persons of each image from 0, in the order of `image_index` (N,).

    Returns: (N,) int.
    """
    image_index = np.asarray(image_index)
    order = np.argsort(image_index, kind="stable")
    ordered = image_index[order]
    place = np.arange(len(order))
    begins = np.concatenate([np.ones(min(len(order), 1), bool), ordered[1:] != ordered[:-1]])
    ids = np.empty(len(order), np.int64)
    ids[order] = place - np.maximum.accumulate(np.where(begins, place, 0))
    return ids


def check_finite(image_ids: np.ndarray, keypoints: np.ndarray, scores: np.ndarray) -> None:
    """Raise DataError if keypoints (N, K, 2 or 3) or scores (N,) have NaN or infinite values."""
    bad = ~(np.isfinite(keypoints).all(axis=(1, 2)) & np.isfinite(scores))
    if bad.any():
        raise DataError(
            f"{bad.sum()} of {len(bad)} predicted persons are NaN or infinite (the first in image"
            f" {image_ids[bad][0]}); the network has diverged or its weights do not fit"
        )


def read_results(path: str | os.PathLike) -> list[dict]:
    """Read a COCO keypoint result file. Raises DataError if it is missing or invalid."""
    results = read_json(path, "result file")
    if not isinstance(results, list):
        raise DataError(
            f"{path}: not a COCO result file: expected a list, got {type(results).__name__}"
        )
    for i, result in enumerate(results):
        missing = [key for key in FIELDS if not isinstance(result, dict) or key not in result]
        if missing:
            raise DataError(
                f"{path}: not a COCO keypoint result file: entry {i} has no {', '.join(missing)}"
            )
        for key in ("image_id", "category_id", "score"):
            value = result[key]
            is_valid = is_finite(value) if key == "score" else parse_id(value) is not None
            if not is_valid:
                raise DataError(
                    f"{path}: entry {i}: {key} {short_repr(value, 60)} is not a plain number"
                )
        results[i] = parse_ids(result, "image_id", "category_id")
        if not isinstance(result["keypoints"], list) or not all(
            map(is_finite, result["keypoints"])
        ):
            raise DataError(
                f"{path}: entry {i} (image {result['image_id']}): keypoints are not a list of"
                " finite numbers"
            )
    return results


def format_table(name_values: Mapping[str, float], arch: str) -> str:
    """Format metrics as the Markdown table that HRNet prints after a test.

    Args:
        name_values: metrics by name, in order.
        arch: name of the network, shortened to 8 letters if it has more than 15, as in HRNet.
    """
    if len(arch) > 15:
        arch = arch[:8] + "..."
    return "\n".join(
        [
            "| Arch " + " ".join(f"| {name}" for name in name_values) + " |",
            "|---" * (len(name_values) + 1) + "|",
            f"| {arch} " + " ".join(f"| {value:.3f}" for value in name_values.values()) + " |",
        ]
    )
