"""Test released weights of every format: recognized, renamed, loaded or refused."""

import json

import numpy as np
import pytest
import torch
from poise import config
from poise.models import build_model, weights
from poise.models.weights import families, formats
from support.golden_inputs import filled_input
from support.paths import GOLDEN, ROOT
from support.small_networks import (
    EXPERIMENT,
    batch_norm,
    filled,
    mmpose_mspn_names,
    resnet_names,
    small,
)
from support.weight_files import MSPN, equal, mmpose, module, refusal, saved

pytestmark = pytest.mark.usefixtures("messages")


# {format: (family, the file's content from the state dict under Poise's names)}
RELEASED = {
    "simplebaseline": ("resnet", lambda s: s),
    "simplebaseline_tar": (
        "resnet",
        lambda s: {
            "epoch": 140,
            "model": "pose_resnet",
            "state_dict": module(s),
            "perf": np.float64(0.7),
            "optimizer": {},
        },
    ),
    "res2net": ("res2net", lambda s: s),
    "res2net_v1b": ("res2net_v1b", module),
    "hrnet": ("hrnet", lambda s: s),
    "hrnet_checkpoint": (
        "hrnet",
        lambda s: {
            "epoch": 210,
            "model": "pose_hrnet",
            "state_dict": module(s),
            "best_state_dict": s,
            "perf": np.float32(0.7),
            "optimizer": {"param_groups": [{"lr": 1e-3}]},
        },
    ),
    "mspn_iter": (
        "mspn",
        lambda s: {
            "model": s,
            "optimizer": {"state": {}},
            "iteration": 96000,
            "scheduler": {"base_lrs": [4e-3], "last_epoch": 96000, "lr_lambdas": [None]},
        },
    ),
    "posenas": ("posenas", lambda s: s),
    "posenas_checkpoint": (
        "posenas",
        lambda s: {
            "epoch": 210,
            "state_dict": module(s),
            "best_state_dict": s,
            "perf": np.float64(0.76),
            "optimizer": {},
        },
    ),
    "moganet_mmcv": (
        "moganet",
        lambda s: {
            "meta": {"mmcv_version": "1.7.0", "time": "Wed", "epoch": 210},
            "state_dict": module(s),
            "optimizer": {},
        },
    ),
    "mmpose_0.x_resnet": (
        "resnet",
        lambda s: {"meta": {"config": "model = dict()"}, "state_dict": mmpose(s)},
    ),
    "mmpose_1.x_resnet": ("resnet", lambda s: {"meta": {}, "state_dict": mmpose(s, "head")}),
    "mmpose_0.x_hrnet": ("hrnet", lambda s: {"meta": {}, "state_dict": mmpose(s)}),
    "mmpose_1.x_hrnet": ("hrnet", lambda s: {"meta": {}, "state_dict": module(mmpose(s, "head"))}),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_format_loads_equal_tensors(tmp_path, name, messages):
    family, wrap = RELEASED[name]
    expected = {key: tensor.clone() for key, tensor in small(family, seed=1).state_dict().items()}
    model = small(family, seed=2)
    report = weights.load(model, saved(tmp_path / "w.pth", wrap(expected)), rgb=True)
    assert equal(model, expected)
    assert report.what.endswith(
        "17 joints (names of mmpose)" if name.startswith("mmpose") else "17 joints"
    )
    assert (
        f"loaded {len(expected)} of {len(expected)} tensors, missing 0, unexpected 0, mismatched 0"
        in messages.text
    )


@pytest.mark.parametrize("family", EXPERIMENT)
def test_load_other_family_raises_with_its_name(tmp_path, family):
    state = small(family).state_dict()
    path, words = (
        saved(tmp_path / "w.pth", state),
        families.describe_network(families.tensor_shapes(state)),
    )
    names = list(EXPERIMENT)
    for step in (1, 3):
        other = names[(names.index(family) + step) % len(names)]
        model = small(other, seed=3)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        text, own = (
            refusal(weights.load, model, path),
            families.describe_network(families.tensor_shapes(before)),
        )
        assert "loaded " in text and "missing " in text and "unexpected " in text
        assert (
            words
            and own
            and text.endswith(f"; it has the weights of {words}, but the network is {own}")
        )
        assert equal(model, before)


def records():
    return sorted(path.stem for path in (GOLDEN / "models").glob("*.json"))


WORDS = {
    "pose_resnet50_mpii": "ResNet-50, 16 joints",
    "pose_resnet152_coco": "ResNet-152, 17 joints",
    "pose_res2net101_coco": "Res2Net-101 26w 4s, 17 joints",
    "pose_res2net50_v1b_coco": "Res2Net-50 26w 4s v1b, 17 joints",
    "pose_hrnet_w32_mpii": "HRNet-W32, 16 joints",
    "pose_hrnet_w48_coco": "HRNet-W48, 17 joints",
    "mspn_1stg_coco": "MSPN of 1 stage, 17 joints",
    "mspn_4stg_coco": "MSPN of 4 stages, 17 joints",
    "mspn_2stg_mpii": "MSPN of 2 stages, 16 joints",
    "posenas_l18_c48_coco": "PoseNAS-L18-C48, 17 joints",
    "posenas_l18_c64_mpii": "PoseNAS-L18-C64, 16 joints",
    "moganet_xt_coco": "MogaNet-xtiny, 17 joints",
    "moganet_b_coco": "MogaNet-base, 17 joints",
    "moganet_xl_coco": "MogaNet-xlarge, 17 joints",
}


def test_describe_network_published_networks_are_recognized():
    assert WORDS.keys() <= set(records())
    for name in records():
        shapes = {
            key: tuple(shape)
            for key, shape in json.loads((GOLDEN / "models" / f"{name}.json").read_text())["keys"]
        }
        assert (
            families.describe_network(shapes)
            == WORDS.get(name, families.describe_network(shapes))
            != ""
        )
        own = families.identify_family(shapes)
        assert families.count_keypoints(own, shapes) == (16 if name.endswith("mpii") else 17)
        # one rule finds the layers that depend on the joints: the head of every output
        heads = {"mspn": 7 * 4 * int(name[5]) if own.name == "mspn" else 0, "posenas": 4}
        assert len(families.keypoint_tensors(own, shapes)) == heads.get(own.name, 2)


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
@pytest.mark.parametrize(
    "name, experiment",
    [
        ("mspn_4stg_coco", "experiments/coco/mspn/mspn_4stg_256x192.yaml"),
        ("pose_hrnet_w48_coco", "experiments/coco/hrnet/w48_256x192_adam_lr1e-3.yaml"),
        ("posenas_l18_c64_mpii", "experiments/mpii/posenas/256x256_18l_64c.yaml"),
        ("moganet_b_coco", "experiments/coco/moganet/moganet_b_384x288.yaml"),
    ],
)
def test_load_published_size_gives_no_mismatch(tmp_path, name, experiment):
    """Names and shapes of the released file, its values drawn together to one a tensor; the
    network holds no memory either.
    """
    keys = json.loads((GOLDEN / "models" / f"{name}.json").read_text())["keys"]
    state = {key: torch.zeros(()).expand(shape) for key, shape in keys}
    path = saved(
        tmp_path / "w.pth",
        {"mspn": {"model": state}, "moga": {"meta": {}, "state_dict": state}}.get(name[:4], state),
    )
    assert path.stat().st_size < 4e6
    cfg = config.load(ROOT / experiment, ["MODEL.INIT_WEIGHTS", False])
    with torch.device("meta"):
        model = build_model(cfg)
    assert len(weights.load(model, path).loaded) == len(keys)


# MSPN of mmpose -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head, stages", [("keypoint_head", 2), ("head", 2), ("keypoint_head", 1), ("head", 3)]
)
def test_load_mmpose_mspn_gives_every_tensor(tmp_path, head, stages, messages):
    """Every tensor in its place, biases of 0, and the first convolution turned round."""
    file = filled(mmpose_mspn_names(stages, **MSPN, joints=17, head=head), seed=4)
    path = saved(tmp_path / "w.pth", {"meta": {}, "state_dict": file})
    model = small("mspn", "MODEL.EXTRA.STAGES", stages, seed=5)
    report = weights.load(model, path)
    state = model.state_dict()
    assert len(report.loaded) == len(state) and not report.missing + report.unexpected
    assert all(not tensor.any() for name, tensor in state.items() if name.endswith(".conv.bias"))
    assert torch.equal(
        state["top.conv.conv.weight"], file["backbone.top.top.0.conv.weight"].flip(1)
    )
    last = stages - 1
    body = f"backbone.multi_stage_mspn.{last}"
    for ours, theirs in {
        "top.conv.bn.running_var": "backbone.top.top.0.bn.running_var",
        f"stage{last}.downsample.layer1.1.conv_bn_relu2.conv.weight": (
            f"{body}.downsample.layer1.1.conv2.weight"
        ),
        f"stage{last}.downsample.layer4.0.conv_bn_relu3.bn.weight": (
            f"{body}.downsample.layer4.0.bn3.weight"
        ),
        f"stage{last}.downsample.layer2.0.downsample.conv.weight": (
            f"{body}.downsample.layer2.0.downsample.conv.weight"
        ),
        f"stage{last}.downsample.layer2.0.downsample.bn.bias": (
            f"{body}.downsample.layer2.0.downsample.bn.bias"
        ),
        f"stage{last}.upsample.up1.u_skip.conv.weight": f"{body}.upsample.up1.in_skip.conv.weight",
        f"stage{last}.upsample.up4.up_conv.bn.weight": f"{body}.upsample.up4.up_conv.bn.weight",
        # the head of unit j of stage s is number 4 s + j, coarse to fine as up1 to up4
        "stage0.upsample.up3.res_conv1.conv.weight": (
            f"{head}.predict_layers.2.conv_layers.0.conv.weight"
        ),
        f"stage{last}.upsample.up4.res_conv2.bn.running_mean": (
            f"{head}.predict_layers.{4 * stages - 1}.conv_layers.1.bn.running_mean"
        ),
        **(
            {}
            if stages == 1
            else {
                "stage0.upsample.up2.skip1.conv.weight": (
                    "backbone.multi_stage_mspn.0.upsample.up2.out_skip1.conv.weight"
                ),
                "stage0.upsample.up2.skip2.conv.weight": (
                    "backbone.multi_stage_mspn.0.upsample.up2.out_skip2.conv.weight"
                ),
                "stage0.upsample.up4.cross_conv.bn.bias": (
                    "backbone.multi_stage_mspn.0.upsample.up4.cross_conv.bn.bias"
                ),
            }
        ),
    }.items():
        assert torch.equal(state[ours], file[theirs]), ours
    assert (
        f"loaded {len(state)} of {len(state)} tensors, missing 0, unexpected 0, mismatched 0; "
        in messages.text
    )
    assert (
        f"identified as MSPN of {stages} stage{'s' * (stages > 1)}, 17 joints (names of mmpose's"
        " MSPN); trained on RGB" in messages.text
    )
    assert "first convolution reversed for BGR images" in messages.text


def test_mmpose_mspn_names_have_published_parameters():
    """25.11, 56.80, 88.49 and 120.18 million: mmpose's own counts, which are the repository's
    without biases.
    """
    for stages, parameters in ((1, 25_112_264), (2, 56_800_464), (3, 88_488_664), (4, 120_176_864)):
        shapes = mmpose_mspn_names(stages, 64, (3, 4, 6, 3), 256, 17)
        assert (
            sum(
                int(np.prod(shape))
                for name, shape in shapes.items()
                if name.endswith(("weight", "bias"))
            )
            == parameters
        )
        record = json.loads((GOLDEN / "models" / f"mspn_{stages}stg_coco.json").read_text())
        renamed = formats.identify_format(shapes).to_poise(
            {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
        )
        assert families.tensor_shapes(renamed) == {
            key: tuple(shape) for key, shape in record["keys"]
        }


def test_load_mmpose_mspn_rgb_or_bgr_gives_equal_outputs(tmp_path):
    """mmpose's network sees RGB, MSPN's BGR; their means and standard deviations are the same
    figures in the two orders.
    """
    file = saved(tmp_path / "w.pth", filled(mmpose_mspn_names(2, **MSPN, joints=17), seed=6))
    bgr, rgb, unknown = (small("mspn") for _ in range(3))
    weights.load(bgr, file, rgb=False)
    report = weights.load(rgb, file, rgb=True)
    weights.load(unknown, file)
    assert not report.notes
    image = filled_input("image", (2, 3, 64, 64), 0)
    with torch.no_grad():
        expected = rgb(image)
        assert torch.allclose(bgr(image.flip(1)), expected, atol=1e-5)
        assert not torch.allclose(bgr(image), expected, atol=1e-2)
    assert equal(unknown, bgr.state_dict()), "MSPN takes BGR by default, as its experiments do"


def test_load_mmpose_resnet_bgr_logs_a_warning(tmp_path, messages):
    path = saved(tmp_path / "w.pth", mmpose(small("resnet", seed=1).state_dict()))
    weights.load(small("resnet"), path, rgb=True)
    assert "COLOR_RGB" not in messages.text
    weights.load(small("resnet"), path, rgb=False)
    assert (
        "trained on RGB images, but DATASET.COLOR_RGB is False; set DATASET.COLOR_RGB True"
        in messages.text
    )


# ImageNet -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", ["first", "all"])
def test_load_pretrained_imagenet_resnet_fills_mspn(tmp_path, stages, messages):
    file = filled(resnet_names(4, (2, 1, 1, 2)), seed=7)
    path = saved(tmp_path / "resnet.pth", file)
    model = small("mspn", "MODEL.EXTRA.STAGES", 3, "MODEL.EXTRA.PRETRAINED_STAGES", stages, seed=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = weights.load_pretrained(model, str(path), rgb=False)
    state, body = model.state_dict(), len(file) - 2 - 6
    assert len(report.loaded) == 6 + body * (3 if stages == "all" else 1)
    assert report.unexpected == ["fc.weight", "fc.bias"] and not report.mismatched
    for stage in range(3):
        taken = stages == "all" or not stage
        for ours, theirs in (
            (
                f"stage{stage}.downsample.layer1.1.conv_bn_relu2.conv.weight",
                "layer1.1.conv2.weight",
            ),
            (
                f"stage{stage}.downsample.layer3.0.downsample.bn.running_var",
                "layer3.0.downsample.1.running_var",
            ),
            (f"stage{stage}.downsample.layer4.1.conv_bn_relu3.bn.weight", "layer4.1.bn3.weight"),
        ):
            assert torch.equal(state[ours], file[theirs] if taken else before[ours])
    assert torch.equal(state["top.conv.conv.weight"], file["conv1.weight"].flip(1))
    # what an ImageNet file cannot hold is as it was: biases, and the ways up
    for name in (
        "top.conv.conv.bias",
        "stage0.downsample.layer2.0.conv_bn_relu1.conv.bias",
        "stage2.upsample.up4.res_conv2.conv.weight",
    ):
        assert torch.equal(state[name], before[name]) and name in report.missing
    assert (
        "loaded into every stage" if stages == "all" else "loaded into the first stage"
    ) in messages.text and "first convolution reversed for BGR" in messages.text
    weights.load_pretrained(model, str(path), rgb=True)
    assert torch.equal(model.state_dict()["top.conv.conv.weight"], file["conv1.weight"])


def test_load_pretrained_other_resnet_into_mspn_raises(tmp_path):
    path = saved(tmp_path / "resnet.pth", filled(resnet_names(4, (2, 1, 2, 2))))
    text = refusal(weights.load_pretrained, small("mspn"), str(path))
    assert "unexpected" in text
    assert (
        "it has the weights of ResNet of 2-1-2-2 blocks without a pose head, but the network is"
        " MSPN of 2 stages, 17 joints" in text
    )


def test_load_pretrained_mspn_named_resnet_is_read(tmp_path):
    """Under MSPN's own names, without biases; whether its images were RGB is not known, so it is
    taken as it is.
    """
    body = filled(resnet_names(4, (2, 1, 1, 2)), seed=9)
    file = {
        name: tensor
        for name, tensor in formats.rename(body, formats._RESNET_MSPN).items()
        if not name.startswith("fc.")
    }
    model = small("mspn", "MODEL.EXTRA.PRETRAINED_STAGES", "all")
    report = weights.load_pretrained(
        model, str(saved(tmp_path / "resnet-50_rename.pth", file)), rgb=False
    )
    assert (
        torch.equal(model.state_dict()["top.conv.conv.weight"], body["conv1.weight"])
        and not report.unexpected
    )
    assert torch.equal(
        model.state_dict()["stage1.downsample.layer2.0.conv_bn_relu1.conv.weight"],
        body["layer2.0.conv1.weight"],
    )


def imagenet_hrnet(seed):
    """The ImageNet network keeps all branches to the end; its final_layer and classifier are
    others.
    """
    state = small("hrnet", seed=seed).state_dict()
    last = max(int(name.split(".")[1]) for name in state if name.startswith("stage4."))
    more = {
        f"stage4.{last}.fuse_layers.1.0.0.0.weight": (8, 4, 3, 3),
        **batch_norm(f"stage4.{last}.fuse_layers.1.0.0.1", 8),
        "incre_modules.0.0.conv1.weight": (4, 4, 1, 1),
        "downsamp_modules.0.0.weight": (8, 4, 3, 3),
        "final_layer.0.weight": (16, 8, 1, 1),
        "final_layer.0.bias": (16,),
        "classifier.weight": (10, 16),
        "classifier.bias": (10,),
    }
    return {
        name: tensor for name, tensor in state.items() if not name.startswith("final_layer.")
    } | filled(more)


def test_load_pretrained_imagenet_hrnet_leaves_the_head(tmp_path, messages):
    file = imagenet_hrnet(seed=1)
    path = saved(tmp_path / "hrnet_w32.pth", file)
    model = small("hrnet", seed=2)
    head = model.final_layer.weight.clone()
    report = weights.load_pretrained(model, str(path))
    state = model.state_dict()
    assert all(
        torch.equal(state[name], file[name])
        for name in state
        if not name.startswith("final_layer.")
    )
    assert torch.equal(state["final_layer.weight"], head) and report.missing == [
        "final_layer.weight",
        "final_layer.bias",
    ]
    assert (
        all(name.startswith("stage4.") for name in report.unexpected)
        and len(report.unexpected) == 6
    )
    assert (
        "skipped 6 tensors that MODEL.EXTRA.PRETRAINED_LAYERS does not name"
        " (incre_modules.0.0.conv1.weight" in messages.text
    )
    # '*' takes every part that the file has
    everything = small("hrnet", "MODEL.EXTRA.PRETRAINED_LAYERS", ["*"], seed=2)
    assert len(weights.load_pretrained(everything, str(path)).unexpected) == 12
    # and a part that is named must be there
    less = saved(
        tmp_path / "w.pth",
        {name: tensor for name, tensor in file.items() if name != "conv2.weight"},
    )
    # with the two of the head
    assert "missing 3" in refusal(weights.load_pretrained, small("hrnet"), str(less))


def test_load_pretrained_pretrained_layers_select_parts(tmp_path):
    """HRNet's key: parts are top-level names, and what is not named keeps its own weights,
    whatever the file has.
    """
    file = small("hrnet", seed=1).state_dict()
    model = small("hrnet", "MODEL.EXTRA.PRETRAINED_LAYERS", ["conv1", "stage2"], seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights.load_pretrained(model, str(saved(tmp_path / "pose.pth", file)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(
            tensor, (file if name.split(".")[0] in ("conv1", "stage2") else before)[name]
        ), name


def test_load_pretrained_imagenet_moganet_leaves_the_head(tmp_path):
    """Fill all but the pose head; names have no prefix, a classifier and timm arguments exist."""
    state = small("moganet", seed=1).state_dict()
    file = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state.items()
        if name.startswith("backbone.")
    }
    path = tmp_path / "moganet_xtiny_sz224_8xbs128_ep300.pth.tar"
    torch.save(
        {
            "state_dict": {
                **file,
                "head.weight": torch.zeros(10, 16),
                "head.bias": torch.zeros(10),
            },
            "arch": "moganet_xtiny",
            "author": "MogaNet",
            "metric": 76.5,
            "state_dict_ema": {},
        },
        path,
    )
    model = small("moganet", seed=2)
    report = weights.load_pretrained(model, str(path))
    assert all(
        torch.equal(tensor, state[name])
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.")
    )
    assert report.unexpected == ["head.weight", "head.bias"] and all(
        name.startswith("keypoint_head.") for name in report.missing
    )
    assert len(report.loaded) == len(file)
    text = refusal(weights.load, small("moganet"), path)
    assert "unexpected 2" in text and "without a pose head (names of MogaNet on ImageNet)" in text


# PoseNAS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file, network", [(2, 1), (1, 2)])
def test_load_posenas_other_se_reduction_names_the_key(tmp_path, file, network):
    path = saved(
        tmp_path / "w.pth", small("posenas", "MODEL.EXTRA.SE_REDUCTION", file).state_dict()
    )
    text = refusal(weights.load, small("posenas", "MODEL.EXTRA.SE_REDUCTION", network), path)
    assert (
        "mismatched" in text
        and f"; set MODEL.EXTRA.SE_REDUCTION {file} to build that network" in text
    )
    assert ("with SE reduction 2" in text) == (file == 2)
    weights.load(small("posenas", "MODEL.EXTRA.SE_REDUCTION", file), path)


# another number of joints -------------------------------------------------------------------------


@pytest.mark.parametrize("family", EXPERIMENT)
def test_load_other_keypoints_raises_or_replaces_head(tmp_path, family, messages):
    """Raise by default; on request load all but the last layer of every output."""
    file = small(family, joints=16, seed=1).state_dict()
    path = saved(tmp_path / "w.pth", file)
    model = small(family, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = refusal(weights.load, model, path)
    assert text.endswith(
        "its head is for 16 keypoints, the network's for 17; to fine-tune it with a new head set"
        " MODEL.REPLACE_HEAD True"
    )
    assert equal(model, before)

    report = weights.load(model, path, replace_head=True)
    heads = {"mspn": 7 * 8, "posenas": 4}.get(family, 2)
    assert (
        len(report.replaced) == heads
        and len(report.loaded) == len(before) - heads
        and not report.missing + report.unexpected + report.mismatched
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (before if name in report.replaced else file)[name]), name
    assert f"replaced {heads}; identified as " in messages.text
    assert (
        "; its head is for 16 keypoints, the network has 17: the head keeps its initial values"
        in messages.text
    )


def test_load_replace_head_keeps_a_fitting_head(tmp_path):
    file = small("mspn", seed=1).state_dict()
    model = small("mspn", seed=2)
    assert not weights.load(model, saved(tmp_path / "w.pth", file), replace_head=True).replaced
    assert equal(model, file)


def test_load_pretrained_replace_head_replaces_every_output(tmp_path):
    """load_pretrained takes it too, and from mmpose's names as well."""
    path = saved(tmp_path / "w.pth", filled(mmpose_mspn_names(2, **MSPN, joints=16)))
    model = small("mspn")
    assert "MODEL.REPLACE_HEAD True" in refusal(weights.load_pretrained, model, str(path))
    assert len(weights.load_pretrained(model, str(path), replace_head=True).replaced) == 56


@pytest.mark.parametrize(
    "change",
    [
        # wider before the last layer
        lambda s: {**s, "final_layer.weight": torch.zeros(16, 9, 1, 1)},
        # another kernel
        lambda s: {**s, "final_layer.weight": torch.zeros(16, 4, 3, 3)},
        # the two disagree
        lambda s: {**s, "final_layer.bias": torch.zeros(15)},
        lambda s: {n: t for n, t in s.items() if n != "final_layer.bias"},
        # the backbone is another too
        lambda s: {**s, "layer1.0.conv1.weight": torch.zeros(1)},
    ],
)
def test_load_replace_head_other_mismatch_raises(tmp_path, change):
    path = saved(tmp_path / "w.pth", change(dict(small("resnet", joints=16).state_dict())))
    text = refusal(weights.load, small("resnet"), path, replace_head=True)
    assert "mismatched" in text and "REPLACE_HEAD" not in text
