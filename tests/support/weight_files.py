"""Write, load and compare weight files in tests."""

import pytest
import torch
from poise.errors import DataError

# the MSPN of small_networks as arguments of mmpose_mspn_names
MSPN = {"stem": 4, "layers": (2, 1, 1, 2), "width": 6}


def saved(path, content):
    torch.save(content, path)
    return path


def refusal(call, *args, **options):
    with pytest.raises(DataError) as error:
        call(*args, **options)
    return str(error.value)


def same(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in state
    )


def equal(model, expected):
    return same(model.state_dict(), expected)


def module(state):
    """Add the prefix of DataParallel to the tensor names."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


def mmpose(state, head="keypoint_head"):
    """Rename the tensors of a ResNet or an HRNet as in mmpose."""
    return {
        (
            f"{head}.{name}"
            if name.startswith(("deconv_layers.", "final_layer."))
            else f"backbone.{name}"
        ): tensor
        for name, tensor in state.items()
    }
