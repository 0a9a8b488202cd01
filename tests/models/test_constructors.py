"""Test networks built from keyword arguments, without a config."""

import pytest
import torch
from poise import config
from poise.models import (
    MODELS,
    MSPN,
    MogaNetPose,
    PoseHRNet,
    PoseNAS,
    PoseRes2Net,
    PoseRes2NetV1b,
    PoseResNet,
    build_model,
)
from poise.models.deconv_head import HeadOptions
from poise.models.options import OptionError
from poise.models.pose_hrnet import StageOptions
from poise.models.posenas.genotypes import GENOTYPES
from support.paths import ROOT

# the network from keyword arguments, and the experiment file that describes the same one
COCO = {
    "resnet": (
        lambda: PoseResNet(depth=50),
        "resnet/res50_256x192_d256x3_adam_lr1e-3",
    ),
    "resnet152": (
        lambda: PoseResNet(depth=152, num_keypoints=17),
        "resnet/res152_256x192_d256x3_adam_lr1e-3",
    ),
    "res2net": (
        lambda: PoseRes2Net(depth=50, base_width=26, scales=4),
        "res2net/res2net50_4s_26w_256x192_d256x3_adam_lr1e-3",
    ),
    "res2net_v1b": (
        lambda: PoseRes2NetV1b(depth=101),
        "res2net/res2net101_v1b_4s_26w_256x192_d256x3_adam_lr1e-3",
    ),
    "hrnet_w32": (
        lambda: PoseHRNet(width=32, num_keypoints=17),
        "hrnet/w32_256x192_adam_lr1e-3",
    ),
    "hrnet_w48": (lambda: PoseHRNet(width=48), "hrnet/w48_256x192_adam_lr1e-3"),
    "mspn": (lambda: MSPN(stages=2, num_keypoints=17), "mspn/mspn_2stg_256x192"),
    "mspn_4": (lambda: MSPN(stages=4), "mspn/mspn_4stg_256x192"),
    "posenas": (
        lambda: PoseNAS(genotype=GENOTYPES["posenas"], init_channels=48),
        "posenas/256x192_18l_48c",
    ),
    "moganet": (lambda: MogaNetPose(arch="tiny"), "moganet/moganet_t_256x192"),
}


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", COCO)
def test_keywords_published_values_equal_the_experiment_file(name):
    build, experiment = COCO[name]
    with torch.device("meta"):
        ours = build()
        described = build_model(config.load(ROOT / f"experiments/coco/{experiment}.yaml"))
    assert type(ours) is type(described) and shapes(ours) == shapes(described)


@pytest.mark.parametrize("name", MODELS)
def test_keywords_defaults_give_heatmaps(name):
    model = MODELS[name]().eval()
    model.init_weights()
    with torch.no_grad():
        heatmaps = model(torch.rand(1, 3, 64, 64))
    assert heatmaps.shape == (1, 17, 16, 16) and heatmaps.isfinite().all()


def test_keywords_narrow_networks_give_heatmaps():
    head = HeadOptions(filters=(8, 8), kernels=(3, 4), final_kernel=3)
    stages = [StageOptions(1, n, [1] * n, [4 << i for i in range(n)]) for n in (2, 3, 3)]
    narrow = [
        (PoseResNet(depth=18, num_keypoints=3, channels=(8, 8, 16, 16), head=head), 8),
        (PoseRes2Net(depth=18, num_keypoints=3, channels=(8, 8, 16, 16), head=head), 8),
        (PoseHRNet(num_keypoints=3, stem_channels=8, stages=stages), 4),
        (MSPN(num_keypoints=3, layers=(1, 1, 1, 1), stem_channels=8, channels=8), 4),
        (MogaNetPose(num_keypoints=3, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), head=head), 8),
    ]
    for model, stride in narrow:
        assert model.output_stride == stride
        outputs = model.train()(torch.rand(2, 3, 64, 96))
        assert outputs[-1].shape == (2, 3, 64 // stride, 96 // stride)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: PoseResNet(depth=51), "depth must be one of 18, 34, 50, 101, 152, got 51"),
        (lambda: PoseResNet(style="tf"), "style must be 'pytorch' or 'caffe', got 'tf'"),
        (lambda: PoseRes2Net(scales=0), "scales must be a whole number above 0, got 0"),
        (lambda: PoseHRNet(width=0), "width must be a channel count above 0, got 0"),
        (lambda: PoseHRNet(stages=[]), "stages must hold the options of 3 stages, got []"),
        (lambda: MSPN(stages=0), "stages must be a whole number from 1 to 64, got 0"),
        (lambda: PoseNAS(layers=5), "layers must be 18 or a multiple of 4 from 4 to 400, got 5"),
        (lambda: PoseNAS(se_reduction=3), "se_reduction must be 1 or 2, got 3"),
        (lambda: MogaNetPose(drop_path=1), "drop_path must be a number from 0 to below 1, got 1"),
        (
            lambda: HeadOptions(filters=(8, 8)),
            "kernels must hold one kernel for each of 2 filters, got (4, 4, 4)",
        ),
    ],
)
def test_keywords_invalid_value_names_the_argument(build, message):
    with pytest.raises(OptionError) as refusal, torch.device("meta"):
        build()
    assert str(refusal.value) == message


def test_keywords_are_keyword_only():
    with pytest.raises(TypeError):
        PoseHRNet(32)
