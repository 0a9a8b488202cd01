"""What an image says of itself before it is decoded: a few bytes can claim gigabytes of pixels, or minutes of work.

Only the formats that sets of photographs come in are read at all: each further decoder (OpenCV has a dozen more) is one more that a
stranger's file can attack.
"""
from __future__ import annotations

import re
import struct

MOST_PIXELS = 110_000_000   # of an image: 330 MB decoded; the sensors of medium format have 102 million
FORMATS = "JPEG, PNG, BMP, GIF, TIFF and WebP"
_MOST_SCANS = 64            # a progressive JPEG has about ten; each one more is one more look at all of it
_FREE_WORK = 1 << 28        # pixels times scans that take no more than seconds
# start of frame of every kind: C4, C8 and CC are other segments
_FRAMES = frozenset((0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf))


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that an image claims; (0, 0) where its header is cut off or says none; None where it is of no format that is read."""
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


def fault(data: bytes) -> str:
    """Why the image must not be decoded, '' where it may, or is of none of FORMATS."""
    width, height = claimed_size(data) or (0, 0)
    jpeg, most = data.startswith(b"\xff\xd8") and width > 0, MOST_PIXELS      # else its header may be cut off
    # the coefficients of a JPEG in several scans are kept until the last one has come, which takes twice the memory of its pixels
    if jpeg and _jpeg_frame(data)[2]:
        most = MOST_PIXELS // 2
    if width * height > most:
        return too_large(width, height, most)
    if data.startswith(b"\x89PNG") and not _png_is_whole(data):
        return "is damaged: a part of it ends behind the file; fetch it again"
    if jpeg and width * height * _MOST_SCANS > _FREE_WORK and len(re.findall(rb"\xff\xda\x00", data)) > _MOST_SCANS:
        return f"has more than {_MOST_SCANS} scans, which only a file made to keep programs busy has; remove it"
    return ""


def too_large(width: int, height: int, most: int = MOST_PIXELS) -> str:
    return f"claims {width} x {height} pixels, and at most {most / 1e6:.0f} million are read; make it smaller"


def _jpeg_frame(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether it comes in several scans: a progressive one, or one whose first scan has not all the components."""
    at, parts, several = 2, 0, False
    width = height = 0
    while at + 4 <= len(data):
        if data[at] != 0xff:        # decoders look for the next mark too
            at = data.find(b"\xff", at)
            if at < 0 or at + 4 > len(data):
                break
        mark = data[at + 1]
        if mark == 0xff:
            at += 1
        elif mark in (0x00, 0x01) or 0xd0 <= mark <= 0xd8:
            at += 2
        elif mark in (0xd9, 0xda):
            several = several or (mark == 0xda and at + 4 < len(data) and data[at + 4] < parts)
            break
        else:
            if mark in _FRAMES:
                rows, columns, parts = struct.unpack_from(">HHB", data, at + 5)
                width, height = max((width, height), (columns, rows), key=lambda size: size[0] * size[1])
                several = several or mark not in (0xc0, 0xc1)
            at += 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)
    return width, height, several


def _png_is_whole(data: bytes) -> bool:
    """Whether each chunk to the end mark lies within the file: OpenCV takes as much memory as a chunk says, however small the file is."""
    at = 8
    while at + 12 <= len(data):
        at += 12 + struct.unpack_from(">I", data, at)[0]
        if data[at - 8:at - 4] == b"IEND":
            break
    return at <= len(data)


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:      # of OS/2
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
        return (bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3fff, height & 0x3fff


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    found = {256: 0, 257: 0}
    for entry in range(struct.unpack_from(f"{order}H", data, at)[0]):
        tag, kind = struct.unpack_from(f"{order}HH", data, at + 2 + 12 * entry)
        if tag in found:
            found[tag] = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 2 + 12 * entry + 8)[0]
    return found[256], found[257]
