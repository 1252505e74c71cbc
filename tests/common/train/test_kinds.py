"""Every kind of method in a pack: equal to the run alone, resumable bit for bit, and what each promises by itself."""

import base64
import dataclasses
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from common.data.augment import as_network_input, crop, normalise
from common.data.feed import INDEX, PARTNER, DrawSpec, Feed, draw_blend, draw_noise
from common.errors import UserError
from common.methods.method import Clusters, Outputs, Start
from common.models.heads import CausalHead, CentreHead, CosineHead, GaussianHead, LinearHead, QuadraticHead, channel_groups
from common.models.pooling import SHIFTS
from common.models.resnet import PackedBilateral
from common.models.sizes import Residual
from common.plan import missing_runs
from common.spec import Column
from common.store import load_records
from common.train.device import Device
from common.train.loop import train_epoch, train_pack
from common.train.packing import form_packs
from common.train.resident import ResidentSteps
from common.train.start import load_start
from common.train.state import Workspace
from tests.common.train.kinds import (
    ADAM,
    AGAIN,
    ALIGNED,
    BALANCED,
    BILATERAL,
    BOTH,
    CAUSAL,
    CLOUDED,
    CONTRAST,
    DIVIDED,
    FIRST_STAGES,
    HALF,
    KEPT,
    KMEANS,
    META,
    META_LDAM,
    MIXUP,
    MOVING,
    NOISY,
    SCALED,
    SECOND_PROTOCOL,
    SECOND_STAGES,
    TAU,
    TESTED,
    WARD,
    per_class,
)
from tests.common.train.toys import COLUMN, METHODS, PROTOCOL, planned

DOUBLE, SINGLE = Device("cpu", "float64", False), Device("cpu", "float32", False)


def names(methods) -> str:
    return "+".join(m.name for m in methods)


def members_of(methods, folder, seeds=(0, 3)) -> list:
    return [planned(m, folder, seed, m.protocol or PROTOCOL) for m in methods for seed in seeds]


@pytest.fixture(scope="module")
def first_stages(digits, tmp_path_factory):
    """A folder with the trained first stages of all second stages."""
    folder = tmp_path_factory.mktemp("first")
    seconds = members_of(itertools.chain(*SECOND_STAGES), folder)
    firsts = [m for m in missing_runs(seconds, {}) if m.method.first_stage is None]
    for method in (CLOUDED, MIXUP):
        mine = [m for m in firsts if m.method.name == method.name]
        assert len(mine) == 2
        assert train_pack(mine, digits, SINGLE, Workspace(folder / "work", 30.0))
    return folder


def packs_of(members, digits, device):
    packs = ResidentSteps(members, digits, device), [ResidentSteps([m], digits, device) for m in members]
    for steps in (packs[0], *packs[1]):
        load_start(steps)
    return packs


@pytest.mark.parametrize("methods", FIRST_STAGES + SECOND_STAGES, ids=names)
def test_each_run_of_a_pack_equals_the_run_alone(methods, digits, tmp_path, first_stages):
    members = members_of(methods, first_stages if methods in SECOND_STAGES else tmp_path)
    packed, alone = packs_of(members, digits, DOUBLE)
    for epoch in range(packed.pack.protocol.epochs):
        losses = train_epoch(packed, epoch)
        for run, single in enumerate(alone):
            assert losses[run] == pytest.approx(float(train_epoch(single, epoch)), rel=1e-9)
            assert torch.equal(packed.pack.drawn[:, run], single.pack.drawn[:, 0])
            if packed.pack.streams > 1:
                assert torch.equal(packed.pack.epoch_drawn.others[:, :, run], single.pack.epoch_drawn.others[:, :, 0])
    for run, single in enumerate(alone):
        mine, theirs = packed.pack.run_state(run), single.pack.run_state(0)
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    together = torch.cat([t.accuracy() for t in packed.evaluate()])
    assert together.tolist() == [float(p.evaluate()[0].accuracy()) for p in alone]


@pytest.mark.parametrize("methods", FIRST_STAGES + SECOND_STAGES, ids=names)
def test_a_run_that_pauses_after_every_epoch_ends_with_the_same_bits(methods, digits, tmp_path, first_stages):
    trained = {}
    for way, deadline in (("whole", float("inf")), ("paused", 0.0)):
        folder = tmp_path / way
        members = members_of(methods, folder, seeds=(0,))
        for start in (m.start for m in members if m.start):
            start.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            there = first_stages / start.checkpoint.relative_to(folder)
            start.checkpoint.write_bytes(there.read_bytes())
        calls = 1
        while not train_pack(members, digits, SINGLE, Workspace(folder / "work", 0.0, deadline)):
            calls += 1
        assert calls == (members[0].spec.protocol.epochs if way == "paused" else 1)
        trained[way] = [load_file(m.checkpoint) for m in members]
        assert all(r["accuracy"]["last"] > 20 for r in load_records(folder).values())
    for mine, theirs in zip(*trained.values(), strict=True):
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)


# ---------------------------------------------------------------- mixup and noise


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_beside_runs_with_mixup_a_run_without_sees_its_images_to_the_last_bit(precision, digits, tmp_path):
    device = Device("cpu", precision, False)
    mixed, alone = ResidentSteps([planned(m, tmp_path, 5) for m in (MIXUP, METHODS[0])], digits, device), ResidentSteps(
        [planned(METHODS[0], tmp_path, 5)], digits, device)
    for steps in (mixed, alone):
        steps.begin_epoch(0)
    for theirs, mine in zip(mixed.batches(), alone.batches(), strict=True):
        assert (theirs.blend[1] == 1).all()
        assert (theirs.blend[0] < 1).all()
        assert mine.blend.numel() == 0
        together = mixed.feed.batch(theirs.images, theirs.blend)
        assert torch.equal(together[:, 1:], alone.feed.batch(mine.images))
        assert not torch.equal(together[:, :1], together[:, 1:])


def test_mixup_mixes_images_and_losses_with_one_share_a_batch(digits, tmp_path):
    """Against the definition, image by image: x = l x_a + (1 - l) x_b before normalising, loss = l L(y_a) + (1 - l) L(y_b)."""
    steps = ResidentSteps([planned(MIXUP, tmp_path, 5)], digits, DOUBLE)
    steps.begin_epoch(0)
    shares = []
    for batch in steps.batches()[:3]:
        drawn, share = batch.images, batch.blend
        assert len(share.unique()) == 1
        shares.append(float(share[0, 0]))
        partner = drawn[PARTNER, 0]
        assert partner.sort().values.tolist() == list(range(50))
        plain = crop(steps.feed.padded, steps.feed.pixels, *drawn[:PARTNER])[0].double()
        mixed = torch.stack([shares[-1] * plain[i] + (1 - shares[-1]) * plain[partner[i]] for i in range(50)])
        wanted = as_network_input(normalise(mixed[None], steps.feed.mean, steps.feed.std, torch.float64))
        torch.testing.assert_close(steps.feed.batch(drawn, share), wanted, rtol=1e-12, atol=1e-12)
        features = steps.pack.net(wanted)
        z, y = steps.pack.heads[0](features)[0], steps.feed.labels[drawn[INDEX, 0]]
        loss = shares[-1] * F.cross_entropy(z, y) + (1 - shares[-1]) * F.cross_entropy(z, y[partner])
        assert steps.pack.losses(features, batch).item() == pytest.approx(loss.item(), rel=1e-12)
    assert len(set(shares)) == 3


def test_shares_follow_beta():
    drawn = torch.stack([draw_blend(DrawSpec(seed, None, False, (), 0.2), 0, 1000, 1) for seed in range(20)]).flatten()
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(0.25 / 1.4, abs=0.01)  # of Beta(0.2, 0.2)


def test_each_label_of_mixup_has_its_own_noise_and_each_run_its_own(digits, tmp_path):
    steps = ResidentSteps([planned(CLOUDED, tmp_path, 0), planned(CLOUDED, tmp_path, 1)], digits, DOUBLE)
    steps.begin_epoch(0)
    noise, = steps.pack.epoch_drawn.noise
    assert noise.shape == (2, 2, 464, 10)
    assert len({round(float(t[0, 0]), 9) for t in noise.flatten(0, 1)}) == 4
    assert noise.std() == pytest.approx(1, abs=0.02)
    batch = steps.batches()[2]
    features = steps.pack.net(steps.feed.batch(batch.images, batch.blend))
    for run in range(2):
        z, y = steps.pack.heads[0](features)[run], steps.feed.labels[batch.images[INDEX, run]]
        terms = [CLOUDED.loss(Outputs(z, features[run]), labels, steps.pack.context._replace(noise=batch.noise[0][k, run]))
                 for k, labels in enumerate((y, y[batch.images[PARTNER, run]]))]
        share = batch.blend[run]
        wanted = (share * terms[0] + (1 - share) * terms[1]).mean()
        assert steps.pack.losses(features, batch)[run].item() == pytest.approx(wanted.item(), rel=1e-12)


def test_noise_is_of_its_kind_and_repeats():
    assert torch.equal(draw_noise(3, 7, "normal", (5, 4)), draw_noise(3, 7, "normal", (5, 4)))
    assert not torch.equal(draw_noise(3, 7, "normal", (5, 4)), draw_noise(3, 8, "normal", (5, 4)))
    uniform = draw_noise(0, 0, "uniform", (10_000,))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)


# ---------------------------------------------------------------- streams


def test_streams_see_the_images_that_their_samplers_name(digits, tmp_path):
    steps = ResidentSteps([planned(CONTRAST, tmp_path, 2)], digits, SINGLE)
    steps.begin_epoch(0)
    own, others = steps.pack.drawn[:, 0], steps.pack.epoch_drawn.others[:, :, 0]
    assert torch.equal(own[INDEX], others[0, INDEX]), "`again` shows the same images"
    assert not torch.equal(own[1:4], others[0, 1:4]), "under crops and flips of their own"
    counts = torch.bincount(steps.feed.labels[others[1, INDEX]], minlength=10)
    assert counts.max() < 2 * counts.min(), "class-balanced"


def test_a_loss_of_several_streams_gets_labels_and_outputs_of_each(digits, tmp_path):
    steps = ResidentSteps([planned(CONTRAST, tmp_path, 2)], digits, DOUBLE)
    steps.begin_epoch(0)
    batch = steps.batches()[0]
    features = torch.stack([steps.pack.net(steps.feed.batch(d)) for d in (batch.images, *batch.others)], 1)
    labels = steps.feed.labels[torch.cat([batch.images[INDEX], batch.others[:, INDEX, 0]])]
    outputs = Outputs(*(torch.stack([f(features[0, k][None])[0] for k in range(3)])
                        for f in (steps.pack.heads[0], lambda x: x, steps.pack.heads[0].projection)))
    assert labels.shape == (3, 50)
    wanted = CONTRAST.loss(outputs, labels, steps.pack.context).mean()
    assert steps.pack.losses(features, batch).item() == pytest.approx(wanted.item(), rel=1e-12)
    assert outputs.projected.norm(dim=-1).allclose(torch.ones(3, 50, dtype=torch.float64))


def test_a_bilateral_network_trains_a_branch_a_stream_and_tests_with_both(digits, tmp_path):
    steps = ResidentSteps([planned(BILATERAL, tmp_path)], digits, DOUBLE)
    steps.begin_epoch(1)
    batch = steps.batches()[0]
    own = [steps.pack.net(steps.feed.batch(d), k) for k, d in enumerate((batch.images, batch.others[0]))]
    features = torch.stack(own, 1)
    combined = torch.cat([0.75 * own[0], 0.25 * own[1]], -1)
    outputs = Outputs(steps.pack.heads[0](combined), combined)
    labels = steps.feed.labels[torch.stack([batch.images[INDEX], batch.others[0, INDEX]], 1)]
    wanted = BILATERAL.loss(outputs, labels, steps.pack.context).mean()
    assert steps.pack.losses(features, batch).item() == pytest.approx(wanted.item(), rel=1e-12)
    steps.pack.net.eval()
    both = steps.pack.net(steps.feed.batch(batch.images))
    assert torch.equal(both, torch.cat([steps.pack.net(steps.feed.batch(batch.images), k) for k in (0, 1)], -1))
    branches = [list(b.parameters()) for b in steps.pack.net.branches]
    assert not torch.equal(branches[0][0], branches[1][0])


def test_the_bilateral_resnet32_has_the_literatures_parameters():
    assert sum(p.numel() for p in PackedBilateral(Residual(5, 16), 1).parameters()) == 537_488


# ---------------------------------------------------------------- held-out images


def test_held_out_images_are_never_trained_on_and_the_counts_are_the_smaller_ones(digits, tmp_path):
    steps, plain = (ResidentSteps([planned(m, tmp_path, 1)], digits, SINGLE) for m in (META, METHODS[0]))
    steps.begin_epoch(0)
    assert steps.feed.counts[0] == plain.feed.counts[0] - 3
    assert len(steps.feed.labels) == steps.feed.size + 30
    assert torch.bincount(steps.feed.labels[steps.feed.size:]).tolist() == [3] * 10
    assert steps.pack.drawn[INDEX].max() < steps.feed.size
    held = steps.pack.epoch_drawn.others[0, INDEX]
    assert held.min() >= steps.feed.size
    assert held.max() < steps.feed.size + 30
    images = steps.feed.padded.flatten(1)
    trained, kept = images[:steps.feed.size], images[steps.feed.size:]
    assert not any((trained == image).all(1).any() for image in kept)


def test_learned_weights_are_the_slope_of_the_held_out_loss(digits, tmp_path):
    """Against central differences: move one sample's weight, take the virtual step by hand, test on the held-out batch."""
    steps = ResidentSteps([planned(META, tmp_path, 0), planned(META, tmp_path, 1)], digits, DOUBLE)
    steps.begin_epoch(2)
    assert steps.learns_weights
    batch = steps.batches()[0]
    before = {n: t.clone() for n, t in steps.pack.state().items()}
    learned = steps.learn_weights(batch)
    assert all(torch.equal(t, before[n]) for n, t in steps.pack.state().items()), "weights and statistics are left alone"

    def held_loss(run: int, sample: int, eps: float) -> float:
        labels = steps.feed.labels[batch.images[INDEX]]
        w = steps.pack.weights[0][labels].clone()
        w[run, sample] += eps
        logits = steps.pack.heads[0](steps.pack.net(steps.feed.batch(batch.images)))
        each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        gradients = torch.autograd.grad((w * each).sum(), steps.pack.parameters())
        with torch.no_grad():
            for p, g in zip(steps.pack.parameters(), gradients, strict=True):
                p.sub_(steps.pack.rate * g)
            held = steps.feed.labels[batch.others[0, INDEX]]
            z = steps.pack.heads[0](steps.pack.net(steps.feed.batch(batch.others[0])))
            loss = F.cross_entropy(z.transpose(1, 2), held, reduction="none").mean(-1).sum().item()
            for name, tensor in steps.pack.state().items():
                tensor.copy_(before[name])
        return loss

    for run, sample in ((0, 0), (1, 7)):
        slope = (held_loss(run, sample, 1e-4) - held_loss(run, sample, -1e-4)) / 2e-4
        weight = steps.pack.weights[0][steps.feed.labels[batch.images[INDEX, run, sample]]]
        assert float(learned[run, sample]) == pytest.approx(float(weight - META.meta.rate * slope), rel=1e-5)


def weights_by_a_double_backward(steps: ResidentSteps, batch) -> torch.Tensor:
    """The same by the definition: the gradient of the held-out loss through the virtual step."""
    whole = steps.whole()
    parameters = dict(whole.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    labels, held = steps.feed.labels[batch.images[INDEX]], steps.feed.labels[batch.others[0, INDEX]]
    weights = torch.cat([w[labels[g.first:g.stop]] for g, w in zip(steps.pack.groups, steps.pack.weights, strict=True)])
    eps = torch.zeros_like(weights, requires_grad=True)
    losses = functional_call(whole, {**parameters, **buffers}, (steps.feed.batch(batch.images), labels))
    gradients = torch.autograd.grad(((weights + eps) * losses).sum(), list(parameters.values()), create_graph=True)
    virtual = {name: p - steps.pack.rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    held_losses = functional_call(whole, {**virtual, **buffers}, (steps.feed.batch(batch.others[0]), held))
    return weights - steps.pack.shape.meta.rate * torch.autograd.grad(held_losses.mean(-1).sum(), eps)[0]


@pytest.mark.parametrize("bias", [True, False], ids=["linear", "dense"])
def test_learned_weights_are_those_of_the_double_backward(bias, digits, tmp_path):
    """To rounding, for both heads and a network with dense layers, whose slope is found in forward mode."""
    column = COLUMN if bias else replace(COLUMN, backbone="cnn4")
    members = [planned(m, tmp_path, seed, column=column) for m in (META, META_LDAM) for seed in (0, 1)]
    steps = ResidentSteps(members, digits, DOUBLE)
    steps.begin_epoch(2)
    for batch in steps.batches()[:2]:
        wanted, found = weights_by_a_double_backward(steps, batch), steps.learn_weights(batch)
        plain = torch.cat([steps.pack.weights[0][steps.feed.labels[batch.images[INDEX]]]])
        assert (wanted - plain).abs().max() > 1e-6
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        steps.step(batch)


def test_autocast_keeps_the_slopes_of_learned_weights(digits, tmp_path):
    """In bfloat16 they point where those of float64 do: no product is lost between a value and its slope."""
    found = []
    for device in (Device("cpu", "bfloat16", False), DOUBLE):
        steps = ResidentSteps([planned(META, tmp_path, seed) for seed in (0, 1)], digits, device)
        steps.begin_epoch(2)
        batch = steps.batches()[0]
        plain = steps.pack.weights[0][steps.feed.labels[batch.images[INDEX]]]
        found.append((steps.learn_weights(batch) - plain).double().flatten())
    assert F.cosine_similarity(*found, dim=0) > 0.98


def operations_of(function) -> int:
    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            self.count += 1
            return function(*arguments, **(named or {}))

    with Counter() as counter:
        function()
    return counter.count


def test_a_step_with_learned_weights_has_as_many_operations_for_six_runs_as_for_two(digits, tmp_path):
    found = []
    for runs in (2, 6):
        steps = ResidentSteps([planned(META, tmp_path, seed) for seed in range(runs)], digits, SINGLE)
        steps.begin_epoch(2)
        batch = steps.batches()[0]
        found.append(operations_of(lambda steps=steps, batch=batch: steps.step(batch)))
    assert found[0] == found[1]


def test_weights_are_learned_from_the_first_decay_on(digits, tmp_path):
    steps = ResidentSteps([planned(META, tmp_path)], digits, SINGLE)
    for epoch in range(3):
        steps.begin_epoch(epoch)
        assert steps.learns_weights == (epoch >= 2)


# ---------------------------------------------------------------- heads


def test_the_causal_head_is_its_formula_run_by_run():
    generator = torch.Generator().manual_seed(0)
    head = CausalHead(2, 8, 5, alpha=1.5).double()
    head.initialise([torch.Generator().manual_seed(run) for run in range(2)])
    batches = [torch.randn(2, 6, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    mean = np.zeros((2, 8))
    for batch in batches:
        z = head(batch)
        mean = 0.9 * mean + batch.mean(1).numpy()
    assert np.allclose(head.mean[:, 0].numpy(), mean)
    tested = head.eval()(batches[0])
    for run, i, c in itertools.product(range(2), range(6), range(5)):
        plain = found = 0.0
        for part in (slice(0, 4), slice(4, 8)):
            x, w = batches[0][run, i, part].numpy(), head.weight[run, part, c].detach().numpy()
            d, x = mean[run, part] / np.linalg.norm(mean[run, part]), x / np.linalg.norm(x)
            w = w / (np.linalg.norm(w) + 1 / 32)
            found += 8 * (x - 1.5 * (x @ d) * d) @ w
            plain += 8 * x @ w
        assert tested[run, i, c].item() == pytest.approx(found)
        if torch.equal(batches[-1], batches[0]):
            assert z[run, i, c].item() == pytest.approx(plain)
    assert torch.equal(head.mean, head.eval().mean), "testing leaves the mean alone"


def test_gaussian_heads_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    for kind in (CentreHead, GaussianHead, QuadraticHead):
        head = kind(2, 4, 3).double()
        head.initialise([torch.Generator().manual_seed(run) for run in range(2)])
        for parameter in head.parameters():
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        found, t = head(x), {n: p.detach() for n, p in head.named_parameters()}
        for run, i, k in itertools.product(range(2), range(6), range(3)):
            mu, wanted = t["weight"][run, :, k], 0.0
            for d in range(4):
                distance = float(x[run, i, d] - mu[d]) ** 2
                if kind is CentreHead:
                    wanted -= distance / 2
                elif kind is GaussianHead:
                    variance = math.exp(t["log_variances"][run, d, k])
                    wanted -= (distance / variance + math.log(variance)) / 2
                else:
                    a = float(t["inverse_deviations"][run, d, k])
                    shared = sum(float(t["inverse_deviations"][run, d, j]) ** 2 for j in range(3))
                    square = shared * float(x[run, i, d]) ** 2
                    wanted -= (square - 2 * float(x[run, i, d] * mu[d]) * a**2 + a**2 * float(mu[d]) ** 2) / 2 - math.log(a) / 2
            assert found[run, i, k].item() == pytest.approx(wanted)


def test_centres_move_towards_the_mean_of_their_class():
    head = LinearHead(1, 2, 3, centres=0.5).double()
    head.initialise([torch.Generator().manual_seed(0)])
    head.centres.copy_(torch.tensor([[[1.0, 2, 3], [0, 0, 0]]]))
    x, y = torch.tensor([[[3.0, 1], [5, 1], [0, 0]]], dtype=torch.float64), torch.tensor([[0, 0, 2]])
    head.move_centres(x, y)
    # class 0: 1 - 0.5 * ((1 - 3) + (1 - 5)) / 3 = 2; class 1 has no image; class 2: 3 - 0.5 * 3 / 2
    assert head.centres[0].T.tolist() == [[2.0, 0.5 * 2 / 3], [2.0, 0.0], [2.25, 0.0]]


@pytest.mark.parametrize(("kind", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("nesterov", None)])
def test_optimisers_are_torchs_own(kind, reference, digits, tmp_path):
    """Five steps of a pack of two against torch's optimiser on each run's own network."""
    protocol = dataclasses.replace(ADAM, optimiser=kind)
    members = [planned(METHODS[0], tmp_path, seed, protocol) for seed in range(2)]
    steps = ResidentSteps(members, digits, DOUBLE)
    alone = [ResidentSteps([m], digits, DOUBLE) for m in members]
    for run, single in enumerate(alone):
        how = {"lr": protocol.learning_rate(0), "weight_decay": protocol.weight_decay}
        parameters = single.pack.parameters()
        single.pack.optimiser = reference(parameters, betas=(0.9, 0.999), **how) if reference else torch.optim.SGD(
            parameters, momentum=0.9, nesterov=True, **how)
        single.begin_epoch(0)
        for batch in single.batches()[:5]:
            single.step(batch)
        if run == 0:
            steps.begin_epoch(0)
            for batch in steps.batches()[:5]:
                steps.step(batch)
        parts = (("backbone", single.pack.net), ("head", single.pack.heads[0]))
        theirs = {f"{part}.{n}": p for part, module in parts for n, p in module.named_parameters()}
        for name, tensor in theirs.items():
            torch.testing.assert_close(steps.pack.run_state(run)[name], tensor.detach(), rtol=1e-7, atol=1e-9)


def test_rescaled_heads_begin_where_the_first_stage_ended():
    features = torch.randn(1, 6, 8, dtype=torch.float64)
    for kind in (LinearHead, CosineHead):
        head = kind(1, 8, 5, rescale="class").double()
        head.initialise([torch.Generator().manual_seed(0)])
        before = head.logits(features)
        assert torch.equal(head(features), before)
        head.scale.data[0, 0, 3] = 2.0
        assert torch.allclose(head(features)[..., 3], 2 * before[..., 3])
    head = CosineHead(1, 8, 5, rescale="tau").double()
    head.initialise([torch.Generator().manual_seed(0)])
    head.weight.data *= torch.arange(1, 6)
    assert torch.allclose(head(features), head.logits(features))
    head.tau.data.fill_(0.0)
    assert torch.allclose(head(features), F.normalize(features, dim=-1) @ head.weight)
    head = LinearHead(1, 8, 5, rescale="tau").double()
    head.initialise([torch.Generator().manual_seed(0)])
    assert torch.allclose(head(features), features @ head.weight)
    head.tau.data.fill_(1.0)
    assert torch.allclose(head(features), features @ F.normalize(head.weight, dim=1))


def to_class_three(counts):
    return [0.0, 0, 0, 1e6, 0, 0, 0, 0, 0, 0]


def test_logits_are_adjusted_at_test_time_only(digits, tmp_path):
    towards_three = dataclasses.replace(METHODS[0], adjust=to_class_three)
    plain, steps = (ResidentSteps([planned(m, tmp_path)], digits, DOUBLE) for m in (METHODS[0], towards_three))
    assert torch.equal(train_epoch(plain, 0), train_epoch(steps, 0))
    assert steps.evaluate()[0].confusion[0].sum(0).tolist()[3] == 360


# ---------------------------------------------------------------- second stages


@pytest.mark.parametrize("method", [AGAIN, KEPT, SCALED, TAU, ALIGNED, HALF], ids=lambda m: m.name)
def test_a_second_stage_leaves_the_backbone_untouched_bit_for_bit(method, digits, first_stages):
    member = members_of([method], first_stages, seeds=(0,))[0]
    first = load_file(member.start.checkpoint)
    steps = ResidentSteps([member], digits, SINGLE)
    load_start(steps)
    head = {n: t.clone() for n, t in steps.pack.run_state(0).items() if n.startswith("head.")}
    kept = {n for n in head if n in first and torch.equal(head[n], first[n])}
    assert kept == ({n for n in head if n in first} if method.head.keep else set())
    for epoch in range(2):
        train_epoch(steps, epoch)
    state = steps.pack.run_state(0)
    moving = method.protocol == MOVING
    for name, tensor in first.items():
        if name.startswith("backbone."):
            statistic = "running" in name
            assert torch.equal(state[name], tensor) != (moving and statistic), name
    assert not [n for n in state if n.startswith("momentum.backbone")]
    changed = {n for n in head if not torch.equal(state[n], head[n])}
    learned = {"": {"weight", "bias"}, "class": {"scale"}, "tau": {"tau"}, "align": {"a", "b", "v", "v0"}}[method.head.rescale]
    if method is HALF:
        learned = {"weight", "bias", "scale"}
    assert changed == {n for n in head if n.removeprefix("head.") in learned}


def test_a_head_may_have_a_rate_of_its_own(digits, first_stages):
    steps = ResidentSteps(members_of([HALF], first_stages, seeds=(0,)), digits, SINGLE)
    steps.begin_epoch(1)
    rates = {id(p): float(g["lr"]) for g in steps.pack.optimiser.param_groups for p in g["params"]}
    assert rates[id(steps.pack.heads[0].weight)] == pytest.approx(0.5 * MOVING.learning_rate(1))
    assert rates[id(steps.pack.heads[0].scale)] == pytest.approx(MOVING.learning_rate(1))


def test_a_cosine_schedule_falls_from_its_rate_towards_nothing():
    rates = [SECOND_PROTOCOL.learning_rate(e) for e in range(2)]
    assert rates == pytest.approx([0.1, 0.05])
    ten = dataclasses.replace(SECOND_PROTOCOL, epochs=10)
    assert ten.learning_rate(9) == pytest.approx(0.1 * (1 + np.cos(np.pi * 0.9)) / 2)


def test_the_first_stages_setting_is_part_of_the_second_ones_identity(tmp_path):
    other = dataclasses.replace(AGAIN, start=Start(dataclasses.replace(AGAIN.first_stage,
                                                                       protocol=dataclasses.replace(PROTOCOL, epochs=4))))
    mine, its = (members_of([m], tmp_path, seeds=(0,))[0] for m in (AGAIN, other))
    assert mine.spec.key != its.spec.key
    assert mine.start.spec.protocol == PROTOCOL
    assert its.start.spec.protocol.epochs == 4


# ---------------------------------------------------------------- features for figures


def test_the_record_of_seed_0_keeps_features_of_plain_images_where_the_method_asks(digits, tmp_path):
    method = dataclasses.replace(METHODS[0], keep_features=True)
    assert method.describe() == METHODS[0].describe()
    members = [planned(method, tmp_path, seed) for seed in (0, 1)]
    assert train_pack(members, digits, SINGLE, Workspace(tmp_path / "work", 30.0))
    records = [load_records(tmp_path)[m.spec.key] for m in members]
    assert "features" not in records[1]
    kept = {split: np.frombuffer(base64.b64decode(part["values"]), "<f2").reshape(len(part["labels"]), -1)
            for split, part in records[0]["features"].items()}
    assert kept["train"].shape == (464, 32)
    assert torch.equal(torch.tensor(records[0]["head"]["weight"]), load_file(members[0].checkpoint)["head.weight"][0])
    steps = ResidentSteps(members, digits, SINGLE)
    steps.pack.load_run_state(0, load_file(members[0].checkpoint))
    steps.pack.net.eval()
    images, labels, _ = steps.feed.test_batch(0, 360, 1, [False, False])
    assert records[0]["features"]["test"]["labels"] == labels.sort().values.tolist()
    wanted = steps.pack.net(images)[0][labels.argsort(stable=True)].detach().numpy()
    assert np.allclose(kept["test"], wanted, rtol=2e-3, atol=1e-3)


# ---------------------------------------------------------------- a column of counts


def test_a_column_of_counts_keeps_the_first_classes_in_training_and_test(digits):
    column = Column("digits", "counts", 1, "resnet8", "hash", (60, 20, 30))
    feed = Feed(digits, column, turns=False, device=torch.device("cpu"), dtype=torch.float32)
    assert column.name == "digits-60-20-30"
    assert feed.counts.tolist() == [60, 20, 30]
    assert feed.classes == 3
    assert feed.test_labels.unique().tolist() == [0, 1, 2]
    assert len(feed.test_labels) == 108


def test_plain_noisy_and_mixed_runs_share_a_pack_and_others_do_not(tmp_path):
    members = members_of([NOISY, METHODS[0], CAUSAL, MIXUP, CLOUDED, BILATERAL, META], tmp_path, seeds=(0,))
    found = sorted(sorted(m.method.name for m in pack) for pack in form_packs(members, lambda m: 64))
    assert found == [["bilateral"], ["causal", "ce", "clouded", "mixup", "noisy"], ["meta"]]
    assert COLUMN.name == members[0].spec.column.name


# ---------------------------------------------------------------- balanced heads and clusters


def test_the_balanced_output_is_a_group_convolution_and_a_mean(digits, tmp_path):
    """Against torch's own: one 3x3 kernel a class on the class's channels, then the mean; the classifier sees plain means."""
    steps = ResidentSteps(members_of([BALANCED], tmp_path), digits, DOUBLE)
    maps = {}
    steps.pack.net.tail.register_forward_hook(lambda module, given, result: maps.update(x=given[0]))
    features = steps.pack.net(steps.feed.plain("train", torch.arange(5), 2))
    head, width = steps.pack.heads[0], steps.pack.net.width
    assert (width, head.kernel.shape) == (32, (2, 9 * 32, 10))
    for run in range(2):
        x = maps["x"][:, run * width:(run + 1) * width]
        for c in range(10):
            first, stop = c * width // 10, (c + 1) * width // 10
            kernel = head.kernel[run, :, c].reshape(9, width)[:, first:stop]
            literal = torch.zeros(1, stop - first, 3, 3, dtype=torch.float64)
            for values, (dy, dx) in zip(kernel, SHIFTS, strict=True):
                literal[0, :, dy + 1, dx + 1] = values
            wanted = F.conv2d(x[:, first:stop], literal, padding=1).mean((1, 2, 3))
            torch.testing.assert_close(head.balanced(features)[run, :, c], wanted, rtol=1e-10, atol=1e-12)
        plain = x.mean((2, 3)) @ head.weight[run] + head.bias[run]
        torch.testing.assert_close(head(features)[run], plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("width", "classes", "rule", "sizes"), [
    (64, 10, "uneven", [6, 6, 7, 6, 7, 6, 6, 7, 6, 7]), (64, 10, "drop", [6] * 10), (100, 100, "uneven", [1] * 100),
    (64, 100, "cyclic", [1] * 100), (512, 200, "uneven", None), (60, 10, "drop", [6] * 10),
])
def test_groups_of_channels(width, classes, rule, sizes):
    groups = channel_groups(width, classes, rule)
    found = groups.sum(0).tolist()
    assert found == (sizes or found)
    assert max(found) - min(found) <= 1
    owners = groups.sum(1)
    assert owners.max() == (2 if rule == "cyclic" else 1)
    assert owners.min() == (0 if width == 64 and rule == "drop" else 1)


def test_too_few_channels_for_the_classes_are_refused():
    with pytest.raises(UserError, match="64 channels cannot be divided among 100 classes"):
        channel_groups(64, 100, "uneven")


def test_a_classes_balanced_loss_reaches_its_own_channels_only(digits, tmp_path):
    steps = ResidentSteps(members_of([BALANCED], tmp_path, seeds=(0,)), digits, DOUBLE)
    features = torch.rand(1, 4, 9 * 32, dtype=torch.float64, requires_grad=True)
    own = channel_groups(32, 10, "uneven")
    for c in range(10):
        grad, = torch.autograd.grad(steps.pack.heads[0].balanced(features)[..., c].sum(), features)
        touched = grad.reshape(4, 9, 32).abs().sum((0, 1)) > 0
        assert torch.equal(touched, own[:, c])


@pytest.mark.parametrize("method", [DIVIDED, BOTH], ids=lambda m: m.name)
def test_clusters_divide_every_class_as_evenly_as_can_be(method, digits, tmp_path):
    steps = ResidentSteps(members_of([method], tmp_path), digits, DOUBLE)
    head, each = steps.pack.heads[0], per_class(steps.feed.counts)
    assert each.max() == 3
    assert each.min() == 1
    for clusters in head.clusters:
        assert torch.equal(head.parent[clusters], steps.feed.cpu_labels)
        sizes = torch.bincount(clusters, minlength=int(each.sum()))
        for c in range(10):
            mine = sizes[head.parent == c]
            assert mine.max() - mine.min() <= 1
    assert not torch.equal(head.clusters[0], head.clusters[1])


@pytest.mark.parametrize("method", [KMEANS, WARD], ids=lambda m: m.name)
def test_clusters_of_features_lie_closer_together_than_random_ones(method, digits, tmp_path, first_stages):
    members = members_of([method], first_stages, seeds=(0,))
    steps = ResidentSteps(members, digits, DOUBLE)
    random = ResidentSteps(members_of([DIVIDED], tmp_path, seeds=(0,)), digits, DOUBLE)
    load_start(steps)
    start = load_file(members[0].start.checkpoint)
    assert not torch.equal(steps.pack.run_state(0)["backbone.conv.weight"].float(), start["backbone.conv.weight"])  # drawn anew
    alone = ResidentSteps([members[0].start], digits, DOUBLE)
    alone.pack.load_run_state(0, start)
    alone.pack.net.eval()
    features = alone.pack.net(alone.feed.plain("train", torch.arange(steps.feed.size), 1))[0].detach()

    def scatter(clusters):
        return sum(float(((features[clusters == k] - features[clusters == k].mean(0)) ** 2).sum()) for k in clusters.unique())

    found = steps.pack.heads[0].clusters[0]
    assert torch.equal(steps.pack.heads[0].parent[found], steps.feed.cpu_labels)
    assert scatter(found) < 0.9 * scatter(random.pack.heads[0].clusters[0])


def test_the_two_ways_from_clusters_to_classes(digits, tmp_path):
    """Worked by hand: the class of the largest cluster, and the class of the largest sum, can differ."""
    head = ResidentSteps(members_of([DIVIDED], tmp_path, seeds=(0,)), digits, DOUBLE).pack.heads[0]
    head.parent = torch.tensor([0, 0, 0, 1, 2])
    p = torch.tensor([[[0.25, 0.2, 0.15, 0.3, 0.1]]], dtype=torch.float64)
    largest, summed = (head.class_logits(p.log(), 3, how) for how in ("largest", "sum"))
    assert largest.exp()[0, 0].tolist() == pytest.approx([0.25, 0.3, 0.1])
    assert summed.exp()[0, 0].tolist() == pytest.approx([0.6, 0.3, 0.1])
    head.parent = torch.arange(5)
    z = torch.randn(1, 7, 5, dtype=torch.float64)
    assert torch.equal(head.class_logits(z, 5, "largest"), z)
    torch.testing.assert_close(head.class_logits(z, 5, "sum"), z.log_softmax(-1))


def test_a_run_of_no_epochs_tests_what_it_starts_from(digits, tmp_path):
    first = members_of([DIVIDED], tmp_path, seeds=(0,))
    assert train_pack(first, digits, SINGLE, Workspace(tmp_path / "work", 30.0))
    summed = replace(TESTED, start=Start(replace(DIVIDED, protocol=PROTOCOL)))
    largest = replace(summed, clusters=replace(summed.clusters, pooling="largest"))
    tested = [planned(m, tmp_path, 0, m.protocol) for m in (summed, largest)]
    assert train_pack(tested, digits, SINGLE, Workspace(tmp_path / "work", 30.0))
    records = load_records(tmp_path)
    before, summed, largest = (records[m.spec.key] for m in (*first, *tested))
    assert largest["confusion"] == before["confusion"]
    assert summed["confusion"] != before["confusion"]
    assert summed["curves"]["train_loss"] == [None]
    assert summed["accuracy"]["last"] == summed["accuracy"]["best"]
    mine, theirs = load_file(tested[0].checkpoint), load_file(first[0].checkpoint)
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_the_record_of_clusters_has_a_norm_for_each_class(digits, tmp_path):
    member, = members_of([DIVIDED], tmp_path, seeds=(0,))
    assert train_pack([member], digits, SINGLE, Workspace(tmp_path / "work", 30.0))
    record, weights = load_records(tmp_path)[member.spec.key], load_file(member.checkpoint)
    each = per_class(np.array(record["counts"]))
    assert record["clusters"]["counts"] == each.tolist()
    norms = weights["head.weight"][0].norm(dim=0)
    first = [float(part.mean()) for part in norms.split(each.tolist())]
    assert record["norms"]["classifier"] == pytest.approx(first, rel=1e-4)


def one_too_many(counts):
    return counts + (counts == counts.min())


def test_more_clusters_than_images_are_refused(digits, tmp_path):
    with pytest.raises(UserError, match="divides class 9, which has"):
        ResidentSteps(members_of([replace(DIVIDED, clusters=Clusters(one_too_many))], tmp_path), digits, DOUBLE)
