"""Synthetic datasets with any number of keypoints: images, annotations, dataset file."""

import colorsys
import json

import cv2
import numpy as np
import yaml


def joint_names(count):
    """Return `count` names: 'middle' if odd, then left and right alternately."""
    names = ["middle"] if count % 2 else []
    for pair in range(count // 2):
        names += [f"left_{pair}", f"right_{pair}"]
    return names


def dataset_keys(count, **more):
    """Return the keys of a dataset file for `joint_names`; None removes a key."""
    names = joint_names(count)
    pairs = [[f"left_{pair}", f"right_{pair}"] for pair in range(count // 2)]
    keys = {
        "name": f"dots{count}",
        "category": "dot person",
        "annotations": "labels/{set}.json",
        "images": "frames",
        "joints": names,
        "flip_pairs": pairs,
        "limbs": [list(limb) for limb in zip(names, names[1:])],
        "upper_body": names[: (count + 1) // 2],
        "sigmas": np.linspace(0.4, 0.9, count).round(3).tolist(),
        **more,
    }
    return {key: value for key, value in keys.items() if value is not None}


def make_set(
    root,
    count,
    images=(("train", 16), ("val", 8)),
    *,
    category=7,
    seed=0,
    file="dots.yaml",
    names=None,
    **keys,
):
    """Write a dataset with `count` keypoints to `root` and return its dataset file.

    names: keypoint names, by default `joint_names(count)`. The category is neither 1 nor 'person';
    image names have spaces and folders; a tenth of the keypoints is occluded or unlabeled. Images
    of 120 x 64 pixels show one or two persons facing the camera: left keypoints are in the right
    half of the box, and a pair has one color, so that a mirrored image looks like any other.
    """
    rng = np.random.default_rng(seed)
    (root / "labels").mkdir(parents=True, exist_ok=True)
    (root / "frames" / "cam 1").mkdir(parents=True, exist_ok=True)
    kinds = [int(name.split("_")[1]) + 1 if "_" in name else 0 for name in joint_names(count)]
    colors = [
        tuple(255 * v for v in colorsys.hsv_to_rgb(kind / (count // 2 + 1), 1, 1)) for kind in kinds
    ]
    low = np.array([0.55 if name.startswith("left") else 0.1 for name in joint_names(count)])
    high = np.array([0.45 if name.startswith("right") else 0.9 for name in joint_names(count)])
    for name, number in images:
        content = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": 1, "name": "person"},
                {"id": category, "name": "dot person", "keypoints": names or joint_names(count)},
            ],
        }
        for n in range(number):
            picture, file_name = (
                rng.integers(60, 120, (64, 120, 3), np.uint8),
                f"cam 1/{name}-shot {n}.png",
            )
            image_id = 1000 * (name == "val") + 3 * n + 1
            content["images"].append(
                {"id": image_id, "file_name": file_name, "width": 120, "height": 64}
            )
            for person in range(1 + n % 2):
                corner, size = rng.uniform(2, 14, 2) + (58 * person, 0), rng.uniform(38, 46, 2)
                points = corner + size * np.column_stack(
                    [rng.uniform(low, high), rng.uniform(0.1, 0.9, count)]
                )
                flags = rng.choice([0, 1, 2], count, p=[0.05, 0.05, 0.9])
                flags[rng.integers(count)] = 2
                for point, flag, color in zip(points, flags, colors):
                    if flag == 2:
                        cv2.circle(
                            picture,
                            tuple(int(round(v * 8)) for v in point),
                            5 * 8,
                            color,
                            -1,
                            cv2.LINE_AA,
                            3,
                        )
                keypoints = np.column_stack([points.round(2) * (flags > 0)[:, None], flags])
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 5,
                        "image_id": image_id,
                        "category_id": category,
                        "iscrowd": 0,
                        "area": round(float(0.7 * size.prod()), 2),
                        "bbox": [*corner.round(2).tolist(), *size.round(2).tolist()],
                        "num_keypoints": int((flags > 0).sum()),
                        "keypoints": keypoints.ravel().tolist(),
                    }
                )
            # an object of another category without keypoints
            content["annotations"].append(
                {
                    "id": 90_000 + n,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 9.0,
                    "bbox": [1, 1, 3, 3],
                }
            )
            cv2.imwrite(str(root / "frames" / file_name), picture)
        (root / "labels" / f"{name}.json").write_text(json.dumps(content))
    found = dataset_keys(count, root=str(root), **keys)
    if names:
        renamed = dict(zip(joint_names(count), names))
        found = _renamed(found, renamed)
    (root / file).write_text(yaml.safe_dump(found))
    return root / file


def _renamed(value, names):
    if isinstance(value, dict):
        return {
            key: (
                _renamed(item, names)
                if key in ("joints", "flip_pairs", "limbs", "upper_body", "both_halves")
                else item
            )
            for key, item in value.items()
        }
    return [_renamed(item, names) for item in value] if isinstance(value, list) else names[value]


EXPERIMENT = """
OUTPUT_DIR: {folder}/output
LOG_DIR: {folder}/log
GPUS: ()
WORKERS: 0
CPU_THREADS: 1
PRINT_FREQ: 2
DATASET: {{FILE: {file}, TRAIN_SET: train, TEST_SET: val, PROB_HALF_BODY: 0.3,
  NUM_JOINTS_HALF_BODY: 1}}
MODEL:
  NAME: pose_res2net
  IMAGE_SIZE: [64, 64]
  HEATMAP_SIZE: [16, 16]
  SIGMA: 1
  EXTRA: {{NUM_LAYERS: 18, NUM_CHANNELS: [8, 8, 8, 16], NUM_DECONV_FILTERS: [8, 8, 8]}}
TRAIN: {{BATCH_SIZE_PER_GPU: 12, END_EPOCH: 1, LR_STEP: [100]}}
TEST: {{BATCH_SIZE_PER_GPU: 12, FLIP_TEST: true, POST_PROCESS: true, SHIFT_HEATMAP: true,
  USE_GT_BBOX: true, OKS_THRE: 0.9}}
"""


def experiment(folder, file, name="dots.yaml"):
    """Write an experiment in `folder` that trains a very small network in a few steps."""
    path = folder / name
    path.write_text(EXPERIMENT.format(folder=folder, file=file))
    return path
