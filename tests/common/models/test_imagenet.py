"""The large backbones are timm's, with our pooling; their weights can come from ImageNet; a shared norm is over all images."""

import copy
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from common.models import imagenet
from common.models.imagenet import LargeNetwork, SharedNorm, draw_weights, load_imagenet, share_norms
from common.models.pooling import shifted_means
from common.models.sizes import NETWORKS

SMALL = "resnet10w8"


def timm_network(name: str = SMALL, **more) -> nn.Module:
    return timm.create_model(NETWORKS[name].timm, **NETWORKS[name].changes, **more)


@pytest.mark.parametrize("name", NETWORKS)
def test_width_and_multiplications_are_those_of_timm(name):
    found = []

    def count(module, inputs, output):
        found.append(output[0].numel() * module.weight[0].numel())

    with torch.device("meta"):
        net = LargeNetwork(name)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        features = net(torch.zeros(2, 3, 224, 224))
    assert features.shape == (1, 2, NETWORKS[name].width)
    assert sum(found) == NETWORKS[name].multiplications


def test_known_sizes_of_the_published_networks():
    """Parameters of torchvision's models without their classifiers of 1,000 classes."""
    published = {"resnet50": 25_557_032, "resnext50": 25_028_904, "resnet101": 44_549_160, "resnet152": 60_192_808}
    for name, whole in published.items():
        with torch.device("meta"):
            net = LargeNetwork(name)
        assert sum(p.numel() for p in net.parameters()) == whole - 2048 * 1000 - 1000


def test_features_are_timms_own(tmp_path):
    """With weights from a file, in training and in testing; with an adapter or shifted means the same maps."""
    plain = timm_network(num_classes=7)
    begun = copy.deepcopy(plain.state_dict())
    torch.save({"state_dict": {f"module.{k}": v for k, v in plain.state_dict().items()}}, tmp_path / "x.pth")
    (tmp_path / "weights").mkdir()
    (tmp_path / "x.pth").rename(tmp_path / "weights" / f"{SMALL}-torchvision.pth")
    x = torch.randn(4, 3, 96, 96)
    for kind in ("plain", "shifted"):
        net = LargeNetwork(SMALL, kind)
        origin = load_imagenet(net, SMALL, tmp_path)
        plain.load_state_dict(begun)
        assert re.fullmatch(rf"{SMALL}-torchvision\.pth [0-9a-f]{{16}}", origin)
        for training in (False, True):
            net.train(training), plain.train(training)
            maps = plain.forward_features(x)
            expected = maps.mean((2, 3)) if kind == "plain" else shifted_means(maps).movedim(0, 1).flatten(1)
            torch.testing.assert_close(net(x)[0], expected)


def test_a_bilateral_network_has_its_last_block_twice(tmp_path):
    (tmp_path / "weights").mkdir()
    plain = timm_network(num_classes=0, global_pool="")
    save_file(plain.state_dict(), tmp_path / "weights" / f"{SMALL}.safetensors")
    net = LargeNetwork(SMALL, "bilateral").eval()
    load_imagenet(net, SMALL, tmp_path)
    x, width = torch.randn(2, 3, 64, 64), NETWORKS[SMALL].width
    assert net(x).shape == (1, 2, 2 * width)
    torch.testing.assert_close(net(x)[..., :width], net(x)[..., width:])
    with torch.no_grad():
        net.branches[1].downsample[0].weight.zero_()
    torch.testing.assert_close(net(x), torch.cat([net(x, 0), net(x, 1)], -1))
    assert not torch.equal(net(x, 0), net(x, 1))
    with pytest.raises(UserError, match="has no adapter"):
        LargeNetwork(SMALL, "bilateral", 8)
    with pytest.raises(UserError, match="take a plain one"):
        LargeNetwork(SMALL, "two-branch")


def test_drawn_weights_have_the_variance_of_timms_own_in_every_layer():
    """2 / fan-out, and the fan-out of a grouped convolution counts the outputs of all groups."""
    net = LargeNetwork("resnext50")
    draw_weights([net], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    theirs = {n: m.weight for n, m in timm_network("resnext50").named_modules() if isinstance(m, nn.Conv2d)}
    last = f"layer4.{len(net.trunk.layer4)}."
    mine = {n.replace("branches.0.", last).removeprefix("trunk."): m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert mine.keys() == theirs.keys()
    assert sum(m.groups == 32 for m in mine.values()) == 16
    for name, conv in mine.items():
        assert conv.weight.std().item() == pytest.approx(theirs[name].std().item(), rel=5 / conv.weight.numel() ** 0.5), name
    assert net.branches[0].bn3.weight.eq(1).all(), "the last norm of a block starts at one, as in the released codes"
    other = LargeNetwork("resnext50")
    draw_weights([other], torch.Generator().manual_seed(0))
    assert all(a.equal(b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_that_cannot_be_had_are_one_sentence(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    net = LargeNetwork(SMALL)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=f"No ImageNet weights of {SMALL} are here and timm could not fetch .* into .*weights"):
        load_imagenet(net, SMALL, tmp_path)
    (tmp_path / "weights").mkdir()
    held = tmp_path / "weights" / f"{SMALL}.pth"
    held.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a file of weights"):
        load_imagenet(net, SMALL, tmp_path)
    torch.save({"conv1.weight": torch.zeros(1)}, held)
    with pytest.raises(UserError, match=f"does not hold the weights of a {SMALL}"):
        load_imagenet(net, SMALL, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_shared_norm_alone_is_batch_normalisation(dtype, monkeypatch):
    """Values, gradients and statistics; over several processes the engine's tests compare it."""
    monkeypatch.setattr(imagenet.dist, "all_reduce", lambda tensor: None)  # one process
    plain = nn.Sequential(nn.BatchNorm2d(5))
    plain[0].num_batches_tracked = None
    shared = nn.Sequential(nn.BatchNorm2d(5))
    share_norms(shared)
    assert isinstance(shared[0], SharedNorm)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plain.to(wide), shared.to(wide)
    x = (3 * torch.randn(6, 5, 4, 4, dtype=wide) + 2).to(dtype)
    for net in (plain, shared):
        net.x = x.clone().requires_grad_()
        net.y = net(net.x)
        (net.y.to(wide) ** 3).sum().backward()
    close = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    assert shared.y.dtype == dtype
    torch.testing.assert_close(shared.y, plain.y, **close)
    torch.testing.assert_close(shared.x.grad, plain.x.grad, **close)
    torch.testing.assert_close(shared[0].running_var, plain[0].running_var, **close)
    torch.testing.assert_close(shared[0].running_mean, plain[0].running_mean, **close)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x), **close)
