"""Test that small files which expand to gigabytes or hours are refused."""

import gzip
import io
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from poise import config
from poise.errors import ConfigError, PoiseError
from poise.io import archives, files, image_header, json_file
from poise.io.mat_file import read_matlab
from poise.io.yaml_file import parse_yaml
from poise.models.weights import read_tensors, read_weight_file
from support.paths import ROOT


def refusal(call, *arguments):
    with pytest.raises(PoiseError) as error:
        call(*arguments)
    return str(error.value)


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_tar_long_header_raises(tmp_path, kind):
    """tarfile would read all of it; the size in the header is enough for the test."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 1 << 33
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))
    before = megabytes()
    line = refusal(archives.unpack, tmp_path / "a.tar.gz", tmp_path / "out")
    assert (
        "a.tar.gz: a header in it is larger than a name can be" in line
        and megabytes() < before + 50
    )


def test_tar_growing_global_headers_raise(tmp_path):
    with tarfile.open(
        tmp_path / "a.tar",
        "w",
        format=tarfile.PAX_FORMAT,
        pax_headers={f"key{number}": "x" for number in range(100)},
    ) as archive:
        for name in ("a", "b"):
            archive.addfile(tarfile.TarInfo(name))
    assert "a header in it" in refusal(archives.unpack, tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("form", ["old", "1.0"])
def test_tar_sparse_member_raises(tmp_path, form):
    info = tarfile.TarInfo("x")
    if form == "old":
        info.type = tarfile.GNUTYPE_SPARSE
        data = info.tobuf(tarfile.GNU_FORMAT)
    else:
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "x",
            "GNU.sparse.realsize": "1000000000000",
        }
        data = info.tobuf(tarfile.PAX_FORMAT)
    (tmp_path / "a.tar").write_bytes(data + b"99999999\n" + b"0\n" * 5000 + bytes(2000))
    assert "x is a file with holes" in refusal(
        archives.unpack, tmp_path / "a.tar", tmp_path / "out"
    )


def test_tar_long_names_are_unpacked(tmp_path):
    name = "/".join(["folder" * 10] * 5)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        assert (
            archives.unpack(tmp_path / "a.tar", tmp_path / str(form)) == 1
            and (tmp_path / str(form) / name).read_bytes() == b"abc"
        )


def matlab(parts, size):
    out = b"MATLAB 5.0".ljust(124) + b"\0\1IM"
    for number in range(parts):
        elements = [
            (6, struct.pack("<II", 9, 0)),
            (5, struct.pack("<ii", 1, size)),
            (1, f"a{number}".encode()),
            (2, bytes(size)),
        ]
        body = b"".join(
            struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)
            for kind, data in elements
        )
        packed = zlib.compress(struct.pack("<II", 14, len(body)) + body, 1)
        out += struct.pack("<II", 15, len(packed)) + packed
    return out


def test_matlab_total_size_over_limit_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("poise.io.mat_file.MAX_BYTES", 100_000)
    (tmp_path / "a.mat").write_bytes(matlab(3, 30_000))
    assert set(read_matlab(tmp_path / "a.mat", "file")) == {"a0", "a1", "a2"}
    (tmp_path / "a.mat").write_bytes(matlab(4, 30_000))
    assert "a compressed part is cut off or too large" in refusal(
        read_matlab, tmp_path / "a.mat", "file"
    )


def test_load_exponential_bases_raise(tmp_path):
    for level in range(14):
        (tmp_path / f"{level}.yaml").write_text(
            f"_BASE_: [{', '.join([f'{level + 1}.yaml'] * 8)}]\n"
        )
    (tmp_path / "14.yaml").write_text("WORKERS: 1\n")
    assert "more than 100 files to read by _BASE_" in refusal(config.load, tmp_path / "0.yaml")
    assert config.load(tmp_path / "13.yaml").WORKERS == 1


@pytest.mark.parametrize(
    "number",
    ["1" * 400, "0x" + "f" * 5000, "0b" + "1" * 1001, ":".join(["59"] * 200_000), "-" + "9" * 5000],
    ids=["400", "hex", "bits", "base 60", "negative"],
)
def test_parse_yaml_huge_integer_raises(number):
    line = refusal(parse_yaml, f"a: [{number}]", "a.yaml", ConfigError)
    assert line.startswith("a.yaml: has a whole number of ") and len(line) < 200
    assert parse_yaml("[0x7fffffffffffffff, -12, 1:30]", "a.yaml", ConfigError) == [
        2**63 - 1,
        -12,
        90,
    ]


def test_parse_yaml_zero_byte_raises():
    assert "has a text with a zero byte" in refusal(parse_yaml, 'a: "b\\0c"', "a.yaml", ConfigError)
    assert "has a text with a zero byte" in refusal(parse_yaml, '"b\\0c": 1', "a.yaml", ConfigError)


def test_read_json_larger_than_memory_raises(tmp_path, monkeypatch):
    """A list of empty lists takes twenty times the memory of its text."""
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b"[]," * 3_000_000 + b"[]]")
    assert len(json_file.read_json(path, "file")) == 3_000_001
    monkeypatch.setattr(files, "available_memory", lambda: 100_000_000)
    assert (
        "reading the content of the file takes about 144.0 MB of memory, and 100.0 MB are free"
        in refusal(json_file.read_json, path, "file")
    )
    path.write_bytes(b'{"images": [' + b"[]," * 3_000_000 + b'[]], "annotations": []}')
    assert "takes about 144.0 MB" in refusal(
        json_file.read_in_parts, path, "annotations", lambda content, parts: 0, "file"
    )


def test_read_file_larger_than_memory_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "available_memory", lambda: 140_000_000)
    for name in ("a.json", "a.pth"):
        (tmp_path / name).touch()
        with open(tmp_path / name, "r+b") as file:
            file.truncate(150_000_000)
    assert "reading the file takes about 150.0 MB of memory, and 140.0 MB are free" in refusal(
        json_file.read_json, tmp_path / "a.json", "file"
    )
    assert "reading the weight file takes about 150.0 MB" in refusal(
        read_weight_file, tmp_path / "a.pth"
    )
    monkeypatch.setattr(files, "available_memory", lambda: None)  # a system that does not tell
    assert "not valid JSON" in refusal(json_file.read_json, tmp_path / "a.json", "file")


# weights ------------------------------------------------------------------------------------------


def repacked(path, change):
    """Rewrite the members of a file as change(info, data) -> (name, data, compression)."""
    with zipfile.ZipFile(path) as old:
        members = [change(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data, kind in members:
            new.writestr(name, data, kind)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_weights_compressed_members_raise(tmp_path, kind):
    """torch decompresses them: 200 kB become 200 MB."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(5_000_000)}, path)
    repacked(path, lambda info, data: (info.filename, data, zipfile.ZIP_STORED))
    assert read_weight_file(path).state["a"].numel() == 5_000_000
    repacked(path, lambda info, data: (info.filename, data, kind))
    assert "its members are compressed or larger than the file" in refusal(read_weight_file, path)
    assert "its members are compressed or larger than the file" in refusal(
        read_tensors, path, "checkpoint"
    )


def test_weights_two_zip_directories_raise(tmp_path):
    """zipfile and torch may find different central directories; they must be the same."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(3)}, path)
    data = path.read_bytes()
    assert read_weight_file(path)
    at = data.rindex(b"PK\x05\x06")
    begin = struct.unpack_from("<I", data, at + 16)[0]
    path.write_bytes(data[: at + 16] + struct.pack("<I", begin - 50) + data[at + 20 :])
    assert "not a weight file of PyTorch, or damaged" in refusal(read_weight_file, path)


def nested(levels, old=False):
    """Return a dictionary with a nested tuple of the given depth as its key."""
    body = b"\x80\x02}q\x00)" + b"\x85q\x01N\x86" * (levels // 2) + b"K\x01s."
    if not old:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in (
                ("a/data.pkl", body),
                ("a/version", b"3\n"),
                ("a/byteorder", b"little"),
            ):
                archive.writestr(name, content)
        return out.getvalue()
    plain = io.BytesIO()
    torch.save({"a": 1}, plain, _use_new_zipfile_serialization=False)
    content = plain.getvalue()
    at = content.index(b"\x80\x02}", content.index(b".", 40))
    return content[:at] + body


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_weights_nested_tuples_raise(tmp_path, old):
    """Hashing a million levels overflows the stack, so a separate process is used."""
    (tmp_path / "a.pth").write_bytes(nested(1_000_000, old))
    code = (
        "from poise.models.weights import read_weight_file\ntry:\n   "
        f" read_weight_file({str(tmp_path / 'a.pth')!r})\nexcept Exception as error:\n   "
        " print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "lib", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "nests tuples without end" in done.stdout, (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_weights_many_tensors_are_read(tmp_path):
    torch.save(
        {f"layer{number}.weight": torch.zeros(2, 1) for number in range(10_000)}, tmp_path / "a.pth"
    )
    assert len(read_weight_file(tmp_path / "a.pth").state) == 10_000


def test_weights_thousands_of_numpy_classes_raise(tmp_path):
    """Each class that torch does not know reads the file again."""
    body = b"\x80\x02]" + b"".join(b"cnumpy\nx%d\na" % number for number in range(2000)) + b"."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, content in (
            ("a/data.pkl", body),
            ("a/version", b"3\n"),
            ("a/byteorder", b"little"),
        ):
            archive.writestr(name, content)
    assert "could run untrusted code" in refusal(read_weight_file, tmp_path / "a.pth")


def test_weights_huge_number_in_name_raises(tmp_path):
    torch.save({"layer1." + "9" * 5000 + ".weight": torch.zeros(2)}, tmp_path / "a.pth")
    line = refusal(read_weight_file, tmp_path / "a.pth")
    assert "a name of 5014 letters" in line and len(line) < 300


# images -------------------------------------------------------------------------------------------


def tiff(*entries, order="<"):
    """Return the first directory of a TIFF: (tag, type, value)."""
    found = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, value in entries
    )
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(f"{order}IH", 8, len(entries))
        + found
        + bytes(4)
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_huge_tile_raises(order):
    """3 kB with a tile of 256 million pixels took a gigabyte."""
    size = (256, 3, 40), (257, 3, 30)
    assert image_header.find_error(tiff(*size, (322, 3, 256), (323, 3, 256), order=order)) == ""
    assert "is decoded in parts of more than 220 MB" in image_header.find_error(
        tiff(*size, (322, 3, 16000), (323, 4, 16000), order=order)
    )
    assert (
        image_header.find_error(
            tiff((256, 4, 7000), (257, 4, 7000), (278, 4, 0xFFFFFFFF), order=order)
        )
        == ""
    )
    assert "is decoded in parts" in image_header.find_error(
        tiff((256, 4, 7000), (257, 4, 7000), (277, 3, 4), (258, 3, 64), order=order)
    )
    assert (
        image_header.find_error(
            tiff(
                (256, 4, 7000), (257, 4, 7000), (277, 3, 4), (258, 3, 64), (278, 3, 16), order=order
            )
        )
        == ""
    )
    assert "claims 40 x 4000000000 pixels" in image_header.find_error(
        tiff((256, 3, 40), (257, 4, 4_000_000_000), (257, 3, 30), order=order)
    )
    assert "claims" in image_header.find_error(tiff((256, 16, 40), (257, 16, 30), order=order))


def test_tiff_usual_files_are_accepted():
    import cv2

    for kind in (np.uint8, np.uint16, np.float32):
        for channels in (1, 3, 4):
            image = np.zeros((31, 45, channels), kind)
            for compression in (1, 5, 8):
                done, data = cv2.imencode(
                    ".tiff", image, [cv2.IMWRITE_TIFF_COMPRESSION, compression]
                )
                assert (
                    image_header.read_size(data.tobytes()) == (45, 31)
                    and image_header.find_error(data.tobytes()) == ""
                )


def test_jpeg_many_scans_raise():
    """2000 x 2000 pixels decoded a thousand times take half an hour."""
    import cv2

    data = cv2.imencode(
        ".jpg", np.zeros((400, 400, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    )[1].tobytes()
    assert image_header.find_error(data) == ""
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert image_header.find_error(data[:-2] + scan * 100 + data[-2:]) == "", (
        "160,000 pixels a hundred times are nothing"
    )
    assert "has more than 64 scans" in image_header.find_error(data[:-2] + scan * 2000 + data[-2:])


# files next to the weights ------------------------------------------------------------------------


def test_config_yaml_bomb_next_to_weights_is_ignored(tmp_path, monkeypatch, caplog):
    """The config.yaml of a foreign run folder is read for a warning about settings."""
    import logging

    from poise.engine import trained_weights

    monkeypatch.setattr(logging.getLogger("poise"), "propagate", True)
    cfg, weights = (
        config.load(ROOT / "experiments/synthetic/res2net18_quickstart.yaml"),
        tmp_path / "w.pth",
    )
    weights.touch()
    for text, message in [
        (
            'MODEL: {TARGET_TYPE: "\\e[2J\\n| all is well"}\nDATASET: {}',
            "MODEL.TARGET_TYPE \\x1b[2J\\n| all is well (tested with",
        ),
        ("MODEL: {IMAGE_SIZE: 0x" + "f" * 9000 + "}\nDATASET: {}", ""),
        ("#" * (1 << 21), ""),
        ("[" * 5000, ""),
        ("MODEL: 3", ""),
    ]:
        (tmp_path / "config.yaml").write_text(text)
        caplog.clear()
        trained_weights.warn_config_mismatch(cfg, weights)
        assert (message in caplog.text) if message else not caplog.records
