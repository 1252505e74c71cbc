"""The contract of a pack on CUDA: captured, compiled and in bf16 it is the same training. Skipped where there is no GPU."""

import dataclasses
from dataclasses import replace

import pytest
import torch

from common.methods.method import Method
from common.store import load_records
from common.train import resident as resident_module
from common.train.device import Device, use_device
from common.train.loop import train_epoch, train_pack
from common.train.resident import ResidentSteps
from common.train.state import Workspace
from tests.common.train.kinds import FIRST_STAGES, META
from tests.common.train.toys import BROKEN, COLUMN, METHODS, PROTOCOL, broken, planned, train_between

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

DOUBLE, SINGLE = Device("cuda", "float64", False), Device("cuda", "float32", False)
FAST = Device("cuda", "bfloat16", True)


def trained(members, digits, device: Device, epochs: int = 3) -> ResidentSteps:
    steps = ResidentSteps(members, digits, device)
    for epoch in range(epochs):
        train_epoch(steps, epoch)
    return steps


def test_a_captured_step_is_the_cpus_step(digits, tmp_path):
    """In float64 the graph, its last smaller batch included, gives the CPU's weights to rounding of the float32 rate."""
    members = [planned(m, tmp_path, seed) for seed, m in enumerate(METHODS)]
    there, here = trained(members, digits, DOUBLE), trained(members, digits, Device("cpu", "float64", False))
    assert set(there._graphs) == {(50, False), (14, False)}
    for run in range(len(members)):
        mine, theirs = there.pack.run_state(run), here.pack.run_state(run)
        for name in mine:
            torch.testing.assert_close(mine[name].cpu(), theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("methods", FIRST_STAGES, ids=lambda methods: "+".join(m.name for m in methods))
def test_every_kind_of_method_captured_is_the_cpus(methods, digits, tmp_path):
    """Streams, mixup, noise, learned weights, Gaussian heads, Adam: two epochs and a decayed one in float64."""
    members = [planned(m, tmp_path, seed, m.protocol or PROTOCOL) for m in methods for seed in (0, 3)]
    there, here = trained(members, digits, DOUBLE), trained(members, digits, Device("cpu", "float64", False))
    for run in range(len(members)):
        mine, theirs = there.pack.run_state(run), here.pack.run_state(run)
        for name in mine:
            torch.testing.assert_close(mine[name].cpu(), theirs[name], rtol=1e-4, atol=1e-5)


def test_each_run_of_a_captured_pack_equals_the_run_alone(digits, tmp_path):
    members = [planned(m, tmp_path, seed) for seed, m in enumerate(METHODS)]
    packed = trained(members, digits, DOUBLE)
    for run, member in enumerate(members):
        alone = trained([member], digits, DOUBLE)
        assert torch.equal(packed.pack.drawn[:, run], alone.pack.drawn[:, 0])
        for name, tensor in packed.pack.run_state(run).items():
            torch.testing.assert_close(tensor, alone.pack.run_state(0)[name], rtol=1e-7, atol=1e-9)


def test_a_diverged_run_leaves_its_neighbours_alone(digits, tmp_path, monkeypatch):
    def without_choices(device):
        at = use_device(device)
        torch.backends.cudnn.benchmark = False  # its choice of kernels may differ between the packs
        return at

    monkeypatch.setattr(resident_module, "use_device", without_choices)
    sound, hurt = (train_between(m, digits, tmp_path, SINGLE) for m in (METHODS[2], BROKEN))
    assert hurt.pack.alive == [True, False, True]
    for run in (0, 2):
        for name, tensor in sound.pack.run_state(run).items():
            torch.testing.assert_close(tensor, hurt.pack.run_state(run)[name], rtol=1e-3, atol=1e-4)
            assert tensor.isfinite().all()


def test_a_diverged_run_does_not_reach_its_neighbours_through_the_fast_kernels(digits, tmp_path):
    """Compiled, bf16, the channels of a ResNet-32: a neighbour of a run that is not a number stays finite within the epoch."""
    column = dataclasses.replace(COLUMN, backbone="resnet32")

    def early(outputs, labels, context):
        return broken(outputs, labels, context._replace(epoch=context.epoch + 1))

    members = [planned(m, tmp_path, column=column) for m in (METHODS[0], Method("early", "written", early), METHODS[1])]
    steps = ResidentSteps(members, digits, FAST)
    losses = train_epoch(steps, 0)
    assert [bool(v) for v in losses.isfinite()] == [True, False, True]
    for run in (0, 2):
        assert all(t.isfinite().all() for t in steps.pack.run_state(run).values())


@pytest.mark.parametrize("device", [replace(DOUBLE, graph=False), replace(SINGLE, graph=False)], ids=lambda d: d.precision)
def test_plain_steps_train_as_a_graph_does(device, digits, tmp_path):
    """What a pack falls back on where its capture fails."""
    members = [planned(m, tmp_path, seed) for seed, m in enumerate(METHODS)]
    plain, captured = trained(members, digits, device, 1), trained(members, digits, replace(device, graph=True), 1)
    assert not plain._graphs
    for name, tensor in captured.pack.state().items():
        torch.testing.assert_close(plain.pack.state()[name], tensor, rtol=1e-3, atol=1e-4)


def test_learned_weights_in_bfloat16_point_where_those_of_float64_do(digits, tmp_path):
    found = []
    for device in (Device("cuda", "bfloat16", False), DOUBLE):
        steps = ResidentSteps([planned(META, tmp_path, seed) for seed in (0, 1)], digits, device)
        steps.begin_epoch(2)
        batch = steps.batches()[0]
        found.append((steps.learn_weights(batch) - steps.pack.weights[0][steps.feed.labels[batch.images[0]]]).double().flatten())
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.98


def test_a_paused_pack_goes_on(digits, tmp_path):
    protocol = dataclasses.replace(PROTOCOL, epochs=6, decay_epochs=(4,))
    whole, parts = ([planned(m, tmp_path / name, 0, protocol) for m in METHODS[:2]] for name in ("whole", "parts"))
    assert train_pack(whole, digits, DOUBLE, Workspace(tmp_path / "w", 30.0))
    assert not train_pack(parts, digits, DOUBLE, Workspace(tmp_path / "p", 0.0, deadline=0.0))
    assert train_pack(parts, digits, DOUBLE, Workspace(tmp_path / "p", 30.0))
    a, b = load_records(tmp_path / "whole"), load_records(tmp_path / "parts")
    for key in a:
        assert a[key]["curves"]["train_loss"] == pytest.approx(b[key]["curves"]["train_loss"], rel=1e-5)


def test_a_compiled_pack_of_mixed_methods_is_close_to_the_eager_one(digits, tmp_path):
    members = [planned(m, tmp_path, seed) for seed, m in enumerate(METHODS)]
    fast, plain = (ResidentSteps(members, digits, Device("cuda", "float32", compiled)) for compiled in (True, False))
    torch.testing.assert_close(train_epoch(fast, 0), train_epoch(plain, 0), rtol=0.05, atol=0.05)


def test_the_fast_way_learns_as_well_as_float32(digits, tmp_path):
    """bf16, channels last, compiled: the mean accuracy of eight seeds is within three points of float32's."""
    protocol = dataclasses.replace(PROTOCOL, epochs=20, decay_epochs=(15, 18), batch_size=32)
    accuracies = []
    for name, device in (("fast", FAST), ("single", SINGLE)):
        members = [planned(METHODS[0], tmp_path / name, seed, protocol) for seed in range(8)]
        assert train_pack(members, digits, device, Workspace(tmp_path / "work" / name, 30.0))
        accuracies.append([r["accuracy"]["last"] for r in load_records(tmp_path / name).values()])
    fast, single = (sum(a) / len(a) for a in accuracies)
    assert abs(fast - single) < 3
    assert min(fast, single) > 60
