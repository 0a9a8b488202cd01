"""Test the One-Euro filter against the paper and on keypoints at rest and in motion."""

import math

import numpy as np
import pytest
from poise.inference.smoothing import BETA, MIN_CUTOFF, OneEuroFilter, PoseSmoother


def as_in_the_paper(values, times, min_cutoff, beta, speed_cutoff=1.0):
    """Algorithm 1 of the paper, for one number, written out."""

    def alpha(rate, cutoff):
        tau = 1.0 / (2 * math.pi * cutoff)
        return 1.0 / (1.0 + tau * rate)

    out, filtered, slope, last = [], None, 0.0, None
    for value, time in zip(values, times):
        if filtered is None:
            filtered = value
        else:
            rate = 1.0 / (time - last)
            dx = (value - filtered) * rate
            slope = alpha(rate, speed_cutoff) * dx + (1 - alpha(rate, speed_cutoff)) * slope
            share = alpha(rate, min_cutoff + beta * abs(slope))
            filtered = share * value + (1 - share) * filtered
        last = time
        out.append(filtered)
    return out


@pytest.mark.parametrize("beta", [0.0, 0.007, 5.0])
def test_one_euro_filter_equals_paper(beta):
    random = np.random.default_rng(0)
    times = np.cumsum(random.uniform(0.01, 0.08, 200))  # frames do not come evenly
    values = np.sin(times * 3) * 20 + random.normal(0, 1, 200)
    one = OneEuroFilter(1.2, beta)
    found = [one(np.array([value]), time).item() for value, time in zip(values, times)]
    assert found == pytest.approx(as_in_the_paper(values, times, 1.2, beta), abs=1e-10)


def test_one_euro_filter_keypoints_are_independent():
    random = np.random.default_rng(1)
    values = random.normal(0, 3, (50, 17, 2)).cumsum(0)
    all_at_once, alone, larger = OneEuroFilter(), OneEuroFilter(), OneEuroFilter()
    for frame, points in enumerate(values):
        together = all_at_once(points, frame / 30, unit=50)
        assert together[3] == pytest.approx(alone(points[3], frame / 30, unit=50))
        assert larger(points * 4, frame / 30, unit=200) == pytest.approx(together * 4), (
            "a person four times as large, filtered the same"
        )


def test_one_euro_filter_is_rotation_invariant():
    """The coordinates share one speed, so a turned image gives the turned joints."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    random = np.random.default_rng(2)
    straight, turned = OneEuroFilter(), OneEuroFilter()
    for frame in range(40):
        point = np.array([frame * 5.0, 7.0]) + random.normal(0, 1, 2)
        assert turned(point @ turn.T, frame / 30, 80) == pytest.approx(
            straight(point, frame / 30, 80) @ turn.T
        )


def test_one_euro_filter_first_value_and_equal_times_pass_through():
    one = OneEuroFilter()
    given = np.array([1.0, 2.0])
    first = one(given, 5.0)
    assert first.tolist() == [1, 2] and first is not given
    assert one(np.array([100.0, 2.0]), 5.0).tolist() == [1, 2] and one(
        np.array([100.0, 2.0]), 4.0
    ).tolist() == [1, 2]
    later = one(np.array([100.0, 2.0]), 5.1)
    assert 1 < later[0] < 100 and later[1] == 2
    first[:] = 7
    assert one(np.array([100.0, 2.0]), 5.1)[1] == 2, "what was handed out is not the filter's own"


def walk(speed, jitter, frames=150, fps=30, size=100.0, seed=0):
    """(true, seen) (frames, 1, 2): a joint that moves at `speed` body sizes a second, seen with
    `jitter` body sizes of noise.
    """
    time = np.arange(frames) / fps
    true = np.stack([200 + speed * size * time, np.full(frames, 300.0)], axis=1)[:, None]
    return true, true + np.random.default_rng(seed).normal(0, jitter * size, true.shape)


def filtered(seen, fps=30, size=100.0):
    smoother, boxes = PoseSmoother(), np.array([[0, 0, size, size]])
    return np.stack(
        [
            smoother.update(np.array([1]), points[None], boxes, frame / fps)[0]
            for frame, points in enumerate(seen)
        ]
    )


def test_one_euro_filter_defaults_equal_documented_figures():
    """The figures that docs/demo.md names for the default parameters."""
    assert (MIN_CUTOFF, BETA) == (1.0, 5.0)
    true, seen = walk(0, 0.01)
    held = filtered(seen)[30:]
    assert held.std(axis=0).mean() < 0.45 * seen[30:].std(axis=0).mean(), (
        "of the tremor less than half is left"
    )
    for speed, lag in ((0.5, 0.016), (2.0, 0.025)):
        true, seen = walk(speed, 0)
        behind = (true - filtered(seen))[60:, 0, 0] / 100
        assert 0 < behind.mean() < lag, "body sizes"


def test_pose_smoother_tracks_are_independent():
    smoother, boxes = PoseSmoother(), np.array([[0, 0, 50, 80], [0, 0, 50, 80]], np.float32)
    alone = {1: PoseSmoother(), 2: PoseSmoother()}
    random = np.random.default_rng(3)
    for frame in range(20):
        points = random.normal(0, 5, (2, 17, 2)).astype(np.float32)
        tracks = np.array([1, 2] if frame % 2 else [2, 1])
        found = smoother.update(tracks, points, boxes, frame / 25)
        assert found.dtype == np.float32 and found.shape == (2, 17, 2)
        for person, track in enumerate(tracks.tolist()):
            assert np.array_equal(
                found[person],
                alone[track].update([track], points[person : person + 1], boxes[:1], frame / 25)[0],
            )
    assert smoother.update(np.empty(0, int), np.empty((0, 17, 2)), np.empty((0, 4)), 1.0).shape == (
        0,
        17,
        2,
    )


def test_pose_smoother_expired_track_restarts():
    smoother, box = PoseSmoother(patience=1.0), np.array([[0, 0, 50, 80]])
    smoother.update([1], np.zeros((1, 1, 2)), box, 0.0)
    assert smoother.update([1], np.full((1, 1, 2), 9.0), box, 0.9)[0, 0, 0] < 9
    assert smoother.update([1], np.full((1, 1, 2), 50.0), box, 2.0)[0, 0, 0] == 50


def test_pose_smoother_empty_box_is_finite():
    smoother, box = PoseSmoother(), np.array([[5.0, 5, 5, 5]])
    for frame in range(3):
        assert np.isfinite(
            smoother.update([1], np.full((1, 2, 2), float(frame)), box, frame / 30)
        ).all()
