"""Test that readers of untrusted files accept valid ones."""

import io
import os
import struct
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
import yaml
from poise.errors import (
    MAX_CHARACTERS,
    ConfigError,
    DataError,
    escape_html,
    escape_name,
    format_error,
)
from poise.io import archives, image_header, json_file
from poise.io.files import format_bytes, read_bytes
from poise.io.mat_file import read_matlab
from poise.io.yaml_file import parse_yaml
from scipy.io import loadmat, savemat
from support.paths import ROOT

PICTURE = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8),
    (45, 31),
    interpolation=cv2.INTER_CUBIC,
)


def test_escape_name_control_characters_are_escaped():
    assert escape_name("Größe 1.jpg") == "Größe 1.jpg"
    assert (
        escape_name("a\nb\r\t\x1b[2J\x07\u202egnp.exe\x9b")
        == "a\\nb\\r\\t\\x1b[2J\\x07\\u202egnp.exe\\x9b"
    )
    assert (
        escape_name("\ud800") == "\\ud800"
        and escape_name("x" * 500) == "x" * 200 + "..."
        and escape_name(7) == "7"
    )


def test_escape_html_markup_and_bidi_marks_are_escaped():
    marks = "".join(map(chr, (0x202E, 0x2066, 0x200F, 0x61C, 0x7, 0x9B, 0xFEFF, 0xD800)))
    shown = "\\u202e\\u2066\\u200f\\u061c\\x07\\x9b\\ufeff\\ud800"
    assert (
        escape_html(f"<a href='x'>&\"{marks}") == f"&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;{shown}"
    )
    assert escape_html("Größe\n日本 שלום") == "Größe\n日本 שלום" and escape_html(7) == "7"


def test_log_control_characters_are_escaped(tmp_path, capsys):
    """For example what a checkpoint states about its run."""
    import logging

    from poise.engine import logger
    from support.runs import forget_log_handlers

    logger.start_console()
    logger.add_file(tmp_path / "run.log")
    logging.getLogger("poise.test").warning("weights of %s\n| a table\t|", "\x1b[2J\u202egnp\r")
    forget_log_handlers()
    for output in (capsys.readouterr().out, (tmp_path / "run.log").read_text(encoding="utf-8")):
        assert output.endswith("weights of \\x1b[2J\\u202egnp\\r\n| a table\t|\n")


def test_format_error_long_line_keeps_both_ends():
    line = format_error(DataError(f"a.json: {'x' * 5000}; fix it"))
    assert (
        len(line) <= MAX_CHARACTERS
        and line.startswith("a.json: xxx")
        and line.endswith("xxx; fix it")
    )
    assert format_error(DataError("a\nb")) == "a b"


def test_format_bytes_equals_examples():
    assert [format_bytes(size) for size in (12, 1500, 2_500_000, 19_336_861_798)] == [
        "12 bytes",
        "1.5 kB",
        "2.5 MB",
        "19.3 GB",
    ]


def test_read_bytes_follows_links(tmp_path):
    (tmp_path / "there").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert read_bytes(tmp_path / "link", "file", 10) == b"1"
    with pytest.raises(
        ConfigError, match="the file has 1 bytes, more than the 0 bytes that are read"
    ):
        read_bytes(tmp_path / "there", "file", 0, error_cls=ConfigError)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [1, 2.5, true, null, x]\n",
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n",
        "",
        "7",
        "a: 2001-01-01\nb: !!set {x}\n",
    ],
)
def test_parse_yaml_equals_safe_load(text):
    assert parse_yaml(text, "a.yaml", ConfigError) == yaml.safe_load(text)


def test_parse_yaml_every_experiment_equals_safe_load():
    for path in (ROOT / "experiments").rglob("*.yaml"):
        assert parse_yaml(path.read_bytes(), path, ConfigError) == yaml.safe_load(path.read_bytes())


def test_read_json_with_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2]}')
    assert json_file.read_json(tmp_path / "a.json", "file") == {"a": [1, 2]}


@pytest.mark.parametrize("options", [{}, {"do_compression": True}, {"oned_as": "column"}])
def test_read_matlab_equals_scipy(tmp_path, options):
    content = {
        "f8": np.random.default_rng(0).normal(size=(3, 2, 4)),
        "u1": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "i2": np.array([[-5, 300]], np.int16),
        "f4": np.float32([[1.5], [2]]),
        "one": 3.25,
        "empty": np.zeros((0, 3)),
        "long_name_of_an_array": np.array([1, 2, 3], np.int64),
        "names": np.array(["rank", "Größe", ""], dtype=object),
        "left_out": {"a": 1},
    }
    savemat(tmp_path / "a.mat", content, **options)
    found, expected = read_matlab(tmp_path / "a.mat", "file"), loadmat(tmp_path / "a.mat")
    for name in ("f8", "u1", "i2", "f4", "one", "empty", "long_name_of_an_array"):
        assert found[name].dtype == expected[name].dtype and np.array_equal(
            found[name], expected[name]
        ), name
    assert found["names"][:2] == ["rank", "Größe"] and "left_out" not in found


def test_read_matlab_big_endian_is_read(tmp_path):
    """Written here, because scipy cannot write it."""
    values = np.arange(6.0).reshape(2, 3)
    parts = [
        (6, struct.pack(">II", 6, 0)),
        (5, struct.pack(">ii", 2, 3)),
        (1, b"a"),
        (9, values.astype(">f8").tobytes(order="F")),
    ]
    body = b"".join(
        struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in parts
    )
    (tmp_path / "a.mat").write_bytes(
        b"MATLAB 5.0".ljust(124) + b"\1\0MI" + struct.pack(">II", 14, len(body)) + body
    )
    assert np.array_equal(read_matlab(tmp_path / "a.mat", "file")["a"], values) and np.array_equal(
        loadmat(tmp_path / "a.mat")["a"], values
    )


@pytest.mark.parametrize("ending", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".gif"])
def test_read_size_equals_decoded_size(ending):
    data = cv2.imencode(ending, PICTURE)[1].tobytes()
    assert image_header.read_size(data) == (45, 31) and image_header.find_error(data) == ""


def test_read_size_other_kinds_equal_decoded_size():
    for options in ([cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]):
        assert image_header.read_size(cv2.imencode(".jpg", PICTURE, options)[1].tobytes()) == (
            45,
            31,
        )
    lossy, lossless = (
        cv2.imencode(".webp", PICTURE, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        for quality in (50, 101)
    )
    assert lossy[12:16] != lossless[12:16] and image_header.read_size(
        lossy
    ) == image_header.read_size(lossless) == (45, 31)
    assert image_header.read_size(b"P6 45 31 255\n") is None and image_header.read_size(
        b"\xff\xd8\xff\xc0"
    ) == (0, 0)


def test_find_error_102_megapixels_is_accepted():
    """Medium-format cameras have 102 million pixels."""
    header = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    at = header.index(b"\xff\xc0")
    assert (
        image_header.find_error(
            header[: at + 5] + struct.pack(">HH", 8736, 11648) + header[at + 9 :]
        )
        == ""
    )


def test_find_name_error_accepts_relative_names_only():
    for name in ("a.jpg", "train2017/a.jpg", "a b/ü.jpg", "a..b.jpg", "./a.jpg"):
        assert archives.find_name_error(name) == "", name
    for name in (
        "/a",
        "../a",
        "a/../../b",
        "a/..",
        "\\a",
        "..\\a",
        "C:\\a",
        "c:a",
        "",
        ".",
        "a\0b",
        "x" * 256,
        "ü" * 128,
    ):
        assert archives.find_name_error(name), name


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_unpack_every_archive_writes_wanted_members(tmp_path, kind):
    files = {
        "set/a.jpg": b"a" * 5000,
        "set/sub/b.jpg": os.urandom(3000),
        "set/unwanted.txt": b"x",
        "set/empty.jpg": b"",
    }
    path = tmp_path / f"archive.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("set") if hasattr(archive, "mkdir") else None
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            folder = tarfile.TarInfo("set")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    target, done = tmp_path / "target", []
    place = {
        name: f"images/{name.removeprefix('set/')}" for name in files if not name.endswith(".txt")
    }.get
    for _ in range(2):
        assert archives.unpack(path, target, place, done.append) == 3
        assert {
            str(file.relative_to(target)): file.read_bytes()
            for file in target.rglob("*")
            if file.is_file()
        } == {
            f"images/{name.removeprefix('set/')}": data
            for name, data in files.items()
            if not name.endswith(".txt")
        }
    assert sum(done) == 2 * 8000


def test_unpack_existing_files_are_kept_and_truncated_replaced(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"12345")
        archive.writestr("b", b"12345")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_bytes(b"abcde")
    (tmp_path / "out/b").write_bytes(b"abc")
    archives.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/a").read_bytes() == b"abcde" and (
        tmp_path / "out/b"
    ).read_bytes() == b"12345"


def test_unpack_existing_link_is_replaced(tmp_path):
    """The link is replaced and its target is kept."""
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "mine")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"12345")
    archives.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (
        (tmp_path / "mine").read_bytes() == b"precious"
        and (tmp_path / "out/a").read_bytes() == b"12345"
        and not (tmp_path / "out/a").is_symlink()
    )
