"""MobileNet-v2 and VGG-16 against torchvision's modules: features, parameters, multiplications, initialisation."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, vgg16_bn

from common.models.backbones import PackedPlain
from common.models.mobile import PackedMobile
from common.models.resnet import initialise
from common.models.sizes import BACKBONES, multiplications

MOBILE = BACKBONES["mobilenetv2"]


def their_mobile() -> nn.Module:
    """torchvision's network up to its classifier, with the strides of the usual networks for images of 32 pixels."""
    net = mobilenet_v2()
    net.features[0][0].stride = (1, 1)
    net.features[2].conv[1][0].stride = (1, 1)  # the depthwise convolution of the second group's first block
    return nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def their_vgg() -> nn.Module:
    """torchvision's convolutions without the last maxima; a bias before batch normalisation is zero at first, and stays so."""
    features = vgg16_bn().features[:-1]
    assert all(not m.bias.any() for m in features if isinstance(m, nn.Conv2d))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def learned(net: nn.Module) -> list[Tensor]:
    """Weights and statistics, in the order of the layers."""
    kept = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    names = {nn.Conv2d: ("weight",), nn.BatchNorm2d: ("weight", "bias", "running_mean", "running_var")}
    return [getattr(m, name) for m in kept for name in names[type(m)]]


@torch.no_grad()
def disturb(net: nn.Module, seed: int) -> nn.Module:
    """Weights, scales and statistics that differ from channel to channel, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in learned(net.double()):
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_((drawn - 0.5) * 4 / math.sqrt(tensor[0].numel()) if tensor.dim() == 4 else drawn + 0.5)
    return net


@pytest.mark.parametrize(("theirs", "packed"), [
    (their_mobile, lambda: PackedMobile(MOBILE, 2)),
    (their_vgg, lambda: PackedPlain(BACKBONES["vgg16"], 2, 3, 32)),
], ids=["mobilenetv2", "vgg16"])
def test_a_pack_of_two_is_two_of_torchvisions_networks(theirs, packed):
    """In training and in testing, each run with its own weights and images; and the statistics move alike."""
    alone, pack = [disturb(theirs(), seed) for seed in (0, 1)], packed().double()
    pairs = list(zip(learned(pack), *map(learned, alone), strict=True))
    with torch.no_grad():
        for mine, *each in pairs:
            mine.copy_(torch.cat(each))
        images = torch.randn(3, 6, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        for training in (False, True):
            features = pack.train(training)(images)
            assert features.shape == (2, 3, pack.width)
            for run, net in enumerate(alone):
                wanted = net.train(training)(images[:, 3 * run:3 * run + 3])
                assert (wanted.std(0) > 1e-6).double().mean() > 0.5  # the images tell, in most channels
                torch.testing.assert_close(features[run], wanted, rtol=1e-8, atol=1e-10)
        for mine, *each in pairs:
            torch.testing.assert_close(mine, torch.cat(each))


def test_parameters_are_those_of_torchvision():
    """2,223,872 is torchvision's 3,504,872 less its classifier of 1,281,000; 4,224 are the biases that VGG-16 has for nothing."""
    counted = [sum(p.numel() for p in net.parameters()) for net in (
        PackedMobile(MOBILE, 1), their_mobile(), PackedPlain(BACKBONES["vgg16"], 1, 3, 32), their_vgg())]
    assert counted[:2] == [2_223_872, 2_223_872]
    assert counted[3] - counted[2] == 4_224
    assert sum(p.numel() for p in PackedMobile(MOBILE, 3).parameters()) == 3 * counted[0]


@pytest.mark.parametrize(("name", "net", "side"), [
    ("mobilenetv2", their_mobile, 32), ("mobilenetv2", their_mobile, 20), ("vgg16", their_vgg, 32),
])
def test_multiplications_are_those_that_forward_hooks_count(name, net, side):
    total = 0

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()

    net = net().eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    net(torch.zeros(1, 3, side, side))
    assert multiplications(name, side, 3) == total


def test_strides_leave_four_by_four_of_thirty_two():
    shapes = []
    net = PackedMobile(MOBILE, 1, channels=1).eval()
    net.tail.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    assert net(torch.zeros(2, 1, 32, 32)).shape == (1, 2, 1280)
    assert shapes == [(2, 1280, 4, 4)]


def test_the_tail_may_have_an_adapter_and_shifted_means():
    net = PackedMobile(MOBILE, 2, adapter=20, shifted=True)
    assert (net.runs, net.width, net.copies) == (2, 20, 9)
    assert net.eval()(torch.zeros(1, 6, 16, 16)).shape == (2, 1, 180)


def test_depthwise_convolutions_start_with_the_fan_in_of_one_channel_and_run_by_run():
    """kaiming_normal with fan-in: sqrt(2 / 9) for 3x3 on one channel, sqrt(2 / c) for 1x1 on c."""
    packed, alone = PackedMobile(MOBILE, 2), PackedMobile(MOBILE, 1)
    initialise(packed, [torch.Generator().manual_seed(s) for s in (4, 5)])
    initialise(alone, [torch.Generator().manual_seed(5)])
    layers = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (packed, alone)]
    for both, one in zip(*layers, strict=True):
        first, second = both.weight.chunk(2)
        assert torch.equal(second, one.weight)
        assert not torch.equal(first, second)
    depthwise = torch.cat([m.weight.flatten() for m in layers[0] if m.kernel_size == (3, 3) and m.in_channels > 6])
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.02)
    assert layers[1][-1].weight.std().item() == pytest.approx(math.sqrt(2 / 320), rel=0.02)
