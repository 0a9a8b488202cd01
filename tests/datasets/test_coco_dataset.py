"""Test reading COCO files: persons that are used, dropped and counted; invalid files."""

import gzip
import json
import pickle
import shutil

import numpy as np
import pytest
from poise import config
from poise.config import datasets
from poise.datasets import coco, load_split
from poise.errors import ConfigError, DataError, escape_name
from poise.structures.person_table import PackedStrings

JOINTS = [value for joint in range(17) for value in (50.0 + joint, 40.0 + 2 * joint, 2)]
# ids that are neither sorted nor equal to the file names
IMAGES = [
    {"id": 70, "file_name": "b/seventy.jpg", "width": 200, "height": 100},
    {"id": 5, "file_name": "000000000009.jpg", "width": 640, "height": 480},
]


def person(number=1, **fields):
    return {
        "id": number,
        "image_id": 5,
        "category_id": 1,
        "iscrowd": 0,
        "area": 500.0,
        "bbox": [10, 20, 100, 200],
        "keypoints": list(JOINTS),
        **fields,
    }


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


@pytest.fixture
def experiment(tmp_path):
    """A function that makes the configuration of an experiment on the files of tmp_path."""
    path = tmp_path / "e.yaml"
    path.write_text(
        f"DATASET: {{DATASET: coco, ROOT: {tmp_path}, TRAIN_SET: train2017, TEST_SET: val2017}}\n"
        "MODEL: {IMAGE_SIZE: [192, 256], HEATMAP_SIZE: [48, 64]}\nTEST: {USE_GT_BBOX: true}\n"
    )
    return lambda *overrides: config.load(path, overrides)


@pytest.fixture
def annotated(tmp_path, experiment):
    """A function that reads the table of a set with these annotations."""

    def read(
        annotations,
        split="val2017",
        images=IMAGES,
        categories=({"id": 1, "name": "person"},),
        **more,
    ):
        content = {"images": images, "annotations": annotations, "categories": categories, **more}
        write(tmp_path / "annotations" / f"person_keypoints_{split}.json", content)
        return coco.read_table(experiment(), split, detections=False)

    return read


@pytest.fixture
def detected(tmp_path, experiment):
    """A function that reads the table of a set with these detections."""

    def read(detections, *overrides, split="val2017", images=IMAGES):
        prefix = "image_info" if "test" in split else "person_keypoints"
        write(tmp_path / "annotations" / f"{prefix}_{split}.json", {"images": images})
        write(tmp_path / "boxes" / "made_boxes.json", detections)
        cfg = experiment(
            "TEST.USE_GT_BBOX",
            False,
            "TEST.COCO_BBOX_FILE",
            str(tmp_path / "boxes" / "made_boxes.json"),
            *overrides,
        )
        return coco.read_table(cfg, split, detections=True)

    return read


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def refusal(call, *args, **options):
    kind = options.pop("kind", DataError)
    with pytest.raises(kind) as error:
        call(*args, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


# who is taken -------------------------------------------------------------------------------------


def test_read_table_drops_and_counts_unusable_persons(annotated):
    table = annotated(
        [
            person(11),
            person(12, iscrowd=1),
            person(13, keypoints=[0] * 51),
            person(14, category_id=3),
            person(15, area=0),
            person(16, image_id=70, bbox=[0, 0, 50, 60]),
            person(17, area=0.0),
            without(person(18), "iscrowd"),
            without(person(19), "area"),
            # an object of another category has no joints
            {"id": 20, "image_id": 5, "category_id": 3},
        ]
    )
    assert table.ann_ids.tolist() == [11, 16, 18, 19]
    assert table.dropped == {
        "crowd regions": 1,
        "without labeled joints": 1,
        "of another category": 2,
        "of area 0": 2,
    }
    assert (
        table.summary()
        == "4 persons in 2 of 2 images, ground-truth boxes; dropped 1 crowd regions, 2 of another"
        " category, 2 of area 0, 1 without labeled joints"
    )


def test_read_table_coordinates_without_flag_are_unlabeled(annotated):
    """As some tools write persons who are not labeled; COCO has zeros there."""
    bare = [value for joint in range(17) for value in (50.0 + joint, 40.0 + joint, 0)]
    table = annotated(
        [person(1), person(2, keypoints=bare), person(3, keypoints=[-v for v in JOINTS])]
    )
    assert table.ann_ids.tolist() == [1] and table.dropped == {"without labeled joints": 2}


def test_read_table_columns_equal_annotations(annotated):
    joints = list(JOINTS)
    joints[3:6], joints[6:9] = [61.5, 42.25, 1], [0, 0, 0]
    table = annotated([person(3, keypoints=joints), person(2, image_id=70, bbox=[20, 30, 61, 41])])
    assert [table.image_name(0), table.image_name(1)] == ["000000000009.jpg", "b/seventy.jpg"]
    assert table.image_ids[table.image_index].tolist() == [5, 70]
    assert table.keypoints.shape == (2, 17, 2) and table.keypoints.dtype == np.float32
    assert table.keypoints[0, 1].tolist() == [61.5, 42.25] and table.keypoints[0, 2].tolist() == [
        0,
        0,
    ]
    # hidden joints (1) are labeled, as seen ones (2) are
    assert table.visibility[0, :4].tolist() == [2, 1, 0, 2]
    assert table.box_wh[1].tolist() == [60, 40]
    assert table.score.tolist() == [1, 1] and table.box_source == "gt" and table.has_keypoints
    # 61 x 41 becomes 60 x 40 by HRNet's clipping; then 3:4, a margin of 1.25 and the unit of 200
    assert table.center[1].tolist() == [20 + 30, 30 + 20]
    assert np.allclose(table.scale[1], np.array([60, 80]) * 1.25 / 200)


def test_read_table_other_person_category_id_is_used(annotated):
    table = annotated(
        [person(1, category_id=7), person(2, category_id=1)],
        categories=[{"id": 1, "name": "dog"}, {"id": 7, "name": "person"}],
    )
    assert table.ann_ids.tolist() == [1] and table.dropped == {"of another category": 1}


def test_read_table_keeps_the_file_order(annotated):
    assert annotated(
        [person(n, image_id=(5, 70)[n % 2], bbox=[1, 1, 9, 9]) for n in (9, 2, 7, 4)]
    ).ann_ids.tolist() == [9, 2, 7, 4]


@pytest.mark.parametrize(
    "box, wanted",
    [
        ([10, 20, 100, 200], [10, 20, 99, 199]),  # the last pixel is x + w - 1
        ([-10, -20, 100, 200], [0, 0, 99, 199]),  # HRNet moves the corner and keeps the size
        ([600, 400, 100, 200], [600, 400, 39, 79]),  # the last pixel of the image is 639, 479
        ([10.5, 20.25, 100.5, 200.5], [10.5, 20.25, 99.5, 199.5]),
        ([639, 0, 1, 100], [639, 0, 0, 99]),
        ([0, 0, 1e9, 1e9], [0, 0, 639, 479]),
    ],
)
def test_read_table_clips_boxes_to_the_image(annotated, box, wanted):
    table = annotated([person(bbox=box)])
    x, y, width, height = wanted
    assert table.center[0].tolist() == [x + width / 2, y + height / 2]
    fitted = max(width, height * 0.75), max(height, width / 0.75)
    assert np.allclose(table.scale[0], np.array(fitted) * 1.25 / 200)


@pytest.mark.parametrize(
    "box",
    [
        [10, 20, 0, 50],
        [10, 20, 50, 0],
        [10, 20, -5, 50],
        [640, 20, 30, 50],
        [10, 480, 30, 50],
        [1000, 1000, 30, 50],
        [10, 20, 1, 1],
        [639, 479, 30, 50],
        [639.5, 100, 30, 50],
    ],
)
def test_read_table_box_outside_image_raises(annotated, box):
    text = refusal(annotated, [person(1), person(42, bbox=box), person(43, bbox=box)])
    assert (
        "person_keypoints_val2017.json: annotation 42 and 1 more has a bbox without area inside its"
        " image; correct or remove it" in text
    )


def test_read_table_invalid_box_of_dropped_person_is_ignored(annotated):
    dropped = [
        person(2, area=0, bbox=[0, 0, 0, 0]),
        person(3, iscrowd=1, bbox=None),
        person(4, keypoints=[0] * 51, bbox=[]),
    ]
    assert annotated([person(1), *dropped]).ann_ids.tolist() == [1]


# refused files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, fault",
    [
        (person(42, keypoints=JOINTS[:-3]), "has 48 keypoint numbers, expected 51 (17 joints x 3)"),
        (person(42, keypoints=JOINTS + [1, 1, 1]), "has 54 keypoint numbers"),
        (person(42, keypoints=[]), "has 0 keypoint numbers"),
        (person(42, image_id=6), "belongs to image 6, which 'images' does not list"),
        (person(42, image_id=None), "belongs to image null"),
        (person(42, image_id=[5]), "belongs to image [5]"),
        (person(42, bbox=[1, 2, 3]), "has 3 numbers in its bbox"),
        (person(42, bbox=[1, 2, 3, 4, 5]), "has 5 numbers in its bbox"),
        (person(42, bbox=None), "has bbox null, expected a list of 4 numbers"),
        (
            person(42, bbox=[1, 2, 3, "wide"]),
            "has 'wide' as number 3 of its bbox, expected a number",
        ),
        (person(42, bbox=[1, 2, 3, None]), "has null as number 3 of its bbox, expected a number"),
        (person(42, bbox=[1, 2, [3], 4]), "has [3] as number 2 of its bbox"),
        (person(42, keypoints=[[1, 2, 3]] * 17), "has 17 keypoint numbers"),
        (person(42, keypoints=None), "has keypoints null, expected a list of 51 numbers"),
        (person(42, keypoints=JOINTS[:-1] + [None]), "has null as number 50 of its keypoints"),
        (
            person(42, keypoints=JOINTS[:-1] + ["2"]),
            "has '2' as number 50 of its keypoints, expected a number",
        ),
        (
            person(42, keypoints=[[value] for value in JOINTS]),
            "has [50.0] as number 0 of its keypoints",
        ),
        (person(42, bbox=[[1], [2], [3], [4]]), "has [1] as number 0 of its bbox"),
        (person(42, area="big"), "has area 'big', expected a number"),
        (person(42, area=None), "has area null, expected a number"),
        (person(42, iscrowd="no"), "has iscrowd 'no', expected 0 or 1"),
        (person(42, category_id="person"), "has category_id 'person', expected a whole number"),
        (without(person(42), "bbox"), "has no 'bbox'; a keypoint annotation needs"),
        (without(person(42), "keypoints"), "has no 'keypoints'"),
        (without(person(42), "image_id"), "has no 'image_id'"),
        (without(person(42), "category_id"), "has no 'category_id'"),
    ],
)
def test_read_table_invalid_annotation_raises(annotated, entry, fault):
    # enough valid ones that a wrong number of values could be reshaped without an error
    text = refusal(annotated, [person(1), person(2), person(3), entry])
    assert "annotations/person_keypoints_val2017.json: annotation 42 " in text and fault in text


@pytest.mark.parametrize("boxes", [[[1, 2, 30]] * 4, [[1, 2, 30, 40, 50, 60]] * 2])
def test_read_table_boxes_of_wrong_length_raise(annotated, boxes):
    """Four boxes of three numbers are three boxes of four to NumPy's reshape."""
    assert "annotation 42 has" in refusal(
        annotated, [person(42 + i, bbox=box) for i, box in enumerate(boxes)]
    )


@pytest.mark.parametrize("number", [None, "x", 1.5e300, [1], 2**70])
def test_read_table_invalid_id_raises(annotated, number):
    # all alike, which NumPy could take for one more dimension
    refusal(annotated, [person(number), person(number)])
    text = refusal(annotated, [person(1), person(number)])
    name = "entry 1 of 'annotations'" if number is None else "annotation "
    assert (
        f"person_keypoints_val2017.json: {name}" in text
        and " has id " in text
        and "expected a whole number" in text
    )


def test_read_table_annotation_without_id_raises(annotated):
    text = refusal(annotated, [person(1), without(person(42), "id")])
    assert "entry 1 of 'annotations' has no 'id'; a keypoint annotation needs id, image_id" in text


def test_read_table_null_annotation_raises(annotated):
    text = refusal(annotated, [person(1), None])
    assert "entry 1 of 'annotations' (null) is not an object; correct or remove it" in text


def test_read_table_number_beyond_double_raises(annotated):
    text = refusal(annotated, [person(42, bbox=[10, 20, 10**309, 40])])
    assert "not valid JSON (number is infinity when parsed as double: line 1 column " in text


@pytest.mark.parametrize("field", ["bbox", "keypoints"])
def test_read_table_nan_raises(annotated, field):
    entry = person(42)
    entry[field] = [float("nan"), *entry[field][1:]]
    text = refusal(annotated, [person(1), entry])
    assert (
        "annotations/person_keypoints_val2017.json: the annotation file holds NaN in line 1,"
        " column "
        in text
        and f'"{field}": [NaN' in text
    )


@pytest.mark.parametrize("entry", [None, 3, "person", []])
def test_read_table_annotation_without_mapping_raises(annotated, entry):
    message = (
        f"person_keypoints_val2017.json: entry 0 of 'annotations' ({escape_name(entry)}) is not"
        " an object"
    )
    assert message in refusal(annotated, [entry])


@pytest.mark.parametrize(
    "categories",
    [(), [{"id": 1, "name": "dog"}], None, "person", {"person": 1}, [3], [{"name": "person"}]],
)
def test_read_table_without_category_person_raises(annotated, categories):
    assert "person_keypoints_val2017.json: has no category 'person'" in refusal(
        annotated, [person()], categories=categories
    )


@pytest.mark.parametrize("annotations", [None, 3, {"1": person()}, "all"])
def test_read_table_annotations_without_list_raises(annotated, annotations):
    assert "person_keypoints_val2017.json: 'annotations' is not a list" in refusal(
        annotated, annotations
    )


@pytest.mark.parametrize(
    "images, fault",
    [
        ([], "has no list 'images'"),
        (None, "has no list 'images'"),
        ({"5": 1}, "has no list 'images'"),
        (
            [without(IMAGES[0], "file_name")],
            (
                "entry 0 of 'images' (70) has no 'file_name'; each needs id, file_name, width and"
                " height"
            ),
        ),
        ([without(IMAGES[0], "id")], "entry 0 of 'images' (b/seventy.jpg) has no 'id'"),
        ([without(IMAGES[0], "width")], "(b/seventy.jpg) has no 'width'"),
        (
            [{**IMAGES[0], "height": "tall"}],
            "(b/seventy.jpg) has height 'tall', expected a number of pixels",
        ),
        ([{**IMAGES[0], "id": "x"}], "has id 'x', expected a whole number"),
        ([{**IMAGES[0], "id": 1.5}], "has id 1.5, expected a whole number"),
        ([3], "entry 0 of 'images' (3) is not an object"),
        ([{**IMAGES[0], "file_name": 7}], "has a file_name that is not text"),
        ([{**IMAGES[0], "file_name": ""}], "has a file_name that is not text"),
    ],
)
def test_read_table_invalid_images_raise(annotated, images, fault):
    text = refusal(annotated, [person()], images=images)
    assert "annotations/person_keypoints_val2017.json: " in text and fault in text


@pytest.mark.parametrize(
    "text, fault",
    [
        ("", "not valid JSON"),
        ('{"images": [', "not valid JSON"),
        ("[]", "has no list 'images'"),
        ("null", "has no list 'images'"),
    ],
)
def test_read_table_invalid_file_raises(tmp_path, experiment, text, fault):
    write(tmp_path / "annotations" / "person_keypoints_val2017.json", text)
    assert fault in refusal(coco.read_table, experiment(), "val2017", detections=False)


def test_read_table_missing_file_raises(tmp_path, experiment):
    assert (
        refusal(coco.read_table, experiment(), "val2017", detections=False)
        == f"{tmp_path}/annotations/person_keypoints_val2017.json: cannot read the annotation file"
        " (No such file or directory); check DATASET.ROOT and the set's name; download it: python"
        f" tools/prepare_data.py coco --root {tmp_path} --only annotations"
    )


@pytest.mark.parametrize(
    "split, part",
    [("train2017", "annotations"), ("val2017", "annotations"), ("test-dev2017", "image_info")],
)
def test_read_table_missing_file_names_prepare_data(tmp_path, experiment, split, part):
    detections = split.startswith("test")
    text = refusal(coco.read_table, experiment(), split, detections=detections)
    assert text.endswith(
        f"; download it: python tools/prepare_data.py coco --root {tmp_path} --only {part}"
    )


def test_read_table_missing_file_of_unknown_split_names_no_command(experiment):
    assert refusal(coco.read_table, experiment(), "val2O17", detections=False).endswith(
        "check DATASET.ROOT and the set's name"
    )


def test_read_table_missing_synthetic_file_names_make_synthetic(tmp_path, experiment):
    cfg = experiment("DATASET.ROOT", str(tmp_path / "synthetic"))
    text = refusal(coco.read_table, cfg, "val2017", detections=False)
    assert text.endswith(
        f"; create it: python tools/make_synthetic.py --format coco --out {tmp_path}/synthetic"
    )


@pytest.mark.parametrize(
    "form, options", [("jpg", "--only val2017"), ("zip", "--only val2017 --zipped")]
)
def test_image_folder_missing_names_prepare_data(tmp_path, experiment, form, options):
    folder = datasets.image_folder(experiment("DATASET.DATA_FORMAT", form), "val2017")
    assert refusal(folder.check).endswith(
        f"; download it: python tools/prepare_data.py coco --root {tmp_path} {options}"
    )
    assert refusal(pickle.loads(pickle.dumps(folder)).check) == refusal(folder.check)


def test_read_table_no_person_left_raises(annotated):
    text = refusal(annotated, [person(iscrowd=1)])
    assert (
        "no person is left to use; 0 persons in 0 of 2 images, ground-truth boxes; dropped 1 crowd"
        " regions" in text
    )
    assert "no person is left" in refusal(annotated, [])


# detections ---------------------------------------------------------------------------------------


def box(**fields):
    return {"image_id": 5, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.9, **fields}


def test_read_table_detections_are_filtered_and_counted(detected):
    table = detected(
        [
            box(score=0.05),
            box(category_id=2),
            box(image_id=4),
            box(bbox=[600.5, -20, 120, 160], score=0.25),
            box(bbox=[1, 2, 0, 4]),
            box(image_id=70),
            box(score=0.1),
        ]
    )
    assert table.ann_ids.tolist() == [3, 5, 6]  # the place in the file
    assert table.score.tolist() == [0.25, 0.9, 0.1]
    assert (
        table.image_ids[table.image_index].tolist() == [5, 70, 5]
        and table.image_name(1) == "b/seventy.jpg"
    )
    assert (
        not table.keypoints.any()
        and not table.visibility.any()
        and not table.has_keypoints
        and table.box_source == "made_boxes"
    )
    # not clipped
    assert table.center[0].tolist() == [660.5, 60] and np.allclose(
        table.scale[0], np.array([120, 160]) * 1.25 / 200
    )
    assert table.dropped == {
        "scores below TEST.IMAGE_THRE 0.1": 1,
        "of another category": 1,
        "boxes without area": 1,
        "of images that person_keypoints_val2017.json does not list": 1,
    }
    assert table.summary().startswith("3 persons in 2 of 2 images, boxes of made_boxes; dropped ")


def test_read_table_detections_apply_image_thre(detected):
    boxes = [box(score=score / 10) for score in range(10)]
    assert len(detected(boxes, "TEST.IMAGE_THRE", 0.0)) == 10
    assert detected(boxes, "TEST.IMAGE_THRE", 0.5).ann_ids.tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "entry, fault",
    [
        (without(box(), "bbox"), "'bbox'"),
        (without(box(), "score"), "'score'"),
        (without(box(), "category_id"), "'category_id'"),
        (without(box(), "image_id"), "'image_id'"),
        (box(bbox=[1, 2, 3]), "has bbox [1, 2, 3], expected x, y, width and height"),
        (box(bbox=[1, 2, 3, 4, 5]), "has bbox [1, 2, 3, 4, 5], expected"),
        (box(bbox=None), "has bbox null, expected"),
        (box(bbox=[1, 2, "w", 4]), "'w'"),
        (box(score="high"), "has score 'high', expected a number"),
        (box(score=None), "has score null, expected a number"),
        (box(image_id=[5]), "has image_id [5], expected a whole number"),
        (box(bbox=[1, 2, None, 4]), "has bbox [1, 2, None, 4], expected"),
        (3, "it is not an object"),
        (None, "it is not an object"),
    ],
)
def test_read_table_invalid_detection_raises(detected, entry, fault):
    text = refusal(detected, [box(), box(score=0.01), entry, box()])
    assert "boxes/made_boxes.json: entry 2 is not a detection (" in text and fault in text


def test_read_table_invalid_detection_file_raises(tmp_path, detected, experiment):
    hint = "TEST.COCO_BBOX_FILE takes a JSON list of {image_id, category_id, bbox, score}"
    for content, fault in [
        ({"annotations": []}, "is not a list"),
        ("[", "not valid JSON"),
        ("", "not valid JSON"),
    ]:
        text = refusal(detected, content)
        assert f"{tmp_path}/boxes/made_boxes.json: " in text and fault in text and hint in text
    text = refusal(detected, [box(bbox=[1, float("nan"), 3, 4])])
    assert "boxes/made_boxes.json: the detection file holds NaN" in text
    assert f"{tmp_path}/boxes/made_boxes.json: no person is left to use" in refusal(
        detected, [box(score=0.0)]
    )
    assert f"{tmp_path}/boxes/made_boxes.json: no person is left to use" in refusal(detected, [])
    text = refusal(
        coco.read_table,
        experiment("TEST.COCO_BBOX_FILE", "nowhere.json"),
        "val2017",
        detections=True,
    )
    assert (
        "nowhere.json: cannot read the detection file (No such file or directory)" in text
        and "TEST.USE_GT_BBOX True does without" in text
    )
    assert "; tools/make_boxes.py writes one, " in text


def test_read_table_without_detection_file_raises(tmp_path, experiment):
    write(tmp_path / "annotations" / "person_keypoints_val2017.json", {"images": IMAGES})
    text = refusal(
        coco.read_table,
        experiment("TEST.USE_GT_BBOX", False),
        "val2017",
        detections=True,
        kind=ConfigError,
    )
    assert text.startswith(
        "TEST.COCO_BBOX_FILE is empty; give a detection file, or TEST.USE_GT_BBOX True"
    )
    assert text.endswith("; tools/make_boxes.py writes a detection file")


# test sets ----------------------------------------------------------------------------------------


def test_read_table_test_split_uses_detections(tmp_path, detected, experiment):
    table = detected([box(), box(image_id=70)], split="test-dev2017")
    assert len(table) == 2 and not table.has_keypoints
    # test-dev2017 is a part of test2017
    assert (
        datasets.image_folder(experiment(), "test-dev2017").location
        == tmp_path / "images" / "test2017"
    )


def test_read_table_test_split_with_ground_truth_boxes_raises(tmp_path, experiment):
    write(tmp_path / "annotations" / "image_info_test-dev2017.json", {"images": IMAGES})
    text = refusal(
        coco.read_table,
        experiment("DATASET.TEST_SET", "test-dev2017"),
        "test-dev2017",
        detections=False,
        kind=ConfigError,
    )
    assert "image_info_test-dev2017.json: set test-dev2017 has no annotations" in text
    assert (
        "set TEST.USE_GT_BBOX False and TEST.COCO_BBOX_FILE" in text
        and "tools/make_boxes.py" in text
    )


def test_image_folder_follows_split_and_format(tmp_path, experiment):
    assert (
        datasets.image_folder(experiment(), "train2017").location
        == tmp_path / "images" / "train2017"
    )
    images = datasets.image_folder(experiment("DATASET.DATA_FORMAT", "zip"), "val2017")
    assert images.location == tmp_path / "images" / "val2017.zip" and images.zipped
    images = datasets.image_folder(
        experiment("DATA_DIR", "/data", "DATASET.ROOT", "coco"), "val2017"
    )
    assert images.location.as_posix() == "/data/coco/images/val2017"


def test_load_split_uses_detections_for_testing_only(annotated, detected, tmp_path, experiment):
    annotated([person(1), person(2)], split="train2017")
    detected([box()])
    cfg = experiment(
        "TEST.USE_GT_BBOX",
        False,
        "TEST.COCO_BBOX_FILE",
        str(tmp_path / "boxes" / "made_boxes.json"),
    )
    assert (
        len(load_split(cfg, train=True)[0]) == 2
        and load_split(cfg, train=False)[0].box_source == "made_boxes"
    )


def test_select_data_drops_persons_with_distant_keypoints(annotated, experiment):
    near, far = (
        [value for _ in range(17) for value in (60, 120, 2)],
        [value for _ in range(17) for value in (600, 400, 2)],
    )
    annotated([person(1, keypoints=near), person(2, keypoints=far)], split="train2017")
    table, _ = load_split(experiment("DATASET.SELECT_DATA", True), train=True)
    assert table.ann_ids.tolist() == [1] and table.dropped == {
        "joints far from the box's center, DATASET.SELECT_DATA": 1
    }
    assert len(load_split(experiment(), train=True)[0]) == 2


# names --------------------------------------------------------------------------------------------


def test_packed_names_equal_the_list():
    names = ["", "a.jpg", "größe/日本.png", "x" * 300, "\udcff.jpg"]
    packed = PackedStrings.pack(names)
    assert len(packed) == 5 and [packed[i] for i in range(5)] == names and list(packed) == names
    with pytest.raises(IndexError):
        packed[5]


# the real data next to the project ----------------------------------------------------------------


def shared_config(tmp_path, root, *overrides):
    (tmp_path / "shared.yaml").write_text(
        "DATASET: {DATASET: coco, TRAIN_SET: train2017, TEST_SET: val2017}\n"
        "MODEL: {IMAGE_SIZE: [192, 256], HEATMAP_SIZE: [48, 64]}\n"
    )
    return config.load(tmp_path / "shared.yaml", ["DATASET.ROOT", str(root), *overrides])


def test_load_split_real_subset_has_known_counts(tmp_path, shared):
    cfg = shared_config(tmp_path, shared / "data" / "coco_subset", "TEST.USE_GT_BBOX", True)
    train, images = load_split(cfg, train=True)
    assert len(train) == 225 and train.has_keypoints
    val, _ = load_split(cfg, train=False)
    assert len(val) == 325
    assert images.read(train.image_name(0)).ndim == 3


def test_load_split_real_subset_detections_have_known_counts(tmp_path, shared):
    file = (
        shared
        / "data"
        / "coco_subset"
        / "person_detection_results"
        / "made_val2017_detections_person.json"
    )
    cfg = shared_config(
        tmp_path,
        shared / "data" / "coco_subset",
        "TEST.COCO_BBOX_FILE",
        str(file),
        "TEST.IMAGE_THRE",
        0.0,
    )
    table, _ = load_split(cfg, train=False)
    entries = json.loads(file.read_text())
    assert len(table) + sum(table.dropped.values()) == len(entries) and len(table) > 300
    assert table.box_source == "made_val2017_detections_person" and (table.scale > 0).all()
    first = int(table.ann_ids[0])
    assert (
        table.score[0] == entries[first]["score"]
        and table.image_ids[table.image_index[0]] == entries[first]["image_id"]
    )


@pytest.mark.slow
def test_read_table_full_coco_has_official_counts(tmp_path, shared):
    """The official counts of labeled persons that have an area: none may be lost, and none of
    the real boxes be refused.
    """
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        name = f"person_keypoints_{split}.json"
        with (
            gzip.open(shared / "data" / "coco_full_keypoints" / f"{name}.gz") as packed,
            open(tmp_path / "annotations" / name, "wb") as file,
        ):
            shutil.copyfileobj(packed, file)
    cfg = shared_config(tmp_path, tmp_path, "TEST.USE_GT_BBOX", True)
    train, _ = load_split(cfg, train=True)
    val, _ = load_split(cfg, train=False)
    assert (len(train), len(val)) == (149_813, 6_352)
    assert (
        np.isfinite(train.keypoints).all()
        and (train.scale > 0).all()
        and (train.visibility.sum(axis=1) > 0).all()
    )


def test_read_table_category_id_is_that_of_the_file(annotated, tmp_path):
    """Persons of category 7 are read as such, so that their results carry a 7 too and score."""
    table = annotated(
        [person(category_id=7), person(2, category_id=1)],
        categories=({"id": 1, "name": "dog"}, {"id": 7, "name": "person"}),
    )
    assert (
        table.category_id == 7
        and table.ann_ids.tolist() == [1]
        and table.dropped == {"of another category": 1}
    )


def test_average_precision_other_category_id_scores(tmp_path):
    from poise.evaluation import average_precision, coco_results

    truth = {
        "images": IMAGES,
        "categories": [{"id": 7, "name": "person"}, {"id": 8, "name": "dog"}],
        "annotations": [
            person(category_id=7),
            {"id": 9, "image_id": 5, "category_id": 8, "keypoints": [1, 2, 2]},
        ],
    }
    keypoints = np.array(JOINTS).reshape(1, 17, 3)
    assert average_precision(truth, coco_results([5], keypoints, np.ones(1), category_id=7))[
        "AP"
    ] == pytest.approx(1)
    assert (
        average_precision(truth, coco_results([5], keypoints, np.ones(1), category_id=1))["AP"] == 0
    )


def test_read_table_detections_outside_image_are_counted(detected):
    inside = {"image_id": 5, "category_id": 1, "bbox": [600, 400, 100, 100], "score": 0.9}
    table = detected(
        [
            inside,
            {**inside, "bbox": [640, 0, 10, 10]},
            {**inside, "bbox": [-20, 5, 20, 9]},
            {**inside, "bbox": [1, 1, 0, 5]},
        ]
    )
    assert len(table) == 1 and table.dropped == {
        "boxes outside their image": 2,
        "boxes without area": 1,
    }


def test_read_table_duplicate_image_id_raises(annotated):
    assert "two entries of 'images' have the same id" in refusal(
        annotated, [person()], images=[*IMAGES, {**IMAGES[0], "file_name": "other.jpg"}]
    )


def test_read_table_keypoints_beyond_float32_raise(annotated):
    assert "annotation 3 has a keypoint that is not finite" in refusal(
        annotated, [person(3, keypoints=[1e300, *JOINTS[1:]])]
    )
