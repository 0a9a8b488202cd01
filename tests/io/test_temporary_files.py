"""Test temporary files: unpredictable names, links are not followed."""

import os
import re
import stat
import tarfile

import numpy as np
import pytest
from poise.errors import DataError
from poise.io import archives, download, files, video

URL = "https://localhost/weights-0123abcd.pth"


@pytest.fixture
def known_token(monkeypatch):
    """Use a token that an attacker has guessed."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)
    return "0" * 16


def test_atomic_write_uses_new_names_and_cleans_up(tmp_path):
    target, parts = tmp_path / "a.json", []
    for content in (b"one", b"two"):
        with files.atomic_write(target) as part:
            assert os.listdir(tmp_path).count(part.name) == 1 and not part.stat().st_size
            part.write_bytes(content)
            parts.append(part.name)
        assert target.read_bytes() == content and os.listdir(tmp_path) == ["a.json"]
    assert parts[0] != parts[1] and str(os.getpid()) not in parts[0].split(".")
    assert all(re.fullmatch(files.TEMPORARY_NAME, name) for name in parts)


def test_atomic_write_permissions_follow_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with files.atomic_write(tmp_path / "a") as part:
            part.write_bytes(b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["x" * 255, "\u00e9" * 127, "\U0001f600" * 63])
def test_atomic_write_longest_names_are_written(tmp_path, name):
    with files.atomic_write(tmp_path / name) as part:
        part.write_bytes(b"1")
    assert (tmp_path / name).read_bytes() == b"1"


@pytest.mark.parametrize("what", ["atomic_write", "video", "archive"])
def test_temporary_file_existing_link_is_not_followed(tmp_path, known_token, what):
    victim, folder = tmp_path / "victim", tmp_path / "shared"
    victim.write_bytes(b"precious")
    folder.mkdir()
    ending = ".mp4" if what == "video" else ""
    link = folder / f".a{ending}.{known_token}.part{ending}"
    link.symlink_to(victim)
    with pytest.raises(DataError, match="File exists"):
        if what == "atomic_write":
            with files.atomic_write(folder / "a") as part:
                part.write_bytes(b"spoilt")
        elif what == "video":
            video.VideoWriter(folder / "a.mp4", 25.0).write(np.zeros((48, 64, 3), np.uint8), 0.0)
        else:
            (tmp_path / "a").write_bytes(b"spoilt")
            with tarfile.open(tmp_path / "a.tar", "w") as tar:
                tar.add(tmp_path / "a", "a")
            archives.unpack(tmp_path / "a.tar", folder)
    assert victim.read_bytes() == b"precious" and link.is_symlink()
    assert os.listdir(folder) == [link.name]


@pytest.mark.parametrize("kind", ["link", "dangling link", "named pipe", "folder"])
def test_download_file_part_that_is_not_a_file_raises(tmp_path, kind):
    part, victim = tmp_path / "weights-0123abcd.pth.part", tmp_path / "victim"
    if kind == "named pipe":
        os.mkfifo(part)
    elif kind == "folder":
        part.mkdir()
    else:
        part.symlink_to(victim)
    if kind == "link":
        victim.write_bytes(b"precious")
    with pytest.raises(DataError) as error:
        download.download_file(URL, tmp_path)
    assert (
        str(error.value)
        == f"{part}: is a link or not a regular file, and nothing is downloaded into it; remove it"
    )
    assert victim.read_bytes() == b"precious" if kind == "link" else not victim.exists()
    assert os.path.lexists(part)
