"""Checks of encoded images before they are decoded.

A few bytes can claim gigabytes of pixels or take minutes to decode. Only the usual formats of photo
datasets are accepted: each further decoder of OpenCV is one more that a downloaded file can attack.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

MAX_PIXELS = 110_000_000  # 330 MB decoded; medium format sensors have 102 million
FORMATS = "JPEG, PNG, BMP, GIF, TIFF and WebP"
# a progressive JPEG has about ten scans; each one is a pass over all pixels, however short it is
_MAX_SCANS = 64
_MAX_FAST_WORK = 1 << 28  # pixels times scans that are decoded within seconds
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # those that may have an EXIF entry
_ORIENTATION_TAG = 274
# width, height, bits, samples, rows of a strip, width and height of a tile
_TIFF_TAGS = frozenset((256, 257, 258, 277, 278, 322, 323))
# start of frame of every kind: C4, C8 and CC are other segments
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_JPEG = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG = b"\x89PNG"
_PNG_END = b"IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*")
#: by the first two bytes: what a complete file usually ends with
END_MARKS = {_JPEG: _JPEG_END, _PNG[:2]: _PNG_END}
# start of scan: marker, length 6 + 2n, n = 1 to 4 components; without the length, bytes that a
# camera appended could match
_JPEG_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")


class _Claims(NamedTuple):
    """What a header claims; multi_scan: whether it is a JPEG that is decoded in several scans."""

    width: int
    height: int
    multi_scan: bool
    max_pixels: int


def find_error(data: bytes) -> str | None:
    """Return why an image must not be decoded; '' if it may, None if its format is unsupported."""
    claims = _read_claims(data)
    if claims is None:
        return None
    pixels = claims.width * claims.height
    if pixels > claims.max_pixels:
        return format_size_error(claims.width, claims.height, claims.max_pixels)
    if data.startswith(_PNG) and not _has_complete_chunks(data):
        return "is damaged: a part of it ends behind the file; download it again"
    if data.startswith(_TIFF) and _tiff_block_bytes(data) > 2 * MAX_PIXELS:
        return f"is decoded in parts of more than {2 * MAX_PIXELS / 1e6:.0f} MB; save it as PNG"
    # 0 pixels: the header may be cut off
    is_large_jpeg = data.startswith(_JPEG) and pixels * _MAX_SCANS > _MAX_FAST_WORK
    if claims.multi_scan or is_large_jpeg:
        scans = data.count(b"\xff\xda\x00")
        if scans > _MAX_SCANS and pixels * scans > _MAX_FAST_WORK:
            return (
                f"has more than {_MAX_SCANS} scans, which only a file made to keep programs busy"
                " has; remove it"
            )
    return ""


def is_too_large(data: bytes) -> bool:
    """Return whether find_error rejects an image for its size; data: its beginning."""
    claims = _read_claims(data)
    return claims is not None and claims.width * claims.height > claims.max_pixels


def format_size_error(width: int, height: int, max_pixels: int = MAX_PIXELS) -> str:
    return (
        f"claims {width} x {height} pixels, and at most {max_pixels / 1e6:.0f} million are read;"
        " make it smaller"
    )


def is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG ends before its end mark.

    OpenCV 4 decodes such a JPEG without an error and fills the rest with gray. In a JPEG the mark
    is searched after the last start of scan, because an embedded thumbnail has a mark of its own
    and some cameras append data.
    """
    if data.startswith(_JPEG):
        # the usual file, without a search through all of it
        if data.endswith(_JPEG_END) and _JPEG_SCAN.search(data):
            return False
        scan = max((match.start() for match in _JPEG_SCAN.finditer(data)), default=-1)
        return scan < 0 or data.find(_JPEG_END, scan) < 0
    if data.startswith(_PNG):
        return _PNG_END not in data
    return False


def read_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) that an image claims.

    (0, 0) if its header is cut off or has no size; None if its format is unsupported.
    """
    try:
        if data.startswith(_JPEG):
            return _jpeg_frame(data)[:2]
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"BM"):
            return _bmp_size(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return struct.unpack_from("<HH", data, 6)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data.startswith(_TIFF):
            tags = _tiff_tags(data)
            return tags.get(256, 0), tags.get(257, 0)
    except struct.error:
        return 0, 0
    return None


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of an encoded image, 1 to 8; 1 (upright) if it has none."""
    import io
    import warnings

    from PIL import Image

    is_tiff = data.startswith(_TIFF)
    if not is_tiff and not any(mark in data for mark in (b"Exif", b"eXIf", b"EXIF")):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about unusual headers
            with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as header:
                if is_tiff:
                    tags = header.tag_v2
                else:  # getexif() decodes a PNG and reads the entry of XMP, which OpenCV ignores
                    tags = Image.Exif()
                    tags.load(header.info.get("exif", b""))
                orientation = tags.get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged headers raise errors of many classes
        return 1
    return orientation if orientation in range(1, 9) else 1


def _read_claims(data: bytes) -> _Claims | None:
    """Return what the header claims; None if the format is unsupported."""
    multi_scan = False
    if data.startswith(_JPEG):  # read_size, but the header is parsed once
        try:
            width, height, multi_scan = _jpeg_frame(data)
        except struct.error:
            width = height = 0
    else:
        size = read_size(data)
        if size is None:
            return None
        width, height = size
    max_pixels = MAX_PIXELS
    # decoders keep the coefficients of a JPEG until its last scan, and the strips of a TIFF
    if multi_scan or data.startswith(_TIFF):
        max_pixels = MAX_PIXELS // 2
    return _Claims(width, height, multi_scan, max_pixels)


def _jpeg_frame(data: bytes) -> tuple[int, int, bool]:
    """Return width, height and whether the image has several scans.

    It has if it is progressive, or if its first scan does not have all the components.
    """
    at = 2
    width = height = components = 0
    multi_scan = False
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # decoders search for the next marker too
            at = data.find(b"\xff", at)
            if at < 0 or at + 4 > len(data):
                break
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 2
        elif marker == 0xD9:
            break
        elif marker == 0xDA:
            multi_scan = multi_scan or (at + 4 < len(data) and data[at + 4] < components)
            break
        else:
            if marker in _FRAMES:
                rows, columns, components = struct.unpack_from(">HHB", data, at + 5)
                if columns * rows > width * height:
                    width, height = columns, rows
                multi_scan = multi_scan or marker not in (0xC0, 0xC1)
            at += 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)
    return width, height, multi_scan


def _has_complete_chunks(data: bytes) -> bool:
    """Return whether each chunk of a PNG up to the end mark is within the file.

    OpenCV allocates as much memory as a chunk claims, however small the file is.
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


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_block_bytes(data: bytes) -> int:
    """Return the bytes of the largest block of a TIFF that is decoded at once.

    It is a strip, or a tile, which may be larger than the image. OpenCV takes 4 bytes per pixel.
    """
    try:
        tags = _tiff_tags(data)
    except struct.error:
        return 0
    if 322 in tags or 323 in tags:
        width = tags.get(322, 0)
        height = tags.get(323, 0)
    else:
        width = tags.get(256, 0)
        height = tags.get(257, 0)
        height = min(height, tags.get(278, height))
    return width * height * max(4, tags.get(277, 1) * tags.get(258, 1) // 8)


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Return the integers of the first directory of a TIFF that matter for its size.

    Of a tag given twice it is the larger value, and for an unusual type of value the maximum.
    """
    order = "<" if data.startswith(b"II") else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    tags: dict[int, int] = {}
    for entry in range(struct.unpack_from(f"{order}H", data, at)[0]):
        begin = at + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, begin)
        if tag not in _TIFF_TAGS:
            continue
        position = begin + 8
        if kind == 3 and count == 1:
            value = struct.unpack_from(f"{order}H", data, position)[0]
        elif kind == 4 and count == 1:
            value = struct.unpack_from(f"{order}I", data, position)[0]
        elif tag == 258 and kind == 3 and 1 < count <= 16:  # one for each sample
            if count > 2:
                position = struct.unpack_from(f"{order}I", data, position)[0]
            value = max(struct.unpack_from(f"{order}{count}H", data, position))
        else:
            value = 0xFFFFFFFF
        tags[tag] = max(tags.get(tag, 0), value)
    return tags
