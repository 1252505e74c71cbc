"""Backbones and heads: parameter counts of the literature, initialisation, packed heads against plain ones."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.models.heads import CosineHead, LinearHead
from common.models.resnet import backbone, initialise
from common.models.sizes import BACKBONES, multiplications


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnet32_has_the_parameters_of_the_released_network():
    assert count(backbone("resnet32", 1)) == 463_504
    assert count(LinearHead(1, 64, 10)) + 463_504 == 464_154
    assert count(LinearHead(1, 64, 100)) + 463_504 == 470_004
    assert count(CosineHead(1, 64, 10)) + 463_504 == 464_144


@pytest.mark.parametrize("name", BACKBONES)
def test_a_pack_has_as_many_parameters_and_multiplications_a_run(name):
    assert count(backbone(name, 3)) == 3 * count(backbone(name, 1))
    net = backbone(name, 1)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 16, 16))
    assert counter.get_total_flops() == 2 * multiplications(name, 16, 3)


def test_depth_is_six_n_plus_two():
    for name in BACKBONES:
        convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in backbone(name, 1).modules())
        assert convolutions + 1 == int(name.removeprefix("resnet"))


def test_initialisation_is_kaiming_normal_with_fan_in_and_the_runs_own():
    net = backbone("resnet20", 2)
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    initialise(net, generators)
    weight = net.blocks[-1].conv2.weight
    first, second = weight.chunk(2)
    assert first.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert not torch.equal(first, second)
    alone = backbone("resnet20", 1)
    initialise(alone, [torch.Generator().manual_seed(2)])
    assert torch.equal(alone.blocks[-1].conv2.weight, second)


def test_heads_are_a_linear_layer_and_a_cosine():
    features = torch.randn(2, 5, 7, dtype=torch.float64)
    linear, cosine = LinearHead(2, 7, 4).double(), CosineHead(2, 7, 4).double()
    for head in (linear, cosine):
        head.initialise([torch.Generator().manual_seed(s) for s in (1, 2)])
    for run in range(2):
        wanted = F.linear(features[run], linear.weight[run].T, linear.bias[run, 0])
        torch.testing.assert_close(linear(features)[run], wanted)
        for i in range(5):
            for c in range(4):
                w = cosine.weight[run, :, c]
                angle = (features[run, i] @ w / features[run, i].norm() / w.norm()).item()
                assert cosine(features)[run, i, c].item() == pytest.approx(angle)


def test_heads_start_as_the_released_code_has_them():
    """Linear: kaiming_normal weights, uniform(+-1/8) bias; cosine: uniform(-1, 1), then unit columns."""
    linear, fixed, cosine = LinearHead(1, 64, 1000), LinearHead(1, 64, 4, bias=-2.0), CosineHead(1, 64, 1000)
    for head in (linear, fixed, cosine):
        head.initialise([torch.Generator().manual_seed(0)])
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.02)
    assert linear.weight.mean().abs().item() < 0.01
    assert -1 / 8 <= linear.bias.min().item() < -0.12
    assert 0.12 < linear.bias.max().item() <= 1 / 8
    assert fixed.bias.unique().tolist() == [-2.0]
    assert cosine.weight.norm(dim=1).allclose(torch.ones(1, 1000))
    assert cosine.weight.mean().abs().item() < 0.01  # both signs
    assert (cosine.weight.abs() * 8).max().item() < 2.5  # uniform before the columns were scaled: no long tail
