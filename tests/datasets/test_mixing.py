"""Test concatenated training sets: keypoint mapping, loss masks and repeat factors."""

import json

import numpy as np
import pytest
import torch
import yaml
from poise import config
from poise.codecs import build_codec
from poise.config.dataset_yaml import COCO, MPII, load_dataset_info
from poise.datasets import build_loader, load_split, mixing
from poise.datasets.sampler import EpochBatchSampler, Shard
from poise.engine import train
from poise.engine.run_logger import TrainLogger
from poise.engine.targets import encode_targets
from poise.errors import ConfigError, DataError
from poise.structures.person_table import NOT_ANNOTATED
from poise.structures.skeleton import joint_mapping
from support.custom_datasets import experiment, joint_names, make_set
from support.runs import forget_log_handlers

CPU = torch.device("cpu")
# the five dots, three of them under the same names and in another order
OTHER_NAMES = ["right_0", "left_0", "belly", "tail", "middle"]


@pytest.fixture
def sets(tmp_path):
    """(experiment file, dataset file of the first set, of the second)."""
    first = make_set(tmp_path / "first", 5)
    second = make_set(
        tmp_path / "second",
        5,
        (("all", 10),),
        seed=1,
        names=OTHER_NAMES,
        name="others",
        flip_pairs=[["left_0", "right_0"]],
    )
    return experiment(tmp_path, first), first, second


@pytest.fixture
def loaded(sets):
    """A function that loads the mix, with keys of its group and further overrides."""
    path, _, second = sets

    def load(*overrides, group="others", **keys):
        words = [
            word
            for key, value in {"FILE": str(second), "SET": "all", **keys}.items()
            for word in (f"DATASET.MIX.{group}.{key}", value)
        ]
        return config.load(path, [*words, *overrides])

    return load


def refusal(call, *args, kind=ConfigError, **options):
    with pytest.raises(kind) as error:
        call(*args, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


# joints -------------------------------------------------------------------------------------------


def test_keypoint_mapping_mpii_and_crowdpose_to_coco():
    coco, mpii, crowd = (load_dataset_info(name) for name in ("coco", "mpii", "crowdpose"))
    places = joint_mapping(mpii, coco, {})
    assert len(places) == 12 and all(
        MPII.names[theirs] == COCO.names[ours] for theirs, ours in places.items()
    )
    assert (
        len(joint_mapping(crowd, coco, {})) == 12
        and len(joint_mapping(mpii, crowd, {"head_top": "head", "upper_neck": "neck"})) == 14
    )
    # a joint that is mapped to the name of another one gets no second index
    assert joint_mapping(coco, coco, {"left_eye": "nose"}) == {j: j for j in range(3, 17)} | {
        1: 0,
        2: 2,
    }


def test_load_split_mix_concatenates_tables(loaded, sets):
    cfg = loaded()
    table, images = load_split(cfg, train=True)
    own, own_images = load_split(config.load(sets[0]), train=True)
    other, _ = load_split(mixing.cfg_for_source(cfg, "others"), train=True)
    assert len(table) == len(own) + len(other) == 24 + 15 and table.skeleton.names == tuple(
        joint_names(5)
    )
    assert (
        np.array_equal(table.keypoints[:24], own.keypoints)
        and np.array_equal(table.visibility[:24], own.visibility)
        and table.image_ids[:16].tolist() == own.image_ids.tolist()
    )
    for ours, name in enumerate(joint_names(5)):
        if name in OTHER_NAMES:
            theirs = OTHER_NAMES.index(name)
            assert np.array_equal(
                table.keypoints[24:, ours], other.keypoints[:, theirs]
            ) and np.array_equal(table.visibility[24:, ours], other.visibility[:, theirs])
        else:
            assert (table.visibility[24:, ours] == NOT_ANNOTATED).all() and not table.keypoints[
                24:, ours
            ].any()
    assert np.array_equal(table.scale[24:], other.scale) and len(np.unique(table.image_ids)) == 26
    assert (
        table.image_names[0] == "/cam 1/train-shot 0.png"
        and table.image_names[16] == "others/cam 1/all-shot 0.png"
    )
    assert np.array_equal(images.read(table.image_names[3]), own_images.read(own.image_names[3]))
    assert images.read(table.image_name(24)).shape == (64, 120, 3) and not np.array_equal(
        images.read(table.image_name(24)), images.read(table.image_name(0))
    )
    assert table.dropped == {"of another category": 16, "of another category (others)": 10}
    # tests are of the first set alone
    assert np.array_equal(
        load_split(cfg, train=False)[0].keypoints,
        load_split(config.load(sets[0]), train=False)[0].keypoints,
    )


def test_load_split_mix_joints_key_renames_keypoints(loaded):
    table, _ = load_split(
        loaded(
            "DATASET.MIX.others.JOINTS.belly", "left_1", "DATASET.MIX.others.JOINTS.tail", "right_1"
        ),
        train=True,
    )
    assert (table.visibility != NOT_ANNOTATED).all()


def test_loader_mix_mirrors_by_pairs_of_first_dataset(loaded):
    """Nothing but known joints gets a label in a mirrored sample: pairs of the first set, of
    which the second may have one.
    """
    cfg = loaded("DATASET.MIX.others.JOINTS.tail", "right_1")  # left_1 is unknown there
    table, images = load_split(cfg, train=True)
    crops = build_loader(cfg, table, images, train=True).dataset
    right, left = table.skeleton.names.index("right_1"), table.skeleton.names.index("left_1")
    sides = set()
    for epoch in range(6):
        batch = crops.__getitems__([(epoch, person) for person in range(24, len(table))])
        for row in batch["visible"].numpy():
            assert (row == NOT_ANNOTATED).sum() == 1
            sides.add(int(np.flatnonzero(row == NOT_ANNOTATED)[0]))
    assert sides == {left, right}


# loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec, loss",
    [("gaussian", "joints_mse"), ("dark", "joints_mse"), ("udp", "joints_mse"), ("megvii", "mspn")],
)
@pytest.mark.parametrize("ohkm", [False, True])
def test_loss_mix_not_annotated_keypoints_do_not_count(loaded, codec, loss, ohkm):
    cfg = loaded(
        "MODEL.TARGET_TYPE", codec, "LOSS.TYPE", loss, "LOSS.USE_OHKM", ohkm, "LOSS.TOPK", 5
    )
    loader = build_loader(cfg, *load_split(cfg, train=True), train=True)
    batch = loader.dataset.__getitems__([(0, person) for person in range(20, 30)])
    codec = build_codec(cfg)
    targets = encode_targets(cfg, codec, batch, CPU)
    outputs = [
        torch.rand(10, 5, 16, 16, requires_grad=True) for _ in range(4 if loss == "mspn" else 1)
    ]
    codec.loss(outputs, targets).backward()
    unknown = batch["visible"] == NOT_ANNOTATED
    assert unknown.any(dim=1).tolist() == [False] * 4 + [True] * 6
    for output in outputs:
        assert not output.grad[unknown].any() and output.grad[batch["visible"] == 2].abs().sum() > 0
    # MSPN's loss trains joints without a label towards an empty map, which those of the set are and
    # others are not
    plain = (batch["visible"] == 0) & ~unknown
    assert plain.any() and bool(outputs[0].grad[plain].any()) == (loss == "mspn")


def test_encode_targets_without_mix_has_no_mask(sets):
    cfg = config.load(sets[0])
    loader = build_loader(cfg, *load_split(cfg, train=True), train=True)
    assert encode_targets(cfg, build_codec(cfg), next(iter(loader)), CPU).annotated_mask is None


def test_load_mix_without_target_weight_raises(loaded):
    assert (
        "LOSS.USE_TARGET_WEIGHT must be True with DATASET.MIX.others, which lacks 2 joints"
        in refusal(loaded, "LOSS.USE_TARGET_WEIGHT", False)
    )
    loaded(
        "LOSS.USE_TARGET_WEIGHT",
        False,
        "DATASET.MIX.others.JOINTS.belly",
        "left_1",
        "DATASET.MIX.others.JOINTS.tail",
        "right_1",
    )


# how often ----------------------------------------------------------------------------------------


def samples(repeat, *, epoch=0, shuffle=True, seed=0, size=4, first=0):
    batches = EpochBatchSampler(
        len(repeat), size, shuffle=shuffle, seed=seed, repeat=np.array(repeat, np.float64)
    )
    batches.set_epoch(epoch, first)
    return [sample for keys in batches for _, sample in keys], batches


def test_sampler_integer_repeat_repeats_persons():
    found, batches = samples([1] * 6 + [3] * 4)
    assert (
        sorted(found) == [*range(10), *range(16, 20), *range(26, 30)]
        and batches.num_samples == 18
        and batches.num_batches == len(batches) == 5
    )


def test_sampler_fractional_repeat_is_resampled_each_epoch():
    drawn = []
    for epoch in range(40):
        found, batches = samples([1] * 10 + [0.3] * 20, epoch=epoch)
        assert len(found) == len(set(found)) == batches.num_samples == 16 and set(range(10)) < set(
            found
        )
        drawn.append(frozenset(found))
    assert len(set(drawn)) > 30 and frozenset.union(*drawn) == frozenset(range(30))
    found, _ = samples([1.5] * 10)
    assert len(found) == 15 and sum(sample >= 10 for sample in found) == 5


def test_sampler_repeat_order_depends_on_seed_and_epoch_only():
    repeat = [1] * 10 + [2.4] * 10
    found, _ = samples(repeat, epoch=3)
    np.random.seed(3), torch.manual_seed(3)
    assert (
        samples(repeat, epoch=3)[0] == found != samples(repeat, epoch=4)[0]
        and samples(repeat, epoch=3, seed=1)[0] != found
    )
    assert (
        samples(repeat, epoch=3, first=3)[0] == found[12:]
        and samples(repeat, epoch=3, size=7)[0] == found
    )
    assert (
        samples(repeat, epoch=3, shuffle=False)[0]
        == sorted(samples(repeat, epoch=3, shuffle=False)[0])
        != found
    )
    shares = [
        EpochBatchSampler(
            20, 4, shuffle=True, seed=0, shard=Shard(rank, 2), repeat=np.array(repeat)
        )
        for rank in range(2)
    ]
    for share in shares:
        share.set_epoch(3)
    assert [sample for pair in zip(*shares) for keys in pair for _, sample in keys] == found


def test_sampler_repeat_1_equals_plain_sampler():
    plain = EpochBatchSampler(23, 5, shuffle=True, seed=2)
    plain.set_epoch(4)
    assert samples([1] * 23, epoch=4, seed=2, size=5)[0] == [
        sample for keys in plain for _, sample in keys
    ]


def test_loader_repeated_persons_are_augmented_differently(loaded):
    cfg = loaded("DATASET.MIX.others.REPEAT", 2)
    table, images = load_split(cfg, train=True)
    loader = build_loader(cfg, table, images, train=True)
    assert loader.batch_sampler.num_samples == 24 + 30
    batch = loader.dataset.__getitems__([(1, 30), (1, 30 + len(table)), (1, 30)])
    assert batch["person"].tolist() == [30, 30, 30] and torch.equal(
        batch["images"][0], batch["images"][2]
    )
    assert not torch.equal(batch["images"][0], batch["images"][1])


def test_person_table_select_keeps_repeat_factors(loaded):
    table, _ = load_split(loaded("DATASET.MIX.others.REPEAT", 2.5), train=True)
    chosen = table.select(np.arange(len(table)) % 2 == 0, "odd")
    assert (
        set(chosen.repeat_factor[:12]) == {1}
        and set(chosen.repeat_factor[12:]) == {2.5}
        and len(chosen.repeat_factor) == len(chosen)
    )


def test_load_split_mix_groups_are_sorted_by_name(sets, tmp_path):
    """A run's config.yaml has its groups in another order than its experiment file, and goes on
    with the same samples.
    """
    path, _, second = sets
    text = path.read_text().replace(
        "DATASET: {",
        f"DATASET: {{MIX: {{z: {{FILE: {second}, SET: all}}, "
        f"a: {{FILE: {second}, SET: all, REPEAT: 2}}}}, ",
    )
    path.write_text(text)
    cfg = config.load(path)
    (tmp_path / "again.yaml").write_text(cfg.dump())
    again = config.load(tmp_path / "again.yaml")
    assert (
        again == cfg
        and list(again.DATASET.MIX) == ["a", "z"]
        and list(cfg.DATASET.MIX) == ["z", "a"]
    )
    one, two = (load_split(c, train=True)[0] for c in (cfg, again))
    assert (
        list(one.image_names) == list(two.image_names)
        and np.array_equal(one.repeat_factor, two.repeat_factor)
        and one.repeat_factor[24] == 2
        and one.repeat_factor[-1] == 1
    )


# whole runs ---------------------------------------------------------------------------------------


def test_train_mix_uses_both_datasets(loaded, sets, monkeypatch, caplog):
    monkeypatch.setattr(TrainLogger, "_show_test", lambda *_: None)
    cfg = loaded("DATASET.MIX.others.REPEAT", 1.5, "TRAIN.END_EPOCH", 2)
    try:
        train.run(cfg, str(sets[0]), ["tools/train.py"])
    finally:
        forget_log_handlers()
    folder = sets[0].parent / "output" / "dots5" / "pose_res2net" / "dots"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[0]["train_loss"] > rows[1]["train_loss"] > 0
    log = (folder / "train.log").read_text()
    assert "train set train: 24 persons" in log and "train set all: 15 persons" in log
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["DATASET"]["MIX"]["others"]["REPEAT"]
        == 1.5
    )
    assert torch.load(folder / "checkpoint.pth", weights_only=True)["epoch"] == 2


def test_load_split_mix_coco_and_mpii(small_set, small_mpii_set, tmp_path):
    """Two forms of annotation in one training, by their shipped dataset files."""
    path = tmp_path / "e.yaml"
    path.write_text(
        f"WORKERS: 0\nDATASET: {{DATASET: coco, ROOT: {small_set}, TRAIN_SET: train2017, MIX:"
        f" {{mpii: {{SET: train, ROOT: {small_mpii_set}}}}}}}\n"
    )
    cfg = config.load(path)
    table, images = load_split(cfg, train=True)
    alone = load_split(mixing.cfg_for_source(cfg, "mpii"), train=True)[0]
    mine = table.visibility[-len(alone) :]
    assert ((mine == NOT_ANNOTATED).sum(axis=1) == 5).all() and (mine[:, 5:] >= 0).all()
    assert np.array_equal(
        table.keypoints[-len(alone) :, COCO.names.index("left_knee")],
        alone.keypoints[:, MPII.names.index("left_knee")],
    )
    batch = next(iter(build_loader(cfg, table, images, train=True)))
    assert batch["joints"].shape[1:] == (17, 2)


# what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, fault",
    [
        (
            dict(REPEAT=0),
            "DATASET.MIX.others.REPEAT must be a number above 0 and at most 1000, got 0",
        ),
        (dict(REPEAT=-1), "REPEAT must be a number above 0"),
        (dict(REPEAT=float("nan")), "REPEAT must be a number above 0"),
        (dict(REPEAT="often"), "REPEAT must be a number above 0"),
        (dict(REPEAT=1e9), "at most 1000"),
        (dict(SET=""), "DATASET.MIX.others.SET must be text, got ''"),
        (dict(SET=3), "DATASET.MIX.others.SET must be text, got 3"),
        (dict(FILE="nowhere"), "DATASET.MIX.others.FILE: no dataset file 'nowhere'"),
        (dict(FOLD=1), "unknown key DATASET.MIX.others.FOLD; the keys are FILE, SET, ROOT, "),
        (
            dict(JOINTS="belly"),
            "DATASET.MIX.others.JOINTS must be a group of ITS_NAME: OUR_NAME, got 'belly'",
        ),
        (dict(JOINTS={"bely": "left_1"}), "DATASET.MIX.others.JOINTS: 'bely' is no joint of "),
        (dict(JOINTS={"belly": "left1"}), "DATASET.MIX.others.JOINTS: 'left1' is no joint of "),
        (
            dict(JOINTS={"belly": "left_1", "tail": "left_1"}),
            "DATASET.MIX.others.JOINTS gives two joints of ",
        ),
        (
            dict(FILE="mpii"),
            "have no joint of the same name; DATASET.MIX.others.JOINTS maps them",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:50],
)
def test_load_mix_invalid_key_raises(loaded, sets, keys, fault):
    assert fault in refusal(loaded, **keys)


def test_load_mix_invalid_group_raises(sets):
    assert "DATASET.MIX.others must be a group of FILE, SET" in refusal(
        config.load, sets[0], ["DATASET.MIX.others", 3]
    )
    assert "DATASET.MIX.a/b: the name must have letters, digits, _ and - alone" in refusal(
        config.load, sets[0], ["DATASET.MIX", {"a/b": {"SET": "all"}}]
    )


def test_load_split_mix_unlabeled_split_raises(tmp_path, small_mpii_set, small_set):
    path = tmp_path / "e.yaml"
    (tmp_path / "annot").mkdir()
    (tmp_path / "annot" / "test.json").write_text(
        json.dumps([{"image": "a.jpg", "center": [3, 4], "scale": 1.5}])
    )
    path.write_text(
        f"DATASET: {{DATASET: coco, ROOT: {small_set}, TRAIN_SET: train2017, MIX: {{mpii: {{SET:"
        f" test, ROOT: {tmp_path}}}}}}}\n"
    )
    assert "a set without labels cannot be trained on" in refusal(
        load_split, config.load(path), train=True, kind=DataError
    )


def test_loader_mix_missing_folder_raises(loaded, tmp_path):
    cfg = loaded()
    (tmp_path / "second" / "frames").rename(tmp_path / "second" / "pictures")
    table, images = load_split(cfg, train=True)
    assert f"{tmp_path}/second/frames: no such image folder" in refusal(
        build_loader, cfg, table, images, train=True, kind=DataError
    )
