"""Test image decoders: pixels of images and regions equal OpenCV."""

import cv2
import numpy as np
import pytest
from poise.io import decoding
from poise.io.decoding import EncodedImage
from poise.structures.crops import person_crop_matrix, source_roi

compiled = pytest.mark.skipif(
    decoding._jpeg is None,
    reason="poise.io._jpeg is not built here: libjpeg-turbo's header was not found",
)


def picture(seed=0, width=203, height=157):
    """Return smooth shapes with noise, so that every JPEG coefficient matters."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.integers(0, 256, (9, 11, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


SAMPLINGS = {
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


def jpeg(image, kind="444", quality=88):
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    if kind in SAMPLINGS:
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[kind]]
    options += {
        "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
    }.get(kind, [])
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if kind == "gray" else image, options
    )
    assert done
    return data.tobytes()


def opencv(data):
    return cv2.imdecode(
        np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    )


KINDS = [*SAMPLINGS, "gray", "progressive", "restarts"]


@pytest.fixture(params=["_jpeg", "simplejpeg", "opencv"])
def decoder(request, monkeypatch):
    """Disable all decoders but this one and OpenCV."""
    for name in ("_jpeg", "simplejpeg"):
        if name != request.param:
            monkeypatch.setattr(decoding, name, None)
        elif getattr(decoding, name) is None:
            pytest.skip(f"{name} is not here")
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(203, 157), (16, 8), (1, 1), (33, 240)])
def test_encoded_image_pixels_equal_opencv(decoder, kind, size):
    data = jpeg(picture(1, *size), kind)
    found = EncodedImage(data)
    assert found.size == size and np.array_equal(found.pixels, opencv(data))


def test_encoded_image_uses_the_fast_decoder(monkeypatch):
    """The test above would also pass with OpenCV only."""
    monkeypatch.setattr(cv2, "imdecode", None)
    if decoding._jpeg is None and decoding.simplejpeg is None:
        pytest.skip("neither _jpeg nor simplejpeg is here")
    for kind in ("444", "422", "420", "gray", "restarts"):
        assert EncodedImage(jpeg(picture(), kind)).pixels is not None
    if decoding._jpeg is not None:  # which leaves this kind to OpenCV
        with pytest.raises(TypeError):
            _ = EncodedImage(jpeg(picture(), "440")).pixels


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_encoded_image_regions_equal_opencv(kind):
    data, rng = jpeg(picture(2), kind), np.random.default_rng(0)
    whole = opencv(data)
    height, width = whole.shape[:2]
    boxes = [(0, 0, width, height), (0, 0, 1, 1), (width - 1, height - 1, width, height)]
    boxes += [
        (x, y, int(rng.integers(x + 1, width + 1)), int(rng.integers(y + 1, height + 1)))
        for x, y in zip(rng.integers(0, width, 60).tolist(), rng.integers(0, height, 60).tolist())
    ]
    for left, top, right, bottom in boxes:
        found = EncodedImage(data).with_region((left, top, right, bottom))
        assert found.shape == whole.shape
        assert np.array_equal(found[top:bottom, left:right], whole[top:bottom, left:right]), (
            left,
            top,
            right,
            bottom,
        )


@compiled
def test_encoded_image_region_leaves_other_pixels():
    found = EncodedImage(jpeg(picture(2))).with_region((80, 60, 90, 70))
    assert not np.array_equal(found, opencv(jpeg(picture(2))))
    for box in ((0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 5, 158), (9, 0, 5, 5)):
        with pytest.raises(ValueError, match="no region of 203 x 157"):
            EncodedImage(jpeg(picture(2)))._decode_region(box, (203, 157))


@compiled
@pytest.mark.parametrize("damage", ["noise", "short", "header"])
def test_encoded_image_corrupt_data_equals_opencv(damage):
    data = bytearray(jpeg(picture(3, 400, 300)))
    if damage == "noise":  # within the first rows' data
        start = data.index(b"\xff\xda") + 20
        data[start : start + 60] = bytes(range(60, 120))
    else:
        data = data[: len(data) // 3] if damage == "short" else data[:30]
    data = bytes(data)
    wanted = opencv(data)
    for found in (EncodedImage(data).pixels, EncodedImage(data).with_region((5, 5, 300, 290))):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert np.array_equal(found[5:290, 5:300], wanted[5:290, 5:300])


def test_encoded_image_exif_is_applied_by_opencv():
    exif = (
        b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    )
    data = jpeg(picture(0, 60, 40))
    data = data[:2] + exif + data[2:]
    assert EncodedImage(data, exif=True).size == (40, 60) and EncodedImage(data).size == (60, 40)
    assert EncodedImage(data, exif=True).with_region((0, 0, 9, 9)).shape == (60, 40, 3)


def crops_are_equal(data, rng, count, size=(96, 128)):
    """Compare crops of regions and of full images; return the decoded fraction of the images."""
    whole = opencv(data)
    height, width = whole.shape[:2]
    shares = []
    for _ in range(count):
        center = rng.uniform(-0.1, 1.1, 2) * (width, height)
        extent = rng.uniform(0.05, 0.9) * height
        matrix = person_crop_matrix(
            width,
            center,
            np.array([extent * 0.75, extent]) / 200,
            rng.uniform(-80, 80) * rng.integers(0, 2),
            bool(rng.integers(0, 2)),
            size,
            bool(rng.integers(0, 2)),
        )
        box = source_roi(matrix, size, (width, height))
        part = EncodedImage(data).with_region(box)
        one, other = (
            cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR) for image in (whole, part)
        )
        assert np.array_equal(one, other)
        shares.append((box[2] - box[0]) * (box[3] - box[1]) / (width * height))
    return np.mean(shares)


@compiled
@pytest.mark.parametrize("kind", ["444", "422", "420", "gray"])
def test_cut_region_equals_cut_whole(kind):
    rng = np.random.default_rng(4)
    assert crops_are_equal(jpeg(picture(5, 320, 240), kind), rng, 150) < 0.6
    assert crops_are_equal(jpeg(picture(5, 40, 30), kind), rng, 30) < 1


def test_source_region_contains_every_pixel_of_crop():
    """Pixels outside the region do not matter."""
    image, rng = picture(6), np.random.default_rng(7)
    for _ in range(200):
        extent = rng.uniform(3, 250)
        matrix = person_crop_matrix(
            203,
            rng.uniform(-30, 230, 2),
            np.array([extent, extent]) / 200,
            rng.uniform(-180, 180),
            bool(rng.integers(0, 2)),
            (64, 64),
        )
        left, top, right, bottom = source_roi(matrix, (64, 64), (203, 157))
        assert 0 <= left < right <= 203 and 0 <= top < bottom <= 157
        other = rng.integers(0, 256, image.shape).astype(np.uint8)
        other[top:bottom, left:right] = image[top:bottom, left:right]
        assert np.array_equal(
            *(
                cv2.warpAffine(one, matrix, (64, 64), flags=cv2.INTER_LINEAR)
                for one in (image, other)
            )
        )


def test_encoded_image_real_images_equal_opencv(shared, decoder):
    """Images and crops of every 25th image of the COCO subset, and some of MPII."""
    rng = np.random.default_rng(8)
    files = (
        sorted((shared / "data" / "coco_subset").rglob("*.jpg"))[::25]
        + sorted((shared / "data" / "mpii_subset").rglob("*.jpg"))[:3]
    )
    assert len(files) > 8
    for file in files:
        data = file.read_bytes()
        assert np.array_equal(EncodedImage(data).pixels, opencv(data)), file.name
        crops_are_equal(data, rng, 2, (192, 256))
