"""Test person detectors of torchvision and ONNX, their weights and invalid files."""

import hashlib
import http.server
import io
import logging
import sys
import threading
import types

import numpy as np
import pytest
import torch
from poise.errors import ConfigError, DataError, PoiseError
from poise.inference.detectors import build_detector, torchvision
from poise.inference.detectors.base import PERSON, select_persons
from support.onnx_detectors import BOXES, LABELS, SCORES, onnx_file


def torchvision_models():
    """torchvision.models, or a skip that says why."""
    try:
        from torchvision import models
    except Exception as error:
        pytest.skip(
            f"torchvision's operators do not load with this torch ({str(error).splitlines()[0]});"
            " they do with a CUDA build"
        )
    return models


def refusal(call, *args, **options):
    with pytest.raises(PoiseError) as error:
        call(*args, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


PICTURES = [
    np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    for seed, size in enumerate([(120, 160, 3), (90, 70, 3), (1, 1, 3)])
]


# what any detector's boxes go through -------------------------------------------------------------


def test_persons_boxes_are_clipped_sorted_and_finite():
    boxes = [
        [10, 10, 20, 30],
        [-5, -5, 500, 500],
        [np.nan, 0, 5, 5],
        [30, 30, 30, 40],
        [200, 5, 260, 9],
        [0, 0, 9, 9],
        [1, 1, 4, 4],
    ]
    found, scores = select_persons(
        np.array(boxes), np.array([0.6, 0.9, 0.99, 0.8, 0.95, 0.2, np.nan]), 0.5, (100, 150, 3)
    )
    assert found.tolist() == [[0, 0, 150, 100], [10, 10, 20, 30]] and scores.tolist() == [0.9, 0.6]
    assert found.dtype == scores.dtype == np.float64
    empty = select_persons(np.empty((0, 4), np.float32), np.empty(0, np.float32), 0.5, (9, 9, 3))
    assert empty[0].shape == (0, 4) and empty[1].shape == (0,)


def test_build_detector_invalid_name_or_threshold_raises():
    text = refusal(build_detector, "yolov5")
    assert text.startswith(
        "detector 'yolov5': unknown; give the path of an .onnx file or a detector of torchvision:"
        " fasterrcnn_resnet50_fpn, "
    )
    assert "from 0 to 1, got 1.5" in refusal(build_detector, "ssd300_vgg16", score_threshold=1.5)
    assert "nan" in refusal(build_detector, "ssd300_vgg16", score_threshold=float("nan"))


# torchvision --------------------------------------------------------------------------------------


def test_build_detector_broken_torchvision_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    text = refusal(build_detector, "fasterrcnn_resnet50_fpn")
    assert text.startswith("detector fasterrcnn_resnet50_fpn: cannot import torchvision (")
    assert "operators need the same build of torch" in text and "or use an .onnx detector" in text


class FoundEverywhere(torch.nn.Module):
    """Answers as torchvision's detectors do: a person, a dog, and a doubtful person, in each
    image; its weight moves them.
    """

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        assert (
            all(
                image.dtype == torch.float32 and image.shape[0] == 3 and image.max() <= 1
                for image in images
            )
            and not self.training
        )
        boxes = torch.tensor([[0.0, 0, 8, 9], [1, 1, 5, 5], [2, 2, 6, 8]]) + self.shift
        return [
            {
                "boxes": boxes,
                "labels": torch.tensor([1, 18, 1]),
                "scores": torch.tensor([0.9, 0.8, 0.3]),
            }
            for _ in images
        ]


class WeightServer(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    """A stand-in for torchvision, whose weights lie on a server of this machine; yields what it
    was asked for.
    """
    buffer = io.BytesIO()
    torch.save({"shift": torch.ones(1)}, buffer)
    WeightServer.content = buffer.getvalue()
    name = f"net_coco-{hashlib.sha256(WeightServer.content).hexdigest()[:8]}.pth"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WeightServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = []
    chosen = types.SimpleNamespace(
        name="COCO_V1",
        url=f"http://127.0.0.1:{server.server_address[1]}/models/{name}",
        meta={"_file_size": 159.743},
    )
    models = types.SimpleNamespace(
        get_model=lambda name, **options: asked.append((name, options)) or FoundEverywhere(),
        get_model_weights=lambda name: types.SimpleNamespace(DEFAULT=chosen),
    )
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=models))
    yield types.SimpleNamespace(asked=asked, chosen=chosen, file=name)
    server.shutdown()
    server.server_close()


def test_build_detector_downloads_weights_once(stand_in, tmp_path, caplog, capsys):
    folder = tmp_path / "models" / "detectors"
    with caplog.at_level(logging.INFO, "poise"):
        detect = build_detector("fasterrcnn_resnet50_fpn", "cpu", 0.5, folder=folder)
    assert [record.getMessage() for record in caplog.records] == [
        "detector fasterrcnn_resnet50_fpn of torchvision: downloading COCO weights COCO_V1 (160 MB,"
        f" once) from {stand_in.chosen.url} to {folder / stand_in.file}"
    ]
    assert (
        f"downloading {stand_in.chosen.url} (" in capsys.readouterr().out
        and (folder / stand_in.file).is_file()
    )
    assert stand_in.asked == [
        (
            "fasterrcnn_resnet50_fpn",
            {
                "weights": None,
                "weights_backbone": None,
                "num_classes": 91,
                "box_score_thresh": 0.05,
            },
        )
    ]
    found = detect(PICTURES[:2])
    assert [boxes.tolist() for boxes, _ in found] == [
        [[1, 1, 9, 10]],
        [[1, 1, 9, 10]],
    ], "the persons alone, moved as the fetched weights say"
    assert [scores.tolist() for _, scores in found] == [[pytest.approx(0.9)]] * 2
    caplog.clear()
    again = build_detector("retinanet_resnet50_fpn", "cpu", 0.01, folder=folder)
    assert not caplog.records and "downloading" not in capsys.readouterr().out
    assert stand_in.asked[-1][1]["score_thresh"] == 0.01
    assert [len(boxes) for boxes, _ in again(PICTURES * 3)] == [
        2,
        2,
        0,
    ] * 3, "nothing lies in a picture of one pixel that was moved by one"
    assert again([]) == []


def test_detector_failing_image_raises(stand_in, tmp_path, monkeypatch):
    def fails(self, images):
        raise RuntimeError("Input and output sizes should be greater than 0\nwhere it was")

    monkeypatch.setattr(FoundEverywhere, "forward", fails)
    detect = build_detector("ssd300_vgg16", "cpu", folder=tmp_path)
    assert (
        refusal(detect, PICTURES[2:])
        == "detector ssd300_vgg16: failed on images of 1 x 1 (Input and output sizes should be"
        " greater than 0 where it was)"
    )


def test_build_detector_other_weights_raise(stand_in, tmp_path):
    (tmp_path / "text.pth").write_text("404")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    torch.save({"shift": torch.ones(2)}, tmp_path / "shape.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("none.pth", "text.pth", "other.pth", "shape.pth", "list.pth"):
        text = refusal(build_detector, "ssd300_vgg16", "cpu", weights=tmp_path / name)
        assert text.startswith(str(tmp_path / name)) and ("weight" in text)


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_build_detector_code_in_weights_is_not_executed(stand_in, tmp_path):
    torch.save({"shift": torch.ones(1), "more": Evil(tmp_path / "written")}, tmp_path / "evil.pth")
    assert str(tmp_path / "evil.pth") in refusal(
        build_detector, "ssd300_vgg16", "cpu", weights=tmp_path / "evil.pth"
    )
    assert not (tmp_path / "written").exists()


def test_build_detector_wrong_checksum_raises(stand_in, tmp_path):
    stand_in.chosen.url = stand_in.chosen.url.replace(stand_in.file, "net_coco-00000000.pth")
    assert "00000000 was published; the file was removed" in refusal(
        build_detector, "ssd300_vgg16", "cpu", folder=tmp_path
    )
    assert not list(tmp_path.glob("*.pth"))


def write_random_weights(models, name, path):
    """Random weights that find persons: without a word for class 1, the best hundred places
    would rarely be any.
    """
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=91)
    state = model.state_dict()
    for key, value in state.items():
        if (
            key.endswith("bias")
            and ("cls_score" in key or "classification_head" in key)
            and value.numel() % 91 == 0
        ):
            value.view(-1, 91)[:, 1] += 9
    torch.save(state, path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if "320" in name else [pytest.mark.slow])
        for name in torchvision.TORCHVISION
    ],
)
def test_torchvision_detectors_give_boxes(name, tmp_path):
    models = torchvision_models()
    write_random_weights(models, name, tmp_path / "random.pth")
    detect = build_detector(name, "cpu", 0.1, weights=tmp_path / "random.pth")
    found = detect(PICTURES[:2])
    assert len(found) == 2 and sum(len(boxes) for boxes, _ in found) > 0
    for (boxes, scores), picture in zip(found, PICTURES):
        height, width = picture.shape[:2]
        assert (
            boxes.shape == (len(scores), 4)
            and (scores >= 0.1).all()
            and (np.diff(scores) <= 0).all()
        )
        assert (
            (boxes >= 0).all()
            and (boxes[:, [0, 2]] <= width).all()
            and (boxes[:, [1, 3]] <= height).all()
            and (boxes[:, 2:] > boxes[:, :2]).all()
        )


def test_torchvision_weights_equal_torchvision_defaults():
    models = torchvision_models()
    for name, size in torchvision.TORCHVISION.items():
        chosen = models.get_model_weights(name).DEFAULT
        assert (
            round(chosen.meta["_file_size"]) == pytest.approx(size, abs=1)
            and chosen.meta["categories"][PERSON] == "person"
        )
        assert torchvision.download.sha256_prefix(chosen.url)


# ONNX ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "input_shape", [(3, "h", "w"), (1, 3, "h", "w"), ("n", 3, "h", "w")], ids=str
)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("turned", [False, True], ids=["in order", "in another order"])
def test_onnx_detector_torchvision_export(tmp_path, input_shape, batched, turned):
    outputs = {"boxes": BOXES, "labels": LABELS, "scores": SCORES}
    outputs = {
        name: array[None] if batched else array
        for name, array in (reversed(outputs.items()) if turned else outputs.items())
    }
    detect = build_detector(onnx_file(tmp_path / "a.onnx", outputs, input_shape), "cpu", 0.5)
    ((boxes, scores),) = detect(PICTURES[:1])
    assert boxes.tolist() == [[0, 0, 160, 120], [0, 0, 8, 9]] and scores == pytest.approx(
        [0.95, 0.9]
    )
    assert len(detect(PICTURES)) == 3 and detect([]) == []


def test_onnx_detector_no_person_returns_empty(tmp_path):
    outputs = {
        "boxes": np.empty((0, 4), np.float32),
        "labels": np.empty(0, np.int64),
        "scores": np.empty(0, np.float32),
    }
    ((boxes, scores),) = build_detector(onnx_file(tmp_path / "a.onnx", outputs, (1, 3, "h", "w")))(
        PICTURES[:1]
    )
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def yolo_output(places, rows):
    """(1, 84, places): rows of (place, center x, y, width, height, {class: score})."""
    table = np.zeros((1, 84, places), np.float32)
    for place, *box, scores in rows:
        table[0, :4, place] = box
        for number, score in scores.items():
            table[0, 4 + number, place] = score
    return table


@pytest.mark.parametrize("turned", [False, True], ids=["1 84 N", "1 N 84"])
def test_onnx_detector_yolo_export(tmp_path, turned):
    # an image of 160 x 120 in 320 x 320 is enlarged twice, with 40 rows of gray above and below
    # the second overlaps with the first
    rows = [
        (0, 100, 140, 40, 80, {0: 0.9}),
        (1, 102, 141, 40, 80, {0: 0.8}),
        (2, 200, 200, 20, 20, {0: 0.6, 16: 0.7}),  # rather a dog
        (3, 250, 100, 60, 60, {0: 0.7}),
        (4, 30, 30, 9, 9, {0: 0.2}),
        (5, 10, 10, np.nan, 4, {0: 0.99}),
    ]
    table = yolo_output(100, rows)
    detect = build_detector(
        onnx_file(
            tmp_path / "a.onnx",
            {"output0": table.transpose(0, 2, 1).copy() if turned else table},
            (1, 3, 320, 320),
        ),
        "cpu",
        0.5,
    )
    ((boxes, scores),) = detect(PICTURES[:1])
    assert boxes == pytest.approx(
        np.array([[40, 30, 60, 70], [110, 15, 140, 45]])
    ) and scores == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize("turned", [False, True], ids=["1 85 N", "1 N 85"])
def test_onnx_detector_yolo_v5_export(tmp_path, turned):
    """The fifth number is the objectness, and no class."""
    table = np.zeros((1, 85, 100), np.float32)
    for place, (x, objectness, person, dog) in enumerate(
        [(100, 0.9, 0.8, 0.1), (200, 0.9, 0.1, 0.9), (250, 0.5, 0.9, 0), (40, 0, 1, 0)]
    ):
        table[0, :7, place] = [x, 140, 40, 80, objectness, person, dog]
    detect = build_detector(
        onnx_file(
            tmp_path / "a.onnx",
            {"output": table.transpose(0, 2, 1).copy() if turned else table},
            (1, 3, 320, 320),
        ),
        "cpu",
        0.4,
    )
    ((boxes, scores),) = detect(PICTURES[:1])
    assert boxes == pytest.approx(
        np.array([[40, 30, 60, 70], [115, 30, 135, 70]])
    ) and scores == pytest.approx([0.72, 0.45])


@pytest.mark.parametrize("places", [300, 4])
def test_onnx_detector_yolo_export_with_nms(tmp_path, places):
    """(1, N, 6): corners, score and class of v10, 26 and exports with suppression, best first
    and the rest zeros.
    """
    table = np.zeros((1, places, 6), np.float32)
    table[0, :3] = [
        [80, 100, 120, 180, 0.9, 0],
        [220, 70, 280, 130, 0.7, 16],
        [82, 100, 122, 180, 0.6, 0],
    ]
    detect = build_detector(
        onnx_file(tmp_path / "a.onnx", {"output0": table}, (1, 3, 320, 320)), "cpu", 0.5
    )
    ((boxes, scores),) = detect(PICTURES[:1])
    assert boxes == pytest.approx(
        np.array([[40, 30, 60, 70], [41, 30, 61, 70]])
    ) and scores == pytest.approx([0.9, 0.6])


ONE, POSE = "{0: 'person'}", {"task": "pose"}


@pytest.mark.parametrize(
    "metadata, columns, want",
    [
        # a pose network's joint is no class
        ({"names": ONE, **POSE}, (100, 140, 40, 80, 0.9, 300, 200, 0.99), [0.9]),
        ({"names": "['car', 'Person']"}, (100, 140, 40, 80, 0.1, 0.8), [0.8]),
        ({"names": "['car', 'Person']"}, (100, 140, 40, 80, 0.9, 0.8), []),
        ({"names": "{0: 'pedestrian'}"}, (100, 140, 40, 80, 0.9), [0.9]),
        ({"names": "__import__('os')"}, (100, 140, 40, 80, 0.9), [0.9]),
        ({"names": "{'a': 'b'}"}, (100, 140, 40, 80, 0.9), [0.9]),
        ({"names": "[" * 5000}, (100, 140, 40, 80, 0.9), [0.9]),
        (
            {"names": ONE, "end2end": "True", **POSE},
            (80, 100, 120, 180, 0.9, 0, 300, 200, 0.99),
            [0.9],
        ),
        (
            {"names": ONE, "args": "{'batch': 1, 'nms': True}", **POSE},
            (80, 100, 120, 180, 0.9, 0, 300, 200, 0.99),
            [0.9],
        ),
        ({"names": "['car', 'person']", "end2end": "True"}, (80, 100, 120, 180, 0.9, 0), []),
        ({"names": "['car', 'person']", "end2end": "True"}, (80, 100, 120, 180, 0.9, 1), [0.9]),
    ],
)
def test_onnx_detector_ultralytics_metadata_selects_person(tmp_path, metadata, columns, want):
    table = np.zeros((1, 100, len(columns)), np.float32)
    table[0, 0] = columns
    output = (
        table if "end2end" in metadata or "args" in metadata else table.transpose(0, 2, 1).copy()
    )
    ((boxes, scores),) = build_detector(
        onnx_file(tmp_path / "a.onnx", {"output0": output}, (1, 3, 320, 320), metadata=metadata),
        "cpu",
        0.5,
    )(PICTURES[:1])
    assert scores == pytest.approx(want) and boxes == pytest.approx(
        np.array([[40, 30, 60, 70]] * len(want)).reshape(-1, 4)
    )


def test_onnx_detector_without_person_class_warns(tmp_path, caplog):
    table = np.zeros((1, 6, 100), np.float32)
    table[0, :5, 7] = [30, 30, 20, 20, 0.9]
    ((boxes, _),) = build_detector(
        onnx_file(
            tmp_path / "a.onnx", {"o": table}, (1, 3, 64, 64), metadata={"names": "['cat', 'dog']"}
        )
    )(PICTURES[:1])
    assert len(boxes) == 1 and "a.onnx: no class person; using the first of cat, dog" in caplog.text
    detect = build_detector(
        onnx_file(
            tmp_path / "b.onnx",
            {"o": table},
            (1, 3, 64, 64),
            metadata={"names": "['a', 'b', 'person']"},
        )
    )
    assert "the detector's output has 2 classes, person is class 2" in refusal(detect, PICTURES[:1])


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("image", PICTURES[:2], ids=["wide", "tall"])
def test_onnx_detector_letterboxes_the_image(tmp_path, kind, image):
    """A graph that gives the mean brightness of each column and row of its input, in the place
    of boxes.
    """
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper
    from poise.inference.detectors.onnx import OnnxDetector

    taken = helper.make_tensor_value_info(
        "image", TensorProto.FLOAT if kind == "float" else TensorProto.UINT8, (1, 3, 64, 64)
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "echo",
        [taken],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 192, 64))],
        [onnx.numpy_helper.from_array(np.array([1, 192, 64]), "shape")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "echo.onnx",
    )
    detector = OnnxDetector(tmp_path / "echo.onnx", "cpu", 0.5)
    seen = []
    detector._parse_yolo = lambda answer: (
        seen.append(answer)
        or (
            np.array([[16.0, 16, 48, 48]]),
            np.ones(1),
        )
    )
    ((boxes, _),) = detector([image])
    given = seen[0].reshape(3, 64, 64) * (255 if kind == "float" else 1)
    wide = image.shape[1] > image.shape[0]
    zoom = 64 / max(image.shape[:2])
    inner = round(min(image.shape[:2]) * zoom)
    gap = (64 - inner) // 2
    gray = given[:, :gap] if wide else given[:, :, :gap]
    inside = given[:, gap : gap + inner] if wide else given[:, :, gap : gap + inner]
    assert (
        gray == pytest.approx(114)
        and inside.std() > 10
        and inside.mean(axis=(1, 2)) == pytest.approx(image.mean(axis=(0, 1)), abs=4)
    )
    expected = (
        np.array([16.0, 16 - gap, 48, 48 - gap])
        if wide
        else np.array([16.0 - gap, 16, 48 - gap, 48])
    ) / zoom
    assert boxes[0] == pytest.approx(np.clip(expected, 0, [image.shape[1], image.shape[0]] * 2))


def test_onnx_detector_invalid_file_raises(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("404")
    assert "no such detector file" in refusal(build_detector, str(tmp_path / "none.onnx"))
    assert "onnxruntime cannot run this file (" in refusal(
        build_detector, str(tmp_path / "text.onnx")
    )
    two = onnx_file(tmp_path / "two.onnx", {"boxes": BOXES, "scores": SCORES}, (1, 3, "h", "w"))
    assert "unsupported detector" in refusal(build_detector, two)
    flat = onnx_file(tmp_path / "flat.onnx", {"out": SCORES}, (1, 3, 64, 64))
    assert "output has the shape (4,); expected outputs boxes (N, 4)" in refusal(
        build_detector(flat), PICTURES[:1]
    )
    odd = onnx_file(
        tmp_path / "odd.onnx",
        {"boxes": BOXES, "labels": LABELS[:2], "scores": SCORES},
        (1, 3, "h", "w"),
    )
    assert "have the shapes (4, 4), (2,), (4,)" in refusal(build_detector(odd), PICTURES[:1])
    good = onnx_file(
        tmp_path / "good.onnx",
        {"boxes": BOXES, "labels": LABELS, "scores": SCORES},
        (1, 3, "h", "w"),
    )
    assert "contains its weights" in refusal(build_detector, good, weights="x.pth")
    with pytest.raises((ConfigError, DataError)):
        build_detector(f"{good}x.onnx")


def test_onnx_detector_without_onnxruntime_raises(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "a.onnx").touch()
    text = refusal(build_detector, str(tmp_path / "a.onnx"))
    assert "needs onnxruntime" in text and "pip install 'poise[onnx]'" in text
