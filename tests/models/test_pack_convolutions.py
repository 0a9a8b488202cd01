"""Test packed convolutions against the unpacked network, in every family."""

import pytest
import torch
from poise.models.fuse import PackedConv2d, can_pack, fold_batch_norms, pack_convolutions
from support.small_networks import EXPERIMENT, small
from torch import nn

pytestmark = pytest.mark.skipif(
    not can_pack(), reason="this PyTorch has no oneDNN, or not the operations that packing needs"
)


@pytest.mark.parametrize("family", EXPERIMENT)
@torch.no_grad()
def test_pack_convolutions_every_family_keeps_outputs(family):
    model = small(family)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = model(images)
    packed = pack_convolutions(fold_batch_norms(model))
    assert any(isinstance(module, PackedConv2d) for module in packed.modules())
    # the first decides the layout, all must be right
    for batch in (images, images[:1], images.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(
            packed(batch), wanted[: len(batch)], rtol=1e-4, atol=1e-4 * wanted.abs().max().item()
        )
    other = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        packed(other), model(other), rtol=1e-4, atol=1e-4 * wanted.abs().max().item()
    )


@torch.no_grad()
def test_pack_convolutions_bfloat16_equals_autocast():
    conv = nn.Conv2d(16, 32, 3, padding=1)
    images = torch.randn(2, 16, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = conv(images)
    found = pack_convolutions(nn.Sequential(conv), torch.bfloat16)(images)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2e-2, atol=2e-2)
