"""Box and OKS non-maximum suppression in NumPy: what the compiled kernels of _nms.pyx must equal
index for index.

The rules are those of the HRNet family (lib/nms/nms.py of
leoxiaobin/deep-high-resolution-net.pytorch). Inputs are checked and sorted in poise.evaluation.nms;
the functions here take checked arrays. Letters: N persons or boxes, J joints, M images, K kept.
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
    """Object keypoint similarity of one person with N others, in [0, 1].

    The mean over joints of exp(-d^2 / (2 (2 sigma)^2 area)), where area is the mean of the two
    persons' areas (predictions have no ground truth, whose area COCO's own OKS takes). There is one
    implementation for compiled and uncompiled installations, so the figure does not depend on a
    compiler.

    keypoints_a: (J, 2 or 3) x, y and perhaps score, pixels. keypoints_b: (N, J, 2 or 3). area_a,
    area_b: square pixels, () and (N,). sigmas: (J,) OKS constants. in_vis_thre: count only the
    joints whose scores exceed it in both persons; 0 where no joint is left. Returns (N,) float64.
    Raises ValueError on shapes that do not fit.
    """
    a, b = np.asarray(keypoints_a, np.float64), np.asarray(keypoints_b, np.float64)
    area_b, sigmas = np.asarray(area_b, np.float64), np.asarray(sigmas, np.float64)
    joints = len(sigmas) if sigmas.ndim == 1 else -1
    if (
        a.ndim != 2
        or b.ndim != 3
        or a.shape[0] != joints
        or b.shape[1] != joints
        or area_b.shape != b.shape[:1]
        or not {a.shape[1], b.shape[2]} <= {2, 3}
    ):
        raise ValueError(
            "oks_iou needs keypoints (J, 2 or 3) and (N, J, 2 or 3), N areas and J sigmas; got "
            f"{a.shape}, {b.shape}, {area_b.shape}, {sigmas.shape}"
        )
    d2 = (b[:, :, 0] - a[:, 0]) ** 2 + (b[:, :, 1] - a[:, 1]) ** 2
    terms = keypoint_similarities(d2, sigmas, (np.float64(area_a) + area_b) / 2)
    if in_vis_thre is None:
        return terms.sum(axis=1) / joints
    if a.shape[1] != 3 or b.shape[2] != 3:
        raise ValueError(f"in_vis_thre needs joint scores (..., 3); got {a.shape} and {b.shape}")
    # The reference writes `list(a) and list(b)`, which is list(b): it looks at one person only. It
    # never mattered there, because no caller passes in_vis_thre; here both persons count, as was
    # meant
    counted = (a[:, 2] > in_vis_thre) & (b[:, :, 2] > in_vis_thre)
    return np.where(counted, terms, 0.0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)


def box_nms(boxes: np.ndarray, order: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy NMS of N boxes in the given order.

    boxes: (N, 4) float64 x1, y1, x2, y2. order: (N,) box indices, best first. Returns (K,) int64,
    best first.
    """
    x1, y1, x2, y2 = boxes.T
    # a box of py-faster-rcnn includes its last pixel, hence + 1
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    kept = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        w = np.maximum(0.0, np.minimum(x2[best], x2[order]) - np.maximum(x1[best], x1[order]) + 1)
        h = np.maximum(0.0, np.minimum(y2[best], y2[order]) - np.maximum(y1[best], y1[order]) + 1)
        inter = w * h
        # two boxes of no area: 0 / 0, not kept
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = inter / (areas[best] + areas[order] - inter)
        order = order[overlap <= threshold]
    return np.array(kept, dtype=np.int64)


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

    keypoints: (N, J, 2 or 3). areas: (N,) float64. order: (N,) int64 person indices, image by image
    and best first; those of image m are order[offsets[m]:offsets[m + 1]]. Returns (K,) int64 in the
    same order.
    """
    kept = []
    for start, stop in zip(offsets[:-1], offsets[1:]):
        rest = order[start:stop]
        while rest.size:
            best, rest = rest[0], rest[1:]
            kept.append(best)
            oks = oks_iou(
                keypoints[best], keypoints[rest], areas[best], areas[rest], sigmas, in_vis_thre
            )
            rest = rest[oks <= threshold]
    return np.array(kept, dtype=np.int64)


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
    """Soft OKS-NMS of one image, whose persons are `order` (n,), best first; other arguments as
    above. Returns (K,).
    """
    kept: list[int] = []
    scores = scores[order]
    while order.size and len(kept) < max_dets:
        best, order = order[0], order[1:]
        kept.append(best)
        oks = oks_iou(
            keypoints[best], keypoints[order], areas[best], areas[order], sigmas, in_vis_thre
        )
        scores = scores[1:] * np.exp(-(oks**2) / threshold)
        again = descending(scores)
        order, scores = order[again], scores[again]
    return np.array(kept, dtype=np.int64)


def descending(scores: np.ndarray) -> np.ndarray:
    """(N,) order of `scores`, best first.

    The tie rule of the published numbers: the default, unstable argsort, read backwards. Many
    persons of a detector file score exactly 0 after rescoring, and which of two is kept moved a
    recall by 1.6e-4; a stable sort is no substitute. NumPy's order of ties depends on its version
    and on the processor (AVX-512 has its own sort).
    """
    return scores.argsort()[::-1]
