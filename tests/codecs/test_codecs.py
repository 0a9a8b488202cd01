"""Test the heatmap codecs against HRNet's recorded figures and plain loops."""

import cv2
import numpy as np
import pytest
import torch
from poise import config
from poise.codecs import build_codec, codec_class, flip
from poise.codecs.dark import Dark
from poise.codecs.flip import average_flipped
from poise.codecs.gaussian import Gaussian
from poise.codecs.megvii import Megvii
from poise.codecs.peaks import blur, find_peaks
from poise.codecs.udp import Udp
from poise.config.dataset_yaml import COCO
from poise.structures.crops import crop_matrix, crop_person, crop_to_image
from support.golden_inputs import generator


def slow_encode(joints, visible, stride, heatmap_size, sigma):
    """HRNet's encoding as loops: copy the part of one patch per keypoint that is inside."""
    width, height = heatmap_size
    target, weight = (
        np.zeros((len(joints), height, width), np.float32),
        visible.astype(np.float32).copy(),
    )
    for j, (x, y) in enumerate(joints):
        column, row = int(x / stride[0] + 0.5), int(y / stride[1] + 0.5)
        left, top, right, bottom = (
            column - 3 * sigma,
            row - 3 * sigma,
            column + 3 * sigma + 1,
            row + 3 * sigma + 1,
        )
        if left >= width or top >= height or right < 0 or bottom < 0:
            weight[j] = 0
        elif weight[j] > 0.5:
            for v in range(max(top, 0), min(bottom, height)):
                for u in range(max(left, 0), min(right, width)):
                    target[j, v, u] = np.exp(-((u - column) ** 2 + (v - row) ** 2) / (2 * sigma**2))
    return target, weight


def test_gaussian_encode_recorded_keypoints_equals_hrnet(pipeline):
    for crop in pipeline["crops"]:
        width, height = crop["image_size"]
        joints = torch.tensor(crop["joints"], dtype=torch.float32).reshape(1, -1, 2)
        visible = torch.tensor(crop["visible"], dtype=torch.float32)[None]
        targets = Gaussian((width, height), (width // 4, height // 4), crop["sigma"]).encode(
            joints, visible
        )
        target, weight = targets.heatmaps, targets.weight
        flat = target.reshape(-1).double().numpy()
        assert np.abs(flat[crop["target"]["index"]] - crop["target"]["value"]).max() < 1e-6
        assert flat.sum() == pytest.approx(crop["target"]["sum"], abs=1e-3)
        assert weight.reshape(-1).tolist() == crop["target"]["weight"]


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_gaussian_encode_random_keypoints_equals_plain_loops(sigma):
    """Keypoints are also on and outside the border."""
    rng = np.random.default_rng(sigma)
    joints = rng.uniform(-60, 260, (40, 17, 2)).astype(np.float32)
    visible = (rng.random((40, 17)) < 0.8).astype(np.float32)
    targets = Gaussian((192, 256), (48, 64), sigma).encode(
        torch.from_numpy(joints), torch.from_numpy(visible)
    )
    target, weight = targets.heatmaps, targets.weight
    for i in range(40):
        want, want_weight = slow_encode(joints[i], visible[i], (4, 4), (48, 64), sigma)
        assert np.abs(target[i].numpy() - want).max() < 1e-6
        assert (weight[i, :, 0].numpy() == want_weight).all()


def test_gaussian_decode_recorded_heatmaps_equals_hrnet(pipeline):
    for record in pipeline["decode"]:
        width, height = record["heatmap_size"]
        rng = generator(0, f"decode/{width}x{height}")
        heatmaps = (0.05 * rng.standard_normal((6, 17, height, width))).astype(np.float32)
        columns, rows = np.meshgrid(np.arange(width), np.arange(height))
        for b in range(6):
            for j in range(17):
                x, y = rng.uniform(-2, width + 1), rng.uniform(-2, height + 1)
                heatmaps[b, j] += np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8).astype(
                    np.float32
                )
        heatmaps[5, 3], heatmaps[4, 2] = -1, 0
        assert heatmaps.astype(np.float64).sum() == pytest.approx(record["heatmap_sum"], abs=1e-2)
        coords, scores = Gaussian((4 * width, 4 * height), (width, height)).decode(heatmaps)
        center, scale = (
            np.array(record["center"]).reshape(-1, 2),
            np.array(record["scale"]).reshape(-1, 2),
        )
        ours = crop_to_image(coords, center, scale, (4 * width, 4 * height))
        assert np.abs(ours - np.array(record["coords"]).reshape(ours.shape)).max() < 1e-3
        assert np.abs(scores - np.array(record["maxvals"]).reshape(scores.shape)).max() < 1e-6


def test_gaussian_decode_without_refinement_is_within_half_a_cell():
    """Keypoints are found within half a cell."""
    rng = np.random.default_rng(1)
    joints = rng.uniform((12, 12), (180, 244), (8, 17, 2)).astype(np.float32)
    codec = Gaussian((192, 256), (48, 64), 2, refine="none")
    coords, scores = codec.decode(
        codec.encode(torch.from_numpy(joints), torch.ones(8, 17)).heatmaps.numpy()
    )
    assert np.abs(coords - joints).max() <= 2.0
    assert (scores == 1).all()


def test_gaussian_decode_tiny_heatmaps_stays_inside():
    """No cell outside the heatmap is read."""
    for shape in ((1, 1, 1, 1), (2, 3, 2, 2), (1, 2, 3, 1), (1, 1, 1, 9)):
        size = (shape[3], shape[2])
        coords, scores = Gaussian(size, size).decode(
            np.random.default_rng(0).random(shape).astype(np.float32)
        )
        assert coords.shape == (*shape[:2], 2) and scores.shape == shape[:2]
        assert (coords[..., 0] < shape[3]).all() and (coords[..., 1] < shape[2]).all()


def test_average_flipped_mirrored_prediction_is_unchanged():
    """The mirrored prediction of the mirrored image changes nothing."""
    order = torch.from_numpy(COCO.flip_indices)
    heatmaps = torch.rand(2, 17, 6, 5)
    mirrored = heatmaps.flip(3)[:, order]
    assert torch.equal(average_flipped(heatmaps, mirrored, order, shift=False), heatmaps)
    shifted = average_flipped(heatmaps, mirrored, order, shift=True)
    assert torch.allclose(shifted[..., 1:], (heatmaps[..., 1:] + heatmaps[..., :-1]) / 2)
    assert torch.equal(shifted[..., 0], heatmaps[..., 0])


# dark, udp, and what all codecs have in common ----------------------------------------------------

SIZES = (192, 256), (48, 64)
KINDS = {
    "gaussian": Gaussian(*SIZES),
    "dark": Dark(*SIZES, refine="dark", blur_kernel=11),
    "udp": Udp(*SIZES, refine="udp", blur_kernel=11),
    "megvii": Megvii(*SIZES, refine="megvii", blur_kernel=5),
}


def some_joints(count=6, margin=25):
    return (
        np.random.default_rng(2)
        .uniform((margin, margin), (192 - margin, 256 - margin), (count, 17, 2))
        .astype(np.float32)
    )


@pytest.mark.parametrize(
    "name, bound", [("gaussian", 2.1), ("dark", 0.1), ("udp", 0.1), ("megvii", 3.01)]
)
def test_codec_encode_then_decode_recovers_the_keypoints(name, bound):
    """The error is at most half a cell plus the quarter offset, or nearly 0 for subpixel codecs."""
    joints = some_joints()
    targets = KINDS[name].encode(torch.from_numpy(joints), torch.full((6, 17), 2.0))
    coords, scores = KINDS[name].decode(targets.finest_heatmaps.numpy())
    assert (
        np.abs(coords - joints).max() < bound
        and (targets.weight == 1).all()
        and (targets.visible_mask == 1).all()
    )
    assert coords.dtype == scores.dtype == np.float32


@pytest.mark.parametrize("name", KINDS)
def test_codec_encode_hidden_and_unlabeled_keypoints_sets_weights(name):
    targets = KINDS[name].encode(
        torch.from_numpy(some_joints(1)), torch.tensor([[0.0, 1.0] + [2.0] * 15])
    )
    assert (
        targets.weight[0, :, 0].tolist() == [0] + [1] * 16
        and targets.visible_mask[0, :, 0].tolist() == [0, 0] + [1] * 15
    )
    assert targets.finest_heatmaps[0, 0].max() == 0 and targets.finest_heatmaps[0, 1].max() > 0.5


def test_dark_and_udp_encode_centers_at_subpixel_position():
    """Gaussians are centered at the exact position; UDP uses W - 1 pixels and truncates them."""
    joints = torch.tensor([[[101.0, 77.0]]])
    rows, columns = np.mgrid[:64, :48]
    for codec, (x, y), is_cut in (
        (Dark(*SIZES, sigma=3), (101 / 4, 77 / 4), False),
        (Udp(*SIZES, sigma=3), (101 * 47 / 191, 77 * 63 / 255), True),
    ):
        wanted = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
        if is_cut:
            wanted *= (np.abs(columns - round(x)) <= 9) & (np.abs(rows - round(y)) <= 9)
        assert (
            np.abs(codec.encode(joints, torch.ones(1, 1)).heatmaps[0, 0].numpy() - wanted).max()
            < 1e-6
        )


def test_dark_and_udp_encode_outside_keypoints_have_no_weight():
    joints = torch.tensor([[[-40.0, 10.0], [10.0, 300.0], [-10.0, 10.0], [195.0, 10.0]]])
    for name in ("dark", "udp"):
        assert KINDS[name].encode(joints, torch.ones(1, 4)).weight[0, :, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "name, exact", [("udp", True), ("megvii", True), ("gaussian", False), ("dark", False)]
)
def test_codec_encode_mirrored_crop_matches_flip_aligned(name, exact):
    """UDP and MSPN heatmaps are flip-aligned; HRNet's are not, hence TEST.SHIFT_HEATMAP."""
    codec, joints = KINDS[name], np.round(some_joints())
    mirrored = joints.copy()
    mirrored[:, :, 0] = 191 - mirrored[:, :, 0]
    maps, back = (
        codec.encode(torch.from_numpy(j), torch.ones(6, 17)).finest_heatmaps
        for j in (joints, mirrored)
    )
    worst = float((maps - back.flip(3)).abs().max()) / codec.peak_value
    assert codec.flip_aligned == exact and (worst < 1e-5) == exact


def test_cut_unbiased_mirrored_image_gives_mirrored_crop():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (300, 400, 3), np.uint8), (9, 9), 0)
    place = {"scale": np.array([0.9, 1.2]), "rotation": 0.0, "mirrored": False, "size": (192, 256)}
    for udp in (True, False):
        plain, _ = crop_person(image, np.array([180.0, 140.0]), **place, udp=udp)
        mirrored, _ = crop_person(
            np.ascontiguousarray(image[:, ::-1]),
            np.array([399 - 180.0, 140.0]),
            **place,
            udp=udp,
        )
        assert (np.abs(plain.astype(int) - mirrored[:, ::-1]).max() <= 1) == udp


def test_crop_matrix_unbiased_square_box_uses_width():
    """MPII boxes are square for any input size; only their width sets the zoom."""
    matrix = crop_matrix(np.array([100.0, 100.0]), np.array([1.0, 1.0]), 0.0, (192, 256), udp=True)
    assert matrix[0, 0] == pytest.approx(191 / 200) and matrix[1, 1] == pytest.approx(
        255 / (200 * 256 / 192)
    )


def test_udp_decode_at_the_border_refines_within_limits():
    """Refinement moves at most one and a half cells from the keypoint."""
    joints = np.array([[[2.0, 250.0], [188.0, 5.0], [0.0, 0.0]]], np.float32)
    coords, _ = KINDS["udp"].decode(
        KINDS["udp"].encode(torch.from_numpy(joints), torch.ones(1, 3)).heatmaps.numpy()
    )
    assert 0 < np.abs(coords - joints).max() < 6


def test_blur_two_heatmaps_are_independent():
    maps = np.zeros((1, 2, 20, 16), np.float32)
    maps[0, 0] = 1
    for kernel in (5, 11, 17, 31):
        alone = cv2.GaussianBlur(maps[0, 0], (kernel, kernel), 0, borderType=cv2.BORDER_CONSTANT)
        assert (
            np.abs(blur(maps, kernel)[0, 0] - alone).max() < 1e-6
            and blur(maps, kernel)[0, 1].max() == 0
        )


@pytest.mark.parametrize(
    "overrides, refine, kernel",
    [
        ([], "none", 11),
        (["TEST.POST_PROCESS", True], "quarter", 11),
        (["TEST.POST_PROCESS", True, "TEST.DECODE", "dark"], "dark", 11),
        (["TEST.POST_PROCESS", True, "TEST.DECODE", "dark", "MODEL.SIGMA", 3], "dark", 17),
        (["TEST.POST_PROCESS", True, "TEST.DECODE", "dark", "TEST.BLUR_KERNEL", 7], "dark", 7),
        (["TEST.POST_PROCESS", True, "MODEL.TARGET_TYPE", "dark"], "dark", 11),
        (["TEST.POST_PROCESS", True, "MODEL.TARGET_TYPE", "udp"], "udp", 11),
        (["TEST.POST_PROCESS", True, "MODEL.TARGET_TYPE", "megvii"], "megvii", 5),
        (
            ["TEST.POST_PROCESS", True, "MODEL.TARGET_TYPE", "megvii", "TEST.BLUR_KERNEL", 9],
            "megvii",
            9,
        ),
        (
            [
                "TEST.POST_PROCESS",
                True,
                "MODEL.TARGET_TYPE",
                "megvii",
                "TEST.BLUR_KERNEL",
                9,
                "TEST.DECODE",
                "dark",
            ],
            "dark",
            11,
        ),
    ],
)
def test_build_codec_config_sets_type_and_refinement(overrides, refine, kernel, tmp_path):
    (tmp_path / "e.yaml").write_text("MODEL: {NUM_JOINTS: 16}\nTEST: {EMPTY_CELL: -1}\n")
    codec = build_codec(config.load(tmp_path / "e.yaml", overrides))
    assert (codec.refine, codec.blur_kernel, codec.empty_cell) == (refine, kernel, -1)
    assert type(codec) is codec_class(
        dict(zip(overrides[::2], overrides[1::2])).get("MODEL.TARGET_TYPE", "gaussian")
    )


def test_gaussian_decode_empty_heatmap_returns_configured_cell():
    """Heatmaps without positive values decode to cell 0, or -1 as in mmpose, unrefined."""
    maps = np.full((1, 2, 64, 48), -1, np.float32)
    maps[0, 1, 30, 20] = 0.5
    for cell in (0, -1):
        coords, scores = Gaussian(*SIZES, empty_cell=cell).decode(maps)
        assert (
            coords[0, 0].tolist() == [4 * cell, 4 * cell]
            and coords[0, 1].tolist() == [80, 120]
            and scores[0].tolist() == [-1, 0.5]
        )


def test_gaussian_encode_peak_cells_equal_heatmap_maxima():
    """Peaks computed from keypoints equal the maxima of the heatmaps, for keypoints inside and
    outside the crop, labeled or not.
    """
    from poise.codecs.heatmap import pck_accuracy

    rng = np.random.default_rng(11)
    for sigma in (0.4, 1, 2, 3):
        codec = Gaussian((96, 128), (24, 32), sigma)
        joints = torch.from_numpy(rng.uniform(-0.6, 1.6, (400, 17, 2)) * (96, 128)).float()
        # exactly on cells, and on the borders of the rules
        joints[:50] = torch.trunc(joints[:50] / 4) * 4
        visible = torch.from_numpy(rng.integers(0, 3, (400, 17))).float()
        targets = codec.encode(joints, visible)
        cells, values = find_peaks(targets.finest_heatmaps.numpy())
        assert np.array_equal(targets.peaks.numpy(), cells * (values > 0)[:, :, None])
        # an empty map with a weight, too
        assert ((values == 0) & (targets.weight[:, :, 0].numpy() > 0)).any()
        output = codec.encode(
            joints + torch.from_numpy(rng.normal(0, 6, joints.shape)).float(), visible
        ).finest_heatmaps
        wanted = pck_accuracy(output, targets.finest_heatmaps)
        assert wanted == pck_accuracy(
            output, targets.finest_heatmaps, maxima=find_peaks(output.numpy()), peaks=targets.peaks
        )
        # NumPy's search against PyTorch's
        assert (
            wanted == pck_accuracy(output.double(), targets.finest_heatmaps.double())
            and 0 < wanted[0] < wanted[1]
        )
    for name in ("dark", "udp", "megvii"):
        assert KINDS[name].encode(torch.zeros(1, 17, 2), torch.ones(1, 17)).peaks is None


def test_codec_decode_given_peaks_equals_decode_without():
    for codec in KINDS.values():
        maps = codec.encode(
            torch.from_numpy(some_joints(4)), torch.full((4, 17), 2.0)
        ).finest_heatmaps.numpy()
        for one, other in zip(codec.decode(maps), codec.decode(maps, find_peaks(maps))):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("way", ["compiled", "numpy"])
def test_average_flipped_one_pass_equals_pytorch(way, shift, monkeypatch):
    if way == "numpy":
        monkeypatch.setattr(flip, "_compiled", None)
    elif flip._compiled is None:
        pytest.skip("poise.codecs._flip is not built here")
    maps = torch.randn(2, 3, 17, 16, 12, generator=torch.Generator().manual_seed(3))
    order = torch.from_numpy(COCO.flip_indices)
    for one, other in (
        maps,
        maps.contiguous(memory_format=torch.preserve_format)
        .transpose(3, 4)
        .contiguous()
        .transpose(3, 4),
    ):
        found = average_flipped(one, other, order, shift)
        assert torch.equal(
            found, average_flipped(one.clone().requires_grad_(), other, order, shift).detach()
        )
