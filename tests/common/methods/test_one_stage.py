"""The shared rows against a table written by hand from the literature's settings, their samplers, and their second stages."""

import math
from dataclasses import replace

import numpy as np
import pytest

from common.methods import one_stage as rows
from common.methods.method import run_spec
from common.paper import Paper
from common.plan import plan
from common.spec import Column, Protocol

FIRST = {"written": Protocol(200, 128, 0.1, 0.9, 2e-4, 5, (160, 180), 0.01, False),
         "released": Protocol(200, 64, 0.1, 0.9, 2e-4, 5, (150, 180), 0.1, False)}
SECOND = Protocol(10, 128, 0.1, 0.9, 2e-4, 0, (), 1.0, False, schedule="cosine", trains="head")
PROTOCOLS = {**FIRST, **{f"{r}-{kind}": replace(SECOND, batch_size=FIRST[r].batch_size, moving_statistics=kind == "crt")
                         for r in FIRST for kind in ("crt", "mislas")}}
SOURCE = Protocol(200, 256, 0.2, 0.9, 5e-4, 5, (119, 159), 0.01, True, warmup_start=1 / 3)  # of De-confound-TDE
COLUMN = Column("cifar10", "lt", 100, "resnet32")
COUNTS = np.array([50, 5000, 500])


def every_row(reading):
    p = FIRST[reading]
    return [rows.ce_row(reading), rows.focal_row(reading), rows.cosface_row(reading), rows.arcface_row(reading),
            rows.ldam_drw_row(reading, p), rows.cb_focal_row(reading, 10), rows.equalization_row(reading), rows.la_row(reading),
            rows.la_post_hoc_row(reading, p), rows.bbn_row(reading, p), *rows.meta_rows(reading, p),
            rows.deconfound_tde_row(reading, 1.5, SOURCE),
            rows.mixup_row(reading), rows.mixup_crt_row(reading, PROTOCOLS), rows.hybrid_sc_row(reading, p),
            rows.mislas_row(reading, COLUMN, PROTOCOLS)]


# label: loss with its numbers, then what departs from a linear head, a shuffle, weight 1, one stream and one stage
MEANT = {
    "ce": ({"function": "softmax_cross_entropy"}, {}),
    "focal": ({"function": "focal", "gamma": 1.0}, {}),
    "cosface": ({"function": "uniform_margin", "s": 30.0, "m": 0.35}, {"head": "cosine"}),
    "arcface": ({"function": "arcface", "s": 30.0, "m": 0.5}, {"head": "cosine"}),
    "ldam-drw": ({"function": "ldam", "s": 30.0, "largest": 0.5}, {"head": "cosine", "weights": "deferred"}),
    "cb-focal": ({"function": "sigmoid_focal", "gamma": 1.0}, {"weights": "effective_number_weights", "reduction": "batch"}),
    "equalization": ({"function": "equalization", "rate": 0.9, "threshold": 0.005}, {"noise": "uniform"}),
    "la": ({"function": "logit_adjusted", "tau": 1.0}, {}),
    "la[mode=posthoc]": ({"function": "softmax_cross_entropy"},
                         {"adjust": {"function": "prior_adjustment", "tau": 1.0}, "starts": True}),
    "bbn": ({"function": "bilateral", "epochs": 200},
            {"network": "bilateral", "companions": ["reversed_frequency"], "combine": {"function": "cumulative", "epochs": 200}}),
    "meta-ldam": ({"function": "ldam", "s": 30.0, "largest": 0.5},
                  {"head": "cosine", "weights": "deferred", "reduction": "batch", "companions": ["held_out"], "held_out": 10,
                   "meta_rate": 0.01}),
    "meta-focal": ({"function": "focal", "gamma": 1.0},
                   {"weights": "deferred", "reduction": "batch", "companions": ["held_out"], "held_out": 10, "meta_rate": 0.01}),
    "deconfound-tde": ({"function": "softmax_cross_entropy"}, {"head": "causal", "network": "two-branch"}),
    "mixup": ({"function": "softmax_cross_entropy"}, {"mixup": 1.0}),
    "mixup-crt": ({"function": "softmax_cross_entropy"}, {"sampler": "class_balanced", "starts": True}),
    "hybrid-sc": ({"function": "hybrid_contrastive", "temperature": 0.1, "epochs": 200},
                  {"companions": ["again", "class_balanced"]}),
    "mislas": ({"function": "label_aware_smoothing", "head": 0.3, "tail": 0.0}, {"sampler": "class_balanced", "starts": True}),
}
PLAIN = {"head": "linear", "weights": "uniform_weights", "sampler": "shuffled", "reduction": "weighted", "mixup": 0.0,
         "noise": "", "companions": [], "combine": None, "network": "plain", "held_out": 0, "meta_rate": 0.0, "adjust": None,
         "starts": False}


@pytest.mark.parametrize("reading", ["written", "released"])
def test_rows_are_what_the_literature_says(reading):
    found = {m.label.removesuffix(f"@{reading}"): m for m in every_row(reading)}
    assert found.keys() == MEANT.keys()
    for label, (loss, departs) in MEANT.items():
        said = found[label].describe()
        if (label, reading) == ("focal", "released"):
            loss = {**loss, "function": "focal_detached"}
        assert said["loss"] == loss, label
        short = said | {"head": said["head"]["kind"], "weights": said["weights"]["function"],
                        "sampler": said["sampler"]["function"], "companions": [c["function"] for c in said["companions"]],
                        "starts": said["starts_from"] is not None}
        assert {name: short[name] for name in PLAIN} == PLAIN | departs, label
        assert found[label].reading == reading


def test_only_second_stages_carry_a_setting_of_their_own():
    for reading in FIRST:
        for row in every_row(reading):
            expected = PROTOCOLS[f"{reading}-{row.name.removeprefix('mixup-')}"] if row.name in ("mixup-crt", "mislas") else None
            if row.name not in ("deconfound-tde", "la"):
                assert row.protocol == expected, row.label


def test_deconfound_tde_has_its_sources_setting_in_every_reading():
    written, released = (rows.deconfound_tde_row(reading, 1.0, SOURCE) for reading in FIRST)
    assert written.protocol == released.protocol == SOURCE
    assert written.describe() == released.describe()


def test_post_hoc_adjustment_tests_the_network_of_the_row_ce_and_trains_nothing():
    for reading, first in FIRST.items():
        loss, row = rows.la_row(reading), rows.la_post_hoc_row(reading, first)
        assert loss.protocol is loss.first_stage is None
        assert (row.protocol.epochs, row.protocol.trains, row.protocol.decay_epochs) == (0, "head", ())
        assert (row.head.kind, row.head.keep) == ("linear", True)
        start = run_spec(COLUMN, row.first_stage.protocol, row.first_stage, 1)
        assert start.key == run_spec(COLUMN, first, rows.ce_row(reading), 1).key


@pytest.mark.parametrize(("epochs", "divisor"), [(200, 200), (180, 200), (90, 100), (100, 100), (20, 20)])
def test_bbn_mixes_over_the_epochs_of_its_code(epochs, divisor):
    row = rows.bbn_row("written", replace(FIRST["written"], epochs=epochs, decay_epochs=()))
    assert row.loss.keywords == row.streams.combine.keywords == {"epochs": divisor}


def test_heads():
    by_name = {m.name: m.head for m in every_row("released")}
    assert by_name["cb-focal"].bias == pytest.approx(-math.log(9))  # sigmoid(bias) = 1 / 10
    assert not by_name["cb-focal"].decay_bias
    assert by_name["deconfound-tde"].alpha == 1.5
    assert by_name["hybrid-sc"].project == 128
    assert (by_name["mislas"].keep, by_name["mislas"].rate, by_name["mislas"].rescale) == (True, 0.5, "class")
    assert by_name["mixup-crt"] == by_name["ce"]  # drawn anew


def test_deferral_starts_with_the_first_decay_of_the_rows_setting():
    for reading, start in (("written", 160), ("released", 150)):
        for row in (rows.ldam_drw_row(reading, FIRST[reading]), *rows.meta_rows(reading, FIRST[reading])):
            assert row.weights(COUNTS, start - 1).tolist() == [1, 1, 1]
            late = row.weights(COUNTS, start)
            assert late.sum() == pytest.approx(3)
            assert late[0] / late[1] == pytest.approx((1 - 0.9999 ** 5000) / (1 - 0.9999 ** 50))  # about 79


def test_numbers_can_be_changed():
    assert rows.focal_row("written", gamma=2).describe()["loss"]["gamma"] == 2.0
    assert rows.cosface_row("written", s=15, m=0.2).describe()["loss"] == {"function": "uniform_margin", "s": 15.0, "m": 0.2}
    assert rows.arcface_row("written", s=64, m=0.3).describe()["loss"] == {"function": "arcface", "s": 64.0, "m": 0.3}
    assert rows.la_row("written", tau=2).describe()["loss"]["tau"] == 2.0
    assert rows.la_post_hoc_row("written", FIRST["written"], tau=2).describe()["adjust"]["tau"] == 2.0
    assert rows.ldam_drw_row("written", FIRST["written"], s=10, beta=0.99).describe()["weights"]["then"]["beta"] == 0.99
    assert rows.cb_focal_row("written", 100, beta=0.9).head.bias == pytest.approx(-math.log(99))


def test_post_hoc_adjustment_by_hand():
    """90 images against 10 at tau = 1: the rare class gains ln 9 on the other."""
    found = rows.prior_adjustment(np.array([90, 10]), tau=1.0)
    assert found.tolist() == pytest.approx([-math.log(0.9), -math.log(0.1)])
    assert np.ptp(rows.prior_adjustment(np.array([90, 10]), tau=2.0)) == pytest.approx(2 * math.log(9))
    assert np.isfinite(rows.prior_adjustment(np.array([90, 0]), tau=1.0)).all()


def test_post_hoc_adjustment_undoes_what_the_loss_adds():
    import torch

    from common.methods.losses import cross_entropy, logit_adjusted
    from tests.loss_checks import make

    outputs, labels, ctx = make(cosines=False)
    adjusted = outputs.logits - torch.from_numpy(rows.prior_adjustment(ctx.counts.numpy(), tau=1.5))
    torch.testing.assert_close(logit_adjusted(outputs, labels, ctx, tau=1.5), cross_entropy(adjusted, labels))


def test_bbns_second_branch_sees_the_reversed_frequencies():
    sampler = rows.bbn_row("written", FIRST["written"]).streams.samplers[0]
    assert sampler(COUNTS, 0) == pytest.approx(np.array([100, 1, 10]) / 111)


# ---------------------------------------------------------------- second stages


@pytest.mark.parametrize(("dataset", "ratio", "meant"), [
    ("cifar10", 10, (0.1, 0.0, 0.2)), ("cifar10", 50, (0.2, 0.0, 0.2)), ("cifar10", 100, (0.3, 0.0, 0.5)),
    ("cifar10", 200, (0.3, 0.0, 0.5)), ("cifar100", 10, (0.2, 0.0, 0.1)), ("cifar100", 50, (0.3, 0.0, 0.1)),
    ("cifar100", 100, (0.4, 0.1, 0.2)), ("cifar100", 200, (0.4, 0.1, 0.2)), ("digits", 20, (0.3, 0.0, 0.5))])
def test_mislas_takes_its_columns_numbers(dataset, ratio, meant):
    row = rows.mislas_row("written", Column(dataset, "lt", ratio, "resnet32"), PROTOCOLS)
    assert (row.loss.keywords["head"], row.loss.keywords["tail"], row.head.rate) == meant


def paper(methods, tmp_path):
    return Paper("toy", "Toy", tmp_path / "toy", {"paper": (COLUMN,), "quick": ()}, {"paper": PROTOCOLS, "quick": {}},
                 {"paper": 2, "quick": 1}, lambda column, protocols: tuple(methods))


def test_second_stages_start_from_the_mixup_row_of_their_reading_and_seed(tmp_path):
    """One mixup run a reading and seed serves the row and both second stages."""
    methods = [row for reading in FIRST for row in every_row(reading)]
    planned = plan(paper(methods, tmp_path), "paper")
    keys = {(p.method.label, p.spec.seed): p.spec.key for p in planned}
    for reading in FIRST:
        for seed in (0, 1):
            for name in ("mixup-crt", "mislas"):
                (stage,) = [p for p in planned if (p.method.label, p.spec.seed) == (f"{name}@{reading}", seed)]
                assert stage.spec.protocol.trains == "head"
                assert stage.start.spec.key == keys[f"mixup@{reading}", seed]
    once = 2 * (len(methods) - 1)  # De-confound-TDE is one run of both readings
    assert len({m.spec.key for m in planned}) == len(planned) == once


def test_readings_differ_by_their_setting_alone_but_for_focal():
    """Where the two settings agree, a row of both readings is one run."""
    p, same = FIRST["written"], dict.fromkeys(FIRST, FIRST["written"])
    same |= {f"{reading}-{kind}": SECOND for reading in FIRST for kind in ("crt", "mislas")}
    for make in (rows.ce_row, rows.cosface_row, rows.arcface_row, rows.equalization_row, rows.la_row,
                 lambda r: rows.la_post_hoc_row(r, p), lambda r: rows.ldam_drw_row(r, p), lambda r: rows.cb_focal_row(r, 10),
                 lambda r: rows.bbn_row(r, p), lambda r: rows.meta_rows(r, p)[0], lambda r: rows.meta_rows(r, p)[1],
                 lambda r: rows.deconfound_tde_row(r, 1.0, p), rows.mixup_row, lambda r: rows.mixup_crt_row(r, same),
                 lambda r: rows.hybrid_sc_row(r, p), lambda r: rows.mislas_row(r, COLUMN, same)):
        keys = {run_spec(COLUMN, row.protocol or p, row, 0).key for row in map(make, FIRST)}
        assert len(keys) == 1, make("written").name
    assert rows.focal_row("written").describe() != rows.focal_row("released").describe()
