"""The contract of a pack (one run is a pack of one; a run does not notice its neighbours)."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.data.feed import generator_for
from common.errors import UserError
from common.methods.method import Outputs
from common.train.device import Device, choose_device
from common.train.loop import train_epoch
from common.train.resident import ResidentSteps
from tests.common.train.toys import BROKEN, METHODS, PROTOCOL, planned, train_between

DOUBLE = Device("cpu", "float64", False)
SINGLE = Device("cpu", "float32", False)


class PlainBlock(nn.Module):
    """A basic block as every textbook has it, one run, no groups."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)
        self.stride, self.extra = stride, c_out - c_in

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(y + x)


class PlainNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(PlainBlock(8, 8, 1), PlainBlock(8, 16, 2), PlainBlock(16, 32, 2))

    def forward(self, x):
        return self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3))


def test_a_pack_of_one_is_the_plain_network_under_plain_sgd(digits, tmp_path):
    """Three steps of torch's own SGD on a textbook network give the weights of a pack of one."""
    steps = ResidentSteps([planned(METHODS[0], tmp_path)], digits, DOUBLE)
    net, head = PlainNet().double(), nn.Linear(32, 10).double()
    weights = {n: t.clone() for n, t in steps.pack.net.state_dict().items()}
    net.load_state_dict(weights, strict=False)  # all but the batch counters
    with torch.no_grad():
        head.weight.copy_(steps.pack.heads[0].weight[0].T)
        head.bias.copy_(steps.pack.heads[0].bias[0, 0])
    sgd = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=0.0002)
    steps.begin_epoch(0)
    for drawn in steps.batches()[:3]:
        images = steps.feed.batch(drawn.images)
        loss = F.cross_entropy(head(net(images)), steps.feed.labels[drawn.images[0, 0]])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        steps.step(drawn)
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        torch.testing.assert_close(steps.pack.net.state_dict()[name], tensor, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(steps.pack.heads[0].weight[0].T, head.weight, rtol=1e-10, atol=1e-12)


def test_each_run_of_a_pack_equals_the_run_alone(digits, tmp_path):
    """Same draws exactly, same weights to float64 rounding, for five methods with five seeds and mixed heads."""
    members = [planned(m, tmp_path, seed) for seed, m in enumerate(METHODS)]
    packed = ResidentSteps(members, digits, DOUBLE)
    alone = [ResidentSteps([m], digits, DOUBLE) for m in members]
    for epoch in range(PROTOCOL.epochs):
        losses = train_epoch(packed, epoch)
        for run, single in enumerate(alone):
            assert losses[run] == pytest.approx(float(train_epoch(single, epoch)), rel=1e-9)
            assert torch.equal(packed.pack.drawn[:, run], single.pack.drawn[:, 0])
    for run, single in enumerate(alone):
        mine, theirs = packed.pack.run_state(run), single.pack.run_state(0)
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    together = torch.cat([t.accuracy() for t in packed.evaluate()[:4]])
    assert together.tolist() == [float(p.evaluate()[0].accuracy()) for p in alone[:4]]


def test_evaluation_uses_running_statistics_and_leaves_them_alone(digits, tmp_path):
    """It equals the textbook network in evaluation mode, image by image, whatever the batch."""
    steps = ResidentSteps([planned(METHODS[0], tmp_path)], digits, DOUBLE)
    train_epoch(steps, 0)
    before = {n: t.clone() for n, t in steps.pack.net.state_dict().items()}
    tally = steps.evaluate()[0]
    assert all(torch.equal(t, before[n]) for n, t in steps.pack.net.state_dict().items())
    net = PlainNet().double().eval()
    net.load_state_dict(before, strict=False)
    images, labels, _ = steps.feed.test_batch(0, 360, 1, [False])
    logits = net(images) @ steps.pack.heads[0].weight[0] + steps.pack.heads[0].bias[0]
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    for true, predicted in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        confusion[true, predicted] += 1
    assert torch.equal(tally.confusion[0], confusion)
    norms = torch.stack([net(images)[labels == c].norm(dim=1).sum() for c in range(10)])
    torch.testing.assert_close(tally.norms[0], norms.double())
    p = logits.softmax(1)
    assert tally.bins[0, :, 1].sum().item() == pytest.approx(p.max(1).values.sum().item(), rel=1e-4)


def test_runs_of_one_seed_see_the_same_batches_and_start_alike_whatever_the_method(digits, tmp_path):
    steps = ResidentSteps([planned(METHODS[0], tmp_path, 7), planned(METHODS[1], tmp_path, 7)], digits, SINGLE)
    steps.begin_epoch(0)
    assert torch.equal(steps.pack.drawn[:, 0], steps.pack.drawn[:, 1])
    first, second = steps.pack.run_state(0), steps.pack.run_state(1)
    assert all(torch.equal(first[n], second[n]) for n in first if n.startswith("backbone."))


def test_a_diverged_run_leaves_its_neighbours_bit_for_bit_alone(digits, tmp_path):
    sound, hurt = (train_between(m, digits, tmp_path, SINGLE) for m in (METHODS[2], BROKEN))
    assert hurt.pack.alive == [True, False, True]
    assert sound.pack.alive == [True, True, True]
    for run in (0, 2):
        mine, theirs = sound.pack.run_state(run), hurt.pack.run_state(run)
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.parametrize(("drop", "sizes"), [(False, [50] * 9 + [14]), (True, [50] * 9)])
def test_last_smaller_batch_is_kept_or_dropped_as_the_protocol_says(digits, tmp_path, drop, sizes):
    protocol = dataclasses.replace(PROTOCOL, drop_last=drop)
    steps = ResidentSteps([planned(METHODS[0], tmp_path, protocol=protocol)], digits, SINGLE)
    assert steps.pack.batch_sizes == sizes
    seen = []
    steps.step = lambda drawn, compiled: seen.append(drawn.images.shape[-1])
    train_epoch(steps, 0)
    assert seen == sizes


def test_weights_reduction_and_rate_reach_the_loss(digits, tmp_path):
    """The weighted mean divides by the batch's sum of weights, "batch" by its size."""
    members = [planned(METHODS[1], tmp_path), planned(METHODS[3], tmp_path)]
    steps = ResidentSteps(members, digits, DOUBLE)
    steps.begin_epoch(2)
    assert float(steps.pack.rate) == pytest.approx(0.1 * 0.01)
    drawn = steps.batches()[0]
    features = steps.pack.net(steps.feed.batch(drawn.images))
    losses = steps.pack.losses(features, drawn)
    for run, (member, divide_by_weights) in enumerate(zip(members, (True, False), strict=True)):
        y = steps.feed.labels[drawn.images[0, run]]
        outputs = Outputs(steps.pack.heads[run](features[run:run + 1])[0], features[run])
        each = member.method.loss(outputs, y, steps.pack.context)
        w = torch.tensor([member.method.weights(steps.feed.counts, 2)[c] for c in y.tolist()])
        wanted = (w * each).sum() / (w.sum() if divide_by_weights else 50)
        assert losses[run].item() == pytest.approx(wanted.item(), rel=1e-12)


def test_bias_without_decay_is_not_decayed(digits, tmp_path):
    steps = ResidentSteps([planned(METHODS[0], tmp_path), planned(METHODS[3], tmp_path)], digits, SINGLE)
    decays = {id(p): g["weight_decay"] for g in steps.pack.optimiser.param_groups for p in g["params"]}
    assert decays[id(steps.pack.heads[0].bias)] == pytest.approx(0.0002)
    assert decays[id(steps.pack.heads[1].bias)] == 0.0
    assert len(decays) == len(steps.pack.parameters())
    assert steps.pack.heads[1].bias.unique().tolist() == pytest.approx([-2.2])


def test_streams_are_apart():
    draws = {generator_for(s, p, e).initial_seed() for s in range(5) for p in ("order", "augmentation") for e in range(5)}
    assert len(draws) == 50


def test_on_a_cpu_the_default_is_eager_float32_and_a_wrong_device_is_said():
    if not torch.cuda.is_available():
        assert choose_device(None, None, None) == Device("cpu", "float32", False)
        with pytest.raises(UserError, match="0 CUDA devices"):
            choose_device("cuda:3", None, None)
    with pytest.raises(UserError, match="not a device"):
        choose_device("gpu", None, None)
