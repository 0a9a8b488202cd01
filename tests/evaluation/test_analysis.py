"""Test tools/analyze.py: groups, keypoints, scores, the page and invalid input."""

import gzip
import importlib.util
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from poise import evaluation
from poise.errors import DataError, run_tool
from poise.evaluation import keypoint_ap
from poise.evaluation.analysis import (
    breakdowns,
    curves,
    matching,
    report,
    worst_images,
)
from poise.evaluation.analysis import (
    errors as error_kinds,
)
from poise.evaluation.analysis.per_keypoint import per_joint
from support.custom_datasets import make_set
from support.paths import ROOT
from support.planted_errors import (
    FRONT,
    people,
    perfect,
    result_list,
    similarity_distance,
    truth_of,
    with_keypoints,
    with_more,
)

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="needs matplotlib (pip install poise[plot])",
)


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, *arguments):
    """Return the exit status of tools/analyze.py."""
    monkeypatch.setattr("sys.argv", ["analyze.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        run_tool(tool("analyze").main)
    return end.value.code or 0


@pytest.fixture
def files(tmp_path):
    """Write annotations, two result files (one names its box source) and images, with a mirrored
    person, a missed one and a false positive.
    """
    content = people(images=6)
    truth = truth_of(content)
    found = perfect(truth).only(np.arange(12) != 5)
    keypoints = found.keypoints.copy()
    keypoints[0] = keypoints[0][truth.skeleton.flip_indices]
    found = with_more(
        with_keypoints(found, keypoints),
        np.array([3]),
        (FRONT * 50 + [320, 500])[None],
        np.array([0.8]),
    )
    (tmp_path / "images").mkdir()
    for image in content["images"]:
        cv2.imwrite(
            str(tmp_path / "images" / image["file_name"]), np.full((300, 700, 3), 60, np.uint8)
        )
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "keypoints_val2017_results_gt_boxes.json").write_text(
        json.dumps(result_list(found))
    )
    (tmp_path / "keypoints_val2017_results_detector.json").write_text(
        json.dumps(result_list(perfect(truth)))
    )
    return tmp_path


def test_area_groups_equal_hand_figures():
    """Half of the persons are small and badly predicted."""
    content = people(images=10)
    for annotation in content["annotations"][::2]:
        annotation["area"] = 50.0**2
    truth = truth_of(content)
    found = perfect(truth)
    keypoints = found.keypoints.copy()
    small = np.arange(0, 20, 2)
    keypoints[small, :, 1] += similarity_distance(0.62, 50.0**2)
    found = with_keypoints(found, keypoints)
    sizes = breakdowns.breakdown(found)["size"]
    assert sizes["32² to 64²"] == pytest.approx(
        {"persons": 10, "AP": 0.3, "AP .5": 1, "AP .75": 0, "found": 1, "oks": 0.62}
    )
    # from 0.65 on the small ones are wrong, but that is no fault of the large ones
    assert sizes["96² to 128²"] == pytest.approx(
        {"persons": 10, "AP": 1, "AP .5": 1, "AP .75": 1, "found": 1, "oks": 1}
    )
    assert sizes["above 256²"]["AP"] == -1 and sizes["above 256²"]["persons"] == 0
    # twenty false positives with the best scores: ten count in each group, twenty in all persons
    more = with_more(
        perfect(truth),
        np.arange(10),
        np.broadcast_to(FRONT * 60 + [300, 3000], (10, 17, 2)),
        np.full(10, 0.95),
    )
    more = with_more(
        more,
        np.arange(10),
        np.broadcast_to(FRONT * 60 + [300, 4000], (10, 17, 2)),
        np.full(10, 0.95),
    )
    assert breakdowns.breakdown(more)["size"]["32² to 64²"]["AP"] == pytest.approx(10 / 20)
    assert matching.average_precision(more)["AP"] == pytest.approx(20 / 40)


def test_groups_false_positives_count_for_their_size():
    """Duplicates of small persons halve the precision of small persons only."""
    content = people(images=10)
    for annotation in content["annotations"][::2]:
        annotation["area"] = 50.0**2
    truth = truth_of(content)
    found = perfect(truth)
    small = np.arange(0, 20, 2)
    near = found.keypoints[small, :, :2].copy()
    near[:, :, 1] += similarity_distance(0.3, 50.0**2)
    more = with_more(found, truth.persons.image[small], near, np.full(10, 0.95))
    assert more.pairs.like.tolist() == [*range(20), *small]
    sizes = breakdowns.breakdown(more)["size"]
    assert sizes["32² to 64²"]["AP"] == pytest.approx(0.5) and sizes["96² to 128²"][
        "AP"
    ] == pytest.approx(1)
    # the person is found at OKS 0.5, though a worse prediction took her at 0.1
    assert sizes["32² to 64²"]["found"] == 1 and sizes["32² to 64²"]["oks"] == pytest.approx(0.3)


def test_groups_all_persons_equal_coco_ap(files):
    """All persons as one group have the AP of the dataset."""
    truth = matching.load_ground_truth(files / "truth.json")
    found = matching.load_results(files / "keypoints_val2017_results_gt_boxes.json", truth)
    figures = breakdowns.figures_of(found, np.ones(12, bool))
    want = evaluation.average_precision(
        files / "truth.json", files / "keypoints_val2017_results_gt_boxes.json"
    )
    assert [figures["AP"], figures["AP .5"], figures["AP .75"]] == pytest.approx(
        list(want.values())[:3], abs=1e-12
    )


def test_groups_crowding_and_keypoint_counts_equal_hand_figures():
    content = people(images=2, persons=2)
    annotations = content["annotations"]
    # overlaps the first
    annotations[1]["bbox"] = [annotations[0]["bbox"][0] + 5, *annotations[0]["bbox"][1:]]
    annotations[2]["keypoints"][2::3] = [2, 1, 1] + [0] * 14
    truth = truth_of(content)
    assert breakdowns.overlapping(truth).tolist() == [1, 1, 0, 0]
    values = breakdowns.group_values(truth)
    assert values["labelled joints"][0].tolist() == [17, 17, 3, 17] and values["visible joints"][
        0
    ].tolist() == [17, 17, 1, 17]
    made = breakdowns.breakdown(perfect(truth))
    assert {group: figures["persons"] for group, figures in made["crowding"].items()} == {
        "alone": 2,
        "1 or 2 others": 2,
        "3 or more": 0,
    }
    assert (
        made["visible joints"]["1 to 5"]["persons"] == 1
        and made["labelled joints"]["16 or more"]["persons"] == 3
    )
    # every person is in one group of each breakdown
    assert all(
        sum(figures["persons"] for figures in groups.values()) == 4 for groups in made.values()
    )


def test_per_joint_equals_hand_figures(files):
    truth = truth_of(people(images=10))
    found = perfect(truth)
    keypoints = found.keypoints.copy()
    keypoints[:5, 9, 1] += similarity_distance(0.6)[9]
    keypoints[5:10, 9, 1] += similarity_distance(0.3)[9]
    figures = per_joint(with_keypoints(found, keypoints))
    others = np.arange(17) != 9
    assert (
        (figures["labelled"] == 20).all()
        and figures["AP"][others] == pytest.approx(1)
        and figures["pck@0.05"][others] == pytest.approx(1)
    )
    assert figures["similarity"][9] == pytest.approx((5 * 0.6 + 5 * 0.3 + 10) / 20) and figures[
        "pck"
    ][9] == pytest.approx(15 / 20)
    # five with 0.6, which count up to that threshold, five never, then ten
    reached = keypoint_ap.RECALLS <= 0.75
    # the precision after the last is 15 / 20
    low = (np.where(keypoint_ap.RECALLS <= 0.25, 1, 0.75) * reached).sum() / 101
    high = (keypoint_ap.RECALLS <= 0.5).sum() / 101 * 0.5
    assert figures["AP .5"][9] == pytest.approx(low) and figures["AP .75"][9] == pytest.approx(high)
    # the same as the table of tools/test.py, from files with persons who were not found
    truth = matching.load_ground_truth(files / "truth.json")
    for name in ("gt_boxes", "detector"):
        path = files / f"keypoints_val2017_results_{name}.json"
        mine, table = (
            per_joint(matching.load_results(path, truth)),
            evaluation.per_joint_pck(files / "truth.json", path),
        )
        assert all(mine[key] == pytest.approx(table[key], abs=1e-12) for key in table)


def test_per_joint_never_labeled_keypoint_is_nan():
    content = people(images=2)
    for annotation in content["annotations"]:
        annotation["keypoints"][2] = 0
    figures = per_joint(perfect(truth_of(content)))
    assert (
        figures["labelled"][0] == 0
        and all(np.isnan(figures[key][0]) for key in figures if key != "labelled")
        and figures["AP"][1] == pytest.approx(1)
    )


def test_curves_equal_hand_figures():
    truth = truth_of(people(images=50))
    found = perfect(truth)
    keypoints, wrong = found.keypoints.copy(), np.arange(100) >= 60
    keypoints[wrong, :, 1] += 4000.0
    keypoints[:, :, 2] = np.where(wrong, 0.1, 0.7)[:, None]
    found = with_keypoints(found, keypoints)
    curve = curves.precision_recall(found)
    assert curve["OKS 0.5"][:61] == pytest.approx([1] * 61) and curve["OKS 0.5"][61:] == [0] * 40
    assert np.mean(curve["mean of .5 to .95"]) == pytest.approx(
        matching.average_precision(found)["AP"]
    )
    scores = curves.calibration(found)
    assert scores["persons"]["count"] == [10] * 10 and scores["persons"]["value"] == pytest.approx(
        [0] * 4 + [1] * 6
    )
    lowest = np.linspace(0.9, 0.5, 100)[::-1][:10].mean()
    assert (
        scores["persons"]["score"][0] == pytest.approx(lowest)
        and scores["persons"]["correlation"] > 0.8
    )
    error = np.average([*(np.linspace(0.9, 0.5, 100)[60:]), *(1 - np.linspace(0.9, 0.5, 100)[:60])])
    assert scores["persons"]["error"] == pytest.approx(error)
    # joints only of those who found somebody: all of these are right, with a score of 0.7
    assert (
        scores["joints"]["value"] == pytest.approx([1] * 10)
        and scores["joints"]["error"] == pytest.approx(0.3)
        and scores["joints"]["correlation"] is None
    )
    # MSPN's scores go beyond 1: no calibration error, but a rank correlation
    beyond = curves._reliability(np.array([0.2, 1.4]), np.array([0.0, 1.0]))
    assert beyond["error"] is None and beyond["correlation"] == pytest.approx(1)


def test_operating_point_equals_hand_figures():
    truth = truth_of(people(images=5))
    found = perfect(truth)
    made = with_more(
        found,
        np.arange(5),
        np.broadcast_to(FRONT * 60 + [300, 3000], (5, 17, 2)),
        np.array([0.95, 0.1, 0.1, 0.1, 0.1]),
    )
    point = worst_images.operating_point(made)
    assert (point.score, point.precision, point.recall) == (
        pytest.approx(0.5),
        pytest.approx(10 / 11),
        1,
    )
    assert worst_images.losses(made, point.score).tolist() == pytest.approx(
        [1, 0, 0, 0, 0]
    ) and worst_images.losses(made, 0).tolist() == pytest.approx([1] * 5)
    assert worst_images.losses(found.only(np.arange(10) != 9), 0.5).tolist() == pytest.approx(
        [0, 0, 0, 0, 1]
    )


def test_operating_point_lies_on_the_curve():
    """A poor duplicate scored above the right prediction is one false positive at OKS 0.5."""
    truth = truth_of(people(images=5))
    found = perfect(truth)
    poor = found.keypoints[:4, :, :2].copy()
    poor[:, :, 1] += similarity_distance(0.3)
    made = with_more(found, truth.persons.image[:4], poor, np.full(4, 0.95))
    point = worst_images.operating_point(made)
    assert (point.score, point.precision, point.recall) == (
        pytest.approx(0.5),
        pytest.approx(10 / 14),
        1,
    )
    assert max(curves.precision_recall(made)["OKS 0.5"]) == pytest.approx(point.precision)


def test_analyze_images_without_prediction_are_reported(files, monkeypatch, capsys):
    results = json.loads((files / "keypoints_val2017_results_detector.json").read_text())
    (files / "part.json").write_text(
        json.dumps([result for result in results if result["image_id"] <= 2])
    )
    made = report.build_report(
        [files / "part.json", files / "keypoints_val2017_results_detector.json"],
        files / "truth.json",
    )
    assert [note for note in made.notes if "no predictions" in note] == [
        "part.json: no predictions in 4 of 6 images with labeled persons; these persons count as"
        " missed, even if the images were not tested."
    ]
    assert "part.json: no predictions in 4 of 6 images" in report.format_summary(made)


class Page(HTMLParser):
    """Collect the tags, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self.ids = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on"), "an event handler is a script"

    def handle_data(self, data):
        self.text += data


@needs_matplotlib
def test_analyze_writes_page_and_json(files, monkeypatch, capsys):
    assert (
        run(
            monkeypatch,
            "--results",
            files / "keypoints_val2017_results_gt_boxes.json",
            "--annotations",
            files / "truth.json",
            "--images",
            files / "images",
            "--compare",
            files / "keypoints_val2017_results_detector.json",
            "--output",
            files / "out",
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert (
        "boxes: ground truth" in shown
        and "boxes: detector" in shown
        and re.search(r"inversion +\+0\.\d+ +16\b", shown)
    )
    content = json.loads((files / "out/analysis.json").read_text())
    first, second = content["files"]
    assert (first["boxes"], second["boxes"]) == ("ground truth", "detector") and first[
        "results"
    ] == "keypoints_val2017_results_gt_boxes.json"
    assert first["coco"] == pytest.approx(
        evaluation.average_precision(
            files / "truth.json", files / "keypoints_val2017_results_gt_boxes.json"
        )
    )
    assert second["coco"]["AP"] == pytest.approx(1)
    assert {
        name: first["errors"][name]["count"]
        for name in ("inversion", "background", "missed person")
    } == {"inversion": 16, "background": 1, "missed person": 1}
    assert first["predictions"]["background"] == 1 and first["found persons"] == 11
    # one loses a person, one has a false one, one has mirrored joints; nothing is wrong in the
    # other file
    assert [picture["image_id"] for picture in content["worst pictures"]] == [3, 4, 1]
    lost = [picture["lost"] for picture in content["worst pictures"]]
    assert (
        lost[:2] == [[pytest.approx(1), pytest.approx(0)]] * 2
        and 0.5 < lost[2][0] < 1
        and lost[2][1] == pytest.approx(0)
    )

    text = (files / "out/analysis.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "iframe" not in page.tags and page.tags.count("svg") == 7
    assert all(address.startswith(("data:", "#")) for address in page.addresses) and len(
        page.ids
    ) == len(set(page.ids))
    assert (
        "http" not in text.replace("http-equiv", "")
        and "@import" not in text
        and not re.search(r"url\((?!#)", text)
    )
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    for table in re.findall("<table>.*?</table>", text, re.S):
        cells = {len(re.findall("<t[hd]", row)) for row in table.split("<tr>")[1:]}
        assert len(cells) == 1, table
    assert "prefers-color-scheme: dark" in text and not re.search(r"#0[1-3]0[1-3]0", text)
    for part in (
        "Average precision",
        "AP cost of errors",
        "Keypoint errors",
        "By person",
        "By keypoint",
        "Precision and recall",
        "Score calibration",
        "Worst images",
        "differ most",
    ):
        assert part in page.text
    # three panels for each image, all JPEGs that can be read
    import base64

    pictures = [address for address in page.addresses if address.startswith("data:image/jpeg")]
    assert (
        len(pictures)
        == 3 * (len(content["worst pictures"]) + len(content["pictures that differ most"]))
        > 0
    )
    assert (
        cv2.imdecode(
            np.frombuffer(base64.b64decode(pictures[0].split(",")[1]), np.uint8), cv2.IMREAD_COLOR
        )
        is not None
    )
    before = (files / "out/analysis.html").read_bytes(), (files / "out/analysis.json").read_bytes()
    assert (
        run(
            monkeypatch,
            "--results",
            files / "keypoints_val2017_results_gt_boxes.json",
            "--annotations",
            files / "truth.json",
            "--images",
            files / "images",
            "--compare",
            files / "keypoints_val2017_results_detector.json",
            "--output",
            files / "out",
        )
        == 0
    )
    after = (files / "out/analysis.html").read_bytes(), (files / "out/analysis.json").read_bytes()
    assert after == before


@needs_matplotlib
@pytest.mark.parametrize("length", [3, 24, 40])
@pytest.mark.parametrize("columns", [1, 2])
def test_chart_long_legends_stay_inside(length, columns):
    """Names of 24 letters, the longest of short_names, and longer ones are not clipped."""
    from poise.visualization import charts

    matplotlib = charts.require_matplotlib()
    with matplotlib.rc_context(charts._settings(charts.PAGE)):
        figure, axes = charts.new_figure(8 if columns == 1 else 12, 4.6, 1, columns)
        lines = [
            charts.Curve(f"{'w' * length}: {name}", [0, 1], [0, 1], color)
            for color in range(2)
            for name in ("mean of .5 to .95", "OKS 0.5", "OKS 0.75", "OKS 0.9")
        ]
        for axis in axes.flat:
            charts._draw_lines(axis, charts.PAGE, lines, "recall", "precision")
        figure.draw_without_rendering()
        for axis in axes.flat:
            legend, chart = axis.get_legend().get_window_extent(), axis.get_window_extent()
            assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1
            assert chart.width > 0.75 * figure.bbox.width / columns


@needs_matplotlib
def test_page_markup_in_names_is_escaped(files, monkeypatch, capsys):
    name = "<script>alert(1)</script>&\"'$x_1$.jpg"
    content = json.loads((files / "truth.json").read_text())
    for image in content["images"]:
        image["file_name"] = name
    (files / "truth.json").write_text(json.dumps(content))
    results = files / "<span onclick=x><b>$a_1$ & results.json"
    results.write_bytes((files / "keypoints_val2017_results_gt_boxes.json").read_bytes())
    assert (
        run(
            monkeypatch,
            "--results",
            results,
            "--annotations",
            files / "truth.json",
            "--compare",
            files / "keypoints_val2017_results_detector.json",
        )
        == 0
    )
    page = Page((files / "<span onclick=x><b>$a_1$ & results_analysis/analysis.html").read_text())
    assert "script" not in page.tags and page.tags.count("b") == page.text.count("(id ") > 0
    assert name in page.text and "<span onclick=x><b>$a_1$ & results.json" in page.text
    assert (
        json.loads(
            (files / "<span onclick=x><b>$a_1$ & results_analysis/analysis.json").read_text()
        )["worst pictures"][0]["file_name"]
        == name
    )


@needs_matplotlib
def test_page_control_characters_in_names_are_escaped(files, monkeypatch, capsys):
    """Bidirectional marks and control characters of file names are escaped."""
    content = json.loads((files / "truth.json").read_text())
    for image in content["images"]:
        image["file_name"] = "a\u202egnp\u2066\x07.jpg"
    truth = files / "truth \u202e.json"
    truth.write_text(json.dumps(content))
    results = files / "b\u200f\x9b results.json"
    results.write_bytes((files / "keypoints_val2017_results_gt_boxes.json").read_bytes())
    other = files / "keypoints_val2017_results_detector.json"
    arguments = ("--results", results, "--annotations", truth, "--compare", other)
    assert run(monkeypatch, *arguments, "--output", files / "out") == 0
    text = (files / "out" / "analysis.html").read_text()
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    for shown in ("a\\u202egnp\\u2066\\x07.jpg", "truth \\u202e.json", "b\\u200f\\x9b results"):
        assert shown in text


@needs_matplotlib
@pytest.mark.parametrize(
    "change",
    [
        "no folder",
        "pictures missing",
        "no sizes",
        "no names",
        "nothing is wrong",
        "no pictures wanted",
    ],
)
def test_analyze_unavailable_images_are_explained(files, monkeypatch, capsys, change):
    content = json.loads((files / "truth.json").read_text())
    options = ["--images", files / "images"]
    results = files / "keypoints_val2017_results_gt_boxes.json"
    if change == "no folder":
        options = []
    elif change == "pictures missing":
        for picture in (files / "images").iterdir():
            picture.unlink()
    elif change == "no sizes":
        content["images"] = [{"id": image["id"]} for image in content["images"]]
        options = []
    elif change == "no names":
        content["images"] = [
            {"id": image["id"], "width": 700, "height": "tall"} for image in content["images"]
        ]
    elif change == "nothing is wrong":
        results = files / "keypoints_val2017_results_detector.json"
    else:
        options = ["--pictures", "0"]
    (files / "truth.json").write_text(json.dumps(content))
    assert (
        run(
            monkeypatch,
            "--results",
            results,
            "--annotations",
            files / "truth.json",
            "--output",
            files / "out",
            *options,
        )
        == 0
    ), capsys.readouterr().err
    text = (files / "out/analysis.html").read_text()
    wanted = {
        "no folder": "blank background",
        "pictures missing": "cannot read the image",
        "no sizes": "blank background",
        "no names": "has no file name of the image",
        "nothing is wrong": "<p>None.</p>",
        "no pictures wanted": "<p>None.</p>",
    }[change]
    assert wanted in text and ("image/jpeg" in text) == (
        change not in ("nothing is wrong", "no pictures wanted")
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ("[]", "has no predictions"),
        ("{}", "expected a list"),
        ("[3]", "entry 0 has no image_id"),
        ("[{", "is not valid JSON"),
        (
            '[{"image_id": 99, "category_id": 1, "keypoints": KEYPOINTS, "score": 1}]',
            "have 1 image ids that the ground truth does not have, such as 99",
        ),
        (
            '[{"image_id": 1, "category_id": 1, "keypoints": [1, 2, 3], "score": 1}]',
            "1, 17 keypoints, the OKS sigmas 17",
        ),
        (
            '[{"image_id": 1, "category_id": 1, "keypoints": KEYPOINTS, "score": "high"}]',
            "is not a plain number",
        ),
        (
            '[{"image_id": 1, "category_id": 1, "keypoints": null, "score": 1}]',
            "not a list of finite numbers",
        ),
        (
            '[{"image_id": 1, "category_id": 7, "keypoints": KEYPOINTS, "score": 1}]',
            "no prediction has the category",
        ),
    ],
)
def test_analyze_invalid_results_exit_1(files, monkeypatch, capsys, change, message):
    path = files / "bad.json"
    path.write_text(change.replace("KEYPOINTS", str([1.0] * 51)))
    assert run(monkeypatch, "--results", path, "--annotations", files / "truth.json") == 1
    error_text = capsys.readouterr().err
    assert (
        error_text.count("\n") == 1
        and message in error_text
        and "bad.json" in error_text
        and not (files / "bad_analysis").exists()
    )


def test_analyze_invalid_annotations_exit_1(files, monkeypatch, capsys):
    results = files / "keypoints_val2017_results_gt_boxes.json"
    content = json.loads((files / "truth.json").read_text())
    joints = [
        {**annotation, "keypoints": annotation["keypoints"][:42]}
        for annotation in content["annotations"]
    ]
    unlabeled = [
        {**annotation, "keypoints": [0] * 51, "num_keypoints": 0}
        for annotation in content["annotations"]
    ]
    lost = [{**annotation, "image_id": 77} for annotation in content["annotations"]]
    for text, message in (
        ("[]", "not a COCO annotation file"),
        (json.dumps({**content, "annotations": joints}), "has persons of 14 keypoints"),
        (json.dumps({**content, "annotations": unlabeled}), "no person has a labeled keypoint"),
        (
            json.dumps({**content, "annotations": lost}),
            "image_id 77 is not in 'images'",
        ),
        (
            json.dumps({**content, "images": [{"file_name": "a.jpg"}]}),
            "expected a list of images with integer ids",
        ),
    ):
        (files / "truth.json").write_text(text)
        assert run(monkeypatch, "--results", results, "--annotations", files / "truth.json") == 1
        error_text = capsys.readouterr().err
        assert error_text.count("\n") == 1 and message in error_text and "truth.json" in error_text
    (files / "truth.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    assert run(monkeypatch, "--results", results, "--annotations", files / "truth.json.gz") == 1
    assert (
        "truth.json.gz: the annotation file is packed by gzip; unpack it first"
        in capsys.readouterr().err
    )
    assert (
        run(monkeypatch, "--results", results, "--annotations", files / "gt_valid.mat") == 1
        and "not MPII's" in capsys.readouterr().err
    )
    assert (
        run(monkeypatch, "--results", files / "pred.mat", "--annotations", files / "truth.json")
        == 1
    )
    assert (
        run(monkeypatch, "--results", results, "--annotations", files / "absent.json") == 1
        and "No such file" in capsys.readouterr().err
    )
    assert (
        run(
            monkeypatch,
            "--results",
            results,
            "--annotations",
            files / "truth.json",
            "--pictures",
            "-1",
        )
        == 2
    )


@needs_matplotlib
def test_summary_aligns_columns_and_metric_names(files, tmp_path):
    """Counts of different widths; 'Ap .5' of result tables is not mixed with 'AP .75'."""
    names = ("keypoints_val2017_results_gt_boxes.json", "keypoints_val2017_results_detector.json")
    for paths in (names[:1], names):
        made = report.build_report([files / name for name in paths], files / "truth.json")
        for number, figures in enumerate(made.figures):
            figures["errors"]["jitter"]["count"] = 10 ** (3 + number)
        shown = report.format_summary(made)
        lines = shown[shown.index("\nAP ") + 1 :].splitlines()
        costs = lines[
            lines.index(next(line for line in lines if line.startswith("AP cost of errors"))) :
        ]
        ends = [
            [cell.end() for cell in re.finditer(r"(?<=  )\S+", line)][-2 * len(paths) :]
            for line in costs
        ]
        assert len(costs) == 1 + len(error_kinds.MEANINGS) and all(
            end == ends[0] for end in ends
        ), shown
        assert costs[1].split()[2::2] == ["1000", "10000"][: len(paths)] and "times" not in shown
        html, _ = report.write(made, tmp_path / "page")
        assert all(
            "AP .5" in text and "Ap .5" not in text
            for text in (shown, html.read_text(encoding="utf-8"))
        )


def test_analyze_missing_images_folder_exits_1(files, monkeypatch, capsys):
    assert (
        run(
            monkeypatch,
            "--results",
            files / "keypoints_val2017_results_gt_boxes.json",
            "--annotations",
            files / "truth.json",
            "--images",
            files / "absent",
        )
        == 1
    )
    assert "no such folder" in capsys.readouterr().err


def test_analyze_without_matplotlib_names_the_extra(files, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert (
        run(
            monkeypatch,
            "--results",
            files / "keypoints_val2017_results_gt_boxes.json",
            "--annotations",
            files / "truth.json",
        )
        == 1
    )
    error_text = capsys.readouterr().err
    assert error_text.count("\n") == 1 and "poise[plot]" in error_text


@pytest.mark.parametrize(
    "names, short",
    [
        (
            ["keypoints_val2017_results_gt_boxes.json", "keypoints_val2017_results_detector.json"],
            ["gt_boxes", "detector"],
        ),
        (["a/results.json", "b/results.json"], ["a", "b"]),
        (["a.json", "a_b.json"], ["first", "second"]),
        (["x" * 40, "y"], ["first", "second"]),
        (["one.json"], ["results"]),
        (["same.json", "same.json"], ["first", "second"]),
    ],
)
def test_short_names_remove_common_parts(names, short):
    assert matching.short_names(names) == short


@pytest.mark.parametrize(
    "name, source",
    [
        ("keypoints_val2017_results_gt_boxes.json", "ground truth"),
        ("results.json", "not known"),
        (
            "keypoints_val2017_results_COCO_val2017_detections_AP_H_56_person.json",
            "COCO_val2017_detections_AP_H_56_person",
        ),
    ],
)
def test_box_source_follows_the_file_name(name, source):
    assert matching.box_source(f"some/folder/{name}") == source


def test_pairs_of_images_join_by_id():
    a, b = matching.pairs_of_images(np.array([2, 0, 5]), np.array([0, 2, 2, 7]))
    assert list(zip(a.tolist(), b.tolist())) == [(0, 1), (0, 2), (1, 0)]
    assert [len(part) for part in matching.pairs_of_images(np.zeros(0, int), np.array([1]))] == [
        0,
        0,
    ]


def test_load_results_missing_file_raises(tmp_path):
    with pytest.raises(DataError, match="cannot read the result file"):
        matching.load_results(tmp_path / "absent.json", truth_of(people(images=1)))


@needs_matplotlib
def test_docs_analysis_commands_run(files, small_set, tmp_path):
    """Run the commands of docs/analysis.md with small files under the paths that they name."""
    import os
    import shlex
    import shutil
    import subprocess
    import sys

    from poise.engine.logger import MetricsFile

    folder = tmp_path / "checkout"
    shutil.copytree(small_set, folder / "data/synthetic")
    for name in ("tools", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    truth = matching.load_ground_truth(
        folder / "data/synthetic/annotations/person_keypoints_val2017.json"
    )
    run_folder = folder / "output/coco/pose_res2net/res2net18_quickstart"
    (run_folder / "results").mkdir(parents=True)
    (run_folder / "results/keypoints_val2017_results_gt_boxes.json").write_text(
        json.dumps(result_list(perfect(truth).only(truth.counted)))
    )
    MetricsFile(run_folder / "metrics.jsonl", 0).write(epoch=0, lr=0.001, train_loss=0.01, AP=0.5)
    text = (ROOT / "docs/analysis.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [
        shlex.split(line)
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
        for line in block.splitlines()
    ]
    assert [command[1] for command in commands] == [
        "tools/analyze.py",
        "tools/plot_log.py",
        "tools/browse.py",
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "lib"), *sys.path])},
        )
        assert done.returncode == 0, done.stderr
    for made in ("results/keypoints_val2017_results_gt_boxes_analysis/analysis.html", "curves.png"):
        assert (run_folder / made).is_file()
    assert (folder / "output/browse/coco/pose_res2net/res2net18_quickstart/heatmaps.jpg").is_file()


@needs_matplotlib
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_page_in_a_browser_logs_no_error(files, tmp_path, dark):
    """Chromium shows the charts in the color scheme of the system without errors."""
    import shutil
    import subprocess

    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("needs chromium")
    made = report.build_report(
        [
            files / "keypoints_val2017_results_gt_boxes.json",
            files / "keypoints_val2017_results_detector.json",
        ],
        files / "truth.json",
        files / "images",
    )
    html, _ = report.write(made, tmp_path)
    picture = tmp_path / "shown.png"
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--window-size=1160,7000",
            f"--screenshot={picture}",
            html.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert picture.is_file(), done.stderr
    assert "CONSOLE" not in done.stderr
    shown = cv2.imread(str(picture)).astype(int)
    ground, series = (
        ("16181b", ("5aa2e0", "f0994d", "6f9c74"))
        if dark
        else ("ffffff", ("1f6fb4", "d9730d", "8fb98f"))
    )

    def pixels(color):
        return (
            np.abs(shown - [int(color[i : i + 2], 16) for i in (4, 2, 0)]).max(axis=2) < 8
        ).sum()

    assert pixels(ground) > 0.5 * shown.shape[0] * shown.shape[1]
    assert all(pixels(color) > 2000 for color in series), [pixels(color) for color in series]


@needs_matplotlib
@pytest.mark.slow
def test_page_narrow_window_wraps_headings(files, tmp_path):
    """Long file names wrap; the right margin stays empty."""
    import shutil
    import subprocess

    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("needs chromium")
    paths = [tmp_path / f"{name * 90}.json" for name in "MW"]
    for path, name in zip(paths, ("gt_boxes", "detector")):
        shutil.copy(files / f"keypoints_val2017_results_{name}.json", path)
    html, _ = report.write(report.build_report(paths, files / "truth.json"), tmp_path / "page")
    picture = tmp_path / "shown.png"
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--blink-settings=preferredColorScheme=1",
            "--window-size=600,8000",
            f"--screenshot={picture}",
            html.as_uri(),
        ],
        capture_output=True,
        timeout=300,
        check=True,
    )
    shown = cv2.imread(str(picture))
    assert (shown[:400, 40:560] < 128).any() and (shown[:, 588:] == 255).all()


def test_analyze_custom_dataset_uses_its_keypoints(tmp_path, capsys):
    """Five keypoints of another category, two of them swapped in each person."""
    path = make_set(tmp_path, 5)
    truth = tmp_path / "labels" / "val.json"
    content = json.loads(truth.read_text())
    order = np.array([0, 2, 1, 3, 4])  # middle, left_0, right_0, left_1, right_1
    results = [
        {
            "image_id": a["image_id"],
            "category_id": 7,
            "score": 0.9,
            "keypoints": np.reshape(a["keypoints"], (5, 3))[order].ravel().tolist(),
        }
        for a in content["annotations"]
        if "keypoints" in a
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    made = report.build_report(
        [tmp_path / "results.json"], truth, tmp_path / "frames", 2, str(path)
    )
    errors = made.figures[0]["joint errors"]
    assert (
        errors["joints"] == ["middle", "left_0", "right_0", "left_1", "right_1"]
        and len(made.costliest) == 2
    )
    assert sum(errors["inversion"][1:3]) > 8 and sum(errors["inversion"]) == sum(
        errors["inversion"][1:3]
    )
    with pytest.raises(
        DataError, match="keypoints, expected the 17 of coco; pass another dataset file to"
    ):
        report.build_report([tmp_path / "results.json"], truth)


def test_analyze_crowdpose_equals_test_table(tmp_path, shared):
    """CrowdPose has no areas, so tools/test.py uses a fraction of the box area."""
    from poise.config.dataset_yaml import load_dataset_info
    from poise.evaluation import (
        crowd_average_precision,
        read_ground_truth,
        read_results,
        result_arrays,
    )
    from poise.evaluation.crowdpose import AREA_OF_BOX

    folder = shared / "data/crowdpose_sample"
    truth, results = folder / "example_crowdpose_val.json", folder / "example_crowdpose_preds.json"
    made = report.build_report([results], truth, data="crowdpose")
    content, sigmas = (
        read_ground_truth(truth, area_of_box=AREA_OF_BOX),
        load_dataset_info("crowdpose").skeleton.sigmas,
    )
    ids, _, keypoints, scores = result_arrays(content, read_results(results), sigmas)
    figures = made.figures[0]
    assert (
        figures["coco"] == crowd_average_precision(content, ids, keypoints, scores, sigmas)
        and {"AP (easy)", "AP (medium)", "AP (hard)"} < figures["coco"].keys()
    )
    assert np.mean(figures["precision-recall"]["mean of .5 to .95"]) == pytest.approx(
        figures["coco"]["AP"]
    )
    assert (
        any("0.53 times that of the box" in note for note in made.notes)
        and 0 < figures["found persons"] <= figures["labelled persons"]
    )
