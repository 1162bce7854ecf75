"""The torch networks have the names, shapes, sizes and arithmetic of the public checkpoints."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from polylip.export.networks import S3FD, SyncNet, Wav2LipGenerator

# Of the lines `name dtype [shape]` of every entry in order, read off the public networks.
LISTINGS = {
    Wav2LipGenerator: (352, "86e0f095fbf232a835453ddccdf147c93b76cc20dafa61b018e2f2b29f233174"),
    S3FD: (65, "61f7eaf216445662b0cd60ad3a298e0b44f4c19f6de3dc1cc5c5e15897a287d4"),
    SyncNet: (102, "af59c04dbe597daf6bed24cb46c4ed2a0e293b8ebb32c5b631abfae8910d0590"),
}
PARAMETERS = {Wav2LipGenerator: 36_298_035, S3FD: 22_459_110, SyncNet: 13_631_616}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("network", LISTINGS)
def test_every_tensor_has_the_name_shape_and_place_of_the_public_checkpoint(network):
    state = network().state_dict()
    lines = [f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in state.items()]
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == LISTINGS[network]


@pytest.mark.parametrize("network", PARAMETERS)
def test_networks_have_the_parameters_of_the_public_ones(network):
    assert sum(p.numel() for p in network().parameters()) == PARAMETERS[network]


def test_wav2lip_costs_what_the_public_network_costs():
    network = Wav2LipGenerator().eval()
    with FlopCounterMode(display=False) as counter:
        out = network(torch.zeros(2, 1, 80, 16), torch.zeros(2, 6, 96, 96))
    assert out.shape == (2, 3, 96, 96)
    assert counter.get_total_flops() == 2 * 7_933_968_384


def test_s3fd_costs_what_the_public_network_costs_and_has_its_maps():
    with FlopCounterMode(display=False) as counter:
        maps = S3FD().eval()(torch.zeros(1, 3, 360, 640))
    sizes = [(90, 160), (45, 80), (22, 40), (15, 24), (8, 12), (4, 6)]
    assert [tuple(m.shape) for m in maps] == [(1, c, *size) for size in sizes for c in (2, 4)]
    assert counter.get_total_flops() == 146_074_017_792


def test_syncnet_costs_what_the_public_network_costs():
    with FlopCounterMode(display=False) as counter:
        lips, audio = SyncNet().eval()(torch.zeros(1, 3, 5, 224, 224), torch.zeros(1, 1, 13, 20))
    assert lips.shape == audio.shape == (1, 1024)
    assert counter.get_total_flops() == 2 * (1_558_203_552 + 243_984_640)


def test_wav2lip_uses_both_inputs_and_the_face_through_its_skips():
    torch.manual_seed(0)
    network, mel, faces = Wav2LipGenerator().eval(), torch.randn(1, 1, 80, 16), torch.rand(1, 6, 96, 96)
    out = network(mel, faces)
    assert out.min() >= 0 and out.max() <= 1
    assert not torch.equal(out, network(mel.flip(2), faces))
    assert not torch.equal(out, network(mel, faces.flip(1)))  # masked and whole face are not interchangeable


def test_residual_blocks_add_their_input_before_the_activation():
    block = Wav2LipGenerator().eval().audio_encoder[1]
    for layer in (block.conv_block[0].weight, block.conv_block[0].bias):
        layer.zero_()
    x = torch.randn(1, 32, 80, 16)
    torch.testing.assert_close(block(x), torch.relu(x))


def test_the_first_head_counts_its_likeliest_background():
    network = S3FD().eval()
    network.conv3_3_norm_mbox_conf.weight.zero_()
    network.conv3_3_norm_mbox_conf.bias.copy_(torch.tensor([1.0, 3.0, 2.0, -1.0]))
    first = network(torch.zeros(1, 3, 64, 64))[0]
    assert torch.equal(first.amin(dim=(0, 2, 3)), torch.tensor([3.0, -1.0]))


def test_l2norm_makes_unit_vectors_of_its_scale_and_survives_half_precision():
    norm = S3FD().conv3_3_norm
    x = torch.rand(1, 256, 4, 4) * 2000
    assert torch.allclose(norm(x).norm(dim=1), torch.tensor(10.0))
    half = norm.half()(x.half())
    assert half.dtype == torch.float16 and torch.allclose(half.float().norm(dim=1), torch.tensor(10.0), atol=0.05)
