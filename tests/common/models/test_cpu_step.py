"""The C++ step: what torch computes, in every case that it knows; and torch's own operations in every other."""

import copy
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common.models import cpu_step
from common.models.backbones import backbone
from common.models.cpu_step import CpuStep, fits
from common.models.resnet import PackedBilateral, PackedResNet, initialise
from common.models.sizes import BACKBONES, Residual

needs_library = pytest.mark.skipif(cpu_step.library() is None, reason="the C++ step cannot be built here")
SHAPES = [  # shape, side, channels, images, threads
    (Residual(1, 16), 16, 3, 5, 1),
    (Residual(1, 16, stages=2), 8, 1, 7, 1),
    (Residual(1, 16, stages=1), 16, 3, 3, 2),
    (Residual(2, 32), 32, 3, 2, 1),
    (Residual(1, 48, stages=2), 8, 3, 1, 1),
    (Residual(2, 16, stages=3, projection=True), 16, 3, 6, 1),
    (Residual(1, 64, stages=4, projection=True), 32, 3, 3, 1),
]
CASES = [*((*shape, "plain") for shape in SHAPES), *((*SHAPES[k], "shifted") for k in (0, 3, 5)),
         *((*SHAPES[k], "two-branch") for k in (3, 5)), (Residual(2, 16, stages=1), 8, 1, 9, 2, "two-branch")]


@pytest.fixture(autouse=True)
def threads_as_before():  # no test's parameter may have this name: it would take the fixture's place
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network(shape: Residual, channels: int, seed: int = 0, kind: str = "plain") -> PackedResNet:
    two_branches = kind == "two-branch"
    net = PackedBilateral(shape, 1, channels) if two_branches else PackedResNet(shape, 1, channels, shifted=kind == "shifted")
    generator = torch.Generator().manual_seed(seed)
    initialise(net, [generator])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, mean, std in ((module.weight, 1, 0.2), (module.bias, 0, 0.3), (module.running_mean, 0, 0.3)):
                tensor.data.normal_(mean, std, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return net.to(memory_format=torch.channels_last)


def batch(net: PackedResNet, images: int, channels: int, side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 1000)
    return (torch.randn(images, channels, side, side, generator=generator) + 0.2,
            torch.randn(1, images, net.copies * net.width, generator=generator))


def error(mine: torch.Tensor, right: torch.Tensor) -> float:
    return float((mine.detach().double() - right.detach()).norm() / right.detach().norm())


@needs_library
@pytest.mark.parametrize(("shape", "side", "channels", "images", "threads", "kind"), CASES)
def test_features_statistics_and_every_layers_gradients_are_those_of_float64(shape, side, channels, images, threads, kind):
    """Median of five draws: where a ReLU's input is a rounding error from zero, a gradient may be another one."""
    torch.set_num_threads(threads)
    errors: dict[str, list[float]] = {}
    for seed in range(5):
        net = network(shape, channels, seed, kind)
        right = copy.deepcopy(net).double()
        x, g = batch(net, images, channels, side, seed)
        step = CpuStep(net, shape, channels, side, images)
        for forward, dtype in ((step, torch.float32), (right, torch.float64)):
            features = forward(x.to(dtype))
            features.backward(g.to(dtype))
        errors.setdefault("features", []).append(error(step(x), right(x.double())))
        for (name, mine), exact in zip(net.named_parameters(), right.parameters(), strict=True):
            errors.setdefault(name, []).append(error(mine.grad, exact.grad))
        for (name, mine), exact in zip(net.named_buffers(), right.buffers(), strict=True):
            errors.setdefault(name, []).append(error(mine, exact))
    assert len(errors) == 1 + len(list(net.parameters())) + len(list(net.buffers()))
    assert all(statistics.median(e) < 3e-5 for e in errors.values()), errors


@needs_library
@pytest.mark.slow
def test_a_processor_without_avx512_gets_the_same(monkeypatch):
    older = tuple("-march=haswell" if flag == "-march=native" else flag for flag in cpu_step.FLAGS)
    monkeypatch.setattr(cpu_step, "FLAGS", older)
    cpu_step.library.cache_clear()
    try:
        assert cpu_step.library().width() == 8
        for case in (CASES[0], *CASES[3:6:2], *CASES[-5:]):
            test_features_statistics_and_every_layers_gradients_are_those_of_float64(*case)
    finally:
        cpu_step.library.cache_clear()


@needs_library
def test_testing_uses_the_running_statistics_in_parts_and_leaves_them_alone():
    shape = Residual(1, 16, projection=True)
    net = network(shape, 3).eval()
    x, _ = batch(net, 21, 3, 16)
    before = copy.deepcopy(net.state_dict())
    step = CpuStep(net, shape, 3, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(step(x), net(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(step(x), torch.cat([step(part) for part in x.split(5)], 1))
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_the_same_every_time_for_one_number_of_threads(threads):
    torch.set_num_threads(threads)
    shape, found = Residual(1, 16), []
    for busy in (False, True):
        net = network(shape, 3)
        step = CpuStep(net, shape, 3, 32, 9)
        for seed in (5, 0) if busy else (0,):  # the second time after another batch, whose statistics are taken back
            state = copy.deepcopy(net.state_dict())
            x, g = batch(net, 9 - seed, 3, 32, seed)
            net.zero_grad()
            step(x).backward(g)
            if seed:
                net.load_state_dict(state)
        found.append([p.grad for p in net.parameters()] + [b.clone() for b in net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_library
def test_what_is_not_a_number_reaches_features_and_gradients():
    shape = Residual(1, 16)
    net = network(shape, 3)
    x, g = batch(net, 4, 3, 16)
    x[1, 2, 3, 4] = torch.nan
    step = CpuStep(net, shape, 3, 16, 4)
    features = step(x)
    assert features.isnan().all()  # through the statistics of the batch
    (features * g).square().sum().backward()
    assert all(p.grad.isnan().any() for p in net.parameters())


@needs_library
def test_a_forward_pass_between_a_step_and_its_backward_pass_is_said():
    shape = Residual(1, 16)
    net = network(shape, 3)
    x, g = batch(net, 4, 3, 16)
    step = CpuStep(net, shape, 3, 16, 4)
    features = step(x)
    step(x)
    with pytest.raises(RuntimeError, match="another one came before"):
        features.backward(g)


@needs_library
def test_images_of_one_branch_alone_are_refused():
    shape = Residual(2, 16)
    net = network(shape, 3, kind="two-branch")
    x, _ = batch(net, 4, 3, 16)
    with pytest.raises(ValueError, match="both branches"):
        CpuStep(net, shape, 3, 16, 4)(x, 1)


@needs_library
def test_a_channels_first_weight_and_strange_strides_are_read_right():
    shape = Residual(1, 16, stages=1)
    net = network(shape, 3)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    x, g = batch(net, 4, 3, 16)
    for one, images in ((net, x), (plain, x.transpose(2, 3).contiguous().transpose(2, 3))):
        CpuStep(one, shape, 3, 16, 4)(images).backward(g)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


@needs_library
def test_denormal_numbers_survive_loading():
    cpu_step.library()
    assert torch.tensor([1e-40]).mul(0.5).item() > 0
    assert 5e-324 * 1.0 > 0


@needs_library
def test_the_program_that_make_asan_builds_is_of_todays_source():
    """It is built by hand, so nothing else would notice a moved file or a new argument."""
    source = Path(__file__).with_name("cpu_resnet_bounds.cpp")
    done = subprocess.run([os.environ.get("CXX", "g++"), "-std=c++20", "-fsyntax-only", "-march=native", "-fopenmp", source],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "runs", "options", "side"), [
    ("resnet8", 1, {}, 8), ("resnet32", 2, {}, 32), ("resnet8", 1, {"network": "two-branch"}, 32),
    ("resnet32", 1, {"adapter": 8}, 32), ("resnet32", 1, {}, 28),
    ("vgg13", 1, {}, 32), ("mobilenetv2", 1, {}, 32),
])
def test_networks_that_it_does_not_know_are_left_to_torch(name, runs, options, side):
    assert not fits(backbone(name, runs, 3, side=side, **options), BACKBONES[name], side)


def test_residual_networks_of_the_papers_fit():
    for network in ("shifted", "two-branch"):
        assert fits(backbone("resnet32", 1, 3, network=network), BACKBONES["resnet32"], 32)
    assert all(fits(backbone(name, 1, 3), BACKBONES[name], 32) for name in ("resnet20", "resnet32", "resnet56", "resnet18"))


def test_without_a_compiler_one_sentence_says_why_and_torch_has_to_do(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cpu_step, "FOLDER", tmp_path / "work" / "cpp")
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpu_step.library.cache_clear()
    try:
        shape = Residual(1, 16)
        assert [cpu_step.cpu_step(network(shape, 3), shape, 3, 16, 4) for _ in range(2)] == [None, None]
    finally:
        cpu_step.library.cache_clear()
    said = capfd.readouterr()
    assert said.err.count("\n") == 1
    assert "cannot be built" in said.err
    assert not said.out
    assert not list((tmp_path / "work" / "cpp").iterdir())


@needs_library
def test_what_was_built_is_kept_for_this_processor_and_source_only(monkeypatch):
    file = cpu_step.library_file()
    code = "from common.models.cpu_step import library; assert library()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert not done.stderr  # nothing is built a second time
    for name, value in (("processor", lambda: "another avx2 fma"), ("FLAGS", ("-O0",))):
        with monkeypatch.context() as context:
            context.setattr(cpu_step, name, value)
            assert cpu_step.library_file() != file
