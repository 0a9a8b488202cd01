"""Image files of every kind: READ can be read, REFUSED cannot, with the error of each."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, features

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

COLORS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8),
    (80, 60),
    interpolation=cv2.INTER_CUBIC,
)
GRAY = COLORS[..., 1]


def encoded(array, kind, mode=None, **options):
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEG, PNG = encoded(COLORS, "JPEG", quality=95), encoded(COLORS, "PNG")
SECOND = [Image.fromarray(255 - COLORS)]
THREE_GRAYS = np.repeat(GRAY[..., None], 3, axis=2)

# file -> bytes, the RGB picture that a viewer shows, the mean difference that its compression
# allows
READ = {
    "color.jpg": (JPEG, COLORS, 2),
    "progressive.jpg": (encoded(COLORS, "JPEG", quality=95, progressive=True), COLORS, 2),
    "gray.jpg": (encoded(GRAY, "JPEG", quality=95), THREE_GRAYS, 2),
    "cmyk.jpg": (encoded(COLORS, "JPEG", "CMYK", quality=95), COLORS, 2),
    "color.png": (PNG, COLORS, 0),
    "gray.png": (encoded(GRAY, "PNG"), THREE_GRAYS, 0),
    "16 bit gray.png": (encoded(GRAY.astype(np.uint16) * 257, "PNG"), THREE_GRAYS, 0),
    "16 bit.png": (
        cv2.imencode(".png", COLORS[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
        COLORS,
        0,
    ),
    "alpha.png": (encoded(COLORS, "PNG", "RGBA"), COLORS, 0),
    "gray alpha.png": (encoded(GRAY, "PNG", "LA"), THREE_GRAYS, 0),
    "palette.png": (encoded(COLORS, "PNG", "P"), COLORS, 20),
    "bits.png": (encoded(COLORS, "PNG", "1"), THREE_GRAYS, 130),
    "still.gif": (encoded(COLORS, "GIF"), COLORS, 12),
    "a.bmp": (encoded(COLORS, "BMP"), COLORS, 0),
    "a.webp": (encoded(COLORS, "WEBP", lossless=True), COLORS, 0),
    "a.tif": (encoded(COLORS, "TIFF"), COLORS, 0),
    "16 bit.tif": (encoded(GRAY.astype(np.uint16) * 257, "TIFF"), THREE_GRAYS, 0),
    "a.ppm": (encoded(COLORS, "PPM"), COLORS, 0),
    "a.jp2": (encoded(COLORS, "JPEG2000"), COLORS, 1),
    "wrong ending.png": (JPEG, COLORS, 2),
    "no ending": (PNG, COLORS, 0),
    "trailing.jpg": (JPEG + b"appended by a gallery", COLORS, 2),
    "one.png": (encoded(COLORS[:1, :1], "PNG"), COLORS[:1, :1], 0),
    "one.jpg": (encoded(np.full((1, 1), 77, np.uint8), "JPEG"), np.full((1, 1, 3), 77), 1),
    "one.gif": (encoded(np.full((1, 1), 77, np.uint8), "GIF"), np.full((1, 1, 3), 77), 0),
    "line.png": (encoded(COLORS[:1], "PNG"), COLORS[:1], 0),
    "ä ö 名.png": (PNG, COLORS, 0),
    "browser.jfif": (JPEG, COLORS, 2),
    "a.pnm": (encoded(COLORS, "PPM"), COLORS, 0),
}
if features.check("avif"):
    READ["a.avif"] = (encoded(COLORS, "AVIF", quality=95), COLORS, 3)
if pillow_heif:
    READ["a.heic"] = (encoded(COLORS, "HEIF", quality=95), COLORS, 6)


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
    data = encoded(COLORS, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda\x00")
    return data[:last] + data[last:-2] * 100 + data[-2:]


NO_PICTURE = (
    "not an image, or its beginning is damaged; JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000,"
    " HEIC and AVIF are read"
)
CUT_OFF = "the image is cut off; download it again"
REFUSED = {
    "empty.jpg": (b"", "the image file is empty"),
    "text.jpg": (b"404: not found\n", NO_PICTURE),
    "page.jpg": (b"<!DOCTYPE html><html><body>sign in</body></html>", NO_PICTURE),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_PICTURE),
    "phone.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        (
            "the image (HEIF) is damaged"
            if pillow_heif
            else "HEIC needs pillow-heif; pip install pillow-heif, or save the image as JPEG"
        ),
    ),
    "film.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0mp42isom", "a video with the extension of an image?"),
    "half.jpg": (JPEG[: len(JPEG) // 2], CUT_OFF),
    "last byte.jpg": (JPEG[:-1], CUT_OFF),
    "half.png": (PNG[: len(PNG) // 2], CUT_OFF),
    "head.jpg": (JPEG[:30], CUT_OFF),
    "mark.jpg": (JPEG[:2], CUT_OFF),
    "head.png": (PNG[:20], CUT_OFF),
    "half.gif": (encoded(COLORS, "GIF")[:900], "the image (GIF) is damaged"),
    "half.webp": (encoded(COLORS, "WEBP")[:-200], "damaged"),
    "half.bmp": (encoded(COLORS, "BMP")[:5000], "the image (BMP) is damaged"),
    "half.tif": (encoded(COLORS, "TIFF")[:9000], "damaged"),
    "half.ppm": (encoded(COLORS, "PPM")[:5000], "the image (PPM) is damaged"),
    "float.tif": (
        encoded(GRAY.astype(np.float32), "TIFF"),
        "or an unsupported kind of TIFF",
    ),
    "30000.png": (
        png_header(30_000, 30_000),
        (
            "the image claims 30000 x 30000 pixels, and at most 110 million are read; make it"
            " smaller"
        ),
    ),
    "11000.png": (png_header(11_000, 11_000), "claims 11000 x 11000 pixels"),
    "most.png": (png_header(2**31 - 1, 2**31 - 1), "claims 2147483647 x 2147483647 pixels"),
    "9000 progressive.jpg": (
        claiming(encoded(COLORS, "JPEG", progressive=True), b"\xff\xc2", 9_000),
        "claims 9000 x 9000 pixels, and at most 55 million are read",
    ),
    "12000.jpg": (claiming(JPEG, b"\xff\xc0", 12_000), "claims 12000 x 12000 pixels"),
    "30000.jp2": (
        claiming(encoded(COLORS, "JPEG2000"), b"ihdr", 30_000),
        "too large (Image size (900000000 pixels)",
    ),
    "11000.ppm": (b"P6 11000 11000 255\n" + bytes(100), "claims 11000 x 11000 pixels"),
    "30000.ppm": (b"P6 30000 30000 255\n" + bytes(100), "too large (Image size (900000000 pixels)"),
    "chunk.png": (
        PNG[:33] + struct.pack(">I", 2**31 - 1) + PNG[37:],
        "is damaged: a part of it ends behind the file; download it again",
    ),
    "scans.jpg": (claiming(many_scans(), b"\xff\xc2", 4_000), "has more than 64 scans"),
    "no size.png": (png_header(0, 10), "damaged"),
}
if features.check("avif"):
    REFUSED["half.avif"] = (READ["a.avif"][0][:900], "the image (AVIF) is damaged")
if pillow_heif:
    REFUSED["half.heic"] = (READ["a.heic"][0][:1300], "the image (HEIF) is damaged")
