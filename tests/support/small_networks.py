"""Narrow networks of every family, and tensor names of released formats.

The names of mmpose and ImageNet files are written from the structure of their networks, not from
the renaming tables of Poise.
"""

import torch
from poise import config
from poise.models import build_model

from support.golden_inputs import filled_state
from support.paths import ROOT

SIZE = ["MODEL.IMAGE_SIZE", [64, 64], "MODEL.HEATMAP_SIZE", [16, 16]]
DECONV = ["MODEL.EXTRA.NUM_DECONV_FILTERS", [4, 4, 4]]
RESNET = [*DECONV, "MODEL.EXTRA.NUM_CHANNELS", [4, 4, 4, 4]]
HRNET = [
    word
    for n in (2, 3, 4)
    for key, value in (
        ("NUM_CHANNELS", [4, 8, 8, 8]),
        ("NUM_BLOCKS", [1, 1, 1, 1]),
        ("NUM_MODULES", 2 if n == 4 else 1),
    )
    for word in (f"MODEL.EXTRA.STAGE{n}.{key}", value if key == "NUM_MODULES" else value[:n])
]
EXPERIMENT = {
    "resnet": ("experiments/coco/resnet/res50_256x192_d256x3_adam_lr1e-3.yaml", RESNET),
    "res2net": (
        "experiments/coco/res2net/res2net50_4s_26w_256x192_d256x3_adam_lr1e-3.yaml",
        RESNET,
    ),
    "res2net_v1b": (
        "experiments/coco/res2net/res2net50_v1b_4s_26w_256x192_d256x3_adam_lr1e-3.yaml",
        RESNET,
    ),
    "hrnet": (
        "experiments/coco/hrnet/w32_256x192_adam_lr1e-3.yaml",
        ["MODEL.EXTRA.STEM_CHANNELS", 4, *HRNET],
    ),
    "mspn": (
        "experiments/coco/mspn/mspn_2stg_256x192.yaml",
        [
            "MODEL.EXTRA.STEM_CHANNELS",
            4,
            "MODEL.EXTRA.CHANNELS",
            6,
            "MODEL.EXTRA.LAYERS",
            [2, 1, 1, 2],
        ],
    ),
    "posenas": (
        "experiments/coco/posenas/256x192_18l_48c.yaml",
        [
            "MODEL.EXTRA.INIT_CHANNELS",
            8,
            "MODEL.EXTRA.LAYERS",
            4,
            "MODEL.EXTRA.REFINE_CHANNELS",
            4,
            "MODEL.EXTRA.REFINE_LAYERS",
            4,
        ],
    ),
    "moganet": (
        "experiments/coco/moganet/moganet_xt_256x192.yaml",
        ["MODEL.EXTRA.EMBED_DIMS", [8, 8, 8, 16], "MODEL.EXTRA.DEPTHS", [1, 2, 1, 1], *DECONV],
    ),
}


def command_line(family, *overrides):
    """Return (experiment file, overrides as strings) of a narrow network."""
    path, own = EXPERIMENT[family]
    return path, [str(word) for word in (*SIZE, *own, *overrides)]


def small(family, *overrides, joints=17, seed=0):
    """Return a narrow network in eval mode whose weights depend on the seed only."""
    path, own = EXPERIMENT[family]
    cfg = config.load(ROOT / path, [*SIZE, *own, "MODEL.INIT_WEIGHTS", False, *overrides])
    cfg.defrost()
    # config.load refuses a number that differs from the dataset
    cfg.MODEL.NUM_JOINTS = joints
    model = build_model(cfg).eval()
    model.load_state_dict(filled_state(model.state_dict(), seed))
    return model


def batch_norm(name, channels):
    return {
        f"{name}.weight": (channels,),
        f"{name}.bias": (channels,),
        f"{name}.running_mean": (channels,),
        f"{name}.running_var": (channels,),
        f"{name}.num_batches_tracked": (),
    }


def filled(shapes, seed=0):
    """Return tensors of these names and shapes with generated values."""
    types = {True: torch.long, False: torch.float32}
    return filled_state(
        {
            name: torch.zeros(shape, dtype=types[name.endswith("tracked")])
            for name, shape in shapes.items()
        },
        seed,
    )


def resnet_names(stem, layers, classes=10):
    """Return the tensor names of torchvision's bottleneck ResNet for ImageNet."""
    shapes = {
        "conv1.weight": (stem, 3, 7, 7),
        **batch_norm("bn1", stem),
        "fc.weight": (classes, 32 * stem),
        "fc.bias": (classes,),
    }
    channels = stem
    for layer, blocks in enumerate(layers, 1):
        planes = stem << (layer - 1)
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            for number, shape in enumerate(
                ((planes, channels, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)), 1
            ):
                shapes |= {
                    f"{name}.conv{number}.weight": shape,
                    **batch_norm(f"{name}.bn{number}", shape[0]),
                }
            if not block:
                shapes |= {
                    f"{name}.downsample.0.weight": (4 * planes, channels, 1, 1),
                    **batch_norm(f"{name}.downsample.1", 4 * planes),
                }
            channels = 4 * planes
    return shapes


def mmpose_mspn_names(stages, stem, layers, width, joints, head="keypoint_head"):
    """Return the tensor names of mmpose's MSPN and its heads; convolutions have no biases."""

    def conv_module(name, outputs, inputs, kernel):
        return {
            f"{name}.conv.weight": (outputs, inputs, kernel, kernel),
            **batch_norm(f"{name}.bn", outputs),
        }

    shapes = conv_module("backbone.top.top.0", stem, 3, 7)
    for stage in range(stages):
        name = f"backbone.multi_stage_mspn.{stage}"
        for key, shape in resnet_names(stem, layers).items():
            if key.startswith("layer"):
                key = key.replace("downsample.0.", "downsample.conv.").replace(
                    "downsample.1.", "downsample.bn."
                )
                shapes[f"{name}.downsample.{key}"] = shape
        for unit in range(4):
            inputs, up = 32 * stem >> unit, f"{name}.upsample.up{unit + 1}"
            shapes |= conv_module(f"{up}.in_skip", width, inputs, 1)
            if unit:
                shapes |= conv_module(f"{up}.up_conv", width, width, 1)
            if stage < stages - 1:
                shapes |= conv_module(f"{up}.out_skip1", inputs, inputs, 1) | conv_module(
                    f"{up}.out_skip2", inputs, width, 1
                )
                if unit == 3:
                    shapes |= conv_module(f"{up}.cross_conv", stem, width, 1)
            layers_ = f"{head}.predict_layers.{4 * stage + unit}.conv_layers"
            shapes |= conv_module(f"{layers_}.0", width, width, 1) | conv_module(
                f"{layers_}.1", joints, width, 3
            )
    return shapes
