"""Labels of other tools: there and back again nothing is lost that a format can hold, and faults are told in one line."""
import contextlib
import io
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_joints import make_set
from test_planted_faults import load_tool

from poise import converters
from poise.errors import DataError, run_tool
from poise.skeleton import dataset, read_dataset

WRITTEN = {"coco": "labels.json", "cvat": "labels.xml", "labelme": "labelme", "yolo": "yolo"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    data = read_dataset(make_set(folder, 5, (("train", 6), ("val", 2))))
    return folder, data, converters.read("coco", folder / "labels" / "train.json", data)


def refusal(*args, **options):
    with pytest.raises(DataError) as error:
        converters.read(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", WRITTEN)
def test_there_and_back(made, tmp_path, form):
    folder, data, pictures = made
    assert sum(len(picture.persons) for picture in pictures) == 9
    converters.write(form, tmp_path / WRITTEN[form], data, pictures)
    images = tmp_path / "frames"
    (images / "cam 1").mkdir(parents=True)
    for picture in pictures:
        shutil.copy(folder / "frames" / picture.name, images / picture.name)
    again = {picture.name: picture for picture in converters.read(form, tmp_path / WRITTEN[form], data, images=images)}
    assert len(again) == len(pictures)
    for picture in pictures:
        other = again[picture.name]
        if form == "labelme":
            assert Path(other.name).suffix == ".png"
        assert (other.width, other.height, len(other.persons)) == (120, 64, len(picture.persons))
        for one, two in zip(picture.persons, other.persons):
            np.testing.assert_allclose(two.box, one.box, atol=2e-4)
            assert (two.keypoints[:, 2] == one.keypoints[:, 2]).all()
            seen = one.keypoints[:, 2] > 0
            np.testing.assert_allclose(two.keypoints[seen, :2], one.keypoints[seen, :2], atol=2e-4)
            assert (two.keypoints[~seen] == 0).all() or form == "coco"
    flags = np.concatenate([person.keypoints[:, 2] for picture in pictures for person in picture.persons])
    assert set(flags) == {0, 1, 2}      # so that all three were converted


def test_what_is_written_as_coco_can_be_trained_on(made, tmp_path):
    _, data, pictures = made
    converters.write("coco", tmp_path / "x.json", data, pictures)
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "dot person", "keypoints": list(data.skeleton.names), "skeleton": [[1, 2], [2, 3], [3, 4], [4, 5]]}]
    person = content["annotations"][0]
    assert person["area"] == pytest.approx(0.5 * person["bbox"][2] * person["bbox"][3], abs=0.01) and person["id"] == 1 and person["image_id"] == 1
    assert person["num_keypoints"] == sum(flag > 0 for flag in person["keypoints"][2::3])


def test_real_yolo_labels_are_cocos(shared):
    """YOLO text of COCO's val2017 against COCO's own annotations of the same images."""
    subset, data = shared / "data" / "coco_subset", dataset("coco")
    pictures = {p.name: p for p in converters.read("yolo", shared / "data" / "yolo_pose_sample" / "val2017", data, images=subset / "images" / "val2017")}
    truth = {p.name: p for p in converters.read("coco", subset / "annotations" / "person_keypoints_val2017.json", data)}
    compared = 0
    for name, picture in pictures.items():
        for person in picture.persons:
            apart = [np.abs(other.keypoints - person.keypoints).max() for other in truth[name].persons]
            compared += 1
            assert min(apart) < 0.51, (name, apart)     # its text has six digits, and hides joints' last pixels
    assert compared > 100


# faults ----------------------------------------------------------------------------------------------------------------------------


def yolo(tmp_path, text, **options):
    (tmp_path / "t").mkdir()
    (tmp_path / "i").mkdir()
    cv2.imwrite(str(tmp_path / "i" / "a.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "t" / "a.txt").write_text(text)
    return ("yolo", tmp_path / "t", options.get("data")), {"images": tmp_path / "i"}


@pytest.mark.parametrize("text, line", [
    ("0 .5 .5 .2 .2 .1 .1", "line 1: has 7 numbers, expected 20 (class, box, 5 joints x 3) or 15 (without flags)"),
    ("0 .5 .5 .2 .2" + " .1 .1 2" * 4 + " .1 nan 2", "line 1: it has nan where a number is needed"),
    ("0 .5 .5 .2 .2" + " .1 .1 5" * 5, "line 1: has a flag that is none of 0, 1 and 2"),
    ("0 30 20 10 10" + " .1 .1 2" * 5, "is not given as shares of the image"),
    ("0 .5 .5 .2 .2" + " .1 .1 2" * 4 + " 30 20 1", "line 1: joints are not given as shares of the image"),
    ("0 a", "line 1: it has a where a number is needed"),
])
def test_faults_of_yolo(made, tmp_path, text, line):
    args, options = yolo(tmp_path, text, data=made[1])
    assert line in refusal(*args, **options)


def test_yolo_without_flags_other_classes_and_images(made, tmp_path):
    args, options = yolo(tmp_path, "0 .5 .5 .2 .2" + " .1 .2" * 4 + " 0 0\n1 2 3\n", data=made[1])
    person = converters.read(*args, **options)[0].persons
    assert len(person) == 1 and person[0].keypoints.tolist() == [[6, 8, 2]] * 4 + [[0, 0, 0]] and person[0].box.tolist() == pytest.approx([24, 16, 12, 8])
    assert "give their folder with --images" in refusal("yolo", tmp_path / "t", made[1])
    (tmp_path / "t" / "b.txt").write_text("")
    assert "has no image of this name" in refusal(*args, **options)


def shape(label, points, kind="point", group=None, **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}, **more}


def labelme(folder, *shapes, **more):
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps({"shapes": list(shapes), "imagePath": "..\\frames\\a.jpg", "imageWidth": 100, "imageHeight": 80, **more}))
    return folder


def test_labelme_of_one_person_without_groups(made, tmp_path):
    picture = converters.read("labelme", labelme(tmp_path / "l", shape("middle", [[50, 40]]), shape("left_0", [[60, 60]], description="Hidden"),
                                                 shape("right_0", [[40, 60]], flags={"hidden": True})), made[1])[0]
    assert picture.name == "a.jpg" and picture.persons[0].keypoints[:, 2].tolist() == [2, 1, 1, 0, 0]
    assert picture.persons[0].box.tolist() == [38, 38, 24, 24]


def test_labelme_points_go_to_their_rectangle(made, tmp_path):
    boxes = [shape("dot person", [[50, 40], [0, 0]], "rectangle"), shape("dot person", [[60, 0], [99, 40]], "rectangle")]
    folder = labelme(tmp_path / "l", *boxes, shape("middle", [[70, 20]]), shape("middle", [[20, 20]]))
    first, second = converters.read("labelme", folder, made[1])[0].persons
    assert first.keypoints[0].tolist() == [20, 20, 2] and second.keypoints[0].tolist() == [70, 20, 2] and first.box.tolist() == [0, 0, 50, 40]
    labelme(folder, *boxes, shape("middle", [[55, 70]]))
    assert "the point at 55, 70 lies in no rectangle" in refusal("labelme", folder, made[1])


def test_labelme_leaves_out_and_counts(made, tmp_path, caplog):
    """A rectangle of another label is nobody's box, though joints lie in it."""
    folder = labelme(tmp_path / "l", shape("car", [[0, 0], [99, 79]], "rectangle"), shape("middle", [[50, 40]], group=1),
                     shape("dot person", [[1, 1], [9, 9]], "rectangle", group=2))
    with caplog.at_level(logging.WARNING):
        persons = converters.read("labelme", folder, made[1])[0].persons
    assert [person.box.tolist() for person in persons] == [[49.5, 39.5, 1, 1]]
    assert caplog.messages == [f"{folder}: left out: 1 rectangles called car, 1 rectangles without a joint"]
    caplog.clear()
    assert converters.read("labelme", labelme(folder), made[1])[0].persons == [] and not caplog.messages
    by_id = replace(made[1], category=7)        # the name is not known then
    assert converters.read("labelme", labelme(folder, shape("car", [[0, 0], [99, 79]], "rectangle"), shape("middle", [[50, 40]])), by_id)[0].persons[0].box.tolist() == [0, 0, 99, 79]


@pytest.mark.parametrize("form, file", [("labelme", "a.json"), ("yolo", "a.txt")])
def test_pictures_that_differ_by_their_ending(made, tmp_path, form, file):
    """One would take the other's labels."""
    pictures = [converters.LabelledPicture(name, 60, 40) for name in ("a.jpg", "b.jpg", "a.png")]
    with pytest.raises(DataError, match=f"a.jpg and a.png have their labels in one file, {file}; rename one of the pictures"):
        converters.write(form, tmp_path / "out", made[1], pictures)
    assert not (tmp_path / "out").exists()
    if form == "yolo":
        args, options = yolo(tmp_path, "0 .5 .5 .2 .2" + " .1 .1 2" * 5, data=made[1])
        cv2.imwrite(str(tmp_path / "i" / "a.jpg"), np.zeros((40, 60, 3), np.uint8))
        assert "a.jpg and a.png have their labels in one file" in refusal(*args, **options)


@pytest.mark.parametrize("shapes, more, line", [
    ([shape("nose", [[1, 1]])], {}, "shape 0: the point is called nose, which is none of the joints of "),
    ([shape("middle", [[1, 1]]), shape("middle", [[2, 2]])], {}, "has middle twice for one person"),
    ([shape("middle", [[1, 1], [2, 2], [3, 3]], "polygon")], {}, "shape 0 is a polygon; joints are points, and boxes rectangles"),
    ([shape("middle", [["a", 1]])], {}, "a point has a where a number is needed"),
    ([shape("middle", 3)], {}, "shape 0 has no points"),
    ([shape("middle", [[1, 1]], group="x")], {}, "group_id x is no whole number"),
    ([], {"imageWidth": 0}, "the image is 0 x 80 pixels large"),
    ([], {"imageHeight": None}, "imageWidth or imageHeight has None where a number is needed"),
    ([], {"shapes": 3}, "not a file of labelme"),
])
def test_faults_of_labelme(made, tmp_path, shapes, more, line):
    assert line in refusal("labelme", labelme(tmp_path / "l", *shapes, **more), made[1])


CVAT = ('<annotations><image id="0" name="a.jpg" width="100" height="80"><skeleton label="dot person" group_id="0"><points label="middle" outside="0" occluded="0" points="50,40"/>'
        '<points label="left_0" outside="1" occluded="0" points="1,1"/></skeleton></image></annotations>')


def cvat(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    return "cvat", tmp_path / "a.xml"


def test_cvat_without_boxes(made, tmp_path):
    person = converters.read(*cvat(tmp_path, CVAT), made[1])[0].persons[0]
    assert person.keypoints[:, 2].tolist() == [2, 0, 0, 0, 0] and person.box.tolist() == [49.5, 39.5, 1, 1]


def test_cvat_leaves_out_and_counts(made, tmp_path, caplog):
    """Skeletons of other labels, those without a labelled joint, boxes and shapes of nobody; only others' labels at all is a fault."""
    more = ('<skeleton label="dog"><points label="tail" points="1,1"/></skeleton><skeleton label="dot person"><points label="middle" outside="1" points="1,1"/></skeleton>'
            '<box label="car" xtl="1" ytl="1" xbr="9" ybr="9"/><polygon label="car" points="1,1;2,2;3,3"/></image>')
    with caplog.at_level(logging.WARNING):
        assert len(converters.read(*cvat(tmp_path, CVAT.replace("</image>", more)), made[1])[0].persons) == 1
    assert caplog.messages == [f"{tmp_path / 'a.xml'}: left out: 1 boxes without a skeleton, 1 shapes of the kind polygon, 1 skeletons called dog, "
                               "1 skeletons without a labelled joint"]
    text = CVAT.replace("dot person", "Dot Person")
    assert "no skeleton is called dot person, the category of " in refusal(*cvat(tmp_path, text), made[1]) and "there are Dot Person" in refusal(*cvat(tmp_path, text), made[1])
    assert len(converters.read(*cvat(tmp_path, text), replace(made[1], category=7))[0].persons) == 1


@pytest.mark.parametrize("old, new, line", [
    ("<annotations>", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>', "has a document type (DTD) or entities"),
    ("<annotations>", '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotations>&c;', "has a document type (DTD) or entities"),
    ("</annotations>", "<a>" * 50 + "</a>" * 50 + "</annotations>", "is nested deeper than 32 elements"),
    ("</annotations>", "", "is not valid XML"),
    ('"middle"', '"nose"', "a point is called nose, which is none of the joints"),
    ('"left_0"', '"middle"', "a skeleton has middle twice"),
    ("50,40", "50", "the point middle has 1 numbers, expected x and y"),
    ("50,40", "50,1e999", "the point middle has 1e999 where a number is needed"),
    ('width="100"', "", "width or height has None where a number is needed"),
    ("a.jpg", "../a.jpg", "the image name ../a.jpg "),
    ("image", "picture", "not a file of 'CVAT for images 1.1'"),
])
def test_faults_of_cvat(made, tmp_path, old, new, line):
    assert line in refusal(*cvat(tmp_path, CVAT.replace(old, new)), made[1])


def test_cvat_larger_than_the_memory(made, tmp_path, monkeypatch):
    """An element takes fifty times as much memory as it has letters."""
    monkeypatch.setattr("poise.bounded_reading.memory_present", lambda: 10**9)
    many = CVAT.replace("</annotations>", "<a/>" * 6_000_000 + "</annotations>")
    assert "takes about 1.2 GB of memory, and 1.0 GB are free" in refusal(*cvat(tmp_path, many), made[1])


# the tool --------------------------------------------------------------------------------------------------------------------------


def call(*arguments):
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["tools/convert_data.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as done:
            run_tool(load_tool("convert_data").main)
    finally:
        sys.argv = argv
    return done.value.code, out.getvalue(), err.getvalue()


def test_tool(made, tmp_path):
    folder, _, _ = made
    status, out, _ = call("coco", "labelme", folder / "labels" / "train.json", tmp_path / "l", "--dataset", folder / "dots.yaml")
    assert status == 0 and out.splitlines()[-1].startswith("9 persons with ") and len(list((tmp_path / "l").rglob("*.json"))) == 6
    status, out, _ = call("labelme", "cvat", tmp_path / "l", tmp_path / "x.xml", "--dataset", folder / "dots.yaml", "--images", folder / "frames")
    assert status == 0 and (tmp_path / "x.xml").read_text().count("<skeleton ") == 9
    status, _, err = call("labelme", "coco", tmp_path / "none", tmp_path / "y.json", "--dataset", folder / "dots.yaml")
    assert status == 1 and err == f"error: {tmp_path / 'none'}: no such folder of labelme's JSON files\n"
    assert call("coco", "coco", "a", "b", "--dataset", "coco")[0] == 2
