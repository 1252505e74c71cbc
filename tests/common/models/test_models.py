"""Backbones and heads: parameter counts of the literature, initialisation, packed heads against plain ones."""

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method, run_spec
from common.models.backbones import PackedPReLU, backbone
from common.models.heads import CentreHead, CosineHead, GaussianHead, LinearHead, QuadraticHead
from common.models.pooling import Pooling
from common.models.resnet import PackedFull, initialise
from common.models.sizes import BACKBONES, NETWORKS, Plain, describe_backbone, multiplications
from common.spec import Column, Protocol


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnet32_has_the_parameters_of_the_released_network():
    assert count(backbone("resnet32", 1)) == 463_504
    assert count(LinearHead(1, 64, 10)) + 463_504 == 464_154
    assert count(LinearHead(1, 64, 100)) + 463_504 == 470_004
    assert count(CosineHead(1, 64, 10)) + 463_504 == 464_144


@pytest.mark.parametrize("name", BACKBONES)
def test_a_pack_has_as_many_parameters_and_multiplications_a_run(name):
    assert count(backbone(name, 3, side=16)) == 3 * count(backbone(name, 1, side=16))
    net = backbone(name, 1, side=16).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 16, 16))
    assert counter.get_total_flops() == 2 * multiplications(name, 16, 3)


@pytest.mark.parametrize(("name", "network", "adapter"), [
    ("resnet8", "plain", 0), ("resnet8", "plain", 8), ("resnet8", "shifted", 0), ("resnet8", "bilateral", 0),
    ("cnn4", "plain", 0),
    ("6layercnn100d", "plain", 0),
])
def test_features_are_float32_where_the_convolutions_are_bfloat16(name, network, adapter):
    """Means and dense layers, to what float32 makes of the same last maps; a mean in bfloat16 is off by up to 0.4 %."""
    net, ends = backbone(name, 2, side=16, network=network, adapter=adapter), []
    initialise(net, [torch.Generator().manual_seed(s) for s in range(2)])
    for module in net.modules():
        if isinstance(module, Pooling | PackedFull):
            module.register_forward_hook(lambda module, given, result: ends.append((module, given[0], result)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(torch.randn(4, 6, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert found.dtype == torch.float32
    assert ends
    assert ends[0][1].dtype == torch.bfloat16
    for module, given, result in list(ends) if not adapter else ():  # an adapter's convolution is bfloat16 too
        torch.testing.assert_close(result, module(given.float()), rtol=1e-6, atol=1e-6)


def test_depth_is_six_n_plus_two():
    for name in (n for n in BACKBONES if n.startswith("resnet")):
        convolutions = sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in backbone(name, 1).modules())
        assert convolutions + 1 == int(name.removeprefix("resnet"))


def test_the_other_networks_have_the_parameters_of_their_sources():
    """ResNet-18 with the CIFAR stem; the 13 convolutions of the mixture code (6,140,448, and 5,568 of batch norm)."""
    assert count(backbone("resnet18", 1)) == 11_168_832
    assert count(backbone("vgg13", 1)) == 6_140_448 + 5_568
    torchvision = __import__("torchvision").models.vgg13_bn()
    bias = sum(m.bias.numel() for m in torchvision.features if isinstance(m, torch.nn.Conv2d))
    assert count(backbone("vgg13bn", 1)) == count(torchvision.features) - bias


@pytest.mark.parametrize(("name", "channels", "side"), [("6layercnn2dprelu", 1, 28), ("6layercnn100d", 1, 28), ("vgg13", 3, 16),
                                                        ("resnet18", 3, 16), ("cnn4", 1, 8)])
def test_each_run_of_a_packed_network_is_the_network_alone(name, channels, side):
    """In training and in testing, with weights and statistics of the run, dense layers and PReLU among them."""
    generator = torch.Generator().manual_seed(0)
    packed = backbone(name, 3, channels, side=side).double()
    initialise(packed, [torch.Generator().manual_seed(s) for s in range(3)])
    for parameter in packed.parameters():
        parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    images = torch.randn(6, 3 * channels, side, side, generator=generator, dtype=torch.float64)
    for run in range(3):
        alone = backbone(name, 1, channels, side=side).double()
        alone.load_state_dict({n: t.chunk(3)[run].clone() for n, t in packed.state_dict().items()}, strict=False)
        mine = images[:, run * channels:(run + 1) * channels]
        for training in (True, False):
            packed.train(training), alone.train(training)
            before = {n: t.clone() for n, t in packed.state_dict().items()}
            torch.testing.assert_close(packed(images)[run], alone(mine)[0], rtol=1e-8, atol=1e-9)
            packed.load_state_dict(before, strict=False)
            alone.load_state_dict({n: t.chunk(3)[run].clone() for n, t in before.items()}, strict=False)


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


@pytest.mark.parametrize("name", ["6layercnn2d", "6layercnn2dprelu", "6layercnn100d", "6layercnn100dprelu"])
def test_the_mnist_networks_start_as_their_sources_files_have_them(name):
    """Uniform within +-sqrt(3 / fan-in), the Xavier filler of Caffe, zero biases, slopes of 0.25."""
    net = backbone(name, 2, 1, side=28)
    initialise(net, [torch.Generator().manual_seed(s) for s in (1, 2)])
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | PackedFull)]
    assert sum(m.bias is None for m in layers) == (2 if name.startswith("6layercnn2d") else 3)  # batch norm follows at once
    for layer in layers:
        assert layer.bias is None or not layer.bias.any()
        each = [layer.weight, layer.weight.chunk(2)[1]] if isinstance(layer, torch.nn.Conv2d) else [layer.weight, layer.weight[1]]
        assert not torch.equal(each[0][:len(each[1])], each[1])
        limit = math.sqrt(3 / (layer.weight[0].numel() if isinstance(layer, torch.nn.Conv2d) else layer.weight.shape[1]))
        assert layer.weight.abs().max().item() <= limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=4 / layer.weight.numel() ** 0.5)
    slopes = [m.slope for m in net.modules() if isinstance(m, PackedPReLU)]
    assert bool(slopes) == name.endswith("prelu")
    assert all(slope.eq(0.25).all() for slope in slopes)


def test_the_mnist_network_of_two_features_has_four_convolutions_and_two_dense_layers():
    """32, 32, 64, 64 channels, then 128 and 2; 5x5 without padding, then 3x3: 12 by 12 and 6 by 6 pixels after the maxima."""
    net = backbone("6layercnn2d", 1, 1, side=28)
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | PackedFull)]
    shapes = [tuple(m.weight.shape[-4:]) for m in layers]
    assert shapes == [(32, 1, 5, 5), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (1, 64 * 6 * 6, 128), (1, 128, 2)]
    assert [type(m).__name__ for m in net.layers[-5:]] == ["Flatten", "PackedFull", "PackedNorm", "ReLU", "PackedFull"]
    assert net.width == 2


def test_a_two_branch_resnet_sees_an_image_with_both_last_blocks():
    """The network of BBN for one stream: 537,488 parameters, 128 features."""
    net = backbone("resnet32", 1, network="two-branch")
    initialise(net, [torch.Generator().manual_seed(0)])
    assert (count(net), net.width, net.copies) == (537_488, 128, 1)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net.eval()
    assert torch.equal(net(images), torch.cat([net(images, 0), net(images, 1)], -1))
    assert not torch.equal(net(images, 0), net(images, 1))
    for name, adapter in (("vgg16", 0), ("resnet32", 20)):
        with pytest.raises(UserError, match=f"two-branch network is built from a ResNet without an adapter; {name} is none"):
            backbone(name, 1, network="two-branch", adapter=adapter)


def test_means_start_standard_normal_or_by_their_width():
    for kind in (CentreHead, GaussianHead, QuadraticHead):
        for means, deviation in (("normal", 1.0), ("msra", math.sqrt(2 / 50)), ("xavier", math.sqrt(1 / 50))):
            head = kind(1, 50, 200, means)
            head.initialise([torch.Generator().manual_seed(0)])
            assert head.weight.std().item() == pytest.approx(deviation, rel=0.03)
            assert (head.weight.abs().max().item() <= math.sqrt(3 / 50)) == (means == "xavier")
        plain = kind(1, 50, 200)
        plain.initialise([torch.Generator().manual_seed(0)])
        assert plain.weight.std().item() == pytest.approx(1, rel=0.03)


def test_the_key_of_a_run_names_the_shape_of_its_network_and_how_it_starts(monkeypatch):
    protocol = Protocol(1, 1, 0.1, 0.9, 0.0, 0, (), 1.0, False)
    method, column = Method("ce", "written", softmax_cross_entropy), Column("mnist", "none", 1, "6layercnn2d")
    run = run_spec(column, protocol, method, 0)
    shape = BACKBONES["6layercnn2d"]
    assert run.as_json()["method"]["backbone"] == {
        "shape": "Plain", "layers": [list(layer) for layer in shape.layers], "weights": "xavier"}
    keys = {run.key}
    for other in (Plain(shape.layers), Plain((*shape.layers[:-1], ("full", 3)), "xavier")):
        monkeypatch.setitem(BACKBONES, "6layercnn2d", other)
        keys.add(run_spec(column, protocol, method, 0).key)
    assert len(keys) == 3
    said = run_spec(Column("imagenet", "none", 1, "resnext50"), protocol, method, 0).method["backbone"]
    assert said == {"shape": "Network", "timm": "resnext50_32x4d", "width": 2048, "changes": {}, "weights": "kaiming-fan-out"}
    assert all(describe_backbone(n) == {"shape": "Residual", **asdict(s)} for n, s in BACKBONES.items() if n.startswith("resnet"))
    assert not set(BACKBONES) & set(NETWORKS)


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
