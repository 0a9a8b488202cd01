"""Test the error analysis: planted errors are found, counted and cost the right AP."""

import json

import numpy as np
import pytest
from poise import evaluation
from poise.config.dataset_yaml import COCO
from poise.evaluation import keypoint_ap
from poise.evaluation.analysis import errors as error_kinds
from poise.evaluation.analysis.matching import (
    BACKGROUND,
    DUPLICATE,
    FOUND,
    OUTRANKED,
    average_precision,
    load_ground_truth,
    load_results,
)
from support.paths import SHARED
from support.planted_errors import (
    AREA,
    FRONT,
    SIGMAS,
    UNIT,
    people,
    perfect,
    result_list,
    similarity_distance,
    truth_of,
    with_keypoints,
    with_more,
)

PAIRED = np.flatnonzero(COCO.flip_indices != np.arange(17))
KINDS = ("good", "jitter", "inversion", "swap", "miss")


def diagnosis(found):
    """Return (number of keypoints of each kind, costs, AP)."""
    errors = error_kinds.joint_errors(found)
    base = average_precision(found)
    counts = {kind: int(values.sum()) for kind, values in error_kinds.table(errors).items()}
    return counts, error_kinds.costs(found, errors, base), base


def moved(found, persons, joints, offset):
    """Move keypoints by `offset` (P, J, 2) or a broadcastable shape."""
    keypoints = found.keypoints.copy()
    keypoints[np.ix_(persons, joints)] += np.concatenate(
        [
            np.broadcast_to(offset, (len(persons), len(joints), 2)),
            np.zeros((len(persons), len(joints), 1)),
        ],
        axis=2,
    )
    return with_keypoints(found, keypoints)


@pytest.fixture(scope="module")
def truth():
    return truth_of(people())


def test_diagnosis_perfect_predictions_have_no_errors(truth):
    counts, costs, base = diagnosis(perfect(truth))
    assert counts == {"good": 40 * 17, "jitter": 0, "inversion": 0, "swap": 0, "miss": 0}
    assert base["AP"] == pytest.approx(1)
    assert all(cost["count"] == 0 and cost["AP"] == pytest.approx(0) for cost in costs.values())


@pytest.mark.parametrize(
    "similarity, kind",
    [(0.86, "good"), (0.84, "jitter"), (0.51, "jitter"), (0.46, "miss"), (0.05, "miss")],
)
def test_diagnosis_known_offset_is_jitter_or_miss(truth, similarity, kind):
    """All keypoints of 10 persons are moved down to a given similarity, away from others."""
    joints = np.array([0, 5, 6, 15, 16])
    offset = np.stack([np.zeros(17), similarity_distance(similarity)], axis=1)[joints]
    counts, costs, base = diagnosis(moved(perfect(truth), np.arange(10), joints, offset))
    assert counts == {
        **dict.fromkeys(KINDS, 0),
        "good": 40 * 17 - (0 if kind == "good" else 50),
        kind: 40 * 17 if kind == "good" else 50,
    }
    if kind == "good":
        assert costs["all joint errors"]["AP"] == 0
        return
    # 12 joints have similarity 1 and 5 the given one: the OKS of those persons, and of what they
    # become
    before, after = (
        (12 + 5 * value) / 17 for value in (similarity, {"jitter": 0.85, "miss": 0.5}[kind])
    )
    assert costs[kind]["count"] == 50
    assert costs[kind]["AP"] == pytest.approx(expected_ap(after) - expected_ap(before), abs=1e-9)
    assert costs[kind]["AP"] == costs["all joint errors"]["AP"] and base["AP"] == pytest.approx(
        expected_ap(before)
    )


def expected_ap(oks):
    """Return the AP of 40 detected persons; the 10 best-scored have the given OKS, the others 1."""
    values = []
    for threshold in keypoint_ap.THRESHOLDS:
        # below the threshold: the first ten are wrong, so after n right ones precision is n / (10 +
        # n), highest at the end; recall ends at 3 / 4
        values.append(
            1.0 if oks >= threshold else (keypoint_ap.RECALLS <= 0.75).sum() / 101 * 30 / 40
        )
    return np.mean(values)


def test_diagnosis_mirrored_keypoints_are_inversions(truth):
    found = perfect(truth)
    keypoints = found.keypoints.copy()
    keypoints[:10] = keypoints[:10][:, COCO.flip_indices]
    counts, costs, base = diagnosis(with_keypoints(found, keypoints))
    assert counts == {**dict.fromkeys(KINDS, 0), "good": 40 * 17 - 160, "inversion": 160}
    # put right, a mirrored joint lies where the other one's would: exactly
    assert base["AP"] < 0.8 and costs["inversion"]["AP"] == pytest.approx(1 - base["AP"])
    assert [costs[kind]["AP"] for kind in ("jitter", "swap", "miss")] == [0, 0, 0]


@pytest.mark.parametrize("mirrored", [False, True])
def test_diagnosis_keypoints_on_other_person_are_swaps(truth, mirrored):
    """The arms of ten persons are moved to the same or the other side of a second person."""
    found, arms = perfect(truth), np.array([7, 8, 9, 10])
    keypoints = found.keypoints.copy()
    theirs = COCO.flip_indices[arms] if mirrored else arms
    keypoints[np.ix_(np.arange(0, 20, 2), arms)] = keypoints[np.ix_(np.arange(1, 21, 2), theirs)]
    counts, costs, base = diagnosis(with_keypoints(found, keypoints))
    assert counts == {**dict.fromkeys(KINDS, 0), "good": 40 * 17 - 40, "swap": 40}
    assert (
        costs["swap"]["count"] == 40
        and costs["swap"]["AP"] == pytest.approx(1 - base["AP"])
        and base["AP"] < 1
    )


def test_diagnosis_exchanged_persons_have_no_errors():
    """Two exchanged predictions are both right, because identities are not labeled."""
    truth = truth_of(people(images=3))
    found = perfect(truth)
    counts, _, base = diagnosis(with_keypoints(found, found.keypoints[[1, 0, 3, 2, 5, 4]]))
    assert counts["good"] == 6 * 17 and base["AP"] == pytest.approx(1)


def test_diagnosis_swap_correction_uses_own_scale():
    """A corrected swap has the same similarity in units of its own person's scale."""
    content = people(images=1)
    content["annotations"][1]["area"] = AREA * 4
    truth = truth_of(content)
    found = perfect(truth)
    keypoints = found.keypoints.copy()
    wrist = 9
    keypoints[0, wrist, :2] = truth.persons.keypoints[1, wrist, :2] + [
        0,
        similarity_distance(0.7, AREA * 4)[wrist],
    ]
    errors = error_kinds.joint_errors(with_keypoints(found, keypoints))
    row = int(np.flatnonzero(errors.person == 0)[0])
    assert error_kinds.JOINTS[errors.kind[row, wrist]] == "swap"
    offset = errors.corrected[row, wrist] - truth.persons.keypoints[0, wrist, :2]
    assert offset == pytest.approx([0, similarity_distance(0.7)[wrist]])


def test_diagnosis_good_keypoint_beats_nearer_swap():
    """A similarity of 0.85 or more is good even if the other hip is nearer."""
    content = people(images=1, persons=1)
    hips = np.array(content["annotations"][0]["keypoints"]).reshape(17, 3)
    # so near that a prediction on one is good for the other
    hips[12, :2] = hips[11, :2] + [-similarity_distance(0.86)[11], 0]
    content["annotations"][0]["keypoints"] = hips.ravel().tolist()
    truth = truth_of(content)
    found = perfect(truth)
    keypoints = found.keypoints.copy()
    keypoints[0, 11, :2] = hips[12, :2]
    assert diagnosis(with_keypoints(found, keypoints))[0]["good"] == 17
    keypoints[0, 11, 0] -= similarity_distance(0.97)[11]
    counts, _, _ = diagnosis(with_keypoints(found, keypoints))
    assert (counts["good"], counts["inversion"]) == (16, 1)


def test_diagnosis_unlabeled_keypoints_do_not_count():
    content = people(images=2)
    for annotation in content["annotations"]:
        annotation["keypoints"][3 * 9 + 2] = 0
    truth = truth_of(content)
    counts, costs, base = diagnosis(moved(perfect(truth), np.arange(4), [9], np.array([500.0, 0])))
    assert sum(counts.values()) == counts["good"] == 4 * 16 and base["AP"] == pytest.approx(1)


def test_diagnosis_false_positives_duplicates_and_misses_are_counted(truth):
    found = perfect(truth)
    # ten poses below everybody's feet, scored best; eight persons found a second time, a little
    # worse; three persons not found at all
    false_positives = np.broadcast_to(FRONT * 60 + [300, 3000], (10, 17, 2))
    again = found.keypoints[:8, :, :2] + [0.0, 2.0]
    made = with_more(
        found.only(np.arange(40) < 37), np.arange(10), false_positives, np.full(10, 0.99)
    )
    made = with_more(made, found.image[:8], again, np.full(8, 0.95) + np.arange(8) / 1000 - 0.9)
    kind = made.pairs.kind
    assert np.bincount(kind, minlength=5).tolist() == [37, 0, 8, 10, 0]
    assert (kind[37:47] == BACKGROUND).all() and (kind[47:] == DUPLICATE).all()
    counts, costs, base = diagnosis(made)
    assert counts["good"] == 37 * 17
    assert {
        name: costs[name]["count"] for name in ("background", "duplicate", "missed person")
    } == {"background": 10, "duplicate": 8, "missed person": 3}
    # ten wrong ones first, then 37 of 40 right; the duplicates come last and take nothing
    reached = (keypoint_ap.RECALLS <= 37 / 40).sum() / 101
    assert base["AP"] == pytest.approx(reached * 37 / 47)
    assert costs["background"]["AP"] == pytest.approx(reached - base["AP"])
    assert costs["duplicate"]["AP"] == pytest.approx(0, abs=1e-12)
    assert costs["missed person"]["AP"] == pytest.approx(37 / 47 - base["AP"])


def test_diagnosis_outranked_better_prediction_is_score_error(truth):
    """Ten persons have a prediction of OKS 0.3 scored above the exact one."""
    found = perfect(truth)
    worse = found.keypoints[:10, :, :2].copy()
    worse[:, :, 1] += similarity_distance(0.3)
    made = with_more(found, found.image[:10], worse, np.full(10, 0.95))
    assert np.bincount(made.pairs.kind, minlength=5).tolist() == [40, 10, 0, 0, 0]
    assert (made.pairs.kind[:10] == OUTRANKED).all() and (made.pairs.kind[40:] == FOUND).all()
    _, costs, base = diagnosis(made)
    assert (
        costs["score"]["count"] == 10
        and costs["score"]["AP"] == pytest.approx(1 - base["AP"])
        and base["AP"] < 0.9
    )
    assert costs["duplicate"]["count"] == 0


def test_diagnosis_crowds_and_unlabeled_persons_do_not_count():
    content = people(images=2)
    content["annotations"][1].update(iscrowd=1, num_keypoints=0, keypoints=[0] * 51)
    content["annotations"][3].update(num_keypoints=0, keypoints=[0] * 51)
    truth = truth_of(content)
    found = perfect(truth)
    exact = truth_of(people(images=2)).persons.keypoints
    made = with_keypoints(found, np.concatenate([exact[:, :, :2], np.ones((4, 17, 1))], axis=2))
    assert truth.counted.tolist() == [True, False, True, False]
    assert np.bincount(made.pairs.kind, minlength=5).tolist() == [2, 0, 0, 0, 2]
    counts, costs, base = diagnosis(made)
    assert (
        counts["good"] == 34
        and base["AP"] == pytest.approx(1)
        and costs["missed person"]["count"] == 0
    )


def test_diagnosis_over_twenty_detections_are_not_counted():
    truth = truth_of(people(images=1, persons=1))
    made = with_more(
        perfect(truth),
        np.zeros(30, int),
        np.broadcast_to(FRONT * UNIT + [900, 900], (30, 17, 2)),
        np.linspace(0.4, 0.1, 30),
    )
    assert np.bincount(made.pairs.kind, minlength=5).tolist() == [1, 0, 0, 19, 11]


def test_diagnosis_crowded_images_equal_plain_loops():
    """Overlapping persons, unlabeled keypoints and crowds."""
    rng = np.random.default_rng(7)
    content = people(images=25, persons=4)
    for annotation in content["annotations"]:
        area = rng.uniform(60, 200) ** 2
        points = FRONT * np.sqrt(area) + rng.uniform(150, 330, 2)
        flags = rng.choice([0, 1, 2], 17, p=[0.2, 0.2, 0.6])
        annotation.update(
            area=area,
            keypoints=np.column_stack([points, flags]).ravel().tolist(),
            num_keypoints=int((flags > 0).sum()),
            iscrowd=int(rng.random() < 0.1),
        )
    truth = truth_of(content)
    labels = truth.persons.keypoints
    mixed = labels[:, :, :2] + rng.normal(0, 1, (100, 17, 2)) * rng.uniform(0, 25, (100, 1, 1))
    # some joints lie on those of the neighbors, or on the other side
    for person in range(100):
        neighbor, swapped, mirrored = (
            person // 4 * 4 + rng.integers(4),
            rng.random(17) < 0.2,
            rng.random(17) < 0.2,
        )
        mixed[person, swapped] = labels[neighbor, swapped, :2] + rng.normal(
            0, 3, (swapped.sum(), 2)
        )
        mixed[person, mirrored] = labels[person, COCO.flip_indices[mirrored], :2] + rng.normal(
            0, 3, (mirrored.sum(), 2)
        )
    found = with_more(
        perfect(truth).only(np.zeros(100, bool)), truth.persons.image, mixed, rng.random(100)
    )
    errors = error_kinds.joint_errors(found)

    def similarity(point, label, joint, person):
        return (
            np.exp(
                -((point - label[:2]) ** 2).sum()
                / (2 * (2 * SIGMAS[joint]) ** 2 * truth.persons.area[person])
            )
            if label[2] > 0
            else 0.0
        )

    seen = dict.fromkeys(error_kinds.JOINTS, 0)
    for row, (d, person) in enumerate(zip(errors.prediction, errors.person)):
        others = [
            g
            for g in range(100)
            if truth.persons.image[g] == truth.persons.image[person]
            and g != person
            and truth.counted[g]
        ]
        for joint in range(17):
            point, other_side = found.keypoints[d, joint, :2], COCO.flip_indices[joint]
            own = similarity(point, labels[person, joint], joint, person)
            values = {
                "jitter": own,
                "inversion": (
                    similarity(point, labels[person, other_side], joint, person)
                    if other_side != joint
                    else 0
                ),
                "swap": max(
                    [
                        similarity(point, labels[g, side], joint, g)
                        for g in others
                        for side in (joint, other_side)
                    ],
                    default=0,
                ),
            }
            nearest = max(values, key=values.get)
            want = (
                "not labelled"
                if labels[person, joint, 2] == 0
                else "good"
                if own >= 0.85
                else nearest
                if values[nearest] >= 0.5
                else "miss"
            )
            assert error_kinds.JOINTS[errors.kind[row, joint]] == want
            right = similarity(errors.corrected[row, joint], labels[person, joint], joint, person)
            if want in ("good", "not labelled"):
                assert errors.corrected[row, joint].tolist() == point.tolist()
            else:
                assert right == pytest.approx(
                    {"jitter": 0.85, "miss": 0.5}.get(want, values[nearest])
                )
            seen[want] += 1
    assert min(seen.values()) > 30, seen


def test_diagnosis_corrections_equal_written_results(truth, tmp_path):
    """The corrected AP equals that of pycocotools on a file with corrected predictions."""
    rng = np.random.default_rng(0)
    found = perfect(truth)
    keypoints = found.keypoints.copy()
    keypoints[:, :, :2] += (
        rng.normal(0, 1, (40, 17, 2))
        * (SIGMAS * np.sqrt(AREA))[:, None]
        * rng.uniform(0, 4, (40, 1, 1))
    )
    found = with_keypoints(found, keypoints)
    errors = error_kinds.joint_errors(found)
    costs = error_kinds.costs(found, errors, average_precision(found))
    assert min(costs[kind]["count"] for kind in ("jitter", "miss")) > 20
    from test_keypoint_ap import judge

    for kind in ("jitter", "miss"):
        right = with_keypoints(found, errors.keypoints(found, error_kinds.JOINT_ERRORS[kind]))
        stats = [
            judge(truth.content["annotations"], result_list(one), list(range(1, 21)))[2][0]
            for one in (found, right)
        ]
        assert (
            costs[kind]["AP"] == pytest.approx(stats[1] - stats[0], abs=1e-12)
            and costs[kind]["AP"] > 0
        )
        again = error_kinds.joint_errors(right)
        assert not (again.kind == error_kinds.MISS)[errors.kind == error_kinds.JITTER].any()


@pytest.mark.skipif(
    not (SHARED / "conformance").is_dir(),
    reason="needs the real data in ../shared, which is not here",
)
def test_diagnosis_recorded_predictions_are_consistent(tmp_path):
    """Planted errors are found in recorded predictions of real persons."""
    want = json.loads((SHARED / "conformance/pipeline.json").read_text())["evaluate"][0]
    arrays = np.load(SHARED / "conformance/evaluate.npz")
    keypoints, boxes, ids = arrays["preds"], arrays["boxes"], arrays["image_id"]
    scores = evaluation.rescore(keypoints[:, :, 2], boxes[:, 5], want["in_vis_thre"])
    kept = evaluation.oks_nms_per_image(
        keypoints, scores, boxes[:, 4], ids, want["oks_thre"], want["soft_nms"]
    )
    path = tmp_path / "keypoints_val2017_results_gt_boxes.json"
    evaluation.write_results(path, ids[kept], keypoints[kept], scores[kept])
    truth = load_ground_truth(SHARED / "data/coco_subset/annotations/person_keypoints_val2017.json")
    found = load_results(path, truth)
    assert found.box_source == "ground truth"
    counts, costs, base = diagnosis(found)
    assert base["AP"] == pytest.approx(want["stats"]["AP"], abs=1e-6)
    pairs = found.pairs
    labelled = (truth.persons.keypoints[pairs.person[pairs.person >= 0], :, 2] > 0).sum()
    assert sum(counts.values()) == labelled and min(counts.values()) > 0
    assert costs["missed person"]["count"] == truth.counted.sum() - (pairs.kind == FOUND).sum()

    # the labeled persons themselves are right, but for joints that lie on another person's or on
    # each other
    labels = truth.persons.keypoints
    exact = with_keypoints(found.only(np.zeros(len(found), bool)), np.zeros((0, 17, 3)))
    who = np.flatnonzero(truth.counted)
    exact = with_more(
        exact, truth.persons.image[who], labels[who, :, :2], np.linspace(1, 0.5, len(who))
    )
    counts, _, base = diagnosis(exact)
    assert counts["good"] == sum(counts.values()) and base["AP"] > 0.99
    # left and right exchanged: a joint of a pair whose both are labeled is now an inversion,
    # unless the two lie so near that it is good
    mirrored = with_keypoints(exact, exact.keypoints[:, COCO.flip_indices])
    errors = error_kinds.joint_errors(mirrored)
    both = np.zeros(errors.kind.shape, bool)
    visible = labels[errors.person, :, 2] > 0
    both[:, PAIRED] = (visible & visible[:, COCO.flip_indices])[:, PAIRED]
    # some of them are more like a neighbor than like themselves now, and a joint's other side may
    # lie near enough to be jitter
    itself = who[errors.prediction] == errors.person
    kinds = errors.kind[both & (errors.similarity < error_kinds.NEAR) & itself[:, None]]
    assert itself.mean() > 0.9 and len(kinds) > 1000
    assert (
        np.isin(kinds, (error_kinds.INVERSION, error_kinds.SWAP)).all()
        and (kinds == error_kinds.INVERSION).mean() > 0.97
    )
    # jitter of similarity 0.7 in every joint: jitter, unless another joint is nearer
    rng = np.random.default_rng(1)
    angle = rng.uniform(0, 2 * np.pi, labels[who].shape[:2])
    reach = 2 * SIGMAS * np.sqrt(-2 * np.log(0.7) * truth.persons.area[who])[:, None]
    shaken = exact.keypoints.copy()
    shaken[:, :, :2] += np.stack([np.cos(angle), np.sin(angle)], axis=2) * reach[:, :, None]
    shaken = with_keypoints(exact, shaken)
    errors = error_kinds.joint_errors(shaken)
    kinds = errors.kind[
        (who[errors.prediction] == errors.person)[:, None]
        & (errors.kind != error_kinds.NOT_LABELLED)
    ]
    assert (
        len(kinds) > 3000
        and np.isin(kinds, (error_kinds.JITTER, error_kinds.INVERSION, error_kinds.SWAP)).all()
        and (kinds == error_kinds.JITTER).mean() > 0.9
    )
    _, costs, base = diagnosis(shaken)
    assert costs["jitter"]["AP"] > 0.1 and costs["background"]["count"] == 0
