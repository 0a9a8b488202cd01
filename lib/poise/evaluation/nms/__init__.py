"""Non-maximum suppression of boxes and persons, compiled or in NumPy with equal results.

Compile with `python setup.py build_ext --inplace` or `pip install -e . --no-build-isolation`. Rules
and the order of equal scores are those of HRNet. Letters: N persons or boxes, K keypoints, M
images, R remaining persons or boxes.
"""

from __future__ import annotations

import logging

import numpy as np

from poise.evaluation.nms import numpy_nms
from poise.evaluation.nms.numpy_nms import descending, oks_iou

try:
    from poise.evaluation.nms import _nms as _compiled  # type: ignore[attr-defined]
except ImportError:
    _compiled = None

#: whether the compiled kernels are used
compiled = _compiled is not None

__all__ = [
    "box_nms",
    "compiled",
    "oks_iou",
    "oks_nms",
    "oks_nms_by_image",
    "soft_oks_nms",
    "soft_oks_nms_by_image",
]

logger = logging.getLogger(__name__)
_warned = False


def box_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy NMS: remove boxes with an IoU above `threshold` with a better remaining box.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 pixels, inclusive: the area is (x2 - x1 + 1) (y2 - y1 + 1), as
            in py-faster-rcnn.
        scores: (N,).
        threshold: maximum IoU.

    Returns: (R,) int64 indices, best first.

    Raises ValueError for other shapes and values that are not finite.
    """
    boxes, scores = np.ascontiguousarray(boxes, np.float64), np.asarray(scores)
    if boxes.size == 0 and scores.size == 0:
        return np.zeros(0, np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"box_nms: expected boxes (N, 4) and N scores; got {boxes.shape} and {scores.shape}"
        )
    _check_finite(boxes=boxes, scores=scores)
    order = np.ascontiguousarray(descending(scores), np.int64)
    if not _use_compiled():
        return numpy_nms.box_nms(boxes, order, threshold)
    keep = np.empty(len(boxes), np.int64)
    count = _compiled.box_nms(boxes, order, threshold, np.empty((len(boxes), 5)), keep)
    return keep[:count].copy()


def oks_nms(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    threshold: float,
    sigmas: np.ndarray,
    in_vis_thre: float | None = None,
) -> np.ndarray:
    """Greedy NMS of the persons of one image: remove those with an OKS above `threshold`.

    Args:
        keypoints: (N, K, 2 or 3) x, y in pixels, and score.
        scores: (N,).
        areas: (N,) square pixels.
        threshold: maximum OKS with a better remaining person.
        sigmas: (K,) OKS constants.
        in_vis_thre: see oks_iou.

    Returns: (R,) int64 indices, best first; equal scores in the order of NumPy's argsort()[::-1].

    Raises ValueError for other shapes, values that are not finite, and negative areas.
    """
    return oks_nms_by_image(
        keypoints, scores, areas, (0, len(scores)), threshold, sigmas, in_vis_thre
    )


def soft_oks_nms(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    threshold: float,
    sigmas: np.ndarray,
    in_vis_thre: float | None = None,
    max_dets: int = 20,
) -> np.ndarray:
    """Soft NMS of the persons of one image (Bodla et al., 2017, with OKS instead of IoU).

    Each remaining person lowers the scores of the others by exp(-OKS^2 / threshold), and the best
    `max_dets` remain (COCO scores 20). The lowered scores only determine order and selection; as in
    the reference the caller keeps the original ones. Arguments, result and errors as oks_nms;
    `threshold` must be above 0.
    """
    return soft_oks_nms_by_image(
        keypoints, scores, areas, (0, len(scores)), threshold, sigmas, in_vis_thre, max_dets
    )


def oks_nms_by_image(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    offsets: np.ndarray | tuple[int, int],
    threshold: float,
    sigmas: np.ndarray,
    in_vis_thre: float | None = None,
) -> np.ndarray:
    """Apply oks_nms to M images in one call, which is faster for a dataset.

    offsets: (M + 1,) increasing integers from 0 to N; the persons of image m are rows
    offsets[m]:offsets[m + 1]. Other arguments as of oks_nms.

    Returns: (R,) int64 row indices by image, best first in each.
    """
    keypoints, scores, areas, sigmas, offsets = _checked(
        keypoints, scores, areas, sigmas, offsets, in_vis_thre
    )
    order = _order(scores, offsets)
    if not _use_compiled():
        return numpy_nms.oks_nms_by_image(
            keypoints, areas, order, offsets, threshold, sigmas, in_vis_thre
        )

    def exact(a: int, b: int) -> float:
        pair = keypoints[a], keypoints[b : b + 1], areas[a], areas[b : b + 1]
        return numpy_nms.oks_iou(*pair, sigmas, in_vis_thre)[0]

    keep = np.empty(len(keypoints), np.int64)
    count = _compiled.oks_nms_by_image(
        keypoints,
        areas,
        order,
        offsets,
        threshold,
        _weights(sigmas),
        in_vis_thre,
        keep,
        np.zeros(len(keypoints), np.uint8),
        exact,
    )
    return keep[:count].copy()


def soft_oks_nms_by_image(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    offsets: np.ndarray | tuple[int, int],
    threshold: float,
    sigmas: np.ndarray,
    in_vis_thre: float | None = None,
    max_dets: int = 20,
) -> np.ndarray:
    """Apply soft_oks_nms to M images in one call; offsets and result as of oks_nms_by_image."""
    if not threshold > 0:
        raise ValueError(f"soft_oks_nms: threshold must be above 0; got {threshold}")
    keypoints, scores, areas, sigmas, offsets = _checked(
        keypoints, scores, areas, sigmas, offsets, in_vis_thre
    )
    order = _order(scores, offsets)
    scores = scores.astype(np.float64)

    def exact(m: int) -> np.ndarray:
        rows = order[offsets[m] : offsets[m + 1]]
        return numpy_nms.soft_oks_nms(
            keypoints, scores, areas, rows, threshold, sigmas, in_vis_thre, max_dets
        )

    if not _use_compiled():
        return np.concatenate([np.zeros(0, np.int64), *map(exact, range(len(offsets) - 1))])
    keep = np.empty(len(keypoints), np.int64)
    largest = int(np.diff(offsets).max(initial=0))
    count = _compiled.soft_oks_nms_by_image(
        keypoints,
        scores,
        areas,
        order,
        offsets,
        threshold,
        _weights(sigmas),
        in_vis_thre,
        max_dets,
        keep,
        np.empty(largest),
        np.empty(largest, np.int64),
        np.empty(largest),
        np.empty(largest, np.int64),
        lambda view: descending(np.asarray(view)),
        exact,
    )
    return keep[:count].copy()


def _use_compiled() -> bool:
    """Return whether the kernels are compiled; warn once if they are not."""
    global _warned
    if _compiled is None and not _warned:
        _warned = True
        logger.warning(
            "poise.evaluation.nms is not compiled: using NumPy, which is slower with equal results;"
            " compile it with: python setup.py build_ext --inplace"
        )
    return _compiled is not None


def _checked(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    sigmas: np.ndarray,
    offsets: np.ndarray | tuple[int, int],
    in_vis_thre: float | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the arguments as arrays for the kernels. Raises ValueError if they do not fit."""
    keypoints, scores = np.asarray(keypoints), np.asarray(scores)
    areas = np.ascontiguousarray(areas, np.float64)
    sigmas = np.ascontiguousarray(sigmas, np.float64)
    if sigmas.ndim != 1 or not (sigmas > 0).all():
        raise ValueError(f"OKS-NMS: expected K sigmas above 0; got {sigmas}")
    if keypoints.size == 0 and len(keypoints) == 0:
        keypoints = np.zeros((0, len(sigmas), 3))
    if keypoints.dtype != np.float32:
        keypoints = keypoints.astype(np.float64, copy=False)
    keypoints = np.ascontiguousarray(keypoints)
    columns = (2, 3) if in_vis_thre is None else (3,)
    if (
        keypoints.ndim != 3
        or keypoints.shape[1] != len(sigmas)
        or keypoints.shape[2] not in columns
        or scores.shape != keypoints.shape[:1]
        or areas.shape != keypoints.shape[:1]
    ):
        raise ValueError(
            f"OKS-NMS: expected keypoints (N, K, {' or '.join(map(str, columns))}), N scores, N"
            f" areas and K sigmas; got {keypoints.shape}, {scores.shape}, {areas.shape},"
            f" {sigmas.shape}"
        )
    _check_finite(keypoints=keypoints, scores=scores, areas=areas, sigmas=sigmas)
    if (areas < 0).any():
        raise ValueError(f"areas must not be negative; got {areas.min()}")
    offsets = np.ascontiguousarray(offsets, np.int64)
    if (
        offsets.ndim != 1
        or len(offsets) == 0
        or offsets[0] != 0
        or offsets[-1] != len(keypoints)
        or (np.diff(offsets) < 0).any()
    ):
        raise ValueError(f"offsets must increase from 0 to N = {len(keypoints)}; got {offsets}")
    return keypoints, scores, areas, sigmas, offsets


def _check_finite(**arrays: np.ndarray) -> None:
    # comparisons with NaN are false, so it would silently remove persons
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} have NaN or infinite values")


def _order(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return row indices (N,) int64 by image, best first.

    Both implementations sort with NumPy, which determines the order of equal scores.
    """
    order = np.empty(len(scores), np.int64)
    bounds = offsets.tolist()
    for start, stop in zip(bounds[:-1], bounds[1:]):
        order[start:stop] = descending(scores[start:stop])
        order[start:stop] += start
    return order


def _weights(sigmas: np.ndarray) -> np.ndarray:
    return 1 / (2 * (2 * sigmas) ** 2)
