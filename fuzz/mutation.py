"""Break valid inputs; the same random state gives the same input on every machine.

Changed bytes rarely pass the first check of a format, so each format has its own mutation: the
tree of a JSON file, the lines of a YAML file, the members of an archive (repacked with valid
checksums), the segments of a JPEG.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

# values that have broken readers before; words between @ are written without quotes, which JSON
# itself cannot express
EDGE_CASES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    17,
    255,
    65536,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e-320,
    1e300,
    -1e300,
    1e308,
    "",
    " ",
    "0",
    "-1",
    "1e400",
    "person",
    "nan",
    "../../up.jpg",
    "/etc/passwd",
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "\x00",
    "\u00e9\u4e2d",
    "x" * 5000,
    [],
    {},
    [[]],
    [{}],
    [0],
    [1, 2, 3, 4],
    [-5, -5, -1, -1],
    [1e30, 1e30, 1e30, 1e30],
    {"a": 1},
    "@1e400@",
    "@-1e400@",
    "@NaN@",
    "@Infinity@",
    "@1" + "0" * 400 + "@",
    "@0x10@",
    "@" + "[" * 600 + "]" * 600 + "@",
    '@"\\ud800"@',
    "@'single'@",
    "@01@",
    "@1.@",
]
TOKENS = [
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\x00\x00\x00\x00\x00\x00\x00\x80",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"{",
    b"[",
    b"]",
    b"}",
    b",",
    b"NaN",
    b"1e400",
    b"-",
    b"\\u0000",
    b'"',
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xda",
    b"\xff\xc0",
    b"\xff\xc2",
    b"\xff\xc4",
    b"\xff\xdb",
    b"\xff\xdd",
    b"cposix\nsystem\n",
    b"c__builtin__\neval\n",
    b"(",
    b"R",
    b"t",
    b".",
    b"b",
    b"\x85R",
    b"\x81",
    b"\x93",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/object/apply:os.system ",
    b"!!binary ",
    b"? ",
    b"- ",
    b"_BASE_: ",
    b": ",
    b"\t",
    b"---\n",
    b"%YAML 9.9\n",
]


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Make one to eight small changes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        size = len(changed)
        at = draw.randrange(size + 1)
        end = min(size, at + draw.choice((1, 2, 4, 16, 200)))
        kind = draw.randrange(9)
        if kind == 0 and size:
            changed[draw.randrange(size)] ^= 1 << draw.randrange(8)
        elif kind == 1 and size:
            changed[draw.randrange(size)] = draw.randrange(256)
        elif kind == 2:
            del changed[at:end]
        elif kind == 3:
            changed[at:at] = changed[at:end] * draw.choice((1, 2, 50))
        elif kind == 4:
            token = draw.choice(TOKENS)
            changed[at : at + draw.choice((0, len(token)))] = token
        elif kind == 5:
            changed[at : at + 4] = struct.pack(
                draw.choice("<>") + "I",
                draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, draw.randrange(1 << 32), size)),
            )
        elif kind == 6:
            changed[at : at + 2] = struct.pack(
                ">H", draw.choice((0, 1, 2, 3, 0x7FFF, 0xFFFF, draw.randrange(1 << 16)))
            )
        elif kind == 7:
            there = draw.randrange(size + 1)
            changed[there : there + end - at] = changed[at:end]
        elif draw.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """Replace, duplicate, remove, rename or nest a value of the tree; sometimes re-encode."""
    try:
        tree = json.loads(data)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            tree = _mutate_tree(tree, draw)
        text = json.dumps(tree)
    except (ValueError, RecursionError, OverflowError):  # earlier changes broke the format
        return mutate_bytes(data, draw)
    for word in EDGE_CASES:
        if isinstance(word, str) and word.startswith("@"):
            text = text.replace(json.dumps(word), word[1:-1])
    kind = draw.randrange(40)
    if kind == 0:
        return text.encode("utf-16")
    if kind == 1:
        return text.encode("utf-8-sig")
    if kind == 2:
        return json.dumps(tree, ensure_ascii=False).encode("latin-1", "replace")
    return mutate_bytes(text.encode(), draw) if kind < 6 else text.encode()


def _mutate_tree(tree: Any, draw: random.Random) -> Any:
    holders: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(holders) < 3000:
        item = waiting.pop()
        inner = (
            list(item.items())
            if isinstance(item, dict)
            else list(enumerate(item))
            if isinstance(item, list)
            else []
        )
        holders += [(item, key) for key, _ in inner]
        waiting += [value for _, value in inner]
    if not holders or draw.random() < 0.02:
        return copy.deepcopy(draw.choice(EDGE_CASES))
    holder, key = draw.choice(holders)
    if (isinstance(holder, dict) and key not in holder) or (
        isinstance(holder, list) and key >= len(holder)
    ):
        return tree
    kind = draw.randrange(10)
    if kind < 5:
        holder[key] = copy.deepcopy(draw.choice(EDGE_CASES))
    elif kind == 5:
        del holder[key]
    elif kind == 6 and isinstance(holder, list):
        holder[key:key] = [copy.deepcopy(holder[key]) for _ in range(draw.choice((1, 1, 40)))]
    elif kind == 7 and isinstance(holder, dict):
        holder[draw.choice(("x", "", "\x1b[2J", *map(str, list(holder)[:3])))] = holder.pop(key)
    elif kind == 8:
        for _ in range(draw.choice((1, 2, 30))):
            holder[key] = [holder[key]]
    elif isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = draw.choice(
            (
                -holder[key],
                holder[key] * 10.0 ** draw.randrange(-30, 30),
                float(holder[key]) + 0.5,
                str(holder[key]),
            )
        )
    return tree


def mutate_lines(data: bytes, draw: random.Random) -> bytes:
    """Duplicate, remove or move lines of YAML, or replace their values."""
    lines = data.split(b"\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not lines:
            break
        at = draw.randrange(len(lines))
        kind = draw.randrange(8)
        if kind < 3 and b":" in lines[at]:
            lines[at] = lines[at].split(b":")[0] + b": " + _yaml_value(draw)
        elif kind == 3:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        elif kind == 4:
            del lines[at]
        elif kind == 5:
            lines[at] = draw.choice((b" ", b"  ", b"\t", b"- ", b"#")) + lines[at]
        elif kind == 6:
            lines.insert(
                at,
                draw.choice(
                    (
                        b"TRAIN",
                        b"x",
                        b"MODEL",
                        b"TEST",
                        b"DATASET",
                        b"1",
                        b"~",
                        b"[a, b]",
                        b"_BASE_",
                    )
                )
                + b": "
                + _yaml_value(draw),
            )
        else:
            lines[at] = mutate_bytes(lines[at], draw)
    text = b"\n".join(lines)
    kind = draw.randrange(30)
    return (
        text.decode("latin-1").encode("utf-16")
        if kind == 0
        else mutate_bytes(text, draw)
        if kind < 5
        else text
    )


def _yaml_value(draw: random.Random) -> bytes:
    value = draw.choice(EDGE_CASES)
    own = (
        b"&a [*a, *a]",
        b"*a",
        b"!!python/name:os.system x",
        b"!!timestamp 2001-99-99",
        b"2001-12-14t21:59:43.10-05:00",
        b"!!set {a}",
        b"1_000",
        b"1:2:3",
        b"0b1" + b"1" * 200,
        b".inf",
        b".nan",
        b"=",
        b"!!int x",
        b"!!float ''",
        b"!!bool 3",
        b"!!binary /",
        b"!!omap [a]",
        b"{" * 300,
        b"[" * 2000,
        b'"\\x"',
        b"|\n x",
        b"'__import__(\"os\")'",
        b"'9**9**9'",
        b"'" + b"(" * 300 + b"'",
        b"1" * 5000,
        b"<<",
    )
    return draw.choice(own) if draw.random() < 0.4 else json.dumps(value).replace("@", "").encode()


def mutate_zip_with(inner: Mutation) -> Mutation:
    """Return a mutation that changes a member with `inner`, or its name or compression.

    The archive is repacked with valid checksums.
    """

    def mutated(data: bytes, draw: random.Random) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [
                    [info.filename, archive.read(info)]
                    for info in archive.infolist()
                    if info.file_size < 1 << 20
                ][:64]
        except Exception:  # earlier changes broke the format
            return mutate_bytes(data, draw)
        kind = draw.randrange(10)
        if kind < 2 or not members:
            return mutate_bytes(data, draw)
        chosen = draw.choice(members if draw.random() < 0.5 else members[:2])
        if kind == 2:
            chosen[0] = draw.choice(
                (
                    "../" * 9 + "up",
                    "/tmp/absolute",
                    "C:\\x",
                    "a\nb",
                    "\x1b[2J",
                    "",
                    ".",
                    chosen[0] * 2,
                    members[0][0],
                    "a/" * 200 + "b",
                )
            )
        elif kind == 3:
            chosen[1] = bytes(draw.choice((0, 1, 100, 1 << 20)))
        elif kind == 4:
            members.remove(chosen)
        elif kind == 5:
            members.insert(draw.randrange(len(members)), list(chosen))
        else:
            chosen[1] = inner(chosen[1], draw)
        out = io.BytesIO()
        compression = draw.choice(
            (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
        )
        with zipfile.ZipFile(out, "w", compression) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about duplicate names
            for name, content in members:
                info = zipfile.ZipInfo(name or "x", (2020, 1, 1, 0, 0, 0))
                info.compress_type = compression
                if draw.random() < 0.02:
                    info.external_attr = 0o120777 << 16
                archive.writestr(info, content)
        return out.getvalue() if draw.random() < 0.8 else mutate_bytes(out.getvalue(), draw)

    return mutated


def mutate_tar(data: bytes, draw: random.Random) -> bytes:
    """Change headers of a tar file: names, types, links, sizes, modes."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [
                (info, archive.extractfile(info).read() if info.isreg() else b"")
                for info in archive.getmembers()[:64]
                if info.size < 1 << 20
            ]
        out = io.BytesIO()
        with tarfile.open(
            fileobj=out,
            mode="w:" + draw.choice(("", "gz")),
            format=draw.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)),
        ) as archive:
            for info, content in members:
                if draw.random() < 0.4:
                    info.name = draw.choice(
                        (
                            info.name,
                            "../" * 5 + "up",
                            "/tmp/absolute",
                            "a/../../b",
                            "a\nb",
                            "\x1b[2J",
                            "l/" + info.name,
                            ".",
                            "x" * 300,
                        )
                    )
                if draw.random() < 0.4:
                    info.type = draw.choice(
                        (
                            tarfile.REGTYPE,
                            tarfile.SYMTYPE,
                            tarfile.LNKTYPE,
                            tarfile.CHRTYPE,
                            tarfile.FIFOTYPE,
                            tarfile.DIRTYPE,
                            tarfile.GNUTYPE_SPARSE,
                            b"?",
                        )
                    )
                    info.linkname = draw.choice(
                        ("", "/etc", "..", "l", info.name, members[0][0].name)
                    )
                    info.size = info.size if info.isreg() else 0
                info.mode = draw.choice((info.mode, 0, 0o7777))
                archive.addfile(info, io.BytesIO(content))
    except Exception:  # earlier changes broke the format
        return mutate_bytes(data, draw)
    return out.getvalue() if draw.random() < 0.7 else mutate_bytes(out.getvalue(), draw)


def mutate_archive(data: bytes, draw: random.Random) -> bytes:
    return (
        mutate_zip_with(mutate_bytes)(data, draw)
        if data.startswith(b"PK")
        else mutate_tar(data, draw)
    )


def mutate_jpeg(data: bytes, draw: random.Random) -> bytes:
    """Duplicate, remove, move, cut or change segments of a JPEG; change bytes of other images."""
    if not data.startswith(b"\xff\xd8") or draw.random() < 0.4:
        return mutate_bytes(data, draw)
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
        segments.append(bytearray(data[at:end]))
        at = end
    scan = bytearray(data[at:])
    for _ in range(draw.choice((1, 1, 2, 4))):
        kind = draw.randrange(7)
        if not segments or kind == 0:
            scan = bytearray(mutate_bytes(bytes(scan), draw))
            continue
        chosen = draw.randrange(len(segments))
        segment = segments[chosen]
        if kind == 1:
            segments.insert(draw.randrange(len(segments) + 1), bytearray(segment))
        elif kind == 2:
            del segments[chosen]
        elif kind == 3:
            segments.insert(draw.randrange(len(segments)), segments.pop(chosen))
        elif kind == 4 and len(segment) > 4:
            segment[draw.randrange(4, len(segment))] = draw.randrange(256)
        elif kind == 5:
            frame = next((s for s in segments if s[1] in (0xC0, 0xC1, 0xC2) and len(s) > 9), None)
            if frame:
                place = draw.choice((5, 7))
                frame[place : place + 2] = struct.pack(
                    ">H",
                    draw.choice(
                        (0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 100, 500, 2000, 65500, 65535)
                    ),
                )
        else:
            scan = scan * 2 if len(scan) < 1 << 15 else scan
    return data[:2] + b"".join(segments) + bytes(scan)
