"""A pack of one run on the CPU trains through the C++ step, is resumed through it, and says so."""

import dataclasses
import time
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.data.sets import Images, load
from common.errors import UserError
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Meta, Method, Streams
from common.methods.sampling import class_balanced
from common.models import cpu_step
from common.spec import Column, Protocol
from common.store import load_records
from common.train.device import Device
from common.train.loop import train_epoch, train_pack
from common.train.resident import ResidentSteps
from common.train.state import Workspace
from tests.common.train.toys import BROKEN, METHODS, PROTOCOL, planned

COLUMN = Column("cifar10", "none", 1, "resnet20", subset="hash")
CPU = Device("cpu", "float32", False)
PUBLISHED = Protocol(epochs=200, batch_size=64, rate=0.1, momentum=0.9, weight_decay=0.0002, warmup_epochs=5,
                     decay_epochs=(160, 180), decay_factor=0.01, drop_last=False)
pytestmark = pytest.mark.skipif(cpu_step.library() is None, reason="the C++ step cannot be built here")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small() -> Images:
    """Ten classes of noise around a colour each: 11 images to train on and 3 to test, in the shape of CIFAR."""
    generator, splits = np.random.default_rng(0), []
    colours = generator.uniform(60, 190, (10, 1, 1, 3))
    for each in (11, 3):
        labels = np.repeat(np.arange(10, dtype=np.uint8), each)
        pixels = colours[labels] + generator.normal(0, 40, (len(labels), 32, 32, 3))
        splits += [pixels.clip(0, 255).astype(np.uint8), labels]
    return Images(*splits, classes=tuple(map(str, range(10))))


def member(folder, method: Method = METHODS[0], **changes):
    return planned(method, folder, 0, dataclasses.replace(PROTOCOL, **changes), COLUMN)


def train(folder, images: Images, deadline: float = float("inf"), method: Method = METHODS[0]) -> bool:
    return train_pack([member(folder, method)], images, CPU, Workspace(folder / "work", 0.0, deadline))


def test_a_resumed_run_gives_the_same_bits_and_the_record_names_the_path(small, tmp_path):
    assert train(tmp_path / "whole", small)
    while not train(tmp_path / "parts", small, time.monotonic()):  # one epoch a call
        pass
    whole, parts = (next(iter(load_records(tmp_path / name).values())) for name in ("whole", "parts"))
    assert whole["made"]["path"] == parts["made"]["path"] == "native"
    assert {k: v for k, v in whole.items() if k not in ("made", "digest")} == {
        k: v for k, v in parts.items() if k not in ("made", "digest")}
    weights = [load_file(next((tmp_path / name).rglob("*.safetensors"))) for name in ("whole", "parts")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_resume_goes_the_way_of_its_state_or_says_why_not(small, tmp_path, monkeypatch):
    assert not train(tmp_path / "native", small, time.monotonic())
    with monkeypatch.context() as without:
        without.setattr("common.train.resident.cpu_step", lambda *_: None)
        with pytest.raises(UserError, match="was begun with the C\\+\\+ step"):
            train(tmp_path / "native", small)
        assert not train(tmp_path / "eager", small, time.monotonic())
    torch.set_num_threads(2)
    with pytest.raises(UserError, match=r"begun with 1 thread\(s\), and there are 2; go on with OMP_NUM_THREADS=1"):
        train(tmp_path / "native", small)
    torch.set_num_threads(1)
    assert train(tmp_path / "eager", small)
    assert train(tmp_path / "native", small)
    paths = {name: next(iter(load_records(tmp_path / name).values()))["made"]["path"] for name in ("eager", "native")}
    assert paths == {"eager": "eager", "native": "native"}


def test_a_run_that_leaves_the_finite_range_ends(small, tmp_path):
    assert train(tmp_path, small, method=BROKEN)
    record = next(iter(load_records(tmp_path).values()))
    assert record["status"] == "diverged"
    assert record["made"]["diverged_in_epoch"] == 1


def first_stream(features, context):
    return features[:, 0]


@pytest.mark.parametrize("case", ["two runs", "two streams", "frozen", "learned weights", "float64", "digits"])
def test_what_it_does_not_know_goes_the_eager_way(case, small, digits, tmp_path):
    sampler = partial(class_balanced)
    two = Method("two", "written", softmax_cross_entropy, streams=Streams((sampler,), first_stream))
    meta = Method("meta", "written", softmax_cross_entropy, meta=Meta(held_out=2, rate=0.1), streams=Streams((sampler,)))
    ways = {
        "two runs": lambda: ResidentSteps([member(tmp_path), member(tmp_path, METHODS[1])], small, CPU),
        "two streams": lambda: ResidentSteps([member(tmp_path, two)], small, CPU),
        "frozen": lambda: ResidentSteps([member(tmp_path, trains="head")], small, CPU),
        "learned weights": lambda: ResidentSteps([member(tmp_path, meta)], small, CPU),
        "float64": lambda: ResidentSteps([member(tmp_path)], small, Device("cpu", "float64", False)),
        "digits": lambda: ResidentSteps([planned(METHODS[0], tmp_path)], digits, CPU),
    }
    steps = ways[case]()
    assert steps.path == "eager"
    assert steps._forward is steps.pack.net


def test_a_step_and_a_test_are_those_of_float64(small, tmp_path):
    """But for rounding, and the few gradients of inputs of ReLUs that it carries past zero: torch's float32 differs as much."""
    native, right = (ResidentSteps([member(tmp_path)], small, Device("cpu", name, False)) for name in ("float32", "float64"))
    for steps in (native, right):
        steps.begin_epoch(0)
        steps.step(steps.batches()[0])
    torch.testing.assert_close(native.pack.loss_sum, right.pack.loss_sum, rtol=1e-5, atol=0)
    for name, tensor in native.pack.state().items():
        exact = right.pack.state()[name]
        assert (tensor - exact).norm() <= (0.05 if name.startswith("momentum") else 0.02) * exact.norm() + 1e-6, name
    tallies = [steps.evaluate()[0].confusion for steps in (native, right)]
    assert tallies[0].sum() == tallies[1].sum() == 30
    assert (tallies[0] - tallies[1]).abs().sum() <= 2


@pytest.mark.slow
def test_losses_of_two_epochs_are_those_of_the_eager_path_over_four_seeds(cifar10, tmp_path):
    """On every 60th image of CIFAR-10: seeds differ far more than paths, whose mean difference is about zero."""
    images = load("cifar10", cifar10)
    part = Images(images.x_train[::60], images.y_train[::60], images.x_test[::500], images.y_test[::500], images.classes)
    losses = np.zeros((2, 4))
    for seed in range(4):
        for way in range(2):
            steps = ResidentSteps([planned(METHODS[0], tmp_path, seed, PUBLISHED, COLUMN)], part, CPU)
            if way:
                steps.go_eager()
            losses[way, seed] = [train_epoch(steps, epoch).item() for epoch in range(2)][-1]
    difference = losses[0] - losses[1]
    assert abs(difference).max() < 0.15, losses
    assert abs(difference.mean()) < 0.08, losses
