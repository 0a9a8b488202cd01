"""What an image says of itself before it is decoded: a few bytes can claim gigabytes of pixels, or
minutes of work.

Only the formats that sets of photographs come in are read at all: each further decoder (OpenCV has
a dozen more) is one more that a stranger's file can attack.
"""

from __future__ import annotations

import struct

# of an image: 330 MB decoded; the sensors of medium format have 102 million
MAX_PIXELS = 110_000_000
FORMATS = "JPEG, PNG, BMP, GIF, TIFF and WebP"
# a progressive JPEG has about ten; each one more is one more look at all of it, however few bytes
# it has
_MOST_SCANS = 64
_FREE_WORK = 1 << 28  # pixels times scans that take no more than seconds
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # those that can have an EXIF entry
_ORIENTATION_TAG = 274
# start of frame of every kind: C4, C8 and CC are other segments
# width, height, bits, samples, rows of a strip, width and height of a tile
_TIFF_TAGS = frozenset((256, 257, 258, 277, 278, 322, 323))
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))


def read_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that an image claims; (0, 0) where its header is cut off or says none;
    None where it is of no format that is read.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_frame(data)[:2]
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"BM"):
            return _bmp_size(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif_size(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _tiff_size(data)
    except struct.error:
        return 0, 0
    return None


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of an encoded image, 1 to 8; 1 (upright) if it has none."""
    import io
    import warnings

    from PIL import Image

    is_tiff = data.startswith((b"II*\0", b"MM\0*"))
    if not is_tiff and not any(mark in data for mark in (b"Exif", b"eXIf", b"EXIF")):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd headers
            with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as header:
                if is_tiff:
                    tags = header.tag_v2
                else:  # getexif() decodes a PNG, and takes XMP's entry, which OpenCV does not
                    tags = Image.Exif()
                    tags.load(header.info.get("exif", b""))
                orientation = tags.get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged headers raise errors of many classes
        return 1
    return orientation if orientation in range(1, 9) else 1


def find_error(data: bytes) -> str | None:
    """Why the image must not be decoded, '' where it may; None where it is of none of FORMATS."""
    claims = _claims(data)
    if claims is None:
        return None
    width, height, several, most = claims
    # width 0: its header may be cut off
    jpeg, tiff = data.startswith(b"\xff\xd8") and width > 0, data.startswith((b"II*\0", b"MM\0*"))
    if width * height > most:
        return format_size_error(width, height, most)
    if data.startswith(b"\x89PNG") and not _png_is_whole(data):
        return "is damaged: a part of it ends behind the file; fetch it again"
    if tiff and _tiff_part(data) > 2 * MAX_PIXELS:
        return f"is decoded in parts of more than {2 * MAX_PIXELS / 1e6:.0f} MB; save it as PNG"
    scans = (
        data.count(b"\xff\xda\x00")
        if several or jpeg and width * height * _MOST_SCANS > _FREE_WORK
        else 0
    )
    if scans > _MOST_SCANS and width * height * scans > _FREE_WORK:
        return (
            f"has more than {_MOST_SCANS} scans, which only a file made to keep programs busy has;"
            " remove it"
        )
    return ""


def is_too_large(data: bytes) -> bool:
    """Whether `fault` would refuse it for its size; data: its beginning, with the header."""
    width, height, _, most = _claims(data) or (0, 0, False, MAX_PIXELS)
    return width * height > most


def _claims(data: bytes) -> tuple[int, int, bool, int] | None:
    """Width, height, whether it is a JPEG in several scans, and how many pixels it may have;
    None where it is of none of FORMATS.
    """
    several = False
    if data.startswith(b"\xff\xd8"):  # its header is walked through once
        try:
            width, height, several = _jpeg_frame(data)
        except struct.error:
            width = height = 0
    else:
        claimed = read_size(data)
        if claimed is None:
            return None
        width, height = claimed
    # the coefficients of a JPEG in several scans are kept until the last one has come, and the
    # strips of a TIFF beside the image
    return (
        width,
        height,
        several,
        MAX_PIXELS // 2 if several or data.startswith((b"II*\0", b"MM\0*")) else MAX_PIXELS,
    )


def format_size_error(width: int, height: int, most: int = MAX_PIXELS) -> str:
    return (
        f"claims {width} x {height} pixels, and at most {most / 1e6:.0f} million are read; make it"
        " smaller"
    )


def _jpeg_frame(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether it comes in several scans: a progressive one, or one whose
    first scan has not all the components.
    """
    at, parts, several = 2, 0, False
    width = height = 0
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # decoders look for the next mark too
            at = data.find(b"\xff", at)
            if at < 0 or at + 4 > len(data):
                break
        mark = data[at + 1]
        if mark == 0xFF:
            at += 1
        elif mark in (0x00, 0x01) or 0xD0 <= mark <= 0xD8:
            at += 2
        elif mark in (0xD9, 0xDA):
            several = several or (mark == 0xDA and at + 4 < len(data) and data[at + 4] < parts)
            break
        else:
            if mark in _FRAMES:
                rows, columns, parts = struct.unpack_from(">HHB", data, at + 5)
                width, height = max(
                    (width, height), (columns, rows), key=lambda size: size[0] * size[1]
                )
                several = several or mark not in (0xC0, 0xC1)
            at += 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)
    return width, height, several


def _png_is_whole(data: bytes) -> bool:
    """Whether each chunk to the end mark lies within the file: OpenCV takes as much memory as a
    chunk says, however small the file is.
    """
    at = 8
    while at + 12 <= len(data):
        at += 12 + struct.unpack_from(">I", data, at)[0]
        if data[at - 8 : at - 4] == b"IEND":
            break
    return at <= len(data)


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # of OS/2
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _gif_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<HH", data, 6)


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int]:
    tags = _tiff_tags(data)
    return tags.get(256, 0), tags.get(257, 0)


def _tiff_part(data: bytes) -> int:
    """Bytes of the largest part of a TIFF that is decoded at once: a tile, which may be larger
    than the image, or a strip. OpenCV makes 4 bytes of a pixel.
    """
    try:
        tags = _tiff_tags(data)
    except struct.error:
        return 0
    width, height = tags.get(256, 0), tags.get(257, 0)
    if 322 in tags or 323 in tags:
        width, height = tags.get(322, 0), tags.get(323, 0)
    else:
        height = min(height, tags.get(278, height))
    return width * height * max(4, tags.get(277, 1) * tags.get(258, 1) // 8)


def _tiff_tags(data: bytes) -> dict[int, int]:
    """The whole numbers of a TIFF's first directory, of a tag given twice the larger; of a kind
    that is not usual there, which may stand anywhere, the largest.
    """
    order = "<" if data.startswith(b"II") else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    found: dict[int, int] = {}
    for entry in range(struct.unpack_from(f"{order}H", data, at)[0]):
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, at + 2 + 12 * entry)
        if tag not in _TIFF_TAGS:
            continue
        place = at + 2 + 12 * entry + 8
        if kind in (3, 4) and count == 1:
            value = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, place)[0]
        elif tag == 258 and kind == 3 and 1 < count <= 16:  # of each sample
            value = max(
                struct.unpack_from(
                    f"{order}{count}H",
                    data,
                    place if count == 2 else struct.unpack_from(f"{order}I", data, place)[0],
                )
            )
        else:
            value = 0xFFFFFFFF
        found[tag] = max(found.get(tag, 0), value)
    return found
