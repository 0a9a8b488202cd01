"""Test label converters: round trips without loss and errors in one line."""

import contextlib
import io
import json
import logging
import shutil
import sys
import tracemalloc
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from poise.config.dataset_yaml import load_dataset_info, read_dataset
from poise.datasets import ImageFolder, converters
from poise.datasets.converters.images import (
    _MAX_KINDS,
    SkipCounter,
    describe_skipped,
    image_size,
)
from poise.errors import DataError, run_tool
from support.custom_datasets import make_set
from support.tools import load_tool

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
def test_convert_every_format_round_trip_is_equal(made, tmp_path, form):
    folder, data, pictures = made
    assert sum(len(picture.persons) for picture in pictures) == 9
    converters.write(form, tmp_path / WRITTEN[form], data, pictures)
    images = tmp_path / "frames"
    (images / "cam 1").mkdir(parents=True)
    for picture in pictures:
        shutil.copy(folder / "frames" / picture.name, images / picture.name)
    again = {
        picture.name: picture
        for picture in converters.read(form, tmp_path / WRITTEN[form], data, images=images)
    }
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
    flags = np.concatenate(
        [person.keypoints[:, 2] for picture in pictures for person in picture.persons]
    )
    assert set(flags) == {0, 1, 2}  # so that all three were converted


def test_write_coco_output_is_readable_for_training(made, tmp_path):
    _, data, pictures = made
    converters.write("coco", tmp_path / "x.json", data, pictures)
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["categories"] == [
        {
            "id": 1,
            "name": "dot person",
            "keypoints": list(data.skeleton.names),
            "skeleton": [[1, 2], [2, 3], [3, 4], [4, 5]],
        }
    ]
    person = content["annotations"][0]
    assert (
        person["area"] == pytest.approx(0.5 * person["bbox"][2] * person["bbox"][3], abs=0.01)
        and person["id"] == 1
        and person["image_id"] == 1
    )
    assert person["num_keypoints"] == sum(flag > 0 for flag in person["keypoints"][2::3])


def test_read_yolo_real_labels_equal_coco(shared):
    """YOLO text of COCO's val2017 against COCO's own annotations of the same images."""
    subset, data = shared / "data" / "coco_subset", load_dataset_info("coco")
    pictures = {
        p.name: p
        for p in converters.read(
            "yolo",
            shared / "data" / "yolo_pose_sample" / "val2017",
            data,
            images=subset / "images" / "val2017",
        )
    }
    truth = {
        p.name: p
        for p in converters.read(
            "coco", subset / "annotations" / "person_keypoints_val2017.json", data
        )
    }
    compared = 0
    for name, picture in pictures.items():
        for person in picture.persons:
            apart = [
                np.abs(other.keypoints - person.keypoints).max() for other in truth[name].persons
            ]
            compared += 1
            # its text has six digits, and hides joints' last pixels
            assert min(apart) < 0.51, (name, apart)
    assert compared > 100


# faults -------------------------------------------------------------------------------------------


def yolo(tmp_path, text, **options):
    (tmp_path / "t").mkdir()
    (tmp_path / "i").mkdir()
    cv2.imwrite(str(tmp_path / "i" / "a.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "t" / "a.txt").write_text(text)
    return ("yolo", tmp_path / "t", options.get("data")), {"images": tmp_path / "i"}


@pytest.mark.parametrize(
    "text, line",
    [
        (
            "0 .5 .5 .2 .2 .1 .1",
            "line 1: has 7 numbers, expected 20 (class, box, 5 joints x 3) or 15 (without flags)",
        ),
        (
            "0 .5 .5 .2 .2" + " .1 .1 2" * 4 + " .1 nan 2",
            "line 1: it has nan where a number is needed",
        ),
        ("0 .5 .5 .2 .2" + " .1 .1 5" * 5, "line 1: has a flag that is none of 0, 1 and 2"),
        ("0 30 20 10 10" + " .1 .1 2" * 5, "is not given in fractions of the image"),
        (
            "0 .5 .5 .2 .2" + " .1 .1 2" * 4 + " 30 20 1",
            "line 1: joints are not given in fractions of the image",
        ),
        ("0 a", "line 1: it has a where a number is needed"),
    ],
)
def test_read_yolo_invalid_label_raises(made, tmp_path, text, line):
    args, options = yolo(tmp_path, text, data=made[1])
    assert line in refusal(*args, **options)


def test_read_yolo_jfif_is_read_and_heic_raises(made, tmp_path):
    args, options = yolo(tmp_path, "", data=made[1])
    data = cv2.imencode(".jpg", np.zeros((6, 8, 3), np.uint8))[1].tobytes()
    (tmp_path / "i" / "b.jfif").write_bytes(data)
    found = converters.read(*args[:2], made[1], **options)
    assert {p.name: (p.width, p.height) for p in found}["b.jfif"] == (8, 6)
    (tmp_path / "i" / "c.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert "c.HEIC: not an image that is read" in refusal(*args[:2], made[1], **options)


def test_read_yolo_without_flags_skips_other_classes(made, tmp_path):
    args, options = yolo(tmp_path, "0 .5 .5 .2 .2" + " .1 .2" * 4 + " 0 0\n1 2 3\n", data=made[1])
    person = converters.read(*args, **options)[0].persons
    assert (
        len(person) == 1
        and person[0].keypoints.tolist() == [[6, 8, 2]] * 4 + [[0, 0, 0]]
        and person[0].box.tolist() == pytest.approx([24, 16, 12, 8])
    )
    assert "give their folder with --images" in refusal("yolo", tmp_path / "t", made[1])
    (tmp_path / "t" / "b.txt").write_text("")
    assert "has no image of this name" in refusal(*args, **options)


def shape(label, points, kind="point", group=None, **more):
    return {
        "label": label,
        "points": points,
        "shape_type": kind,
        "group_id": group,
        "flags": {},
        **more,
    }


def labelme(folder, *shapes, **more):
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(
        json.dumps(
            {
                "shapes": list(shapes),
                "imagePath": "..\\frames\\a.jpg",
                "imageWidth": 100,
                "imageHeight": 80,
                **more,
            }
        )
    )
    return folder


def test_read_labelme_one_person_without_groups(made, tmp_path):
    picture = converters.read(
        "labelme",
        labelme(
            tmp_path / "l",
            shape("middle", [[50, 40]]),
            shape("left_0", [[60, 60]], description="Hidden"),
            shape("right_0", [[40, 60]], flags={"hidden": True}),
        ),
        made[1],
    )[0]
    assert picture.name == "a.jpg" and picture.persons[0].keypoints[:, 2].tolist() == [
        2,
        1,
        1,
        0,
        0,
    ]
    assert picture.persons[0].box.tolist() == [38, 38, 24, 24]


def test_read_labelme_points_join_their_rectangle(made, tmp_path):
    boxes = [
        shape("dot person", [[50, 40], [0, 0]], "rectangle"),
        shape("dot person", [[60, 0], [99, 40]], "rectangle"),
    ]
    folder = labelme(
        tmp_path / "l", *boxes, shape("middle", [[70, 20]]), shape("middle", [[20, 20]])
    )
    first, second = converters.read("labelme", folder, made[1])[0].persons
    assert (
        first.keypoints[0].tolist() == [20, 20, 2]
        and second.keypoints[0].tolist() == [70, 20, 2]
        and first.box.tolist() == [0, 0, 50, 40]
    )
    labelme(folder, *boxes, shape("middle", [[55, 70]]))
    assert "the point at 55, 70 lies in no rectangle" in refusal("labelme", folder, made[1])


def test_read_labelme_skips_and_counts_other_shapes(made, tmp_path, caplog):
    """A rectangle of another label is nobody's box, though joints lie in it."""
    folder = labelme(
        tmp_path / "l",
        shape("car", [[0, 0], [99, 79]], "rectangle"),
        shape("middle", [[50, 40]], group=1),
        shape("dot person", [[1, 1], [9, 9]], "rectangle", group=2),
    )
    with caplog.at_level(logging.WARNING):
        persons = converters.read("labelme", folder, made[1])[0].persons
    assert [person.box.tolist() for person in persons] == [[49.5, 39.5, 1, 1]]
    assert caplog.messages == [
        f"{folder}: left out: 1 rectangle called car, 1 rectangle without a joint"
    ]
    caplog.clear()
    assert (
        converters.read("labelme", labelme(folder), made[1])[0].persons == []
        and not caplog.messages
    )
    by_id = replace(made[1], category=7)  # the name is not known then
    assert converters.read(
        "labelme",
        labelme(folder, shape("car", [[0, 0], [99, 79]], "rectangle"), shape("middle", [[50, 40]])),
        by_id,
    )[0].persons[0].box.tolist() == [0, 0, 99, 79]


POINTS = [shape("middle", [[30, 40]], group=1), shape("left_0", [[35, 35]], group=1)]
BOX = [[2, 2], [90, 70]]


@pytest.mark.parametrize(
    "shapes",
    [
        [*POINTS, shape("dot person", BOX, "rectangle")],
        [
            shape("middle", [[30, 40]]),
            shape("left_0", [[35, 35]]),
            shape("dot person", BOX, "rectangle", group=1),
        ],
        [*POINTS, shape("dot person", [[2, 2], [90, 2], [90, 70], [2, 70]], "oriented_rectangle")],
        [
            *POINTS,
            shape("dot person", BOX, "rectangle"),
            shape("middle", [[5, 5]], group=2),
            shape("dot person", [[1, 1], [9, 9]], "rectangle", group=2),
        ],
    ],
    ids=["box", "points", "turned", "another"],
)
def test_read_labelme_single_box_joins_the_single_person(made, tmp_path, shapes):
    first = converters.read("labelme", labelme(tmp_path / "l", *shapes), made[1])[0].persons[0]
    assert first.box.tolist() == [2, 2, 88, 68] and first.keypoints[:, 2].tolist() == [
        2,
        2,
        0,
        0,
        0,
    ]


def test_read_labelme_real_box_without_group(shared):
    field = shared / "field" / "labelme_box_without_group"
    (picture,) = converters.read("labelme", field / "labels", read_dataset(field / "tiny.yaml"))
    assert [person.box.tolist() for person in picture.persons] == [[2, 2, 88, 188]]


@pytest.mark.parametrize(
    "shapes, line",
    [
        (
            [*POINTS, shape("middle", [[5, 5]], group=2), shape("dot person", BOX, "rectangle")],
            (
                "boxes without a person: 1, persons without a box: 2, and some have no group_id;"
                " give each person's points and box a group_id of their own"
            ),
        ),
        (
            [*POINTS, *[shape("dot person", BOX, "rectangle")] * 2],
            "boxes without a person: 2, persons without a box: 1, and some have no group_id",
        ),
        (
            [*POINTS, shape("right_0", [[5, 5]])],
            (
                "1 points have no group_id and others have one; give each person's points and box a"
                " group_id of their own"
            ),
        ),
        (
            [*POINTS, *[shape("dot person", BOX, "rectangle", group=1)] * 2],
            "two boxes have the group_id 1",
        ),
        ([shape("middle", [[5, 5]], group=True)], "group_id True is no whole number"),
    ],
    ids=["persons", "boxes", "points", "group", "bool"],
)
def test_read_labelme_ambiguous_groups_raise(made, tmp_path, shapes, line):
    assert line in refusal("labelme", labelme(tmp_path / "l", *shapes), made[1])


def test_read_labelme_unsupported_shapes_are_counted(made, tmp_path, caplog):
    others = [
        shape("middle", [[1, 1], [2, 2], [3, 3]], "polygon"),
        shape("dot person", [[1, 1], [2, 2]], "circle"),
        {"shape_type": "polygon", "points": None},
    ]
    with caplog.at_level(logging.WARNING):
        assert (
            len(
                converters.read("labelme", labelme(tmp_path / "l", *POINTS, *others), made[1])[
                    0
                ].persons
            )
            == 1
        )
    assert caplog.messages == [
        f"{tmp_path / 'l'}: left out: 1 shape of the kind circle, 2 shapes of the kind polygon"
    ]


@pytest.mark.parametrize("form, file", [("labelme", "a.json"), ("yolo", "a.txt")])
def test_write_images_differing_by_suffix_raise(made, tmp_path, form, file):
    """One would take the other's labels."""
    pictures = [converters.LabeledImage(name, 60, 40) for name in ("a.jpg", "b.jpg", "a.png")]
    with pytest.raises(
        DataError,
        match=f"a.jpg and a.png have their labels in one file, {file}; rename one of the images",
    ):
        converters.write(form, tmp_path / "out", made[1], pictures)
    assert not (tmp_path / "out").exists()
    if form == "yolo":
        args, options = yolo(tmp_path, "0 .5 .5 .2 .2" + " .1 .1 2" * 5, data=made[1])
        cv2.imwrite(str(tmp_path / "i" / "a.jpg"), np.zeros((40, 60, 3), np.uint8))
        assert "a.jpg and a.png have their labels in one file" in refusal(*args, **options)


@pytest.mark.parametrize(
    "shapes, more, line",
    [
        (
            [shape("nose", [[1, 1]])],
            {},
            "shape 0: the point is called nose, which is none of the joints of ",
        ),
        (
            [shape("middle", [[1, 1]]), shape("middle", [[2, 2]])],
            {},
            "has middle twice for one person",
        ),
        ([shape("middle", [[1, 1], [2, 2]])], {}, "shape 0: the point has 2 points, expected 1"),
        (
            [shape("dot person", [[1, 1]], "rectangle")],
            {},
            "shape 0: the rectangle has 1 points, expected 2 or 4",
        ),
        ([shape("middle", [["a", 1]])], {}, "a point has a where a number is needed"),
        ([shape("middle", 3)], {}, "shape 0 has no points"),
        ([shape("middle", [[1, 1]], group="x")], {}, "group_id x is no whole number"),
        ([], {"imageWidth": 0}, "the image is 0 x 80 pixels large"),
        ([], {"imageHeight": None}, "imageWidth or imageHeight has null where a number is needed"),
        ([], {"shapes": 3}, "not a file of labelme"),
    ],
)
def test_read_labelme_invalid_file_raises(made, tmp_path, shapes, more, line):
    assert line in refusal("labelme", labelme(tmp_path / "l", *shapes, **more), made[1])


CVAT = (
    '<annotations><image id="0" name="a.jpg" width="100" height="80"><skeleton label="dot person"'
    ' group_id="0"><points label="middle" outside="0" occluded="0" points="50,40"/><points'
    ' label="left_0" outside="1" occluded="0" points="1,1"/></skeleton></image></annotations>'
)


def cvat(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    return "cvat", tmp_path / "a.xml"


def test_read_cvat_without_boxes_uses_keypoint_extent(made, tmp_path):
    person = converters.read(*cvat(tmp_path, CVAT), made[1])[0].persons[0]
    assert person.keypoints[:, 2].tolist() == [2, 0, 0, 0, 0] and person.box.tolist() == [
        49.5,
        39.5,
        1,
        1,
    ]


def test_read_cvat_skips_and_counts_other_shapes(made, tmp_path, caplog):
    """Skip skeletons of other labels, unlabeled skeletons, boxes and shapes outside skeletons.

    A file without any skeleton of the category is an error.
    """
    more = (
        '<skeleton label="dog"><points label="tail" points="1,1"/></skeleton><skeleton label="dot'
        ' person"><points label="middle" outside="1" points="1,1"/></skeleton><box label="car"'
        ' xtl="1" ytl="1" xbr="9" ybr="9"/><polygon label="car" points="1,1;2,2;3,3"/></image>'
    )
    with caplog.at_level(logging.WARNING):
        assert (
            len(
                converters.read(*cvat(tmp_path, CVAT.replace("</image>", more)), made[1])[0].persons
            )
            == 1
        )
    assert caplog.messages == [
        f"{tmp_path / 'a.xml'}: left out: 1 box without a skeleton, 1 shape of the kind polygon, 1"
        " skeleton called dog, 1 skeleton without a labeled joint"
    ]
    text = CVAT.replace("dot person", "Dot Person")
    assert "no skeleton is called dot person, the category of " in refusal(
        *cvat(tmp_path, text), made[1]
    ) and "there are Dot Person" in refusal(*cvat(tmp_path, text), made[1])
    assert len(converters.read(*cvat(tmp_path, text), replace(made[1], category=7))[0].persons) == 1


@pytest.mark.parametrize(
    "old, new, line",
    [
        (
            "<annotations>",
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>',
            "has a document type (DTD) or entities",
        ),
        (
            "<annotations>",
            '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotations>&c;',
            "has a document type (DTD) or entities",
        ),
        (
            "</annotations>",
            "<a>" * 50 + "</a>" * 50 + "</annotations>",
            "is nested deeper than 32 elements",
        ),
        ("</annotations>", "", "is not valid XML"),
        ('"middle"', '"nose"', "a point is called nose, which is none of the joints"),
        ('"left_0"', '"middle"', "a skeleton has middle twice"),
        ("50,40", "50", "the point middle has 1 numbers, expected x and y"),
        ("50,40", "50,1e999", "the point middle has 1e999 where a number is needed"),
        ('width="100"', "", "width or height has nothing where a number is needed"),
        ("a.jpg", "../a.jpg", "the image name ../a.jpg "),
        ("image", "picture", "not a file of 'CVAT for images 1.1'"),
    ],
)
def test_read_cvat_invalid_file_raises(made, tmp_path, old, new, line):
    assert line in refusal(*cvat(tmp_path, CVAT.replace(old, new)), made[1])


def test_read_cvat_elements_outside_images_take_no_memory(made, tmp_path):
    """They took 200 bytes each, and a file of them was refused for its memory."""
    path = tmp_path / "a.xml"
    path.write_text(CVAT.replace("</annotations>", '<a b="1"/>' * 300_000 + "</annotations>"))
    tracemalloc.start()
    try:
        assert len(converters.read("cvat", path, made[1])[0].persons) == 1
        assert tracemalloc.get_traced_memory()[1] - path.stat().st_size < 2_000_000
    finally:
        tracemalloc.stop()


def test_read_cvat_larger_than_memory_raises(made, tmp_path, monkeypatch):
    """A skeleton of one joint takes as much memory as one of all."""
    monkeypatch.setattr("poise.io.files.available_memory", lambda: 10**8)
    monkeypatch.setattr("poise.io.files._MIN_CHECKED_BYTES", 10**6)
    many = replace(
        made[1],
        skeleton=replace(made[1].skeleton, names=(*made[1].skeleton.names, *map(str, range(995)))),
    )
    person = CVAT[CVAT.index("<skeleton") : CVAT.index("</image>")]
    images = "".join(
        CVAT[CVAT.index("<image") :]
        .replace("a.jpg", f"{n}.jpg")
        .replace("</image></annotations>", person * 300 + "</image>")
        for n in range(20)
    )
    text = refusal(*cvat(tmp_path, f"<annotations>{images}</annotations>"), many)
    assert "reading the CVAT file takes about 148.1 MB of memory, and 100.0 MB are free" in text


@pytest.mark.parametrize(
    "old, new, line",
    [
        (
            "<skeleton ",
            "<skeleton " + " ".join(f"a{n}=''" for n in range(300_000)) + " ",
            "has a tag of more than 2 MB",
        ),
        (
            "<skeleton ",
            "<skeleton " + " ".join(f"a{n}=''" for n in range(101)) + " ",
            "has an element of more than 100 attributes",
        ),
        (
            "<annotations>",
            "<annotations>" + "".join(f"<a{n} b{n}=''/>" for n in range(600)),
            "has more than 1000 names of elements and attributes",
        ),
        (
            "</image>",
            '<a b=""/>' * 10_000 + "</image>",
            "has an image of more than 20000 elements and attributes",
        ),
        (
            "</image>",
            f"<mask rle='{'1,' * 1_000_000}'/>" * 4 + "</image>",
            "has an image of more than 4 MB",
        ),
    ],
    ids=["tag", "attributes", "names", "values", "bytes"],
)
def test_read_cvat_expansion_bomb_raises(made, tmp_path, monkeypatch, old, new, line):
    monkeypatch.setattr("poise.datasets.converters.cvat._MAX_VALUES", 20_000)
    monkeypatch.setattr("poise.datasets.converters.cvat._MAX_IMAGE_BYTES", 4 << 20)
    assert f"{tmp_path / 'a.xml'}: the CVAT file {line}" == refusal(
        *cvat(tmp_path, CVAT.replace(old, new, 1)), made[1]
    )


@pytest.mark.parametrize(
    "new",
    [
        "<meta>" + "x y\n" * 1_000_000 + "</meta>",
        "<meta><![CDATA[" + "<x " * 1_000_000 + "]]></meta>",
        f"<!--{'x' * 1_000_000}-->",
    ],
)
def test_read_cvat_long_text_is_discarded(made, tmp_path, new):
    assert (
        len(
            converters.read(
                *cvat(tmp_path, CVAT.replace("<annotations>", "<annotations>" + new)), made[1]
            )[0].persons
        )
        == 1
    )


def boxes_of_cvat(made, tmp_path, *boxes, skeleton='label="dot person" group_id="0"'):
    shapes = "".join(f'<box xtl="10" ytl="10" xbr="50" ybr="110" {more}/>' for more in boxes)
    text = CVAT.replace('label="dot person" group_id="0"', skeleton).replace(
        "</image>", f"{shapes}</image>"
    )
    return converters.read(*cvat(tmp_path, text), made[1])[0].persons


@pytest.mark.parametrize(
    "angle, box",
    [
        ("0", [10, 10, 40, 100]),
        ("90", [-20, 40, 100, 40]),
        ("180", [10, 10, 40, 100]),
        ("45", [-19.4975, 10.5025, 98.9949, 98.9949]),
        ("330", [30 - 42.3205, 60 - 53.3013, 84.6410, 106.6025]),
    ],
)
def test_read_cvat_rotated_box_gives_enclosing_box(made, tmp_path, angle, box):
    (person,) = boxes_of_cvat(
        made,
        tmp_path,
        f'label="any" group_id="3" rotation="{angle}"',
        skeleton='label="dot person" group_id="3"',
    )
    np.testing.assert_allclose(person.box, box, atol=1e-4)


@pytest.mark.parametrize("rotation", ["0", "90"])
def test_read_cvat_swapped_corners_give_the_same_box(made, tmp_path, rotation):
    def boxes(corners):
        box = f'<box label="dot person" {corners} rotation="{rotation}"/></image>'
        (person,) = converters.read(*cvat(tmp_path, CVAT.replace("</image>", box)), made[1])[
            0
        ].persons
        return person.box.tolist()

    swapped = boxes('xtl="50" ytl="110" xbr="10" ybr="10"')
    assert swapped == boxes('xtl="10" ytl="10" xbr="50" ybr="110"') and min(swapped[2:]) > 0


def test_read_yolo_negative_box_raises(made, tmp_path):
    args, options = yolo(tmp_path, "0 .5 .5 -.2 .2" + " .1 .2 2" * 5, data=made[1])
    assert "has a negative width or height; correct" in refusal(*args, **options)


@pytest.mark.parametrize("form", ["cvat", "labelme", "yolo"])
def test_read_many_unknown_labels_are_counted_together(made, tmp_path, form):
    kinds = [f"{number} {'x' * 1000}" for number in range(1200)]
    if form == "cvat":
        more = "".join(f'<skeleton label="{kind}"/>' for kind in kinds)
        args, options = (*cvat(tmp_path, CVAT.replace("</image>", more + "</image>")), made[1]), {}
    elif form == "labelme":
        shapes = [shape(kind, [[0, 0], [9, 9]], "rectangle") for kind in kinds]
        args, options = ("labelme", labelme(tmp_path / "l", *shapes), made[1]), {}
    else:
        text = "".join(f"{number} 1\n" for number in range(1, 1201))
        args, options = yolo(tmp_path, text, data=made[1])
    source, images = Path(args[1]), options.get("images")
    _, left = import_module(f"poise.datasets.converters.{form}").read(source, args[2], images)
    assert len(left) <= 1002 and 190 <= left["other labels"] <= 200 and left.total() >= 1200
    assert max(map(len, left)) <= 83 and "200 other labels" in describe_skipped(left)


def test_read_cvat_real_rotated_box(shared):
    field = shared / "field" / "cvat_rotated_box"
    (picture,) = converters.read("cvat", field / "a.xml", read_dataset(field / "tiny.yaml"))
    np.testing.assert_allclose(
        picture.persons[0].box, [25 - 49.4975, 55 - 49.4975, 98.9949, 98.9949], atol=1e-4
    )


def test_read_cvat_single_box_joins_the_single_skeleton(made, tmp_path):
    assert boxes_of_cvat(made, tmp_path, 'label="dot person"')[0].box.tolist() == [10, 10, 40, 100]
    assert boxes_of_cvat(
        made, tmp_path, 'label="dot person"', skeleton='label="dot person" group_id="2"'
    )[0].box.tolist() == [10, 10, 40, 100]
    assert boxes_of_cvat(made, tmp_path, 'label="car"')[0].box.tolist() == [49.5, 39.5, 1, 1]
    assert boxes_of_cvat(made, tmp_path, 'label="car" group_id="2"', 'label="wheel" group_id="2"')[
        0
    ].box.tolist() == [49.5, 39.5, 1, 1]


@pytest.mark.parametrize(
    "text, line",
    [
        (
            CVAT.replace(
                "</image>",
                '<box label="dot person" xtl="1" ytl="1" xbr="9" ybr="9"/>' * 2 + "</image>",
            ),
            (
                "boxes without a person: 2, persons without a box: 1, and some have no group_id;"
                " give each person's points and box a group_id"
            ),
        ),
        (
            CVAT.replace('group_id="0"', 'group_id="4"').replace(
                "</image>",
                '<box label="a" xtl="1" ytl="1" xbr="9" ybr="9" group_id="4"/>' * 2 + "</image>",
            ),
            "two boxes have the group_id 4",
        ),
        (
            CVAT.replace("<image ", '<image name="a.jpg" width="100" height="80"/><image ', 1),
            "image a.jpg is listed twice",
        ),
    ],
    ids=["boxes", "group", "image"],
)
def test_read_cvat_ambiguous_boxes_raise(made, tmp_path, text, line):
    assert line in refusal(*cvat(tmp_path, text), made[1])


def test_read_cvat_two_skeletons_with_one_box_raise(made, tmp_path):
    skeleton = CVAT[CVAT.index("<skeleton") : CVAT.index("</image>")].replace(
        'group_id="0"', 'group_id="4"'
    )
    text = CVAT.replace('group_id="0"', 'group_id="4"').replace("</image>", skeleton + "</image>")
    assert len(converters.read(*cvat(tmp_path, text), made[1])[0].persons) == 2
    text = text.replace(
        "</image>", '<box label="a" xtl="1" ytl="1" xbr="9" ybr="9" group_id="4"/></image>'
    )
    assert "a box and two persons have the group_id 4" in refusal(*cvat(tmp_path, text), made[1])


# images that are stored turned ------------------------------------------------------------------


def save_turned(path, orientation):
    """Write an image that is stored as 60 x 40 pixels with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path, exif=exif)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_image_size_equals_the_decoded_image(tmp_path, ending, orientation):
    path = tmp_path / f"a.{ending}"
    save_turned(path, orientation)
    size = image_size(path)
    for exif, found in ((False, size.stored), (True, size.upright)):
        assert found == ImageFolder(tmp_path, exif=exif).read(path.name).shape[1::-1]
    assert size.orientation == orientation


def test_read_yolo_exif_rotated_image_uses_upright_size(made, tmp_path, caplog):
    args, options = yolo(tmp_path, "0 .5 .5 .2 .2" + " .1 .2 2" * 5, data=made[1])
    save_turned(tmp_path / "i" / "a.png", 6)
    with caplog.at_level(logging.WARNING):
        (picture,) = converters.read(*args, **options)
    assert (picture.width, picture.height) == (40, 60)
    assert picture.persons[0].box.tolist() == pytest.approx([16, 24, 8, 12]) and picture.persons[
        0
    ].keypoints[0].tolist() == [4, 12, 2]
    assert caplog.messages == [
        f"{tmp_path / 'i'}: images with an EXIF orientation: 1 of 1; the labels are taken as those"
        " of the upright images: set DATASET.EXIF True"
    ]


def test_read_yolo_real_exif_images_equal_expected(shared):
    field, data = shared / "field" / "yolo_exif", load_dataset_info("coco")
    truth = {
        picture.name: picture
        for picture in converters.read("coco", field / "expected_coco.json", data)
    }
    pictures = converters.read("yolo", field / "labels", data, images=field / "images")
    assert [len(picture.persons) for picture in pictures] == [2, 3]
    for picture in pictures:
        assert (picture.width, picture.height) == (
            truth[picture.name].width,
            truth[picture.name].height,
        )
        for one, two in zip(picture.persons, truth[picture.name].persons):
            np.testing.assert_allclose(one.box, two.box, atol=1e-3)
            np.testing.assert_allclose(one.keypoints, two.keypoints, atol=1e-3)


@pytest.mark.parametrize("form", ["coco", "cvat", "labelme"])
@pytest.mark.parametrize(
    "size, orientation, line",
    [
        ((60, 40), 1, ""),
        (
            (40, 60),
            6,
            (
                "images with an EXIF orientation: 1 of 1; labels of the upright image: set"
                " DATASET.EXIF True"
            ),
        ),
        (
            (60, 40),
            6,
            (
                "images with an EXIF orientation: 1 of 1; labels of the stored pixels: set"
                " DATASET.EXIF False"
            ),
        ),
        (
            (60, 40),
            3,
            (
                "images with an EXIF orientation: 1 of 1; both sizes equal: set DATASET.EXIF True"
                " if upright images were labeled"
            ),
        ),
    ],
)
def test_read_label_sizes_are_compared_with_images(
    made, tmp_path, caplog, form, size, orientation, line
):
    person = converters.images.LabeledPerson(
        np.array([1.0, 1, 20, 20]), np.array([[5.0, 6, 2]] * 5)
    )
    converters.write(
        form,
        tmp_path / WRITTEN[form],
        made[1],
        [converters.LabeledImage("a.jpg", *size, [person])],
    )
    save_turned(tmp_path / "i" / "a.jpg", orientation)
    with caplog.at_level(logging.WARNING):
        converters.read(form, tmp_path / WRITTEN[form], made[1], images=tmp_path / "i")
    assert caplog.messages == ([f"{tmp_path / 'i'}: {line}"] if line else [])


@pytest.mark.parametrize("form", ["coco", "cvat", "labelme"])
def test_read_image_of_other_size_raises(made, tmp_path, form):
    converters.write(
        form, tmp_path / WRITTEN[form], made[1], [converters.LabeledImage("a.jpg", 60, 41)]
    )
    save_turned(tmp_path / "i" / "a.jpg", 1)
    assert "the labels are of an image of 60 x 41 pixels, and " in refusal(
        form, tmp_path / WRITTEN[form], made[1], images=tmp_path / "i"
    )
    (tmp_path / "i" / "a.jpg").rename(tmp_path / "i" / "b.jpg")
    assert f"{tmp_path / 'i'} has no image a.jpg" in refusal(
        form, tmp_path / WRITTEN[form], made[1], images=tmp_path / "i"
    )


# the tool -----------------------------------------------------------------------------------------


def call(*arguments):
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["tools/convert_data.py", *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as done,
        ):
            run_tool(load_tool("convert_data").main)
    finally:
        sys.argv = argv
    return done.value.code, out.getvalue(), err.getvalue()


def test_convert_data_command_writes_the_target_format(made, tmp_path):
    folder, _, _ = made
    status, out, _ = call(
        "coco",
        "labelme",
        folder / "labels" / "train.json",
        tmp_path / "l",
        "--dataset",
        folder / "dots.yaml",
    )
    assert (
        status == 0
        and out.splitlines()[-1].startswith("9 persons with ")
        and len(list((tmp_path / "l").rglob("*.json"))) == 6
    )
    status, out, _ = call(
        "labelme",
        "cvat",
        tmp_path / "l",
        tmp_path / "x.xml",
        "--dataset",
        folder / "dots.yaml",
        "--images",
        folder / "frames",
    )
    assert status == 0 and (tmp_path / "x.xml").read_text().count("<skeleton ") == 9
    status, _, err = call(
        "labelme", "coco", tmp_path / "none", tmp_path / "y.json", "--dataset", folder / "dots.yaml"
    )
    assert (
        status == 1
        and err == f"error: {tmp_path / 'none'}: no such folder of labelme's JSON files\n"
    )
    assert call("coco", "coco", "a", "b", "--dataset", "coco")[0] == 2


@pytest.mark.parametrize(
    "form, found",
    [
        (
            "cvat",
            (
                "2 images, nothing is written; found: 1 box without a skeleton, 1 shape of the kind"
                " points; a person is a skeleton that is called like"
            ),
        ),
        (
            "labelme",
            (
                "1 image, nothing is written; found: 1 rectangle without a joint, 1 shape of the"
                " kind polygon; a person is points called"
            ),
        ),
        (
            "yolo",
            (
                "1 image, nothing is written; found: 1 object of class 1, 2 objects of class 3, 1"
                " person without a labeled joint; a person is a line of"
            ),
        ),
        (
            "coco",
            (
                "1 image, nothing is written; found: 1 annotation without labeled joints, 1 crowd"
                " region; a person is an annotation of the category"
            ),
        ),
        (
            "empty",
            (
                "1 image, nothing is written; found: no labels; a person is points called like the"
                " joints"
            ),
        ),
    ],
)
def test_convert_data_command_no_person_reports_what_was_read(made, tmp_path, form, found):
    options, source = ["--dataset", made[1].path], tmp_path / "labels"
    if form == "cvat":
        source.write_text(
            '<annotations><image name="b.jpg" width="9" height="9"/><image name="a.jpg" width="9"'
            ' height="9"><points label="dot person" points="1,1"/><box label="dot person" xtl="1"'
            ' ytl="1" xbr="2" ybr="2"/></image></annotations>'
        )
    elif form == "labelme":
        labelme(
            source,
            shape("dot person", [[1, 1], [9, 9]], "rectangle"),
            shape("middle", [[1, 1]], "polygon"),
        )
    elif form == "yolo":
        source = yolo(tmp_path, "1 2 3\n3 1\n3 2\n0 .5 .5 .2 .2" + " .1 .2 0" * 5)[0][1]
        options += ["--images", tmp_path / "i"]
    elif form == "coco":
        person = {
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, 9, 9],
            "area": 40,
            "keypoints": [0] * 15,
        }
        source.write_text(
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
                    "categories": [{"id": 1, "name": "dot person"}],
                    "annotations": [{"id": 1, **person}, {"id": 2, **person, "iscrowd": 1}],
                }
            )
        )
    else:
        form, source = "labelme", labelme(source)
    target = tmp_path / "out"
    status, out, err = call(form, "labelme" if form == "coco" else "coco", source, target, *options)
    assert (
        (status, out) == (1, "")
        and err.startswith(f"error: {source}: no persons in {found}")
        and f"(dot person of {made[1].path})" in err
    )
    assert not target.exists()


def test_describe_skipped_many_kinds_counts_the_rest():
    skipped = SkipCounter()
    for kind in range(14):
        skipped.add(f"shapes of the kind {kind}", 2)
    assert describe_skipped(skipped).endswith(f", {14 - _MAX_KINDS} more kinds")
