"""Make small valid files from which the fuzzing starts."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile

import cv2
import numpy as np


def config() -> list[bytes]:
    return [
        (
            b"GPUS: (0,1)\nWORKERS: 4\nDATASET:\n  DATASET: coco\n  ROOT: data/coco\n  COLOR_RGB:"
            b" true\n  NUM_JOINTS_HALF_BODY: 8\nMODEL:\n  NAME: pose_resnet\n  NUM_JOINTS: 17\n "
            b" IMAGE_SIZE: [192, 256]\n  HEATMAP_SIZE: [48, 64]\n  SIGMA: 2\n  EXTRA:\n   "
            b" NUM_LAYERS: 50\n    NUM_DECONV_LAYERS: 3\n    FINAL_CONV_KERNEL: 1\nTRAIN:\n  LR:"
            b" 0.001\n  LR_STEP: [170, 200]\n  BATCH_SIZE_PER_GPU: 32\n  END_EPOCH: 210\nTEST:\n "
            b" FLIP_TEST: true\n  OKS_THRE: 0.9\n  COCO_BBOX_FILE: 'a.json'\n"
        ),
        (
            b"GPUS: '0,1'\nDATASET: {DATASET: mpii, TEST_SET: valid}\nMODEL:\n  NAME: pose_hrnet\n "
            b" NUM_JOINTS: 16\n  EXTRA:\n    STAGE2: {NUM_MODULES: 1, NUM_BRANCHES: 2, BLOCK:"
            b" BASIC,\n      NUM_BLOCKS: [4, 4], NUM_CHANNELS: [32, 64], FUSE_METHOD: SUM}\n"
        ),
        (
            b"_BASE_: [base.yaml, base.yaml]\nTRAIN: {BEGIN_EPOCH: 0, OPTIMIZER: adam}\nTEST:"
            b" {IMAGE_THRE: 0.0}\n"
        ),
        b"a: &a [1, 2]\nb: *a\nc: {<<: {x: 1}, y: 2}\n",
    ]


def persons() -> dict:
    joints = [number for joint in range(17) for number in (20 + joint, 30 + 2 * joint, 2)]
    return {
        "images": [
            {"id": 1, "file_name": "000000000001.jpg", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 64, "height": 64},
        ],
        "annotations": [
            {
                "id": 10 + k,
                "image_id": 1 + k % 2,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [10.5, 20, 40, 50 - k],
                "area": 900.5,
                "num_keypoints": 17,
                "keypoints": joints,
            }
            for k in range(3)
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": [[1, 2]]}],
    }


def annotations() -> list[bytes]:
    crowd = persons()
    crowd["annotations"][1] |= {"iscrowd": 1, "segmentation": {"counts": [1, 2], "size": [3, 3]}}
    crowd["annotations"][2]["keypoints"] = [0] * 51
    text = persons()
    for part in text.values():
        for entry in part:
            keys = {"id", "image_id", "category_id", "iscrowd"} & entry.keys()
            entry.update({key: str(entry[key]) for key in keys})
    text["categories"].insert(0, {"id": 0, "name": "person"})
    return [
        json.dumps(content, indent=indent).encode()
        for content, indent in ((persons(), None), (crowd, 1), (text, None))
    ]


def mpii() -> list[bytes]:
    person = {
        "image": "1.jpg",
        "center": [50.5, 40],
        "scale": 0.4,
        "joints": [[5.0 + k, 6 + k] for k in range(16)],
        "joints_vis": [1] * 15 + [0],
    }
    return [json.dumps([person, person | {"image": "2.jpg"}]).encode()]


def detections() -> list[bytes]:
    box = {"image_id": 1, "category_id": 1, "bbox": [1.5, 2, 30, 40], "score": 0.9}
    boxes = [box, box | {"image_id": 2}, box | {"score": 0.01}, box | {"category_id": 3}]
    text = [{**each, "image_id": str(each["image_id"]), "category_id": "1"} for each in boxes]
    return [json.dumps(each).encode() for each in (boxes, text)]


def results() -> list[bytes]:
    person = persons()["annotations"][0]
    return [
        json.dumps(
            [
                {
                    "image_id": 1,
                    "category_id": 1,
                    "keypoints": [float(v) for v in person["keypoints"]],
                    "score": 0.7,
                }
            ]
            * 2
        ).encode()
    ]


def results_for_truth() -> list[dict]:
    return json.loads(results()[0])


def command_line() -> list[bytes]:
    return [
        b"TRAIN.LR\n0.01\nMODEL.IMAGE_SIZE\n[96, 128]\nMODEL.HEATMAP_SIZE\n(24, 32)",
        b"TEST.MODEL_FILE\nx.pth\nTEST.USE_GT_BBOX\nfalse\nMODEL.EXTRA.NUM_LAYERS\n101",
    ]


def genotype() -> list[bytes]:
    from poise.models.posenas.genotypes import GENOTYPES

    return [json.dumps(found.as_json()).encode() for found in list(GENOTYPES.values())[:2]]


def image() -> list[bytes]:
    draw = np.random.default_rng(0)
    smooth = cv2.resize(
        draw.integers(0, 256, (6, 8, 3), dtype=np.uint8), (53, 37), interpolation=cv2.INTER_CUBIC
    )
    found = []
    for sampling in (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    ):
        found.append(
            _encoded(
                ".jpg",
                smooth,
                [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_QUALITY, 80],
            )
        )
    found.append(_encoded(".jpg", smooth, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]))
    found.append(_encoded(".jpg", smooth, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]))
    found.append(_encoded(".jpg", smooth[:, :, 0], []))
    found.append(_encoded(".jpg", cv2.resize(smooth, (130, 3)), []))
    found += [
        _encoded(ending, smooth[:12, :16], [])
        for ending in (".png", ".bmp", ".webp", ".tiff", ".gif", ".ppm")
    ]
    return found


def _encoded(ending: str, image: np.ndarray, options: list[int]) -> bytes:
    return cv2.imencode(ending, image, options)[1].tobytes()


def zips() -> list[bytes]:
    members = {"000000000001.jpg": image()[2], "set/b.png": image()[8]}
    return [
        _zip(members, zipfile.ZIP_STORED),
        _zip(members, zipfile.ZIP_DEFLATED),
        _zip({"000000000001.jpg": b"x" * 3000}, zipfile.ZIP_LZMA),
    ]


def _zip(members: dict[str, bytes], compression: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.compress_type = compression
            archive.writestr(info, content)
    return out.getvalue()


def archives() -> list[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("set/a.jpg", "set/b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 100
            archive.addfile(info, io.BytesIO(b"x" * 100))
        link = tarfile.TarInfo("set/l")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(link)
    plain = io.BytesIO(out.getvalue())
    plain.seek(0)
    with tarfile.open(fileobj=plain) as archive:  # without the link, so that it unpacks
        kept = [(info, archive.extractfile(info).read()) for info in archive if info.isreg()]
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for info, content in kept:
            archive.addfile(info, io.BytesIO(content))
    return [
        _zip({"set/a.jpg": b"x" * 100, "set/b.jpg": b"y" * 100}, zipfile.ZIP_DEFLATED),
        out.getvalue(),
        whole.getvalue(),
    ]


def state() -> dict:
    """Return a state dict of a small network of no known family."""
    import torch

    return {
        "conv1.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
        "bn1.running_mean": torch.zeros(2),
        "bn1.num_batches_tracked": torch.tensor(3),
        "final_layer.weight": torch.ones(2, 2, 1, 1),
    }


def checkpoints() -> list[bytes]:
    import torch

    found = []
    run = {
        "format": 1,
        "epoch": 1,
        "step": 3,
        "sums": {"loss": 0.5},
        "state_dict": state(),
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "best": 0.5,
        "experiment": "seed",
        "seed": 0,
        "threads": 1,
        "config": "A: 1\n",
    }
    foreign = {
        "state_dict": {f"module.{name}": value for name, value in state().items()},
        "best": np.float64(0.5),
        "args": _Foreign(),
    }
    for content, options in (
        (state(), {}),
        (run, {}),
        ({"model": state()}, {"_use_new_zipfile_serialization": False}),
        (foreign, {}),
        (foreign, {"pickle_protocol": 4}),
    ):
        out = io.BytesIO()
        torch.save(content, out, **options)
        found.append(out.getvalue())
    return [*found, pickle.dumps({"conv1.weight": [1, 2]})]


def weight_names() -> list[bytes]:
    """Return the tensor names by which each family is recognized, with a head, in all formats."""
    norm = {
        "weight": [4],
        "bias": [4],
        "running_mean": [4],
        "running_var": [4],
        "num_batches_tracked": [],
    }
    head = {"final_layer.weight": [17, 4, 1, 1], "final_layer.bias": [17]}
    resnet = {
        "conv1.weight": [4, 3, 7, 7],
        **{f"bn1.{name}": shape for name, shape in norm.items()},
        "layer1.0.conv1.weight": [4, 4, 1, 1],
        "layer1.0.conv3.weight": [16, 4, 1, 1],
        "layer2.3.conv1.weight": [4, 4, 1, 1],
        "layer3.5.conv1.weight": [4, 4, 1, 1],
        "layer4.2.conv1.weight": [4, 4, 1, 1],
    }
    deconv = {
        "deconv_layers.0.weight": [4, 4, 4, 4],
        **{f"deconv_layers.1.{name}": shape for name, shape in norm.items()},
    }
    res2net = {
        "conv1.weight": [4, 3, 7, 7],
        "layer1.0.convs.0.weight": [4, 4, 3, 3],
        "layer1.0.convs.2.weight": [4, 4, 3, 3],
        "layer4.2.convs.0.weight": [4, 4, 3, 3],
    }
    mspn = {
        "top.conv.conv.weight": [4, 3, 7, 7],
        "top.conv.conv.bias": [4],
        **{f"top.conv.bn.{name}": shape for name, shape in norm.items()},
        "stage0.downsample.layer1.0.conv_bn_relu1.conv.weight": [4, 4, 1, 1],
        "stage0.downsample.layer1.0.conv_bn_relu1.conv.bias": [4],
        **{
            f"stage0.downsample.layer1.0.conv_bn_relu1.bn.{name}": shape
            for name, shape in norm.items()
        },
        "stage1.upsample.up4.u_skip.conv.weight": [4, 4, 1, 1],
        "stage1.upsample.up4.res_conv2.conv.weight": [17, 4, 3, 3],
        "stage1.upsample.up4.res_conv2.bn.num_batches_tracked": [],
    }
    posenas = {
        "stem0.0.weight": [4, 3, 3, 3],
        "cells.0.preprocess0.op.1.weight": [4, 4, 1, 1],
        "cells.3.preprocess0.op.1.weight": [4, 4, 1, 1],
        "stage1.upsamples.0._ops.0.fc1.weight": [4, 4, 1, 1],
        **head,
    }
    moganet = {
        "backbone.patch_embed1.projection.0.weight": [4, 3, 3, 3],
        "backbone.blocks1.0.attn.proj_1.weight": [4, 4, 1, 1],
        "backbone.blocks2.1.attn.proj_1.weight": [4, 4, 1, 1],
        "backbone.norm1.weight": [4],
        **deconv,
        **head,
    }
    hrnet = {
        "conv1.weight": [4, 3, 3, 3],
        "conv2.weight": [4, 4, 3, 3],
        "transition1.0.0.weight": [4, 4, 3, 3],
        "stage2.0.branches.0.0.conv1.weight": [4, 4, 3, 3],
        **head,
    }
    theirs = {
        "backbone.top.top.0.conv.weight": [4, 3, 7, 7],
        "backbone.multi_stage_mspn.0.downsample.layer1.0.conv1.weight": [4, 4, 1, 1],
        "backbone.multi_stage_mspn.0.upsample.up1.in_skip.conv.weight": [4, 4, 1, 1],
        "keypoint_head.predict_layers.3.conv_layers.1.conv.weight": [17, 4, 3, 3],
    }
    found = [
        {**resnet, **deconv, **head},
        {**resnet, "fc.weight": [10, 4], "fc.bias": [10]},
        {**res2net, **deconv, **head},
        {**res2net, "conv1.0.weight": [4, 3, 3, 3]},
        mspn,
        posenas,
        moganet,
        hrnet,
        theirs,
        {f"backbone.{name}": shape for name, shape in resnet.items()}
        | {f"keypoint_head.{name}": shape for name, shape in head.items()},
        {name.removeprefix("backbone."): shape for name, shape in moganet.items()},
    ]
    return [json.dumps(names).encode() for names in found]


def dataset_file() -> list[bytes]:
    return [
        (
            b"name: five\njoints: [head, left_hand, right_hand, left_foot, right_foot]\nflip_pairs:"
            b" [[left_hand, right_hand], [left_foot, right_foot]]\nlimbs: [[head,"
            b" left_hand]]\nupper_body: [head, left_hand, right_hand]\nboth_halves: [head]\nsigmas:"
            b" [0.026, 0.07, 0.07, 0.09, 0.09]\nweights: [1, 1.2, 1.2, 1.5, 1.5]\nroot:"
            b" data/five\ncategory: person\nannotations: annotations/{set}.json\nimages:"
            b" images/{set}\nformat: coco\nmetric: oks\nsets:\n  'test*': {annotations:"
            b" annotations/info.json, labelled: false}\n"
        ),
        (
            b"joints: [a, b]\nannotations: a.json\nimages: i\nformat: mpii\nsets: {valid:"
            b" {head_boxes: annot/gt.mat}}\n"
        ),
    ]


def zoo() -> list[bytes]:
    return [
        b"- family: resnet\n  what: pose\n  page: https://example.org/page\n  licence: MIT\n "
        b" target: models/pytorch/\n  url: https://example.org/\n  files:\n    - {name: a, file:"
        b" a-01234567.pth, sha256_prefix: '01234567', size_bytes: 1000, experiments:"
        b" [experiments/a.yaml], overrides: [MODEL.NAME, x]}\n    - {name: b, file: b.pth, by_hand:"
        b" true, url: null, note: the second}\n"
    ]


def given_boxes() -> list[bytes]:
    own = {
        "format": "poise poses",
        "version": 1,
        "frames": [
            {
                "file": "000000000001.jpg",
                "index": 0,
                "seconds": None,
                "persons": [{"bbox": [1, 2, 30, 40], "box_score": 0.5}],
            },
            {
                "file": "film.mp4",
                "index": 1,
                "seconds": 0.04,
                "persons": [{"bbox": [1, 2, 30, 40.5]}],
            },
        ],
    }
    return [detections()[0], annotations()[0], json.dumps(own).encode()]


class _Foreign:
    """A class that Poise does not know, as in a foreign checkpoint."""

    def __init__(self):
        self.values = [1, 2]


def cache() -> list[bytes]:
    out = io.BytesIO()
    np.savez(
        out,
        header=np.frombuffer(b"{}", np.uint8),
        ids=np.arange(5),
        boxes=np.ones((5, 4)),
        reasons=np.array(["a", "b"]),
    )
    return [out.getvalue()]


def matlab() -> list[bytes]:
    from scipy.io import savemat

    names = np.array(
        [
            "rank",
            "rkne",
            "rhip",
            "lhip",
            "lkne",
            "lank",
            "pelvis",
            "thorax",
            "neck",
            "head",
            "rwri",
            "relb",
            "rsho",
            "lsho",
            "lelb",
            "lwri",
        ],
        dtype=object,
    )
    found = []
    for compressed in (False, True):
        out = io.BytesIO()
        savemat(
            out,
            {
                "pos_gt_src": np.ones((16, 2, 3)),
                "headboxes_src": np.ones((2, 2, 3)),
                "jnt_missing": np.zeros((16, 3)),
                "dataset_joints": names,
            },
            do_compression=compressed,
        )
        found.append(out.getvalue())
    return found
