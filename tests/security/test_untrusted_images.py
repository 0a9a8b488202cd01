"""Test untrusted images: each format is decoded, each fault is refused in one line."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, features
from poise.errors import DataError
from poise.io import decoding
from poise.io.images import MAX_BYTES, read_image
from support.image_files import (
    COLORS,
    PNG,
    READ,
    REFUSED,
    SECOND,
    encoded,
    pillow_heif,
    png_header,
    upright,
)
from support.paths import ROOT


@pytest.mark.parametrize("name", READ)
def test_read_image_every_format_gives_rgb_uint8(tmp_path, name, capfd, caplog):
    data, looks, allowed = READ[name]
    (tmp_path / name).write_bytes(data)
    image = read_image(tmp_path / name)
    assert (
        image.shape == looks.shape
        and image.dtype == np.uint8
        and image.flags["C_CONTIGUOUS"]
        and image.flags["W"]  # the writable flag
    )
    assert np.abs(image.astype(int) - looks.astype(int)).mean() <= allowed
    assert np.array_equal(read_image(str(tmp_path / name)), image)
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize(
    "kind",
    [
        "JPEG",
        "PNG",
        "WEBP",
        "TIFF",
        *(["AVIF"] if features.check("avif") else []),
        *(["HEIF"] if pillow_heif else []),
    ],
)
@pytest.mark.parametrize(
    "orientation, turned",
    [
        (1, COLORS),
        (3, COLORS[::-1, ::-1]),
        (6, np.rot90(COLORS, -1)),
        (8, np.rot90(COLORS)),
        (2, COLORS[:, ::-1]),
    ],
)
def test_read_image_exif_orientation_is_applied(tmp_path, kind, orientation, turned):
    options = {"WEBP": {"lossless": True}}.get(kind, {"quality": 95})
    (tmp_path / "a").write_bytes(
        encoded(COLORS, kind, exif=upright(orientation).tobytes(), **options)
    )
    image = read_image(tmp_path / "a")
    assert image.shape == turned.shape and np.abs(image.astype(int) - turned).mean() < (
        6 if kind == "HEIF" else 3
    )


@pytest.mark.parametrize(
    "kind, word, options",
    [
        ("GIF", "frames", {}),
        ("PNG", "frames", {}),
        ("WEBP", "frames", {"lossless": True}),
        ("TIFF", "pages", {}),
    ],
)
def test_read_image_several_frames_takes_the_first_and_warns(tmp_path, caplog, kind, word, options):
    path = tmp_path / "several"
    path.write_bytes(encoded(COLORS, kind, save_all=True, append_images=SECOND, **options))
    assert np.abs(read_image(path).astype(int) - COLORS).mean() < 12
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: has several {word}, the first one is used"
    ]


def test_read_image_mpo_takes_the_first_image(tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(
        encoded(COLORS, "MPO", save_all=True, append_images=SECOND, quality=95)
    )
    assert (
        np.abs(read_image(tmp_path / "a.jpg").astype(int) - COLORS).mean() < 3
        and not caplog.records
    )


@pytest.mark.parametrize("name", REFUSED)
def test_read_image_invalid_raises_in_one_line(tmp_path, name, capfd):
    data, fault = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as error:
        read_image(tmp_path / name)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / name}: ") and fault in text and "\n" not in text
    assert capfd.readouterr() == ("", ""), "OpenCV's own lines stand in the user's way"


def test_read_image_heic_or_avif_without_reader_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(features, "get_supported_modules", lambda: [])
    for brand, fault in (
        (b"heic", "HEIC needs pillow-heif; pip install pillow-heif, or save the image as JPEG"),
        (b"avif", "AVIF needs Pillow 11.3 or newer; update it or save the image as JPEG"),
    ):
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand)
        with pytest.raises(DataError) as error:
            read_image(tmp_path / "a.heic")
        assert str(error.value) == f"{tmp_path / 'a.heic'}: {fault}"


def test_read_image_keeps_opencv_log_level(tmp_path):
    (tmp_path / "a.tif").write_bytes(REFUSED["half.tif"][0])
    log = decoding._opencv_log
    before = log.getLogLevel()
    try:
        log.setLogLevel(2)
        for _ in range(2):
            with pytest.raises(DataError, match="damaged"):
                read_image(tmp_path / "a.tif")
        assert log.getLogLevel() == 2
    finally:
        log.setLogLevel(before)


def test_read_image_not_a_file_raises(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it in the usual way would wait for ever
    for path, fault in (
        (tmp_path / "none.jpg", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe.jpg", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("a\0b.jpg", "cannot read the image"),
        ("x" * 5000, "cannot read the image"),
    ):
        with pytest.raises(DataError, match=fault):
            read_image(path)


def test_read_image_huge_file_raises(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(
        DataError, match=f"has {MAX_BYTES + 1} bytes, and images of up to {MAX_BYTES} are read"
    ):
        read_image(tmp_path / "a.jpg")


def test_read_image_limit_holds_without_pillow_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png_header(30_000, 30_000))
    (tmp_path / "a.ppm").write_bytes(b"P6 30000 30000 255\n" + bytes(100))
    for name in ("a.png", "a.ppm"):
        with pytest.raises(
            DataError,
            match=(
                "the image claims 30000 x 30000 pixels, and at most 110 million are read; make it"
                " smaller"
            ),
        ):
            read_image(tmp_path / name)


MEMORY = """
import resource, sys
from poise.errors import DataError
from poise.io.images import read_image
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
read_image(sys.argv[2])
before = most()
try:
    read_image(sys.argv[1])
except DataError:
    print(most() - before)
"""


def test_read_image_900_megapixel_bomb_uses_little_memory(tmp_path):
    """A valid PNG with 2.7 GB of pixels in 2.6 MB."""
    rows, length = 100, 30_000 * (1 + 3 * 30_000)
    packer = zlib.compressobj(9, wbits=-15)
    # stands alone, so it can be repeated
    block = packer.compress(bytes(length // 30_000 * rows)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = (
        b"\x78\xda"
        + block * (30_000 // rows)
        + zlib.compressobj(wbits=-15).flush()
        + struct.pack(">I", length % 65521 << 16 | 1)
    )
    head = png_header(30_000, 30_000)
    body = (
        struct.pack(">I", len(packed))
        + b"IDAT"
        + packed
        + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
    )
    (tmp_path / "bomb.png").write_bytes(head[:33] + body + head[-12:])
    (tmp_path / "small.png").write_bytes(PNG)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "bomb.png", tmp_path / "small.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 50, "MB more than before"
