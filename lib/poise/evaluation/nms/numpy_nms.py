"""NMS of boxes and persons in NumPy; the compiled kernels of _nms.pyx return the same indices.

Source: HRNet, lib/nms/nms.py of leoxiaobin/deep-high-resolution-net.pytorch. Inputs are checked and
sorted in poise.evaluation.nms. Letters: as there.
"""

from __future__ import annotations

import numpy as np

from poise.evaluation.oks import keypoint_similarities


def oks_iou(
    keypoints_a: np.ndarray,
    keypoints_b: np.ndarray,
    area_a: float,
    area_b: np.ndarray,
    sigmas: np.ndarray,
    in_vis_thre: float | None = None,
) -> np.ndarray:
    """Return the OKS of one person with N others, in [0, 1].

    The mean over keypoints of exp(-d^2 / (2 (2 sigma)^2 area)) with the mean area of both persons
    (COCO's OKS uses that of the ground truth, which predictions do not have). Compiled and other
    installations use this implementation, so the value does not depend on a compiler.

    Args:
        keypoints_a: (K, 2 or 3) x, y in pixels, and score.
        keypoints_b: (N, K, 2 or 3).
        area_a: square pixels.
        area_b: (N,) square pixels.
        sigmas: (K,) OKS constants.
        in_vis_thre: use only keypoints with a higher score in both persons; 0 if there is none.

    Returns: (N,) float64.

    Raises ValueError for other shapes.
    """
    a = np.asarray(keypoints_a, np.float64)
    b = np.asarray(keypoints_b, np.float64)
    area_b = np.asarray(area_b, np.float64)
    sigmas = np.asarray(sigmas, np.float64)
    num_keypoints = len(sigmas) if sigmas.ndim == 1 else -1
    if (
        a.ndim != 2
        or b.ndim != 3
        or a.shape[0] != num_keypoints
        or b.shape[1] != num_keypoints
        or area_b.shape != b.shape[:1]
        or not {a.shape[1], b.shape[2]} <= {2, 3}
    ):
        raise ValueError(
            "oks_iou: expected keypoints (K, 2 or 3) and (N, K, 2 or 3), N areas, K sigmas; got "
            f"{a.shape}, {b.shape}, {area_b.shape}, {sigmas.shape}"
        )
    d2 = (b[:, :, 0] - a[:, 0]) ** 2 + (b[:, :, 1] - a[:, 1]) ** 2
    terms = keypoint_similarities(d2, sigmas, (np.float64(area_a) + area_b) / 2)
    if in_vis_thre is None:
        return terms.sum(axis=1) / num_keypoints
    if a.shape[1] != 3 or b.shape[2] != 3:
        raise ValueError(f"in_vis_thre needs keypoint scores (..., 3); got {a.shape} and {b.shape}")
    # The reference writes `list(a) and list(b)`, which is list(b): it checks one person only. No
    # caller there passes in_vis_thre; here both persons are checked, as intended.
    is_visible = (a[:, 2] > in_vis_thre) & (b[:, :, 2] > in_vis_thre)
    return np.where(is_visible, terms, 0.0).sum(axis=1) / np.maximum(is_visible.sum(axis=1), 1)


def box_nms(boxes: np.ndarray, order: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy NMS of boxes (N, 4) in the order (N,), best first; see poise.evaluation.nms."""
    x1, y1, x2, y2 = boxes.T
    # boxes of py-faster-rcnn include the last pixel
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    keep = []
    while order.size:
        best, order = order[0], order[1:]
        keep.append(best)
        w = np.maximum(0.0, np.minimum(x2[best], x2[order]) - np.maximum(x1[best], x1[order]) + 1)
        h = np.maximum(0.0, np.minimum(y2[best], y2[order]) - np.maximum(y1[best], y1[order]) + 1)
        inter = w * h
        # two boxes without area: 0 / 0, removed
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = inter / (areas[best] + areas[order] - inter)
        order = order[overlap <= threshold]
    return np.array(keep, dtype=np.int64)


def oks_nms_by_image(
    keypoints: np.ndarray,
    areas: np.ndarray,
    order: np.ndarray,
    offsets: np.ndarray,
    threshold: float,
    sigmas: np.ndarray,
    in_vis_thre: float | None,
) -> np.ndarray:
    """Greedy OKS-NMS of M images.

    Args:
        keypoints: (N, K, 2 or 3).
        areas: (N,) float64.
        order: (N,) int64 person indices by image, best first.
        offsets: (M + 1,); the persons of image m are order[offsets[m]:offsets[m + 1]].
        threshold, sigmas, in_vis_thre: see poise.evaluation.nms.

    Returns: (R,) int64 in the same order.
    """
    keep = []
    for start, stop in zip(offsets[:-1], offsets[1:]):
        rest = order[start:stop]
        while rest.size:
            best, rest = rest[0], rest[1:]
            keep.append(best)
            oks = oks_iou(
                keypoints[best], keypoints[rest], areas[best], areas[rest], sigmas, in_vis_thre
            )
            rest = rest[oks <= threshold]
    return np.array(keep, dtype=np.int64)


def soft_oks_nms(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    order: np.ndarray,
    threshold: float,
    sigmas: np.ndarray,
    in_vis_thre: float | None,
    max_dets: int,
) -> np.ndarray:
    """Soft OKS-NMS of one image with persons `order` (n,), best first; see oks_nms_by_image."""
    keep: list[int] = []
    scores = scores[order]
    while order.size and len(keep) < max_dets:
        best, order = order[0], order[1:]
        keep.append(best)
        oks = oks_iou(
            keypoints[best], keypoints[order], areas[best], areas[order], sigmas, in_vis_thre
        )
        scores = scores[1:] * np.exp(-(oks**2) / threshold)
        ranking = descending(scores)
        order, scores = order[ranking], scores[ranking]
    return np.array(keep, dtype=np.int64)


def descending(scores: np.ndarray) -> np.ndarray:
    """Return the order (N,) of scores, best first.

    Equal scores are ordered as for the published numbers: by NumPy's default, unstable argsort,
    reversed. Many persons score exactly 0 after rescoring; with a stable sort a recall differed by
    1.6e-4. NumPy's order depends on its version and on the processor (AVX-512 has its own sort).
    """
    return scores.argsort()[::-1]
