"""Test the compiled warp: equal to cv2.warpAffine, which is the fallback."""

import os
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from poise.structures import warp as warping
from poise.structures.crops import crop_person, person_crop_matrix
from poise.structures.warp import warp
from support.paths import ROOT

# not of its own answer whether it is equal: a fault in it would skip the tests that are there to
# find it
compiled = pytest.mark.skipif(
    warping._warp is None
    or not warping._warp.usable()
    or int(cv2.__version__.split(".")[0]) < 5
    or "OPENCV_CPU_DISABLE" in os.environ,
    reason=(
        "poise.structures._warp is not built here, this processor lacks AVX2 or FMA, or OpenCV is"
        " older than 5 or kept from them"
    ),
)


def opencv(image, matrix, size):
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)


def noise(rng, width, height):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def check(image, matrix, size):
    wanted = opencv(image, matrix, size)
    # a row more, which must stay as it is
    room = np.full((size[1] + 1, size[0], 3), 77, np.uint8)
    assert np.array_equal(warp(image, matrix, size, room[:-1]), wanted), (
        image.shape,
        matrix.tolist(),
        size,
    )
    assert (room[-1] == 77).all()
    assert np.array_equal(warp(image, matrix, size, rgb=True), wanted[:, :, ::-1])
    return wanted.any()


def turned(rng, image_size, size, rotated):
    """Return a matrix that zooms, mirrors and may rotate, centered in or near the image."""
    angle, zoom = rng.uniform(-np.pi, np.pi) * rotated, np.exp(rng.uniform(np.log(0.2), np.log(4)))
    linear = (
        zoom
        * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        * (rng.choice([-1, 1]), 1)
    )
    return np.column_stack(
        [linear, np.array(size) / 2 - linear @ (np.array(image_size) * rng.uniform(-0.3, 1.3, 2))]
    )


@compiled
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("most", [8, 40, 300])
def test_warp_random_matrices_equals_opencv(rotated, most):
    """Crops of all sizes inside, across and outside the border."""
    rng = np.random.default_rng(most)
    full = 0
    for _ in range(600):
        width, height, *size = (int(v) for v in rng.integers(1, (most, most, 150, 90)))
        full += check(
            noise(rng, width, height), turned(rng, (width, height), size, rotated), tuple(size)
        )
    assert 150 < full < 600


@compiled
def test_warp_degenerate_matrices_equals_opencv():
    """Singular and sheared matrices, values beyond 32-bit integers, NaN and infinity."""
    rng = np.random.default_rng(1)
    for case in range(1500):
        width, height, *size = (int(v) for v in rng.integers(1, (60, 60, 70, 50)))
        matrix = rng.normal(size=(2, 3)) * 10.0 ** rng.integers(-12, 13, (2, 3))
        if case % 3 == 0:
            matrix[rng.random((2, 3)) < 0.3] = rng.choice([0, np.nan, np.inf, -np.inf, 1, 1e300])
        if case % 3 == 1:  # as good as not turned: what is left of rounding
            matrix[[0, 1], [1, 0]] = rng.normal(size=2) * 1e-14
            matrix[:, 2] *= rng.integers(0, 2, 2)
        check(noise(rng, width, height), matrix, tuple(size))


@compiled
@pytest.mark.parametrize(
    "image_size", [(1, 1), (2, 2), (1, 50), (50, 1), (5, 2), (3000, 3), (3, 3000)]
)
def test_warp_small_and_narrow_images_equals_opencv(image_size):
    rng = np.random.default_rng(2)
    for case in range(100):
        size = [(16, 16), (1, 1), (33, 9), (48, 64)][case % 4]
        check(noise(rng, *image_size), turned(rng, image_size, size, case % 2), size)
    identity = np.eye(2, 3)
    assert np.array_equal(warp(image := noise(rng, *image_size), identity, image_size), image)


@compiled
@pytest.mark.parametrize("size", [(192, 256), (288, 384), (1040, 70), (200, 30)])
def test_warp_person_crops_equals_opencv(size):
    """Common sizes in training and test; 1040 exceeds the fast path of upright crops."""
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(noise(rng, 640, 427), (0, 0), 2)
    for case in range(30):
        extent = rng.uniform(20, 500)
        scale, rotation = (
            np.array([extent * size[0] / size[1], extent]) / 200,
            [0.0, rng.uniform(-90, 90)][case % 2],
        )
        center, mirrored, udp = rng.uniform(0, (640, 427)), case % 4 > 1, case % 3 == 0
        crop, matrix = crop_person(image, center, scale, rotation, mirrored, size, udp)
        assert np.array_equal(
            matrix, person_crop_matrix(640, center, scale, rotation, mirrored, size, udp)
        )
        assert np.array_equal(crop, opencv(image, matrix, size)) and crop.any()


@compiled
def test_warp_real_images_equals_opencv(shared):
    rng = np.random.default_rng(4)
    files = (
        sorted((shared / "data" / "coco_subset").rglob("*.jpg"))[::25]
        + sorted((shared / "data" / "mpii_subset").rglob("*.jpg"))[:3]
    )
    assert len(files) > 8
    for file in files:
        image = cv2.imread(str(file))
        for rotated in (False, True):
            check(image, turned(rng, image.shape[1::-1], (192, 256), rotated), (192, 256))


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected as Linux does it")
def test_warp_reads_nothing_outside_the_image():
    """In a separate process: access to the pages around the image ends it."""
    program = """
import ctypes, mmap
import numpy as np
from poise.structures import warp
pages = mmap.mmap(-1, 5 * mmap.PAGESIZE)
memory = np.frombuffer(pages, np.uint8)
libc, start = ctypes.CDLL(None, use_errno=True), memory.ctypes.data
for page in (0, 4):
    begin = ctypes.c_void_p(start + page * mmap.PAGESIZE)
    assert libc.mprotect(begin, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
rng = np.random.default_rng(0)
assert warp.compiled_is_equal()
for case in range(3000):
    width, height = rng.integers(1, (70, 55))
    begin = [mmap.PAGESIZE, 4 * mmap.PAGESIZE - width * height * 3][case % 2]
    image = memory[begin:begin + width * height * 3].reshape(height, width, 3)
    angle, zoom = rng.uniform(-4, 4) * rng.integers(0, 2), rng.uniform(0.2, 3)
    linear = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = (20, 15) - linear @ (rng.uniform(0, 1, 2) * (width, height))
    warp.warp(image, np.column_stack([linear, shift]), (45, 30))
print("untouched")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
    )
    assert done.stdout == "untouched\n", (done.returncode, done.stderr)


# where it is not used -----------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Reset the cached check before and after the test."""
    warping.compiled_is_equal.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    warping.compiled_is_equal.cache_clear()


def test_warp_not_built_uses_opencv(asked):
    asked.setattr(warping, "_warp", None)
    assert not warping.compiled_is_equal()
    rng = np.random.default_rng(5)
    check(noise(rng, 90, 70), turned(rng, (90, 70), (40, 50), True), (40, 50))


def test_warp_unsupported_processor_uses_opencv(asked):
    asked.setattr(warping, "_warp", SimpleNamespace(usable=lambda: False))
    assert not warping.compiled_is_equal()
    rng = np.random.default_rng(6)
    check(noise(rng, 90, 70), turned(rng, (90, 70), (40, 50), True), (40, 50))


def unfused(image, matrix, size, **_):
    """What OpenCV computes without fused multiply-add inside the image; the rest is OpenCV's."""
    inverse = cv2.invertAffineTransform(matrix).astype(np.float32)
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    places = [x * row[0] + (y * row[1] + row[2]) for row in inverse]
    column, row = (np.floor(place).astype(int) for place in places)
    right, down = ((place - np.floor(place))[..., None] for place in places)
    inside = (column >= 0) & (row >= 0) & (column < image.shape[1] - 1) & (row < image.shape[0] - 1)
    column, row = np.where(inside, column, 0), np.where(inside, row, 0)
    corners = [image[row + dy, column + dx].astype(np.float32) for dy in (0, 1) for dx in (0, 1)]
    top, bottom = (corners[n] + right * (corners[n + 1] - corners[n]) for n in (0, 2))
    crop = np.rint(top + down * (bottom - top)).astype(np.uint8)
    return np.where(
        inside[..., None], crop, opencv_crop(image, matrix, size, flags=cv2.INTER_LINEAR)
    )


def rounded_places(image, matrix, size, **_):
    """OpenCV 4: coordinates rounded to 1/32 pixel."""
    inverse = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[: size[1], : size[0]]
    places = [
        (np.rint((row[0] * x + row[1] * y + row[2]) * 32) / 32).astype(np.float32)
        for row in inverse
    ]
    return cv2.remap(image, *places, cv2.INTER_LINEAR)


opencv_crop = cv2.warpAffine


@compiled
@pytest.mark.parametrize("other", [unfused, rounded_places])
def test_compiled_is_equal_other_opencv_is_false(asked, other):
    assert warping.compiled_is_equal()
    warping.compiled_is_equal.cache_clear()
    asked.setattr(cv2, "warpAffine", other)
    assert not warping.compiled_is_equal()


@compiled
def test_compiled_is_equal_opencv_without_avx2_is_false():
    """In a separate process, because OpenCV selects instructions at import."""
    program = (
        "from poise.structures import warp; print(warp._warp.usable(), warp.compiled_is_equal())"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "lib"), **less},
        ).stdout
        for less in ({}, {"OPENCV_CPU_DISABLE": "AVX2"})
    ]
    assert answers == ["True True\n", "True False\n"]


@compiled
@pytest.mark.parametrize(
    "view",
    [
        lambda i: i.astype(np.float32),
        lambda i: i[:, ::-1],
        lambda i: i[:, ::2],
        lambda i: np.tile(i, (1, 700, 1)),
    ],
    ids=["floats", "mirrored", "with gaps", "too wide"],
)
def test_warp_unsupported_image_uses_opencv(monkeypatch, view):
    assert warping.compiled_is_equal()
    monkeypatch.setattr(warping, "_warp", None)
    image, matrix = (
        view(noise(np.random.default_rng(7), 50, 30)),
        np.array([[1.5, 0, 3], [0, 1.5, 4]]),
    )
    crop = warp(image, matrix, (20, 25))
    assert crop.dtype == image.dtype and np.array_equal(crop, opencv(image, matrix, (20, 25)))


@compiled
@pytest.mark.parametrize(
    "shapes",
    [
        ((5, 5, 4), (2, 3), (9, 9, 3)),
        ((5, 5, 3), (3, 3), (9, 9, 3)),
        ((0, 5, 3), (2, 3), (9, 9, 3)),
        ((5, 5, 3), (2, 3), (9, 0, 3)),
        ((2, 32767, 3), (2, 3), (9, 9, 3)),
    ],
)
def test_compiled_warp_invalid_shapes_raises(shapes):
    image, matrix, out = (
        np.zeros(shape, np.float64 if n == 1 else np.uint8) for n, shape in enumerate(shapes)
    )
    with pytest.raises(ValueError):
        warping._warp.warp(image, matrix, out, False)
