"""Test track ids over the frames of a video."""

import numpy as np
import pytest
from poise.inference.tracking import Tracker
from poise.structures.boxes import pairwise_iou


def box(x, y, width=40, height=80):
    return [x, y, x + width, y + height]


def test_pairwise_iou_equals_hand_figures():
    a = [[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 20, 30]]
    b = [[0, 0, 10, 10], [0, 0, 10, 5], [10, 0, 20, 10]]
    assert pairwise_iou(a, b) == pytest.approx(
        np.array([[1, 0.5, 0], [25 / 175, 0, 25 / 175], [0, 0, 0]])
    )
    assert pairwise_iou(np.empty((0, 4)), b).shape == (0, 3) and pairwise_iou(a, []).shape == (3, 0)
    assert pairwise_iou([[3, 3, 3, 3]], [[3, 3, 3, 3]]).tolist() == [[0]], (
        "a box without area overlaps with nothing"
    )


def test_tracker_ids_survive_reordering():
    tracker, random = Tracker(), np.random.default_rng(0)
    for frame in range(30):
        boxes = np.array(
            [box(100 + 4 * frame, 50), box(400 - 4 * frame, 60), box(200, 300 - 3 * frame)], float
        )
        order = random.permutation(3)
        numbers = tracker.update(boxes[order], frame / 30)
        if frame == 0:
            assert numbers.dtype == np.int64 and numbers.tolist() == [1, 2, 3]
            first = dict(zip(order.tolist(), numbers.tolist()))
        assert [first[person] for person in order.tolist()] == numbers.tolist()


def test_tracker_matching_is_global():
    """Box 0 overlaps most with track 1, but then box 1 would have none: 0.43 + 0.25 is more than
    0.67 + 0.
    """
    tracker, before, now = (
        Tracker(min_iou=0.2),
        [[0, 0, 100, 10], [60, 0, 160, 10]],
        [[20, 0, 120, 10], [-60, 0, 40, 10]],
    )
    assert pairwise_iou(now, before) == pytest.approx(
        np.array([[80 / 120, 60 / 140], [40 / 160, 0]])
    )
    assert tracker.update(before, 0.0).tolist() == [1, 2]
    assert tracker.update(now, 0.1).tolist() == [2, 1]


def test_tracker_pair_below_min_iou_is_ignored():
    tracker = Tracker(min_iou=0.3)
    tracker.update([[0, 0, 100, 10], [200, 0, 300, 10]], 0.0)
    # box 0 overlaps with track 1 by 0.33, box 1 with track 1 by 0.6 and box 0 with nothing else
    now = [[150, 0, 250, 10], [225, 0, 325, 10]]
    assert tracker.update(now, 0.1).tolist() == [3, 2]


def test_tracker_expired_track_gets_a_new_id():
    tracker = Tracker(patience=1.0)
    assert tracker.update([box(0, 0), box(300, 0)], 0.0).tolist() == [1, 2]
    assert tracker.update([box(300, 0)], 0.5).tolist() == [2]
    assert tracker.update([box(0, 0), box(300, 0)], 1.0).tolist() == [
        1,
        2,
    ], "a second is not too long"
    assert tracker.update([], 1.5).tolist() == []
    assert tracker.update([box(300, 0), box(0, 0)], 2.1).tolist() == [3, 4]


def test_tracker_jump_gets_an_unused_id():
    tracker = Tracker()
    seen = [tracker.update([box(100 * frame, 0)], frame / 30).item() for frame in range(5)]
    assert seen == [1, 2, 3, 4, 5]
    assert tracker.update(np.empty((0, 4)), 1.0).shape == (0,)
