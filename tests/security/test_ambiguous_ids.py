"""Test ids and iscrowd as text and duplicate categories: equal results everywhere."""

import copy
import json

import numpy as np
import pytest
from poise import config, evaluation
from poise.datasets import load_split
from poise.datasets.validation import run
from poise.datasets.validation.sources import build_sources
from poise.errors import DataError
from poise.inference.boxes import BoxFile
from poise.io.video import Frame
from poise.structures.ids import parse_id, parse_ids
from poise.structures.skeleton import find_category
from support.custom_datasets import experiment, make_set

PERSON = 7  # the category id of custom_datasets
SIGMAS = [0.1] * 5


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The experiment of a small valid dataset."""
    folder = tmp_path_factory.mktemp("odd_ids")
    return experiment(
        folder, make_set(folder / "set", 5, (("train", 12), ("val", 8)), sigmas=SIGMAS)
    )


@pytest.fixture
def changed(sound):
    """Return a function that changes the annotations of the test set and returns the file."""
    path = sound.parent / "set" / "labels" / "val.json"
    before = path.read_text()

    def change(edit):
        content = json.loads(before)
        edit(content)
        path.write_text(json.dumps(content))
        return path

    yield change
    path.write_text(before)


def table_of(path, *overrides):
    return load_split(config.load(path, [str(value) for value in overrides]), train=False)[0]


def findings(path, *overrides):
    found, _ = run.check(build_sources(config.load(path, [str(value) for value in overrides])))
    return [str(one) for one in found if one.kind != "note"]


def same(one, other):
    names = (
        "image_ids",
        "image_index",
        "center",
        "scale",
        "keypoints",
        "visibility",
        "score",
        "ann_ids",
    )
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return one.dropped == other.dropped and all(np.array_equal(a, b) for a, b in pairs)


def scored(path):
    """Return the metrics of predictions equal to the labels moved by five pixels."""
    content = json.loads(path.read_text())
    results = [
        {
            "image_id": person["image_id"],
            "category_id": person["category_id"],
            "keypoints": (np.array(person["keypoints"], float) + 5).tolist(),
            "score": 0.5,
        }
        for person in content["annotations"]
        if person.get("keypoints")
    ]
    file = path.with_name("results.json")
    file.write_text(json.dumps(results))
    truth = evaluation.read_ground_truth(path, category="dot person")
    of_file = evaluation.average_precision(truth, str(file), SIGMAS)
    assert of_file == evaluation.average_precision(truth, results, SIGMAS)
    return of_file


def written(kind, value):
    return str(value) if kind == "text" else float(value)


@pytest.mark.parametrize(
    "value, wanted",
    [("7", 7), ("-7", -7), ("007", 7), (7, 7), (7.0, 7), (np.int64(7), 7), (7.5, None)]
    + [("7.0", None), (" 7", None), ("\u0667", None), ("", None), (True, None), (None, None)]
    + [([7], None), (2**63, None), (str(2**63), None), (1e300, None), (float("nan"), None)],
)
def test_as_id_converts_integers_and_text(value, wanted):
    found = parse_id(value)
    assert found == wanted and (found is None or type(found) is int)


def test_with_ids_changes_the_given_keys_only():
    entry = {"id": "5", "image_id": 6, "category_id": "person", "score": "3"}
    before = copy.deepcopy(entry)
    assert parse_ids(entry, "id", "image_id", "category_id") == before | {"id": 5}
    assert entry == before and parse_ids(before | {"id": 1}, "image_id")["id"] == 1
    assert parse_ids(3, "id") == 3


@pytest.mark.parametrize("kind", ["text", "float"])
@pytest.mark.parametrize("part", ["images", "annotations", "categories", "everything"])
def test_ids_as_text_or_float_equal_integers(sound, changed, part, kind):
    plain, figures = table_of(sound), scored(changed(lambda content: None))
    assert 0 < figures["AP"] < 1

    def edit(content):
        for name in ("images", "annotations", "categories"):
            if part in (name, "everything"):
                for entry in content[name]:
                    for key in {"id", "image_id", "category_id"} & entry.keys():
                        entry[key] = written(kind, entry[key])

    path = changed(edit)
    assert same(plain, table_of(sound)) and scored(path) == figures
    lines = findings(sound)
    if part in ("images", "annotations", "everything"):
        assert len(lines) == 1 and "have an id written as text or with a decimal point" in lines[0]
    else:
        assert not lines


def test_detections_with_text_ids_equal_integers(sound):
    truth = json.loads((sound.parent / "set" / "labels" / "val.json").read_text())
    entries = [
        {"image_id": p["image_id"], "category_id": PERSON, "bbox": p["bbox"], "score": 0.9}
        for p in truth["annotations"]
        if p["category_id"] == PERSON
    ]
    file = sound.parent / "boxes.json"
    boxes = ("TEST.USE_GT_BBOX", False, "TEST.COCO_BBOX_FILE", file)
    file.write_text(json.dumps(entries))
    plain = table_of(sound, *boxes)
    assert len(plain) == len(entries)
    for entry in entries[1:]:
        entry.update(image_id=str(entry["image_id"]), category_id=str(PERSON))
    file.write_text(json.dumps(entries))
    read = table_of(sound, *boxes)
    assert read.dropped == plain.dropped and np.array_equal(read.image_index, plain.image_index)
    assert not [line for line in findings(sound, *boxes) if "detections" in line]
    entries[0].update(score=0.01, bbox=None)  # dropped anyway, one by one
    entries[1].update(category_id="2", bbox="all")
    file.write_text(json.dumps(entries))
    read = table_of(sound, *boxes)
    assert read.dropped == {"of another category": 1, "scores below TEST.IMAGE_THRE 0.1": 1}
    assert np.array_equal(read.image_index, plain.image_index[2:])


def test_duplicate_id_as_text_and_number_raises(sound, changed):
    def edit(content):
        content["images"][1]["id"] = str(content["images"][0]["id"])

    changed(edit)
    with pytest.raises(DataError, match="two entries of 'images' have the same id"):
        table_of(sound)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("in_parts", [True, False])
def test_duplicate_category_name_takes_the_annotated_one(
    sound, changed, monkeypatch, first, in_parts
):
    """Roboflow adds an empty root category with the name of the first one."""
    plain, figures = table_of(sound), scored(changed(lambda content: None))
    if in_parts:
        monkeypatch.setattr("poise.io.json_file.PART_BYTES", 300)
        monkeypatch.setattr("poise.io.json_file._LARGE_BYTES", 0)
    place = 0 if first else 9
    empty = {"id": 0, "name": "dot person"}
    path = changed(lambda content: content["categories"].insert(place, empty))
    assert same(plain, table_of(sound)) and scored(path) == figures
    (line,) = findings(sound)
    ids = "0, 7" if first else "7, 0"
    assert f"2 have the name of 'dot person' (ids {ids}); 7 is used, the one with annot" in line


def test_duplicate_category_entry_is_one(sound, changed):
    changed(lambda content: content["categories"].append(dict(content["categories"][0])))
    assert not any("is used, the one with" in line for line in findings(sound))


@pytest.mark.parametrize("used", [0, 2])
def test_duplicate_category_name_without_decision_raises(sound, changed, used):
    def edit(content):
        content["categories"].append({"id": 8, "name": "dot person"})
        for person in content["annotations"]:
            if person["category_id"] == PERSON and used == 0:
                person["category_id"] = 3
        if used:
            content["annotations"][-1]["category_id"] = 8

    path = changed(edit)
    message = (
        f"2 categories are named 'dot person' .ids 7, 8., and {used} of them have annotations; "
    )
    with pytest.raises(DataError, match=f"{path.name}: {message}name one by its id in the dataset"):
        table_of(sound)
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        evaluation.read_ground_truth(path, category="dot person")
    assert any("2 categories are named 'dot person'" in line for line in findings(sound))


def test_find_category_by_id_or_name():
    content = {"categories": [{"name": "a"}, {"id": "1", "name": "a"}, {"id": 2, "name": "b"}]}
    assert find_category(content, "a", "file") == {"id": 1, "name": "a"}
    assert find_category(content, 1, "file") == {"id": 1, "name": "a"}
    assert find_category(content, "c", "file") is None
    assert find_category({"categories": [{"id": [1], "name": "a"}]}, "a", "file")["id"] == [1]


@pytest.mark.parametrize("value", ["0", 0.0, False, None])
def test_iscrowd_false_values_are_no_crowd(sound, changed, value):
    plain, figures = table_of(sound), scored(changed(lambda content: None))
    path = changed(lambda c: [entry.update(iscrowd=value) for entry in c["annotations"]])
    assert same(plain, table_of(sound)) and scored(path) == figures and not findings(sound)


@pytest.mark.parametrize("value", ["1", 1.0, True])
def test_iscrowd_true_values_are_a_crowd(sound, changed, value):
    def edit(content):
        person = next(p for p in content["annotations"] if p["category_id"] == PERSON)
        person["iscrowd"] = value

    path = changed(edit)
    assert table_of(sound).dropped["crowd regions"] == 1
    truth = evaluation.read_ground_truth(path, category="dot person")
    assert sum(person["iscrowd"] for person in truth["annotations"]) == 1


def test_iscrowd_invalid_value_raises(sound, changed):
    def edit(content):
        person = next(p for p in content["annotations"] if p["category_id"] == PERSON)
        person.update(iscrowd="no", id=4711)

    path = changed(edit)
    message = "annotation 4711 .*has iscrowd 'no', expected 0 or 1"
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        table_of(sound)
    with pytest.raises(DataError, match=message):
        evaluation.read_ground_truth(path, category="dot person")
    assert any("1 annotation has an iscrowd that is neither 0" in line for line in findings(sound))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("area", None, "area null"),
        ("area", "9", "area '9'"),
        ("bbox", [1, 2, None, 4], "bbox null"),
        ("keypoints", [1, 2, "2"] * 5, "keypoint '2'"),
    ],
)
def test_evaluate_invalid_number_names_the_field(sound, changed, field, value, message):
    def edit(content):
        person = next(p for p in content["annotations"] if p["category_id"] == PERSON)
        person.update({field: value, "id": 4711})

    path = changed(edit)
    with pytest.raises(DataError, match=f"{path.name}: annotation 4711 has {message}, expected"):
        evaluation.read_ground_truth(path, category="dot person")


def boxes_of(folder, change):
    """Return the number of boxes that the demo reads for an image from changed annotations."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 9}],
        "categories": [{"id": 2, "name": "person"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 2, "iscrowd": int(n == 3), "bbox": [n, 1, 2, 2]}
            for n in range(4)
        ],
    }
    change(content)
    (folder / "boxes.json").write_text(json.dumps(content))
    given = BoxFile(folder / "boxes.json")
    frame = Frame(str(folder / "a.jpg"), 0, np.zeros((9, 8, 3), np.uint8))
    return given([frame])[0][0][:, 0].tolist()


def test_demo_text_ids_equal_training(tmp_path):
    def as_text(content):
        for part in ("images", "annotations", "categories"):
            for entry in content[part]:
                keys = {"id", "image_id", "category_id", "iscrowd"} & entry.keys()
                entry.update({key: str(entry[key]) for key in keys})

    def empty_category(content):
        content["categories"].insert(0, {"id": 0, "name": "person"})

    for change in (lambda content: None, as_text, empty_category):
        assert boxes_of(tmp_path, change) == [0, 1, 2]
    with pytest.raises(DataError, match="annotation 1 has iscrowd 'no', expected 0 or 1"):
        boxes_of(tmp_path, lambda content: content["annotations"][1].update(iscrowd="no"))
