"""Test downloads from a local server that fails in many ways."""

import hashlib
import os
import socket
import subprocess
import sys

import pytest
import torch
from poise.errors import DataError, single_line
from poise.io import download
from poise.models import weights
from support.paths import ROOT
from support.weight_server import CONTENT, NAME, files, serving


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def refusal(url, folder, **options):
    with pytest.raises(DataError) as error:
        download.download_file(url, folder, **options)
    text = str(error.value)
    assert text == single_line(text)
    return text


def test_download_file_writes_content(server, tmp_path, capsys):
    target = download.download_file(server.url(), tmp_path / "models" / "imagenet")
    assert target == tmp_path / "models" / "imagenet" / NAME and target.read_bytes() == CONTENT
    assert files(target.parent) == [NAME] and server.asked == [None]
    output = capsys.readouterr()
    assert f"downloading {server.url()} (2.3 MB) to {target}" in output.out and output.err == ""


def test_download_file_existing_file_is_kept(server, tmp_path):
    first = download.download_file(server.url(), tmp_path)
    assert download.download_file(server.url(), tmp_path) == first and len(server.asked) == 1


def test_download_file_broken_transfer_resumes(server, tmp_path):
    server.breaks_after = 1_500_000
    text = refusal(server.url(), tmp_path)
    assert (
        "the transfer ended after 1500000 of 2304000 bytes" in text
        and f"{NAME}.part" in text
        and "the next try resumes from" in text
    )
    assert files(tmp_path) == [f"{NAME}.part"]
    server.breaks_after = None
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1500000-"] and files(tmp_path) == [NAME]


def test_download_file_server_without_ranges_restarts(server, tmp_path):
    server.breaks_after, server.ranges = 1000, False
    refusal(server.url(), tmp_path)
    server.breaks_after = None
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT
    assert server.asked[1] == "bytes=1000-"


def test_download_file_complete_part_needs_no_transfer(server, tmp_path):
    """Killed before the rename: the server answers 416 because nothing is left to send."""
    for sends_range in (True, False):
        server.says_range = sends_range
        (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
        assert download.download_file(server.url(), tmp_path, force=True).read_bytes() == CONTENT
        assert files(tmp_path) == [NAME]
    assert server.asked == [f"bytes={len(CONTENT)}-"] * 2


def test_download_file_too_long_part_restarts(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_download_file_unexpected_range_restarts(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    server.shifted = True
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT


def test_download_file_wrong_part_is_removed(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 5000)
    assert "the file was removed, download" in refusal(server.url(), tmp_path)
    assert files(tmp_path) == []
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT


def test_download_file_wrong_checksum_removes_file(server, tmp_path):
    name = "net-00000000.pth"
    text = refusal(server.url(name), tmp_path)
    assert (
        f"its sha256 begins with {hashlib.sha256(CONTENT).hexdigest()[:8]}, and 00000000 was"
        " published; the file was removed" in text
    )
    assert files(tmp_path) == []


def test_download_file_existing_file_with_wrong_checksum_raises(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"cut off by another program")
    assert "its sha256 begins with" in refusal(server.url(), tmp_path) and server.asked == []
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT


def test_download_file_unknown_length_works(server, tmp_path, capsys):
    server.says_length = False
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT
    assert "size unknown" in capsys.readouterr().out


def test_download_file_404_names_the_target(server, tmp_path):
    text = refusal(server.url("other-0123abcd.pth"), tmp_path)
    assert (
        "HTTP Error 404" in text
        and f"or put the file at {tmp_path / 'other-0123abcd.pth'} yourself" in text
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize("fault", ["nonsense", "broken_chunks"])
def test_download_file_protocol_error_raises(server, tmp_path, fault):
    setattr(server, fault, True)
    assert "cannot be downloaded" in refusal(server.url(), tmp_path)
    assert NAME not in files(tmp_path)


def test_download_file_no_server_raises(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert "cannot be downloaded" in refusal(f"http://127.0.0.1:{port}/{NAME}", tmp_path)
    assert files(tmp_path) == []


def test_download_file_invalid_folder_raises(server, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be downloaded" in refusal(server.url(), tmp_path / "file" / "models")
    assert server.asked == []


def test_download_file_target_is_a_folder_raises(server, tmp_path):
    (tmp_path / NAME).mkdir()
    assert "cannot be read (Is a directory); remove it" in refusal(server.url(), tmp_path)


def test_download_file_redirect_keeps_the_first_name(server, tmp_path):
    """GitHub releases redirect to another host; the first URL gives the name."""
    server.redirect = server.url("net-elsewhere.pth")
    moved = server.url().replace("/weights/", "/moved/")
    assert (
        download.download_file(moved, tmp_path) == tmp_path / NAME
        and (tmp_path / NAME).read_bytes() == CONTENT
    )


@pytest.mark.parametrize(
    "target", ["http://example.com/net.pth", "ftp://example.com/net.pth", "file:///etc/passwd"]
)
def test_download_file_unsafe_redirect_raises(server, tmp_path, target):
    server.redirect = target
    text = refusal(server.url().replace("/weights/", "/moved/"), tmp_path)
    assert "only https addresses are downloaded" in text or "is not allowed" in text
    assert files(tmp_path) == []


def test_download_file_disk_too_small_raises_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})()
    )
    text = refusal(server.url(), tmp_path)
    assert (
        "2.3 MB are to come, and 1.0 MB are free on the disk of" in text and files(tmp_path) == []
    )


def test_download_file_disk_fills_keeps_the_part(server, tmp_path):
    """As when another program writes too: the partial file is kept, not the final name."""
    resource = pytest.importorskip("resource")
    import signal

    before, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        text = refusal(server.url(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in text and files(tmp_path) == [f"{NAME}.part"]
    assert download.download_file(server.url(), tmp_path).read_bytes() == CONTENT and server.asked[
        1
    ].startswith("bytes=1")


def test_download_file_given_checksum_is_checked(server, tmp_path):
    """models/zoo.yaml may have the checksum of a file whose name has none."""
    whole = hashlib.sha256(CONTENT).hexdigest()
    target = download.download_file(
        server.url("net.pth"), tmp_path, name="resnet.pth", digest=whole
    )
    assert target == tmp_path / "resnet.pth" and files(tmp_path) == ["resnet.pth"]
    assert "its sha256 begins with" in refusal(
        server.url("net.pth"), tmp_path, name="other.pth", digest="0" * 64
    )
    assert "and 1111" in refusal(server.url(), tmp_path / "b", digest="1111111111"), (
        "a given sum goes before that of the name"
    )


def test_download_file_without_checksum_needs_permission(server, tmp_path, caplog):
    caplog.set_level("WARNING", logger="poise")
    assert "could not be checked" in refusal(server.url("net.pth"), tmp_path)
    target = download.download_file(server.url("net.pth"), tmp_path, unchecked=True)
    assert (
        target.read_bytes() == CONTENT
        and f"{target}: was not checked, because its publisher gives no sum of it" in caplog.text
    )
    assert (
        download.download_file(server.url("net.pth"), tmp_path, unchecked=True) == target
        and len(server.asked) == 1
    )
    target.write_bytes(b"")
    assert (
        "was empty" in refusal(server.url("net.pth"), tmp_path, unchecked=True)
        and files(tmp_path) == []
    )


def test_download_file_without_checksum_detects_broken_transfer(server, tmp_path):
    server.breaks_after = 1000
    assert "the transfer ended after 1000 of 2304000 bytes" in refusal(
        server.url("net.pth"), tmp_path, unchecked=True
    )
    server.breaks_after = None
    assert (
        download.download_file(server.url("net.pth"), tmp_path, unchecked=True).read_bytes()
        == CONTENT
        and server.asked[1] == "bytes=1000-"
    )


def test_download_file_force_keeps_old_until_complete(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"old")
    server.breaks_after = 1000
    refusal(server.url(), tmp_path, force=True)
    assert (tmp_path / NAME).read_bytes() == b"old"
    server.breaks_after = None
    assert download.download_file(
        server.url(), tmp_path, force=True
    ).read_bytes() == CONTENT and files(tmp_path) == [NAME]


def test_download_file_concurrent_processes_download_once(server, tmp_path):
    """One process downloads; the other processes of the training wait."""
    pytest.importorskip("fcntl")
    code = (
        "import sys; from poise.io import download; "
        "print(download.download_file(sys.argv[1], sys.argv[2]).stat().st_size)"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, server.url(), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "lib")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for rank in ranks:
        out, errors = rank.communicate(timeout=60)
        assert rank.returncode == 0 and out.endswith(f"{len(CONTENT)}\n"), errors
    assert len(server.asked) == 1 and files(tmp_path) == [NAME]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"the network was asked for {arguments}")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    "url",
    [
        f"http://example.com/{NAME}",
        f"ftp://example.com/{NAME}",
        f"file:///etc/{NAME}",
        f"http://127.0.0.1.example.com/{NAME}",
        f"http://127.0.0.1@example.com/{NAME}",
        f"s3://bucket/{NAME}",
    ],
)
def test_download_file_other_schemes_raise(tmp_path, no_network, url):
    assert (
        "only https addresses are downloaded; download the file yourself and give its path"
        in refusal(url, tmp_path / "models")
    )
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "name",
    ["net.pth", "net-latest.pth", "net-0123abc.pth", "net-0123ABCD.pth", "", "net_0123abcd.pth"],
)
def test_download_file_name_without_checksum_raises(tmp_path, no_network, name):
    assert "the file name carries no sha256 prefix" in refusal(
        f"https://example.com/{name}", tmp_path
    )
    assert files(tmp_path) == []


def test_download_file_invalid_url_raises(tmp_path, no_network):
    assert "not an address" in refusal(f"https://[bad/{NAME}", tmp_path)


def test_download_file_name_stays_in_the_folder(server, tmp_path):
    """The URL is decoded before its last part is taken, so %2f is a separator."""
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    target = download.download_file(
        server.url(f"net-x%2f..%2f..%2fnet-{digest}.pth"), tmp_path / "models"
    )
    assert target == tmp_path / "models" / f"net-{digest}.pth"
    assert files(tmp_path) == ["models"]


@pytest.mark.parametrize(
    "name, digest",
    [
        ("resnet50-19c8e357.pth", "19c8e357"),
        ("res2net50_26w_4s-06e79181.pth", "06e79181"),
        ("a-b-0123456789abcdef.pth.tar", "0123456789abcdef"),
        ("mspn50_coco_256x192-8fbfb5d0_20201123.pth", "8fbfb5d0"),
        ("td-hm_res50_8xb64-210e_coco-256x192-04af38ce_20220923.pth", "04af38ce"),
        ("resnet50.pth", None),
        ("resnet50-19c8.pth", None),
        ("moganet_xtiny_sz224_8xbs128_ep300.pth.tar", None),
        ("net-0123abcd_2020.pth", None),
    ],
)
def test_sha256_prefix_is_read_from_the_name(name, digest):
    assert download.sha256_prefix(name) == digest


def test_load_pretrained_url_downloads(server, tmp_path, monkeypatch):
    """MODEL.PRETRAINED may be a URL; the file is stored with the other ImageNet weights."""
    network = torch.nn.Linear(2, 3)
    torch.save({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    monkeypatch.setattr("support.weight_server.CONTENT", content)
    name = f"net-{hashlib.sha256(content).hexdigest()[:12]}.pth"
    report = weights.load_pretrained(network, server.url(name), tmp_path / "imagenet")
    assert len(report.loaded) == 2 and torch.equal(network.weight, torch.ones(3, 2))
    assert files(tmp_path / "imagenet") == [name]
