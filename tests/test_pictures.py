"""Pictures from strangers: each kind read as it looks, each fault refused in one line."""

import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, features
from poise.errors import DataError
from poise.io import decoding
from poise.io.images import MAX_BYTES, read_image

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

COLOURS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8),
    (80, 60),
    interpolation=cv2.INTER_CUBIC,
)
GREY = COLOURS[..., 1]


def encoded(array, kind, mode=None, **options):
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEG, PNG = encoded(COLOURS, "JPEG", quality=95), encoded(COLOURS, "PNG")
SECOND = [Image.fromarray(255 - COLOURS)]
THREE_GREYS = np.repeat(GREY[..., None], 3, axis=2)

# file -> bytes, the RGB picture that a viewer shows, the mean difference that its compression
# allows
READ = {
    "colour.jpg": (JPEG, COLOURS, 2),
    "progressive.jpg": (encoded(COLOURS, "JPEG", quality=95, progressive=True), COLOURS, 2),
    "grey.jpg": (encoded(GREY, "JPEG", quality=95), THREE_GREYS, 2),
    "cmyk.jpg": (encoded(COLOURS, "JPEG", "CMYK", quality=95), COLOURS, 2),
    "colour.png": (PNG, COLOURS, 0),
    "grey.png": (encoded(GREY, "PNG"), THREE_GREYS, 0),
    "16 bit grey.png": (encoded(GREY.astype(np.uint16) * 257, "PNG"), THREE_GREYS, 0),
    "16 bit.png": (
        cv2.imencode(".png", COLOURS[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
        COLOURS,
        0,
    ),
    "alpha.png": (encoded(COLOURS, "PNG", "RGBA"), COLOURS, 0),
    "grey alpha.png": (encoded(GREY, "PNG", "LA"), THREE_GREYS, 0),
    "palette.png": (encoded(COLOURS, "PNG", "P"), COLOURS, 20),
    "bits.png": (encoded(COLOURS, "PNG", "1"), THREE_GREYS, 130),
    "still.gif": (encoded(COLOURS, "GIF"), COLOURS, 12),
    "a.bmp": (encoded(COLOURS, "BMP"), COLOURS, 0),
    "a.webp": (encoded(COLOURS, "WEBP", lossless=True), COLOURS, 0),
    "a.tif": (encoded(COLOURS, "TIFF"), COLOURS, 0),
    "16 bit.tif": (encoded(GREY.astype(np.uint16) * 257, "TIFF"), THREE_GREYS, 0),
    "a.ppm": (encoded(COLOURS, "PPM"), COLOURS, 0),
    "a.jp2": (encoded(COLOURS, "JPEG2000"), COLOURS, 1),
    "wrong ending.png": (JPEG, COLOURS, 2),
    "no ending": (PNG, COLOURS, 0),
    "trailing.jpg": (JPEG + b"appended by a gallery", COLOURS, 2),
    "one.png": (encoded(COLOURS[:1, :1], "PNG"), COLOURS[:1, :1], 0),
    "one.jpg": (encoded(np.full((1, 1), 77, np.uint8), "JPEG"), np.full((1, 1, 3), 77), 1),
    "one.gif": (encoded(np.full((1, 1), 77, np.uint8), "GIF"), np.full((1, 1, 3), 77), 0),
    "line.png": (encoded(COLOURS[:1], "PNG"), COLOURS[:1], 0),
    "ä ö 名.png": (PNG, COLOURS, 0),
    "browser.jfif": (JPEG, COLOURS, 2),
    "a.pnm": (encoded(COLOURS, "PPM"), COLOURS, 0),
}
if features.check("avif"):
    READ["a.avif"] = (encoded(COLOURS, "AVIF", quality=95), COLOURS, 3)
if pillow_heif:
    READ["a.heic"] = (encoded(COLOURS, "HEIF", quality=95), COLOURS, 6)


@pytest.mark.parametrize("name", READ)
def test_every_usual_kind_becomes_rgb_of_a_byte(tmp_path, name, capfd, caplog):
    data, looks, allowed = READ[name]
    (tmp_path / name).write_bytes(data)
    image = read_image(tmp_path / name)
    assert (
        image.shape == looks.shape
        and image.dtype == np.uint8
        and image.flags["C_CONTIGUOUS"]
        and image.flags["WRITEABLE"]
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
        (1, COLOURS),
        (3, COLOURS[::-1, ::-1]),
        (6, np.rot90(COLOURS, -1)),
        (8, np.rot90(COLOURS)),
        (2, COLOURS[:, ::-1]),
    ],
)
def test_exif_orientation_is_followed(tmp_path, kind, orientation, turned):
    options = {"WEBP": {"lossless": True}}.get(kind, {"quality": 95})
    (tmp_path / "a").write_bytes(
        encoded(COLOURS, kind, exif=upright(orientation).tobytes(), **options)
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
def test_of_several_frames_the_first_is_taken_and_that_is_said(
    tmp_path, caplog, kind, word, options
):
    path = tmp_path / "several"
    path.write_bytes(encoded(COLOURS, kind, save_all=True, append_images=SECOND, **options))
    assert np.abs(read_image(path).astype(int) - COLOURS).mean() < 12
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: has several {word}, the first one is used"
    ]


def test_a_phones_jpeg_with_a_thumbnail_behind_it_is_one_picture(tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(
        encoded(COLOURS, "MPO", save_all=True, append_images=SECOND, quality=95)
    )
    assert (
        np.abs(read_image(tmp_path / "a.jpg").astype(int) - COLOURS).mean() < 3
        and not caplog.records
    )


def png_header(width, height):
    """A PNG whose header claims a size; the little behind it would unpack to nothing."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def claiming(data, mark, side):
    """A JPEG or JPEG 2000 whose header claims a square of `side`, behind the mark of it."""
    at = data.index(mark) + (5 if mark[0] == 0xFF else 4)
    return (
        data[:at]
        + (struct.pack(">HH", side, side) if mark[0] == 0xFF else struct.pack(">II", side, side))
        + data[at + (4 if mark[0] == 0xFF else 8) :]
    )


def many_scans():
    """A progressive JPEG whose last scan comes a hundred times."""
    data = encoded(COLOURS, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda\x00")
    return data[:last] + data[last:-2] * 100 + data[-2:]


NO_PICTURE = (
    "not a picture, or its beginning is damaged; JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000,"
    " HEIC and AVIF are read"
)
CUT_OFF = "the picture is cut off; fetch it again"
REFUSED = {
    "empty.jpg": (b"", "the picture file is empty"),
    "text.jpg": (b"404: not found\n", NO_PICTURE),
    "page.jpg": (b"<!DOCTYPE html><html><body>sign in</body></html>", NO_PICTURE),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_PICTURE),
    "phone.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        (
            "the picture (HEIF) is damaged"
            if pillow_heif
            else "HEIC needs pillow-heif; pip install pillow-heif, or save the picture as JPEG"
        ),
    ),
    "film.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0mp42isom", "a video with the ending of a picture?"),
    "half.jpg": (JPEG[: len(JPEG) // 2], CUT_OFF),
    "last byte.jpg": (JPEG[:-1], CUT_OFF),
    "half.png": (PNG[: len(PNG) // 2], CUT_OFF),
    "head.jpg": (JPEG[:30], CUT_OFF),
    "mark.jpg": (JPEG[:2], CUT_OFF),
    "head.png": (PNG[:20], CUT_OFF),
    "half.gif": (encoded(COLOURS, "GIF")[:900], "the picture (GIF) is damaged"),
    "half.webp": (encoded(COLOURS, "WEBP")[:-200], "damaged"),
    "half.bmp": (encoded(COLOURS, "BMP")[:5000], "the picture (BMP) is damaged"),
    "half.tif": (encoded(COLOURS, "TIFF")[:9000], "damaged"),
    "half.ppm": (encoded(COLOURS, "PPM")[:5000], "the picture (PPM) is damaged"),
    "float.tif": (
        encoded(GREY.astype(np.float32), "TIFF"),
        "or of a kind of TIFF that is not read",
    ),
    "30000.png": (
        png_header(30_000, 30_000),
        (
            "the picture claims 30000 x 30000 pixels, and at most 110 million are read; make it"
            " smaller"
        ),
    ),
    "11000.png": (png_header(11_000, 11_000), "claims 11000 x 11000 pixels"),
    "most.png": (png_header(2**31 - 1, 2**31 - 1), "claims 2147483647 x 2147483647 pixels"),
    "9000 progressive.jpg": (
        claiming(encoded(COLOURS, "JPEG", progressive=True), b"\xff\xc2", 9_000),
        "claims 9000 x 9000 pixels, and at most 55 million are read",
    ),
    "12000.jpg": (claiming(JPEG, b"\xff\xc0", 12_000), "claims 12000 x 12000 pixels"),
    "30000.jp2": (
        claiming(encoded(COLOURS, "JPEG2000"), b"ihdr", 30_000),
        "too large (Image size (900000000 pixels)",
    ),
    "11000.ppm": (b"P6 11000 11000 255\n" + bytes(100), "claims 11000 x 11000 pixels"),
    "30000.ppm": (b"P6 30000 30000 255\n" + bytes(100), "too large (Image size (900000000 pixels)"),
    "chunk.png": (
        PNG[:33] + struct.pack(">I", 2**31 - 1) + PNG[37:],
        "is damaged: a part of it ends behind the file; fetch it again",
    ),
    "scans.jpg": (claiming(many_scans(), b"\xff\xc2", 4_000), "has more than 64 scans"),
    "no size.png": (png_header(0, 10), "damaged"),
}
if features.check("avif"):
    REFUSED["half.avif"] = (READ["a.avif"][0][:900], "the picture (AVIF) is damaged")
if pillow_heif:
    REFUSED["half.heic"] = (READ["a.heic"][0][:1300], "the picture (HEIF) is damaged")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name, capfd):
    data, fault = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as error:
        read_image(tmp_path / name)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / name}: ") and fault in text and "\n" not in text
    assert capfd.readouterr() == ("", ""), "OpenCV's own lines stand in the user's way"


def test_read_picture_heic_or_avif_without_its_reader_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(features, "get_supported_modules", lambda: [])
    for brand, fault in (
        (b"heic", "HEIC needs pillow-heif; pip install pillow-heif, or save the picture as JPEG"),
        (b"avif", "AVIF needs Pillow 11.3 or newer; update it or save the picture as JPEG"),
    ):
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand)
        with pytest.raises(DataError) as error:
            read_image(tmp_path / "a.heic")
        assert str(error.value) == f"{tmp_path / 'a.heic'}: {fault}"


def test_opencvs_own_log_is_as_the_program_set_it(tmp_path):
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


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it in the usual way would wait for ever
    for path, fault in (
        (tmp_path / "none.jpg", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe.jpg", "no ordinary file"),
        ("/dev/zero", "no ordinary file"),
        ("a\0b.jpg", "cannot read the picture"),
        ("x" * 5000, "cannot read the picture"),
    ):
        with pytest.raises(DataError, match=fault):
            read_image(path)


def test_a_file_of_many_bytes_is_not_read(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(
        DataError, match=f"has {MAX_BYTES + 1} bytes, and pictures of up to {MAX_BYTES} are read"
    ):
        read_image(tmp_path / "a.jpg")


def test_the_limit_holds_where_the_program_has_lifted_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png_header(30_000, 30_000))
    (tmp_path / "a.ppm").write_bytes(b"P6 30000 30000 255\n" + bytes(100))
    for name in ("a.png", "a.ppm"):
        with pytest.raises(
            DataError,
            match=(
                "the picture claims 30000 x 30000 pixels, and at most 110 million are read; make it"
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


def test_a_bomb_of_30000_by_30000_is_refused_in_little_memory(tmp_path):
    """A whole and valid PNG, 2.7 GB of pixels in about 2.6 MB."""
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
