"""Translate Ultralytics' data.yaml of a pose dataset into the keys of a dataset file.

Source: https://docs.ultralytics.com/datasets/pose/ and the behavior of ultralytics 8.4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from poise.config.dataset_yaml import MAX_JOINTS, load_dataset_info
from poise.errors import ConfigError, escape_name, short_repr
from poise.structures.skeleton import Skeleton

SETS = ("train", "val", "test")


def is_ultralytics(values: dict) -> bool:
    """Return whether a YAML file is a data.yaml of ultralytics with keypoints."""
    return "kpt_shape" in values and "joints" not in values


def translate_ultralytics(values: dict, path: Path) -> tuple[dict, list[str]]:
    """Return the keys of a dataset file, and remarks about assumptions.

    Raises ConfigError naming the file and the key.
    """
    count = _keypoint_count(values, path)
    remarks = []
    order = _flip_indices(values, count, path)
    names = _keypoint_names(values, count, path)
    coco = load_dataset_info("coco").skeleton
    if names is None and order == coco.flip_indices.tolist():
        names = list(coco.names)
        remarks.append(
            f"{path}: has no kpt_names; the 17 keypoints are taken as COCO's, "
            "whose flip_idx they have"
        )
    names = names or [f"kpt_{number}" for number in range(count)]
    keys: dict[str, Any] = {"joints": names, "flip_pairs": _pairs(names, order)}
    if names == list(coco.names):
        keys |= _coco_keys(coco)
    if values.get("kpt_oks_sigmas"):
        keys["sigmas"] = values["kpt_oks_sigmas"]
    if "sigmas" not in keys:
        keys["sigmas"] = [1 / count] * count
        remarks.append(
            f"{path}: the OKS takes 1/{count} as the sigma of each keypoint, as ultralytics does; "
            "such an AP compares runs on this data set only"
        )
    if not order:
        remarks.append(
            f"{path}: has no flip_idx; DATASET.FLIP and TEST.FLIP_TEST are off, as in ultralytics"
        )
    classes = _class_names(values, path)
    if len(classes) > 1:
        remarks.append(
            f"{path}: has {len(classes)} classes; only class 0 is read, {escape_name(classes[0])}"
        )
    keys["category"] = classes[0]
    return keys | _files(values, path), remarks


def _keypoint_count(values: dict, path: Path) -> int:
    shape = values["kpt_shape"]
    is_pair = isinstance(shape, list) and len(shape) == 2 and all(type(v) is int for v in shape)
    if not is_pair or not 1 <= shape[0] <= MAX_JOINTS or shape[1] not in (2, 3):
        raise ConfigError(
            f"{path}: kpt_shape must be a number of keypoints from 1 to {MAX_JOINTS}, and 2 or 3, "
            f"got {short_repr(shape)}"
        )
    return shape[0]


def _flip_indices(values: dict, count: int, path: Path) -> list[int]:
    """Return flip_idx; [] if it is missing."""
    order = values.get("flip_idx") or []
    if order == []:
        return []
    is_order = isinstance(order, list) and all(type(v) is int for v in order)
    if not is_order or sorted(order) != list(range(count)):
        fault = f"must have each number from 0 to {count - 1} once"
    elif any(order[other] != joint for joint, other in enumerate(order)):
        fault = "must exchange keypoints in pairs"
    else:
        return order
    raise ConfigError(f"{path}: flip_idx {fault}, got {short_repr(order)}")


def _keypoint_names(values: dict, count: int, path: Path) -> list | None:
    """Return the keypoint names of the first class; None if they are missing."""
    names = values.get("kpt_names")
    if isinstance(names, dict):
        names = names.get(0, next(iter(names.values()), None))
    if not names:
        return None
    if not isinstance(names, list) or len(names) != count:
        raise ConfigError(
            f"{path}: kpt_names must be a list of {count} names, as kpt_shape says, "
            f"got {short_repr(names)}"
        )
    return names


def _pairs(names: list, order: list[int]) -> list[list]:
    """Return flip_pairs, the left keypoint first if a name has the word left or right."""
    pairs = [[names[a], names[b]] for a, b in enumerate(order) if a < b]
    for pair in pairs:
        if _has_word("right", pair[0]) or _has_word("left", pair[1]):
            pair.reverse()
    return pairs


def _has_word(word: str, name: Any) -> bool:
    return word in re.split("[^a-z]+", str(name).lower())


def _coco_keys(coco: Skeleton) -> dict:
    def named(indices: Iterable[int]) -> list[str]:
        return [coco.names[index] for index in indices]

    return {
        "limbs": [named(limb) for limb in coco.limbs],
        "upper_body": named(coco.upper_body),
        "both_halves": named(coco.shared_body),
        "sigmas": list(coco.sigmas),
        "weights": list(coco.weights),
    }


def _class_names(values: dict, path: Path) -> list[str]:
    names = values.get("names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=lambda key: (str(type(key)), key))]
    if names is None:
        return ["person"]
    if not isinstance(names, list) or not names or not isinstance(names[0], str) or not names[0]:
        raise ConfigError(
            f"{path}: names must be the names of the classes, got {short_repr(names)}"
        )
    return names


def _files(values: dict, path: Path) -> dict:
    """Return name, root, annotations, images and sets; labels are in `labels`, not `images`."""
    root = _root(values, path)
    keys: dict[str, Any] = {
        "name": root.name or path.stem,
        "root": str(root),
        "annotations": "annotations/{set}.json",
        "images": "images/{set}",
        "sets": {},
    }
    for name in SETS:
        images = values.get(name)
        if not images:
            continue
        if not isinstance(images, str) or images.endswith(".txt"):
            raise ConfigError(
                f"{path}: {name} must be a folder of images, got {short_repr(images)}; lists of "
                "images and of folders are not read"
            )
        folder = _image_folder(root, images)
        parts = list(folder.parts)
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            parts[last] = "labels"
        keys["sets"][name] = {
            "annotations": f"annotations/{name}.json",
            "images": _below(root, folder),
            "yolo_labels": _below(root, Path(*parts)),
        }
    return keys


def _root(values: dict, path: Path) -> Path:
    root = values.get("path") or ""
    if not isinstance(root, str):
        raise ConfigError(f"{path}: path must be the data set's folder, got {short_repr(root)}")
    # ultralytics searches the working folder, which also has a folder `.`, then its own `datasets`
    # folder, which is unknown here
    sibling = _resolved(path.parent / root)
    candidates = [_resolved(Path(root)), sibling] if root else [sibling]
    images = [values[name] for name in SETS if isinstance(values.get(name), str)]
    for folder in candidates:
        if any(os.path.isdir(_image_folder(folder, name)) for name in images):
            return folder
    return next((folder for folder in candidates[:-1] if os.path.isdir(folder)), sibling)


def _image_folder(root: Path, images: str) -> Path:
    folder = _resolved(root / images)
    # as ultralytics reads Roboflow's
    if images.startswith("../") and not os.path.exists(folder):
        folder = _resolved(root / images[3:])
    return folder


def _resolved(folder: Path) -> Path:
    """Return a folder without links and `..`; unchanged if the system cannot resolve it."""
    # unlike Path.resolve, no error for a link to itself
    try:
        return Path(os.path.realpath(folder))
    except OSError:
        return folder


def _below(root: Path, folder: Path) -> str:
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)
