"""Annotations of a synthetic scene: COCO persons and crowds, MPII persons, and detections.

Formats: COCO, cocodataset.org/#format-data (keypoints, person category); MPII, the json of
SimpleBaseline and HRNet with the arrays of their gt_valid.mat.
"""

from __future__ import annotations

import cv2
import numpy as np

from poise.config.dataset_yaml import COCO, MPII
from poise.datasets.synthetic.scene import Scene

MPII_MAT_NAMES = (
    "rank",
    "rkne",
    "rhip",
    "lhip",
    "lkne",
    "lank",
    "pelv",
    "thor",
    "neck",
    "head",
    "rwri",
    "relb",
    "rsho",
    "lsho",
    "lelb",
    "lwri",
)
_MIN_MPII_JOINTS = 5
_LOOSE = 1.8  # how far a polygon may leave its mask, in thirds of a pixel
# MPII's objpos is this fraction of the person's height above the middle of the joints (median of
# 2,017 complete persons of its validation set); readers move it down again
_OBJPOS_LIFT = 0.032


def coco_category() -> dict:
    """COCO's person category; its limbs count joints from 1."""
    return {
        "supercategory": "person",
        "id": 1,
        "name": "person",
        "keypoints": list(COCO.names),
        "skeleton": [[a + 1, b + 1] for a, b in COCO.limbs],
    }


def coco_annotations(scene: Scene, image_id: int) -> list[dict]:
    """COCO annotations of a scene, without ids: a person each, then the crowd."""
    found = []
    for figure in scene.figures:
        joints = figure.joints.copy()
        height, width = figure.mask.shape
        labeled = joints[:, 2] > 0
        joints[labeled, :2] = np.clip(np.round(joints[labeled, :2], 2), 0, (width - 1, height - 1))
        keypoints = [
            int(v) if k % 3 == 2 else _number(v) for k, v in enumerate(joints.ravel().tolist())
        ]
        found.append(
            {
                "segmentation": mask_polygons(figure.mask),
                "num_keypoints": int(labeled.sum()),
                "area": int(figure.mask.sum()),
                "iscrowd": 0,
                "keypoints": keypoints,
                "image_id": image_id,
                "bbox": _tight_box(figure.mask),
                "category_id": 1,
            }
        )
    if scene.crowd is not None:
        found.append(
            {
                "segmentation": mask_rle(scene.crowd),
                "num_keypoints": 0,
                "area": int(scene.crowd.sum()),
                "iscrowd": 1,
                "keypoints": [0] * (3 * COCO.num_keypoints),
                "image_id": image_id,
                "bbox": _tight_box(scene.crowd),
                "category_id": 1,
            }
        )
    return found


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _tight_box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] around the true pixels of `mask`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]


def mask_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths: column by column, beginning with a run of zeros."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return {"counts": [0, *runs] if flat[0] else runs, "size": list(mask.shape)}


def mask_polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace a mask (H, W) as COCO polygons [x1, y1, x2, y2, ...] along the outer edges of its
    pixels.

    COCO's polygons cannot have holes, so a hole is joined to its outline by a cut of no width: the
    even-odd filling of pycocotools leaves it empty.
    """
    x, y, width, height = _tight_box(mask)
    # a contour runs through pixel centers; on a finer grid these come close to the pixels' edges
    fine = 3
    crop = mask[y : y + height, x : x + width].astype(np.uint8)
    grid = cv2.resize(crop, None, fx=fine, fy=fine, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for k, outline in enumerate(contours):
        if tree[0][k][3] >= 0:
            continue  # a hole; its outline fetches it
        ring = cv2.approxPolyDP(outline, _LOOSE, True)[:, 0]
        hole = tree[0][k][2]
        while hole >= 0:
            inner = cv2.approxPolyDP(contours[hole], _LOOSE, True)[:, 0]
            if len(inner) >= 3:
                ring = _cut_open(ring, inner)
            hole = tree[0][hole][0]
        if len(ring) >= 3:
            corners = (ring + 0.5) / fine + (x, y)
            polygons.append(np.round(corners, 1).ravel().tolist())
    if not polygons:  # nothing but specks: COCO still wants a polygon
        polygons.append([x, y, x + width, y, x + width, y + height, x, y + height])
    return polygons


def _cut_open(ring, hole):
    apart = ((ring[:, None] - hole[None]) ** 2).sum(2)
    i, j = np.unravel_index(int(apart.argmin()), apart.shape)
    return np.concatenate((ring[: i + 1], hole[j:], hole[: j + 1], ring[i:]))


def made_detections(scene: Scene, image_id: int, rng: np.random.Generator) -> list[dict]:
    """Person boxes as a good detector would give them, made from the truth: shifted, doubled,
    missed and false ones.
    """
    height, width = scene.image.shape[:2]
    boxes = []
    scores = []
    for figure in scene.figures:
        box = np.array(_tight_box(figure.mask), float)
        size = np.sqrt(box[2] * box[3])
        if rng.random() < (0.03 if size > 40 else 0.15):
            continue
        score = float(np.clip(rng.beta(14, 1.2) - 0.25 * (size < 40) * rng.random(), 0.05, 0.9999))
        boxes.append(_jittered(rng, box, 0.025))
        scores.append(score)
        if rng.random() < 0.12:
            boxes.append(_jittered(rng, box, 0.12))
            scores.append(score * rng.uniform(0.15, 0.65))
    for _ in range(rng.poisson(0.5)):
        w, h = np.exp(rng.uniform(np.log(0.08), np.log(0.5), 2)) * (width, height)
        boxes.append(np.array((rng.uniform(0, width - w), rng.uniform(0, height - h), w, h)))
        scores.append(rng.beta(1.1, 6))
    found = []
    for box, score in zip(boxes, scores):
        low = np.clip(box[:2], 0, (width - 2, height - 2))
        high = np.clip(box[:2] + box[2:], low + 1, (width, height))
        found.append(
            {
                "bbox": np.round(np.concatenate((low, high - low)), 2).tolist(),
                "category_id": 1,
                "image_id": image_id,
                "score": round(float(score), 5),
            }
        )
    return found


def _jittered(rng, box, spread):
    size = box[2:] * np.exp(rng.normal(0.01, spread, 2))
    center = box[:2] + box[2:] / 2 + rng.normal(0, spread, 2) * box[2:]
    return np.concatenate((center - size / 2, size))


def mpii_annotations(scene: Scene, image: str) -> list[dict]:
    """MPII persons of a scene: the json's keys, and `head_box` (4,) for gt_valid.mat; positions
    count from 1.
    """
    found = []
    for figure in scene.figures:
        shown = figure.mpii[:, 2] > 0
        if shown.sum() < _MIN_MPII_JOINTS:
            continue
        box = figure.person.reach_box()
        size = float((box[2:] - box[:2]).max())
        center = (box[:2] + box[2:]) / 2 + 1 - (0, _OBJPOS_LIFT * size)
        places = np.where(shown[:, None], np.round(figure.mpii[:, :2] + 1, 2), -1.0)
        found.append(
            {
                "joints_vis": shown.astype(int).tolist(),
                "joints": places.tolist(),
                "image": image,
                "scale": round(size / 200, 6),
                "center": np.round(center, 2).tolist(),
                "head_box": np.round(figure.person.head_box() + 1, 2).tolist(),
            }
        )
    return found


def mpii_arrays(persons: list[dict]) -> dict:
    """The arrays of gt_valid.mat for N persons.

    dataset_joints (1, 16) names, jnt_missing (16, N) uint8, pos_gt_src (16, 2, N) and headboxes_src
    (2, 2, N) float64, both in pixels from 1; headboxes_src[0] is the upper left corner and
    headboxes_src[1] the lower right one.
    """
    number = len(persons)
    joints = np.array([person["joints"] for person in persons], float).reshape(
        number, MPII.num_keypoints, 2
    )
    shown = np.array([person["joints_vis"] for person in persons], bool).reshape(
        number, MPII.num_keypoints
    )
    joints[~shown] = 0
    names = np.empty((1, MPII.num_keypoints), object)
    names[0] = MPII_MAT_NAMES
    heads = np.array([person["head_box"] for person in persons], float).reshape(number, 2, 2)
    return {
        "dataset_joints": names,
        "jnt_missing": np.ascontiguousarray(~shown.T).astype(np.uint8),
        "pos_gt_src": joints.transpose(1, 2, 0),
        "headboxes_src": heads.transpose(1, 2, 0),
    }
