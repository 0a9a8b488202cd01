"""Test samples and batches: keypoints match pixels for any workers and order."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from poise import config
from poise.config.dataset_yaml import COCO
from poise.datasets import build_loader, coco, load_split, select_data
from poise.datasets.augment import Augmentation
from poise.datasets.loader import BatchLoader, TopDownDataset
from poise.datasets.sampler import EpochBatchSampler
from poise.errors import DataError
from poise.io.image_folder import ImageFolder
from poise.structures.crops import box_to_center_scale
from poise.structures.person_table import PackedStrings, PersonTable

SIZE = (96, 128)
FULL = Augmentation(
    flip=True, scale_factor=0.3, rotation_factor=40.0, half_body_prob=0.3, half_body_joints=8
)
# a color for each joint, far from each other and from the background
COLORS = np.array([(b, g, r) for b, g, r in itertools.product((20, 130, 240), repeat=3)][:26])[
    np.arange(17)
]


def table_of(joints, visible, box, names=("a.png",), image_index=None):
    """A PersonTable of N persons with the same joints (17, 2) in every image."""
    count = len(names) if image_index is None else len(image_index)
    center, scale = box_to_center_scale(np.tile(box, (count, 1)), SIZE[0] / SIZE[1])
    return PersonTable(
        COCO,
        PackedStrings.pack(list(names)),
        np.arange(len(names)),
        np.asarray(range(count) if image_index is None else image_index, np.int32),
        center,
        np.tile(np.float64(box[2:]), (count, 1)),
        scale,
        np.tile(np.float32(joints), (count, 1, 1)),
        np.tile(np.float32(visible), (count, 1)),
        np.ones(count),
        np.arange(count),
        "gt",
    )


@pytest.fixture
def dotted(tmp_path):
    """(table, images): one image with a dot of its own color at every joint; joint 16 has no
    label and no dot.
    """
    joints = np.stack(
        [120 + 40 * (np.arange(17) % 4), 60 + 45 * (np.arange(17) // 4)], axis=1
    ).astype(np.float32)
    visible = np.ones(17)
    visible[16] = 0
    image = np.full((320, 400, 3), 75, np.uint8)
    for joint in range(16):
        cv2.circle(
            image,
            tuple(int(v) for v in joints[joint]),
            9,
            tuple(int(v) for v in COLORS[joint]),
            -1,
        )
    cv2.imwrite(str(tmp_path / "a.png"), image)
    return table_of(joints, visible, [100, 40, 170, 230]), ImageFolder(tmp_path)


def crops(table, images, *, augmentation=None, rgb=False, seed=0):
    return TopDownDataset(
        table, images, image_size=SIZE, rgb=rgb, seed=seed, augmentation=augmentation
    )


def sample(dataset, epoch, person=0):
    """(crop, joints, visible) of one sample."""
    batch = dataset.__getitems__([(epoch, person)])
    return batch["images"][0].numpy(), batch["joints"][0].numpy(), batch["visible"][0].numpy()


def small_config(small_set, tmp_path, *overrides):
    path = tmp_path / "e.yaml"
    path.write_text(
        f"DATASET: {{DATASET: coco, ROOT: {small_set}, TRAIN_SET: train2017, TEST_SET: val2017,"
        " PROB_HALF_BODY: 0.3}\nMODEL: {IMAGE_SIZE: [96, 128], HEATMAP_SIZE: [24, 32]}\nTRAIN:"
        " {BATCH_SIZE_PER_GPU: 8}\nTEST: {USE_GT_BBOX: true, BATCH_SIZE_PER_GPU: 8}\n"
    )
    return config.load(path, overrides)


# crops and joints ---------------------------------------------------------------------------------


def test_dataset_sample_without_augmentation_equals_crop(dotted):
    table, images = dotted
    batch = crops(table, images).__getitems__([(0, 0), (3, 0)])
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "images": ((2, 128, 96, 3), torch.uint8),
        "joints": ((2, 17, 2), torch.float32),
        "visible": ((2, 17), torch.float32),
        "person": ((2,), torch.int64),
    }
    # no epoch in it
    assert torch.equal(batch["images"][0], batch["images"][1]) and torch.equal(
        batch["joints"][0], batch["joints"][1]
    )
    # the box's center is the crop's, and its width the crop's width
    zoom = 96 / (table.scale[0, 0] * 200)
    wanted = (table.keypoints[0] - table.center[0]) * zoom + (48, 64)
    assert np.allclose(batch["joints"][0][:16], wanted[:16], atol=0.01)
    assert (batch["joints"][0, 16] == 0).all() and batch["visible"][0].tolist() == table.visibility[
        0
    ].tolist()


def check_dots(crop, joints, visible, color_of):
    """Every labeled joint inside the crop lies on the dot of color_of(joint); returns how many
    there were.
    """
    inside = [
        j
        for j in range(17)
        if visible[j] and 3 <= joints[j, 0] < SIZE[0] - 3 and 3 <= joints[j, 1] < SIZE[1] - 3
    ]
    for j in inside:
        x, y = np.round(joints[j]).astype(int)
        assert np.abs(crop[y, x].astype(int) - COLORS[color_of(j)]).max() <= 12, (
            f"joint {j} at {x}, {y}"
        )
    return len(inside)


def test_dataset_augmented_keypoints_stay_on_their_pixels(dotted):
    """Over many draws of scale, rotation, half body and mirror: joint j of a mirrored sample
    lies on the dot of j's counterpart.
    """
    table, images = dotted
    dataset = crops(table, images, augmentation=FULL)
    counterpart, mirrored, seen = COCO.flip_indices, 0, 0
    for epoch in range(60):
        crop, joints, visible = sample(dataset, epoch)
        # joint 16 has no label; in a mirrored sample it is its counterpart, 15, that has none
        flipped = visible[15] == 0
        mirrored += flipped
        assert visible.sum() == 16 and (joints[15 if flipped else 16] == 0).all()
        seen += check_dots(
            crop, joints, visible, (lambda j: counterpart[j]) if flipped else (lambda j: j)
        )
    assert 15 < mirrored < 45 and seen > 500


def test_dataset_mirror_swaps_image_and_keypoints(dotted):
    table, images = dotted
    only_mirror = Augmentation(
        flip=True, scale_factor=0.0, rotation_factor=0.0, half_body_prob=0.0, half_body_joints=8
    )
    dataset = crops(table, images, augmentation=only_mirror)
    plain, plain_joints, _ = sample(crops(table, images), 0)
    flipped = next(
        found for found in (sample(dataset, epoch) for epoch in range(20)) if found[2][15] == 0
    )
    # one pixel of the crop is the mirror axis' half-pixel, see poise.structures.crops
    difference = np.abs(flipped[0][:, 1:].astype(int) - plain[:, ::-1][:, :-1]).mean()
    assert difference < 2 < np.abs(flipped[0].astype(int) - plain).mean()
    where = plain_joints[COCO.flip_indices][:15] * (-1, 1) + (SIZE[0], 0)
    assert np.allclose(flipped[1][:15], where, atol=0.01)


def test_dataset_rgb_reverses_channels(dotted):
    table, images = dotted
    bgr, rgb = sample(crops(table, images), 0), sample(crops(table, images, rgb=True), 0)
    assert np.array_equal(bgr[0], rgb[0][:, :, ::-1]) and not np.array_equal(bgr[0], rgb[0])
    x, y = np.round(bgr[1][1]).astype(int)
    # COLORS are BGR, as OpenCV writes them
    assert np.abs(bgr[0][y, x].astype(int) - COLORS[1]).max() <= 12


def test_dataset_person_at_border_is_padded_black(dotted):
    """What lies outside of the image is black, and joints outside of the crop keep their places."""
    table, images = dotted
    center, scale = box_to_center_scale(np.array([[-100.0, -100, 200, 260]]), SIZE[0] / SIZE[1])
    table.center[:], table.scale[:] = center, scale
    crop, joints, _ = sample(crops(table, images), 0)
    # the image's left border is in the middle of the crop
    assert (crop[66, :46] == 0).all() and (crop[66, 50:60] == 75).all()
    assert (joints[:16] > SIZE).any(axis=1).any()


def test_dataset_table_without_labels_gives_crops(dotted):
    table, images = dotted
    bare = replace(table, has_keypoints=False)
    crop, joints, visible = sample(crops(bare, images), 0)
    assert (
        np.array_equal(crop, sample(crops(table, images), 0)[0])
        and not joints.any()
        and not visible.any()
    )


def test_loader_decodes_each_image_once(dotted, monkeypatch):
    """Wherever they stand in a batch, and in the next batch too, in the order of a test."""
    table, images = dotted
    cv2.imwrite(str(images.location / "b.png"), np.zeros((50, 50, 3), np.uint8))
    table = table_of(
        table.keypoints[0],
        table.visibility[0],
        [100, 40, 170, 230],
        ("a.png", "b.png"),
        [0, 0, 1, 0, 1],
    )
    asked = []
    opened = ImageFolder.open
    monkeypatch.setattr(
        ImageFolder, "open", lambda self, name: asked.append(name) or opened(self, name)
    )
    dataset = crops(table, images)
    batch = dataset.__getitems__([(0, person) for person in (0, 1, 2, 3)])
    assert asked == ["a.png", "b.png"]
    assert torch.equal(batch["images"][0], batch["images"][3]) and batch["images"][2].max() == 0
    dataset.__getitems__([(0, 4)])
    assert asked == ["a.png", "b.png"]
    alone = crops(table, images).__getitems__([(0, 3)])
    assert torch.equal(alone["images"][0], batch["images"][3]) and torch.equal(
        alone["joints"][0], batch["joints"][3]
    )
    in_order = EpochBatchSampler(
        5, 2, shuffle=False, seed=0, order=np.argsort(table.image_index, kind="stable")
    )
    assert [person for keys in in_order for _, person in keys] == [0, 1, 3, 2, 4]


# what is drawn depends on (seed, epoch, person) ---------------------------------------------------


def test_dataset_same_key_gives_the_same_sample(dotted):
    table, images = dotted
    table = table_of(table.keypoints[0], table.visibility[0], [100, 40, 170, 230], ["a.png"] * 3)
    dataset = crops(table, images, augmentation=FULL, seed=4)
    key = (7, 1)
    alone = dataset.__getitems__([key])
    among = dataset.__getitems__([(0, 0), (7, 2), key, (9, 1)])
    again = crops(table, images, augmentation=FULL, seed=4).__getitems__([key])
    for name in ("images", "joints", "visible"):
        assert torch.equal(alone[name][0], among[name][2]) and torch.equal(alone[name], again[name])
    others = [dataset.__getitems__([other]) for other in ((8, 1), (7, 0))]
    others.append(crops(table, images, augmentation=FULL, seed=5).__getitems__([key]))
    assert all(not torch.equal(alone["joints"], other["joints"]) for other in others)


def everything(loader):
    return list(loader)


def same(batches, others):
    return len(batches) == len(others) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(batches, others)
    )


def test_loader_any_number_of_workers_gives_equal_batches(small_set, tmp_path):
    """Bit for bit, over two epochs and from the middle of one, as when a run is gone on with."""
    found = []
    for workers in (0, 2):
        cfg = small_config(small_set, tmp_path, "WORKERS", workers)
        loader = build_loader(cfg, *load_split(cfg, train=True), train=True)
        epochs = []
        for epoch, first in ((0, 0), (1, 0), (1, 2)):
            loader.batch_sampler.set_epoch(epoch, first)
            epochs.append(everything(loader))
        found.append(epochs)
    assert all(same(alone, shared) for alone, shared in zip(*found))
    whole, rest = found[0][1:]
    assert len(rest) == len(whole) - 2 and same(whole[2:], rest)
    assert not same(found[0][0], whole)


def test_loader_test_batches_follow_image_order(small_set, tmp_path):
    cfg = small_config(small_set, tmp_path, "WORKERS", 2)
    table, images = load_split(cfg, train=False)
    mixed = np.random.default_rng(0).permutation(len(table))
    for name in ("image_index", "center", "box_wh", "scale", "keypoints", "visibility", "ann_ids"):
        object.__setattr__(table, name, getattr(table, name)[mixed])
    loader = build_loader(cfg, table, images, train=False)
    loader.batch_sampler.set_epoch(3)
    batches = everything(loader)
    persons = torch.cat([batch["person"] for batch in batches]).numpy()
    assert len(loader) == len(batches) and sorted(persons.tolist()) == list(range(len(table)))
    assert (np.diff(table.image_index[persons]) >= 0).all() and not (
        np.diff(table.image_index) >= 0
    ).all()
    loader.batch_sampler.set_epoch(0)
    assert same(batches, everything(loader))  # nothing is drawn
    # a sample is the same in whatever order and company it is made
    alone = build_loader(cfg, table, images, train=False).dataset
    for batch in batches:
        for row, person in enumerate(batch["person"].tolist()):
            one = alone.__getitems__([(7, person)])
            assert torch.equal(one["images"][0], batch["images"][row]) and torch.equal(
                one["joints"][0], batch["joints"][row]
            )


def test_build_loader_batch_size_grows_with_devices(small_set, tmp_path):
    cfg = small_config(small_set, tmp_path, "WORKERS", 0)
    assert (
        build_loader(
            cfg, *load_split(cfg, train=True), train=True, devices=3
        ).batch_sampler.batch_size
        == 24
    )


# batches ------------------------------------------------------------------------------------------


def keys(persons=23, size=5, *, shuffle=True, seed=0, epoch=0, first=0):
    batches = EpochBatchSampler(persons, size, shuffle=shuffle, seed=seed)
    batches.set_epoch(epoch, first)
    return list(batches)


def test_sampler_epoch_contains_each_person_once():
    batches = keys(epoch=6)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3] and len(
        EpochBatchSampler(23, 5, shuffle=True, seed=0)
    ) == 5
    assert sorted(person for batch in batches for _, person in batch) == list(range(23))
    assert {epoch for batch in batches for epoch, _ in batch} == {6}


def test_sampler_order_depends_on_seed_and_epoch_only():
    assert keys(epoch=3) == keys(epoch=3)
    np.random.seed(1), torch.manual_seed(1)
    again = keys(epoch=3)
    assert again == keys(epoch=3) and [p for b in keys(epoch=3) for _, p in b] != [
        p for b in keys(epoch=4) for _, p in b
    ]
    assert keys(epoch=3) != keys(epoch=3, seed=1)
    # the size of a batch cuts the same order elsewhere
    assert [k for batch in keys(size=4) for k in batch] == [
        k for batch in keys(size=7) for k in batch
    ]


def test_sampler_first_batch_skips_earlier_batches():
    assert keys(epoch=2, first=3) == keys(epoch=2)[3:] and keys(epoch=2, first=5) == []


def test_sampler_without_shuffle_keeps_table_order():
    assert [p for batch in keys(shuffle=False, epoch=9) for _, p in batch] == list(range(23))


# faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_unreadable_image_raises_data_error(dotted, workers):
    """Raised in a worker it would come back with the worker's traceback in its text."""
    table, images = dotted
    (images.location / "cut.png").write_bytes((images.location / "a.png").read_bytes()[:300])
    table = table_of(
        table.keypoints[0],
        table.visibility[0],
        [100, 40, 170, 230],
        ["a.png"] * 6 + ["cut.png", "a.png"],
    )
    loader = BatchLoader(
        crops(table, images),
        EpochBatchSampler(8, 2, shuffle=False, seed=0),
        workers=workers,
        pin_memory=False,
    )
    good, message = [], None
    # no pytest.raises: what it keeps makes a circle with the loader, and worker processes that are
    # left to Python's collector of circles end only after a timeout of PyTorch's
    try:
        for batch in loader:
            good.append(batch)
    except DataError as error:
        message = str(error)
    assert (
        len(good) == 3
        and message == f"{images.location}/cut.png: the image file is cut off; download it again"
    )


def test_loader_missing_folder_raises_before_first_batch(dotted, tmp_path):
    table, _ = dotted
    with pytest.raises(DataError, match="nowhere: no such image folder"):
        BatchLoader(
            crops(table, ImageFolder(tmp_path / "nowhere")),
            EpochBatchSampler(1, 1, shuffle=False, seed=0),
            workers=0,
            pin_memory=False,
        )


def test_loader_empty_table_raises(dotted):
    table, images = dotted
    empty = table.select(np.zeros(1, bool), "for this test")
    assert empty.dropped == {"for this test": 1}
    with pytest.raises(
        DataError, match="no person is left to use; DATASET.SELECT_DATA False drops fewer"
    ):
        BatchLoader(
            crops(empty, images),
            EpochBatchSampler(0, 1, shuffle=False, seed=0),
            workers=0,
            pin_memory=False,
        )


@pytest.mark.filterwarnings("error")
def test_loader_more_workers_than_cores_does_not_warn(dotted):
    table, images = dotted
    loader = BatchLoader(
        crops(table, images),
        EpochBatchSampler(1, 1, shuffle=False, seed=0),
        workers=9,
        pin_memory=False,
    )
    assert len(loader) == 1


# DATASET.SELECT_DATA ------------------------------------------------------------------------------


def test_select_data_keeps_keypoints_near_box_center(dotted):
    table, _ = dotted
    table = table_of(table.keypoints[0], table.visibility[0], [100, 40, 170, 230], ["a.png"] * 4)
    table.keypoints[:] = table.center[:, None]  # all joints in the middle
    table.keypoints[1] += table.scale[1] * 200 * 0.5  # half a box away
    table.visibility[2] = 0
    # one joint may be further away than seventeen: similarity exp(-0.5) = 0.61 against 0.45 and
    # 0.65
    distance = 0.2 * np.sqrt(table.scale[3].prod()) * 200
    table.keypoints[3] += (distance, 0)
    assert select_data(table).tolist() == [True, False, False, False]
    table.visibility[3, 1:] = 0
    assert select_data(table).tolist() == [True, False, False, True]


def test_person_table_select_keeps_rows_together(small_set, tmp_path):
    table = coco.read_table(small_config(small_set, tmp_path), "train2017", detections=False)
    keep = np.arange(len(table)) % 3 == 1
    part = table.select(keep, "for this test")
    assert part.ann_ids.tolist() == table.ann_ids[keep].tolist()
    assert [part.image_name(0), part.image_name(2)] == [table.image_name(1), table.image_name(7)]
    assert np.array_equal(part.keypoints, table.keypoints[keep]) and part.dropped[
        "for this test"
    ] == int((~keep).sum())
    assert table.select(np.ones(len(table), bool), "nothing").dropped == table.dropped
