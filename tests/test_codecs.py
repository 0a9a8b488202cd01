"""The Gaussian codec against the figures of HRNet's code, and against a slow twin."""
import numpy as np
import pytest
import torch
from filling import generator

from poise.codecs.flip import merge_flipped
from poise.codecs.gaussian import Gaussian
from poise.geometry import crop_to_image
from poise.skeleton import COCO


def slow_encode(joints, visible, stride, heatmap_size, sigma):
    """HRNet's rule written as loops: one patch per joint, copied where it lies inside."""
    width, height = heatmap_size
    target, weight = np.zeros((len(joints), height, width), np.float32), visible.astype(np.float32).copy()
    for j, (x, y) in enumerate(joints):
        column, row = int(x / stride[0] + 0.5), int(y / stride[1] + 0.5)
        left, top, right, bottom = column - 3 * sigma, row - 3 * sigma, column + 3 * sigma + 1, row + 3 * sigma + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weight[j] = 0
        elif weight[j] > 0.5:
            for v in range(max(top, 0), min(bottom, height)):
                for u in range(max(left, 0), min(right, width)):
                    target[j, v, u] = np.exp(-((u - column) ** 2 + (v - row) ** 2) / (2 * sigma**2))
    return target, weight


def test_targets_of_hrnet(pipeline):
    for crop in pipeline["crops"]:
        width, height = crop["image_size"]
        joints = torch.tensor(crop["joints"], dtype=torch.float32).reshape(1, -1, 2)
        visible = torch.tensor(crop["visible"], dtype=torch.float32)[None]
        target, weight, _ = Gaussian((width, height), (width // 4, height // 4), crop["sigma"]).encode(joints, visible)
        flat = target.reshape(-1).double().numpy()
        assert np.abs(flat[crop["target"]["index"]] - crop["target"]["value"]).max() < 1e-6
        assert flat.sum() == pytest.approx(crop["target"]["sum"], abs=1e-3)
        assert weight.reshape(-1).tolist() == crop["target"]["weight"]


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_targets_of_a_slow_twin(sigma):
    """Joints everywhere, also around and beyond the border, where the rules are subtle."""
    rng = np.random.default_rng(sigma)
    joints = rng.uniform(-60, 260, (40, 17, 2)).astype(np.float32)
    visible = (rng.random((40, 17)) < 0.8).astype(np.float32)
    target, weight, _ = Gaussian((192, 256), (48, 64), sigma).encode(torch.from_numpy(joints), torch.from_numpy(visible))
    for i in range(40):
        want, want_weight = slow_encode(joints[i], visible[i], (4, 4), (48, 64), sigma)
        assert np.abs(target[i].numpy() - want).max() < 1e-6
        assert (weight[i, :, 0].numpy() == want_weight).all()


def test_decoding_of_hrnet(pipeline):
    for record in pipeline["decode"]:
        width, height = record["heatmap_size"]
        rng = generator(0, f"decode/{width}x{height}")
        heatmaps = (0.05 * rng.standard_normal((6, 17, height, width))).astype(np.float32)
        columns, rows = np.meshgrid(np.arange(width), np.arange(height))
        for b in range(6):
            for j in range(17):
                x, y = rng.uniform(-2, width + 1), rng.uniform(-2, height + 1)
                heatmaps[b, j] += np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8).astype(np.float32)
        heatmaps[5, 3], heatmaps[4, 2] = -1, 0
        assert heatmaps.astype(np.float64).sum() == pytest.approx(record["heatmap_sum"], abs=1e-2)
        coords, scores = Gaussian((4 * width, 4 * height), (width, height)).decode(heatmaps)
        center, scale = np.array(record["center"]).reshape(-1, 2), np.array(record["scale"]).reshape(-1, 2)
        ours = crop_to_image(coords, center, scale, (4 * width, 4 * height))
        assert np.abs(ours - np.array(record["coords"]).reshape(ours.shape)).max() < 1e-3
        assert np.abs(scores - np.array(record["maxvals"]).reshape(scores.shape)).max() < 1e-6


def test_encode_then_decode_finds_the_joint():
    """Within half a cell, and the quarter offset is at most a quarter."""
    rng = np.random.default_rng(1)
    joints = rng.uniform((12, 12), (180, 244), (8, 17, 2)).astype(np.float32)
    codec = Gaussian((192, 256), (48, 64), 2, refine="none")
    coords, scores = codec.decode(codec.encode(torch.from_numpy(joints), torch.ones(8, 17)).heatmaps.numpy())
    assert np.abs(coords - joints).max() <= 2.0
    assert (scores == 1).all()


def test_decode_of_small_heatmaps():
    """Nothing is read outside the map, whatever its size."""
    for shape in ((1, 1, 1, 1), (2, 3, 2, 2), (1, 2, 3, 1), (1, 1, 1, 9)):
        size = (shape[3], shape[2])
        coords, scores = Gaussian(size, size).decode(np.random.default_rng(0).random(shape).astype(np.float32))
        assert coords.shape == (*shape[:2], 2) and scores.shape == shape[:2]
        assert (coords[..., 0] < shape[3]).all() and (coords[..., 1] < shape[2]).all()


def test_flip_merge():
    """A prediction for the mirrored image that is the mirror of the prediction changes nothing."""
    order = torch.from_numpy(COCO.flip_order)
    heatmaps = torch.rand(2, 17, 6, 5)
    mirrored = heatmaps.flip(3)[:, order]
    assert torch.equal(merge_flipped(heatmaps, mirrored, order, shift=False), heatmaps)
    shifted = merge_flipped(heatmaps, mirrored, order, shift=True)
    assert torch.allclose(shifted[..., 1:], (heatmaps[..., 1:] + heatmaps[..., :-1]) / 2)
    assert torch.equal(shifted[..., 0], heatmaps[..., 0])
