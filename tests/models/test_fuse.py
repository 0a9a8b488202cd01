"""Test batch-norm folding: outputs are unchanged in every family."""

import copy

import pytest
import torch
from poise.models import fuse
from poise.models.fuse import fold_batch_norms
from support.small_networks import EXPERIMENT, small
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms_of(model):
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def outputs(model, images):
    with torch.no_grad():
        return model(images)


def assert_close(one, two):
    """Equal up to float rounding over some dozens of layers."""
    assert (one - two).abs().max() < 1e-4 * one.std() and one.std() > 0


# what has no convolution of its own before it: MSPN's heads that only training has, PoseNAS's pools
# and factorised reductions, MogaNet's blocks
LEFT = {
    "mspn": lambda name: ".res_conv" in name and "stage1.upsample.up4." not in name,
    "posenas": lambda name: name.endswith(".bn"),
    "moganet": lambda name: "blocks" in name or name.startswith("backbone.norm"),
}


@pytest.mark.parametrize("family", EXPERIMENT)
def test_fold_batch_norms_every_family_keeps_outputs(family):
    model = small(family)
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norms(model)
    assert_close(outputs(model, images), outputs(folded, images))
    assert set(norms_of(folded)) == set(filter(LEFT.get(family, lambda _: False), norms_of(model)))
    assert len(norms_of(folded)) < len(norms_of(model)) and not folded.training
    assert list(before) == list(model.state_dict()) and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )


def test_fold_batch_norms_posenas_shared_layer_folds_once():
    """A layer that is called twice is folded once."""
    model = small("posenas", "MODEL.EXTRA.ALIASED_FEATURES", False)
    folded = fold_batch_norms(model)
    assert isinstance(folded.reduce_channel_prev[2], nn.Identity)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert_close(outputs(model, images), outputs(folded, images))


def test_fold_batch_norms_train_mode_leaves_the_model():
    model = small("hrnet").train()
    folded = fold_batch_norms(model)
    assert (
        model.training
        and all(module.training for module in model.modules())
        and not any(module.training for module in folded.modules())
    )


class Branching(nn.Module):
    """Pairs that must not be folded, and one that may."""

    def __init__(self):
        super().__init__()
        self.used_twice, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.one, self.two, self.shared = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.grouped, self.of_grouped = nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)
        self.depthwise, self.of_depthwise = nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.used_twice(x)
        x = self.norm(x) + x
        x = self.shared(self.one(x)) + self.shared(self.two(x))
        return self.of_depthwise(self.depthwise(self.of_grouped(self.grouped(x))))


def test_fold_batch_norms_shared_or_branching_norm_stays():
    torch.manual_seed(0)
    model = Branching().train()
    for _ in range(3):  # statistics that are not 0 and 1
        model(torch.randn(4, 3, 9, 9) + 1)
    folded, images = fold_batch_norms(model), torch.randn(2, 3, 9, 9)
    assert norms_of(folded) == ["norm", "shared", "of_grouped"]
    assert_close(outputs(model.eval(), images), outputs(folded, images))


def test_fold_batch_norms_keeps_memory_format_and_dtype():
    model = small("resnet").to(torch.float64, memory_format=torch.channels_last)
    folded = fold_batch_norms(model)
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.float64}
    assert folded.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)


class Unfollowed(nn.Module):
    """A forward pass that torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        if x.shape[2] > 4 and x.mean() > 0:
            x = x + 1
        for half in x.split(2):
            x = x + half.mean()
        return x


def test_fold_batch_norms_untraceable_network_copies_and_logs_once(caplog):
    """The network is copied unchanged and this is logged once."""
    torch.manual_seed(0)
    fuse._warn_once.cache_clear()
    model, images = Unfollowed().train(), torch.randn(2, 3, 9, 9)
    model(images)
    for _ in range(2):
        copied = fold_batch_norms(model)
        assert (
            copied is not model
            and norms_of(copied) == ["norm"]
            and not copied.training
            and model.training
        )
    assert torch.equal(outputs(model.eval(), images), outputs(copied, images))
    (message,) = [record.getMessage() for record in caplog.records]
    assert (
        message.startswith(
            "Unfollowed: batch norms are not folded, torch.fx cannot trace its forward pass"
            " (TraceError: "
        )
        and "\n" not in message
    )


def test_evaluate_folds_by_default(tiny_experiment, monkeypatch):
    """Also during training; results are equal up to rounding, and training continues unfolded."""
    import numpy as np
    from poise import config
    from poise.engine import evaluate, train
    from poise.engine.run_logger import TrainLogger

    found, predict = [], train.predict
    for module in (train, evaluate):
        monkeypatch.setattr(
            module,
            "predict",
            lambda cfg, model, *rest, **more: (
                found.append((norms_of(model), predict(cfg, model, *rest, **more))) or found[-1][1]
            ),
        )
    monkeypatch.setattr(TrainLogger, "_show_test", lambda *_: None)

    def run(tool, fold, *overrides):
        tool.run(
            config.load(
                tiny_experiment,
                [
                    "TRAIN.END_EPOCH",
                    "1",
                    "TEST.PICTURES",
                    "0",
                    "GPUS",
                    "()",
                    "TEST.FOLD_BN",
                    fold,
                    *overrides,
                ],
            ),
            str(tiny_experiment),
            ["x"],
        )
        return found.pop()

    runs = [run(train, "True"), run(train, "False"), run(evaluate, "True"), run(evaluate, "False")]
    assert [bool(norms) for norms, _ in runs] == [False, True, False, True]
    assert not np.array_equal(runs[2][1].scores, runs[3][1].scores)
    for _, other in runs[1:]:
        assert np.allclose(
            other.scores, runs[0][1].scores, rtol=1e-4, atol=1e-6
        ) and other.loss == pytest.approx(runs[0][1].loss, rel=1e-5)
    saved = torch.load(
        tiny_experiment.parent / "output" / "coco" / "pose_res2net" / "tiny" / "final_state.pth",
        weights_only=True,
    )
    assert "layer1.0.bn1.running_mean" in saved
