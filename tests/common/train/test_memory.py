"""OLTR's head against plain loops, and what a run with it takes from its first stage."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.methods.method import Outputs, Start
from common.models.memory import MemoryHead, class_means
from common.store import save_record
from common.train.device import Device
from common.train.loop import train_epoch, train_pack
from common.train.record import Curves, make_diverged_record
from common.train.resident import ResidentSteps
from common.train.start import load_start
from common.train.state import Workspace
from tests.common.train.kinds import MEMORY
from tests.common.train.toys import PROTOCOL, planned

DOUBLE, SINGLE = Device("cpu", "float64", False), Device("cpu", "float32", False)


def some_head(runs: int = 2, width: int = 4, classes: int = 3) -> MemoryHead:
    head = MemoryHead(runs, width, classes).double()
    head.initialise([torch.Generator().manual_seed(run) for run in range(runs)])
    head.centroids.data = torch.randn(runs, width, classes, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return head


def some_features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def literal_logit(head: MemoryHead, run: int, x: np.ndarray, c: int) -> float:
    p = {name: tensor.detach()[run].numpy() for name, tensor in head.named_parameters()}
    classes = range(p["weight"].shape[1])
    scores = [math.exp(x @ p["recall"][:, j] + p["recall_bias"][0, j]) for j in classes]
    memory = sum(scores[j] / sum(scores) * p["centroids"][:, j] for j in classes)
    selector = [math.tanh(x @ p["select"][:, d] + p["select_bias"][0, d]) for d in range(len(x))]
    reach = 10 / min(math.sqrt(((x - p["centroids"][:, j]) ** 2).sum()) for j in classes)
    u = reach * (x + np.array(selector) * memory)
    length = math.sqrt(u @ u)
    return length / (1 + length) * (u / length) @ (p["weight"][:, c] / math.sqrt(p["weight"][:, c] @ p["weight"][:, c]))


def test_the_memory_head_is_its_formula_run_by_run():
    head, x = some_head(), some_features(2, 6, 4)
    found = head(x)
    for run, i, c in itertools.product(range(2), range(6), range(3)):
        assert found[run, i, c].item() == pytest.approx(literal_logit(head, run, x[run, i].numpy(), c), rel=1e-10)
    assert found.abs().max() < 1


def test_logits_do_not_move_the_centroids_and_move_everything_else():
    head = some_head()
    (head(some_features(2, 6, 4)) ** 2).sum().backward()
    assert head.centroids.grad is None
    others = ("weight", "recall", "recall_bias", "select", "select_bias")
    assert all(getattr(head, name).grad.abs().sum() > 0 for name in others)


def test_a_feature_on_a_centroid_is_no_accident():
    head = some_head()
    x = head.centroids.detach().transpose(1, 2).clone().requires_grad_()
    z = head(x)
    z.sum().backward()
    assert z.isfinite().all()
    assert x.grad.isfinite().all()


def test_class_means_are_means_whatever_the_batches():
    x, y = some_features(2, 7, 4), torch.tensor([0, 2, 2, 0, 4, 2, 0])
    found = class_means([(x[:, :3], y[:3]), (x[:, 3:], y[3:])], 5)
    assert found.shape == (2, 4, 5)
    for run, c in itertools.product(range(2), range(5)):
        mine = [x[run, i].numpy() for i in range(7) if y[i] == c]
        assert found[run, :, c].numpy() == pytest.approx(np.mean(mine, 0) if mine else np.zeros(4))


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def members(digits, tmp_path_factory):
    """Two runs whose first stages are trained."""
    folder = tmp_path_factory.mktemp("memory")
    found = [planned(MEMORY, folder, seed, MEMORY.protocol) for seed in (0, 3)]
    assert train_pack([m.start for m in found], digits, SINGLE, Workspace(folder / "work", 30.0))
    return found


def test_a_run_begins_with_its_first_stages_classifier_and_class_means(digits, members):
    steps = ResidentSteps(members, digits, DOUBLE)
    drawn = {n: t.clone() for n, t in steps.pack.run_state(1).items()}
    load_start(steps)
    state, first = steps.pack.run_state(1), {n: t.double() for n, t in load_file(members[1].start.checkpoint).items()}
    assert torch.equal(state["head.recall"], first["head.weight"])
    assert torch.equal(state["head.recall_bias"], first["head.bias"])
    for name in ("head.weight", "head.select", "head.select_bias"):
        assert torch.equal(state[name], drawn[name]), "drawn anew"
    alone = ResidentSteps([members[1].start], digits, DOUBLE)
    alone.pack.load_run_state(0, first)
    alone.pack.net.eval()
    features = alone.pack.net(alone.feed.plain("train", torch.arange(alone.feed.size), 1))[0].detach()
    for c in range(10):
        torch.testing.assert_close(state["head.centroids"][0, :, c], features[alone.feed.labels == c].mean(0))


def test_the_head_has_a_rate_of_its_own_and_the_centroids_that_of_the_backbone(digits, members):
    steps = ResidentSteps(members, digits, SINGLE)
    steps.begin_epoch(1)
    rates = {id(p): float(g["lr"]) for g in steps.pack.optimiser.param_groups for p in g["params"]}
    named = {name: rates[id(p)] for name, p in steps.pack.heads[0].named_parameters()}
    slow = 0.01 * PROTOCOL.decay_factor
    assert named.pop("centroids") == pytest.approx(slow)
    assert list(named.values()) == pytest.approx([10 * slow] * 5)
    assert all(rates[id(p)] == pytest.approx(slow) for p in steps.pack.net.parameters())


def test_a_step_is_the_loss_on_the_heads_tensors(digits, members):
    steps = ResidentSteps(members[:1], digits, DOUBLE)
    load_start(steps)
    steps.begin_epoch(0)
    batch = steps.batches()[0]
    features = steps.pack.net(steps.feed.batch(batch.images))
    outputs = Outputs(steps.pack.heads[0](features), features, head={"centroids": steps.pack.heads[0].centroids})
    wanted = MEMORY.loss(outputs, steps.feed.labels[batch.images[0]], steps.pack.context).mean()
    assert steps.pack.losses(features, batch).item() == pytest.approx(wanted.item(), rel=1e-12)
    before = {n: t.clone() for n, t in steps.pack.run_state(0).items()}
    steps.step(batch)
    after = steps.pack.run_state(0)
    assert not [n for n in before if n.startswith("head.") and torch.equal(before[n], after[n])], "all of the head is trained"
    assert not torch.equal(before["backbone.conv.weight"], after["backbone.conv.weight"])


def test_plain_features_leave_the_pack_as_it_is(digits, members):
    steps = ResidentSteps(members, digits, DOUBLE)
    before = {n: t.clone() for n, t in steps.pack.state().items()}
    batches = list(steps.plain_features())
    assert sum(len(y) for _, y in batches) == steps.feed.size
    assert torch.equal(torch.cat([y for _, y in batches]), steps.feed.cpu_labels)
    assert not any(x.requires_grad for x, _ in batches)
    assert all(torch.equal(t, before[n]) for n, t in steps.pack.state().items())


def test_a_start_that_diverged_ends_the_run_alone(digits, members, tmp_path):
    """Its neighbour begins as it does without it."""
    broken = replace(MEMORY, start=Start(replace(MEMORY.first_stage, reduction="batch")))
    lost = planned(broken, tmp_path, 0, broken.protocol)
    first = ResidentSteps([lost.start], digits, SINGLE)
    first.pack.stop_run(0, 0)
    save_record(lost.folder, make_diverged_record(first.pack, 0, Curves(1), {"torch": torch.__version__}))
    steps, alone = ResidentSteps([lost, members[0]], digits, DOUBLE), ResidentSteps(members[:1], digits, DOUBLE)
    for each in (steps, alone):
        load_start(each)
    assert steps.pack.alive == [False, True]
    for name, tensor in alone.pack.run_state(0).items():
        torch.testing.assert_close(steps.pack.run_state(1)[name], tensor, rtol=1e-9, atol=1e-12)
    assert math.isfinite(float(train_epoch(steps, 0)[1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_captured_training_is_the_cpus(digits, members):
    packs = [ResidentSteps(members, digits, Device(name, "float64", False)) for name in ("cuda", "cpu")]
    for steps in packs:
        load_start(steps)
        for epoch in range(2):
            train_epoch(steps, epoch)
    for run in range(2):
        there, here = (steps.pack.run_state(run) for steps in packs)
        for name in here:
            torch.testing.assert_close(there[name].cpu(), here[name], rtol=1e-4, atol=1e-5)
