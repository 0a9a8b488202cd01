"""Test dataset downloads from a local server that fails in many ways."""

import contextlib
import hashlib
import http.server
import importlib.util
import io
import json
import sys
import threading
import zipfile

import numpy as np
import pytest
from poise.config.sources import SOURCES, Archive, ManualDownload, Source
from poise.datasets import prepare as prepare_data
from poise.errors import ConfigError, DataError, run_tool, single_line
from support.paths import ROOT

DRAW = np.random.default_rng(0)
IMAGES = {f"val2017/{number:012}.jpg": DRAW.bytes(40_000) for number in range(8)}
TRUTH = {
    "annotations/person_keypoints_val2017.json": (
        json.dumps({"images": [{"id": number} for number in range(2000)]}).encode()
    ),
    "annotations/captions_val2017.json": b"{}",
}


def packed(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)
    return out.getvalue()


FILES = {"/zips/val2017.zip": packed(IMAGES), "/annotations/all.zip": packed(TRUTH)}


def md5(data):
    return f"md5:{hashlib.md5(data).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves FILES. What goes wrong with one request after the other is in the server's list
    `faults`.
    """

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        fault = server.faults.pop(0) if server.faults else None
        data = server.files.get(self.path)
        if isinstance(fault, int):
            return self.send_error(fault)
        if data is None:
            return self.send_error(404)
        begin = 0
        if self.headers.get("Range") and fault != "ignores ranges" and not server.no_ranges:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(data):
                return self.send_error(416)
        body = data[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header(
            "Content-Length", str(len(body) + {"says more": 1000, "says less": -1000}.get(fault, 0))
        )
        self.end_headers()
        if fault == "other bytes":
            body = bytes(len(body))
        with contextlib.suppress(OSError):
            self.wfile.write(
                body[: len(body) // 2]
                if fault == "cut"
                else b""
                if fault == "cut at once"
                else body
            )

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.faults, server.files, server.no_ranges = [], [], dict(FILES), False
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def source(server):
    """A small COCO."""
    images, truth = FILES["/zips/val2017.zip"], FILES["/annotations/all.zip"]
    name = "annotations/person_keypoints_val2017.json"
    return Source(
        "coco",
        "data/coco",
        f"http://127.0.0.1:{server.server_address[1]}",
        (
            Archive("annotations", "annotations/all.zip", len(truth), md5(truth), {name: name}, 1),
            Archive(
                "val2017",
                "zips/val2017.zip",
                len(images),
                md5(images),
                {"val2017/": "images/val2017/"},
                len(IMAGES),
            ),
            Archive(
                "test2017",
                "zips/test2017.zip",
                10,
                "",
                {"test2017/": "images/test2017/"},
                1,
                default=False,
            ),
        ),
        (
            ManualDownload(
                "person_detection_results/boxes.json", "boxes", "fetch them", "detections", "tests"
            ),
        ),
        "terms of the made set",
    )


def prepare(source, root, **options):
    return prepare_data.prepare(
        source, root, retry_delays=[0.0] * (prepare_data.MAX_ATTEMPTS - 1), **options
    )


def refusal(source, root, kind=DataError, **options):
    with pytest.raises(kind) as error:
        prepare(source, root, **options)
    assert str(error.value) == single_line(error.value)
    return str(error.value)


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


WHOLE = sorted(
    ["annotations/person_keypoints_val2017.json", *(f"images/{name}" for name in IMAGES)]
)


def check_whole(root):
    assert tree(root) == WHOLE
    assert all((root / "images" / name).read_bytes() == data for name, data in IMAGES.items())


def test_prepare_writes_the_documented_tree(source, server, tmp_path, capsys):
    asked = []
    missing = prepare(
        source, tmp_path / "coco", confirm=lambda question: asked.append(question) or True
    )
    check_whole(tmp_path / "coco")
    total = sum(archive.size for archive in source.archives[:2])
    assert asked == [
        f"download {total / 1e3:.1f} kB to {tmp_path / 'coco'} (terms of the made set)?"
    ]
    output = capsys.readouterr().out
    assert (
        output.index("val2017      ")
        < output.index("downloading http://")
        < output.index("val2017: complete")
    )
    assert (
        len(missing) == 1
        and "person_detection_results/boxes.json is missing, needed for tests: fetch them"
        in missing[0]
    )
    assert len(server.asked) == 2


def test_prepare_second_call_downloads_nothing(source, server, tmp_path):
    prepare(source, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    prepare(source, tmp_path, confirm=lambda question: pytest.fail("asked"))
    assert len(server.asked) == 2 and before == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    }


def test_prepare_missing_image_is_restored(source, server, tmp_path):
    prepare(source, tmp_path)
    first, *others = (tmp_path / "images/val2017").iterdir()
    first.unlink()
    kept = others[0].stat().st_mtime_ns
    prepare(source, tmp_path)
    check_whole(tmp_path)
    assert others[0].stat().st_mtime_ns == kept and len(server.asked) == 3


@pytest.mark.parametrize(
    "faults",
    [
        ["cut"],
        ["cut", "cut", "cut", "cut", "cut"],
        ["cut at once", "cut"],
        [500],
        [503, 500, "cut", 502],
        [429],
        ["cut", "ignores ranges"],
        ["cut", "cut at once", 504, "cut"],
    ],
    ids=lambda faults: "+".join(map(str, faults)),
)
def test_prepare_broken_transfer_resumes(source, server, tmp_path, faults):
    server.faults = list(faults)
    prepare(source, tmp_path, only=["val2017"])
    assert tree(tmp_path) == WHOLE[1:] and not server.faults
    if faults == ["cut"]:
        half = len(FILES["/zips/val2017.zip"]) // 2
        assert server.asked == [
            ("/zips/val2017.zip", None),
            ("/zips/val2017.zip", f"bytes={half}-"),
        ]


def test_prepare_server_without_ranges_restarts(source, server, tmp_path):
    server.no_ranges, server.faults = True, ["cut"]
    prepare(source, tmp_path, only=["val2017"])
    assert tree(tmp_path) == WHOLE[1:] and len(server.asked) == 2


def test_prepare_server_without_progress_raises(source, server, tmp_path):
    server.no_ranges, server.faults = True, ["cut"] * 20
    line = refusal(source, tmp_path, only=["val2017"])
    assert (
        "the transfer ended after" in line
        and "the next try resumes from" in line
        and len(server.asked) <= prepare_data.MAX_ATTEMPTS + 1
    )
    assert tree(tmp_path) == ["val2017.zip.part"]
    server.faults = []
    prepare(source, tmp_path, only=["val2017"])
    assert tree(tmp_path) == WHOLE[1:]


@pytest.mark.parametrize(
    "fault, named",
    [
        (404, "HTTP Error 404"),
        (403, "HTTP Error 403"),
        ("says less", "bytes were published"),
        ("says more", "bytes were published"),
        ("other bytes", "its md5 begins with"),
    ],
)
def test_prepare_permanent_error_raises_at_once(source, server, tmp_path, fault, named):
    size = len(FILES["/zips/val2017.zip"])
    server.faults = [fault]
    line = refusal(source, tmp_path, only=["val2017"])
    assert (
        f"a file of {size + (1000 if fault == 'says more' else -1000)} bytes, and {size}"
        f" {named.split(' ', 1)[1]}"
        if "says" in str(fault)
        else named
    ) in line
    assert tree(tmp_path) == [] and len(server.asked) == 1
    prepare(source, tmp_path, only=["val2017"])
    assert tree(tmp_path) == WHOLE[1:]


def test_prepare_repeated_error_raises_after_tries(source, server, tmp_path):
    server.faults = [500] * 50
    assert (
        "HTTP Error 500" in refusal(source, tmp_path, only=["annotations"])
        and len(server.asked) == prepare_data.MAX_ATTEMPTS
    )
    assert tree(tmp_path) == []


def test_prepare_downloaded_archive_is_unpacked(source, server, tmp_path):
    (tmp_path / "val2017.zip").write_bytes(FILES["/zips/val2017.zip"])
    prepare(source, tmp_path, only=["val2017"])
    assert tree(tmp_path) == WHOLE[1:] and server.asked == []


def test_prepare_archive_with_wrong_md5_raises(source, server, tmp_path):
    (tmp_path / "val2017.zip").write_bytes(packed({"../../up.jpg": b"x"}))
    assert "its md5 begins with" in refusal(source, tmp_path, only=["val2017"])
    assert not (tmp_path.parent / "up.jpg").exists() and tree(tmp_path) == []


def test_prepare_declined_downloads_nothing(source, server, tmp_path):
    assert "nothing was downloaded" in refusal(
        source, tmp_path / "coco", confirm=lambda question: False
    )
    assert server.asked == [] and not (tmp_path / "coco").exists()


def test_ask_without_terminal_raises(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ConfigError, match="give --yes"):
        prepare_data.confirm_on_terminal("fetch?")


def test_ask_end_of_input_is_no(monkeypatch):
    """Ctrl-D at the question."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert prepare_data.confirm_on_terminal("fetch?") is False


def test_prepare_disk_too_small_raises(source, server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        prepare_data.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})()
    )
    assert "are needed, and 1.0 kB are free on its disk; nothing was downloaded" in refusal(
        source, tmp_path
    )
    assert server.asked == []


def test_prepare_zipped_keeps_the_archive(source, server, tmp_path):
    from poise.io.image_folder import ImageFolder

    prepare(source, tmp_path, only=["val2017"], zipped=True)
    assert tree(tmp_path) == ["images/val2017.zip"]
    assert (
        ImageFolder(tmp_path / "images/val2017.zip").data("000000000003.jpg")
        == IMAGES["val2017/000000000003.jpg"]
    )
    prepare(source, tmp_path, only=["val2017"], zipped=True)
    assert len(server.asked) == 1


def test_prepare_unknown_part_raises(source, tmp_path):
    assert "has no part 'train'" in refusal(source, tmp_path, ConfigError, only=["train"])


def test_prepare_manual_files_are_checked(source, tmp_path, capsys):
    prepare(source, tmp_path)
    path = tmp_path / "person_detection_results/boxes.json"
    path.parent.mkdir()
    for content, named in [
        ("[1, 2", "not valid JSON"),
        ("{}", "not a list of detections"),
        ("[]", "none of category 1"),
        (
            '[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
            "holds 1 boxes, none of category 1",
        ),
    ]:
        path.write_text(content)
        (line,) = prepare(source, tmp_path)
        assert named in line and line.endswith("fetch them")
    path.write_text('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]')
    assert prepare(source, tmp_path) == [] and "1 boxes of persons" in capsys.readouterr().out


def run(monkeypatch, capfd, *arguments):
    spec = importlib.util.spec_from_file_location(
        "tools_prepare_data", ROOT / "tools" / "prepare_data.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["tools/prepare_data.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        run_tool(tool.main)
    out, err = capfd.readouterr()
    return done.value.code, out, err


def test_prepare_data_command_mpii_unpacks_local_archive(
    small_mpii_set, tmp_path, monkeypatch, capfd
):
    """MPII is by hand, all of it; an archive of its images that lies in the folder is unpacked."""
    import shutil
    import tarfile

    status, out, err = run(monkeypatch, capfd, "mpii", "--root", tmp_path / "mpii")
    assert (status, err) == (1, "") and [line.split(":")[0] for line in out.splitlines()] == [
        "the images",
        "training persons",
        "validation persons",
        "joints and head boxes of the validation set",
    ]
    root = shutil.copytree(small_mpii_set, tmp_path / "mpii")
    images = sorted((root / "images").iterdir())
    with tarfile.open(root / "mpii_human_pose_v1.tar.gz", "w:gz") as archive:
        for path in images:
            archive.add(path, f"./images/{path.name}")
    shutil.rmtree(root / "images")
    status, out, err = run(monkeypatch, capfd, "mpii", "--root", root)
    assert (
        (status, err) == (0, "")
        and f"{len(images)} images" in out
        and "head boxes of" in out
        and "unpacked from" in out
    )
    assert sorted((root / "images").iterdir()) == images
    (root / "annot/gt_valid.mat").write_bytes(b"no MATLAB file")
    status, out, err = run(monkeypatch, capfd, "mpii", "--root", root)
    assert status == 1 and "is not a readable MATLAB file" in out


def test_prepare_data_command_wrong_checksum_exits_1(server, tmp_path, monkeypatch, capfd):
    """Another place with other files is found out, before anything is unpacked."""
    published = SOURCES["coco"].archives[1]
    server.files[f"/{published.path}"] = FILES["/zips/val2017.zip"]
    status, out, err = run(
        monkeypatch,
        capfd,
        "coco",
        "--root",
        tmp_path / "coco",
        "--only",
        "val2017",
        "--yes",
        "--base",
        f"http://127.0.0.1:{server.server_address[1]}",
    )
    assert (
        status == 1
        and f"and {published.size} were published" in err
        and tree(tmp_path / "coco") == []
    )
    assert "815.6 MB" in out and "0 of 5000 images are there" in out
    status, out, err = run(
        monkeypatch,
        capfd,
        "coco",
        "--root",
        tmp_path / "coco",
        "--only",
        "val2017",
        "--base",
        "http://example.com/coco",
        "--yes",
    )
    assert status == 1 and "only https addresses are downloaded" in err


def test_sources_have_https_urls_and_counts():
    for source in SOURCES.values():
        assert not source.base or source.base.startswith("https://")
        for archive in (*source.archives, *source.local):
            assert (
                archive.files > 0
                and archive.members
                and (not archive.digest or len(archive.digest) == 36)
            )
            assert all(not target.startswith(("/", "..")) for target in archive.members.values())
