"""Test the array cache of annotation files and reading JSON lists in parts."""

import json
import multiprocessing
import os

import numpy as np
import pytest
from poise.datasets import coco, load_split
from poise.datasets.coco_files import detection_columns, parse_persons, parse_regular_persons
from poise.errors import DataError
from poise.io import cache
from poise.io.json_file import read_in_parts, read_json
from test_coco_dataset import IMAGES, experiment, person, write  # noqa: F401


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of the cache, which keeps the smallest files too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_BYTES", 0)
    return tmp_path / "cache" / "poise"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.json"
    path.write_text("12345")
    return path


class Reader:
    """Counts how often a file is read."""

    def __init__(self, path):
        self.path, self.calls = path, 0

    def __call__(self, wanted=True, kind="numbers"):
        def read():
            self.calls += 1
            return {
                "values": np.array([int(c) for c in self.path.read_text()]),
                "names": np.array(["a", "größe"]),
            }

        return cache.cached(self.path, kind, read, wanted)


def test_cached_second_call_reads_the_cache(kept, source):
    read = Reader(source)
    first, second = read(), read()
    assert read.calls == 1 and len(list(kept.iterdir())) == 1
    for arrays in (first, second):
        assert (
            arrays.keys() == {"values", "names"}
            and arrays["values"].tolist() == [1, 2, 3, 4, 5]
            and arrays["names"].tolist() == ["a", "größe"]
        )
    assert first["values"].dtype == second["values"].dtype
    assert read(kind="other") and read.calls == 2


@pytest.mark.parametrize("change", ["content", "time", "reader"])
def test_cached_changed_source_is_read_again(kept, source, change, monkeypatch):
    read = Reader(source)
    read()
    if change == "content":
        source.write_text("54321000")
    elif change == "time":  # the same size, written a nanosecond later
        before = source.stat()
        source.write_text("99999")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        monkeypatch.setattr(cache, "_code_hash", lambda: 1)
    assert (
        read()["values"].tolist()
        == {"content": [5, 4, 3, 2, 1, 0, 0, 0], "time": [9] * 5, "reader": [1, 2, 3, 4, 5]}[change]
    )
    assert read.calls == 2
    read()
    assert read.calls == 2 and len(list(kept.iterdir())) == 1


def test_cached_other_file_of_same_name_is_read(kept, source, tmp_path):
    other = tmp_path / "elsewhere" / source.name
    other.parent.mkdir()
    other.write_text("67890")
    os.utime(other, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    Reader(source)()
    assert Reader(other)()["values"].tolist() == [6, 7, 8, 9, 0] and Reader(source)()[
        "values"
    ].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "bit", "foreign", "folder"])
def test_cached_corrupt_cache_file_is_rewritten(kept, source, damage):
    read = Reader(source)
    read()
    (file,) = kept.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "bit":  # in the middle of an array, where only the checksum shows it
        data[data.index(np.array([1, 2, 3, 4, 5]).tobytes()) + 9] ^= 1
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "foreign":
        with open(file, "wb") as stream:
            np.savez(stream, values=np.zeros(3))
    else:
        file.write_bytes(
            {
                "cut": data[: len(data) // 2],
                "empty": b"",
                "noise": b"PK\x03\x04" + bytes(range(256)) * 9,
                "bit": data,
            }[damage]
        )
    assert read()["values"].tolist() == [1, 2, 3, 4, 5] and read.calls == 2
    assert read()["values"].tolist() == [1, 2, 3, 4, 5] and read.calls == (
        3 if damage == "folder" else 2
    )


def test_cached_disabled_or_small_file_writes_nothing(kept, source, monkeypatch):
    read = Reader(source)
    read(False), read(False)
    assert read.calls == 2 and not kept.exists()
    monkeypatch.setattr(cache, "MIN_BYTES", 6)
    read(), read()
    assert read.calls == 4 and not kept.exists()


def test_cached_unwritable_folder_reads_the_source(source, kept, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    read = Reader(source)
    assert (
        read()["values"].tolist() == read()["values"].tolist() == [1, 2, 3, 4, 5]
        and read.calls == 2
    )


def test_cache_folder_follows_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "poise"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for useless in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert cache.cache_folder() == tmp_path / "home" / ".cache" / "poise"


def test_cached_too_many_files_removes_the_oldest(kept, source, monkeypatch):
    monkeypatch.setattr(cache, "MAX_FILES", 2)
    read = Reader(source)
    for _number, kind in enumerate(("a", "b", "a", "c", "a", "b")):
        read(kind=kind)
        for file in kept.iterdir():  # as if a second had passed
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
    # b was the least recently used when c came
    assert len(list(kept.iterdir())) == 2 and read.calls == 4


def _write_often(folder, path, start):
    os.environ["XDG_CACHE_HOME"] = folder
    cache.MIN_BYTES = 0
    start.wait()
    for _ in range(20):
        for file in (cache.cache_folder()).glob("*.npz"):
            file.unlink(missing_ok=True)
        found = cache.cached(path, "numbers", lambda: {"values": np.arange(50_000)})
        assert (found["values"] == np.arange(50_000)).all()


def test_cached_concurrent_writers_leave_valid_files(kept, source, tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    writers = [
        context.Process(target=_write_often, args=(str(tmp_path / "cache"), source, start))
        for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    # no temporary files are left
    assert not [file for file in kept.iterdir() if file.suffix != ".npz"]


# tables -------------------------------------------------------------------------------------------


def equal(one, two):
    arrays = (
        "image_ids",
        "image_index",
        "center",
        "box_wh",
        "scale",
        "keypoints",
        "visibility",
        "score",
        "ann_ids",
    )
    same = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays)
    return (
        same
        and list(one.image_names) == list(two.image_names)
        and (one.box_source, one.dropped, one.category_id)
        == (two.box_source, two.dropped, two.category_id)
        and one.has_keypoints == two.has_keypoints
    )


@pytest.mark.parametrize("detections", [False, True])
def test_read_table_cached_equals_uncached(kept, tmp_path, experiment, detections, monkeypatch):  # noqa: F811
    """Settings that were changed in between count: what is kept is what the files hold."""
    write(
        tmp_path / "annotations" / "person_keypoints_val2017.json",
        {
            "images": IMAGES,
            "annotations": [
                person(1),
                person(2, image_id=70, bbox=[0, 0, 50, 60]),
                person(3, iscrowd=1),
            ],
            "categories": [{"id": 1, "name": "person"}],
        },
    )
    boxes = [
        {
            "image_id": 5 if n % 3 else 70,
            "category_id": 1 if n % 5 else 2,
            "bbox": [n, n, 30, 40],
            "score": n / 50,
        }
        for n in range(50)
    ]
    write(tmp_path / "boxes.json", boxes)
    base = ["TEST.COCO_BBOX_FILE", str(tmp_path / "boxes.json"), "TEST.USE_GT_BBOX", not detections]
    for more in (
        [],
        ["TEST.IMAGE_THRE", 0.5, "TEST.BOX_MARGIN", "[1.5, 1.1]", "DATASET.BOX_CLIP", "mmpose"],
    ):
        fresh = load_split(experiment(*base, *more, "DATASET.CACHE", False), train=False)[0]
        assert equal(fresh, load_split(experiment(*base, *more), train=False)[0])
        with monkeypatch.context() as patch:  # now it comes from the cache alone
            patch.setattr("poise.datasets.coco_files.read_in_parts", None)
            patch.setattr("poise.datasets.coco_files.read_json", None)
            assert equal(fresh, load_split(experiment(*base, *more), train=False)[0])


def test_read_table_mpii_cached_equals_uncached(kept, small_mpii_set, tmp_path):
    from poise import config

    (tmp_path / "e.yaml").write_text(
        f"DATASET: {{DATASET: mpii, ROOT: {small_mpii_set}, TRAIN_SET: train, TEST_SET:"
        " valid}\nMODEL: {NUM_JOINTS: 16}\n"
    )
    cfg, without = (
        config.load(tmp_path / "e.yaml"),
        config.load(tmp_path / "e.yaml", ["DATASET.CACHE", False]),
    )
    for train in (True, False):
        fresh, first, second = (load_split(c, train=train)[0] for c in (without, cfg, cfg))
        assert equal(fresh, first) and equal(fresh, second)
    assert len(list(kept.iterdir())) == 2


# columns against entries --------------------------------------------------------------------------


def made_annotations(count, rng):
    for number in range(count):
        keypoints = (
            [float(v) for v in rng.integers(0, 300, 51)]
            if number % 3
            else rng.integers(1, 300, 51).tolist()
        )
        yield person(
            number,
            **[
                {},
                {},
                {},
                {"iscrowd": 1},
                {"category_id": 3},
                {"area": 0},
                {"keypoints": [0] * 51},
                {"image_id": 70},
            ][number % 8]
            | ({"keypoints": keypoints} if number % 8 != 6 else {}),
        )


def test_parse_regular_persons_equals_one_by_one():
    entries = list(made_annotations(200, np.random.default_rng(0)))
    position = {5: 1, 70: 0}
    fast, slow = (
        parse_regular_persons(entries, 1, position, 17),
        parse_persons(entries, 1, position, 17, "file"),
    )
    assert (
        all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(fast[0], slow[0]))
        and fast[1] == slow[1]
    )
    assert len(fast[0][0]) == 100 and fast[1] == {
        "crowd regions": 25,
        "of another category": 25,
        "of area 0": 25,
        "without labeled joints": 25,
    }


@pytest.mark.parametrize(
    "odd",
    [
        {"keypoints": [0] * 50 + [-1]},
        {"image_id": 9},
        {"keypoints": [1]},
        {"bbox": [1, 2, 3]},
        {"keypoints": [None] * 51},
        {"keypoints": ["7"] * 51},
        {"id": "3"},
        {"bbox": None},
        {"area": "7"},
    ],
)
def test_parse_regular_persons_irregular_entry_returns_none(odd):
    assert parse_regular_persons([person(1), person(2, **odd)], 1, {5: 0}, 17) is None


def test_detection_columns_equal_one_by_one():
    rng = np.random.default_rng(1)
    entries = [
        {
            "image_id": int(rng.integers(1, 9)),
            "category_id": int(rng.integers(1, 3)),
            "bbox": rng.uniform(0, 99, 4).tolist(),
            "score": float(rng.choice([0.05, 0.1, 0.5, 1])),
        }
        for _ in range(300)
    ]
    ids = np.array([7, 2, 4])
    fast = coco.filter_detections(detection_columns(entries), ids, 1, 0.1)
    slow = coco.filter_detection_entries(entries, ids, 1, 0.1, "file", "fix")
    assert (
        np.array_equal(fast[0], slow[0])
        and fast[1] == slow[1]
        and min(fast[1].values()) > 20
        and len(fast[0]) > 20
    )
    for odd in (
        {"image_id": "7"},
        {"image_id": 7.5},
        {"category_id": None},
        {"score": "1"},
        {"bbox": [1, 2, 3]},
        {"bbox": ["1", "2", "3", "4"]},
        {"bbox": [1, [2], 3, 4]},
    ):
        assert detection_columns([entries[0], {**entries[1], **odd}]) is None
    assert detection_columns([{"image_id": 1}]) is None


# lists in parts -----------------------------------------------------------------------------------


PLAIN = [{"id": n, "text": "} {", "numbers": [[1.5, -2, n]]} for n in range(60)]
NASTY = [
    {"id": n, "text": 'a "},{" b' if n % 3 else "]", "inner": [{"x": 1}, {"y": [{}, {}]}]}
    for n in range(60)
]


@pytest.mark.parametrize("entries", [PLAIN, NASTY])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "content, cut",
    [
        ('{"images": [1, 2], "annotations": LIST, "categories": [{"id": 1}]}', True),
        ('{"annotations": LIST}', True),
        ('{"categories": [1], "annotations": LIST}', True),
        # it ends before the last bracket
        ('{"annotations": LIST, "more": [{"z": [1]}, {"z": []}]}', False),
        ('{"annotations": LIST, "images": [{"z": [1]}], "categories": []}', False),
        # the first bracket is another's
        ('{"info": {"annotations": [1]}, "annotations": LIST, "categories": []}', False),
        ('{"info": "the \\"annotations\\": [ are below", "annotations": LIST}', None),
        ('{"annotations": LIST, "categories": [], "note": "\\"categories\\""}', None),
        ('{"annotations": []}', None),
        ('{"annotations": {"a": [1]}}', False),
        ('{"images": []}', False),
        ("[1, 2]", False),
    ],
)
def test_read_in_parts_equals_the_whole_list(tmp_path, monkeypatch, content, cut, entries, indent):
    """Whatever stands in it, what comes in parts is what the whole file holds; a usual file does
    come in parts.
    """
    monkeypatch.setattr("poise.io.json_file.PART_BYTES", 300)
    monkeypatch.setattr("poise.io.json_file._LARGE_BYTES", 0)
    path = tmp_path / "file.json"
    path.write_text(
        json.dumps(json.loads(content.replace("LIST", json.dumps(entries))), indent=indent)
    )
    rest, parts = read_in_parts(
        path, "annotations", lambda rest, parts: (rest, list(parts)), "file"
    )
    wanted = read_json(path, "file")
    if isinstance(wanted, dict) and isinstance(wanted.get("annotations"), list):
        assert [entry for part in parts for entry in part] == wanted["annotations"]
        wanted["annotations"] = []
    else:
        assert not parts
    assert rest == wanted
    if cut is not None and entries is PLAIN:
        assert (len(parts) > 5) == cut


def test_read_in_parts_invalid_json_equals_read_json_error(tmp_path, monkeypatch):
    """Report an error for the whole file, with the message of read_json."""
    monkeypatch.setattr("poise.io.json_file.PART_BYTES", 300)
    monkeypatch.setattr("poise.io.json_file._LARGE_BYTES", 0)
    path = tmp_path / "file.json"
    text = json.dumps({"images": [], "annotations": PLAIN})
    messages = []
    for spoilt in (
        text.replace("-2, 40", "-2, NaN"),
        text[:-9],
        text.replace('"id": 50,', '"id": ,'),
    ):
        path.write_text(spoilt)
        with pytest.raises(DataError) as whole:
            read_json(path, "annotation file", "fix it")
        with pytest.raises(DataError) as parts:
            read_in_parts(
                path, "annotations", lambda _, parts: list(parts), "annotation file", "fix it"
            )
        assert str(whole.value) == str(parts.value)
        messages.append(str(parts.value))
    assert "holds NaN in line 1" in messages[0]
