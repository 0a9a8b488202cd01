"""Test NMS: compiled kernels, NumPy and plain loops keep the same persons."""

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from poise.config.dataset_yaml import COCO
from poise.evaluation import nms
from support.paths import GOLDEN

SIGMAS = np.array(COCO.sigmas)

needs_compiled = pytest.mark.skipif(not nms.compiled, reason="poise.evaluation.nms is not compiled")


def twins(monkeypatch, call):
    """Return the results of the kernels in use and of the NumPy implementation."""
    first = call()
    with monkeypatch.context() as patch:
        patch.setattr(nms, "_compiled", None)
        patch.setattr(nms, "_warned", True)
        return first, call()


def plain_oks(a, b, area_a, area_b, sigmas, in_vis_thre=None):
    """OKS by its formula, one keypoint at a time."""
    terms = []
    for (xa, ya, va), (xb, yb, vb), sigma in zip(a.tolist(), b.tolist(), sigmas.tolist()):
        if in_vis_thre is None or (va > in_vis_thre and vb > in_vis_thre):
            area = (area_a + area_b) / 2 + 2**-52
            terms.append(math.exp(-((xa - xb) ** 2 + (ya - yb) ** 2) / (2 * sigma) ** 2 / area / 2))
    return sum(terms) / len(terms) if terms else 0.0


def plain_oks_nms(keypoints, scores, areas, threshold, sigmas, in_vis_thre=None):
    kept = []
    for i in scores.argsort()[::-1].tolist():
        oks = [
            plain_oks(keypoints[k], keypoints[i], areas[k], areas[i], sigmas, in_vis_thre)
            for k in kept
        ]
        if all(value <= threshold for value in oks):
            kept.append(i)
    return kept


def plain_soft_oks_nms(keypoints, scores, areas, threshold, sigmas, in_vis_thre=None, max_dets=20):
    kept, left = [], scores.argsort()[::-1].tolist()
    scores = scores[left]
    while left and len(kept) < max_dets:
        best = left.pop(0)
        kept.append(best)
        oks = [
            plain_oks(keypoints[best], keypoints[i], areas[best], areas[i], sigmas, in_vis_thre)
            for i in left
        ]
        scores = np.array(
            [s * math.exp(-o * o / threshold) for s, o in zip(scores[1:].tolist(), oks)]
        )
        again = scores.argsort()[::-1]
        scores, left = scores[again], [left[k] for k in again]
    return kept


def crowd(rng, persons, joints, ties):
    """Return persons near a few poses with OKS from 0 to 1; `ties` adds equal scores and poses."""
    poses = rng.uniform(0, 300, (max(1, persons // 4), joints, 2))
    who = rng.integers(0, len(poses), persons)
    xy = poses[who] + rng.normal(0, 1, (persons, joints, 2)) * rng.uniform(0, 12, (persons, 1, 1))
    keypoints = np.concatenate([xy, rng.uniform(0, 1, (persons, joints, 1))], axis=2)
    areas, scores = rng.uniform(500, 20000, persons), rng.uniform(0, 1, persons)
    if ties:
        scores = rng.choice([0.0, 0.0, 0.25, 0.5, 1.0], persons)
        same = rng.integers(0, persons, persons // 3)
        keypoints[: len(same)], areas[: len(same)] = keypoints[same], areas[same]
        areas[rng.integers(0, persons, 2)] = 0
    return keypoints, scores, areas


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("joints", [1, 2, 17, 133])
@pytest.mark.parametrize("vis", [None, 0.4, 2.0])
def test_oks_nms_equals_numpy_and_plain_loops(monkeypatch, joints, ties, vis):
    rng = np.random.default_rng(joints)
    sigmas = SIGMAS if joints == 17 else rng.uniform(0.02, 0.1, joints)
    thinned = 0
    for persons in (1, 2, 7, 40):
        keypoints, scores, areas = crowd(rng, persons, joints, ties)
        for threshold in (0.05, 0.5, 0.9, 1.0):
            arguments = keypoints, scores, areas, threshold, sigmas, vis
            compiled, twin = twins(monkeypatch, lambda: nms.oks_nms(*arguments))
            assert compiled.dtype == twin.dtype == np.int64
            assert compiled.tolist() == twin.tolist() == plain_oks_nms(*arguments)
            thinned += persons - len(twin)
            compiled, twin = twins(monkeypatch, lambda: nms.soft_oks_nms(*arguments))
            assert compiled.tolist() == twin.tolist() == plain_soft_oks_nms(*arguments)
            assert len(twin) == min(persons, 20)
    # in the cases above something was suppressed, except where no joint is ever counted
    assert (thinned > 0) == (vis != 2.0)


def test_oks_nms_many_images_equals_one_by_one(monkeypatch):
    rng = np.random.default_rng(0)
    counts = [3, 0, 1, 25, 0]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    keypoints, scores, areas = crowd(rng, sum(counts), 17, ties=True)
    for single, batched in (
        (nms.oks_nms, nms.oks_nms_by_image),
        (nms.soft_oks_nms, nms.soft_oks_nms_by_image),
    ):
        want = []
        for start, stop in zip(offsets[:-1], offsets[1:]):
            rows = slice(start, stop)
            want += (
                start + single(keypoints[rows], scores[rows], areas[rows], 0.6, SIGMAS)
            ).tolist()
        for got in twins(
            monkeypatch, lambda: batched(keypoints, scores, areas, offsets, 0.6, SIGMAS)
        ):
            assert got.tolist() == want


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_oks_nms_recorded_predictions_equals_hrnet(monkeypatch, kind):
    """Persons that HRNet's rule keeps of recorded predictions (OKS threshold 0.9), per image, best
    first.

    The first 20 images of ../shared/conformance/evaluate.npz; kept_hard and kept_soft were made by
    the reference's one-pair-at-a-time loop, which keeps the recorded 824 and 841 of all 975
    persons. No two scores of an image tie.
    """
    golden = np.load(GOLDEN / "evaluate.npz")
    change = np.flatnonzero(np.diff(golden["image_id"])) + 1
    offsets = np.concatenate([[0], change, [len(golden["image_id"])]])
    call = nms.soft_oks_nms_by_image if kind == "soft" else nms.oks_nms_by_image
    arguments = golden["preds"], golden["scores"], golden["areas"], offsets, 0.9, SIGMAS
    for kept in twins(monkeypatch, lambda: call(*arguments)):
        assert kept.tolist() == golden[f"kept_{kind}"].tolist()


def test_nms_float32_strided_and_read_only_input_is_accepted(monkeypatch):
    keypoints, scores, areas = crowd(np.random.default_rng(3), 30, 17, ties=False)
    keypoints = keypoints.astype(np.float32)
    wide = np.repeat(keypoints, 2, axis=0)[::2]
    for array in (wide, scores, areas):
        array.setflags(write=False)
    want = plain_oks_nms(keypoints.astype(np.float64), scores, areas, 0.5, SIGMAS)
    for got in twins(monkeypatch, lambda: nms.oks_nms(wide, scores, areas, 0.5, SIGMAS)):
        assert got.tolist() == want
    for got in twins(monkeypatch, lambda: nms.oks_nms(wide[:, :, :2], scores, areas, 0.5, SIGMAS)):
        assert got.tolist() == want


def test_oks_equals_hand_figures():
    sigmas = np.array([0.1, 0.05])
    a = np.array([[0, 0, 0.9], [10, 0, 0.1]])
    # joint 0 is off by 2, joint 1 by nothing; mean area 100, so e = 4 / 0.04 / 100 / 2 = 0.5
    b = np.array([[[0, 2, 0.9], [10, 0, 0.9]]])
    assert nms.oks_iou(a, b, 50, [150], sigmas) == pytest.approx([(math.exp(-0.5) + 1) / 2])
    # joint 1 has a low score in the first person only, where the reference does not look
    assert nms.oks_iou(a, b, 50, [150], sigmas, in_vis_thre=0.2) == pytest.approx([math.exp(-0.5)])
    assert nms.oks_iou(a, b, 50, [150], sigmas, in_vis_thre=0.95).tolist() == [0]
    assert nms.oks_iou(a, np.zeros((0, 2, 3)), 50, [], sigmas).shape == (0,)


def test_oks_nms_oks_at_threshold_is_kept(monkeypatch):
    # joint 0 agrees, joint 1 is far away: an OKS of exactly one half
    keypoints = np.array([[[0, 0], [0, 0]], [[0, 0], [1e4, 0]]], float)
    for threshold, want in ((0.5, [0, 1]), (np.nextafter(0.5, 0), [0])):
        arguments = (
            keypoints,
            np.array([0.9, 0.8]),
            np.array([100.0, 100.0]),
            threshold,
            np.array([0.1, 0.1]),
        )
        for got in twins(monkeypatch, lambda: nms.oks_nms(*arguments)):
            assert got.tolist() == want


def test_box_nms_equals_hand_figures(monkeypatch):
    # 10 x 10 pixels each, the last included; 0 and 1 share 5 x 10 of 150: overlap exactly 1 / 3
    boxes = np.array([[0, 0, 9, 9], [5, 0, 14, 9], [100, 0, 109, 9], [0, 0, 9, 9]])
    scores = np.array([0.5, 0.9, 0.1, 0.4])
    for threshold, want in ((1 / 3, [1, 0, 2]), (0.33, [1, 2]), (1.0, [1, 0, 3, 2])):
        for got in twins(monkeypatch, lambda: nms.box_nms(boxes, scores, threshold)):
            assert got.tolist() == want


@pytest.mark.parametrize("whole", [False, True])
def test_box_nms_equals_numpy_and_plain_loops(monkeypatch, whole):
    rng = np.random.default_rng(4)
    for n in (1, 3, 60):
        corner = rng.uniform(0, 40, (n, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(-3, 30, (n, 2))], axis=1)
        scores = rng.uniform(0, 1, n)
        if whole:  # whole pixels and few scores: equal overlaps, equal scores, boxes of no area
            boxes, scores = boxes.round(), scores.round(1)
        for threshold in (0.0, 0.25, 0.5):
            want = []
            for i in scores.argsort()[::-1].tolist():
                overlaps = []
                for k in want:
                    (ax, ay, ar, ab), (bx, by, br, bb) = boxes[k].tolist(), boxes[i].tolist()
                    inter = max(0.0, min(ar, br) - max(ax, bx) + 1) * max(
                        0.0, min(ab, bb) - max(ay, by) + 1
                    )
                    union = (ar - ax + 1) * (ab - ay + 1) + (br - bx + 1) * (bb - by + 1) - inter
                    overlaps.append(inter / union if union else math.nan)
                if all(overlap <= threshold for overlap in overlaps):
                    want.append(i)
            for got in twins(monkeypatch, lambda: nms.box_nms(boxes, scores, threshold)):
                assert got.tolist() == want


def test_nms_empty_input_returns_empty(monkeypatch):
    empty = np.zeros((0, 17, 3))
    calls = (
        lambda: nms.box_nms(np.zeros((0, 4)), [], 0.5),
        lambda: nms.oks_nms(empty, [], [], 0.9, SIGMAS),
        lambda: nms.soft_oks_nms([], [], [], 0.9, SIGMAS),
        lambda: nms.oks_nms_by_image(empty, [], [], [0, 0, 0], 0.9, SIGMAS),
        lambda: nms.soft_oks_nms_by_image(empty, [], [], [0], 0.9, SIGMAS),
    )
    for call in calls:
        for kept in twins(monkeypatch, call):
            assert kept.shape == (0,) and kept.dtype == np.int64


def test_nms_invalid_input_raises():
    keypoints, scores, areas = crowd(np.random.default_rng(0), 4, 17, ties=False)
    with pytest.raises(ValueError, match=r"\(4, 17, 3\), \(3,\)"):
        nms.oks_nms(keypoints, scores[:3], areas, 0.9, SIGMAS)
    with pytest.raises(ValueError, match=r"\(14,\)"):
        nms.soft_oks_nms(keypoints, scores, areas, 0.9, SIGMAS[:14])
    with pytest.raises(ValueError, match="keypoints"):
        nms.oks_nms(keypoints[:, :, :2], scores, areas, 0.9, SIGMAS, in_vis_thre=0.2)
    with pytest.raises(ValueError, match="keypoints have NaN"):
        nms.oks_nms(np.where(keypoints > 250, np.nan, keypoints), scores, areas, 0.9, SIGMAS)
    with pytest.raises(ValueError, match="negative; got -1"):
        nms.oks_nms(keypoints, scores, [1, 1, -1, 1], 0.9, SIGMAS)
    with pytest.raises(ValueError, match="increase from 0 to N = 4"):
        nms.oks_nms_by_image(keypoints, scores, areas, [0, 3, 2, 4], 0.9, SIGMAS)
    with pytest.raises(ValueError, match="above 0; got 0"):
        nms.soft_oks_nms(keypoints, scores, areas, 0, SIGMAS)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        nms.box_nms(np.zeros((4, 3)), scores, 0.5)
    with pytest.raises(ValueError, match=r"\(1, 17, 4\)"):
        nms.oks_iou(np.zeros((17, 3)), np.zeros((1, 17, 4)), 1, [1], SIGMAS)


def test_nms_not_built_warns_once_when_used(tmp_path):
    # a copy of the package without anything compiled, in a fresh interpreter
    source, copy = Path(nms.__file__).parents[1], tmp_path / "poise/evaluation"
    (copy / "nms").mkdir(parents=True)
    for empty in ("__init__.py", "evaluation/__init__.py"):
        (tmp_path / "poise" / empty).touch()
    for name in ("nms/__init__.py", "nms/numpy_nms.py", "oks.py"):
        (copy / name).write_text((source / name).read_text())
    program = (
        "import sys, poise.evaluation.nms as n; assert not n.compiled; print('imported',"
        " file=sys.stderr)\nfor _ in range(3): assert n.box_nms([[0, 0, 5, 5], [0, 0, 5, 5]], [0.1,"
        " 0.2], 0.5).tolist() == [1]"
    )
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    before, after = run.stderr.split("imported")
    assert before == "" and after.count("poise.evaluation.nms is not compiled") == 1


@needs_compiled
def test_nms_compiled_kernels_are_used(monkeypatch, caplog):
    """Without this, the comparisons above could compare NumPy with itself."""
    keypoints, scores, areas = crowd(np.random.default_rng(5), 20, 17, ties=False)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        for name in ("box_nms", "oks_nms_by_image", "soft_oks_nms"):
            patch.setattr(nms.numpy_nms, name, None)
        assert len(nms.oks_nms(keypoints, scores, areas, 0.5, SIGMAS)) < 20
        assert len(nms.soft_oks_nms(keypoints, scores, areas, 0.5, SIGMAS)) == 20
        assert len(nms.box_nms(np.zeros((2, 4)), [1, 2], 0.5)) == 1
    assert not caplog.records
