"""The rows of the large sets' tables against a table written by hand; their losses against plain loops; DisAlign's start."""

import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from common.methods import two_stage as rows
from common.methods.losses import lade, logit_adjusted, meta_embedding
from common.methods.method import Context, Outputs, run_spec
from common.methods.one_stage import ce_row
from common.models.heads import CosineHead, LinearHead
from common.plan import Run
from common.spec import Column, Protocol
from tests.loss_checks import COUNTS, batch_permutation_gap, check_class_permutation, check_run_axes, context, make

FIRST = {"written": Protocol(180, 256, 0.1, 0.9, 5e-4, 0, (120, 160), 0.1, False),
         "released": Protocol(180, 256, 0.05, 0.9, 5e-4, 0, (120, 160), 0.1, False)}
SECOND = replace(FIRST["written"], decay_epochs=(), schedule="cosine", trains="head")
KINDS = {"crt": 10, "lws": 5, "tau": 6, "disalign": 7, "oltr": 60}
PROTOCOLS = {**FIRST, **{f"{r}-{kind}": replace(SECOND, epochs=epochs, rate=FIRST[r].rate)
                         for r in FIRST for kind, epochs in KINDS.items()}}
COLUMN = Column("cifar100", "lt", 100, "resnet32")
DOUBLE = torch.float64


def every_row(reading, column=COLUMN, protocols=PROTOCOLS):
    return [rows.lade_row(reading, column), rows.lws_row(reading, protocols), rows.tau_norm_row(reading, protocols),
            rows.decoupling_row(reading, protocols),
            rows.disalign_row(reading, protocols), rows.oltr_row(reading, column, protocols)]


# name: what departs from cross-entropy on a linear head, a shuffle, weight 1 and one stage; then the second stage's setting
CE = {"function": "softmax_cross_entropy"}
FROZEN = {"keep": True, "rate": 0.0}
MEANT = {
    "lade": ({"loss": {"function": "lade", "alpha": 0.1, "strength": 0.01}}, None),
    "lws": ({"sampler": "class_balanced", **FROZEN, "rescale": "class"}, "lws"),
    "tau-norm": ({"sampler": "class_balanced", **FROZEN, "rescale": "tau"}, "tau"),
    "decoupling": ({"sampler": "class_balanced", **FROZEN, "rescale": "class"}, "lws"),
    "disalign": ({"weights": {"function": "inverse_power_weights", "exponent": 1.2}, **FROZEN, "rescale": "align"}, "disalign"),
    "oltr": ({"loss": {"function": "meta_embedding", "s": 16.0, "share": 0.01, "repel": 0.01, "margin": 10.0},
              "sampler": "class_balanced", "kind": "memory", "rate": 10.0}, "oltr"),
}
PLAIN = {"loss": CE, "weights": {"function": "uniform_weights"}, "sampler": "shuffled", "kind": "linear", "keep": False,
         "rate": 1.0, "rescale": "", "reduction": "weighted", "mixup": 0.0, "companions": [], "network": "plain", "held_out": 0}


@pytest.mark.parametrize("reading", ["written", "released"])
def test_rows_are_what_the_literature_says(reading):
    found = {m.name: m for m in every_row(reading)}
    assert found.keys() == MEANT.keys()
    for name, (departs, second) in MEANT.items():
        said = found[name].describe()
        short = said | said["head"] | {"sampler": said["sampler"]["function"]}
        assert {key: short[key] for key in PLAIN} == PLAIN | departs, name
        assert found[name].reading == reading
        assert found[name].protocol == (PROTOCOLS[f"{reading}-{second}"] if second else None)


def test_second_stages_start_from_the_row_ce_of_their_reading(tmp_path):
    for reading in FIRST:
        ce = run_spec(COLUMN, FIRST[reading], ce_row(reading), 3)
        for row in every_row(reading):
            if row.first_stage:
                stage = Run(run_spec(COLUMN, row.protocol, row, 3), row, tmp_path / "a" / "b" / "c" / "d")
                assert stage.start.spec.key == ce.key, row.name


def test_decoupling_is_trained_once_with_lws_and_readings_differ_by_their_settings_alone():
    def key(row):
        return run_spec(COLUMN, row.protocol or FIRST["written"], row, 0).key

    assert key(rows.decoupling_row("written", PROTOCOLS)) == key(rows.lws_row("written", PROTOCOLS))
    same = {f"{r}{rest}": PROTOCOLS[f"written{rest}"] for r in FIRST for rest in ("", *(f"-{kind}" for kind in KINDS))}
    pairs = zip(every_row("written", protocols=same), every_row("released", protocols=same), strict=True)
    assert all(key(one) == key(other) for one, other in pairs)
    assert len({key(row) for row in every_row("written")}) == len(MEANT) - 1  # decoupling is LWS


@pytest.mark.parametrize(("dataset", "meant", "rate"), [
    ("cifar100", (0.1, 0.01), 10.0), ("imagenet-lt", (0.05, 0.5), 10.0), ("inaturalist2018", (0.05, 0.5), 10.0),
    ("places-lt", (0.005, 0.1), 1.0), ("digits", (0.1, 0.01), 10.0)])
def test_numbers_by_data_set(dataset, meant, rate):
    column = Column(dataset, "lt", 100, "resnet32")
    assert tuple(rows.lade_row("written", column).loss.keywords.values()) == meant
    assert rows.oltr_row("written", column, PROTOCOLS).head.rate == rate


def test_inverse_power_weights_by_hand():
    """100 images against 50: the rarer class weighs 2^1.2 as much; the two weigh 2 in all."""
    found = rows.inverse_power_weights(np.array([100, 50]), 7, exponent=1.2)
    assert found[1] / found[0] == pytest.approx(2.2973967)
    assert found.sum() == pytest.approx(2)
    order = np.array([2, 0, 3, 1])
    assert rows.inverse_power_weights(np.array(COUNTS)[order], 0, exponent=1.2) == pytest.approx(
        rows.inverse_power_weights(np.array(COUNTS), 0, exponent=1.2)[order])


# ---------------------------------------------------------------- LADE


def literal_regulariser(z, y, n, strength):
    """z: list of rows, y: labels, n: images of each class."""
    total = 0.0
    for c in range(len(n)):
        pi, own = n[c] / sum(n), [row[c] for row, label in zip(z, y, strict=True) if label == c]
        first = sum(own) / len(own) if own else 0.0
        level = math.log(sum(math.exp(row[c] - math.log(pi) - math.log(len(n))) for row in z) / len(z))
        total -= pi * (first - level - strength * level**2)
    return total


@pytest.mark.parametrize("missing", [None, 1])
def test_lade_is_its_equation(missing):
    outputs, labels, ctx = make(cosines=False)
    if missing is not None:
        labels = torch.where(labels == missing, 0, labels)
    found = lade(outputs, labels, ctx, alpha=0.3, strength=0.2)
    regulariser = literal_regulariser(outputs.logits.tolist(), labels.tolist(), COUNTS, 0.2)
    torch.testing.assert_close(found, logit_adjusted(outputs, labels, ctx, tau=1.0) + 0.3 * regulariser, rtol=1e-9, atol=1e-9)
    assert abs(regulariser) > 0.1


def test_lade_without_its_regulariser_is_logit_adjustment():
    outputs, labels, ctx = make(cosines=False)
    torch.testing.assert_close(lade(outputs, labels, ctx, alpha=0.0, strength=9.0), logit_adjusted(outputs, labels, ctx, tau=1.0),
                               rtol=1e-9, atol=1e-9)


def test_lade_does_not_depend_on_names_or_places_and_every_run_has_its_own():
    loss = partial(lade, alpha=0.3, strength=0.2)
    check_class_permutation(loss, cosines=False)
    assert batch_permutation_gap(loss, cosines=False) < 1e-12
    check_run_axes(loss, cosines=False)


# ---------------------------------------------------------------- OLTR


def memory_case(runs=()):
    generator = torch.Generator().manual_seed(6)
    outputs, labels, ctx = make()
    x = torch.randn(*runs, 12, 7, generator=generator, dtype=DOUBLE)
    c = torch.randn(*runs, 7, 4, generator=generator, dtype=DOUBLE) / 2
    z = outputs.logits.expand(*runs, 12, 4)
    return z, x, c, labels.expand(*runs, 12), ctx


def literal_memory_loss(z, x, c, y, margin):
    """Cross-entropy of 16 z, and 0.3 times the centroid loss, of one run."""
    n, classes = z.shape
    ce = near = far = 0.0
    for i in range(n):
        ce += (math.log(sum(math.exp(16 * v) for v in z[i].tolist())) - 16 * float(z[i, y[i]])) / n
        near += sum(float(x[i, d] - c[d, y[i]]) ** 2 for d in range(7)) / (2 * n)
        for j in range(classes):
            far += 0.0 if j == y[i] else sum(float(x[i, d] - c[d, j]) ** 2 for d in range(7)) / (n * classes)
    return ce + 0.3 * (near + 0.2 * max(margin - far, 0.0)), far


@pytest.mark.parametrize("margin", [10.0, 0.5])
def test_the_centroid_loss_is_its_equation(margin):
    z, x, c, y, ctx = memory_case()
    loss = partial(meta_embedding, s=16.0, share=0.3, repel=0.2, margin=margin)
    found = loss(Outputs(z, x, head={"centroids": c}), y, ctx)
    wanted, far = literal_memory_loss(z, x, c, y, margin)
    assert found.mean().item() == pytest.approx(wanted, rel=1e-10)
    assert (far < margin) == (margin == 10.0)


def test_what_the_centroid_loss_tells_features_and_centroids():
    """Features: the slope of the loss. Centroids: of the attraction sum (c - x) / (N (1 + n)), and the slope of the rest."""
    z, x, c, y, ctx = memory_case()
    x.requires_grad_()
    c.requires_grad_()
    meta_embedding(Outputs(z, x, head={"centroids": c}), y, ctx, s=16.0, share=0.3, repel=0.2).mean().backward()
    for i, d in ((0, 0), (5, 3)):
        step = torch.zeros_like(x)
        step[i, d] = 1e-5
        with torch.no_grad():
            up, down = (literal_memory_loss(z, x + sign * step, c, y, 10.0)[0] for sign in (1, -1))
        assert x.grad[i, d].item() == pytest.approx((up - down) / 2e-5, rel=1e-6)
    with torch.no_grad():
        for j in range(4):
            own = [i for i in range(12) if y[i] == j]
            attraction = sum(c[:, j] - x[i] for i in own) / (12 * (1 + len(own)))
            repulsion = -0.3 * 0.2 * sum(2 * (c[:, j] - x[i]) for i in range(12) if y[i] != j) / (12 * 4)
            torch.testing.assert_close(c.grad[:, j], attraction + repulsion)


def test_the_centroid_loss_does_not_depend_on_names_and_every_run_has_its_own():
    z, x, c, y, ctx = memory_case((3,))
    loss = partial(meta_embedding, s=16.0)
    packed = loss(Outputs(z, x, head={"centroids": c}), y, ctx)
    order = torch.tensor([2, 0, 3, 1])
    renamed = Context(ctx.counts[order], ctx.epoch)
    for run in range(3):
        alone = loss(Outputs(z[run], x[run], head={"centroids": c[run]}), y[run], ctx)
        torch.testing.assert_close(packed[run], alone)
        other = Outputs(z[run][:, order], x[run], head={"centroids": c[run][:, order]})
        torch.testing.assert_close(loss(other, torch.argsort(order)[y[run]], renamed), alone)
    assert context(COUNTS).counts.tolist() == ctx.counts.tolist()


# ---------------------------------------------------------------- DisAlign


def aligned(kind):
    head = kind(2, 8, 5, rescale="align").double()
    head.initialise([torch.Generator().manual_seed(run) for run in range(2)])
    return head, torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


@pytest.mark.parametrize("kind", [LinearHead, CosineHead])
def test_an_aligned_head_is_its_formula(kind):
    head, x = aligned(kind)
    for p in (head.a, head.b, head.v):
        p.data += torch.rand(p.shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    head.requires_grad_(False)
    found, before = head(x), head.logits(x)
    for run, i, c in itertools.product(range(2), range(6), range(5)):
        sure = 1 / (1 + math.exp(-float(x[run, i] @ head.v[run, :, 0] + head.v0[run, 0, 0])))
        wanted = (1 + sure * float(head.a[run, 0, c])) * float(before[run, i, c]) + sure * float(head.b[run, 0, c])
        assert found[run, i, c].item() == pytest.approx(wanted)


@pytest.mark.parametrize("kind", [LinearHead, CosineHead])
def test_an_aligned_head_begins_with_the_ranking_of_the_first_stage(kind):
    head, x = aligned(kind)
    before = head.logits(x)
    assert (head.a.unique().tolist(), head.b.unique().tolist()) == ([1.0], [0.0])
    assert head.v.detach().numpy() == pytest.approx(0.1)
    assert 0 < head.v0.abs().max() <= 1 / math.sqrt(8)
    assert head.v0[0] != head.v0[1]
    torch.testing.assert_close(head(x), (1 + torch.sigmoid(x @ head.v + head.v0)) * before)
    assert torch.equal(head(x).argsort(-1), before.argsort(-1))
    head.a.data.zero_()
    assert torch.equal(head(x), before)


def test_alignment_draws_nothing_that_others_draw():
    """Two runs: the weights of a head with and without it are the same bits."""
    heads = [LinearHead(2, 8, 5, rescale=rescale) for rescale in ("", "align")]
    for head in heads:
        head.initialise([torch.Generator().manual_seed(run) for run in range(2)])
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)
